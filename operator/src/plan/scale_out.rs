//! Rows O1 to O3: one ordinal more. The member is listed before its pod exists.

use super::{Decision, NEXT, Notes, Row, View};
use crate::names;
use crate::step::{Step, WaitReason};

/// O3: `m(have)` is listed and never started; its pod may come. P1, P2.
pub(super) fn grow_set(view: &View<'_>, notes: &mut Notes) -> Row {
    let have = view.have();
    let Some((id, member)) = view.member(have) else { return NEXT };
    if have >= view.want() || member.started {
        return NEXT;
    }
    // I8: the ordinal's former pod must be gone.
    if view.pod(have).is_some() {
        let message = format!("the former pod {have} is not gone");
        notes.hold(Decision::wait("I8", WaitReason::PodTerminating, message).on(have, Some(id)));
        return NEXT;
    }
    leftover(view, notes, have)?;
    let unlabelled = view.volume(have).is_none_or(|volume| !volume.is_labelled() && !volume.terminating);
    match view.set_ref() {
        Some(set) if unlabelled => Decision::act("O3", Step::ScaleOut { set, replicas: have.saturating_add(1) }).now(),
        _ => NEXT,
    }
}

/// O1, O2: the next ordinal is wanted.
pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    let have = view.have();
    if have >= view.want() || notes.hold_scale_out || view.member(have).is_some() {
        return NEXT;
    }
    leftover(view, notes, have)?;
    if view.volume(have).is_some_and(|volume| volume.is_labelled() || volume.terminating) {
        return NEXT;
    }
    // O2: P1, P3, all voters healthy.
    if view.learners().next().is_some() {
        let message = format!("pod {have} gets a member when the present learner is a voter");
        notes.wait(Decision::wait("O2", WaitReason::LearnerBehind, message).on(have, None));
        return NEXT;
    }
    if let Some(k) = view.voters_not_serving(0).first() {
        let message = format!("pod {k} does not serve; no member is added before it does");
        let id = view.member(*k).map(|(id, _)| id);
        notes.wait(Decision::wait("O2", WaitReason::MemberUnhealthy, message).on(*k, id));
        return NEXT;
    }
    let peer_url = names::peer_url(view.cluster, have);
    let membership_index = view.membership_index();
    Decision::act("O2", Step::AddLearner { ordinal: have, peer_url, membership_index }).now()
}

/// O1: P5, P2, no pod of that ordinal. An unlabelled volume never held a member, and the node checks it.
fn leftover(view: &View<'_>, notes: &mut Notes, k: u32) -> Row {
    let Some(volume) = view.volume(k) else { return NEXT };
    if volume.terminating {
        let message = format!("the former volume of pod {k} is being deleted");
        notes.wait(Decision::wait("O1", WaitReason::PodTerminating, message).on(k, None));
        return NEXT;
    }
    if volume.unclear {
        let message = format!("the labels of the volume of pod {k} do not tell whose it is");
        notes.wait(Decision::wait("O1", WaitReason::LeftoverVolume, message).on(k, None));
        return NEXT;
    }
    let Some(marker) = volume.marker else { return NEXT };
    let removed = view.removed_disk(k);
    match (removed, view.volume_ref(k)) {
        (Some(raft_id), Some(volume)) if view.pod(k).is_none() => {
            Decision::act("O1", Step::DropVolume { volume, raft_id: Some(raft_id) }).now()
        }
        (Some(_), _) => NEXT,
        (None, _) => {
            let message = format!(
                "the volume of pod {k} is of member {:x} of cluster {:x}, which was not removed here",
                marker.raft_id, marker.cluster_id
            );
            notes.wait(Decision::wait("O1", WaitReason::LeftoverVolume, message).on(k, None));
            NEXT
        }
    }
}
