//! Row R1: a StatefulSet with a field that Kubernetes lets nobody change is made anew around its pods. The last row: while
//! there is no set, a pod that is lost stays lost.

use super::{Decision, NEXT, Notes, Row, View, initial_replicas};
use crate::names;
use crate::observed::{Marker, ObservedSet, SELECTOR};
use crate::step::{Step, WaitReason};

/// R1: P1, P3, P2; every member serves and nothing else is under way. It is deleted without its pods, and B2 makes it again.
pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    let Some(set) = view.set().filter(|set| !set.fixed.is_empty()) else { return NEXT };
    // Made anew it has the template of this release: that is what U8 holds back.
    if notes.first.is_some() || set.template_held || !is_at_rest(view) {
        return NEXT;
    }
    if let Some(wait) = without_claim(view, set) {
        notes.wait_last(wait);
        return NEXT;
    }
    // Labels that are missing are written, or it is told who refuses them.
    if !view.voters().all(|(k, id, _)| view.is_labelled_for(k, id)) {
        return NEXT;
    }
    // B2 would make a larger set than this one.
    if initial_replicas(view.cluster, view.observed) != view.want() {
        in_the_way(view, set).into_iter().for_each(|wait| notes.wait_last(wait));
        return NEXT;
    }
    match view.set_ref() {
        Some(set_ref) => Decision::act("R1", Step::RecreateSet { set: set_ref, fields: set.fixed.clone() }).now(),
        None => NEXT,
    }
}

/// Exactly the wanted pods and members are there, as the set has them: what is made from them is the same set.
fn is_at_rest(view: &View<'_>) -> bool {
    let want = view.want();
    let pods =
        view.observed.pods.iter().all(|(k, pod)| *k < want && pod.terminating.is_none() && !view.is_outdated(*k));
    let voters = view.voters().filter(|(k, id, member)| view.is_serving(*k, *id, member)).count();
    pods && view.have() == want && view.members().count() == want as usize && voters == want as usize
}

/// A member without the claim that a set of ours gives its pod: somebody took it away under the pod. It does not come back by
/// itself, and nothing else tells of it before the pod starts on an empty disk.
fn without_claim(view: &View<'_>, set: &ObservedSet) -> Option<Decision> {
    let (k, id, _) = view.voters().find(|(k, ..)| view.volume(*k).is_none())?;
    let claim = names::volume(&view.cluster.name, k);
    let message = not_made_anew(set, &format!("volume claim {claim} of member {id:x} is missing"));
    Some(Decision::wait("R1", WaitReason::WrongVolume, message).on(k, Some(id)))
}

/// The volume beyond the set that is, or may be, a member's, so that the new set would make a pod for it. With another selector the
/// template waits with the set: then nothing that a user changes reaches a pod.
fn in_the_way(view: &View<'_>, set: &ObservedSet) -> Option<Decision> {
    let mut beyond = view.observed.volumes.range(view.want()..).rev();
    let (k, volume) = beyond.find(|(_, volume)| volume.is_labelled() && !volume.detached)?;
    let (reason, why) = match volume.marker {
        _ if volume.terminating => (WaitReason::PodTerminating, "is being deleted".to_owned()),
        Some(Marker { raft_id, cluster_id, .. }) => {
            let why = format!("is of member {raft_id:x} of cluster {cluster_id:x}, which was not removed here");
            (WaitReason::LeftoverVolume, why)
        }
        None => (WaitReason::LeftoverVolume, "has labels that do not tell whose it is".to_owned()),
    };
    let claim = names::volume(&view.cluster.name, *k);
    let message = not_made_anew(set, &format!("volume claim {claim} {why}"));
    Some(Decision::wait("R1", reason, message).on(*k, None))
}

fn not_made_anew(set: &ObservedSet, so_long: &str) -> String {
    let fields = set.fixed.join(", ");
    let held = if set.fixed.contains(&SELECTOR) { "; until then no change of the spec reaches a pod" } else { "" };
    format!("the StatefulSet has another {fields} than wanted and is not made anew while {so_long}{held}")
}
