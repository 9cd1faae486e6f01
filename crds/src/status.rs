//! What the operator answers: `RaftCluster.status`.
//!
//! Nothing here changes with every write to the cluster, and nothing with every pass of the operator: a settled
//! cluster's status stays byte for byte the same. 64-bit ids are hex strings, because JSON readers lose their low bits.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::RetentionPolicy;

/// What the operator last observed, and its plan.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RaftClusterStatus {
    /// One word for people; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The generation of the spec that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The one cluster this resource may ever be, in hex; written before the first member is founded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Latched once the first member was seen running under `clusterId`; from then on no member is founded again.
    #[serde(default)]
    pub bootstrapped: bool,
    /// `<ready voters>/<wanted>`, as the Ready column shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// Voters that are ready to serve.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods that the StatefulSet is asked for, or that are there while it is made anew, as the scale subresource reports it.
    #[serde(default)]
    pub replicas: i32,
    /// Label selector of the pods, as the scale subresource reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Pod that leads, as far as a majority of the voters agrees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Version that all members run; absent while they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The members as the cluster lists them, by ordinal.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// What the last good spec said of the volumes when the RaftCluster is deleted: `Retain` keeps them, `Delete` deletes them.
    /// A deletion under a spec that is not good deletes them only if both say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RetentionPolicy")]
    pub when_deleted: Option<RetentionPolicy>,
    /// What the operator does next and what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// Available, Progressing, Degraded, Bootstrapped, Updated, Consistent, VolumesReady, QuorumAdvice.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One word for the state of the whole cluster.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No member has been founded yet.
    Bootstrapping,
    /// Members are being added or removed.
    Scaling,
    /// A change is rolled out member by member.
    Updating,
    /// A lost member is being replaced, or members are unhealthy.
    Repairing,
    /// As asked, and settled.
    Running,
    /// The operator's hand is stopped.
    Paused,
    /// No majority serves.
    Unavailable,
    /// The resource is being deleted.
    Deleting,
    /// The spec cannot be carried out; the conditions say why.
    Invalid,
}

/// One member as the cluster lists it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of its pod.
    pub name: String,
    /// Ordinal of its pod.
    pub ordinal: i32,
    /// Its Raft id, hex. Never used again once the member is removed.
    pub raft_id: String,
    /// What it is in the cluster.
    pub role: MemberRole,
    /// Whether its log is close behind the leader's.
    pub caught_up: bool,
    /// Whether it answers and is ready.
    pub healthy: bool,
}

/// What a member is in the cluster.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// Leads: all writes go through it.
    Leader,
    /// Votes and follows.
    Voter,
    /// Receives everything and does not vote yet.
    Learner,
}

/// The operator's plan. It is made anew at every pass from what is observed; nothing of it is remembered.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// The step, like `AddLearner`, or `Wait`, or `Settled`.
    pub step: String,
    /// The member that the step is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PlanTarget>,
    /// Since when this step is the plan.
    pub since: Time,
    /// What holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<BlockedBy>,
    /// What comes after it, at most five.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<String>,
    /// What a person may do, when the plan waits for one or has waited for a minute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub human_may: Vec<String>,
    /// The generation of the spec that the plan is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The member that a step is about.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlanTarget {
    /// Ordinal of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<i32>,
    /// Its Raft id, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
}

/// What holds a plan.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BlockedBy {
    /// Wait reason, like `PodNotRunning`.
    pub reason: String,
    /// What is observed and what would end the wait.
    pub message: String,
}
