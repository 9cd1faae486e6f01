//! P2: a write carries the UID and the resourceVersion that it was decided on. What the API server's face says of one that
//! does not, and what becomes of a write whose object has changed since.

use axum::http::Request;
use serde_json::{Value, json};

use super::api_server::answer;
use super::runs::{Operator, block_on, changed, settled, shared};
use super::stage::{NAME, NAMESPACE, Stage, lock};
use crate::names::{self, FINALIZER};
use crate::observed::HostState;

const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// A write of one object that is there: all but the fence, and where in the body that stands.
struct Write {
    method: &'static str,
    content: &'static str,
    path: String,
    plural: &'static str,
    name: String,
    body: Value,
    fence: &'static str,
}

fn write(method: &'static str, content: &'static str, (plural, name, sub): (&'static str, String, &str)) -> Write {
    let group = match plural {
        "raftclusters" => "apis/balsa.dev/v1alpha1",
        "statefulsets" => "apis/apps/v1",
        "poddisruptionbudgets" => "apis/policy/v1",
        _ => "api/v1",
    };
    let path = format!("/{group}/namespaces/{NAMESPACE}/{plural}/{name}{sub}");
    let fence = match (method, sub) {
        ("DELETE", _) => "/preconditions",
        (_, "/eviction") => "/deleteOptions/preconditions",
        _ => "/metadata",
    };
    Write { method, content, path, plural, name, body: json!({}), fence }
}

/// Every write that the operator knows, as it makes them on a settled cluster of three.
fn every_write(stage: &Stage) -> Vec<Write> {
    let mut writes = Vec::new();
    for ((plural, name), object) in &stage.objects {
        let known = ["serviceaccounts", "configmaps", "services", "poddisruptionbudgets", "statefulsets"];
        let plural = known.into_iter().find(|known| known == plural).expect("a kind that is applied");
        writes.push(Write { body: object.clone(), ..write("PATCH", APPLY, (plural, name.clone(), "")) });
    }
    let (set, pod, volume) = (NAME.to_owned(), names::pod(NAME, 2), names::volume(NAME, 2));
    let with = |write: Write, body: Value| Write { body, ..write };
    let finalizers = json!({"metadata": {"finalizers": [FINALIZER]}});
    let detached = json!({"metadata": {"labels": {names::LABEL_DETACHED: "true"}}});
    writes.extend([
        with(write("PATCH", MERGE, ("raftclusters", set.clone(), "")), finalizers),
        with(write("PATCH", MERGE, ("raftclusters", set.clone(), "/status")), json!({"status": {"leader": "db-1"}})),
        with(write("PATCH", MERGE, ("persistentvolumeclaims", volume.clone(), "")), detached),
        with(write("PATCH", MERGE, ("statefulsets", set.clone(), "")), json!({"spec": {"replicas": 4}})),
        write("DELETE", MERGE, ("persistentvolumeclaims", volume, "")),
        write("DELETE", MERGE, ("pods", pod.clone(), "")),
        write("POST", MERGE, ("pods", pod, "/eviction")),
        with(write("DELETE", MERGE, ("statefulsets", set.clone(), "")), json!({"propagationPolicy": "Orphan"})),
        write("DELETE", MERGE, ("statefulsets", set, "")),
        write("DELETE", MERGE, ("poddisruptionbudgets", names::budget(NAME), "")),
    ]);
    writes
}

impl Write {
    /// Sends it on this UID and resourceVersion to a copy of `stage`: the code, and whether it counts as unfenced.
    async fn sent(&self, stage: &Stage, uid: &Value, resource_version: &Value) -> (u16, bool) {
        let mut body = self.body.clone();
        let place = self.fence.split('/').skip(1).fold(&mut body, |value, key| &mut value[key]);
        for (key, value) in [("uid", uid), ("resourceVersion", resource_version)] {
            place[key] = value.clone();
            if value.is_null() {
                place.as_object_mut().expect("a map").remove(key);
            }
        }
        let request = Request::builder().method(self.method).uri(&self.path).header("content-type", self.content);
        let request = request.body(body.to_string().into_bytes().into()).expect("a request");
        let stage = shared(stage.clone());
        let reply = answer(&stage, request).await.expect("the process lives");
        let unfenced = lock(&stage).world.violations.iter().any(|wrong| wrong.starts_with("p2: unfenced write"));
        (reply.status().as_u16(), unfenced)
    }
}

#[test]
fn p2_a_write_without_its_fence_is_a_violation_and_one_with_another_is_refused() {
    block_on(async {
        let stage = settled(3, &json!({})).await;
        for write in every_write(&stage) {
            let what = format!("{} {}", write.method, write.path);
            let is = stage.read(write.plural, &write.name).expect(&what)["metadata"].clone();
            let (uid, version, none, other) = (&is["uid"], &is["resourceVersion"], &Value::Null, &json!("another"));
            assert_eq!(write.sent(&stage, uid, version).await, (200, false), "{what}");
            for (uid, version) in [(none, none), (uid, none), (none, version)] {
                assert_eq!(write.sent(&stage, uid, version).await, (409, true), "{what} on {uid} {version}");
            }
            for (uid, version) in [(other, version), (uid, other)] {
                assert_eq!(write.sent(&stage, uid, version).await, (409, false), "{what} on {uid} {version}");
            }
        }
    });
}

/// X2: whoever changed the pod may have brought it back, so it is read again before it is forced out.
#[test]
fn x2_a_pod_that_has_changed_since_is_not_forced_out() {
    block_on(async {
        let stage = changed(settled(3, &json!({})).await, |stage| {
            stage.world.break_host(1, HostState::Gone);
            stage.meddled = Some(1);
        });
        let uid = stage.world.pods[&1].object.uid.clone();
        let stage = shared(stage);
        let operator = Operator::new(&stage);
        for _ in 0..20 {
            operator.pass().await.expect("a conflict is no failure");
            lock(&stage).world.tick();
        }
        assert_eq!(lock(&stage).world.pods[&1].object.uid, uid, "nothing was forced");
        let told = "DELETE pods/db-1 : Conflict".to_owned();
        assert!(lock(&stage).refused.contains(&told), "{:?}", lock(&stage).refused);
        (lock(&stage).meddled, lock(&stage).refused) = (None, Vec::new());
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_ne!(lock(&stage).world.pods[&1].object.uid, uid);
    });
}
