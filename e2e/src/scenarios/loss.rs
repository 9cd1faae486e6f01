//! What is lost comes back: pods, processes, disks.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::cluster::{Cluster, NAME};
use crate::writer::Writer;

pub(super) async fn delete_leader_pod(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let ids = cluster.raft_ids().await?;
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leader = cluster.leader().await?;
    println!("    deleting {leader}, which leads");
    let pod = cluster.pods().get(&leader).await?;
    cluster.pods().delete(&leader, &DeleteParams::default()).await?;
    came_back(&cluster, &leader, &pod.uid().unwrap_or_default()).await?;
    cluster.settled(3).await?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a graceful stop left writes unknown: {:?}", history.errors);
    ensure!(cluster.raft_ids().await? == ids, "m5: a deleted pod is the same member");
    cluster.assert_hashes_agree().await
}

pub(super) async fn kill_process(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let ids = cluster.raft_ids().await?;
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leader = cluster.leader().await?;
    let pod = cluster.pods().get(&leader).await?;
    let killed = kill_process_of(&cluster, &leader)?;
    let now = serves_again(&cluster, &leader, &pod).await?;
    ensure!(now.uid() == pod.uid(), "a killed process takes its pod along");
    killed.is_another().await?;
    cluster.settled(3).await?;
    let history = writer.finish().await?;
    ensure!(history.longest_pause < Duration::from_secs(8), "writes paused for {:?}", history.longest_pause);
    ensure!(cluster.raft_ids().await? == ids, "a restarted process is the same member");
    cluster.assert_hashes_agree().await
}

pub(super) async fn lose_volume(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let before = cluster.raft_ids().await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let victim = format!("{NAME}-1");
    println!("    deleting {victim} and its volume");
    let pod = cluster.pods().get(&victim).await?;
    cluster.volumes().delete(&format!("data-{victim}"), &DeleteParams::default()).await?;
    cluster.pods().delete(&victim, &DeleteParams::default()).await?;
    came_back(&cluster, &victim, &pod.uid().unwrap_or_default()).await?;
    cluster
        .until("the member is replaced", |resource| {
            let members = resource.status.clone().unwrap_or_default().members;
            let now = members.iter().find(|member| member.name == victim).map(|member| &member.raft_id);
            now.is_some() && now != before.get(&victim)
        })
        .await?;
    cluster.settled(3).await?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a pod that stops in peace left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

pub(super) async fn all_pods(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let (ids, volumes) = (cluster.raft_ids().await?, volume_uids(&cluster).await?);
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pods = cluster.pods_by_name().await?;
    ensure!(pods.len() == 3, "there are {} pods", pods.len());
    for name in pods.keys() {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        cluster.pods().delete(name, &now).await?;
    }
    for (name, pod) in &pods {
        let now = serves_again(&cluster, name, pod).await?;
        ensure!(now.uid() != pod.uid(), "{name} was not deleted");
    }
    cluster.settled(3).await?;
    writer.finish().await?;
    ensure!(cluster.raft_ids().await? == ids, "m5: the same members come back");
    ensure!(volume_uids(&cluster).await? == volumes, "m5: on the same volumes");
    cluster.assert_hashes_agree().await
}

async fn volume_uids(cluster: &Cluster) -> anyhow::Result<Vec<Option<String>>> {
    let volumes = cluster.volumes().list(&ListParams::default()).await?;
    Ok(volumes.iter().map(ResourceExt::uid).collect())
}

/// Waits until a pod of that name with another identity exists.
async fn came_back(cluster: &Cluster, name: &str, old_uid: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let pod = cluster.pods().get_opt(name).await?;
        if pod.is_some_and(|pod| pod.uid().is_some_and(|uid| uid != old_uid)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{name} is not re-created");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The node's process of a pod that was killed.
pub(super) struct Killed<'a> {
    namespace: &'a str,
    pod: String,
    pid: u32,
}

/// kill -9.
pub(super) fn kill_process_of<'a>(cluster: &'a Cluster, pod: &str) -> anyhow::Result<Killed<'a>> {
    let namespace = cluster.namespace.as_str();
    let pid = process_of(namespace, pod).with_context(|| format!("the process of {pod} is not on this machine"))?;
    println!("    kill -9 of {pod}, process {pid}");
    ensure!(std::process::Command::new("kill").arg("-9").arg(pid.to_string()).status()?.success());
    Ok(Killed { namespace, pod: pod.to_owned(), pid })
}

impl Killed<'_> {
    /// Waits until another process runs in its place.
    pub(super) async fn is_another(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        while process_of(self.namespace, &self.pod).is_none_or(|pid| pid == self.pid) {
            ensure!(Instant::now() < deadline, "no other process in {} than {}", self.pod, self.pid);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// Waits until a pod of that name is ready with another process than `old` had: another pod, or its container anew.
async fn serves_again(cluster: &Cluster, name: &str, old: &Pod) -> anyhow::Result<Pod> {
    let life = |pod: &Pod| (pod.uid(), container(pod).map(|container| container.restart_count));
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let pod = cluster.pods().get_opt(name).await?;
        let again = |pod: &Pod| life(pod) != life(old) && container(pod).is_some_and(|container| container.ready);
        if let Some(pod) = pod.filter(again) {
            return Ok(pod);
        }
        ensure!(Instant::now() < deadline, "{name} does not come back with another process");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What Kubernetes says of the node's container.
fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// The process of a pod's node, by the command line that only it has.
pub(crate) fn process_of(namespace: &str, pod: &str) -> Option<u32> {
    let peers = format!("{pod}.{NAME}-peers.{namespace}.svc");
    let entries = std::fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8(std::fs::read(entry.path().join("cmdline")).ok()?).ok()?;
        let program = line.split('\0').next()?;
        (program.ends_with("balsa") && line.contains(&peers)).then_some(pid)
    })
}
