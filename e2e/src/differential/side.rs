//! One of the two clusters as the comparison sees it: takes a step, gives a reply.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_request::RequestUnion;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Response, Status};

use super::call::Call;
use super::raw::RawClient;
use super::reply::{Identity, Reply};
use super::step::{Bearer, Step};
use super::streams::{MAX_MESSAGE_BYTES, PATIENCE, Stream, Streams};
use super::token::{Token, Wire};
use crate::local::{FAST_ELECTION, Server};

/// Cheap passwords, and watchers that hear of the revision often.
const ARGUMENTS: [&str; 2] = ["--bcrypt-cost=4", "--watch-progress-notify-interval=100ms"];

/// A cluster with its clients.
pub struct Side {
    /// Its ids, as far as they are known.
    pub identity: Identity,
    members: Vec<Member>,
    /// Tokens by user.
    tokens: BTreeMap<&'static str, String>,
}

/// A server with its clients.
struct Member {
    server: Server,
    streams: Streams,
    token: Token,
    kv: KvClient<Wire>,
    maintenance: MaintenanceClient<Wire>,
    cluster: ClusterClient<Wire>,
    lease: LeaseClient<Wire>,
    raw: RawClient,
}

impl Side {
    /// Starts a cluster, with `fast` elections. `hashes_keys`: see [`Identity::new`].
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(
        name: &str,
        program: &Path,
        nodes: usize,
        fast: bool,
        hashes_keys: bool,
    ) -> anyhow::Result<Self> {
        let mut arguments = ARGUMENTS.to_vec();
        if fast {
            arguments.extend(FAST_ELECTION);
        }
        // What is compared does not depend on the disk, and a real one would be waited for most of the time.
        let servers = Server::cluster_in_memory(name, program, nodes, &arguments).await?;
        let members = servers.into_iter().map(Member::new).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { identity: Identity::new(nodes, hashes_keys), members, tokens: BTreeMap::new() })
    }

    /// Sends a step to the member whose turn it is and waits for its reply, ids taken out.
    pub async fn send(&mut self, turn: usize, step: &Step) -> Reply {
        let (bearer, step) = step.parts();
        let text = bearer.map(|bearer| self.token(bearer));
        let turn = step.stream().unwrap_or(turn) % self.members.len();
        let many = self.members.len() > 1;
        let member = &mut self.members[turn];
        if many && (bearer.is_some() || !step.waits_for_earlier_ones()) {
            member.catch_up().await;
        }
        member.token.set(text.as_deref());
        let reply = match step {
            Step::Call(call) => {
                let call = timeout(PATIENCE, call_with(member, call, &mut self.identity)).await;
                let (reply, token) = call.unwrap_or((Reply::Silent, None));
                if let (Some(token), Step::Call(Call::Authenticate(request))) = (token, step) {
                    self.tokens.insert(super::generate::user_named(&request.name), token);
                }
                reply
            }
            _ => timeout(PATIENCE, member.call(step)).await.unwrap_or(Reply::Silent),
        };
        member.token.set(None);
        self.identity.normalise(turn, reply)
    }

    fn token(&self, bearer: Bearer) -> String {
        match bearer {
            Bearer::User(user) => self.tokens.get(user).cloned().unwrap_or_else(|| format!("{user}.1")),
            Bearer::Text(text) => text.to_owned(),
        }
    }

    /// The watch stream of this number; each is on one member.
    pub async fn stream(&mut self, number: usize) -> &mut Stream {
        let member = number % self.members.len();
        self.members[member].streams.stream(number).await
    }

    /// What no server may send, of all streams.
    pub fn broken(&self) -> String {
        let records = self.members.iter().flat_map(|member| member.streams.records());
        records.flat_map(|(_, record)| record.broken).collect::<Vec<_>>().join("; ")
    }

    /// The end of the log of a member whose process ends before long.
    pub async fn ended(&mut self, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        loop {
            let mut servers = self.members.iter_mut().map(|member| &mut member.server);
            let ended = servers.find_map(|server| (!server.is_running()).then(|| server.log_end()));
            if ended.is_some() || Instant::now() > deadline {
                return ended;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a lock or an election would wait for another owner.
    pub async fn would_wait(&mut self, call: &Call) -> bool {
        let Some((prefix, own)) = call.waits_for() else { return false };
        let range_end = super::generate::prefix_end(&prefix);
        let all = pb::RangeRequest { key: prefix, range_end, ..Default::default() };
        match self.members[0].kv.range(all).await {
            Ok(reply) => reply.into_inner().kvs.iter().any(|kv| kv.key != own),
            Err(_) => true,
        }
    }
}

async fn call_with(member: &mut Member, call: &Call, identity: &mut Identity) -> (Reply, Option<String>) {
    call.send(&mut member.raw, identity).await
}

impl Member {
    fn new(server: Server) -> anyhow::Result<Self> {
        let (channel, token) = (server.channel()?, Token::default());
        let wire = Wire::new(channel.clone(), token.clone());
        Ok(Self {
            streams: Streams::new(channel, token.clone()),
            kv: KvClient::new(wire.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            maintenance: MaintenanceClient::new(wire.clone()),
            cluster: ClusterClient::new(wire.clone()),
            lease: LeaseClient::new(wire.clone()),
            raw: RawClient::new(wire),
            token,
            server,
        })
    }

    /// Waits until it has all that any member has answered for.
    async fn catch_up(&mut self) {
        let request = pb::MemberListRequest { linearizable: true };
        // When it fails, the step tells.
        let _ = timeout(PATIENCE, self.cluster.member_list(request)).await;
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
            Step::Hash => answer(self.maintenance.hash(pb::HashRequest {}).await, Reply::Hash),
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
            Step::Call(_) | Step::As { .. } => unreachable!("the side has taken them apart"),
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
