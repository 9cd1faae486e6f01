//! Comparisons of the members' data: on the leader's clock, on the leader after compactions, and of a member with its peers
//! before it serves. What differs raises the alarm CORRUPT, which stops all changes until people have looked; a member that
//! differs at its start does not start.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::peer;
use pb::alarm_request::AlarmAction;

use super::failure::Error;
use super::kv::read;
use super::member::Member;
use crate::domain::command::Command;
use crate::domain::corruption::{AtCompaction, AtStart, PeerHash, at_compaction, at_start, suspect};
use crate::domain::mvcc::{self, HashKv};
use crate::engine::Handle;
use crate::transport::tonic::Dialer;

/// How long a peer may take to hash its data.
const PEER_BOUND: Duration = Duration::from_secs(60);

/// How long a peer may take at the start of another one; etcd's bound on a request.
const START_BOUND: Duration = Duration::from_secs(7);

/// When the members' data are compared.
#[derive(Debug, Clone, Copy)]
pub struct Comparisons {
    /// Before this member serves.
    pub at_start: bool,
    /// On the leader; never for zero.
    pub every: Duration,
    /// On the leader, after compactions.
    pub after_compactions: Option<Duration>,
}

/// A member that must not serve: what it has is not what its peers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("found data inconsistency with peers")]
pub enum Inconsistent {
    /// It is this member that is wrong.
    Own,
    /// Nobody can say who is.
    Unclear,
}

/// Starts the comparisons. The first one is waited for, because it decides whether to serve at all.
///
/// # Errors
/// What the first one found.
pub async fn start(member: &Arc<Member>, when: Comparisons) -> Result<(), Inconsistent> {
    if when.at_start {
        match at_first(member).await {
            AtStart::Same => {}
            AtStart::Wrong => return Err(Inconsistent::Own),
            AtStart::Differs => return Err(Inconsistent::Unclear),
        }
    }
    tokio::spawn(run(member.clone(), when.every));
    if let Some(interval) = when.after_compactions {
        tokio::spawn(run_after_compactions(member.clone(), interval));
    }
    Ok(())
}

/// Compares every `interval` until the process ends; never for an interval of 0.
async fn run(member: Arc<Member>, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    loop {
        tokio::time::sleep(interval).await;
        let Ok(handle) = member.handle() else { continue };
        if !handle.status().is_leader() {
            continue;
        }
        if let Err(error) = check(&handle, &member.node().config().dialer).await {
            tracing::warn!(%error, "the members' data could not be compared");
        }
    }
}

async fn check(handle: &Handle, dialer: &Dialer) -> Result<(), Error> {
    let first = own_hash(handle, 0).await?;
    let status = handle.status();
    let peers = ask_all(handle, dialer, first.hash_revision, PEER_BOUND).await;
    handle.read_index().await?;
    let second = own_hash(handle, 0).await?;
    let Some(suspected) = suspect(&first, &second, &peers) else {
        tracing::info!(revision = first.hash_revision, peers = peers.len(), "finished peer corruption check");
        return Ok(());
    };
    let suspected = if suspected == 0 { status.raft_id } else { suspected };
    tracing::error!(member = format!("{suspected:x}"), own = ?first, ?peers, "found data inconsistency with peers");
    raise(handle, suspected).await
}

async fn raise(handle: &Handle, member_id: u64) -> Result<(), Error> {
    let (action, alarm) = (AlarmAction::Activate.into(), pb::AlarmType::Corrupt.into());
    handle.propose_internal(Command::Alarm(pb::AlarmRequest { action, member_id, alarm })).await?;
    Ok(())
}

/// Compares, at most every `interval`, what the last compaction left, until the process ends.
async fn run_after_compactions(member: Arc<Member>, interval: Duration) {
    // Nothing to compare before the first compaction, which leaves a revision above it.
    let mut compared = 0;
    loop {
        tokio::time::sleep(interval).await;
        let Ok(handle) = member.handle() else { continue };
        let status = handle.status();
        if !status.is_leader() || status.compacted <= compared {
            continue;
        }
        match check_compaction(&handle, &member.node().config().dialer, status.compacted).await {
            Ok(true) => compared = status.compacted,
            // A member was away, is compacting or is wrong: again the next time, unless there is a newer compaction then.
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the members' data could not be compared after a compaction"),
        }
    }
}

/// Whether all members are known to hold the same after the compaction at `revision`.
async fn check_compaction(handle: &Handle, dialer: &Dialer, revision: i64) -> Result<bool, Error> {
    let own = own_hash(handle, revision).await?;
    if own.compact_revision != revision {
        return Ok(false);
    }
    let peers = ask_all(handle, dialer, revision, PEER_BOUND).await;
    let status = handle.status();
    let verdict = at_compaction(status.raft_id, &own, &peers, status.membership.members.len());
    tracing::info!(revision, peers = peers.len(), "finished compaction hash check");
    if let AtCompaction::Wrong(wrong) = &verdict {
        tracing::error!(revision, members = ?wrong, ?own, ?peers, "Detected compaction hash mismatch");
        for member in wrong {
            raise(handle, *member).await?;
        }
    }
    Ok(verdict == AtCompaction::Same)
}

/// Compares this member's data with those of the peers that answer, before it serves anybody. A node that is no member yet
/// has none.
async fn at_first(member: &Member) -> AtStart {
    let Ok(handle) = member.handle() else { return AtStart::Same };
    tracing::info!("starting initial corruption check");
    let own = match own_hash(&handle, 0).await {
        Ok(own) => own,
        Err(error) => {
            tracing::warn!(%error, "this member's data could not be compared");
            return AtStart::Same;
        }
    };
    let peers = ask_all(&handle, &member.node().config().dialer, own.hash_revision, START_BOUND).await;
    let verdict = at_start(&own, &peers, handle.status().membership.members.len());
    match verdict {
        AtStart::Same => tracing::info!(peers = peers.len(), "initial corruption checking passed; no corruption"),
        _ => tracing::error!(?own, ?peers, "found data inconsistency with peers"),
    }
    verdict
}

/// The hashes at `revision` of all other members that answer.
async fn ask_all(handle: &Handle, dialer: &Dialer, revision: i64, bound: Duration) -> Vec<PeerHash> {
    let status = handle.status();
    let others = status.membership.members.iter().filter(|member| member.id != status.raft_id);
    let asked = others.map(|member| ask(dialer, member.id, &member.peer_urls, status.cluster_id, revision, bound));
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// The hash of this member's key history up to a revision, 0 for the current one.
///
/// # Errors
/// `Compacted`, `FutureRevision`; of the store.
pub async fn own_hash(handle: &Handle, revision: i64) -> Result<HashKv, Error> {
    read(handle, handle.view()?, false, move |view| mvcc::hash_kv(view, revision)).await
}

/// What a peer says; none when it does not answer or is not as far.
async fn ask(
    dialer: &Dialer,
    id: u64,
    urls: &[String],
    cluster_id: u64,
    revision: i64,
    bound: Duration,
) -> Option<PeerHash> {
    let request = peer::HashRequest { cluster_id, to: id, revision };
    for url in urls {
        match dialer.hash(url, request, bound).await {
            Ok(answer) => {
                let hash = HashKv {
                    hash: answer.hash,
                    compact_revision: answer.compact_revision,
                    hash_revision: revision,
                    revision: answer.revision,
                };
                return Some(PeerHash { id, hash });
            }
            Err(error) => tracing::warn!(member = format!("{id:x}"), %error, "no hash of a peer"),
        }
    }
    None
}
