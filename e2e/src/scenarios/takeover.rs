//! The leading operator vanishes without giving its Lease back, and another one stands by.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use super::helm::{BALSA_OPERATOR, replicas};
use super::scale::OPERATOR_NAMESPACE;
use crate::cluster::Cluster;
use crate::writer::Writer;

/// The lease lasts 15 s from its last renewal; then the one that stands by looks, takes it away, and takes it. All of it is
/// later where the machine is busy, and over before a second lease would be.
const TAKEOVER_MAX: Duration = Duration::from_secs(25);
/// A pass that has begun is finished, then the one that stands by looks each second.
const HANDOVER_MAX: Duration = Duration::from_secs(8);
/// Longest wait for a process to notice and for its pod to be as before.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn vanish(cluster: Cluster) -> anyhow::Result<()> {
    let operators: Api<Deployment> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    cluster.create(1, &json!({})).await?;
    replicas(&operators, 2).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let outcome = vanished(&cluster).await;
    replicas(&operators, 1).await?;
    outcome?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

async fn vanished(cluster: &Cluster) -> anyhow::Result<()> {
    let first = holder(cluster).await?.0;
    let process = operator_process(cluster, &first).await?;
    println!("    stopping {first}, process {process}: it neither releases its lease nor knows that it loses it");
    signal("STOP", process)?;
    let stopped = Instant::now();
    cluster.scale(2).await?;
    let took = until("another operator holds the lease", TAKEOVER_MAX, || async {
        let (now, _) = holder(cluster).await?;
        Ok(!now.is_empty() && now != first)
    });
    let second = match took.await {
        Ok(()) => holder(cluster).await?.0,
        Err(error) => {
            signal("CONT", process)?;
            return Err(error);
        }
    };
    println!("    {second} leads {:.1} s later", stopped.elapsed().as_secs_f32());
    cluster.until("it works", |resource| resource.status.as_ref().is_some_and(|s| s.members.len() > 1)).await?;
    signal("CONT", process)?;
    let ended = || async { Ok(operator_process(cluster, &first).await.is_ok_and(|now| now != process)) };
    until("the one that woke up ends its process", PATIENCE, ended).await?;
    cluster.settled(2).await?;
    only_by(cluster, &second).await?;

    let process = operator_process(cluster, &second).await?;
    println!("    kill -9 of {second}, process {process}");
    let renewed = holder(cluster).await?.1;
    signal("KILL", process)?;
    let killed = Instant::now();
    cluster.scale(1).await?;
    until("the lease is renewed or taken", TAKEOVER_MAX, || async { Ok(holder(cluster).await?.1 != renewed) }).await?;
    let now = holder(cluster).await?.0;
    println!("    {now} leads {:.1} s later", killed.elapsed().as_secs_f32());
    cluster.settled(1).await?;
    handed_over(cluster).await
}

/// One that is stopped in order gives its lease back, and the one that stands by does not wait until it would have run out.
async fn handed_over(cluster: &Cluster) -> anyhow::Result<()> {
    let first = holder(cluster).await?.0;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    println!("    deleting {first}, which leads");
    pods.delete(&first, &DeleteParams::default()).await?;
    let stopped = Instant::now();
    until("another operator holds the lease", HANDOVER_MAX, || async {
        let now = holder(cluster).await?.0;
        Ok(!now.is_empty() && now != first)
    })
    .await?;
    println!("    {} leads {:.1} s later", holder(cluster).await?.0, stopped.elapsed().as_secs_f32());
    cluster.settled(1).await
}

/// Who holds the lease, and when it was renewed last.
pub(super) async fn holder(cluster: &Cluster) -> anyhow::Result<(String, String)> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    let spec = leases.get(BALSA_OPERATOR).await?.spec.unwrap_or_default();
    Ok((spec.holder_identity.unwrap_or_default(), format!("{:?}", spec.renew_time)))
}

/// The process of an operator's pod, by the container that the kubelet names.
pub(super) async fn operator_process(cluster: &Cluster, pod: &str) -> anyhow::Result<u32> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    let status = pods.get(pod).await?.status.unwrap_or_default();
    let container = status.container_statuses.unwrap_or_default().into_iter().next().context("a container")?;
    let id = container.container_id.context("a started container")?;
    let id = id.rsplit('/').next().unwrap_or_default().to_owned();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if groups.contains(&id) && line.starts_with(b"balsa-operator") {
            return Ok(pid);
        }
    }
    anyhow::bail!("the operator's process is not on this machine")
}

pub(super) fn signal(name: &str, process: u32) -> anyhow::Result<()> {
    let sent = std::process::Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status()?;
    ensure!(sent.success(), "kill -{name} {process}");
    Ok(())
}

/// Each step of the second member was done once, and by `leader`.
async fn only_by(cluster: &Cluster, leader: &str) -> anyhow::Result<()> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    for step in ["AddLearner", "ScaleOut", "Join", "Promote"] {
        let all = events.list(&ListParams::default().fields(&format!("reason={step}"))).await?.items;
        let told: Vec<_> = all.iter().map(|event| (event.reporting_instance.as_deref(), &event.message)).collect();
        ensure!(told.len() == 1 && told[0].0 == Some(leader), "{step} once and by {leader}: {told:?}");
    }
    Ok(())
}

async fn until<F: Future<Output = anyhow::Result<bool>>>(
    what: &str,
    patience: Duration,
    check: impl Fn() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !check().await? {
        ensure!(Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
