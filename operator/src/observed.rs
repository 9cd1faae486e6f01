//! Everything that one pass reads before it decides: the input of the planner and of the builders.
//!
//! Owns plain values without any client type. *Unknown* is a value of its own: an object that could not be read is
//! never shown as absent. `observe.rs` fills it; objects that a step may write carry the UID and resourceVersion
//! they were read at, so that the write can be refused when they have changed.
//!
//! Times are seconds since the Unix epoch. `now` is part of the observation, so that planning needs no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::names::{self, LABEL_RAFT_ID};

/// Seconds since the Unix epoch.
pub type UnixSeconds = i64;

/// One pass's reading. The default is an empty world in which nothing exists and nothing answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// When the pass began.
    pub now: UnixSeconds,
    /// A random non-zero number drawn anew in every pass: the id of a cluster that this pass may found.
    pub fresh_id: u64,
    /// The `RaftCluster` as read.
    pub resource: ObservedResource,
    /// The StatefulSet; `None` means that the API server said there is none.
    pub set: Option<ObservedSet>,
    /// Pods by ordinal, orphans included.
    pub pods: BTreeMap<u32, ObservedPod>,
    /// Why the StatefulSet's controller could not make a pod that is not there, in its own words, by ordinal.
    pub unmade: BTreeMap<u32, String>,
    /// Volume claims `data-<name>-<ordinal>` by ordinal, with or without labels.
    pub volumes: BTreeMap<u32, ObservedVolume>,
    /// What `Node.State` of each pod's node said. No entry is read as [`NodeReport::Unreachable`].
    pub nodes: BTreeMap<u32, NodeReport>,
    /// The linearizable list of members; `None` if nobody gave one in this pass.
    pub members: Option<MemberList>,
    /// Who told of another membership than `members`.
    pub dissent: Option<Dissent>,
    /// The PodDisruptionBudget; `None` means that there is none.
    pub budget: Option<ObservedBudget>,
    /// Whether the EndpointSlices of the client Service hold a ready member; `None` if they were not read. They are read only
    /// before the cluster is Available for the first time, and nothing but that condition goes by them.
    pub served: Option<bool>,
    /// Calls of earlier passes that brought nothing about: not read, and only for choosing when to try again.
    pub failures: Failures,
}

/// See [`crate::failures`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Members that were told their settings and may not have taken them over, by ordinal.
    pub settings: BTreeMap<u32, Failure>,
    /// Pods that could not be restarted, or whose leader would not move for it, by ordinal.
    pub restarts: BTreeMap<u32, Failure>,
    /// Volume claims that could not be labelled, by ordinal.
    pub labels: BTreeMap<u32, Failure>,
}

/// A call that brings nothing about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// UID of the pod or the volume claim that it was about.
    pub uid: String,
    /// What the member was told, or the labels; nothing where it is about a restart.
    pub told: BTreeMap<String, String>,
    /// When it failed first.
    pub since: UnixSeconds,
    /// When it failed last.
    pub last: UnixSeconds,
    /// What the last error said.
    pub message: String,
}

/// The parts of the `RaftCluster`'s metadata and status that planning remembers by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedResource {
    /// `metadata.resourceVersion`, for the writes of status and finalizer.
    pub resource_version: String,
    /// Whether our finalizer is on it.
    pub finalizer: bool,
    /// `status.clusterId`, latched before the first `Bootstrap` call.
    pub cluster_id: Option<u64>,
    /// Condition `Bootstrapped` is True; latched, never cleared.
    pub bootstrapped: bool,
    /// Condition `Available` has been True.
    pub was_available: bool,
    /// `status.plan` of the last pass that wrote it.
    pub plan: Option<PlanLatch>,
}

/// What `status.plan` said last. It is how long a state has lasted, which no process memory may tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanLatch {
    /// `StepName::as_str`.
    pub step: String,
    /// `WaitReason::as_str` of `blockedBy`.
    pub reason: Option<String>,
    /// Target ordinal.
    pub ordinal: Option<u32>,
    /// Target raft id.
    pub member: Option<u64>,
    /// When this matter began.
    pub since: UnixSeconds,
}

/// The field of a StatefulSet by which it finds its pods.
pub const SELECTOR: &str = "selector";

/// The StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedSet {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `spec.replicas`.
    pub replicas: u32,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`.
    pub observed_generation: i64,
    /// `status.updateRevision`.
    pub update_revision: Option<String>,
    /// Image of the node in the template.
    pub image: Option<String>,
    /// The operator's own fingerprint of the template that was applied last.
    pub template_hash: Option<String>,
    /// This release of the operator would build another template for the same spec, and holds it back.
    pub template_held: bool,
    /// The fields in which it is not as wanted, although nobody can change them. With [`SELECTOR`] among them nothing of it is
    /// written before it is made anew.
    pub fixed: Vec<&'static str>,
    /// Its claims have other names than ours, or there are none: a pod that it makes has another volume than the one that we
    /// know by its name.
    pub other_claims: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPod {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.creationTimestamp`.
    pub created: UnixSeconds,
    /// `status.phase`.
    pub phase: PodPhase,
    /// State of the node container.
    pub container: ContainerState,
    /// Condition Ready is True.
    pub ready: bool,
    /// Since when condition Ready is what it is, by the clock of its host; 0 if that is not told.
    pub ready_since: UnixSeconds,
    /// The typed code with which the node ended last (current or last termination), and its marker.
    pub exit: Option<NodeExit>,
    /// `metadata.deletionTimestamp`: when the grace period ends.
    pub terminating: Option<UnixSeconds>,
    /// `metadata.deletionGracePeriodSeconds` is 0: its host has said that it has ended, or it was forced out.
    pub forced: bool,
    /// `metadata.finalizers` has some: its object stays until they are gone, whatever ends it.
    pub held: bool,
    /// No controller owns it.
    pub orphan: bool,
    /// `spec.nodeName`.
    pub host: Option<Host>,
    /// Label `controller-revision-hash`.
    pub revision: Option<String>,
    /// Image that it was made with.
    pub image: Option<String>,
    /// Condition PodScheduled is False with reason Unschedulable; since when.
    pub unschedulable: Option<UnixSeconds>,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPhase {
    /// Not all containers have started.
    #[default]
    Pending,
    /// Bound, containers started.
    Running,
    /// Ended with 0.
    Succeeded,
    /// Ended with an error, or evicted.
    Failed,
    /// The kubelet is silent.
    Unknown,
}

/// State of the node container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContainerState {
    /// No container status yet.
    #[default]
    Absent,
    /// Waiting, with Kubernetes' reason (`ImagePullBackOff`, `CrashLoopBackOff`, …).
    Waiting(String),
    /// The process runs.
    Running,
    /// The process has ended with this code.
    Terminated(i32),
}

/// The Kubernetes node that a pod or a volume is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Name of the Node object.
    pub name: String,
    /// What the API says of it.
    pub state: HostState,
}

/// What is known of a Kubernetes node. Only `Gone` and `OutOfService` prove that no process runs there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostState {
    /// Not read, or Nodes may not be read. Unreachable nodes are `Present`.
    #[default]
    Unknown,
    /// The Node object exists.
    Present,
    /// The Node object is deleted.
    Gone,
    /// Tainted `node.kubernetes.io/out-of-service`.
    OutOfService,
}

/// How a node ended, from its exit code and termination message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeExit {
    /// The typed code.
    pub kind: ExitKind,
    /// The marker it wrote into the termination message, if it could read one.
    pub marker: Option<Marker>,
}

/// The exit codes of the node contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// 70: the disk is empty, but the member has started before.
    DiskLost,
    /// 71: the disk's member was removed.
    MemberRemoved,
    /// 72: the disk belongs to another member or cluster.
    WrongDisk,
    /// 73: the disk is damaged.
    Corrupt,
    /// 74: the disk is full or fails.
    DiskFailed,
    /// 75: a fault of the program; a restart may help.
    Fault,
}

impl ExitKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::DiskLost, Self::MemberRemoved, Self::WrongDisk, Self::Corrupt, Self::DiskFailed, Self::Fault];

    /// The exit code of the process.
    pub fn code(self) -> i32 {
        match self {
            Self::DiskLost => 70,
            Self::MemberRemoved => 71,
            Self::WrongDisk => 72,
            Self::Corrupt => 73,
            Self::DiskFailed => 74,
            Self::Fault => 75,
        }
    }

    /// The kind of an exit code, if it is one of the contract's.
    pub fn of_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Its name, as the node writes it into its last words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiskLost => "DiskLost",
            Self::MemberRemoved => "MemberRemoved",
            Self::WrongDisk => "WrongDisk",
            Self::Corrupt => "Corrupt",
            Self::DiskFailed => "DiskFailed",
            Self::Fault => "Fault",
        }
    }

    /// What it means, for a person.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::DiskLost => "its disk is empty although it has run before",
            Self::MemberRemoved => "its disk belongs to a removed member",
            Self::WrongDisk => "its disk belongs to another member or cluster",
            Self::Corrupt => "a file of its disk is damaged",
            Self::DiskFailed => "its disk is full or fails",
            Self::Fault => "a thread of the program panicked",
        }
    }
}

/// What a disk says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The cluster it belongs to.
    pub cluster_id: u64,
    /// The member it belongs to.
    pub raft_id: u64,
    /// Which disk of that member it is.
    pub incarnation: u64,
}

/// One volume claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedVolume {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Labels `balsa.dev/{cluster-id,raft-id,incarnation}`, if all are there and well-formed.
    pub marker: Option<Marker>,
    /// Some of these labels are there, and do not make a marker: nobody can tell whose it is.
    pub unclear: bool,
    /// The label `balsa.dev/detached` is there.
    pub detached: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// The only Kubernetes node that its volume can be used on, for local volumes.
    pub pinned: Option<Host>,
}

/// The answer of `Node.State`, or its absence. A silent node is unknown, not down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one per node and most of them answer: a box would only be in the way")]
pub enum NodeReport {
    /// No answer within the call timeout.
    #[default]
    Unreachable,
    /// What it said.
    Answered(NodeState),
}

/// `StateResponse` in plain form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// State MEMBER and its marker; `None` is UNINITIALIZED.
    pub marker: Option<Marker>,
    /// Member name.
    pub name: String,
    /// Version of the node.
    pub version: String,
    /// A voter by its own knowledge.
    pub voter: bool,
    /// Raft id of the leader it follows, 0 if none.
    pub leader: u64,
    /// Its term.
    pub term: u64,
    /// Its commit index.
    pub commit_index: u64,
    /// Its applied index.
    pub applied_index: u64,
    /// Membership index it has applied.
    pub membership_index: u64,
    /// Serves linearizable reads and is not stopping.
    pub ready: bool,
    /// Draining.
    pub stopping: bool,
    /// Fingerprint of its active configuration.
    pub config_hash: String,
    /// Its settings that can change at run time; `None` if it did not tell them.
    pub settings: Option<Settings>,
    /// It is of a release that has no call for them: what it has is what it read when it started.
    pub keeps_settings: bool,
}

/// `GetConfigResponse` in plain form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Grows with every change.
    pub version: u64,
    /// What is active, by the names of flags.
    pub values: BTreeMap<String, String>,
    /// The last push, if it was refused, and why.
    pub refused: Option<(BTreeMap<String, String>, String)>,
}

impl Settings {
    /// Whether all of these are active.
    pub fn are(&self, wanted: &BTreeMap<String, String>) -> bool {
        wanted.iter().all(|(name, value)| self.values.get(name) == Some(value))
    }

    /// Why exactly these were refused.
    pub fn refusal_of(&self, wanted: &BTreeMap<String, String>) -> Option<&str> {
        self.refused.as_ref().filter(|(refused, _)| refused == wanted).map(|(_, why)| why.as_str())
    }
}

/// `ListResponse` in plain form: linearizable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberList {
    /// The cluster that answered.
    pub cluster_id: u64,
    /// Every change is fenced by it.
    pub membership_index: u64,
    /// Raft id of the leader, 0 if unknown.
    pub leader: u64,
    /// The leader's term.
    pub term: u64,
    /// The leader's commit index.
    pub commit_index: u64,
    /// A joint configuration, an unapplied change, or a leader transfer is under way.
    pub change_in_flight: bool,
    /// Members by raft id.
    pub members: BTreeMap<u64, Member>,
    /// Ids that were members once and never will be again.
    pub removed: BTreeSet<u64>,
    /// The alarms that are raised, and by which member, in the order of their kinds.
    pub alarms: BTreeSet<(Alarm, u64)>,
}

/// Nodes that told of another membership than the list that is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dissent {
    /// Their ordinals; those of all who told of one where no majority decides.
    pub pods: BTreeSet<u32>,
    /// A majority of all the voters that anybody names gives the list. Else it is only the newest one, and nobody may go by it.
    pub outvoted: bool,
}

/// An alarm that a member has raised for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// Data differ between members: nothing that changes keys is taken.
    Corrupt,
    /// The quota is used up: nothing that needs space is taken.
    NoSpace,
}

impl Alarm {
    /// The condition reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Corrupt => "Corrupt",
            Self::NoSpace => "NoSpace",
        }
    }
}

/// One listed member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Name it published, empty before it started.
    pub name: String,
    /// Peer URLs; they tell the ordinal.
    pub peer_urls: Vec<String>,
    /// Has no vote.
    pub learner: bool,
    /// Has once run as this member.
    pub started: bool,
    /// What the leader knows of it. `None` for the leader itself or if the leader did not say.
    pub progress: Option<Progress>,
}

/// The leader's view of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Last index known to be in its log.
    pub match_index: u64,
    /// Heard from within the last election timeout.
    pub active: bool,
    /// A snapshot is being sent to it.
    pub snapshot_running: bool,
    /// Within the lag bound and no snapshot running.
    pub caught_up: bool,
    /// How long neither its match index nor a snapshot to it has moved; 0 while it holds the whole log.
    pub still_seconds: i64,
}

/// The PodDisruptionBudget as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedBudget {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `spec.minAvailable`, if it is an integer.
    pub min_available: Option<u32>,
}

impl Observed {
    /// Takes over what failed in earlier passes. A volume claim that could not be given the labels of its disk has labels
    /// that do not tell whose it is, until they are what they should be.
    pub fn remember(&mut self, failures: Failures) {
        for (k, failure) in failures.labels.iter().filter(|(_, failure)| failure.told.contains_key(LABEL_RAFT_ID)) {
            let Some(volume) = self.volumes.get_mut(k).filter(|volume| volume.uid == failure.uid) else { continue };
            if volume.marker.is_none_or(|marker| names::marker_labels(marker) != failure.told) {
                (volume.marker, volume.unclear) = (None, true);
            }
        }
        self.failures = failures;
    }

    /// What the node of ordinal `k` answered, if it did.
    pub fn node(&self, k: u32) -> Option<&NodeState> {
        match self.nodes.get(&k) {
            Some(NodeReport::Answered(state)) => Some(state),
            Some(NodeReport::Unreachable) | None => None,
        }
    }
}

impl ObservedVolume {
    /// It is, or may be, a member's.
    pub fn is_labelled(&self) -> bool {
        self.marker.is_some() || self.unclear
    }
}

impl ObservedPod {
    /// The node process runs and the pod is not being deleted.
    pub fn is_running(&self) -> bool {
        self.container == ContainerState::Running && self.terminating.is_none()
    }

    /// All that could be done to end it is done, and its finalizers alone keep the object: forcing it out changes nothing.
    pub fn is_kept_by_finalizers(&self) -> bool {
        self.forced && self.held
    }
}

impl Host {
    /// P8: proof that no process of this host can vote or write any more.
    pub fn is_proven_gone(&self) -> bool {
        matches!(self.state, HostState::Gone | HostState::OutOfService)
    }
}
