//! Watchers that hold the API server, and the store behind it, to what a watch promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;

/// Longest wait for something that a watch must show.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a strict watcher has seen.
#[derive(Default)]
struct Seen {
    /// How often each object was added.
    added: BTreeMap<String, usize>,
    /// The values of each counter, in order.
    counted: BTreeMap<String, Vec<u64>>,
    /// The last revision.
    revision: u64,
    /// What no watch may do, and this one did.
    wrong: Option<String>,
}

/// Watches ConfigMaps in one go, from one revision on, and begins anew never: a watch that ends is taken up at the last
/// revision seen, so that a lost or repeated event would show.
pub(super) struct Witness {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Witness {
    pub(super) async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let from = api.list(&ListParams::default()).await?.metadata.resource_version.context("a revision")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut from = from;
            while let Err(wrong) = watch(&api, &mut from, &shared).await {
                lock(&shared).wrong.get_or_insert(format!("{wrong:#}"));
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Ok(Self { seen, task })
    }

    /// Waits until every name was added, and checks that it was so once.
    pub(super) async fn saw(&self, names: &BTreeSet<String>) -> anyhow::Result<()> {
        self.until("every creation", |seen| names.iter().all(|name| seen.added.contains_key(name))).await?;
        let seen = lock(&self.seen);
        let twice = seen.added.iter().find(|(_, times)| **times != 1);
        ensure!(twice.is_none(), "added more than once: {twice:?}");
        println!("    a watcher saw each of {} creations once and in order", names.len());
        Ok(())
    }

    /// Waits until the last value of a counter was seen, and checks that each was, once and in order. A write whose
    /// reply was lost may have been made, so values that nobody acknowledged may stand between.
    pub(super) async fn saw_counter(&self, member: usize, written: &[u64]) -> anyhow::Result<()> {
        let (name, last) = (counter(member), written.last().copied().unwrap_or_default());
        let counted = |seen: &Seen| seen.counted.get(&name).cloned().unwrap_or_default();
        self.until("the last write", |seen| counted(seen).contains(&last)).await?;
        let counted = counted(&lock(&self.seen));
        ensure!(counted.windows(2).all(|pair| pair[0] < pair[1]), "a value was seen twice or late: {counted:?}");
        let missing = written.iter().find(|value| !counted.contains(value));
        ensure!(missing.is_none(), "write {missing:?} was acknowledged and not seen");
        Ok(())
    }

    async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let seen = lock(&self.seen);
                if let Some(wrong) = &seen.wrong {
                    bail!("the watch broke: {wrong}");
                }
                if holds(&seen) {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "the watch did not show {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// One watch, taken up where the last one ended; it ends by itself after some minutes, which is no failure.
async fn watch(api: &Api<ConfigMap>, from: &mut String, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    loop {
        let stream = api.watch(&WatchParams::default(), from).await?;
        pin_mut!(stream);
        while let Some(event) = stream.try_next().await? {
            note(event, from, &mut lock(seen))?;
        }
    }
}

fn note(event: WatchEvent<ConfigMap>, from: &mut String, seen: &mut Seen) -> anyhow::Result<()> {
    let (object, added) = match event {
        WatchEvent::Added(object) => (object, true),
        WatchEvent::Modified(object) | WatchEvent::Deleted(object) => (object, false),
        WatchEvent::Bookmark(_) => return Ok(()),
        WatchEvent::Error(status) => bail!("{}: {}", status.code, status.message),
    };
    let version = object.resource_version().context("a revision")?;
    let revision: u64 = version.parse()?;
    ensure!(revision > seen.revision, "revision {revision} came after {}", seen.revision);
    (seen.revision, *from) = (revision, version);
    let name = object.name_any();
    if let Some(value) = object.data.as_ref().and_then(|data| data.get("count")) {
        seen.counted.entry(name.clone()).or_default().push(value.parse()?);
    }
    if added {
        *seen.added.entry(name).or_default() += 1;
    }
    Ok(())
}

fn counter(member: usize) -> String {
    format!("counter-{member}")
}

/// Writes ascending numbers into one object as fast as they are acknowledged.
pub(super) struct Counter {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<u64>>,
}

impl Counter {
    pub(super) fn start(api: Api<ConfigMap>, member: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for value in 1u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": counter(member)},
                    "data": {"count": value.to_string()}});
                let parameters = PatchParams::apply("e2e").force();
                if api.patch(&counter(member), &parameters, &Patch::Apply(&object)).await.is_ok() {
                    acknowledged.push(value);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            acknowledged
        });
        Self { stop, task }
    }

    /// Stops, and gives the numbers whose write was acknowledged.
    pub(super) async fn finish(self) -> anyhow::Result<Vec<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.task.await?;
        ensure!(!written.is_empty(), "no write was acknowledged");
        Ok(written)
    }
}

/// What controllers watch with: it lists again when it must.
pub(super) struct Informer {
    values: Arc<Mutex<BTreeMap<String, String>>>,
    task: JoinHandle<()>,
}

impl Informer {
    pub(super) async fn start(api: Api<ConfigMap>) -> anyhow::Result<Self> {
        let values: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
        let shared = Arc::clone(&values);
        let task = tokio::spawn(async move {
            let stream = watcher(api, watcher::Config::default()).default_backoff().applied_objects();
            stream
                .for_each(|object| {
                    if let Ok(object) = object {
                        let value = object.data.as_ref().and_then(|data| data.get("touched")).cloned();
                        let mut values = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        values.insert(object.name_any(), value.unwrap_or_default());
                    }
                    std::future::ready(())
                })
                .await;
        });
        Ok(Self { values, task })
    }

    /// Waits until it shows this value of an object.
    pub(super) async fn sees(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.values.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
            if now.as_deref() == Some(value) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} is seen as {now:?}, not as {value}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.task.abort();
        Ok(())
    }
}

/// Whether a watch from an old revision is told that it is too old.
pub(super) async fn watch_is_refused(api: &Api<ConfigMap>, from: &str) -> anyhow::Result<bool> {
    let stream = match api.watch(&WatchParams::default().timeout(10), from).await {
        Ok(stream) => stream,
        Err(kube::Error::Api(status)) => return Ok(status.code == 410),
        Err(error) => return Err(error.into()),
    };
    pin_mut!(stream);
    match stream.try_next().await {
        Ok(Some(WatchEvent::Error(status))) => Ok(status.code == 410),
        Err(kube::Error::Api(status)) => Ok(status.code == 410),
        _ => Ok(false),
    }
}

/// Watches from a revision on until so many objects with names that begin like this were deleted; when each was heard of.
pub(super) async fn deletions(
    events: Api<Event>,
    mut from: String,
    prefix: &str,
    count: usize,
) -> anyhow::Result<BTreeMap<String, Instant>> {
    let mut gone = BTreeMap::new();
    loop {
        let stream = events.watch(&WatchParams::default(), &from).await?;
        pin_mut!(stream);
        while let Some(event) = stream.try_next().await? {
            let (object, is_gone) = match event {
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => bail!("{}: {}", status.code, status.message),
            };
            from = object.resource_version().context("a revision")?;
            let name = object.name_any();
            if !is_gone || !name.starts_with(prefix) {
                continue;
            }
            ensure!(gone.insert(name.clone(), Instant::now()).is_none(), "{name} was deleted twice");
            if gone.len() == count {
                return Ok(gone);
            }
        }
    }
}
