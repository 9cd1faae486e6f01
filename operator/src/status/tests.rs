use super::*;
use crate::fixtures::{minimal, observed_three, valid};
use crate::plan::plan;
use crate::step::Blocked;

fn settled(since: UnixSeconds) -> Plan {
    Plan {
        step: Step::Settled,
        row: "Settled",
        then: Vec::new(),
        blocked_by: None,
        human_may: Vec::new(),
        target: crate::step::Target::default(),
        since,
    }
}

fn condition<'a>(status: &'a RaftClusterStatus, kind: &str) -> (&'a str, &'a str) {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind).expect(kind);
    (&found.status, &found.reason)
}

#[test]
fn three_ready_voters_are_available_and_settled() {
    let (resource, cluster, observed) = (minimal(), valid("{image: balsa}"), observed_three());
    let plan = settled(100);
    let status =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    assert_eq!(status.ready.as_deref(), Some("3/3"));
    assert_eq!((status.ready_replicas, status.replicas), (3, 3));
    assert_eq!(status.leader.as_deref(), Some("db-0"));
    assert_eq!(status.phase, Some(Phase::Running));
    assert_eq!(status.members.len(), 3);
    assert_eq!(status.members[0].role, MemberRole::Leader);
    assert!(status.members.iter().all(|member| member.healthy && member.caught_up));
    assert_eq!(condition(&status, "Available"), ("True", "LinearizableRead"));
    assert_eq!(condition(&status, "Progressing"), ("False", "Settled"));
    assert_eq!(condition(&status, "Degraded"), ("False", "AllHealthy"));
    assert_eq!(condition(&status, "Updated"), ("True", "UpToDate"));
    assert_eq!(condition(&status, "QuorumAdvice"), ("False", "OddReplicas"));
}

/// The first time, it is what whoever waited for it expects: a majority of what was asked for, and a Service that leads to it.
/// Afterwards only a linearizable read is asked for, whatever becomes of the rest.
#[test]
fn the_first_available_is_a_majority_behind_a_service_and_the_later_ones_a_linearizable_read() {
    let (resource, cluster, plan) = (minimal(), valid("{image: balsa}"), settled(100));
    let told = |observed: &Observed, was_available: bool| {
        let mut observed = observed.clone();
        observed.resource.was_available = was_available;
        let (observed, cluster) = (&observed, Some(&cluster));
        let status = compute(Seen { resource: &resource, cluster, observed, plan: &plan, invalid: None });
        assert_eq!(
            super::was_available(&status.conditions),
            was_available || condition(&status, "Available").0 == "True"
        );
        let (holds, reason) = condition(&status, "Available");
        (holds.to_owned(), reason.to_owned())
    };
    let word = |holds: &str, reason: &str| (holds.to_owned(), reason.to_owned());
    let available = word("True", "LinearizableRead");
    let mut observed = observed_three();
    observed.served = Some(true);
    let ready = |observed: &mut Observed, count: u32| {
        observed.pods.iter_mut().for_each(|(k, pod)| pod.ready = *k < count);
    };
    for (count, expected) in [(1, word("False", "AwaitingVoters")), (2, available.clone()), (3, available.clone())] {
        ready(&mut observed, count);
        assert_eq!(told(&observed, false), expected, "{count} ready");
        assert_eq!(told(&observed, true), available, "{count} ready");
    }
    observed.served = Some(false);
    assert_eq!(told(&observed, false), word("False", "AwaitingEndpoints"));
    assert_eq!(told(&observed, true), available, "EndpointSlices are not asked again");
    observed.served = None;
    assert_eq!(told(&observed, false), available, "nobody knows, so nobody waits");
    for (since, expected) in [(-2, "False"), (-3, "True"), (60, "True")] {
        observed.pods.values_mut().for_each(|pod| pod.ready_since = observed.now + since);
        assert_eq!(told(&observed, false).0, expected, "kube-proxy may not know yet: {since} s");
        assert_eq!(told(&observed, true), available);
    }
    observed.members = None;
    assert_eq!(told(&observed, false), word("False", "AwaitingVoters"), "still the first time");
    assert_eq!(told(&observed, true), word("False", "NoQuorum"));
    observed.resource.bootstrapped = false;
    assert_eq!(told(&observed, false), word("False", "AwaitingBootstrap"));
}

#[test]
fn the_planner_settles_on_the_same_observation() {
    let (cluster, observed) = (valid("{image: balsa}"), observed_three());
    assert_eq!(plan(&cluster, &observed).step, Step::Settled);
}

#[test]
fn settled_writes_nothing_however_the_logs_and_the_clock_move() {
    let (mut resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    let plan = settled(100);
    let first =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    resource.status = Some(first.clone());
    observed.now += 1000;
    for node in observed.nodes.values_mut() {
        if let crate::observed::NodeReport::Answered(state) = node {
            state.commit_index += 77;
            state.applied_index += 77;
        }
    }
    for member in observed.members.as_mut().expect("a list").members.values_mut() {
        if let Some(progress) = member.progress.as_mut() {
            progress.match_index += 77;
        }
    }
    let second =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    assert_eq!(patch::changes(&first, &second).expect("JSON"), None);
}

#[test]
fn without_a_list_it_is_unavailable_and_says_why() {
    let (resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    observed.resource.was_available = true;
    observed.members = None;
    let mut plan = settled(100);
    plan.step = Step::Wait;
    plan.blocked_by = Some(Blocked { reason: WaitReason::NoQuorum, message: "1 of 3 voters answers".into() });
    let status =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    assert_eq!(condition(&status, "Available"), ("False", "NoQuorum"));
    assert_eq!(condition(&status, "Progressing"), ("True", "NoQuorum"));
    assert_eq!(status.phase, Some(Phase::Unavailable));
    assert_eq!(status.plan.expect("a plan").blocked_by.expect("blocked").reason, "NoQuorum");
}

#[test]
fn a_list_of_another_cluster_makes_nothing_available() {
    let (resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    observed.members.as_mut().expect("a list").cluster_id = 99;
    let plan = settled(100);
    let status =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    assert_eq!(condition(&status, "Available").0, "False");
    assert!(status.members.is_empty() && status.leader.is_none());
}

#[test]
fn a_condition_keeps_the_time_of_its_last_change() {
    let (mut resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    let plan = settled(100);
    let first =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    resource.status = Some(first.clone());
    observed.now += 60;
    observed.nodes.insert(2, crate::observed::NodeReport::Unreachable);
    let second =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    let at = |status: &RaftClusterStatus, kind: &str| {
        status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.last_transition_time.clone())
    };
    assert_eq!(condition(&second, "Degraded"), ("True", "MemberUnhealthy"));
    assert_ne!(at(&first, "Degraded"), at(&second, "Degraded"));
    assert_eq!(at(&first, "Available"), at(&second, "Available"));
}

#[test]
fn a_held_template_is_told_with_what_to_do() {
    let (resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    observed.set.as_mut().expect("a set").template_held = true;
    let plan = settled(100);
    let status =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    assert_eq!(condition(&status, "Updated"), ("False", "OperatorTemplateChanged"));
}

#[test]
fn m29_an_invalid_spec_is_in_the_conditions() {
    let resource = crate::fixtures::cluster_from("{image: 'a b', replicas: 4}");
    let observed = Observed { now: 5, ..Observed::default() };
    let invalid = crate::validate::validate(&resource).expect_err("invalid");
    let plan = crate::plan::invalid_spec(&observed, invalid.to_string());
    let status = compute(Seen { resource: &resource, cluster: None, observed: &observed, plan: &plan, invalid: None });
    assert_eq!(condition(&status, "Progressing"), ("False", "InvalidSpec"));
    assert_eq!(condition(&status, "QuorumAdvice"), ("True", "EvenReplicas"));
    assert_eq!(status.phase, Some(Phase::Invalid));
    assert!(status.plan.expect("a plan").blocked_by.expect("blocked").message.contains("write [registry"));
}

/// 4.1: two voters hold up every drain, and the status says so.
#[test]
fn an_even_number_says_what_it_means_and_two_that_drains_wait() {
    let (cluster, observed, plan) = (valid("{image: balsa}"), observed_three(), settled(100));
    let told = |replicas: i32| {
        let resource = crate::fixtures::cluster_from(&format!("{{image: balsa, replicas: {replicas}}}"));
        let status = compute(Seen {
            resource: &resource,
            cluster: Some(&cluster),
            observed: &observed,
            plan: &plan,
            invalid: None,
        });
        let found = status.conditions.into_iter().find(|condition| condition.type_ == "QuorumAdvice").expect("advice");
        (found.status == "True", found.message)
    };
    assert!(
        told(2).0
            && told(2).1.contains("writes pause whenever one")
            && told(2).1.contains("every drain of their nodes waits"),
        "{:?}",
        told(2)
    );
    assert!(told(4).0 && told(4).1.contains("no more failures than 3"), "{:?}", told(4));
    assert!(!told(3).0);
}

/// 4.7: Updated means one template and one version.
#[test]
fn pods_of_one_template_and_two_versions_are_not_updated() {
    let (resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    if let Some(crate::observed::NodeReport::Answered(state)) = observed.nodes.get_mut(&1) {
        state.version = "0.2.0".into();
    }
    let plan = settled(100);
    let status =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    assert_eq!(condition(&status, "Updated"), ("False", "VersionsDiffer"));
    assert_eq!(status.version, None);
    observed.pods.get_mut(&1).expect("pod 1").revision = Some("db-0".into());
    let status =
        compute(Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None });
    assert_eq!(condition(&status, "Updated"), ("False", "RollingOut"), "it is on its way");
}

/// M18: a member that answers and does not tell its settings is not known to have them. One of a release without the call
/// is not asked for what it cannot tell.
#[test]
fn m18_settings_that_a_member_does_not_tell_are_not_up_to_date() {
    let (resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    let plan = settled(100);
    let updated = |observed: &Observed| {
        let status =
            compute(Seen { resource: &resource, cluster: Some(&cluster), observed, plan: &plan, invalid: None });
        let (holds, reason) = condition(&status, "Updated");
        (holds.to_owned(), reason.to_owned())
    };
    let change = |observed: &mut Observed, tells: bool, keeps: bool| {
        let Some(crate::observed::NodeReport::Answered(state)) = observed.nodes.get_mut(&1) else { panic!("node 1") };
        (state.settings, state.keeps_settings) = (tells.then(crate::observed::Settings::default), keeps);
    };
    assert_eq!(updated(&observed).0, "True");
    change(&mut observed, false, false);
    assert_eq!(updated(&observed), ("False".to_owned(), "SettingsPending".to_owned()));
    change(&mut observed, false, true);
    assert_eq!(updated(&observed).0, "True");
    change(&mut observed, true, false);
    assert_eq!(updated(&observed).0, "True");
}

/// R1: while the set is made anew nothing is to be restarted, and an autoscaler is not told that all pods are gone.
#[test]
fn r1_a_set_that_is_made_anew_has_its_pods_and_none_of_them_is_outdated() {
    let (resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    let told = |observed: &Observed| {
        let plan = plan(&cluster, observed);
        let status =
            compute(Seen { resource: &resource, cluster: Some(&cluster), observed, plan: &plan, invalid: None });
        let (holds, reason) = condition(&status, "Updated");
        (status.replicas, holds.to_owned(), reason.to_owned(), status.phase)
    };
    let words = |reason: &str| (3, "False".to_owned(), reason.to_owned(), Some(Phase::Updating));
    observed.set.as_mut().expect("a set").fixed = vec!["serviceName"];
    assert_eq!(told(&observed), words("RecreateSet"), "its old one is there");
    let mut set = observed.set.take().expect("a set");
    assert_eq!(told(&observed), words("RecreateSet"), "there is none");
    (set.update_revision, set.fixed) = (None, Vec::new());
    (set.generation, set.observed_generation) = (1, 0);
    observed.set = Some(set);
    assert_eq!(told(&observed), words("KubernetesLagging"), "nobody has looked at the new one yet");
    observed.set = None;
    observed.pods.clear();
    assert_eq!(told(&observed).0, 0, "of a cluster that is not there yet");
}

/// R1: what becomes of a set that must be made anew is told as it is, whatever it waits for.
#[test]
fn r1_updated_says_what_a_set_that_is_not_as_wanted_waits_for() {
    let (resource, cluster) = (minimal(), valid("{image: balsa}"));
    let told = |observed: &Observed, refused: Option<&str>| {
        let mut plan = plan(&cluster, observed);
        refused.into_iter().for_each(|why| crate::plan::set_not_taken(&mut plan, why.to_owned()));
        let status =
            compute(Seen { resource: &resource, cluster: Some(&cluster), observed, plan: &plan, invalid: None });
        let updated = status.conditions.iter().find(|condition| condition.type_ == "Updated").expect("Updated");
        assert_eq!(updated.status, "False");
        (updated.reason.clone(), updated.message.clone(), status.phase.expect("a phase"))
    };
    let fixed = |field| {
        let mut observed = observed_three();
        observed.set.as_mut().expect("a set").fixed = vec![field];
        observed
    };
    let (reason, message, _) = told(&fixed("serviceName"), None);
    assert_eq!(reason, "RecreateSet");
    assert!(message.contains("serviceName") && message.ends_with("else of it is applied already"), "{message}");
    let (reason, message, _) = told(&fixed("selector"), None);
    assert_eq!(reason, "RecreateSet");
    assert!(message.contains("selector") && message.ends_with("nothing of it changes before"), "{message}");
    let (reason, message, _) = told(&fixed("serviceName"), Some("a policy forbids it"));
    assert_eq!((reason.as_str(), message.as_str()), ("InvalidSpec", "a policy forbids it"));

    let mut observed = fixed("selector");
    let volume = crate::observed::ObservedVolume { unclear: true, ..Default::default() };
    observed.volumes.insert(4, volume);
    let (reason, message, phase) = told(&observed, None);
    assert_eq!((reason.as_str(), phase), ("LeftoverVolume", Phase::Updating));
    assert!(message.contains("data-db-4") && message.contains("no change of the spec reaches a pod"), "{message}");

    let mut observed = fixed("volumeClaimTemplates");
    observed.volumes.remove(&1);
    let (reason, message, _) = told(&observed, None);
    assert_eq!(reason, "WrongVolume");
    assert!(message.contains("volume claim data-db-1 of member 2 is missing"), "{message}");

    let mut observed = fixed("volumeClaimTemplates");
    observed.set.as_mut().expect("a set").other_claims = true;
    let (reason, message, _) = told(&observed, None);
    assert_eq!(reason, "WrongVolume");
    assert!(message.contains("it is not made anew") && message.contains("humanMay"), "{message}");
}

/// X4: a claim is deleted under the pod of a member that serves. That is told whatever the plan does, once by an event, and of
/// nobody whose claim may go.
#[test]
fn x4_a_claim_that_was_taken_away_under_its_member_is_told() {
    let (mut resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    let told = |resource: &RaftCluster, observed: &Observed| {
        let plan = plan(&cluster, observed);
        let status = compute(Seen { resource, cluster: Some(&cluster), observed, plan: &plan, invalid: None });
        let events: Vec<String> = new_troubles(resource, &status).map(|trouble| trouble.reason.clone()).collect();
        (status, events)
    };
    let ready = |status: &RaftClusterStatus| {
        let found = status.conditions.iter().find(|condition| condition.type_ == "VolumesReady").expect("VolumesReady");
        (found.status.clone(), found.message.clone())
    };
    observed.volumes.remove(&1);
    let (status, events) = told(&resource, &observed);
    let words = "volume claim data-db-1 of member 2 is missing: pod db-1 is the last that has its disk".to_owned();
    assert_eq!((ready(&status), events), (("False".to_owned(), words), vec!["WrongVolume".to_owned()]));
    let plan = status.plan.clone().expect("a plan");
    assert_eq!(plan.blocked_by.expect("a wait").reason, "WrongVolume");
    assert!(plan.human_may.concat().contains("balsa.dev/replace-member=2"), "{:?}", plan.human_may);
    resource.status = Some(status);
    assert_eq!(told(&resource, &observed).1, Vec::<String>::new(), "once");

    observed = observed_three();
    observed.volumes.get_mut(&1).expect("volume 1").terminating = true;
    assert!(ready(&told(&resource, &observed).0).1.contains("is being deleted"));
    let mut going = [observed.clone(), observed.clone(), observed.clone()];
    going[0].pods.get_mut(&1).expect("pod 1").terminating = Some(1000);
    going[1].nodes.insert(1, crate::observed::NodeReport::Unreachable);
    let list = going[2].members.as_mut().expect("a list");
    list.members.remove(&2);
    list.removed.insert(2);
    for observed in going {
        assert_eq!(ready(&told(&resource, &observed).0).0, "True");
    }
    resource.metadata.deletion_timestamp = Some(crate::fixtures::time(1000));
    assert_eq!(ready(&told(&resource, &observed).0).0, "True", "all of it goes");
}

/// M29: whatever a broken node or a policy says, the status stays far smaller than what the API server takes for an object.
#[test]
fn m29_the_status_is_bounded_whatever_others_say() {
    let (resource, cluster, mut observed) = (minimal(), valid("{image: balsa}"), observed_three());
    let long = "ü".repeat(600_000);
    for node in observed.nodes.values_mut() {
        let crate::observed::NodeReport::Answered(state) = node else { continue };
        state.version = long.clone();
        let wanted = wanted_settings(&cluster, &crate::observed::Settings::default());
        let refused = Some((wanted, long.clone()));
        state.settings = Some(crate::observed::Settings { refused, ..Default::default() });
    }
    let list = observed.members.as_mut().expect("a list");
    let third = list.members[&3].clone();
    list.members.extend((10..10_000).map(|id| (id, third.clone())));
    list.alarms.extend((10..10_000).map(|id| (Alarm::NoSpace, id)));
    let mut plan = settled(100);
    plan.step = Step::Wait;
    plan.blocked_by = Some(Blocked { reason: WaitReason::LabelFails, message: long.clone() });
    plan.human_may = vec![long.clone(); 3];
    plan.human_may.extend(crate::plan::plan(&cluster, &observed).human_may);
    assert!(plan.human_may.len() > 10_000 - 10, "each alarm has a way out");
    let seen =
        Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: Some(&long) };
    for invalid in [None, seen.invalid] {
        let status = compute(Seen { invalid, ..seen });
        let size = serde_json::to_string(&status).expect("JSON").len();
        assert!(size < 32 * 1024, "{size} bytes");
        assert!(status.version.is_some_and(|version| version.starts_with('ü')));
        assert_eq!(status.members.len(), MEMBERS_MAX);
        assert_eq!(status.plan.expect("a plan").human_may.len(), WAYS_MAX);
    }
}
