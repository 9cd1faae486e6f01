//! A StatefulSet as another release of the operator may have left it, with fields that Kubernetes lets nobody change (row R1).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams, PropagationPolicy};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAME};
use crate::writer::Writer;

/// The operator's note of what a set was made with; a set of an older release has none.
const FIXED_HASH: &str = "balsa.dev/fixed-hash";
/// Longest wait for the garbage collector and for the StatefulSet's controller.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn anew(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(3, &json!({})).await?;
    let (pods, members, wanted) = (uids(&cluster).await?, cluster.raft_ids().await?, fixed(&set(&cluster).await?));
    let writer = Writer::start(cluster.endpoint().await?);
    // With another selector nothing of the set is written before it is made anew.
    let selector = json!({ "selector": { "matchLabels": { "app.kubernetes.io/instance": NAME } } });
    for other in [all_but_the_selector(&wanted), selector] {
        let theirs = left_by_another(&cluster, &other).await?;
        cluster.patch_spec(&json!({ "paused": false })).await?;
        made_anew(&cluster, &theirs).await?;
        cluster.settled(3).await?;
        let now = fixed(&set(&cluster).await?);
        ensure!(now == wanted, "the set was made with {wanted}, now it has {now}");
        ensure!(uids(&cluster).await? == pods, "the pods were {pods:?}, now they are {:?}", uids(&cluster).await?);
        ensure!(cluster.raft_ids().await? == members, "no member is another one for it");
        updated(&cluster).await?;
    }
    cluster.scale_to(5).await?;
    let grown = uids(&cluster).await?;
    ensure!(pods.iter().all(|(name, uid)| grown.get(name) == Some(uid)), "the pods were {pods:?}, now {grown:?}");
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    cluster.assert_hashes_agree().await
}

/// A set that gives its pods volumes of other names has none of the members' disks for them.
pub(super) async fn other_claims(cluster: Cluster) -> anyhow::Result<()> {
    cluster.create(1, &json!({})).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    let (pods, members) = (uids(&cluster).await?, cluster.raft_ids().await?);
    let mut fields = serde_json::to_value(&set(&cluster).await?.spec)?;
    fields["volumeClaimTemplates"][0]["metadata"]["name"] = json!("storage");
    fields["template"]["spec"]["containers"][0]["volumeMounts"][0]["name"] = json!("storage");
    let theirs = left_by_another(&cluster, &fields).await?;
    cluster.patch_spec(&json!({ "paused": false, "podTemplate": { "annotations": { "e2e": "not rolled" } } })).await?;
    cluster
        .until("it waits for a person, who is told the ways out", |resource| {
            let Some(plan) = resource.status.clone().and_then(|status| status.plan) else { return false };
            let waits = plan.blocked_by.is_some_and(|blocked| blocked.reason == "WrongVolume");
            waits && plan.human_may.iter().any(|way| way.contains("--cascade=orphan"))
        })
        .await?;
    // Passes go on meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(uids(&cluster).await? == pods, "the pods were {pods:?}, now they are {:?}", uids(&cluster).await?);
    ensure!(set(&cluster).await?.uid().as_ref() == Some(&theirs), "it was made anew");
    // The pods have our volumes, so the first of the ways is the right one.
    delete_without_pods(&cluster).await?;
    cluster.settled(1).await?;
    updated(&cluster).await?;
    ensure!(cluster.raft_ids().await? == members, "no member is another one for it");
    writer.finish().await?;
    cluster.assert_hashes_agree().await
}

/// Fields of a set that can be written around the same pods: the claims keep their name.
fn all_but_the_selector(wanted: &Value) -> Value {
    let mut claims = wanted["volumeClaimTemplates"].clone();
    claims[0]["metadata"]["labels"]["app.kubernetes.io/part-of"] = json!("another release");
    json!({ "serviceName": NAME, "podManagementPolicy": "OrderedReady", "volumeClaimTemplates": claims })
}

/// Puts a set with these fields in place of the present one, around its pods, while the operator is told to keep its hands
/// off. Gives its UID when the pods belong to it.
async fn left_by_another(cluster: &Cluster, fields: &Value) -> anyhow::Result<String> {
    cluster.patch_spec(&json!({ "paused": true })).await?;
    cluster
        .until("the operator pauses", |resource| {
            let status = resource.status.clone().unwrap_or_default();
            let reason = status.plan.and_then(|plan| plan.blocked_by).map(|blocked| blocked.reason);
            status.observed_generation == resource.metadata.generation && reason.as_deref() == Some("Paused")
        })
        .await?;
    let old = set(cluster).await?;
    delete_without_pods(cluster).await?;
    let made = sets(cluster).create(&PostParams::default(), &with(&old, fields)?).await?;
    let uid = made.uid().context("a UID")?;
    owned_by(cluster, &uid).await?;
    Ok(uid)
}

/// `kubectl delete statefulset --cascade=orphan`, and waits until this one is gone.
async fn delete_without_pods(cluster: &Cluster) -> anyhow::Result<()> {
    let old = set(cluster).await?.uid();
    let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    sets(cluster).delete(NAME, &orphan).await?;
    let deadline = Instant::now() + PATIENCE;
    while sets(cluster).get_opt(NAME).await?.is_some_and(|set| set.uid() == old) {
        ensure!(Instant::now() < deadline, "the set does not go without its pods");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The same set without a fingerprint, and with other fields.
fn with(old: &StatefulSet, fields: &Value) -> anyhow::Result<StatefulSet> {
    let mut annotations = old.annotations().clone();
    ensure!(annotations.remove(FIXED_HASH).is_some(), "a set of this release has {FIXED_HASH}");
    let metadata = ObjectMeta {
        name: Some(old.name_any()),
        labels: Some(old.labels().clone()),
        annotations: Some(annotations),
        owner_references: Some(old.owner_references().to_vec()),
        ..ObjectMeta::default()
    };
    let mut spec = serde_json::to_value(&old.spec)?;
    for (name, value) in fields.as_object().context("fields")? {
        spec[name] = value.clone();
    }
    Ok(StatefulSet { metadata, spec: serde_json::from_value(spec)?, status: None })
}

/// Waits until another set than `theirs` has the pods.
async fn made_anew(cluster: &Cluster, theirs: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let ours = loop {
        let now = sets(cluster).get_opt(NAME).await?.and_then(|set| set.uid());
        match now {
            Some(uid) if uid != theirs => break uid,
            _ => ensure!(started.elapsed() < PATIENCE, "the set of another release is not made anew"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    owned_by(cluster, &ours).await?;
    println!("    made anew around its pods in {:.1} s", started.elapsed().as_secs_f32());
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let told = events.list(&ListParams::default().fields("reason=RecreateSet")).await?.items.len();
    ensure!(told >= 1, "m29: the step gave no event");
    Ok(())
}

/// Waits until the set of this UID has adopted all pods.
async fn owned_by(cluster: &Cluster, uid: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pods = cluster.pods_by_name().await?;
        let owners: Vec<_> = pods.values().map(|pod| pod.owner_references().first().map(|o| o.uid.as_str())).collect();
        if owners.iter().all(|owner| *owner == Some(uid)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the set {uid} does not adopt the pods of {owners:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn updated(cluster: &Cluster) -> anyhow::Result<()> {
    cluster
        .until("Updated is True", |resource| {
            let conditions = resource.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|condition| condition.type_ == "Updated" && condition.status == "True")
        })
        .await
}

fn sets(cluster: &Cluster) -> Api<StatefulSet> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

async fn set(cluster: &Cluster) -> anyhow::Result<StatefulSet> {
    Ok(sets(cluster).get(NAME).await?)
}

/// What nobody can change of a set.
fn fixed(set: &StatefulSet) -> Value {
    let spec = serde_json::to_value(&set.spec).unwrap_or_default();
    let field = |name: &str| (name.to_owned(), spec[name].clone());
    ["serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates"].map(field).into_iter().collect()
}

async fn uids(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, Option<String>>> {
    Ok(cluster.pods_by_name().await?.into_iter().map(|(name, pod)| (name, pod.meta().uid.clone())).collect())
}
