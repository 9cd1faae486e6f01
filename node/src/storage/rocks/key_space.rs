//! The key space on RocksDB: one column family per table, no WAL, and flushes that take all tables at one point.
//!
//! A crash loses what was written since the last flush, whole batches and always the newest; the Raft log brings it
//! back. That needs two properties of RocksDB together: the WAL is off for every write, and `atomic_flush` is on, so
//! that no table on disk is ever ahead of the applied index that lies beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, DEFAULT_COLUMN_FAMILY_NAME, FlushOptions, Options, ReadOptions, ReadTier, properties,
};

use super::{Numbers, RocksView, background_errors, bounded_options, may_create, numbers, storage_error};
use crate::storage::key_space::Write;
use crate::storage::{KeySpace, Result, StorageError, Table, WriteBatch};

/// A table file is compacted early when this many of so many neighbouring entries in it are deletions: seeks over
/// deleted ranges crawl otherwise, and the API server's events and leases are exactly this load.
const DELETION_WINDOW: usize = 128;
const DELETION_TRIGGER: usize = 50;

/// Or when this share of all its entries are deletions.
const DELETION_RATIO: f64 = 0.5;

/// Bits of the bloom filter per key of `live`: one in a hundred reads of an absent key goes to a data block.
const BLOOM_BITS: f64 = 10.0;

/// Memtables of one table that wait for their flush before writes are slowed.
const MAX_MEMTABLES: i32 = 4;

/// What a key space may take of the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpaceOptions {
    /// Bytes of the block cache that all tables share; index and filter blocks count too.
    pub block_cache_bytes: usize,
    /// Bytes that the memtables of all tables hold together before they are flushed. Memory that waits for its flush
    /// comes on top while the disk is slow.
    pub write_buffer_bytes: usize,
}

impl Default for KeySpaceOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 32 << 20, write_buffer_bytes: 32 << 20 }
    }
}

/// The key space of one Raft group in one directory. Views keep the database open after this is dropped.
pub struct RocksKeySpace {
    tables: Arc<Tables>,
}

impl RocksKeySpace {
    /// Opens the key space in `directory`, creating it when the directory is absent or empty.
    ///
    /// # Errors
    /// `Failed` when the disk refuses or another process has it open, `Corrupt` when it is not what we left.
    pub fn open(directory: &Path, options: &KeySpaceOptions) -> Result<Self> {
        let mut database = bounded_options();
        database.create_if_missing(may_create(directory)?);
        database.set_db_write_buffer_size(options.write_buffer_bytes);
        let opened = DB::open_cf_descriptors(&database, directory, families(options));
        Self::opened(opened, directory)
    }

    /// Opens a key space that nobody writes, a checkpoint for instance, without changing a file of it. Its writes fail.
    ///
    /// # Errors
    /// `Failed` when there is none, `Corrupt` when it is not what we left.
    pub fn open_read_only(directory: &Path) -> Result<Self> {
        // The binding creates the directory otherwise, even for reading.
        if !directory.join("CURRENT").exists() {
            return Err(StorageError::Failed {
                what: format!("open of key space {}", directory.display()),
                cause: "there is none".to_owned(),
            });
        }
        let families = families(&KeySpaceOptions::default());
        let opened = DB::open_cf_descriptors_read_only(&bounded_options(), directory, families, false);
        Self::opened(opened, directory)
    }

    fn opened(opened: Result<DB, rocksdb::Error>, directory: &Path) -> Result<Self> {
        let database = opened.map_err(|error| storage_error("open of key space", directory, &error))?;
        let directory = Directory { path: directory.to_owned(), retired: AtomicBool::new(false) };
        let tables = Tables { database, directory };
        for table in Table::ALL {
            tables.family(table)?;
        }
        Ok(Self { tables: Arc::new(tables) })
    }

    /// Removes the directory once this and its views are gone. Until then it is whole: RocksDB opens most of its files when
    /// they are first read, and a flush or a compaction makes new ones.
    pub fn retire(&self) {
        self.tables.directory.retired.store(true, Ordering::SeqCst);
    }

    /// What RocksDB says of itself here.
    pub fn numbers(&self) -> Numbers {
        let family = |table: Table| Some((table.name(), self.tables.family(table).ok()?));
        numbers::read(&self.tables.database, Table::ALL.into_iter().filter_map(family))
    }

    /// Sum of an integer property over all tables; one that RocksDB does not know counts as 0.
    fn sum_of(&self, property: &properties::PropName) -> u64 {
        let value = |table| {
            let family = self.tables.family(table).ok()?;
            self.tables.database.property_int_value_cf(family, property).ok()?
        };
        Table::ALL.into_iter().filter_map(value).sum()
    }
}

impl KeySpace for RocksKeySpace {
    type View = RocksView;

    fn view(&self) -> Result<RocksView> {
        Ok(RocksView::new(Arc::clone(&self.tables)))
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut writes = rocksdb::WriteBatch::new();
        for write in &batch.writes {
            match write {
                Write::Put(table, key, value) => writes.put_cf(self.tables.family(*table)?, key, value),
                Write::Delete(table, key) => writes.delete_cf(self.tables.family(*table)?, key),
                Write::DeleteRange(table, low, high) if low < high => {
                    writes.delete_range_cf(self.tables.family(*table)?, low, high);
                }
                Write::DeleteRange(..) => {}
            }
        }
        self.tables
            .database
            .write_without_wal(writes)
            .map_err(|error| storage_error("write to key space", &self.tables.directory.path, &error))
    }

    fn flush(&self) -> Result<()> {
        let families = Table::ALL.into_iter().map(|table| self.tables.family(table)).collect::<Result<Vec<_>>>()?;
        self.tables
            .database
            .flush_cfs_opt(&families, &FlushOptions::default())
            .map_err(|error| storage_error("flush of key space", &self.tables.directory.path, &error))
    }

    fn get_flushed(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        self.tables.get(table, key, &options)
    }

    fn checkpoint(&self, directory: &Path) -> Result<()> {
        // Log size 0 makes RocksDB flush first; with any other value it would leave out what has no WAL.
        Checkpoint::new(&self.tables.database)
            .and_then(|checkpoint| checkpoint.create_checkpoint_with_log_size(directory, 0))
            .map_err(|error| storage_error("checkpoint of key space into", directory, &error))
    }

    fn compact_files(&self) -> Result<()> {
        self.flush()?;
        // RocksDB's interface in C keeps what a compaction came to for itself.
        let failed_before = background_errors(&self.tables.database);
        let mut options = CompactOptions::default();
        // Without this RocksDB would keep its own compactions waiting for ours.
        options.set_exclusive_manual_compaction(false);
        // Files of the lowest level are rewritten too: what was deleted lies there.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        for table in Table::ALL {
            let family = self.tables.family(table)?;
            self.tables.database.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        match background_errors(&self.tables.database) - failed_before {
            0 => Ok(()),
            failures => Err(StorageError::Failed {
                what: format!("rewrite the files of key space {}", self.tables.directory.path.display()),
                cause: format!("flushes or compactions failed ({failures} times): is the disk full, or damaged?"),
            }),
        }
    }

    fn size_bytes(&self) -> (u64, u64) {
        let in_memory = self.sum_of(properties::CUR_SIZE_ALL_MEM_TABLES);
        let held = self.sum_of(properties::TOTAL_SST_FILES_SIZE) + in_memory;
        let live = self.sum_of(properties::ESTIMATE_LIVE_DATA_SIZE) + in_memory;
        (held, live.min(held))
    }

    fn refuses_writes(&self) -> Option<StorageError> {
        super::refuses_writes(&self.tables.database, "key space", &self.tables.directory.path)
    }
}

/// The open database and its directory, shared by the key space and its views.
pub(super) struct Tables {
    database: DB,
    /// Declared after `database`: fields are dropped in this order, and it may go only when that is closed.
    directory: Directory,
}

/// A directory that goes with its database, if that was retired.
struct Directory {
    path: PathBuf,
    retired: AtomicBool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.retired.load(Ordering::SeqCst)
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            let directory = self.path.display();
            tracing::warn!(%directory, %error, "a key space that was replaced goes only at the next start");
        }
    }
}

impl Tables {
    pub(super) fn database(&self) -> &DB {
        &self.database
    }

    pub(super) fn family(&self, table: Table) -> Result<&ColumnFamily> {
        self.database.cf_handle(table.name()).ok_or_else(|| StorageError::Corrupt {
            what: format!("{}: table {} is missing", self.directory.path.display(), table.name()),
        })
    }

    pub(super) fn get(&self, table: Table, key: &[u8], options: &ReadOptions) -> Result<Option<Bytes>> {
        self.database
            .get_pinned_cf_opt(self.family(table)?, key, options)
            .map(|found| found.map(|slice| Bytes::copy_from_slice(&slice)))
            .map_err(|error| self.error("read of table", table, &error))
    }

    pub(super) fn error(&self, action: &str, table: Table, error: &rocksdb::Error) -> StorageError {
        storage_error(&format!("{action} {} of", table.name()), &self.directory.path, error)
    }
}

/// The tables, and RocksDB's `default` column family, which must exist and stays empty.
fn families(options: &KeySpaceOptions) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let mut families = vec![ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, family(options, &cache))];
    for table in Table::ALL {
        let mut of_table = family(options, &cache);
        if table == Table::Live {
            let mut blocks = block_options(&cache);
            blocks.set_bloom_filter(BLOOM_BITS, false);
            blocks.set_optimize_filters_for_memory(true);
            of_table.set_block_based_table_factory(&blocks);
        }
        families.push(ColumnFamilyDescriptor::new(table.name(), of_table));
    }
    families
}

fn family(options: &KeySpaceOptions, cache: &Cache) -> Options {
    let mut family = Options::default();
    // The bound over all tables is reached before that of one; one table may fill it alone.
    family.set_write_buffer_size(options.write_buffer_bytes);
    family.set_max_write_buffer_number(MAX_MEMTABLES);
    family.set_arena_block_size(super::ARENA_BLOCK_BYTES);
    family.set_compression_type(DBCompressionType::Lz4);
    family.add_compact_on_deletion_collector_factory(DELETION_WINDOW, DELETION_TRIGGER, DELETION_RATIO);
    family.set_block_based_table_factory(&block_options(cache));
    family
}

/// Index and filter blocks go through the cache, so that its size bounds them too.
fn block_options(cache: &Cache) -> BlockBasedOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks
}

#[cfg(test)]
mod tests {
    use std::ops::{Bound, ControlFlow};

    use super::*;
    use crate::storage::View;

    /// More table files than RocksDB opens at once with the database.
    const ROUNDS: u8 = 3;

    fn write(store: &RocksKeySpace, key: u8) {
        let mut batch = WriteBatch::default();
        Table::ALL.into_iter().for_each(|table| batch.put(table, vec![key], vec![key]));
        store.write(batch).unwrap();
    }

    #[test]
    fn files_that_cannot_be_rewritten_are_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = RocksKeySpace::open(directory.path(), &KeySpaceOptions::default()).unwrap();
        write(&store, 1);
        store.compact_files().unwrap();
        write(&store, 2);
        store.flush().unwrap();
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sst") {
                std::fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
            }
        }
        assert!(matches!(store.compact_files(), Err(StorageError::Failed { .. })));
    }

    #[test]
    fn the_numbers_tell_where_the_bytes_are() {
        let directory = tempfile::tempdir().unwrap();
        let store = RocksKeySpace::open(directory.path(), &KeySpaceOptions::default()).unwrap();
        let of_live = || {
            let numbers = store.numbers();
            assert_eq!(numbers.tables.len(), Table::ALL.len());
            let live = numbers.tables.iter().find(|numbers| numbers.table == "live").unwrap().clone();
            (live, numbers.block_cache_bytes)
        };
        let empty = of_live().0;
        assert_eq!((empty.level0_files, empty.sst_bytes), (0, 0));
        let mut batch = WriteBatch::default();
        // Each in a block of its own, and small enough for the cache.
        (0..16).for_each(|key| batch.put(Table::Live, vec![key], vec![key; 64 << 10]));
        store.write(batch).unwrap();
        assert!(of_live().0.memtable_bytes > 1 << 20, "{empty:?}");
        store.flush().unwrap();
        let (flushed, cached) = of_live();
        assert_eq!(flushed.level0_files, 1);
        assert!(flushed.sst_bytes > 0 && flushed.memtable_bytes < 1 << 20, "{flushed:?}");
        assert!(store.view().unwrap().get(Table::Live, &[7]).unwrap().is_some());
        assert!(of_live().1 >= cached + (64 << 10), "the block that was read is in the cache");
    }

    #[test]
    fn a_retired_key_space_is_whole_until_its_last_reader_is_gone() {
        let above = tempfile::tempdir().unwrap();
        let directory = above.path().join("old");
        let store = RocksKeySpace::open(&directory, &KeySpaceOptions::default()).unwrap();
        for round in 0..ROUNDS {
            write(&store, round);
            store.flush().unwrap();
        }
        drop(store);
        let is_table = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().path().extension().is_some_and(|extension| extension == "sst")
        };
        assert!(std::fs::read_dir(&directory).unwrap().map(is_table).filter(|is_table| *is_table).count() > 16);

        let store = RocksKeySpace::open(&directory, &KeySpaceOptions::default()).unwrap();
        let view = store.view().unwrap();
        store.retire();
        for table in Table::ALL {
            let mut rows = 0;
            let all = (Bound::Unbounded, Bound::Unbounded);
            view.scan(table, all, false, &mut |_, _| {
                rows += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(rows, ROUNDS);
        }
        write(&store, ROUNDS);
        store.flush().unwrap();
        drop(store);
        assert!(directory.exists(), "a view is left");
        drop(view);
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 0);
    }
}
