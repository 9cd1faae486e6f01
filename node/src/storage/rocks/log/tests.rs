use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn entry(index: u64, bytes: usize) -> Entry {
    Entry { index, term: 1, data: vec![b'x'; bytes].into(), ..Entry::default() }
}

fn append(log: &RocksLog, indices: std::ops::RangeInclusive<u64>, bytes: usize, sync: bool) {
    let entries: Vec<_> = indices.map(|index| entry(index, bytes)).collect();
    log.write(LogWrite { entries: &entries, sync, ..LogWrite::default() }).unwrap();
}

fn point(index: u64) -> SnapshotPoint {
    SnapshotPoint { index, term: 1, ..SnapshotPoint::default() }
}

/// A copy of the log as a crash at this moment leaves it, and its newest WAL file.
fn crash(log: &RocksLog, to: &Path) -> PathBuf {
    crate::storage::conformance::copy_directory(&log.directory, to);
    let is_wal = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    fs::read_dir(to).unwrap().map(|file| file.unwrap().path()).filter(is_wal).max().unwrap()
}

fn cut(path: &Path, bytes: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn last_index(directory: &Path) -> Result<u64> {
    Ok(RocksLog::open(directory)?.initial()?.last_index)
}

#[test]
fn a_torn_tail_costs_the_torn_write_only() {
    let place = tempfile::tempdir().unwrap();
    let log = RocksLog::open(&place.path().join("log")).unwrap();
    append(&log, 1..=3, 100, true);
    append(&log, 4..=5, 100, false);
    // The last write was not synced, and takes some 240 bytes; every cut within it loses it as a whole.
    for bytes in [0, 1, 120, 230] {
        let crashed = place.path().join(format!("cut by {bytes}"));
        cut(&crash(&log, &crashed), bytes);
        assert_eq!(last_index(&crashed).unwrap(), if bytes == 0 { 5 } else { 3 }, "cut by {bytes} bytes");
        append(&RocksLog::open(&crashed).unwrap(), 4..=4, 1, true);
        assert_eq!(last_index(&crashed).unwrap(), 4);
    }
}

/// A WAL that ends before what was synced, at the boundary of a write or within one: RocksDB takes both for a crash.
#[test]
fn a_lost_synced_tail_is_an_error_and_never_a_shorter_log() {
    let place = tempfile::tempdir().unwrap();
    let log = RocksLog::open(&place.path().join("log")).unwrap();
    append(&log, 1..=3, 100, true);
    append(&log, 4..=5, 100, true);
    for bytes in [1, 120, 230, 600, 1_000] {
        let crashed = place.path().join(format!("cut by {bytes}"));
        let wal = crash(&log, &crashed);
        let cut_by = bytes.min(fs::metadata(&wal).unwrap().len());
        cut(&wal, cut_by);
        let Err(StorageError::Corrupt { what }) = RocksLog::open(&crashed) else { panic!("cut by {bytes}: opened") };
        assert!(what.contains("must not vote again"), "cut by {bytes}: {what}");
    }
}

#[test]
fn a_damage_before_the_tail_is_an_error_and_never_a_shorter_log() {
    let place = tempfile::tempdir().unwrap();
    let log = RocksLog::open(&place.path().join("log")).unwrap();
    for index in 1..=3 {
        append(&log, index..=index, 100, true);
    }
    let crashed = place.path().join("crashed");
    flip(&crash(&log, &crashed), 60);
    assert!(matches!(RocksLog::open(&crashed), Err(StorageError::Corrupt { .. })));
}

#[test]
fn a_damaged_table_file_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let log = RocksLog::open(&place.path().join("log")).unwrap();
    append(&log, 1..=100, 100, true);
    log.database.flush_cf(log.family(ENTRIES).unwrap()).unwrap();
    let crashed = place.path().join("crashed");
    crash(&log, &crashed);
    let table = log.database.live_files().unwrap().into_iter().find(|file| file.column_family_name == ENTRIES).unwrap();
    flip(&crashed.join(table.name.trim_start_matches('/')), 2000);
    assert!(matches!(RocksLog::open(&crashed), Err(StorageError::Corrupt { .. })));
}

#[test]
fn a_missing_entry_is_named() {
    let place = tempfile::tempdir().unwrap();
    let log = RocksLog::open(place.path()).unwrap();
    append(&log, 1..=9, 1, true);
    log.trim(&point(2)).unwrap();
    log.database.delete_cf(log.family(ENTRIES).unwrap(), 7u64.to_be_bytes()).unwrap();
    assert!(log.entries(3, 10, u64::MAX).is_err());
    drop(log);
    let Err(StorageError::Corrupt { what }) = RocksLog::open(place.path()) else { panic!("opened") };
    assert!(what.contains("entry 7 is missing"), "{what}");
}

#[test]
fn a_log_that_lost_its_current_file_is_not_taken_for_a_new_one() {
    let place = tempfile::tempdir().unwrap();
    let log = RocksLog::open(&place.path().join("log")).unwrap();
    append(&log, 1..=3, 1, true);
    let crashed = place.path().join("crashed");
    crash(&log, &crashed);
    fs::remove_file(crashed.join("CURRENT")).unwrap();
    assert!(matches!(RocksLog::open(&crashed), Err(StorageError::Corrupt { .. })));
}

#[test]
fn a_log_that_is_open_cannot_be_opened_again() {
    let place = tempfile::tempdir().unwrap();
    let _log = RocksLog::open(place.path()).unwrap();
    assert!(matches!(RocksLog::open(place.path()), Err(StorageError::Failed { .. })));
}

#[test]
fn trimmed_entries_leave_the_disk_with_their_files() {
    let place = tempfile::tempdir().unwrap();
    let log = RocksLog::open(place.path()).unwrap();
    let on_disk = || log.database.live_files().unwrap().iter().map(|file| file.size).sum::<usize>();
    for index in 1..=100 {
        append(&log, index..=index, 1 << 20, false);
    }
    log.database.flush_cf(log.family(ENTRIES).unwrap()).unwrap();
    // Down from the first level, in which RocksDB drops no files; it does so by itself when there are four.
    log.database.compact_range_cf(log.family(ENTRIES).unwrap(), None::<&[u8]>, None::<&[u8]>);
    let before = on_disk();
    assert!(before >= 95 << 20, "{before} bytes");
    log.trim(&point(99)).unwrap();
    log.trim(&point(99)).unwrap();
    assert_eq!(on_disk(), before, "a trim that a power loss may take back must not drop files");
    append(&log, 101..=101, 1, true);
    log.trim(&point(100)).unwrap();
    assert!(on_disk() <= before / 2, "{} of {before} bytes", on_disk());
    drop(log);
    let initial = RocksLog::open(place.path()).unwrap().initial().unwrap();
    assert_eq!((initial.first_index, initial.last_index), (101, 101));
}

#[test]
fn a_read_that_is_overtaken_by_writes_is_whole_or_empty() {
    let place = tempfile::tempdir().unwrap();
    let log = std::sync::Arc::new(RocksLog::open(place.path()).unwrap());
    append(&log, 1..=100, 10, false);
    let writer = {
        let log = std::sync::Arc::clone(&log);
        std::thread::spawn(move || {
            for round in 0..2000u64 {
                let last = 100 + round;
                append(&log, last - 20..=last - 10, 10, false);
                append(&log, last - 9..=last + 1, 10, false);
                log.trim(&point(last - 80)).unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let low = log.held.read().first + 30;
        let read = log.entries(low, u64::MAX, u64::MAX).unwrap();
        assert!(read.iter().zip(low..).all(|(entry, index)| entry.index == index));
    }
    writer.join().unwrap();
}

/// Set in a process that this test has put onto a full disk: its directory.
const FULL_DISK: &str = "BALSA_TEST_FULL_DISK";
/// What that process ends with when all is as it should be: the code of a disk that failed.
const ENDED: i32 = 74;
const NO_MOUNT: i32 = 97;

/// Flushes slower than appends: the memtables are full, and their writer waits, before the first flush finds no space.
/// RocksDB leaves it waiting. This must be told, and must not keep the process from ending.
#[test]
fn a_writer_that_a_full_disk_holds_back_is_known_and_lets_the_process_end() {
    match std::env::var_os(FULL_DISK) {
        Some(directory) => fill_up(Path::new(&directory)),
        None => on_a_small_disk(
            "storage::rocks::log::tests::a_writer_that_a_full_disk_holds_back_is_known_and_lets_the_process_end",
        ),
    }
}

/// Runs the test `name` in a process of its own, over a tmpfs that has room for the WALs of three memtables and no table.
fn on_a_small_disk(name: &str) {
    let place = tempfile::tempdir().unwrap();
    let mount =
        format!("mount -t tmpfs -o size=56m tmpfs \"$1\" || exit {NO_MOUNT}; exec timeout 60 \"$0\" --exact \"$2\"");
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount]).arg(std::env::current_exe().unwrap());
    let output = unshare.arg(place.path()).arg(name).env(FULL_DISK, place.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(NO_MOUNT | 1) => eprintln!("SKIPPED, no file system can be mounted here: {said}"),
        code => assert_eq!(code, Some(ENDED), "{said}"),
    }
}

fn fill_up(directory: &Path) {
    let mut options = bounded_options();
    options.set_ratelimiter(4 << 20, 10_000, 10);
    let log = std::sync::Arc::new(RocksLog::open_with(options, directory).unwrap());
    let appended = log.clone();
    let writer = std::thread::spawn(move || {
        for index in 1..=100 {
            append(&appended, index..=index, 1 << 20, false);
        }
    });
    let began = std::time::Instant::now();
    let error = loop {
        if let Some(error) = log.refuses_writes() {
            break error;
        }
        assert!(!writer.is_finished() && began.elapsed().as_secs() < 30, "the writer is not held back");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(error.to_string().contains("is the disk full?"), "{error}");
    let numbers = log.numbers();
    assert!(numbers.is_write_stopped && numbers.background_errors > 0, "{numbers:?}");
    assert!(!writer.is_finished());
    std::process::exit(ENDED);
}
