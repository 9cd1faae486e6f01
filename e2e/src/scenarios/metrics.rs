//! Debian's own Prometheus on real pods, with the scrape jobs and the alerts that are shipped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::mixin::{self, Mixin};
use crate::cluster::{Cluster, NAME};
use crate::writer::Writer;

/// What users add to their Prometheus.
const SCRAPE: &str = include_str!("../../../manifests/prometheus/scrape.yaml");
const RULES: &str = include_str!("../../../manifests/prometheus/rules.yaml");
/// Longest wait for a scrape, or an evaluation of the rules, to show what is so already.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn prometheus(cluster: Cluster) -> anyhow::Result<()> {
    // One of etcd's alerts reads what is only measured so.
    cluster.create(3, &json!({ "config": { "extra": { "metrics": "extensive" } } })).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let etcds = Mixin::render()?;
    let server = Server::start(&cluster, &etcds.rules).await?;
    members(&server, &cluster).await?;
    operator(&server, &cluster).await?;
    etcds.panels_show_every_member(&server, &cluster).await?;
    silent(&server, &etcds.rules).await?;
    raised(&server, &cluster).await?;
    // Writing goes on while members are stopped: by newcomers, because a Service may lead nowhere for longer than a connection
    // that is kept is waited for. What becomes of a write that a stopped member was sent, nobody can say.
    let newcomers = Writer::newcomers(cluster.endpoint().await?).await?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a healthy cluster left writes unknown: {:?}", history.errors);
    mixin::alerts_tell_of_lost_members(&server, &cluster).await?;
    newcomers.finish().await?;
    cluster.assert_hashes_agree().await
}

/// Every member is found as what it is, and has etcd's metrics and ours.
async fn members(server: &Server, cluster: &Cluster) -> anyhow::Result<()> {
    let of = format!("job=\"{}\",namespace=\"{}\",cluster=\"{NAME}\"", mixin::job(cluster), cluster.namespace);
    server.expect(3, &format!("sum(up{{{of}}})")).await?;
    server.expect(3, &format!("count(count by (instance) (up{{{of},instance=~\"{NAME}-[012]\"}}))")).await?;
    server.expect(3, &format!("sum(etcd_server_has_leader{{{of}}})")).await?;
    server.expect(1, &format!("sum(etcd_server_is_leader{{{of}}})")).await?;
    server.expect(3, &format!("count(etcd_disk_wal_fsync_duration_seconds_count{{{of}}} > 0)")).await?;
    server.expect(3, &format!("count(etcd_mvcc_db_total_size_in_bytes{{{of}}} > 0)")).await?;
    server.expect(3, &format!("count(process_resident_memory_bytes{{{of}}} > 0)")).await?;
    server.expect(3, &format!("count(count by (instance) ({{__name__=~\"balsa_.+\",{of}}}))")).await
}

/// The operator tells of the cluster by the cluster's own namespace, not by that of its pod.
async fn operator(server: &Server, cluster: &Cluster) -> anyhow::Result<()> {
    let of = format!("job=\"balsa-operator\",namespace=\"{}\",name=\"{NAME}\"", cluster.namespace);
    server.expect(1, "sum(up{job=\"balsa-operator\",namespace=\"balsa-system\"})").await?;
    server.expect(1, &format!("sum(balsa_operator_plan{{{of},step=\"Settled\",reason=\"\"}})")).await?;
    server.expect(1, &format!("sum(balsa_operator_plan{{{of}}})")).await?;
    server.expect(3, &format!("sum(balsa_operator_ready_voters{{{of}}})")).await?;
    server.expect(1, "count(sum(balsa_operator_reconcile_seconds_count{result=\"ok\"}) > 0)").await?;
    for step in ["AddLearner", "Promote"] {
        let done = format!("balsa_operator_steps_total{{step=\"{step}\",result=\"ok\"}}");
        server.expect(1, &format!("count(sum({done}) >= 2)")).await?;
    }
    server.expect(1, "count(sum(balsa_operator_applied_total{kind=\"StatefulSet\"}) > 0)").await?;
    // A settled cluster is not written to.
    server.expect(0, "sum(changes(balsa_operator_applied_total[5s]))").await
}

/// Every rule of ours and of etcd's is evaluated after all of the above, and none has anything to say.
async fn silent(server: &Server, etcds: &Value) -> anyhow::Result<()> {
    let shipped: Value = serde_yaml::from_str(RULES)?;
    let listed = |value: &Value| value["groups"].as_array().cloned().unwrap_or_default();
    let alerts = |value: &Value| -> Vec<Value> {
        listed(value).iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    };
    let both = [alerts(etcds), alerts(&shipped)].concat();
    let names: Vec<Value> = both.iter().map(|rule| rule["alert"].clone()).collect();
    ensure!(!names.is_empty(), "there are alerts");
    let newest = |rules: &[Value]| rules.iter().map(|rule| rule["lastEvaluation"].to_string()).min();
    let before = newest(&alerts(&server.get("rules", &[])?["data"]));
    let deadline = Instant::now() + PATIENCE;
    let rules = loop {
        let rules = alerts(&server.get("rules", &[])?["data"]);
        if newest(&rules) > before {
            break rules;
        }
        ensure!(Instant::now() < deadline, "the rules are not evaluated");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let loaded: Vec<Value> = rules.iter().map(|rule| rule["name"].clone()).collect();
    ensure!(loaded == names, "Prometheus loaded {loaded:?} of {names:?}");
    for rule in &rules {
        ensure!(rule["health"] == "ok", "a rule cannot be evaluated: {rule}");
    }
    let of_health = rules.iter().filter(|rule| !mixin::is_of_time(rule));
    for rule in of_health.clone() {
        ensure!(rule["alerts"] == json!([]), "an alert on a healthy cluster: {rule}");
    }
    println!("    {} alerts are evaluated, {} of health are silent", rules.len(), of_health.count());
    Ok(())
}

/// An alert is raised for what needs a human, names the cluster, and goes with its cause.
async fn raised(server: &Server, cluster: &Cluster) -> anyhow::Result<()> {
    cluster.patch_spec(&json!({ "config": { "extra": { "max-txn-ops": "0" } } })).await?;
    let raised = "count(ALERTS{alertname=\"BalsaPlanWaitsForAHuman\"})";
    server.expect(1, raised).await?;
    server.expect(1, "count(ALERTS{alertname=~\"Balsa.+\"})").await?;
    let alerts = server.get("alerts", &[])?["data"]["alerts"].clone();
    let ours = alerts.as_array().into_iter().flatten().find(|alert| alert["labels"]["job"] == "balsa-operator");
    let summary = ours.and_then(|alert| alert["annotations"]["summary"].as_str()).unwrap_or_default();
    let expected = format!("{}/{NAME} waits: InvalidSpec", cluster.namespace);
    ensure!(summary == expected, "the alert says {summary:?}, expected {expected:?}");
    cluster.patch_spec(&json!({ "config": { "extra": { "max-txn-ops": null } } })).await?;
    cluster.settled(3).await?;
    server.expect(0, "count(ALERTS{alertname=~\"Balsa.+\"}) or vector(0)").await
}

/// A Prometheus of our own. It ends with the scenario.
pub(super) struct Server {
    process: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Prometheus loads these rules beside the shipped ones.
    async fn start(cluster: &Cluster, rules: &Value) -> anyhow::Result<Self> {
        let directory = tempfile::TempDir::new()?;
        let config = configure(cluster, rules, directory.path()).await?;
        // Free at this moment, which is all that can be had: Prometheus takes no socket that is bound already.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("Debian's prometheus runs")?;
        Ok(Self { process, address, _directory: directory })
    }

    /// Waits until the query gives that number.
    pub(super) async fn expect(&self, wanted: i64, query: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let got = self.ask(query);
            if got.as_ref().is_ok_and(|value| *value == Some(wanted as f64)) {
                println!("    {query} = {wanted}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{query} is {got:?}, expected {wanted}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn ask(&self, query: &str) -> anyhow::Result<Option<f64>> {
        let answer = self.get("query", &["--data-urlencode", &format!("query={query}")])?;
        Ok(answer["data"]["result"][0]["value"][1].as_str().and_then(|value| value.parse().ok()))
    }

    fn get(&self, what: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let url = format!("http://{}/api/v1/{what}", self.address);
        let output = Command::new("curl").args(["-fsG", "--max-time", "5", &url]).args(arguments).output()?;
        serde_json::from_slice(&output.stdout).context("Prometheus answers JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The shipped jobs and rules, with two things changed: the interval is a second, and pods are found in a file, because
/// Debian builds Prometheus without the discovery in Kubernetes. The file says of every pod of every namespace what that
/// discovery says, so that the shipped rules choose and name the targets.
async fn configure(cluster: &Cluster, rules: &Value, directory: &Path) -> anyhow::Result<PathBuf> {
    let mut config: Value = serde_yaml::from_str(SCRAPE)?;
    for job in config["scrape_configs"].as_array_mut().into_iter().flatten() {
        let job = job.as_object_mut().context("a job")?;
        let discovery = job.remove("kubernetes_sd_configs");
        ensure!(discovery == Some(json!([{ "role": "pod" }])), "this test knows pods only, not {discovery:?}");
        job.insert("file_sd_configs".to_owned(), json!([{ "files": ["pods.json"] }]));
    }
    config["global"] = json!({ "scrape_interval": "1s", "evaluation_interval": "1s" });
    config["rule_files"] = json!(["mixin.yaml", "rules.yaml"]);
    std::fs::write(directory.join("pods.json"), discovered(cluster).await?.to_string())?;
    std::fs::write(directory.join("mixin.yaml"), rules.to_string())?;
    std::fs::write(directory.join("rules.yaml"), RULES)?;
    let file = directory.join("prometheus.yml");
    std::fs::write(&file, serde_yaml::to_string(&config)?)?;
    let checked = Command::new("promtool").args(["check", "config"]).arg(&file).output().context("promtool runs")?;
    let said = String::from_utf8_lossy(&checked.stderr);
    ensure!(checked.status.success(), "promtool refuses the shipped files: {said}");
    Ok(file)
}

/// A target for each port of each container, with those labels of Prometheus' role `pod` that could tell them apart.
async fn discovered(cluster: &Cluster) -> anyhow::Result<Value> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let mut targets = Vec::new();
    for pod in pods.list(&ListParams::default()).await? {
        let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.clone()) else { continue };
        let mut of_pod = json!({
            "__meta_kubernetes_namespace": pod.namespace(),
            "__meta_kubernetes_pod_name": pod.name_any(),
        });
        for (key, value) in pod.labels() {
            let key: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            of_pod[format!("__meta_kubernetes_pod_label_{key}")] = json!(value);
        }
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            for port in container.ports.iter().flatten() {
                let mut labels = of_pod.clone();
                labels["__meta_kubernetes_pod_container_name"] = json!(container.name);
                labels["__meta_kubernetes_pod_container_port_name"] = json!(port.name);
                targets.push(json!({ "targets": [format!("{address}:{}", port.container_port)], "labels": labels }));
            }
        }
    }
    Ok(json!(targets))
}
