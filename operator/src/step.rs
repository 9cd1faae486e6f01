//! The outcome of planning: exactly one step, or a reason to wait.
//!
//! Owns the closed list of steps and reasons. A step carries every UID, resourceVersion, membership index and raft id
//! that it was decided on, so that executing it needs no further decision and a changed world refuses it. Each is
//! one remote write. The strings here are condition reasons, metric labels and event reasons alike.

use std::collections::BTreeMap;

use crate::observed::{Marker, UnixSeconds};

/// One pass's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do now.
    pub step: Step,
    /// The row of the reference that decided it: `I5`.
    pub row: &'static str,
    /// The steps expected after it, at most [`THEN_MAX`]; a forecast, never a promise.
    pub then: Vec<String>,
    /// What stands in the way: of the step if it is a wait, else of the rest of the plan.
    pub blocked_by: Option<Blocked>,
    /// Exactly what a human may do about it; empty when it passes by itself.
    pub human_may: Vec<String>,
    /// What the step acts on.
    pub target: Target,
    /// When this matter began: goes to `status.plan.since` unchanged.
    pub since: UnixSeconds,
}

/// Most entries of [`Plan::then`].
pub const THEN_MAX: usize = 5;

/// What a step or a wait is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Ordinal of the pod.
    pub ordinal: Option<u32>,
    /// Raft id of the member.
    pub member: Option<u64>,
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The class of the reason.
    pub reason: WaitReason,
    /// One sentence for a human.
    pub message: String,
}

/// Identity of a pod that a step writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its ordinal.
    pub ordinal: u32,
    /// UID it was decided on.
    pub uid: String,
    /// resourceVersion it was decided on.
    pub resource_version: String,
}

/// Identity of a volume claim that a step writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRef {
    /// Its ordinal.
    pub ordinal: u32,
    /// UID it was decided on.
    pub uid: String,
    /// resourceVersion it was decided on.
    pub resource_version: String,
}

/// Identity of the StatefulSet or the budget that a step writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// UID it was decided on.
    pub uid: String,
    /// resourceVersion it was decided on.
    pub resource_version: String,
}

/// One remote write, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do until something changes.
    Wait,
    /// Everything is as asked; nothing is written.
    Settled,
    /// One of the writes that found a cluster.
    Bootstrap(BootstrapStep),
    /// `Node.Add` as a learner.
    AddLearner {
        /// Ordinal whose peer URL is added.
        ordinal: u32,
        /// That peer URL.
        peer_url: String,
        /// Membership index it was planned on.
        membership_index: u64,
    },
    /// `Node.Join` to an uninitialized node.
    Join {
        /// The pod that must be the one answering.
        pod: PodRef,
        /// Who it becomes; the incarnation is the same in every retry on the same volume.
        marker: Marker,
        /// The listed members: id and peer URLs.
        peers: Vec<(u64, Vec<String>)>,
        /// Membership index it was planned on.
        membership_index: u64,
    },
    /// Merge patch of a volume's labels.
    LabelVolume {
        /// The volume.
        volume: VolumeRef,
        /// What to write on it.
        label: VolumeLabel,
    },
    /// Patch of the StatefulSet's replicas by plus one.
    ScaleOut {
        /// The StatefulSet.
        set: ObjectRef,
        /// The new count.
        replicas: u32,
    },
    /// Patch of the StatefulSet's replicas by minus one.
    ScaleIn {
        /// The StatefulSet.
        set: ObjectRef,
        /// The new count.
        replicas: u32,
    },
    /// `Node.Promote`.
    Promote {
        /// Ordinal of the learner.
        ordinal: u32,
        /// Its raft id.
        raft_id: u64,
        /// Membership index it was planned on.
        membership_index: u64,
    },
    /// `Node.MoveLeader`.
    MoveLeader {
        /// Raft id of the present leader.
        from: u64,
        /// Raft id of the next one.
        to: u64,
        /// Ordinal of the present leader, if it has one of ours.
        ordinal: u32,
    },
    /// `Node.SetConfig`: the settings that change while the member runs.
    SetConfig {
        /// The pod that must be the one answering.
        pod: PodRef,
        /// The member that is meant: whoever else has its address refuses.
        marker: Marker,
        /// The version that the node is to give them, above its present one.
        version: u64,
        /// All of them, by the names of flags.
        settings: BTreeMap<String, String>,
    },
    /// `Node.PrepareStop`, before the removal of a voter that serves: its clients go elsewhere first.
    PrepareStop {
        /// The pod that must be the one answering.
        pod: PodRef,
        /// The member that is meant: whoever else has its address refuses.
        marker: Marker,
    },
    /// `Node.Remove`.
    RemoveMember {
        /// Ordinal of the member.
        ordinal: u32,
        /// Its raft id.
        raft_id: u64,
        /// Membership index it was planned on.
        membership_index: u64,
    },
    /// Delete of a volume claim.
    DropVolume {
        /// The volume.
        volume: VolumeRef,
        /// The removed member whose disk it was; `None` if it goes with the whole cluster.
        raft_id: Option<u64>,
    },
    /// Delete or eviction of a pod.
    RestartPod {
        /// The pod.
        pod: PodRef,
        /// How.
        mode: RestartMode,
        /// Writes pause meanwhile, because there are no more than two voters; the event says so.
        writes_pause: bool,
    },
    /// Delete of the StatefulSet without its pods, which the next one adopts: it has to change where it cannot.
    RecreateSet {
        /// The StatefulSet.
        set: ObjectRef,
        /// The fields in which it has to change.
        fields: Vec<&'static str>,
    },
    /// Delete of the StatefulSet, because the `RaftCluster` is deleted.
    DeleteSet {
        /// The StatefulSet.
        set: ObjectRef,
    },
    /// Delete of the PodDisruptionBudget, because the `RaftCluster` is deleted.
    DeleteBudget {
        /// The budget.
        budget: ObjectRef,
    },
    /// Removal of our finalizer: the last write.
    DropFinalizer {
        /// resourceVersion of the `RaftCluster` it was decided on.
        resource_version: String,
    },
}

/// The writes that found a cluster, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootstrapStep {
    /// B3: write this id to `status.clusterId`.
    Intend {
        /// The fresh id.
        cluster_id: u64,
        /// resourceVersion of the `RaftCluster` it was decided on.
        resource_version: String,
    },
    /// B4: `Node.Bootstrap` to pod 0.
    Call {
        /// Pod 0.
        pod: PodRef,
        /// The latched id.
        cluster_id: u64,
        /// Member name.
        name: String,
        /// Peer URL of ordinal 0.
        peer_url: String,
    },
    /// B5: set condition `Bootstrapped` to True.
    Latch {
        /// resourceVersion of the `RaftCluster` it was decided on.
        resource_version: String,
    },
    /// B6: write the id that volumes and members agree on to `status.clusterId`.
    Adopt {
        /// The id found.
        cluster_id: u64,
        /// resourceVersion of the `RaftCluster` it was decided on.
        resource_version: String,
    },
}

/// What [`Step::LabelVolume`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeLabel {
    /// `balsa.dev/{cluster-id,raft-id,incarnation}`.
    Member(Marker),
    /// `balsa.dev/detached`: its member is removed and its ordinal is out of use.
    Detached,
}

/// How a pod is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartMode {
    /// Plain delete with the pod's own grace period.
    Delete,
    /// Through the Eviction API, so that drains and we take from one budget. Refused: `DisruptionBudget`.
    Evict,
    /// Grace 0, after proof that its host is gone.
    Force,
    /// Plain delete of a pod that is not to come back.
    End,
}

impl RestartMode {
    /// Name for scripts and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Evict => "evict",
            Self::Force => "force",
            Self::End => "end",
        }
    }
}

/// Makes a field-less enum whose variants are known by their own names.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every value, in order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The string used in conditions, metrics and events.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

named! {
    /// Name of a step.
    StepName {
        /// Waits.
        Wait,
        /// Nothing to do.
        Settled,
        /// Founds the cluster.
        Bootstrap,
        /// Adds a learner.
        AddLearner,
        /// Tells a node who it is.
        Join,
        /// Copies the disk's marker to its volume claim.
        LabelVolume,
        /// One replica more.
        ScaleOut,
        /// One replica less.
        ScaleIn,
        /// Learner to voter.
        Promote,
        /// Hands leadership over.
        MoveLeader,
        /// Changes the settings of a running member.
        SetConfig,
        /// Takes a voter out of service before it is removed.
        PrepareStop,
        /// Removes a member.
        RemoveMember,
        /// Deletes a volume claim.
        DropVolume,
        /// Deletes or evicts a pod.
        RestartPod,
        /// Deletes the StatefulSet without its pods, to make it anew.
        RecreateSet,
        /// Deletes the StatefulSet.
        DeleteSet,
        /// Deletes the disruption budget.
        DeleteBudget,
        /// Lets the resource go.
        DropFinalizer,
    }
}

named! {
    /// Why a plan waits.
    WaitReason {
        /// The StatefulSet controller has not seen the last change.
        KubernetesLagging,
        /// A membership change or leader transfer is under way.
        ChangeInFlight,
        /// A pod is missing, pending, or its process does not run.
        PodNotRunning,
        /// A restarted or updated member has not rejoined.
        PodNotRejoined,
        /// A pod is being deleted.
        PodTerminating,
        /// The learner is still catching up.
        LearnerBehind,
        /// The learner has not caught up within the deadline.
        LearnerStuck,
        /// The budget is not raised yet, or refuses an eviction.
        DisruptionBudget,
        /// No linearizable answer, though some node answers.
        NoQuorum,
        /// No node answers.
        MembersUnknown,
        /// Paused by the user.
        Paused,
        /// The spec is not valid.
        InvalidSpec,
        /// A member is listed that is none of ours.
        ForeignMember,
        /// A pod reports another cluster id than the latched one.
        ClusterIdMismatch,
        /// Members tell of different memberships, for longer than a change lasts.
        MembersDisagree,
        /// A volume of another cluster or of unclear origin is in the way.
        LeftoverVolume,
        /// A node runs on another member's disk.
        WrongVolume,
        /// A pod cannot be ended, and nothing proves that its host is gone.
        NodeUnreachable,
        /// Acting would leave less than a quorum.
        QuorumAtRisk,
        /// A member is not healthy, so that no voter can be spared.
        MemberUnhealthy,
        /// The cluster was founded, and every disk is empty.
        DataLost,
        /// A majority of the disks is proven lost.
        QuorumLost,
        /// A restarted pod has not rejoined within the deadline.
        RolloutStalled,
        /// The leader has not moved within the deadline.
        LeaderWillNotMove,
        /// A new operator release would roll the pods, and holds.
        OperatorTemplateChanged,
        /// A node ended because its disk is full or fails.
        DiskFailed,
        /// A node ended by a fault of the program.
        Fault,
        /// A member refuses the settings that it was told to change to.
        ConfigRefused,
        /// A member could not be told its settings; it is told again after a while.
        ConfigNotTaken,
        /// A pod could not be restarted, though nothing in the plan stands against it.
        RestartFails,
        /// A volume claim could not be given the labels of its disk; it is tried again after a while.
        LabelFails,
        /// A step has failed for long, and what comes after it waits.
        StepFails,
    }
}

impl WaitReason {
    /// It does not pass by itself.
    pub fn needs_human(self) -> bool {
        matches!(
            self,
            Self::InvalidSpec
                | Self::Paused
                | Self::ForeignMember
                | Self::ClusterIdMismatch
                | Self::MembersDisagree
                | Self::LeftoverVolume
                | Self::WrongVolume
                | Self::NodeUnreachable
                | Self::DataLost
                | Self::QuorumLost
                | Self::LearnerStuck
                | Self::RolloutStalled
                | Self::LeaderWillNotMove
                | Self::DiskFailed
                | Self::ConfigRefused
        )
    }

    /// A call fails that nothing else waits for, and is tried again and again.
    pub fn is_tried_again(self) -> bool {
        matches!(self, Self::ConfigNotTaken | Self::RestartFails | Self::LabelFails)
    }

    /// Condition `Degraded` is True for it.
    pub fn is_degraded(self) -> bool {
        matches!(
            self,
            Self::QuorumAtRisk
                | Self::MemberUnhealthy
                | Self::LearnerStuck
                | Self::RolloutStalled
                | Self::LeaderWillNotMove
                | Self::NodeUnreachable
                | Self::DataLost
                | Self::QuorumLost
                | Self::MembersDisagree
                | Self::DiskFailed
                | Self::Fault
        )
    }
}

impl Step {
    /// Its name.
    pub fn name(&self) -> StepName {
        match self {
            Self::Wait => StepName::Wait,
            Self::Settled => StepName::Settled,
            Self::Bootstrap(_) => StepName::Bootstrap,
            Self::AddLearner { .. } => StepName::AddLearner,
            Self::Join { .. } => StepName::Join,
            Self::LabelVolume { .. } => StepName::LabelVolume,
            Self::ScaleOut { .. } => StepName::ScaleOut,
            Self::ScaleIn { .. } => StepName::ScaleIn,
            Self::Promote { .. } => StepName::Promote,
            Self::MoveLeader { .. } => StepName::MoveLeader,
            Self::SetConfig { .. } => StepName::SetConfig,
            Self::PrepareStop { .. } => StepName::PrepareStop,
            Self::RemoveMember { .. } => StepName::RemoveMember,
            Self::DropVolume { .. } => StepName::DropVolume,
            Self::RestartPod { .. } => StepName::RestartPod,
            Self::RecreateSet { .. } => StepName::RecreateSet,
            Self::DeleteSet { .. } => StepName::DeleteSet,
            Self::DeleteBudget { .. } => StepName::DeleteBudget,
            Self::DropFinalizer { .. } => StepName::DropFinalizer,
        }
    }

    /// What it acts on, as far as the step itself says.
    pub fn target(&self) -> Target {
        let (ordinal, member) = match self {
            Self::Wait
            | Self::Settled
            | Self::Bootstrap(_)
            | Self::RecreateSet { .. }
            | Self::DeleteSet { .. }
            | Self::DeleteBudget { .. }
            | Self::DropFinalizer { .. } => (None, None),
            Self::AddLearner { ordinal, .. } => (Some(*ordinal), None),
            Self::Join { pod, marker, .. }
            | Self::SetConfig { pod, marker, .. }
            | Self::PrepareStop { pod, marker } => (Some(pod.ordinal), Some(marker.raft_id)),
            Self::LabelVolume { volume, label: VolumeLabel::Member(marker) } => {
                (Some(volume.ordinal), Some(marker.raft_id))
            }
            Self::LabelVolume { volume, label: VolumeLabel::Detached } => (Some(volume.ordinal), None),
            Self::ScaleOut { replicas, .. } => (replicas.checked_sub(1), None),
            Self::ScaleIn { replicas, .. } => (Some(*replicas), None),
            Self::Promote { ordinal, raft_id, .. } | Self::RemoveMember { ordinal, raft_id, .. } => {
                (Some(*ordinal), Some(*raft_id))
            }
            Self::MoveLeader { from, ordinal, .. } => (Some(*ordinal), Some(*from)),
            Self::DropVolume { volume, raft_id } => (Some(volume.ordinal), *raft_id),
            Self::RestartPod { pod, .. } => (Some(pod.ordinal), None),
        };
        Target { ordinal, member }
    }

    /// It ends something that cannot be had back: a member, a volume, or the cluster.
    pub fn is_destructive(&self) -> bool {
        matches!(self, Self::RemoveMember { .. } | Self::DropVolume { .. } | Self::ScaleIn { .. })
    }
}
