//! One of the two clusters as the comparison sees it: takes a step, gives a reply.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use balsa_proto::v3electionpb::election_client::ElectionClient;
use bytes::Bytes;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_request::RequestUnion;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Response, Status};

use super::call::Call;
use super::observing::Observed;
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
    election: ElectionClient<Wire>,
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

    /// Begins a call that is not waited for, and waits until it has done what it does before it waits: an answer, or the
    /// next revision. False when neither comes.
    pub async fn begin(&mut self, turn: usize, call: &Call, revision: i64) -> (Pending, bool) {
        let turn = turn % self.members.len();
        let (path, body) = call.encode(&self.identity);
        let mut raw = self.members[turn].raw.clone();
        let answer = tokio::spawn(async move { raw.unary(path, body).await });
        let pending = Pending { turn, answer: Own(answer) };
        let begun = self.until(revision, PATIENCE, || pending.is_answered()).await;
        (pending, begun)
    }

    /// Waits for what such a call answers.
    pub async fn end(&mut self, call: &Call, pending: Pending) -> Reply {
        let Pending { turn, mut answer } = pending;
        let Ok(Ok(answer)) = timeout(PATIENCE, &mut answer.0).await else { return Reply::Silent };
        let (reply, _) = call.decode(answer, &mut self.identity);
        self.identity.normalise(turn, reply)
    }

    /// Waits until the store is at a revision, or for something else; false when neither comes.
    pub async fn until(&mut self, revision: i64, patience: Duration, other: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let reached = self.revision().await >= revision;
            if other() || reached {
                return true;
            }
            sleep(Duration::from_millis(1)).await;
        }
        false
    }

    /// The revision of the store; 0 when it cannot be read.
    pub async fn revision(&mut self) -> i64 {
        let one = pb::RangeRequest { key: "\0".into(), count_only: true, ..Default::default() };
        let header = self.members[0].kv.range(one).await.ok().and_then(|reply| reply.into_inner().header);
        header.map_or(0, |header| header.revision)
    }

    /// Deletes a key; when that fails, the next step tells.
    pub async fn delete(&mut self, key: &Bytes) {
        let _ =
            self.members[0].kv.delete_range(pb::DeleteRangeRequest { key: key.clone(), ..Default::default() }).await;
    }

    /// Follows an election.
    pub fn observe(&mut self, number: usize, name: &Bytes) -> Observed {
        let turn = number % self.members.len();
        Observed::open(turn, self.members[turn].election.clone(), name.clone())
    }

    /// All pairs of a queue; None when it cannot be read.
    pub async fn pairs(&mut self, queue: &Bytes) -> Option<Vec<KeyValue>> {
        let range_end = super::generate::prefix_end(queue);
        let all = pb::RangeRequest { key: queue.clone(), range_end, ..Default::default() };
        self.members[0].kv.range(all).await.ok().map(|reply| reply.into_inner().kvs)
    }

    /// Whether nothing may be written because members are told to disagree.
    pub async fn is_corrupt(&mut self) -> bool {
        let request = pb::AlarmRequest { alarm: pb::AlarmType::Corrupt.into(), ..Default::default() };
        self.members[0].maintenance.alarm(request).await.map_or(true, |reply| !reply.into_inner().alarms.is_empty())
    }
}

/// A call that was begun and has not ended. When it is dropped, the caller has gone away.
pub struct Pending {
    turn: usize,
    answer: Own<Result<Bytes, Status>>,
}

impl Pending {
    /// Whether there is an answer.
    pub fn is_answered(&self) -> bool {
        self.answer.0.is_finished()
    }
}

/// A task that ends with its owner.
pub struct Own<T>(pub JoinHandle<T>);

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        self.0.abort();
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
            election: ElectionClient::new(wire.clone()),
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
            Step::Frames(frames) => Reply::Heard(frames.send(&self.server.address).await),
            Step::Raw { path, body } => {
                let (code, text) = self.raw.call(path, body).await;
                Reply::Raw(code, text)
            }
            Step::Watch { stream, request } => self.streams.stream(stream).await.ask(request).await,
            Step::Call(_) | Step::As { .. } | Step::GiveUp { .. } | Step::Observe { .. } => {
                unreachable!("others have taken them apart")
            }
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
