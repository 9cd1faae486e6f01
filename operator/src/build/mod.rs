//! What should exist: (`ValidCluster`, `Observed`) → [`Desired`]. Pure, one file per kind.
//!
//! Nothing here is ever written by itself; `apply` is the only reader. Objects carry no UID and no resourceVersion:
//! `apply` adds those it has read.

pub mod budget;
mod config_map;
mod fingerprint;
mod service_account;
mod services;
mod stateful_set;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub use config_map::variables;
pub use fingerprint::{FIXED_HASH, SPEC_HASH, TEMPLATE_HASH};
pub use stateful_set::arguments;

use crate::names;
use crate::observed::Observed;
use crate::valid::ValidCluster;

/// Every object of a cluster but those that its controllers make: pods, volumes, revisions.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Identity of the pods, without any rights; absent when the user names another.
    pub service_account: Option<ServiceAccount>,
    /// Settings of the node.
    pub config_map: ConfigMap,
    /// Headless Service by which peers find each other.
    pub peer_service: Service,
    /// Bound on voluntary disruption; absent when there must be none.
    pub budget: Option<PodDisruptionBudget>,
    /// The pods. Its replicas are what it is to be *created* with; an existing set keeps its own.
    pub stateful_set: StatefulSet,
    /// Service of the clients.
    pub client_service: Service,
}

/// Builds everything.
pub fn build(cluster: &ValidCluster, observed: &Observed) -> Desired {
    let config_map = config_map::build(cluster);
    Desired {
        service_account: service_account::build(cluster),
        stateful_set: stateful_set::build(cluster, observed, &config_map),
        config_map,
        peer_service: services::peers(cluster),
        budget: budget::build(cluster, observed),
        client_service: services::clients(cluster, observed.resource.bootstrapped),
    }
}

/// Whether this release of the operator would build another template for the same spec, so that writing it would
/// restart pods that nobody asked to restart (M19). `applied` are the annotations of the StatefulSet.
pub fn is_template_held(
    cluster: &ValidCluster,
    desired: &StatefulSet,
    applied: Option<&BTreeMap<String, String>>,
) -> bool {
    let Some(applied) = applied else { return false };
    let new = desired.metadata.annotations.as_ref();
    let same = |key: &str| match (applied.get(key), new.and_then(|new| new.get(key))) {
        (Some(old), Some(new)) => old == new,
        // A set that was never fingerprinted holds nothing back.
        _ => false,
    };
    !cluster.roll_operator_template && same(SPEC_HASH) && applied.contains_key(TEMPLATE_HASH) && !same(TEMPLATE_HASH)
}

/// Name, namespace, labels and owner of an object of this cluster.
fn metadata(cluster: &ValidCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(names::labels(&cluster.name)),
        owner_references: Some(vec![owner(cluster)]),
        ..ObjectMeta::default()
    }
}

/// The resource as owner, so that what is left goes with it. Volumes never carry it (M1).
fn owner(cluster: &ValidCluster) -> OwnerReference {
    OwnerReference {
        api_version: "balsa.dev/v1alpha1".to_owned(),
        kind: "RaftCluster".to_owned(),
        name: cluster.name.clone(),
        uid: cluster.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

#[cfg(test)]
mod tests;
