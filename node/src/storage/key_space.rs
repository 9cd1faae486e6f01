//! The key space as the model sees it: ordered tables, consistent views, atomic batches.

use std::ops::{Bound, ControlFlow};
use std::path::Path;

use bytes::Bytes;

use super::{Result, StorageError};

/// The tables of the key space. The encodings of keys and values are the model's (`domain/mvcc/encoding.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// User key → newest version. No tombstones of ours: a deleted key is not here.
    Live,
    /// (user key, mod revision descending) → a version that was superseded or deleted.
    History,
    /// (revision) → the keys changed by it, for catch-up, compaction and counts.
    Revision,
    /// Reserved for leases.
    Lease,
    /// Reserved for users and roles.
    Auth,
    /// Membership.
    Members,
    /// Applied index, term, ConfState, revision, compacted revision, format version.
    Meta,
}

impl Table {
    /// All tables, in the order of their column families.
    pub const ALL: [Table; 7] =
        [Table::Live, Table::History, Table::Revision, Table::Lease, Table::Auth, Table::Members, Table::Meta];

    /// The table's name on disk. Never changed.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Live => "live",
            Table::History => "history",
            Table::Revision => "revision",
            Table::Lease => "lease",
            Table::Auth => "auth",
            Table::Members => "members",
            Table::Meta => "meta",
        }
    }
}

/// One change of a [`WriteBatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Table, Bytes, Bytes),
    /// Removes a key; absent is fine.
    Delete(Table, Bytes),
    /// Removes all keys in `[low, high)`; nothing when `low` is not below `high`.
    DeleteRange(Table, Bytes, Bytes),
}

/// Changes that become visible together or not at all, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// The changes; a later one wins.
    pub writes: Vec<Write>,
}

impl WriteBatch {
    /// Adds a put.
    pub fn put(&mut self, table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.push(Write::Put(table, key.into(), value.into()));
    }

    /// Adds a delete.
    pub fn delete(&mut self, table: Table, key: impl Into<Bytes>) {
        self.writes.push(Write::Delete(table, key.into()));
    }

    /// Adds the removal of `[low, high)`.
    pub fn delete_range(&mut self, table: Table, low: impl Into<Bytes>, high: impl Into<Bytes>) {
        self.writes.push(Write::DeleteRange(table, low.into(), high.into()));
    }
}

/// The key space of one Raft group.
pub trait KeySpace: Send + Sync + 'static {
    /// A consistent view of all tables.
    type View: View;

    /// The state as of now; later writes do not show in it.
    fn view(&self) -> Result<Self::View>;

    /// Applies a batch atomically. It is visible at once and durable after the next [`flush`](Self::flush).
    fn write(&self, batch: WriteBatch) -> Result<()>;

    /// Makes all that was written durable, all tables at one point.
    fn flush(&self) -> Result<()>;

    /// Reads one key of the durable state only: what a crash now would leave.
    fn get_flushed(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>>;

    /// Writes a durable copy of the current state into `dir`, in milliseconds (hard links). `dir` must not exist, the
    /// directory above it must. Flushes on the way.
    fn checkpoint(&self, dir: &Path) -> Result<()>;

    /// Rewrites the files without what was deleted or replaced, so that its space is given back. Takes as long as the store
    /// is large; reads and writes go on meanwhile.
    ///
    /// # Errors
    /// `Failed` when the files could not be rewritten, because the disk is full for instance. The data are as before.
    fn compact_files(&self) -> Result<()>;

    /// Bytes held (on disk, or in memory until the next flush), and how many of them are live as far as the engine can
    /// tell; the second is never above the first.
    fn size_bytes(&self) -> (u64, u64);

    /// Why the engine takes no writes, when it holds them back after its own work on the files failed. A writer that waits
    /// then waits for ever, and is told nothing. A moment of this may be a coincidence; minutes of it are none.
    fn refuses_writes(&self) -> Option<StorageError> {
        None
    }
}

/// What a scan calls with each key and its value; `Break` ends the scan.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A consistent read-only view. Owned: it keeps what it needs of the store alive.
pub trait View: Send + 'static {
    /// One key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>>;

    /// Many keys of one table, in the order asked.
    fn multi_get(&self, table: Table, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>>;

    /// Visits the keys between the bounds in byte order (or the reverse of it) until `visit` breaks.
    fn scan(&self, table: Table, bounds: (Bound<&[u8]>, Bound<&[u8]>), reverse: bool, visit: Visit<'_>) -> Result<()>;
}
