//! The client side of the peer port: passes calls on to the leader, marked so that they go no further and change nothing in
//! another cluster.

use std::future::Future;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::node as wire;
use pb::cluster_client::ClusterClient;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use wire::node_client::NodeClient;

use super::status::{FOR_CLUSTER, FORWARDED, remote};
use crate::engine::{Failure, request_timeout};
use crate::service::failure::Error;
use crate::service::forward::{Address, Answer, Leader};
use crate::transport::tonic::Dialer;

/// Longest wait for the leader's answer: its own bound on a request, the election time-out for which it may wait to hear of
/// its followers, and a little for the way.
pub fn answer_bound(election_timeout: Duration) -> Duration {
    request_timeout(election_timeout) + election_timeout + Duration::from_secs(1)
}

/// Reaches the leader over gRPC. Connects for each call: they are rare, and the leader may be another one each time.
#[derive(Debug, Clone)]
pub struct GrpcLeader {
    dialer: Dialer,
    bound: Duration,
}

impl GrpcLeader {
    /// Reaches it by `dialer`, and waits for its answers as long as [`answer_bound`] says.
    pub fn new(dialer: Dialer, election_timeout: Duration) -> Self {
        Self { dialer, bound: answer_bound(election_timeout) }
    }

    /// Connects, calls, and turns what comes back into this side's words.
    fn call<M, T, C, F>(&self, to: Address, message: M, ask: C) -> Answer<T>
    where
        M: Send + 'static,
        T: 'static,
        C: FnOnce(Channel, Request<M>) -> F + Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let (dialer, bound) = (self.dialer.clone(), self.bound);
        Box::pin(async move {
            let channel = connect(&dialer, &to.urls).await?;
            in_time(bound, ask(channel, marked(message, to.cluster_id))).await
        })
    }
}

/// The first of the URLs that accepts a connection. Nothing has been asked yet when none does.
pub(super) async fn connect(dialer: &Dialer, urls: &[String]) -> Result<Channel, Error> {
    dialer.connect_any(urls).await.map_err(|_| Failure::NoLeader.into())
}

fn marked<T>(message: T, cluster_id: u64) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, MetadataValue::from_static("1"));
    request.metadata_mut().insert(FOR_CLUSTER, cluster_id.into());
    request
}

/// The answer of another member, in this side's words.
pub(super) async fn in_time<T>(
    bound: Duration,
    asked: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match timeout(bound, asked).await {
        Err(_) => Err(Failure::TimedOut.into()),
        Ok(Err(status)) => Err(remote(&status)),
        Ok(Ok(response)) => Ok(response.into_inner()),
    }
}

impl Leader for GrpcLeader {
    fn member_add(&self, to: Address, request: pb::MemberAddRequest) -> Answer<pb::MemberAddResponse> {
        self.call(to, request, |channel, request| async move { ClusterClient::new(channel).member_add(request).await })
    }

    fn member_remove(&self, to: Address, request: pb::MemberRemoveRequest) -> Answer<pb::MemberRemoveResponse> {
        self.call(
            to,
            request,
            |channel, request| async move { ClusterClient::new(channel).member_remove(request).await },
        )
    }

    fn member_update(&self, to: Address, request: pb::MemberUpdateRequest) -> Answer<pb::MemberUpdateResponse> {
        self.call(
            to,
            request,
            |channel, request| async move { ClusterClient::new(channel).member_update(request).await },
        )
    }

    fn member_promote(&self, to: Address, request: pb::MemberPromoteRequest) -> Answer<pb::MemberPromoteResponse> {
        self.call(
            to,
            request,
            |channel, request| async move { ClusterClient::new(channel).member_promote(request).await },
        )
    }

    fn list(&self, to: Address, request: wire::ListRequest) -> Answer<wire::ListResponse> {
        self.call(to, request, |channel, request| async move { NodeClient::new(channel).list(request).await })
    }

    fn add(&self, to: Address, request: wire::AddRequest) -> Answer<wire::ChangeResponse> {
        self.call(to, request, |channel, request| async move { NodeClient::new(channel).add(request).await })
    }

    fn promote(&self, to: Address, request: wire::PromoteRequest) -> Answer<wire::ChangeResponse> {
        self.call(to, request, |channel, request| async move { NodeClient::new(channel).promote(request).await })
    }

    fn remove(&self, to: Address, request: wire::RemoveRequest) -> Answer<wire::ChangeResponse> {
        self.call(to, request, |channel, request| async move { NodeClient::new(channel).remove(request).await })
    }

    fn move_leader(&self, to: Address, request: wire::MoveLeaderRequest) -> Answer<wire::MoveLeaderResponse> {
        self.call(to, request, |channel, request| async move { NodeClient::new(channel).move_leader(request).await })
    }
}
