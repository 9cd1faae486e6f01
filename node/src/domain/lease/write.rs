//! The commands that change leases, executed on a run under way. What is refused has changed nothing.

use balsa_proto::{etcdserverpb as pb, log};

use super::MAX_TTL;
use crate::domain::mvcc::ReadError;
use crate::domain::mvcc::overlay::Overlay;
use crate::domain::mvcc::range::header;
use crate::domain::mvcc::write::delete_keys;
use crate::domain::refusal::Refusal;
use crate::storage::View;

/// Executes a grant.
pub(crate) fn grant(
    run: &mut Overlay<impl View>,
    request: &pb::LeaseGrantRequest,
) -> Result<pb::LeaseGrantResponse, ReadError> {
    let pb::LeaseGrantRequest { id, ttl } = *request;
    if id == 0 {
        return Err(Refusal::LeaseNotFound.into());
    }
    if ttl > MAX_TTL {
        return Err(Refusal::LeaseTtlTooLarge.into());
    }
    if run.lease(id)?.is_some() {
        return Err(Refusal::LeaseExists.into());
    }
    run.leases.grant(id, ttl);
    Ok(pb::LeaseGrantResponse { header: header(run.revisions().revision), id, ttl, error: String::new() })
}

/// Executes a revocation: all keys of the lease are deleted in one revision, in byte order. One without keys makes no
/// revision.
pub(crate) fn revoke(run: &mut Overlay<impl View>, id: i64) -> Result<pb::LeaseRevokeResponse, ReadError> {
    if run.lease(id)?.is_none() {
        return Err(Refusal::LeaseNotFound.into());
    }
    let keys = run.lease_keys(id)?;
    delete_keys(run, &keys)?;
    run.tally.delete_keys(keys.len());
    run.leases.revoke(id);
    Ok(pb::LeaseRevokeResponse { header: header(run.revisions().revision) })
}

/// Executes what the clock of the leader of `term` asks for, in an entry of `entry_term`.
pub(crate) fn expire(
    run: &mut Overlay<impl View>,
    command: &log::ExpireLease,
    entry_term: u64,
) -> Result<pb::LeaseRevokeResponse, ReadError> {
    fence(command.term, entry_term)?;
    revoke(run, command.id)
}

/// Notes what leases have left. Those that are gone meanwhile are passed over.
pub(crate) fn checkpoint(
    run: &mut Overlay<impl View>,
    command: &log::CheckpointLeases,
    entry_term: u64,
) -> Result<(), ReadError> {
    fence(command.term, entry_term)?;
    for log::LeaseCheckpoint { id, remaining_ttl } in &command.checkpoints {
        if let Some(lease) = run.lease(*id)? {
            run.leases.checkpoint(*id, log::Lease { remaining_ttl: *remaining_ttl, ..lease });
        }
    }
    Ok(())
}

/// The clock of a leader that was deposed knows nothing of the renewals that its successor answered. Its command may
/// still reach the log, passed on to the successor, but then in an entry of a later term.
fn fence(term: u64, entry_term: u64) -> Result<(), Refusal> {
    if term == entry_term { Ok(()) } else { Err(Refusal::OtherTerm { term, entry_term }) }
}
