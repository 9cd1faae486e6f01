//! The bound on voluntary disruption: evictions must leave a quorum of the voters, at every stage of every change.
//!
//! All pods of the cluster are selected, because a role label would go stale while the operator is down. Learners are
//! never ready and do not count. `minAvailable` is a number, never `maxUnavailable`, whose base shrinks as members go.

use std::collections::BTreeSet;

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::names;
use crate::observed::{MemberList, Observed};
use crate::valid::ValidCluster;

/// What becomes of the budget in this pass.
#[derive(Clone, Debug, PartialEq)]
pub enum DesiredBudget {
    /// Stays as it is, whatever it is: the voters are not known, or lowering it is not yet safe.
    Unchanged,
    /// One voter: a budget would only block its node's drain.
    Absent,
    /// As built.
    Present(Box<PodDisruptionBudget>),
}

pub(super) fn build(cluster: &ValidCluster, observed: &Observed) -> DesiredBudget {
    let Some(list) = &observed.members else { return DesiredBudget::Unchanged };
    let wanted = wanted(cluster, list);
    let current = observed.budget.as_ref().and_then(|budget| budget.min_available);
    let lowers = current.is_some_and(|current| wanted.is_none_or(|wanted| wanted < current));
    if lowers && removed_pod_is_ready(cluster, observed, list) {
        return DesiredBudget::Unchanged;
    }
    match wanted {
        Some(minimum) => DesiredBudget::Present(Box::new(object(cluster, minimum))),
        None => DesiredBudget::Absent,
    }
}

/// Quorum of the voters, and of one more as soon as a learner is about to become one.
fn wanted(cluster: &ValidCluster, list: &MemberList) -> Option<u32> {
    let voters = list.members.values().filter(|member| !member.learner).count();
    let about_to_vote = list.members.values().any(|m| m.learner && m.progress.is_some_and(|p| p.caught_up));
    let voters = u32::try_from(voters).unwrap_or(u32::MAX).saturating_add(about_to_vote.into());
    (voters > 1 || cluster.protect_single).then_some(voters / 2 + 1)
}

/// A ready pod whose member is no voter any more still counts as available, though it can no longer vote: as long as
/// one is there, the higher budget is the honest one.
fn removed_pod_is_ready(cluster: &ValidCluster, observed: &Observed, list: &MemberList) -> bool {
    let voters: BTreeSet<u32> = list
        .members
        .values()
        .filter(|member| !member.learner)
        .filter_map(|member| member.peer_urls.iter().find_map(|url| names::peer_url_ordinal(cluster, url)))
        .collect();
    observed.pods.iter().any(|(ordinal, pod)| pod.ready && !voters.contains(ordinal))
}

fn object(cluster: &ValidCluster, minimum: u32) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(cluster, names::budget(&cluster.name)),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(minimum).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector { match_labels: Some(names::labels(&cluster.name)), ..LabelSelector::default() }),
            // Otherwise one pod that never becomes ready would block every drain for ever.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
