//! Performs one step: exactly one remote write, fenced by what the step was decided on.
//!
//! A conflict, a refusal by a node or by the budget is no failure of the operator: the next pass observes what has
//! become of it. Nothing is retried here.

mod describe;

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::http::Request;
use balsa_crds::RaftCluster;
use balsa_proto::node::{
    AddRequest, BootstrapRequest, JoinRequest, MoveLeaderRequest, Peer, PrepareStopRequest, PromoteRequest,
    RemoveRequest, SetConfigRequest,
};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use thiserror::Error;

pub use describe::describe;

use crate::apply::{ApplyError, FIELD_MANAGER, is_conflict, words, would_make};
use crate::build::build;
use crate::members::{CHANGE_TIMEOUT, Dial, Node, NodeError};
use crate::names::{self, FINALIZER, LABEL_CLUSTER_ID, LABEL_DETACHED, LABEL_INCARNATION, LABEL_RAFT_ID};
use crate::observed::{Marker, Observed};
use crate::step::{BootstrapStep, ObjectRef, PodRef, RestartMode, Step, VolumeLabel, VolumeRef};
use crate::valid::ValidCluster;

/// Why a step did not happen, or is not known to have happened.
#[derive(Debug, Error)]
pub enum ExecuteError {
    /// The API server refused or did not answer.
    #[error("{}", words(.0))]
    Kubernetes(Box<kube::Error>),
    /// The node refused or did not answer.
    #[error("{0}")]
    Node(#[from] NodeError),
    /// The API server has too much to do.
    #[error("the API server asks for patience: {0}")]
    TooManyRequests(String),
    /// The pod is not the one that the step was decided on.
    #[error("{0} has changed since it was observed")]
    Changed(String),
    /// The disruption budget refused the eviction.
    #[error("the disruption budget refuses to evict {0} now")]
    Budget(String),
    /// The API server would not take the StatefulSet that is to come in place of the present one.
    #[error("the StatefulSet has to be made anew, and the API server would not take it: {0}")]
    NotTaken(String),
    /// The pod to be asked has no address, or is another pod than the step was decided on.
    #[error("pod {0} has no address to be asked at")]
    NoAddress(String),
    /// Changes go to the leader, and none is known.
    #[error("no leader is known among the pods")]
    NoLeader,
    /// The request could not be written.
    #[error("the request cannot be written: {0}")]
    Encode(String),
}

impl ExecuteError {
    /// The API server has refused the write because the object is another one by now.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Kubernetes(error) if is_conflict(error))
    }

    /// The word for it in metrics and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kubernetes(error) if is_conflict(error) => "Conflict",
            Self::Kubernetes(_) => "KubernetesFailed",
            Self::TooManyRequests(_) => "TooManyRequests",
            Self::Changed(_) => "Conflict",
            Self::Node(error) => error.reason(),
            Self::Budget(_) => "DisruptionBudget",
            Self::NotTaken(_) => "InvalidSpec",
            Self::NoAddress(_) => "PodNotRunning",
            Self::NoLeader => "NoLeader",
            Self::Encode(_) => "EncodeFailed",
        }
    }
}

impl From<kube::Error> for ExecuteError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == TOO_MANY_REQUESTS => Self::TooManyRequests(status.message),
            error => Self::Kubernetes(Box::new(error)),
        }
    }
}

/// What a person can mend is told with the API server's words; everything else passes.
fn not_made(error: ApplyError) -> ExecuteError {
    let for_a_human = error.for_a_human().is_some();
    match error {
        ApplyError::Write { source, .. } if for_a_human => ExecuteError::NotTaken(words(&source)),
        ApplyError::Write { source, .. } => ExecuteError::from(*source),
        error => ExecuteError::Encode(error.to_string()),
    }
}

/// HTTP status of two different refusals: the disruption budget's, and that of an API server with too much to do.
const TOO_MANY_REQUESTS: u16 = 429;

/// Whether a refused eviction was refused by the disruption budget; the API server names that as the cause.
fn is_budget(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == TOO_MANY_REQUESTS && causes.into_iter().any(|cause| cause.reason == "DisruptionBudget")
}

/// What a step is executed with.
pub struct Hands<'a> {
    /// Client whose calls are bounded and never retried by themselves.
    pub client: &'a kube::Client,
    /// How nodes are reached.
    pub dial: &'a dyn Dial,
    /// The resource as read in this pass.
    pub resource: &'a RaftCluster,
    /// As validated.
    pub cluster: &'a ValidCluster,
    /// As observed.
    pub observed: &'a Observed,
    /// Addresses of the pods as read in this pass.
    pub addresses: &'a BTreeMap<u32, IpAddr>,
}

impl Hands<'_> {
    /// Executes `step`. Returns whether anything was written.
    ///
    /// # Errors
    /// See [`ExecuteError`].
    pub async fn execute(&self, step: &Step) -> Result<bool, ExecuteError> {
        match step {
            Step::Wait | Step::Settled => return Ok(false),
            Step::Bootstrap(part) => self.bootstrap(part).await?,
            Step::AddLearner { peer_url, membership_index, .. } => {
                let (membership_index, peer_urls) = (*membership_index, vec![peer_url.clone()]);
                let (mut leader, cluster_id) = self.leader()?;
                leader.add(AddRequest { membership_index, peer_urls, cluster_id }).await?;
            }
            Step::Join { pod, marker, peers, membership_index } => {
                let peers = peers.iter().map(|(id, urls)| Peer { id: *id, urls: urls.clone() }).collect();
                let request = JoinRequest {
                    cluster_id: marker.cluster_id,
                    raft_id: marker.raft_id,
                    incarnation: marker.incarnation,
                    peers,
                    membership_index: *membership_index,
                };
                self.node(pod)?.join(request).await?;
            }
            Step::LabelVolume { volume, label } => self.label(volume, label).await?,
            Step::ScaleOut { set, replicas } | Step::ScaleIn { set, replicas } => {
                let body = fenced(&set.uid, &set.resource_version, json!({"spec": {"replicas": replicas}}));
                self.patch::<StatefulSet>(&names::stateful_set(&self.cluster.name), &body).await?;
            }
            Step::Promote { raft_id, membership_index, .. } => {
                let (membership_index, id) = (*membership_index, *raft_id);
                let (mut leader, cluster_id) = self.leader()?;
                leader.promote(PromoteRequest { membership_index, id, cluster_id }).await?;
            }
            Step::MoveLeader { from, to, .. } => {
                let (mut leader, cluster_id) = self.leader()?;
                leader.move_leader(MoveLeaderRequest { target: *to, cluster_id, leader: *from }).await?;
            }
            Step::SetConfig { pod, marker, version, settings } => {
                self.set_config(pod, *marker, *version, settings).await?;
            }
            Step::PrepareStop { pod, marker } => {
                let Marker { cluster_id, raft_id, incarnation } = *marker;
                self.node(pod)?.prepare_stop(PrepareStopRequest { cluster_id, raft_id, incarnation }).await?;
            }
            Step::RemoveMember { raft_id, membership_index, .. } => {
                let (membership_index, id) = (*membership_index, *raft_id);
                let (mut leader, cluster_id) = self.leader()?;
                leader.remove(RemoveRequest { membership_index, id, cluster_id }).await?;
            }
            Step::DropVolume { volume, .. } => {
                let name = names::volume(&self.cluster.name, volume.ordinal);
                let parameters = DeleteParams::default().preconditions(on(&volume.uid, &volume.resource_version));
                self.delete::<PersistentVolumeClaim>(&name, &parameters).await?;
            }
            Step::RestartPod { pod, mode, .. } => self.restart(pod, *mode).await?,
            Step::RecreateSet { set, .. } => self.recreate(set).await?,
            Step::DeleteSet { set } => {
                let parameters = background().preconditions(on(&set.uid, &set.resource_version));
                self.delete::<StatefulSet>(&names::stateful_set(&self.cluster.name), &parameters).await?;
            }
            Step::DeleteBudget { budget } => {
                let parameters = background().preconditions(on(&budget.uid, &budget.resource_version));
                self.delete::<PodDisruptionBudget>(&names::budget(&self.cluster.name), &parameters).await?;
            }
            Step::DropFinalizer { resource_version } => self.drop_finalizer(resource_version).await?,
        }
        Ok(true)
    }

    async fn bootstrap(&self, part: &BootstrapStep) -> Result<(), ExecuteError> {
        match part {
            BootstrapStep::Intend { cluster_id, resource_version }
            | BootstrapStep::Adopt { cluster_id, resource_version } => {
                self.patch_status(resource_version, json!({"clusterId": names::id_text(*cluster_id)})).await
            }
            BootstrapStep::Call { pod, cluster_id, name, peer_url } => {
                let (cluster_id, name, peer_urls) = (*cluster_id, name.clone(), vec![peer_url.clone()]);
                self.unchanged(pod).await?;
                self.node(pod)?.bootstrap(BootstrapRequest { cluster_id, name, peer_urls }).await?;
                Ok(())
            }
            BootstrapStep::Latch { resource_version } => {
                self.patch_status(resource_version, json!({"bootstrapped": true})).await
            }
        }
    }

    /// The node answers when the settings are active, with the version that is active then.
    async fn set_config(
        &self,
        pod: &PodRef,
        Marker { cluster_id, raft_id, incarnation }: Marker,
        version: u64,
        settings: &BTreeMap<String, String>,
    ) -> Result<(), ExecuteError> {
        let settings = settings.clone().into_iter().collect();
        let request = SetConfigRequest { version, settings, cluster_id, raft_id, incarnation };
        let active = self.node(pod)?.set_config(request).await?.version;
        if active == version { Ok(()) } else { Err(ExecuteError::Changed(names::pod(&self.cluster.name, pod.ordinal))) }
    }

    /// P2 for calls to a node, which knows no resourceVersion: the pod is still the one that was observed, and so is its
    /// process, because a restarted container changes the pod. What may have an empty disk again is not founded on.
    async fn unchanged(&self, pod: &PodRef) -> Result<(), ExecuteError> {
        let name = names::pod(&self.cluster.name, pod.ordinal);
        let live = self.api::<Pod>().get_opt(&name).await?;
        let same = live.is_some_and(|live| {
            live.uid().as_ref() == Some(&pod.uid) && live.resource_version().as_ref() == Some(&pod.resource_version)
        });
        if same { Ok(()) } else { Err(ExecuteError::Changed(name)) }
    }

    async fn label(&self, volume: &VolumeRef, label: &VolumeLabel) -> Result<(), ExecuteError> {
        let labels = match label {
            VolumeLabel::Member(marker) => json!({
                LABEL_CLUSTER_ID: names::id_text(marker.cluster_id),
                LABEL_RAFT_ID: names::id_text(marker.raft_id),
                LABEL_INCARNATION: names::id_text(marker.incarnation),
                LABEL_DETACHED: Value::Null,
            }),
            VolumeLabel::Detached => json!({LABEL_DETACHED: "true"}),
        };
        let body = fenced(&volume.uid, &volume.resource_version, json!({"metadata": {"labels": labels}}));
        self.patch::<PersistentVolumeClaim>(&names::volume(&self.cluster.name, volume.ordinal), &body).await
    }

    async fn restart(&self, pod: &PodRef, mode: RestartMode) -> Result<(), ExecuteError> {
        let name = names::pod(&self.cluster.name, pod.ordinal);
        let preconditions = on(&pod.uid, &pod.resource_version);
        match mode {
            RestartMode::Delete | RestartMode::End => {
                self.delete::<Pod>(&name, &DeleteParams::default().preconditions(preconditions)).await
            }
            RestartMode::Force => {
                let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
                self.delete::<Pod>(&name, &parameters).await
            }
            RestartMode::Evict => self.evict(&name, &preconditions).await,
        }
    }

    /// The first half; the next pass makes it again. A policy that lets nobody make StatefulSets now must not be found out
    /// when the present one is gone.
    async fn recreate(&self, set: &ObjectRef) -> Result<(), ExecuteError> {
        let wanted = build(self.cluster, self.observed).stateful_set;
        // Of its UID, so that it is nobody's name.
        let suffix = set.uid.get(..8).unwrap_or(&set.uid);
        would_make(self.client, wanted, suffix).await.map_err(not_made)?;
        let parameters = orphaning().preconditions(on(&set.uid, &set.resource_version));
        self.delete::<StatefulSet>(&names::stateful_set(&self.cluster.name), &parameters).await
    }

    /// Posts the eviction by hand: `Api::evict` of kube 5.0 sends its delete options under a key that the API server
    /// ignores, so that the preconditions would be lost.
    async fn evict(&self, pod: &str, preconditions: &Preconditions) -> Result<(), ExecuteError> {
        let request = eviction(&self.cluster.namespace, pod, preconditions)?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if is_budget(&status) => Err(ExecuteError::Budget(pod.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    async fn drop_finalizer(&self, resource_version: &str) -> Result<(), ExecuteError> {
        let others: Vec<&String> = self.resource.finalizers().iter().filter(|name| *name != FINALIZER).collect();
        let body = fenced(&self.cluster.uid, resource_version, json!({"metadata": {"finalizers": others}}));
        self.patch::<RaftCluster>(&self.cluster.name, &body).await
    }

    async fn patch_status(&self, resource_version: &str, status: Value) -> Result<(), ExecuteError> {
        let body = fenced(&self.cluster.uid, resource_version, json!({"status": status}));
        let api = self.api::<RaftCluster>();
        api.patch_status(&self.cluster.name, &parameters(), &Patch::Merge(&body)).await?;
        Ok(())
    }

    async fn patch<K: Written>(&self, name: &str, body: &Value) -> Result<(), ExecuteError> {
        self.api::<K>().patch(name, &parameters(), &Patch::Merge(body)).await?;
        Ok(())
    }

    async fn delete<K: Written>(&self, name: &str, parameters: &DeleteParams) -> Result<(), ExecuteError> {
        self.api::<K>().delete(name, parameters).await?;
        Ok(())
    }

    fn api<K: Written>(&self) -> Api<K> {
        Api::namespaced(Client::clone(self.client), &self.cluster.namespace)
    }

    /// The node of a pod, which must be the one that was observed.
    fn node(&self, pod: &PodRef) -> Result<Node, ExecuteError> {
        let same = self.observed.pods.get(&pod.ordinal).is_some_and(|observed| observed.uid == pod.uid);
        let address = self.addresses.get(&pod.ordinal).filter(|_| same);
        let name = || ExecuteError::NoAddress(names::pod(&self.cluster.name, pod.ordinal));
        Ok(Node::at(self.dial, *address.ok_or_else(name)?, CHANGE_TIMEOUT))
    }

    /// Changes of membership are proposed where the leader is, with the cluster that is meant, because its address may have
    /// become another pod's.
    fn leader(&self) -> Result<(Node, u64), ExecuteError> {
        let list = self.observed.members.as_ref().ok_or(ExecuteError::NoLeader)?;
        let urls = list.members.get(&list.leader).map(|leader| leader.peer_urls.as_slice()).unwrap_or_default();
        let ordinal = urls.iter().find_map(|url| names::peer_url_ordinal(self.cluster, url));
        let address = self.addresses.get(&ordinal.ok_or(ExecuteError::NoLeader)?).ok_or(ExecuteError::NoLeader)?;
        Ok((Node::at(self.dial, *address, CHANGE_TIMEOUT), list.cluster_id))
    }
}

/// Kinds that steps write.
trait Written:
    kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + serde::de::DeserializeOwned
    + Clone
    + std::fmt::Debug
{
}
impl Written for StatefulSet {}
impl Written for Pod {}
impl Written for PersistentVolumeClaim {}
impl Written for PodDisruptionBudget {}
impl Written for RaftCluster {}

fn parameters() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn on(uid: &str, resource_version: &str) -> Preconditions {
    Preconditions { uid: Some(uid.to_owned()), resource_version: Some(resource_version.to_owned()) }
}

/// What the owner owns stays, and belongs to nobody.
fn orphaning() -> DeleteParams {
    DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() }
}

/// What the owner owns goes with it, without holding the owner back.
fn background() -> DeleteParams {
    DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() }
}

/// A merge patch that the API server refuses with 409 when the object is not the one that was read.
fn fenced(uid: &str, resource_version: &str, mut patch: Value) -> Value {
    patch["metadata"]["uid"] = json!(uid);
    patch["metadata"]["resourceVersion"] = json!(resource_version);
    patch
}

fn eviction(namespace: &str, pod: &str, preconditions: &Preconditions) -> Result<Request<Vec<u8>>, ExecuteError> {
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
        "deleteOptions": {
            "preconditions": {"uid": preconditions.uid, "resourceVersion": preconditions.resource_version},
        },
    });
    Request::post(format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction"))
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes())
        .map_err(|error| ExecuteError::Encode(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_carries_its_preconditions_where_the_api_server_reads_them() {
        let request = eviction("ns", "db-2", &on("u", "9")).expect("a request");
        assert_eq!(request.uri(), "/api/v1/namespaces/ns/pods/db-2/eviction");
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        assert_eq!(body["deleteOptions"]["preconditions"], json!({"uid": "u", "resourceVersion": "9"}));
    }

    #[test]
    fn a_refusal_of_the_budget_is_told_from_an_api_server_with_too_much_to_do() {
        let status = |text: &str| -> Box<kube::core::Status> { serde_json::from_str(text).expect("a status") };
        let budget = status(
            r#"{"status": "Failure", "code": 429, "reason": "TooManyRequests", "message": "Cannot evict pod as it would
                violate the pod's disruption budget.", "details": {"causes": [{"reason": "DisruptionBudget",
                "message": "needs 2 healthy pods and has 2 currently"}]}}"#
                .replace('\n', " ")
                .as_str(),
        );
        let busy = status(r#"{"status": "Failure", "code": 429, "message": "please try again later"}"#);
        assert!(is_budget(&budget) && !is_budget(&busy));
        let error = ExecuteError::from(kube::Error::Api(busy));
        assert_eq!(error.reason(), "TooManyRequests");
    }

    #[test]
    fn a_patch_is_fenced_and_keeps_its_content() {
        let body = fenced("u", "9", json!({"metadata": {"labels": {"a": "b"}}}));
        assert_eq!(body, json!({"metadata": {"labels": {"a": "b"}, "uid": "u", "resourceVersion": "9"}}));
    }
}
