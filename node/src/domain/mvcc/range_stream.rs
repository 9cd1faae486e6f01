//! A range in pieces, all of one revision: what `Range` answers, but with bounded memory.

use std::ops::ControlFlow;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use bytes::Bytes;
use pb::range_request::SortTarget;
use prost::Message;

use super::counts::{Counted, Counts};
use super::encoding::VersionRef;
use super::range::{header, range_counted};
use super::source::{Source, Stored, scan_at};
use super::{KeyRange, ReadError, current};
use crate::storage::{StorageError, View};

/// Keys of the first piece.
const FIRST_CHUNK: usize = 10;

/// A range that is answered in pieces of about so many bytes, each read when it is asked for: between two of them nothing
/// is open but the view, which must be the same for all.
///
/// Header, `more` and `count` come with the last piece. With a sort target and no order it is one piece, as [`range`]
/// answers it: etcd sorts each piece alone and goes on behind its last key, so of more than one some keys are missing or
/// twice.
///
/// [`range`]: super::range
pub struct RangeStream {
    request: pb::RangeRequest,
    chunk_bytes: usize,
    /// What is not answered yet; none after the last piece.
    rest: Option<KeyRange>,
    /// Keys of the next piece.
    size: usize,
    emitted: usize,
}

impl RangeStream {
    /// The pieces of a request that filters nothing.
    pub fn new(request: pb::RangeRequest, chunk_bytes: usize) -> Self {
        let rest = Some(KeyRange::of(&request.key, &request.range_end));
        Self { request, chunk_bytes, rest, size: FIRST_CHUNK, emitted: 0 }
    }

    /// The next piece; none after the last, and none after an error.
    ///
    /// # Errors
    /// `FutureRevision`, `Compacted`, or the store's.
    pub fn next_piece(
        &mut self,
        view: &impl View,
        counts: Option<&Counts>,
    ) -> Result<Option<pb::RangeResponse>, ReadError> {
        let Some(range) = self.rest.take() else { return Ok(None) };
        let request = &self.request;
        if request.count_only || matches!(range, KeyRange::One(_)) || request.sort_target() != SortTarget::Key {
            return Ok(Some(range_counted(view, counts, request)?));
        }
        let revisions = current(view)?;
        let revision = revisions.resolve(request.revision)?;
        let mut piece = Piece::of(self);
        scan_at(&Stored(view), &range, revision, revisions.revision, &mut |key, version| piece.add(key, version))?;
        let Piece { kvs, end, .. } = piece;
        self.emitted += kvs.len();
        let over = match end {
            Some(End::Full(next)) => return Ok(Some(self.not_the_last(kvs, range, next))),
            Some(End::Limit(over)) => Some(over),
            None => None,
        };
        let rest = match &over {
            Some(over) => rest(view, counts, &range, over, revision, revisions.revision)?,
            None => 0,
        };
        let count = i64::try_from(self.emitted).unwrap_or(i64::MAX).saturating_add(rest);
        Ok(Some(pb::RangeResponse { header: header(revisions.revision), kvs, more: over.is_some(), count }))
    }

    /// A piece that others follow, from `next` on. Its size says how many keys those are to have.
    fn not_the_last(&mut self, kvs: Vec<KeyValue>, range: KeyRange, next: Bytes) -> pb::RangeResponse {
        if let KeyRange::Span { high, .. } = range {
            self.rest = Some(KeyRange::Span { low: next, high });
        }
        let response = pb::RangeResponse { kvs, ..Default::default() };
        let bytes = response.encoded_len();
        if bytes < self.chunk_bytes / 2 {
            self.size = self.size.saturating_mul(2);
        } else if bytes > self.most_bytes() {
            self.size = (self.size / 2).max(1);
        }
        response
    }

    /// Bytes from which a piece takes no further key: the number of its keys is a guess by the piece before it, and large
    /// values may come after many small ones.
    fn most_bytes(&self) -> usize {
        self.chunk_bytes.saturating_mul(2)
    }
}

/// The number of keys from `first` on to the end of the range.
fn rest(
    view: &impl View,
    counts: Option<&Counts>,
    range: &KeyRange,
    first: &Bytes,
    revision: i64,
    current: i64,
) -> Result<i64, StorageError> {
    let KeyRange::Span { high, .. } = range else { return Ok(0) };
    let rest = KeyRange::Span { low: first.clone(), high: high.clone() };
    if let Some(counts) = counts
        && let Some(count) = (Counted { view, counts }).count(&rest, revision, current)?
    {
        return Ok(count);
    }
    let mut count = 0;
    scan_at(&Stored(view), &rest, revision, current, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

/// The key that ended a piece and is not in it.
enum End {
    /// The piece was full: the next one begins here.
    Full(Bytes),
    /// It is the first over the limit.
    Limit(Bytes),
}

/// A piece in the making. When it is full, the next key shows that it is not the last.
struct Piece {
    keys_only: bool,
    /// Keys that the limit leaves to it.
    limit: usize,
    size: usize,
    most_bytes: usize,
    kvs: Vec<KeyValue>,
    /// Of the keys in it.
    bytes: usize,
    end: Option<End>,
}

impl Piece {
    fn of(stream: &RangeStream) -> Self {
        let limit = usize::try_from(stream.request.limit).ok().filter(|limit| *limit > 0);
        Self {
            keys_only: stream.request.keys_only,
            limit: limit.map_or(usize::MAX, |limit| limit.saturating_sub(stream.emitted)),
            size: stream.size,
            most_bytes: stream.most_bytes(),
            kvs: Vec::new(),
            bytes: 0,
            end: None,
        }
    }

    fn add(&mut self, key: &[u8], version: VersionRef<'_>) -> ControlFlow<()> {
        if self.kvs.len() >= self.limit {
            self.end = Some(End::Limit(Bytes::copy_from_slice(key)));
            return ControlFlow::Break(());
        }
        if self.kvs.len() >= self.size || self.bytes >= self.most_bytes {
            self.end = Some(End::Full(Bytes::copy_from_slice(key)));
            return ControlFlow::Break(());
        }
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            version: version.version,
            value: if self.keys_only { Bytes::new() } else { Bytes::copy_from_slice(version.value) },
            lease: if self.keys_only { 0 } else { version.lease },
        };
        self.bytes += kv.encoded_len();
        self.kvs.push(kv);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft::eraftpb::Entry;

    use super::*;
    use crate::domain::apply::StateMachine;
    use crate::domain::command::Command;
    use crate::domain::mvcc::range::range;
    use crate::domain::refusal::Refusal;
    use crate::storage::KeySpace;
    use crate::storage::memory::{MemoryKeySpace, MemoryView};

    fn view(keys: usize) -> MemoryView {
        view_of((0..keys).map(|_| 50))
    }

    /// Keys with values of so many bytes.
    fn view_of(sizes: impl Iterator<Item = usize>) -> MemoryView {
        let key_space = Arc::new(MemoryKeySpace::default());
        let mut machine = StateMachine::open(key_space.clone()).unwrap();
        let proposals = sizes.enumerate().map(|(number, bytes)| {
            let (key, value) = (format!("k{number:04}").into(), vec![7; bytes].into());
            let put = pb::PutRequest { key, value, ..Default::default() };
            balsa_proto::log::Proposal { command: Some(Command::Put(put)), ..Default::default() }
        });
        let batch = balsa_proto::log::Batch { proposals: proposals.collect() };
        machine
            .apply(&[Entry { index: 1, term: 1, data: batch.encode_to_vec().into(), ..Default::default() }])
            .unwrap();
        key_space.view().unwrap()
    }

    fn pieces(view: &MemoryView, request: &pb::RangeRequest, chunk_bytes: usize) -> Vec<pb::RangeResponse> {
        let mut stream = RangeStream::new(request.clone(), chunk_bytes);
        std::iter::from_fn(|| stream.next_piece(view, None).unwrap()).collect()
    }

    fn all(limit: i64) -> pb::RangeRequest {
        pb::RangeRequest { key: "k".into(), range_end: "l".into(), limit, ..Default::default() }
    }

    #[test]
    fn the_pieces_together_are_the_range() {
        let view = view(500);
        for limit in [0, 1, 10, 11, 499, 500, 501] {
            for revision in [0, 100] {
                for (chunk_bytes, keys_only) in [(100, false), (10_000, true), (1 << 20, false)] {
                    let request = pb::RangeRequest { keys_only, revision, ..all(limit) };
                    let mut pieces = pieces(&view, &request, chunk_bytes);
                    let whole = range(&view, &request).unwrap();
                    let last = pieces.pop().unwrap();
                    assert!(pieces.iter().all(|piece| piece.header.is_none() && piece.count == 0 && !piece.more));
                    let kvs: Vec<_> = pieces.into_iter().flat_map(|piece| piece.kvs).chain(last.kvs.clone()).collect();
                    assert_eq!(pb::RangeResponse { kvs, ..last }, whole, "{request:?}");
                }
            }
        }
    }

    #[test]
    fn pieces_begin_small_and_follow_the_size_that_is_wanted() {
        let view = view(500);
        let sizes =
            |chunk_bytes| pieces(&view, &all(0), chunk_bytes).iter().map(|piece| piece.kvs.len()).collect::<Vec<_>>();
        assert_eq!(sizes(1 << 20)[..4], [10, 20, 40, 80]);
        assert_eq!(sizes(100)[..5], [4, 4, 2, 2, 2]);
    }

    #[test]
    fn large_values_after_small_ones_are_not_one_piece() {
        let view = view_of((0..800).map(|number| if number < 600 { 1 } else { 5_000 }));
        let pieces = pieces(&view, &all(0), 20_000);
        assert!(pieces.iter().any(|piece| piece.kvs.len() > 200));
        let largest = pieces.iter().map(Message::encoded_len).max().unwrap();
        assert!(largest < 2 * 20_000 + 5_100, "{largest}");
        assert_eq!(pieces.iter().map(|piece| piece.kvs.len()).sum::<usize>(), 800);
    }

    #[test]
    fn an_empty_range_a_count_and_what_is_sorted_are_one_piece() {
        let view = view(5);
        let empty = pb::RangeRequest { key: "x".into(), range_end: "y".into(), ..Default::default() };
        let count = pb::RangeRequest { count_only: true, ..all(0) };
        let one = pb::RangeRequest { key: "k0001".into(), ..Default::default() };
        let sorted = pb::RangeRequest { sort_target: SortTarget::Mod as i32, ..all(3) };
        for (request, count) in [(empty, 0), (count, 5), (one, 1), (sorted, 5)] {
            let pieces = pieces(&view, &request, 1 << 20);
            assert_eq!((pieces.len(), pieces[0].count), (1, count));
            assert_eq!(pieces[0], range(&view, &request).unwrap());
        }
    }

    #[test]
    fn an_error_is_the_end() {
        let mut stream = RangeStream::new(pb::RangeRequest { revision: 1_000, ..all(0) }, 1 << 20);
        let view = view(5);
        assert!(matches!(stream.next_piece(&view, None), Err(ReadError::Refused(Refusal::FutureRevision))));
        assert_eq!(stream.next_piece(&view, None).unwrap(), None);
    }
}
