//! The Raft log on RocksDB: a database of its own, whose WAL is synced once per write that asks for it.
//!
//! Two column families. `entries` holds the entries by big-endian index and nothing else, so that its table files are
//! slices of the log: they move down without being rewritten and are dropped as whole files. `state` holds three
//! records: hard state, snapshot point, and the name of the key space.
//!
//! Where the log begins and ends is kept in memory, and every read is bounded by it. So trimming writes no tombstone:
//! it moves the snapshot point, and what lies below is rubbish that no read meets and that goes with its files.
//!
//! Invariants: no entry on disk is behind the last one; an index within the bounds held in memory is on disk at every
//! moment, so bounds shrink before a write and grow after it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use protobuf::Message;
use raft::eraftpb::{Entry, HardState, SnapshotMetadata};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DEFAULT_COLUMN_FAMILY_NAME,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::synced::Synced;
use super::{Numbers, WAL_RECOVERY, bounded_options, may_create, numbers, storage_error};
use crate::storage::log::check_append;
use crate::storage::{InitialState, LogStore, LogWrite, Result, SnapshotPoint, StorageError};

/// Bytes of a memtable, after which a new WAL file begins. Most entries are trimmed while they are in one of these.
const MEMTABLE_BYTES: usize = 16 << 20;

/// Memtables that wait for their flush before appends are slowed.
const MAX_MEMTABLES: i32 = 3;

/// Only a peer that lags far behind makes us read what is not in the driver's tail.
const BLOCK_CACHE_BYTES: usize = 4 << 20;

/// Column families and keys. Never changed.
const ENTRIES: &str = "entries";
const STATE: &str = "state";
const HARD_STATE: &[u8] = b"hard_state";
const SNAPSHOT_POINT: &[u8] = b"snapshot_point";
const KEY_SPACE: &[u8] = b"key_space";

/// The log of one Raft group in one directory.
pub struct RocksLog {
    database: DB,
    directory: PathBuf,
    synced: Synced,
    held: RwLock<Held>,
}

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// First index held, the snapshot point's + 1.
    first: u64,
    /// Last index held; `first` - 1 when there is none.
    last: u64,
    /// What `first` is at least after a power loss. Files are dropped below it only: those below a `first` that a power
    /// loss takes back would be a gap.
    synced_first: u64,
}

impl RocksLog {
    /// Opens the log in `directory`, creating it when the directory is absent or empty, and reads every entry once.
    ///
    /// # Errors
    /// `Failed` when the disk refuses or another process has it open; `Corrupt` when bytes are damaged, an entry between
    /// the snapshot point and the last one is missing, or a synced write is. An unfinished write at the very end is cut
    /// off.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_with(bounded_options(), directory)
    }

    fn open_with(mut options: Options, directory: &Path) -> Result<Self> {
        options.create_if_missing(may_create(directory)?);
        options.set_wal_recovery_mode(WAL_RECOVERY);
        options.set_recycle_log_file_num(0);
        options.set_track_and_verify_wals_in_manifest(true);
        let database = DB::open_cf_descriptors(&options, directory, families())
            .map_err(|error| storage_error("open of log", directory, &error))?;
        let nothing = Held { first: 1, last: 0, synced_first: 1 };
        let synced = Synced::open(directory, database.latest_sequence_number())?;
        let log = Self { database, directory: directory.to_owned(), synced, held: RwLock::new(nothing) };
        let first = log.snapshot_point()?.index + 1;
        let last = log.last_index(first)?;
        *log.held.write() = Held { first, last, synced_first: first };
        Ok(log)
    }

    /// Reads all entries from `first` on, and returns the index of the last one.
    fn last_index(&self, first: u64) -> Result<u64> {
        let mut last = first - 1;
        self.visit(first..u64::MAX, false, &mut |entry, _| {
            last = entry.index;
            true
        })?;
        Ok(last)
    }

    /// Hands out the entries of `range` with their encoded size, until `visit` says false or there are no more.
    fn visit(&self, range: Range<u64>, cache: bool, visit: &mut dyn FnMut(Entry, u64) -> bool) -> Result<()> {
        let rows = self.rows(&range, cache)?;
        self.decode(rows, range.start, visit)
    }

    /// An iterator over `range`. It shows the log as of now, however it changes later.
    fn rows(&self, range: &Range<u64>, cache: bool) -> Result<Rows<'_>> {
        let mut options = ReadOptions::default();
        options.fill_cache(cache);
        options.set_iterate_lower_bound(range.start.to_be_bytes());
        options.set_iterate_upper_bound(range.end.to_be_bytes());
        let mut rows = self.database.raw_iterator_cf_opt(self.family(ENTRIES)?, options);
        rows.seek_to_first();
        Ok(rows)
    }

    fn decode(&self, mut rows: Rows<'_>, first: u64, visit: &mut dyn FnMut(Entry, u64) -> bool) -> Result<()> {
        let mut expected = first;
        while let Some((key, value)) = rows.item() {
            if key != expected.to_be_bytes() {
                return Err(self.corrupt(&format!("entry {expected} is missing before key {key:02x?}")));
            }
            let entry = Entry::parse_from_bytes(value)
                .map_err(|error| self.corrupt(&format!("entry {expected} cannot be decoded: {error}")))?;
            if entry.index != expected {
                return Err(self.corrupt(&format!("entry {expected} says it is {}", entry.index)));
            }
            if !visit(entry, value.len() as u64) {
                return Ok(());
            }
            expected += 1;
            rows.next();
        }
        rows.status().map_err(|error| storage_error("read of entries in log", &self.directory, &error))
    }

    fn snapshot_point(&self) -> Result<SnapshotPoint> {
        let mut metadata: SnapshotMetadata = self.record(SNAPSHOT_POINT)?;
        Ok(SnapshotPoint { index: metadata.index, term: metadata.term, conf_state: metadata.take_conf_state() })
    }

    /// A record of `state`, or its default when it was never written.
    fn record<M: Message>(&self, key: &[u8]) -> Result<M> {
        let bytes = self.record_bytes(key)?.unwrap_or_default();
        M::parse_from_bytes(&bytes).map_err(|error| self.corrupt(&format!("{}: {error}", key.escape_ascii())))
    }

    fn record_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.database
            .get_cf(self.family(STATE)?, key)
            .map_err(|error| storage_error("read of state in log", &self.directory, &error))
    }

    /// Writes a batch during which the log holds no more than `meanwhile`, and `afterwards` once it is written.
    fn commit(&self, batch: WriteBatch, sync: bool, meanwhile: Held, mut afterwards: Held) -> Result<()> {
        *self.held.write() = meanwhile;
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.database
            .write_opt(batch, &options)
            .map_err(|error| storage_error("write to log", &self.directory, &error))?;
        if sync {
            self.synced.note(self.database.latest_sequence_number())?;
        }
        afterwards.synced_first = if sync { afterwards.first } else { afterwards.synced_first.min(afterwards.first) };
        *self.held.write() = afterwards;
        Ok(())
    }

    fn put_state(&self, batch: &mut WriteBatch, key: &[u8], message: &impl Message) -> Result<()> {
        let bytes = encode(message)?;
        batch.put_cf(self.family(STATE)?, key, bytes);
        Ok(())
    }

    fn put_snapshot_point(&self, batch: &mut WriteBatch, point: &SnapshotPoint) -> Result<()> {
        let mut metadata = SnapshotMetadata { index: point.index, term: point.term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(point.conf_state.clone());
        self.put_state(batch, SNAPSHOT_POINT, &metadata)
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily> {
        self.database.cf_handle(name).ok_or_else(|| self.corrupt(&format!("{name} is missing")))
    }

    /// What RocksDB says of itself here.
    pub fn numbers(&self) -> Numbers {
        let family = |name| Some((name, self.family(name).ok()?));
        numbers::read(&self.database, [ENTRIES, STATE].into_iter().filter_map(family))
    }

    fn corrupt(&self, what: &str) -> StorageError {
        StorageError::Corrupt { what: format!("log {}: {what}", self.directory.display()) }
    }
}

impl LogStore for RocksLog {
    fn initial(&self) -> Result<InitialState> {
        let hard_state: HardState = self.record(HARD_STATE)?;
        let key_space = self
            .record_bytes(KEY_SPACE)?
            .map(String::from_utf8)
            .transpose()
            .map_err(|error| self.corrupt(&format!("key_space: {error}")))?;
        let held = *self.held.read();
        Ok(InitialState {
            hard_state,
            snapshot: self.snapshot_point()?,
            first_index: held.first,
            last_index: held.last,
            key_space,
        })
    }

    fn write(&self, write: LogWrite<'_>) -> Result<()> {
        let held = *self.held.read();
        let begin = write.reset_to.map_or(held.first, |point| point.index + 1);
        let kept = if write.reset_to.is_some() { begin - 1 } else { held.last };
        check_append(write.entries, begin, kept)?;

        let mut batch = WriteBatch::default();
        let mut meanwhile = Held { first: begin, last: kept, ..held };
        let mut afterwards = meanwhile;
        if let Some(point) = write.reset_to {
            self.put_snapshot_point(&mut batch, point)?;
        }
        if let (Some(lowest), Some(highest)) = (write.entries.first(), write.entries.last()) {
            meanwhile.last = kept.min(lowest.index - 1);
            afterwards.last = highest.index;
        }
        if held.last > afterwards.last {
            let rest = ((afterwards.last + 1).to_be_bytes(), (held.last + 1).to_be_bytes());
            batch.delete_range_cf(self.family(ENTRIES)?, rest.0, rest.1);
        }
        for entry in write.entries {
            batch.put_cf(self.family(ENTRIES)?, entry.index.to_be_bytes(), encode(entry)?);
        }
        if let Some(hard_state) = write.hard_state {
            self.put_state(&mut batch, HARD_STATE, hard_state)?;
        }
        if let Some(name) = write.key_space {
            batch.put_cf(self.family(STATE)?, KEY_SPACE, name);
        }
        self.commit(batch, write.sync, meanwhile, afterwards)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>> {
        let rows = {
            // The writer waits while the iterator is made, not while it is read: it shows the log as of now.
            let held = self.held.read();
            let range = low..high.min(held.last + 1);
            if low < held.first || range.is_empty() {
                return Ok(Vec::new());
            }
            self.rows(&range, true)?
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        self.decode(rows, low, &mut |entry, size| {
            bytes += size;
            let fits = entries.is_empty() || bytes <= max_bytes;
            if fits {
                entries.push(entry);
            }
            fits
        })?;
        Ok(entries)
    }

    fn trim(&self, point: &SnapshotPoint) -> Result<()> {
        let held = *self.held.read();
        if point.index < held.first {
            return Ok(());
        }
        if point.index > held.last {
            return Err(StorageError::Failed {
                what: format!("trim of log {}", self.directory.display()),
                cause: format!("up to {}, behind its last entry {}", point.index, held.last),
            });
        }
        let mut batch = WriteBatch::default();
        self.put_snapshot_point(&mut batch, point)?;
        let trimmed = Held { first: point.index + 1, ..held };
        self.commit(batch, false, trimmed, trimmed)?;
        // Whole files only, and both ends included. The rest of the rubbish goes with a later trim.
        let rubbish = (0u64.to_be_bytes(), (held.synced_first - 1).to_be_bytes());
        self.database
            .delete_file_in_range_cf(self.family(ENTRIES)?, rubbish.0, rubbish.1)
            .map_err(|error| storage_error("drop of trimmed files of log", &self.directory, &error))
    }

    fn refuses_writes(&self) -> Option<StorageError> {
        super::refuses_writes(&self.database, "log", &self.directory)
    }
}

type Rows<'a> = rocksdb::DBRawIterator<'a>;

/// The bytes on our own disk. Peers get the same encoding, by other code.
fn encode(message: &impl Message) -> Result<Vec<u8>> {
    message
        .write_to_bytes()
        .map_err(|error| StorageError::Failed { what: "encoding of a log record".to_owned(), cause: error.to_string() })
}

fn families() -> [ColumnFamilyDescriptor; 3] {
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    [DEFAULT_COLUMN_FAMILY_NAME, ENTRIES, STATE].map(|name| {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&cache);
        let mut family = Options::default();
        family.set_block_based_table_factory(&blocks);
        family.set_write_buffer_size(MEMTABLE_BYTES);
        family.set_max_write_buffer_number(MAX_MEMTABLES);
        family.set_arena_block_size(super::ARENA_BLOCK_BYTES);
        // Written once and soon dropped: not worth the time of compressing.
        family.set_compression_type(DBCompressionType::None);
        ColumnFamilyDescriptor::new(name, family)
    })
}

#[cfg(test)]
mod tests;
