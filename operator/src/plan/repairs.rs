//! G2 for a cluster that runs: its spec cannot be carried out, and it is kept alive as it is.
//!
//! Pods are made from the template and the settings that were applied last; nothing new is begun, and what was begun is
//! finished, but for a scaling in: its ordinal and its volume stay (X8). A release of the operator that refuses what the one
//! before took must not leave a lost member where it is.

use super::{View, invalid_spec, plan};
use crate::observed::Observed;
use crate::step::{Blocked, Plan, Step, WaitReason};
use crate::valid::ValidCluster;

/// The cluster was founded and has its StatefulSet: there is something to keep alive, and something to make pods from.
pub fn is_founded(observed: &Observed) -> bool {
    let resource = &observed.resource;
    resource.bootstrapped && resource.cluster_id.is_some() && observed.set.is_some()
}

/// The size to keep: the one that the StatefulSet has, and an ordinal whose coming has begun.
///
/// An ordinal is never let go. Whether its member was removed to be scaled away or to be replaced cannot be told from what
/// is there, so it gets a new one (C4) only where nothing is lost by it.
pub fn kept_size(cluster: &ValidCluster, observed: &Observed) -> u32 {
    let view = View::new(cluster, observed);
    let (want, have) = (view.want(), view.have());
    // O3, I10: its member is listed, its pod is to come.
    let listed = view.members().next_back().map_or(0, |(k, ..)| k.saturating_add(1));
    listed.clamp(have, want.max(have))
}

/// The plan for it. What is wrong with the spec stands in it where nothing else does, for that other wait has a clock to
/// keep; the condition `Updated` tells it in any case.
pub fn repairs(cluster: &ValidCluster, observed: &Observed, message: String) -> Plan {
    let mut plan = plan(cluster, observed);
    match (&plan.step, &plan.blocked_by) {
        (Step::Settled, _) => return invalid_spec(observed, message),
        // It does not say what is wrong.
        (Step::Wait, Some(blocked)) if blocked.reason == WaitReason::InvalidSpec => {
            plan.human_may = vec![format!("correct the spec: {message}")];
        }
        (Step::Wait, _) => plan.human_may.push(format!("correct the spec: {message}")),
        (_, None) => plan.blocked_by = Some(Blocked { reason: WaitReason::InvalidSpec, message }),
        (_, Some(_)) => {}
    }
    plan
}
