//! The bound on voluntary disruption: evictions must leave a quorum of the voters, at every stage of every change.
//!
//! How many that is, is the planner's to say, since it also waits for the number. All pods of the cluster are selected,
//! because a role label would go stale while the operator is down; learners are never ready and do not count.
//! `minAvailable` is a number, never `maxUnavailable`, whose base shrinks as members go.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::names;
use crate::observed::Observed;
use crate::plan::min_available;
use crate::valid::ValidCluster;

/// None for one voter: it would only block its node's drain.
pub fn build(cluster: &ValidCluster, observed: &Observed) -> Option<PodDisruptionBudget> {
    let minimum = min_available(cluster, observed)?;
    let selector = LabelSelector { match_labels: Some(names::labels(&cluster.name)), ..LabelSelector::default() };
    Some(PodDisruptionBudget {
        metadata: metadata(cluster, names::budget(&cluster.name)),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(minimum).unwrap_or(i32::MAX))),
            selector: Some(selector),
            // Otherwise one pod that never becomes ready would block every drain for ever.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}
