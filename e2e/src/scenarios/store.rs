//! Kubernetes on Balsa: the local Kubernetes' own store under its API server, as a user of Kubernetes sees it.

mod faults;
mod roll;
mod view;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::Client as EtcdClient;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use self::faults::Store;
use self::roll::Roller;
use self::witness::Witness;
use crate::cluster::Cluster;

/// Objects that are created and listed.
const OBJECTS: usize = 10_000;
/// Objects of one page.
const PAGE: u32 = 500;
/// Creations under way at once; the API server takes 200 writes.
const PARALLEL: usize = 48;
/// Events that expire, how their names begin, and how long they live.
const EVENTS: usize = 1_000;
const BRIEF: &str = "brief-";
const EVENT_LIFE: Duration = Duration::from_secs(10);
/// Longest wait for the last of them, from its creation on.
const EXPIRY_PATIENCE: Duration = Duration::from_secs(90);
/// What the API server is told for that, and how often it compacts.
const EVENT_TTL: &str = "10s";
const COMPACTION_INTERVAL: &str = "10s";
/// Without it pages after the first come from the store, and not from the watch cache. That a list without a revision
/// comes from the cache can no longer be turned off (`ConsistentListFromCache` is locked).
const WITHOUT_SNAPSHOTS: &str = "ListFromCacheSnapshot=false";

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
    store.apiserver(&["--feature-gates", WITHOUT_SNAPSHOTS])?;
    page_from_the_store(&cluster, &names).await?;
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

/// Lists in pages: every object once, in order, all pages of one revision, and what remains counted right. Says how many
/// pages it were.
async fn page(cluster: &Cluster, names: &BTreeSet<String>) -> anyhow::Result<usize> {
    let api = config_maps(cluster);
    let all = api.list_metadata(&ListParams::default()).await?.items.len();
    let started = Instant::now();
    let mut parameters = ListParams::default().limit(PAGE);
    let (mut listed, mut revisions, mut pages): (Vec<String>, BTreeSet<String>, usize) = Default::default();
    loop {
        let page = api.list(&parameters).await.context("a page")?;
        revisions.extend(page.metadata.resource_version.clone());
        listed.extend(page.items.iter().map(ResourceExt::name_any).filter(|name| name.starts_with("object-")));
        pages += 1;
        // A page makes known how many follow.
        if let Some(remaining) = page.metadata.remaining_item_count {
            let others = all.saturating_sub(pages * PAGE as usize);
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
    Ok(pages)
}

/// The same, with an API server that keeps no past of its own.
async fn page_from_the_store(cluster: &Cluster, names: &BTreeSet<String>) -> anyhow::Result<()> {
    let before = view::lists_from_the_store(cluster).await?;
    let pages = page(cluster, names).await?;
    let asked = view::lists_from_the_store(cluster).await? - before;
    println!("    {asked} of {pages} pages were the store's own");
    ensure!(asked >= (pages - 1) as f64, "pages did not come from the store");
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

/// Each member in turn is killed in the middle of a roll, which goes on without it; then the member comes back. A watcher sees
/// every write once.
async fn roll_under_kills(cluster: &Cluster, store: &Store, witness: &Witness) -> anyhow::Result<()> {
    // One etcd, which is there for comparison, has no member to spare.
    let spare = if store.members() > 2 { store.members() } else { 0 };
    let roller = Roller::start(cluster).await?;
    roller.roll().await?;
    for (member, pod) in (0..spare).zip(1..=Roller::PODS) {
        let writer = witness::Counter::start(config_maps(cluster), member);
        roller.is_held_at(pod).await?;
        roller.must_be_held_at(pod).await?;
        store.kill(member)?;
        let started = Instant::now();
        roller.must_be_held_at(pod).await.with_context(|| format!("without member {member}"))?;
        roller.let_through().await.with_context(|| format!("without member {member}"))?;
        let goes_on = if pod < Roller::PODS { roller.is_held_at(pod + 1).await } else { roller.is_rolled_out().await };
        goes_on.with_context(|| format!("without member {member}"))?;
        let took = started.elapsed().as_secs_f32();
        store.start(member)?;
        let written = writer.finish().await?;
        witness.saw_counter(member, &written).await?;
        let writes = written.len();
        println!(
            "    member {member} killed while pod {pod} of {} was waited for: the roll went on after {took:.1} s, \
             {writes} writes meanwhile, each seen once",
            Roller::PODS
        );
    }
    Ok(())
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

/// The store's leases end events, each in its time, and a watcher hears of every one.
async fn events_expire(cluster: &Cluster) -> anyhow::Result<()> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let from = events.list(&ListParams::default().limit(1)).await?.metadata.resource_version.context("a revision")?;
    let watching = tokio::spawn(witness::deletions(events.clone(), from, BRIEF, EVENTS));
    let create = |number: usize| {
        let (events, namespace) = (events.clone(), cluster.namespace.clone());
        async move {
            let (name, begun) = (format!("{BRIEF}{number:04}"), Instant::now());
            let object = json!({"kind": "ConfigMap", "namespace": namespace, "name": "object-00000"});
            let event =
                json!({"metadata": {"name": name}, "involvedObject": object, "reason": "Tried", "type": "Normal"});
            events.create(&PostParams::default(), &serde_json::from_value(event)?).await?;
            anyhow::Ok((name, begun))
        }
    };
    let begun: BTreeMap<String, Instant> =
        stream::iter(0..EVENTS).map(create).buffer_unordered(PARALLEL).try_collect().await?;
    let gone = tokio::time::timeout(EXPIRY_PATIENCE, watching).await;
    let gone = gone.context("not every event's end was heard of")??.context("the watch of events")?;
    let lived = |(name, begun): (&String, &Instant)| gone.get(name).map(|gone| gone.duration_since(*begun));
    let mut lives =
        begun.iter().map(lived).collect::<Option<Vec<_>>>().context("the end of another event was heard of")?;
    lives.sort_unstable();
    let (shortest, longest) = (lives[0], lives[lives.len() - 1]);
    ensure!(shortest >= EVENT_LIFE - Duration::from_secs(1), "an event went before its time, after {shortest:?}");
    let left = events.list_metadata(&ListParams::default()).await?.items;
    let left = left.iter().map(ResourceExt::name_any).find(|name| name.starts_with(BRIEF));
    ensure!(left.is_none(), "an event's end was heard of, and it is there: {left:?}");
    println!("    {EVENTS} events of {EVENT_LIFE:?} expired, each after {shortest:.1?} to {longest:.1?}");
    Ok(())
}
