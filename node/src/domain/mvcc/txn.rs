//! Transactions: compares choose a branch of every nested transaction first, the chosen branches are checked next, both
//! on the state before; then the operations run in order and see what earlier ones wrote.

use balsa_proto::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use pb::response_op::Response;

use super::encoding::VersionRef;
use super::range::{header, range_at};
use super::source::{Source, Stored};
use super::tally::Tally;
use super::{KeyRange, ReadError, Revisions, current};
use crate::domain::refusal::Refusal;
use crate::storage::{StorageError, View};
use std::ops::ControlFlow;

/// The deepest nesting that a service may let into the log: each level takes two of the 100 levels that the decoder of
/// the log allows, and an entry that does not decode stops every member.
pub const MAX_TXN_DEPTH: usize = 32;

/// How deep transactions are nested; 1 for one without a nested one. Both branches count.
pub fn txn_depth(txn: &pb::TxnRequest) -> usize {
    let ops = txn.success.iter().chain(&txn.failure);
    let nested = ops.filter_map(|op| match &op.request {
        Some(Request::RequestTxn(txn)) => Some(txn_depth(txn)),
        _ => None,
    });
    1 + nested.max().unwrap_or(0)
}

/// Whether the transaction goes through the log: any operation that is not a range makes it a write, a nested
/// transaction included, whatever it holds.
pub fn is_write(txn: &pb::TxnRequest) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| !matches!(op.request, Some(Request::RequestRange(_))))
}

/// Answers a transaction of ranges only ([`is_write`] is false) on a view, and says what it took.
///
/// # Errors
/// `FutureRevision`, `Compacted`; `KeyNotFound` for any operation that is not a range; or the store's.
pub fn read_txn(view: &impl View, txn: &pb::TxnRequest) -> Result<(pb::TxnResponse, Tally), ReadError> {
    let (source, revisions) = (Stored(view), current(view)?);
    let (succeeded, compared) = holds(&source, &txn.compare)?;
    let ops = if succeeded { &txn.success } else { &txn.failure };
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let Some(Request::RequestRange(range)) = &op.request else { return Err(Refusal::KeyNotFound.into()) };
        check_range(revisions, range)?;
        let response = range_at(&source, revisions, read_revision(revisions, range), range)?;
        responses.push(pb::ResponseOp { response: Some(Response::ResponseRange(response)) });
    }
    let response = pb::TxnResponse { header: header(revisions.revision), succeeded, responses };
    Ok((response, Tally::of_read_txn(txn, succeeded, compared)))
}

/// The revision that a checked range of a transaction reads.
pub(crate) fn read_revision(revisions: Revisions, range: &pb::RangeRequest) -> i64 {
    if range.revision <= 0 { revisions.revision } else { range.revision }
}

/// The branches that the compares choose: one value per transaction that runs, parents before children. The answer is how many
/// compares it took.
pub(crate) fn choose(source: &impl Source, txn: &pb::TxnRequest, path: &mut Vec<bool>) -> Result<u64, StorageError> {
    let (succeeded, mut compared) = holds(source, &txn.compare)?;
    path.push(succeeded);
    for op in if succeeded { &txn.success } else { &txn.failure } {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            compared += choose(source, nested, path)?;
        }
    }
    Ok(compared)
}

/// Checks what the chosen branches would do on the state before the transaction. `path` is [`choose`]'s and is used up
/// as far as this transaction goes.
pub(crate) fn check(
    source: &impl Source,
    revisions: Revisions,
    txn: &pb::TxnRequest,
    path: &mut impl Iterator<Item = bool>,
) -> Result<(), ReadError> {
    for op in branch(txn, path).1 {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(revisions, range)?,
            Some(Request::RequestPut(put)) => check_put(source, put)?,
            Some(Request::RequestDeleteRange(_)) => {}
            Some(Request::RequestTxn(nested)) => check(source, revisions, nested, path)?,
            None => return Err(Refusal::KeyNotFound.into()),
        }
    }
    Ok(())
}

/// Takes this transaction's step of the path: whether it succeeded, and its operations.
pub(crate) fn branch<'t>(
    txn: &'t pb::TxnRequest,
    path: &mut impl Iterator<Item = bool>,
) -> (bool, &'t [pb::RequestOp]) {
    let succeeded = path.next().unwrap_or_default();
    (succeeded, if succeeded { &txn.success } else { &txn.failure })
}

/// Unlike a plain range, a negative revision below the compacted one is refused here.
fn check_range(revisions: Revisions, range: &pb::RangeRequest) -> Result<(), Refusal> {
    match range.revision {
        0 => Ok(()),
        above if above > revisions.revision => Err(Refusal::FutureRevision),
        below if below < revisions.compacted => Err(Refusal::Compacted),
        _ => Ok(()),
    }
}

/// Whether a put can be done: its lease exists, and its key if something of it is to be kept.
pub(crate) fn check_put(source: &impl Source, put: &pb::PutRequest) -> Result<(), ReadError> {
    if put.lease != 0 && !source.has_lease(put.lease)? {
        return Err(Refusal::LeaseNotFound.into());
    }
    if (put.ignore_value || put.ignore_lease) && source.live(&put.key)?.is_none() {
        return Err(Refusal::KeyNotFound.into());
    }
    Ok(())
}

/// Whether all compares hold, and how many were looked at.
fn holds(source: &impl Source, compares: &[pb::Compare]) -> Result<(bool, u64), StorageError> {
    let mut compared = 0;
    for compare in compares {
        compared += 1;
        if !compare_holds(source, compare)? {
            return Ok((false, compared));
        }
    }
    Ok((true, compared))
}

/// A compare must hold for every key that it names. If there is none it is made with a missing key, all zeros, except
/// that nothing can be said of the value of a missing key.
fn compare_holds(source: &impl Source, compare: &pb::Compare) -> Result<bool, StorageError> {
    let (mut any, mut all) = (false, true);
    let range = KeyRange::of(&compare.key, &compare.range_end);
    if let KeyRange::One(key) = &range {
        if let Some(version) = source.live(key)? {
            (any, all) = (true, compare_version(compare, VersionRef::of(&version)));
        }
    } else if !range.is_empty() {
        source.scan_live(range.bounds(), &mut |_, version| {
            (any, all) = (true, compare_version(compare, version));
            if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    if any {
        return Ok(all);
    }
    Ok(compare.target() != CompareTarget::Value && compare_version(compare, VersionRef::default()))
}

/// A union that does not fit the target counts as zero, as in etcd; so does a target that nobody knows.
fn compare_version(compare: &pb::Compare, version: VersionRef<'_>) -> bool {
    let given = compare.target_union.as_ref();
    let number = |own: i64, pick: fn(&TargetUnion) -> Option<i64>| own.cmp(&given.and_then(pick).unwrap_or(0));
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => number(version.version, |u| match u {
            TargetUnion::Version(n) => Some(*n),
            _ => None,
        }),
        Ok(CompareTarget::Create) => number(version.create_revision, |u| match u {
            TargetUnion::CreateRevision(n) => Some(*n),
            _ => None,
        }),
        Ok(CompareTarget::Mod) => number(version.mod_revision, |u| match u {
            TargetUnion::ModRevision(n) => Some(*n),
            _ => None,
        }),
        Ok(CompareTarget::Lease) => number(version.lease, |u| match u {
            TargetUnion::Lease(n) => Some(*n),
            _ => None,
        }),
        Ok(CompareTarget::Value) => match given {
            Some(TargetUnion::Value(value)) => version.value.cmp(value),
            _ => version.value.cmp(&[]),
        },
        Err(_) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}
