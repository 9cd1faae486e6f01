//! The Rust types of Balsa's Kubernetes resources, group `balsa.dev`.
//!
//! Owns the shape of what a user writes (`spec`), of what the operator answers (`status`), and the rules that the API
//! server enforces (CEL, each with a message that says what to do). The YAML in `crds/generated/` is generated from
//! these types. Must not know how the operator works, nor anything of the node but the names of its settings.

#[allow(unreachable_pub, reason = "the schema derive makes helper types of its own")]
mod spec;
#[allow(unreachable_pub, reason = "the schema derive makes helper types of its own")]
mod status;

pub use spec::{
    NodeConfig, PodTemplate, RaftCluster, RaftClusterSpec, Retention, RetentionPolicy, Scheduling, Storage,
};
pub use status::{BlockedBy, MemberRole, MemberStatus, Phase, PlanStatus, PlanTarget, RaftClusterStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// API group of all resources of this crate.
pub const GROUP: &str = "balsa.dev";
/// The finalizer of a `RaftCluster`: its volumes are handled before the object goes.
pub const FINALIZER: &str = "balsa.dev/volumes";
/// Voters a cluster may have at most. Beyond seven a write waits for more disks and tolerates hardly more.
pub const MAX_REPLICAS: i32 = 7;
/// Longest name of a `RaftCluster`: the StatefulSet controller puts `<name>-<10 characters>` into a label of 63.
pub const MAX_NAME_LENGTH: usize = 52;

/// The definition of `RaftCluster` as the API server takes it.
pub fn raft_cluster_definition() -> CustomResourceDefinition {
    let mut definition = RaftCluster::crd();
    definition.metadata.labels = Some([("app.kubernetes.io/name".to_owned(), "balsa".to_owned())].into());
    definition
}

/// The definition as YAML, with the line that says where it comes from. Byte for byte what
/// `crds/generated/raftclusters.balsa.dev.yaml` holds.
///
/// # Errors
/// Only when the definition cannot be written as YAML, which a test of this crate rules out.
pub fn raft_cluster_yaml() -> Result<String, serde_yaml::Error> {
    let yaml = serde_yaml::to_string(&raft_cluster_definition())?;
    Ok(format!("# Generated from crds/src; do not edit. `make generate` rewrites it.\n{yaml}"))
}

#[cfg(test)]
mod tests;
