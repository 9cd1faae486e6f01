//! A client that opens ten thousand watches and never reads, in each way that there is: gRPC, and JSON over HTTP/1.1, over
//! streams of HTTP/2 and over WebSockets. It is cut off, and nobody else notices.
//!
//! What it may cost in memory is the same whatever the way: [`GROWTH_KIB`], of which one event for each watch and write would be
//! many times as much. Beside the budget of all streams, a stream has one response on its way; over JSON that is there as JSON
//! too, and over HTTP/1.1 sixteen lines may wait for the socket.

mod neighbour;

use std::time::Instant;

use futures::SinkExt as _;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use self::neighbour::Neighbour;
use crate::cluster::{Cluster, Member, PATIENCE};
use crate::unread::{GROWTH_KIB, Mute, WATCHERS, closed, eventually, metric, open_sockets, resident_kib};

/// Streams of one connection over which the watches are spread.
const GRPC_STREAMS: usize = 10;
const JSON_STREAMS: usize = 200;
/// Connections of those that have one stream each.
const CONNECTIONS: usize = 100;
/// What a connection of HTTP/2 may be sent, which its streams share: what says that the watches are made fits.
const WINDOW: u32 = 4 << 20;

/// Writes of the neighbour before, beside and after.
const WRITES: usize = 200;
/// The same until the client is cut off, between two looks.
const FEW: usize = 20;

/// A client that has asked for all its watches.
struct Unread {
    connections: Vec<TcpStream>,
    streams: usize,
}

async fn grpc(member: &Member) -> Unread {
    let mut mute = Mute::connect(member, WINDOW).await;
    for number in 0..GRPC_STREAMS {
        mute.watch(odd(number), WATCHERS / GRPC_STREAMS).await;
    }
    Unread { connections: vec![mute.into_stream()], streams: GRPC_STREAMS }
}

async fn json_streams(member: &Member) -> Unread {
    let mut mute = Mute::connect(member, WINDOW).await;
    for number in 0..JSON_STREAMS {
        mute.post_json(odd(number), "/v3/watch", &creations(WATCHERS / JSON_STREAMS)).await;
    }
    Unread { connections: vec![mute.into_stream()], streams: JSON_STREAMS }
}

async fn json_requests(member: &Member) -> Unread {
    let body = creations(WATCHERS / CONNECTIONS);
    let head = format!("POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = connect(member).await;
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        stream.write_all(body.as_bytes()).await.expect("the body is taken");
        connections.push(stream);
    }
    Unread { connections, streams: CONNECTIONS }
}

async fn websockets(member: &Member) -> Unread {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let request = format!("ws://127.0.0.1:{}/v3/watch", member.client_port).into_client_request();
        let opened = client_async(request.expect("a request"), connect(member).await);
        let (mut socket, _) = timeout(PATIENCE, opened).await.expect("in time").expect("a handshake");
        socket.send(Message::text(creations(WATCHERS / CONNECTIONS))).await.expect("sent");
        connections.push(socket.into_inner());
    }
    Unread { connections, streams: CONNECTIONS }
}

/// The number of the stream of HTTP/2 that a client opens as this one.
fn odd(number: usize) -> u32 {
    2 * u32::try_from(number).expect("few") + 1
}

/// Requests for so many watches of everything.
fn creations(watches: usize) -> String {
    r#"{"create_request":{"range_end":"AA=="}}"#.repeat(watches)
}

/// A connection with segments and a window as on a network: it is full with some 100 KiB, where one on loopback takes MiB.
async fn connect(member: &Member) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    SockRef::from(&socket).set_tcp_mss(1_400).expect("a size of segments");
    socket.set_recv_buffer_size(16 << 10).expect("a size of the window");
    socket.connect(([127, 0, 0, 1], member.client_port).into()).await.expect("the port is open")
}

/// A number as metrics tell it.
fn told(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("few"))
}

/// Waits until every watch is there, beside this many others of one stream each.
async fn made(member: &Member, streams: usize, others: usize) {
    let (all, streams) = (told(WATCHERS + others), told(streams + others));
    eventually(member, "etcd_debugging_mvcc_watcher_total", |watchers| watchers == all).await;
    eventually(member, "etcd_debugging_mvcc_watch_stream_total", |there| there == streams).await;
}

/// Waits until nothing of them is left.
async fn gone(cluster: &Cluster, unread: Unread, others: usize, sockets: usize) {
    let (member, others) = (&cluster.members[0], told(others));
    eventually(member, "etcd_debugging_mvcc_watcher_total", |watchers| watchers == others).await;
    eventually(member, "etcd_debugging_mvcc_watch_stream_total", |streams| streams == others).await;
    eventually(member, "etcd_debugging_mvcc_pending_events_total", |events| events == 0.0).await;
    for connection in unread.connections {
        timeout(PATIENCE, closed(connection)).await.expect("the connection is closed");
    }
    cluster.eventually("its sockets are closed", || async { open_sockets(member) <= sockets }).await;
}

/// By the rule for streams, which in the end closes the connection; the one for sockets is out of the way.
async fn is_cut_off_and_nobody_else_notices(open: impl AsyncFnOnce(&Member) -> Unread) {
    let cluster = Cluster::start_with(1, &["--unread-stream-timeout=3s", "--grpc-keepalive-timeout=10m"]).await;
    let member = &cluster.members[0];
    let mut neighbour = Neighbour::of(member).await;
    let before = neighbour.writes(WRITES).await;
    let (sockets, resident) = (open_sockets(member), resident_kib(member));

    let unread = open(member).await;
    made(member, unread.streams, 1).await;
    let (streams, connections) = (told(unread.streams), told(unread.connections.len()));
    let mut beside = neighbour.writes(WRITES).await;
    let (mut most, begun) = (resident_kib(member), Instant::now());
    while metric(member, "balsa_unread_connections_closed_total").await < connections {
        assert!(begun.elapsed() < PATIENCE * 2, "its connections are not closed");
        beside.extend(neighbour.writes(FEW).await);
        most = most.max(resident_kib(member));
    }
    assert_eq!(metric(member, "balsa_unread_streams_ended_total").await, streams);
    assert_eq!(metric(member, "balsa_unread_connections_closed_total").await, connections);
    gone(&cluster, unread, 1, sockets).await;

    let grown = most.saturating_sub(resident);
    println!("the process grew by {grown} KiB");
    assert!(grown < GROWTH_KIB, "the process grew by {grown} KiB");
    let after = neighbour.writes(WRITES).await;
    beside.are_like(&[&before, &after]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_none_of_his_watches_is_cut_off_and_nobody_else_notices() {
    is_cut_off_and_nobody_else_notices(grpc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_none_of_his_json_streams_is_cut_off_and_nobody_else_notices() {
    is_cut_off_and_nobody_else_notices(json_streams).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_none_of_his_json_requests_is_cut_off_and_nobody_else_notices() {
    is_cut_off_and_nobody_else_notices(json_requests).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_none_of_his_websockets_is_cut_off_and_nobody_else_notices() {
    is_cut_off_and_nobody_else_notices(websockets).await;
}

/// By the rule for sockets, which is etcd's, without the one for streams.
async fn is_cut_off_by_its_full_sockets(open: impl AsyncFnOnce(&Member) -> Unread) {
    let cluster = Cluster::start_with(1, &["--grpc-keepalive-timeout=2s", "--unread-stream-timeout=0s"]).await;
    let member = &cluster.members[0];
    member.put("before", "x").await.expect("a write");
    let sockets = open_sockets(member);
    let unread = open(member).await;
    made(member, unread.streams, 0).await;
    let mut number = 0;
    let written = async {
        while metric(member, "etcd_debugging_mvcc_watcher_total").await != 0.0 {
            member.put(&format!("k{number}"), &"x".repeat(10_000)).await.expect("a write");
            number += 1;
        }
    };
    timeout(PATIENCE * 2, written).await.expect("its watches are gone");
    gone(&cluster, unread, 0, sockets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_requests_whose_sockets_are_full_are_cut_off_too() {
    is_cut_off_by_its_full_sockets(json_requests).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_that_are_full_are_cut_off_too() {
    is_cut_off_by_its_full_sockets(websockets).await;
}
