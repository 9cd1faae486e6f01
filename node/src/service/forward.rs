//! The port through which a member passes a call on to the leader. The presenter side of the wire implements it, because
//! a service knows no tonic.

use std::time::Duration;

use balsa_proto::{etcdserverpb as pb, node};
use futures::future::BoxFuture;

use super::failure::Error;
use crate::engine::{Failure, Handle};

/// Between two attempts to reach a leader.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The longest of the growing pauses of who may ask for ever.
pub(super) const ASK_SELDOM: Duration = Duration::from_secs(1);

/// The answer to a forwarded call.
pub type Answer<T> = BoxFuture<'static, Result<T, Error>>;

/// Whom a call is passed on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Where it listens for peers.
    pub urls: Vec<String>,
    /// Its cluster. The URLs may have become those of another one's member meanwhile.
    pub cluster_id: u64,
}

/// Calls at the member with that address. Each URL is tried in order until one connects; an answer, good or bad,
/// is never asked for twice. Implementations mark the call with the cluster that it is meant for, so that its receiver does
/// not forward it again, and refuses it when it is of another cluster.
pub trait Leader: Send + Sync + 'static {
    /// etcd's MemberAdd.
    fn member_add(&self, to: Address, request: pb::MemberAddRequest) -> Answer<pb::MemberAddResponse>;
    /// etcd's MemberRemove.
    fn member_remove(&self, to: Address, request: pb::MemberRemoveRequest) -> Answer<pb::MemberRemoveResponse>;
    /// etcd's MemberUpdate.
    fn member_update(&self, to: Address, request: pb::MemberUpdateRequest) -> Answer<pb::MemberUpdateResponse>;
    /// etcd's MemberPromote.
    fn member_promote(&self, to: Address, request: pb::MemberPromoteRequest) -> Answer<pb::MemberPromoteResponse>;
    /// The node service's List.
    fn list(&self, to: Address, request: node::ListRequest) -> Answer<node::ListResponse>;
    /// The node service's Add.
    fn add(&self, to: Address, request: node::AddRequest) -> Answer<node::ChangeResponse>;
    /// The node service's Promote.
    fn promote(&self, to: Address, request: node::PromoteRequest) -> Answer<node::ChangeResponse>;
    /// The node service's Remove.
    fn remove(&self, to: Address, request: node::RemoveRequest) -> Answer<node::ChangeResponse>;
    /// The node service's MoveLeader.
    fn move_leader(&self, to: Address, request: node::MoveLeaderRequest) -> Answer<node::MoveLeaderResponse>;
}

/// Where a call that only the leader answers is to be handled.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// Here: this member leads.
    Here,
    /// At the leader.
    At(Address),
}

/// Finds the leader for a call. A call that was forwarded to this member is never forwarded again.
///
/// # Errors
/// `NoLeader`; `NotLeader` for a forwarded call.
pub fn place(handle: &Handle, forwarded: bool) -> Result<Place, Error> {
    let status = handle.status();
    if status.is_leader() {
        return Ok(Place::Here);
    }
    let leader = Some(status.leader).filter(|id| *id != 0);
    if forwarded {
        return Err(Failure::NotLeader { leader }.into());
    }
    let leader = leader.ok_or(Failure::NoLeader)?;
    let member = status.membership.members.iter().find(|member| member.id == leader).ok_or(Failure::NoLeader)?;
    Ok(Place::At(Address { urls: member.peer_urls.clone(), cluster_id: status.cluster_id }))
}

/// Refuses a call that is meant for another cluster; 0 is for whoever is asked.
///
/// # Errors
/// `OtherCluster`.
pub(super) fn check_cluster(own: u64, asked: u64) -> Result<(), Error> {
    if asked == 0 || asked == own {
        return Ok(());
    }
    Err(Error::OtherCluster(format!("this is a member of cluster {own:x}, the call is for {asked:x}: observe again")))
}
