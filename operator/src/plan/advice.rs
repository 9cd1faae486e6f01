//! What is likely to follow a step, and what a human may do about a wait. Neither decides anything.

use super::View;
use crate::observed::Alarm;
use crate::step::{BootstrapStep, Step, StepName, THEN_MAX, Target, VolumeLabel, WaitReason};

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

/// Exact actions, only for waits that do not pass by themselves.
pub(super) fn human_may(reason: WaitReason, target: Target) -> Vec<String> {
    let pod = target.ordinal.map_or_else(|| "the pod".to_owned(), |k| format!("pod {k}"));
    let member = target.member.map_or_else(|| "the member's id".to_owned(), |id| format!("{id:x}"));
    let lines: &[&str] = match reason {
        WaitReason::Paused => &["set spec.paused to false"],
        WaitReason::InvalidSpec => &["correct the spec as the message says"],
        WaitReason::ForeignMember => &["remove the foreign member with etcdctl member remove {member}"],
        WaitReason::ClusterIdMismatch => &["give {pod} the volume of this cluster back, or delete its volume claim"],
        WaitReason::LeftoverVolume => &["save what is needed from the volume claim of {pod}, then delete it"],
        WaitReason::WrongVolume => &["give {pod} its own volume back"],
        WaitReason::NodeUnreachable => {
            &["bring the Kubernetes node back, or delete its Node object, or taint it out-of-service"]
        }
        WaitReason::QuorumAtRisk => &["bring the other members back", "raise spec.replicas"],
        WaitReason::MemberUnhealthy => &["look at the log of {pod}", "annotate balsa.dev/replace-member={member}"],
        WaitReason::LearnerStuck => &["look at the log of {pod}", "lower spec.replicas to take the learner back"],
        WaitReason::RolloutStalled => &["correct the image or the configuration", "look at the log of {pod}"],
        WaitReason::LeaderWillNotMove => &["look at the log of {pod}", "restart {pod}"],
        WaitReason::DiskFailed => {
            &["give the volume of {pod} room or a working disk", "annotate balsa.dev/replace-member={member}"]
        }
        WaitReason::Fault => &["look at the log of {pod}"],
        WaitReason::ConfigRefused => &["correct spec.config as the message says", "look at the log of {pod}"],
        WaitReason::DataLost => &["restore from a backup into a new RaftCluster"],
        WaitReason::QuorumLost => &["bring a majority of the disks back", "restore from a backup"],
        _ => &[],
    };
    lines.iter().map(|line| line.replace("{pod}", &pod).replace("{member}", &member)).collect()
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
