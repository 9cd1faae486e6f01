//! What RocksDB says of itself, for metrics. All of it is kept in memory: RocksDB's lock is taken for a moment per number,
//! and it is held over no access to the disk, so that who asks waits for no disk.

use rocksdb::{ColumnFamily, DB, properties};

use super::{background_errors, number};

/// The numbers of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Those of each column family.
    pub tables: Vec<TableNumbers>,
    /// Bytes in the block cache, which all column families share.
    pub block_cache_bytes: u64,
    /// Bytes per second that writers are slowed to; 0 while they are not.
    pub delayed_write_rate: u64,
    /// Writers wait until flushes or compactions have made room.
    pub is_write_stopped: bool,
    /// Flushes that run.
    pub running_flushes: u64,
    /// Compactions that run.
    pub running_compactions: u64,
    /// Flushes and compactions that have failed since the database was opened.
    pub background_errors: u64,
}

/// The numbers of one column family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableNumbers {
    /// Its name on disk.
    pub table: &'static str,
    /// Table files that were flushed and wait to be merged. Writers are slowed at 20 and stopped at 36.
    pub level0_files: u64,
    /// Bytes that compactions have to rewrite.
    pub pending_compaction_bytes: u64,
    /// Bytes of the memtables: the active one, those that wait for their flush, and those that a reader still keeps.
    pub memtable_bytes: u64,
    /// Bytes of the table files in use.
    pub sst_bytes: u64,
}

/// Reads the numbers of `database` and of these column families of it.
pub(super) fn read<'a>(database: &DB, families: impl IntoIterator<Item = (&'static str, &'a ColumnFamily)>) -> Numbers {
    let mut numbers = Numbers {
        delayed_write_rate: number(database, properties::ACTUAL_DELAYED_WRITE_RATE),
        is_write_stopped: number(database, properties::IS_WRITE_STOPPED) != 0,
        running_flushes: number(database, properties::NUM_RUNNING_FLUSHES),
        running_compactions: number(database, properties::NUM_RUNNING_COMPACTIONS),
        background_errors: background_errors(database),
        ..Numbers::default()
    };
    let level0 = properties::num_files_at_level(0);
    for (table, family) in families {
        let of_table = |property: &properties::PropName| {
            database.property_int_value_cf(family, property).ok().flatten().unwrap_or_default()
        };
        numbers.block_cache_bytes = numbers.block_cache_bytes.max(of_table(properties::BLOCK_CACHE_USAGE));
        numbers.tables.push(TableNumbers {
            table,
            level0_files: of_table(&level0),
            pending_compaction_bytes: of_table(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            memtable_bytes: of_table(properties::SIZE_ALL_MEM_TABLES),
            sst_bytes: of_table(properties::LIVE_SST_FILES_SIZE),
        });
    }
    numbers
}
