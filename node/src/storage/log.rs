//! The Raft log as the driver sees it: entries, hard state, one snapshot point, and the name of the key space in use.

use raft::eraftpb::{ConfState, Entry, HardState};

use super::{Result, StorageError};

/// The point the log begins after: everything up to `index` is in the key space or a snapshot.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SnapshotPoint {
    /// Raft index; 0 only in a log that was never initialised.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The configuration at that index.
    pub conf_state: ConfState,
}

/// What a log store knows when it is opened.
#[derive(Debug, Clone, Default)]
pub struct InitialState {
    /// Vote, term, commit. Commit may lag behind what was applied.
    pub hard_state: HardState,
    /// Where the log begins.
    pub snapshot: SnapshotPoint,
    /// First and last index held; last < first when the log is empty.
    pub first_index: u64,
    /// See `first_index`.
    pub last_index: u64,
    /// Directory name of the key space that belongs to this log.
    pub key_space: Option<String>,
}

/// One atomic write of the log, synced when `sync` says so.
#[derive(Debug, Default)]
pub struct LogWrite<'a> {
    /// Appended; an entry at an index that exists replaces it and removes all behind it.
    pub entries: &'a [Entry],
    /// New hard state.
    pub hard_state: Option<&'a HardState>,
    /// Replaces the snapshot point and clears the whole log before `entries` are appended.
    pub reset_to: Option<&'a SnapshotPoint>,
    /// Names the key space that belongs to the log from now on; the switch is atomic with the rest.
    pub key_space: Option<&'a str>,
    /// Whether to wait until it is on the disk. A hard state with nothing but a new commit need not.
    pub sync: bool,
}

/// The log of one Raft group. One thread writes; others may read.
pub trait LogStore: Send + Sync + 'static {
    /// Reads what the disk holds.
    fn initial(&self) -> Result<InitialState>;

    /// Writes atomically. The log stays without gaps: entries that do not follow one another, that begin above the last
    /// index + 1 or that lie at or below the snapshot point are `Failed`, and nothing is written.
    fn write(&self, write: LogWrite<'_>) -> Result<()>;

    /// Entries in `[low, high)`, at least one, stopping before `max_bytes` (of encoded entries) is exceeded. What lies
    /// behind the last entry is left out; empty only when the log does not hold `low` (trimmed, or not there yet).
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>>;

    /// Drops entries below `index`, and moves the snapshot point to `point` (index - 1). Not synced: a crash may bring
    /// them back, which does no harm. Nothing happens when the log begins there or later already; a point behind the
    /// last entry is `Failed`.
    fn trim(&self, point: &SnapshotPoint) -> Result<()>;

    /// As [`KeySpace::refuses_writes`](super::KeySpace::refuses_writes).
    fn refuses_writes(&self) -> Option<StorageError> {
        None
    }
}

/// The engines' common check before an append: entries follow one another, begin at or above `first`, and leave no gap
/// behind `last`.
pub(super) fn check_append(entries: &[Entry], first: u64, last: u64) -> Result<()> {
    let refused = |cause: String| Err(StorageError::Failed { what: "append to the log".to_owned(), cause });
    let Some(lowest) = entries.first().map(|entry| entry.index) else { return Ok(()) };
    if lowest < first || lowest > last + 1 {
        return refused(format!("entry {lowest} does not fit a log from {first} to {last}"));
    }
    match entries.windows(2).find(|pair| pair[0].index + 1 != pair[1].index) {
        Some(pair) => refused(format!("entry {} follows {}", pair[1].index, pair[0].index)),
        None => Ok(()),
    }
}
