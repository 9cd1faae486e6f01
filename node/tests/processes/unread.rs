//! Clients that misuse a stream: nobody else may notice. That one who never reads is cut off, in each way, is in `cut_off.rs`.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::gateway::http;

/// Watchers of the client that does not read.
pub(crate) const WATCHERS: usize = 10_000;

/// Writes, each of which every watcher wants.
const WRITES: usize = 500;

/// What the process may grow by: far below what one event for each watcher and write would take.
pub(crate) const GROWTH_KIB: u64 = 200 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_a_client_that_opens_ten_thousand_watches_and_reads_none() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let mut before = resident_kib(member);
    let (requests, receiver) = tokio::sync::mpsc::channel(16);
    let sending = tokio::spawn(async move {
        for _ in 0..WATCHERS {
            if requests.send(watch_all()).await.is_err() {
                break;
            }
        }
        // The stream stays open.
        requests
    });
    let unread = member.watch().watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();

    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(watch_all()).await.expect("sent");
    let mut events = member.watch().watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();
    let created = events.message().await.expect("open").expect("an answer");
    assert!(created.created);
    before = before.max(resident_kib(member));
    for number in 0..WRITES {
        member.put(&format!("k{number}"), &"x".repeat(1000)).await.expect("a write");
    }
    let reading = async {
        let mut seen = 0;
        while seen < WRITES {
            seen += events.message().await.expect("open").expect("an answer").events.len();
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the client that reads gets every event");
    let grown = resident_kib(member).saturating_sub(before);
    assert!(grown < GROWTH_KIB, "the process grew by {grown} KiB");

    drop((unread, sending));
    member.put("after", "x").await.expect("a write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_opened_and_left_is_no_harm() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let mut left = Vec::new();
    for _ in 0..200 {
        let (requests, receiver) = tokio::sync::mpsc::channel::<pb::WatchRequest>(1);
        let mut client = member.watch();
        // Half open: the server hears of a stream, never of a request, and the client never of an answer.
        left.push((requests, tokio::spawn(async move { client.watch(ReceiverStream::new(receiver)).await.map(drop) })));
    }
    tokio::time::timeout(Duration::from_secs(20), member.put("k", "v")).await.expect("in time").expect("a write");
    left.iter().for_each(|(_, opening)| opening.abort());
    assert_eq!(member.get("k").await.expect("a read").as_deref(), Some("v"));
}

/// A frame of HTTP/2 that the server sent.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) body: Vec<u8>,
}

/// A connection whose other end writes frames and reads none after the greeting: no window is granted, no ping answered.
pub(crate) struct Mute {
    stream: TcpStream,
}

impl Mute {
    /// `window` is what the server may send over the whole connection. Each stream may be sent 64 KiB.
    pub(crate) async fn connect(member: &Member, window: u32) -> Self {
        let mut mute = Self::open(member.client_port).await;
        mute.frame(8, 0, 0, &(window - 65_535).to_be_bytes()).await;
        mute.greeted().await;
        mute
    }

    /// A connection with a client's first frame on it, and nothing read.
    pub(crate) async fn open(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the port is open");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        let mut mute = Self { stream };
        mute.frame(4, 0, 0, &[]).await;
        mute
    }

    /// Reads on until the server has opened its own window, as it does at once: the last that is read of it.
    async fn greeted(&mut self) {
        while self.next().await.expect("a frame").kind != 8 {}
    }

    /// The next frame of the server; none at the end.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Frame { kind: head[3], flags: head[4], body })
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8]) {
        self.try_frame(kind, flags, stream, body).await.expect("written");
    }

    pub(crate) async fn try_frame(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat();
        self.stream.write_all(&frame).await
    }

    /// Opens a call of a method.
    pub(crate) async fn call(&mut self, stream: u32, path: &str) {
        // POST, http, the path, the authority, content-type and te, without Huffman's code or a table.
        let mut head = vec![0x83, 0x86];
        let kind = if path.starts_with("/v3/") { "application/json" } else { "application/grpc" };
        for (name, value) in [(&[4_u8][..], path), (&[1], "x"), (&[15, 16], kind)] {
            head.extend(name);
            head.push(u8::try_from(value.len()).expect("short"));
            head.extend(value.as_bytes());
        }
        head.extend(b"\x00\x02te\x08trailers");
        self.frame(1, 4, stream, &head).await;
    }

    /// Opens a call of Watch and asks for this many watches.
    pub(crate) async fn watch(&mut self, stream: u32, watches: usize) {
        self.call(stream, "/etcdserverpb.Watch/Watch").await;
        let message = message(&watch_all());
        let many = 500;
        for at in (0..watches).step_by(many) {
            self.frame(0, 0, stream, &message.repeat(many.min(watches - at))).await;
        }
    }

    /// Opens a call of a method with one request; `last` when it has no other.
    pub(crate) async fn ask(&mut self, stream: u32, path: &str, request: &impl Message, last: bool) {
        self.call(stream, path).await;
        self.frame(0, u8::from(last), stream, &message(request)).await;
    }

    /// Opens a request to the gateway, whose body begins with this and does not end.
    pub(crate) async fn post_json(&mut self, stream: u32, path: &str, body: &str) {
        self.call(stream, path).await;
        self.frame(0, 0, stream, body.as_bytes()).await;
    }

    /// Gives a call up.
    pub(crate) async fn reset(&mut self, stream: u32) {
        self.frame(3, 0, stream, &8_u32.to_be_bytes()).await;
    }

    /// Resolves when the server has closed the connection.
    async fn closed(self) {
        closed(self.stream).await;
    }

    /// What it writes to.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// Resolves when the server has closed a connection.
pub(crate) async fn closed(mut stream: TcpStream) {
    let mut piece = vec![0; 64 << 10];
    while matches!(stream.read(&mut piece).await, Ok(1..)) {}
}

/// More than the threads that may block.
const RANGE_STREAMS: u32 = 600;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_a_client_that_reads_none_of_its_range_streams() {
    const BOUND: Duration = Duration::from_secs(5);
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    for number in 0..WRITES {
        member.put(&format!("k{number}"), &"x".repeat(1000)).await.expect("a write");
    }
    // The window of the connection is that of one piece or two.
    let mut mute = Mute::connect(member, 128 << 10).await;
    for number in 0..RANGE_STREAMS {
        let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        mute.ask(2 * number + 1, "/etcdserverpb.KV/RangeStream", &all, true).await;
    }
    eventually(member, "etcd_mvcc_db_open_read_transactions", |views| views >= f64::from(RANGE_STREAMS)).await;

    let range = async {
        let all = pb::RangeRequest { key: "k".into(), range_end: "l".into(), count_only: true, ..Default::default() };
        let counted = member.kv().range(all).await.expect("a read").into_inner().count;
        assert_eq!(counted, i64::try_from(WRITES).expect("few"));
    };
    tokio::time::timeout(BOUND, range).await.expect("a range in time");
    let lease = async {
        let mut client = member.lease();
        let granted = client.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("a grant").into_inner();
        let alive = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: granted.id }]);
        let mut answers = client.lease_keep_alive(alive).await.expect("a stream").into_inner();
        assert_eq!(answers.message().await.expect("open").expect("an answer").ttl, 60);
    };
    tokio::time::timeout(BOUND, lease).await.expect("a lease in time");

    drop(mute);
    eventually(member, "etcd_mvcc_db_open_read_transactions", |views| views < f64::from(RANGE_STREAMS) / 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_socket_is_full_is_cut_off_too() {
    let cluster = Cluster::start_with(1, &["--grpc-keepalive-timeout=2s", "--unread-stream-timeout=0s"]).await;
    let member = &cluster.members[0];
    // The windows are open, so it is the socket that fills.
    let mut mute = Mute::connect(member, i32::MAX.unsigned_abs()).await;
    mute.frame(4, 0, 0, &[&[0, 4][..], &i32::MAX.to_be_bytes()].concat()).await;
    mute.watch(1, 100).await;
    eventually(member, "etcd_debugging_mvcc_watcher_total", |watchers| watchers == 100.0).await;
    let mut number = 0;
    let written = async {
        while metric(member, "etcd_debugging_mvcc_watcher_total").await != 0.0 {
            member.put(&format!("k{number}"), &"x".repeat(10_000)).await.expect("a write");
            number += 1;
        }
    };
    tokio::time::timeout(PATIENCE * 2, written).await.expect("its watchers are gone");
    tokio::time::timeout(PATIENCE, mute.closed()).await.expect("the connection is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_gets_every_event() {
    const BOUND: Duration = Duration::from_secs(5);
    let cluster = Cluster::start_with(1, &["--unread-stream-timeout=5s"]).await;
    let member = &cluster.members[0];
    let endpoint = Endpoint::from_shared(member.client_url()).expect("a URL");
    let endpoint = endpoint.initial_stream_window_size(64 << 10).initial_connection_window_size(64 << 10);
    let mut events = watch(WatchClient::new(endpoint.connect_lazy())).await;
    let started = std::time::Instant::now();
    let writes = async {
        for number in 0..WRITES {
            member.put(&format!("k{number}"), &"x".repeat(10_000)).await.expect("a write");
        }
    };
    // All pauses together outlast the bound three times over; each is a fraction of it. A client that waited for the
    // writes to end would read nothing for as long as they take, which on a busy machine is too long.
    tokio::join!(writes, read_all(&mut events, BOUND / 100));
    while started.elapsed() < BOUND * 3 {
        tokio::time::sleep(BOUND / 20).await;
        member.put("more", &"x".repeat(70_000)).await.expect("a write");
        let more = tokio::time::timeout(PATIENCE, events.message()).await.expect("in time").expect("open");
        assert_eq!(more.expect("an answer").events.len(), 1);
    }
    assert_eq!(metric(member, "balsa_unread_streams_ended_total").await, 0.0);
}

/// A watch of everything, made.
pub(crate) async fn watch(mut client: WatchClient<Channel>) -> Streaming<pb::WatchResponse> {
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(watch_all()).await.expect("sent");
    let mut events = client.watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();
    assert!(events.message().await.expect("open").expect("an answer").created);
    events
}

/// Reads the events of all [`WRITES`], each in its turn, and pauses after each message.
async fn read_all(events: &mut Streaming<pb::WatchResponse>, pause: Duration) {
    let mut seen = 0;
    while seen < WRITES {
        for event in events.message().await.expect("open").expect("an answer").events {
            assert_eq!(event.kv.expect("a pair").key, format!("k{seen}"));
            seen += 1;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Waits until the value of a metric is as wanted.
pub(crate) async fn eventually(member: &Member, name: &str, wanted: impl Fn(f64) -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let value = metric(member, name).await;
        if wanted(value) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{name} is {value}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn metric(member: &Member, name: &str) -> f64 {
    let mut request = http::Request::post("/metrics", "");
    request.method = "GET".into();
    let text = String::from_utf8(request.send(member.client_port).await.body).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

pub(crate) fn open_files(member: &Member) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", member.pid())).expect("the process runs").count()
}

pub(crate) fn open_sockets(member: &Member) -> usize {
    let listing = std::fs::read_dir(format!("/proc/{}/fd", member.pid())).expect("the process runs");
    listing
        .filter(|file| {
            let target = file.as_ref().map(|file| std::fs::read_link(file.path()));
            matches!(target, Ok(Ok(target)) if target.to_string_lossy().starts_with("socket:"))
        })
        .count()
}

fn watch_all() -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { range_end: "\0".into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// A request as gRPC frames it.
fn message(request: &impl Message) -> Vec<u8> {
    let request = request.encode_to_vec();
    [&[0, 0, 0, 0, u8::try_from(request.len()).expect("short")], &request[..]].concat()
}

pub(crate) fn resident_kib(member: &Member) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.pid())).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
