//! What changed from a revision on, read back for watchers that catch up.

use std::collections::{BTreeSet, HashSet};
use std::ops::{Bound, ControlFlow};

use balsa_proto::log::Version;
use balsa_proto::mvccpb::{Event, KeyValue};
use bytes::Bytes;

use super::encoding::{Change, ChangeKind, RowKey, RowReader, corrupt, decode, history_key};
use super::source::keep_error;
use super::watch::{event_bytes, hull};
use super::{KeyRange, ReadError, RevisionEvents, Revisions, current, delete_event, key_value, put_event};
use crate::domain::refusal::Refusal;
use crate::storage::{StorageError, Table, View};

/// Changes that one call looks at, matching or not, before it answers with what it has.
const CHANGES_SEEN: usize = 1 << 16;
/// Changes that are looked for in one go, at most.
const GROUP: usize = 512;
/// And the bytes of their events, by what the events before them had.
const GROUP_BYTES: usize = 1 << 20;
/// Versions that are read in one go, at most: how large they are is known only when all of them are in memory.
const VERSIONS_AT_ONCE: usize = 24;
/// Events of the first group, of which nothing is known: their values may be large.
const FIRST_GROUP: usize = 8;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Changes of the keys in any of these.
    pub ranges: &'a [KeyRange],
    /// The first revision.
    pub from: i64,
    /// The last one; above the current one means that one.
    pub to: i64,
    /// Whether events carry the pair before them, which is a read of its own for each.
    pub prev_kv: bool,
    /// The bounds of the answer.
    pub most: Most,
}

/// How much one answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Revisions that changed something in the ranges.
    pub revisions: usize,
    /// Bytes in memory after which no further revision is begun.
    pub bytes: usize,
    /// Bytes in memory of one revision. A revision is never cut: one with more is not in the answer.
    pub revision_bytes: usize,
}

impl Default for Most {
    fn default() -> Self {
        Self { revisions: usize::MAX, bytes: 4 << 20, revision_bytes: usize::MAX }
    }
}

/// A piece of the history of some ranges.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    /// The revisions that changed something in the ranges, in order.
    pub revisions: Vec<RevisionEvents>,
    /// Everything below was looked at; go on here. One above `to` when all was.
    pub next_revision: i64,
    /// `next_revision` has more than one revision may have in such an answer.
    pub too_large: bool,
}

/// The changes that are wanted: at least one revision that has any, if there is one and it is not too large. A call also
/// ends early after a bounded amount of work; `next_revision` tells. An event has no pair before it if that one is
/// compacted. Of the compacted revision itself only those changes are told that a compaction leaves, as in etcd: of each
/// key its first delete, and the pair that it ended with.
///
/// # Errors
/// `Compacted` when `from` is below the compacted revision; or the store's.
pub fn changes(view: &impl View, wanted: &Wanted<'_>) -> Result<Changes, ReadError> {
    let Revisions { revision, compacted } = current(view)?;
    if wanted.from < compacted {
        return Err(Refusal::Compacted.into());
    }
    let to = wanted.to.min(revision);
    if wanted.from > to {
        let next_revision = to.saturating_add(1).max(wanted.from);
        return Ok(Changes { revisions: Vec::new(), next_revision, too_large: false });
    }
    Ok(Reader::new(view, wanted, to, compacted).run()?)
}

/// A matching change whose versions are not read yet.
struct Found {
    revision: i64,
    key: Bytes,
    kind: Kind,
    /// Revision of the version before; 0 when there is none to read.
    previous: i64,
    /// The group has no later change of the key. Only then `live` may hold what was put.
    newest: bool,
}

impl Found {
    /// Versions of it that are in memory at once when it is read.
    fn versions(&self) -> usize {
        usize::from(matches!(self.kind, Kind::Put)) + usize::from(self.previous != 0)
    }

    /// Bytes that it takes until then.
    fn bytes(&self) -> usize {
        let kept = if let Kind::PutInPassing(version) = &self.kind { version.value.len() } else { 0 };
        self.key.len() + kept
    }
}

enum Kind {
    Put,
    Delete,
    PutInPassing(Box<Version>),
}

/// Goes over the rows and reads the versions of what matches: what is found takes memory too, so it is a group at a time,
/// and what is read may be large, so it is a few versions at a time.
struct Reader<'a, V> {
    view: &'a V,
    wanted: &'a Wanted<'a>,
    /// The smallest range that holds all that are wanted.
    hull: Option<KeyRange>,
    to: i64,
    compacted: i64,
    /// Keys that the compacted revision deleted and wrote again.
    deleted: BTreeSet<Bytes>,
    /// The next change to look at.
    at: RowKey,
    seen: usize,
    /// The last revision that matched, and how many did.
    matched: i64,
    matched_revisions: usize,
    /// Bytes of the group that is looked for.
    found_bytes: usize,
    /// Versions to read next in one go.
    at_once: usize,
    answer: Vec<RevisionEvents>,
    events: usize,
    bytes: usize,
    /// Those of the last revision.
    revision_bytes: usize,
}

/// Why a reader stops.
enum Stop {
    /// A group is full.
    Group,
    /// All below this revision is looked at.
    Before(i64),
    /// The same, and that revision is too large.
    TooLarge(i64),
}

impl<'a, V: View> Reader<'a, V> {
    fn new(view: &'a V, wanted: &'a Wanted<'a>, to: i64, compacted: i64) -> Self {
        Self {
            view,
            wanted,
            hull: hull(wanted.ranges),
            to,
            compacted,
            deleted: BTreeSet::new(),
            at: RowKey { revision: wanted.from, sub: 0 },
            seen: 0,
            matched: 0,
            matched_revisions: 0,
            found_bytes: 0,
            at_once: 1,
            answer: Vec::new(),
            events: 0,
            bytes: 0,
            revision_bytes: 0,
        }
    }

    fn run(mut self) -> Result<Changes, StorageError> {
        let (next_revision, too_large) = loop {
            let (found, stop) = self.find()?;
            match self.read(found)?.unwrap_or(stop) {
                Stop::Group if self.bytes < self.wanted.most.bytes || self.at.revision == self.matched => {}
                Stop::Group => break (self.at.revision, false),
                Stop::Before(revision) => break (revision, false),
                Stop::TooLarge(revision) => break (revision, true),
            }
        };
        Ok(Changes { revisions: self.answer, next_revision, too_large })
    }

    fn find(&mut self) -> Result<(Vec<Found>, Stop), StorageError> {
        let end = self.to.saturating_add(1);
        let low = first_row(self.view, self.at)?.encode();
        let high = RowKey { revision: end, sub: 0 }.encode();
        let (mut found, mut stop, mut outcome) = (Vec::new(), Stop::Before(end), Ok(()));
        let group = self.group();
        self.found_bytes = 0;
        self.view.scan(Table::Revision, (Bound::Included(&low), Bound::Excluded(&high)), false, &mut |key, row| {
            let row = RowKey::decode(key).and_then(|key| RowReader::new(key, row));
            let stopped = row.and_then(|row| self.row(row, group, &mut found));
            keep_error(&mut outcome, stopped, |stopped| match stopped {
                None => ControlFlow::Continue(()),
                Some(reason) => {
                    stop = reason;
                    ControlFlow::Break(())
                }
            })
        })?;
        outcome.map(|()| (found, stop))
    }

    /// How many events the next group has.
    fn group(&self) -> usize {
        match self.bytes.checked_div(self.events) {
            None => FIRST_GROUP,
            Some(of_each) => (GROUP_BYTES / of_each.max(1)).clamp(1, GROUP),
        }
    }

    fn row(&mut self, row: RowReader<'_>, group: usize, found: &mut Vec<Found>) -> Result<Option<Stop>, StorageError> {
        if row.last_revision() < self.at.revision {
            return Ok(None);
        }
        for change in row {
            let change = change?;
            let place = RowKey { revision: change.revision, sub: change.sub };
            if place < self.at {
                continue;
            }
            if change.revision > self.to {
                return Ok(Some(Stop::Before(self.to.saturating_add(1))));
            }
            if found.len() >= group || self.found_bytes >= GROUP_BYTES {
                self.at = place;
                return Ok(Some(Stop::Group));
            }
            if let Some(stop) = self.change(&change, found) {
                return Ok(Some(stop));
            }
        }
        Ok(None)
    }

    /// Takes the change, or stops before the revision that it begins. A revision is never cut.
    fn change(&mut self, change: &Change<'_>, found: &mut Vec<Found>) -> Option<Stop> {
        self.seen += 1;
        let matches = self.is_wanted(change.key) && self.is_left(change);
        let begins = change.revision != self.matched;
        let full = self.matched_revisions >= self.wanted.most.revisions.max(1) && matches;
        let tired = self.seen > CHANGES_SEEN && change.sub == 0 && change.revision > self.wanted.from;
        if begins && (full || tired) {
            return Some(Stop::Before(change.revision));
        }
        if matches {
            self.matched_revisions += usize::from(begins);
            self.matched = change.revision;
            let change = self.found(change);
            self.found_bytes += change.bytes();
            found.push(change);
        }
        None
    }

    fn is_wanted(&self, key: &[u8]) -> bool {
        self.hull.as_ref().is_some_and(|hull| hull.contains(key))
            && self.wanted.ranges.iter().any(|range| range.contains(key))
    }

    /// Whether a compaction leaves the change.
    fn is_left(&mut self, change: &Change<'_>) -> bool {
        if change.revision > self.compacted {
            return true;
        }
        match change.kind {
            ChangeKind::Put => true,
            ChangeKind::PutInPassing(_) => false,
            ChangeKind::DeleteInPassing => self.deleted.insert(Bytes::copy_from_slice(change.key)),
            ChangeKind::Delete => !self.deleted.contains(change.key),
        }
    }

    fn found(&self, change: &Change<'_>) -> Found {
        let kind = match change.kind {
            ChangeKind::Put => Kind::Put,
            ChangeKind::Delete | ChangeKind::DeleteInPassing => Kind::Delete,
            ChangeKind::PutInPassing(version) => Kind::PutInPassing(Box::new(version.to_version())),
        };
        let readable = self.wanted.prev_kv && change.revision > self.compacted;
        let previous = if readable { change.previous } else { 0 };
        Found { revision: change.revision, key: Bytes::copy_from_slice(change.key), kind, previous, newest: true }
    }

    /// Reads a group into the answer, as far as there is room. What is read in one go at most doubles, and only while
    /// it is small.
    fn read(&mut self, mut group: Vec<Found>) -> Result<Option<Stop>, StorageError> {
        mark_newest(&mut group);
        let mut rest = group.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut batch, mut versions) = (Vec::new(), 0);
            while let Some(found) =
                rest.next_if(|found| batch.is_empty() || versions + found.versions() <= self.at_once)
            {
                versions += found.versions();
                batch.push(found);
            }
            let (events, largest) = read_batch(self.view, batch)?;
            self.at_once = (self.at_once * 2).min(VERSIONS_AT_ONCE).min(GROUP_BYTES / largest.max(1)).max(1);
            if let Some(stop) = self.answer(events) {
                return Ok(Some(stop));
            }
        }
        Ok(None)
    }

    /// Takes events into the answer, as far as there is room.
    fn answer(&mut self, events: Vec<(i64, Event)>) -> Option<Stop> {
        let Most { bytes: most, revision_bytes, .. } = self.wanted.most;
        for (revision, event) in events {
            if self.answer.last().is_none_or(|last| last.revision != revision) {
                if !self.answer.is_empty() && self.bytes >= most {
                    return Some(Stop::Before(revision));
                }
                self.answer.push(RevisionEvents { revision, events: Vec::new() });
                self.revision_bytes = 0;
            }
            let bytes = event_bytes(&event);
            self.events += 1;
            self.bytes += bytes;
            self.revision_bytes += bytes;
            if self.revision_bytes > revision_bytes {
                self.answer.pop();
                return Some(Stop::TooLarge(revision));
            }
            if let Some(last) = self.answer.last_mut() {
                last.events.push(event);
            }
        }
        None
    }
}

/// The first row that can hold the change at `place` or one after it. A revision may begin in the row before its own one.
pub(super) fn first_row(view: &impl View, place: RowKey) -> Result<RowKey, StorageError> {
    let key = place.encode();
    let mut row = Ok(place);
    view.scan(Table::Revision, (Bound::Unbounded, Bound::Included(&key)), true, &mut |key, _| {
        row = RowKey::decode(key);
        ControlFlow::Break(())
    })?;
    row
}

/// Notes which changes of a group are followed by another one of the same key.
fn mark_newest(group: &mut [Found]) {
    let mut later = HashSet::with_capacity(group.len());
    for found in group.iter_mut().rev() {
        found.newest = later.insert(found.key.clone());
    }
}

/// The events of some changes, each with its revision: one batched read of `live`, one of `history` for what is superseded
/// and what was before. Also the bytes of the largest version that was read, whether it was the one sought or not.
fn read_batch(view: &impl View, batch: Vec<Found>) -> Result<(Vec<(i64, Event)>, usize), StorageError> {
    let may_be_live = |found: &Found| found.newest && matches!(found.kind, Kind::Put);
    let keys: Vec<&[u8]> = batch.iter().filter(|found| may_be_live(found)).map(|found| &found.key[..]).collect();
    let (live, largest_live) = versions(view, Table::Live, &keys)?;
    let mut live = live.into_iter();

    let mut now = Vec::with_capacity(batch.len());
    let mut wanted = Vec::new();
    for found in &batch {
        let version = match &found.kind {
            Kind::Put if !found.newest => None,
            Kind::Put => live.next().flatten().filter(|live| live.mod_revision == found.revision),
            Kind::PutInPassing(version) => Some(Version::clone(version)),
            Kind::Delete => None,
        };
        if version.is_none() && matches!(found.kind, Kind::Put) {
            wanted.push(history_key(&found.key, found.revision));
        }
        if found.previous != 0 {
            wanted.push(history_key(&found.key, found.previous));
        }
        now.push(version);
    }
    let keys: Vec<&[u8]> = wanted.iter().map(|key| &key[..]).collect();
    let (history, largest) = versions(view, Table::History, &keys)?;
    let mut history = history.into_iter();

    let event = |(found, now): (Found, Option<Version>)| {
        let now = match (&found.kind, now) {
            (Kind::Put, None) => history.next().flatten(),
            (_, now) => now,
        };
        let previous = if found.previous != 0 { history.next().flatten() } else { None };
        let previous = previous.map(|version| key_value(found.key.clone(), version));
        Ok((found.revision, event_of(found, now, previous)?))
    };
    let events = batch.into_iter().zip(now).map(event).collect::<Result<_, _>>()?;
    Ok((events, largest.max(largest_live)))
}

/// Versions in the order asked, and the bytes of the largest one.
fn versions(view: &impl View, table: Table, keys: &[&[u8]]) -> Result<(Vec<Option<Version>>, usize), StorageError> {
    if keys.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let rows = view.multi_get(table, keys)?;
    let largest = rows.iter().flatten().map(Bytes::len).max().unwrap_or(0);
    let decode = |row: Option<Bytes>| row.filter(|row| !row.is_empty()).map(|row| decode("a version", row)).transpose();
    Ok((rows.into_iter().map(decode).collect::<Result<_, _>>()?, largest))
}

fn event_of(found: Found, now: Option<Version>, previous: Option<KeyValue>) -> Result<Event, StorageError> {
    match (&found.kind, now) {
        (Kind::Delete, _) => Ok(delete_event(found.key, found.revision, previous)),
        (_, Some(version)) => Ok(put_event(key_value(found.key, version), previous)),
        (_, None) => Err(corrupt(format!("the version of revision {} that changed a key is missing", found.revision))),
    }
}
