//! How the world takes one step: preconditions of the API server, refusals of the nodes, and the checks of what must
//! never happen.

use std::collections::BTreeMap;

use super::world::{GRACE_SECONDS, Raft, World};
use crate::observed::{Marker, Member, Settings};
use crate::plan::proofs::quorum;
use crate::step::{BootstrapStep, ObjectRef, PodRef, RestartMode, Step, VolumeLabel, VolumeRef};

/// A call that took no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// 404 or 409: the object is not the one that was decided on.
    Conflict,
    /// The membership index has moved.
    ConfigChanged,
    /// The node's own refusal.
    Node(&'static str),
    /// 429: the disruption budget.
    Budget,
    /// The node finds a setting wrong.
    Settings,
    /// 403: a policy of somebody else's.
    Policy,
}

pub(crate) type Done = Result<(), Refused>;

impl World {
    /// Performs the step. `fresh` says that nothing changed since it was decided, so that every proof must still hold.
    pub(crate) fn execute(&mut self, step: &Step, fresh: bool) -> Done {
        self.check_removal(step, fresh);
        match step {
            Step::Wait | Step::Settled => Ok(()),
            Step::Bootstrap(step) => self.bootstrap(step),
            Step::AddLearner { peer_url, membership_index, .. } => self.add(peer_url, *membership_index),
            Step::Join { pod, marker, .. } => self.join(pod, *marker),
            Step::LabelVolume { volume, label } => self.label(volume, *label),
            Step::ScaleOut { set, replicas } | Step::ScaleIn { set, replicas } => self.scale(set, *replicas),
            Step::Promote { raft_id, membership_index, .. } => self.promote(*raft_id, *membership_index),
            Step::MoveLeader { from, to, .. } => self.move_leader(*from, *to),
            Step::SetConfig { pod, version, settings, .. } => self.set_config(pod, *version, settings),
            Step::PrepareStop { pod, marker } => self.prepare_stop(pod, *marker),
            Step::RemoveMember { raft_id, membership_index, .. } => self.remove(*raft_id, *membership_index),
            Step::DropVolume { volume, .. } => self.drop_volume(volume),
            Step::RestartPod { pod, mode, .. } => self.restart(pod, *mode, fresh),
            Step::RecreateSet { set, .. } => self.recreate_set(set, fresh),
            Step::DeleteSet { set } => self.delete_set(set),
            Step::DeleteBudget { budget } => self.delete_budget(budget),
            Step::DropFinalizer { resource_version } if *resource_version != self.resource.resource_version => {
                Err(Refused::Conflict)
            }
            Step::DropFinalizer { .. } => {
                self.resource.finalizer = false;
                Ok(())
            }
        }
    }

    fn bootstrap(&mut self, step: &BootstrapStep) -> Done {
        let current = self.resource.resource_version.clone();
        let unchanged = |read: &String| if *read == current { Ok(()) } else { Err(Refused::Conflict) };
        match step {
            BootstrapStep::Intend { cluster_id, resource_version }
            | BootstrapStep::Adopt { cluster_id, resource_version } => {
                unchanged(resource_version)?;
                self.resource.cluster_id = Some(*cluster_id);
            }
            BootstrapStep::Latch { resource_version } => {
                unchanged(resource_version)?;
                self.resource.bootstrapped = true;
            }
            BootstrapStep::Call { pod, cluster_id, peer_url, .. } => return self.found(pod, *cluster_id, peer_url),
        }
        self.resource.resource_version = self.next_text();
        Ok(())
    }

    pub(crate) fn found(&mut self, pod: &PodRef, cluster_id: u64, peer_url: &str) -> Done {
        self.same_pod(pod)?;
        if !self.runs(0) {
            return Err(Refused::Node("unreachable"));
        }
        // A call of long ago must not reach the pod's next process, which may have an empty disk again.
        if self.pods.get(&0).is_none_or(|is| is.object.resource_version != pod.resource_version) {
            return Err(Refused::Conflict);
        }
        let incarnation = self.next_serial();
        let now = self.now;
        let volume = self.volumes.get_mut(&0).ok_or(Refused::Conflict)?;
        if let Some(marker) = volume.disk {
            return if marker.cluster_id == cluster_id { Ok(()) } else { Err(Refused::Node("WrongDisk")) };
        }
        if self.resource.bootstrapped {
            self.violations.push("(e) a second bootstrap".into());
        }
        World::joined(volume, Marker { cluster_id, raft_id: 1, incarnation }, false, now);
        let founder = Member { peer_urls: vec![peer_url.to_owned()], started: true, ..Default::default() };
        let members = [(1, founder)].into();
        self.raft = Raft { cluster_id, index: 1, next_id: 2, members, leader: 1, term: 1, ..Default::default() };
        self.ids.insert(1);
        Ok(())
    }

    fn same_pod(&self, pod: &PodRef) -> Done {
        match self.pods.get(&pod.ordinal) {
            Some(is) if is.object.uid == pod.uid => Ok(()),
            _ => Err(Refused::Conflict),
        }
    }

    fn same_volume(&self, volume: &VolumeRef) -> Done {
        match self.volumes.get(&volume.ordinal) {
            Some(is) if is.object.uid == volume.uid && is.object.resource_version == volume.resource_version => Ok(()),
            _ => Err(Refused::Conflict),
        }
    }

    fn planned_on(&self, index: u64) -> Done {
        if !self.has_quorum() {
            return Err(Refused::Node("NoLeader"));
        }
        if self.raft.index == index { Ok(()) } else { Err(Refused::ConfigChanged) }
    }

    pub(crate) fn add(&mut self, peer_url: &str, index: u64) -> Done {
        if self.raft.members.values().any(|member| member.peer_urls.iter().any(|url| url == peer_url)) {
            return Ok(());
        }
        self.planned_on(index)?;
        let id = self.raft.next_id;
        if !self.ids.insert(id) {
            self.violations.push(format!("(b) raft id {id} twice"));
        }
        let member = Member { peer_urls: vec![peer_url.to_owned()], learner: true, ..Default::default() };
        self.raft.members.insert(id, member);
        self.raft.next_id += 1;
        self.raft.index += 1;
        Ok(())
    }

    pub(crate) fn join(&mut self, pod: &PodRef, marker: Marker) -> Done {
        self.same_pod(pod)?;
        if !self.runs(pod.ordinal) {
            return Err(Refused::Node("unreachable"));
        }
        let now = self.now;
        let volume = self.volumes.get_mut(&pod.ordinal).ok_or(Refused::Conflict)?;
        match volume.disk {
            None => World::joined(volume, marker, true, now),
            Some(is) if is == marker => {}
            Some(_) => return Err(Refused::Node("WrongDisk")),
        }
        Ok(())
    }

    pub(crate) fn label(&mut self, volume: &VolumeRef, label: VolumeLabel) -> Done {
        self.same_volume(volume)?;
        if self.unlabelled {
            return Err(Refused::Policy);
        }
        let version = self.next_text();
        let is = self.volumes.get_mut(&volume.ordinal).ok_or(Refused::Conflict)?;
        match label {
            VolumeLabel::Member(marker) => is.object.marker = Some(marker),
            VolumeLabel::Detached => is.object.detached = true,
        }
        is.object.resource_version = version;
        Ok(())
    }

    pub(crate) fn scale(&mut self, set: &ObjectRef, replicas: u32) -> Done {
        let version = self.next_text();
        let is = self.set.as_mut().ok_or(Refused::Conflict)?;
        if is.uid != set.uid || is.resource_version != set.resource_version {
            return Err(Refused::Conflict);
        }
        if is.replicas.abs_diff(replicas) != 1 {
            self.violations.push(format!("replicas from {} to {replicas}", is.replicas));
        }
        is.replicas = replicas;
        is.generation += 1;
        is.resource_version = version;
        Ok(())
    }

    pub(crate) fn promote(&mut self, id: u64, index: u64) -> Done {
        match self.raft.members.get(&id) {
            None => return Err(Refused::Node("MemberNotFound")),
            Some(member) if !member.learner => return Ok(()),
            Some(_) => {}
        }
        self.planned_on(index)?;
        if !self.is_up(id) || self.behind(id) > 0 {
            return Err(Refused::Node("NotCaughtUp"));
        }
        if let Some(member) = self.raft.members.get_mut(&id) {
            member.learner = false;
        }
        self.raft.index += 1;
        Ok(())
    }

    pub(crate) fn move_leader(&mut self, from: u64, to: u64) -> Done {
        if self.raft.leader == to {
            return Ok(());
        }
        if self.raft.leader != from || self.raft.stubborn || !self.voters().contains(&to) || !self.is_up(to) {
            return Err(Refused::Node("BadTransferee"));
        }
        self.raft.leader = to;
        self.raft.term += 1;
        Ok(())
    }

    /// All or nothing, and only above the present version; what is refused is remembered by the process.
    pub(crate) fn set_config(&mut self, pod: &PodRef, version: u64, settings: &BTreeMap<String, String>) -> Done {
        self.same_pod(pod)?;
        if !self.runs(pod.ordinal) {
            return Err(Refused::Node("unreachable"));
        }
        if self.deaf.contains(&pod.ordinal) {
            return Err(Refused::Settings);
        }
        let wrong = settings.values().find(|value| self.wrong_settings.contains(*value)).cloned();
        let is = &mut self.pods.get_mut(&pod.ordinal).ok_or(Refused::Conflict)?.settings;
        if let Some(wrong) = wrong {
            is.refused = Some((settings.clone(), format!("{wrong} is wrong")));
            return Err(Refused::Settings);
        }
        let repeated = version == is.version && is.are(settings);
        if !repeated && version <= is.version {
            return Err(Refused::Node("StaleConfig"));
        }
        *is = Settings { version, values: settings.clone(), refused: None };
        Ok(())
    }

    pub(crate) fn prepare_stop(&mut self, pod: &PodRef, meant: Marker) -> Done {
        self.same_pod(pod)?;
        if !self.runs(pod.ordinal) {
            return Err(Refused::Node("unreachable"));
        }
        if self.volumes.get(&pod.ordinal).and_then(|volume| volume.disk) != Some(meant) {
            return Err(Refused::Node("WrongDisk"));
        }
        if let Some(pod) = self.pods.get_mut(&pod.ordinal) {
            pod.prepared = true;
        }
        self.hand_over(pod.ordinal);
        Ok(())
    }

    /// A leader that stops gives leadership away, if somebody can take it.
    fn hand_over(&mut self, k: u32) {
        let leads = self.listed(k).is_some_and(|(id, _)| id == self.raft.leader);
        let fit = |id: &u64| *id != self.raft.leader && self.is_up(*id) && self.behind(*id) == 0;
        if let Some(next) = self.voters().into_iter().find(fit).filter(|_| leads && !self.raft.stubborn) {
            self.raft.leader = next;
            self.raft.term += 1;
        }
    }

    pub(crate) fn remove(&mut self, id: u64, index: u64) -> Done {
        if self.raft.removed.contains(&id) {
            return Ok(());
        }
        self.planned_on(index)?;
        if self.raft.leader == id {
            return Err(Refused::Node("MoveLeaderFirst"));
        }
        let member = self.raft.members.get(&id).ok_or(Refused::Node("MemberNotFound"))?;
        let remaining = self.voters().into_iter().filter(|voter| *voter != id).count();
        if !member.learner && self.up_without(id) < quorum(remaining) {
            return Err(Refused::Node("QuorumAtRisk"));
        }
        self.raft.members.remove(&id);
        self.raft.removed.insert(id);
        self.raft.index += 1;
        Ok(())
    }

    pub(crate) fn drop_volume(&mut self, volume: &VolumeRef) -> Done {
        self.same_volume(volume)?;
        let is = self.volumes.get_mut(&volume.ordinal).ok_or(Refused::Conflict)?;
        is.object.terminating = true;
        let listed = is.disk.or(is.object.marker).filter(|marker| {
            marker.cluster_id == self.raft.cluster_id && self.raft.members.contains_key(&marker.raft_id)
        });
        if let Some(marker) = listed.filter(|_| !self.cluster.deleting) {
            self.violations.push(format!("(a) the volume of listed member {} deleted", marker.raft_id));
        }
        Ok(())
    }

    pub(crate) fn restart(&mut self, pod: &PodRef, mode: RestartMode, fresh: bool) -> Done {
        self.same_pod(pod)?;
        let ready = self.pods.values().filter(|pod| pod.object.ready).count();
        let is = self.pods.get(&pod.ordinal).ok_or(Refused::Conflict)?;
        if is.object.resource_version != pod.resource_version {
            return Err(Refused::Conflict);
        }
        if self.unending.contains(&pod.ordinal) {
            return Err(Refused::Policy);
        }
        if mode == RestartMode::Evict && self.kept.contains(&pod.ordinal) {
            return Err(Refused::Budget);
        }
        let least = self.budget.as_ref().and_then(|budget| budget.min_available).unwrap_or(0);
        if mode == RestartMode::Evict && is.object.ready && ready <= least as usize {
            return Err(Refused::Budget);
        }
        if fresh && mode != RestartMode::End {
            self.check_restart(pod.ordinal, mode);
        }
        if mode == RestartMode::Force {
            self.force_out(pod.ordinal);
        } else if let Some(pod) = self.pods.get_mut(&pod.ordinal) {
            pod.object.terminating.get_or_insert(self.now + GRACE_SECONDS);
            pod.object.ready = false;
        }
        Ok(())
    }

    /// (c) and M9, when the decision was made on what is still true.
    fn check_restart(&mut self, k: u32, mode: RestartMode) {
        let Some((id, member)) = self.listed(k) else { return };
        let voters = self.voters().len();
        if member.learner || !self.is_up(id) || voters < 3 {
            return;
        }
        if self.has_quorum() && self.up_without(id) < quorum(voters) {
            self.violations.push(format!("(c) restart of pod {k} leaves less than a quorum"));
        }
        if self.raft.leader == id && !self.raft.stubborn {
            self.violations.push(format!("(c) restart of pod {k}, which leads"));
        }
        if mode == RestartMode::Force && self.runs(k) {
            self.violations.push(format!("pod {k} forced while it runs"));
        }
    }

    /// A voter in order is never given up, however silent it is.
    fn check_removal(&mut self, step: &Step, fresh: bool) {
        let Step::RemoveMember { raft_id, .. } = step else { return };
        if fresh && self.voters().contains(raft_id) && !self.is_to_be_replaced(*raft_id) {
            self.violations.push(format!("(i) member {raft_id} is removed although its disk is in order"));
        }
    }

    /// Delete with orphan propagation.
    pub(crate) fn recreate_set(&mut self, set: &ObjectRef, fresh: bool) -> Done {
        if self.set.as_ref().is_none_or(|is| is.uid != set.uid || is.resource_version != set.resource_version) {
            return Err(Refused::Conflict);
        }
        let whole = self.voters().len() == self.raft.members.len() && self.pods.len() == self.raft.members.len();
        if fresh && !(whole && self.pods.values().all(|pod| pod.object.ready)) {
            self.violations.push("(j) the set is made anew while not all members serve".into());
        }
        self.orphan_pods();
        Ok(())
    }

    fn delete_budget(&mut self, budget: &ObjectRef) -> Done {
        let (uid, version) = (&budget.uid, &budget.resource_version);
        if self.budget.as_ref().is_none_or(|is| is.uid != *uid || is.resource_version != *version) {
            return Err(Refused::Conflict);
        }
        self.budget = None;
        Ok(())
    }

    pub(crate) fn delete_set(&mut self, set: &ObjectRef) -> Done {
        if self.set.as_ref().is_none_or(|is| is.uid != set.uid || is.resource_version != set.resource_version) {
            return Err(Refused::Conflict);
        }
        self.set = None;
        let end = self.now + GRACE_SECONDS;
        for pod in self.pods.values_mut() {
            pod.object.terminating.get_or_insert(end);
        }
        Ok(())
    }
}
