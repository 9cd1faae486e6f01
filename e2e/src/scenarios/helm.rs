//! Both charts, installed by Helm into one namespace: an operator that may see nothing but that, and a cluster.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use serde_json::json;

use super::scale::OPERATOR_NAMESPACE;
use crate::cluster::{Cluster, NAME};
use crate::writer::Writer;

const CHARTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts");
/// Release and Deployment of the operator.
const OPERATOR: &str = "own-operator";
/// Name of its Lease and of its account.
pub(super) const BALSA_OPERATOR: &str = "balsa-operator";
/// Longest wait for another operator to take over from one that vanished: its lease runs out after 15 s.
const TAKEOVER_MAX: Duration = Duration::from_secs(40);

pub(super) async fn charts(cluster: Cluster) -> anyhow::Result<()> {
    let others: Api<Deployment> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    // The operator of all namespaces would do the work of the one under test.
    replicas(&others, 0).await?;
    let outcome = installed(&cluster).await;
    replicas(&others, 1).await?;
    outcome
}

async fn installed(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.namespace.as_str();
    monitoring_kinds(cluster).await?;
    let chart = format!("{CHARTS}/balsa-operator");
    let settings = "scope=namespace,replicas=2,serviceMonitor.enabled=true";
    helm(&["install", OPERATOR, &chart, "-n", namespace, "--set", settings, "--wait", "--timeout", "60s"])?;
    let only_here = rules_of_its_own(cluster).await?;
    ensure!(only_here, "m27: a namespaced install has a ClusterRoleBinding");
    let chart = format!("{CHARTS}/raft-cluster");
    offline(&chart)?;
    let spec =
        "spec.storage.size=1Gi,spec.drainDelaySeconds=1,spec.imagePullPolicy=IfNotPresent,podMonitor.enabled=true";
    helm(&["install", NAME, &chart, "-n", namespace, "--set", spec])?;
    cluster.settled(3).await?;
    monitored(cluster).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    take_over(cluster).await?;
    helm(&["upgrade", NAME, &chart, "-n", namespace, "--set", spec, "--set", "spec.replicas=4"])?;
    cluster.settled(4).await?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    let promoted = events.list(&ListParams::default().fields("reason=Promote")).await?.items.len();
    ensure!(promoted >= 3, "m29: {promoted} events of three promotions under the chart's Role");
    cluster.assert_hashes_agree().await?;
    helm(&["uninstall", NAME, "-n", namespace, "--wait"])?;
    let volumes = cluster.volumes().list(&ListParams::default()).await?.items.len();
    ensure!(volumes == 4, "m1: {volumes} volumes outlive the uninstalled cluster of 4");
    helm(&["uninstall", OPERATOR, "-n", namespace, "--wait"])
}

/// Without a cluster Helm goes by the version of Kubernetes that it was built with, which the charts allow; and by the schema of
/// the values, which knows every field of the spec.
fn offline(chart: &str) -> anyhow::Result<()> {
    let template = |set: &str| helm(&["template", NAME, chart, "--set", set]);
    template("spec.storage.retention.whenScaled=Delete")?;
    for (set, field) in [("spec.replicsa=5", "replicsa"), ("spec.storage.retention.whenScald=Delete", "whenScald")] {
        let refused = template(set).err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(refused.contains(field), "{set} is not refused: {refused:?}");
    }
    Ok(())
}

fn helm(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("helm").args(arguments).output().context("helm is missing: e2e/install helm")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {said}", arguments.join(" "));
    Ok(())
}

pub(super) async fn replicas(deployments: &Api<Deployment>, replicas: i32) -> anyhow::Result<()> {
    let patch = json!({"spec": {"replicas": replicas}});
    deployments.patch(BALSA_OPERATOR, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = deployments.get(BALSA_OPERATOR).await?.status.unwrap_or_default();
        if status.ready_replicas.unwrap_or(0) == replicas && status.replicas.unwrap_or(0) == replicas {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the operator of all namespaces is not scaled to {replicas}: {status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// M27: no right of it reaches beyond the namespace.
async fn rules_of_its_own(cluster: &Cluster) -> anyhow::Result<bool> {
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let all = bindings.list(&ListParams::default()).await?.items;
    let ours = |binding: &ClusterRoleBinding| {
        let subjects = binding.subjects.iter().flatten();
        subjects.into_iter().any(|subject| subject.namespace.as_deref() == Some(cluster.namespace.as_str()))
    };
    Ok(!all.iter().any(ours))
}

/// The operator that leads vanishes without a word; another, under another name, takes over when the lease has run out.
async fn take_over(cluster: &Cluster) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let holder = |lease: Lease| lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
    let first = holder(leases.get(BALSA_OPERATOR).await?);
    ensure!(first.starts_with(OPERATOR), "the lease is held by {first:?}");
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete(&first, &now).await?;
    let started = Instant::now();
    loop {
        let holder = holder(leases.get(BALSA_OPERATOR).await?);
        if !holder.is_empty() && holder != first {
            println!("    {holder} leads {:.1} s after {first} was killed", started.elapsed().as_secs_f32());
            return Ok(());
        }
        ensure!(started.elapsed() < TAKEOVER_MAX, "{holder:?} still holds the lease");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The Prometheus operator's kinds, as far as this test needs them: it has no network to fetch the real ones from.
async fn monitoring_kinds(cluster: &Cluster) -> anyhow::Result<()> {
    let kinds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for (plural, kind) in [("servicemonitors", "ServiceMonitor"), ("podmonitors", "PodMonitor")] {
        let name = format!("{plural}.monitoring.coreos.com");
        let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name},
            "spec": {
                "group": "monitoring.coreos.com",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "scope": "Namespaced",
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
            },
        });
        kinds.patch(&name, &PatchParams::apply("e2e").force(), &Patch::Apply(&definition)).await?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_established(&kinds.get(&name).await?) {
            ensure!(Instant::now() < deadline, "{name} is not established");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// What the monitors select is there: the ports that they name, on what their labels choose.
async fn monitored(cluster: &Cluster) -> anyhow::Result<()> {
    let (client, namespace) = (cluster.client.clone(), cluster.namespace.as_str());
    let monitor = |kind: &str| -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("monitoring.coreos.com", "v1", kind));
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    let selector = |monitor: &DynamicObject| {
        let labels = monitor.data["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
        let pairs = labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        ListParams::default().labels(&pairs.collect::<Vec<_>>().join(","))
    };
    let of_operator = monitor("ServiceMonitor").get(OPERATOR).await?;
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let chosen = services.list(&selector(&of_operator)).await?.items;
    let ports = chosen.iter().flat_map(|service| service.spec.iter()).flat_map(|spec| spec.ports.iter().flatten());
    let ports: Vec<Option<&str>> = ports.map(|port| port.name.as_deref()).collect();
    let endpoint = &of_operator.data["spec"]["endpoints"][0];
    ensure!(ports == [endpoint["port"].as_str()], "the ServiceMonitor finds {ports:?}");
    ensure!(endpoint["honorLabels"] == true, "the operator's `namespace` is that of the cluster it tells of");
    let of_cluster = monitor("PodMonitor").get(NAME).await?;
    let chosen = cluster.pods().list(&selector(&of_cluster)).await?.items;
    let port = of_cluster.data["spec"]["podMetricsEndpoints"][0]["port"].as_str();
    let has_port = |pod: &Pod| {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        containers.flat_map(|container| container.ports.iter().flatten()).any(|known| known.name.as_deref() == port)
    };
    ensure!(chosen.len() == 3 && chosen.iter().all(has_port), "the PodMonitor finds {} pods", chosen.len());
    Ok(())
}
