//! A `RaftCluster` that has passed validation: what the planner and the builders work with.
//!
//! Owns the type only. It is made from the resource in `validate.rs`; nothing here knows the CRD, so the planner can
//! be tested without one. Every field is within its bounds by construction of `validate.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, PodSecurityContext, ResourceRequirements, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The most members a cluster may ask for.
pub const MEMBERS_MAX: u32 = 7;

/// What the user asked for, validated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValidCluster {
    /// Namespace of the resource and of everything built from it.
    pub namespace: String,
    /// Name of the resource; the StatefulSet and the client Service have the same.
    pub name: String,
    /// UID of the resource, for owner references.
    pub uid: String,
    /// `metadata.generation` that this was read at.
    pub generation: i64,
    /// `spec.replicas`, 1 to [`MEMBERS_MAX`].
    pub want: u32,
    /// Container image of the node.
    pub image: String,
    /// `imagePullPolicy`, or the cluster's default.
    pub image_pull_policy: Option<String>,
    /// The DNS domain of the Kubernetes cluster, without a leading dot: `cluster.local`.
    pub cluster_domain: String,
    /// What the volumes look like and how long they stay.
    pub storage: Storage,
    /// Seconds for which a stopping node goes on serving.
    pub drain_delay_seconds: u32,
    /// The user wants no step taken; observing and status go on.
    pub paused: bool,
    /// The spec cannot be carried out: what runs is kept alive, and no disk in order is given up.
    pub repairs_only: bool,
    /// The resource has a deletion timestamp.
    pub deleting: bool,
    /// The annotation `balsa.dev/replace-member`: the raft id that the user wants replaced in place.
    pub replace_member: Option<u64>,
    /// Whether a cluster of one voter has a disruption budget, which then blocks every drain.
    pub protect_single: bool,
    /// The annotation `balsa.dev/roll-operator-template`: pods may be restarted for a template that only a new operator
    /// release changed.
    pub roll_operator_template: bool,
    /// Settings of the node: flag name without dashes, value.
    pub node_config: BTreeMap<String, String>,
    /// Those settings that change while members run, whole and with their defaults: what every member shall have.
    pub hot: BTreeMap<String, String>,
    /// What the user adds to the pods.
    pub pod: PodAdditions,
}

/// The volume of each member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Storage {
    /// Requested size.
    pub size: Quantity,
    /// Storage class, or the cluster's default.
    pub class: Option<String>,
    /// What happens to the volumes of removed members.
    pub retention: RetentionPolicy,
}

/// Retention of volumes by occasion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// When the whole `RaftCluster` is deleted.
    pub when_deleted: Retention,
    /// When a member has been scaled away. `Retain` holds until its ordinal is used again.
    pub when_scaled: Retention,
}

/// Whether a volume outlives its member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// The volume stays.
    #[default]
    Retain,
    /// The volume is deleted, once it is proven that its member is removed.
    Delete,
}

/// Fields of the pod template that are the user's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodAdditions {
    /// Additional labels; the operator's own win.
    pub labels: BTreeMap<String, String>,
    /// Additional annotations.
    pub annotations: BTreeMap<String, String>,
    /// Requests and limits of the node container.
    pub resources: Option<ResourceRequirements>,
    /// Replaces the default preferred anti-affinity.
    pub affinity: Option<Affinity>,
    /// Node selector.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Replaces the default zone spread.
    pub topology_spread: Vec<TopologySpreadConstraint>,
    /// Priority class.
    pub priority_class: Option<String>,
    /// Service account; none means the namespace's default.
    pub service_account: Option<String>,
    /// Security context of the pod.
    pub security_context: Option<PodSecurityContext>,
    /// Secrets to pull the image with.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Additional environment of the node container.
    pub env: Vec<EnvVar>,
}
