//! The client side of the peer port: passes calls on to the leader, marked so that they go no further.

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

use super::status::{FORWARDED, remote};
use crate::engine::{Failure, request_timeout};
use crate::service::failure::Error;
use crate::service::forward::{Answer, Leader};
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
    fn call<T, C, F>(&self, urls: Vec<String>, ask: C) -> Answer<T>
    where
        T: 'static,
        C: FnOnce(Channel) -> F + Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let (dialer, bound) = (self.dialer.clone(), self.bound);
        Box::pin(async move {
            let channel = connect(&dialer, &urls).await?;
            in_time(bound, ask(channel)).await
        })
    }
}

/// The first of the URLs that accepts a connection. Nothing has been asked yet when none does.
pub(super) async fn connect(dialer: &Dialer, urls: &[String]) -> Result<Channel, Error> {
    dialer.connect_any(urls).await.map_err(|_| Failure::NoLeader.into())
}

fn marked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, MetadataValue::from_static("1"));
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
    fn member_add(&self, urls: Vec<String>, request: pb::MemberAddRequest) -> Answer<pb::MemberAddResponse> {
        self.call(urls, move |channel| async move { ClusterClient::new(channel).member_add(marked(request)).await })
    }

    fn member_remove(&self, urls: Vec<String>, request: pb::MemberRemoveRequest) -> Answer<pb::MemberRemoveResponse> {
        self.call(urls, move |channel| async move { ClusterClient::new(channel).member_remove(marked(request)).await })
    }

    fn member_update(&self, urls: Vec<String>, request: pb::MemberUpdateRequest) -> Answer<pb::MemberUpdateResponse> {
        self.call(urls, move |channel| async move { ClusterClient::new(channel).member_update(marked(request)).await })
    }

    fn member_promote(
        &self,
        urls: Vec<String>,
        request: pb::MemberPromoteRequest,
    ) -> Answer<pb::MemberPromoteResponse> {
        self.call(urls, move |channel| async move { ClusterClient::new(channel).member_promote(marked(request)).await })
    }

    fn list(&self, urls: Vec<String>, request: wire::ListRequest) -> Answer<wire::ListResponse> {
        self.call(urls, move |channel| async move { NodeClient::new(channel).list(marked(request)).await })
    }

    fn add(&self, urls: Vec<String>, request: wire::AddRequest) -> Answer<wire::ChangeResponse> {
        self.call(urls, move |channel| async move { NodeClient::new(channel).add(marked(request)).await })
    }

    fn promote(&self, urls: Vec<String>, request: wire::PromoteRequest) -> Answer<wire::ChangeResponse> {
        self.call(urls, move |channel| async move { NodeClient::new(channel).promote(marked(request)).await })
    }

    fn remove(&self, urls: Vec<String>, request: wire::RemoveRequest) -> Answer<wire::ChangeResponse> {
        self.call(urls, move |channel| async move { NodeClient::new(channel).remove(marked(request)).await })
    }

    fn move_leader(&self, urls: Vec<String>, request: wire::MoveLeaderRequest) -> Answer<wire::MoveLeaderResponse> {
        self.call(urls, move |channel| async move { NodeClient::new(channel).move_leader(marked(request)).await })
    }
}
