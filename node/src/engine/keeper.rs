//! The housekeeping thread: makes the key space durable so that the log can be trimmed, deletes what was compacted in
//! small steps, and makes checkpoints. Nothing waits for it.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::failpoint;
use super::fatal::Fatal;
use super::inbox::{Inbox, Input};
use super::snapshot;
use super::status::Status;
use super::{Housekeeping, Store};
use crate::domain::apply::{ApplyError, StateMachine};
use crate::domain::mvcc::{Counts, compaction};
use crate::metrics;
use crate::storage::{KeySpace, StorageError};

/// Applied bytes after which the key space is flushed: what a restart must replay at most.
const FLUSH_BYTES: usize = 64 << 20;
/// An idle store is flushed this long after its last write.
const FLUSH_AFTER: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Tasks {
    unflushed: usize,
    unflushed_entries: u64,
    last_write: Option<Instant>,
    flush_now: bool,
    compact_to: Option<i64>,
    checkpoint: bool,
    stop: bool,
}

/// See the module.
pub(crate) struct Keeper {
    tasks: Mutex<Tasks>,
    called: Condvar,
    store: Arc<RwLock<Arc<Store>>>,
    inbox: Arc<Inbox>,
    fatal: Fatal,
    snapshots: PathBuf,
    cluster_id: u64,
    /// The compacted revision up to which everything is deleted.
    deleted: watch::Sender<i64>,
    status: Arc<RwLock<Arc<Status>>>,
    /// The counts of keys that a store holds.
    saved: Mutex<Option<(Weak<Store>, Counts)>>,
    housekeeping: Housekeeping,
}

impl Keeper {
    /// A keeper of the store in the slot; checkpoints of the cluster go below a directory.
    pub(crate) fn new(
        store: Arc<RwLock<Arc<Store>>>,
        inbox: Arc<Inbox>,
        fatal: Fatal,
        (snapshots, cluster_id): (PathBuf, u64),
        status: Arc<RwLock<Arc<Status>>>,
        housekeeping: Housekeeping,
    ) -> Self {
        let tasks = Mutex::new(Tasks { compact_to: Some(i64::MAX), ..Tasks::default() });
        let deleted = watch::Sender::new(i64::MIN);
        Self {
            tasks,
            called: Condvar::new(),
            store,
            inbox,
            fatal,
            snapshots,
            cluster_id,
            deleted,
            status,
            saved: Mutex::default(),
            housekeeping,
        }
    }

    /// Follows the compacted revision up to which everything is deleted.
    pub(crate) fn deleted(&self) -> watch::Receiver<i64> {
        self.deleted.subscribe()
    }

    /// Bytes of so many entries were applied.
    pub(crate) fn applied(&self, bytes: usize, entries: usize) {
        let mut tasks = self.tasks.lock();
        tasks.unflushed += bytes + 1;
        tasks.unflushed_entries += entries as u64;
        tasks.last_write = Some(Instant::now());
        if self.is_much(&tasks) {
            self.called.notify_one();
        }
    }

    /// Whether so much is applied and not flushed that it is time.
    fn is_much(&self, tasks: &Tasks) -> bool {
        tasks.unflushed > FLUSH_BYTES
            || self.housekeeping.flush_entries.is_some_and(|entries| tasks.unflushed_entries >= entries)
    }

    /// A compaction was applied.
    pub(crate) fn compact(&self, revision: i64) {
        self.tasks.lock().compact_to = Some(revision);
        self.called.notify_one();
    }

    /// Another key space is in use.
    pub(crate) fn installed(&self) {
        let mut tasks = self.tasks.lock();
        tasks.flush_now = true;
        tasks.compact_to = Some(i64::MAX);
        self.called.notify_one();
    }

    /// A checkpoint is wanted; it comes back as an input.
    pub(crate) fn checkpoint(&self) {
        self.tasks.lock().checkpoint = true;
        self.called.notify_one();
    }

    /// Flushes a last time and ends the thread.
    pub(crate) fn stop(&self) {
        self.tasks.lock().stop = true;
        self.called.notify_one();
    }

    /// Runs until stopped.
    pub(crate) fn run(&self) {
        loop {
            let (flush, compact, checkpoint, stop) = self.next();
            if checkpoint {
                self.make_checkpoint();
            }
            if (flush || stop)
                && let Err(error) = self.flush()
            {
                return self.fatal.apply(&error);
            }
            if stop {
                return;
            }
            if compact && let Err(error) = self.compact_all() {
                return self.fatal.storage(&error);
            }
        }
    }

    fn next(&self) -> (bool, bool, bool, bool) {
        let mut tasks = self.tasks.lock();
        loop {
            let idle = tasks.last_write.is_some_and(|at| at.elapsed() >= FLUSH_AFTER);
            let flush = tasks.flush_now || self.is_much(&tasks) || (idle && tasks.unflushed > 0);
            let compact = tasks.compact_to.take().is_some();
            if flush || compact || tasks.checkpoint || tasks.stop {
                if flush {
                    tasks.flush_now = false;
                    tasks.unflushed = 0;
                    tasks.unflushed_entries = 0;
                    tasks.last_write = None;
                }
                return (flush, compact, std::mem::take(&mut tasks.checkpoint), tasks.stop);
            }
            let wait = match tasks.last_write {
                Some(at) if tasks.unflushed > 0 => FLUSH_AFTER.saturating_sub(at.elapsed()) + Duration::from_millis(10),
                _ => Duration::from_secs(3600),
            };
            self.called.wait_for(&mut tasks, wait);
        }
    }

    /// Writes the counts of keys down, so that a restart need not count. It must come before rows of history are deleted,
    /// which the counts of an earlier revision would be brought up to date by.
    fn save_counts(&self, store: &Arc<Store>) -> crate::storage::Result<()> {
        let Some(counts) = self.status.read().counts.clone() else { return Ok(()) };
        let mut saved = self.saved.lock();
        let before = saved.take().filter(|(of, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(store)));
        let before = before.map(|(_, before)| before);
        if before.as_ref().is_none_or(|before| before.revision() != counts.revision()) {
            store.write(counts.save(before.as_ref()))?;
        }
        *saved = Some((Arc::downgrade(store), counts));
        Ok(())
    }

    fn flush(&self) -> Result<(), ApplyError> {
        let store = self.store.read().clone();
        self.save_counts(&store)?;
        failpoint::hit("flush-before")?;
        store.flush()?;
        failpoint::hit("flush-after")?;
        let flushed = StateMachine::open(store)?.flushed_index()?;
        // etcd's words for the point from which on its log is not needed.
        info!("snapshot-index" = flushed, "saved snapshot");
        self.inbox.report(Input::Flushed(flushed));
        Ok(())
    }

    /// Deletes what is compacted, step by step; the store keeps where to begin, so a restart goes on where this ended.
    fn compact_all(&self) -> crate::storage::Result<()> {
        let store = self.store.read().clone();
        self.save_counts(&store)?;
        let started = Instant::now();
        let mut cursor = compaction::Cursor::default();
        loop {
            let Some(batch) = compaction::step(&store.view()?, &mut cursor, self.housekeeping.compaction_batch)? else {
                let (revision, took) = (cursor.target(), started.elapsed());
                if self.deleted.send_replace(revision) != revision && revision > 0 {
                    info!(revision, ?took, "finished scheduled compaction");
                }
                metrics::COMPACTION_MS.observe(started.elapsed().as_secs_f64() * 1e3);
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                metrics::COMPACTED_AT.set(now.as_secs() as i64);
                return Ok(());
            };
            metrics::COMPACTED_ROWS.inc_by(batch.writes.len() as u64);
            let step = Instant::now();
            store.write(batch)?;
            metrics::COMPACTION_STEP_MS.observe(step.elapsed().as_secs_f64() * 1e3);
            if self.tasks.lock().stop {
                return Ok(());
            }
            std::thread::sleep(self.housekeeping.compaction_pause);
        }
    }

    fn make_checkpoint(&self) {
        let store = self.store.read().clone();
        if let Err(error) = self.save_counts(&store) {
            return self.fatal.storage(&error);
        }
        let made = snapshot::make(&store, &self.snapshots, self.cluster_id);
        match &made {
            Ok(made) => debug!(index = made.point.index, "checkpoint made"),
            // A full disk may have room again; a corrupt one is not served from, nor handed on.
            Err(ApplyError::Storage(StorageError::Failed { .. })) => {}
            Err(error) => return self.fatal.apply(error),
        }
        if let Err(error) = made.as_ref().map(drop).map_err(ToString::to_string) {
            warn!(error, "no checkpoint could be made");
        }
        self.inbox.report(Input::SnapshotMade(made.ok()));
    }
}
