//! Debian's own Prometheus on real pods.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;

const ADDRESS: &str = "127.0.0.1:23999";

pub(super) async fn prometheus(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let mut targets = Vec::new();
    for (name, pod) in cluster.pods_by_name().await? {
        let address = pod.status.and_then(|status| status.pod_ip).with_context(|| format!("{name} has no address"))?;
        targets.push(format!("{address}:2381"));
    }
    let directory = tempfile::TempDir::new()?;
    let config = json!({
        "global": { "scrape_interval": "1s" },
        "scrape_configs": [{ "job_name": "etcd", "static_configs": [{ "targets": targets }] }],
    });
    let file = directory.path().join("prometheus.yml");
    std::fs::write(&file, serde_yaml::to_string(&config)?)?;
    let _server = Server(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("Debian's prometheus runs")?,
    );
    expect(3, "sum(up{job=\"etcd\"})").await?;
    expect(3, "sum(etcd_server_has_leader)").await?;
    expect(1, "sum(etcd_server_is_leader)").await?;
    expect(3, "count(etcd_disk_wal_fsync_duration_seconds_count > 0)").await?;
    expect(3, "count(etcd_mvcc_db_total_size_in_bytes > 0)").await?;
    expect(3, "count(process_resident_memory_bytes > 0)").await?;
    expect(3, "count(count by (instance) ({__name__=~\"balsa_.+\"}))").await
}

/// Ends the server with the scenario.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the query gives that number.
async fn expect(wanted: i64, query: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let got = ask(query);
        if got.as_ref().is_ok_and(|value| *value == Some(wanted as f64)) {
            println!("    {query} = {wanted}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{query} is {got:?}, expected {wanted}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn ask(query: &str) -> anyhow::Result<Option<f64>> {
    let output = Command::new("curl")
        .args(["-fsG", &format!("http://{ADDRESS}/api/v1/query"), "--data-urlencode", &format!("query={query}")])
        .output()?;
    let answer: Value = serde_json::from_slice(&output.stdout).context("Prometheus answers JSON")?;
    Ok(answer["data"]["result"][0]["value"][1].as_str().and_then(|value| value.parse().ok()))
}
