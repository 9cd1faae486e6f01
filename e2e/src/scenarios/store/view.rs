//! What the API server shows, held against what the store holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::{Client as EtcdClient, GetOptions};
use serde_json::Value;
use tonic::codegen::http::Request;

use super::faults::Store;
use crate::cluster::Cluster;

/// Kinds with much and with little change: path at the API server, key in the store.
const KINDS: &[(&str, &str)] = &[
    ("/api/v1/configmaps", "configmaps"),
    ("/api/v1/secrets", "secrets"),
    ("/api/v1/pods", "pods"),
    ("/api/v1/events", "events"),
    ("/api/v1/services", "services/specs"),
    ("/api/v1/serviceaccounts", "serviceaccounts"),
    ("/api/v1/namespaces", "namespaces"),
    ("/api/v1/nodes", "minions"),
    ("/apis/apps/v1/deployments", "deployments"),
    ("/apis/apps/v1/replicasets", "replicasets"),
    ("/apis/coordination.k8s.io/v1/leases", "leases"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "endpointslices"),
    ("/apis/rbac.authorization.k8s.io/v1/clusterroles", "clusterroles"),
    ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "apiextensions.k8s.io/customresourcedefinitions"),
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

/// Every object with its revision is the same in a list from the API server and in the store at the list's revision, by
/// way of each member.
pub(super) async fn is_the_stores(cluster: &Cluster, store: &Store) -> anyhow::Result<()> {
    let mut objects = 0;
    let mut last = 0;
    for (path, key) in KINDS {
        let list: Value = serde_json::from_str(&ask(cluster, path).await?)?;
        let revision: i64 = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse()?;
        let shown = shown(&list, key)?;
        for endpoint in store.endpoint_list() {
            let held = held(&endpoint, key, revision).await?;
            let differs = shown.iter().find(|(key, revision)| held.get(*key) != Some(revision));
            ensure!(differs.is_none(), "{path} at {revision}: {differs:?} is not so in {endpoint}");
            let hidden = held.keys().find(|key| !shown.contains_key(*key));
            ensure!(hidden.is_none(), "{path} at {revision}: {hidden:?} is in {endpoint} and not shown");
        }
        objects += shown.len();
        last = last.max(revision);
    }
    println!("    {objects} objects of {} kinds are the same in the API server and in every member", KINDS.len());
    hashes_agree(store, last).await
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
fn shown(list: &Value, key: &str) -> anyhow::Result<BTreeMap<String, i64>> {
    let items = list["items"].as_array().context("a list")?;
    items
        .iter()
        .map(|item| {
            let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text("namespace"), text("name"));
            let place = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
            Ok((format!("/registry/{key}/{place}"), text("resourceVersion").parse()?))
        })
        .collect()
}

async fn held(endpoint: &str, key: &str, revision: i64) -> anyhow::Result<BTreeMap<String, i64>> {
    let mut member = EtcdClient::connect([endpoint], None).await?;
    let options = GetOptions::new().with_prefix().with_keys_only().with_revision(revision);
    let answer = member.get(format!("/registry/{key}/"), Some(options)).await?;
    answer.kvs().iter().map(|kv| Ok((kv.key_str()?.to_owned(), kv.mod_revision()))).collect()
}
