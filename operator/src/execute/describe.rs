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
    use crate::step::{ObjectRef, PodRef, StepName, VolumeRef};

    const MARKER: Marker = Marker { cluster_id: 0xc7, raft_id: 3, incarnation: 1 };

    fn pod() -> PodRef {
        PodRef { ordinal: 2, uid: "u".into(), resource_version: "1".into() }
    }

    fn volume() -> VolumeRef {
        VolumeRef { ordinal: 2, uid: "u".into(), resource_version: "1".into() }
    }

    fn object() -> ObjectRef {
        ObjectRef { uid: "u".into(), resource_version: "1".into() }
    }

    fn restart(mode: RestartMode, writes_pause: bool) -> Step {
        Step::RestartPod { pod: pod(), mode, writes_pause }
    }

    fn founding() -> Vec<(Step, &'static str)> {
        let (cluster_id, resource_version, name) = (0xc7, String::from("1"), String::from("db-0"));
        let peer_url = String::from("http://x");
        let parts = [
            (BootstrapStep::Intend { cluster_id, resource_version: resource_version.clone() }, "will found cluster c7"),
            (BootstrapStep::Call { pod: pod(), cluster_id, name, peer_url }, "founded cluster c7 on db-0"),
            (BootstrapStep::Latch { resource_version: resource_version.clone() }, "never be founded again"),
            (BootstrapStep::Adopt { cluster_id, resource_version }, "took over cluster c7"),
        ];
        parts.map(|(part, told)| (Step::Bootstrap(part), told)).into()
    }

    /// The steps of this name, and what their event must name; none of those that write nothing.
    fn examples(name: StepName) -> Vec<(Step, &'static str)> {
        let (membership_index, raft_id) = (1, 3);
        match name {
            StepName::Wait | StepName::Settled => Vec::new(),
            StepName::Bootstrap => founding(),
            StepName::AddLearner => {
                vec![(
                    Step::AddLearner { ordinal: 2, peer_url: "http://x".into(), membership_index },
                    "db-2 as learner",
                )]
            }
            StepName::Join => {
                let join = Step::Join { pod: pod(), marker: MARKER, peers: Vec::new(), membership_index };
                vec![(join, "told db-2 that it is member 3")]
            }
            StepName::LabelVolume => vec![
                (
                    Step::LabelVolume { volume: volume(), label: VolumeLabel::Member(MARKER) },
                    "data-db-2 holds member 3",
                ),
                (Step::LabelVolume { volume: volume(), label: VolumeLabel::Detached }, "data-db-2 is kept until"),
            ],
            StepName::ScaleOut => vec![(Step::ScaleOut { set: object(), replicas: 3 }, "raised the pods to 3")],
            StepName::ScaleIn => vec![(Step::ScaleIn { set: object(), replicas: 2 }, "lowered the pods to 2")],
            StepName::Promote => {
                vec![(Step::Promote { ordinal: 2, raft_id: 0xa1, membership_index }, "member a1 on db-2 votes")]
            }
            StepName::MoveLeader => {
                vec![(Step::MoveLeader { from: 1, to: 0xb, ordinal: 0 }, "from member 1 to b")]
            }
            StepName::SetConfig => {
                let step = Step::SetConfig { pod: pod(), marker: MARKER, version: 8, settings: [].into() };
                vec![(step, "member 3 on db-2 has the settings of spec.config, its version 8")]
            }
            StepName::PrepareStop => {
                vec![(Step::PrepareStop { pod: pod(), marker: MARKER }, "member 3 on db-2 out of service")]
            }
            StepName::RemoveMember => {
                vec![(Step::RemoveMember { ordinal: 2, raft_id, membership_index }, "removed member 3 of db-2")]
            }
            StepName::DropVolume => vec![
                (Step::DropVolume { volume: volume(), raft_id: Some(raft_id) }, "data-db-2 of removed member 3"),
                (Step::DropVolume { volume: volume(), raft_id: None }, "data-db-2 with its cluster"),
            ],
            StepName::RestartPod => vec![
                (restart(RestartMode::Evict, true), "evicted db-2 to restart it; writes pause"),
                (restart(RestartMode::Delete, false), "deleted db-2 to restart it"),
                (restart(RestartMode::Force, false), "forced out db-2"),
                (restart(RestartMode::End, false), "deleted db-2"),
            ],
            StepName::RecreateSet => {
                vec![(Step::RecreateSet { set: object(), fields: vec!["serviceName"] }, "anew with other serviceName")]
            }
            StepName::DeleteSet => vec![(Step::DeleteSet { set: object() }, "deleted the StatefulSet")],
            StepName::DeleteBudget => vec![(Step::DeleteBudget { budget: object() }, "deleted the disruption budget")],
            StepName::DropFinalizer => {
                vec![(Step::DropFinalizer { resource_version: "1".into() }, "let the resource go")]
            }
        }
    }

    #[test]
    fn m29_every_step_that_writes_has_an_event_naming_what_it_acts_on() {
        for name in StepName::ALL {
            for (step, told) in examples(*name) {
                assert_eq!(step.name(), *name);
                let text = describe("db", &step).unwrap_or_else(|| panic!("{name} is no event"));
                assert!(text.contains(told), "{name}: {text}");
            }
            let writes = !matches!(name, StepName::Wait | StepName::Settled);
            assert_eq!(examples(*name).is_empty(), !writes, "{name}");
        }
        assert_eq!(describe("db", &Step::Wait), None);
        assert_eq!(describe("db", &Step::Settled), None);
    }
}
