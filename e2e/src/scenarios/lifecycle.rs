//! From nothing to a cluster, and back.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tokio::net::TcpStream;

use crate::cluster::{Cluster, NAME};
use crate::writer::Writer;

pub(super) async fn create(cluster: Cluster) -> anyhow::Result<()> {
    for replicas in [1, 3] {
        usable_when_available(&cluster, replicas).await?;
        remove(&cluster).await?;
        cluster.volumes().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    }
    cluster.create(3, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a healthy cluster left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await?;
    // The plan may be settled before: the first time this waits until kube-proxy knows, too.
    available(&cluster).await?;
    let before = cluster.clusters().get(NAME).await?.metadata.resource_version;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after = cluster.clusters().get(NAME).await?.metadata.resource_version;
    ensure!(before == after, "a settled cluster's resource is written again and again");
    Ok(())
}

async fn available(cluster: &Cluster) -> anyhow::Result<()> {
    cluster
        .until("it is Available", |resource| {
            let conditions = resource.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|condition| condition.type_ == "Available" && condition.status == "True")
        })
        .await
}

/// `kubectl wait --for=condition=Available && etcdctl put`: a majority serves then, and the Service leads to it.
async fn usable_when_available(cluster: &Cluster, replicas: i32) -> anyhow::Result<()> {
    let started = Instant::now();
    cluster.apply(&Cluster::resource(replicas, &json!({}))).await?;
    available(cluster).await?;
    let address = cluster.endpoint().await?.replace("http://", "");
    let connected = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(&address)).await;
    let connected = connected.context("nobody takes the connection")?;
    connected.with_context(|| format!("Available, and the Service at {address} leads nowhere"))?;
    let ready = cluster.status().await?.ready_replicas;
    ensure!(ready > replicas / 2, "Available with {ready} of {replicas} members");
    println!("    the first Available of {replicas} after {:.1} s, with {ready}", started.elapsed().as_secs_f32());
    Ok(())
}

pub(super) async fn delete(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let identity = (cluster.status().await?.cluster_id, cluster.raft_ids().await?);
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a healthy cluster left writes unknown: {:?}", history.errors);
    // No later write lets a member catch up: what was acknowledged last has to be on the volumes as it is.
    remove(&cluster).await?;
    let kept = cluster.volumes().list(&ListParams::default()).await?.items;
    ensure!(kept.len() == 3, "Retain keeps the volumes; there are {}", kept.len());
    let unmarked = kept.iter().all(|volume| volume.metadata.deletion_timestamp.is_none());
    ensure!(unmarked, "m1: a kept volume is about to be deleted");
    let owned = kept.iter().any(|volume| volume.metadata.owner_references.as_ref().is_some_and(|o| !o.is_empty()));
    ensure!(!owned, "m1: a volume has an owner that may take it along");

    // The same name again adopts the volumes and their data.
    cluster.create(3, &json!({ "storage": { "retention": { "whenDeleted": "Delete" } } })).await?;
    history.still_holds(&cluster.endpoint().await?).await?;
    let adopted = (cluster.status().await?.cluster_id, cluster.raft_ids().await?);
    ensure!(adopted == identity, "the adopted cluster is {adopted:?}, the deleted one was {identity:?}");
    cluster.assert_hashes_agree().await?;
    remove(&cluster).await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = cluster.volumes().list(&ListParams::default()).await?.items.len();
        if left == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "policy Delete left {left} volumes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn remove(cluster: &Cluster) -> anyhow::Result<()> {
    let started = Instant::now();
    cluster.clusters().delete(NAME, &DeleteParams::default()).await?;
    while cluster.clusters().get_opt(NAME).await?.is_some() {
        ensure!(started.elapsed() < Duration::from_secs(60), "the resource does not go");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pods = cluster.pods_by_name().await.context("list pods")?;
    ensure!(pods.is_empty(), "pods are left: {:?}", pods.keys());
    println!("    deleted in {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}
