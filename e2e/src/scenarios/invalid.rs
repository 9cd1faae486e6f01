//! Resources that cannot work.

use anyhow::{Context, bail, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::writer::Writer;

pub(super) async fn refused(cluster: Cluster) -> anyhow::Result<()> {
    rules_are_said(&cluster, Compared::No).await?;
    expect_refusal(&cluster, &Cluster::resource(0, &json!({})), "spec.replicas must be 1 to 7").await?;
    let unknown = json!({ "storage": { "retention": { "whenDeleted": "Perhaps" } } });
    expect_refusal(&cluster, &Cluster::resource(3, &unknown), "Perhaps").await?;
    let hasty = json!({ "config": { "heartbeatMs": 500 } });
    expect_refusal(&cluster, &Cluster::resource(3, &hasty), "electionMs (1000 when absent) must be").await?;

    let twice = json!({ "imagePullSecrets": [{ "name": "a" }, { "name": "a" }] });
    expect_refusal(&cluster, &Cluster::resource(3, &twice), "name=\"a\"").await?;
    let rack = json!({ "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1 });
    let twice = json!({ "scheduling": { "topologySpread": [rack, rack] } });
    expect_refusal(&cluster, &Cluster::resource(3, &twice), "topologyKey=\"rack\"").await?;

    // What only the API server can judge, once it is asked for the pods, or the node, once it starts, is said in the status.
    for (spec, words) in [
        (json!({ "resources": { "limits": { "cpu": "lots" } } }), "quantities must match"),
        (json!({ "podTemplate": { "securityContext": { "runAsUser": -1 } } }), "runAsUser"),
        (json!({ "scheduling": { "tolerations": [{ "operator": "Equal" }] } }), "operator must be Exists"),
        (json!({ "config": { "extra": { "max-txn-opps": "9" } } }), "max-txn-opps is no flag of the node"),
        (json!({ "config": { "extra": { "max-txn-ops": "many" } } }), "is not a number"),
        (
            json!({ "resources": { "requests": { "memory": "2Gi" }, "limits": { "memory": "1Gi" } } }),
            "less than or equal to memory limit",
        ),
        // No pod may be made of this one; only the StatefulSet's controller hears of it.
        (json!({ "scheduling": { "priorityClass": "missing" } }), "no PriorityClass with name missing was found"),
    ] {
        cluster.apply(&Cluster::resource(1, &spec)).await?;
        blocked(&cluster, words).await?;
        ensure!(cluster.pods_by_name().await?.is_empty(), "a pod was made for {spec}");
    }
    let mended = json!({ "resources": { "requests": { "memory": "64Mi" }, "limits": { "memory": "1Gi" } } });
    cluster.create(3, &mended).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    harmless(&cluster, &mended).await?;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "what was refused left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

/// What a CEL rule looks at beside the resource that is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    No,
    WithWhatWas,
}

/// The API server says the whole message of every rule of this kind when the table's resource breaks it.
async fn rules_are_said(cluster: &Cluster, compared: Compared) -> anyhow::Result<()> {
    let broken = broken();
    for (_, message) in rules()?.into_iter().filter(|(kind, _)| *kind == compared) {
        let row = broken.iter().find(|(words, _)| message.starts_with(words));
        let (_, resource) = row.with_context(|| format!("no resource of the table breaks the rule {message:?}"))?;
        expect_refusal(cluster, resource, &message).await?;
    }
    Ok(())
}

/// Every CEL rule of the definition that is installed, with its message.
fn rules() -> anyhow::Result<Vec<(Compared, String)>> {
    fn walk(schema: &Value, found: &mut Vec<(Compared, String)>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let [expression, message] = ["rule", "message"].map(|key| rule[key].as_str().unwrap_or_default());
            let compared = if expression.contains("oldSelf") { Compared::WithWhatWas } else { Compared::No };
            found.push((compared, message.to_owned()));
        }
        match schema {
            Value::Object(fields) => fields.values().for_each(|field| walk(field, found)),
            Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&serde_json::to_value(balsa_crds::raft_cluster_definition())?, &mut found);
    Ok(found)
}

/// For each of these rules a resource that breaks it and no other, by how the rule's message begins.
fn broken() -> Vec<(&'static str, Value)> {
    let named = |name: &str| {
        let mut resource = Cluster::resource(3, &json!({}));
        resource["metadata"]["name"] = json!(name);
        resource
    };
    let with = |spec: Value| Cluster::resource(3, &spec);
    let config = |config: Value| with(json!({ "config": config }));
    vec![
        ("metadata.name is too long", named(&"n".repeat(balsa_crds::MAX_NAME_LENGTH + 1))),
        ("metadata.name must start with a letter", named("1.db")),
        ("spec.replicas must be", with(json!({ "replicas": 8 }))),
        ("spec.image is empty", with(json!({ "image": "" }))),
        ("spec.image is not an image reference", with(json!({ "image": "two words" }))),
        ("spec.imagePullPolicy must be", with(json!({ "imagePullPolicy": "Sometimes" }))),
        ("spec.storage.size must be", with(json!({ "storage": { "size": "0" } }))),
        ("spec.storage.size cannot change", with(json!({ "storage": { "size": "2Gi" } }))),
        ("spec.storage.class is empty", with(json!({ "storage": { "class": "" } }))),
        ("spec.storage.class cannot change", with(json!({ "storage": { "class": "other" } }))),
        ("spec.drainDelaySeconds must be", with(json!({ "drainDelaySeconds": 31 }))),
        ("spec.clusterDomain must be", with(json!({ "clusterDomain": "cluster.local." }))),
        ("spec.clusterDomain cannot change", with(json!({ "clusterDomain": "example.org" }))),
        ("spec.config.electionMs (1000 when absent)", config(json!({ "heartbeatMs": 1000, "electionMs": 1000 }))),
        ("spec.config.heartbeatMs must be", config(json!({ "heartbeatMs": 9 }))),
        ("spec.config.electionMs must be", config(json!({ "electionMs": 50001 }))),
        ("spec.config.maxRequestBytes must be", config(json!({ "maxRequestBytes": 1023 }))),
        ("spec.config.quotaBackendBytes must be", config(json!({ "quotaBackendBytes": 1_048_575 }))),
        ("spec.config.logLevel must be", config(json!({ "logLevel": "trace" }))),
        ("spec.config.extra takes flag names", config(json!({ "extra": { "--max-txn-ops": "9" } }))),
    ]
}

/// A running cluster is left alone, whoever refuses the change.
async fn harmless(cluster: &Cluster, spec: &Value) -> anyhow::Result<()> {
    let before = uids(cluster).await?;
    rules_are_said(cluster, Compared::WithWhatWas).await?;

    let mut root = Cluster::resource(3, spec);
    root["spec"]["podTemplate"] = json!({ "securityContext": { "runAsUser": -1 } });
    cluster.apply(&root).await?;
    blocked(cluster, "runAsUser").await?;
    cluster.apply(&Cluster::resource(3, spec)).await?;
    cluster.settled(3).await?;
    ensure!(uids(cluster).await? == before, "a refused change reached a pod");

    // What only the operator can judge is said in the status.
    let even = cluster.scale_to(4).await;
    ensure!(even.is_ok(), "an even number is allowed: {even:?}");
    cluster
        .until("a condition says what an even number means", |resource| {
            let conditions = resource.status.clone().unwrap_or_default().conditions;
            conditions.iter().any(|condition| condition.type_ == "QuorumAdvice")
        })
        .await
}

/// Waits until the status says these words of what cannot be.
async fn blocked(cluster: &Cluster, words: &str) -> anyhow::Result<()> {
    cluster
        .until("the status says what is refused", |resource| {
            let plan = resource.status.clone().unwrap_or_default().plan;
            plan.and_then(|plan| plan.blocked_by).is_some_and(|by| by.message.contains(words))
        })
        .await
}

/// Which pods there are: another one of the same name has another uid.
async fn uids(cluster: &Cluster) -> anyhow::Result<Vec<Option<String>>> {
    Ok(cluster.pods_by_name().await?.values().map(ResourceExt::uid).collect())
}

async fn expect_refusal(cluster: &Cluster, resource: &Value, words: &str) -> anyhow::Result<()> {
    match cluster.apply(resource).await {
        Ok(_) => bail!("accepted, expected a refusal with {words:?}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(words), "refused, but not with {words:?}: {text}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also without a Kubernetes: a rule that is new, or whose words are, has its resource before it is tried.
    #[test]
    fn each_rule_of_the_definition_is_broken_by_one_resource_of_the_table() {
        let rules = rules().unwrap();
        let broken = broken();
        for (_, message) in &rules {
            let rows = broken.iter().filter(|(words, _)| message.starts_with(words)).count();
            assert_eq!(rows, 1, "{message}");
        }
        assert_eq!(broken.len(), rules.len(), "a row of the table breaks no rule");
    }
}
