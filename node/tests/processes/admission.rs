//! What etcd asks of every request before it looks into it: learners serve next to nothing, whoever requires a leader
//! hears at once that there is none, and a client's version is text. Each call is made, whatever is in it.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::raw::BytesCodec;
use balsa_proto::v3electionpb as election;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{HeaderMap, HeaderValue};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Status, Streaming};

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::gateway::http;

/// Services with their methods, one message there and one back.
const UNARY: [(&str, &str); 9] = [
    ("etcdserverpb.KV", "Range Put DeleteRange Txn Compact"),
    ("etcdserverpb.Lease", "LeaseGrant LeaseRevoke LeaseTimeToLive LeaseLeases"),
    ("etcdserverpb.Cluster", "MemberAdd MemberRemove MemberUpdate MemberList MemberPromote"),
    ("etcdserverpb.Maintenance", "Alarm Status Defragment Hash HashKV MoveLeader Downgrade"),
    ("etcdserverpb.Auth", "AuthEnable AuthDisable AuthStatus Authenticate"),
    (
        "etcdserverpb.Auth",
        "UserAdd UserGet UserList UserDelete UserChangePassword UserGrantRole UserRevokeRole RoleAdd RoleGet RoleList \
         RoleDelete RoleGrantPermission RoleRevokePermission",
    ),
    ("v3lockpb.Lock", "Lock Unlock"),
    ("v3electionpb.Election", "Campaign Proclaim Leader Resign"),
    ("grpc.health.v1.Health", "Check List"),
];

/// Streams; all of them are refused before anything is sent on them.
const STREAMS: [(&str, &str); 6] = [
    ("etcdserverpb.KV", "RangeStream"),
    ("etcdserverpb.Watch", "Watch"),
    ("etcdserverpb.Lease", "LeaseKeepAlive"),
    ("etcdserverpb.Maintenance", "Snapshot"),
    ("v3electionpb.Election", "Observe"),
    ("grpc.health.v1.Health", "Watch"),
];

fn paths(services: &'static [(&str, &str)]) -> impl Iterator<Item = String> {
    let of = |(service, methods): &(&str, &'static str)| {
        let service = (*service).to_owned();
        methods.split_whitespace().map(move |method| format!("/{service}/{method}"))
    };
    services.iter().flat_map(of)
}

/// Sends a message without any field and says how the call ended.
async fn ask(channel: &Channel, path: &str, metadata: &MetadataMap) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("connected");
    let path: PathAndQuery = path.parse().expect("a path");
    let messages = tokio_stream::once(Bytes::new());
    let request = Request::from_parts(metadata.clone(), Extensions::default(), messages);
    grpc.streaming(request, path, BytesCodec).await?.into_inner().message().await.map(drop)
}

/// Makes all calls and returns those that did not end with this status.
async fn others(member: &Member, metadata: &MetadataMap, code: Code, text: &str) -> Vec<String> {
    let channel = member.channel();
    let mut others = Vec::new();
    for path in paths(&UNARY).chain(paths(&STREAMS)) {
        match ask(&channel, &path, metadata).await {
            Err(status) if status.code() == code && status.message() == text => {}
            Err(status) => others.push(format!("{path}: {:?} {}", status.code(), status.message())),
            Ok(()) => others.push(path),
        }
    }
    others
}

fn metadata(key: &'static str, value: &'static [u8]) -> MetadataMap {
    let value = HeaderValue::from_bytes(value).expect("a value");
    MetadataMap::from_headers(HeaderMap::from_iter([(key.parse().expect("a key"), value)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_serves_its_status_ranges_of_its_own_and_snapshots() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].put("k", "v").await.expect("a write");
    let index = cluster.add_unstarted("learner");
    let request = pb::MemberAddRequest { peer_ur_ls: vec![cluster.members[index].peer_url()], is_learner: true };
    cluster.members[0].cluster().member_add(request).await.expect("added");
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");
    let learner = &cluster.members[index];
    let own = pb::RangeRequest { key: Bytes::from_static(b"k"), serializable: true, ..Default::default() };
    let has_the_key = || async {
        let answer = learner.kv().range(own.clone()).await;
        answer.is_ok_and(|answer| answer.into_inner().count == 1)
    };
    cluster.eventually("the learner has caught up", has_the_key).await;
    let text = "etcdserver: rpc not supported for learner";
    let served = others(learner, &MetadataMap::new(), Code::FailedPrecondition, text).await;
    assert_eq!(served, ["/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"]);
    let streamed = learner.kv().range_stream(own).await.expect_err("a stream");
    assert_eq!((streamed.code(), streamed.message()), (Code::FailedPrecondition, text));
    assert!(learner.status().await.expect("a status").is_learner);
    // A Service must not send clients to it, and nobody must restart it for that.
    let ready = http::Request::get("/readyz").send(learner.client_port).await;
    let body = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(ready.status == 503 && body.contains("[-]non_learner failed: not supported for learner"), "{body}");
    assert_eq!(http::Request::get("/livez").send(learner.client_port).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_requires_a_leader_hears_at_once_that_there_is_none() {
    let mut cluster = Cluster::start(3).await;
    cluster.members[0].put("k", "v").await.expect("a write");
    let leader = cluster.leader().await;
    let strange = metadata("client-api-version", b"3.6\xff");
    let text = "etcdserver: invalid client api version";
    let member = &cluster.members[leader];
    assert_eq!(others(member, &strange, Code::InvalidArgument, text).await, [""; 0]);

    let survivor = (leader + 1) % 3;
    cluster.members[leader].kill();
    cluster.members[(leader + 2) % 3].kill();
    let member = &cluster.members[survivor];
    let alone = || async { member.status().await.is_some_and(|status| status.leader == 0) };
    cluster.eventually("it knows no leader", alone).await;
    let required = metadata("hasleader", b"true");
    assert_eq!(others(member, &required, Code::Unavailable, "etcdserver: no leader").await, [""; 0]);
    let own = pb::RangeRequest { key: Bytes::from_static(b"k"), serializable: true, ..Default::default() };
    assert_eq!(member.kv().range(own).await.expect("who does not is served").into_inner().count, 1);
}

/// A stream of renewals and one that follows an election, both with their first answer behind them.
struct Open {
    _requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    renewals: Streaming<pb::LeaseKeepAliveResponse>,
    observed: Streaming<election::LeaderResponse>,
}

impl Open {
    async fn at(member: &Member, lease: i64, metadata: MetadataMap) -> Self {
        let (requests, receiver) = mpsc::channel(1);
        requests.send(pb::LeaseKeepAliveRequest { id: lease }).await.expect("sent");
        let renew = Request::from_parts(metadata.clone(), Extensions::default(), ReceiverStream::new(receiver));
        let mut renewals = member.lease().lease_keep_alive(renew).await.expect("a stream").into_inner();
        let renewed = timeout(PATIENCE, renewals.message()).await.expect("in time").expect("open");
        assert_eq!(renewed.expect("an answer").id, lease);
        let observe = election::LeaderRequest { name: "post".into() };
        let observe = Request::from_parts(metadata, Extensions::default(), observe);
        let mut observed = member.election().observe(observe).await.expect("a stream").into_inner();
        let elected = timeout(PATIENCE, observed.message()).await.expect("in time").expect("open");
        assert_eq!(elected.expect("an answer").kv.expect("a pair").lease, lease);
        Self { _requests: requests, renewals, observed }
    }
}

/// A watch's is tested with the use case, and that of gRPC health beside etcd's.
#[tokio::test(flavor = "multi_thread")]
async fn open_streams_of_whoever_requires_a_leader_end_when_there_is_none_for_long() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let survivor = (leader + 1) % 3;
    let member = &cluster.members[survivor];
    let grant = pb::LeaseGrantRequest { ttl: 600, id: 0 };
    let lease = member.lease().lease_grant(grant).await.expect("a grant").into_inner().id;
    let campaign = election::CampaignRequest { name: "post".into(), lease, value: "v".into() };
    member.election().campaign(campaign).await.expect("elected");
    let mut required = Open::at(member, lease, metadata("hasleader", b"true")).await;
    let mut others = Open::at(member, lease, MetadataMap::new()).await;
    cluster.members[leader].kill();
    cluster.members[(leader + 2) % 3].kill();

    let renewed = timeout(PATIENCE, required.renewals.message()).await.expect("in time").map(drop);
    let observed = timeout(PATIENCE, required.observed.message()).await.expect("in time").map(drop);
    for ended in [renewed, observed] {
        let ended = ended.expect_err("cut");
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: no leader"));
    }
    let moment = Duration::from_millis(300);
    let renewed = timeout(moment, others.renewals.message()).await;
    assert!(renewed.is_err(), "neither ended nor told anything: {renewed:?}");
    let observed = timeout(moment, others.observed.message()).await;
    assert!(observed.is_err(), "neither ended nor told anything: {observed:?}");
}
