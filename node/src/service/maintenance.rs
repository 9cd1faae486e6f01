//! etcd's maintenance calls: what a member says of itself, hashes for comparison, hand-over of leadership, alarms.
//! The snapshot stream is in `archive.rs`.

use std::sync::Arc;
use std::time::Instant;

use balsa_proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::downgrade_request::DowngradeAction;

use super::caller::Caller;
use super::failure::Error;
use super::kv::{read, wrong_outcome};
use super::member::{Member, header};
use crate::config::version::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::domain::command::{Command, Outcome};
use crate::domain::maintenance;
use crate::domain::mvcc::{self, HashKv};
use crate::engine::{Failure, Handle, Status};
use crate::metrics;
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
    pub async fn status(&self, caller: &Caller) -> Result<pb::StatusResponse, Error> {
        let handle = self.member.handle()?;
        self.member.require_user(&handle, caller).await?;
        let status = handle.status();
        let (size, live) = handle.store().size_bytes();
        let no_leader = (status.leader == 0).then(|| "etcdserver: no leader".to_owned());
        let errors = no_leader.into_iter().chain(status.maintenance.alarms.iter().map(alarm_text)).collect();
        Ok(pb::StatusResponse {
            header: Some(header(&status, status.revision)),
            version: ETCD_VERSION.to_owned(),
            db_size: clamp(size),
            db_size_in_use: clamp(live),
            db_size_quota: handle.quota(),
            leader: status.leader,
            raft_index: status.commit,
            raft_term: status.term,
            raft_applied_index: status.applied,
            errors,
            is_learner: status.is_learner(),
            storage_version: ETCD_CLUSTER_VERSION.to_owned(),
            downgrade_info: Some(downgrade_info(&status)),
        })
    }

    /// The hash of the key history up to a revision, 0 for the current one: equal on all members. The header is of the
    /// moment that was hashed.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`.
    pub async fn hash_kv(&self, caller: &Caller, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, Error> {
        let handle = self.member.voter()?;
        self.member.require_root(&handle, caller).await?;
        let timer = metrics::HASH_KV_SECONDS.start_timer();
        let hash = self.hash_at(&handle, request.revision).await?;
        timer.observe_duration();
        Ok(pb::HashKvResponse {
            header: Some(header(&handle.status(), hash.revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        })
    }

    /// A hash of this member's whole state. As in etcd it is for a member's own use over time.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn hash(&self, caller: &Caller) -> Result<pb::HashResponse, Error> {
        let handle = self.member.voter()?;
        self.member.require_root(&handle, caller).await?;
        let timer = metrics::HASH_SECONDS.start_timer();
        let hash = self.hash_at(&handle, 0).await?;
        timer.observe_duration();
        Ok(pb::HashResponse { header: Some(header(&handle.status(), hash.revision)), hash: hash.hash })
    }

    async fn hash_at(&self, handle: &Handle, revision: i64) -> Result<HashKv, Error> {
        read(handle, handle.view()?, false, move |view| mvcc::hash_kv(view, revision)).await
    }

    /// Hands leadership to a voter; on the leader only. The answer has no header, as etcd's.
    ///
    /// # Errors
    /// `NotLeader`, `BadTransferee`, `TransferTimedOut`, `TimedOut`.
    pub async fn move_leader(
        &self,
        caller: &Caller,
        request: pb::MoveLeaderRequest,
    ) -> Result<pb::MoveLeaderResponse, Error> {
        let handle = self.member.voter()?;
        self.member.require_root(&handle, caller).await?;
        let status = handle.status();
        if !status.is_leader() {
            return Err(Failure::NotLeader { leader: Some(status.leader).filter(|id| *id != 0) }.into());
        }
        handle.move_leader(request.target_id).await?;
        Ok(pb::MoveLeaderResponse { header: None })
    }

    /// Lists, raises or clears alarms. The list is as of all that was committed before the call.
    ///
    /// # Errors
    /// Those of a read index or of a write; `UnknownMethod`.
    pub async fn alarm(&self, caller: &Caller, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, Error> {
        let handle = self.member.voter()?;
        let action = AlarmAction::try_from(request.action);
        // Whoever has credentials may look; what is none of the actions is not looking.
        let who = match action {
            Ok(AlarmAction::Get) => self.member.require_user(&handle, caller).await?,
            _ => self.member.require_root(&handle, caller).await?,
        };
        let action = action.map_err(|_| Error::UnknownMethod)?;
        let alarms = if action == AlarmAction::Get {
            handle.read_index_as_command().await?;
            maintenance::list(&handle.status().maintenance, request.alarm)
        } else {
            match handle.propose(Command::Alarm(request), who).await? {
                Outcome::Alarm(response) => response.alarms,
                other => return Err(wrong_outcome(&other)),
            }
        };
        let status = handle.status();
        Ok(pb::AlarmResponse { header: Some(header(&status, status.revision)), alarms })
    }

    /// Has the store rewrite its files without what was deleted. Nobody waits for it but the caller: it runs beside
    /// reads and writes. The answer has no header, as etcd's.
    ///
    /// # Errors
    /// `Internal` with the reason when the files cannot be rewritten. What that means for the member shows at its next write.
    pub async fn defragment(&self, caller: &Caller) -> Result<pb::DefragmentResponse, Error> {
        let handle = self.member.voter()?;
        self.member.require_root(&handle, caller).await?;
        let store = handle.store();
        let started = Instant::now();
        metrics::DEFRAGMENTING.inc();
        let done = blocking(move || store.compact_files().map_err(|error| Error::Internal(error.to_string()))).await;
        metrics::DEFRAGMENTING.dec();
        done?;
        metrics::DEFRAGMENTED.observe(started.elapsed().as_secs_f64());
        tracing::info!(took = ?started.elapsed(), "defragmented");
        Ok(pb::DefragmentResponse { header: None })
    }

    /// Checks, announces or takes back a downgrade by one minor version. No version of this program reads another
    /// format than the one before it, so an announced downgrade changes nothing but what Status says.
    ///
    /// # Errors
    /// `WrongDowngradeFormat`, `InvalidDowngradeTarget`, `DowngradeInProgress`, `UnknownMethod`; those of a write.
    pub async fn downgrade(
        &self,
        caller: &Caller,
        request: pb::DowngradeRequest,
    ) -> Result<pb::DowngradeResponse, Error> {
        let handle = self.member.voter()?;
        let who = self.member.require_root(&handle, caller).await?;
        let action = DowngradeAction::try_from(request.action).map_err(|_| Error::UnknownMethod)?;
        if action != DowngradeAction::Cancel {
            let target = downgrade_target(&request.version)?;
            handle.read_index().await?;
            if target != allowed_downgrade() {
                return Err(Error::InvalidDowngradeTarget);
            }
            if downgrade_info(&handle.status()).enabled {
                return Err(Error::DowngradeInProgress);
            }
        }
        let (major, minor) = allowed_downgrade();
        let wanted = match action {
            DowngradeAction::Validate => None,
            DowngradeAction::Enable => {
                Some(pb::DowngradeInfo { enabled: true, target_version: format!("{major}.{minor}.0") })
            }
            DowngradeAction::Cancel => Some(pb::DowngradeInfo::default()),
        };
        if let Some(info) = wanted.filter(|info| *info != downgrade_info(&handle.status())) {
            handle.propose(Command::Downgrade(info), who).await?;
        }
        let status = handle.status();
        let version = format!("{major}.{}", minor + 1);
        Ok(pb::DowngradeResponse { header: Some(header(&status, status.revision)), version })
    }
}

fn downgrade_info(status: &Status) -> pb::DowngradeInfo {
    status.maintenance.downgrade.clone().unwrap_or_default()
}

/// Major and minor of "3.5" or "3.5.1"; of the latter the patch does not count.
fn downgrade_target(version: &str) -> Result<(u64, u64), Error> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Result<Vec<u64>, _> = release.split('.').map(str::parse).collect();
    match parts.map_err(|_| Error::WrongDowngradeFormat)?[..] {
        [major, minor] if release == version => Ok((major, minor)),
        [major, minor, _] => Ok((major, minor)),
        _ => Err(Error::WrongDowngradeFormat),
    }
}

/// The minor version before the cluster's.
fn allowed_downgrade() -> (u64, u64) {
    let mut parts = ETCD_CLUSTER_VERSION.split('.').filter_map(|part| part.parse::<u64>().ok());
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().saturating_sub(1))
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

/// An alarm as etcd 3.6 prints it: what is zero is left out, and a type without a name is a number.
fn alarm_text(alarm: &pb::AlarmMember) -> String {
    let member = match alarm.member_id {
        0 => String::new(),
        id => format!("memberID:{id} "),
    };
    let kind = match pb::AlarmType::try_from(alarm.alarm) {
        Ok(pb::AlarmType::None) => String::new(),
        Ok(kind) => format!("alarm:{} ", kind.as_str_name()),
        Err(_) => format!("alarm:{} ", alarm.alarm),
    };
    member + &kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_printed_without_what_is_zero() {
        let text = |member_id, alarm| alarm_text(&pb::AlarmMember { member_id, alarm });
        assert_eq!(text(777, 2), "memberID:777 alarm:CORRUPT ");
        assert_eq!(text(0, 1), "alarm:NOSPACE ");
        assert_eq!(text(777, -1), "memberID:777 alarm:-1 ");
    }

    #[test]
    fn the_target_of_a_downgrade_is_a_minor_version() {
        for (version, target) in [("3.5", (3, 5)), ("3.5.9", (3, 5)), ("3.5.0-rc.0", (3, 5)), ("4.0", (4, 0))] {
            assert_eq!(downgrade_target(version), Ok(target), "{version}");
        }
        for wrong in ["", "3", "3.x", "3.5.0.0", "3.5-rc", "v3.5"] {
            assert_eq!(downgrade_target(wrong), Err(Error::WrongDowngradeFormat), "{wrong}");
        }
        assert_eq!(allowed_downgrade(), (3, 5));
    }
}
