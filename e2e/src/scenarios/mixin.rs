//! etcd's own monitoring mixin, as it stands, on what the shipped scrape job brings: every panel of its dashboard shows every
//! member, and its alerts on health are silent on a cluster that is well.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

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
