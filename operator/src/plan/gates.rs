//! Rows G: they end the search. And the last row of all, which keeps `Settled` honest.

use super::{Decision, LASTING_WAIT_SECONDS, Matter, NEXT, Notes, Row, View, aged, delete};
use crate::names;
use crate::observed::{Dissent, ObservedVolume};
use crate::step::{Target, WaitReason};

/// G1, G2: nothing else matters for a deleted or paused cluster.
pub(super) fn deleted_or_paused(view: &View<'_>, notes: &mut Notes) -> Row {
    // G1: no graceful leave and no membership call, the user asked for the end.
    if view.cluster.deleting {
        return delete::rows(view, notes);
    }
    // G2: of an invalid spec only its size gets here, see `repairs`.
    if view.cluster.paused {
        return Decision::wait("G2", WaitReason::Paused, "spec.paused is true").now();
    }
    NEXT
}

/// B1, B2, G3: the StatefulSet must exist and its controller must have seen its last change. R1: it must make pods with our
/// volumes.
pub(super) fn kubernetes(view: &View<'_>) -> Row {
    let Some(set) = view.set() else {
        // B1, B2: apply creates it, with `initial_replicas`.
        let anything = !view.observed.pods.is_empty()
            || view.observed.volumes.values().any(ObservedVolume::is_labelled)
            || view.observed.resource.cluster_id.is_some();
        let row = if anything { "B2" } else { "B1" };
        return Decision::wait(row, WaitReason::PodNotRunning, "the StatefulSet is being created").now();
    };
    // G3
    if set.terminating {
        return Decision::wait("G3", WaitReason::KubernetesLagging, "the StatefulSet is being deleted").now();
    }
    if set.observed_generation < set.generation {
        let message = "the StatefulSet controller has not seen the last change";
        return Decision::wait("G3", WaitReason::KubernetesLagging, message).now();
    }
    // R1
    if set.other_claims {
        let message = "the volume claims of the StatefulSet are not ours: no pod that it makes has the disk of its member, so none is \
                       ended, and nothing else is done";
        return Decision::wait("R1", WaitReason::WrongVolume, message).now();
    }
    NEXT
}

/// G4: every node that answers, and the list, must be of the latched cluster.
pub(super) fn one_cluster(view: &View<'_>) -> Row {
    let Some(latched) = view.observed.resource.cluster_id else { return NEXT };
    for k in view.observed.nodes.keys() {
        let Some(marker) = view.node(*k).and_then(|node| node.marker) else { continue };
        if marker.cluster_id != latched {
            let message = format!("pod {k} is of cluster {:x}, not of {latched:x}", marker.cluster_id);
            return Decision::wait("G4", WaitReason::ClusterIdMismatch, message).on(*k, Some(marker.raft_id)).now();
        }
    }
    match &view.observed.members {
        Some(list) if list.cluster_id != latched => {
            let message = format!("the member list is of cluster {:x}, not of {latched:x}", list.cluster_id);
            Decision::wait("G4", WaitReason::ClusterIdMismatch, message).now()
        }
        _ => NEXT,
    }
}

/// G8: the nodes tell of one membership. While a change is being made they may differ, for a moment. What lasts is a member of
/// another life, as by a volume that was put back to an older state; if the others outvote it they are gone by.
pub(super) fn one_membership(view: &View<'_>, notes: &mut Notes) -> Row {
    let Some(Dissent { pods, outvoted }) = &view.observed.dissent else { return NEXT };
    let first = pods.first().copied().filter(|_| *outvoted);
    let member = first.and_then(|k| view.node(k)?.marker).map(|marker| marker.raft_id);
    let target = Target { ordinal: first, member };
    let lasting = aged(view, Matter::Membership, target, LASTING_WAIT_SECONDS);
    let reason = if lasting { WaitReason::MembersDisagree } else { WaitReason::ChangeInFlight };
    let pods = pods.iter().map(|k| names::pod(&view.cluster.name, *k)).collect::<Vec<_>>().join(", ");
    let message = match outvoted {
        true => format!("what {pods} tells of the membership is not what a majority of the voters tells"),
        false => format!("{pods} tell of different memberships, and no majority of the voters stands behind one"),
    };
    let wait = Decision { target, ..Decision::wait("G8", reason, message) };
    if *outvoted {
        notes.wait_last(wait);
        return NEXT;
    }
    wait.now()
}

/// G6, G7: one change at a time, and only members that are ours.
pub(super) fn membership(view: &View<'_>) -> Row {
    let Some(list) = view.list else {
        // G5 without a list is decided by `quorum::rows`; this keeps the rows below from ever running without one.
        return Decision::wait("G5", WaitReason::MembersUnknown, "no node gave a list of members").now();
    };
    // G6
    if list.change_in_flight {
        let message = "a membership change or a leader transfer is under way";
        return Decision::wait("G6", WaitReason::ChangeInFlight, message).now();
    }
    // M9 and the order of a roll depend on knowing who leads.
    if list.members.get(&list.leader).is_none_or(|member| member.learner) {
        return Decision::wait("G6", WaitReason::ChangeInFlight, "no listed voter leads").now();
    }
    // G7
    if let Some(id) = view.foreign.first() {
        let message = format!("member {id:x} has a peer URL that is none of this cluster's pods");
        let mut wait = Decision::wait("G7", WaitReason::ForeignMember, message);
        wait.target.member = Some(*id);
        return wait.now();
    }
    NEXT
}

/// The last row: what is not as asked, although no row knows a step for it, is not settled.
pub(super) fn nothing_missing(view: &View<'_>, notes: &mut Notes) -> Row {
    if notes.first.is_some() {
        return NEXT;
    }
    for k in 0..view.want() {
        let serves = view.member(k).is_some_and(|(id, member)| !member.learner && view.is_serving(k, id, member));
        if !serves {
            let id = view.member(k).map(|(id, _)| id);
            let message = format!("pod {k} is not a healthy voter");
            notes.wait(Decision::wait("U2", WaitReason::MemberUnhealthy, message).on(k, id));
            return NEXT;
        }
    }
    if view.have() != view.want() {
        let message = format!("the StatefulSet has {} replicas, {} are wanted", view.have(), view.want());
        notes.wait(Decision::wait("I6", WaitReason::MemberUnhealthy, message));
    }
    NEXT
}
