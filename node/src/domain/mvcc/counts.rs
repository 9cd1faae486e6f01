//! How many keys there are, kept in blocks, so that an exact count of any range costs a sum and two short scans.
//!
//! A block is a run of neighbouring keys with their number; about a thousand blocks describe half a million keys. Blocks
//! are split and merged as keys come and go, so where they begin depends on the history of one member: they are an aid of
//! that member, never compared and never part of a hash. Cloning is cheap: clones share their pages, and a change copies
//! the pages that it touches. So a reader keeps the counts of one revision for as long as it likes.
//!
//! A reader's view is at that revision or a later one, and it may ask for an earlier one. What lies between is corrected
//! by the rows of `revision`.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use balsa_proto::log;
use bytes::Bytes;
use prost::Message;

use super::changes::first_row;
use super::encoding::{COUNTS, Change, ChangeKind, RowKey, RowReader, corrupt, counts_page, decode};
use super::source::{Bounds, Source, Stored, VisitRow, VisitVersion, keep_error, scan_at};
use super::{KeyRange, current};
use crate::storage::{StorageError, Table, View, WriteBatch};

/// Keys of a new block. More make counts slower, fewer cost memory: a block takes about 100 bytes.
const BLOCK_KEYS: u64 = if cfg!(test) { 8 } else { 512 };
/// A block with more is split.
const MAX_BLOCK_KEYS: u64 = 2 * BLOCK_KEYS;
/// Two neighbours with fewer together become one.
const MIN_BLOCK_KEYS: u64 = BLOCK_KEYS / 2;
/// Blocks of a page; one with more is split. A change copies one page.
const MAX_PAGE_BLOCKS: usize = if cfg!(test) { 4 } else { 128 };
/// Revisions that a correction may walk over even where few keys are counted.
const MIN_CORRECTION: u64 = 10_000;

/// Keys from `low` up to the next block's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    low: Bytes,
    keys: u64,
}

/// At least one block.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Page {
    blocks: Vec<Block>,
    keys: u64,
}

impl Page {
    fn of(blocks: Vec<Block>) -> Arc<Self> {
        let keys = blocks.iter().map(|block| block.keys).sum();
        Arc::new(Self { blocks, keys })
    }

    fn low(&self) -> &[u8] {
        self.blocks.first().map(|block| &block.low[..]).unwrap_or_default()
    }
}

/// The number of keys in each part of the key space at one revision.
#[derive(Clone)]
pub struct Counts {
    revision: i64,
    /// At least one, and the first block begins with the empty key.
    pages: Arc<Vec<Arc<Page>>>,
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Counts({} keys at {} in {} pages)", self.total(), self.revision, self.pages.len())
    }
}

/// The blocks that lie wholly within a range.
#[derive(Debug, PartialEq, Eq)]
struct Whole {
    keys: u64,
    from: Bytes,
    /// None: up to the end.
    to: Option<Bytes>,
}

impl Counts {
    /// The revision that they are of.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The number of all keys.
    pub fn total(&self) -> u64 {
        self.pages.iter().map(|page| page.keys).sum()
    }

    /// Takes over that a key was created, or deleted.
    pub(crate) fn change(&mut self, key: &[u8], created: bool) {
        let (page, block) = self.block_of(key);
        let pages = Arc::make_mut(&mut self.pages);
        let page = Arc::make_mut(&mut pages[page]);
        let keys = &mut page.blocks[block].keys;
        if created {
            *keys += 1;
            page.keys += 1;
            return;
        }
        *keys = keys.saturating_sub(1);
        page.keys = page.keys.saturating_sub(1);
        let left = page.blocks[block].keys;
        if page.blocks.get(block + 1).is_some_and(|next| left + next.keys < MIN_BLOCK_KEYS) {
            let next = page.blocks.remove(block + 1);
            page.blocks[block].keys += next.keys;
        }
        // What begins with a page without keys belongs to the page before from now on.
        if page.keys == 0 {
            pages.retain(|page| page.keys > 0 || page.low().is_empty());
        }
    }

    /// Takes over the keys that a run of commands created (true) or deleted, and the revision after it.
    pub(crate) fn advance(&mut self, revision: i64, changes: &[(Bytes, bool)]) {
        self.revision = revision;
        for (key, created) in changes {
            self.change(key, *created);
        }
    }

    /// Splits the blocks around `changes` that have grown too large. `view` is at the revision of the counts.
    ///
    /// # Errors
    /// Of the store.
    pub(crate) fn split(&mut self, view: &impl View, changes: &[(Bytes, bool)]) -> Result<(), StorageError> {
        for low in self.oversized(changes) {
            let (page, block) = self.block_of(&low);
            let high = self.high_of(page, block);
            let mut parts = Blocks::new(low.clone());
            let bounds = (Bound::Included(&low[..]), as_excluded(high.as_deref()));
            view.scan(Table::Live, bounds, false, &mut |key, _| {
                parts.key(key);
                ControlFlow::Continue(())
            })?;
            self.replace(page, block, parts.0);
        }
        Ok(())
    }

    /// Whether any block around `changes` has grown too large.
    pub(crate) fn is_oversized(&self, changes: &[(Bytes, bool)]) -> bool {
        !self.oversized(changes).is_empty()
    }

    /// Where the blocks around `changes` begin that have grown too large.
    fn oversized(&self, changes: &[(Bytes, bool)]) -> BTreeSet<Bytes> {
        let blocks = changes.iter().filter(|(_, created)| *created).map(|(key, _)| {
            let (page, block) = self.block_of(key);
            &self.pages[page].blocks[block]
        });
        blocks.filter(|block| block.keys > MAX_BLOCK_KEYS).map(|block| block.low.clone()).collect()
    }

    fn replace(&mut self, page: usize, block: usize, parts: Vec<Block>) {
        let pages = Arc::make_mut(&mut self.pages);
        let mut blocks = pages[page].blocks.clone();
        blocks.splice(block..=block, parts);
        let size = if blocks.len() > MAX_PAGE_BLOCKS { MAX_PAGE_BLOCKS / 2 } else { MAX_PAGE_BLOCKS };
        let new: Vec<_> = blocks.chunks(size).map(|blocks| Page::of(blocks.to_vec())).collect();
        pages.splice(page..=page, new);
    }

    /// The block that a key lies in.
    fn block_of(&self, key: &[u8]) -> (usize, usize) {
        let page = self.pages.partition_point(|page| page.low() <= key).saturating_sub(1);
        let block = self.pages[page].blocks.partition_point(|block| block.low <= key).saturating_sub(1);
        (page, block)
    }

    /// Where the next block begins.
    fn high_of(&self, page: usize, block: usize) -> Option<Bytes> {
        let next = self.pages[page].blocks.get(block + 1);
        next.or_else(|| self.pages.get(page + 1)?.blocks.first()).map(|block| block.low.clone())
    }

    /// The blocks within a range; none when there is no whole one.
    fn whole(&self, low: &[u8], high: Option<&[u8]>) -> Option<Whole> {
        // No key is empty, so a range from the lowest key has all of the first block.
        let first = match low {
            [] | [0] => (0, 0),
            low => match self.block_of(low) {
                (page, block) if self.pages[page].blocks[block].low == low => (page, block),
                (page, block) if block + 1 < self.pages[page].blocks.len() => (page, block + 1),
                (page, _) => (page + 1, 0),
            },
        };
        let last = high.map_or((self.pages.len(), 0), |high| self.block_of(high));
        if first >= last {
            return None;
        }
        let keys = (first.0..=last.0).filter_map(|index| Some((index, self.pages.get(index)?))).map(|(index, page)| {
            let from = if index == first.0 { first.1 } else { 0 };
            let to = if index == last.0 { last.1 } else { page.blocks.len() };
            match (from, to) {
                (0, to) if to == page.blocks.len() => page.keys,
                (from, to) => page.blocks[from..to].iter().map(|block| block.keys).sum(),
            }
        });
        let low_at = |(page, block): (usize, usize)| Some(self.pages.get(page)?.blocks.get(block)?.low.clone());
        Some(Whole { keys: keys.sum(), from: low_at(first)?, to: low_at(last) })
    }

    /// The number of keys of `range` that are there at `revision`, which `view` can read; `current` is its own revision.
    /// None where going over the keys is no dearer.
    ///
    /// # Errors
    /// Of the store.
    pub(crate) fn count(
        &self,
        view: &impl View,
        range: &KeyRange,
        revision: i64,
        revision_of_view: i64,
    ) -> Result<Option<i64>, StorageError> {
        let KeyRange::Span { low, high } = range else { return Ok(None) };
        let Some(whole) = self.whole(low, high.as_deref()).filter(|_| !range.is_empty()) else { return Ok(None) };
        let (from, to) = (revision.min(self.revision), revision.max(self.revision));
        if from < current(view)?.compacted || to.abs_diff(from) > whole.keys.max(MIN_CORRECTION) {
            return Ok(None);
        }
        let within = KeyRange::Span { low: whole.from.clone(), high: whole.to.clone() };
        let mut shift = 0;
        between(view, from, to, &mut |key, created| {
            if within.contains(key) {
                shift += if created { 1 } else { -1 };
            }
        })?;
        let mut count = i64::try_from(whole.keys).unwrap_or(i64::MAX);
        count += if revision < self.revision { -shift } else { shift };
        let edges = [
            KeyRange::Span { low: low.clone(), high: Some(whole.from.clone()) },
            KeyRange::Span { low: whole.to.clone().unwrap_or_default(), high: high.clone() },
        ];
        for edge in edges.iter().take(if whole.to.is_some() { 2 } else { 1 }) {
            scan_at(&Stored(view), edge, revision, revision_of_view, &mut |_, _| {
                count += 1;
                ControlFlow::Continue(())
            })?;
        }
        Ok(Some(count))
    }
}

/// Visits the keys that were created or deleted by the revisions after `from` up to `to`. A key may come several times.
fn between(view: &impl View, from: i64, to: i64, visit: &mut dyn FnMut(&[u8], bool)) -> Result<(), StorageError> {
    if from >= to {
        return Ok(());
    }
    let low = first_row(view, RowKey { revision: from + 1, sub: 0 })?.encode();
    let high = RowKey { revision: to.saturating_add(1), sub: 0 }.encode();
    let mut outcome = Ok(());
    view.scan(Table::Revision, (Bound::Included(&low), Bound::Excluded(&high)), false, &mut |key, row| {
        let read = RowKey::decode(key).and_then(|key| RowReader::new(key, row)).and_then(|row| {
            for change in row {
                let change = change?;
                if change.revision > from && change.revision <= to {
                    shift_of(&change).into_iter().for_each(|created| visit(change.key, created));
                }
            }
            Ok(())
        });
        keep_error(&mut outcome, read, |()| ControlFlow::Continue(()))
    })?;
    outcome
}

/// Whether a change made a key come or go, seen over its whole revision.
fn shift_of(change: &Change<'_>) -> Option<bool> {
    match (&change.kind, change.previous) {
        (ChangeKind::Put, 0) => Some(true),
        (ChangeKind::Delete, previous) if previous != 0 => Some(false),
        _ => None,
    }
}

/// Blocks in the making, from keys in order.
struct Blocks(Vec<Block>);

impl Blocks {
    fn new(low: Bytes) -> Self {
        Self(vec![Block { low, keys: 0 }])
    }

    fn key(&mut self, key: &[u8]) {
        match self.0.last_mut() {
            Some(block) if block.keys < BLOCK_KEYS => block.keys += 1,
            _ => self.0.push(Block { low: Bytes::copy_from_slice(key), keys: 1 }),
        }
    }
}

fn as_excluded(high: Option<&[u8]>) -> Bound<&[u8]> {
    high.map_or(Bound::Unbounded, Bound::Excluded)
}

// ---- on the disk

impl Counts {
    /// Reads the counts that were saved and takes over what changed since; counts all keys when that cannot be done.
    ///
    /// # Errors
    /// Of the store.
    pub fn load(view: &impl View) -> Result<Self, StorageError> {
        let revisions = current(view)?;
        let mut counts = match Self::read(view)? {
            Some(saved) if saved.revision >= revisions.compacted && saved.revision <= revisions.revision => saved,
            _ => return Self::build(view, revisions.revision),
        };
        let mut changes = Vec::new();
        between(view, counts.revision, revisions.revision, &mut |key, created| {
            changes.push((Bytes::copy_from_slice(key), created));
        })?;
        counts.advance(revisions.revision, &changes);
        counts.split(view, &changes)?;
        Ok(counts)
    }

    fn build(view: &impl View, revision: i64) -> Result<Self, StorageError> {
        let mut blocks = Blocks::new(Bytes::new());
        view.scan(Table::Live, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, _| {
            blocks.key(key);
            ControlFlow::Continue(())
        })?;
        let pages = blocks.0.chunks(MAX_PAGE_BLOCKS / 2).map(|blocks| Page::of(blocks.to_vec()));
        Ok(Self { revision, pages: Arc::new(pages.collect()) })
    }

    fn read(view: &impl View) -> Result<Option<Self>, StorageError> {
        let Some(bytes) = view.get(Table::Meta, COUNTS)? else { return Ok(None) };
        let head: log::Counts = decode("the head of the counts", bytes)?;
        let mut pages = Vec::new();
        for number in 0..head.pages {
            let bytes = view.get(Table::Meta, &counts_page(number))?;
            let page: log::CountsPage =
                decode("a page of the counts", bytes.ok_or_else(|| corrupt("a page of the counts is missing"))?)?;
            let blocks = page.lows.into_iter().zip(page.keys).map(|(low, keys)| Block { low, keys });
            pages.push(Page::of(blocks.collect()));
        }
        let lows = || pages.iter().flat_map(|page| page.blocks.iter().map(|block| &block.low));
        let ordered = lows().zip(lows().skip(1)).all(|(low, next)| low < next);
        if !ordered
            || lows().next().is_none_or(|low| !low.is_empty())
            || pages.iter().any(|page| page.blocks.is_empty())
        {
            return Err(corrupt("the counts are out of order"));
        }
        Ok(Some(Self { revision: head.revision, pages: Arc::new(pages) }))
    }

    /// What must be written so that [`load`](Self::load) finds these counts where `saved` were written before.
    pub fn save(&self, saved: Option<&Self>) -> WriteBatch {
        let mut batch = WriteBatch::default();
        let numbers = 0..u32::MAX;
        let before = saved.map(|saved| &saved.pages[..]).unwrap_or_default();
        for (number, page) in numbers.clone().zip(self.pages.iter()) {
            if before.get(number as usize).is_some_and(|before| Arc::ptr_eq(before, page)) {
                continue;
            }
            let lows = page.blocks.iter().map(|block| block.low.clone()).collect();
            let keys = page.blocks.iter().map(|block| block.keys).collect();
            batch.put(Table::Meta, counts_page(number), log::CountsPage { lows, keys }.encode_to_vec());
        }
        for (number, _) in numbers.zip(before).skip(self.pages.len()) {
            batch.delete(Table::Meta, counts_page(number));
        }
        let pages = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        batch.put(Table::Meta, COUNTS, log::Counts { revision: self.revision, pages }.encode_to_vec());
        batch
    }
}

/// A stored view that counts by blocks.
pub(crate) struct Counted<'a, V> {
    /// The view.
    pub(crate) view: &'a V,
    /// Counts of its revision or an earlier one.
    pub(crate) counts: &'a Counts,
}

impl<V: View> Source for Counted<'_, V> {
    fn has_lease(&self, id: i64) -> Result<bool, StorageError> {
        Stored(self.view).has_lease(id)
    }

    fn live(&self, key: &[u8]) -> Result<Option<log::Version>, StorageError> {
        Stored(self.view).live(key)
    }

    fn scan_live(&self, bounds: Bounds<'_>, visit: &mut VisitVersion<'_>) -> Result<(), StorageError> {
        Stored(self.view).scan_live(bounds, visit)
    }

    fn scan_history(&self, bounds: Bounds<'_>, visit: &mut VisitRow<'_>) -> Result<(), StorageError> {
        Stored(self.view).scan_history(bounds, visit)
    }

    fn count(&self, range: &KeyRange, revision: i64, current: i64) -> Result<Option<i64>, StorageError> {
        self.counts.count(self.view, range, revision, current)
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::etcdserverpb as pb;
    use raft::eraftpb::Entry;

    use super::*;
    use crate::domain::apply::StateMachine;
    use crate::domain::command::Command;
    use crate::domain::mvcc::range::{range, range_counted};
    use crate::domain::random::Random;
    use crate::storage::KeySpace;
    use crate::storage::memory::MemoryKeySpace;

    /// `low..=high`.
    fn within(random: &mut Random, low: i64, high: i64) -> i64 {
        low + random.below((high - low + 1) as usize) as i64
    }

    struct World {
        random: Random,
        key_space: Arc<MemoryKeySpace>,
        machine: StateMachine<MemoryKeySpace>,
        index: u64,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let key_space = Arc::new(MemoryKeySpace::default());
            let mut machine = StateMachine::open(key_space.clone()).unwrap();
            machine.count_keys().unwrap();
            Self { random: Random::new(seed), key_space, machine, index: 0 }
        }

        fn key(&mut self) -> Bytes {
            format!("k{:03}", self.random.below(400)).into()
        }

        fn command(&mut self) -> Command {
            let key = self.key();
            match self.random.below(10) {
                0 => {
                    let range_end = [&key[..key.len() - 1], b"~"].concat().into();
                    Command::DeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false })
                }
                1 | 2 => Command::DeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }),
                _ => Command::Put(pb::PutRequest { key, ..Default::default() }),
            }
        }

        /// Applies a few entries as one run.
        fn run(&mut self) {
            let entries: Vec<Entry> = (0..=self.random.below(3))
                .map(|_| {
                    let commands: Vec<Command> = (0..=self.random.below(5)).map(|_| self.command()).collect();
                    self.index += 1;
                    let proposal = |command| log::Proposal { command: Some(command), ..Default::default() };
                    let batch = log::Batch { proposals: commands.into_iter().map(proposal).collect() };
                    Entry { index: self.index, term: 1, data: batch.encode_to_vec().into(), ..Default::default() }
                })
                .collect();
            self.machine.apply(&entries).unwrap();
        }

        fn compact(&mut self) {
            let revision = within(&mut self.random, self.machine.compacted().max(1), self.machine.revision());
            if revision <= self.machine.compacted() {
                return;
            }
            self.index += 1;
            let compact = Command::Compact(pb::CompactionRequest { revision, physical: false });
            let proposal = log::Proposal { command: Some(compact), ..Default::default() };
            let data = log::Batch { proposals: vec![proposal] }.encode_to_vec();
            self.machine
                .apply(&[Entry { index: self.index, term: 1, data: data.into(), ..Default::default() }])
                .unwrap();
            let mut cursor = crate::domain::mvcc::compaction::Cursor::default();
            while let Some(batch) =
                crate::domain::mvcc::compaction::step(&self.key_space.view().unwrap(), &mut cursor, 10).unwrap()
            {
                self.key_space.write(batch).unwrap();
            }
        }

        /// A range answers the same with these counts and without any.
        fn compare(&mut self, counts: &Counts) {
            let view = self.key_space.view().unwrap();
            let oldest = self.machine.compacted().max(1);
            let (key, range_end): (Bytes, Bytes) = match self.random.below(4) {
                0 => ("\0".into(), "\0".into()),
                1 => (self.key(), "\0".into()),
                _ => (self.key(), self.key()),
            };
            let request = pb::RangeRequest {
                key,
                range_end,
                limit: self.random.below(30) as i64,
                count_only: self.random.below(3) == 0,
                revision: within(&mut self.random, oldest, self.machine.revision()),
                ..Default::default()
            };
            let counted = range_counted(&view, Some(counts), &request).unwrap();
            assert_eq!(counted, range(&view, &request).unwrap(), "{request:?} with {counts:?}");
        }

        fn check(counts: &Counts, view: &impl View) {
            let mut keys = 0;
            let mut lows = counts.pages.iter().flat_map(|page| &page.blocks);
            assert_eq!(lows.next().unwrap().low, "");
            for (page, arc) in counts.pages.iter().enumerate() {
                assert_eq!(arc.keys, arc.blocks.iter().map(|block| block.keys).sum::<u64>());
                assert!(arc.blocks.len() <= MAX_PAGE_BLOCKS + 1);
                for (block, found) in arc.blocks.iter().enumerate() {
                    let high = counts.high_of(page, block);
                    let mut expected = 0;
                    let bounds = (Bound::Included(&found.low[..]), as_excluded(high.as_deref()));
                    view.scan(Table::Live, bounds, false, &mut |_, _| {
                        expected += 1;
                        ControlFlow::Continue(())
                    })
                    .unwrap();
                    assert_eq!(found.keys, expected, "block {:?}", found.low);
                    assert!(found.keys <= MAX_BLOCK_KEYS);
                    keys += expected;
                }
            }
            assert_eq!(counts.total(), keys);
        }
    }

    #[test]
    fn counts_are_exact_at_every_revision_however_old_they_are() {
        for seed in 0..30 {
            let mut world = World::new(seed);
            let mut old = Vec::new();
            for step in 0..120 {
                world.run();
                if step % 17 == 16 {
                    world.compact();
                }
                let counts = world.machine.counts().unwrap().clone();
                World::check(&counts, &world.key_space.view().unwrap());
                old.push(counts);
                for _ in 0..3 {
                    let one = world.random.one_of(&old);
                    world.compare(&one);
                }
            }
            assert!(world.machine.counts().unwrap().pages.len() > 1, "seed {seed} never split a page");
        }
    }

    #[test]
    fn saved_counts_are_brought_up_to_date_when_they_are_loaded() {
        for seed in 0..20 {
            let mut world = World::new(seed);
            let mut saved: Option<Counts> = None;
            for step in 0..40 {
                world.run();
                if step % 13 == 12 {
                    world.compact();
                }
                if step % 5 == 0 {
                    let counts = world.machine.counts().unwrap().clone();
                    world.key_space.write(counts.save(saved.as_ref())).unwrap();
                    saved = Some(counts);
                }
                let view = world.key_space.view().unwrap();
                let loaded = Counts::load(&view).unwrap();
                assert_eq!(loaded.revision(), world.machine.revision());
                World::check(&loaded, &view);
            }
        }
    }

    #[test]
    fn pages_out_of_order_are_corrupt() {
        let key_space = MemoryKeySpace::default();
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, COUNTS, log::Counts { revision: 1, pages: 1 }.encode_to_vec());
        let page = log::CountsPage { lows: vec!["".into(), "b".into(), "a".into()], keys: vec![0, 1, 1] };
        batch.put(Table::Meta, counts_page(0), page.encode_to_vec());
        key_space.write(batch).unwrap();
        assert!(Counts::load(&key_space.view().unwrap()).is_err());
    }
}
