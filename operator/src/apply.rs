//! Makes what was built be there: server-side apply in a fixed order, then prune.
//!
//! An object is written only when it differs from what is wanted, so that a settled cluster is never written to. Every
//! write of an existing object carries the UID and resourceVersion it was read at; a conflict means observe again.

mod difference;
mod fixed;

use std::fmt::Debug;

use balsa_crds::RaftCluster;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use fixed::to_recreate;

use crate::build::Desired;
use crate::names;
use crate::observe::Live;

/// The label that names the cluster an object belongs to.
const INSTANCE: &str = "app.kubernetes.io/instance";

/// Under this name the operator owns fields.
pub const FIELD_MANAGER: &str = "balsa-operator";

/// Why an object could not be brought about.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The API server refused or did not answer.
    #[error("applying {kind} {name} failed: {source}")]
    Write {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// Somebody else's object has the name.
    #[error("{kind} {name} is not the operator's: rename or delete it, or create the RaftCluster under another name")]
    Foreign {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
    },
    /// An object has no JSON form.
    #[error("{kind} has no JSON form: {source}")]
    Encode {
        /// Kind of the object.
        kind: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

impl ApplyError {
    /// The word for it in metrics, conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Write { source, .. } if is_busy(source) => "TooManyRequests",
            Self::Write { .. } => "ApplyFailed",
            Self::Foreign { .. } => "ForeignObject",
            Self::Encode { .. } => "ApplyFailed",
        }
    }

    /// What a person has to change, when trying again cannot help: another object has the name, or the API server or one
    /// of its admission policies refuses what the spec leads to.
    pub fn for_a_human(&self) -> Option<String> {
        match self {
            Self::Foreign { .. } => Some(self.to_string()),
            Self::Write { kind, name, source } => match &**source {
                kube::Error::Api(status) if [400, 403, 422].contains(&status.code) || is_unreadable(status) => {
                    Some(format!(
                        "the API server refuses {kind} {name}: {}; change what leads to it in spec, or the policy that forbids it",
                        status.message
                    ))
                }
                _ => None,
            },
            Self::Encode { .. } => None,
        }
    }

    /// What is told of it when it does not pass: nobody refuses the object, and nobody takes it.
    pub fn lasting(&self) -> String {
        match self {
            Self::Write { kind, name, source } if is_busy(source) => {
                format!("the API server does not take {kind} {name}: {}", words(source))
            }
            Self::Write { kind, name, source } => format!(
                "the API server does not take {kind} {name}: {}; look for what fails behind it, most often a webhook that \
                 does not answer",
                words(source)
            ),
            Self::Foreign { .. } | Self::Encode { .. } => self.to_string(),
        }
    }

    /// The world has moved since it was read: nothing is wrong, observe again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Write { source, .. } if is_conflict(source))
    }
}

/// What the API server cannot even read it does not call invalid, but a failure of its own: two entries with one key in a list
/// that has keys, an amount that is none. Its words are all that tells it from a failure that passes.
fn is_unreadable(status: &kube::core::Status) -> bool {
    let words = ["failed to create typed patch object", "failed to convert new object"];
    status.code == 500 && words.iter().any(|words| status.message.starts_with(words))
}

/// What the API server said, without the structure around it.
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

/// 404 and 409: the object is gone, or is not the one that was read.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

/// 429: the API server has too much to do; nothing is wrong with what was asked.
pub fn is_busy(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 429)
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Kinds, in order.
    pub kinds: Vec<&'static str>,
    /// The StatefulSet as it is now, if it was written: what was observed of it no longer holds.
    pub stateful_set: Option<StatefulSet>,
}

/// Applies everything. `held` keeps the existing StatefulSet as it is.
///
/// # Errors
/// The first [`ApplyError`]; what was written before it stays, and the next pass goes on from there.
pub async fn apply(client: &Client, desired: Desired, live: &Live, held: bool) -> Result<Written, ApplyError> {
    // No rest pattern: an object that nobody applies does not compile.
    let Desired { service_account, config_map, peer_service, budget, mut stateful_set, mut client_service } = desired;
    let Live {
        stateful_set: live_set,
        budget: live_budget,
        config_map: live_config_map,
        service_account: live_account,
        peer_service: live_peers,
        client_service: live_clients,
        addresses: _,
    } = live;
    let mut written = Written::default();
    let kinds = &mut written.kinds;
    let instance = stateful_set.labels().get(INSTANCE).cloned().unwrap_or_default();
    // Before any pod that it must protect, and before anything that may be refused: repairs go on all the same, and wait
    // for it.
    check_ours(&instance, live_budget.as_ref().filter(|_| budget.is_some()))?;
    bound(client, budget.as_ref(), live_budget.as_ref(), kinds).await?;
    // Before anything else is written, so that no pods are made that clients cannot reach.
    check_ours(&instance, live_set.as_ref())?;
    check_ours(&instance, live_config_map.as_ref())?;
    check_ours(&instance, live_account.as_ref().filter(|_| service_account.is_some()))?;
    check_ours(&instance, live_peers.as_ref())?;
    check_ours(&instance, live_clients.as_ref())?;
    // What pods refer to comes before the pods.
    if let Some(account) = &service_account {
        one(client, account, live_account.as_ref(), kinds).await?;
    }
    one(client, &config_map, live_config_map.as_ref(), kinds).await?;
    one(client, &peer_service, live_peers.as_ref(), kinds).await?;
    keep_selector(&mut client_service, live_clients.as_ref());
    one(client, &client_service, live_clients.as_ref(), kinds).await?;
    let writable = fixed::keep(&mut stateful_set, live_set.as_ref());
    if writable && !(held && live_set.is_some()) {
        keep_replicas(&mut stateful_set, live_set.as_ref());
        written.stateful_set = one(client, &stateful_set, live_set.as_ref(), kinds).await?;
    }
    Ok(written)
}

/// Whether the API server would make this set, once there is none of its name: what [`apply`] does then, as a dry run under a name
/// that ends in `suffix` and that no set has. Under its own name it would change the present set, and be refused for that.
///
/// # Errors
/// [`ApplyError`].
pub async fn would_make(client: &Client, mut set: StatefulSet, suffix: &str) -> Result<(), ApplyError> {
    let (kind, name) = ("StatefulSet", format!("{}-{suffix}", set.name_any()));
    set.metadata.name = Some(name.clone());
    let body = difference::body(&set, None).map_err(|source| ApplyError::Encode { kind, source })?;
    let api: Api<StatefulSet> = Api::namespaced(client.clone(), &set.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(FIELD_MANAGER).force().dry_run();
    let made = api.patch(&name, &parameters, &Patch::Apply(&body)).await;
    made.map(|_| ()).map_err(|source| ApplyError::Write { kind, name, source: Box::new(source) })
}

/// Applies the disruption budget alone: repairs wait for it, and evictions are bounded by it, whatever the spec says.
///
/// # Errors
/// [`ApplyError`].
pub async fn apply_budget(
    client: &Client,
    budget: Option<&PodDisruptionBudget>,
    live: &Live,
) -> Result<Written, ApplyError> {
    let instance = budget.and_then(|budget| budget.labels().get(INSTANCE).cloned()).unwrap_or_default();
    check_ours(&instance, live.budget.as_ref().filter(|_| budget.is_some()))?;
    let mut written = Written::default();
    bound(client, budget, live.budget.as_ref(), &mut written.kinds).await?;
    Ok(written)
}

async fn bound(
    client: &Client,
    budget: Option<&PodDisruptionBudget>,
    live: Option<&PodDisruptionBudget>,
    kinds: &mut Vec<&'static str>,
) -> Result<(), ApplyError> {
    match (budget, live) {
        (Some(budget), live) => _ = one(client, budget, live, kinds).await?,
        (None, Some(live)) => prune(client, live, kinds).await?,
        (None, None) => {}
    }
    Ok(())
}

/// The count of an existing set is written as it was read, on the version it was read at, so it never changes here.
fn keep_replicas(desired: &mut StatefulSet, live: Option<&StatefulSet>) {
    let live = live.and_then(|live| live.spec.as_ref());
    if let (Some(desired), Some(live)) = (desired.spec.as_mut(), live) {
        desired.replicas = live.replicas;
    }
}

/// A Service that leads somewhere goes on leading there: a resource that was made anew does not know yet that its cluster is
/// founded.
fn keep_selector(desired: &mut Service, live: Option<&Service>) {
    let live = live.and_then(|live| live.spec.as_ref());
    if let (Some(desired), Some(live)) = (desired.spec.as_mut(), live) {
        desired.selector = desired.selector.take().or_else(|| live.selector.clone());
    }
}

/// Writes one object unless it is as wanted already; gives what it became.
async fn one<K>(
    client: &Client,
    desired: &K,
    live: Option<&K>,
    kinds: &mut Vec<&'static str>,
) -> Result<Option<K>, ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + k8s_openapi::Resource
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug,
{
    let (kind, name) = (K::KIND, desired.name_any());
    if live.is_some_and(|live| live.meta().deletion_timestamp.is_some()) {
        // On its way out; it is created anew once it is gone.
        return Ok(None);
    }
    let body = difference::body(desired, live).map_err(|source| ApplyError::Encode { kind, source })?;
    let Some(body) = body else { return Ok(None) };
    let api: Api<K> = Api::namespaced(client.clone(), &desired.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let written = api.patch(&name, &parameters, &Patch::Apply(&body)).await;
    let written = written.map_err(|source| ApplyError::Write { kind, name, source: Box::new(source) })?;
    kinds.push(kind);
    Ok(Some(written))
}

/// An object that carries our labels is ours, whoever owns it now: a set orphaned on purpose is adopted. One that is on
/// its way out is in nobody's way.
fn check_ours<K: k8s_openapi::Resource + ResourceExt>(instance: &str, live: Option<&K>) -> Result<(), ApplyError> {
    match live {
        Some(live) if live.meta().deletion_timestamp.is_none() && !is_ours(instance, live) => {
            Err(ApplyError::Foreign { kind: K::KIND, name: live.name_any() })
        }
        _ => Ok(()),
    }
}

/// It carries the labels of the cluster named `instance`.
pub fn is_ours<K: ResourceExt>(instance: &str, live: &K) -> bool {
    names::labels(instance).iter().all(|(key, value)| live.labels().get(key) == Some(value))
}

/// What a deletion of the resource ends: what carries our labels, and what the resource owns, because a set of ours whose labels
/// somebody has changed would keep its pods, which the deletion waits for. Our name alone makes nothing ours.
pub fn is_ours_to_end<K: ResourceExt>(resource: &RaftCluster, live: &K) -> bool {
    let uid = resource.metadata.uid.as_ref();
    let owned = live.owner_references().iter().any(|owner| uid == Some(&owner.uid));
    owned || is_ours(&resource.name_any(), live)
}

async fn prune<K>(client: &Client, live: &K, kinds: &mut Vec<&'static str>) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + k8s_openapi::Resource
        + DeserializeOwned
        + Clone
        + Debug,
{
    let (kind, name) = (K::KIND, live.name_any());
    let instance = live.labels().get(INSTANCE).cloned().unwrap_or_default();
    if live.labels().get("app.kubernetes.io/managed-by") != names::labels(&instance).get("app.kubernetes.io/managed-by")
        || live.meta().deletion_timestamp.is_some()
    {
        return Ok(());
    }
    let api: Api<K> = Api::namespaced(client.clone(), &live.namespace().unwrap_or_default());
    let preconditions = Preconditions { uid: live.uid(), resource_version: live.resource_version() };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    api.delete(&name, &parameters).await.map_err(|source| ApplyError::Write {
        kind,
        name,
        source: Box::new(source),
    })?;
    kinds.push(kind);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ServiceSpec;
    use serde_json::json;

    use super::*;
    use crate::fixtures::minimal;

    #[test]
    fn a_deletion_ends_what_has_our_labels_or_our_owner_and_nothing_for_its_name() {
        let resource = minimal();
        let uid = resource.uid().expect("a UID");
        let (ours, others) = (json!(names::labels("db")), json!(names::labels("other")));
        let (half, none) = (json!({"app.kubernetes.io/name": "balsa", INSTANCE: "db"}), json!({}));
        for (what, labels, owner_uid, ends) in [
            ("as it was made", &ours, Some(uid.as_str()), true),
            ("orphaned on purpose", &ours, None, true),
            ("of a resource of this name that is gone", &ours, Some("before"), true),
            ("relabelled", &others, Some(uid.as_str()), true),
            ("of our name", &none, None, false),
            ("with some of our labels", &half, None, false),
            ("of another cluster", &others, Some("other"), false),
        ] {
            let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "RaftCluster", "name": "db", "uid": uid});
            let owners: Vec<_> = owner_uid.map(owner).into_iter().collect();
            let set = json!({"metadata": {"name": "db", "labels": labels, "ownerReferences": owners}});
            let set: StatefulSet = serde_json::from_value(set).expect("a StatefulSet");
            assert_eq!(is_ours_to_end(&resource, &set), ends, "{what}");
        }
    }

    #[test]
    fn a_service_that_leads_to_members_is_not_cut_off_by_a_resource_that_was_made_anew() {
        let leading = |to: Option<&str>| {
            let selector = to.map(|to| BTreeMap::from([("to".to_owned(), to.to_owned())]));
            Service { spec: Some(ServiceSpec { selector, ..ServiceSpec::default() }), ..Service::default() }
        };
        for (desired, live, expected) in [
            (None, Some(leading(Some("members"))), Some("members")),
            (None, Some(leading(None)), None),
            (None, None, None),
            (Some("ours"), Some(leading(Some("theirs"))), Some("ours")),
        ] {
            let mut kept = leading(desired);
            keep_selector(&mut kept, live.as_ref());
            assert_eq!(kept, leading(expected));
        }
    }

    fn refused(code: u16, message: &str) -> Option<String> {
        let status = serde_json::json!({"status": "Failure", "code": code, "message": message});
        let status = serde_json::from_value(status).expect("a status");
        let source = Box::new(kube::Error::Api(status));
        ApplyError::Write { kind: "StatefulSet", name: "db".into(), source }.for_a_human()
    }

    /// The messages are those of a real API server (1.35).
    #[test]
    fn m29_what_the_api_server_cannot_read_is_told_and_what_passes_is_not() {
        for (code, message) in [
            (422, "StatefulSet.apps \"db\" is invalid: spec.template.spec.tolerations[0].operator: Unsupported value"),
            (403, "statefulsets.apps \"db\" is forbidden: exceeded quota"),
            (
                500,
                "failed to create typed patch object (ns/db; apps/v1, Kind=StatefulSet): \
                 .spec.template.spec.imagePullSecrets: duplicate entries for key [name=\"a\"]",
            ),
            (
                500,
                "failed to convert new object (ns/db; apps/v1, Kind=StatefulSet) to proper version: unable to convert \
                 unstructured object to apps/v1, Kind=StatefulSet: quantities must match the regular expression",
            ),
        ] {
            let told = refused(code, message).unwrap_or_else(|| panic!("{message}"));
            assert!(told.contains(message) && told.contains("StatefulSet db"), "{told}");
        }
        for (code, message) in
            [(500, "etcdserver: request timed out"), (503, "not ready"), (429, "too many"), (409, "")]
        {
            assert_eq!(refused(code, message), None, "{message}");
        }
    }
}
