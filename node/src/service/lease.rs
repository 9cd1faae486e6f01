//! Leases. Grants and revocations are commands through the log, on any member; renewals and the time left are asked of
//! the leader's clock, by any member on behalf of its clients.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::{etcdserverpb as pb, peer};
use tokio::time::{Instant, sleep, timeout_at};

use super::caller::{Caller, refused};
use super::failure::Error;
use super::forward::{ASK_AGAIN, Answer, Place, place};
use super::kv::read_error;
use super::member::{Member, complete, header};
use crate::domain::auth::{Identity, LeasesOf, Need};
use crate::domain::command::{Command, Outcome};
use crate::domain::lease::Renewal;
use crate::engine::{Failure, Handle, node};

/// The TTL in the answer for a lease that does not exist.
const NO_LEASE: i64 = -1;

/// The way to the leader's clock. Implementations try each URL in order until one connects.
pub trait Clock: Send + Sync + 'static {
    /// Renews leases there; one renewal for each id, in their order.
    fn renew(&self, urls: Vec<String>, request: peer::RenewLeasesRequest) -> Answer<Vec<Renewal>>;
    /// Asks for the time left there.
    fn time_to_live(
        &self,
        urls: Vec<String>,
        request: peer::LeaseTimeToLiveRequest,
    ) -> Answer<pb::LeaseTimeToLiveResponse>;
}

/// etcd's Lease service as use cases.
#[derive(Clone)]
pub struct Leases {
    member: Arc<Member>,
    clock: Arc<dyn Clock>,
}

impl Leases {
    /// Use cases of one member, which reaches the leader's clock through `clock`.
    pub fn new(member: Arc<Member>, clock: Arc<dyn Clock>) -> Self {
        Self { member, clock }
    }

    /// Grants a lease; id 0 lets the member choose one. The TTL is at least what outlasts an election.
    ///
    /// # Errors
    /// `LeaseExists`, `LeaseTtlTooLarge`; `UserEmpty` of a caller without credentials; those of a write.
    pub async fn grant(
        &self,
        caller: &Caller,
        mut request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Error> {
        let handle = self.member.voter()?;
        let who = self.member.require_user(&handle, caller).await?;
        request.ttl = request.ttl.max(least_ttl(handle.heartbeat_interval(), handle.election_timeout()));
        while request.id == 0 {
            request.id = (node::random() >> 1) as i64;
        }
        match handle.propose(Command::LeaseGrant(request), who).await? {
            Outcome::LeaseGrant(mut response) => {
                response.header = complete(response.header, &handle.status());
                Ok(response)
            }
            other => Err(Error::Internal(format!("a grant had the outcome {other:?}"))),
        }
    }

    /// Revokes a lease and deletes its keys, of a caller who may write each of them.
    ///
    /// # Errors
    /// `LeaseNotFound`; those of a write.
    pub async fn revoke(
        &self,
        caller: &Caller,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Error> {
        let handle = self.member.voter()?;
        let who = self.member.require_user(&handle, caller).await?;
        match handle.propose(Command::LeaseRevoke(request), who).await? {
            Outcome::LeaseRevoke(mut response) => {
                response.header = complete(response.header, &handle.status());
                Ok(response)
            }
            other => Err(Error::Internal(format!("a revocation had the outcome {other:?}"))),
        }
    }

    /// The time that a lease has left, and its keys if they are asked for by a caller who may read each of them. TTL -1
    /// when there is no such lease.
    ///
    /// # Errors
    /// `NoLeader`, `TimedOut`; `Learner`; of the caller's permissions.
    pub async fn time_to_live(
        &self,
        caller: &Caller,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Error> {
        let handle = self.member.voter()?;
        let who = self.member.require_user(&handle, caller).await?.unwrap_or_default();
        let mut response = ask_leader(&handle, || async {
            match place(&handle, false)? {
                Place::Here => time_to_live_here(&handle, request).await,
                Place::At(leader) => {
                    let (cluster_id, to) = (handle.cluster_id(), handle.status().leader);
                    let asked = peer::LeaseTimeToLiveRequest { cluster_id, to, request: Some(request) };
                    self.clock.time_to_live(leader.urls, asked).await
                }
            }
        })
        .await?;
        let auth = handle.auth();
        // Whoever may do everything is not asked for the revision of a token.
        if auth.check_admin(&who).is_err() {
            auth.check_each(&who, Need::Read, &response.keys).map_err(refused)?;
        }
        let status = handle.status();
        response.header = Some(header(&status, status.revision));
        Ok(response)
    }

    /// The ids of all leases that this member has applied, for a caller who may read the keys of all of them.
    ///
    /// # Errors
    /// `Learner`; `Storage`; of the caller's permissions.
    pub async fn list(&self, caller: &Caller) -> Result<pb::LeaseLeasesResponse, Error> {
        let handle = self.member.voter()?;
        let who = self.member.require_user(&handle, caller).await?.unwrap_or_default();
        let reader = handle.clone();
        let ids = blocking(move || {
            let ids = reader.leases()?;
            let (_, refused) = permitted(&reader, &who, Need::Read, &ids);
            refused.map_or(Ok(ids), Err)
        })
        .await?;
        let status = handle.status();
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(pb::LeaseLeasesResponse { header: Some(header(&status, status.revision)), leases })
    }

    /// Renews leases by the leader's clock, wherever it is, in their order up to the first whose keys the caller may not all
    /// write.
    ///
    /// # Errors
    /// `NoLeader`, `TimedOut`; `Learner`; of the caller's credentials.
    pub async fn renew(&self, caller: &Caller, ids: &[i64]) -> Result<Renewals, Error> {
        let handle = self.member.voter()?;
        let who = self.member.require_user(&handle, caller).await?.unwrap_or_default();
        let (mut ids, mut refused) = (ids, None);
        if handle.auth().is_enabled() {
            let (reader, all) = (handle.clone(), ids.to_vec());
            let (permitted, refusal) = blocking(move || Ok(permitted(&reader, &who, Need::Write, &all))).await?;
            (ids, refused) = (&ids[..permitted], refusal);
        }
        if ids.is_empty() {
            return Ok(Renewals { renewals: Vec::new(), refused });
        }
        let renewals = ask_leader(&handle, || async {
            match place(&handle, false)? {
                Place::Here => Ok(handle.renew_leases(ids).await?),
                Place::At(leader) => {
                    let (cluster_id, to) = (handle.cluster_id(), handle.status().leader);
                    self.clock.renew(leader.urls, peer::RenewLeasesRequest { cluster_id, to, ids: ids.to_vec() }).await
                }
            }
        })
        .await?;
        Ok(Renewals { renewals, refused })
    }

    /// The member below.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }
}

/// What became of leases that were to be renewed.
#[derive(Debug)]
pub struct Renewals {
    /// One for each lease before the refused one, in their order.
    pub renewals: Vec<Renewal>,
    /// Why the lease behind them was not renewed, nor those behind it.
    pub refused: Option<Error>,
}

/// How many of these leases, as applied here, come before the first with a key to which `who` may not do that; and why not.
fn permitted(handle: &Handle, who: &Identity, need: Need, ids: &[i64]) -> (usize, Option<Error>) {
    if handle.auth().check_admin(who).is_ok() {
        return (ids.len(), None);
    }
    // The view first: permissions that are newer than what is looked at are the stricter ones (decision 0015).
    let view = match handle.view() {
        Ok(view) => view,
        Err(failure) => return (0, Some(failure.into())),
    };
    let auth = handle.auth();
    let keys = LeasesOf(&view);
    for (index, id) in ids.iter().enumerate() {
        if let Err(error) = auth.check_lease(who, need, *id, &keys) {
            return (index, Some(read_error(handle, error)));
        }
    }
    (ids.len(), None)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

/// What a lease has left by this member's own clock.
///
/// # Errors
/// `NotLeader`; those of a read index.
pub async fn time_to_live_here(
    handle: &Handle,
    request: pb::LeaseTimeToLiveRequest,
) -> Result<pb::LeaseTimeToLiveResponse, Error> {
    let left = handle.lease_time_to_live(request.id, request.keys).await?;
    let none = pb::LeaseTimeToLiveResponse { id: request.id, ttl: NO_LEASE, ..Default::default() };
    Ok(match left {
        Some(left) => {
            pb::LeaseTimeToLiveResponse { ttl: left.ttl, granted_ttl: left.granted_ttl, keys: left.keys, ..none }
        }
        None => none,
    })
}

/// Asks again while there is no leader, or another one, or none that has started its clock. What is asked may be
/// repeated.
async fn ask_leader<T, F>(handle: &Handle, ask: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let deadline = Instant::now() + handle.request_timeout();
    loop {
        match timeout_at(deadline, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if !passes(&error) => return Err(error),
            Ok(Err(_)) if Instant::now() + ASK_AGAIN < deadline => sleep(ASK_AGAIN).await,
            _ if handle.status().leader == 0 => return Err(Failure::NoLeader.into()),
            _ => return Err(Failure::TimedOut.into()),
        }
    }
}

/// Whether it may go better next time.
fn passes(error: &Error) -> bool {
    match error {
        Error::Remote { .. } => true,
        Error::Failed(failure) => matches!(
            failure,
            Failure::NotLeader { .. } | Failure::NoLeader | Failure::TimedOut | Failure::LeaderChanged
        ),
        _ => false,
    }
}

/// A lease must outlast an election, or nobody could renew it in time: one and a half election time-outs, in seconds. etcd
/// counts them in whole heartbeats first, and rounds these down, then the seconds up.
fn least_ttl(heartbeat: Duration, election_timeout: Duration) -> i64 {
    let heartbeat = heartbeat.as_millis().max(1);
    let heartbeats = election_timeout.as_millis() / heartbeat * 3 / 2;
    (heartbeats * heartbeat).div_ceil(1000) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_ttl_is_etcds() {
        let of = |heartbeat, election| least_ttl(Duration::from_millis(heartbeat), Duration::from_millis(election));
        assert_eq!([of(100, 1_000), of(100, 500), of(100, 2_000), of(100, 10_000), of(1, 667)], [2, 1, 3, 15, 1]);
        assert_eq!([of(100, 700), of(1_000, 5_000), of(100, 1_300)], [1, 7, 2]);
    }
}
