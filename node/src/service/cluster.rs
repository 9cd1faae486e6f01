//! etcd's membership calls. They share the engine's one way of changing the membership with the node service, and keep
//! etcd's errors and habits: no fence, the strict check, removal of the leader hands leadership over first.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::node::Reason;
use balsa_proto::{etcdserverpb as pb, log};
use tokio::time::{Instant, sleep};

use super::caller::Caller;
use super::failure::Error;
use super::forward::{ASK_AGAIN, ASK_SELDOM, Address, Answer, Leader, Place, check_cluster, place};
use super::member::{Member, header};
use super::reconfigure;
use crate::config::url;
use crate::domain::membership;
use crate::domain::refusal::Refusal;
use crate::engine::handle::Change;
use crate::engine::status::Progress;
use crate::engine::{Failure, Handle};
use crate::metrics;

/// Where a call came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the client port: permissions count.
    Client(Caller),
    /// On the peer port, whose TLS is what keeps strangers out: a member that checked has passed a client's call on, or
    /// somebody who may do as the members says so. It goes no further.
    Peer {
        /// The cluster that it is meant for; 0 from a member that does not say, as those of older releases.
        cluster_id: u64,
    },
}

impl Origin {
    fn is_forwarded(&self) -> bool {
        matches!(self, Origin::Peer { .. })
    }
}

/// etcd's Cluster service as use cases.
#[derive(Clone)]
pub struct Cluster {
    member: Arc<Member>,
    leader: Arc<dyn Leader>,
}

impl Cluster {
    /// Use cases of one member; what only the leader may do goes through `leader`.
    pub fn new(member: Arc<Member>, leader: Arc<dyn Leader>) -> Self {
        Self { member, leader }
    }

    /// The members. Headers of this service have revision 0, as etcd's.
    ///
    /// # Errors
    /// With `linearizable` those of a read index.
    pub async fn list(&self, caller: &Caller, request: pb::MemberListRequest) -> Result<pb::MemberListResponse, Error> {
        let handle = self.member.voter()?;
        if request.linearizable {
            handle.read_index().await?;
        }
        self.member.require_user(&handle, caller).await?;
        let status = handle.status();
        Ok(pb::MemberListResponse { header: Some(header(&status, 0)), members: members(&status.membership) })
    }

    /// Adds a voter, or a learner when the request says so.
    ///
    /// # Errors
    /// `InvalidUrls`, `PeerUrlExists`, those of the strict check, `TooManyLearners`.
    pub async fn add(&self, origin: &Origin, request: pb::MemberAddRequest) -> Result<pb::MemberAddResponse, Error> {
        let handle = self.member.voter()?;
        let peer_urls = peer_urls(&request.peer_ur_ls)?;
        self.may_change(&handle, origin).await?;
        let may_add = |membership: &log::Membership, progress: &[Progress]| match request.is_learner {
            _ if !self.strict() => Ok(()),
            true => reconfigure::nobody_is_away(membership, progress),
            false => reconfigure::may_add_voter(membership, progress),
        };
        let here = || async {
            let status = handle.status();
            may_add(&status.membership, &connected(&status.progress, &handle.reached()))?;
            self.add_here(&handle, &peer_urls, request.is_learner).await
        };
        let ask = |leader| self.leader.member_add(leader, request.clone());
        self.at_leader(&handle, origin, None, may_add, here, ask).await
    }

    async fn add_here(
        &self,
        handle: &Handle,
        peer_urls: &[String],
        is_learner: bool,
    ) -> Result<pb::MemberAddResponse, Error> {
        let status = handle.status();
        if is_learner {
            // Of two reasons etcd says this one.
            membership::urls_are_free(&status.membership, 0, peer_urls)?;
            reconfigure::may_add_learner(&status.membership, self.member.hot().values.max_learners)?;
        }
        let known: Vec<u64> = status.membership.members.iter().map(|member| member.id).collect();
        let change = Change::Add(log::AddMember { id: 0, peer_urls: peer_urls.to_vec(), is_learner });
        let membership = handle.change_membership(change, 0).await?;
        let added = membership
            .members
            .iter()
            .find(|member| !known.contains(&member.id) && member.peer_urls == peer_urls)
            .ok_or_else(|| Error::Internal("the added member is not listed".into()))?;
        Ok(pb::MemberAddResponse {
            header: Some(header(&handle.status(), 0)),
            member: Some(member(added)),
            members: members(&membership),
        })
    }

    /// Removes a member. The leader hands leadership over and passes the call on to its successor.
    ///
    /// # Errors
    /// `MemberNotFound`, `LastVoter`, those of the strict check.
    pub async fn remove(
        &self,
        origin: &Origin,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Error> {
        let handle = self.member.voter()?;
        self.may_change(&handle, origin).await?;
        let may_wait = |membership: &log::Membership, reached: &[Progress]| match self.strict() {
            true => reconfigure::may_wait_to_remove(membership, reached, request.id),
            false => Ok(()),
        };
        let here = || self.remove_here(&handle, request);
        let ask = |leader| self.leader.member_remove(leader, request);
        self.at_leader(&handle, origin, None, may_wait, here, ask).await
    }

    async fn remove_here(
        &self,
        handle: &Handle,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Error> {
        if self.strict() {
            reconfigure::may_remove(&handle.status().membership, request.id)?;
        }
        if request.id == handle.member_id() {
            return self.remove_self(handle, request).await;
        }
        let membership = match self.strict() {
            true => take_out(handle, request.id).await?,
            false => handle.remove_at_any_price(request.id).await?,
        };
        Ok(pb::MemberRemoveResponse { header: Some(header(&handle.status(), 0)), members: members(&membership) })
    }

    async fn remove_self(
        &self,
        handle: &Handle,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Error> {
        let status = handle.status();
        let successor = reconfigure::successor(&status.membership, &status.progress, request.id);
        handle.move_leader(successor.ok_or(Error::Unhealthy)?).await?;
        match place(handle, false)? {
            Place::At(leader) => self.leader.member_remove(leader, request).await,
            Place::Here => Err(Failure::LeaderChanged.into()),
        }
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// `MemberNotFound`, `NotLearner`, `NotCaughtUp`, those of the strict check.
    pub async fn promote(
        &self,
        origin: &Origin,
        request: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, Error> {
        let handle = self.member.voter()?;
        self.may_change(&handle, origin).await?;
        let here = || async {
            let promoted = self.promote_here(&handle, request.id).await;
            match &promoted {
                Ok(_) => metrics::PROMOTED.inc(),
                // Another member is asked then.
                Err(Error::Failed(Failure::NotLeader { .. })) => {}
                Err(error) => metrics::NOT_PROMOTED.with_label_values(&[&*inner_words(error)]).inc(),
            }
            promoted
        };
        let (bound, ask) = (Some(handle.request_timeout()), |leader| self.leader.member_promote(leader, request));
        let promoted = self.at_leader(&handle, origin, bound, |_, _| Ok(()), here, ask).await;
        promoted.map_err(|error| match error {
            // etcd looks for the leader itself here, and its Raft in the other calls.
            Error::Failed(Failure::NotTaken) => Failure::NoLeader.into(),
            error => error,
        })
    }

    async fn promote_here(&self, handle: &Handle, id: u64) -> Result<pb::MemberPromoteResponse, Error> {
        reconfigure::may_promote(&handle.status(), id, self.strict())?;
        let change = Change::Promote(log::PromoteMember { id });
        let membership = handle.change_membership(change, 0).await?;
        Ok(pb::MemberPromoteResponse { header: Some(header(&handle.status(), 0)), members: members(&membership) })
    }

    /// Gives a member other peer URLs.
    ///
    /// # Errors
    /// `InvalidUrls`, `MemberNotFound`, `PeerUrlExists`.
    pub async fn update(
        &self,
        origin: &Origin,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, Error> {
        let handle = self.member.voter()?;
        // etcd looks at these URLs not at all: what it says first comes first.
        self.may_change(&handle, origin).await?;
        let peer_urls = peer_urls(&request.peer_ur_ls)?;
        let here = || async {
            let change = Change::Update(log::UpdateMember { id: request.id, peer_urls: peer_urls.clone() });
            let membership = handle.change_membership(change, 0).await?;
            Ok(pb::MemberUpdateResponse { header: Some(header(&handle.status(), 0)), members: members(&membership) })
        };
        let ask = |leader| self.leader.member_update(leader, request.clone());
        self.at_leader(&handle, origin, None, |_, _| Ok(()), here, ask).await
    }

    /// Clients need permission; a member may have reached one of another cluster, whose address its leader's has become.
    async fn may_change(&self, handle: &Handle, origin: &Origin) -> Result<(), Error> {
        match origin {
            Origin::Client(caller) => self.member.require_root(handle, caller).await.map(drop),
            Origin::Peer { cluster_id } => check_cluster(handle.cluster_id(), *cluster_id),
        }
    }

    fn strict(&self) -> bool {
        self.member.settings().strict_reconfig_check
    }

    /// What the leader answers: this member `here`, while it leads, or another one whom it `ask`s. As long as whoever was
    /// taken for the leader has begun nothing, because it does not lead, cannot be connected to or lost its place before
    /// the change was in a quorum's log, `may` looks at what this member itself can reach, and with its consent a leader is
    /// waited for, until `bound` is over or, as in etcd, for as long as the client waits.
    async fn at_leader<T, F: Future<Output = Result<T, Error>>>(
        &self,
        handle: &Handle,
        origin: &Origin,
        bound: Option<Duration>,
        may: impl Fn(&log::Membership, &[Progress]) -> Result<(), Error>,
        here: impl Fn() -> F,
        ask: impl Fn(Address) -> Answer<T>,
    ) -> Result<T, Error> {
        let until = bound.map(|bound| Instant::now() + bound);
        let mut pause = ASK_AGAIN;
        loop {
            let asked = match place(handle, origin.is_forwarded()) {
                Ok(Place::Here) => here().await,
                Ok(Place::At(leader)) => ask(leader).await,
                Err(error) => Err(error),
            };
            match asked {
                // Who passed the call on asks again, perhaps elsewhere.
                Err(error) if has_begun_nothing(&error) && !origin.is_forwarded() => {
                    may(&handle.status().membership, &handle.reached())?
                }
                answered => return answered,
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(Failure::NotTaken.into());
            }
            if self.member.stopping().is_cancelled() {
                return Err(Failure::Stopped.into());
            }
            sleep(pause).await;
            pause = ASK_SELDOM.min(2 * pause);
        }
    }
}

/// Whether it says that no leader was found where one was asked for. A member of another cluster at its address is none.
fn has_begun_nothing(error: &Error) -> bool {
    matches!(error.row().reason, Reason::NoLeader | Reason::ClusterIdMismatch)
}

/// A leader hears of its followers with their first answers. Within its first election time-out those that it misses may be
/// there all the same, and who has waited for a leader should not be refused for that.
async fn take_out(handle: &Handle, id: u64) -> Result<Arc<log::Membership>, Failure> {
    let is_new = || handle.status().elected.is_some_and(|at| at.elapsed() < handle.election_timeout());
    loop {
        match handle.change_membership(Change::Remove(log::RemoveMember { id }), 0).await {
            Err(Failure::QuorumAtRisk) if is_new() => sleep(ASK_AGAIN).await,
            done => return done,
        }
    }
}

/// What the leader knows of its peers, without those whose connection is gone: Raft itself misses one only after an election
/// time-out.
fn connected(progress: &[Progress], reached: &[Progress]) -> Vec<Progress> {
    let is_reached = |id| reached.iter().any(|peer| peer.id == id && peer.active);
    progress.iter().map(|peer| Progress { active: peer.active && is_reached(peer.id), ..peer.clone() }).collect()
}

/// Valid peer URLs in canonical order.
fn peer_urls(urls: &[String]) -> Result<Vec<String>, Error> {
    url::list(urls).map_err(|_| Error::InvalidUrls)
}

/// A member in etcd's words.
pub fn member(member: &log::Member) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}

fn members(membership: &log::Membership) -> Vec<pb::Member> {
    membership.members.iter().map(member).collect()
}

/// What etcd calls a failure inside of itself, which its metric shows.
fn inner_words(error: &Error) -> Cow<'static, str> {
    match error {
        Error::Failed(Failure::Refused(Refusal::MemberNotFound(_))) => "membership: ID not found".into(),
        Error::Failed(Failure::Refused(Refusal::NotLearner(_))) => {
            "membership: can only promote a learner member".into()
        }
        other => other.row().text,
    }
}
