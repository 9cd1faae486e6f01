//! Rows L, and X2: what may be done without a linearizable list of members.

use std::collections::BTreeSet;

use super::TERMINATION_MARGIN_SECONDS;
use super::learner::{not_running, pod_cause};
use super::{Decision, Matter, NEXT, Notes, QUORUM_LOST_GRACE_SECONDS, Row, View, aged, roll};
use crate::observed::{ExitKind, Host, Marker};
use crate::step::{RestartMode, Step, Target, WaitReason};

/// G5 with L1 and L2. Nothing here touches membership or a disk.
pub(super) fn without_list(view: &View<'_>, notes: &mut Notes) -> Row {
    if view.list.is_some() {
        return NEXT;
    }
    bring_back_votes(view)?;
    // L1: a pod that does not run takes no vote away when it is replaced, and it is the way out of a bad roll.
    roll::broken_pods(view, notes)?;
    stuck_terminating(view, notes)?;
    lost_or_silent(view).now()
}

/// B2 for a StatefulSet that exists: someone shrank it below a member's disk, and with the votes went the list that
/// I10 needs. A pod on a removed member's disk would end by itself, so this needs no list.
fn bring_back_votes(view: &View<'_>) -> Row {
    let have = view.have();
    let holds_member = |marker: Marker| Some(marker.cluster_id) == view.observed.resource.cluster_id;
    let beyond = view
        .observed
        .volumes
        .range(have..)
        .any(|(_, volume)| volume.marker.is_some_and(holds_member) && !volume.detached && !volume.terminating);
    match view.set_ref().filter(|_| beyond) {
        Some(set) => Decision::act("B2", Step::ScaleOut { set, replicas: have.saturating_add(1) }).now(),
        None => NEXT,
    }
}

/// X2: a pod that should have ended long ago.
pub(super) fn stuck_terminating(view: &View<'_>, notes: &mut Notes) -> Row {
    for (k, pod) in &view.observed.pods {
        let Some(end) = pod.terminating else { continue };
        if view.observed.now.saturating_sub(end) < TERMINATION_MARGIN_SECONDS {
            continue;
        }
        let id = view.member(*k).map(|(id, _)| id);
        // Its host cannot be what it waits for any more, and whoever has set the finalizers takes them away.
        if pod.is_kept_by_finalizers() {
            let message = format!("pod {k} has been ended, and only its finalizers hold it");
            notes.wait(Decision::wait("X2", WaitReason::PodTerminating, message).on(*k, id));
            continue;
        }
        // P8: only then is it certain that the old process can neither vote nor write.
        if pod.host.as_ref().is_some_and(Host::is_proven_gone)
            && let Some(pod) = view.pod_ref(*k)
        {
            let step = Step::RestartPod { pod, mode: RestartMode::Force, writes_pause: false };
            return Decision::act("X2", step).now();
        }
        let host = pod.host.as_ref().map_or("an unknown node", |host| host.name.as_str());
        let message = format!("pod {k} does not end on {host}, and nothing proves that the node is gone");
        notes.wait(Decision::wait("X2", WaitReason::NodeUnreachable, message).on(*k, id));
    }
    NEXT
}

fn lost_or_silent(view: &View<'_>) -> Decision {
    let have = view.have();
    // Of any other ordinal nothing is known; and a set may have been scaled to two billion.
    let (pods, nodes, volumes) = (&view.observed.pods, &view.observed.nodes, &view.observed.volumes);
    let known: BTreeSet<u32> = pods
        .range(..have)
        .map(|(k, _)| *k)
        .chain(nodes.range(..have).map(|(k, _)| *k))
        .chain(volumes.range(..have).map(|(k, _)| *k))
        .collect();
    let lost = known.into_iter().filter(|k| is_lost(view, *k)).count();
    let survivors = [survivors(view), refused_restarts(view)].concat();
    // L2: P7 keeps a passing state from being shown as the end.
    if lost * 2 > have as usize && aged(view, Matter::Quorum, Target::default(), QUORUM_LOST_GRACE_SECONDS) {
        let message = format!("{lost} of {have} disks are lost; {survivors}");
        return Decision::wait("L2", WaitReason::QuorumLost, message);
    }
    if survivors.is_empty() {
        return Decision::wait("G5", WaitReason::MembersUnknown, "no node answers");
    }
    let message = format!("no node gives a linearizable answer; {survivors}");
    Decision::wait("L1", WaitReason::NoQuorum, message)
}

/// Silence is no loss: a pod keeps the last end of its process for life, whoever runs in it now.
fn is_lost(view: &View<'_>, k: u32) -> bool {
    view.ended_with(k, &[ExitKind::DiskLost]) || view.is_uninitialized(k) || view.volume_is_on_gone_host(k)
}

/// The pods that the way out of a bad roll (U1) is closed to.
fn refused_restarts(view: &View<'_>) -> String {
    let refused = view.observed.pods.keys().filter(|k| not_running(view, **k) == WaitReason::RestartFails);
    refused.map(|k| format!("; {}", pod_cause(view, *k))).collect()
}

/// Each node that still has a disk: what a human needs for choosing a survivor.
fn survivors(view: &View<'_>) -> String {
    let line = |k: &u32| {
        let node = view.node(*k)?;
        let id = node.marker?.raft_id;
        Some(format!("pod {k} (member {id:x}) has term {}, commit {}", node.term, node.commit_index))
    };
    view.observed.nodes.keys().filter_map(line).collect::<Vec<_>>().join(", ")
}
