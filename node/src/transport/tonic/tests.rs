//! Over real connections on the loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::log::SnapshotManifest;
use balsa_proto::peer::peer_server::{Peer, PeerServer};
use balsa_proto::peer::{
    Forward, FramesEnd, HashRequest, HashResponse, MembersRequest, MembersResponse, SnapshotChunk, SnapshotReceipt,
    snapshot_chunk,
};
use parking_lot::Mutex;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::storage::snapshot;

const SOON: Duration = Duration::from_secs(10);

/// A peer that notes what it gets.
struct Listener {
    frames: mpsc::UnboundedSender<Frame>,
    chunks: Mutex<Vec<SnapshotChunk>>,
}

#[tonic::async_trait]
impl Peer for Listener {
    async fn frames(&self, request: Request<Streaming<Frame>>) -> Result<Response<FramesEnd>, Status> {
        let mut stream = request.into_inner();
        while let Some(frame) = stream.message().await? {
            let _ = self.frames.send(frame);
        }
        Ok(Response::new(FramesEnd {}))
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Result<Response<SnapshotReceipt>, Status> {
        let mut stream = request.into_inner();
        while let Some(chunk) = stream.message().await? {
            self.chunks.lock().push(chunk);
        }
        Ok(Response::new(SnapshotReceipt { installed: true }))
    }

    async fn members(&self, _request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        Ok(Response::new(MembersResponse { initialized: true, term: 4, ..MembersResponse::default() }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// A listener that runs until it is dropped.
struct Running {
    url: String,
    address: SocketAddr,
    frames: mpsc::UnboundedReceiver<Frame>,
    listener: Arc<Listener>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Running {
    /// On a runtime of its own: dropped, it cuts its connections as a dead process does.
    fn at(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // A predecessor at the same address may still be letting go of it.
        let socket = loop {
            match std::net::TcpListener::bind(address) {
                Ok(socket) => break socket,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let address = socket.local_addr().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (sender, frames) = mpsc::unbounded_channel();
        let listener = Arc::new(Listener { frames: sender, chunks: Mutex::default() });
        let server = PeerServer::from_arc(listener.clone()).max_decoding_message_size(MAX_FRAME_BYTES);
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(socket).unwrap());
            tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming).await.unwrap();
        });
        Self { url: format!("http://{address}"), address, frames, listener, runtime: Some(runtime) }
    }

    async fn next(&mut self) -> Frame {
        timeout(SOON, self.frames.recv()).await.expect("a frame in time").expect("the listener runs")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn metrics() -> PeerMetrics {
    let counter = |name: &str, label: &str| IntCounterVec::new(Opts::new(name, "help"), &[label]).unwrap();
    PeerMetrics {
        sent_bytes: counter("sent", "To"),
        received_bytes: counter("received", "From"),
        received_failures: counter("received_failures", "From"),
        sent_failures: counter("failures", "To"),
        round_trips: HistogramVec::new(HistogramOpts::new("round_trips", "help"), &["To"]).unwrap(),
    }
}

fn peers() -> (Arc<TonicPeers>, mpsc::UnboundedReceiver<u64>) {
    let (sender, unreachable) = mpsc::unbounded_channel();
    let config = TonicPeersConfig {
        cluster_id: 7,
        member_id: 1,
        incarnation: 11,
        dialer: Dialer::default(),
        metrics: metrics(),
    };
    let told = Arc::new(move |id| {
        let _ = sender.send(id);
    });
    (TonicPeers::new(config, tokio::runtime::Handle::current(), told), unreachable)
}

fn raft(index: u64) -> Body {
    let message = RaftMessage { index, ..RaftMessage::default() };
    Body::Raft(RaftMessages { messages: vec![message] })
}

fn forward() -> Body {
    Body::Forward(Forward::default())
}

fn indexes(frame: &Frame) -> Vec<u64> {
    match &frame.body {
        Some(Body::Raft(raft)) => raft.messages.iter().map(|message| message.index).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn frames_arrive_in_order_and_say_who_sends() {
    let mut listener = Running::at("127.0.0.1:0");
    let (peers, _unreachable) = peers();
    peers.update(&[(1, vec!["http://127.0.0.1:1".to_owned()]), (2, vec![listener.url.clone()])]);
    for index in 0..500 {
        assert!(peers.send(2, raft(index)));
    }
    for index in 0..500 {
        let frame = listener.next().await;
        assert_eq!((frame.cluster_id, frame.from, frame.to, frame.incarnation), (7, 1, 2, 11));
        assert_eq!(indexes(&frame), [index]);
    }
    assert!(peers.shared.config.metrics.sent_bytes.with_label_values(&["2"]).get() > 1_000);
    assert!(!peers.send(3, raft(0)), "nobody knows 3");
    assert!(!peers.send(1, raft(0)), "nobody sends to himself");
}

#[tokio::test]
async fn a_peer_that_was_down_gets_new_frames_soon_after_it_is_back() {
    let mut listener = Running::at("127.0.0.1:0");
    let (peers, mut unreachable) = peers();
    peers.update(&[(0x2a, vec![listener.url.clone()])]);
    assert!(peers.send(0x2a, raft(1)));
    listener.next().await;
    let address = listener.address;
    drop(listener);
    assert_eq!(timeout(SOON, unreachable.recv()).await.expect("told"), Some(0x2a));
    // What cannot be repeated is refused at once, instead of being lost.
    assert!(!peers.send(0x2a, forward()));
    assert!(peers.shared.config.metrics.sent_failures.with_label_values(&["2a"]).get() >= 1);

    let mut back = Running::at(&address.to_string());
    let returned = tokio::time::Instant::now();
    let frame = loop {
        let _ = peers.send(0x2a, raft(2));
        if let Ok(frame) = timeout(Duration::from_millis(20), back.frames.recv()).await {
            break frame.expect("the listener runs");
        }
    };
    assert_eq!(indexes(&frame), [2]);
    assert!(returned.elapsed() < Duration::from_millis(2_500), "{:?}", returned.elapsed());
    assert!(peers.send(0x2a, forward()));
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_so() {
    // A listener that accepts and reads nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (peers, _unreachable) = peers();
    peers.update(&[(2, vec![format!("http://{}", silent.local_addr().unwrap())])]);
    let mut taken = 0;
    while peers.send(2, raft(taken)) {
        taken += 1;
        assert!(taken < 1_000_000, "the queue has a bound");
    }
    assert!(taken as usize >= queue::MAX_QUEUED_FRAMES);
    assert_eq!(peers.shared.config.metrics.sent_failures.with_label_values(&["2"]).get(), 1);
}

#[test]
fn a_queue_is_bounded_in_bytes_but_takes_any_single_frame() {
    let sized = |bytes: usize| {
        let context = bytes::Bytes::from(vec![0; bytes]);
        let messages = vec![RaftMessage { context, ..RaftMessage::default() }];
        Frame { body: Some(Body::Raft(RaftMessages { messages })), ..Frame::default() }
    };
    let queue = Queue::default();
    assert!(queue.push(sized(queue::MAX_QUEUED_BYTES + 1)));
    assert!(!queue.push(sized(1)));
    assert_eq!(queue.clear(), 1);
    for _ in 0..4 {
        assert!(queue.push(sized(queue::MAX_QUEUED_BYTES / 4 - 100)));
    }
    assert!(!queue.push(sized(1_000)));
    queue.clear();
    queue.close();
    assert!(!queue.push(sized(1)));
}

#[tokio::test]
async fn many_large_messages_are_divided_and_keep_their_order() {
    let mut listener = Running::at("127.0.0.1:0");
    let (peers, _unreachable) = peers();
    peers.update(&[(2, vec![listener.url.clone()])]);
    let large = |index| RaftMessage { index, context: vec![0; 1 << 20].into(), ..RaftMessage::default() };
    assert!(peers.send(2, Body::Raft(RaftMessages { messages: (0..20).map(large).collect() })));
    let mut arrived = Vec::new();
    while arrived.len() < 20 {
        let frame = listener.next().await;
        assert!(frame.encoded_len() <= FRAME_BYTES + (1 << 10));
        arrived.extend(indexes(&frame));
    }
    assert_eq!(arrived, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_peer_that_moved_is_followed() {
    let (mut first, mut second) = (Running::at("127.0.0.1:0"), Running::at("127.0.0.1:0"));
    let (peers, _unreachable) = peers();
    peers.update(&[(2, vec![first.url.clone()])]);
    assert!(peers.send(2, raft(1)));
    first.next().await;
    peers.update(&[(2, vec![second.url.clone()])]);
    for index in 2..5 {
        assert!(peers.send(2, raft(index)));
    }
    for index in 2..5 {
        assert_eq!(indexes(&second.next().await), [index]);
    }
}

#[tokio::test]
async fn the_second_url_serves_when_the_first_does_not() {
    let mut listener = Running::at("127.0.0.1:0");
    let (peers, _unreachable) = peers();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    peers.update(&[(2, vec![format!("http://{gone}"), listener.url.clone()])]);
    assert!(peers.send(2, raft(1)));
    assert_eq!(indexes(&listener.next().await), [1]);
}

#[tokio::test]
async fn a_peer_that_is_no_longer_listed_gets_what_is_queued_and_no_more() {
    let mut listener = Running::at("127.0.0.1:0");
    let (peers, mut unreachable) = peers();
    peers.update(&[(2, vec![listener.url.clone()])]);
    for index in 0..100 {
        assert!(peers.send(2, raft(index)));
    }
    peers.update(&[]);
    assert!(!peers.send(2, raft(100)));
    for index in 0..100 {
        assert_eq!(indexes(&listener.next().await), [index]);
    }
    // Its task ends, and nobody is told that a member was lost.
    drop(peers);
    assert_eq!(timeout(SOON, unreachable.recv()).await.expect("the task ends"), None);
}

#[tokio::test]
async fn a_link_measures_how_long_its_peer_takes_to_answer() {
    let listener = Running::at("127.0.0.1:0");
    let (peers, _unreachable) = peers();
    peers.update(&[(2, vec![listener.url.clone()])]);
    let trips = peers.shared.config.metrics.round_trips.with_label_values(&["2"]);
    let measured = async {
        while trips.get_sample_count() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, measured).await.expect("an answer in time");
    assert!(trips.get_sample_sum() > 0.0 && trips.get_sample_sum() < SOON.as_secs_f64());
}

#[tokio::test]
async fn members_are_asked_at_the_peers_url() {
    let listener = Running::at("127.0.0.1:0");
    assert_eq!(Dialer::default().members(&listener.url, SOON).await.expect("an answer").term, 4);
}

fn checkpoint() -> (tempfile::TempDir, SnapshotManifest) {
    let directory = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..5_000_000u32).map(|number| number as u8).collect();
    std::fs::write(directory.path().join("000012.sst"), &large).unwrap();
    std::fs::write(directory.path().join("CURRENT"), b"MANIFEST-000011\n").unwrap();
    let point = crate::storage::SnapshotPoint { index: 9, term: 2, conf_state: (vec![1, 2], vec![]).into() };
    let facts = snapshot::Facts { snapshot_id: "id".to_owned(), cluster_id: 7, point, ..snapshot::Facts::default() };
    let manifest = snapshot::manifest(directory.path(), &facts).unwrap();
    (directory, manifest)
}

#[tokio::test]
async fn a_snapshot_is_sent_as_its_manifest_and_then_its_bytes() {
    let listener = Running::at("127.0.0.1:0");
    let (peers, _unreachable) = peers();
    peers.update(&[(2, vec![listener.url.clone()])]);
    let (directory, manifest) = checkpoint();
    let sent = peers.send_snapshot(2, directory.path().to_owned(), manifest.clone(), 6).await;
    assert!(sent.expect("taken"));
    let chunks = std::mem::take(&mut *listener.listener.chunks.lock());
    assert!(chunks.iter().all(|chunk| (chunk.cluster_id, chunk.from, chunk.to, chunk.term) == (7, 1, 2, 6)));
    let mut bodies = chunks.into_iter().filter_map(|chunk| chunk.body);
    assert_eq!(bodies.next(), Some(snapshot_chunk::Body::Manifest(manifest.clone())));
    let parent = tempfile::tempdir().unwrap();
    let mut staging = snapshot::Staging::begin(parent.path(), "name", &manifest).unwrap();
    for body in bodies {
        let snapshot_chunk::Body::Data(data) = body else { panic!("a second manifest") };
        staging.write(&data).unwrap();
    }
    snapshot::verify(&staging.finish().unwrap(), &manifest).unwrap();
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_or_sent_says_why() {
    let listener = Running::at("127.0.0.1:0");
    let (peers, _unreachable) = peers();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    peers.update(&[(2, vec![listener.url.clone()]), (3, vec![format!("http://{gone}")])]);
    let (directory, manifest) = checkpoint();
    let send = |to| peers.send_snapshot(to, directory.path().to_owned(), manifest.clone(), 6);
    assert!(matches!(send(9).await, Err(SnapshotError::UnknownPeer(9))));
    assert!(matches!(send(3).await, Err(SnapshotError::Unreachable(_))));
    std::fs::write(directory.path().join("000012.sst"), b"short").unwrap();
    assert!(matches!(send(2).await, Err(SnapshotError::Read { .. })));
}
