//! The one event of each step, in words. Pure.

use crate::names;
use crate::step::{BootstrapStep, RestartMode, Step, VolumeLabel};

/// What is said of an executed step; `None` for steps that write nothing.
pub fn describe(cluster: &str, step: &Step) -> Option<String> {
    let pod = |ordinal: u32| names::pod(cluster, ordinal);
    let id = |id: u64| names::id_text(id);
    Some(match step {
        Step::Wait | Step::Settled => return None,
        Step::Bootstrap(part) => match part {
            BootstrapStep::Intend { cluster_id, .. } => format!("will found cluster {}", id(*cluster_id)),
            BootstrapStep::Call { cluster_id, name, .. } => format!("founded cluster {} on {name}", id(*cluster_id)),
            BootstrapStep::Latch { .. } => "the cluster is founded and will never be founded again".to_owned(),
            BootstrapStep::Adopt { cluster_id, .. } => {
                format!("took over cluster {} from its volumes", id(*cluster_id))
            }
        },
        Step::AddLearner { ordinal, peer_url, .. } => format!("added {} as learner at {peer_url}", pod(*ordinal)),
        Step::Join { pod: to, marker, .. } => {
            format!("told {} that it is member {}", pod(to.ordinal), id(marker.raft_id))
        }
        Step::LabelVolume { volume, label } => {
            let volume = names::volume(cluster, volume.ordinal);
            match label {
                VolumeLabel::Member(marker) => format!("{volume} holds member {}", id(marker.raft_id)),
                VolumeLabel::Detached => format!("{volume} is kept until its ordinal is used again"),
            }
        }
        Step::ScaleOut { replicas, .. } => format!("raised the pods to {replicas}"),
        Step::ScaleIn { replicas, .. } => format!("lowered the pods to {replicas}"),
        Step::Promote { ordinal, raft_id, .. } => format!("member {} on {} votes", id(*raft_id), pod(*ordinal)),
        Step::MoveLeader { from, to, .. } => format!("moved leadership from member {} to {}", id(*from), id(*to)),
        Step::SetConfig { pod: to, marker, version, .. } => {
            format!(
                "member {} on {} has the settings of spec.config, its version {version}",
                id(marker.raft_id),
                pod(to.ordinal)
            )
        }
        Step::PrepareStop { pod: leaving, marker } => {
            format!("took member {} on {} out of service", id(marker.raft_id), pod(leaving.ordinal))
        }
        Step::RemoveMember { ordinal, raft_id, .. } => format!("removed member {} of {}", id(*raft_id), pod(*ordinal)),
        Step::DropVolume { volume, raft_id } => {
            let volume = names::volume(cluster, volume.ordinal);
            match raft_id {
                Some(raft_id) => format!("deleted {volume} of removed member {}", id(*raft_id)),
                None => format!("deleted {volume} with its cluster"),
            }
        }
        Step::RestartPod { pod: victim, mode, writes_pause } => {
            let how = match mode {
                RestartMode::End => return Some(format!("deleted {}", pod(victim.ordinal))),
                RestartMode::Delete => "deleted",
                RestartMode::Evict => "evicted",
                RestartMode::Force => "forced out",
            };
            let pause = if *writes_pause { "; writes pause until it is back" } else { "" };
            format!("{how} {} to restart it{pause}", pod(victim.ordinal))
        }
        Step::RecreateSet { fields, .. } => {
            format!("deleted the StatefulSet without its pods, to make it anew with other {}", fields.join(", "))
        }
        Step::DeleteSet { .. } => "deleted the StatefulSet".to_owned(),
        Step::DeleteBudget { .. } => "deleted the disruption budget".to_owned(),
        Step::DropFinalizer { .. } => "let the resource go".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Marker;
    use crate::step::{ObjectRef, PodRef, VolumeRef};

    fn pod() -> PodRef {
        PodRef { ordinal: 2, uid: "u".into(), resource_version: "1".into() }
    }

    #[test]
    fn m29_every_step_that_writes_has_an_event_naming_what_it_acts_on() {
        let set = || ObjectRef { uid: "u".into(), resource_version: "1".into() };
        let volume = || VolumeRef { ordinal: 2, uid: "u".into(), resource_version: "1".into() };
        let cases = [
            (Step::AddLearner { ordinal: 2, peer_url: "http://x".into(), membership_index: 1 }, "db-2"),
            (Step::ScaleOut { set: set(), replicas: 3 }, "3"),
            (Step::Promote { ordinal: 2, raft_id: 0xa1, membership_index: 1 }, "a1"),
            (Step::MoveLeader { from: 1, to: 0xb, ordinal: 0 }, "to b"),
            (
                Step::PrepareStop { pod: pod(), marker: Marker { cluster_id: 7, raft_id: 3, incarnation: 1 } },
                "member 3 on db-2 out of service",
            ),
            (
                Step::SetConfig {
                    pod: pod(),
                    marker: Marker { cluster_id: 7, raft_id: 3, incarnation: 1 },
                    version: 8,
                    settings: [].into(),
                },
                "member 3 on db-2 has the settings of spec.config, its version 8",
            ),
            (Step::RemoveMember { ordinal: 2, raft_id: 3, membership_index: 1 }, "member 3 of db-2"),
            (Step::DropVolume { volume: volume(), raft_id: Some(3) }, "data-db-2 of removed member 3"),
            (Step::RestartPod { pod: pod(), mode: RestartMode::Evict, writes_pause: true }, "writes pause"),
            (Step::RestartPod { pod: pod(), mode: RestartMode::End, writes_pause: false }, "deleted db-2"),
            (Step::RecreateSet { set: set(), fields: vec!["serviceName"] }, "anew with other serviceName"),
            (Step::LabelVolume { volume: volume(), label: VolumeLabel::Detached }, "kept until"),
        ];
        for (step, wanted) in cases {
            let text = describe("db", &step).expect("an event");
            assert!(text.contains(wanted), "{text}");
        }
        assert_eq!(describe("db", &Step::Wait), None);
        assert_eq!(describe("db", &Step::Settled), None);
    }
}
