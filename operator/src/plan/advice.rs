//! What is likely to follow a step, and what a human may do about a wait. Neither decides anything.

use super::{LASTING_WAIT_SECONDS, View};
use crate::names;
use crate::observed::Alarm;
use crate::step::{BootstrapStep, Plan, Step, StepName, THEN_MAX, Target, VolumeLabel, WaitReason};

/// The steps expected after this one, as the reference's paths go.
pub(super) fn forecast(view: &View<'_>, step: &Step) -> Vec<String> {
    let ordinal = step.target().ordinal.unwrap_or(0);
    let grows = [StepName::AddLearner, StepName::ScaleOut, StepName::Join, StepName::LabelVolume, StepName::Promote];
    let (path, k): (&[StepName], u32) = match step {
        Step::Bootstrap(BootstrapStep::Intend { .. } | BootstrapStep::Call { .. }) => (&[StepName::Bootstrap], 0),
        Step::Bootstrap(_) => (&[StepName::LabelVolume], 0),
        Step::AddLearner { .. } if ordinal < view.have() => (&grows[2..], ordinal),
        Step::AddLearner { .. } => (&grows[1..], ordinal),
        Step::ScaleOut { .. } => (&grows[2..], ordinal),
        Step::Join { .. } => (&grows[3..], ordinal),
        Step::LabelVolume { label: VolumeLabel::Member(_), .. } if is_learner(view, ordinal) => (&grows[4..], ordinal),
        Step::MoveLeader { .. } if ordinal >= view.want() => {
            (&[StepName::PrepareStop, StepName::RemoveMember, StepName::ScaleIn, StepName::DropVolume], ordinal)
        }
        Step::PrepareStop { .. } if ordinal >= view.want() => (&[StepName::RemoveMember, StepName::ScaleIn], ordinal),
        Step::PrepareStop { .. } => {
            (&[StepName::RemoveMember, StepName::DropVolume, StepName::RestartPod, StepName::AddLearner], ordinal)
        }
        Step::RemoveMember { .. } if ordinal >= view.have() => (&[], ordinal),
        Step::RemoveMember { .. } if ordinal >= view.want() => (&[StepName::ScaleIn], ordinal),
        Step::RemoveMember { .. } => {
            (&[StepName::DropVolume, StepName::RestartPod, StepName::AddLearner, StepName::Join], ordinal)
        }
        Step::DropVolume { .. } if ordinal < view.have() => {
            (&[StepName::RestartPod, StepName::AddLearner, StepName::Join, StepName::Promote], ordinal)
        }
        _ => (&[], ordinal),
    };
    path.iter().take(THEN_MAX).map(|name| format!("{name}({k})")).collect()
}

fn is_learner(view: &View<'_>, k: u32) -> bool {
    view.member(k).is_some_and(|(_, member)| member.learner)
}

/// Where the disruption budget refuses an eviction. A budget that the operator has yet to raise passes by itself.
pub(super) const BUDGET_REFUSES: &str =
    "bring back the pods of this cluster that are not Ready, and end the drains that wait for the disruption budget";

/// Where the set gives its pods other volumes than ours. Its pods may have either.
const OTHER_CLAIMS: &[&str] = &[
    "if kubectl describe shows that all pods of {name} mount volume claims data-{name}-K: kubectl delete statefulset {name} \
     --cascade=orphan, and it is made anew around them",
    "if they mount others: take a backup with etcdctl snapshot save, and restore it into a new RaftCluster",
];

/// Where a member serves and its claim is gone. Its pod has what is left of the disk, so the member is removed first.
const CLAIM_GONE: &[&str] = &[
    "take a backup with etcdctl snapshot save now: {pod} starts on an empty disk whenever it ends",
    "annotate balsa.dev/replace-member={member}, and delete {pod} when that member is removed: its successor gets a claim",
];

/// The same where no other voter has the data.
const ONLY_CLAIM_GONE: &[&str] = &[
    CLAIM_GONE[0],
    "raise spec.replicas, so that others have the data; then annotate balsa.dev/replace-member={member}, and delete {pod} when that \
     member is removed: its successor gets a claim",
];

/// Where nobody can take the lead over, it is the others that want looking at, not the leader.
const NO_SUCCESSOR: &[&str] =
    &["look at the logs of the other pods of {name}: one of them must be able to lead before {pod} is restarted"];

/// Where volumes or nodes of several clusters are found under one name.
const SEVERAL_CLUSTERS: &str = "decide for one of the clusters, save what is needed from the volume claims of the others, \
                                then delete those and their pods";

/// Exact actions: the way out of a wait. One that passes by itself has none before it has lasted.
pub(super) fn human_may(view: &View<'_>, row: &str, reason: WaitReason, target: Target, lasted: i64) -> Vec<String> {
    match (reason, target.ordinal) {
        (WaitReason::LeftoverVolume | WaitReason::ClusterIdMismatch, None) => return vec![SEVERAL_CLUSTERS.to_owned()],
        (WaitReason::LeftoverVolume, Some(k)) => return vec![leftover(view, k)],
        _ => {}
    }
    if passes_by_itself(reason) && lasted < LASTING_WAIT_SECONDS {
        return Vec::new();
    }
    let name = &view.cluster.name;
    let pod = target.ordinal.map_or_else(|| "the pods".to_owned(), |k| format!("pod {}", names::pod(name, k)));
    let claim = target.ordinal.map_or_else(|| "claims".to_owned(), |k| format!("claim {}", names::volume(name, k)));
    let member = target.member.map_or_else(|| "the member's id".to_owned(), |id| format!("{id:x}"));
    let fill = |line: &&str| {
        let line = line.replace("{pod}", &pod).replace("{claim}", &claim).replace("{member}", &member);
        line.replace("{name}", name)
    };
    let founding: &[&str] = match (row, reason) {
        ("B6", WaitReason::NoQuorum) => {
            &["if the data are given up: delete the volume claims of {name} and the pods, and a new cluster is founded"]
        }
        _ => &[],
    };
    let ways = match reason {
        WaitReason::QuorumAtRisk => quorum_at_risk(view, row),
        WaitReason::WrongVolume if row == "X4" || row == "R1" && target.ordinal.is_some() => claim_gone(view),
        WaitReason::WrongVolume if row == "R1" => OTHER_CLAIMS,
        WaitReason::MemberUnhealthy if row == "U6" => NO_SUCCESSOR,
        _ => ways_out(reason),
    };
    ways.iter().chain(founding).map(fill).collect()
}

/// Where a step has failed for long, which is told for `reason`. What a node is asked only its log explains.
pub(super) fn of_failing(view: &View<'_>, plan: &Plan, reason: WaitReason) -> Vec<String> {
    if asks_a_node(&plan.step) {
        return vec![format!("look at the logs of the pods of {}", view.cluster.name)];
    }
    human_may(view, plan.row, reason, plan.target, LASTING_WAIT_SECONDS)
}

fn asks_a_node(step: &Step) -> bool {
    match step {
        Step::Bootstrap(BootstrapStep::Call { .. })
        | Step::AddLearner { .. }
        | Step::Join { .. }
        | Step::Promote { .. }
        | Step::MoveLeader { .. }
        | Step::SetConfig { .. }
        | Step::PrepareStop { .. }
        | Step::RemoveMember { .. } => true,
        Step::Wait
        | Step::Settled
        | Step::Bootstrap(_)
        | Step::LabelVolume { .. }
        | Step::ScaleOut { .. }
        | Step::ScaleIn { .. }
        | Step::DropVolume { .. }
        | Step::RestartPod { .. }
        | Step::RecreateSet { .. }
        | Step::DeleteSet { .. }
        | Step::DeleteBudget { .. }
        | Step::DropFinalizer { .. } => false,
    }
}

/// Most often it is over before anybody has read it.
fn passes_by_itself(reason: WaitReason) -> bool {
    !reason.needs_human() && !reason.is_degraded()
}

/// In each line `{pod}`, `{claim}`, `{member}` and `{name}` stand for what the wait is about.
fn ways_out(reason: WaitReason) -> &'static [&'static str] {
    match reason {
        WaitReason::Paused => &["set spec.paused to false"],
        WaitReason::InvalidSpec => &["correct the spec as the message says"],
        WaitReason::ForeignMember => &["remove the foreign member with etcdctl member remove {member}"],
        WaitReason::ClusterIdMismatch => &[
            "give {pod} the volume of this cluster back",
            "save what is needed from volume {claim}, then delete the claim and {pod}",
        ],
        WaitReason::MembersDisagree => &[
            "bring back the members that do not answer: their majority decides",
            "look whether the volume of {pod} was put back to an older state; then annotate balsa.dev/replace-member={member}",
        ],
        WaitReason::WrongVolume => &[
            "give {pod} its own volume back",
            "save what is needed from volume {claim}, then delete the claim and {pod}",
        ],
        WaitReason::NodeUnreachable => {
            &["bring the Kubernetes node back, or delete its Node object, or taint it out-of-service"]
        }
        WaitReason::MemberUnhealthy => &["look at the log of {pod}", "annotate balsa.dev/replace-member={member}"],
        WaitReason::LearnerStuck => &["look at the log of {pod}", "lower spec.replicas to take the learner back"],
        WaitReason::RolloutStalled => &["correct the image or the configuration", "look at the log of {pod}"],
        WaitReason::LeaderWillNotMove => &["look at the log of {pod}", "restart {pod}"],
        WaitReason::DiskFailed => {
            &["give the volume of {pod} room or a working disk", "annotate balsa.dev/replace-member={member}"]
        }
        WaitReason::Fault => &["look at the log of {pod}"],
        WaitReason::ConfigRefused => &["correct spec.config as the message says", "look at the log of {pod}"],
        WaitReason::ConfigNotTaken => {
            &["look at the log and the disk of {pod}", "restart {pod}, which then reads spec.config"]
        }
        WaitReason::RestartFails => {
            &["look for what refuses to let {pod} go: a second disruption budget, or a webhook"]
        }
        WaitReason::LabelFails => {
            &["look for what refuses to have {claim} labelled: a webhook, a policy, or a right that the operator lacks"]
        }
        WaitReason::StepFails => &["look for what refuses it: a webhook, a policy, or a right that the operator lacks"],
        WaitReason::DataLost => &["restore from a backup into a new RaftCluster"],
        WaitReason::QuorumLost => &["bring a majority of the disks back", "restore from a backup"],
        WaitReason::KubernetesLagging => &["look whether the kube-controller-manager runs"],
        WaitReason::ChangeInFlight => &["look at the logs of the pods of {name}, and whether they reach each other"],
        WaitReason::PodNotRunning => &["see what kubectl describe says of {pod}"],
        WaitReason::PodNotRejoined => &["look at the log of {pod}, and whether it reaches the others"],
        WaitReason::PodTerminating => {
            &["look which finalizers hold {pod} or volume {claim}, and who should take them away"]
        }
        WaitReason::LearnerBehind => &["look at the log of {pod}"],
        WaitReason::DisruptionBudget => &["look who else writes the PodDisruptionBudget {name}"],
        WaitReason::NoQuorum => &["bring a majority of the pods of {name} back"],
        WaitReason::MembersUnknown => &["bring the pods of {name} back", "let the operator reach their port 2380"],
        WaitReason::QuorumAtRisk | WaitReason::LeftoverVolume | WaitReason::OperatorTemplateChanged => &[],
    }
}

fn claim_gone(view: &View<'_>) -> &'static [&'static str] {
    if view.voters().count() == 1 { ONLY_CLAIM_GONE } else { CLAIM_GONE }
}

/// More replicas are a way out only of scaling in: a replacement holds scaling out until it is done. A voter that is alone
/// has no others, so nothing can replace it.
fn quorum_at_risk(view: &View<'_>, row: &str) -> &'static [&'static str] {
    let alone = view.voters().count() == 1;
    match row {
        "X7" if alone => {
            &["take the annotation balsa.dev/replace-member away, and raise spec.replicas before you set it again"]
        }
        _ if alone && row.starts_with('X') => &[
            "take a backup with etcdctl snapshot save now: volume {claim} goes when {pod} ends, and the data go with it",
            "restore the backup into a new RaftCluster",
        ],
        _ if row.starts_with('I') => &["bring the other members back", "raise spec.replicas"],
        _ => &["bring the other members back"],
    }
}

/// A claim that a pod uses ends with that pod, so both are named.
fn leftover(view: &View<'_>, k: u32) -> String {
    let (pod, claim) = (names::pod(&view.cluster.name, k), names::volume(&view.cluster.name, k));
    let pod = view.pod(k).filter(|pod| pod.terminating.is_none()).map(|_| format!("pod {pod}"));
    let volume = view.volume(k);
    let deleted = volume.is_some_and(|volume| volume.terminating);
    match (deleted, pod) {
        (false, Some(pod)) if volume.is_none() => {
            format!(
                "save what is needed from the disk of {pod}, then delete that pod: its successor gets a volume claim"
            )
        }
        (false, Some(pod)) => format!("save what is needed from volume claim {claim}, then delete the claim and {pod}"),
        (false, None) => format!("save what is needed from volume claim {claim}, then delete it"),
        (true, Some(pod)) => {
            format!("save what is needed from volume claim {claim}, then delete {pod}, which holds it")
        }
        (true, None) => format!("look which finalizers hold volume claim {claim}, and who should take them away"),
    }
}

/// The way out of the alarms that are raised; whatever else the plan does.
pub(super) fn about_alarms(view: &View<'_>) -> Vec<String> {
    let alarms = view.list.iter().flat_map(|list| &list.alarms);
    let mut lines: Vec<String> = alarms
        .map(|(alarm, member)| match alarm {
            Alarm::NoSpace => format!(
                "make room for member {member:x}: delete keys, then etcdctl compact and defrag; or raise spec.config.quotaBackendBytes"
            ),
            Alarm::Corrupt => format!("annotate balsa.dev/replace-member={member:x}, whose data differ"),
        })
        .collect();
    if !lines.is_empty() {
        lines.push("run etcdctl alarm disarm when that is done".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::step_fails;
    use super::*;
    use crate::observed::Observed;
    use crate::step::{Blocked, PodRef, RestartMode, VolumeRef};
    use crate::valid::ValidCluster;

    fn failing(step: Step, blocked_by: Option<Blocked>) -> Plan {
        let target = step.target();
        let mut plan =
            Plan { step, row: "X8", then: Vec::new(), blocked_by, human_may: vec!["last".into()], target, since: 0 };
        let cluster = ValidCluster { name: "db".into(), ..ValidCluster::default() };
        step_fails(&mut plan, &cluster, &Observed::default(), "no");
        plan
    }

    #[test]
    fn a_step_that_fails_is_told_with_its_words_and_whom_to_look_at() {
        let (uid, resource_version) = (String::new(), String::new());
        let volume = VolumeRef { ordinal: 1, uid: uid.clone(), resource_version: resource_version.clone() };
        let pod = PodRef { ordinal: 2, uid, resource_version };
        let delete = Step::DropVolume { volume: volume.clone(), raft_id: Some(2) };
        let end = Step::RestartPod { pod, mode: RestartMode::Evict, writes_pause: false };
        for (step, reason, way) in [
            (delete.clone(), WaitReason::StepFails, "a policy"),
            (end, WaitReason::RestartFails, "pod db-2"),
            (Step::LabelVolume { volume, label: VolumeLabel::Detached }, WaitReason::LabelFails, "claim data-db-1"),
            (Step::MoveLeader { from: 1, to: 2, ordinal: 0 }, WaitReason::StepFails, "the logs of the pods of db"),
        ] {
            let message = format!("{} fails: no", step.name());
            let plan = failing(step, None);
            assert_eq!(plan.blocked_by, Some(Blocked { reason, message }));
            assert!(plan.human_may.len() == 2 && plan.human_may[0].contains(way), "{:?}", plan.human_may);
        }
        // Conditions go by the name of a wait, whatever the step.
        let other = Blocked { reason: WaitReason::QuorumAtRisk, message: "two are down".into() };
        let told = failing(delete, Some(other)).blocked_by.expect("both");
        let (reason, message) = (WaitReason::QuorumAtRisk, "DropVolume fails: no; two are down".to_owned());
        assert_eq!(told, Blocked { reason, message });
    }

    #[test]
    fn every_wait_that_lasts_names_a_way_out() {
        let (cluster, observed) = (ValidCluster { name: "db".into(), ..ValidCluster::default() }, Observed::default());
        let view = View::new(&cluster, &observed);
        let targets = [Target::default(), Target { ordinal: Some(2), member: Some(3) }];
        // It is a reason of the condition `Updated`, and no wait.
        let waits = WaitReason::ALL.iter().filter(|reason| **reason != WaitReason::OperatorTemplateChanged);
        for (reason, target) in waits.flat_map(|reason| targets.map(|target| (*reason, target))) {
            let after = |seconds| human_may(&view, "G5", reason, target, seconds);
            let lines = after(LASTING_WAIT_SECONDS);
            assert!(!lines.is_empty() && !lines.concat().contains(['{', '}']), "{reason}: {lines:?}");
            let at_once = if passes_by_itself(reason) { Vec::new() } else { lines };
            assert_eq!(after(LASTING_WAIT_SECONDS - 1), at_once, "{reason}");
        }
    }
}
