//! The API server's face of the model: paths, preconditions, merge patches and server-side apply as far as the operator
//! uses them. A resourceVersion or UID that does not hold is a conflict, as it is there.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::http::{Method, Request, Response};
use balsa_config::flags::HOT;
use balsa_config::{Config, Invocation};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::yield_now;

use super::objects::merge;
use super::stage::{NAME, NAMESPACE, Shared, Stage, lock};
use crate::names::{self, FINALIZER, LABEL_CLUSTER_ID, LABEL_DETACHED, LABEL_INCARNATION, LABEL_RAFT_ID};
use crate::observed::{Marker, ObservedBudget, ObservedSet};
use crate::plan::simulation::Refused;
use crate::step::{ObjectRef, RestartMode, VolumeLabel};

/// HTTP status and body.
type Reply = (u16, Value);

/// What a path and a method mean.
struct Call {
    method: Method,
    plural: String,
    name: String,
    sub: String,
    body: Value,
    dry: bool,
    /// Server-side apply, which makes what is not there.
    applies: bool,
    /// A list of what has certain labels.
    selects: bool,
}

impl Call {
    /// What the write was decided on.
    fn fence(&self) -> ObjectRef {
        fence(match (self.method.as_str(), self.sub.as_str()) {
            ("DELETE", _) => &self.body["preconditions"],
            (_, "eviction") => &self.body["deleteOptions"]["preconditions"],
            _ => &self.body["metadata"],
        })
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.applies { "APPLY" } else { self.method.as_str() };
        write!(f, "{verb} {}/{} {}", self.plural, self.name, self.sub)
    }
}

/// A client whose API server is the model. The connection breaks when the operator's process has ended.
pub(super) fn client(stage: &Shared) -> Client {
    let stage = Arc::clone(stage);
    let service = tower::service_fn(move |request: Request<Body>| {
        let stage = Arc::clone(&stage);
        let broken = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        async move { answer(&stage, request).await.ok_or_else(broken) }
    });
    Client::new(service, NAMESPACE)
}

pub(super) async fn answer(stage: &Shared, request: Request<Body>) -> Option<Response<String>> {
    let call = call(request).await;
    // A call takes time: other passes get on meanwhile, if there are any.
    yield_now().await;
    let reply = {
        let mut stage = lock(stage);
        if stage.dead {
            return None;
        }
        stage.answer(&call)
    };
    yield_now().await;
    let (code, body) = reply?;
    Some(Response::builder().status(code).body(body.to_string()).unwrap_or_default())
}

async fn call(request: Request<Body>) -> Call {
    let (head, body) = request.into_parts();
    let bytes = body.collect_bytes().await.unwrap_or_default();
    let body = serde_json::from_slice(&bytes).unwrap_or_default();
    let words: Vec<&str> = head.uri.path().split('/').filter(|word| !word.is_empty()).collect();
    let version = if words.first() == Some(&"apis") { 3 } else { 2 };
    let scope = if words.get(version) == Some(&"namespaces") { 2 } else { 0 };
    let word = |n: usize| words.get(version + scope + n).copied().unwrap_or_default().to_owned();
    let dry = head.uri.query().is_some_and(|query| query.contains("dryRun=All"));
    let selects = head.uri.query().is_some_and(|query| query.contains("labelSelector="));
    let kind = head.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let applies = kind.starts_with("application/apply-patch");
    Call { method: head.method, plural: word(0), name: word(1), sub: word(2), body, dry, applies, selects }
}

fn status(code: u16, reason: &str) -> Reply {
    (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}))
}

fn found(object: Option<Value>) -> Reply {
    object.map_or_else(|| status(404, "NotFound"), |object| (200, object))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Stage {
    fn answer(&mut self, call: &Call) -> Option<Reply> {
        let Call { method, plural, name, body, .. } = call;
        match (method.as_str(), plural.as_str(), name.as_str()) {
            ("GET", "pods", "") => Some((200, json!({"metadata": {}, "items": self.pods()}))),
            ("GET", "persistentvolumeclaims", "") => {
                Some((200, json!({"metadata": {}, "items": self.volumes(call.selects)})))
            }
            ("GET", "persistentvolumeclaims", _) if self.unnamed_claims => Some(status(403, "Forbidden")),
            ("GET", "endpointslices", "") => Some(self.endpoint_slices()),
            ("GET", "events", "") => {
                let failure = |text: &String| json!({"metadata": {}, "involvedObject": {}, "message": text});
                let items: Vec<Value> = self.failures.iter().map(failure).collect();
                Some((200, json!({"metadata": {}, "items": items})))
            }
            ("GET", ..) => Some(found(self.read(plural, name))),
            (_, "events", _) => {
                let note = ["type", "reason", "action", "note"].map(|key| text(&body[key]));
                self.events.push(note);
                Some((201, body.clone()))
            }
            _ if self.contended == Some(plural.as_str()) => Some(status(409, "Conflict")),
            // A dry run writes nothing.
            ("PATCH", "statefulsets", other) if call.dry && other != NAME => Some(match self.untaken {
                None => (201, body.clone()),
                Some((code, words)) => {
                    let (code, mut reply) = status(code, "Refused");
                    reply["message"] = json!(words);
                    (code, reply)
                }
            }),
            ("PATCH", "statefulsets", _) if self.changes_what_is_fixed(body).is_some() => {
                let (code, mut reply) = status(422, "Invalid");
                let what = self.changes_what_is_fixed(body).unwrap_or_default();
                reply["message"] = json!(format!(
                    "StatefulSet.apps {name:?} is invalid: spec: Forbidden: updates to statefulset spec for fields other \
                     than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
                     'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden ({what})"
                ));
                self.refused.push(format!("{what} is changed"));
                Some((code, reply))
            }
            ("PATCH", ..) if call.applies && self.unanswered == Some(plural.as_str()) => Some(self.no_answer()),
            ("PATCH", ..) if self.forbids(call) => {
                let (code, mut body) = status(422, "Invalid");
                body["message"] = json!(format!("{plural} {name:?} is invalid: spec: Forbidden: by a policy"));
                Some((code, body))
            }
            _ => self.write(call.to_string(), |stage| match stage.change(call) {
                Ok(object) => (200, object),
                Err(refused) => stage.refusal(refused),
            }),
        }
    }

    /// The field of the set that nobody can change, and that this write changes.
    fn changes_what_is_fixed(&self, body: &Value) -> Option<&'static str> {
        self.world.set.as_ref()?;
        let spec = &self.objects.get(&("statefulsets".to_owned(), NAME.to_owned()))?["spec"];
        let mut new = json!({"spec": body["spec"]});
        add_defaults(&mut new);
        FIXED.into_iter().find(|name| body["spec"].get(name).is_some() && new["spec"][name] != spec[name])
    }

    /// A set may be scaled whatever the policy says of its pods.
    fn forbids(&self, call: &Call) -> bool {
        let scales = call.plural == "statefulsets" && call.body["spec"].get("template").is_none();
        self.forbidden == Some(call.plural.as_str()) && !scales
    }

    /// In the words of an API server (1.35), whose connection to the webhook is another one each time.
    fn no_answer(&mut self) -> Reply {
        let (code, mut body) = status(500, "InternalError");
        let port = self.world.next_text();
        body["message"] = json!(format!(
            "Internal error occurred: failed calling webhook \"no\": read tcp 10.0.0.1:{port}->10.0.0.2:443: i/o timeout"
        ));
        (code, body)
    }

    fn refusal(&mut self, refused: Refused) -> Reply {
        match self.refuse(refused) {
            Refused::Budget => {
                let (code, mut body) = status(429, "TooManyRequests");
                body["details"] = json!({"causes": [{"reason": "DisruptionBudget"}]});
                (code, body)
            }
            Refused::Policy => status(403, "admission webhook \"no\" denied the request"),
            _ => status(409, "Conflict"),
        }
    }

    /// P2: every write of an object that is there carries what it was decided on. One that carries less is a fault of the
    /// operator's, whatever becomes of it; one that carries something else is refused.
    fn check_fence(&mut self, call: &Call) -> Result<(), Refused> {
        let fence = call.fence();
        let nothing = fence.uid.is_empty() && fence.resource_version.is_empty();
        let Some(object) = self.read(&call.plural, &call.name) else {
            return if nothing && call.applies { Ok(()) } else { Err(Refused::Conflict) };
        };
        // No apply can say that it only makes: another process may have made the object since this one read that there is none.
        let makes = call.applies && nothing && self.busy;
        if !makes && (fence.uid.is_empty() || fence.resource_version.is_empty()) {
            self.world.violations.push(format!("p2: unfenced write: {call}"));
        }
        let is = &object["metadata"];
        let same = is["uid"] == fence.uid && is["resourceVersion"] == fence.resource_version;
        if same || makes { Ok(()) } else { Err(Refused::Conflict) }
    }

    fn change(&mut self, call: &Call) -> Result<Value, Refused> {
        self.meddle(call);
        self.check_fence(call)?;
        let Call { method, plural, name, sub, body, .. } = call;
        match (method.as_str(), plural.as_str(), sub.as_str()) {
            ("PATCH", "raftclusters", "status") => self.patch_status(body),
            ("PATCH", "raftclusters", "") => self.patch_resource(body),
            ("PATCH", "persistentvolumeclaims", "") => self.label(name, body),
            ("PATCH", "statefulsets", "") if body["spec"].get("template").is_none() => self.scale(body),
            ("PATCH", "statefulsets", "") => self.apply_set(body),
            ("PATCH", "poddisruptionbudgets", "") => self.apply_budget(name, body),
            ("PATCH", _, "") => self.apply(plural, name, body).map(|(object, _)| object),
            ("DELETE", "pods", "") => {
                let mode = match body["gracePeriodSeconds"].as_i64() {
                    Some(0) => RestartMode::Force,
                    _ if self.world.cluster.deleting => RestartMode::End,
                    _ => RestartMode::Delete,
                };
                self.restart(name, body, mode)
            }
            ("POST", "pods", "eviction") => self.restart(name, &body["deleteOptions"], RestartMode::Evict),
            ("DELETE", "persistentvolumeclaims", "") if self.kept_claims => Err(Refused::Policy),
            ("DELETE", "persistentvolumeclaims", "") => self.drop_volume(name, body),
            ("DELETE", "statefulsets", "") if body["propagationPolicy"] == "Orphan" => {
                let fresh = !self.busy;
                self.world.recreate_set(&fence(&body["preconditions"]), fresh).map(|()| json!({}))
            }
            ("DELETE", "statefulsets", "") => self.world.delete_set(&fence(&body["preconditions"])).map(|()| json!({})),
            ("DELETE", "poddisruptionbudgets", "") => {
                self.objects.remove(&(plural.clone(), name.clone()));
                self.world.budget = None;
                Ok(json!({}))
            }
            _ => panic!("the operator calls what the model does not know: {method} {plural}/{name} {sub}"),
        }
    }

    /// Writes of the resource itself: M28 allows the finalizer and nothing else.
    fn patch_resource(&mut self, body: &Value) -> Result<Value, Refused> {
        let metadata = body["metadata"].as_object().cloned().unwrap_or_default();
        let foreign = |key: &String| !["uid", "resourceVersion", "finalizers"].contains(&key.as_str());
        if body.as_object().is_some_and(|body| body.len() != 1) || metadata.keys().any(foreign) {
            self.world.violations.push(format!("m28: a write of the RaftCluster beyond the finalizer: {body}"));
        }
        merge(&mut self.resource, body);
        self.resource_changed();
        let finalizers = self.resource["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let object = self.resource.clone();
        if finalizers.is_empty() && !self.resource["metadata"]["deletionTimestamp"].is_null() {
            self.resource = Value::Null;
        }
        Ok(object)
    }

    fn patch_status(&mut self, body: &Value) -> Result<Value, Refused> {
        if self.resource["status"].is_null() {
            self.resource["status"] = json!({});
        }
        merge(&mut self.resource["status"], &body["status"]);
        self.resource_changed();
        Ok(self.resource.clone())
    }

    /// The model's own judges look at these.
    pub(super) fn resource_changed(&mut self) {
        self.resource["metadata"]["resourceVersion"] = json!(self.world.next_text());
        let status = &self.resource["status"];
        self.world.resource.cluster_id = status["clusterId"].as_str().and_then(names::parse_id);
        self.world.resource.bootstrapped = status["bootstrapped"] == true;
        let finalizers = self.resource["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        self.world.resource.finalizer = finalizers.iter().any(|name| name == FINALIZER);
    }

    fn label(&mut self, name: &str, body: &Value) -> Result<Value, Refused> {
        let labels = &body["metadata"]["labels"];
        let id = |key: &str| labels[key].as_str().and_then(names::parse_id);
        let marker = || {
            Some(Marker {
                cluster_id: id(LABEL_CLUSTER_ID)?,
                raft_id: id(LABEL_RAFT_ID)?,
                incarnation: id(LABEL_INCARNATION)?,
            })
        };
        let label = match marker() {
            Some(marker) => VolumeLabel::Member(marker),
            None if labels[LABEL_DETACHED] == "true" => VolumeLabel::Detached,
            None => panic!("neither a marker nor detached: {body}"),
        };
        let mut volume = names::volume_ordinal(NAME, name).and_then(|k| self.volume_ref(k)).ok_or(Refused::Conflict)?;
        let fence = fence(&body["metadata"]);
        (volume.uid, volume.resource_version) = (fence.uid, fence.resource_version);
        self.world.label(&volume, label).map(|()| json!({"metadata": {"name": name}}))
    }

    fn drop_volume(&mut self, name: &str, body: &Value) -> Result<Value, Refused> {
        let mut volume = names::volume_ordinal(NAME, name).and_then(|k| self.volume_ref(k)).ok_or(Refused::Conflict)?;
        let fence = fence(&body["preconditions"]);
        (volume.uid, volume.resource_version) = (fence.uid, fence.resource_version);
        self.world.drop_volume(&volume).map(|()| json!({"metadata": {"name": name}}))
    }

    /// What another hand does between the reading and the writing: it is seen in the object's resourceVersion.
    fn meddle(&mut self, call: &Call) {
        let Some(k) = self.meddled.filter(|k| call.plural == "pods" && call.name == Self::pod_name(*k)) else { return };
        let version = self.world.next_text();
        if let Some(pod) = self.world.pods.get_mut(&k) {
            pod.object.resource_version = version;
        }
    }

    fn restart(&mut self, name: &str, body: &Value, mode: RestartMode) -> Result<Value, Refused> {
        let mut pod = names::pod_ordinal(NAME, name).and_then(|k| self.pod_ref(k)).ok_or(Refused::Conflict)?;
        let fence = fence(&body["preconditions"]);
        (pod.uid, pod.resource_version) = (fence.uid, fence.resource_version);
        let fresh = !self.busy;
        self.world.restart(&pod, mode, fresh).map(|()| json!({"metadata": {"name": name}}))
    }

    fn scale(&mut self, body: &Value) -> Result<Value, Refused> {
        let replicas = body["spec"]["replicas"].as_u64().and_then(|count| u32::try_from(count).ok());
        self.world.scale(&fence(&body["metadata"]), replicas.unwrap_or_default())?;
        self.read("statefulsets", NAME).ok_or(Refused::Conflict)
    }

    /// Apply creates the set and keeps its template, and never changes the count of one that exists.
    fn apply_set(&mut self, body: &Value) -> Result<Value, Refused> {
        let template = body["spec"]["template"].to_string();
        let mut hash = DefaultHasher::new();
        template.hash(&mut hash);
        let image = text(&body["spec"]["template"]["spec"]["containers"][0]["image"]);
        let revision = format!("{image}/{:x}", hash.finish());
        if template.contains(":broken") {
            self.world.broken.insert(revision.clone());
        }
        let replicas = body["spec"]["replicas"].as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
        if self.world.set.is_none() {
            self.objects.remove(&("statefulsets".to_owned(), NAME.to_owned()));
        }
        let (uid, resource_version) = (self.world.next_text(), self.world.next_text());
        let new = ObservedSet { uid, replicas, ..ObservedSet::default() };
        let set = self.world.set.get_or_insert(new);
        if set.replicas != replicas {
            self.world.violations.push(format!("apply changes replicas from {} to {replicas}", set.replicas));
        }
        let set = self.world.set.get_or_insert_default();
        set.resource_version = resource_version;
        set.generation += 1;
        (set.update_revision, set.image) = (Some(revision), Some(image));
        let object = self.objects.entry(("statefulsets".to_owned(), NAME.to_owned())).or_insert_with(|| json!({}));
        merge(object, body);
        add_defaults(object);
        self.read("statefulsets", NAME).ok_or(Refused::Conflict)
    }

    fn apply_budget(&mut self, name: &str, body: &Value) -> Result<Value, Refused> {
        let (object, resource_version) = self.apply("poddisruptionbudgets", name, body)?;
        let least = object["spec"]["minAvailable"].as_u64().and_then(|least| u32::try_from(least).ok());
        let uid = text(&object["metadata"]["uid"]);
        self.world.budget = Some(ObservedBudget { uid, resource_version, min_available: least });
        Ok(object)
    }

    /// Server-side apply of an object that has no controller in the model.
    fn apply(&mut self, plural: &str, name: &str, body: &Value) -> Result<(Value, String), Refused> {
        let (uid, version) = (self.world.next_text(), self.world.next_text());
        let key = (plural.to_owned(), name.to_owned());
        let object = self.objects.entry(key).or_insert_with(|| json!({"metadata": {"uid": uid}}));
        merge(object, body);
        if plural == "configmaps" {
            // What is no longer applied goes.
            object["data"] = body["data"].clone();
            self.world.config = settings_of(&body["data"]);
        }
        object["metadata"]["resourceVersion"] = json!(version);
        Ok((object.clone(), version))
    }
}

const FIXED: [&str; 4] = ["serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates"];

/// What the API server writes into a StatefulSet by itself.
fn add_defaults(set: &mut Value) {
    for claim in set["spec"]["volumeClaimTemplates"].as_array_mut().into_iter().flatten() {
        (claim["apiVersion"], claim["kind"]) = (json!("v1"), json!("PersistentVolumeClaim"));
        claim["status"] = json!({"phase": "Pending"});
    }
}

/// The settings that change at run time, as a node has them that starts with this ConfigMap.
fn settings_of(data: &Value) -> BTreeMap<String, String> {
    let variables = data.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value)));
    let config = Config::load(["balsa".to_owned(), "--bootstrap=operator".to_owned()], variables);
    let Ok(Invocation::Run(config)) = config else { panic!("no node would start with {data}") };
    HOT.iter().map(|flag| ((*flag).to_owned(), config.source.text(flag).to_owned())).collect()
}

/// What a write was decided on.
fn fence(preconditions: &Value) -> ObjectRef {
    ObjectRef { uid: text(&preconditions["uid"]), resource_version: text(&preconditions["resourceVersion"]) }
}
