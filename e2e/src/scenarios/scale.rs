//! Growing and shrinking under load.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use balsa_crds::RaftCluster;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use super::loss::kill_process_of;
use super::takeover::{holder, operator_process, signal};
use crate::cluster::Cluster;
use crate::writer::Writer;

/// Where `manifests/install.yaml` puts the operator.
pub(super) const OPERATOR_NAMESPACE: &str = "balsa-system";

pub(super) async fn walk(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let mut seen: BTreeSet<String> = cluster.raft_ids().await?.into_values().collect();
    for replicas in [5, 3, 1, 3] {
        let before: BTreeSet<String> = cluster.raft_ids().await?.into_values().collect();
        cluster.scale_to(replicas).await?;
        let after: BTreeSet<String> = cluster.raft_ids().await?.into_values().collect();
        for new in after.difference(&before) {
            ensure!(seen.insert(new.clone()), "m3: raft id {new} was used before");
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    ensure!(history.longest_pause < Duration::from_secs(5), "writes paused for {:?}", history.longest_pause);
    cluster.assert_hashes_agree().await
}

pub(super) async fn reverse(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    cluster.scale(5).await?;
    cluster.until("the first learner is listed", |resource| members(resource) > 3).await?;
    cluster.scale_to(3).await?;
    cluster.scale(5).await?;
    cluster.until("a learner is listed again", |resource| members(resource) > 3).await?;
    cluster.scale(1).await?;
    // Not later: of two voters neither can be taken out of service, or back into it, without a pause of writes.
    cluster
        .until("a voter is taken out of service", |resource| members(resource) == 3 && !all_healthy(resource))
        .await?;
    cluster.scale_to(3).await?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

pub(super) async fn seven(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(7, &json!({})).await?;
    let ids = cluster.raft_ids().await?;
    ensure!(ids.len() == 7, "the members are {ids:?}");
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leader = cluster.leader().await?;
    let follower = ids.keys().find(|name| **name != leader).context("a follower")?;
    let killed = [kill_process_of(&cluster, &leader)?, kill_process_of(&cluster, follower)?];
    for process in killed {
        process.is_another().await?;
    }
    cluster.settled(7).await?;
    ensure!(cluster.raft_ids().await? == ids, "restarted processes are the same members");
    cluster.scale_to(1).await?;
    let history = writer.finish().await?;
    ensure!(history.longest_pause < Duration::from_secs(8), "writes paused for {:?}", history.longest_pause);
    cluster.assert_hashes_agree().await
}

/// Members that the status lists, learners among them.
fn members(resource: &RaftCluster) -> usize {
    resource.status.as_ref().map_or(0, |status| status.members.len())
}

fn all_healthy(resource: &RaftCluster) -> bool {
    resource.status.as_ref().is_some_and(|status| status.members.iter().all(|member| member.healthy))
}

pub(super) async fn kill_operator(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    for replicas in [5, 3] {
        cluster.scale(replicas).await?;
        cluster.until("one of two members is added or removed", |resource| members(resource) == 4).await?;
        succeed(&cluster).await?;
        // The store itself says how far the dead one came: neither where it began nor where it shall end.
        let left = cluster.member_count().await?;
        println!("    its successor leads, the members are {left}");
        ensure!(left == 4, "the operator did not die in the middle: the members are {left}");
        cluster.settled(replicas).await?;
    }
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

/// Kills the operator, and waits until another one holds the lease.
async fn succeed(cluster: &Cluster) -> anyhow::Result<()> {
    let operators: Api<Pod> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    let (dead, _) = holder(cluster).await?;
    println!("    killing the operator {dead}");
    // A kubelet that is busy ends it some seconds later, and it would go on until then.
    signal("STOP", operator_process(cluster, &dead).await?)?;
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    operators.delete(&dead, &now).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (leads, _) = holder(cluster).await?;
        if !leads.is_empty() && leads != dead {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{dead} has no successor");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
