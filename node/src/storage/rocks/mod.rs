//! The engines on RocksDB: `RocksKeySpace` (no WAL, atomic flush) and `RocksLog` (synced WAL).
//!
//! Two databases, because they want opposite things: the log is synced with every write and thrown away soon, the key
//! space is never synced per write and kept. Everything RocksDB may take is bounded here: memtables, block cache, open
//! files, its own text log. Nothing is preallocated in memory, so that an idle member stays small.

mod key_space;
mod log;
mod numbers;
mod synced;
mod view;

use std::fs;
use std::path::Path;

use rocksdb::{DB, DBRecoveryMode, ErrorKind, LogLevel, Options, properties};

pub use key_space::{KeySpaceOptions, RocksKeySpace};
pub use log::RocksLog;
pub use numbers::{Numbers, TableNumbers};
pub use view::RocksView;

use super::{Result, StorageError, durable};

/// Table files kept open per database; more are opened again when they are read.
const MAX_OPEN_FILES: i32 = 512;

/// Memtables grow by blocks of this size; RocksDB's own choice of 1 MB times eight tables would be felt when idle.
const ARENA_BLOCK_BYTES: usize = 64 << 10;

/// RocksDB's own text log: size of a file and number of files kept.
const TEXT_LOG_BYTES: usize = 1 << 20;
const TEXT_LOG_FILES: usize = 2;

/// Flushes and compactions hand their bytes to the disk in steps of this size: a burst of dirty pages at their end
/// would stand in the way of the log's next sync.
const BYTES_PER_SYNC: u64 = 1 << 20;

/// The manifest is rewritten when it has grown to this size.
const MANIFEST_BYTES: usize = 4 << 20;

/// What both databases have in common.
fn bounded_options() -> Options {
    let mut options = Options::default();
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    options.set_max_manifest_file_size(MANIFEST_BYTES);
    options.set_manifest_preallocation_size(ARENA_BLOCK_BYTES);
    options.set_skip_stats_update_on_db_open(true);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(TEXT_LOG_BYTES);
    options.set_keep_log_file_num(TEXT_LOG_FILES);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options
}

/// Says whether a database may be created in `directory`, which is created when it is absent.
///
/// RocksDB would create an empty database beside the files of one that lost its `CURRENT`, and a member would forget
/// its vote without a word. `CURRENT` is written before any table or WAL, so such files without it are a damage, while
/// a creation that was cut short leaves none and is begun anew.
fn may_create(directory: &Path) -> Result<bool> {
    durable::create_directory(directory)?;
    if directory.join("CURRENT").exists() {
        return Ok(false);
    }
    let listing = fs::read_dir(directory).map_err(|error| StorageError::from_io("listing of", directory, &error))?;
    for entry in listing {
        let path = entry.map_err(|error| StorageError::from_io("listing of", directory, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "sst" || extension == "log") {
            return Err(StorageError::Corrupt { what: format!("{}: CURRENT is missing", directory.display()) });
        }
    }
    Ok(true)
}

/// Names what was done and where. RocksDB's corruption is ours; all else is a failure of the disk or its user.
fn storage_error(action: &str, directory: &Path, error: &rocksdb::Error) -> StorageError {
    let what = format!("{action} {}", directory.display());
    match error.kind() {
        ErrorKind::Corruption => StorageError::Corrupt { what: format!("{what}: {error}") },
        _ => StorageError::Failed { what, cause: error.to_string() },
    }
}

fn number(database: &DB, property: &rocksdb::properties::PropName) -> u64 {
    database.property_int_value(property).ok().flatten().unwrap_or_default()
}

/// Flushes and compactions that have failed since the database was opened.
fn background_errors(database: &DB) -> u64 {
    number(database, properties::BACKGROUND_ERRORS)
}

/// Whether the database holds its writers back although a flush or a compaction of it has failed, which is what makes
/// room for them.
///
/// RocksDB takes a full disk for something that passes: it waits for space, looks again every 5 s, and lets a writer
/// that was held back before the failure wait with it, without a bound and without a word (`DBImpl::DelayWrite`). Neither
/// that recovery nor the waiting can be switched off from here. A write that comes later is refused at once.
fn refuses_writes(database: &DB, what: &str, directory: &Path) -> Option<StorageError> {
    let failures = background_errors(database);
    (number(database, properties::IS_WRITE_STOPPED) != 0 && failures != 0).then(|| StorageError::Failed {
        what: format!("write to {what} {}", directory.display()),
        cause: format!("held back because flushes or compactions failed ({failures} times): is the disk full?"),
    })
}

/// What is believed of a WAL at open: everything up to a cut in its tail, which is what a crash in the middle of a
/// write leaves. Point-in-time recovery would drop synced votes and entries behind a damage without a word.
const WAL_RECOVERY: DBRecoveryMode = DBRecoveryMode::TolerateCorruptedTailRecords;
