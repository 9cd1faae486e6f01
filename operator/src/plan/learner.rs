//! Rows U4 and O4 to O8, with `Join` and `LabelVolume`: how a listed learner becomes a voter.
//!
//! They hold for learners below `want`; one at or above it is scaled away.

use sha2::{Digest, Sha256};

use super::again::{Failed, is_due, try_again};
use super::roll::{is_down, not_restarted};
use super::{Decision, LEARNER_DEADLINE_SECONDS, Matter, NEXT, Notes, Row, View, aged};
use crate::names;
use crate::observed::{ContainerState, ExitKind, Failure, Marker, Member, NodeExit, Progress};
use crate::step::{RestartMode, Step, Target, VolumeLabel, WaitReason};

/// As soon as a node reports its marker its volume says the same, because a volume outlives the report. Removed
/// members' disks too: the label is how their volumes are known later.
///
/// A volume that cannot be labelled counts as one whose labels do not tell ([`crate::observed::Observed::remember`]). What
/// may go on over such a one may go on: its member never becomes a voter (P6), nothing deletes the volume or takes it for
/// an unused one, and no member in order is replaced while its successor would not become a voter either.
pub(super) fn label_volumes(view: &View<'_>, notes: &mut Notes) -> Row {
    let mut failed = Vec::new();
    for (k, volume) in &view.observed.volumes {
        let Some(marker) = view.reported_marker(*k) else { continue };
        let ours = Some(marker.cluster_id) == view.observed.resource.cluster_id;
        let known =
            view.is_removed(marker.raft_id) || view.list.is_some_and(|list| list.members.contains_key(&marker.raft_id));
        if !ours || !known || volume.terminating || volume.marker == Some(marker) {
            continue;
        }
        let Some(reference) = view.volume_ref(*k) else { continue };
        let label = VolumeLabel::Member(marker);
        let decision = Decision::act("O7", Step::LabelVolume { volume: reference, label });
        let Some(failure) = view.failed_label(*k, label) else { return decision.now() };
        notes.wait_last(not_labelled(view, "O7", *k, Some(marker.raft_id), failure));
        failed.push(Failed { failure, decision });
    }
    try_again(view, failed)
}

/// A volume whose labels somebody refuses.
pub(super) fn not_labelled(view: &View<'_>, row: &'static str, k: u32, id: Option<u64>, failure: &Failure) -> Decision {
    let claim = names::volume(&view.cluster.name, k);
    let message = format!("volume claim {claim} could not be labelled: {}", failure.message);
    Decision::wait(row, WaitReason::LabelFails, message).on(k, id)
}

pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    for (k, id, member) in view.learners().filter(|(k, ..)| *k < view.want()) {
        one(view, notes, k, id, member)?;
    }
    NEXT
}

fn one(view: &View<'_>, notes: &mut Notes, k: u32, id: u64, member: &Member) -> Row {
    // U4: P1, P3, P2. A learner has no vote to take away.
    let movable = view.pod(k).is_some_and(|pod| pod.terminating.is_none())
        && view.volume(k).is_some_and(|volume| !volume.terminating);
    if view.is_outdated(k)
        && movable
        && let Some(pod) = view.pod_ref(k)
    {
        match view.failed_restart(k).filter(|failure| !is_due(view, failure)) {
            None => {
                let step = Step::RestartPod { pod, mode: RestartMode::Delete, writes_pause: false };
                return Decision::act("U4", step).on(k, Some(id)).now();
            }
            Some(failure) => notes.wait_last(not_restarted("U4", k, Some(id), &failure.message)),
        }
    }
    // O8: the next disk gets a new id. The volume's label, or the one that it was refused, tells of a disk that was lost
    // before it was published: what it had acknowledged is counted, so an empty one must not take its place.
    let emptied = view.is_uninitialized(k) && (view.is_labelled_for(k, id) || view.is_refused_for(k, id));
    if emptied || view.ended_with(k, &[ExitKind::DiskLost, ExitKind::Corrupt]) {
        let membership_index = view.membership_index();
        return Decision::act("O8", Step::RemoveMember { ordinal: k, raft_id: id, membership_index }).now();
    }
    let Some(node) = view.node(k) else {
        // O4
        notes.hold(Decision::wait("O4", not_running(view, k), pod_cause(view, k)).on(k, Some(id)));
        return NEXT;
    };
    match node.marker {
        None => join(view, notes, k, id, member),
        Some(marker) if marker.raft_id == id => promote(view, notes, k, id, member),
        Some(marker) => {
            let message = format!("pod {k} runs as member {:x}, listed is {id:x}", marker.raft_id);
            notes.hold(Decision::wait("O4", WaitReason::WrongVolume, message).on(k, Some(id)));
            NEXT
        }
    }
}

/// `Join(k)`: listed, not started, its node `Uninitialized`.
fn join(view: &View<'_>, notes: &mut Notes, k: u32, id: u64, member: &Member) -> Row {
    let list = view.list.filter(|_| !member.started);
    let volume = view.volume(k).filter(|volume| !volume.terminating);
    let pod = view.pod_ref(k).filter(|_| view.pod(k).is_some_and(|pod| pod.terminating.is_none()));
    let (Some(list), Some(volume), Some(pod)) = (list, volume, pod) else {
        let message = format!("pod {k} has an empty disk and cannot join as member {id:x}");
        notes.hold(Decision::wait("O4", WaitReason::PodNotRunning, message).on(k, Some(id)));
        return NEXT;
    };
    let marker =
        Marker { cluster_id: list.cluster_id, raft_id: id, incarnation: incarnation(list.cluster_id, id, &volume.uid) };
    let peers = list.members.iter().map(|(id, member)| (*id, member.peer_urls.clone())).collect();
    Decision::act("O4", Step::Join { pod, marker, peers, membership_index: list.membership_index }).now()
}

/// The same volume gets the same incarnation in every retry, another volume another one. Never zero.
pub(super) fn incarnation(cluster_id: u64, raft_id: u64, volume_uid: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(cluster_id.to_be_bytes());
    hash.update(raft_id.to_be_bytes());
    hash.update(volume_uid.as_bytes());
    let digest = hash.finalize();
    digest.iter().take(8).fold(0u64, |number, byte| (number << 8) | u64::from(*byte)).max(1)
}

/// O5, O6, O7.
fn promote(view: &View<'_>, notes: &mut Notes, k: u32, id: u64, member: &Member) -> Row {
    let progress = member.progress.unwrap_or_default();
    // What the node reports: the ids of cluster, member and disk.
    let labelled = view.volume(k).is_some_and(|volume| volume.marker.is_some() && volume.marker == view.disk(k));
    if let Some(failure) = view.disk(k).and_then(|disk| view.failed_label(k, VolumeLabel::Member(disk)))
        && !labelled
    {
        notes.hold(not_labelled(view, "O7", k, Some(id), failure));
        return NEXT;
    }
    // P6
    if !(progress.active && progress.caught_up && !progress.snapshot_running && member.started && labelled) {
        notes.hold(behind(view, k, id, progress));
        return NEXT;
    }
    if !view.budget_admits_promotion() {
        let message = "the disruption budget does not count the coming voter yet";
        notes.hold(Decision::wait("O7", WaitReason::DisruptionBudget, message).on(k, Some(id)));
        return NEXT;
    }
    let membership_index = view.membership_index();
    Decision::act("O7", Step::Promote { ordinal: k, raft_id: id, membership_index }).now()
}

/// O5; O6 when nothing has moved for the deadline. The learner is never removed for that alone.
///
/// A slow learner may take as long as it likes, and the wait must have lasted as long as well: before, its node was not
/// there to receive anything. One that has caught up and not published itself has nothing left to receive.
fn behind(view: &View<'_>, k: u32, id: u64, progress: Progress) -> Decision {
    let target = Target { ordinal: Some(k), member: Some(id) };
    let still = progress.caught_up || progress.still_seconds >= LEARNER_DEADLINE_SECONDS;
    let waited = aged(view, Matter::Learner, target, LEARNER_DEADLINE_SECONDS);
    let stuck = !progress.snapshot_running && still && waited;
    let (row, reason) = if stuck { ("O6", WaitReason::LearnerStuck) } else { ("O5", WaitReason::LearnerBehind) };
    let what = match progress {
        Progress { active: false, .. } => "is not heard by the leader",
        Progress { snapshot_running: true, .. } => "receives a snapshot",
        Progress { caught_up: false, .. } => "is behind the lag bound",
        Progress { .. } => "has not published itself yet",
    };
    Decision::wait(row, reason, format!("learner {id:x} on pod {k} {what}")).on(k, Some(id))
}

/// The word for a pod whose node does not run: that it cannot be replaced by one of the present template (U1), or how it
/// ended, where that is a trouble of its own that has no row.
pub(super) fn not_running(view: &View<'_>, k: u32) -> WaitReason {
    if refused_restart(view, k).is_some() {
        return WaitReason::RestartFails;
    }
    match view.ended(k).map(|exit| exit.kind) {
        Some(ExitKind::DiskFailed) => WaitReason::DiskFailed,
        Some(ExitKind::Fault) => WaitReason::Fault,
        _ => WaitReason::PodNotRunning,
    }
}

/// U1 was tried on the pod of `k` in vain.
fn refused_restart<'a>(view: &View<'a>, k: u32) -> Option<&'a Failure> {
    let down = view.node(k).is_none() && view.pod(k).is_some_and(is_down);
    view.failed_restart(k).filter(|_| down && view.is_outdated(k))
}

/// Why the node of `k` does not answer, as far as its pod tells.
pub(super) fn pod_cause(view: &View<'_>, k: u32) -> String {
    let why = why_silent(view, k);
    match refused_restart(view, k) {
        Some(failure) => format!("{why}; it could not be restarted: {}", failure.message),
        None => why,
    }
}

fn why_silent(view: &View<'_>, k: u32) -> String {
    let name = &view.cluster.name;
    let Some(pod) = view.pod(k) else {
        if let Some(why) = view.observed.unmade.get(&k) {
            return format!("pod {k} cannot be made: {why}");
        }
        return format!("pod {k} does not exist; if that lasts, kubectl describe statefulset {name} says why");
    };
    if pod.terminating.is_some() {
        return format!("pod {k} is terminating");
    }
    if pod.unschedulable.is_some() {
        return format!("pod {k} cannot be scheduled; kubectl describe pod {name}-{k} says why");
    }
    if let Some(NodeExit { kind, .. }) = view.ended(k) {
        return format!("the node of pod {k} ended as {} ({}): {}", kind.as_str(), kind.code(), kind.meaning());
    }
    match &pod.container {
        ContainerState::Absent => format!("pod {k} is not started yet"),
        ContainerState::Waiting(reason) => format!("pod {k} waits: {reason}"),
        ContainerState::Terminated(code) => format!("the node of pod {k} ended with code {code}"),
        ContainerState::Running => format!("the node of pod {k} runs and does not answer"),
    }
}
