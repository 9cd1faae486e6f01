//! The model's objects as the API server shows them.

use serde_json::{Value, json};

use super::stage::{NAME, NAMESPACE, Stage, address_of, time};
use crate::names::{self, CONTAINER, LABEL_CLUSTER_ID, LABEL_DETACHED, LABEL_INCARNATION, LABEL_RAFT_ID};
use crate::observed::{ContainerState, HostState, Marker, NodeExit, ObservedPod, ObservedVolume, PodPhase};
use crate::plan::simulation::GRACE_SECONDS;

/// A merge as of RFC 7396.
pub(super) fn merge(into: &mut Value, patch: &Value) {
    let (Value::Object(_), Value::Object(patch)) = (&*into, patch) else {
        *into = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            if let Value::Object(into) = into {
                into.remove(key);
            }
        } else {
            if into[key].is_null() && value.is_object() {
                into[key] = json!({});
            }
            merge(&mut into[key], value);
        }
    }
}

impl Stage {
    /// The object with this plural and name, as a reader sees it.
    pub(super) fn read(&self, plural: &str, name: &str) -> Option<Value> {
        match plural {
            "raftclusters" => Some(self.resource.clone()).filter(|resource| !resource.is_null()),
            "statefulsets" => self.stateful_set(),
            "pods" => names::pod_ordinal(NAME, name).and_then(|k| self.pod(k)),
            "persistentvolumeclaims" => names::volume_ordinal(NAME, name).and_then(|k| self.claim(k)),
            "nodes" => self.host(name),
            "persistentvolumes" => self.volume_behind(name),
            _ => self.objects.get(&(plural.to_owned(), name.to_owned())).cloned(),
        }
    }

    fn stateful_set(&self) -> Option<Value> {
        let set = self.world.set.as_ref()?;
        let mut object = self.objects.get(&("statefulsets".to_owned(), NAME.to_owned()))?.clone();
        object["metadata"]["uid"] = json!(set.uid);
        object["metadata"]["resourceVersion"] = json!(set.resource_version);
        object["metadata"]["generation"] = json!(set.generation);
        object["spec"]["replicas"] = json!(set.replicas);
        object["status"] = json!({
            "replicas": self.world.pods.len(),
            "observedGeneration": set.observed_generation,
            "updateRevision": set.update_revision,
        });
        Some(object)
    }

    pub(super) fn pods(&self) -> Vec<Value> {
        self.world.pods.keys().filter_map(|k| self.pod(*k)).collect()
    }

    fn pod(&self, k: u32) -> Option<Value> {
        let pod = &self.world.pods.get(&k)?.object;
        let mut labels = json!(names::labels(NAME));
        labels["controller-revision-hash"] = json!(pod.revision);
        let mut object = json!({
            "metadata": {
                "name": Self::pod_name(k),
                "namespace": NAMESPACE,
                "uid": pod.uid,
                "resourceVersion": pod.resource_version,
                "creationTimestamp": time(pod.created),
                "labels": labels,
            },
            "spec": {"containers": [{"name": CONTAINER, "image": pod.image}], "nodeName": pod.host.as_ref().map(|host| &host.name)},
            "status": {
                "phase": phase(pod.phase),
                "podIP": pod.host.as_ref().map(|_| address_of(&pod.uid)),
                "conditions": conditions(pod),
                "containerStatuses": [container(pod)],
            },
        });
        if !pod.orphan {
            let uid = self.world.set.as_ref().map_or("", |set| set.uid.as_str());
            let owner =
                json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": NAME, "uid": uid, "controller": true});
            object["metadata"]["ownerReferences"] = json!([owner]);
        }
        if let Some(end) = pod.terminating {
            object["metadata"]["deletionTimestamp"] = json!(time(end));
            object["metadata"]["deletionGracePeriodSeconds"] = json!(if pod.forced { 0 } else { GRACE_SECONDS });
        }
        if pod.held {
            object["metadata"]["finalizers"] = json!(["example.org/keep"]);
        }
        Some(object)
    }

    /// The claims, all or those that have the labels which the StatefulSet gives.
    pub(super) fn volumes(&self, labelled: bool) -> Vec<Value> {
        let listed = self.world.volumes.keys().filter(|_| !(labelled && self.bare_claims));
        listed.filter_map(|k| self.claim(*k)).collect()
    }

    fn claim(&self, k: u32) -> Option<Value> {
        self.world.volumes.get(&k).map(|volume| claim(k, &volume.object))
    }

    /// What the EndpointSlice controller has made of the client Service and of the ready pods.
    pub(super) fn endpoint_slices(&self) -> (u16, Value) {
        if let Some(reply) = &self.endpoints_refused {
            return (*reply, json!({"kind": "Status", "status": "Failure", "code": reply, "message": "no"}));
        }
        let leads = self.read("services", NAME).is_some_and(|service| !service["spec"]["selector"].is_null());
        let pods = self.world.pods.values().filter(|_| leads && !self.endpoints_lag).map(|pod| &pod.object);
        let endpoints: Vec<Value> =
            pods.map(|pod| json!({"addresses": [address_of(&pod.uid)], "conditions": {"ready": pod.ready}})).collect();
        (200, json!({"metadata": {}, "items": [{"metadata": {}, "addressType": "IPv4", "endpoints": endpoints}]}))
    }

    /// Hosts that the model does not know are in order.
    fn host(&self, name: &str) -> Option<Value> {
        let metadata = json!({"name": name});
        match self.world.hosts.get(name) {
            Some(HostState::Gone) => None,
            Some(HostState::OutOfService) => {
                let taint = json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"});
                Some(json!({"metadata": metadata, "spec": {"taints": [taint]}}))
            }
            _ => Some(json!({"metadata": metadata, "spec": {}})),
        }
    }

    fn volume_behind(&self, name: &str) -> Option<Value> {
        let k = name.strip_prefix("pv-")?.parse().ok()?;
        let volume = &self.world.volumes.get(&k)?.object;
        let affinity = volume.pinned.as_ref().map(|host| {
            let only = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [host.name]});
            json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [only]}]}})
        });
        Some(json!({"metadata": {"name": name}, "spec": {"nodeAffinity": affinity}}))
    }
}

fn claim(k: u32, volume: &ObservedVolume) -> Value {
    let mut labels = json!({});
    if let Some(marker) = volume.marker {
        labels[LABEL_CLUSTER_ID] = json!(names::id_text(marker.cluster_id));
        labels[LABEL_RAFT_ID] = json!(names::id_text(marker.raft_id));
        labels[LABEL_INCARNATION] = json!(names::id_text(marker.incarnation));
    }
    if volume.detached {
        labels[LABEL_DETACHED] = json!("true");
    }
    let mut object = json!({
        "metadata": {
            "name": names::volume(NAME, k),
            "namespace": NAMESPACE,
            "uid": volume.uid,
            "resourceVersion": volume.resource_version,
            "labels": labels,
        },
        "spec": {"volumeName": format!("pv-{k}")},
    });
    if volume.terminating {
        object["metadata"]["deletionTimestamp"] = json!(time(0));
    }
    object
}

fn phase(phase: PodPhase) -> &'static str {
    match phase {
        PodPhase::Pending => "Pending",
        PodPhase::Running => "Running",
        PodPhase::Succeeded => "Succeeded",
        PodPhase::Failed => "Failed",
        PodPhase::Unknown => "Unknown",
    }
}

fn conditions(pod: &ObservedPod) -> Value {
    let is = |holds: bool| if holds { "True" } else { "False" };
    let placed = match pod.unschedulable {
        Some(since) => json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "lastTransitionTime": time(since)}),
        None => json!({"type": "PodScheduled", "status": "True"}),
    };
    json!([{"type": "Ready", "status": is(pod.ready)}, placed])
}

fn container(pod: &ObservedPod) -> Value {
    let ended = |code: i32| json!({"terminated": {"exitCode": code, "message": last_words(pod.exit)}});
    let last = pod.exit.map(|exit| ended(exit.kind.code())).unwrap_or_default();
    let state = match &pod.container {
        ContainerState::Absent => Value::Null,
        ContainerState::Waiting(reason) => json!({"waiting": {"reason": reason}}),
        ContainerState::Running => json!({"running": {}}),
        ContainerState::Terminated(code) => ended(*code),
    };
    json!({"name": CONTAINER, "image": "", "imageID": "", "ready": pod.ready, "restartCount": 0,
        "state": state, "lastState": last})
}

fn last_words(exit: Option<NodeExit>) -> Option<String> {
    let Marker { cluster_id, raft_id, incarnation } = exit?.marker?;
    let text = |id| names::id_text(id);
    let words = json!({"clusterId": text(cluster_id), "raftId": text(raft_id), "incarnation": text(incarnation)});
    Some(words.to_string())
}
