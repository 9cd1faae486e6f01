//! The log as Raft reads it: recent entries from memory, older ones through the [`LogStore`]. It writes nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError as RaftStorageError};

use crate::storage::{LogStore, SnapshotPoint, StorageError};

/// Bytes of recent entries kept in memory. A follower that is further behind is served from the store.
const CACHE_BYTES: usize = 32 << 20;

/// Raft's view of the log. `store` must already hold what [`append`](Self::append) and the like are told.
pub struct Tail<L> {
    store: Arc<L>,
    hard_state: HardState,
    point: SnapshotPoint,
    conf_state: ConfState,
    last_index: u64,
    /// Contiguous, ending at `last_index` when not empty.
    recent: VecDeque<Entry>,
    recent_bytes: usize,
    /// A snapshot that can be sent now.
    available: Option<SnapshotPoint>,
    /// Raft asked for a snapshot that was not there.
    wanted: Cell<bool>,
    /// The first read of the store that failed.
    failure: RefCell<Option<StorageError>>,
}

impl<L: LogStore> Tail<L> {
    /// A view of what `store` holds. `conf_state` is that of the applied state, which Raft starts with.
    pub fn new(store: Arc<L>, conf_state: ConfState) -> crate::storage::Result<Self> {
        let initial = store.initial()?;
        Ok(Self {
            store,
            hard_state: initial.hard_state,
            last_index: initial.last_index.max(initial.snapshot.index),
            point: initial.snapshot,
            conf_state,
            recent: VecDeque::new(),
            recent_bytes: 0,
            available: None,
            wanted: Cell::new(false),
            failure: RefCell::new(None),
        })
    }

    /// The point the log begins after.
    pub fn point(&self) -> &SnapshotPoint {
        &self.point
    }

    /// Notes entries that the store has been given; those at or above the first replace what was there.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.recent.back().is_some_and(|entry| entry.index >= first.index) {
            let dropped = self.recent.pop_back().map_or(0, |entry| weight(&entry));
            self.recent_bytes -= dropped;
        }
        if self.recent.back().is_some_and(|entry| entry.index + 1 != first.index) {
            self.recent.clear();
            self.recent_bytes = 0;
        }
        for entry in entries {
            self.recent_bytes += weight(entry);
            self.last_index = entry.index;
            self.recent.push_back(entry.clone());
        }
        while self.recent_bytes > CACHE_BYTES && self.recent.len() > 1 {
            let dropped = self.recent.pop_front().map_or(0, |entry| weight(&entry));
            self.recent_bytes -= dropped;
        }
    }

    /// Notes the hard state that the store has been given.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Notes that the store was reset to a snapshot point.
    pub fn reset(&mut self, point: SnapshotPoint) {
        self.last_index = point.index;
        self.recent.clear();
        self.recent_bytes = 0;
        self.available = None;
        self.point = point;
    }

    /// Notes that entries up to and including `point.index` are gone from the store.
    pub fn trim(&mut self, point: SnapshotPoint) {
        while self.recent.front().is_some_and(|entry| entry.index <= point.index) {
            let dropped = self.recent.pop_front().map_or(0, |entry| weight(&entry));
            self.recent_bytes -= dropped;
        }
        self.point = point;
    }

    /// Offers a snapshot to Raft, or withdraws it.
    pub fn offer(&mut self, snapshot: Option<SnapshotPoint>) {
        self.available = snapshot;
    }

    /// Whether Raft asked for a snapshot since the last call.
    pub fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    /// A read of the store that failed, if one did. Raft takes it for entries that are not there, or panics: the caller
    /// must end.
    pub fn take_failure(&self) -> Option<StorageError> {
        self.failure.take()
    }

    /// A failing store has no place in Raft's errors.
    fn failed(&self, error: StorageError) -> raft::Error {
        self.failure.borrow_mut().get_or_insert_with(|| error.clone());
        raft::Error::Store(RaftStorageError::Other(Box::new(error)))
    }

    fn recent_from(&self, low: u64, high: u64, max_bytes: u64) -> Option<Vec<Entry>> {
        let first = self.recent.front()?.index;
        if low < first || high > self.last_index + 1 {
            return None;
        }
        let mut bytes = 0;
        let range = (low - first) as usize..(high - first) as usize;
        let within = |entry: &&Entry| {
            let counted = bytes;
            bytes += weight(entry) as u64;
            counted == 0 || bytes <= max_bytes
        };
        Some(self.recent.range(range).take_while(within).cloned().collect())
    }
}

/// What an entry counts in memory.
fn weight(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 48
}

impl<L: LogStore> raft::Storage for Tail<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.point.index {
            return Err(raft::Error::Store(RaftStorageError::Compacted));
        }
        if high > self.last_index + 1 {
            return Err(raft::Error::Store(RaftStorageError::Unavailable));
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        match self.recent_from(low, high, max_bytes) {
            Some(entries) => Ok(entries),
            None => self.store.entries(low, high, max_bytes).map_err(|error| self.failed(error)),
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.point.index {
            return Ok(self.point.term);
        }
        if index < self.point.index {
            return Err(raft::Error::Store(RaftStorageError::Compacted));
        }
        if index > self.last_index {
            return Err(raft::Error::Store(RaftStorageError::Unavailable));
        }
        let first = self.recent.front().map_or(u64::MAX, |entry| entry.index);
        if let Some(entry) = index.checked_sub(first).and_then(|offset| self.recent.get(offset as usize)) {
            return Ok(entry.term);
        }
        let entries = self.store.entries(index, index + 1, u64::MAX).map_err(|error| self.failed(error))?;
        entries.first().map(|entry| entry.term).ok_or(raft::Error::Store(RaftStorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.point.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // A snapshot that ends before the log begins would leave a gap that no entry can fill; one from before the peer
        // was added is refused by it for ever, because it is not in its configuration.
        let lists = |state: &ConfState| state.voters.contains(&to) || state.learners.contains(&to);
        let usable =
            |point: &&SnapshotPoint| point.index >= request_index.max(self.point.index) && lists(&point.conf_state);
        let Some(point) = self.available.as_ref().filter(usable) else {
            self.wanted.set(true);
            return Err(raft::Error::Store(RaftStorageError::SnapshotTemporarilyUnavailable));
        };
        Ok(metadata_only(point))
    }
}

/// The snapshot message's body: the data travels as files beside it.
pub fn metadata_only(point: &SnapshotPoint) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = point.index;
    metadata.term = point.term;
    metadata.set_conf_state(point.conf_state.clone());
    snapshot
}

#[cfg(test)]
mod tests {
    use raft::Storage as _;

    use super::*;
    use crate::storage::LogWrite;
    use crate::storage::memory::MemoryLog;

    /// Raft would send a snapshot instead of entries that cannot be read, and go on.
    #[test]
    fn a_read_of_the_store_that_fails_is_remembered_for_the_caller() {
        let log = MemoryLog::default();
        let entries: Vec<Entry> = (1..=3).map(|index| Entry { index, term: 1, ..Entry::default() }).collect();
        log.write(LogWrite { entries: &entries, sync: true, ..LogWrite::default() }).unwrap();
        let tail = Tail::new(Arc::new(log.clone()), ConfState::default()).unwrap();
        assert_eq!(tail.term(2).unwrap(), 1);
        assert!(tail.take_failure().is_none());
        // Every clone of a log that lost power fails.
        let _rest = log.crash();
        assert!(tail.term(2).is_err());
        assert!(tail.entries(1, 4, None, GetEntriesContext::empty(false)).is_err());
        assert!(matches!(tail.take_failure(), Some(StorageError::Failed { .. })));
        assert!(tail.take_failure().is_none());
    }
}
