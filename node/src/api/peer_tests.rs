//! Real nodes on the loopback: what a member takes from others, and how a new one gets its first snapshot.

use std::path::Path;

use balsa_proto::log::{AddMember, Marker, PublishMember, RemoveMember, Seed, SnapshotManifest};
use balsa_proto::peer::peer_client::PeerClient;
use balsa_proto::peer::{RaftMessage, RaftMessages, SnapshotData, frame, snapshot_chunk};
use futures::stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use crate::domain::command::Command;
use crate::engine::fatal::Fatal;
use crate::engine::handle::Change;
use crate::engine::{Bootstrap, Handle, Limit, Node, NodeConfig};
use crate::storage::snapshot::{self, Facts};
use crate::storage::{KeySpace, SnapshotPoint};
use crate::transport::Peers as _;
use crate::transport::tonic::{PeerMetrics, TonicPeers, TonicPeersConfig};

const CLUSTER: u64 = 0xc1;

/// A node, not a member yet, with its peer port open.
struct Served {
    node: Arc<Node>,
    service: Arc<PeerService>,
    url: String,
    data: tempfile::TempDir,
}

impl Served {
    async fn start(name: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let config = NodeConfig {
            data_dir: data.path().to_owned(),
            name: name.to_owned(),
            peer_urls: vec![url.clone()],
            client_urls: Vec::new(),
            bootstrap: Bootstrap::Operator,
            force_new_cluster: false,
            tick: Duration::from_millis(20),
            election_ticks: 10,
            pre_vote: true,
            max_request_bytes: Limit::new(|| 1 << 20),
            quota_bytes: Limit::new(|| 0),
            watch: Default::default(),
            leases: Default::default(),
            slow_apply: Duration::from_millis(100),
            housekeeping: Default::default(),
            token_ttl: Duration::from_secs(300),
            key_space: Default::default(),
            dialer: Default::default(),
            peer_metrics: PeerMetrics::default(),
        };
        let node = Node::open(config, Fatal::default()).await.unwrap();
        let way = node.clone();
        let service = Arc::new(PeerService::new(data.path(), Arc::new(move || way.handle())));
        let server = tonic::transport::Server::builder().add_service(PeerApi::new(service.clone()).into_server());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { node, service, url, data }
    }

    /// A member alone, which leads.
    async fn founded() -> Self {
        let served = Self::start("founder").await;
        served.node.bootstrap(CLUSTER, vec![served.url.clone()]).await.unwrap();
        let handle = served.handle();
        eventually("it leads", || handle.status().is_leader()).await;
        served
    }

    fn handle(&self) -> Handle {
        self.node.handle().unwrap()
    }

    async fn client(&self) -> PeerClient<Channel> {
        PeerClient::connect(self.url.clone()).await.unwrap()
    }

    fn key_spaces(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data.path().join("kv")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// A checkpoint of the served key space that says it is at `index`.
fn checkpoint(of: &Served, at: &Path, index: u64) -> SnapshotManifest {
    of.handle().store().checkpoint(at).unwrap();
    let point = SnapshotPoint { index, term: 1, conf_state: (vec![1, 2], vec![]).into() };
    snapshot::manifest(at, &Facts { cluster_id: CLUSTER, point, ..Facts::default() }).unwrap()
}

fn chunk(body: snapshot_chunk::Body) -> SnapshotChunk {
    SnapshotChunk { cluster_id: CLUSTER, from: 2, to: 1, term: 1, body: Some(body) }
}

fn chunks(directory: &Path, manifest: &SnapshotManifest) -> Vec<SnapshotChunk> {
    let mut all = vec![chunk(snapshot_chunk::Body::Manifest(manifest.clone()))];
    for (position, file) in manifest.files.iter().enumerate().filter(|(_, file)| file.size > 0) {
        let data = std::fs::read(directory.join(&file.name)).unwrap();
        let crc32c = crc32c::crc32c(&data);
        let data = SnapshotData { file: position as u32, offset: 0, data: data.into(), crc32c };
        all.push(chunk(snapshot_chunk::Body::Data(data)));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_no_member_says_so_and_takes_nothing() {
    let served = Served::start("empty").await;
    let mut client = served.client().await;
    let members = client.members(MembersRequest {}).await.unwrap().into_inner();
    assert_eq!(members, MembersResponse::default());
    let frames = client.frames(stream::iter([Frame::default()])).await.unwrap_err();
    assert_eq!((frames.code(), frames.message()), (Code::FailedPrecondition, "Uninitialized"));
    let snapshot = client.snapshot(stream::iter([SnapshotChunk::default()])).await.unwrap_err();
    assert_eq!((snapshot.code(), snapshot.message()), (Code::FailedPrecondition, "Uninitialized"));
    served.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_tells_its_own_view_of_the_membership() {
    let served = Served::founded().await;
    let members = served.client().await.members(MembersRequest {}).await.unwrap().into_inner();
    assert!(members.initialized);
    assert_eq!((members.leader, members.term), (1, served.handle().status().term));
    let membership = members.membership.expect("the applied membership");
    assert_eq!((membership.cluster_id, membership.members[0].peer_urls[0].as_str()), (CLUSTER, served.url.as_str()));
    served.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_must_not_be_taken_is_refused_and_leaves_nothing() {
    let served = Served::founded().await;
    let mut client = served.client().await;
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    let manifest = checkpoint(&served, &copy, 1_000);
    let good = chunks(&copy, &manifest);
    let kept = served.key_spaces();

    let mut foreign = good.clone();
    foreign[0].to = 3;
    let mut headless = good.clone();
    headless.remove(0);
    let mut corrupt = good.clone();
    if let Some(snapshot_chunk::Body::Data(data)) = &mut corrupt[2].body {
        data.data = data.data.iter().map(|byte| !byte).collect::<Vec<_>>().into();
    }
    let mut short = good.clone();
    short.pop();
    let mut twice = good.clone();
    twice.insert(1, twice[0].clone());
    let mut escaping = good.clone();
    if let Some(snapshot_chunk::Body::Manifest(manifest)) = &mut escaping[0].body {
        manifest.files[0].name = "../MARKER".to_owned();
    }
    for (what, chunks, code) in [
        ("for another member", foreign, Code::FailedPrecondition),
        ("without a manifest", headless, Code::InvalidArgument),
        ("with other bytes", corrupt, Code::DataLoss),
        ("that ends too early", short, Code::DataLoss),
        ("with two manifests", twice, Code::InvalidArgument),
        ("with a name that leads elsewhere", escaping, Code::DataLoss),
        ("of nothing", Vec::new(), Code::InvalidArgument),
    ] {
        let refused = client.snapshot(stream::iter(chunks)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused}");
        eventually(what, || served.key_spaces() == kept).await;
    }
    // A member that leads is past every snapshot that it gets.
    let receipt = client.snapshot(stream::iter(good)).await.unwrap().into_inner();
    assert!(!receipt.installed);
    assert_eq!(served.key_spaces(), kept);
    served.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_snapshot_is_received_at_a_time() {
    let served = Served::founded().await;
    let mut client = served.client().await;
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    let manifest = checkpoint(&served, &copy, 1_000);
    let good = chunks(&copy, &manifest);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(good[0].clone()).await.unwrap();
    let mut first = served.client().await;
    let stalled =
        tokio::spawn(async move { first.snapshot(tokio_stream::wrappers::ReceiverStream::new(receiver)).await });
    eventually("the first is under way", || served.key_spaces().len() == 2).await;
    let second = client.snapshot(stream::iter(good.clone())).await.unwrap_err();
    assert_eq!(second.code(), Code::ResourceExhausted);
    // A sender that goes away makes room, once nothing is left of what it sent.
    stalled.abort();
    let _ = stalled.await;
    eventually("there is room", || !served.service.is_receiving()).await;
    assert_eq!(served.key_spaces().len(), 1);
    client.snapshot(stream::iter(good)).await.unwrap();
    served.node.stop().await;
}

/// The sender may go away while a thread makes the directory: until that is gone there is no room.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_room_for_a_snapshot_while_another_is_still_on_the_disk() {
    let served = Served::founded().await;
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    let manifest = checkpoint(&served, &copy, 1_000);
    let (first, kept) = (chunks(&copy, &manifest).remove(0), served.key_spaces());
    let mut midway = 0;
    for _ in 0..10 {
        let mut receiving = Box::pin(served.service.receive(first.clone()));
        // The thread may be done already, now and then.
        midway += usize::from(futures::poll!(&mut receiving).is_pending());
        drop(receiving);
        eventually("there is room", || !served.service.is_receiving()).await;
        // Were the thread still at work, the directory would come now.
        for _ in 0..50 {
            assert_eq!(served.key_spaces(), kept);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(midway > 0, "none was given up midway");
    served.node.stop().await;
}

/// The sender may go away before the disk and the Raft thread are done with the last chunk.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_refused_once_nobody_waits_any_more_leaves_nothing() {
    let served = Served::founded().await;
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    let manifest = checkpoint(&served, &copy, 1_000);
    let mut good = chunks(&copy, &manifest).into_iter();
    let kept = served.key_spaces();
    let way = served.node.clone();
    let service = PeerService::new(served.data.path(), Arc::new(move || way.handle()));
    let mut incoming = service.receive(good.next().unwrap()).await.unwrap();
    for chunk in good {
        incoming = incoming.take(chunk).await.unwrap();
    }
    let mut finish = Box::pin(incoming.finish());
    assert!(futures::poll!(&mut finish).is_pending());
    drop(finish);
    eventually("it is gone", || served.key_spaces() == kept).await;
    served.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joins_gets_a_snapshot_and_then_the_log() {
    let (founder, joiner) = (Served::founded().await, Served::start("joiner").await);
    let handle = founder.handle();
    let add = AddMember { id: 0, peer_urls: vec![joiner.url.clone()], is_learner: true };
    let outcome = handle.change_membership(Change::Add(add), 0).await;
    let membership = outcome.unwrap_or_else(|error| panic!("{error}: {:?}", handle.status()));
    let id = membership.members.iter().map(|member| member.id).max().unwrap();
    let seeds = vec![Seed { id: 1, peer_urls: vec![founder.url.clone()] }];
    let marker = Marker { cluster_id: CLUSTER, member_id: id, incarnation: 5, seeds, ..Marker::default() };
    joiner.node.join(marker).await.unwrap();
    let joined = joiner.handle();
    eventually("the joiner has the membership", || joined.status().membership.members.len() == 2).await;
    let publish = PublishMember { id: 1, name: "renamed".to_owned(), client_urls: Vec::new() };
    handle.propose_internal(Command::Publish(publish)).await.unwrap();
    let name = || joined.status().membership.members.iter().any(|member| member.name == "renamed");
    eventually("the joiner follows the log", name).await;
    assert_eq!(joiner.key_spaces().len(), 1, "the first, empty key space is gone");
    joiner.node.stop().await;
    founder.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_goes_over_the_transport_and_a_damaged_one_is_refused() {
    let served = Served::founded().await;
    let metrics = PeerMetrics::default();
    let config =
        TonicPeersConfig { cluster_id: CLUSTER, member_id: 2, incarnation: 1, dialer: Default::default(), metrics };
    let peers = TonicPeers::new(config, tokio::runtime::Handle::current(), Arc::new(|_| {}));
    peers.update(&[(1, vec![served.url.clone()])]);
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    let manifest = checkpoint(&served, &copy, 1_000);
    let installed = peers.send_snapshot(1, copy.clone(), manifest.clone(), 1).await;
    assert!(!installed.expect("arrived"), "the leader is past it");
    let current = copy.join("CURRENT");
    let damaged: Vec<u8> = std::fs::read(&current).unwrap().iter().map(|byte| !byte).collect();
    std::fs::write(&current, damaged).unwrap();
    let refused = peers.send_snapshot(1, copy, manifest, 1).await.unwrap_err();
    assert!(refused.to_string().contains("has other bytes"), "{refused}");
    // Frames still flow.
    let messages = vec![Default::default()];
    assert!(peers.send(1, frame::Body::Raft(RaftMessages { messages })));
    served.node.stop().await;
}

/// After a member was forced to be alone the old ones may still run, in higher terms.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_member_sends_changes_nothing() {
    /// Raft's number of a heartbeat.
    const HEARTBEAT: u32 = 8;
    let served = Served::founded().await;
    let (handle, mut client) = (served.handle(), served.client().await);
    let add = AddMember { id: 0, peer_urls: vec!["http://127.0.0.1:1".to_owned()], is_learner: true };
    handle.change_membership(Change::Add(add), 0).await.unwrap();
    let lead = |term| {
        let heartbeat = RaftMessage { msg_type: HEARTBEAT, to: 1, from: 2, term, ..Default::default() };
        let body = Some(frame::Body::Raft(RaftMessages { messages: vec![heartbeat] }));
        stream::iter([Frame { cluster_id: CLUSTER, from: 2, to: 1, incarnation: 1, body }])
    };
    let term = handle.status().term;
    client.frames(lead(term + 10)).await.unwrap();
    eventually("a member is believed", || handle.status().term >= term + 10).await;
    eventually("it leads again", || handle.status().is_leader()).await;

    handle.change_membership(Change::Remove(RemoveMember { id: 2 }), 0).await.unwrap();
    let term = handle.status().term;
    client.frames(lead(term + 10)).await.unwrap();
    let publish = PublishMember { id: 1, name: "founder".to_owned(), client_urls: Vec::new() };
    handle.propose_internal(Command::Publish(publish)).await.unwrap();
    assert_eq!((handle.status().term, handle.status().is_leader()), (term, true));
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    let manifest = checkpoint(&served, &copy, 1_000);
    let refused = client.snapshot(stream::iter(chunks(&copy, &manifest))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("removed"), "{refused}");
    served.node.stop().await;
}
