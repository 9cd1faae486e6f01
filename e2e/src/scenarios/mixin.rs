//! etcd's own monitoring mixin, as it stands, on what the shipped scrape job brings: every panel of its dashboard shows every
//! member, its alerts on health are silent on a cluster that is well, and those on lost members are raised and go again.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::loss::process_of;
use super::metrics::Server;
use crate::cluster::{Cluster, NAME};

/// What etcd publishes for its users' monitoring.
pub(super) struct Mixin {
    /// Its alerts, as Prometheus loads them.
    pub(super) rules: Value,
    /// The expression of each line of its dashboard.
    panels: Vec<(String, String)>,
}

/// Panels that show one line for the whole cluster; all others show one for each member.
const OF_THE_CLUSTER: [&str; 5] = ["up", "rpcRate", "rpcFailedRate", "watchStreams", "leaseStreams"];

impl Mixin {
    /// Computed from the source of the etcd that the tests compare with.
    pub(super) fn render() -> anyhow::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/mixin/render");
        let output = Command::new(script).output().context("the mixin is rendered")?;
        ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        let mut rendered: Value = serde_json::from_slice(&output.stdout)?;
        let panels = rendered["panels"].take();
        let panels = panels.as_object().context("panels")?.iter();
        let panels =
            panels.map(|(name, expression)| (name.clone(), expression.as_str().unwrap_or_default().to_owned()));
        let panels: Vec<_> = panels.collect();
        ensure!(!panels.is_empty(), "the mixin has panels");
        let groups = rendered["groups"].take();
        Ok(Self { rules: serde_json::json!({ "groups": groups }), panels })
    }

    /// Grafana puts the choice of its user, the job, and a range in before it asks.
    pub(super) async fn panels_show_every_member(&self, server: &Server, cluster: &Cluster) -> anyhow::Result<()> {
        for (name, expression) in &self.panels {
            let asked = expression.replace("$cluster", &job(cluster)).replace("$__rate_interval", "10s");
            let lines = if OF_THE_CLUSTER.contains(&name.as_str()) { 1 } else { 3 };
            // A quantile of nothing is a line that is not drawn.
            server.expect(lines, &format!("count({asked} >= 0)")).await.with_context(|| format!("the panel {name}"))?;
        }
        Ok(())
    }
}

/// Whether an alert is on how long things take: a machine that does much else beside may raise it, and rightly. They wait ten
/// minutes before they are raised, which this test does not.
pub(super) fn is_of_time(rule: &Value) -> bool {
    let name = rule["name"].as_str().unwrap_or_default();
    name.ends_with("Slow") || name.ends_with("Durations")
}

/// Of the targets of one cluster, as the shipped scrape job names it.
pub(super) fn job(cluster: &Cluster) -> String {
    format!("etcd-{}-{NAME}", cluster.namespace)
}

/// One member that does not answer is told of, two of three are told of as a loss of the majority, and all is quiet after.
///
/// Kubernetes has a member end that failed three probes, ten seconds apart, and kills it a minute later: it stays silent for
/// 80 seconds at least, many times what the alerts need. One that was to end while it was stopped does so when it goes on, and is
/// started again in its pod, at the same address.
pub(super) async fn alerts_tell_of_lost_members(server: &Server, cluster: &Cluster) -> anyhow::Result<()> {
    let raised = |alert: &str| format!("count(ALERTS{{alertname=\"{alert}\",job=\"{}\"}}) or vector(0)", job(cluster));
    let leader = cluster.leader().await?;
    let others: Vec<String> = cluster.pods_by_name().await?.into_keys().filter(|name| *name != leader).collect();
    ensure!(others.len() == 2, "{leader} leads, and with it are {others:?}");
    let first = Stopped::pod(cluster, &others[0])?;
    server.expect(1, &raised("etcdMembersDown")).await?;
    server.expect(0, &raised("etcdInsufficientMembers")).await?;
    server.expect(0, &raised("etcdNoLeader")).await?;
    let second = Stopped::pod(cluster, &others[1])?;
    server.expect(1, &raised("etcdInsufficientMembers")).await?;
    // The leader that nobody follows any more steps down, and says so; the others say nothing.
    server.expect(1, &raised("etcdNoLeader")).await?;
    drop((first, second));
    // Members that end first take their time. After a short stop the status may not know of it yet: it is asked again below.
    cluster.settled(3).await?;
    for alert in ["etcdMembersDown", "etcdInsufficientMembers", "etcdNoLeader"] {
        server.expect(0, &raised(alert)).await?;
    }
    cluster.settled(3).await
}

/// A member that is there and does nothing, until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn pod(cluster: &Cluster, pod: &str) -> anyhow::Result<Self> {
        let pid = process_of(&cluster.namespace, pod).with_context(|| format!("{pod} does not run on this machine"))?;
        println!("    kill -STOP of {pod}, process {pid}");
        signal(pid, "-STOP")?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile, for not answering its probes.
        let _ = signal(self.0, "-CONT");
    }
}

fn signal(pid: u32, signal: &str) -> anyhow::Result<()> {
    let sent = Command::new("kill").arg(signal).arg(pid.to_string()).status()?;
    ensure!(sent.success(), "kill {signal} {pid}");
    Ok(())
}
