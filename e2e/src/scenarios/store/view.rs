//! What the API server shows, held against what the store holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::{Client as EtcdClient, GetOptions};
use kube::discovery::{ApiResource, Discovery, verbs};
use serde_json::Value;
use tonic::codegen::http::Request;

use super::faults::Store;
use crate::cluster::Cluster;

/// Where all keys of the API server begin.
const REGISTRY: &str = "/registry/";
/// Kinds that are not kept under their own name. This list is compiled into Kubernetes.
const ELSEWHERE: &[(&str, &str)] = &[
    ("endpoints", "services/endpoints"),
    ("ingresses", "ingress"),
    ("nodes", "minions"),
    ("replicationcontrollers", "controllers"),
    ("services", "services/specs"),
];
/// What API servers keep for themselves: where each of them is, and which addresses and ports are given.
const INTERNAL: &[&str] = &["masterleases/", "peerserverleases/", "ranges/"];
/// Kinds that are there in any case, with much and with little change, so that nothing is compared with nothing.
const CERTAIN: &[&str] = &[
    "apiextensions.k8s.io/customresourcedefinitions",
    "apiregistration.k8s.io/apiservices",
    "clusterroles",
    "configmaps",
    "deployments",
    "endpointslices",
    "leases",
    "minions",
    "namespaces",
    "pods",
    "replicasets",
    "serviceaccounts",
    "services/specs",
];
/// Longest wait for a compaction; the API server makes one at its second interval.
const COMPACTION_PATIENCE: Duration = Duration::from_secs(60);

async fn ask(cluster: &Cluster, path: &str) -> anyhow::Result<String> {
    let request = Request::get(path).body(Vec::new())?;
    cluster.client.request_text(request).await.with_context(|| format!("GET {path}"))
}

/// Consistent lists of ConfigMaps that the watch cache answered, and those that fell back to the store.
pub(super) async fn consistent_reads(cluster: &Cluster) -> anyhow::Result<(f64, f64)> {
    let metrics = ask(cluster, "/metrics").await?;
    let (mut cached, mut fell_back) = (0.0, 0.0);
    let lines = metrics.lines().filter(|line| line.starts_with("apiserver_watch_cache_consistent_read_total{"));
    for line in lines.filter(|line| line.contains("\"configmaps\"")) {
        let value: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
        if line.contains("fallback=\"true\"") || line.contains("success=\"false\"") {
            fell_back += value;
        } else {
            cached += value;
        }
    }
    Ok((cached, fell_back))
}

/// Waits until the API server has compacted the store past a revision; gives the revision that it says.
pub(super) async fn compacted(etcd: &mut EtcdClient, past: i64) -> anyhow::Result<i64> {
    let deadline = Instant::now() + COMPACTION_PATIENCE;
    loop {
        let answer = etcd.get("compact_rev_key", None).await?;
        let revision = answer.kvs().first().and_then(|kv| kv.value_str().ok()?.parse().ok()).unwrap_or(0);
        if revision > past {
            let error = etcd.get("/registry/", Some(GetOptions::new().with_revision(past))).await.err();
            let error = error.context("a revision before the compaction was answered")?;
            ensure!(error.to_string().contains("required revision has been compacted"), "{error}");
            return Ok(revision);
        }
        ensure!(Instant::now() < deadline, "the API server has not compacted past {past}, only to {revision}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Lists of ConfigMaps that the store answered.
pub(super) async fn lists_from_the_store(cluster: &Cluster) -> anyhow::Result<f64> {
    let metrics = ask(cluster, "/metrics").await?;
    let lines = metrics.lines().filter(|line| line.starts_with("apiserver_storage_list_total{"));
    let line =
        lines.filter(|line| line.contains("\"configmaps\"")).map(|line| line.rsplit(' ').next().unwrap_or_default());
    line.map(|value| value.parse::<f64>().context("a number")).sum()
}

/// Every object of every kind that the store holds is the same, with its revision, in a list from the API server and in the
/// store at the list's revision, by way of each member.
pub(super) async fn is_the_stores(cluster: &Cluster, store: &Store) -> anyhow::Result<()> {
    let mut members = Vec::new();
    for endpoint in store.endpoint_list() {
        members.push((EtcdClient::connect([endpoint.as_str()], None).await?, endpoint));
    }
    let (first, _) = members.first_mut().context("a member")?;
    let keys: BTreeSet<String> = held(first, REGISTRY, 0).await?.into_keys().collect();
    let kinds = kinds(cluster, &keys).await?;
    let (mut objects, mut last) = (0, 0);
    for (prefix, path) in &kinds {
        let list: Value = serde_json::from_str(&ask(cluster, path).await?)?;
        let revision: i64 = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse()?;
        let shown = shown(&list, prefix)?;
        for (member, endpoint) in &mut members {
            let held = held(member, prefix, revision).await?;
            let differs = shown.iter().find(|(key, revision)| held.get(*key) != Some(revision));
            ensure!(differs.is_none(), "{path} at {revision}: {differs:?} is not so in {endpoint}");
            let hidden = held.keys().find(|key| !shown.contains_key(*key));
            ensure!(hidden.is_none(), "{path} at {revision}: {hidden:?} is in {endpoint} and not shown");
        }
        objects += shown.len();
        last = last.max(revision);
    }
    println!(
        "    {objects} objects of {} kinds, all that the store holds, are the same in the API server and in every member",
        kinds.len()
    );
    hashes_agree(store, last).await
}

/// The kinds that some of these keys are of, each by the beginning of its keys, with its path at the API server. Every key must
/// be of one.
async fn kinds(cluster: &Cluster, keys: &BTreeSet<String>) -> anyhow::Result<BTreeMap<String, String>> {
    let discovery = Discovery::new(cluster.client.clone()).run().await.context("the kinds of the API server")?;
    let mut kinds = BTreeMap::new();
    for (resource, capabilities) in discovery.groups().flat_map(|group| group.resources_by_stability()) {
        let prefix = prefixes(&resource).into_iter().find(|prefix| keys.iter().any(|key| key.starts_with(prefix)));
        // Events are of two groups, and kept once.
        if let (true, Some(prefix)) = (capabilities.supports_operation(verbs::LIST), prefix) {
            kinds.entry(prefix).or_insert_with(|| path(&resource));
        }
    }
    let internal =
        |key: &str| INTERNAL.iter().any(|own| key.strip_prefix(REGISTRY).is_some_and(|key| key.starts_with(own)));
    let is_known = |key: &&String| internal(key) || kinds.keys().any(|prefix| key.starts_with(prefix));
    let unknown = keys.iter().find(|key| !is_known(key));
    ensure!(unknown.is_none(), "the store holds {unknown:?}, which is of no kind that the API server lists");
    let missing = CERTAIN.iter().find(|certain| !kinds.contains_key(&format!("{REGISTRY}{certain}/")));
    ensure!(missing.is_none(), "the store holds no {missing:?}");
    Ok(kinds)
}

/// Where the objects of a kind may be kept: those of the kinds that Kubernetes is built with under the name of the kind alone, all
/// others under their group first.
fn prefixes(resource: &ApiResource) -> Vec<String> {
    let ApiResource { group, plural, .. } = resource;
    let mut places = vec![format!("{REGISTRY}{group}/{plural}/")];
    if !group.contains('.') || group.ends_with(".k8s.io") {
        let elsewhere = ELSEWHERE.iter().find(|(name, _)| name == plural).map(|(_, place)| *place);
        places.push(format!("{REGISTRY}{}/", elsewhere.unwrap_or(plural)));
    }
    places
}

/// The path of a kind at the API server.
fn path(resource: &ApiResource) -> String {
    let ApiResource { group, version, plural, .. } = resource;
    if group.is_empty() { format!("/api/{version}/{plural}") } else { format!("/apis/{group}/{version}/{plural}") }
}

/// The members' hashes at a revision agree. A hash is of what compactions left, and members compact one after the other:
/// hashes are compared once all are of the same compaction.
async fn hashes_agree(store: &Store, revision: i64) -> anyhow::Result<()> {
    let deadline = Instant::now() + COMPACTION_PATIENCE;
    loop {
        let mut hashes = Vec::new();
        for endpoint in store.endpoint_list() {
            let mut member = EtcdClient::connect([endpoint.as_str()], None).await?;
            let answer = member.hash_kv(revision).await.with_context(|| format!("hash of {endpoint}"))?;
            hashes.push((answer.compact_version(), answer.hash()));
        }
        if hashes.windows(2).all(|pair| pair[0].0 == pair[1].0) {
            ensure!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "hashes at {revision} differ: {hashes:?}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "members do not get to one compaction: {hashes:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The objects of a list by their keys in the store.
fn shown(list: &Value, prefix: &str) -> anyhow::Result<BTreeMap<String, i64>> {
    let items = list["items"].as_array().context("a list")?;
    items
        .iter()
        .map(|item| {
            let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text("namespace"), text("name"));
            let place = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
            Ok((format!("{prefix}{place}"), text("resourceVersion").parse()?))
        })
        .collect()
}

/// The keys that begin like this, with the revisions of their last writes, at a revision or, with 0, now.
async fn held(member: &mut EtcdClient, prefix: &str, revision: i64) -> anyhow::Result<BTreeMap<String, i64>> {
    let options = GetOptions::new().with_prefix().with_keys_only().with_revision(revision);
    let answer = member.get(prefix, Some(options)).await?;
    answer.kvs().iter().map(|kv| Ok((kv.key_str()?.to_owned(), kv.mod_revision()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(group: &str, version: &str, plural: &str) -> ApiResource {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let (group, version, plural) = (group.to_owned(), version.to_owned(), plural.to_owned());
        ApiResource { group, version, api_version, kind: String::new(), plural }
    }

    #[test]
    fn a_kind_has_its_place_and_its_path() {
        for (group, plural, place) in [
            ("", "pods", "pods"),
            ("", "nodes", "minions"),
            ("", "services", "services/specs"),
            ("apps", "deployments", "deployments"),
            ("networking.k8s.io", "ingresses", "ingress"),
            ("apiextensions.k8s.io", "customresourcedefinitions", "apiextensions.k8s.io/customresourcedefinitions"),
            ("balsa.dev", "raftclusters", "balsa.dev/raftclusters"),
        ] {
            let places = prefixes(&resource(group, "v1", plural));
            assert!(places.contains(&format!("/registry/{place}/")), "{plural}: {places:?}");
        }
        // What somebody else calls by the name of a kind that Kubernetes has is not that.
        assert_eq!(prefixes(&resource("example.com", "v1", "pods")), ["/registry/example.com/pods/"]);
        assert_eq!(path(&resource("", "v1", "pods")), "/api/v1/pods");
        assert_eq!(path(&resource("apps", "v1", "deployments")), "/apis/apps/v1/deployments");
    }
}
