//! The Raft log in memory: what is written, and beside it what was synced and which writes were not.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use protobuf::Message;
use raft::eraftpb::{Entry, HardState};

use super::faults::{FailedWrite, Faults, failed, outcome};
use crate::storage::log::check_append;
use crate::storage::{InitialState, LogStore, LogWrite, Result, SnapshotPoint};

/// A Raft log in memory. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct MemoryLog {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    written: Held,
    synced: Held,
    /// Writes since the last synced one, in order.
    unsynced: Vec<Change>,
    faults: Faults,
}

#[derive(Debug, Clone, Default)]
struct Held {
    hard_state: HardState,
    snapshot: SnapshotPoint,
    key_space: Option<String>,
    entries: BTreeMap<u64, Entry>,
}

/// An accepted write.
#[derive(Debug, Clone)]
enum Change {
    Write {
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
        reset_to: Option<SnapshotPoint>,
        key_space: Option<String>,
    },
    Trim(SnapshotPoint),
}

impl MemoryLog {
    /// What a restart after a power loss finds: everything up to the last synced write. Every clone of this log fails
    /// from now on.
    #[must_use]
    pub fn crash(&self) -> Self {
        self.crash_keeping(0)
    }

    /// As [`crash`](Self::crash), but the first `unsynced` writes after the last synced one reached the disk too.
    #[must_use]
    pub fn crash_keeping(&self, unsynced: usize) -> Self {
        let mut shared = self.shared.lock();
        shared.faults.crash();
        let mut held = shared.synced.clone();
        for change in shared.unsynced.iter().take(unsynced) {
            held.apply(change);
        }
        let found = Shared { written: held.clone(), synced: held, ..Shared::default() };
        Self { shared: Arc::new(Mutex::new(found)) }
    }

    /// Writes since the last synced one.
    pub fn unsynced_writes(&self) -> usize {
        self.shared.lock().unsynced.len()
    }

    /// Lets the `nth` write from now on fail, 1 being the next; trims count. All after it fail too, until a crash.
    pub fn fail_write(&self, nth: u64, left: FailedWrite) {
        self.shared.lock().faults.plan(nth, left);
    }
}

impl LogStore for MemoryLog {
    fn initial(&self) -> Result<InitialState> {
        let shared = self.shared.lock();
        shared.faults.check("read of the log")?;
        let held = &shared.written;
        Ok(InitialState {
            hard_state: held.hard_state.clone(),
            snapshot: held.snapshot.clone(),
            first_index: held.first(),
            last_index: held.last(),
            key_space: held.key_space.clone(),
        })
    }

    fn write(&self, write: LogWrite<'_>) -> Result<()> {
        let mut shared = self.shared.lock();
        let held = &shared.written;
        let first = write.reset_to.map_or(held.first(), |point| point.index + 1);
        let last = if write.reset_to.is_some() { first - 1 } else { held.last() };
        check_append(write.entries, first, last)?;
        let change = Change::Write {
            entries: write.entries.to_vec(),
            hard_state: write.hard_state.cloned(),
            reset_to: write.reset_to.cloned(),
            key_space: write.key_space.map(str::to_owned),
        };
        shared.commit("write to the log", change, write.sync)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>> {
        let shared = self.shared.lock();
        shared.faults.check("read of the log")?;
        let held = &shared.written;
        if low < held.first() || low >= high {
            return Ok(Vec::new());
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in held.entries.range(low..high).map(|(_, entry)| entry) {
            bytes += u64::from(entry.compute_size());
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn trim(&self, point: &SnapshotPoint) -> Result<()> {
        let mut shared = self.shared.lock();
        if point.index < shared.written.first() {
            return shared.faults.check("trim of the log");
        }
        let last = shared.written.last();
        if point.index > last {
            let cause = format!("up to {}, behind its last entry {last}", point.index);
            return Err(failed("trim of the log", &cause));
        }
        shared.commit("trim of the log", Change::Trim(point.clone()), false)
    }
}

impl Shared {
    fn commit(&mut self, what: &str, change: Change, sync: bool) -> Result<()> {
        let fate = self.faults.write(what)?;
        if fate != Some(FailedWrite::Lost) {
            self.written.apply(&change);
            self.unsynced.push(change);
            if sync {
                for change in self.unsynced.drain(..) {
                    self.synced.apply(&change);
                }
            }
        }
        outcome(what, fate)
    }
}

impl Held {
    fn first(&self) -> u64 {
        self.snapshot.index + 1
    }

    fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.snapshot.index, |(index, _)| *index)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { entries, hard_state, reset_to, key_space } => {
                if let Some(point) = reset_to {
                    self.entries.clear();
                    self.snapshot = point.clone();
                }
                if let Some(lowest) = entries.first() {
                    self.entries.split_off(&lowest.index);
                    self.entries.extend(entries.iter().map(|entry| (entry.index, entry.clone())));
                }
                if let Some(hard_state) = hard_state {
                    self.hard_state = hard_state.clone();
                }
                if let Some(name) = key_space {
                    self.key_space = Some(name.clone());
                }
            }
            Change::Trim(point) => {
                self.entries = self.entries.split_off(&(point.index + 1));
                self.snapshot = point.clone();
            }
        }
    }
}
