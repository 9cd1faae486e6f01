use std::path::Path;

use raft::eraftpb::{ConfState, Entry, HardState};

use super::copy_directory;
use crate::storage::memory::{FailedWrite, MemoryLog};
use crate::storage::rocks::RocksLog;
use crate::storage::{InitialState, LogStore, LogWrite, SnapshotPoint, StorageError};

/// An engine under test, with a place for its files.
trait Engine {
    type Store: LogStore;
    fn create(place: &Path) -> Self::Store;
    /// What a restart finds after a crash at this moment; writes that were not synced may be there or not.
    fn crash(store: Self::Store, place: &Path) -> Self::Store;
}

struct Rocks;

impl Engine for Rocks {
    type Store = RocksLog;

    fn create(place: &Path) -> RocksLog {
        RocksLog::open(&place.join("log")).unwrap()
    }

    fn crash(_: RocksLog, place: &Path) -> RocksLog {
        let crashed = place.join("crashed");
        let _ = std::fs::remove_dir_all(&crashed);
        copy_directory(&place.join("log"), &crashed);
        RocksLog::open(&crashed).unwrap()
    }
}

struct Memory;

impl Engine for Memory {
    type Store = MemoryLog;

    fn create(_: &Path) -> MemoryLog {
        MemoryLog::default()
    }

    fn crash(store: MemoryLog, _: &Path) -> MemoryLog {
        store.crash()
    }
}

/// Runs each named check against both engines.
macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        mod rocks { $(#[test] fn $promise() { super::$promise::<super::Rocks>(); })* }
        mod memory { $(#[test] fn $promise() { super::$promise::<super::Memory>(); })* }
    };
}

promises!(
    a_new_log_is_empty,
    what_was_synced_survives_a_crash,
    an_entry_replaces_the_one_at_its_index_and_all_behind,
    reads_are_bounded_by_index_and_bytes,
    a_trim_moves_the_beginning,
    a_reset_clears_the_log_and_begins_it_elsewhere,
    a_reset_may_go_back,
    appends_that_leave_a_gap_are_refused_whole,
    a_log_trimmed_over_and_over_stays_whole,
);

fn with_log<E: Engine>(check: impl FnOnce(E::Store, &Path)) {
    let place = tempfile::tempdir().unwrap();
    check(E::create(place.path()), place.path());
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: format!("entry {index} of term {term}").into(), ..Entry::default() }
}

fn entries(indices: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indices.map(|index| entry(index, term)).collect()
}

fn point(index: u64, term: u64) -> SnapshotPoint {
    SnapshotPoint {
        index,
        term,
        conf_state: ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() },
    }
}

fn append(log: &impl LogStore, entries: &[Entry]) {
    log.write(LogWrite { entries, sync: true, ..LogWrite::default() }).unwrap();
}

/// "index/term" of all entries held, checked against the bounds that the log states.
fn held(log: &impl LogStore) -> String {
    let InitialState { first_index, last_index, snapshot, .. } = log.initial().unwrap();
    assert_eq!(first_index, snapshot.index + 1);
    let read = log.entries(first_index, u64::MAX, u64::MAX).unwrap();
    assert_eq!(read.len() as u64, last_index + 1 - first_index);
    for entry in &read {
        assert_eq!(entry.data, format!("entry {} of term {}", entry.index, entry.term).as_bytes());
    }
    read.iter().map(|entry| format!("{}/{}", entry.index, entry.term)).collect::<Vec<_>>().join(" ")
}

fn a_new_log_is_empty<E: Engine>() {
    with_log::<E>(|log, place| {
        for log in [E::create(&place.join("other")), E::crash(log, place)] {
            let initial = log.initial().unwrap();
            assert_eq!((initial.first_index, initial.last_index), (1, 0));
            assert_eq!(initial.hard_state, HardState::default());
            assert_eq!(initial.snapshot, SnapshotPoint::default());
            assert_eq!(initial.key_space, None);
            assert_eq!(log.entries(1, 10, u64::MAX).unwrap(), []);
        }
    });
}

fn what_was_synced_survives_a_crash<E: Engine>() {
    with_log::<E>(|log, place| {
        let hard_state = HardState { term: 2, vote: 1, commit: 6, ..HardState::default() };
        let all = entries(6..=8, 2);
        log.write(LogWrite {
            entries: &all,
            hard_state: Some(&hard_state),
            reset_to: Some(&point(5, 1)),
            key_space: Some("5-1"),
            sync: true,
        })
        .unwrap();
        let log = E::crash(log, place);
        let initial = log.initial().unwrap();
        assert_eq!(initial.hard_state, hard_state);
        assert_eq!(initial.snapshot, point(5, 1));
        assert_eq!(initial.key_space.as_deref(), Some("5-1"));
        assert_eq!(held(&log), "6/2 7/2 8/2");
        append(&log, &[entry(9, 3)]);
        assert_eq!(held(&log), "6/2 7/2 8/2 9/3");
    });
}

fn an_entry_replaces_the_one_at_its_index_and_all_behind<E: Engine>() {
    with_log::<E>(|log, place| {
        append(&log, &entries(1..=6, 1));
        append(&log, &entries(3..=4, 2));
        assert_eq!(held(&log), "1/1 2/1 3/2 4/2");
        assert_eq!(log.entries(5, 7, u64::MAX).unwrap(), []);
        append(&log, &[entry(1, 3)]);
        assert_eq!(held(&log), "1/3");
        append(&log, &entries(2..=3, 3));
        let log = E::crash(log, place);
        assert_eq!(held(&log), "1/3 2/3 3/3");
    });
}

fn reads_are_bounded_by_index_and_bytes<E: Engine>() {
    with_log::<E>(|log, _| {
        append(&log, &entries(1..=9, 1));
        let read = |low, high, bytes| {
            let entries = log.entries(low, high, bytes).unwrap();
            entries.iter().map(|entry| entry.index).collect::<Vec<_>>()
        };
        let one = u64::from(protobuf::Message::compute_size(&entry(1, 1)));
        assert_eq!(read(3, 6, u64::MAX), [3, 4, 5]);
        assert_eq!(read(8, 100, u64::MAX), [8, 9]);
        assert_eq!(read(3, 6, 0), [3]);
        assert_eq!(read(3, 6, 2 * one), [3, 4]);
        assert_eq!(read(3, 6, 2 * one - 1), [3]);
        assert_eq!(read(3, 3, u64::MAX), [0u64; 0]);
        assert_eq!(read(5, 3, u64::MAX), [0u64; 0]);
        assert_eq!(read(10, 12, u64::MAX), [0u64; 0]);
        assert_eq!(read(0, 3, u64::MAX), [0u64; 0]);
    });
}

fn a_trim_moves_the_beginning<E: Engine>() {
    with_log::<E>(|log, place| {
        append(&log, &entries(1..=6, 1));
        log.trim(&point(3, 1)).unwrap();
        assert_eq!(held(&log), "4/1 5/1 6/1");
        assert_eq!(log.entries(3, 6, u64::MAX).unwrap(), []);
        assert_eq!(log.initial().unwrap().snapshot, point(3, 1));
        log.trim(&point(2, 1)).unwrap();
        assert_eq!(held(&log), "4/1 5/1 6/1");
        assert!(matches!(log.trim(&point(7, 1)), Err(StorageError::Failed { .. })));
        append(&log, &[entry(7, 1)]);
        let log = E::crash(log, place);
        assert_eq!(held(&log), "4/1 5/1 6/1 7/1");
        log.trim(&point(7, 1)).unwrap();
        assert_eq!(held(&log), "");
        append(&log, &[entry(8, 2)]);
        assert_eq!(held(&log), "8/2");
    });
}

fn a_reset_clears_the_log_and_begins_it_elsewhere<E: Engine>() {
    with_log::<E>(|log, place| {
        append(&log, &entries(1..=6, 1));
        log.write(LogWrite { reset_to: Some(&point(4, 2)), sync: true, ..LogWrite::default() }).unwrap();
        assert_eq!(held(&log), "");
        append(&log, &[entry(5, 3)]);
        assert_eq!(held(&log), "5/3");
        let all = entries(21..=22, 4);
        log.write(LogWrite { entries: &all, reset_to: Some(&point(20, 4)), sync: true, ..LogWrite::default() })
            .unwrap();
        let log = E::crash(log, place);
        assert_eq!(held(&log), "21/4 22/4");
        assert_eq!(log.initial().unwrap().snapshot, point(20, 4));
    });
}

fn a_reset_may_go_back<E: Engine>() {
    with_log::<E>(|log, place| {
        append(&log, &entries(1..=9, 1));
        log.trim(&point(8, 1)).unwrap();
        log.write(LogWrite { reset_to: Some(&point(2, 1)), sync: true, ..LogWrite::default() }).unwrap();
        assert_eq!(held(&log), "");
        let log = E::crash(log, place);
        assert_eq!(held(&log), "");
        append(&log, &[entry(3, 2)]);
        assert_eq!(held(&log), "3/2");
    });
}

fn appends_that_leave_a_gap_are_refused_whole<E: Engine>() {
    with_log::<E>(|log, _| {
        log.write(LogWrite { reset_to: Some(&point(2, 1)), sync: true, ..LogWrite::default() }).unwrap();
        append(&log, &entries(3..=4, 1));
        for refused in [vec![entry(6, 1)], vec![entry(2, 1)], vec![entry(5, 1), entry(7, 1)]] {
            let hard_state = HardState { term: 9, ..HardState::default() };
            let write =
                LogWrite { entries: &refused, hard_state: Some(&hard_state), sync: true, ..LogWrite::default() };
            assert!(matches!(log.write(write), Err(StorageError::Failed { .. })));
        }
        assert_eq!(held(&log), "3/1 4/1");
        assert_eq!(log.initial().unwrap().hard_state, HardState::default());
    });
}

fn a_log_trimmed_over_and_over_stays_whole<E: Engine>() {
    with_log::<E>(|log, place| {
        for round in 1..=50u64 {
            append(&log, &entries(round * 10 - 9..=round * 10, round));
            if round > 2 {
                log.trim(&point(round * 10 - 15, round)).unwrap();
            }
        }
        let log = E::crash(log, place);
        let initial = log.initial().unwrap();
        assert_eq!(initial.last_index, 500);
        // The last trim was not synced.
        assert!([476, 486].contains(&initial.first_index), "begins at {}", initial.first_index);
        held(&log);
    });
}

#[test]
fn a_memory_log_loses_what_was_not_synced_or_keeps_a_beginning_of_it() {
    let crashed = |kept| {
        let log = MemoryLog::default();
        append(&log, &entries(1..=2, 1));
        let first = entries(3..=3, 1);
        log.write(LogWrite { entries: &first, ..LogWrite::default() }).unwrap();
        let second = entries(2..=2, 2);
        log.write(LogWrite { entries: &second, ..LogWrite::default() }).unwrap();
        assert_eq!(log.unsynced_writes(), 2);
        let restarted = log.crash_keeping(kept);
        assert!(log.initial().is_err());
        held(&restarted)
    };
    assert_eq!(crashed(0), "1/1 2/1");
    assert_eq!(crashed(1), "1/1 2/1 3/1");
    assert_eq!(crashed(2), "1/1 2/2");
}

#[test]
fn a_memory_log_fails_the_write_it_was_told_to_and_all_after() {
    for (left, expected) in [(FailedWrite::Lost, "1/1"), (FailedWrite::Kept, "1/1 2/1")] {
        let log = MemoryLog::default();
        log.fail_write(2, left);
        append(&log, &[entry(1, 1)]);
        for index in [2, 3] {
            let entries = [entry(index, 1)];
            let write = LogWrite { entries: &entries, sync: true, ..LogWrite::default() };
            assert!(matches!(log.write(write), Err(StorageError::Failed { .. })));
        }
        assert_eq!(held(&log.crash()), expected);
    }
}
