//! What a user was promised and only real writes can show: whose things the operator leaves alone, and what holds its hand.

use serde_json::{Value, json};

use super::runs::{Operator, block_on, changed, run, settled, shared};
use super::stage::{NAME, NAMESPACE, Shared, Stage, lock};
use crate::build::TEMPLATE_HASH;
use crate::names::FINALIZER;
use crate::observed::ObservedSet;
use crate::step::ObjectRef;
use crate::validate::ROLL_OPERATOR_TEMPLATE;

/// UIDs of the pods, and of the volumes.
fn uids(stage: &Stage) -> (Vec<String>, Vec<String>) {
    let pods = stage.world.pods.values().map(|pod| pod.object.uid.clone()).collect();
    (pods, stage.world.volumes.values().map(|volume| volume.object.uid.clone()).collect())
}

/// The writes other than of the status.
fn touched(stage: &Shared) -> Vec<String> {
    lock(stage).writes.iter().filter(|write| !write.ends_with(" status")).cloned().collect()
}

/// M1: neither the resource nor its StatefulSet takes a volume along, and the cluster that comes back is the same.
#[test]
fn m1_no_volume_goes_with_the_resource_or_its_set() {
    let delete_set = |stage: &mut Stage| {
        let set = stage.world.set.clone().expect("a set");
        stage.world.delete_set(&ObjectRef { uid: set.uid, resource_version: set.resource_version }).expect("deleted");
    };
    type Hand = fn(&mut Stage);
    let hands = [("the set", delete_set as Hand), ("the resource", Stage::delete)];
    block_on(async {
        for (what, hand) in hands {
            let three = settled(3, &json!({})).await;
            let (volumes, members) = (uids(&three).1, three.world.raft.members.clone());
            let (end, _) = run(changed(three, hand), None).await.unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
            assert_eq!(uids(&end).1, volumes, "{what}");
            assert!(end.world.volumes.values().all(|volume| !volume.object.terminating), "{what}");
            let deleted = end.writes.iter().find(|write| write.starts_with("DELETE persistentvolumeclaims"));
            assert_eq!(deleted, None, "{what}");
            assert_eq!(end.world.raft.members, members, "{what}");
        }
    });
}

/// G2: a paused cluster, and one whose spec is refused, keeps the template and the size it has; observing and the status go on.
#[test]
fn g2_what_is_paused_or_invalid_is_only_observed() {
    for (spec, reason) in [
        (json!({"paused": true, "replicas": 5, "image": "balsa.dev/balsa:b"}), "Paused"),
        (json!({"replicas": 5, "image": "not an image"}), "InvalidSpec"),
    ] {
        block_on(async {
            let mut stage = settled(3, &json!({})).await;
            stage.edit(&spec);
            let stage = shared(stage);
            let operator = Operator::new(&stage);
            for _ in 0..5 {
                operator.pass().await.expect("a pass");
                lock(&stage).world.tick();
            }
            assert_eq!(lock(&stage).resource["status"]["readyReplicas"], 3, "{reason}");
            lock(&stage).world.hang(1);
            lock(&stage).world.tick();
            operator.pass().await.expect("a pass");
            assert_eq!(touched(&stage), Vec::<String>::new(), "{reason}");
            assert_eq!(lock(&stage).resource["status"]["readyReplicas"], 2, "{reason}");
            // What is wrong with the spec does not hide what is wrong with a member.
            let condition = if reason == "InvalidSpec" { "Updated" } else { "Progressing" };
            assert_eq!(lock(&stage).condition(condition), ("False".to_owned(), reason.to_owned()));
        });
    }
}

/// U5: what the disruption budget of somebody else refuses is waited for, and said; the next pass asks again.
#[test]
fn an_eviction_that_is_refused_is_a_wait_for_the_budget() {
    block_on(async {
        let mut stage = settled(3, &json!({})).await;
        stage.edit(&json!({"image": "balsa.dev/balsa:b"}));
        let (pods, _) = uids(&stage);
        // The operator's own still reads 2.
        stage.world.budget.as_mut().expect("a budget").min_available = Some(3);
        let stage = shared(stage);
        let operator = Operator::new(&stage);
        let mut since = std::collections::BTreeSet::new();
        for _ in 0..10 {
            operator.pass().await.expect("a refusal is no failure");
            lock(&stage).world.tick();
            if lock(&stage).planned().contains("DisruptionBudget") {
                since.insert(lock(&stage).resource["status"]["plan"]["since"].to_string());
            }
        }
        assert!(lock(&stage).planned().contains("DisruptionBudget"), "{}", lock(&stage).planned());
        assert_eq!(since.len(), 1, "since the first refusal: {since:?}");
        assert_eq!(lock(&stage).condition("Updated"), ("False".to_owned(), "DisruptionBudget".to_owned()));
        assert_eq!(uids(&lock(&stage)).0, pods);
        lock(&stage).world.budget.as_mut().expect("a budget").min_available = Some(2);
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(uids(&lock(&stage)).0.iter().all(|uid| !pods.contains(uid)));
    });
}

/// M19: a release that would build other pods from the same spec restarts none, says so, and rolls when it is told to.
#[test]
fn m19_a_new_release_restarts_no_pod_until_it_is_told_to() {
    block_on(async {
        let mut stage = settled(3, &json!({})).await;
        // As the release before left it.
        let key = ("statefulsets".to_owned(), NAME.to_owned());
        let set = stage.objects.get_mut(&key).expect("a set");
        set["metadata"]["annotations"][TEMPLATE_HASH] = json!("of the release before");
        set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(30);
        stage.world.set.as_mut().expect("a set").update_revision = Some("before".into());
        stage.world.pods.values_mut().for_each(|pod| pod.object.revision = Some("before".into()));
        let (pods, _) = uids(&stage);
        let stage = shared(stage);
        let operator = Operator::new(&stage);
        for _ in 0..20 {
            operator.pass().await.expect("a pass");
            lock(&stage).world.tick();
        }
        assert_eq!(touched(&stage), Vec::<String>::new());
        assert_eq!(uids(&lock(&stage)).0, pods);
        assert_eq!(lock(&stage).condition("Updated"), ("False".to_owned(), "OperatorTemplateChanged".to_owned()));
        lock(&stage).annotate(ROLL_OPERATOR_TEMPLATE, "true");
        // The annotation is no new generation, so `settle` alone would see the plan of before.
        operator.pass().await.expect("a pass");
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(uids(&lock(&stage)).0.iter().all(|uid| !pods.contains(uid)), "every pod");
        assert_eq!(lock(&stage).condition("Updated"), ("True".to_owned(), "UpToDate".to_owned()));
    });
}

/// M28: other people's finalizers stay, in life and at the end.
#[test]
fn m28_foreign_finalizers_stay() {
    block_on(async {
        let theirs = "example.org/keep";
        let mut stage = Stage::new(1, &json!({}));
        stage.resource["metadata"]["finalizers"] = json!([theirs]);
        let stage = shared(stage);
        let operator = Operator::new(&stage);
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(lock(&stage).resource["metadata"]["finalizers"], json!([theirs, FINALIZER]));
        lock(&stage).delete();
        for _ in 0..60 {
            operator.pass().await.expect("a pass");
            lock(&stage).world.tick();
        }
        assert_eq!(lock(&stage).resource["metadata"]["finalizers"], json!([theirs]));
        let before = lock(&stage).writes.len();
        operator.pass().await.expect("a pass");
        assert_eq!(lock(&stage).writes.len(), before, "what is left is theirs");
    });
}

/// R1: the set is made anew around its pods: none of them, no volume and no member is another one. What else was changed
/// meanwhile has come before.
#[test]
fn r1_a_set_that_cannot_be_changed_is_made_anew_around_its_pods() {
    block_on(async {
        for edit in [json!({}), json!({"image": "balsa.dev/balsa:b"})] {
            let stage = changed(settled(3, &json!({})).await, |stage| {
                stage.give_other_policy();
                stage.edit(&edit);
            });
            let (pods, volumes) = uids(&stage);
            let (members, set) = (stage.world.raft.members.clone(), stage.world.set.clone().expect("a set").uid);
            let (end, _) = run(stage, None).await.unwrap_or_else(|wrong| panic!("{edit}: {wrong}"));
            assert_eq!((&end.world.raft.members, uids(&end).1), (&members, volumes));
            assert_ne!(end.world.set.as_ref().expect("a set").uid, set);
            let object = &end.objects[&("statefulsets".to_owned(), NAME.to_owned())];
            assert_eq!(object["spec"]["podManagementPolicy"], "Parallel");
            let deleted: Vec<&String> = end.writes.iter().filter(|write| write.starts_with("DELETE")).collect();
            assert_eq!(deleted, ["DELETE statefulsets/db "]);
            let rolled = edit["image"].is_string();
            assert_eq!(uids(&end).0 == pods, !rolled, "{edit}");
            let told = end.events.iter().filter(|event| event[1] == "RecreateSet").count();
            assert_eq!(told, 1, "{:?}", end.events);
        }
    });
}

/// R1: what lets nobody make the set, be it a policy or that the API server cannot read it, is found out while the present
/// one is there.
#[test]
fn r1_a_set_that_would_not_be_taken_is_not_deleted() {
    for (code, words) in [
        (403, "no StatefulSet is made today"),
        (500, "failed to create typed patch object (ns/db; apps/v1, Kind=StatefulSet): duplicate entries for key"),
    ] {
        block_on(async {
            let mut stage = changed(settled(3, &json!({})).await, Stage::give_other_policy);
            stage.untaken = Some((code, words));
            let stage = shared(stage);
            let operator = Operator::new(&stage);
            for _ in 0..20 {
                operator.pass().await.expect("a pass");
                lock(&stage).world.tick();
            }
            assert!(lock(&stage).world.set.is_some());
            assert!(lock(&stage).planned().contains(words), "{}", lock(&stage).planned());
            let told = lock(&stage).events.iter().filter(|event| event[1] == "InvalidSpec").count();
            assert_eq!(told, 1, "{:?}", lock(&stage).events);
            lock(&stage).untaken = None;
            operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
            assert_eq!(lock(&stage).events.iter().filter(|event| event[1] == "RecreateSet").count(), 1);
        });
    }
}

/// D1 between the delete of the set and its coming back: nobody but the operator ends pods without an owner.
#[test]
fn d1_pods_that_lost_their_set_go_with_the_resource() {
    block_on(async {
        let stage = changed(settled(3, &json!({})).await, |stage| {
            stage.world.orphan_pods();
            stage.delete();
        });
        let (_, volumes) = uids(&stage);
        let (end, _) = run(stage, None).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(end.resource.is_null() && end.world.pods.is_empty());
        assert_eq!(uids(&end).1, volumes);
    });
}

/// The StatefulSet with its pods, and the disruption budget, that somebody else has under the cluster's name.
fn give_theirs(stage: &mut Stage) {
    let (uid, resource_version) = (stage.world.next_text(), stage.world.next_text());
    let update_revision = Some("theirs".to_owned());
    stage.world.set =
        Some(ObservedSet { uid, resource_version, replicas: 2, update_revision, ..ObservedSet::default() });
    let named = |uid: &str| json!({"name": NAME, "namespace": NAMESPACE, "uid": uid, "resourceVersion": "1"});
    let set = json!({"metadata": named("set"), "spec": {"serviceName": "theirs", "selector": {}, "template": {}}});
    let budget = json!({"metadata": named("budget"), "spec": {"minAvailable": 1}});
    for (plural, object) in [("statefulsets", set), ("poddisruptionbudgets", budget)] {
        stage.objects.insert((plural.to_owned(), NAME.to_owned()), object);
    }
    stage.world.tick();
}

/// D1: what only has the name is somebody else's, also for the resource that is deleted because it was refused for it. Nobody
/// waits for their pods.
#[test]
fn d1_a_foreign_set_and_a_foreign_budget_outlive_the_resource() {
    block_on(async {
        let stage = shared(changed(Stage::new(3, &json!({})), give_theirs));
        let before = uids(&lock(&stage));
        assert_eq!(before.0.len(), 2);
        let operator = Operator::new(&stage);
        for _ in 0..5 {
            operator.pass().await.expect("a pass that tells is no failure");
            lock(&stage).world.tick();
        }
        assert!(lock(&stage).planned().contains("is not the operator's"), "{}", lock(&stage).planned());
        lock(&stage).delete();
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let stage = lock(&stage);
        assert!(stage.resource.is_null());
        assert!(stage.world.set.is_some() && uids(&stage) == before, "{:?}", stage.writes);
        assert!(stage.world.pods.values().all(|pod| pod.object.terminating.is_none()), "{:?}", stage.writes);
        let deleted: Vec<&String> = stage.writes.iter().filter(|write| write.starts_with("DELETE")).collect();
        assert_eq!(deleted, Vec::<&String>::new());
    });
}

/// D1: a set and a budget of ours are ended whatever somebody has made of their labels, and the other way round without an owner.
#[test]
fn d1_a_set_and_a_budget_of_ours_go_by_their_labels_or_by_their_owner() {
    block_on(async {
        for (lost, left) in [("labels", json!({"app": "theirs"})), ("ownerReferences", Value::Null)] {
            let stage = changed(settled(3, &json!({})).await, |stage| {
                for plural in ["statefulsets", "poddisruptionbudgets"] {
                    let object = stage.objects.get_mut(&(plural.to_owned(), NAME.to_owned())).expect(plural);
                    assert!(!object["metadata"][lost].is_null(), "{plural} has no {lost}");
                    object["metadata"][lost] = left.clone();
                }
                stage.delete();
            });
            let (end, _) = run(stage, None).await.unwrap_or_else(|wrong| panic!("{lost}: {wrong}"));
            assert!(end.resource.is_null() && end.world.set.is_none() && end.world.pods.is_empty(), "{lost}");
            let deleted: Vec<&String> = end.writes.iter().filter(|write| write.starts_with("DELETE")).collect();
            assert_eq!(deleted, ["DELETE statefulsets/db ", "DELETE poddisruptionbudgets/db "], "{lost}");
        }
    });
}

/// M28: what others write on the operator's objects stays through every edit, and is nothing to be mended.
#[test]
fn m28_foreign_labels_and_annotations_on_objects_stay() {
    block_on(async {
        let theirs = "example.org/theirs";
        let mut stage = settled(3, &json!({})).await;
        for object in stage.objects.values_mut() {
            object["metadata"]["labels"][theirs] = json!("label");
            object["metadata"]["annotations"][theirs] = json!("annotation");
            // As a release before left it, so that each is applied again.
            object["metadata"]["annotations"]["balsa.dev/applied-hash"] = json!("before");
        }
        let kinds: Vec<(String, String)> = stage.objects.keys().cloned().collect();
        for edit in [json!({}), json!({"image": "balsa.dev/balsa:b"}), json!({"replicas": 5}), json!({"replicas": 3})] {
            stage.writes.clear();
            let edited = changed(stage, |stage| stage.edit(&edit));
            (stage, _) = run(edited, None).await.unwrap_or_else(|wrong| panic!("{edit}: {wrong}"));
            let applied = |(plural, name): &(String, String)| stage.writes.contains(&format!("APPLY {plural}/{name} "));
            assert!(edit != json!({}) || kinds.iter().all(applied), "{:?}", stage.writes);
            for key in &kinds {
                let metadata = &stage.objects[key]["metadata"];
                assert_eq!(metadata["labels"][theirs], "label", "{edit}: {key:?}");
                assert_eq!(metadata["annotations"][theirs], "annotation", "{edit}: {key:?}");
            }
        }
    });
}
