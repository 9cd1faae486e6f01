//! What changed from a revision on, read back for watchers that catch up.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use balsa_proto::log::Version;
use balsa_proto::mvccpb::{Event, KeyValue};
use bytes::Bytes;

use super::encoding::{Change, ChangeKind, RowKey, RowReader, corrupt, decode, history_key};
use super::source::keep_error;
use super::{KeyRange, ReadError, RevisionEvents, current, delete_event, key_value, put_event};
use crate::domain::refusal::Refusal;
use crate::storage::{StorageError, Table, View};

/// Changes that one call looks at, matching or not, before it answers with what it has.
const CHANGES_SEEN: usize = 1 << 16;
/// Bytes of keys and values that one call gathers before it answers with what it has.
const BYTES: usize = 4 << 20;
/// Events whose versions are read in one go.
const GROUP: usize = 128;

/// A piece of the history of a range.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    /// The revisions that changed something in the range, in order.
    pub revisions: Vec<RevisionEvents>,
    /// Everything below was looked at; go on here. One above `to` when all was.
    pub next_revision: i64,
}

/// The changes of `range` in the revisions `from..=to`, at most `limit` revisions that have any (at least one is
/// answered if there is one). A call also ends early after a bounded amount of work or bytes; `next_revision` tells.
/// Events carry `prev_kv`, unless the version before is compacted. Of the compacted revision itself only those changes are
/// told that a compaction leaves, as in etcd: of each key its first delete, and the pair that it ended with.
///
/// # Errors
/// `Compacted` when `from` is below the compacted revision; or the store's.
pub fn changes(view: &impl View, range: &KeyRange, from: i64, to: i64, limit: usize) -> Result<Changes, ReadError> {
    let revisions = current(view)?;
    if from < revisions.compacted {
        return Err(Refusal::Compacted.into());
    }
    let to = to.min(revisions.revision);
    if from > to {
        return Ok(Changes { revisions: Vec::new(), next_revision: to.saturating_add(1).max(from) });
    }
    let found = find(view, Search::new(range, revisions.compacted, (from, to), limit.max(1)))?;
    Ok(read(view, found, revisions.compacted)?)
}

/// A matching change whose versions are not read yet.
struct Found {
    revision: i64,
    key: Bytes,
    kind: Kind,
    previous: i64,
}

enum Kind {
    Put,
    Delete,
    PutInPassing(Version),
}

impl Found {
    fn of(change: &Change<'_>) -> Self {
        let kind = match change.kind {
            ChangeKind::Put => Kind::Put,
            ChangeKind::Delete | ChangeKind::DeleteInPassing => Kind::Delete,
            ChangeKind::PutInPassing(version) => Kind::PutInPassing(version.to_version()),
        };
        let key = Bytes::copy_from_slice(change.key);
        Self { revision: change.revision, key, kind, previous: change.previous }
    }
}

/// The search for changes.
struct Search<'a> {
    range: &'a KeyRange,
    compacted: i64,
    /// Keys that the compacted revision deleted and wrote again.
    deleted: BTreeSet<Bytes>,
    from: i64,
    to: i64,
    limit: usize,
    seen: usize,
    matched_revisions: usize,
    found: Vec<Found>,
    next_revision: i64,
}

fn find<'a>(view: &impl View, mut search: Search<'a>) -> Result<Search<'a>, StorageError> {
    let low = first_row(view, search.from)?.encode();
    let high = RowKey { revision: search.to.saturating_add(1), sub: 0 }.encode();
    let mut outcome = Ok(());
    view.scan(Table::Revision, (Bound::Included(&low), Bound::Excluded(&high)), false, &mut |key, row| {
        let row = RowKey::decode(key).and_then(|key| RowReader::new(key, row)).and_then(|row| search.row(row));
        keep_error(&mut outcome, row, |flow| flow)
    })?;
    outcome.map(|()| search)
}

/// The first row that can hold changes of `revision`. A revision may begin in the row before its own one.
pub(super) fn first_row(view: &impl View, revision: i64) -> Result<RowKey, StorageError> {
    let start = RowKey { revision, sub: 0 };
    let key = start.encode();
    let mut row = Ok(start);
    view.scan(Table::Revision, (Bound::Unbounded, Bound::Included(&key)), true, &mut |key, _| {
        row = RowKey::decode(key);
        ControlFlow::Break(())
    })?;
    row
}

impl<'a> Search<'a> {
    fn new(range: &'a KeyRange, compacted: i64, (from, to): (i64, i64), limit: usize) -> Self {
        Self {
            range,
            compacted,
            deleted: BTreeSet::new(),
            from,
            to,
            limit,
            seen: 0,
            matched_revisions: 0,
            found: Vec::new(),
            next_revision: to.saturating_add(1),
        }
    }

    fn row(&mut self, row: RowReader<'_>) -> Result<ControlFlow<()>, StorageError> {
        if row.last_revision() < self.from {
            return Ok(ControlFlow::Continue(()));
        }
        for change in row {
            let change = change?;
            if change.revision > self.to {
                return Ok(ControlFlow::Break(()));
            }
            if change.revision >= self.from && self.change(&change).is_break() {
                self.next_revision = change.revision;
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Takes the change, or stops before the revision that it begins. A revision is never cut.
    fn change(&mut self, change: &Change<'_>) -> ControlFlow<()> {
        self.seen += 1;
        let matches = self.range.contains(change.key) && self.is_left(change);
        let same_revision = self.found.last().is_some_and(|last| last.revision == change.revision);
        let full = self.matched_revisions >= self.limit && matches;
        let tired = self.seen > CHANGES_SEEN && change.sub == 0 && change.revision > self.from;
        if !same_revision && (full || tired) {
            return ControlFlow::Break(());
        }
        if matches {
            self.matched_revisions += usize::from(!same_revision);
            self.found.push(Found::of(change));
        }
        ControlFlow::Continue(())
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
}

/// Reads the versions of what was found, whole revisions at a time.
fn read(view: &impl View, search: Search<'_>, compacted: i64) -> Result<Changes, StorageError> {
    let mut changes = Changes { revisions: Vec::new(), next_revision: search.next_revision };
    let (mut rest, mut bytes) = (&search.found[..], 0);
    while let Some(first) = rest.first() {
        if bytes >= BYTES {
            changes.next_revision = first.revision;
            break;
        }
        let (group, later) = rest.split_at(whole_revisions(rest));
        for (found, event) in group.iter().zip(read_group(view, group, compacted)?) {
            bytes += size(&event);
            match changes.revisions.last_mut() {
                Some(last) if last.revision == found.revision => last.events.push(event),
                _ => changes.revisions.push(RevisionEvents { revision: found.revision, events: vec![event] }),
            }
        }
        rest = later;
    }
    Ok(changes)
}

/// How many changes from the front make at least [`GROUP`] and end with a revision.
fn whole_revisions(found: &[Found]) -> usize {
    match found.get(GROUP..) {
        None | Some([]) => found.len(),
        Some(rest) => {
            let last = found[GROUP - 1].revision;
            GROUP + rest.iter().take_while(|change| change.revision == last).count()
        }
    }
}

fn size(event: &Event) -> usize {
    let pairs = event.kv.iter().chain(&event.prev_kv);
    pairs.map(|kv| kv.key.len() + kv.value.len()).sum()
}

/// The events of a group: one batched read of `live`, one of `history` for what is superseded and what was before.
fn read_group(view: &impl View, group: &[Found], compacted: i64) -> Result<Vec<Event>, StorageError> {
    let puts: Vec<&Found> = group.iter().filter(|found| matches!(found.kind, Kind::Put)).collect();
    let keys: Vec<&[u8]> = puts.iter().map(|found| &found.key[..]).collect();
    let live = versions(view.multi_get(Table::Live, &keys)?)?;
    let mut live = live.into_iter();

    let mut now = Vec::with_capacity(group.len());
    let mut wanted = Vec::new();
    for found in group {
        let version = match &found.kind {
            Kind::Put => live.next().flatten().filter(|live| live.mod_revision == found.revision),
            Kind::PutInPassing(version) => Some(version.clone()),
            Kind::Delete => None,
        };
        if version.is_none() && matches!(found.kind, Kind::Put) {
            wanted.push(history_key(&found.key, found.revision));
        }
        if has_previous(found, compacted) {
            wanted.push(history_key(&found.key, found.previous));
        }
        now.push(version);
    }
    let keys: Vec<&[u8]> = wanted.iter().map(|key| &key[..]).collect();
    let mut history = versions(view.multi_get(Table::History, &keys)?)?.into_iter();

    let event = |(found, now): (&Found, Option<Version>)| {
        let now = match (&found.kind, now) {
            (Kind::Put, None) => history.next().flatten(),
            (_, now) => now,
        };
        let previous = if has_previous(found, compacted) { history.next().flatten() } else { None };
        event_of(found, now, previous.map(|version| key_value(found.key.clone(), version)))
    };
    group.iter().zip(now).map(event).collect()
}

/// Whether the version before the change is still readable.
fn has_previous(found: &Found, compacted: i64) -> bool {
    found.previous != 0 && found.revision > compacted
}

fn versions(rows: Vec<Option<Bytes>>) -> Result<Vec<Option<Version>>, StorageError> {
    let decode = |row: Option<Bytes>| row.filter(|row| !row.is_empty()).map(|row| decode("a version", row)).transpose();
    rows.into_iter().map(decode).collect()
}

fn event_of(found: &Found, now: Option<Version>, previous: Option<KeyValue>) -> Result<Event, StorageError> {
    match (&found.kind, now) {
        (Kind::Delete, _) => Ok(delete_event(found.key.clone(), found.revision, previous)),
        (_, Some(version)) => Ok(put_event(key_value(found.key.clone(), version), previous)),
        (_, None) => Err(corrupt(format!("the version of revision {} that changed a key is missing", found.revision))),
    }
}
