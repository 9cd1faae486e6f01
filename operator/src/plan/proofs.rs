//! The proofs that rows demand before they act, and the facts they are made of.
//!
//! Owns every counting of voters. A proof that cannot be made is never assumed: unknown is treated as not proven.

use std::collections::BTreeMap;

use super::RETRY_SECONDS;
use crate::failures::labels;
use crate::names::{self, LABEL_RAFT_ID};
use crate::observed::{
    ContainerState, ExitKind, Failure, HostState, Marker, Member, MemberList, NodeExit, NodeState, Observed,
    ObservedPod, ObservedSet, ObservedVolume,
};
use crate::step::{ObjectRef, PodRef, VolumeLabel, VolumeRef};
use crate::valid::ValidCluster;

/// A majority of `voters`.
pub(super) fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// The observation with the questions that rows ask of it.
pub(super) struct View<'a> {
    pub(super) cluster: &'a ValidCluster,
    pub(super) observed: &'a Observed,
    /// P1: the linearizable list, only if it is from the latched cluster and nobody has told otherwise whom a majority does not
    /// outvote.
    pub(super) list: Option<&'a MemberList>,
    /// Listed members by the ordinal of their peer URL.
    by_ordinal: BTreeMap<u32, u64>,
    /// Listed members that have no single ordinal of ours.
    pub(super) foreign: Vec<u64>,
}

impl<'a> View<'a> {
    pub(super) fn new(cluster: &'a ValidCluster, observed: &'a Observed) -> Self {
        let latched = observed.resource.cluster_id;
        let disputed = observed.dissent.as_ref().is_some_and(|dissent| !dissent.outvoted);
        let list = observed.members.as_ref().filter(|list| Some(list.cluster_id) == latched && !disputed);
        let mut by_ordinal = BTreeMap::new();
        let mut foreign = Vec::new();
        for (id, member) in list.iter().flat_map(|list| &list.members) {
            match ordinal_of(cluster, member) {
                Some(ordinal) if !by_ordinal.contains_key(&ordinal) => {
                    by_ordinal.insert(ordinal, *id);
                }
                _ => foreign.push(*id),
            }
        }
        Self { cluster, observed, list, by_ordinal, foreign }
    }

    pub(super) fn want(&self) -> u32 {
        self.cluster.want
    }

    /// Replicas of the StatefulSet; the gates have ended the search when there is none.
    pub(super) fn have(&self) -> u32 {
        self.observed.set.as_ref().map_or(0, |set| set.replicas)
    }

    pub(super) fn set(&self) -> Option<&'a ObservedSet> {
        self.observed.set.as_ref()
    }

    pub(super) fn pod(&self, k: u32) -> Option<&'a ObservedPod> {
        self.observed.pods.get(&k)
    }

    pub(super) fn volume(&self, k: u32) -> Option<&'a ObservedVolume> {
        self.observed.volumes.get(&k)
    }

    pub(super) fn node(&self, k: u32) -> Option<&'a NodeState> {
        self.observed.node(k)
    }

    /// The node of ordinal `k` answers that its disk is of no cluster.
    pub(super) fn is_uninitialized(&self, k: u32) -> bool {
        self.node(k).is_some_and(|node| node.marker.is_none())
    }

    /// `m(k)`: id and member of ordinal `k`.
    pub(super) fn member(&self, k: u32) -> Option<(u64, &'a Member)> {
        let id = *self.by_ordinal.get(&k)?;
        Some((id, self.list?.members.get(&id)?))
    }

    /// Listed members with an ordinal: ordinal, id, member; lowest ordinal first.
    pub(super) fn members(&self) -> impl DoubleEndedIterator<Item = (u32, u64, &'a Member)> + '_ {
        self.by_ordinal.iter().filter_map(|(k, id)| Some((*k, *id, self.list?.members.get(id)?)))
    }

    pub(super) fn voters(&self) -> impl DoubleEndedIterator<Item = (u32, u64, &'a Member)> + '_ {
        self.members().filter(|(_, _, member)| !member.learner)
    }

    pub(super) fn learners(&self) -> impl DoubleEndedIterator<Item = (u32, u64, &'a Member)> + '_ {
        self.members().filter(|(_, _, member)| member.learner)
    }

    pub(super) fn is_leader(&self, id: u64) -> bool {
        id != 0 && self.list.is_some_and(|list| list.leader == id)
    }

    pub(super) fn membership_index(&self) -> u64 {
        self.list.map_or(0, |list| list.membership_index)
    }

    /// P5: this pass's linearizable list shows the id among the removed ones and not among the members.
    pub(super) fn is_removed(&self, id: u64) -> bool {
        self.list.is_some_and(|list| list.removed.contains(&id) && !list.members.contains_key(&id))
    }

    /// The way in which the process of `k` ended, while no process runs.
    pub(super) fn exit(&self, k: u32) -> Option<NodeExit> {
        if self.node(k).is_some() {
            return None;
        }
        self.pod(k)?.exit
    }

    /// The way in which the process of `k` ended, while it is over: none runs, not even one that does not answer yet.
    pub(super) fn ended(&self, k: u32) -> Option<NodeExit> {
        self.exit(k).filter(|_| self.pod(k).is_some_and(|pod| pod.container != ContainerState::Running))
    }

    /// Enough to wait for. A process that starts again and again is told by its last end while it starts.
    pub(super) fn exited_with(&self, k: u32, kinds: &[ExitKind]) -> bool {
        self.exit(k).is_some_and(|exit| kinds.contains(&exit.kind))
    }

    /// What it takes to give a member up. A pod keeps its last end for life, and outlives the member that it ended as: the
    /// process that runs in it now may only be silent.
    pub(super) fn ended_with(&self, k: u32, kinds: &[ExitKind]) -> bool {
        self.ended(k).is_some_and(|exit| kinds.contains(&exit.kind))
    }

    /// `disk(k)` as its node tells: from the status, else from the exit message. A wrong disk speaks for no ordinal.
    pub(super) fn reported_marker(&self, k: u32) -> Option<Marker> {
        match self.node(k) {
            Some(node) => node.marker,
            None => self.exit(k).filter(|exit| exit.kind != ExitKind::WrongDisk)?.marker,
        }
    }

    /// `disk(k)`: as its node tells, else as the volume's labels tell.
    pub(super) fn disk(&self, k: u32) -> Option<Marker> {
        self.reported_marker(k).or_else(|| self.volume(k)?.marker)
    }

    /// The labels of the volume of `k` tell of member `id` of this cluster.
    pub(super) fn is_labelled_for(&self, k: u32, id: u64) -> bool {
        let label = self.volume(k).and_then(|volume| volume.marker);
        label.is_some_and(|l| l.raft_id == id && Some(l.cluster_id) == self.observed.resource.cluster_id)
    }

    /// The disk of `k` belonged to a member that this cluster has removed.
    pub(super) fn removed_disk(&self, k: u32) -> Option<u64> {
        let marker = self.disk(k)?;
        (Some(marker.cluster_id) == self.observed.resource.cluster_id && self.is_removed(marker.raft_id))
            .then_some(marker.raft_id)
    }

    /// It answered as this member, is active at the leader, within the lag bound, and nothing ends it: neither its pod
    /// nor its volume is being deleted (a Terminating volume is lost at the next restart). One that was told to prepare
    /// its end still votes.
    pub(super) fn is_healthy(&self, k: u32, id: u64, member: &Member) -> bool {
        let answered = self.node(k).is_some_and(|node| {
            node.marker.is_some_and(|marker| {
                marker.raft_id == id && Some(marker.cluster_id) == self.observed.resource.cluster_id
            })
        });
        let stays = self.pod(k).is_some_and(|pod| pod.terminating.is_none())
            && self.volume(k).is_none_or(|volume| !volume.terminating);
        let follows = self.is_leader(id) || member.progress.is_some_and(|p| p.active && p.caught_up);
        answered && stays && follows
    }

    /// Healthy and in the client Service.
    pub(super) fn is_serving(&self, k: u32, id: u64, member: &Member) -> bool {
        self.is_healthy(k, id, member) && self.pod(k).is_some_and(|pod| pod.ready)
    }

    fn healthy_voters_without(&self, victim: u64) -> usize {
        self.voters().filter(|(k, id, member)| *id != victim && self.is_healthy(*k, *id, member)).count()
    }

    /// P4 for a removal: healthy voters other than the victim are a majority of the voters that result.
    pub(super) fn quorum_after_removal(&self, victim: u64) -> bool {
        let resulting = self.voters().filter(|(_, id, _)| *id != victim).count();
        resulting > 0 && self.healthy_voters_without(victim) >= quorum(resulting)
    }

    /// P4 for a restart: healthy voters other than the victim are a majority of all voters.
    pub(super) fn quorum_during_restart(&self, victim: u64) -> bool {
        self.healthy_voters_without(victim) >= quorum(self.voters().count())
    }

    /// The voters other than `except` that do not serve.
    pub(super) fn voters_not_serving(&self, except: u64) -> Vec<u32> {
        self.voters().filter(|(k, id, m)| *id != except && !self.is_serving(*k, *id, m)).map(|(k, ..)| k).collect()
    }

    /// The most caught-up healthy voter that `admits`, as the next leader: highest match index, then lowest ordinal.
    pub(super) fn next_leader(&self, admits: impl Fn(u32) -> bool) -> Option<u64> {
        self.voters()
            .filter(|(k, id, member)| admits(*k) && !self.is_leader(*id) && self.is_healthy(*k, *id, member))
            .filter(|(k, ..)| self.node(*k).is_some_and(|node| !node.stopping))
            .max_by_key(|(k, _, member)| (member.progress.map(|p| p.match_index), std::cmp::Reverse(*k)))
            .map(|(_, id, _)| id)
    }

    /// A replacement is under way in place of another ordinal than `k`: a learner that has a pod, or no member.
    pub(super) fn replacement_elsewhere(&self, k: u32) -> bool {
        (0..self.have().min(self.want()))
            .filter(|j| *j != k)
            .any(|j| self.member(j).is_none_or(|(_, member)| member.learner))
    }

    /// The pod of `k` runs another template than the StatefulSet's. Unknown revisions are not outdated.
    pub(super) fn is_outdated(&self, k: u32) -> bool {
        let wanted = self.set().and_then(|set| set.update_revision.as_ref());
        match (self.pod(k).and_then(|pod| pod.revision.as_ref()), wanted) {
            (Some(is), Some(wanted)) => is != wanted,
            _ => false,
        }
    }

    /// The pod of `k` is outdated by something else than its image: a restart brings no other version.
    pub(super) fn is_outdated_in_settings(&self, k: u32) -> bool {
        let wanted = self.set().and_then(|set| set.image.as_ref());
        self.is_outdated(k) && wanted.is_some() && self.pod(k).and_then(|pod| pod.image.as_ref()) == wanted
    }

    /// P8 for the volume of `k`.
    pub(super) fn volume_is_on_gone_host(&self, k: u32) -> bool {
        let pinned = self.volume(k).and_then(|volume| volume.pinned.as_ref());
        // An out-of-service host may come back with its disk; only a deleted Node object gives a local volume up.
        pinned.is_some_and(|host| host.state == HostState::Gone)
    }

    /// A failure of the present pod of `k`.
    fn failure(&self, failures: &'a BTreeMap<u32, Failure>, k: u32) -> Option<&'a Failure> {
        failures.get(&k).filter(|failure| self.pod(k).is_some_and(|pod| pod.uid == failure.uid))
    }

    /// The last restart of the present pod of `k`, if it failed.
    pub(super) fn failed_restart(&self, k: u32) -> Option<&'a Failure> {
        self.failure(&self.observed.failures.restarts, k)
    }

    /// That the present volume of `k` could not be labelled so.
    pub(super) fn failed_label(&self, k: u32, label: VolumeLabel) -> Option<&'a Failure> {
        let failure = self.observed.failures.labels.get(&k)?;
        let same = self.volume(k).is_some_and(|volume| volume.uid == failure.uid);
        (same && failure.told == labels(label)).then_some(failure)
    }

    /// The volume of `k` could not be labelled as the disk of member `id`, and still is not.
    pub(super) fn is_refused_for(&self, k: u32, id: u64) -> bool {
        let told = self.observed.failures.labels.get(&k).and_then(|failure| failure.told.get(LABEL_RAFT_ID));
        told.is_some_and(|told| *told == names::id_text(id)) && self.volume(k).is_some_and(|volume| volume.unclear)
    }

    /// Volumes cannot be labelled: a member that is new would not become a voter.
    pub(super) fn labels_are_refused(&self) -> bool {
        self.observed.failures.labels.values().any(|failure| failure.told.contains_key(LABEL_RAFT_ID))
    }

    /// That the member of `k` was told exactly these settings.
    pub(super) fn failure_of_settings(&self, k: u32, wanted: &BTreeMap<String, String>) -> Option<&'a Failure> {
        self.failure(&self.observed.failures.settings, k).filter(|failure| failure.told == *wanted)
    }

    /// Why the pod of `k` could not be restarted, when that was tried for so long that others do not wait for it any more,
    /// and until it is tried again.
    pub(super) fn failure_of_restart(&self, k: u32) -> Option<&str> {
        let failure = self.failed_restart(k)?;
        let long = failure.last.saturating_sub(failure.since) >= RETRY_SECONDS;
        let recent = (0..RETRY_SECONDS).contains(&self.observed.now.saturating_sub(failure.last));
        (long && recent).then_some(failure.message.as_str())
    }

    pub(super) fn pod_ref(&self, k: u32) -> Option<PodRef> {
        let pod = self.pod(k)?;
        Some(PodRef { ordinal: k, uid: pod.uid.clone(), resource_version: pod.resource_version.clone() })
    }

    pub(super) fn volume_ref(&self, k: u32) -> Option<VolumeRef> {
        let volume = self.volume(k)?;
        Some(VolumeRef { ordinal: k, uid: volume.uid.clone(), resource_version: volume.resource_version.clone() })
    }

    pub(super) fn set_ref(&self) -> Option<ObjectRef> {
        let set = self.set()?;
        Some(ObjectRef { uid: set.uid.clone(), resource_version: set.resource_version.clone() })
    }

    /// Ready pods that have no vote: removed members that have not noticed yet. The budget's selector counts them.
    fn ready_without_vote(&self) -> usize {
        let votes = |k: &u32| self.member(*k).is_some_and(|(_, member)| !member.learner);
        self.observed.pods.iter().filter(|(k, pod)| pod.ready && !votes(k)).count()
    }

    /// What the budget must hold while this member is removed: afterwards its pod is counted, but has no vote.
    fn budget_for_removal(&self, victim: u64) -> usize {
        let Some((k, ..)) = self.voters().find(|(_, id, _)| *id == victim) else { return 0 };
        if !self.pod(k).is_some_and(|pod| pod.ready) {
            return 0;
        }
        quorum(self.voters().count() - 1) + 1 + self.ready_without_vote()
    }

    /// What the budget must hold while a learner becomes a voter.
    fn budget_for_promotion(&self) -> usize {
        quorum(self.voters().count() + 1) + self.ready_without_vote()
    }

    fn budget_holds(&self, needed: usize) -> bool {
        let held = self.observed.budget.as_ref().and_then(|budget| budget.min_available).unwrap_or(0);
        held as usize >= needed
    }

    /// The budget as read back protects the voters that remain when `victim` is removed.
    pub(super) fn budget_admits_removal(&self, victim: u64) -> bool {
        self.budget_holds(self.budget_for_removal(victim))
    }

    /// The budget as read back protects the voters that a promotion results in.
    pub(super) fn budget_admits_promotion(&self) -> bool {
        self.budget_holds(self.budget_for_promotion())
    }

    /// The budget as read back refuses to evict a voter although all of them serve, and it is we who want it so: raised for
    /// a removal that may come soon. What somebody else has written into it is overwritten, and not evaded.
    pub(super) fn budget_refuses_every_eviction(&self) -> bool {
        let pods = self.voters().count() + self.ready_without_vote();
        let wanted = min_available(self.cluster, self.observed).unwrap_or(0);
        self.budget_holds(pods) && wanted as usize >= pods
    }

    /// Members that the plan may remove soon while they serve: the one to scale away, those to replace. Not yet the leader:
    /// it moves first, and when it will not, its pod must be evictable (I4).
    fn removal_ahead(&self, k: u32, id: u64) -> bool {
        if self.is_leader(id) {
            return false;
        }
        let scaled_away = k >= self.want() && k.saturating_add(1) >= self.have();
        let replaced = self.cluster.replace_member == Some(id);
        let losing_disk = self.volume(k).is_some_and(|volume| volume.terminating);
        scaled_away || replaced || losing_disk
    }
}

fn ordinal_of(cluster: &ValidCluster, member: &Member) -> Option<u32> {
    match member.peer_urls.as_slice() {
        [url] => names::peer_url_ordinal(cluster, url),
        _ => None,
    }
}

/// The `minAvailable` that the disruption budget must have now; `None` means that no budget is wanted.
///
/// It is the quorum of the voters as observed, counted on all pods: raised before a promotion and before a serving
/// member loses its vote, lowered only when the removed member's pod is no longer Ready. Without a list it stays.
pub fn min_available(cluster: &ValidCluster, observed: &Observed) -> Option<u32> {
    let view = View::new(cluster, observed);
    let voters = view.voters().count();
    if voters == 0 {
        return observed.budget.as_ref().and_then(|budget| budget.min_available);
    }
    let caught_up = view.learners().any(|(_, _, member)| member.progress.is_some_and(|p| p.caught_up && p.active));
    let removals =
        view.voters().filter(|(k, id, _)| view.removal_ahead(*k, *id)).map(|(_, id, _)| view.budget_for_removal(id));
    let needed = [quorum(voters) + view.ready_without_vote()]
        .into_iter()
        .chain(caught_up.then(|| view.budget_for_promotion()))
        .chain(removals)
        .max()
        .unwrap_or(0);
    if needed <= 1 && !cluster.protect_single {
        return None;
    }
    u32::try_from(needed).ok()
}
