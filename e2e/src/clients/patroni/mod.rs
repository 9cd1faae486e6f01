//! Patroni, which keeps a PostgreSQL with standbys available and has all its state in the store: who leads by a key with a
//! lease, and every change of it by a transaction. It speaks to the JSON gateway.
//!
//! Rows are written all the time through libpq, which looks for the server that takes writes, while the leader is switched,
//! the store loses its own leader, and the leader is killed. Replication is synchronous, so that what was acknowledged must
//! be there in the end.

mod group;
mod rows;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use etcd_client::Client;

use self::group::{Group, Seen};
use self::rows::Rows;
use crate::local::Server;

/// Longer than any step takes on a slow machine.
const BOUND: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(200);
/// Rows that must be acknowledged before a step is over.
const PROGRESS: usize = 10;

/// Runs all of it against a cluster of the store, one of whose members is killed and started again.
///
/// # Errors
/// What does not work, with the ends of the logs.
pub async fn run(cache: &Path, store: &mut [Server]) -> anyhow::Result<()> {
    let endpoints: Vec<String> = store.iter().map(|member| member.address.clone()).collect();
    let mut group = Group::new(cache, &endpoints)?;
    let outcome = scenario(&mut group, store).await;
    outcome.with_context(|| group.logs())
}

async fn scenario(group: &mut Group, store: &mut [Server]) -> anyhow::Result<()> {
    let mut step = Step::start();
    let members: Vec<usize> = group.members().collect();
    members.iter().try_for_each(|member| group.start(*member))?;
    let first = complete(group, None).await?;
    step.done(&format!("{} members replicate", members.len()));

    let rows = Rows::start(group).await?;
    rows.more(PROGRESS, BOUND).await?;
    // Only that one has every row that was acknowledged.
    let second = first.synchronous;
    // Patroni gives up when it is too slow for its own bounds; whoever asked asks again.
    wait_for("a switchover", async || switch_over(group, first.leader, second).await).await?;
    let switched = complete(group, Some(second)).await?;
    ensure!(switched.timeline > first.timeline, "{first:?}, then {switched:?}");
    rows.more(PROGRESS, BOUND).await?;
    step.done("switchover");

    lose_leader_of_store(group, store).await?;
    let kept = complete(group, Some(second)).await?;
    ensure!(
        (kept.leader, kept.timeline) == (second, switched.timeline),
        "the store elected, and PostgreSQL too: {switched:?}, then {kept:?}"
    );
    rows.more(PROGRESS, BOUND).await?;
    step.done("PostgreSQL keeps its leader while the store elects another");

    group.kill(second).await?;
    let third = wait_for("another leader", async || other_leader(group, second).await).await?;
    rows.more(PROGRESS, BOUND).await?;
    step.done("failover");

    group.start(second)?;
    let last = complete(group, Some(third)).await?;
    ensure!(last.timeline > kept.timeline, "{kept:?}, then {last:?}");
    let written = rows.finish().await?;
    for member in members {
        let missing = wait_for("all rows", async || {
            let there = rows::of(group, member).await?;
            Ok(written.iter().all(|row| there.contains(row)).then_some(()))
        });
        missing.await.with_context(|| format!("acknowledged rows are missing at member {member}"))?;
    }
    step.done(&format!("the killed leader follows, {} acknowledged rows are everywhere", written.len()));
    println!("{}", group.list().await?);
    Ok(())
}

/// Says what works and how long it took.
struct Step(Instant);

impl Step {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn done(&mut self, name: &str) {
        println!("ok {name} ({} ms)", self.0.elapsed().as_millis());
        self.0 = Instant::now();
    }
}

async fn switch_over(group: &Group, from: usize, to: usize) -> anyhow::Result<Option<()>> {
    if other_leader(group, from).await? != Some(to) {
        group.switch_over(from, to).await?;
    }
    Ok(Some(()))
}

/// Who leads, on which of PostgreSQL's timelines, and who follows synchronously.
#[derive(Debug)]
struct Led {
    leader: usize,
    timeline: u64,
    synchronous: usize,
}

/// Waits until one member leads, `wanted` if it is one, all others follow it, and one of them synchronously.
async fn complete(group: &Group, wanted: Option<usize>) -> anyhow::Result<Led> {
    let what =
        format!("one leader ({}) whom all others follow", wanted.map_or("any".to_owned(), |one| one.to_string()));
    wait_for(&what, async || {
        let seen = group.view().await?;
        let Some(leader) = seen.iter().find(|member| member.role == "leader" && member.state == "running") else {
            return Ok(None);
        };
        let following = seen.iter().filter(|member| member.state == "streaming" && member.timeline == leader.timeline);
        let Some(synchronous) = seen.iter().find(|member| member.role == "sync_standby") else { return Ok(None) };
        let is = seen.len() == group.members().count()
            && following.count() + 1 == seen.len()
            && wanted.is_none_or(|wanted| wanted == leader.member);
        Ok(is.then_some(Led { leader: leader.member, timeline: leader.timeline, synchronous: synchronous.member }))
    })
    .await
}

async fn other_leader(group: &Group, than: usize) -> anyhow::Result<Option<usize>> {
    let leads = |seen: &Seen| seen.role == "leader" && seen.state == "running" && seen.member != than;
    Ok(group.view().await?.into_iter().find(leads).map(|seen| seen.member))
}

/// kill -9 of the store's leader, until all of Patroni has heard from the store again; then it comes back.
async fn lose_leader_of_store(group: &Group, store: &mut [Server]) -> anyhow::Result<()> {
    let mut lost = None;
    for (index, member) in store.iter().enumerate() {
        let status = Client::connect([format!("http://{}", member.address)], None).await?.status().await?;
        if status.header().is_some_and(|header| header.member_id() == status.leader()) {
            lost = Some(index);
        }
    }
    let lost = &mut store[lost.context("the store has no leader")?];
    lost.kill();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    for member in group.members() {
        wait_for(
            "Patroni to reach the store",
            async || Ok((group.heard_of_store(member).await? > since).then_some(())),
        )
        .await?;
    }
    lost.start()
}

/// Looks until there is something to see. What cannot be seen now is looked at again.
async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + BOUND;
    loop {
        let seen = look().await;
        match seen {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if Instant::now() > deadline => anyhow::bail!("waited in vain for {what}"),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("waiting for {what}"))),
            _ => tokio::time::sleep(INTERVAL).await,
        }
    }
}
