//! What one read of the store for watchers, or ahead for a run, holds in memory, whatever the values before it were.

use std::cell::Cell;

use super::super::overlay::Overlay;
use super::*;
use crate::storage::Visit;

const LARGE: usize = 300_000;
/// Of the row around a value.
const ROW: usize = 100;

/// Keys that a run reads at once.
const KEYS_AT_ONCE: usize = 32;
/// What a run reads ahead.
const READ_AHEAD: usize = 4 << 20;

/// A view that measures the batched reads.
struct Measured<V> {
    view: V,
    reads: Cell<usize>,
    rows: Cell<usize>,
    /// Bytes of the largest read.
    most: Cell<usize>,
    /// Bytes of all reads.
    sum: Cell<usize>,
}

impl<V: View> Measured<V> {
    fn new(view: V) -> Self {
        let [reads, rows, most, sum] = std::array::from_fn(|_| Cell::default());
        Self { view, reads, rows, most, sum }
    }
}

impl<V: View> View for Measured<V> {
    fn get(&self, table: Table, key: &[u8]) -> crate::storage::Result<Option<Bytes>> {
        self.view.get(table, key)
    }

    fn multi_get(&self, table: Table, keys: &[&[u8]]) -> crate::storage::Result<Vec<Option<Bytes>>> {
        let read = self.view.multi_get(table, keys)?;
        let bytes = read.iter().flatten().map(Bytes::len).sum();
        self.reads.set(self.reads.get() + 1);
        self.rows.set(self.rows.get() + keys.len());
        self.most.set(self.most.get().max(bytes));
        self.sum.set(self.sum.get() + bytes);
        Ok(read)
    }

    fn scan(
        &self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: Visit<'_>,
    ) -> crate::storage::Result<()> {
        self.view.scan(table, bounds, reverse, visit)
    }
}

fn put(key: String, bytes: usize) -> Command {
    Command::Put(pb::PutRequest { key: key.into(), value: vec![7; bytes].into(), ..Default::default() })
}

/// Reads back what the commands, each of one change, did.
fn read_back(commands: Vec<Command>, prev_kv: bool) -> Measured<impl View> {
    let (mut replica, events) = (Replica::over(MemoryKeySpace::default()), commands.len());
    let applied = replica.state.apply(&[entry_of(1, commands)]).unwrap().events;
    let view = Measured::new(replica.view());
    let most = Most { bytes: usize::MAX, ..Most::default() };
    let ranges = [KeyRange::of(&"k".into(), &"l".into())];
    let read = changes(&view, &Wanted { ranges: &ranges, from: 2, to: i64::MAX, prev_kv, most }).unwrap();
    assert_eq!(read.revisions.len(), events);
    if prev_kv {
        assert_eq!(read.revisions, applied);
    }
    view
}

#[test]
fn a_large_value_is_read_once_for_all_the_versions_of_its_key_in_a_group() {
    let mut commands: Vec<_> = (0..520).map(|_| put("k".to_owned(), 10)).collect();
    commands.push(put("k".to_owned(), LARGE));
    for prev_kv in [false, true] {
        let view = read_back(commands.clone(), prev_kv);
        assert!(view.most.get() <= LARGE + 24 * ROW, "{}", view.most.get());
        // Once for each of the groups of 8, 512 and 1.
        assert!(view.sum.get() <= 3 * (LARGE + ROW) + 3 * 520 * ROW, "{}", view.sum.get());
    }
}

#[test]
fn large_values_after_small_ones_are_not_read_all_at_once() {
    for same_key in [false, true] {
        let key = |n: usize| if same_key { "k".to_owned() } else { format!("k{n}") };
        let values = (0..100).map(|n| (n, 10)).chain((100..200).map(|n| (n, LARGE)));
        let view = read_back(values.map(|(n, bytes)| put(key(n), bytes)).collect(), true);
        assert!(view.most.get() <= 24 * (LARGE + ROW), "{}", view.most.get());
    }
}

#[test]
fn small_values_are_read_many_at_once() {
    let view = read_back((0..2000).map(|n| put(format!("k{n}"), 10)).collect(), true);
    assert_eq!(view.rows.get(), 2000);
    assert!(view.reads.get() < 100, "{}", view.reads.get());
}

/// A run that has read ahead the keys of values of so many bytes.
fn read_ahead(sizes: impl Iterator<Item = usize>) -> Overlay<Measured<impl View>> {
    let key = |number: usize| format!("k{number:05}");
    let puts: Vec<_> = sizes.enumerate().map(|(number, bytes)| put(key(number), bytes)).collect();
    let (mut replica, keys) = (Replica::over(MemoryKeySpace::default()), puts.len());
    replica.state.apply(&[entry_of(1, puts)]).unwrap();
    let mut run = Overlay::new(Measured::new(replica.view()), Revisions { revision: keys as i64 + 1, compacted: -1 });
    run.prefetch((0..keys).map(|number| key(number).into()).collect()).unwrap();
    run
}

#[test]
fn a_run_reads_little_of_large_values_ahead() {
    for small in [0, 1000] {
        let run = read_ahead((0..small + 100).map(|number| if number < small { 10 } else { LARGE }));
        let view = run.view();
        let at_once = if small == 0 { READ_AHEAD / 4 } else { KEYS_AT_ONCE * (LARGE + ROW) };
        assert!(view.most.get() <= at_once, "{}", view.most.get());
        assert!(view.sum.get() <= READ_AHEAD + at_once + small * ROW, "{}", view.sum.get());
    }
}

#[test]
fn a_run_reads_small_values_ahead_many_at_once() {
    let run = read_ahead((0..2000).map(|_| 10));
    assert_eq!(run.view().rows.get(), 2000);
    assert!(run.view().reads.get() < 2000 / KEYS_AT_ONCE + 10, "{}", run.view().reads.get());
}
