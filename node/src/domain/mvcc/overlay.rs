//! The writes of a run of entries before they are written: the stored state below, what the run changed above.
//!
//! Owns the bookkeeping of one put or delete: which version moves to `history`, what the revision row and the event
//! say. It must not know requests or transactions ([`super::write`]).

pub(crate) mod large;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};

use balsa_proto::log::{Lease, Version};
use balsa_proto::mvccpb::{Event, KeyValue, event::EventType};
use bytes::Bytes;

use super::counts::Counts;
use super::encoding::{self, Arena, Change, ChangeKind, RowWriter, VersionRef, decode};
use super::source::{Bounds, Source, Stored, VisitRow, VisitVersion};
use super::tally::Tally;
use super::{KeyRange, RevisionEvents, Revisions, Unlisted, delete_event, key_value, put_event};
use crate::domain::auth::LeaseKeys;
use crate::domain::lease::LeaseChange;
use crate::domain::lease::changes::LeaseChanges;
use crate::storage::{StorageError, Table, View, WriteBatch};
use large::Ahead;

/// Bytes of values that a run reads before it needs them. What it needs beside, it reads then.
const READ_AHEAD_BYTES: usize = 4 << 20;
/// Keys that are read ahead at once, at most; so many RocksDB reads at once. How large a value is shows when it is read.
const KEYS_AT_ONCE: usize = 32;

/// What is known of one key.
#[derive(Debug, Default)]
struct Slot {
    /// The store holds a version.
    stored: bool,
    /// The newest version.
    now: Option<Version>,
    /// Its row in the store, if it has been read: the same bytes stand in `history` once it is superseded.
    row: Option<Bytes>,
    /// The revision of this run that last changed it; 0 while it is as stored.
    changed_at: i64,
    /// The version before that revision.
    before: Option<Version>,
    /// Where its last event stands among those of the command under way, unless they were written ahead since.
    place: usize,
}

/// What the row of `revision` says of a change beside the event.
#[derive(Debug, Clone, Copy)]
struct Mark {
    previous: i64,
    in_passing: bool,
}

/// A run under way.
pub(crate) struct Overlay<V> {
    view: V,
    /// Of the view.
    counts: Option<Counts>,
    revisions: Revisions,
    /// Ordered, so that ranges see them in order and the store gets them in order.
    slots: BTreeMap<Bytes, Slot>,
    history: BTreeMap<Bytes, Bytes>,
    /// Bytes of the values that the run superseded.
    superseded: usize,
    arena: Arena,
    rows: RowWriter,
    batch: WriteBatch,
    /// Leases, and which keys are attached to them.
    pub(crate) leases: LeaseChanges,
    /// What was asked of the store.
    pub(crate) tally: Tally,
    /// Of the command under way; `marks` are those of `events`, one each.
    events: Vec<Event>,
    marks: Vec<Mark>,
    published: Vec<RevisionEvents>,
    /// None: nothing is written before the run ends.
    ahead: Option<Ahead<V>>,
}

/// What a run comes to.
pub(crate) struct Finished {
    /// Its writes.
    pub(crate) batch: WriteBatch,
    /// Its revisions, without those of `unlisted`.
    pub(crate) events: Vec<RevisionEvents>,
    /// The revisions that were written ahead.
    pub(crate) unlisted: Vec<Unlisted>,
    /// The number of keys without what those deleted from ranges.
    pub(crate) counts: Option<Counts>,
    /// What happened to leases.
    pub(crate) leases: Vec<LeaseChange>,
    /// What was asked of the store.
    pub(crate) tally: Tally,
    /// The revisions after it.
    pub(crate) revisions: Revisions,
}

impl<V: View> Overlay<V> {
    /// Nothing changed yet.
    pub(crate) fn new(view: V, revisions: Revisions) -> Self {
        Self {
            view,
            counts: None,
            revisions,
            slots: BTreeMap::new(),
            history: BTreeMap::new(),
            superseded: 0,
            arena: Arena::default(),
            rows: RowWriter::default(),
            batch: WriteBatch::default(),
            leases: LeaseChanges::default(),
            tally: Tally::default(),
            events: Vec::new(),
            marks: Vec::new(),
            published: Vec::new(),
            ahead: None,
        }
    }

    /// Lets ranges over many keys be counted by blocks.
    pub(crate) fn count_by(&mut self, counts: Option<Counts>) {
        self.counts = counts;
    }

    /// Reads many keys at once, as far as that takes little memory; each is read from the store once in a run. What is read
    /// in one go at most doubles, and only while it is small.
    pub(crate) fn prefetch(&mut self, mut keys: Vec<Bytes>) -> Result<(), StorageError> {
        keys.retain(|key| !self.slots.contains_key(key) && !self.is_cleared(key));
        keys.sort_unstable();
        keys.dedup();
        let (mut rest, mut at_once, mut bytes) = (&keys[..], 1, 0);
        while !rest.is_empty() && bytes < READ_AHEAD_BYTES {
            let (now, later) = rest.split_at(at_once.min(rest.len()));
            let slices: Vec<&[u8]> = now.iter().map(|key| &key[..]).collect();
            let mut largest = 0;
            for (key, found) in now.iter().zip(self.view.multi_get(Table::Live, &slices)?) {
                let length = found.as_ref().map_or(0, Bytes::len);
                (bytes, largest) = (bytes + length, largest.max(length));
                self.slots.insert(key.clone(), Slot::of(found)?);
            }
            at_once = (at_once * 2).min(KEYS_AT_ONCE).min(READ_AHEAD_BYTES / 4 / largest.max(1)).max(1);
            rest = later;
        }
        Ok(())
    }

    /// Bytes of the values that the run superseded. They are in memory until it ends, but for those of large deletes.
    pub(crate) fn superseded_bytes(&self) -> usize {
        self.superseded
    }

    #[cfg(test)]
    pub(crate) fn view(&self) -> &V {
        &self.view
    }

    /// The newest versions of keys, in the order asked.
    pub(crate) fn live_of(&self, keys: &[Bytes]) -> Result<Vec<Option<Version>>, StorageError> {
        let slices: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let stored = self.view.multi_get(Table::Live, &slices)?;
        let newest = |(key, stored): (&Bytes, Option<Bytes>)| match self.slots.get(key) {
            Some(slot) => Ok(slot.now.clone()),
            None if self.is_cleared(key) => Ok(None),
            None => Ok(Slot::of(stored)?.now),
        };
        keys.iter().zip(stored).map(newest).collect()
    }

    /// A lease as the command under way sees it.
    pub(crate) fn lease(&self, id: i64) -> Result<Option<Lease>, StorageError> {
        self.leases.lease(&self.view, id)
    }

    /// The keys of a lease, in byte order.
    pub(crate) fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, StorageError> {
        self.leases.keys(&self.view, id)
    }

    /// The revisions as the command under way sees them: its own changes are one above those before.
    pub(crate) fn revisions(&self) -> Revisions {
        let revision = self.revisions.revision + i64::from(!self.events.is_empty() || self.is_large());
        Revisions { revision, ..self.revisions }
    }

    /// Sets the compacted revision.
    pub(crate) fn set_compacted(&mut self, revision: i64) {
        self.revisions.compacted = revision;
    }

    /// Takes over what a scan of this overlay has shown of a key, so that it is not read from the store again.
    pub(crate) fn know(&mut self, key: &Bytes, version: &Version) {
        if let Entry::Vacant(vacant) = self.slots.entry(key.clone()) {
            vacant.insert(Slot { stored: true, now: Some(version.clone()), ..Slot::default() });
        }
    }

    /// Writes a version of `key` at the revision of the command under way.
    pub(crate) fn put(&mut self, key: &Bytes, value: Bytes, lease: i64) -> Result<(), StorageError> {
        let revision = self.revisions.revision + 1;
        let (now, mark) = self.supersede(key, revision)?;
        self.leases.moved(key, now.as_ref().map_or(0, |now| now.lease), lease);
        let (create_revision, version) = now.map_or((revision, 1), |now| (now.create_revision, now.version + 1));
        let version = Version { create_revision, mod_revision: revision, version, lease, value };
        let slot = self.slots.entry(key.clone()).or_default();
        (slot.now, slot.place) = (Some(version.clone()), self.events.len());
        let prev_kv = slot.before.clone().map(|before| key_value(key.clone(), before));
        self.events.push(put_event(key_value(key.clone(), version), prev_kv));
        self.marks.push(mark);
        Ok(())
    }

    /// Removes `key`, which is there.
    pub(crate) fn delete(&mut self, key: &Bytes) -> Result<(), StorageError> {
        let revision = self.revisions.revision + 1;
        let (now, mark) = self.supersede(key, revision)?;
        self.leases.moved(key, now.map_or(0, |now| now.lease), 0);
        self.history.insert(self.arena.history_key(key, revision), Bytes::new());
        let slot = self.slots.entry(key.clone()).or_default();
        slot.place = self.events.len();
        let prev_kv = slot.before.clone().map(|before| key_value(key.clone(), before));
        self.events.push(delete_event(key.clone(), revision, prev_kv));
        self.marks.push(mark);
        Ok(())
    }

    /// Takes the newest version away: into `history` if an earlier revision made it, nowhere if this one did, because
    /// no revision shows it. Returns it.
    fn supersede(&mut self, key: &Bytes, revision: i64) -> Result<(Option<Version>, Mark), StorageError> {
        let cleared = self.is_cleared(key);
        let slot = match self.slots.entry(key.clone()) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(vacant) if cleared => vacant.insert(Slot::default()),
            Entry::Vacant(vacant) => vacant.insert(Slot::of(self.view.get(Table::Live, key)?)?),
        };
        let (now, row) = (slot.now.take(), slot.row.take());
        if slot.changed_at == revision {
            let earlier = self.events.get(slot.place).and_then(|event| event.kv.as_ref());
            if let (true, Some(mark)) = (earlier.is_some_and(|kv| kv.key == key), self.marks.get_mut(slot.place)) {
                mark.in_passing = true;
            }
            if now.is_none() {
                self.history.remove(&self.arena.history_key(key, revision));
            }
        } else {
            slot.changed_at = revision;
            slot.before.clone_from(&now);
            if let Some(old) = &now {
                self.superseded += old.value.len();
                let row = row.unwrap_or_else(|| self.arena.version(old));
                self.history.insert(self.arena.history_key(key, old.mod_revision), row);
            }
        }
        let previous = slot.before.as_ref().map_or(0, |before| before.mod_revision);
        Ok((now, Mark { previous, in_passing: false }))
    }

    /// Ends the command under way. If it changed anything, that is a revision.
    pub(crate) fn finish_command(&mut self) {
        self.finish_large();
        if self.events.is_empty() {
            return;
        }
        self.revisions.revision += 1;
        let revision = self.revisions.revision;
        let changes = (0..).zip(&self.events).zip(&self.marks);
        let changes: Vec<_> = changes.map(|((sub, event), mark)| change_of(revision, sub, event, *mark)).collect();
        self.rows.add(&changes);
        self.marks.clear();
        self.published.push(RevisionEvents { revision, events: std::mem::take(&mut self.events) });
    }

    /// Ends an entry: its revisions share rows with no other entry, so the rows are the same in whatever runs the
    /// entries are applied.
    pub(crate) fn finish_entry(&mut self) {
        for (key, row) in self.rows.finish() {
            self.batch.put(Table::Revision, Bytes::copy_from_slice(&key.encode()), row);
        }
    }

    /// The keys that are there after the run and were not before (true), or the other way round, in key order.
    pub(crate) fn created_and_deleted(&self) -> Vec<(Bytes, bool)> {
        let changed = self.slots.iter().filter(|(_, slot)| slot.stored != slot.now.is_some());
        changed.map(|(key, slot)| (key.clone(), slot.now.is_some())).collect()
    }

    /// All that the run writes and says.
    pub(crate) fn finish(mut self) -> Finished {
        let mut batch = std::mem::take(&mut self.batch);
        let (unlisted, counts) = self.finish_ahead(&mut batch);
        for (key, slot) in self.slots {
            match slot.now {
                _ if slot.changed_at == 0 => {}
                Some(version) => batch.put(Table::Live, key, self.arena.version(&version)),
                None if slot.stored => batch.delete(Table::Live, key),
                None => {}
            }
        }
        for (key, row) in self.history {
            batch.put(Table::History, key, row);
        }
        batch.put(Table::Meta, encoding::REVISIONS, encoding::encode_revisions(self.revisions));
        let leases = self.leases.finish(&mut batch);
        let (events, tally, revisions) = (self.published, self.tally, self.revisions);
        Finished { batch, events, unlisted, counts, leases, tally, revisions }
    }
}

impl Slot {
    fn of(stored: Option<Bytes>) -> Result<Self, StorageError> {
        let now: Option<Version> = stored.clone().map(|bytes| decode("a version", bytes)).transpose()?;
        Ok(Self { stored: now.is_some(), now, row: stored, ..Self::default() })
    }
}

fn change_of<'e>(revision: i64, sub: u32, event: &'e Event, mark: Mark) -> Change<'e> {
    let (deleted, kv) = (event.r#type() == EventType::Delete, event.kv.as_ref());
    let kind = match (deleted, mark.in_passing) {
        (false, false) => ChangeKind::Put,
        (true, false) => ChangeKind::Delete,
        (false, true) => ChangeKind::PutInPassing(kv.map(version_of).unwrap_or_default()),
        (true, true) => ChangeKind::DeleteInPassing,
    };
    let key = kv.map(|kv| &kv.key[..]).unwrap_or_default();
    Change { revision, sub, key, kind, previous: mark.previous }
}

fn version_of(kv: &KeyValue) -> VersionRef<'_> {
    VersionRef {
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
        value: &kv.value,
    }
}

impl<V: View> LeaseKeys for Overlay<V> {
    fn keys_of(&self, lease: i64) -> Result<Vec<Bytes>, StorageError> {
        self.lease_keys(lease)
    }
}

impl<V: View> Source for Overlay<V> {
    /// What is stored, and what the run made of it; only of the state as it is now.
    fn count(&self, range: &KeyRange, revision: i64, current: i64) -> Result<Option<i64>, StorageError> {
        let Some(counts) = self.counts.as_ref().filter(|_| revision >= current) else { return Ok(None) };
        let stored = counts.count(&self.view, range, counts.revision(), counts.revision())?;
        let Some(stored) = stored else { return Ok(None) };
        let changed = self.slots.range::<[u8], _>(range.bounds());
        Ok(Some(
            changed.fold(stored, |count, (_, slot)| count + i64::from(slot.now.is_some()) - i64::from(slot.stored)),
        ))
    }

    fn has_lease(&self, id: i64) -> Result<bool, StorageError> {
        self.lease(id).map(|lease| lease.is_some())
    }

    fn live(&self, key: &[u8]) -> Result<Option<Version>, StorageError> {
        match self.slots.get(key) {
            Some(slot) => Ok(slot.now.clone()),
            None if self.is_cleared(key) => Ok(None),
            None => Stored(&self.view).live(key),
        }
    }

    fn scan_live(&self, bounds: Bounds<'_>, visit: &mut VisitVersion<'_>) -> Result<(), StorageError> {
        if is_empty(bounds) {
            return Ok(());
        }
        let changed = self.slots.range::<[u8], _>(bounds).filter(|(_, slot)| slot.changed_at != 0);
        let mut above = Above(changed.map(|(key, slot)| (key, slot.now.as_ref())).peekable());
        let mut flow = ControlFlow::Continue(());
        Stored(&self.view).scan_live(bounds, &mut |key, version| {
            flow = above.before(Some(key), |key, version| visit(key, VersionRef::of(version)));
            if flow.is_continue() {
                flow = match above.at(key) {
                    None if self.is_cleared(key) => ControlFlow::Continue(()),
                    None => visit(key, version),
                    Some(Some(version)) => visit(key, VersionRef::of(version)),
                    Some(None) => ControlFlow::Continue(()),
                };
            }
            flow
        })?;
        if flow.is_continue() {
            let _ = above.before(None, |key, version| visit(key, VersionRef::of(version)));
        }
        Ok(())
    }

    fn scan_history(&self, bounds: Bounds<'_>, visit: &mut VisitRow<'_>) -> Result<(), StorageError> {
        if is_empty(bounds) {
            return Ok(());
        }
        let mut above = Above(self.history.range::<[u8], _>(bounds).map(|(key, row)| (key, Some(row))).peekable());
        let mut flow = ControlFlow::Continue(());
        self.view.scan(Table::History, bounds, false, &mut |key, row| {
            flow = above.before(Some(key), |key, row| visit(key, row));
            if flow.is_continue() {
                flow = match above.at(key) {
                    Some(Some(row)) => visit(key, row),
                    _ => visit(key, row),
                };
            }
            flow
        })?;
        if flow.is_continue() {
            let _ = above.before(None, |key, row| visit(key, row));
        }
        Ok(())
    }
}

/// Bounds that no key fits; an ordered map panics on them.
fn is_empty((low, high): Bounds<'_>) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}

/// The changed rows that lie over a scan of the stored ones; a row that is None hides the stored one.
struct Above<I: Iterator>(Peekable<I>);

impl<'m, T, I: Iterator<Item = (&'m Bytes, Option<T>)>> Above<I> {
    /// Shows the rows before `key`, or all that are left.
    fn before(&mut self, key: Option<&[u8]>, mut show: impl FnMut(&[u8], T) -> ControlFlow<()>) -> ControlFlow<()> {
        while let Some((own, row)) = self.0.next_if(|(own, _)| key.is_none_or(|key| &own[..] < key)) {
            row.map_or(ControlFlow::Continue(()), |row| show(own, row))?;
        }
        ControlFlow::Continue(())
    }

    /// The row at `key`, if it was changed.
    fn at(&mut self, key: &[u8]) -> Option<Option<T>> {
        self.0.next_if(|(own, _)| *own == key).map(|(_, row)| row)
    }
}
