//! The periodic comparison of the members' data, on the leader. What differs raises the alarm CORRUPT, which stops all
//! changes until people have looked.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::peer;
use pb::alarm_request::AlarmAction;

use super::failure::Error;
use super::kv::read;
use super::member::Member;
use crate::domain::command::Command;
use crate::domain::corruption::{PeerHash, suspect};
use crate::domain::mvcc::{self, HashKv};
use crate::engine::Handle;
use crate::transport::tonic::Dialer;

/// How long a peer may take to hash its data.
const PEER_BOUND: Duration = Duration::from_secs(60);

/// Compares every `interval` until the process ends; never for an interval of 0.
pub async fn run(member: Arc<Member>, interval: Duration) {
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
    let others = status.membership.members.iter().filter(|member| member.id != status.raft_id);
    let asked = others.map(|member| ask(dialer, member.id, &member.peer_urls, status.cluster_id, first.hash_revision));
    let peers: Vec<PeerHash> = futures::future::join_all(asked).await.into_iter().flatten().collect();
    handle.read_index().await?;
    let second = own_hash(handle, 0).await?;
    let Some(suspected) = suspect(&first, &second, &peers) else {
        tracing::info!(revision = first.hash_revision, peers = peers.len(), "finished peer corruption check");
        return Ok(());
    };
    let suspected = if suspected == 0 { status.raft_id } else { suspected };
    tracing::error!(member = format!("{suspected:x}"), own = ?first, ?peers, "found data inconsistency with peers");
    let alarm = pb::AlarmRequest {
        action: AlarmAction::Activate.into(),
        member_id: suspected,
        alarm: pb::AlarmType::Corrupt.into(),
    };
    handle.propose_internal(Command::Alarm(alarm)).await?;
    Ok(())
}

/// The hash of this member's key history up to a revision, 0 for the current one.
///
/// # Errors
/// `Compacted`, `FutureRevision`; of the store.
pub async fn own_hash(handle: &Handle, revision: i64) -> Result<HashKv, Error> {
    read(handle, handle.view()?, false, move |view| mvcc::hash_kv(view, revision)).await
}

/// What a peer says; none when it does not answer or is not as far.
async fn ask(dialer: &Dialer, id: u64, urls: &[String], cluster_id: u64, revision: i64) -> Option<PeerHash> {
    let request = peer::HashRequest { cluster_id, to: id, revision };
    for url in urls {
        match dialer.hash(url, request, PEER_BOUND).await {
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
