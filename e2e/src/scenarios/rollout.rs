//! Changes of the template, and evictions.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kube::api::{Api, ApiResource, DynamicObject, EvictParams, GroupVersionKind, Patch, PatchParams};
use kube::{Resource as _, ResourceExt};
use serde_json::json;

use crate::cluster::Cluster;
use crate::writer::Writer;

pub(super) async fn roll(cluster: Cluster) -> anyhow::Result<()> {
    // Longer than endpoints lag behind on a busy machine: what is tried is that a member that is leaving still serves.
    cluster.create(3, &json!({ "drainDelaySeconds": 5 })).await?;
    let ids = cluster.raft_ids().await?;
    let before = cluster.pods_by_name().await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let newcomers = Writer::newcomers(cluster.endpoint().await?).await?;
    mark(&cluster).await?;
    // Whoever leads now: a busy machine may have elected another one since the start.
    let leader = cluster.leader().await?;
    cluster.patch_spec(&json!({ "podTemplate": { "annotations": { "e2e": "rolled" } } })).await?;
    let mut order = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    while order.len() < 3 {
        for (name, pod) in cluster.pods_by_name().await? {
            let old = before.get(&name).and_then(ResourceExt::uid);
            if pod.uid() != old && !order.contains(&name) {
                order.push(name);
            }
        }
        ensure!(Instant::now() < deadline, "rolled only {order:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.settled(3).await?;
    println!("    rolled {order:?}, {leader} led");
    let (history, of_newcomers) = (writer.finish().await?, newcomers.finish().await?);
    ensure!(of_newcomers.errors.is_empty(), "a newcomer was turned away: {:?}", of_newcomers.errors);
    ensure!(order.last() == Some(&leader), "m16: the leader {leader} goes last, the order was {order:?}");
    ensure!(history.unknown == 0, "a roll left writes unknown: {:?}", history.errors);
    ensure!(cluster.raft_ids().await? == ids, "a roll changes no membership");
    kept_marks(&cluster).await?;
    cluster.assert_hashes_agree().await
}

/// What somebody else writes on an object of the operator's.
const MARK: &str = "example.org/theirs";
/// The operator's note of what it applied last; with another one in its place it applies the object again.
const APPLIED_HASH: &str = "balsa.dev/applied-hash";

/// Objects of the operator's that others may label, the one whose change it hears of last.
fn objects(cluster: &Cluster) -> Vec<(&'static str, Api<DynamicObject>)> {
    let kinds = [
        ("db", "", "Service"),
        ("db-peers", "", "Service"),
        ("db", "policy", "PodDisruptionBudget"),
        ("db", "apps", "StatefulSet"),
    ];
    let api = |group, kind| {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource)
    };
    kinds.into_iter().map(|(name, group, kind)| (name, api(group, kind))).collect()
}

/// Writes a label and an annotation of its own on each, and waits until the operator has applied each again.
async fn mark(cluster: &Cluster) -> anyhow::Result<()> {
    let marked = json!({ "metadata": {
        "labels": { MARK: "label" },
        "annotations": { MARK: "annotation", APPLIED_HASH: "of another release" },
    }});
    for (name, api) in objects(cluster) {
        api.patch(name, &PatchParams::default(), &Patch::Merge(&marked)).await?;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    for (name, api) in objects(cluster) {
        while api.get(name).await?.annotations().get(APPLIED_HASH).is_none_or(|hash| hash == "of another release") {
            ensure!(Instant::now() < deadline, "the operator does not apply {name} again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    kept_marks(cluster).await
}

/// Foreign labels and annotations are where they were.
async fn kept_marks(cluster: &Cluster) -> anyhow::Result<()> {
    for (name, api) in objects(cluster) {
        let object = api.get(name).await?;
        let marks = [object.labels().get(MARK), object.annotations().get(MARK)].map(|mark| mark.map(String::as_str));
        ensure!(marks == [Some("label"), Some("annotation")], "m28: {name} had marks of others, now {marks:?}");
    }
    Ok(())
}

pub(super) async fn bad_image(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    cluster.patch_spec(&json!({ "image": "balsa.dev/balsa:does-not-exist", "imagePullPolicy": "Never" })).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while broken(&cluster).await? == 0 {
        ensure!(Instant::now() < deadline, "the broken image reached nobody");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    ensure!(broken(&cluster).await? == 1, "m17: the broken image stops at one pod");
    cluster.patch_spec(&json!({ "image": "balsa.dev/balsa:dev" })).await?;
    cluster.settled(3).await?;
    ensure!(broken(&cluster).await? == 0, "the good image heals it");
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a bad image left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

async fn broken(cluster: &Cluster) -> anyhow::Result<usize> {
    let uses = |pod: &&k8s_openapi::api::core::v1::Pod| {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        containers.iter().any(|container| container.image.as_deref().is_some_and(|i| i.ends_with("does-not-exist")))
    };
    Ok(cluster.pods_by_name().await?.values().filter(uses).count())
}

pub(super) async fn evict(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let (pods, before) = (cluster.pods(), cluster.pods_by_name().await?);
    // The client repeats what is refused with 429; a second is too short for the evicted pod to come back.
    let evictions = before.keys().map(|name| {
        tokio::time::timeout(Duration::from_secs(1), async { pods.evict(name, &EvictParams::default()).await })
    });
    futures::future::join_all(evictions).await;
    // An answer may be late where the machine is busy, so the pods themselves tell who was evicted.
    let deadline = Instant::now() + Duration::from_secs(30);
    let evicted = loop {
        let now = cluster.pods_by_name().await?;
        let stays = |name: &String, uid: Option<String>| {
            now.get(name).is_some_and(|pod| pod.uid() == uid && pod.meta().deletion_timestamp.is_none())
        };
        let evicted = before.iter().filter(|(name, pod)| !stays(name, pod.uid())).count();
        if evicted > 0 {
            break evicted;
        }
        ensure!(Instant::now() < deadline, "nobody was evicted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ensure!(evicted == 1, "m15: of three voters one may be evicted at once, {evicted} were");
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.settled(3).await?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "an eviction left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}
