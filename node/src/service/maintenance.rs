//! etcd's maintenance calls: what a member says of itself, hashes for comparison, hand-over of leadership, alarms.
//! The snapshot stream is in `archive.rs`.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;

use super::failure::Error;
use super::kv::read_error;
use super::member::{Member, header};
use crate::config::version::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::domain::mvcc::{self, HashKv};
use crate::engine::{Failure, Handle};
use crate::storage::KeySpace;

/// etcd's Maintenance service as use cases.
#[derive(Clone)]
pub struct Maintenance {
    member: Arc<Member>,
}

impl Maintenance {
    /// Use cases of one member.
    pub fn new(member: Arc<Member>) -> Self {
        Self { member }
    }

    /// This member's own picture; served by learners too.
    ///
    /// # Errors
    /// `Uninitialized`.
    pub fn status(&self) -> Result<pb::StatusResponse, Error> {
        let handle = self.member.handle()?;
        let status = handle.status();
        let (size, live) = handle.store().size_bytes();
        let errors = if status.leader == 0 { vec!["etcdserver: no leader".to_owned()] } else { Vec::new() };
        Ok(pb::StatusResponse {
            header: Some(header(&status, status.revision)),
            version: ETCD_VERSION.to_owned(),
            db_size: clamp(size),
            db_size_in_use: clamp(live),
            db_size_quota: self.member.settings().quota_bytes,
            leader: status.leader,
            raft_index: status.commit,
            raft_term: status.term,
            raft_applied_index: status.applied,
            errors,
            is_learner: status.is_learner(),
            storage_version: ETCD_CLUSTER_VERSION.to_owned(),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        })
    }

    /// The hash of the key history up to a revision, 0 for the current one: equal on all members.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`.
    pub async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, Error> {
        let handle = self.member.voter()?;
        let hash = self.hash_at(&handle, request.revision).await?;
        let status = handle.status();
        Ok(pb::HashKvResponse {
            header: Some(header(&status, status.revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        })
    }

    /// A hash of this member's whole state. As in etcd it is for a member's own use over time.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn hash(&self) -> Result<pb::HashResponse, Error> {
        let handle = self.member.voter()?;
        let hash = self.hash_at(&handle, 0).await?;
        let status = handle.status();
        Ok(pb::HashResponse { header: Some(header(&status, status.revision)), hash: hash.hash })
    }

    async fn hash_at(&self, handle: &Handle, revision: i64) -> Result<HashKv, Error> {
        let view = handle.view()?;
        blocking(move || mvcc::hash_kv(&view, revision).map_err(read_error)).await
    }

    /// Hands leadership to a voter; on the leader only. The answer has no header, as etcd's.
    ///
    /// # Errors
    /// `NotLeader`, `BadTransferee`, `TimedOut`.
    pub async fn move_leader(&self, request: pb::MoveLeaderRequest) -> Result<pb::MoveLeaderResponse, Error> {
        let handle = self.member.voter()?;
        let status = handle.status();
        if !status.is_leader() {
            return Err(Failure::NotLeader { leader: Some(status.leader).filter(|id| *id != 0) }.into());
        }
        handle.move_leader(request.target_id).await?;
        Ok(pb::MoveLeaderResponse { header: None })
    }

    /// No alarm is ever raised yet, so there is none to list and none to clear.
    ///
    /// # Errors
    /// `Unimplemented` for raising one by hand.
    pub fn alarm(&self, request: &pb::AlarmRequest) -> Result<pb::AlarmResponse, Error> {
        let activates = request.action == pb::alarm_request::AlarmAction::Activate as i32;
        if activates && request.alarm != pb::AlarmType::None as i32 {
            return Err(Error::Unimplemented("raising an alarm"));
        }
        let status = self.member.voter()?.status();
        Ok(pb::AlarmResponse { header: Some(header(&status, status.revision)), alarms: Vec::new() })
    }

    /// RocksDB gives space back by itself; what can be done on request is to write out what is in memory.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn defragment(&self) -> Result<pb::DefragmentResponse, Error> {
        let store = self.member.voter()?.store();
        blocking(move || store.flush().map_err(|error| Failure::from(error).into())).await?;
        Ok(pb::DefragmentResponse { header: None })
    }
}

/// Runs what may wait for the disk on a thread where it may.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
