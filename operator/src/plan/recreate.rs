//! Row R1: a StatefulSet with a field that Kubernetes lets nobody change is made anew around its pods. The last row: while
//! there is no set, a pod that is lost stays lost.

use super::{Decision, NEXT, Notes, Row, View, initial_replicas};
use crate::step::Step;

/// R1: P1, P3, P2; every member serves and nothing else is under way. It is deleted without its pods, and B2 makes it again.
pub(super) fn rows(view: &View<'_>, notes: &Notes) -> Row {
    let Some(set) = view.set().filter(|set| !set.fixed.is_empty()) else { return NEXT };
    // Made anew it has the template of this release: that is what U8 holds back.
    if notes.first.is_some() || set.template_held || !is_at_rest(view) {
        return NEXT;
    }
    match view.set_ref() {
        Some(set_ref) => Decision::act("R1", Step::RecreateSet { set: set_ref, fields: set.fixed.clone() }).now(),
        None => NEXT,
    }
}

/// Exactly the wanted pods and members are there, as the set has them, each on the volume that a set of ours gives it: what is
/// made from them is the same set. The claims of another set may have other names, and ours would start on empty disks. A
/// volume beyond them that is, or may be, a member's would make the new set larger than this one (B2).
fn is_at_rest(view: &View<'_>) -> bool {
    let want = view.want();
    let pods =
        view.observed.pods.iter().all(|(k, pod)| *k < want && pod.terminating.is_none() && !view.is_outdated(*k));
    let voters = view.voters().filter(|(k, id, member)| view.is_serving(*k, *id, member)).count();
    let disks = view.voters().all(|(k, id, _)| view.is_labelled_for(k, id));
    let same_size = initial_replicas(view.cluster, view.observed) == want;
    pods && disks
        && same_size
        && view.have() == want
        && view.members().count() == want as usize
        && voters == want as usize
}
