//! Resources that cannot work.

use anyhow::{bail, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::writer::Writer;

pub(super) async fn refused(cluster: Cluster) -> anyhow::Result<()> {
    let too_many = Cluster::resource(8, &json!({}));
    expect_refusal(&cluster, &too_many, "spec.replicas must be 1 to 7").await?;
    expect_refusal(&cluster, &Cluster::resource(0, &json!({})), "spec.replicas must be 1 to 7").await?;
    expect_refusal(&cluster, &Cluster::resource(3, &json!({ "image": "" })), "spec.image is empty").await?;
    let nothing = json!({ "storage": { "size": "0" } });
    expect_refusal(&cluster, &Cluster::resource(3, &nothing), "spec.storage.size must be a quantity above zero")
        .await?;
    let unknown = json!({ "storage": { "retention": { "whenDeleted": "Perhaps" } } });
    expect_refusal(&cluster, &Cluster::resource(3, &unknown), "Perhaps").await?;
    let hasty = json!({ "config": { "heartbeatMs": 1000, "electionMs": 1000 } });
    expect_refusal(&cluster, &Cluster::resource(3, &hasty), "at least 5 times heartbeatMs").await?;
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

/// A running cluster is left alone, whoever refuses the change.
async fn harmless(cluster: &Cluster, spec: &Value) -> anyhow::Result<()> {
    let before = uids(cluster).await?;
    let mut grown = Cluster::resource(3, spec);
    grown["spec"]["storage"]["size"] = json!("2Gi");
    expect_refusal(cluster, &grown, "spec.storage.size cannot change").await?;

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
