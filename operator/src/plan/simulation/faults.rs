//! What befalls the world from outside: lost pods, disks and hosts, and other people's hands.

use super::World;
use crate::observed::{ContainerState, Host, HostState};

impl World {
    /// An older release, or somebody else, made the set with another value in a field that cannot be changed.
    pub(crate) fn fix(&mut self, field: &'static str) {
        if let Some(set) = &mut self.set {
            set.fixed = vec![field];
        }
    }

    /// The set goes without its pods.
    pub(crate) fn orphan_pods(&mut self) {
        self.set = None;
        self.pods.values_mut().for_each(|pod| pod.object.orphan = true);
    }

    /// A pod object vanishes with its process, as by `kubectl delete --force`.
    pub(crate) fn kill_pod(&mut self, k: u32) {
        self.pods.remove(&k);
    }

    /// Somebody's finalizer holds the object of pod `k` beyond its end.
    pub(crate) fn hold_pod(&mut self, k: u32) {
        if let Some(pod) = self.pods.get_mut(&k) {
            pod.object.held = true;
        }
    }

    /// Whoever has set it takes it away; what has ended goes at once.
    pub(crate) fn release_pod(&mut self, k: u32) {
        if let Some(pod) = self.pods.get_mut(&k) {
            pod.object.held = false;
        }
        self.pods.retain(|_, pod| pod.object.held || !pod.object.forced);
    }

    /// The disk of `k` is emptied under its process, which restarts.
    pub(crate) fn wipe_disk(&mut self, k: u32) {
        if let Some(volume) = self.volumes.get_mut(&k) {
            volume.disk = None;
        }
        self.stop_process(k);
    }

    /// The disk of `k` is damaged; its process finds out and ends.
    pub(crate) fn corrupt_disk(&mut self, k: u32) {
        if let Some(volume) = self.volumes.get_mut(&k) {
            volume.corrupt = true;
        }
        self.stop_process(k);
    }

    /// The process of `k` stands still, as by SIGSTOP or on a disk that does not answer.
    pub(crate) fn hang(&mut self, k: u32) {
        if self.runs(k) {
            self.hung.extend(self.pods.get(&k).map(|pod| pod.object.uid.clone()));
        }
    }

    fn stop_process(&mut self, k: u32) {
        if let Some(pod) = self.pods.get_mut(&k) {
            pod.object.container = ContainerState::Absent;
            pod.object.ready = false;
        }
    }

    /// The host of pod `k` dies; `state` is what the API says of it. Its pods are marked for deletion, and stay.
    pub(crate) fn break_host(&mut self, k: u32, state: HostState) {
        let now = self.now;
        let Some(pod) = self.pods.get_mut(&k) else { return };
        let Some(host) = pod.object.host.clone() else { return };
        pod.object.ready = false;
        pod.object.terminating.get_or_insert(now);
        self.hosts.insert(host.name, state);
    }

    /// The volume of `k` becomes usable on its pod's present host only.
    pub(crate) fn pin_volume(&mut self, k: u32) {
        let host: Option<Host> = self.pods.get(&k).and_then(|pod| pod.object.host.clone());
        if let Some(volume) = self.volumes.get_mut(&k) {
            volume.object.pinned = host;
        }
    }

    /// `kubectl delete pvc`.
    pub(crate) fn delete_volume(&mut self, k: u32) {
        if let Some(volume) = self.volumes.get_mut(&k) {
            volume.object.terminating = true;
        }
    }

    /// A human takes one of the volume's labels away.
    pub(crate) fn blur_labels(&mut self, k: u32) {
        let version = self.next_text();
        if let Some(volume) = self.volumes.get_mut(&k) {
            (volume.object.marker, volume.object.unclear) = (None, true);
            volume.object.resource_version = version;
        }
    }

    /// A human deletes the volumes that no label tells the owner of and that no pod can ever use again.
    pub(crate) fn drop_unlabelled_lost_volumes(&mut self) {
        for volume in self.volumes.values_mut() {
            let pinned = volume.object.pinned.as_ref();
            if volume.object.marker.is_none() && pinned.is_some_and(|host| self.hosts.contains_key(&host.name)) {
                volume.object.terminating = true;
            }
        }
    }

    /// `kubectl scale statefulset`.
    pub(crate) fn set_replicas(&mut self, replicas: u32) {
        let version = self.next_text();
        if let Some(set) = &mut self.set {
            set.replicas = replicas;
            set.generation += 1;
            set.resource_version = version;
        }
    }

    /// The `RaftCluster` is deleted and created again, its volumes stay.
    pub(crate) fn lose_status(&mut self) {
        self.resource.cluster_id = None;
        self.resource.bootstrapped = false;
        self.resource.plan = None;
        self.resource.resource_version = self.next_text();
    }
}

/// What the judges of a run ask.
impl World {
    /// The voter's disk is there, is its own, and holds every acknowledged write.
    pub(crate) fn has_whole_disk(&self, id: u64) -> bool {
        let volume = self.ordinal(id).and_then(|k| self.volumes.get(&k));
        volume.is_some_and(|volume| {
            volume.disk.is_some_and(|marker| marker.raft_id == id) && volume.behind == 0 && !volume.corrupt
        })
    }

    /// Why a voter that is wanted may be given up: what it had is lost, or is about to be, or somebody asked for it.
    pub(crate) fn is_to_be_replaced(&self, id: u64) -> bool {
        let Some(k) = self.ordinal(id) else { return true };
        let volume = self.volumes.get(&k);
        let lost = volume.is_none_or(|volume| {
            let pinned = volume.object.pinned.as_ref();
            volume.object.terminating || pinned.is_some_and(|host| self.hosts.contains_key(&host.name))
        });
        k >= self.cluster.want || lost || !self.has_whole_disk(id) || self.cluster.replace_member == Some(id)
    }

    /// Some voter's disk is already bound to be lost.
    pub(crate) fn loses_disk(&self) -> bool {
        self.voters().into_iter().filter_map(|id| self.ordinal(id)).any(|k| {
            self.volumes.get(&k).is_none_or(|volume| {
                let pinned = volume.object.pinned.as_ref();
                volume.object.terminating || pinned.is_some_and(|host| self.hosts.contains_key(&host.name))
            })
        })
    }

    pub(crate) fn is_ready(&self, id: u64) -> bool {
        self.ordinal(id).and_then(|k| self.pods.get(&k)).is_some_and(|pod| pod.object.ready)
    }

    /// Leadership goes elsewhere by itself.
    pub(crate) fn move_lead(&mut self, nth: usize) {
        let up: Vec<u64> = self.voters().into_iter().filter(|id| self.is_up(*id) && self.behind(*id) == 0).collect();
        if let Some(next) = up.get(nth % up.len().max(1)).filter(|_| self.has_quorum()) {
            self.raft.leader = *next;
            self.raft.term += 1;
        }
    }
}
