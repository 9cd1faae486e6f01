//! What a person is told, as real passes write it: conditions, plan and events of a cluster that has a trouble.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::runtime::controller::Action;
use serde_json::{Value, json};

use super::runs::{Operator, block_on, settled, shared};
use super::stage::{NAME, Shared, Stage, lock};
use crate::observed::{Alarm, ExitKind, HostState};
use crate::plan::LEARNER_DEADLINE_SECONDS;
use crate::plan::simulation::GRACE_SECONDS;

/// Passes for so many seconds.
pub(super) async fn pass_for(operator: &Operator, stage: &Shared, seconds: i64) {
    let end = lock(stage).world.now + seconds;
    while lock(stage).world.now < end {
        operator.pass().await.expect("a pass");
        lock(stage).world.tick();
    }
    operator.pass().await.expect("a pass");
}

/// A slow learner may take longer than the deadline; one to which nothing moves for so long is stuck, from then on.
#[test]
fn a_learner_is_stuck_by_its_last_progress_not_by_its_age() {
    block_on(async {
        let stage = shared(settled(1, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).edit(&json!({"replicas": 2}));
        while lock(&stage).world.volumes.get(&1).is_none_or(|volume| volume.disk.is_none()) {
            operator.pass().await.expect("a pass");
            lock(&stage).world.tick();
        }
        lock(&stage).world.volumes.get_mut(&1).expect("volume 1").behind = 10_000;
        pass_for(&operator, &stage, 2 * LEARNER_DEADLINE_SECONDS).await;
        assert!(lock(&stage).planned().contains("LearnerBehind"), "it moves: {}", lock(&stage).planned());

        lock(&stage).world.raft.stalled = true;
        pass_for(&operator, &stage, LEARNER_DEADLINE_SECONDS / 2).await;
        assert!(lock(&stage).planned().contains("LearnerBehind"), "not yet: {}", lock(&stage).planned());
        pass_for(&operator, &stage, LEARNER_DEADLINE_SECONDS / 2 + 10).await;
        assert!(lock(&stage).planned().contains("LearnerStuck"), "{}", lock(&stage).planned());
        assert_eq!(lock(&stage).condition("Degraded"), ("True".to_owned(), "LearnerStuck".to_owned()));

        lock(&stage).world.raft.stalled = false;
        pass_for(&operator, &stage, 10).await;
        assert!(lock(&stage).planned().contains("LearnerBehind"), "it moves again: {}", lock(&stage).planned());
        lock(&stage).world.volumes.get_mut(&1).expect("volume 1").behind = 1;
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let warned = lock(&stage).events.iter().filter(|event| event[1] == "LearnerStuck").count();
        assert_eq!(warned, 1, "{:?}", lock(&stage).events);
    });
}

/// How often a warning of this reason was published.
pub(super) fn warnings(stage: &Shared, reason: &str) -> usize {
    lock(stage).events.iter().filter(|event| event[0] == "Warning" && event[1] == reason).count()
}

/// A node that ends with a code of the contract is told by the name of its end, and what a person may do; when the trouble
/// is over, the same member comes back.
#[test]
fn an_end_with_a_typed_code_is_told_by_its_name() {
    for kind in [ExitKind::DiskFailed, ExitKind::Fault] {
        block_on(async {
            let stage = shared(settled(3, &json!({})).await);
            let operator = Operator::new(&stage);
            lock(&stage).world.volumes.get_mut(&1).expect("volume 1").trouble = Some(kind);
            lock(&stage).world.kill_pod(1);
            pass_for(&operator, &stage, 60).await;
            let name = kind.as_str();
            assert_eq!(lock(&stage).condition("Degraded"), ("True".to_owned(), name.to_owned()));
            assert!(lock(&stage).planned().contains(&format!("({})", kind.code())), "{}", lock(&stage).planned());
            assert!(lock(&stage).planned().contains(name), "{}", lock(&stage).planned());
            let humans = lock(&stage).resource["status"]["plan"]["humanMay"].to_string();
            assert!(humans.contains("pod db-1"), "{humans}");
            assert_eq!(warnings(&stage, name), 1, "{:?}", lock(&stage).events);
            lock(&stage).world.volumes.get_mut(&1).expect("volume 1").trouble = None;
            lock(&stage).world.kill_pod(1);
            operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
            assert_eq!(lock(&stage).condition("Degraded"), ("False".to_owned(), "AllHealthy".to_owned()));
            assert_eq!(lock(&stage).world.raft.members.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        });
    }
}

/// The ends that the plan mends by itself are told by their names while it does.
#[test]
fn a_damaged_disk_is_told_by_its_name_while_it_is_replaced() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.corrupt_disk(1);
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(warnings(&stage, "Corrupt"), 1, "{:?}", lock(&stage).events);
        assert_eq!(lock(&stage).condition("Degraded"), ("False".to_owned(), "AllHealthy".to_owned()));
    });
}

/// A volume claim that somebody deletes under its member is told although the plan replaces the member by itself, and where it
/// cannot, with the way out.
#[test]
fn a_deleted_claim_is_told_while_its_member_is_replaced() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.delete_volume(1);
        operator.pass().await.expect("a pass");
        assert_eq!(lock(&stage).condition("VolumesReady"), ("False".to_owned(), "WrongVolume".to_owned()));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(warnings(&stage, "WrongVolume"), 1, "{:?}", lock(&stage).events);
        assert_eq!(lock(&stage).condition("VolumesReady"), ("True".to_owned(), "AsAsked".to_owned()));
    });
    block_on(async {
        let stage = shared(settled(1, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.delete_volume(0);
        pass_for(&operator, &stage, 60).await;
        assert_eq!(lock(&stage).condition("VolumesReady"), ("False".to_owned(), "WrongVolume".to_owned()));
        let humans = lock(&stage).resource["status"]["plan"]["humanMay"].to_string();
        assert!(humans.contains("snapshot save"), "{humans}");
        assert_eq!((warnings(&stage, "WrongVolume"), warnings(&stage, "QuorumAtRisk")), (1, 1));
    });
}

/// An alarm of a node is the condition `Degraded` under its name, with the way out, for as long as it is raised.
#[test]
fn an_alarm_is_told_with_the_way_out() {
    for (alarm, way_out) in [(Alarm::NoSpace, "compact"), (Alarm::Corrupt, "balsa.dev/replace-member=2")] {
        block_on(async {
            let stage = shared(settled(3, &json!({})).await);
            let operator = Operator::new(&stage);
            lock(&stage).world.raft.alarms.insert((alarm, 2));
            for _ in 0..3 {
                operator.pass().await.expect("a pass");
            }
            let name = alarm.as_str().to_owned();
            assert_eq!(lock(&stage).condition("Degraded"), ("True".to_owned(), name.clone()));
            let consistent = if alarm == Alarm::Corrupt { "False" } else { "True" };
            assert_eq!(lock(&stage).condition("Consistent").0, consistent);
            let plan = lock(&stage).resource["status"]["plan"].clone();
            assert_eq!(plan["step"], "Settled", "an alarm is no reason to touch anything");
            let humans = plan["humanMay"].to_string();
            assert!(humans.contains(way_out) && humans.contains("alarm disarm"), "{humans}");
            assert_eq!(warnings(&stage, &name), 1, "{:?}", lock(&stage).events);
            lock(&stage).world.raft.alarms.clear();
            operator.pass().await.expect("a pass");
            assert_eq!(lock(&stage).condition("Degraded"), ("False".to_owned(), "AllHealthy".to_owned()));
            assert_eq!(lock(&stage).resource["status"]["plan"]["humanMay"], json!(null));
        });
    }
}

/// A member that cannot be told its settings holds nothing up. What is told of it is as old as it is, however often it is
/// tried again, so that the way out is told too.
#[test]
fn a_member_that_cannot_be_told_its_settings_holds_nothing_up() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.deaf.insert(1);
        lock(&stage).edit(&json!({"replicas": 4, "config": {"extra": {"max-txn-ops": "9"}}}));
        let seconds = 400;
        pass_for(&operator, &stage, seconds).await;
        assert_eq!(lock(&stage).world.raft.members.values().filter(|member| !member.learner).count(), 4);
        let plan = lock(&stage).resource["status"]["plan"].clone();
        assert_eq!((&plan["step"], &plan["blockedBy"]["reason"]), (&json!("Wait"), &json!("ConfigNotTaken")), "{plan}");
        assert!(plan["humanMay"].to_string().contains("restart pod db-1"), "{plan}");
        assert_eq!(lock(&stage).condition("Updated"), ("False".to_owned(), "SettingsPending".to_owned()));
        let calls = lock(&stage).writes.iter().filter(|write| write.contains("set config")).count();
        assert!((10..30).contains(&calls), "{calls} calls in {seconds} s");
        lock(&stage).world.deaf.clear();
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(lock(&stage).condition("Updated"), ("True".to_owned(), "UpToDate".to_owned()));
    });
}

/// A setting that changes at run time reaches every member without a restart, and the ConfigMap that the next process reads;
/// taken back, it goes to its default again.
#[test]
fn m18_a_setting_reaches_running_members_and_those_that_start_later() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        let pods =
            |stage: &Shared| lock(stage).world.pods.values().map(|pod| pod.object.uid.clone()).collect::<Vec<_>>();
        let values = |stage: &Shared| {
            let stage = lock(stage);
            let values = stage.world.pods.values().map(|pod| pod.settings.values["max-txn-ops"].clone());
            values.collect::<Vec<_>>()
        };
        let (before, template) = (pods(&stage), lock(&stage).world.set.clone().expect("a set").update_revision);
        lock(&stage).edit(&json!({"config": {"extra": {"max-txn-ops": "9"}}}));
        operator.pass().await.expect("a pass");
        assert_eq!(values(&stage), ["9", "128", "128"], "one step of one pass");
        assert_eq!(lock(&stage).condition("Updated"), ("False".to_owned(), "SettingsPending".to_owned()));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!((values(&stage), pods(&stage)), (vec!["9".to_owned(); 3], before.clone()));
        assert_eq!(lock(&stage).world.set.clone().expect("a set").update_revision, template);
        assert_eq!(lock(&stage).condition("Updated"), ("True".to_owned(), "UpToDate".to_owned()));
        let told = lock(&stage).events.iter().filter(|event| event[1] == "SetConfig").count();
        assert_eq!(told, 3, "{:?}", lock(&stage).events);

        lock(&stage).world.kill_pod(1);
        let told = lock(&stage).writes.len();
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(values(&stage), ["9"; 3]);
        assert!(!lock(&stage).writes[told..].iter().any(|write| write.contains("set config")), "it started with them");

        lock(&stage).edit(&json!({"config": {"extra": {"max-txn-ops": null}}}));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(values(&stage), ["128"; 3]);
    });
}

/// What a node refuses is told with its words, once, and left at that until something else is asked for.
#[test]
fn a_refused_setting_is_told_with_the_nodes_words() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.wrong_settings.insert("9".to_owned());
        lock(&stage).edit(&json!({"config": {"extra": {"max-txn-ops": "9"}}}));
        pass_for(&operator, &stage, 60).await;
        assert_eq!(lock(&stage).condition("Updated"), ("False".to_owned(), "ConfigRefused".to_owned()));
        assert_eq!(lock(&stage).condition("Progressing").1, "ConfigRefused");
        assert!(lock(&stage).planned().contains("keeps its own: 9 is wrong"), "{}", lock(&stage).planned());
        assert_eq!(warnings(&stage, "ConfigRefused"), 1, "{:?}", lock(&stage).events);
        let pushes = lock(&stage).writes.iter().filter(|write| write.contains("set config")).count();
        assert_eq!(pushes, 3, "each is asked once");
        lock(&stage).edit(&json!({"config": {"extra": {"max-txn-ops": "8"}}}));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(lock(&stage).condition("Updated"), ("True".to_owned(), "UpToDate".to_owned()));
    });
}

/// M29: nobody is touched by settings with which no node would start, not even the ConfigMap that the next process reads.
#[test]
fn m29_settings_with_which_no_node_would_start_touch_nothing() {
    for (flag, value, words) in [
        ("max-txn-opps", "9", "max-txn-opps is no flag of the node"),
        ("data-dir", "/x", "data-dir is set by the operator"),
        ("bcrypt-cost", "many", "for BALSA_BCRYPT_COST: parse error (it is not a number)"),
        ("max-txn-ops", "0", "--max-txn-ops must not be 0"),
    ] {
        block_on(async {
            let stage = shared(settled(3, &json!({})).await);
            let operator = Operator::new(&stage);
            lock(&stage).edit(&json!({"config": {"extra": {flag: value}}}));
            pass_for(&operator, &stage, 60).await;
            assert_eq!(lock(&stage).condition("Progressing"), ("False".to_owned(), "InvalidSpec".to_owned()));
            assert!(lock(&stage).planned().contains(words), "{}", lock(&stage).planned());
            assert_eq!(warnings(&stage, "InvalidSpec"), 1, "{:?}", lock(&stage).events);
            let touched: Vec<String> =
                lock(&stage).writes.iter().filter(|w| !w.ends_with(" status")).cloned().collect();
            assert_eq!(touched, Vec::<String>::new());
        });
    }
}

/// G2: a cluster that runs is kept alive while its spec is invalid: a lost member is replaced, and one that a person
/// wants replaced, from the template and the settings that were applied last. The size waits.
#[test]
fn g2_a_lost_member_is_replaced_although_the_spec_is_invalid() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).edit(&json!({"replicas": 5, "config": {"extra": {"max-txn-opps": "9"}}}));
        lock(&stage).world.wipe_disk(1);
        pass_for(&operator, &stage, 60).await;
        {
            let stage = lock(&stage);
            assert_eq!(stage.world.raft.members.keys().copied().collect::<Vec<_>>(), [1, 3, 4], "{}", stage.planned());
            assert_eq!(stage.resource["status"]["readyReplicas"], 3);
            assert!(stage.planned().contains("max-txn-opps is no flag of the node"), "{}", stage.planned());
            assert_eq!(stage.condition("Updated"), ("False".to_owned(), "InvalidSpec".to_owned()));
            let spec = |write: &&String| write.contains("statefulsets") || write.contains("configmaps");
            assert_eq!(stage.writes.iter().find(spec), None);
        }
        // A member that serves needs the budget raised before it goes.
        lock(&stage).annotate("balsa.dev/replace-member", "1");
        pass_for(&operator, &stage, 60).await;
        let members: Vec<u64> = lock(&stage).world.raft.members.keys().copied().collect();
        assert_eq!(members, [3, 4, 5], "{}", lock(&stage).planned());
        lock(&stage).edit(&json!({"config": null}));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(lock(&stage).world.raft.members.len(), 5);
        assert_eq!(lock(&stage).condition("Updated"), ("True".to_owned(), "UpToDate".to_owned()));
    });
}

/// X2: a pod that somebody's finalizer holds is forced out at most once, with the proof that its host is gone, and then waited
/// for; what is told is the finalizer and not the host, and what need not wait goes on.
#[test]
fn x2_a_pod_that_a_finalizer_holds_is_forced_out_once_and_waited_for() {
    for (host, forced) in [(Some(HostState::Gone), 1), (Some(HostState::OutOfService), 1), (None, 0)] {
        block_on(async {
            let stage = shared(settled(3, &json!({})).await);
            let operator = Operator::new(&stage);
            lock(&stage).world.hold_pod(1);
            match host {
                Some(state) => lock(&stage).world.break_host(1, state),
                None => {
                    // `kubectl delete pod`
                    let end = lock(&stage).world.now + GRACE_SECONDS;
                    lock(&stage).world.pods.get_mut(&1).expect("pod 1").object.terminating = Some(end);
                }
            }
            pass_for(&operator, &stage, 60).await;
            lock(&stage).edit(&json!({"config": {"extra": {"max-txn-ops": "9"}}}));
            pass_for(&operator, &stage, 120).await;
            {
                let stage = lock(&stage);
                let ends = stage.writes.iter().filter(|write| write.starts_with("DELETE pods/db-1")).count();
                assert_eq!(ends, forced, "{host:?}: {:?}", stage.writes);
                let plan = &stage.resource["status"]["plan"];
                let told = (&plan["step"], &plan["blockedBy"]["reason"]);
                assert_eq!(told, (&json!("Wait"), &json!("PodTerminating")), "{host:?}: {plan}");
                assert!(plan["humanMay"].to_string().contains("finalizers hold pod db-1"), "{host:?}: {plan}");
                let told_settings = |k: u32| stage.world.pods[&k].settings.values["max-txn-ops"] == "9";
                assert!(told_settings(0) && told_settings(2), "{host:?}: S1 comes after it");
            }
            lock(&stage).world.release_pod(1);
            operator.settle().await.unwrap_or_else(|wrong| panic!("{host:?}: {wrong}"));
            assert_eq!(lock(&stage).world.raft.members.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        });
    }
}

/// G2: the size that is there is kept while the spec is invalid, also where the spec asks for less and the member of the
/// highest ordinal is the one that is lost: it is replaced, not scaled away.
#[test]
fn g2_the_size_is_kept_whichever_member_is_lost() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).edit(&json!({"replicas": 1, "config": {"extra": {"max-txn-opps": "9"}}}));
        lock(&stage).world.wipe_disk(2);
        pass_for(&operator, &stage, 60).await;
        let stage = lock(&stage);
        assert_eq!(stage.world.raft.members.keys().copied().collect::<Vec<_>>(), [1, 2, 4], "{}", stage.planned());
        assert_eq!((stage.world.pods.len(), &stage.resource["status"]["readyReplicas"]), (3, &json!(3)));
    });
}

/// G2: an edit that is refused as a whole deletes no volume by the policy that it brings along.
#[test]
fn g2_kept_volumes_stay_while_the_spec_is_invalid() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).edit(&json!({"replicas": 1}));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let volumes = |stage: &Shared| lock(stage).world.volumes.keys().copied().collect::<Vec<_>>();
        assert_eq!(volumes(&stage), [0, 1, 2]);
        let retention = json!({"retention": {"whenScaled": "Delete"}});
        lock(&stage).edit(&json!({"storage": retention, "config": {"extra": {"max-txn-opps": "9"}}}));
        pass_for(&operator, &stage, 60).await;
        assert_eq!(volumes(&stage), [0, 1, 2], "{:?}", lock(&stage).writes);
        lock(&stage).edit(&json!({"config": null}));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(volumes(&stage), [0]);
    });
}

/// G2: so it is with a spec that the API server refuses, whichever object it is, and with an object of somebody else's:
/// a lost member is replaced, from the template that was applied last.
#[test]
fn g2_a_lost_member_is_replaced_although_the_api_server_refuses_what_the_spec_leads_to() {
    for (plural, kind) in [("statefulsets", "StatefulSet"), ("configmaps", "ConfigMap")] {
        block_on(async {
            let stage = shared(settled(3, &json!({})).await);
            let operator = Operator::new(&stage);
            lock(&stage).forbidden = Some(plural);
            let image = lock(&stage).world.set.clone().expect("a set").image;
            let config = json!({"logLevel": "debug"});
            lock(&stage).edit(&json!({"replicas": 5, "image": "balsa.dev/balsa:b", "config": config}));
            lock(&stage).world.wipe_disk(1);
            pass_for(&operator, &stage, 60).await;
            {
                let stage = lock(&stage);
                let members: Vec<u64> = stage.world.raft.members.keys().copied().collect();
                assert_eq!(members, [1, 3, 4], "{}", stage.planned());
                assert_eq!(stage.resource["status"]["readyReplicas"], 3);
                let words = format!("the API server refuses {kind} db");
                assert!(stage.planned().contains(&words), "{}", stage.planned());
                assert_eq!(stage.condition("Updated"), ("False".to_owned(), "InvalidSpec".to_owned()));
                assert_eq!(stage.world.set.clone().expect("a set").image, image);
            }
            // A member that serves needs the budget raised before it goes.
            lock(&stage).annotate("balsa.dev/replace-member", "1");
            pass_for(&operator, &stage, 60).await;
            let members: Vec<u64> = lock(&stage).world.raft.members.keys().copied().collect();
            assert_eq!(members, [3, 4, 5], "{}", lock(&stage).planned());
            lock(&stage).forbidden = None;
            operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
            assert_eq!(lock(&stage).world.raft.members.len(), 5);
            assert_eq!(lock(&stage).condition("Updated"), ("True".to_owned(), "UpToDate".to_owned()));
        });
    }
}

/// A cluster whose object of this kind has become somebody else's, a minute after a member has lost its disk and `edit`.
async fn with_a_foreign(plural: &str, edit: &Value) -> Stage {
    let stage = shared(settled(3, &json!({})).await);
    let operator = Operator::new(&stage);
    let key = (plural.to_owned(), NAME.to_owned());
    lock(&stage).objects.get_mut(&key).expect(plural)["metadata"]["labels"] = json!({});
    lock(&stage).edit(edit);
    lock(&stage).world.wipe_disk(1);
    pass_for(&operator, &stage, 60).await;
    lock(&stage).clone()
}

/// G2: a disruption budget of somebody else's under the cluster's name is told, and no repair waits for more than what it
/// bounds, whether the spec is good or not. A StatefulSet of somebody else's is not scaled, whatever is lost.
#[test]
fn g2_a_lost_member_is_replaced_under_a_foreign_disruption_budget_and_not_with_a_foreign_stateful_set() {
    for edit in [json!({}), json!({"config": {"extra": {"max-txn-opps": "9"}}})] {
        block_on(async {
            let stage = with_a_foreign("poddisruptionbudgets", &edit).await;
            let members: Vec<u64> = stage.world.raft.members.keys().copied().collect();
            assert_eq!(members, [1, 3, 4], "{}", stage.planned());
            assert!(stage.planned().contains("PodDisruptionBudget db is not the operator's"), "{}", stage.planned());

            let stage = with_a_foreign("statefulsets", &edit).await;
            let touched: Vec<&String> = stage.writes.iter().filter(|write| !write.ends_with(" status")).collect();
            assert_eq!(touched, Vec::<&String>::new(), "{}", stage.planned());
            assert_eq!(stage.condition("Progressing"), ("False".to_owned(), "InvalidSpec".to_owned()));
        });
    }
}

/// What a webhook refuses for ever holds nothing else up: it is said with the way out, warned of once, and tried again after
/// growing pauses. A conflict is no refusal.
#[test]
fn a_refused_label_and_a_refused_restart_hold_nothing_up() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.unlabelled = true;
        lock(&stage).world.blur_labels(1);
        lock(&stage).edit(&json!({"config": {"extra": {"max-txn-ops": "9"}}}));
        let seconds = 400;
        pass_for(&operator, &stage, seconds).await;
        let tried = |what: &str| lock(&stage).writes.iter().filter(|write| write.contains(what)).count();
        assert!(
            lock(&stage).world.pods.values().all(|pod| pod.settings.values["max-txn-ops"] == "9"),
            "S1 comes after it"
        );
        let plan = lock(&stage).resource["status"]["plan"].clone();
        assert_eq!((&plan["step"], &plan["blockedBy"]["reason"]), (&json!("Wait"), &json!("LabelFails")), "{plan}");
        assert!(plan.to_string().contains("denied the request"), "{plan}");
        assert!(plan["humanMay"].to_string().contains("claim data-db-1"), "{plan}");
        assert_eq!(lock(&stage).condition("VolumesReady"), ("False".to_owned(), "LabelFails".to_owned()));
        assert_eq!(warnings(&stage, "LabelFails"), 1, "{:?}", lock(&stage).events);
        let labels = tried("PATCH persistentvolumeclaims");
        assert!((10..30).contains(&labels), "{labels} calls in {seconds} s");
        lock(&stage).world.unlabelled = false;
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));

        // A pod of a bad roll that nobody may end; the good one reaches the others, and the size what it should be.
        lock(&stage).edit(&json!({"image": "balsa.dev/balsa:broken"}));
        lock(&stage).world.kill_pod(2);
        pass_for(&operator, &stage, 30).await;
        lock(&stage).world.unending.insert(2);
        lock(&stage).edit(&json!({"image": "balsa.dev/balsa:b", "config": {"extra": {"max-txn-ops": "8"}}}));
        let before = tried("DELETE pods/db-2");
        pass_for(&operator, &stage, seconds).await;
        let serving = |k: &u32| lock(&stage).world.pods[k].settings.values["max-txn-ops"].clone();
        assert_eq!([0, 1].map(|k| serving(&k)), ["8", "8"]);
        let plan = lock(&stage).resource["status"]["plan"].clone();
        assert_eq!((&plan["step"], &plan["blockedBy"]["reason"]), (&json!("Wait"), &json!("RestartFails")), "{plan}");
        assert!(plan.to_string().contains("denied the request"), "{plan}");
        assert!(plan["humanMay"].to_string().contains("pod db-2"), "{plan}");
        assert_eq!(warnings(&stage, "RestartFails"), 1, "{:?}", lock(&stage).events);
        let ends = tried("DELETE pods/db-2") - before;
        assert!((10..30).contains(&ends), "{ends} calls in {seconds} s");
        lock(&stage).world.unending.clear();
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    });
}

/// A conflict is over with the next look. One that comes again and again on the same pod is somebody's answer, and nothing waits
/// for it.
#[test]
fn a_pod_whose_deletion_conflicts_for_ever_holds_nothing_up() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).edit(&json!({"image": "balsa.dev/balsa:broken"}));
        lock(&stage).world.kill_pod(2);
        pass_for(&operator, &stage, 30).await;
        lock(&stage).contended = Some("pods");
        lock(&stage).edit(&json!({"image": "balsa.dev/balsa:b", "config": {"extra": {"max-txn-ops": "8"}}}));
        operator.pass().await.expect("a pass");
        assert!(
            !lock(&stage).planned().contains("RestartFails"),
            "the next pass observes it: {}",
            lock(&stage).planned()
        );
        pass_for(&operator, &stage, 60).await;
        let serving = |k: &u32| lock(&stage).world.pods[k].settings.values["max-txn-ops"].clone();
        assert_eq!([0, 1].map(|k| serving(&k)), ["8", "8"], "{}", lock(&stage).planned());
        assert!(lock(&stage).planned().contains("RestartFails"), "{}", lock(&stage).planned());
        assert_eq!(warnings(&stage, "RestartFails"), 1, "{:?}", lock(&stage).events);
        lock(&stage).contended = None;
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    });
}

/// A step that somebody refuses for ever is not tried ten times a second, with all that a pass reads.
#[test]
fn a_step_that_is_refused_for_long_is_no_hot_loop() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.unending.insert(2);
        lock(&stage).edit(&json!({"image": "balsa.dev/balsa:b"}));
        operator.pass().await.expect("a pass");
        lock(&stage).world.tick();
        let soon = operator.pass().await.expect("a pass");
        pass_for(&operator, &stage, 20).await;
        let slow = operator.pass().await.expect("a pass");
        let after = |milliseconds| Action::requeue(Duration::from_millis(milliseconds));
        assert_eq!((soon, slow), (after(100), after(2_000)), "{}", lock(&stage).planned());
        lock(&stage).world.unending.clear();
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    });
}

/// G2: a scaling in whose template the API server refuses bounds nobody's drains: the size stays, and so does the budget.
/// What is refused in every pass is counted in every pass.
#[test]
fn g2_the_disruption_budget_is_not_raised_for_a_size_that_is_not_come_to() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        let least = |stage: &Shared| lock(stage).world.budget.as_ref().and_then(|budget| budget.min_available);
        assert_eq!(least(&stage), Some(2));
        lock(&stage).forbidden = Some("statefulsets");
        lock(&stage).edit(&json!({"replicas": 1, "image": "balsa.dev/balsa:b"}));
        pass_for(&operator, &stage, 60).await;
        assert_eq!(least(&stage), Some(2), "{}", lock(&stage).planned());
        let written = lock(&stage).writes.iter().filter(|write| write.contains("poddisruptionbudgets")).count();
        assert!(written <= 2, "raised once at most: {:?}", lock(&stage).writes);
        let counted = operator.metrics();
        assert!(counted.contains(r#"balsa_operator_refused_total{reason="ApplyFailed"} 13"#), "{counted}");
        lock(&stage).forbidden = None;
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(lock(&stage).world.raft.members.len(), 1);
    });
}

/// G2: the volume of a member that was removed to be scaled away stays while the spec is invalid, whichever half of it was
/// done; an edit that is refused decides over no volume.
#[test]
fn g2_a_half_left_volume_is_kept_while_the_spec_is_invalid() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        let volumes = |stage: &Shared| {
            lock(stage).world.volumes.values().map(|volume| volume.object.uid.clone()).collect::<Vec<_>>()
        };
        let before = volumes(&stage);
        lock(&stage).edit(&json!({"replicas": 2}));
        while lock(&stage).world.raft.members.len() > 2 {
            operator.pass().await.expect("a pass");
            lock(&stage).world.tick();
        }
        lock(&stage).edit(&json!({"replicas": 3, "config": {"extra": {"max-txn-opps": "9"}}}));
        pass_for(&operator, &stage, 60).await;
        assert_eq!(volumes(&stage), before, "{}", lock(&stage).planned());
        assert!(lock(&stage).planned().contains("InvalidSpec"), "{}", lock(&stage).planned());
        lock(&stage).edit(&json!({"replicas": 2, "config": null}));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(volumes(&stage), before, "kept by Retain");
    });
}

/// A deletion goes by the last good `whenDeleted`: an edit that was refused ends no volume, and one that would keep them does.
#[test]
fn a_deletion_under_an_invalid_spec_goes_by_the_last_good_retention() {
    let policy = |policy: &str| json!({"storage": {"retention": {"whenDeleted": policy}}});
    for (good, refused, left) in
        [("Retain", "Delete", 3), ("Delete", "Retain", 3), ("Delete", "Delete", 0), ("Retain", "Retain", 3)]
    {
        block_on(async {
            let stage = shared(settled(3, &policy(good)).await);
            let operator = Operator::new(&stage);
            lock(&stage).edit(&policy(refused));
            lock(&stage).edit(&json!({"config": {"extra": {"max-txn-opps": "9"}}}));
            pass_for(&operator, &stage, 20).await;
            lock(&stage).delete();
            operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
            assert_eq!(lock(&stage).world.volumes.len(), left, "{good}, then {refused}");
        });
    }
}

/// M29: what the StatefulSet may ask for and no pod may be, only its controller hears; the conditions have its words.
#[test]
fn m29_why_a_pod_cannot_be_made_is_told_in_its_controllers_words() {
    block_on(async {
        let stage = shared(Stage::new(1, &json!({})));
        let operator = Operator::new(&stage);
        let words = "create Pod db-0 in StatefulSet db failed error: pods \"db-0\" is forbidden: no PriorityClass with \
                     name high was found";
        lock(&stage).failures =
            vec!["create Pod db-01 in StatefulSet db failed error: another".to_owned(), words.to_owned()];
        // The model's controller makes pods when time moves, so it stands still.
        for _ in 0..5 {
            operator.pass().await.expect("a pass");
            if let Some(set) = lock(&stage).world.set.as_mut() {
                set.observed_generation = set.generation;
            }
        }
        assert!(lock(&stage).world.pods.is_empty());
        assert_eq!(lock(&stage).condition("Progressing"), ("True".to_owned(), "PodNotRunning".to_owned()));
        let planned = lock(&stage).planned();
        assert!(
            planned.contains("pod 0 cannot be made: create Pod db-0 in") && planned.contains("PriorityClass"),
            "{planned}"
        );
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    });
}

/// An address that has become another pod's within a pass: whoever has it now is told nothing that was meant for ours.
#[test]
fn a_call_that_reaches_another_clusters_pod_changes_nothing_there() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        let mut refused = BTreeSet::new();
        for edit in [
            json!({"config": {"extra": {"max-txn-ops": "7"}}}),
            json!({"replicas": 4}),
            json!({"image": "balsa.dev/balsa:b"}),
            json!({"replicas": 1}),
        ] {
            lock(&stage).edit(&edit);
            for _ in 0..300 {
                // Among strangers first, twice, for some calls wait for the budget; what failed is tried again after a pause.
                for _ in 0..2 {
                    if lock(&stage).planned().contains("ConfigNotTaken") {
                        break;
                    }
                    let before = lock(&stage).refused.len();
                    lock(&stage).strangers = true;
                    operator.pass().await.expect("a pass");
                    lock(&stage).strangers = false;
                    assert_eq!(lock(&stage).world.violations, Vec::<String>::new());
                    let told = lock(&stage).refused[before..].to_vec();
                    refused.extend(told.iter().filter_map(|call| call.split(' ').next().map(str::to_owned)));
                }
                operator.pass().await.expect("a pass");
                lock(&stage).world.tick();
                if lock(&stage).is_settled() {
                    break;
                }
            }
            assert!(lock(&stage).planned().starts_with("Settled"), "{edit}: {}", lock(&stage).planned());
        }
        let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
        assert_eq!(refused, ["add", "join", "move", "prepare", "promote", "remove", "set"]);
    });
}

/// A conflict passes with the next pass, which comes at once. One that never passes, of an object or of a step, is not asked for
/// ten times a second.
#[test]
fn conflicts_that_go_on_are_met_less_often() {
    for plural in ["configmaps", "pods"] {
        block_on(async {
            let stage = shared(settled(3, &json!({})).await);
            let operator = Operator::new(&stage);
            lock(&stage).contended = Some(plural);
            lock(&stage).edit(&json!({"image": "balsa.dev/balsa:b", "config": {"heartbeatMs": 120}}));
            let mut turns = Vec::new();
            for _ in 0..8 {
                turns.push(operator.turn().await);
                lock(&stage).world.tick();
            }
            let soon = Action::requeue(Duration::from_millis(100));
            let slow = Action::requeue(Duration::from_secs(2));
            assert!(turns.contains(&soon) && turns[7] == slow, "{plural}: {turns:?}");
            lock(&stage).contended = None;
            operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        });
    }
}
