//! Reads the world: the API server and every node, live, all at once, and within the call timeouts.
//!
//! Nothing is taken from a cache, because a step carries the identity of what it was decided on. What could not be
//! read is unknown, never absent: a failed read of the API server ends the pass, a silent node is a value.

mod claims;
mod convert;
mod lists;
mod nodes;

pub(crate) use convert::stateful_set;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use balsa_crds::RaftCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;

use crate::apply::{is_busy, is_ours_to_end};
use crate::members::Dial;
use crate::names::{self, MOST_ORDINALS};
use crate::observed::{Host, HostState, Observed, ObservedResource, UnixSeconds};

/// HTTP status of what the operator's role does not allow.
const FORBIDDEN: u16 = 403;

/// Why a pass could not observe.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// The API server did not answer, or refused.
    #[error("reading {kind} failed: {source}")]
    Read {
        /// What was read.
        kind: &'static str,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// No randomness for a fresh cluster id.
    #[error("the system gives no random numbers")]
    Random,
}

impl ObserveError {
    /// The word for it in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { source, .. } if is_busy(source) => "TooManyRequests",
            Self::Read { .. } => "ObserveFailed",
            Self::Random => "NoRandomness",
        }
    }
}

/// The objects that `apply` compares with and that carry the identities for its writes.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// The StatefulSet.
    pub stateful_set: Option<StatefulSet>,
    /// The budget.
    pub budget: Option<PodDisruptionBudget>,
    /// Settings of the node.
    pub config_map: Option<ConfigMap>,
    /// The pods' identity.
    pub service_account: Option<ServiceAccount>,
    /// The peers' Service.
    pub peer_service: Option<Service>,
    /// The clients' Service.
    pub client_service: Option<Service>,
    /// Address of each pod that may have a process, by ordinal.
    pub addresses: BTreeMap<u32, IpAddr>,
}

/// One pass's reading of everything. `now` is when the pass began.
///
/// # Errors
/// [`ObserveError`] when the API server cannot be read; never for a silent node.
pub async fn observe(
    client: &Client,
    dial: &dyn Dial,
    resource: &RaftCluster,
    now: UnixSeconds,
) -> Result<(Observed, Live), ObserveError> {
    let name = resource.name_any();
    let namespace = resource.namespace().unwrap_or_default();
    let (mut live, mut pods, volumes) = read(client, &namespace, &name).await?;
    if resource.metadata.deletion_timestamp.is_some() {
        leave_to_others(resource, &mut live, &mut pods);
    }
    let mut observed = Observed {
        now,
        fresh_id: fresh_id()?,
        resource: convert::resource(resource),
        set: live.stateful_set.as_ref().map(convert::stateful_set),
        budget: live.budget.as_ref().map(convert::budget),
        pods: by_ordinal(&pods, |pod| names::pod_ordinal(&name, pod), convert::pod),
        volumes: by_ordinal(&volumes, |volume| names::volume_ordinal(&name, volume), convert::volume),
        ..Observed::default()
    };
    live.addresses = nodes::addresses(&pods, &name);
    let ObservedResource { cluster_id: latched, bootstrapped, was_available, .. } = observed.resource;
    let (answers, unmade, served, ()) = tokio::join!(
        nodes::ask(dial, &live.addresses, &name, latched),
        unmade(client, live.stateful_set.as_ref(), &pods, &name),
        served(client, &namespace, &name, bootstrapped && !was_available),
        hosts(client, &mut observed, &volumes, &name)
    );
    (observed.nodes, observed.members, observed.dissent) = answers;
    (observed.unmade, observed.served) = (unmade, served?);
    Ok((observed, live))
}

/// Everything that the API server holds for this cluster.
async fn read(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(Live, Vec<Pod>, Vec<PersistentVolumeClaim>), ObserveError> {
    let stateful_sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(&names::selector(name));
    let (set_name, budget_name, config_name) =
        (names::stateful_set(name), names::budget(name), format!("{name}-config"));
    let (peer_name, client_name) = (names::peer_service(name), names::client_service(name));
    let (stateful_set, budget, config_map, service_account, peer_service, client_service, pods, volumes) = tokio::join!(
        stateful_sets.get_opt(&set_name),
        budgets.get_opt(&budget_name),
        config_maps.get_opt(&config_name),
        accounts.get_opt(name),
        services.get_opt(&peer_name),
        services.get_opt(&client_name),
        pods.list(&ours),
        claims.list(&ours),
    );
    let live = Live {
        stateful_set: stateful_set.map_err(failed("the StatefulSet"))?,
        budget: budget.map_err(failed("the PodDisruptionBudget"))?,
        config_map: config_map.map_err(failed("the ConfigMap"))?,
        service_account: service_account.map_err(failed("the ServiceAccount"))?,
        peer_service: peer_service.map_err(failed("the peer Service"))?,
        client_service: client_service.map_err(failed("the client Service"))?,
        addresses: BTreeMap::new(),
    };
    let (pods, mut volumes) = (pods.map_err(failed("pods"))?.items, volumes.map_err(failed("volume claims"))?.items);
    let ordinals = claims::ordinals(live.stateful_set.as_ref(), &pods, name);
    let unlisted = claims::unlisted(&claims, name, &volumes, &ordinals).await;
    volumes.extend(unlisted.map_err(failed("volume claims"))?);
    Ok((live, pods, volumes))
}

/// A deletion ends what it finds under our names, and waits for the pods, so it finds only what is ours. In a life `apply` tells
/// of the others, and touches none. Pods are known by our labels, which those of a set of somebody else's may have too; volumes
/// are ended only by the id of the cluster.
fn leave_to_others(resource: &RaftCluster, live: &mut Live, pods: &mut Vec<Pod>) {
    live.budget = live.budget.take().filter(|budget| is_ours_to_end(resource, budget));
    let Some(set) = live.stateful_set.take() else { return };
    if is_ours_to_end(resource, &set) {
        live.stateful_set = Some(set);
        return;
    }
    let theirs = |pod: &Pod| {
        let mut owners = pod.owner_references().iter();
        owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == set.metadata.uid.as_ref())
    };
    pods.retain(|pod| !theirs(pod));
}

fn failed(kind: &'static str) -> impl Fn(kube::Error) -> ObserveError {
    move |source| ObserveError::Read { kind, source: Box::new(source) }
}

fn by_ordinal<O: ResourceExt, V>(
    objects: &[O],
    ordinal: impl Fn(&str) -> Option<u32>,
    convert: impl Fn(&O) -> V,
) -> BTreeMap<u32, V> {
    objects.iter().filter_map(|object| Some((ordinal(&object.name_any())?, convert(object)))).collect()
}

/// Why pods that are not there could not be made: only the events of the StatefulSet's controller say that a quota, a policy or
/// a missing class forbids them. Without permission nobody knows, and the plan waits all the same.
async fn unmade(client: &Client, set: Option<&StatefulSet>, pods: &[Pod], name: &str) -> BTreeMap<u32, String> {
    let Some((set, uid)) = set.and_then(|set| Some((set, set.uid()?))) else { return BTreeMap::new() };
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).and_then(|count| u32::try_from(count).ok());
    let there: BTreeSet<String> = pods.iter().map(ResourceExt::name_any).collect();
    let missing = (0..replicas.unwrap_or_default()).map(|k| (k, names::pod(name, k)));
    // The controller makes them in this order, and ends at the first that it cannot make or waits for.
    let missing: Vec<(u32, String)> =
        missing.filter(|(_, pod)| !there.contains(pod)).take(MOST_ORDINALS as usize).collect();
    if missing.is_empty() {
        return BTreeMap::new();
    }
    let events: Api<Event> = Api::namespaced(client.clone(), &set.namespace().unwrap_or_default());
    let failures = ListParams::default().fields(&format!("involvedObject.uid={uid},reason=FailedCreate"));
    let events = events.list(&failures).await.map(|list| list.items).unwrap_or_default();
    missing.into_iter().filter_map(|(k, pod)| Some((k, convert::failure(&events, &pod)?))).collect()
}

/// Whether clients find a ready member behind their Service. Without permission nobody knows, and nobody waits for it.
async fn served(client: &Client, namespace: &str, name: &str, wanted: bool) -> Result<Option<bool>, ObserveError> {
    if !wanted {
        return Ok(None);
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let of_service = format!("kubernetes.io/service-name={}", names::client_service(name));
    match slices.list(&ListParams::default().labels(&of_service)).await {
        Ok(slices) => Ok(Some(slices.items.iter().any(convert::is_serving))),
        Err(kube::Error::Api(status)) if status.code == FORBIDDEN => Ok(None),
        Err(error) => Err(failed("EndpointSlices")(error)),
    }
}

/// Learns what became of the Kubernetes nodes, where a proof may be needed: for pods that end or do not serve, and
/// for the volumes of pods that find no place. Without permission everything stays unknown and the plan waits.
async fn hosts(client: &Client, observed: &mut Observed, volumes: &[PersistentVolumeClaim], name: &str) {
    for claim in volumes {
        let Some(ordinal) = names::volume_ordinal(name, &claim.name_any()) else { continue };
        let unplaced = observed.pods.get(&ordinal).is_some_and(|pod| pod.unschedulable.is_some());
        if unplaced && let Some(volume) = observed.volumes.get_mut(&ordinal) {
            volume.pinned = pinned(client, claim).await;
        }
    }
    let doubtful = observed.pods.values_mut().filter(|pod| pod.terminating.is_some() || !pod.ready);
    let pinned = observed.volumes.values_mut().filter_map(|volume| volume.pinned.as_mut());
    let mut wanted: Vec<&mut Host> = doubtful.filter_map(|pod| pod.host.as_mut()).chain(pinned).collect();
    let names: BTreeSet<String> = wanted.iter().map(|host| host.name.clone()).collect();
    let states = futures::future::join_all(names.iter().map(|name| host_state(client, name))).await;
    let states: BTreeMap<String, HostState> = names.into_iter().zip(states).collect();
    for host in &mut wanted {
        host.state = states.get(&host.name).copied().unwrap_or_default();
    }
}

async fn host_state(client: &Client, name: &str) -> HostState {
    match Api::<Node>::all(client.clone()).get_opt(name).await {
        Ok(Some(node)) => convert::host_state(&node),
        Ok(None) => HostState::Gone,
        Err(_) => HostState::Unknown,
    }
}

async fn pinned(client: &Client, claim: &PersistentVolumeClaim) -> Option<Host> {
    let name = claim.spec.as_ref()?.volume_name.as_deref()?;
    let volume = Api::<PersistentVolume>::all(client.clone()).get_opt(name).await.ok()??;
    convert::pinned(&volume).map(|name| Host { name, state: HostState::Unknown })
}

/// Random and not zero.
fn fresh_id() -> Result<u64, ObserveError> {
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    let mut bytes = [0; 8];
    random.fill(&mut bytes).map_err(|_| ObserveError::Random)?;
    Ok(u64::from_be_bytes(bytes).max(1))
}
