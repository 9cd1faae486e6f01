//! Row D1: the `RaftCluster` is deleted. No quorum is needed and no member is asked.

use super::{Decision, NEXT, Notes, Row, View, quorum};
use crate::step::{ObjectRef, RestartMode, Step, WaitReason};
use crate::valid::Retention;

pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    workload(view, notes)?;
    volumes(view)?;
    let resource = &view.observed.resource;
    if resource.finalizer {
        let resource_version = resource.resource_version.clone();
        return Decision::act("D1", Step::DropFinalizer { resource_version }).now();
    }
    Decision::act("D1", Step::Settled).now()
}

/// The StatefulSet, the budget, and then the pods' own end.
fn workload(view: &View<'_>, notes: &mut Notes) -> Row {
    if let Some(set) = view.set() {
        if set.terminating {
            let message = "the StatefulSet is being deleted";
            return Decision::wait("D1", WaitReason::KubernetesLagging, message).now();
        }
        let set = ObjectRef { uid: set.uid.clone(), resource_version: set.resource_version.clone() };
        return Decision::act("D1", Step::DeleteSet { set }).now();
    }
    if let Some(budget) = &view.observed.budget {
        let budget = ObjectRef { uid: budget.uid.clone(), resource_version: budget.resource_version.clone() };
        return Decision::act("D1", Step::DeleteBudget { budget }).now();
    }
    quorum::stuck_terminating(view, notes)?;
    if let Some(wait) = notes.first.take() {
        return wait.now();
    }
    // Nobody else ends pods that lost their StatefulSet: it was to be made anew (R1), or a person has orphaned them.
    let orphan = view.observed.pods.iter().find(|(_, pod)| pod.orphan && pod.terminating.is_none());
    if let Some(pod) = orphan.and_then(|(k, _)| view.pod_ref(*k)) {
        let step = Step::RestartPod { pod, mode: RestartMode::End, writes_pause: false };
        return Decision::act("D1", step).now();
    }
    match view.observed.pods.len() {
        0 => NEXT,
        left => Decision::wait("D1", WaitReason::PodTerminating, format!("{left} pods are going")).now(),
    }
}

/// Policy Delete: every volume with our cluster id. Others, and all under Retain, stay (M1).
fn volumes(view: &View<'_>) -> Row {
    if view.cluster.storage.retention.when_deleted == Retention::Retain {
        return NEXT;
    }
    let Some(cluster_id) = view.observed.resource.cluster_id else { return NEXT };
    let ours = |marker: crate::observed::Marker| marker.cluster_id == cluster_id;
    for (k, volume) in view.observed.volumes.iter().filter(|(_, v)| v.marker.is_some_and(ours)) {
        if volume.terminating {
            let message = format!("the volume of pod {k} is being deleted");
            return Decision::wait("D1", WaitReason::PodTerminating, message).on(*k, None).now();
        }
        if let Some(volume) = view.volume_ref(*k) {
            return Decision::act("D1", Step::DropVolume { volume, raft_id: None }).now();
        }
    }
    NEXT
}
