//! The commands that write data, executed on a run under way. What is refused has changed nothing, because every check
//! comes before the first change.

use std::ops::ControlFlow;

use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use pb::request_op::Request;
use pb::response_op::Response;

use super::overlay::Overlay;
use super::range::{header, range_at};
use super::source::Source;
use super::txn::{branch, check, check_put, choose, read_revision};
use super::{KeyRange, ReadError, key_value};
use crate::domain::refusal::Refusal;
use crate::storage::{StorageError, View};

/// Executes a put command.
pub(crate) fn put(run: &mut Overlay<impl View>, request: &pb::PutRequest) -> Result<pb::PutResponse, ReadError> {
    check_put(run, request)?;
    Ok(put_checked(run, request)?)
}

/// Executes a delete command.
pub(crate) fn delete_range(
    run: &mut Overlay<impl View>,
    request: &pb::DeleteRangeRequest,
) -> Result<pb::DeleteRangeResponse, StorageError> {
    let range = KeyRange::of(&request.key, &request.range_end);
    let doomed = keys_of(run, &range)?;
    for (key, version) in &doomed {
        run.know(key, version);
        run.delete(key)?;
    }
    let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
    let prev_kvs = match request.prev_kv {
        true => doomed.into_iter().map(|(key, version)| key_value(key, version)).collect(),
        false => Vec::new(),
    };
    Ok(pb::DeleteRangeResponse { header: header(run.revisions().revision), deleted, prev_kvs })
}

/// The keys of a range that are there, with what stands under them: their deletion needs it, and reading each key again
/// would be far dearer than the scan.
fn keys_of(
    run: &Overlay<impl View>,
    range: &KeyRange,
) -> Result<Vec<(Bytes, balsa_proto::log::Version)>, StorageError> {
    if let KeyRange::One(key) = range {
        return Ok(run.live(key)?.map(|version| (key.clone(), version)).into_iter().collect());
    }
    let mut found = Vec::new();
    if !range.is_empty() {
        run.scan_live(range.bounds(), &mut |key, version| {
            found.push((Bytes::copy_from_slice(key), version.to_version()));
            ControlFlow::Continue(())
        })?;
    }
    Ok(found)
}

/// Executes a transaction command.
pub(crate) fn txn(run: &mut Overlay<impl View>, request: &pb::TxnRequest) -> Result<pb::TxnResponse, ReadError> {
    let mut path = Vec::with_capacity(1);
    choose(run, request, &mut path)?;
    check(run, run.revisions(), request, &mut path.iter().copied())?;
    let mut response = execute(run, request, &mut path.into_iter())?;
    response.header = header(run.revisions().revision);
    Ok(response)
}

/// Runs the operations of the chosen branches. A nested response has a header of zeros.
fn execute(
    run: &mut Overlay<impl View>,
    request: &pb::TxnRequest,
    path: &mut impl Iterator<Item = bool>,
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
                Some(Response::ResponseDeleteRange(delete_range(run, delete)?))
            }
            Some(Request::RequestTxn(nested)) => Some(Response::ResponseTxn(execute(run, nested, path)?)),
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
