//! The commands that write data, executed on a run under way. What is refused has changed nothing, because every check
//! comes before the first change.

use std::ops::ControlFlow;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::log::Version;
use bytes::Bytes;
use pb::request_op::Request;
use pb::response_op::Response;

use super::overlay::Overlay;
use super::overlay::large::{Leave, bytes_of};
use super::range::{header, range_at};
use super::source::Source;
use super::txn::{branch, check, check_put, choose, read_revision};
use super::{KeyRange, ReadError, key_value};
use crate::domain::refusal::Refusal;
use crate::storage::{StorageError, View};

/// Keys of a lease whose versions are read in one go; each may be as large as a request.
const KEYS_READ_AT_ONCE: usize = if cfg!(test) { 3 } else { 16 };
/// A delete of less than this share of a part goes key by key, whatever the command deleted before: alone it is not worth a
/// part, a mark and a deletion of a range.
const SMALL_SHARE: usize = 128;

/// Executes a put command.
pub(crate) fn put(run: &mut Overlay<impl View>, request: &pb::PutRequest) -> Result<pb::PutResponse, ReadError> {
    check_put(run, request)?;
    run.tally.put(request);
    Ok(put_checked(run, request)?)
}

/// Executes a delete command.
pub(crate) fn delete_range(
    run: &mut Overlay<impl View>,
    request: &pb::DeleteRangeRequest,
) -> Result<pb::DeleteRangeResponse, StorageError> {
    let mut room = run.part_bytes();
    run.tally.delete(request);
    delete_up_to(run, request, &mut room)
}

/// Deletes. What takes more than `room`, of which the rest is left there, is written in parts; small deletes together, when
/// they have used it up. Then there is room again. That may only be when no other change of the revision is of one of the
/// keys.
fn delete_up_to(
    run: &mut Overlay<impl View>,
    request: &pb::DeleteRangeRequest,
    room: &mut usize,
) -> Result<pb::DeleteRangeResponse, StorageError> {
    let part_bytes = run.part_bytes();
    let limit = (*room).max(part_bytes / SMALL_SHARE);
    let (mut doomed, mut rest) = keys_of(run, &KeyRange::of(&request.key, &request.range_end), limit)?;
    let mut prev_kvs = Vec::new();
    let mut deleted = doomed.len() as u64;
    if rest.is_none() {
        for (key, version) in &doomed {
            *room = room.saturating_sub(bytes_of(key, &version.value));
            run.know(key, version);
            run.delete(key)?;
        }
        if *room == 0 {
            run.write_small_deletes()?;
            *room = part_bytes;
        }
    }
    let large = rest.is_some();
    loop {
        if large {
            run.delete_part(&doomed, Leave::Range)?;
        }
        if request.prev_kv {
            prev_kvs.extend(doomed.into_iter().map(|(key, version)| key_value(key, version)));
        }
        let Some(range) = rest else { break };
        (doomed, rest) = keys_of(run, &range, part_bytes)?;
    }
    if large {
        deleted = run.end_parts(Leave::Range);
        *room = part_bytes;
    }
    let deleted = i64::try_from(deleted).unwrap_or(i64::MAX);
    Ok(pb::DeleteRangeResponse { header: header(run.revisions().revision), deleted, prev_kvs })
}

/// Keys with what stands under them, and the range that is still to be looked at.
type Doomed = (Vec<(Bytes, Version)>, Option<KeyRange>);

/// The keys of a range that are there, with what stands under them: their deletion needs it, and reading each key again
/// would be far dearer than the scan. Stops once they take `limit` bytes.
fn keys_of(run: &Overlay<impl View>, range: &KeyRange, limit: usize) -> Result<Doomed, StorageError> {
    let high = match range {
        KeyRange::One(key) => {
            let found = run.live(key)?.map(|version| (key.clone(), version));
            return Ok((found.into_iter().collect(), None));
        }
        KeyRange::Span { high, .. } => high,
    };
    let (mut found, mut bytes) = (Vec::new(), 0);
    if !range.is_empty() {
        run.scan_live(range.bounds(), &mut |key, version| {
            found.push((Bytes::copy_from_slice(key), version.to_version()));
            bytes += bytes_of(key, version.value);
            if bytes < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    let rest = match found.last() {
        Some((last, _)) if bytes >= limit => {
            Some(KeyRange::Span { low: [&last[..], &[0]].concat().into(), high: high.clone() })
        }
        _ => None,
    };
    Ok((found, rest))
}

/// Deletes keys that are there, in order, as the whole of a command.
pub(crate) fn delete_keys(run: &mut Overlay<impl View>, keys: &[Bytes]) -> Result<(), StorageError> {
    let (limit, mut large, mut bytes, mut doomed) = (run.part_bytes(), false, 0, Vec::new());
    for chunk in keys.chunks(KEYS_READ_AT_ONCE) {
        for (key, version) in chunk.iter().zip(run.live_of(chunk)?) {
            let Some(version) = version else { continue };
            bytes += bytes_of(key, &version.value);
            doomed.push((key.clone(), version));
        }
        if bytes >= limit {
            run.delete_part(&doomed, Leave::Keys)?;
            (large, bytes) = (true, 0);
            doomed.clear();
        }
    }
    if large {
        run.delete_part(&doomed, Leave::Keys)?;
        run.end_parts(Leave::Keys);
        return Ok(());
    }
    for (key, version) in &doomed {
        run.know(key, version);
        run.delete(key)?;
    }
    Ok(())
}

/// Executes a transaction command.
pub(crate) fn txn(run: &mut Overlay<impl View>, request: &pb::TxnRequest) -> Result<pb::TxnResponse, ReadError> {
    let mut path = Vec::with_capacity(1);
    let compared = choose(run, request, &mut path)?;
    check(run, run.revisions(), request, &mut path.iter().copied())?;
    run.tally.write_txn(request, &path, compared);
    let apart = Changed::by(request, &mut path.iter().copied()).are_apart();
    let mut room = if apart { run.part_bytes() } else { usize::MAX };
    let mut response = execute(run, request, &mut path.into_iter(), &mut room)?;
    response.header = header(run.revisions().revision);
    Ok(response)
}

/// What the operations of the chosen branches change.
#[derive(Default)]
struct Changed {
    puts: Vec<Bytes>,
    /// The first key of each delete, and the first one that it leaves.
    deletes: Vec<(Bytes, Option<Bytes>)>,
}

impl Changed {
    fn by(request: &pb::TxnRequest, path: &mut impl Iterator<Item = bool>) -> Self {
        let mut changed = Self::default();
        changed.take_in(request, path);
        changed
    }

    fn take_in(&mut self, request: &pb::TxnRequest, path: &mut impl Iterator<Item = bool>) {
        for op in branch(request, path).1 {
            match &op.request {
                Some(Request::RequestPut(put)) => self.puts.push(put.key.clone()),
                Some(Request::RequestDeleteRange(delete)) => {
                    let range = KeyRange::of(&delete.key, &delete.range_end);
                    if !range.is_empty() {
                        self.deletes.push(range.ends());
                    }
                }
                Some(Request::RequestTxn(nested)) => self.take_in(nested, path),
                Some(Request::RequestRange(_)) | None => {}
            }
        }
    }

    /// Whether no key is changed twice. Mostly it is so: only what is nested may change a key again.
    fn are_apart(mut self) -> bool {
        if self.deletes.is_empty() {
            return true;
        }
        self.puts.sort_unstable();
        self.deletes.sort_unstable();
        let ends_before = |high: &Option<Bytes>, key: &Bytes| high.as_ref().is_some_and(|high| high <= key);
        let puts_none = |(low, high): &(Bytes, Option<Bytes>)| {
            let next = self.puts.get(self.puts.partition_point(|put| put < low));
            next.is_none_or(|put| ends_before(high, put))
        };
        self.puts.is_sorted_by(|a, b| a < b)
            && self.deletes.is_sorted_by(|(_, high), (low, _)| ends_before(high, low))
            && self.deletes.iter().all(puts_none)
    }
}

/// Runs the operations of the chosen branches. A nested response has a header of zeros.
fn execute(
    run: &mut Overlay<impl View>,
    request: &pb::TxnRequest,
    path: &mut impl Iterator<Item = bool>,
    room: &mut usize,
) -> Result<pb::TxnResponse, StorageError> {
    let (succeeded, ops) = branch(request, path);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match &op.request {
            Some(Request::RequestRange(range)) => {
                let revisions = run.revisions();
                let response = range_at(run, revisions, read_revision(revisions, range), range)?;
                Some(Response::ResponseRange(response))
            }
            Some(Request::RequestPut(put)) => Some(Response::ResponsePut(put_checked(run, put)?)),
            Some(Request::RequestDeleteRange(delete)) => {
                Some(Response::ResponseDeleteRange(delete_up_to(run, delete, room)?))
            }
            Some(Request::RequestTxn(nested)) => Some(Response::ResponseTxn(execute(run, nested, path, room)?)),
            None => None,
        };
        responses.push(pb::ResponseOp { response });
    }
    Ok(pb::TxnResponse { header: header(0), succeeded, responses })
}

/// Puts. What was checked before may be gone, when an earlier operation of the same transaction deleted the key: what
/// would be kept of it is empty then.
fn put_checked(run: &mut Overlay<impl View>, request: &pb::PutRequest) -> Result<pb::PutResponse, StorageError> {
    let wants_old = request.prev_kv || request.ignore_value || request.ignore_lease;
    let old = if wants_old { run.live(&request.key)? } else { None };
    let kept = old.as_ref();
    let value = match request.ignore_value {
        true => kept.map(|old| old.value.clone()).unwrap_or_default(),
        false => request.value.clone(),
    };
    let lease = if request.ignore_lease { kept.map_or(0, |old| old.lease) } else { request.lease };
    run.put(&request.key, value, lease)?;
    let prev_kv = old.filter(|_| request.prev_kv).map(|old| key_value(request.key.clone(), old));
    Ok(pb::PutResponse { header: header(run.revisions().revision), prev_kv })
}

/// Moves the compacted revision; nothing is deleted yet.
pub(crate) fn compact(
    run: &mut Overlay<impl View>,
    request: &pb::CompactionRequest,
) -> Result<pb::CompactionResponse, Refusal> {
    let revisions = run.revisions();
    if request.revision <= revisions.compacted {
        return Err(Refusal::Compacted);
    }
    if request.revision > revisions.revision {
        return Err(Refusal::FutureRevision);
    }
    run.set_compacted(request.revision);
    // etcd asks its store for the revision by a read.
    run.tally.ranges += 1;
    Ok(pb::CompactionResponse { header: header(revisions.revision) })
}

/// The single keys that a put will read.
pub(crate) fn keys_of_txn(request: &pb::TxnRequest, keys: &mut Vec<Bytes>) {
    let compared = request.compare.iter().filter(|compare| compare.range_end.is_empty());
    keys.extend(compared.map(|compare| compare.key.clone()));
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestPut(put)) => keys.push(put.key.clone()),
            Some(Request::RequestRange(range)) if range.range_end.is_empty() => keys.push(range.key.clone()),
            Some(Request::RequestDeleteRange(delete)) if delete.range_end.is_empty() => keys.push(delete.key.clone()),
            Some(Request::RequestTxn(nested)) => keys_of_txn(nested, keys),
            _ => {}
        }
    }
}
