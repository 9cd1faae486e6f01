//! `PrepareStop`: a voter that serves leaves the client Service before it is removed, because a removal ends its process
//! without a SIGTERM. And the way back (U9): a voter that was taken out of service and is to stay after all.

use std::ops::ControlFlow;

use super::replace::claim_is_gone;
use super::{Decision, NEXT, Notes, Row, View};
use crate::observed::ObservedPod;
use crate::step::{RestartMode, Step, WaitReason};

/// Whether member `id` on ordinal `k` may be removed now, as far as its clients are concerned. P2.
///
/// A node that does not answer has none. One that refuses to prepare is not the member that is meant, and does not drain: its
/// address has gone to another pod, which the next pass finds by the node's name. One that prepares is unready after a
/// readiness probe. So this never stands in the way of a removal for longer than either.
pub(super) fn out_of_service(
    view: &View<'_>,
    notes: &mut Notes,
    row: &'static str,
    k: u32,
    id: u64,
) -> ControlFlow<Decision, bool> {
    let runs = view.pod(k).is_some_and(ObservedPod::is_running);
    let node = view.node(k).filter(|_| runs);
    let marker = node.and_then(|node| node.marker).filter(|marker| marker.raft_id == id);
    let (Some(node), Some(marker), Some(pod)) = (node, marker, view.pod_ref(k)) else {
        return ControlFlow::Continue(true);
    };
    if !node.stopping {
        return ControlFlow::Break(Decision::act(row, Step::PrepareStop { pod, marker }));
    }
    if view.pod(k).is_some_and(|pod| pod.ready) {
        let message = format!("pod {k} leaves the client Service before member {id:x} is removed");
        notes.hold(Decision::wait(row, WaitReason::PodTerminating, message).on(k, Some(id)));
        return ControlFlow::Continue(false);
    }
    ControlFlow::Continue(true)
}

/// U9: a voter that stays drains although nobody ends it: its removal was planned and no longer is. Only a new process
/// serves again. P4, P2; a leader hands over first.
pub(super) fn change_of_mind(view: &View<'_>, notes: &mut Notes) -> Row {
    for (k, id, _) in view.voters().filter(|(k, id, _)| stays(view, *k, *id)) {
        let drains = view.pod(k).is_some_and(ObservedPod::is_running) && view.node(k).is_some_and(|node| node.stopping);
        if !drains {
            continue;
        }
        if let (true, Some(to)) = (view.is_leader(id), view.next_leader(|j| j != k)) {
            return Decision::act("U9", Step::MoveLeader { from: id, to, ordinal: k }).now();
        }
        if view.volume(k).is_none() {
            notes.wait(claim_is_gone(view, k, id));
            continue;
        }
        // One of two is no quorum: writes pause, as in U7.
        let writes_pause = view.voters().count() <= 2;
        // M9: when all others drain as well, they go first.
        let follows = writes_pause || !view.is_leader(id);
        let spared =
            (follows && view.quorum_during_restart(id)) || (writes_pause && view.voters_not_serving(id).is_empty());
        if let (true, Some(pod)) = (spared, view.pod_ref(k)) {
            let step = Step::RestartPod { pod, mode: RestartMode::Delete, writes_pause };
            return Decision::act("U9", step).on(k, Some(id)).now();
        }
        let message = format!("member {id:x} on pod {k} is out of service; the others are no quorum while it restarts");
        notes.wait(Decision::wait("U9", WaitReason::QuorumAtRisk, message).on(k, Some(id)));
    }
    NEXT
}

fn stays(view: &View<'_>, k: u32, id: u64) -> bool {
    let replaced = view.cluster.replace_member == Some(id) || view.volume(k).is_some_and(|volume| volume.terminating);
    k < view.want() && !replaced
}
