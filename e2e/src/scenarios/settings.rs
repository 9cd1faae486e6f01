//! Settings that change while the members run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use balsa_proto::node::GetConfigRequest;
use balsa_proto::node::node_client::NodeClient;
use etcd_client::{Client as EtcdClient, Txn, TxnOp};
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::cluster::Cluster;
use crate::writer::Writer;

/// The setting that is tried.
const OPERATIONS: &str = "max-txn-ops";

pub(super) async fn change(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let before = processes(&cluster).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let started = Instant::now();
    cluster.patch_spec(&json!({ "config": { "logLevel": "debug", "extra": { OPERATIONS: "7" } } })).await?;
    cluster.settled(3).await?;
    println!("    every member took it over within {:.1} s", started.elapsed().as_secs_f32());
    have(&cluster, "7").await?;
    ensure!(processes(&cluster).await? == before, "m18: a process was restarted");

    // What no node would take is refused by the operator, and nobody is touched.
    cluster.patch_spec(&json!({ "config": { "extra": { OPERATIONS: "0" } } })).await?;
    cluster
        .until("the status says what is wrong", |resource| {
            let blocked = resource.status.clone().unwrap_or_default().plan.and_then(|plan| plan.blocked_by);
            blocked.is_some_and(|by| by.reason == "InvalidSpec" && by.message.contains("must not be 0"))
        })
        .await?;
    have(&cluster, "7").await?;
    ensure!(processes(&cluster).await? == before, "a process was restarted");
    // A member that is lost meanwhile is replaced, with the settings that were taken last.
    lose(&cluster, before.keys().last().context("a pod")?).await?;
    have(&cluster, "7").await?;
    let before = processes(&cluster).await?;

    // Who starts later has them from its ConfigMap; who wants the default again gets it.
    cluster.patch_spec(&json!({ "config": { "extra": { OPERATIONS: "9" } } })).await?;
    cluster.settled(3).await?;
    restart(&cluster, before.keys().last().context("a pod")?).await?;
    have(&cluster, "9").await?;
    // Five members that log every frame would be slow on two cores.
    cluster.patch_spec(&json!({ "config": { "logLevel": null, "extra": { OPERATIONS: null } } })).await?;
    cluster.settled(3).await?;
    have(&cluster, "128").await?;

    // Both at once: first the settings, then the size, and nobody is restarted for either.
    let before = processes(&cluster).await?;
    let started = Instant::now();
    cluster.patch_spec(&json!({ "replicas": 5, "config": { "extra": { OPERATIONS: "11" } } })).await?;
    cluster.settled(5).await?;
    println!("    settings and 3 → 5 in one edit: {:.1} s", started.elapsed().as_secs_f32());
    have(&cluster, "11").await?;
    let after = processes(&cluster).await?;
    ensure!(
        after.len() == 5 && before.iter().all(|(name, process)| after.get(name) == Some(process)),
        "a process was restarted"
    );
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "writes were left unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

/// Deletes a pod with its volume, and waits until another member serves in its place.
async fn lose(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let before = cluster.raft_ids().await?;
    cluster.volumes().delete(&format!("data-{name}"), &DeleteParams::default()).await?;
    cluster.pods().delete(name, &DeleteParams::default()).await?;
    cluster
        .until("the lost member is replaced although the spec is invalid", |resource| {
            let status = resource.status.clone().unwrap_or_default();
            let now = status.members.iter().find(|member| member.name == name).map(|member| &member.raft_id);
            status.ready_replicas == 3 && now.is_some() && now != before.get(name)
        })
        .await
}

/// Deletes a pod, and waits until its successor is ready.
async fn restart(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let old = cluster.pods().get(name).await?.uid();
    cluster.pods().delete(name, &DeleteParams::default()).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let new = cluster.pods().get_opt(name).await?.filter(|pod| pod.uid() != old);
        let conditions = new.and_then(|pod| pod.status?.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            return cluster.settled(3).await;
        }
        ensure!(Instant::now() < deadline, "{name} is not back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every member says so itself, and does so.
async fn have(cluster: &Cluster, operations: &str) -> anyhow::Result<()> {
    let most: usize = operations.parse()?;
    for (name, pod) in cluster.pods_by_name().await? {
        let address = pod.status.and_then(|status| status.pod_ip).context("a running pod has an address")?;
        let mut node = NodeClient::connect(format!("http://{address}:2380")).await?;
        let told = node.get_config(GetConfigRequest {}).await?.into_inner();
        let is = told.settings.get(OPERATIONS).map(String::as_str);
        ensure!(is == Some(operations), "{name} has {is:?} in version {}, not {operations}", told.version);
        let mut client = EtcdClient::connect([format!("http://{address}:2379")], None).await?;
        for (count, fits) in [(most, true), (most + 1, false)] {
            let puts: Vec<TxnOp> = (0..count).map(|k| TxnOp::put(format!("settings/{k}"), "x", None)).collect();
            let outcome = client.txn(Txn::new().and_then(puts)).await;
            ensure!(outcome.is_ok() == fits, "{name}: {count} operations: {outcome:?}");
        }
    }
    Ok(())
}

/// UID and starts of every pod's container: what a restart of any kind changes.
async fn processes(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, (Option<String>, i32)>> {
    let pods = cluster.pods_by_name().await?;
    let starts = |pod: &k8s_openapi::api::core::v1::Pod| {
        let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        containers.and_then(|all| all.first()).map_or(-1, |container| container.restart_count)
    };
    Ok(pods.into_iter().map(|(name, pod)| (name, (pod.uid(), starts(&pod)))).collect())
}
