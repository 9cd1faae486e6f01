//! Section 4.7: which words the status has, and what each is told for. Every match is exhaustive, so that a new reason or phase
//! is not forgotten here.

use std::collections::BTreeSet;

use crate::fixtures::{cluster_from, minimal, observed_three, time};
use crate::observed::{ExitKind, NodeExit};
use crate::plan::{invalid_spec, plan};
use crate::step::{Blocked, Target};
use crate::validate::{for_deletion, validate};

use super::*;

/// The conditions that tell a wait for this, beside `Progressing`, which tells every wait.
fn told_by(reason: WaitReason) -> &'static [&'static str] {
    use WaitReason as R;
    match reason {
        R::KubernetesLagging | R::ChangeInFlight | R::PodNotRunning | R::PodNotRejoined | R::PodTerminating => &[],
        R::LearnerBehind | R::Paused | R::InvalidSpec | R::RestartFails | R::StepFails => &[],
        // `Updated` tells these by what is observed, whatever the plan waits for.
        R::OperatorTemplateChanged | R::ConfigRefused | R::ConfigNotTaken => &[],
        R::NoQuorum | R::MembersUnknown => &["Available"],
        R::DataLost | R::QuorumLost => &["Available", "Degraded"],
        R::QuorumAtRisk | R::MemberUnhealthy | R::LearnerStuck | R::LeaderWillNotMove => &["Degraded"],
        R::NodeUnreachable | R::DiskFailed | R::Fault => &["Degraded"],
        R::RolloutStalled => &["Degraded", "Updated"],
        R::DisruptionBudget => &["Updated"],
        R::ForeignMember | R::ClusterIdMismatch => &["Consistent"],
        R::MembersDisagree => &["Degraded", "Consistent"],
        R::LeftoverVolume | R::WrongVolume | R::LabelFails => &["VolumesReady"],
    }
}

fn waiting(reason: WaitReason) -> Plan {
    Plan {
        step: Step::Wait,
        row: "X1",
        then: Vec::new(),
        blocked_by: Some(Blocked { reason, message: "in words".into() }),
        human_may: Vec::new(),
        target: Target::default(),
        since: 100,
    }
}

fn words(status: &RaftClusterStatus, kind: &str) -> (String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind).expect(kind);
    (found.status.clone(), found.reason.clone())
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn every_wait_reason_has_its_conditions() {
    let (resource, mut observed) = (minimal(), observed_three());
    let cluster = validate(&resource).expect("valid");
    // Nobody gives the list, and a pod is outdated: what the conditions tell where the plan gives them no reason.
    observed.members = None;
    observed.resource.was_available = true;
    observed.pods.get_mut(&1).expect("pod 1").revision = Some("old".into());
    for reason in WaitReason::ALL {
        let plan = waiting(*reason);
        let seen =
            Seen { resource: &resource, cluster: Some(&cluster), observed: &observed, plan: &plan, invalid: None };
        let status = compute(seen);
        let at_rest = matches!(reason, WaitReason::Paused | WaitReason::InvalidSpec);
        let progressing = pair(if at_rest { "False" } else { "True" }, reason.as_str());
        assert_eq!(words(&status, "Progressing"), progressing, "{reason}");
        for (kind, told, otherwise) in [
            ("Available", "False", pair("False", "NoQuorum")),
            ("Degraded", "True", pair("False", "AllHealthy")),
            ("Updated", "False", pair("False", "RollingOut")),
            ("Consistent", "False", pair("True", "OneCluster")),
            ("VolumesReady", "False", pair("True", "AsAsked")),
        ] {
            let expected = if told_by(*reason).contains(&kind) { pair(told, reason.as_str()) } else { otherwise };
            assert_eq!(words(&status, kind), expected, "{reason}: {kind}");
        }
        let blocked = status.plan.expect("a plan").blocked_by.expect("blocked");
        assert_eq!((blocked.reason.as_str(), blocked.message.as_str()), (reason.as_str(), "in words"));
    }
}

/// The status of what the planner itself decides.
fn told(resource: &RaftCluster, observed: &Observed) -> RaftClusterStatus {
    let deleting = resource.metadata.deletion_timestamp.is_some();
    let (cluster, plan) = match if deleting { for_deletion(resource) } else { validate(resource) } {
        Ok(cluster) => {
            let plan = plan(&cluster, observed);
            (Some(cluster), plan)
        }
        Err(invalid) => (None, invalid_spec(observed, invalid.to_string())),
    };
    compute(Seen { resource, cluster: cluster.as_ref(), observed, plan: &plan, invalid: None })
}

/// What a cluster is like in each phase.
fn like(phase: Phase) -> (RaftCluster, Observed) {
    let (mut resource, mut observed) = (minimal(), observed_three());
    match phase {
        Phase::Running => {}
        Phase::Bootstrapping => observed = Observed { now: 1000, fresh_id: 7, ..Observed::default() },
        Phase::Scaling => resource.spec.replicas = 5,
        Phase::Updating => observed.pods.get_mut(&1).expect("pod 1").revision = Some("old".into()),
        Phase::Repairing => {
            observed.pods.remove(&1);
            observed.nodes.remove(&1);
        }
        Phase::Paused => resource.spec.paused = true,
        Phase::Unavailable => observed.members = None,
        Phase::Deleting => resource.metadata.deletion_timestamp = Some(time(1000)),
        Phase::Invalid => resource.spec.image = "not an image".into(),
    }
    (resource, observed)
}

const PHASES: [Phase; 9] = [
    Phase::Bootstrapping,
    Phase::Scaling,
    Phase::Updating,
    Phase::Repairing,
    Phase::Running,
    Phase::Paused,
    Phase::Unavailable,
    Phase::Deleting,
    Phase::Invalid,
];

#[test]
fn each_phase_is_told() {
    for phase in PHASES {
        let (resource, observed) = like(phase);
        assert_eq!(told(&resource, &observed).phase, Some(phase));
    }
    let (resource, mut observed) = like(Phase::Scaling);
    observed.members = None;
    assert_eq!(told(&resource, &observed).phase, Some(Phase::Unavailable), "whatever is asked for");
    let smaller = cluster_from("{image: 'balsa.dev/balsa:dev', replicas: 1}");
    assert_eq!(told(&smaller, &observed_three()).phase, Some(Phase::Scaling), "down too");
}

/// What users and other programs may read of the phase is what the schema says.
#[test]
fn the_phases_of_the_schema_are_those_that_are_told() {
    let definition = serde_json::to_value(balsa_crds::raft_cluster_definition()).expect("JSON");
    let version = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let schema = version["properties"]["status"]["properties"]["phase"]["enum"].as_array().expect("an enum");
    let schema: BTreeSet<&str> = schema.iter().filter_map(serde_json::Value::as_str).collect();
    let told = PHASES.map(|phase| serde_json::to_value(phase).expect("JSON"));
    assert_eq!(schema, told.iter().filter_map(serde_json::Value::as_str).collect());
}

/// The reasons that no wait gives.
#[test]
fn what_no_wait_tells_has_a_reason_too() {
    type Change = fn(&mut RaftCluster, &mut Observed);
    let cases: [(Change, &str, (&str, &str)); 12] = [
        (|_, observed| *observed = Observed::default(), "Bootstrapped", ("False", "AwaitingPod")),
        (|_, observed| *observed = Observed::default(), "Available", ("False", "AwaitingBootstrap")),
        (|_, observed| observed.pods.clear(), "Available", ("False", "AwaitingVoters")),
        (|_, observed| observed.served = Some(false), "Available", ("False", "AwaitingEndpoints")),
        (|_, observed| observed.resource.bootstrapped = false, "Bootstrapped", ("False", "Intended")),
        (|_, _| {}, "Bootstrapped", ("True", "Bootstrapped")),
        (|resource, _| resource.spec.replicas = 5, "Degraded", ("True", "VotersMissing")),
        (|resource, _| resource.spec.replicas = 5, "Progressing", ("True", "AddLearner")),
        (|resource, _| resource.spec.replicas = 4, "QuorumAdvice", ("True", "EvenReplicas")),
        (
            |_, observed| observed.volumes.get_mut(&1).expect("volume 1").terminating = true,
            "VolumesReady",
            ("False", "WrongVolume"),
        ),
        (
            |_, observed| {
                let exit = Some(NodeExit { kind: ExitKind::Corrupt, marker: None });
                observed.pods.get_mut(&1).expect("pod 1").exit = exit;
            },
            "Consistent",
            ("False", "Corrupt"),
        ),
        (
            |_, observed| {
                observed.nodes.insert(1, crate::observed::NodeReport::Unreachable);
            },
            "Degraded",
            ("True", "MemberUnhealthy"),
        ),
    ];
    for (change, kind, (status, reason)) in cases {
        let (mut resource, mut observed) = (minimal(), observed_three());
        change(&mut resource, &mut observed);
        assert_eq!(words(&told(&resource, &observed), kind), pair(status, reason));
    }
}
