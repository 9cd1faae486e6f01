//! One of the two servers as the comparison sees it: takes a step, gives a reply.

use std::path::Path;

use balsa_proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_request::RequestUnion;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::raw::RawClient;
use super::reply::{Identity, Reply};
use super::step::Step;
use super::streams::{MAX_MESSAGE_BYTES, PATIENCE, Streams};
use crate::local::Server;

/// A server with its clients.
pub struct Side {
    /// The process.
    pub server: Server,
    /// Its watch streams.
    pub streams: Streams,
    /// Its ids, as far as they are known.
    pub identity: Identity,
    kv: KvClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    cluster: ClusterClient<Channel>,
    lease: LeaseClient<Channel>,
    raw: RawClient,
}

impl Side {
    /// Starts a server.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(name: &str, program: &Path) -> anyhow::Result<Self> {
        let server = Server::alone(name, program).await?;
        let channel = server.channel()?;
        Ok(Self {
            streams: Streams::new(channel.clone()),
            identity: Identity::default(),
            kv: KvClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            maintenance: MaintenanceClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            raw: RawClient::new(channel.clone()),
            server,
        })
    }

    /// Sends a step and waits for its reply, ids taken out.
    pub async fn send(&mut self, step: &Step) -> Reply {
        let reply = timeout(PATIENCE, self.call(step)).await.unwrap_or(Reply::Silent);
        self.identity.normalise(reply)
    }

    async fn call(&mut self, step: &Step) -> Reply {
        match step.clone() {
            Step::Range(request) => answer(self.kv.range(request).await, Reply::Range),
            Step::RangeStream(request) => self.range_stream(request).await,
            Step::Put(request) => answer(self.kv.put(request).await, Reply::Put),
            Step::DeleteRange(request) => answer(self.kv.delete_range(request).await, Reply::DeleteRange),
            Step::Txn(request) => answer(self.kv.txn(request).await, Reply::Txn),
            Step::Compact(request) => answer(self.kv.compact(request).await, Reply::Compact),
            Step::Status => answer(self.maintenance.status(pb::StatusRequest {}).await, Reply::Status),
            Step::HashKv(request) => answer(self.maintenance.hash_kv(request).await, Reply::HashKv),
            Step::MemberList(request) => answer(self.cluster.member_list(request).await, Reply::MemberList),
            Step::LeaseGrant(request) => answer(self.lease.lease_grant(request).await, Reply::LeaseGrant),
            Step::LeaseRevoke(request) => answer(self.lease.lease_revoke(request).await, Reply::LeaseRevoke),
            Step::LeaseKeepAlive(request) => self.keep_alive(request).await,
            Step::LeaseTimeToLive(request) => {
                answer(self.lease.lease_time_to_live(request).await, Reply::LeaseTimeToLive)
            }
            Step::LeaseLeases => answer(self.lease.lease_leases(pb::LeaseLeasesRequest {}).await, Reply::LeaseLeases),
            Step::Raw { path, body } => Reply::Raw(self.raw.call(path, body).await),
            Step::Watch { stream, request } => self.streams.stream(stream).await.ask(request).await,
        }
    }

    async fn keep_alive(&mut self, request: pb::LeaseKeepAliveRequest) -> Reply {
        let requests = tokio_stream::iter([request]);
        let mut answers = match self.lease.lease_keep_alive(requests).await {
            Ok(response) => response.into_inner(),
            Err(status) => return failed(&status),
        };
        match answers.message().await {
            Ok(Some(reply)) => Reply::LeaseKeepAlive(reply),
            Ok(None) => Reply::Silent,
            Err(status) => failed(&status),
        }
    }

    /// The chunks put together: how many there are is the server's affair.
    async fn range_stream(&mut self, request: pb::RangeRequest) -> Reply {
        let mut chunks = match self.kv.range_stream(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return failed(&status),
        };
        let mut whole = pb::RangeResponse::default();
        loop {
            match chunks.message().await {
                Ok(Some(chunk)) => {
                    let part = chunk.range_response.unwrap_or_default();
                    whole.kvs.extend(part.kvs);
                    whole = pb::RangeResponse { kvs: whole.kvs, ..part };
                }
                Ok(None) => return Reply::RangeStream(whole),
                Err(status) => return failed(&status),
            }
        }
    }
}

/// Whether a step asks a stream how far it is.
pub fn is_progress_request(step: &Step) -> bool {
    let Step::Watch { request, .. } = step else { return false };
    matches!(request.request_union, Some(RequestUnion::ProgressRequest(_)))
}

fn answer<T>(result: Result<Response<T>, Status>, reply: impl FnOnce(T) -> Reply) -> Reply {
    match result {
        Ok(response) => reply(response.into_inner()),
        Err(status) => failed(&status),
    }
}

fn failed(status: &Status) -> Reply {
    Reply::Failed { code: status.code(), message: status.message().to_owned() }
}
