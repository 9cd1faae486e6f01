//! What reads need of the state: the latest versions and the superseded ones, in key order. A stored view gives them,
//! and so does a run of commands that is not written yet, so reads inside a transaction are the same code.
//!
//! Owns the merge of `live` and `history`. It must not know sorting, limits or wire messages.

use std::ops::{Bound, ControlFlow};

use balsa_proto::log::Version;
use bytes::Bytes;

use super::KeyRange;
use super::encoding::{VersionRef, decode, decode_history_key, history_end, history_high, history_key, history_low};
use crate::domain::lease::table;
use crate::storage::{StorageError, Table, View};

/// A pair of bounds of keys.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);
/// Called with a key and what stands under it.
pub(crate) type VisitVersion<'a> = dyn FnMut(&[u8], VersionRef<'_>) -> ControlFlow<()> + 'a;
/// See [`VisitVersion`].
pub(crate) type VisitRow<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Readable state.
pub(crate) trait Source {
    /// Whether there is a lease of that id.
    fn has_lease(&self, id: i64) -> Result<bool, StorageError>;

    /// The newest version of a key that is there.
    fn live(&self, key: &[u8]) -> Result<Option<Version>, StorageError>;

    /// Visits the newest versions in key order.
    fn scan_live(&self, bounds: Bounds<'_>, visit: &mut VisitVersion<'_>) -> Result<(), StorageError>;

    /// The number of keys of `range` at `revision`, where the source knows it without going over them. `current` is the
    /// revision of the source.
    fn count(&self, _range: &KeyRange, _revision: i64, _current: i64) -> Result<Option<i64>, StorageError> {
        Ok(None)
    }

    /// Visits rows of `history` as they are encoded, in their order.
    fn scan_history(&self, bounds: Bounds<'_>, visit: &mut VisitRow<'_>) -> Result<(), StorageError>;
}

/// The state as stored.
pub(crate) struct Stored<'a, V>(pub(crate) &'a V);

impl<V: View> Source for Stored<'_, V> {
    fn has_lease(&self, id: i64) -> Result<bool, StorageError> {
        table::lease(self.0, id).map(|lease| lease.is_some())
    }

    fn live(&self, key: &[u8]) -> Result<Option<Version>, StorageError> {
        self.0.get(Table::Live, key)?.map(|bytes| decode("a version", bytes)).transpose()
    }

    fn scan_live(&self, bounds: Bounds<'_>, visit: &mut VisitVersion<'_>) -> Result<(), StorageError> {
        let mut outcome = Ok(());
        self.0.scan(Table::Live, bounds, false, &mut |key, value| {
            keep_error(&mut outcome, VersionRef::decode(value), |version| visit(key, version))
        })?;
        outcome
    }

    fn scan_history(&self, bounds: Bounds<'_>, visit: &mut VisitRow<'_>) -> Result<(), StorageError> {
        self.0.scan(Table::History, bounds, false, visit)
    }
}

/// Goes on with what was read, or stops the scan and keeps the error for after it.
pub(crate) fn keep_error<T>(
    outcome: &mut Result<(), StorageError>,
    read: Result<T, StorageError>,
    go_on: impl FnOnce(T) -> ControlFlow<()>,
) -> ControlFlow<()> {
    match read {
        Ok(read) => go_on(read),
        Err(error) => {
            *outcome = Err(error);
            ControlFlow::Break(())
        }
    }
}

/// One version of a key, or the mark that it was deleted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Record<'a> {
    /// A version.
    Version(VersionRef<'a>),
    /// Deleted at this revision.
    Tombstone(i64),
}

impl<'a> Record<'a> {
    fn of_history(mod_revision: i64, value: &'a [u8]) -> Result<Self, StorageError> {
        if value.is_empty() {
            return Ok(Self::Tombstone(mod_revision));
        }
        VersionRef::decode(value).map(Self::Version)
    }

    /// The revision that made it.
    pub(crate) fn mod_revision(&self) -> i64 {
        match self {
            Self::Version(version) => version.mod_revision,
            Self::Tombstone(revision) => *revision,
        }
    }
}

/// The version of `key` at `revision`, which is not below the compacted one.
pub(crate) fn version_at(source: &impl Source, key: &[u8], revision: i64) -> Result<Option<Version>, StorageError> {
    if let Some(live) = source.live(key)?.filter(|live| live.mod_revision <= revision) {
        return Ok(Some(live));
    }
    let (low, high) = (history_key(key, revision), history_end(key));
    let mut found = Ok(None);
    source.scan_history((Bound::Included(&low), Bound::Excluded(&high)), &mut |_, value| {
        found = match value.is_empty() {
            true => Ok(None),
            false => VersionRef::decode(value).map(|version| Some(version.to_version())),
        };
        ControlFlow::Break(())
    })?;
    found
}

/// Visits each key of the range that is there at `revision`, with its version then, in key order. `current` is the
/// revision of the source; `revision` lies between the compacted one and it.
pub(crate) fn scan_at(
    source: &impl Source,
    range: &KeyRange,
    revision: i64,
    current: i64,
    visit: &mut VisitVersion<'_>,
) -> Result<(), StorageError> {
    if range.is_empty() {
        return Ok(());
    }
    if revision >= current {
        return source.scan_live(range.bounds(), visit);
    }
    scan_records(source, range, &mut |key, record| {
        if record.mod_revision() > revision {
            return Next::Record;
        }
        match record {
            Record::Version(version) if visit(key, version).is_break() => Next::Stop,
            _ => Next::Key,
        }
    })
}

/// What a visitor of records wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next record, which may be an older one of the same key.
    Record,
    /// The first record of the next key.
    Key,
    /// Nothing.
    Stop,
}

/// Visits all records of the range: keys in order, of each key the newest record first.
pub(crate) fn scan_records(
    source: &impl Source,
    range: &KeyRange,
    visit: &mut dyn FnMut(&[u8], Record<'_>) -> Next,
) -> Result<(), StorageError> {
    if range.is_empty() {
        return Ok(());
    }
    let (low, high) = range.bounds();
    let mut low = low.map(Bytes::copy_from_slice);
    loop {
        let window = Window::read(source, (low.as_ref().map(|key| &key[..]), high))?;
        let last = window.last();
        let upper = if window.full { Bound::Included(&last[..]) } else { high };
        let mut merge = Merge { live: window.live.iter().peekable(), newest: None, skipping: None, visit };
        if merge.run(source, (low.as_ref().map(|key| &key[..]), upper))?.is_break() || !window.full {
            return Ok(());
        }
        low = Bound::Excluded(last);
    }
}

/// A piece of `live` in memory, small enough that a scan of any size needs no more than this.
struct Window {
    live: Vec<(Bytes, Version)>,
    full: bool,
}

impl Window {
    const KEYS: usize = 512;
    const BYTES: usize = 1 << 20;

    fn read(source: &impl Source, bounds: Bounds<'_>) -> Result<Self, StorageError> {
        let mut window = Self { live: Vec::new(), full: false };
        let mut bytes = 0;
        source.scan_live(bounds, &mut |key, version| {
            bytes += key.len() + version.value.len();
            window.live.push((Bytes::copy_from_slice(key), version.to_version()));
            window.full = window.live.len() >= Self::KEYS || bytes >= Self::BYTES;
            if window.full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(window)
    }

    fn last(&self) -> Bytes {
        self.live.last().map(|(key, _)| key.clone()).unwrap_or_default()
    }
}

/// Merges a window of `live` into the rows of `history` of the same keys.
struct Merge<'w, 'v> {
    live: std::iter::Peekable<std::slice::Iter<'w, (Bytes, Version)>>,
    /// The last version shown of `live`. While a large delete is written ahead, `history` has a copy of it.
    newest: Option<&'w (Bytes, Version)>,
    /// The key whose older records nobody wants.
    skipping: Option<Vec<u8>>,
    visit: &'v mut dyn FnMut(&[u8], Record<'_>) -> Next,
}

impl Merge<'_, '_> {
    /// Rows of one key that are passed over before a seek to the next key is the cheaper way.
    const ROWS_BEFORE_SEEK: usize = 32;

    fn run(&mut self, source: &impl Source, bounds: Bounds<'_>) -> Result<ControlFlow<()>, StorageError> {
        let (mut low, high) = (history_low(bounds.0), history_high(bounds.1));
        let mut stopped = ControlFlow::Continue(());
        loop {
            let (mut outcome, mut passed, mut seek) = (Ok(()), 0, false);
            source.scan_history((as_slice(&low), as_slice(&high)), &mut |row, value| {
                let read =
                    decode_history_key(row).and_then(|(key, revision)| Ok((key, Record::of_history(revision, value)?)));
                keep_error(&mut outcome, read, |(key, record)| {
                    if self.skipping.as_deref() == Some(&key) {
                        passed += 1;
                        seek = passed >= Self::ROWS_BEFORE_SEEK;
                        return if seek { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
                    }
                    passed = 0;
                    stopped = self.row(&key, record);
                    stopped
                })
            })?;
            outcome?;
            match (&self.skipping, seek) {
                (Some(key), true) => low = Bound::Included(history_end(key)),
                _ => break,
            }
        }
        if stopped.is_continue() {
            stopped = self.live_before(None);
        }
        Ok(stopped)
    }

    /// A row of history, and before it all that `live` holds up to its key.
    fn row(&mut self, key: &[u8], record: Record<'_>) -> ControlFlow<()> {
        self.live_before(Some(key))?;
        let is_copy = |(live, version): &(Bytes, Version)| version.mod_revision == record.mod_revision() && live == key;
        if self.newest.is_some_and(is_copy) {
            return ControlFlow::Continue(());
        }
        if self.skipping.as_deref() == Some(key) {
            return ControlFlow::Continue(());
        }
        self.show(key, record)
    }

    /// The newest versions of all keys up to and including `key`.
    fn live_before(&mut self, key: Option<&[u8]>) -> ControlFlow<()> {
        while let Some(found) = self.live.next_if(|(live, _)| key.is_none_or(|key| &live[..] <= key)) {
            self.newest = Some(found);
            let (live, version) = found;
            self.show(live, Record::Version(VersionRef::of(version)))?;
        }
        ControlFlow::Continue(())
    }

    fn show(&mut self, key: &[u8], record: Record<'_>) -> ControlFlow<()> {
        match (self.visit)(key, record) {
            Next::Record => {}
            Next::Key => self.skipping = Some(key.to_vec()),
            Next::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &key[..])
}
