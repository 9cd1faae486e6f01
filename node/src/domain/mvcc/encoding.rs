//! Every byte that the model writes into the key space, in one place. A change here is a change of the format on disk.
//!
//! Owns keys and values of the tables `live`, `history`, `revision`, `members` and `meta`. It must not know what the
//! rows are for.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | live | user key | `log.Version` |
//! | history | user key with 0x00 written as 0x00 0xFF, then 0x00 0x00, then the complement of mod revision, 8 bytes big-endian | `log.Version`, or nothing for a tombstone |
//! | revision | first revision, 8 bytes, and first sub-revision, 4 bytes, both big-endian | see [`RowWriter`] |
//! | members | `membership` | `log.Membership` |
//! | meta | `applied` | index and term, 8 bytes big-endian each |
//! | meta | `conf_state` | `log.ConfState` |
//! | meta | `revisions` | current and compacted revision, 8 bytes big-endian each |
//! | meta | `format` | 4 bytes big-endian |
//! | meta | `maintenance` | `log.Maintenance` |
//! | meta | `counts` | `log.Counts`; this member's own |
//! | meta | `counts/` and a number, 4 bytes big-endian | `log.CountsPage` |
//! | meta | `ahead/` and a revision, 8 bytes big-endian | its changes that were written ahead and stand in no row: key and value of a row of `revision`, or nothing; gone once it is current |
//! | meta | `compaction` | key of `revision`: all rows below it are gone |

use std::borrow::Cow;
use std::ops::Bound;

use balsa_proto::log;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_varint};

use super::Revisions;
use crate::storage::StorageError;

/// The format that this code reads and writes.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// Keys of the table `meta`, and the one of `members`.
pub(crate) const APPLIED: &[u8] = b"applied";
/// See [`APPLIED`].
pub(crate) const CONF_STATE: &[u8] = b"conf_state";
/// See [`APPLIED`].
pub(crate) const REVISIONS: &[u8] = b"revisions";
/// See [`APPLIED`].
pub(crate) const FORMAT: &[u8] = b"format";
/// See [`APPLIED`].
pub(crate) const COMPACTION: &[u8] = b"compaction";
/// See [`APPLIED`].
pub(crate) const COUNTS: &[u8] = b"counts";
/// See [`APPLIED`].
pub(crate) const MAINTENANCE: &[u8] = b"maintenance";
/// The only row of `members`.
pub(crate) const MEMBERSHIP: &[u8] = b"membership";

/// Ends the user key inside a history key. It sorts below every continuation of a key, so a key is never mixed up with
/// one that it is a prefix of.
const TERMINATOR: [u8; 2] = [0, 0];
/// Bytes of a history key behind the user key.
const HISTORY_SUFFIX: usize = TERMINATOR.len() + 8;

/// Begins the key of the mark of a revision that is written ahead.
pub(crate) const AHEAD: &[u8] = b"ahead/";
/// Above all keys that begin so.
pub(crate) const AHEAD_END: &[u8] = b"ahead0";

/// The key of the mark of a revision that is written ahead.
pub(crate) fn ahead(revision: i64) -> Bytes {
    [AHEAD, &revision.to_be_bytes()].concat().into()
}

/// The key of a page of the counts.
pub(crate) fn counts_page(number: u32) -> Bytes {
    [b"counts/", &number.to_be_bytes()[..]].concat().into()
}

/// A complaint about bytes that this code cannot have written.
pub(crate) fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { what: what.into() }
}

/// Decodes any of the messages, naming `what` in the complaint.
pub(crate) fn decode<M: Message + Default>(what: &str, bytes: Bytes) -> Result<M, StorageError> {
    M::decode(bytes).map_err(|error| corrupt(format!("{what}: {error}")))
}

/// One version of a key, borrowed from a scan: `log.Version` without a copy of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VersionRef<'a> {
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) value: &'a [u8],
}

impl<'a> VersionRef<'a> {
    /// Borrows a decoded version.
    pub(crate) fn of(version: &'a log::Version) -> Self {
        Self {
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            version: version.version,
            lease: version.lease,
            value: &version.value,
        }
    }

    /// Reads an encoded `log.Version`. Fields that it does not know are an error: the format version would differ.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, StorageError> {
        Self::parse(bytes).ok_or_else(|| corrupt("a version does not decode"))
    }

    fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let mut version = Self::default();
        while !bytes.is_empty() {
            let (tag, wire) = decode_key(&mut bytes).ok()?;
            if (tag, wire) == (5, WireType::LengthDelimited) {
                version.value = take(&mut bytes)?;
                continue;
            }
            if wire != WireType::Varint {
                return None;
            }
            let number = decode_varint(&mut bytes).ok()?.cast_signed();
            match tag {
                1 => version.create_revision = number,
                2 => version.mod_revision = number,
                3 => version.version = number,
                4 => version.lease = number,
                _ => return None,
            }
        }
        Some(version)
    }

    /// An owned copy.
    pub(crate) fn to_version(self) -> log::Version {
        log::Version {
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
            value: Bytes::copy_from_slice(self.value),
        }
    }
}

/// Takes a length and as many bytes from the front.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    bytes.split_off(..length)
}

/// Encodes many small rows into shared chunks, so that a row costs no allocation of its own.
#[derive(Debug, Default)]
pub(crate) struct Arena(BytesMut);

impl Arena {
    const CHUNK: usize = 64 << 10;

    fn room(&mut self, bytes: usize) -> &mut BytesMut {
        if self.0.capacity() < bytes {
            self.0 = BytesMut::with_capacity(bytes.max(Self::CHUNK));
        }
        &mut self.0
    }

    /// An encoded `log.Version`.
    pub(crate) fn version(&mut self, version: &log::Version) -> Bytes {
        let buffer = self.room(version.encoded_len());
        version.encode_raw(buffer);
        buffer.split().freeze()
    }

    /// The history key of a version.
    pub(crate) fn history_key(&mut self, key: &[u8], mod_revision: i64) -> Bytes {
        let buffer = self.room(2 * key.len() + HISTORY_SUFFIX);
        put_history_key(buffer, key, mod_revision);
        buffer.split().freeze()
    }
}

fn put_escaped(buffer: &mut impl BufMut, key: &[u8]) {
    let mut parts = key.split(|byte| *byte == 0);
    buffer.put_slice(parts.next().unwrap_or_default());
    for part in parts {
        buffer.put_slice(&[0, 0xFF]);
        buffer.put_slice(part);
    }
}

fn put_history_key(buffer: &mut impl BufMut, key: &[u8], mod_revision: i64) {
    put_escaped(buffer, key);
    buffer.put_slice(&TERMINATOR);
    buffer.put_u64(!mod_revision.cast_unsigned());
}

/// The history key of the version of `key` that was made at `mod_revision`; also where a search for the newest version
/// at or before `mod_revision` begins.
pub(crate) fn history_key(key: &[u8], mod_revision: i64) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(key.len() + HISTORY_SUFFIX + 2);
    put_history_key(&mut buffer, key, mod_revision);
    buffer
}

/// First possible history key of `key`.
pub(crate) fn history_start(key: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(key.len() + 4);
    put_escaped(&mut buffer, key);
    buffer.extend_from_slice(&TERMINATOR);
    buffer
}

/// Above every history key of `key`, below those of every greater key.
pub(crate) fn history_end(key: &[u8]) -> Vec<u8> {
    let mut buffer = history_start(key);
    buffer.pop();
    buffer.push(1);
    buffer
}

/// Lower bound in `history` for a lower bound of user keys.
pub(crate) fn history_low(low: Bound<&[u8]>) -> Bound<Vec<u8>> {
    match low {
        Bound::Unbounded => Bound::Unbounded,
        Bound::Included(key) => Bound::Included(history_start(key)),
        Bound::Excluded(key) => Bound::Included(history_end(key)),
    }
}

/// Upper bound in `history` for an upper bound of user keys.
pub(crate) fn history_high(high: Bound<&[u8]>) -> Bound<Vec<u8>> {
    match high {
        Bound::Unbounded => Bound::Unbounded,
        Bound::Excluded(key) => Bound::Excluded(history_start(key)),
        Bound::Included(key) => Bound::Excluded(history_end(key)),
    }
}

/// User key and mod revision of a history key.
pub(crate) fn decode_history_key(bytes: &[u8]) -> Result<(Cow<'_, [u8]>, i64), StorageError> {
    let wrong = || corrupt("a key of history does not decode");
    let (escaped, suffix) = bytes.split_last_chunk::<HISTORY_SUFFIX>().ok_or_else(wrong)?;
    let revision = suffix.last_chunk::<8>().ok_or_else(wrong)?;
    let revision = !u64::from_be_bytes(*revision);
    Ok((unescape(escaped).ok_or_else(wrong)?, revision.cast_signed()))
}

fn unescape(escaped: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !escaped.contains(&0) {
        return Some(Cow::Borrowed(escaped));
    }
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(byte) = bytes.next() {
        key.push(*byte);
        if *byte == 0 && bytes.next() != Some(&0xFF) {
            return None;
        }
    }
    Some(Cow::Owned(key))
}

/// Index and term of the last applied entry.
pub(crate) fn encode_applied(index: u64, term: u64) -> Bytes {
    pair(index, term)
}

/// Reads [`encode_applied`].
pub(crate) fn decode_applied(bytes: &[u8]) -> Result<(u64, u64), StorageError> {
    unpair("applied", bytes)
}

/// The row of the revisions.
pub(crate) fn encode_revisions(revisions: Revisions) -> Bytes {
    pair(revisions.revision.cast_unsigned(), revisions.compacted.cast_unsigned())
}

/// Reads [`encode_revisions`].
pub(crate) fn decode_revisions(bytes: &[u8]) -> Result<Revisions, StorageError> {
    let (revision, compacted) = unpair("revisions", bytes)?;
    Ok(Revisions { revision: revision.cast_signed(), compacted: compacted.cast_signed() })
}

fn pair(first: u64, second: u64) -> Bytes {
    let mut buffer = BytesMut::with_capacity(16);
    buffer.put_u64(first);
    buffer.put_u64(second);
    buffer.freeze()
}

fn unpair(what: &str, bytes: &[u8]) -> Result<(u64, u64), StorageError> {
    let both: [u8; 16] = bytes.try_into().map_err(|_| corrupt(format!("meta {what} is not 16 bytes")))?;
    let both = u128::from_be_bytes(both);
    Ok(((both >> 64) as u64, both as u64))
}

/// Where a row of `revision` stands: its first change. Rows ascend, and a row holds consecutive revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct RowKey {
    pub(crate) revision: i64,
    pub(crate) sub: u32,
}

impl RowKey {
    /// Bytes that sort as the row does; revisions are positive.
    pub(crate) fn encode(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.revision.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    /// Reads [`encode`](Self::encode).
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        let bytes: [u8; 12] = bytes.try_into().map_err(|_| corrupt("a key of revision is not 12 bytes"))?;
        let both = u128::from_be_bytes(std::array::from_fn(|i| if i < 4 { 0 } else { bytes[i - 4] }));
        Ok(Self { revision: ((both >> 32) as u64).cast_signed(), sub: both as u32 })
    }
}

/// One change of a key, as a row of `revision` holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    pub(crate) revision: i64,
    /// Position within the revision.
    pub(crate) sub: u32,
    pub(crate) key: &'a [u8],
    pub(crate) kind: ChangeKind<'a>,
    /// Mod revision of the version that the key had before this revision; 0 when it had none.
    pub(crate) previous: i64,
}

/// What happened. A change in passing is followed by another one of the same key in the same revision, so neither
/// `live` nor `history` keeps it; the row itself does, for watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind<'a> {
    Put,
    Delete,
    PutInPassing(VersionRef<'a>),
    DeleteInPassing,
}

/// Changes that one row holds at most. A row is read as a whole, and deleting a million keys is one entry.
pub(crate) const ROW_CHANGES: usize = 1024;

/// Packs the changes of one entry into rows of at most [`ROW_CHANGES`].
///
/// A row is the number of its revisions (varint), then for each its changes: their number (varint), then for each
/// change a kind (byte), the previous mod revision (varint), the key (length varint, bytes) and, for a put in passing,
/// the version (length varint, bytes). The first revision may be continued from the row before.
#[derive(Debug, Default)]
pub(crate) struct RowWriter {
    rows: Vec<(RowKey, Bytes)>,
    first: RowKey,
    revisions: u64,
    changes: usize,
    body: Vec<u8>,
}

impl RowWriter {
    /// Adds one revision, which follows the one added before.
    pub(crate) fn add(&mut self, changes: &[Change<'_>]) {
        let mut rest = changes;
        while let Some(next) = rest.first() {
            if self.revisions == 0 {
                self.first = RowKey { revision: next.revision, sub: next.sub };
            }
            let (now, later) = rest.split_at(rest.len().min(ROW_CHANGES - self.changes));
            self.revisions += 1;
            self.changes += now.len();
            encode_varint(now.len() as u64, &mut self.body);
            now.iter().for_each(|change| put_change(&mut self.body, change));
            if self.changes == ROW_CHANGES {
                self.close();
            }
            rest = later;
        }
    }

    fn close(&mut self) {
        if self.revisions == 0 {
            return;
        }
        let mut row = BytesMut::with_capacity(self.body.len() + 10);
        encode_varint(self.revisions, &mut row);
        row.put_slice(&self.body);
        self.rows.push((self.first, row.freeze()));
        self.body.clear();
        (self.revisions, self.changes) = (0, 0);
    }

    /// Changes that the row at hand still takes.
    pub(crate) fn room(&self) -> usize {
        ROW_CHANGES - self.changes
    }

    /// Hands out the rows that are complete.
    pub(crate) fn closed(&mut self) -> impl Iterator<Item = (RowKey, Bytes)> + use<> {
        std::mem::take(&mut self.rows).into_iter()
    }

    /// Ends the entry and hands out its rows.
    pub(crate) fn finish(&mut self) -> Vec<(RowKey, Bytes)> {
        self.close();
        std::mem::take(&mut self.rows)
    }
}

fn put_change(buffer: &mut Vec<u8>, change: &Change<'_>) {
    buffer.push(match change.kind {
        ChangeKind::Put => 0,
        ChangeKind::Delete => 1,
        ChangeKind::PutInPassing(_) => 2,
        ChangeKind::DeleteInPassing => 3,
    });
    encode_varint(change.previous.cast_unsigned(), buffer);
    encode_varint(change.key.len() as u64, buffer);
    buffer.put_slice(change.key);
    if let ChangeKind::PutInPassing(version) = change.kind {
        let version = version.to_version();
        encode_varint(version.encoded_len() as u64, buffer);
        version.encode_raw(buffer);
    }
}

/// Reads a row change by change.
#[derive(Debug, Clone)]
pub(crate) struct RowReader<'a> {
    bytes: &'a [u8],
    /// Revision and sub-revision of the next change.
    at: RowKey,
    first: i64,
    last: i64,
    changes_left: u64,
}

impl<'a> RowReader<'a> {
    /// Begins a row.
    pub(crate) fn new(key: RowKey, mut bytes: &'a [u8]) -> Result<Self, StorageError> {
        let count = decode_varint(&mut bytes).ok().and_then(|count| i64::try_from(count).ok());
        let last = count.filter(|count| *count > 0).and_then(|count| key.revision.checked_add(count - 1));
        let last = last.ok_or_else(|| corrupt("a row of revision has an impossible number of revisions"))?;
        let changes_left = decode_varint(&mut bytes).map_err(|_| corrupt("a row of revision ends early"))?;
        Ok(Self { bytes, at: key, first: key.revision, last, changes_left })
    }

    /// The last revision that the row holds changes of.
    pub(crate) fn last_revision(&self) -> i64 {
        self.last
    }

    /// Moves on to the next revision that has changes left; false at the end of the row.
    fn enter(&mut self) -> Option<bool> {
        while self.changes_left == 0 {
            if self.at.revision == self.last {
                return Some(false);
            }
            self.at = RowKey { revision: self.at.revision + 1, sub: 0 };
            self.changes_left = decode_varint(&mut self.bytes).ok()?;
        }
        Some(true)
    }

    fn parse(&mut self) -> Option<Change<'a>> {
        let kind = *self.bytes.split_off_first()?;
        let previous = decode_varint(&mut self.bytes).ok()?.cast_signed();
        let key = take(&mut self.bytes)?;
        let kind = match kind {
            0 => ChangeKind::Put,
            1 => ChangeKind::Delete,
            2 => ChangeKind::PutInPassing(VersionRef::parse(take(&mut self.bytes)?)?),
            3 => ChangeKind::DeleteInPassing,
            _ => return None,
        };
        let change = Change { revision: self.at.revision, sub: self.at.sub, key, kind, previous };
        self.changes_left -= 1;
        self.at.sub = self.at.sub.checked_add(1)?;
        Some(change)
    }

    fn read(&mut self) -> Option<Option<Change<'a>>> {
        if !self.enter()? {
            return Some(None);
        }
        self.parse().map(Some)
    }
}

impl<'a> Iterator for RowReader<'a> {
    type Item = Result<Change<'a>, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read() {
            Some(change) => change.map(Ok),
            None => {
                // Nothing behind a broken change can be read.
                (self.changes_left, self.last) = (0, self.at.revision);
                Some(Err(corrupt(format!("the row of revision {} does not decode", self.first))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(revision: i64, value: &'static [u8]) -> log::Version {
        let value = Bytes::from_static(value);
        log::Version { create_revision: revision, mod_revision: revision + 1, version: 2, lease: -1, value }
    }

    #[test]
    fn a_borrowed_version_reads_what_the_message_wrote() {
        for version in [version(7, b"x\0y"), version(i64::MAX - 1, b""), log::Version::default()] {
            let bytes = Arena::default().version(&version);
            assert_eq!(bytes, version.encode_to_vec());
            assert_eq!(VersionRef::decode(&bytes).unwrap(), VersionRef::of(&version));
        }
    }

    #[test]
    fn the_bytes_on_disk_never_change() {
        let golden = version(7, b"v").encode_to_vec();
        assert_eq!(golden, b"\x08\x07\x10\x08\x18\x02\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x2a\x01v");
        assert_eq!(history_key(b"a\0b", 2), b"a\0\xffb\0\0\xff\xff\xff\xff\xff\xff\xff\xfd");
        assert_eq!(RowKey { revision: 258, sub: 3 }.encode(), [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]);
        assert_eq!(encode_applied(1, 2)[..], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        let mut writer = RowWriter::default();
        let passing = log::Version { mod_revision: 5, ..Default::default() };
        let change = |sub, kind, previous| Change { revision: 5, sub, key: b"k", kind, previous };
        writer
            .add(&[change(0, ChangeKind::PutInPassing(VersionRef::of(&passing)), 4), change(1, ChangeKind::Delete, 4)]);
        let rows = writer.finish();
        assert_eq!(
            rows,
            [(RowKey { revision: 5, sub: 0 }, Bytes::from_static(b"\x01\x02\x02\x04\x01k\x02\x10\x05\x01\x04\x01k"))]
        );
    }

    #[test]
    fn history_keys_sort_by_user_key_and_then_newest_first() {
        let keys: [&[u8]; 9] = [b"", b"\0", b"\0\0", b"\0\x01", b"a", b"a\0", b"a\0\xff", b"a\x01", b"ab"];
        let rows: Vec<_> = keys.iter().flat_map(|key| [9, 256, 1].map(|revision| (*key, revision))).collect();
        let mut encoded: Vec<_> = rows.iter().map(|(key, revision)| history_key(key, *revision)).collect();
        encoded.sort();
        let decoded: Vec<_> = encoded.iter().map(|bytes| decode_history_key(bytes).unwrap()).collect();
        let expected: Vec<_> =
            keys.iter().flat_map(|key| [256, 9, 1].map(|revision| (Cow::Borrowed(*key), revision))).collect();
        assert_eq!(decoded, expected);
        for pair in keys.windows(2) {
            assert!(history_start(pair[0]) < history_key(pair[0], i64::MAX));
            assert!(history_key(pair[0], 0) < history_end(pair[0]));
            assert!(history_end(pair[0]) < history_start(pair[1]));
        }
    }

    #[test]
    fn rows_give_back_their_changes_across_the_bound_of_a_row() {
        let key = |n: usize| format!("k{n}").into_bytes();
        let keys: Vec<_> = (0..2 * ROW_CHANGES + 10).map(key).collect();
        let make = |revision, keys: &'static [Vec<u8>]| -> Vec<Change<'static>> {
            let change = |(sub, key): (usize, &'static Vec<u8>)| Change {
                revision,
                sub: sub as u32,
                key,
                kind: ChangeKind::Put,
                previous: revision - 1,
            };
            keys.iter().enumerate().map(change).collect()
        };
        let keys: &'static [Vec<u8>] = keys.leak();
        let revisions = [make(2, &keys[..3]), make(3, keys), make(4, &keys[..1])];
        let mut writer = RowWriter::default();
        revisions.iter().for_each(|changes| writer.add(changes));
        let rows = writer.finish();
        assert_eq!(
            rows.iter().map(|(key, _)| (key.revision, key.sub)).collect::<Vec<_>>(),
            [(2, 0), (3, 1021), (3, 2045)]
        );
        let read: Vec<_> =
            rows.iter().flat_map(|(key, row)| RowReader::new(*key, row).unwrap()).map(Result::unwrap).collect();
        assert_eq!(read, revisions.concat());
        assert_eq!(RowReader::new(rows[2].0, &rows[2].1).unwrap().last_revision(), 4);
    }

    #[test]
    fn broken_bytes_are_an_error_and_never_a_panic() {
        assert!(VersionRef::decode(b"\x2a\x05ab").is_err());
        assert!(decode_history_key(b"short").is_err());
        assert!(decode_history_key(b"a\0b\0\0\xff\xff\xff\xff\xff\xff\xff\xfd").is_err());
        assert!(RowReader::new(RowKey::default(), b"\0").is_err());
        let row = RowReader::new(RowKey { revision: 5, sub: 0 }, b"\x02\x01\x09").unwrap();
        assert!(row.take(3).collect::<Result<Vec<_>, _>>().is_err());
        assert!(decode_revisions(b"1").is_err());
    }
}
