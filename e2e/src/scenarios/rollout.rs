//! Changes of the template, and evictions.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kube::ResourceExt;
use kube::api::EvictParams;
use serde_json::json;

use crate::cluster::Cluster;
use crate::writer::Writer;

pub(super) async fn roll(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let ids = cluster.raft_ids().await?;
    let leader = cluster.leader().await?;
    let before = cluster.pods_by_name().await?;
    let writer = Writer::start(cluster.endpoint().await?);
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
    let history = writer.finish().await?;
    ensure!(order.last() == Some(&leader), "m16: the leader {leader} goes last, the order was {order:?}");
    ensure!(history.unknown == 0, "a roll left writes unknown: {:?}", history.errors);
    ensure!(cluster.raft_ids().await? == ids, "a roll changes no membership");
    cluster.assert_hashes_agree().await
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
    writer.finish().await?;
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
    let pods = cluster.pods();
    let names: Vec<String> = cluster.pods_by_name().await?.into_keys().collect();
    // The client repeats what is refused with 429; a second is too short for the evicted pod to come back.
    let evictions = names.iter().map(|name| {
        tokio::time::timeout(Duration::from_secs(1), async { pods.evict(name, &EvictParams::default()).await })
    });
    let outcomes = futures::future::join_all(evictions).await;
    let evicted = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Ok(_)))).count();
    ensure!(evicted == 1, "m15: of three voters one may be evicted at once, {evicted} were");
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.settled(3).await?;
    writer.finish().await?;
    cluster.assert_hashes_agree().await
}
