//! Kubernetes on Balsa: the local Kubernetes' own store under its API server, as a user of Kubernetes sees it.

mod faults;
mod view;
mod witness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::Client as EtcdClient;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use self::faults::Store;
use self::witness::Witness;
use crate::cluster::Cluster;

/// Objects that are created and listed.
const OBJECTS: usize = 10_000;
/// Objects of one page.
const PAGE: u32 = 500;
/// Creations under way at once; the API server takes 200 writes.
const PARALLEL: usize = 48;
/// How long events live while the scenario runs, and how often the API server compacts.
const EVENT_TTL: &str = "10s";
const COMPACTION_INTERVAL: &str = "10s";

pub(super) async fn kubernetes(cluster: Cluster) -> anyhow::Result<()> {
    let Some(store) = Store::found()? else {
        println!("    not run: the Kubernetes of KUBECONFIG is not the local one");
        return Ok(());
    };
    println!("    {} members keep the objects: {}", store.members(), store.endpoints());
    let witness = Witness::start(&cluster).await?;
    let names = create(&cluster).await?;
    page(&cluster, &names).await?;
    witness.saw(&names).await?;
    consistent_reads(&cluster).await?;
    roll_under_kills(&cluster, &store, &witness).await?;
    restart_and_compact(&cluster, &store).await?;
    events_expire(&cluster).await?;
    store.apiserver(&[])?;
    view::is_the_stores(&cluster, &store).await
}

fn config_maps(cluster: &Cluster) -> Api<ConfigMap> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

/// Creates the objects, many at once.
async fn create(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let (api, started) = (config_maps(cluster), Instant::now());
    let create = |number: usize| {
        let api = api.clone();
        async move {
            let name = format!("object-{number:05}");
            let object = serde_json::from_value(json!({"metadata": {"name": name}, "data": {"number": name}}))?;
            api.create(&PostParams::default(), &object).await.with_context(|| format!("create {name}"))?;
            anyhow::Ok(name)
        }
    };
    let created: BTreeSet<String> =
        stream::iter(0..OBJECTS).map(create).buffer_unordered(PARALLEL).try_collect().await?;
    println!("    {} objects created in {:.1} s", created.len(), started.elapsed().as_secs_f32());
    Ok(created)
}

/// Lists in pages: every object once, in order, all pages of one revision, and what remains counted right.
async fn page(cluster: &Cluster, names: &BTreeSet<String>) -> anyhow::Result<()> {
    let (api, started) = (config_maps(cluster), Instant::now());
    let mut parameters = ListParams::default().limit(PAGE);
    let (mut listed, mut revisions, mut pages): (Vec<String>, BTreeSet<String>, usize) = Default::default();
    loop {
        let page = api.list(&parameters).await.context("a page")?;
        revisions.extend(page.metadata.resource_version.clone());
        listed.extend(page.items.iter().map(ResourceExt::name_any).filter(|name| name.starts_with("object-")));
        pages += 1;
        // A page makes known how many follow.
        if let Some(remaining) = page.metadata.remaining_item_count {
            let others = names.len() + 1 - pages * PAGE as usize;
            ensure!(remaining as usize == others, "after page {pages} {remaining} remain, not {others}");
        }
        // An object between pages must not appear in them.
        if pages == 2 {
            let late: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "object-00000-late"}}))?;
            api.create(&PostParams::default(), &late).await?;
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => break,
        }
    }
    api.delete("object-00000-late", &DeleteParams::default()).await?;
    println!("    {} objects listed in {pages} pages in {:.1} s", listed.len(), started.elapsed().as_secs_f32());
    ensure!(listed.windows(2).all(|pair| pair[0] < pair[1]), "the pages are not in order, or repeat an object");
    ensure!(listed.iter().eq(names), "{} objects listed, {} created", listed.len(), names.len());
    ensure!(revisions.len() == 1, "one list is of one revision, not of {revisions:?}");
    Ok(())
}

/// A list without a revision is answered from the watch cache, which asks the store how far it is.
async fn consistent_reads(cluster: &Cluster) -> anyhow::Result<()> {
    let before = view::consistent_reads(cluster).await?;
    for number in 0..20 {
        let name = format!("object-{number:05}");
        let patch = json!({"data": {"touched": "yes"}});
        config_maps(cluster).patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        let field = ListParams::default().fields(&format!("metadata.name={name}"));
        let read = config_maps(cluster).list(&field).await?;
        let touched = read.items.first().and_then(|object| object.data.as_ref()).and_then(|data| data.get("touched"));
        ensure!(touched.is_some_and(|value| value == "yes"), "a list does not show the write before it: {name}");
    }
    let after = view::consistent_reads(cluster).await?;
    let (cached, fell_back) = (after.0 - before.0, after.1 - before.1);
    println!("    {cached} consistent lists from the watch cache, {fell_back} from the store");
    ensure!(cached >= 20.0 && fell_back == 0.0, "consistent lists did not come from the watch cache");
    Ok(())
}

/// A Deployment rolls while each member in turn is killed and comes back; a watcher sees every write once.
async fn roll_under_kills(cluster: &Cluster, store: &Store, witness: &Witness) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let labels = json!({"app": "roller"});
    let pod = json!({"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "pause", "image": "balsa.dev/pause:dev", "imagePullPolicy": "IfNotPresent"}]}});
    let spec = json!({"replicas": 3, "selector": {"matchLabels": labels}, "template": pod});
    let roller: Deployment = serde_json::from_value(json!({"metadata": {"name": "roller"}, "spec": spec}))?;
    deployments.create(&PostParams::default(), &roller).await?;
    rolled(&deployments).await?;
    // One etcd, which is there for comparison, has no member to spare.
    let spare = if store.members() > 2 { store.members() } else { 0 };
    for member in 0..spare {
        let writer = witness::Counter::start(config_maps(cluster), member);
        let change = json!({"spec": {"template": {"metadata": {"annotations": {"round": member.to_string()}}}}});
        deployments.patch("roller", &PatchParams::default(), &Patch::Merge(&change)).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let started = Instant::now();
        store.kill(member)?;
        rolled(&deployments).await.with_context(|| format!("without member {member}"))?;
        let took = started.elapsed().as_secs_f32();
        store.start(member)?;
        let written = writer.finish().await?;
        witness.saw_counter(member, &written).await?;
        println!(
            "    member {member} killed: rolled in {took:.1} s, {} writes meanwhile, each seen once",
            written.len()
        );
    }
    Ok(())
}

/// Waits until the Deployment has rolled out its present template.
async fn rolled(deployments: &Api<Deployment>) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let roller = deployments.get("roller").await;
        let done = roller.as_ref().is_ok_and(|roller| {
            let status = roller.status.clone().unwrap_or_default();
            status.observed_generation == roller.metadata.generation
                && status.updated_replicas == Some(3)
                && status.available_replicas == Some(3)
                && status.replicas == Some(3)
        });
        if done {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the Deployment does not roll out: {roller:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The API server ends and comes back, and compacts. Controllers go on; what is older than the compaction is refused.
async fn restart_and_compact(cluster: &Cluster, store: &Store) -> anyhow::Result<()> {
    let api = config_maps(cluster);
    let old = api.list(&ListParams::default().limit(1)).await?.metadata.resource_version.context("a revision")?;
    // With no API server nobody writes: without this its new watch cache could begin at the old revision.
    let patch = json!({"data": {"touched": "before the restart"}});
    api.patch("object-00001", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let informer = witness::Informer::start(api.clone()).await?;
    store.apiserver(&["--event-ttl", EVENT_TTL, "--etcd-compaction-interval", COMPACTION_INTERVAL])?;
    let patch = json!({"data": {"touched": "after the restart"}});
    api.patch("object-00001", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    informer.sees("object-00001", "after the restart").await?;
    let mut etcd = EtcdClient::connect(store.endpoint_list(), None).await?;
    let compacted = view::compacted(&mut etcd, old.parse()?).await?;
    println!("    the API server compacted past revision {old}, to {compacted}");
    let exact = ListParams::default().at(&old).matching(kube::api::VersionMatch::Exact);
    let refused = api.list(&exact).await.err().context("a list at a compacted revision was answered")?;
    ensure!(refused.to_string().contains("too old") || refused.to_string().contains("compacted"), "{refused}");
    // A watcher that is that far behind is told so, and begins anew.
    ensure!(witness::watch_is_refused(&api, &old).await?, "a watch from a compacted revision went on");
    informer.stop().await
}

/// The store's leases end events, and watchers hear of it.
async fn events_expire(cluster: &Cluster) -> anyhow::Result<()> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let object = json!({"kind": "ConfigMap", "namespace": cluster.namespace, "name": "object-00000"});
    let event = json!({"metadata": {"name": "brief"}, "involvedObject": object, "reason": "Tried", "type": "Normal"});
    events.create(&PostParams::default(), &serde_json::from_value(event)?).await?;
    let started = Instant::now();
    let seen = witness::deletion_of(&events, "brief", Duration::from_secs(60)).await?;
    ensure!(seen, "no watcher heard that the event expired");
    ensure!(events.get_opt("brief").await?.is_none(), "the event expired and is there");
    ensure!(started.elapsed() >= Duration::from_secs(5), "the event went before its time");
    println!("    an event of {EVENT_TTL} expired after {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}
