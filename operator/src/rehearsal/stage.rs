//! The model with what its two faces need beside it: objects as JSON, and the calls that were made.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::build::FIXED_HASH;
use crate::names;
use crate::observed::MemberList;
use crate::plan::simulation::{Refused, World};
use crate::step::{PodRef, VolumeRef};

/// Namespace of everything.
pub(super) const NAMESPACE: &str = "ns";
/// Name of the cluster.
pub(super) const NAME: &str = "db";
/// UID of the resource.
pub(super) const UID: &str = "0b5d0000-0000-0000-0000-000000000001";

/// Where a process ends, seen from one of its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Before the write is sent.
    Before,
    /// After it took effect, before its reply is read.
    After,
}

#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) world: World,
    /// The `RaftCluster`; null once it is gone.
    pub(super) resource: Value,
    /// What was applied, by plural and name.
    pub(super) objects: BTreeMap<(String, String), Value>,
    /// Every write to API server and nodes, in order, events apart.
    pub(super) writes: Vec<String>,
    /// The events, as type, reason, action and note.
    pub(super) events: Vec<[String; 4]>,
    /// What the StatefulSet's controller says of pods that it could not make.
    pub(super) failures: Vec<String>,
    /// The plural of the objects that an admission policy refuses to have changed.
    pub(super) forbidden: Option<&'static str>,
    /// The plural of the objects over which a webhook is asked that does not answer.
    pub(super) unanswered: Option<&'static str>,
    /// A policy lets nobody delete a volume claim.
    pub(super) kept_claims: bool,
    /// The plural of the objects of which every write meets a conflict.
    pub(super) contended: Option<&'static str>,
    /// With what nobody is let make a StatefulSet: HTTP status and words.
    pub(super) untaken: Option<(u16, &'static str)>,
    /// Writes that were refused.
    pub(super) refused: Vec<String>,
    /// The write at which the process ends.
    pub(super) fuse: Option<(usize, Cut)>,
    /// The process has ended: none of its calls arrives any more.
    pub(super) dead: bool,
    /// The lists that the nodes of these ordinals give, whatever there is.
    pub(super) lies: BTreeMap<u32, MemberList>,
    /// Which cluster each pod's node was last said to belong to.
    pub(super) told: BTreeMap<u32, u64>,
    /// Between the reading and the writing of each pass the addresses of the pods become those of another cluster's.
    pub(super) strangers: bool,
    /// The pod that another hand changes before each write of it.
    pub(super) meddled: Option<u32>,
    /// No volume claim has the labels that the StatefulSet gave it.
    pub(super) bare_claims: bool,
    /// The operator's role is an older one, which lets nobody ask for a volume claim by its name.
    pub(super) unnamed_claims: bool,
    /// The EndpointSlices tell of no pod yet.
    pub(super) endpoints_lag: bool,
    /// The HTTP status with which the EndpointSlices are refused.
    pub(super) endpoints_refused: Option<u16>,
    /// The process may have lost its lease.
    pub(super) asleep: bool,
    /// Other processes change things meanwhile: the model's proofs need not hold when a write arrives.
    pub(super) busy: bool,
}

/// The stage as its faces share it.
pub(super) type Shared = Arc<Mutex<Stage>>;

pub(super) fn lock(stage: &Shared) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Stage {
    /// A `RaftCluster` that was just created.
    pub(super) fn new(want: u32, spec: &Value) -> Self {
        let mut resource = json!({
            "apiVersion": "balsa.dev/v1alpha1",
            "kind": "RaftCluster",
            "metadata": {
                "name": NAME,
                "namespace": NAMESPACE,
                "uid": UID,
                "generation": 1,
                "resourceVersion": "1",
                "labels": {"app.kubernetes.io/instance": "somebody-elses", "argocd.argoproj.io/instance": "x"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {"replicas": want, "image": "balsa.dev/balsa:a", "storage": {"size": "1Gi"}},
        });
        super::objects::merge(&mut resource["spec"], spec);
        let mut world = World::new(want);
        world.cluster.uid = UID.to_owned();
        Self {
            world,
            resource,
            objects: BTreeMap::new(),
            writes: Vec::new(),
            events: Vec::new(),
            failures: Vec::new(),
            forbidden: None,
            unanswered: None,
            kept_claims: false,
            contended: None,
            untaken: None,
            refused: Vec::new(),
            fuse: None,
            dead: false,
            told: BTreeMap::new(),
            lies: BTreeMap::new(),
            busy: false,
            asleep: false,
            bare_claims: false,
            unnamed_claims: false,
            endpoints_lag: false,
            endpoints_refused: None,
            strangers: false,
            meddled: None,
        }
    }

    /// A user's edit of the spec.
    pub(super) fn edit(&mut self, spec: &Value) {
        super::objects::merge(&mut self.resource["spec"], spec);
        let generation = self.resource["metadata"]["generation"].as_i64().unwrap_or_default();
        self.resource["metadata"]["generation"] = json!(generation + 1);
        self.resource["metadata"]["resourceVersion"] = json!(self.world.next_text());
        self.world.cluster.want = self.want();
    }

    /// A user's annotation.
    pub(super) fn annotate(&mut self, key: &str, value: &str) {
        self.resource["metadata"]["annotations"][key] = json!(value);
        self.resource["metadata"]["resourceVersion"] = json!(self.world.next_text());
    }

    /// As a release before, or somebody else, left the set: with another value in a field that nobody can change.
    pub(super) fn give_other_policy(&mut self) {
        let set = self.objects.get_mut(&("statefulsets".to_owned(), NAME.to_owned())).expect("a set");
        set["spec"]["podManagementPolicy"] = json!("OrderedReady");
        set["metadata"]["annotations"][FIXED_HASH] = json!("of the release before");
    }

    /// `kubectl delete raft`.
    pub(super) fn delete(&mut self) {
        self.resource["metadata"]["deletionTimestamp"] = json!(time(self.world.now));
        self.resource["metadata"]["resourceVersion"] = json!(self.world.next_text());
        self.world.cluster.deleting = true;
    }

    pub(super) fn want(&self) -> u32 {
        self.resource["spec"]["replicas"].as_u64().and_then(|want| u32::try_from(want).ok()).unwrap_or_default()
    }

    /// A condition's status and reason.
    pub(super) fn condition(&self, kind: &str) -> (String, String) {
        let all = self.resource["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    /// `status.plan.step` and what blocks it.
    pub(super) fn planned(&self) -> String {
        let plan = &self.resource["status"]["plan"];
        format!("{} {}", plan["step"].as_str().unwrap_or("none"), plan["blockedBy"])
    }

    /// Lets one write take effect, unless the process ends at it. `None`: no reply arrives.
    pub(super) fn write<T>(&mut self, what: String, effect: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let number = self.writes.len();
        self.writes.push(what);
        let cut = self.fuse.filter(|(at, _)| *at == number).map(|(_, cut)| cut);
        self.dead |= cut.is_some();
        if cut == Some(Cut::Before) {
            return None;
        }
        let reply = effect(self);
        (cut != Some(Cut::After)).then_some(reply)
    }

    /// Notes a refusal. A disruption budget's is part of the plan, and so is that of a wrong setting or of a policy.
    pub(super) fn refuse(&mut self, refused: Refused) -> Refused {
        if ![Refused::Budget, Refused::Settings, Refused::Policy].contains(&refused) {
            let what = self.writes.last().cloned().unwrap_or_default();
            self.refused.push(format!("{what}: {refused:?}"));
        }
        refused
    }

    pub(super) fn pod_ref(&self, k: u32) -> Option<PodRef> {
        let pod = &self.world.pods.get(&k)?.object;
        Some(PodRef { ordinal: k, uid: pod.uid.clone(), resource_version: pod.resource_version.clone() })
    }

    pub(super) fn volume_ref(&self, k: u32) -> Option<VolumeRef> {
        let volume = &self.world.volumes.get(&k)?.object;
        Some(VolumeRef { ordinal: k, uid: volume.uid.clone(), resource_version: volume.resource_version.clone() })
    }

    /// The running process at an address; no pod ever gets an address again.
    pub(super) fn process_at(&self, address: IpAddr) -> Option<u32> {
        let mut pods = self.world.pods.iter().filter(|(_, pod)| address_of(&pod.object.uid) == address);
        pods.next().map(|(k, _)| *k).filter(|k| self.world.runs(*k) && !self.dead)
    }

    pub(super) fn pod_name(k: u32) -> String {
        names::pod(NAME, k)
    }
}

/// The address of a pod, from its UID, which is a serial number in the model.
pub(super) fn address_of(uid: &str) -> IpAddr {
    let serial: u32 = uid.parse().unwrap_or_default();
    Ipv4Addr::from(0x0a00_0000 | (serial & 0x00ff_ffff)).into()
}

/// A time as it stands in objects.
pub(super) fn time(seconds: i64) -> String {
    k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}
