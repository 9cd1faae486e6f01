//! Deletes too large for one write batch, alone in their revision or beside changes of other keys.
//!
//! Their superseded versions, tombstones and rows of `revision` are written ahead, in parts, and nobody sees them: they
//! are of a revision above the current one, and `live` still has every key. The run's own batch then only takes the
//! keys out of `live` and moves the revision. A marker beside each part tells a process that died in between what to take
//! back ([`undo`]), so that it begins again from the state before. Events of such a revision are not kept; watchers read
//! them from the store. What else the command changes goes with the run's own batch, as ever; only its place in the rows
//! comes from here, because rows have the changes of a revision in order.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use balsa_proto::log::Version;
use balsa_proto::mvccpb::Event;
use balsa_proto::mvccpb::event::EventType;
use bytes::Bytes;

use super::{Mark, Overlay, Slot};
use crate::domain::mvcc::encoding::{self, Change, ChangeKind, RowKey, RowReader, RowWriter, corrupt, history_key};
use crate::domain::mvcc::source::keep_error;
use crate::domain::mvcc::watch::hull;
use crate::domain::mvcc::{Counts, KeyRange, Unlisted, current};
use crate::storage::{KeySpace, StorageError, Table, View, WriteBatch};

/// Bytes of keys and values from which a delete is written in parts, and of each part. A part is in memory a few times.
pub(crate) const PART_BYTES: usize = 4 << 20;
/// What a key takes beside its bytes.
const KEY_BYTES: usize = 64;
/// Deletions of rows that [`undo`] writes at once.
const UNDO_ROWS: usize = 4096;

/// Writes a part and shows the state with it.
pub(crate) type WritePart<V> = Box<dyn FnMut(WriteBatch) -> Result<V, StorageError>>;

/// What a run has written ahead.
pub(super) struct Ahead<V> {
    part_bytes: usize,
    /// The revision that the store had before the run.
    stored: i64,
    write: WritePart<V>,
    /// Number of keys of each part of the key space, without those that were deleted from a range.
    counts: Option<Counts>,
    /// Ranges of `live` of which nothing stored is left, `low` included to `high`, which is not. They lie apart.
    cleared: BTreeMap<Bytes, Bytes>,
    under_way: Option<UnderWay>,
    done: Vec<Unlisted>,
}

/// A command with a delete that is written in parts.
#[derive(Default)]
struct UnderWay {
    /// The delete at hand.
    delete: Option<Delete>,
    /// Changes so far.
    told: u32,
    /// The last of them, which no row holds yet.
    pending: Vec<Told>,
    /// What the revision comes to.
    sum: Unlisted,
}

struct Delete {
    first: Bytes,
    last: Bytes,
    deleted: u64,
}

/// A change as a row has it. None of these is in passing.
struct Told {
    key: Bytes,
    deleted: bool,
    previous: i64,
}

/// What becomes of the keys of a part in `live`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// All keys from the first to the last one of the delete go, by one deletion of the range.
    Range,
    /// Each goes by itself; others stand between them.
    Keys,
}

impl<V> Ahead<V> {
    /// Notes a range of which nothing stored is left, as one with those that it overlaps.
    fn clear(&mut self, mut low: Bytes, mut high: Bytes) {
        while let Some((other, end)) =
            self.cleared.range::<Bytes, _>(..=&high).next_back().filter(|(_, end)| **end >= low)
        {
            let (other, end) = (other.clone(), end.clone());
            self.cleared.remove(&other);
            (low, high) = (low.min(other), high.max(end));
        }
        self.cleared.insert(low, high);
    }

    fn is_cleared(&self, key: &[u8]) -> bool {
        let mut below = self.cleared.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        below.next_back().is_some_and(|(_, high)| key < &high[..])
    }
}

impl UnderWay {
    /// The pending changes.
    fn changes<'a>(&'a self, revision: i64) -> Vec<Change<'a>> {
        let first = self.told - u32::try_from(self.pending.len()).unwrap_or(0);
        let of = |(sub, told): (u32, &'a Told)| {
            let kind = if told.deleted { ChangeKind::Delete } else { ChangeKind::Put };
            Change { revision, sub, key: &told.key, kind, previous: told.previous }
        };
        (first..).zip(&self.pending).map(of).collect()
    }

    /// Takes the next change of the revision.
    fn tell(&mut self, rows: &mut RowWriter, revision: i64, told: Told) {
        self.pending.push(told);
        self.told += 1;
        if self.pending.len() == rows.room() {
            rows.add(&self.changes(revision));
            self.pending.clear();
        }
    }

    /// Takes changes of the command that were not written in parts.
    fn tell_others(&mut self, rows: &mut RowWriter, revision: i64, others: impl Iterator<Item = (Event, Mark)>) {
        for (event, mark) in others {
            debug_assert!(!mark.in_passing, "only changes of different keys are written in parts");
            let deleted = event.r#type() == EventType::Delete;
            let Some(kv) = event.kv else { continue };
            let range = KeyRange::One(kv.key.clone());
            if deleted {
                self.sum.deleted += 1;
                widen(&mut self.sum.deletes, range);
            } else {
                self.sum.put += 1;
                self.sum.put_bytes += (kv.key.len() + kv.value.len()) as u64;
                widen(&mut self.sum.puts, range);
            }
            self.tell(rows, revision, Told { key: kv.key, deleted, previous: mark.previous });
        }
    }
}

fn widen(range: &mut Option<KeyRange>, by: KeyRange) {
    *range = hull(range.iter().chain([&by]));
}

impl<V: View> Overlay<V> {
    /// Lets large deletes be written in parts of about `part_bytes`. `counts` are those of the view.
    pub(crate) fn write_ahead(&mut self, part_bytes: usize, counts: Option<Counts>, write: WritePart<V>) {
        let (cleared, done) = (BTreeMap::new(), Vec::new());
        let stored = self.revisions.revision;
        self.ahead = Some(Ahead { part_bytes, stored, write, counts, cleared, under_way: None, done });
    }

    /// Bytes, as [`bytes_of`] counts them, that a delete may take before it must be written in parts.
    pub(crate) fn part_bytes(&self) -> usize {
        self.ahead.as_ref().map_or(usize::MAX, |ahead| ahead.part_bytes)
    }

    /// Whether the command under way is written in parts.
    pub(super) fn is_large(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.under_way.is_some())
    }

    /// Whether the store's version of `key` was deleted with a range.
    pub(super) fn is_cleared(&self, key: &[u8]) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.is_cleared(key))
    }

    /// Deletes keys, which are there and follow those of the part before, and writes what their deletion leaves behind.
    /// [`end_parts`](Self::end_parts) ends the delete. No other change of the command may be of one of these keys.
    pub(crate) fn delete_part(&mut self, doomed: &[(Bytes, Version)], leave: Leave) -> Result<(), StorageError> {
        if doomed.is_empty() { Ok(()) } else { self.write_part(doomed, leave) }
    }

    /// Writes what the small deletes of the command so far leave behind. No other change of the command may be of one of
    /// their keys.
    pub(crate) fn write_small_deletes(&mut self) -> Result<(), StorageError> {
        self.write_part(&[], Leave::Keys)
    }

    fn write_part(&mut self, doomed: &[(Bytes, Version)], leave: Leave) -> Result<(), StorageError> {
        let revision = self.revisions.revision + 1;
        let Some(mut ahead) = self.ahead.take() else { return Ok(()) };
        let mut under_way = ahead.under_way.take().unwrap_or_default();
        let mut part = WriteBatch::default();
        self.move_small_deletes(revision, ahead.stored, &mut part);
        under_way.tell_others(&mut self.rows, revision, self.events.drain(..).zip(self.marks.drain(..)));
        if let (Some((first, _)), Some((last, _))) = (doomed.first(), doomed.last()) {
            let begin = || Delete { first: first.clone(), last: last.clone(), deleted: 0 };
            let delete = under_way.delete.get_or_insert_with(begin);
            delete.last = last.clone();
            delete.deleted += doomed.len() as u64;
        }
        for (key, version) in doomed {
            let previous = match self.slots.contains_key(key) {
                true => self.delete_changed(key, revision)?,
                false => {
                    part.put(
                        Table::History,
                        self.arena.history_key(key, version.mod_revision),
                        self.arena.version(version),
                    );
                    part.put(Table::History, self.arena.history_key(key, revision), Bytes::new());
                    self.leave(&mut ahead, key, revision, leave);
                    version.mod_revision
                }
            };
            self.leases.moved(key, version.lease, 0);
            under_way.tell(&mut self.rows, revision, Told { key: key.clone(), deleted: true, previous });
        }
        self.rows.closed().for_each(|(key, row)| part.put(Table::Revision, key.encode().to_vec(), row));
        part.put(Table::Meta, encoding::ahead(revision), marker(&under_way.changes(revision)));
        self.view = (ahead.write)(part)?;
        ahead.under_way = Some(under_way);
        self.ahead = Some(ahead);
        Ok(())
    }

    /// Takes into a part what the deletes among the changes so far leave behind. Only their keys stay in memory. What is
    /// left of a key that the run changed before goes with the run's own batch, as that change does.
    fn move_small_deletes(&mut self, revision: i64, stored: i64, part: &mut WriteBatch) {
        for (event, mark) in self.events.iter().zip(&self.marks).filter(|(_, mark)| mark.previous <= stored) {
            let Some(kv) = event.kv.as_ref().filter(|_| event.r#type() == EventType::Delete) else { continue };
            for made in [mark.previous, revision] {
                if let Some((key, row)) = self.history.remove_entry(&history_key(&kv.key, made)[..]) {
                    part.put(Table::History, key, row);
                }
            }
            if let Some(slot) = self.slots.get_mut(&kv.key) {
                slot.before = None;
            }
        }
    }

    /// Deletes a key that the run has looked at before; what it leaves behind goes with the run's own batch. Answers the
    /// revision of the version that it had before this revision.
    fn delete_changed(&mut self, key: &Bytes, revision: i64) -> Result<i64, StorageError> {
        let (_, mark) = self.supersede(key, revision)?;
        self.history.insert(self.arena.history_key(key, revision), Bytes::new());
        Ok(mark.previous)
    }

    fn leave(&mut self, ahead: &mut Ahead<V>, key: &Bytes, revision: i64, leave: Leave) {
        match leave {
            Leave::Range => ahead.counts.iter_mut().for_each(|counts| counts.change(key, false)),
            Leave::Keys => {
                self.slots.insert(key.clone(), Slot { stored: true, changed_at: revision, ..Slot::default() });
            }
        }
    }

    /// Ends the delete under way, of which all parts are written. Answers how many keys it deleted.
    pub(crate) fn end_parts(&mut self, leave: Leave) -> u64 {
        let Some(ahead) = &mut self.ahead else { return 0 };
        let Some(under_way) = &mut ahead.under_way else { return 0 };
        let Some(Delete { first, last, deleted }) = under_way.delete.take() else { return 0 };
        under_way.sum.deleted += deleted;
        let high = after(&last);
        widen(&mut under_way.sum.deletes, KeyRange::Span { low: first.clone(), high: Some(high.clone()) });
        if leave == Leave::Range {
            ahead.clear(first, high);
            // They are of the view, which still has the keys.
            self.counts = None;
        }
        deleted
    }

    /// Ends the command under way, if it has parts.
    pub(super) fn finish_large(&mut self) {
        let Some(ahead) = &mut self.ahead else { return };
        let Some(mut under_way) = ahead.under_way.take() else { return };
        self.revisions.revision += 1;
        let revision = self.revisions.revision;
        under_way.tell_others(&mut self.rows, revision, self.events.drain(..).zip(self.marks.drain(..)));
        self.rows.add(&under_way.changes(revision));
        ahead.done.push(Unlisted { revision, ..under_way.sum });
    }

    /// What the run's own batch begins with, the revisions that were written ahead, and the counts without what was
    /// deleted from ranges.
    pub(super) fn finish_ahead(&mut self, batch: &mut WriteBatch) -> (Vec<Unlisted>, Option<Counts>) {
        let Some(ahead) = self.ahead.take().filter(|ahead| !ahead.done.is_empty()) else { return (Vec::new(), None) };
        for (low, high) in ahead.cleared {
            batch.delete_range(Table::Live, low, high);
        }
        for Unlisted { revision, .. } in &ahead.done {
            batch.delete(Table::Meta, encoding::ahead(*revision));
        }
        (ahead.done, ahead.counts)
    }
}

/// What a pair counts for towards [`PART_BYTES`].
pub(crate) fn bytes_of(key: &[u8], value: &[u8]) -> usize {
    KEY_BYTES + key.len() + value.len()
}

/// The first key above `key`.
fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The changes that no row holds yet, as a row behind its key; empty when there is none.
fn marker(changes: &[Change<'_>]) -> Bytes {
    let mut rows = RowWriter::default();
    rows.add(changes);
    let row = rows.finish().into_iter().next();
    row.map(|(key, row)| [&key.encode()[..], &row].concat().into()).unwrap_or_default()
}

/// Takes back what a process wrote ahead before it died, so that the state is the one before. The entries come again.
///
/// # Errors
/// Of the store.
pub(crate) fn undo<K: KeySpace>(key_space: &K) -> Result<(), StorageError> {
    let view = key_space.view()?;
    let mut markers = Vec::new();
    let bounds = (Bound::Included(encoding::AHEAD), Bound::Excluded(encoding::AHEAD_END));
    view.scan(Table::Meta, bounds, false, &mut |key, row| {
        markers.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(row)));
        ControlFlow::Continue(())
    })?;
    if markers.is_empty() {
        return Ok(());
    }
    // Rows of revisions that nobody was told of were all written ahead.
    let low = RowKey { revision: current(&view)?.revision.saturating_add(1), sub: 0 }.encode();
    let (mut batch, mut outcome) = (WriteBatch::default(), Ok(()));
    view.scan(Table::Revision, (Bound::Included(&low), Bound::Unbounded), false, &mut |key, row| {
        let undone = undo_row(key, row, &mut batch).and_then(|()| {
            batch.delete(Table::Revision, key.to_vec());
            if batch.writes.len() < UNDO_ROWS { Ok(()) } else { key_space.write(std::mem::take(&mut batch)) }
        });
        keep_error(&mut outcome, undone, |()| ControlFlow::Continue(()))
    })?;
    outcome?;
    for (key, row) in markers {
        if let Some((at, row)) = row.split_first_chunk::<12>() {
            undo_row(at, row, &mut batch)?;
        } else if !row.is_empty() {
            return Err(corrupt("the mark of a delete under way does not decode"));
        }
        batch.delete(Table::Meta, key);
    }
    key_space.write(batch)
}

/// The versions that a change of a row superseded stand in `live` still, so those in `history` are copies.
fn undo_row(key: &[u8], row: &[u8], batch: &mut WriteBatch) -> Result<(), StorageError> {
    for change in RowReader::new(RowKey::decode(key)?, row)? {
        let change = change?;
        batch.delete(Table::History, history_key(change.key, change.revision));
        if change.previous != 0 {
            batch.delete(Table::History, history_key(change.key, change.previous));
        }
    }
    Ok(())
}
