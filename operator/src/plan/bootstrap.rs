//! Rows B: founding a cluster, once in its life, on ordinal 0 alone; and finding one that was founded before.

use std::collections::BTreeSet;

use super::learner::{not_running, pod_cause};
use super::{Decision, NEXT, Notes, Row, View, quorum, roll};
use crate::names::{self, MOST_ORDINALS};
use crate::observed::{ExitKind, Observed, ObservedVolume};
use crate::step::{BootstrapStep, Step, WaitReason};
use crate::valid::ValidCluster;

/// With how many replicas apply must create the StatefulSet (B1, B2). Only for its creation.
///
/// One, unless pods, listed members or volumes of members exist: then enough to hold the highest of them, because
/// fewer would stop voters. Ordinals that no cluster has do not count: whoever may name a pod does not choose how many are made.
pub fn initial_replicas(cluster: &ValidCluster, observed: &Observed) -> u32 {
    let members = observed.members.iter().flat_map(|list| list.members.values());
    let listed = members.flat_map(|m| &m.peer_urls).filter_map(|url| names::peer_url_ordinal(cluster, url));
    let volumes = observed.volumes.iter().filter(|(_, volume)| volume.is_labelled() && !volume.detached);
    let ordinals = observed.pods.keys().copied().chain(volumes.map(|(k, _)| *k)).chain(listed);
    ordinals.filter(|k| *k < MOST_ORDINALS).max().map_or(1, |k| k + 1)
}

/// B3 to B7. Until the cluster is founded no later row may run, except those that mend a pod.
pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    let resource = &view.observed.resource;
    if resource.bootstrapped && resource.cluster_id.is_some() {
        return data_lost(view);
    }
    match resource.cluster_id {
        None => intend_or_adopt(view, notes)?,
        Some(cluster_id) => call_and_latch(view, notes, cluster_id)?,
    }
    // A broken image must not keep a cluster from ever being founded.
    roll::broken_pods(view, notes)?;
    quorum::stuck_terminating(view, notes)?;
    let wait = notes.first.take();
    wait.unwrap_or_else(|| pod_0_silent(view)).now()
}

fn pod_0_silent(view: &View<'_>) -> Decision {
    let reason = match not_running(view, 0) {
        WaitReason::RestartFails => WaitReason::RestartFails,
        _ => WaitReason::PodNotRunning,
    };
    Decision::wait("B3", reason, pod_cause(view, 0)).on(0, None)
}

/// B3 and B6: no cluster id is latched.
fn intend_or_adopt(view: &View<'_>, notes: &mut Notes) -> Row {
    // Labels that do not tell are mended once the cluster is adopted, where the node tells whose the disk is: it may be a
    // voter's, and must not be given up for them.
    let owner = |(k, volume): (&u32, &ObservedVolume)| match volume.unclear {
        true => view.reported_marker(*k),
        false => volume.marker,
    };
    let volumes = &view.observed.volumes;
    if let Some((k, _)) = volumes.iter().find(|(k, volume)| volume.unclear && owner((k, volume)).is_none()) {
        let message = format!("the labels of volume {k} do not tell whose it is");
        return Decision::wait("B6", WaitReason::LeftoverVolume, message).on(*k, None).now();
    }
    let labelled: BTreeSet<u64> = volumes.iter().filter_map(owner).map(|marker| marker.cluster_id).collect();
    let mut labelled = labelled.into_iter();
    match (labelled.next(), labelled.next()) {
        (Some(id), None) => adopt(view, notes, id),
        (Some(_), Some(_)) => {
            let of = |(k, volume): (&u32, &ObservedVolume)| {
                Some(format!("{} of {:x}", names::volume(&view.cluster.name, *k), owner((k, volume))?.cluster_id))
            };
            let owners: Vec<String> = volumes.iter().filter_map(of).collect();
            let message = format!("the volumes are of several clusters: {}", owners.join(", "));
            Decision::wait("B6", WaitReason::LeftoverVolume, message).now()
        }
        (None, _) => intend(view, notes),
    }
}

/// B6: the status was lost, the volumes were not. P1 against the labels.
fn adopt(view: &View<'_>, notes: &mut Notes, cluster_id: u64) -> Row {
    match &view.observed.members {
        Some(list) if list.cluster_id == cluster_id => {
            let resource_version = view.observed.resource.resource_version.clone();
            Decision::act("B6", Step::Bootstrap(BootstrapStep::Adopt { cluster_id, resource_version })).now()
        }
        Some(list) => {
            let message = format!("the volumes are of cluster {cluster_id:x}, its nodes of {:x}", list.cluster_id);
            Decision::wait("B6", WaitReason::LeftoverVolume, message).now()
        }
        None => {
            let message = format!("cluster {cluster_id:x} is found on the volumes and must answer to be adopted");
            notes.wait(Decision::wait("B6", WaitReason::NoQuorum, message));
            NEXT
        }
    }
}

/// B3: the first half of `Bootstrap`.
fn intend(view: &View<'_>, notes: &mut Notes) -> Row {
    if view.observed.resource.bootstrapped {
        // Without its id and without a labelled volume nothing of the founded cluster can be found again.
        let message = "the cluster was founded, and neither its id nor a volume of it is left";
        return Decision::wait("B7", WaitReason::DataLost, message).now();
    }
    let member = view.observed.nodes.keys().find(|k| view.node(**k).is_some_and(|node| node.marker.is_some()));
    if let Some(k) = member {
        let message = format!("pod {k} runs on the disk of a cluster that nothing here knows");
        return Decision::wait("B3", WaitReason::LeftoverVolume, message).on(*k, None).now();
    }
    if !view.is_uninitialized(0) || view.observed.fresh_id == 0 {
        notes.wait(pod_0_silent(view));
        return NEXT;
    }
    let step = BootstrapStep::Intend {
        cluster_id: view.observed.fresh_id,
        resource_version: view.observed.resource.resource_version.clone(),
    };
    Decision::act("B3", Step::Bootstrap(step)).now()
}

/// B4 and B5: the id is latched, the founding is not.
fn call_and_latch(view: &View<'_>, notes: &mut Notes, cluster_id: u64) -> Row {
    let Some(node) = view.node(0) else {
        if view.exited_with(0, &[ExitKind::WrongDisk]) {
            let message = "pod 0 runs on the disk of another cluster or member";
            return Decision::wait("X6", WaitReason::WrongVolume, message).on(0, None).now();
        }
        notes.wait(pod_0_silent(view));
        return NEXT;
    };
    if node.marker.is_none() {
        return call(view, notes, cluster_id);
    }
    // B5: P1. Before, the client Service leads nowhere, so no write was acknowledged that a second bootstrap could lose.
    if view.list.is_none() {
        let message = "pod 0 has founded the cluster and gives no linearizable answer yet";
        notes.wait(Decision::wait("B5", WaitReason::NoQuorum, message).on(0, None));
        return NEXT;
    }
    let resource_version = view.observed.resource.resource_version.clone();
    Decision::act("B5", Step::Bootstrap(BootstrapStep::Latch { resource_version })).now()
}

/// B4: the second half of `Bootstrap`.
fn call(view: &View<'_>, notes: &mut Notes, cluster_id: u64) -> Row {
    let labelled = view.observed.volumes.iter().find(|(_, volume)| volume.is_labelled());
    if let Some((k, _)) = labelled {
        let message = format!("volume {k} is labelled as a member's, although no cluster was founded");
        return Decision::wait("B4", WaitReason::LeftoverVolume, message).on(*k, None).now();
    }
    let usable = view.pod(0).is_some_and(|pod| pod.terminating.is_none());
    match view.pod_ref(0).filter(|_| usable) {
        Some(pod) => {
            let name = names::pod(&view.cluster.name, 0);
            let peer_url = names::peer_url(view.cluster, 0);
            let step = BootstrapStep::Call { pod, cluster_id, name, peer_url };
            Decision::act("B4", Step::Bootstrap(step)).now()
        }
        None => {
            notes.wait(pod_0_silent(view));
            NEXT
        }
    }
}

/// B7: the cluster was founded and every disk is empty. It is never founded again.
fn data_lost(view: &View<'_>) -> Row {
    let have = view.have();
    let empty = |k| view.is_uninitialized(k) || view.ended_with(k, &[ExitKind::DiskLost]);
    if view.observed.members.is_none() && have > 0 && (0..have).all(empty) {
        let message = "the cluster was founded and every disk is empty";
        return Decision::wait("B7", WaitReason::DataLost, message).now();
    }
    NEXT
}
