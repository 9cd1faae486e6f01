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

/// Answers `request`, which filters nothing, in pieces of about `chunk_bytes`. Header, `more` and `count` come with the last
/// piece. `emit` breaks when nobody listens any more. With a sort target and no order it is one piece, as [`range`] answers
/// it: etcd sorts each piece alone and goes on behind its last key, so of more than one some keys are missing or twice.
///
/// [`range`]: super::range
///
/// # Errors
/// `FutureRevision`, `Compacted`, or the store's. Pieces may have been emitted before.
pub fn range_stream(
    view: &impl View,
    counts: Option<&Counts>,
    request: &pb::RangeRequest,
    chunk_bytes: usize,
    emit: &mut dyn FnMut(pb::RangeResponse) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let range = KeyRange::of(&request.key, &request.range_end);
    if request.count_only || matches!(range, KeyRange::One(_)) || request.sort_target() != SortTarget::Key {
        let _ = emit(range_counted(view, counts, request)?);
        return Ok(());
    }
    let revisions = current(view)?;
    let revision = revisions.resolve(request.revision)?;
    let mut pieces = Pieces::new(request, chunk_bytes, emit);
    scan_at(&Stored(view), &range, revision, revisions.revision, &mut |key, version| pieces.add(key, version))?;
    if pieces.closed {
        return Ok(());
    }
    let (last, seen) = pieces.last();
    let rest = match &last {
        Some(last) => rest(view, counts, &range, last, revision, revisions.revision)?,
        None => 0,
    };
    let response = pb::RangeResponse {
        header: header(revisions.revision),
        kvs: std::mem::take(&mut pieces.chunk),
        more: last.is_some(),
        count: seen + rest,
    };
    let _ = (pieces.emit)(response);
    Ok(())
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

/// Pieces in the making. A full one goes out when the next key shows that it is not the last.
struct Pieces<'a> {
    request: &'a pb::RangeRequest,
    chunk_bytes: usize,
    emit: &'a mut dyn FnMut(pb::RangeResponse) -> ControlFlow<()>,
    /// Keys of a piece.
    size: usize,
    chunk: Vec<KeyValue>,
    /// Of the keys in it.
    bytes: usize,
    emitted: usize,
    /// The first key over the limit.
    over: Option<Bytes>,
    /// Nobody listens.
    closed: bool,
}

impl<'a> Pieces<'a> {
    fn new(
        request: &'a pb::RangeRequest,
        chunk_bytes: usize,
        emit: &'a mut dyn FnMut(pb::RangeResponse) -> ControlFlow<()>,
    ) -> Self {
        let (chunk, over) = (Vec::new(), None);
        Self { request, chunk_bytes, emit, size: FIRST_CHUNK, chunk, bytes: 0, emitted: 0, over, closed: false }
    }

    fn add(&mut self, key: &[u8], version: VersionRef<'_>) -> ControlFlow<()> {
        let limit = usize::try_from(self.request.limit).ok().filter(|limit| *limit > 0);
        if limit.is_some_and(|limit| self.emitted + self.chunk.len() >= limit) {
            self.over = Some(Bytes::copy_from_slice(key));
            return ControlFlow::Break(());
        }
        if self.chunk.len() >= self.size || self.bytes >= self.most_bytes() {
            self.send()?;
        }
        let keys_only = self.request.keys_only;
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            version: version.version,
            value: if keys_only { Bytes::new() } else { Bytes::copy_from_slice(version.value) },
            lease: if keys_only { 0 } else { version.lease },
        };
        self.bytes += kv.encoded_len();
        self.chunk.push(kv);
        ControlFlow::Continue(())
    }

    /// Bytes from which a piece takes no further key: the number of its keys is a guess by the piece before it, and large
    /// values may come after many small ones.
    fn most_bytes(&self) -> usize {
        self.chunk_bytes.saturating_mul(2)
    }

    fn send(&mut self) -> ControlFlow<()> {
        let kvs = std::mem::take(&mut self.chunk);
        self.bytes = 0;
        self.emitted += kvs.len();
        let response = pb::RangeResponse { kvs, ..Default::default() };
        let bytes = response.encoded_len();
        if bytes < self.chunk_bytes / 2 {
            self.size = self.size.saturating_mul(2);
        } else if bytes > self.most_bytes() {
            self.size = (self.size / 2).max(1);
        }
        let flow = (self.emit)(response);
        self.closed = flow.is_break();
        flow
    }

    /// The first key that is not answered, and the number of those that are.
    fn last(&self) -> (Option<Bytes>, i64) {
        (self.over.clone(), i64::try_from(self.emitted + self.chunk.len()).unwrap_or(i64::MAX))
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
        let mut pieces = Vec::new();
        range_stream(view, None, request, chunk_bytes, &mut |piece| {
            pieces.push(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
        pieces
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
    fn a_listener_that_leaves_ends_the_work() {
        let view = view(500);
        let mut pieces = 0;
        range_stream(&view, None, &all(0), 1 << 20, &mut |_| {
            pieces += 1;
            if pieces == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        assert_eq!(pieces, 2);
    }
}
