//! Growing and shrinking under load.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

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
    cluster
        .until("the first learner is listed", |resource| {
            resource.status.as_ref().is_some_and(|status| status.members.len() > 3)
        })
        .await?;
    cluster.scale_to(3).await?;
    cluster.scale(5).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.scale(1).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.scale_to(3).await?;
    writer.finish().await?;
    cluster.assert_hashes_agree().await
}

pub(super) async fn kill_operator(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let operators: Api<Pod> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    for replicas in [5, 3] {
        cluster.scale(replicas).await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        for pod in operators.list(&ListParams::default()).await?.items {
            let name = pod.metadata.name.unwrap_or_default();
            println!("    killing the operator {name}");
            operators.delete(&name, &now).await?;
        }
        cluster.settled(replicas).await?;
    }
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}
