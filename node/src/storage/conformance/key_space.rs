use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tempfile::TempDir;

use super::copy_directory;
use crate::storage::memory::MemoryKeySpace;
use crate::storage::rocks::{KeySpaceOptions, RocksKeySpace};
use crate::storage::{KeySpace, Result, Table, View, WriteBatch};

/// An engine under test, with a place for its files.
trait Engine {
    type Store: KeySpace;
    fn create(place: &Path) -> Self::Store;
    /// What a restart finds after a crash at this moment.
    fn crash(store: &Self::Store, place: &Path) -> Self::Store;
    fn open_checkpoint(directory: &Path) -> Result<Self::Store>;
}

struct Rocks;

impl Engine for Rocks {
    type Store = RocksKeySpace;

    fn create(place: &Path) -> RocksKeySpace {
        RocksKeySpace::open(&place.join("store"), &KeySpaceOptions::default()).unwrap()
    }

    fn crash(_: &RocksKeySpace, place: &Path) -> RocksKeySpace {
        // Not by dropping it: RocksDB flushes when it is closed in peace.
        copy_directory(&place.join("store"), &place.join("crashed"));
        RocksKeySpace::open(&place.join("crashed"), &KeySpaceOptions::default()).unwrap()
    }

    fn open_checkpoint(directory: &Path) -> Result<RocksKeySpace> {
        RocksKeySpace::open_read_only(directory)
    }
}

struct Memory;

impl Engine for Memory {
    type Store = MemoryKeySpace;

    fn create(_: &Path) -> MemoryKeySpace {
        MemoryKeySpace::default()
    }

    fn crash(store: &MemoryKeySpace, _: &Path) -> MemoryKeySpace {
        store.crash()
    }

    fn open_checkpoint(directory: &Path) -> Result<MemoryKeySpace> {
        MemoryKeySpace::from_checkpoint(directory)
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
    a_batch_is_applied_in_order,
    a_view_does_not_change,
    a_view_outlives_its_key_space,
    a_view_never_shows_half_a_batch,
    scans_visit_exactly_what_their_bounds_admit,
    a_scan_ends_when_told,
    many_keys_are_read_in_the_order_asked,
    tables_are_apart,
    delete_range_excludes_its_end_and_may_be_empty,
    a_crash_keeps_what_was_flushed_and_nothing_else,
    only_flushed_values_are_read_as_flushed,
    a_checkpoint_holds_the_state_of_its_moment,
    a_checkpoint_needs_a_new_directory,
    sizes_grow_with_what_is_written,
);

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

fn put(store: &impl KeySpace, pairs: &[(Table, &str, &str)]) {
    let mut batch = WriteBatch::default();
    for (table, key, value) in pairs {
        batch.put(*table, key.to_string(), value.to_string());
    }
    store.write(batch).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The rows of a table, as "key=value key=value".
fn scan(view: &impl View, table: Table, bounds: (Bound<&[u8]>, Bound<&[u8]>), reverse: bool) -> String {
    let mut rows = Vec::new();
    view.scan(table, bounds, reverse, &mut |key, value| {
        rows.push(format!("{}={}", text(key), text(value)));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows.join(" ")
}

fn rows(store: &impl KeySpace, table: Table) -> String {
    scan(&store.view().unwrap(), table, (Bound::Unbounded, Bound::Unbounded), false)
}

fn a_batch_is_applied_in_order<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    let mut batch = WriteBatch::default();
    batch.put(Table::Live, "a", "1");
    batch.put(Table::Live, "a", "2");
    batch.put(Table::Live, "b", "1");
    batch.delete(Table::Live, "b");
    batch.put(Table::Live, "c", "1");
    batch.delete_range(Table::Live, "c", "d");
    batch.put(Table::Live, "c", "2");
    batch.delete(Table::Live, "absent");
    store.write(batch).unwrap();
    assert_eq!(rows(&store, Table::Live), "a=2 c=2");
    store.write(WriteBatch::default()).unwrap();
    assert_eq!(rows(&store, Table::Live), "a=2 c=2");
}

fn a_view_does_not_change<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    put(&store, &[(Table::Live, "a", "1"), (Table::Live, "b", "1")]);
    let view = store.view().unwrap();
    put(&store, &[(Table::Live, "a", "2"), (Table::Live, "c", "2")]);
    let mut batch = WriteBatch::default();
    batch.delete(Table::Live, "b");
    store.write(batch).unwrap();
    store.flush().unwrap();
    assert_eq!(scan(&view, Table::Live, (Bound::Unbounded, Bound::Unbounded), false), "a=1 b=1");
    assert_eq!(view.get(Table::Live, b"a").unwrap(), Some(Bytes::from("1")));
    assert_eq!(view.get(Table::Live, b"c").unwrap(), None);
    let read = view.multi_get(Table::Live, &[b"a", b"b", b"c"]).unwrap();
    assert_eq!(read, [Some(Bytes::from("1")), Some(Bytes::from("1")), None]);
    assert_eq!(rows(&store, Table::Live), "a=2 c=2");
}

fn a_view_outlives_its_key_space<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    put(&store, &[(Table::Live, "a", "1")]);
    let view = store.view().unwrap();
    drop(store);
    let elsewhere = std::thread::spawn(move || view.get(Table::Live, b"a").unwrap());
    assert_eq!(elsewhere.join().unwrap(), Some(Bytes::from("1")));
}

fn a_view_never_shows_half_a_batch<E: Engine>() {
    let (_directory, place) = place();
    let store = Arc::new(E::create(&place));
    put(&*store, &[(Table::Live, "a", "0"), (Table::Meta, "a", "0")]);
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (store, done) = (Arc::clone(&store), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut views = 0;
            while !done.load(Ordering::Relaxed) || views == 0 {
                let view = store.view().unwrap();
                assert_eq!(view.get(Table::Live, b"a").unwrap(), view.get(Table::Meta, b"a").unwrap());
                views += 1;
            }
        })
    };
    for round in 0..500 {
        let value = round.to_string();
        put(&*store, &[(Table::Live, "a", &value), (Table::Meta, "a", &value)]);
    }
    done.store(true, Ordering::Relaxed);
    reader.join().unwrap();
}

fn scans_visit_exactly_what_their_bounds_admit<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    let keys = ["", "a", "a\0", "ab", "b", "c"];
    for key in keys {
        put(&store, &[(Table::Live, key, "x"), (Table::History, "a", "other table")]);
    }
    let view = store.view().unwrap();
    let limits = ["", "a", "a\0", "aa", "b", "c", "d"];
    let all_bounds =
        || limits.iter().flat_map(|key| [Bound::Included(*key), Bound::Excluded(*key)]).chain([Bound::Unbounded]);
    for low in all_bounds() {
        for high in all_bounds() {
            let admitted = |key: &&str| {
                let above = match low {
                    Bound::Included(low) => **key >= *low,
                    Bound::Excluded(low) => **key > *low,
                    Bound::Unbounded => true,
                };
                above
                    && match high {
                        Bound::Included(high) => **key <= *high,
                        Bound::Excluded(high) => **key < *high,
                        Bound::Unbounded => true,
                    }
            };
            let mut expected: Vec<_> = keys.iter().filter(|key| admitted(key)).map(|key| format!("{key}=x")).collect();
            let bounds = (low.map(str::as_bytes), high.map(str::as_bytes));
            assert_eq!(scan(&view, Table::Live, bounds, false), expected.join(" "), "{low:?} {high:?}");
            expected.reverse();
            assert_eq!(scan(&view, Table::Live, bounds, true), expected.join(" "), "{low:?} {high:?} in reverse");
        }
    }
}

fn a_scan_ends_when_told<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    put(&store, &[(Table::Live, "a", "1"), (Table::Live, "b", "2"), (Table::Live, "c", "3")]);
    for (reverse, expected) in [(false, "ab"), (true, "cb")] {
        let mut seen = String::new();
        let visit = &mut |key: &[u8], _: &[u8]| {
            seen.push_str(&text(key));
            if seen.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        store.view().unwrap().scan(Table::Live, (Bound::Unbounded, Bound::Unbounded), reverse, visit).unwrap();
        assert_eq!(seen, expected);
    }
}

fn many_keys_are_read_in_the_order_asked<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    for number in 0..200 {
        put(&store, &[(Table::Live, &format!("key{number:03}"), &number.to_string())]);
        if number == 100 {
            store.flush().unwrap();
        }
    }
    let view = store.view().unwrap();
    let mut asked: Vec<String> = (0..250).map(|number| format!("key{number:03}")).collect();
    let check = |asked: &[String]| {
        let keys: Vec<_> = asked.iter().map(String::as_bytes).collect();
        let read = view.multi_get(Table::Live, &keys).unwrap();
        let expected = asked.iter().map(|key| {
            let number: u32 = key[3..].parse().unwrap();
            (number < 200).then(|| Bytes::from(number.to_string()))
        });
        assert_eq!(read, expected.collect::<Vec<_>>());
    };
    check(&asked);
    asked.reverse();
    check(&asked);
    check(&["key007".to_owned(), "key300".to_owned(), "key007".to_owned()]);
    check(&[]);
}

fn tables_are_apart<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    for table in Table::ALL {
        put(&store, &[(table, "key", table.name())]);
    }
    let mut batch = WriteBatch::default();
    batch.delete(Table::Lease, "key");
    store.write(batch).unwrap();
    for table in Table::ALL {
        let expected = if table == Table::Lease { String::new() } else { format!("key={}", table.name()) };
        assert_eq!(rows(&store, table), expected);
    }
}

fn delete_range_excludes_its_end_and_may_be_empty<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    put(&store, &[(Table::History, "a", "1"), (Table::History, "b", "1"), (Table::History, "c", "1")]);
    for (low, high, left) in [("c", "a", "a=1 b=1 c=1"), ("b", "b", "a=1 b=1 c=1"), ("a", "c", "c=1")] {
        let mut batch = WriteBatch::default();
        batch.delete_range(Table::History, low, high);
        store.write(batch).unwrap();
        assert_eq!(rows(&store, Table::History), left);
    }
}

fn a_crash_keeps_what_was_flushed_and_nothing_else<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    put(&store, &[(Table::Live, "a", "1"), (Table::Meta, "applied", "1")]);
    store.flush().unwrap();
    put(&store, &[(Table::Live, "a", "2"), (Table::Live, "b", "2"), (Table::Meta, "applied", "2")]);
    assert_eq!(rows(&store, Table::Live), "a=2 b=2");
    let crashed = E::crash(&store, &place);
    assert_eq!(rows(&crashed, Table::Live), "a=1");
    assert_eq!(rows(&crashed, Table::Meta), "applied=1");
    put(&crashed, &[(Table::Live, "b", "3")]);
    assert_eq!(rows(&crashed, Table::Live), "a=1 b=3");
}

fn only_flushed_values_are_read_as_flushed<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    assert_eq!(store.get_flushed(Table::Meta, b"applied").unwrap(), None);
    put(&store, &[(Table::Meta, "applied", "1")]);
    assert_eq!(store.get_flushed(Table::Meta, b"applied").unwrap(), None);
    store.flush().unwrap();
    put(&store, &[(Table::Meta, "applied", "2")]);
    assert_eq!(store.get_flushed(Table::Meta, b"applied").unwrap(), Some(Bytes::from("1")));
    store.flush().unwrap();
    assert_eq!(store.get_flushed(Table::Meta, b"applied").unwrap(), Some(Bytes::from("2")));
}

fn a_checkpoint_holds_the_state_of_its_moment<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    put(&store, &[(Table::Live, "a", "1"), (Table::History, "h", "1"), (Table::Meta, "applied", "1")]);
    store.flush().unwrap();
    put(&store, &[(Table::Live, "b", "2"), (Table::Meta, "applied", "2")]);
    store.checkpoint(&place.join("checkpoint")).unwrap();
    put(&store, &[(Table::Live, "a", "3"), (Table::Live, "c", "3"), (Table::Meta, "applied", "3")]);
    store.flush().unwrap();
    let copy = E::open_checkpoint(&place.join("checkpoint")).unwrap();
    assert_eq!(rows(&copy, Table::Live), "a=1 b=2");
    assert_eq!(rows(&copy, Table::History), "h=1");
    assert_eq!(rows(&copy, Table::Meta), "applied=2");
    assert_eq!(copy.get_flushed(Table::Meta, b"applied").unwrap(), Some(Bytes::from("2")));
    assert_eq!(rows(&store, Table::Live), "a=3 b=2 c=3");
}

fn a_checkpoint_needs_a_new_directory<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    put(&store, &[(Table::Live, "a", "1")]);
    store.checkpoint(&place.join("checkpoint")).unwrap();
    assert!(store.checkpoint(&place.join("checkpoint")).is_err());
    assert!(E::open_checkpoint(&place.join("absent")).is_err());
    assert!(!place.join("absent").exists());
}

fn sizes_grow_with_what_is_written<E: Engine>() {
    let (_directory, place) = place();
    let store = E::create(&place);
    let (before, _) = store.size_bytes();
    // Bytes that do not compress.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(300_000)
    .collect();
    let mut batch = WriteBatch::default();
    batch.put(Table::Live, "large", noise);
    store.write(batch).unwrap();
    let (written, _) = store.size_bytes();
    assert!(written >= before + 200_000, "{written} after {before}");
    store.flush().unwrap();
    let (flushed, live) = store.size_bytes();
    assert!(flushed >= 100_000 && live <= flushed && live > 0, "{live} of {flushed}");
}

#[test]
fn a_memory_key_space_is_dead_after_a_crash_or_a_failed_write() {
    use crate::storage::memory::FailedWrite;
    let batch = |value: &str| {
        let mut batch = WriteBatch::default();
        batch.put(Table::Live, "a", value.to_owned());
        batch
    };
    for (left, expected) in [(FailedWrite::Lost, ""), (FailedWrite::Kept, "a=2")] {
        let store = MemoryKeySpace::default();
        store.clone().fail_write(2, left);
        store.write(batch("2")).unwrap();
        assert!(store.flush().is_err());
        assert!(store.write(batch("3")).is_err());
        assert!(store.view().is_err());
        let restarted = store.crash();
        assert_eq!(rows(&restarted, Table::Live), expected);
        restarted.write(batch("4")).unwrap();
        assert!(store.flush().is_err());
        assert_eq!(rows(&restarted, Table::Live), "a=4");
    }
}

#[test]
fn a_checkpoint_is_not_changed_by_reading_it() {
    let (_directory, place) = place();
    let store = Rocks::create(&place);
    put(&store, &[(Table::Live, "a", "1")]);
    let checkpoint = place.join("checkpoint");
    store.checkpoint(&checkpoint).unwrap();
    let files = || {
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            (path.clone(), std::fs::read(path).unwrap())
        };
        std::fs::read_dir(&checkpoint).unwrap().map(read).collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = files();
    let copy = RocksKeySpace::open_read_only(&checkpoint).unwrap();
    assert_eq!(rows(&copy, Table::Live), "a=1");
    let mut batch = WriteBatch::default();
    batch.put(Table::Live, "a", "2");
    assert!(copy.write(batch).is_err());
    drop(copy);
    assert!(files() == before);
}

#[test]
fn a_damaged_checkpoint_in_memory_is_corrupt() {
    let (_directory, place) = place();
    let store = MemoryKeySpace::default();
    put(&store, &[(Table::Live, "a", "1")]);
    store.checkpoint(&place.join("checkpoint")).unwrap();
    let file = place.join("checkpoint/TABLES");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(MemoryKeySpace::from_checkpoint(&place.join("checkpoint")).is_err());
}
