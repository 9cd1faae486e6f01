//! HashKV: one number for the whole readable history, equal on members that agree.
//!
//! It covers, in key order and of each key newest first, the records that a complete compaction at the compacted
//! revision keeps, so it does not depend on how far the deletion of the others went, nor on whether a version stands in
//! `live` or in `history`. A tombstone at or below the compacted revision is left out.

use super::encoding::VersionRef;
use super::source::{Next, Record, Stored, scan_records};
use super::{KeyRange, ReadError, current};
use crate::storage::{StorageError, View};
use bytes::Bytes;

/// A hash and what it covers. Comparable between members when both revisions are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C.
    pub hash: u32,
    /// The compacted revision at that time; -1 before the first compaction.
    pub compact_revision: i64,
    /// The revision up to which it hashed.
    pub hash_revision: i64,
    /// The current revision at that time.
    pub revision: i64,
}

/// Hashes up to `revision`, 0 for the current one; nothing is below a negative one, as in etcd. Reads the whole store.
///
/// # Errors
/// `Compacted`, `FutureRevision`, or the store's.
pub fn hash_kv(view: &impl View, revision: i64) -> Result<HashKv, ReadError> {
    let revisions = current(view)?;
    let hash_revision = if revision < 0 { revision } else { revisions.resolve(revision)? };
    let everything = KeyRange::Span { low: Bytes::new(), high: None };
    let mut hash = 0;
    scan_records(&Stored(view), &everything, &mut |key, record| {
        let made = record.mod_revision();
        if made > hash_revision {
            return Next::Record;
        }
        match record {
            Record::Version(version) => hash = add_version(hash, key, version),
            Record::Tombstone(deleted) if deleted > revisions.compacted => hash = add(hash, key, &[-1, deleted]),
            Record::Tombstone(_) => {}
        }
        // Older than the newest one at the compacted revision is garbage, deleted or not.
        if made > revisions.compacted { Next::Record } else { Next::Key }
    })?;
    Ok(HashKv { hash, compact_revision: revisions.compacted, hash_revision, revision: revisions.revision })
}

/// How many versions of keys there are, the current and the superseded ones, each once: while a large delete is written
/// ahead, `live` and `history` have the same ones. A tombstone is no version. Reads the whole store.
///
/// # Errors
/// Of the store.
pub fn count_versions(view: &impl View) -> Result<u64, StorageError> {
    let everything = KeyRange::Span { low: Bytes::new(), high: None };
    let mut versions = 0;
    scan_records(&Stored(view), &everything, &mut |_, record| {
        versions += u64::from(matches!(record, Record::Version(_)));
        Next::Record
    })?;
    Ok(versions)
}

/// Lengths go before bytes, so that no two states feed the same bytes.
fn add(hash: u32, key: &[u8], numbers: &[i64]) -> u32 {
    let hash = crc32c::crc32c_append(hash, &(key.len() as u64).to_be_bytes());
    let hash = crc32c::crc32c_append(hash, key);
    numbers.iter().fold(hash, |hash, number| crc32c::crc32c_append(hash, &number.to_be_bytes()))
}

fn add_version(hash: u32, key: &[u8], version: VersionRef<'_>) -> u32 {
    let VersionRef { create_revision, mod_revision, version, lease, value } = version;
    let hash = add(hash, key, &[value.len() as i64, mod_revision, create_revision, version, lease]);
    crc32c::crc32c_append(hash, value)
}
