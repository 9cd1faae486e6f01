//! Rows written one after the other, each once: what was acknowledged must be there in the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::group::{Group, Sql};

/// The load is steady, not a benchmark.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for the fate of one row.
const ROW_BOUND: Duration = Duration::from_secs(10);

/// The writing.
pub(super) struct Rows {
    stop: Arc<AtomicBool>,
    acknowledged: watch::Receiver<usize>,
    task: JoinHandle<BTreeSet<u64>>,
}

impl Rows {
    /// Makes the table and begins.
    pub(super) async fn start(group: &Group) -> anyhow::Result<Self> {
        let sql = group.sql_at_leader();
        sql.run("CREATE TABLE rows (number BIGINT PRIMARY KEY)").await?;
        let stop = Arc::new(AtomicBool::new(false));
        let (told, acknowledged) = watch::channel(0);
        let task = tokio::spawn(write(sql, stop.clone(), told));
        Ok(Self { stop, acknowledged, task })
    }

    /// Waits until so many further rows are acknowledged.
    pub(super) async fn more(&self, count: usize, bound: Duration) -> anyhow::Result<()> {
        let mut acknowledged = self.acknowledged.clone();
        let wanted = *acknowledged.borrow() + count;
        let Ok(seen) = timeout(bound, acknowledged.wait_for(|seen| *seen >= wanted)).await else {
            bail!("no row was written in {} s", bound.as_secs());
        };
        seen.map(drop).context("the writer has ended")
    }

    /// Stops; the rows that were acknowledged.
    pub(super) async fn finish(self) -> anyhow::Result<BTreeSet<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.task.await?;
        ensure!(!written.is_empty(), "no row was written");
        Ok(written)
    }
}

/// The rows that a member has.
pub(super) async fn of(group: &Group, member: usize) -> anyhow::Result<BTreeSet<u64>> {
    let rows = group.sql_at(member).run("SELECT number FROM rows").await?;
    rows.lines().map(|line| Ok(line.parse()?)).collect()
}

async fn write(sql: Sql, stop: Arc<AtomicBool>, told: watch::Sender<usize>) -> BTreeSet<u64> {
    let mut written = BTreeSet::new();
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let row = format!("INSERT INTO rows VALUES ({next})");
        // Any other end says nothing: the row may be there or not.
        if let Ok(Ok(_)) = timeout(ROW_BOUND, sql.run(&row)).await {
            written.insert(next);
            told.send_replace(written.len());
        }
        next += 1;
        tokio::time::sleep(PAUSE).await;
    }
    written
}
