//! Rows X: replacing a member inside its ordinal, because a StatefulSet can only drop its highest one.
//!
//! Order that must hold: remove the id, delete the volume, then delete the pod. The volume stays Terminating while
//! the pod holds it, and no pod is created over a Terminating volume; pod first would restart the old disk.

use super::learner::{not_running, pod_cause};
use super::prepare::out_of_service;
use super::{Decision, Matter, NEXT, Notes, REJOIN_DEADLINE_SECONDS, Row, UNSCHEDULABLE_GRACE_SECONDS, View, aged};
use crate::names;
use crate::observed::{ContainerState, ExitKind, Member, ObservedVolume, PodPhase};
use crate::step::{RestartMode, Step, Target, WaitReason};

/// X8, X9, X10 with C4: a member was removed and its ordinal is still wanted.
pub(super) fn rebuild(view: &View<'_>, notes: &mut Notes) -> Row {
    for k in 0..view.want().min(view.have()) {
        if view.member(k).is_some_and(|(_, member)| member.started) {
            continue;
        }
        rebuild_one(view, notes, k)?;
    }
    NEXT
}

fn rebuild_one(view: &View<'_>, notes: &mut Notes, k: u32) -> Row {
    if view.exited_with(k, &[ExitKind::WrongDisk]) {
        return NEXT;
    }
    let terminating = view.volume(k).is_some_and(|volume| volume.terminating);
    // X8: P5, P2.
    if let (Some(raft_id), Some(volume), false) = (view.removed_disk(k), view.volume_ref(k), terminating) {
        if view.cluster.repairs_only && !is_given_up(view, k, raft_id) {
            let message = format!(
                "the disk of pod {k} is in order and is kept; its ordinal gets no member before the spec is good"
            );
            notes.wait(Decision::wait("X8", WaitReason::InvalidSpec, message).on(k, None));
            return NEXT;
        }
        return Decision::act("X8", Step::DropVolume { volume, raft_id: Some(raft_id) }).now();
    }
    if terminating {
        return let_go_of_volume(view, notes, k);
    }
    if view.member(k).is_none() {
        return invite(view, notes, k);
    }
    NEXT
}

/// Whether the disk of the removed member has nothing that could be kept, or a person wants the member replaced. Else the
/// member may have been removed to be scaled away, which only a good spec tells.
fn is_given_up(view: &View<'_>, k: u32, raft_id: u64) -> bool {
    let lost = view.is_uninitialized(k) || view.exited_with(k, &[ExitKind::DiskLost, ExitKind::Corrupt]);
    lost || view.volume_is_on_gone_host(k) || view.cluster.replace_member == Some(raft_id)
}

/// X9: the pod must end, so that its Terminating volume can go.
fn let_go_of_volume(view: &View<'_>, notes: &mut Notes, k: u32) -> Row {
    let Some(pod) = view.pod_ref(k).filter(|_| view.pod(k).is_some_and(|pod| pod.terminating.is_none())) else {
        let message = format!("the volume of pod {k} is being deleted");
        notes.hold(Decision::wait("X9", WaitReason::PodTerminating, message).on(k, None));
        return NEXT;
    };
    // P5, or a disk that never was a member's.
    if view.removed_disk(k).is_some() || never_used(view, k) {
        let step = Step::RestartPod { pod, mode: RestartMode::Delete, writes_pause: false };
        return Decision::act("X9", step).now();
    }
    // A person has deleted it, and it may still hold something: it goes with its pod, which is the person's to end. A member
    // that is listed goes first (X4).
    let reason = view.member(k).map_or(WaitReason::LeftoverVolume, |_| WaitReason::PodTerminating);
    let message = format!("the volume of pod {k} is being deleted, and nothing proves that it was a removed member's");
    notes.hold(Decision::wait("X9", reason, message).on(k, None));
    NEXT
}

/// Whether the disk of `k` never was a member's. While a member is listed here both its node and the labels must say so;
/// else a node that finds it empty is enough, whatever somebody has made of the labels.
fn never_used(view: &View<'_>, k: u32) -> bool {
    let unlabelled = view.volume(k).is_none_or(|volume| !volume.unclear) && view.disk(k).is_none();
    match view.member(k) {
        Some(_) => unlabelled && view.is_uninitialized(k),
        None => unlabelled || view.is_uninitialized(k),
    }
}

/// X10: P1, P3. The ordinal is empty; its next member gets a new id.
fn invite(view: &View<'_>, notes: &mut Notes, k: u32) -> Row {
    // X8 has seen to the claim, if there is one.
    if let Some(raft_id) = view.removed_disk(k) {
        let message = format!("pod {k} has the disk of removed member {raft_id:x}, and its volume claim is missing");
        notes.hold(Decision::wait("X10", WaitReason::LeftoverVolume, message).on(k, None));
        return NEXT;
    }
    if view.volume(k).is_some_and(ObservedVolume::is_labelled) || view.reported_marker(k).is_some() {
        let message = format!("the disk of pod {k} is of a member that this cluster neither lists nor has removed");
        notes.hold(Decision::wait("X10", WaitReason::LeftoverVolume, message).on(k, None));
        return NEXT;
    }
    if view.volume_is_on_gone_host(k) && !view.is_uninitialized(k) {
        // Without a label there is no P5 for it, so a human must say that nothing is lost.
        let message = format!("the volume of pod {k} is on a node that is gone, and not labelled as a member's");
        notes.hold(Decision::wait("X10", WaitReason::LeftoverVolume, message).on(k, None));
        return NEXT;
    }
    if !view.is_uninitialized(k) {
        let reason = match not_running(view, k) {
            WaitReason::RestartFails => WaitReason::RestartFails,
            _ => WaitReason::PodNotRunning,
        };
        notes.hold(Decision::wait("X10", reason, pod_cause(view, k)).on(k, None));
        return NEXT;
    }
    if view.learners().next().is_some() {
        let message = format!("pod {k} gets a member when the present learner is a voter");
        notes.hold(Decision::wait("X10", WaitReason::LearnerBehind, message).on(k, None));
        return NEXT;
    }
    let peer_url = names::peer_url(view.cluster, k);
    let membership_index = view.membership_index();
    Decision::act("X10", Step::AddLearner { ordinal: k, peer_url, membership_index }).now()
}

/// X1 and X3 to X7: a listed member below `want` that cannot stay. X2 is in `quorum.rs`.
pub(super) fn causes(view: &View<'_>, notes: &mut Notes) -> Row {
    for (k, id, member) in view.members().filter(|(k, ..)| *k < view.want()) {
        if let Some(cause) = cause(view, k, id, member) {
            replace(view, notes, cause, k, id, member)?;
        } else if view.exited_with(k, &[ExitKind::WrongDisk]) {
            // X6: a human swapped volumes; nothing is deleted.
            let message = format!("pod {k} runs on the disk of another member");
            notes.wait(Decision::wait("X6", WaitReason::WrongVolume, message).on(k, Some(id)));
        } else if !member.learner && is_down(view, k) {
            // X1: the same id and the same disk come back. A learner's pod is O4's.
            let target = Target { ordinal: Some(k), member: Some(id) };
            let stalled = aged(view, Matter::Rejoin, target, REJOIN_DEADLINE_SECONDS);
            let reason = match not_running(view, k) {
                WaitReason::PodNotRunning if stalled => WaitReason::RolloutStalled,
                reason => reason,
            };
            notes.wait(Decision::wait("X1", reason, pod_cause(view, k)).on(k, Some(id)));
        }
    }
    NEXT
}

fn is_down(view: &View<'_>, k: u32) -> bool {
    match view.pod(k) {
        None => true,
        Some(pod) => {
            let ended = matches!(pod.phase, PodPhase::Failed | PodPhase::Succeeded);
            ended || pod.terminating.is_some() || pod.container != ContainerState::Running
        }
    }
}

/// The row by which member `id` on ordinal `k` must be replaced, and what it is called.
fn cause(view: &View<'_>, k: u32, id: u64, member: &Member) -> Option<(&'static str, &'static str)> {
    // O8 is for learners.
    let ended = |kind| !member.learner && view.ended_with(k, &[kind]);
    let waited = |since: i64| view.observed.now.saturating_sub(since) >= UNSCHEDULABLE_GRACE_SECONDS;
    let unschedulable = view.pod(k).and_then(|pod| pod.unschedulable).is_some_and(waited);
    if unschedulable && view.volume_is_on_gone_host(k) {
        Some(("X3", "its volume is on a node that is gone"))
    } else if ended(ExitKind::DiskLost) {
        Some(("X4", "its disk is lost"))
    } else if view.volume(k).is_some_and(|volume| volume.terminating) && may_use_disk(view, k, id, member) {
        Some(("X4", "its volume is being deleted"))
    } else if ended(ExitKind::Corrupt) {
        Some(("X5", "its disk is damaged"))
    } else if view.cluster.replace_member == Some(id) {
        Some(("X7", "its replacement is asked for"))
    } else {
        None
    }
}

/// Whether the disk of `k` may be that of its listed member. It is not as long as that has never started, and has no pod
/// yet (O3), or the disk is a removed member's (X8, X9), or its node says that it is empty and no label says otherwise.
fn may_use_disk(view: &View<'_>, k: u32, id: u64, member: &Member) -> bool {
    let empty = view.is_uninitialized(k) && view.volume(k).is_none_or(|volume| !volume.unclear);
    let unused = k >= view.have() || view.removed_disk(k).is_some() || empty;
    member.started || view.is_labelled_for(k, id) || !unused
}

/// X4 where the claim is gone already, finalizers and all, and its member serves. Nobody can tell what has become of the disk,
/// so a person decides, and no row waits for that.
pub(super) fn without_claim(view: &View<'_>, notes: &mut Notes) -> Row {
    let serves = |k: u32, id: u64, member: &Member| view.volume(k).is_none() && view.is_healthy(k, id, member);
    if let Some((k, id, _)) = view.voters().find(|(k, id, member)| serves(*k, *id, member)) {
        notes.wait_last(claim_is_gone(view, k, id));
    }
    NEXT
}

/// Member `id` on `k` has no claim: nobody may end its pod before it is replaced.
pub(super) fn claim_is_gone(view: &View<'_>, k: u32, id: u64) -> Decision {
    let claim = names::volume(&view.cluster.name, k);
    let message =
        format!("volume claim {claim} of member {id:x} is missing: pod {k} starts on an empty disk whenever it ends");
    Decision::wait("X4", WaitReason::WrongVolume, message).on(k, Some(id))
}

/// P1, P3, P4, and one replacement at a time. A member that is down already is not spared for that: without it the
/// others need one vote less, and a learner that cannot come up must not keep the dead in the list.
fn replace(
    view: &View<'_>,
    notes: &mut Notes,
    (row, why): (&'static str, &str),
    k: u32,
    id: u64,
    member: &Member,
) -> Row {
    let wait = |reason, message: String| Decision::wait(row, reason, message).on(k, Some(id));
    if view.replacement_elsewhere(k) && view.is_healthy(k, id, member) {
        let message = format!("member {id:x} on pod {k}: {why}; another replacement is under way");
        notes.wait(wait(WaitReason::QuorumAtRisk, message));
        return NEXT;
    }
    if view.labels_are_refused() && view.is_healthy(k, id, member) {
        let message =
            format!("member {id:x} on pod {k}: {why}; volume claims cannot be labelled, so no other would vote");
        notes.wait(wait(WaitReason::LabelFails, message));
        return NEXT;
    }
    if !view.quorum_after_removal(id) {
        let message = format!("member {id:x} on pod {k}: {why}; the others are no quorum without it");
        notes.hold(wait(WaitReason::QuorumAtRisk, message));
        return NEXT;
    }
    if view.is_leader(id) {
        return match view.next_leader(|j| j != k) {
            Some(to) => Decision::act(row, Step::MoveLeader { from: id, to, ordinal: k }).now(),
            None => {
                notes.hold(wait(WaitReason::QuorumAtRisk, format!("no other voter can lead instead of {id:x}")));
                NEXT
            }
        };
    }
    if !member.learner && !view.budget_admits_removal(id) {
        let message = "the disruption budget does not protect the remaining voters yet".to_owned();
        notes.hold(wait(WaitReason::DisruptionBudget, message));
        return NEXT;
    }
    if !member.learner && !out_of_service(view, notes, row, k, id)? {
        return NEXT;
    }
    let membership_index = view.membership_index();
    Decision::act(row, Step::RemoveMember { ordinal: k, raft_id: id, membership_index }).now()
}
