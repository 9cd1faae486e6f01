//! Multi-version key-value data, exactly as etcd answers it: revisions, ranges, transactions, compaction, hashes.
//!
//! Owns the meaning of the tables `live`, `history` and `revision`. It must not know where commands come from: the
//! state machine ([`super::apply`]) drives the writes, services read through a [`View`].
//!
//! A put reads one row of `live` and writes one; the version that it supersedes moves to `history` under the key
//! (user key, newest first). A delete moves the version likewise and leaves a tombstone in `history`. So the latest
//! state is one scan without garbage, and the state at a revision is the newest of `live` and `history` at or before it.
//! A row of `revision` per applied entry lists what changed, for watchers that catch up and for compaction.

pub mod changes;
pub mod compaction;
pub mod counts;
pub(crate) mod encoding;
pub mod hash;
pub(crate) mod overlay;
pub mod range;
pub mod range_stream;
pub(crate) mod source;
pub mod tally;
pub mod txn;
pub mod watch;
pub(crate) mod write;

use balsa_proto::{log, mvccpb};
use bytes::Bytes;
use std::ops::Bound;

use super::refusal::Refusal;
use crate::storage::{StorageError, Table, View};

pub use changes::{Changes, Most, Wanted, changes};
pub use counts::Counts;
pub use hash::{HashKv, count_versions, hash_kv};
pub use range::{range, range_counted};
pub use range_stream::RangeStream;
pub use tally::Tally;
pub use txn::{MAX_TXN_DEPTH, is_write, read_txn, txn_depth};

/// Why a read brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The model refuses it, the same on every member in this state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The two revisions that bound what can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revisions {
    /// The current revision; 1 when nothing was ever written.
    pub revision: i64,
    /// The compacted revision, itself still readable; -1 before the first compaction.
    pub compacted: i64,
}

impl Default for Revisions {
    fn default() -> Self {
        Self { revision: 1, compacted: -1 }
    }
}

impl Revisions {
    /// The revision that a request for `requested` reads; 0 and below mean the current one.
    ///
    /// # Errors
    /// `FutureRevision` above the current one, `Compacted` below the compacted one.
    pub(crate) fn resolve(self, requested: i64) -> Result<i64, Refusal> {
        match requested {
            ..=0 => Ok(self.revision),
            above if above > self.revision => Err(Refusal::FutureRevision),
            below if below < self.compacted => Err(Refusal::Compacted),
            within => Ok(within),
        }
    }
}

/// The revisions of a view.
///
/// # Errors
/// Of the store.
pub fn current(view: &impl View) -> Result<Revisions, StorageError> {
    match view.get(Table::Meta, encoding::REVISIONS)? {
        Some(bytes) => encoding::decode_revisions(&bytes),
        None => Ok(Revisions::default()),
    }
}

/// What one revision changed, in the order of its sub-revisions. A delete's `kv` carries key and mod revision only.
/// `prev_kv` is the pair before the revision, absent when there was none, when the put created the key, and when it was
/// not read (catch-up behind a compaction).
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionEvents {
    /// The revision.
    pub revision: i64,
    /// At least one.
    pub events: Vec<mvccpb::Event>,
}

/// A revision whose events are not at hand but in the store: it has a delete that was too large to be kept in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unlisted {
    /// The revision.
    pub revision: i64,
    /// All keys that it deleted lie in it, and others may.
    pub deletes: Option<KeyRange>,
    /// All keys that it put lie in it, and others may.
    pub puts: Option<KeyRange>,
    /// How many it deleted.
    pub deleted: u64,
    /// How many it put.
    pub put: u64,
    /// Bytes of their keys and values.
    pub put_bytes: u64,
}

/// The keys that a request names by `key` and `range_end`, in etcd's forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly this key.
    One(Bytes),
    /// All keys from `low` on, below `high` if there is one; empty when `high` is not above `low`.
    Span {
        /// Inclusive.
        low: Bytes,
        /// Exclusive.
        high: Option<Bytes>,
    },
}

impl KeyRange {
    /// An empty `range_end` names one key, a single zero byte leaves the range open.
    pub fn of(key: &Bytes, range_end: &Bytes) -> Self {
        match &range_end[..] {
            [] => Self::One(key.clone()),
            [0] => Self::Span { low: key.clone(), high: None },
            _ => Self::Span { low: key.clone(), high: Some(range_end.clone()) },
        }
    }

    /// Whether the range names `key`.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Span { low, high } => &low[..] <= key && high.as_ref().is_none_or(|high| key < &high[..]),
        }
    }

    /// Whether a key can be in both.
    pub fn meets(&self, other: &Self) -> bool {
        let below = |low: &Bytes, high: &Option<Bytes>| high.as_ref().is_none_or(|high| low < high);
        match (self, other) {
            (Self::One(key), range) | (range, Self::One(key)) => range.contains(key),
            (Self::Span { low: a, high: b }, Self::Span { low: c, high: d }) => {
                !self.is_empty() && !other.is_empty() && below(a, d) && below(c, b)
            }
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Span { low, high: Some(high) } if high <= low)
    }

    /// The first key that may be in it, and the first one above it that is not.
    pub(crate) fn ends(&self) -> (Bytes, Option<Bytes>) {
        match self {
            Self::One(key) => (key.clone(), Some([key, &[0][..]].concat().into())),
            Self::Span { low, high } => (low.clone(), high.clone()),
        }
    }

    /// The same as bounds.
    pub(crate) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        match self {
            Self::One(key) => (Bound::Included(key), Bound::Included(key)),
            Self::Span { low, high: None } => (Bound::Included(low), Bound::Unbounded),
            Self::Span { low, high: Some(high) } => (Bound::Included(low), Bound::Excluded(high)),
        }
    }
}

/// The pair that clients see.
pub(crate) fn key_value(key: Bytes, version: log::Version) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key,
        create_revision: version.create_revision,
        mod_revision: version.mod_revision,
        version: version.version,
        value: version.value,
        lease: version.lease,
    }
}

/// A delete's event carries the key and its revision, nothing else.
pub(crate) fn delete_event(key: Bytes, revision: i64, prev_kv: Option<mvccpb::KeyValue>) -> mvccpb::Event {
    let kv = mvccpb::KeyValue { key, mod_revision: revision, ..Default::default() };
    mvccpb::Event { r#type: mvccpb::event::EventType::Delete.into(), kv: Some(kv), prev_kv }
}

/// A put's event. One that created the key has no previous pair, whatever the revision did to the key before.
pub(crate) fn put_event(kv: mvccpb::KeyValue, prev_kv: Option<mvccpb::KeyValue>) -> mvccpb::Event {
    let prev_kv = prev_kv.filter(|_| kv.create_revision != kv.mod_revision);
    mvccpb::Event { r#type: mvccpb::event::EventType::Put.into(), kv: Some(kv), prev_kv }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod model;
