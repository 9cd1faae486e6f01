//! Rows U: every pod gets the StatefulSet's template, one at a time, the leader last. U4 is in `learner.rs`.
//!
//! They are asked twice (M18): before anything is scaled for the pods whose image stays, and afterwards for all.

use super::again::{Failed, try_again};
use super::learner::pod_cause;
use super::replace::claim_is_gone;
use super::{Decision, Matter, NEXT, Notes, REJOIN_DEADLINE_SECONDS, Row, View, aged};
use crate::observed::{ContainerState, ObservedPod};
use crate::step::{RestartMode, Step, Target, WaitReason};

/// U1: an outdated pod that does not run: the way out of a bad roll, allowed without a quorum. P2.
///
/// One that cannot be ended holds nothing up: it does not run, so every proof counts it out, and the rows after this ask
/// nothing of it.
pub(super) fn broken_pods(view: &View<'_>, notes: &mut Notes) -> Row {
    let mut failed = Vec::new();
    for (k, pod) in view.observed.pods.iter().rev() {
        let kept_disk = view.volume(*k).is_none_or(|volume| !volume.terminating);
        if !view.is_outdated(*k) || !is_down(pod) || !kept_disk || *k >= view.have() || is_seen_active(view, *k) {
            continue;
        }
        let Some(pod) = view.pod_ref(*k) else { continue };
        let step = Step::RestartPod { pod, mode: RestartMode::Delete, writes_pause: false };
        let decision = Decision::act("U1", step);
        let Some(failure) = view.failed_restart(*k) else { return decision.now() };
        notes.wait_last(not_restarted("U1", *k, view.member(*k).map(|(id, _)| id), &failure.message));
        failed.push(Failed { failure, decision });
    }
    try_again(view, failed)
}

pub(super) fn is_down(pod: &ObservedPod) -> bool {
    pod.container != ContainerState::Running && pod.terminating.is_none()
}

/// A pod whose restart somebody refuses.
pub(super) fn not_restarted(row: &'static str, k: u32, id: Option<u64>, why: &str) -> Decision {
    let message = format!("pod {k} could not be restarted: {why}");
    Decision::wait(row, WaitReason::RestartFails, message).on(k, id)
}

/// It answers, or the leader hears it.
fn is_seen_active(view: &View<'_>, k: u32) -> bool {
    let heard = view.member(k).and_then(|(_, member)| member.progress).is_some_and(|p| p.active);
    view.node(k).is_some() || heard
}

/// Which pods are to be restarted.
type Due<'a> = &'a dyn Fn(u32) -> bool;

/// U2, U3, U5 to U8.
pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    if not_rejoined(view, notes, |_| true).is_some() || notes.hold_roll {
        return NEXT;
    }
    // U8 (M19): a template that only a new operator release changed is held back by apply, so no pod is outdated by
    // it, and the plan is settled; the condition `Updated` tells.
    restarts(view, notes, &|k| view.is_outdated(k))
}

/// M18: what is changed beside the image comes before scaling, on the pods that stay. While one is on its way back nothing
/// is scaled in either; trouble of other kinds, one that is overdue, and one that is to go hold nothing up (M10).
pub(super) fn settings(view: &View<'_>, notes: &mut Notes) -> Row {
    let due = |k: u32| k < view.want() && view.is_outdated_in_settings(k);
    if notes.hold_roll || !view.voters().any(|(k, ..)| due(k)) {
        return NEXT;
    }
    // Out of service on our order, and with a pod that stays: a step of another matter is under way.
    let prepared = |k: u32| {
        view.node(k).is_some_and(|node| node.stopping) && view.pod(k).is_some_and(|pod| pod.terminating.is_none())
    };
    let stays = |k: u32| k < view.want() && !prepared(k);
    if let Some(k) = not_rejoined(view, notes, stays) {
        let first = notes.first.as_ref().and_then(|wait| wait.blocked.as_ref()).map(|blocked| blocked.reason);
        let on_its_way = [WaitReason::PodNotRunning, WaitReason::PodNotRejoined];
        notes.hold_scale_in = first.is_some_and(|reason| on_its_way.contains(&reason)) && !is_overdue(view, k);
        return NEXT;
    }
    // A pod that cannot be restarted is tried again and again by the rows after scaling, which does not wait for it for ever.
    let failing = view.voters().filter(|(k, ..)| due(*k));
    if let Some((k, id, why)) = failing.filter_map(|(k, id, _)| Some((k, id, view.failure_of_restart(k)?))).next() {
        notes.wait_last(not_restarted("U5", k, Some(id), why));
        return NEXT;
    }
    restarts(view, notes, &due)
}

fn restarts(view: &View<'_>, notes: &mut Notes, due: Due<'_>) -> Row {
    unhealthy(view, notes, due)?;
    followers(view, notes, due)?;
    leader(view, notes, due)
}

/// By its pod's own times, which no step between begins anew: the clock of the wait (P7) is one of each step.
fn is_overdue(view: &View<'_>, k: u32) -> bool {
    let begun = view.pod(k).map(|pod| pod.terminating.unwrap_or(pod.created));
    begun.is_some_and(|begun| view.observed.now.saturating_sub(begun) >= REJOIN_DEADLINE_SECONDS)
}

/// U2: a voter that was restarted, or is gone, must be back before the next one goes (M16). The ordinal of one that is not.
fn not_rejoined(view: &View<'_>, notes: &mut Notes, asked: impl Fn(u32) -> bool) -> Option<u32> {
    let away = |k: u32| view.pod(k).is_none_or(|pod| pod.terminating.is_some());
    let pending = |k: u32| asked(k) && (away(k) || !view.is_outdated(k));
    let (k, id, _) = view.voters().find(|(k, id, m)| pending(*k) && !view.is_serving(*k, *id, m))?;
    let target = Target { ordinal: Some(k), member: Some(id) };
    let stalled = aged(view, Matter::Rejoin, target, REJOIN_DEADLINE_SECONDS);
    let reason = if stalled { WaitReason::RolloutStalled } else { WaitReason::PodNotRejoined };
    let message = match view.node(k) {
        None => pod_cause(view, k),
        Some(_) => format!("member {id:x} on pod {k} is not back in service"),
    };
    notes.wait(Decision::wait("U2", reason, message).on(k, Some(id)));
    Some(k)
}

/// U3: P1, P3, P4, P2. It serves nobody, so no budget is asked.
fn unhealthy(view: &View<'_>, notes: &mut Notes, due: Due<'_>) -> Row {
    for (k, id, member) in view.voters().rev() {
        let runs = view.pod(k).is_some_and(ObservedPod::is_running);
        if !due(k) || !runs || view.is_serving(k, id, member) || view.is_leader(id) {
            continue;
        }
        match view.pod_ref(k) {
            Some(pod) if view.quorum_during_restart(id) => {
                let step = Step::RestartPod { pod, mode: RestartMode::Delete, writes_pause: false };
                return Decision::act("U3", step).on(k, Some(id)).now();
            }
            _ => {
                let message = format!("the voters without member {id:x} on pod {k} are no quorum");
                notes.wait(Decision::wait("U3", WaitReason::QuorumAtRisk, message).on(k, Some(id)));
            }
        }
    }
    NEXT
}

/// U5: an outdated healthy follower, highest ordinal first.
fn followers(view: &View<'_>, notes: &mut Notes, due: Due<'_>) -> Row {
    let outdated =
        view.voters().rev().find(|(k, id, member)| due(*k) && !view.is_leader(*id) && view.is_serving(*k, *id, member));
    match outdated {
        Some((k, id, _)) => restart_serving(view, notes, "U5", k, id),
        None => NEXT,
    }
}

/// U6: only the leader is outdated. A single voter has nobody to hand over to (U7).
fn leader(view: &View<'_>, notes: &mut Notes, due: Due<'_>) -> Row {
    let Some((k, id, _)) = view.voters().find(|(k, id, _)| view.is_leader(*id) && due(*k)) else {
        return NEXT;
    };
    if view.voters().count() == 1 {
        return restart_serving(view, notes, "U7", k, id);
    }
    match view.next_leader(|j| !view.is_outdated(j)) {
        Some(to) => Decision::act("U6", Step::MoveLeader { from: id, to, ordinal: k }).now(),
        None => {
            let others = view.voters().filter(|(_, other, _)| *other != id).map(|(j, ..)| cannot_lead(view, j));
            let others = others.collect::<Vec<_>>().join(", ");
            let message = format!("no updated voter can lead instead of member {id:x}: {others}");
            notes.wait(Decision::wait("U6", WaitReason::MemberUnhealthy, message).on(k, Some(id)));
            NEXT
        }
    }
}

/// What keeps the voter on pod `k` from leading (P6).
fn cannot_lead(view: &View<'_>, k: u32) -> String {
    match view.node(k) {
        _ if view.is_outdated(k) => format!("pod {k} is outdated itself"),
        Some(node) if node.stopping => format!("pod {k} is out of service"),
        _ => format!("pod {k} is not healthy"),
    }
}

/// U5, U7: P1, P3, P4, P2, and every other voter serves. With one or two voters writes pause, and the budget would
/// refuse for ever, so the pod is deleted plainly; so it is where the budget is raised for a removal that comes later, and of
/// so few voters that it refuses every eviction. Where one can pass it is asked, because it counts other people's drains.
fn restart_serving(view: &View<'_>, notes: &mut Notes, row: &'static str, k: u32, id: u64) -> Row {
    if let Some(other) = view.voters_not_serving(id).first() {
        let message = format!("pod {other} does not serve; pod {k} is not restarted before it does");
        let id = view.member(*other).map(|(id, _)| id);
        notes.wait(Decision::wait(row, WaitReason::MemberUnhealthy, message).on(*other, id));
        return NEXT;
    }
    if view.volume(k).is_none() {
        notes.wait(claim_is_gone(view, k, id));
        return NEXT;
    }
    let writes_pause = view.voters().count() <= 2;
    let kept_disk = view.volume(k).is_some_and(|volume| !volume.terminating);
    match view.pod_ref(k) {
        Some(pod) if kept_disk && (writes_pause || view.quorum_during_restart(id)) => {
            let refused = writes_pause || view.budget_refuses_every_eviction();
            let mode = if refused { RestartMode::Delete } else { RestartMode::Evict };
            let row = if writes_pause { "U7" } else { row };
            Decision::act(row, Step::RestartPod { pod, mode, writes_pause }).on(k, Some(id)).now()
        }
        _ => {
            let message = format!("the voters without member {id:x} on pod {k} are no quorum");
            notes.wait(Decision::wait(row, WaitReason::QuorumAtRisk, message).on(k, Some(id)));
            NEXT
        }
    }
}
