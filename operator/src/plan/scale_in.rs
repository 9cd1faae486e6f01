//! Rows I, with C1 to C3: one ordinal less, always the highest, found by raft id.

use super::again::{Failed, try_again};
use super::learner::not_labelled;
use super::prepare::out_of_service;
use super::{Decision, MOVE_LEADER_DEADLINE_SECONDS, Matter, NEXT, Notes, Row, View, lasting};
use crate::observed::Member;
use crate::step::{RestartMode, Step, Target, VolumeLabel, WaitReason};
use crate::valid::Retention;

/// I7: no member at the highest ordinal, which is no longer wanted. Whether its pod ever ran does not matter.
pub(super) fn shrink_set(view: &View<'_>) -> Row {
    let Some(t) = view.have().checked_sub(1) else { return NEXT };
    if t < view.want() || t == 0 || view.member(t).is_some() {
        return NEXT;
    }
    match view.set_ref() {
        Some(set) => Decision::act("I7", Step::ScaleIn { set, replicas: t }).now(),
        None => NEXT,
    }
}

/// I10 and C1: members whose ordinal the StatefulSet does not hold.
pub(super) fn members_without_ordinal(view: &View<'_>, notes: &mut Notes) -> Row {
    let have = view.have();
    let highest_started = view.members().rev().find(|(k, _, member)| *k >= have && member.started);
    if let Some((k, id, member)) = highest_started {
        // I10: someone shrank the set. Bring the vote back, or take it away if it is not wanted.
        if k < view.want() || !view.quorum_after_removal(id) {
            return match view.set_ref() {
                Some(set) => Decision::act("I10", Step::ScaleOut { set, replicas: have.saturating_add(1) }).now(),
                None => NEXT,
            };
        }
        return remove_or_move(view, notes, "I10", k, id, member);
    }
    // C1: no pod and no disk of it exists. `m(have)` itself is O3's while it is wanted.
    let stray = view.members().rev().find(|(k, ..)| *k > have || (*k == have && *k >= view.want()));
    if let Some((k, id, member)) = stray {
        return remove_or_move(view, notes, "C1", k, id, member);
    }
    NEXT
}

/// I1 to I6, I8, I9.
pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    if let Some(t) = view.have().checked_sub(1).filter(|t| *t >= view.want() && !notes.hold_scale_in)
        && let Some((id, member)) = view.member(t)
    {
        highest(view, notes, t, id, member)?;
    }
    pods_beyond_set(view, notes);
    volumes_beyond_set(view, notes)
}

fn highest(view: &View<'_>, notes: &mut Notes, t: u32, id: u64, member: &Member) -> Row {
    // I1, I2: a learner's end takes no vote away.
    match member {
        Member { learner: true, started: false, .. } => return remove("I1", view, t, id),
        Member { learner: true, started: true, .. } => return remove("I2", view, t, id),
        Member { learner: false, .. } => {}
    }
    remove_or_move(view, notes, "I5", t, id, member)
}

fn remove(row: &'static str, view: &View<'_>, k: u32, id: u64) -> Row {
    let membership_index = view.membership_index();
    Decision::act(row, Step::RemoveMember { ordinal: k, raft_id: id, membership_index }).now()
}

fn removed_from_service(view: &View<'_>, notes: &mut Notes, row: &'static str, k: u32, id: u64) -> Row {
    if out_of_service(view, notes, row, k, id)? { remove(row, view, k, id) } else { NEXT }
}

/// I3, I5, I6: a voter goes; leadership first.
fn remove_or_move(view: &View<'_>, notes: &mut Notes, row: &'static str, t: u32, id: u64, member: &Member) -> Row {
    if view.is_leader(id) {
        return move_leader(view, notes, t, id);
    }
    // I6: an unhealthy member that is to go as well goes first, or neither ever could.
    if !member.learner && !view.quorum_after_removal(id) {
        let unhealthy = view.voters().rev().find(|(j, other, m)| {
            (view.want()..t).contains(j) && !view.is_healthy(*j, *other, m) && view.quorum_after_removal(*other)
        });
        if let Some((j, other, _)) = unhealthy.filter(|(_, other, _)| view.budget_admits_removal(*other)) {
            return if view.is_leader(other) {
                move_leader(view, notes, j, other)
            } else {
                removed_from_service(view, notes, "I6", j, other)
            };
        }
        let message = format!("the voters without member {id:x} on pod {t} are no quorum");
        notes.wait(Decision::wait("I6", WaitReason::QuorumAtRisk, message).on(t, Some(id)));
        return NEXT;
    }
    if !member.learner && !view.budget_admits_removal(id) {
        let message = "the disruption budget does not protect the remaining voters yet";
        notes.wait(Decision::wait(row, WaitReason::DisruptionBudget, message).on(t, Some(id)));
        return NEXT;
    }
    // I5
    if member.learner { remove(row, view, t, id) } else { removed_from_service(view, notes, row, t, id) }
}

/// I3, I4.
fn move_leader(view: &View<'_>, notes: &mut Notes, t: u32, id: u64) -> Row {
    let target = Target { ordinal: Some(t), member: Some(id) };
    let Some(to) = view.next_leader(|k| k < view.want()) else {
        let message = format!("no voter below {} can lead instead of member {id:x}", view.want());
        notes.wait(Decision::wait("I3", WaitReason::QuorumAtRisk, message).on(t, Some(id)));
        return NEXT;
    };
    let since = lasting(view, Matter::MoveLeader, target);
    let overdue = since.filter(|since| view.observed.now.saturating_sub(*since) >= MOVE_LEADER_DEADLINE_SECONDS);
    let Some(since) = overdue else {
        return Decision::act("I3", Step::MoveLeader { from: id, to, ordinal: t }).now();
    };
    // I4: its shutdown hands over; once. P4, P7, P2.
    let older = view.pod(t).is_some_and(|pod| pod.created < since && pod.terminating.is_none());
    if let (true, true, Some(pod)) = (older, view.quorum_during_restart(id), view.pod_ref(t)) {
        let voters = view.voters().count();
        let mode = if voters > 2 { RestartMode::Evict } else { RestartMode::Delete };
        let step = Step::RestartPod { pod, mode, writes_pause: voters <= 2 };
        return Decision::act("I4", step).on(t, Some(id)).now();
    }
    let message = format!("member {id:x} on pod {t} goes on leading");
    notes.wait(Decision::wait("I4", WaitReason::LeaderWillNotMove, message).on(t, Some(id)));
    NEXT
}

/// I8: a pod that the StatefulSet no longer holds. The next ordinal may go meanwhile, none may come.
fn pods_beyond_set(view: &View<'_>, notes: &mut Notes) {
    let beyond = view.observed.pods.keys().copied().filter(|k| *k >= view.have()).max();
    if let Some(k) = beyond {
        let message = format!("pod {k} is going");
        notes.wait(Decision::wait("I8", WaitReason::PodTerminating, message).on(k, None));
        notes.hold_scale_out = true;
    }
}

/// I9: P5, P2, and the pod object gone. One that cannot be marked as detached is a removed member's all the same.
fn volumes_beyond_set(view: &View<'_>, notes: &mut Notes) -> Row {
    let mut failed = Vec::new();
    for (k, volume) in view.observed.volumes.iter().rev() {
        let unused = *k >= view.have() && view.pod(*k).is_none() && !volume.terminating;
        let (true, Some(raft_id), Some(reference)) = (unused, view.removed_disk(*k), view.volume_ref(*k)) else {
            continue;
        };
        match view.cluster.storage.retention.when_scaled {
            Retention::Delete => {
                let step = Step::DropVolume { volume: reference, raft_id: Some(raft_id) };
                return Decision::act("I9", step).now();
            }
            Retention::Retain if !volume.detached && *k >= view.want() => {
                let label = VolumeLabel::Detached;
                let step = Step::LabelVolume { volume: reference, label };
                let decision = Decision::act("I9", step).on(*k, Some(raft_id));
                let Some(failure) = view.failed_label(*k, label) else { return decision.now() };
                notes.wait_last(not_labelled(view, "I9", *k, Some(raft_id), failure));
                failed.push(Failed { failure, decision });
            }
            Retention::Retain => {}
        }
    }
    try_again(view, failed)
}
