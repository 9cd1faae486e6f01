//! The state of the world, and how it moves by itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::names;
use crate::observed::{
    Alarm, ContainerState, ExitKind, Failures, Host, HostState, Marker, Member, MemberList, NodeExit, NodeReport,
    NodeState, Observed, ObservedBudget, ObservedPod, ObservedResource, ObservedSet, ObservedVolume, PodPhase,
    Progress, Settings, UnixSeconds,
};
use crate::plan::proofs::quorum;
use crate::valid::ValidCluster;

/// How far one tick moves the clock.
pub(crate) const TICK_SECONDS: i64 = 5;
/// Ticks that a joined learner needs to catch up.
const CATCH_UP_TICKS: u32 = 2;
/// Grace period of a pod.
pub(crate) const GRACE_SECONDS: i64 = 60;

/// The image of a revision: `image/settings`, or all of it.
pub(crate) fn image_of(revision: &str) -> String {
    revision.rsplit_once('/').map_or(revision, |(image, _)| image).to_owned()
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) cluster: ValidCluster,
    pub(crate) now: i64,
    pub(crate) serial: u64,
    pub(crate) resource: ObservedResource,
    pub(crate) set: Option<ObservedSet>,
    /// Revision that apply gives to the StatefulSet's template: its image, and after a slash all else.
    pub(crate) template: String,
    /// Revisions whose container cannot start.
    pub(crate) broken: BTreeSet<String>,
    /// The settings that change at run time as the ConfigMap has them: what a process starts with.
    pub(crate) config: BTreeMap<String, String>,
    /// Values of settings that every node refuses.
    pub(crate) wrong_settings: BTreeSet<String>,
    /// Ordinals whose nodes can be told no settings, and do not say why afterwards.
    pub(crate) deaf: BTreeSet<u32>,
    /// Ordinals whose pods somebody else lets nobody evict.
    pub(crate) kept: BTreeSet<u32>,
    /// Ordinals whose pods a policy lets nobody end.
    pub(crate) unending: BTreeSet<u32>,
    /// A policy lets nobody label a volume claim.
    pub(crate) unlabelled: bool,
    /// What the operator remembers.
    pub(crate) failures: Failures,
    pub(crate) pods: BTreeMap<u32, Pod>,
    pub(crate) volumes: BTreeMap<u32, Volume>,
    pub(crate) budget: Option<ObservedBudget>,
    pub(crate) raft: Raft,
    /// State of the hosts that are not in order, by name; their kubelets are dead.
    pub(crate) hosts: BTreeMap<String, HostState>,
    /// UIDs of the pods whose process stands still: it runs, and neither answers nor votes.
    pub(crate) hung: BTreeSet<String>,
    /// Every raft id ever given out, to prove that none comes twice.
    pub(crate) ids: BTreeSet<u64>,
    /// What must never happen, and did.
    pub(crate) violations: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Pod {
    pub(crate) object: ObservedPod,
    /// The volume it has mounted; empty while it has none.
    pub(crate) volume_uid: String,
    /// Its process was told to prepare its end; a new process knows nothing of it.
    pub(crate) prepared: bool,
    /// The settings of its process.
    pub(crate) settings: Settings,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Volume {
    pub(crate) object: ObservedVolume,
    pub(crate) disk: Option<Marker>,
    /// Ticks until the disk's log is within the lag bound.
    pub(crate) behind: u32,
    /// When `behind` last became less.
    pub(crate) moved: UnixSeconds,
    pub(crate) corrupt: bool,
    /// How every process on this disk ends, while it lasts.
    pub(crate) trouble: Option<ExitKind>,
}

/// The committed membership; its progress fields are computed when it is listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raft {
    pub(crate) cluster_id: u64,
    pub(crate) index: u64,
    pub(crate) next_id: u64,
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) removed: BTreeSet<u64>,
    pub(crate) alarms: BTreeSet<(Alarm, u64)>,
    pub(crate) leader: u64,
    pub(crate) term: u64,
    /// The leader does not hand over when asked.
    pub(crate) stubborn: bool,
    /// Nothing gets through to those that are behind.
    pub(crate) stalled: bool,
}

impl World {
    /// A `RaftCluster` that was just created.
    pub(crate) fn new(want: u32) -> Self {
        let cluster = ValidCluster {
            namespace: "ns".into(),
            name: "db".into(),
            cluster_domain: "cluster.local".into(),
            generation: 1,
            want,
            ..ValidCluster::default()
        };
        let resource = ObservedResource { resource_version: "1".into(), finalizer: true, ..Default::default() };
        Self {
            cluster,
            now: 1_000_000,
            serial: 1,
            resource,
            set: None,
            template: "a".into(),
            broken: BTreeSet::new(),
            config: BTreeMap::new(),
            wrong_settings: BTreeSet::new(),
            deaf: BTreeSet::new(),
            kept: BTreeSet::new(),
            unending: BTreeSet::new(),
            unlabelled: false,
            failures: Failures::default(),
            pods: BTreeMap::new(),
            volumes: BTreeMap::new(),
            budget: None,
            raft: Raft::default(),
            hosts: BTreeMap::new(),
            hung: BTreeSet::new(),
            ids: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// The user changes a setting that can change at run time.
    pub(crate) fn set_setting(&mut self, name: &str, value: &str) {
        for settings in [&mut self.cluster.node_config, &mut self.cluster.hot] {
            settings.insert(name.to_owned(), value.to_owned());
        }
    }

    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn next_text(&mut self) -> String {
        self.next_serial().to_string()
    }

    /// One step of every controller, kubelet and node.
    pub(crate) fn tick(&mut self) {
        self.now += TICK_SECONDS;
        self.end_pods();
        self.elect();
        self.end_volumes();
        self.control_set();
        self.start_pods();
        self.run_nodes();
        self.elect();
        self.judge_readiness();
    }

    fn host_is_dead(&self, pod: &ObservedPod) -> bool {
        pod.host.as_ref().is_some_and(|host| self.hosts.contains_key(&host.name))
    }

    fn end_pods(&mut self) {
        let ended: Vec<u32> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.object.terminating.is_some() && !self.host_is_dead(&pod.object))
            .map(|(k, _)| *k)
            .collect();
        for k in ended {
            if let Some(pod) = self.pods.get_mut(&k) {
                pod.object.container = ContainerState::Terminated(0);
            }
            self.force_out(k);
        }
    }

    /// Deletion without grace, which is also how a kubelet says that a pod has ended: the object goes, or stays for as long as
    /// somebody's finalizer holds it, and is changed by it once.
    pub(super) fn force_out(&mut self, k: u32) {
        if !self.pods.get(&k).is_some_and(|pod| pod.object.held) {
            self.pods.remove(&k);
            return;
        }
        let (now, version) = (self.now, self.next_text());
        if let Some(pod) = self.pods.get_mut(&k).filter(|pod| !pod.object.forced) {
            pod.object.forced = true;
            pod.object.terminating = Some(pod.object.terminating.map_or(now, |end| end.min(now)));
            pod.object.resource_version = version;
        }
    }

    /// PVC protection: a terminating volume goes when no pod holds it.
    fn end_volumes(&mut self) {
        let held: BTreeSet<&String> = self.pods.values().map(|pod| &pod.volume_uid).collect();
        self.volumes.retain(|_, volume| !volume.object.terminating || held.contains(&volume.object.uid));
    }

    fn control_set(&mut self) {
        let Some(set) = &mut self.set else { return };
        set.observed_generation = set.generation;
        let replicas = set.replicas;
        let revision = set.update_revision.clone();
        let (now, grace_end) = (self.now, self.now + GRACE_SECONDS);
        for (_, pod) in self.pods.range_mut(..replicas) {
            pod.object.orphan = false;
        }
        for (_, pod) in self.pods.range_mut(replicas..) {
            pod.object.terminating.get_or_insert(grace_end);
        }
        for k in 0..replicas {
            if self.pods.contains_key(&k) || self.volumes.get(&k).is_some_and(|volume| volume.object.terminating) {
                continue;
            }
            let object = ObservedPod {
                uid: self.next_text(),
                resource_version: self.next_text(),
                created: now,
                image: revision.as_deref().map(image_of),
                revision: revision.clone(),
                ..Default::default()
            };
            self.pods.insert(k, Pod { object, ..Pod::default() });
            self.provide_volume(k);
        }
    }

    /// The StatefulSet's volumes have no owner and no labels of ours.
    fn provide_volume(&mut self, k: u32) {
        if self.volumes.contains_key(&k) {
            return;
        }
        let object = ObservedVolume { uid: self.next_text(), resource_version: self.next_text(), ..Default::default() };
        self.volumes.insert(k, Volume { object, ..Default::default() });
    }

    fn start_pods(&mut self) {
        let ordinals: Vec<u32> = self.pods.keys().copied().collect();
        for k in ordinals {
            if self.pods[&k].object.host.is_none() {
                self.provide_volume(k);
                self.schedule(k);
            }
            let state = self.container_of(k);
            let Some(pod) = self.pods.get_mut(&k) else { continue };
            let frozen = pod.object.forced || self.hung.contains(&pod.object.uid);
            if frozen || self.hosts.contains_key(&pod.object.host.clone().unwrap_or_default().name) {
                continue;
            }
            if pod.object.container == state {
                continue;
            }
            self.serial += 1;
            pod.object.resource_version = self.serial.to_string();
            pod.object.phase = if state == ContainerState::Running { PodPhase::Running } else { PodPhase::Pending };
            pod.prepared = false;
            // A version outlives the process, and what the process starts with counts as a change.
            let version = pod.settings.version + 1;
            pod.settings = Settings { version, values: self.config.clone(), refused: None };
            pod.object.container = state;
        }
    }

    fn schedule(&mut self, k: u32) {
        let Some(volume) = self.volumes.get(&k).filter(|volume| !volume.object.terminating) else { return };
        let uid = volume.object.uid.clone();
        let lost = volume.object.pinned.as_ref().is_some_and(|host| self.hosts.contains_key(&host.name));
        let now = self.now;
        let Some(pod) = self.pods.get_mut(&k) else { return };
        if lost {
            pod.object.unschedulable.get_or_insert(now);
            return;
        }
        let fresh = (0..).map(|n| format!("host-{k}-{n}")).find(|name| !self.hosts.contains_key(name));
        pod.volume_uid = uid;
        pod.object.unschedulable = None;
        pod.object.host = fresh.map(|name| Host { name, state: HostState::Present });
    }

    /// What the container of `k` does, given its image, its disk and what its peers tell.
    fn container_of(&mut self, k: u32) -> ContainerState {
        let pod = &self.pods[&k];
        if pod.volume_uid.is_empty() {
            return ContainerState::Absent;
        }
        if pod.object.revision.as_ref().is_some_and(|revision| self.broken.contains(revision)) {
            return ContainerState::Waiting("ImagePullBackOff".into());
        }
        let Some(exit) = self.refusal(k) else { return ContainerState::Running };
        if let Some(pod) = self.pods.get_mut(&k) {
            pod.object.exit = Some(exit);
        }
        ContainerState::Terminated(exit.kind.code())
    }

    /// Why the node of `k` refuses to run on its disk.
    fn refusal(&self, k: u32) -> Option<NodeExit> {
        let volume = self.volumes.get(&k)?;
        let listed = self.listed(k);
        let exit = |kind| Some(NodeExit { kind, marker: volume.disk });
        match volume.disk {
            None if listed.is_some_and(|(_, member)| member.started) => exit(ExitKind::DiskLost),
            None => None,
            Some(_) if volume.trouble.is_some() => volume.trouble.and_then(exit),
            Some(_) if volume.corrupt => exit(ExitKind::Corrupt),
            Some(marker) if marker.cluster_id == self.raft.cluster_id => {
                if self.raft.removed.contains(&marker.raft_id) {
                    exit(ExitKind::MemberRemoved)
                } else if listed.is_some_and(|(id, _)| id != marker.raft_id) {
                    exit(ExitKind::WrongDisk)
                } else {
                    None
                }
            }
            Some(_) => None,
        }
    }

    /// The member whose peer URL is ordinal `k`'s.
    pub(crate) fn listed(&self, k: u32) -> Option<(u64, &Member)> {
        let url = names::peer_url(&self.cluster, k);
        self.raft.members.iter().find(|(_, member)| member.peer_urls.contains(&url)).map(|(id, m)| (*id, m))
    }

    pub(crate) fn ordinal(&self, id: u64) -> Option<u32> {
        let url = self.raft.members.get(&id)?.peer_urls.first()?;
        names::peer_url_ordinal(&self.cluster, url)
    }

    /// The process of `k` runs and reaches the others.
    pub(crate) fn runs(&self, k: u32) -> bool {
        self.pods.get(&k).map(|pod| &pod.object).is_some_and(|pod| {
            pod.container == ContainerState::Running && !self.host_is_dead(pod) && !self.hung.contains(&pod.uid)
        })
    }

    /// Member `id` votes and answers.
    pub(crate) fn is_up(&self, id: u64) -> bool {
        self.ordinal(id).is_some_and(|k| {
            self.runs(k)
                && self.volumes.get(&k).and_then(|volume| volume.disk).is_some_and(|marker| marker.raft_id == id)
        })
    }

    pub(crate) fn voters(&self) -> Vec<u64> {
        self.raft.members.iter().filter(|(_, member)| !member.learner).map(|(id, _)| *id).collect()
    }

    /// Voters other than `victim` that are up, out of how many.
    pub(crate) fn up_without(&self, victim: u64) -> usize {
        self.voters().into_iter().filter(|id| *id != victim && self.is_up(*id)).count()
    }

    pub(crate) fn has_quorum(&self) -> bool {
        let voters = self.voters();
        !voters.is_empty() && self.up_without(0) >= quorum(voters.len()) && self.is_up(self.raft.leader)
    }

    fn run_nodes(&mut self) {
        let quorum = self.has_quorum();
        let members: Vec<u64> = self.raft.members.keys().copied().collect();
        for id in members {
            if !quorum || !self.is_up(id) {
                continue;
            }
            let ordinal = self.ordinal(id);
            if let Some(member) = self.raft.members.get_mut(&id) {
                member.started = true;
            }
            if let Some(volume) = ordinal.and_then(|k| self.volumes.get_mut(&k))
                && volume.behind > 0
                && !self.raft.stalled
            {
                volume.behind -= 1;
                volume.moved = self.now;
            }
        }
    }

    fn elect(&mut self) {
        let voters = self.voters();
        let leads = voters.contains(&self.raft.leader) && self.is_up(self.raft.leader);
        if leads || self.up_without(0) < quorum(voters.len()) {
            return;
        }
        let fit = |id: &u64| self.is_up(*id) && self.behind(*id) == 0;
        if let Some(next) = voters.iter().copied().find(fit) {
            self.raft.leader = next;
            self.raft.term += 1;
        }
    }

    pub(crate) fn behind(&self, id: u64) -> u32 {
        self.ordinal(id).and_then(|k| self.volumes.get(&k)).map_or(u32::MAX, |volume| volume.behind)
    }

    /// When something moved last for this member.
    fn moved(&self, id: u64) -> UnixSeconds {
        self.ordinal(id).and_then(|k| self.volumes.get(&k)).map_or(self.now, |volume| volume.moved)
    }

    fn judge_readiness(&mut self) {
        let quorum = self.has_quorum();
        let ready: BTreeMap<u32, bool> = self.pods.keys().map(|k| (*k, quorum && self.serves(*k))).collect();
        for (k, pod) in &mut self.pods {
            if pod.object.ready != ready[k] {
                self.serial += 1;
                pod.object.ready = ready[k];
                pod.object.resource_version = self.serial.to_string();
            }
        }
    }

    fn serves(&self, k: u32) -> bool {
        let voter = self.listed(k).filter(|(_, member)| !member.learner);
        voter.is_some_and(|(id, _)| self.is_up(id) && self.behind(id) == 0)
            && self.pods.get(&k).is_some_and(|pod| pod.object.terminating.is_none() && !pod.prepared)
    }

    pub(crate) fn joined(volume: &mut Volume, marker: Marker, behind: bool, now: UnixSeconds) {
        volume.moved = now;
        volume.disk = Some(marker);
        volume.behind = if behind { CATCH_UP_TICKS } else { 0 };
    }

    /// Everything that a pass reads.
    pub(crate) fn observe(&self) -> Observed {
        let pods = self.pods.iter().map(|(k, pod)| (*k, self.pod_as_read(pod))).collect();
        let mut observed = Observed {
            now: self.now,
            fresh_id: 0xc000 + self.serial,
            resource: self.resource.clone(),
            set: self.set.clone(),
            pods,
            unmade: BTreeMap::new(),
            volumes: self.volumes.iter().map(|(k, volume)| (*k, self.volume_as_read(volume))).collect(),
            nodes: self.pods.keys().map(|k| (*k, self.report(*k))).collect(),
            members: self.list(),
            budget: self.budget.clone(),
            served: None,
            dissent: None,
            failures: Failures::default(),
        };
        observed.remember(self.failures.clone());
        observed
    }

    fn pod_as_read(&self, pod: &Pod) -> ObservedPod {
        let mut object = pod.object.clone();
        if let Some(host) = &mut object.host
            && let Some(state) = self.hosts.get(&host.name)
        {
            host.state = *state;
        }
        object
    }

    fn volume_as_read(&self, volume: &Volume) -> ObservedVolume {
        let mut object = volume.object.clone();
        if let Some(host) = &mut object.pinned
            && let Some(state) = self.hosts.get(&host.name)
        {
            host.state = *state;
        }
        object
    }

    pub(crate) fn report(&self, k: u32) -> NodeReport {
        if !self.runs(k) {
            return NodeReport::Unreachable;
        }
        let marker = self.volumes.get(&k).and_then(|volume| volume.disk);
        let voter = self.listed(k).is_some_and(|(id, m)| !m.learner && Some(id) == marker.map(|m| m.raft_id));
        NodeReport::Answered(NodeState {
            marker,
            voter,
            leader: self.raft.leader,
            term: self.raft.term,
            membership_index: self.raft.index,
            stopping: self.pods.get(&k).is_some_and(|pod| pod.object.terminating.is_some() || pod.prepared),
            ready: self.pods.get(&k).is_some_and(|pod| pod.object.ready),
            settings: self.pods.get(&k).map(|pod| pod.settings.clone()),
            ..Default::default()
        })
    }

    /// The linearizable list, if there is a quorum for one.
    pub(crate) fn list(&self) -> Option<MemberList> {
        if !self.has_quorum() {
            return None;
        }
        let progress = |id: u64| {
            let (active, behind) = (self.is_up(id), self.behind(id));
            Progress {
                match_index: 100u64.saturating_sub(behind.into()),
                active,
                snapshot_running: false,
                caught_up: behind == 0,
                still_seconds: if behind == 0 { 0 } else { self.now.saturating_sub(self.moved(id)) },
            }
        };
        let members = self.raft.members.iter().map(|(id, member)| {
            let known = (*id != self.raft.leader).then(|| progress(*id));
            (*id, Member { progress: known, ..member.clone() })
        });
        Some(MemberList {
            cluster_id: self.raft.cluster_id,
            membership_index: self.raft.index,
            leader: self.raft.leader,
            term: self.raft.term,
            commit_index: 100,
            change_in_flight: false,
            members: members.collect(),
            removed: self.raft.removed.clone(),
            alarms: self.raft.alarms.clone(),
        })
    }
}
