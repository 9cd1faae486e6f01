//! What the operator asks of a node. Every call may be repeated: one that is already done succeeds without effect. The
//! node refuses, with a typed reason, what would harm the cluster, whatever the operator believes.
//!
//! Leader-only calls are passed on to the leader once. The engine and the model make the checks; this file only knows
//! which refusals mean "already done".

use std::sync::Arc;

use balsa_proto::{log, node as wire};

use super::failure::Error;
use super::forward::{Leader, Place, check_cluster, place};
use super::member::{Member, Settings};
use super::{health, settings, stop};
use crate::config::url;
use crate::config::version::BALSA_VERSION;
use crate::domain::refusal::Refusal;
use crate::engine::fatal::ExitCode;
use crate::engine::handle::Change;
use crate::engine::{Failure, Handle, StartError, Status};

/// The node service as use cases.
#[derive(Clone)]
pub struct NodeService {
    member: Arc<Member>,
    leader: Arc<dyn Leader>,
}

impl NodeService {
    /// Use cases of one node; what only the leader may do goes through `leader`.
    pub fn new(member: Arc<Member>, leader: Arc<dyn Leader>) -> Self {
        Self { member, leader }
    }

    /// What this node is. Never fails. Takes note of the cluster that the operator holds it for.
    pub fn state(&self, request: wire::StateRequest) -> wire::StateResponse {
        self.member.note_expected_cluster(request.cluster_id);
        let settings = self.member.settings();
        let mut response = wire::StateResponse {
            name: settings.name.clone(),
            version: BALSA_VERSION.to_owned(),
            config_hash: self.member.hot().hash.clone(),
            config_version: self.member.hot().version,
            stopping: self.member.is_draining(),
            ..wire::StateResponse::default()
        };
        if let Ok(handle) = self.member.handle() {
            describe(&handle.status(), &mut response);
            response.ready = health::is_ready(&self.member);
        }
        response
    }

    /// Founds the cluster with this node as its only voter.
    ///
    /// # Errors
    /// `WrongDisk` when the disk is of another cluster; `InvalidRequest`.
    pub async fn bootstrap(&self, request: wire::BootstrapRequest) -> Result<wire::BootstrapResponse, Error> {
        let cluster_id = request.cluster_id;
        if let Ok(handle) = self.member.handle() {
            let status = handle.status();
            if status.cluster_id == cluster_id {
                return Ok(founded(&status));
            }
            return Err(wrong_disk(&status, &format!("cluster {cluster_id:x}")));
        }
        check_bootstrap(&request, &self.member.settings().name)?;
        let peer_urls = peer_urls(&request.peer_urls)?;
        self.member.node().bootstrap(cluster_id, peer_urls).await.map_err(|error| self.not_started(&error))?;
        Ok(founded(&self.member.handle()?.status()))
    }

    /// Tells an uninitialized node which member it is. Its marker is on the disk before the answer.
    ///
    /// # Errors
    /// `WrongDisk` when the disk is another member's; `InvalidRequest`.
    pub async fn join(&self, request: wire::JoinRequest) -> Result<wire::JoinResponse, Error> {
        if let Ok(handle) = self.member.handle() {
            let status = handle.status();
            check_disk(&status, (request.cluster_id, request.raft_id, request.incarnation))?;
            return Ok(wire::JoinResponse {});
        }
        check_join(&request, &self.member.node().config().peer_urls)?;
        let others = request.peers.into_iter().filter(|peer| peer.id != request.raft_id);
        let marker = log::Marker {
            cluster_id: request.cluster_id,
            member_id: request.raft_id,
            incarnation: request.incarnation,
            seeds: others.map(|peer| log::Seed { id: peer.id, peer_urls: peer.urls }).collect(),
            ..log::Marker::default()
        };
        self.member.node().join(marker).await.map_err(|error| self.not_started(&error))?;
        Ok(wire::JoinResponse {})
    }

    /// A disk that is another member's stays as it is and says so; any other fault ends the process with its code.
    fn not_started(&self, error: &StartError) -> Error {
        if let StartError::WrongDisk(what) = error {
            return Error::WrongDisk(what.clone());
        }
        if let Ok(code) = ExitCode::try_from(error.exit_code()) {
            self.member.node().fatal().end(code, error.to_string());
        }
        Error::Internal(error.to_string())
    }

    /// The members, linearizable, with the leader's view of each.
    ///
    /// # Errors
    /// `NoLeader`; those of a read index.
    pub async fn list(&self, request: wire::ListRequest, forwarded: bool) -> Result<wire::ListResponse, Error> {
        let handle = self.member.handle()?;
        if let Place::At(leader) = place(&handle, forwarded)? {
            return self.leader.list(leader, request).await;
        }
        handle.read_index().await?;
        Ok(listing(&handle.status()))
    }

    /// This member, for a call that is meant for that cluster; 0 means whoever is asked. What is passed on to the leader
    /// names the cluster always, because the leader's address may have become another pod's, too.
    fn handle_of(&self, cluster_id: &mut u64) -> Result<Handle, Error> {
        let handle = self.member.handle()?;
        let own = handle.status().cluster_id;
        check_cluster(own, std::mem::replace(cluster_id, own))?;
        Ok(handle)
    }

    /// Adds a learner.
    ///
    /// # Errors
    /// `ClusterIdMismatch`, `ConfigChanged`, `ChangeInFlight`, `NoLeader`, `InvalidRequest`, `TimedOut`.
    pub async fn add(&self, mut request: wire::AddRequest, forwarded: bool) -> Result<wire::ChangeResponse, Error> {
        let peer_urls = peer_urls(&request.peer_urls)?;
        let handle = self.handle_of(&mut request.cluster_id)?;
        if let Place::At(leader) = place(&handle, forwarded)? {
            return self.leader.add(leader, request).await;
        }
        let change = Change::Add(log::AddMember { id: 0, peer_urls, is_learner: true });
        change_once(&handle, change, request.membership_index).await
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// `ClusterIdMismatch`, `NotCaughtUp`, `MemberNotFound`, `MemberRemoved`, `ConfigChanged`, `ChangeInFlight`,
    /// `NoLeader`, `TimedOut`.
    pub async fn promote(
        &self,
        mut request: wire::PromoteRequest,
        forwarded: bool,
    ) -> Result<wire::ChangeResponse, Error> {
        let handle = self.handle_of(&mut request.cluster_id)?;
        if let Place::At(leader) = place(&handle, forwarded)? {
            return self.leader.promote(leader, request).await;
        }
        let change = Change::Promote(log::PromoteMember { id: request.id });
        change_once(&handle, change, request.membership_index).await
    }

    /// Removes a member.
    ///
    /// # Errors
    /// `ClusterIdMismatch`, `MoveLeaderFirst`, `QuorumAtRisk`, `LastVoter`, `MemberNotFound`, `ConfigChanged`,
    /// `ChangeInFlight`, `NoLeader`, `TimedOut`.
    pub async fn remove(
        &self,
        mut request: wire::RemoveRequest,
        forwarded: bool,
    ) -> Result<wire::ChangeResponse, Error> {
        let handle = self.handle_of(&mut request.cluster_id)?;
        if let Place::At(leader) = place(&handle, forwarded)? {
            return self.leader.remove(leader, request).await;
        }
        let change = Change::Remove(log::RemoveMember { id: request.id });
        change_once(&handle, change, request.membership_index).await
    }

    /// Hands leadership to a voter and waits until it leads.
    ///
    /// # Errors
    /// `ClusterIdMismatch`, `ConfigChanged`, `BadTransferee`, `TransferTimedOut`, `ChangeInFlight`, `NoLeader`, `TimedOut`.
    pub async fn move_leader(
        &self,
        mut request: wire::MoveLeaderRequest,
        forwarded: bool,
    ) -> Result<wire::MoveLeaderResponse, Error> {
        let handle = self.handle_of(&mut request.cluster_id)?;
        let status = handle.status();
        if status.leader == request.target && request.target != 0 {
            return Ok(wire::MoveLeaderResponse { leader: status.leader, term: status.term });
        }
        if let Place::At(leader) = place(&handle, forwarded)? {
            return self.leader.move_leader(leader, request).await;
        }
        check_leader(status.raft_id, request.leader)?;
        handle.move_leader(request.target).await?;
        let status = handle.status();
        Ok(wire::MoveLeaderResponse { leader: status.leader, term: status.term })
    }

    /// Changes the settings that can change at run time, in any state.
    ///
    /// # Errors
    /// `WrongDisk`, `Uninitialized` when another member is meant; `StaleConfig`, `InvalidRequest`, `Internal` when the change cannot be kept.
    pub async fn set_config(&self, request: wire::SetConfigRequest) -> Result<wire::SetConfigResponse, Error> {
        self.check_meant((request.cluster_id, request.raft_id, request.incarnation))?;
        let Settings { hot, data_dir, .. } = self.member.settings().clone();
        let pushed = tokio::task::spawn_blocking(move || settings::push(&hot, &data_dir, request));
        pushed.await.map_err(|error| Error::Internal(error.to_string()))?
    }

    /// The active settings of those that can change at run time.
    pub fn get_config(&self) -> wire::GetConfigResponse {
        settings::describe(&self.member.settings().hot)
    }

    /// Makes the node fit to be stopped: unready, no leader, nothing in flight, flushed. It goes on serving.
    ///
    /// # Errors
    /// `WrongDisk`, `Uninitialized` when another member is meant; `Storage` when the flush fails.
    pub async fn prepare_stop(&self, request: wire::PrepareStopRequest) -> Result<wire::PrepareStopResponse, Error> {
        self.check_meant((request.cluster_id, request.raft_id, request.incarnation))?;
        stop::prepare(&self.member).await?;
        Ok(wire::PrepareStopResponse {})
    }

    /// Addresses go from pod to pod: a call that reached another member than it was meant for must not change that one.
    /// A call without a name is for whoever is asked.
    fn check_meant(&self, meant: (u64, u64, u64)) -> Result<(), Error> {
        if meant == (0, 0, 0) { Ok(()) } else { check_disk(&self.member.handle()?.status(), meant) }
    }
}

/// Makes a change unless it is already made. A refusal can also mean that the change was made since it was planned, so
/// the membership is looked at before and after.
async fn change_once(handle: &Handle, change: Change, planned_on: u64) -> Result<wire::ChangeResponse, Error> {
    handle.read_index().await?;
    let before = handle.status().membership.clone();
    if let Some(done) = already_done(&before, &change) {
        return Ok(done);
    }
    match handle.change_membership(change.clone(), planned_on).await {
        Ok(membership) => already_done(&membership, &change)
            .map(|done| as_it_was(done, &before))
            .ok_or_else(|| Error::Internal("the change was applied and does not show in the membership".into())),
        Err(Failure::Refused(refusal)) => {
            already_done(&handle.status().membership, &change).ok_or_else(|| refusal_of(refusal, &change))
        }
        Err(failure) => Err(failure.into()),
    }
}

/// A member that was just removed is shown as it was: the membership keeps only its id.
fn as_it_was(mut done: wire::ChangeResponse, before: &log::Membership) -> wire::ChangeResponse {
    let listed = |membership: &log::Membership, id| membership.members.iter().find(|member| member.id == id).cloned();
    if let (Some(member), Some(after)) = (&done.member, &done.membership)
        && listed(after, member.id).is_none()
        && let Some(was) = listed(before, member.id)
    {
        done.member = Some(was);
    }
    done
}

/// A change of a member that was removed meanwhile is about that member, not about a stale plan.
fn refusal_of(refusal: Refusal, change: &Change) -> Error {
    match (&refusal, change) {
        (Refusal::MemberNotFound(0), _) => Error::InvalidRequest("the member id is 0".into()),
        _ => refusal.into(),
    }
}

/// The answer to a change that the membership already shows, if it does.
fn already_done(membership: &log::Membership, change: &Change) -> Option<wire::ChangeResponse> {
    let listed = |id: u64| membership.members.iter().find(|member| member.id == id).cloned();
    let member = match change {
        Change::Add(add) => {
            membership.members.iter().find(|m| m.peer_urls.iter().any(|url| add.peer_urls.contains(url))).cloned()
        }
        Change::Promote(promote) => listed(promote.id).filter(|member| !member.is_learner),
        Change::Remove(remove) => {
            membership.removed.contains(&remove.id).then(|| log::Member { id: remove.id, ..log::Member::default() })
        }
        Change::Update(update) => listed(update.id).filter(|member| member.peer_urls == update.peer_urls),
    }?;
    Some(wire::ChangeResponse { member: Some(member), membership: Some(membership.clone()) })
}

fn describe(status: &Status, response: &mut wire::StateResponse) {
    let listed = status.membership.members.iter().find(|member| member.id == status.raft_id);
    response.role = match listed {
        None => wire::Role::None,
        Some(member) if member.is_learner => wire::Role::Learner,
        Some(_) => wire::Role::Voter,
    } as i32;
    response.state = wire::State::Member as i32;
    response.cluster_id = status.cluster_id;
    response.raft_id = status.raft_id;
    response.incarnation = status.incarnation;
    response.leader = status.leader;
    response.term = status.term;
    response.commit_index = status.commit;
    response.applied_index = status.applied;
    response.membership_index = status.membership.index;
}

fn listing(status: &Status) -> wire::ListResponse {
    let progress = status.progress.iter().map(|peer| wire::Progress {
        id: peer.id,
        match_index: peer.match_index,
        active: peer.active,
        snapshot_running: peer.snapshot_running,
        caught_up: peer.caught_up,
        still_seconds: peer.still().as_secs(),
    });
    wire::ListResponse {
        membership: Some(log::Membership::clone(&status.membership)),
        leader: status.leader,
        term: status.term,
        commit_index: status.commit,
        change_in_flight: status.change_in_flight || status.transferring,
        progress: progress.collect(),
        alarms: status.maintenance.alarms.clone(),
    }
}

fn founded(status: &Status) -> wire::BootstrapResponse {
    wire::BootstrapResponse {
        raft_id: status.raft_id,
        incarnation: status.incarnation,
        membership_index: status.membership.index,
    }
}

fn wrong_disk(status: &Status, asked: &str) -> Error {
    Error::WrongDisk(format!(
        "the disk is member {:x}.{:x} of cluster {:x}, the request is for {asked}: replace the disk or ask the right node",
        status.raft_id, status.incarnation, status.cluster_id
    ))
}

/// `asked` is cluster id, raft id and incarnation.
fn check_disk(status: &Status, asked: (u64, u64, u64)) -> Result<(), Error> {
    if asked == (status.cluster_id, status.raft_id, status.incarnation) {
        return Ok(());
    }
    let (cluster_id, raft_id, incarnation) = asked;
    Err(wrong_disk(status, &format!("member {raft_id:x}.{incarnation:x} of cluster {cluster_id:x}")))
}

/// Who has come to lead since the call was planned was not asked to hand over: it may be the one that should lead.
fn check_leader(own: u64, meant: u64) -> Result<(), Error> {
    if meant == 0 || meant == own {
        return Ok(());
    }
    Err(Error::OtherLeader(format!("member {own:x} leads, and {meant:x} was to hand over: observe again")))
}

/// A call that reached another node than it was meant for must not found a cluster there.
fn check_bootstrap(request: &wire::BootstrapRequest, own_name: &str) -> Result<(), Error> {
    if request.cluster_id == 0 {
        return Err(Error::InvalidRequest("the cluster id is 0".into()));
    }
    if request.name.is_empty() || request.name == own_name {
        return Ok(());
    }
    Err(Error::InvalidRequest(format!("the call is for node {:?}, this is {own_name:?}", request.name)))
}

/// Names come and go with addresses: a call that reached another node than it was meant for must not make that one the
/// member. `own_urls` are where this node is.
fn check_join(request: &wire::JoinRequest, own_urls: &[String]) -> Result<(), Error> {
    let missing = |what: &str| Err(Error::InvalidRequest(format!("{what} is missing")));
    if request.cluster_id == 0 {
        return missing("the cluster id");
    }
    if request.raft_id == 0 {
        return missing("the raft id");
    }
    if request.incarnation == 0 {
        return missing("the incarnation");
    }
    if !request.peers.iter().any(|peer| peer.id != request.raft_id) {
        return missing("another member among the peers");
    }
    for peer in &request.peers {
        peer_urls(&peer.urls)?;
    }
    let meant = request.peers.iter().find(|peer| peer.id == request.raft_id);
    match meant.filter(|peer| !peer.urls.iter().any(|url| own_urls.contains(url))) {
        None => Ok(()),
        Some(elsewhere) => Err(Error::InvalidRequest(format!(
            "member {:x} is listed at {}, this node is at {}",
            elsewhere.id,
            elsewhere.urls.join(","),
            own_urls.join(",")
        ))),
    }
}

fn peer_urls(urls: &[String]) -> Result<Vec<String>, Error> {
    url::list(urls).map_err(|error| Error::InvalidRequest(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> log::Membership {
        let member = |id, host: &str, is_learner| log::Member {
            id,
            peer_urls: vec![format!("http://{host}:2380")],
            is_learner,
            ..log::Member::default()
        };
        log::Membership {
            members: vec![member(1, "a", false), member(2, "b", true)],
            removed: vec![3],
            ..log::Membership::default()
        }
    }

    fn member_of(change: Change) -> Option<u64> {
        already_done(&membership(), &change).map(|response| response.member.unwrap().id)
    }

    #[test]
    fn a_call_for_another_cluster_is_refused_and_one_without_a_name_is_not() {
        assert_eq!((check_cluster(7, 7), check_cluster(7, 0)), (Ok(()), Ok(())));
        assert!(matches!(check_cluster(7, 8), Err(Error::OtherCluster(_))));
    }

    #[test]
    fn a_change_that_shows_in_the_membership_is_done() {
        let add = |url: &str| Change::Add(log::AddMember { id: 0, peer_urls: vec![url.to_owned()], is_learner: true });
        assert_eq!(member_of(add("http://b:2380")), Some(2), "a listed URL answers with the listed member");
        assert_eq!(member_of(add("http://c:2380")), None);
        assert_eq!(member_of(Change::Promote(log::PromoteMember { id: 1 })), Some(1));
        assert_eq!(member_of(Change::Promote(log::PromoteMember { id: 2 })), None);
        assert_eq!(member_of(Change::Remove(log::RemoveMember { id: 3 })), Some(3));
        assert_eq!(member_of(Change::Remove(log::RemoveMember { id: 1 })), None);
        assert_eq!(member_of(Change::Remove(log::RemoveMember { id: 9 })), None, "never known is not removed");
    }

    #[test]
    fn a_bootstrap_that_names_another_node_is_refused() {
        let request =
            |cluster_id, name: &str| wire::BootstrapRequest { cluster_id, name: name.into(), peer_urls: vec![] };
        assert_eq!(check_bootstrap(&request(7, "db-0"), "db-0"), Ok(()));
        assert_eq!(check_bootstrap(&request(7, ""), "db-0"), Ok(()));
        for bad in [request(7, "db-1"), request(0, "db-0")] {
            assert!(matches!(check_bootstrap(&bad, "db-0"), Err(Error::InvalidRequest(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_join_needs_another_member_to_learn_from() {
        let here = ["http://a:2380".to_owned(), "http://b:2380".to_owned()];
        let peer = |id| wire::Peer { id, urls: vec!["http://a:2380".to_owned()] };
        let good = wire::JoinRequest {
            cluster_id: 1,
            raft_id: 2,
            incarnation: 3,
            peers: vec![peer(1), peer(2)],
            membership_index: 1,
        };
        assert_eq!(check_join(&good, &here), Ok(()));
        let alone = wire::JoinRequest { peers: vec![peer(2)], ..good.clone() };
        assert!(matches!(check_join(&alone, &here), Err(Error::InvalidRequest(_))));
        for bad in [
            wire::JoinRequest { cluster_id: 0, ..good.clone() },
            wire::JoinRequest { raft_id: 0, ..good.clone() },
            wire::JoinRequest { incarnation: 0, ..good.clone() },
            wire::JoinRequest { peers: vec![wire::Peer { id: 1, urls: vec![] }], ..good.clone() },
        ] {
            assert!(matches!(check_join(&bad, &here), Err(Error::InvalidRequest(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_join_that_is_meant_for_another_node_is_refused() {
        let peer = |id, url: &str| wire::Peer { id, urls: vec![url.to_owned()] };
        let request =
            |peers| wire::JoinRequest { cluster_id: 1, raft_id: 2, incarnation: 3, peers, membership_index: 1 };
        let here = ["http://b:2380".to_owned()];
        let meant = request(vec![peer(1, "http://a:2380"), peer(2, "http://b:2380")]);
        assert_eq!(check_join(&meant, &here), Ok(()));
        let other = request(vec![peer(1, "http://a:2380"), peer(2, "http://c:2380")]);
        assert!(matches!(check_join(&other, &here), Err(Error::InvalidRequest(_))));
        let untold = request(vec![peer(1, "http://a:2380")]);
        assert_eq!(check_join(&untold, &here), Ok(()), "a caller need not say where the member is");
    }

    #[test]
    fn the_list_says_when_a_transfer_runs() {
        let status = Status { transferring: true, ..Status::default() };
        assert!(listing(&status).change_in_flight);
        assert!(!listing(&Status::default()).change_in_flight);
    }
}
