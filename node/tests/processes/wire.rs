//! What stands around a message: compression, a client's time, metadata, and what only looks like a call of gRPC.

use std::time::Instant;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::v3lockpb::LockRequest;
use futures::{Stream, StreamExt, stream};
use tokio::time::timeout;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::{Code, Request};

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::Etcd;
use crate::flags::Single;
use crate::gateway::http::{self, healthy};

/// With the time that its server is told.
fn within<T>(message: T, time: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", time.parse().expect("a value"));
    request
}

/// Watches a key, and goes on.
fn watching(key: &str, start_revision: i64) -> impl Stream<Item = pb::WatchRequest> + Send + 'static {
    let create = pb::WatchCreateRequest { key: key.to_owned().into(), start_revision, ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    tokio_stream::once(create).chain(stream::pending())
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_requests_are_taken_and_answered_compressed() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let mut kv = member.kv().send_compressed(Gzip).accept_compressed(Gzip);
    let put = |length| pb::PutRequest { key: "a".into(), value: vec![7; length].into(), ..Default::default() };
    kv.put(put(1_000_000)).await.expect("taken");
    let range = || pb::RangeRequest { key: "a".into(), ..Default::default() };
    let answer = kv.range(range()).await.expect("an answer");
    assert_eq!(answer.metadata().get("grpc-encoding").expect("said").as_bytes(), b"gzip");
    assert_eq!(answer.into_inner().kvs[0].value, vec![7; 1_000_000]);
    // Small on the wire, too large in memory.
    let error = kv.put(put(50_000_000)).await.expect_err("too large");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert_eq!(error.message(), "grpc: received message after decompression larger than max 2097152");
    // A watch's large messages are put together elsewhere.
    let mut watch = member.watch().send_compressed(Gzip).accept_compressed(Gzip);
    let mut answers = watch.watch(watching("a", 2)).await.expect("a stream").into_inner();
    let event = async {
        loop {
            let answer = answers.message().await.expect("no error").expect("no end");
            if let Some(event) = answer.events.into_iter().next() {
                return event;
            }
        }
    };
    let event = timeout(PATIENCE, event).await.expect("an event");
    assert_eq!(event.kv.expect("a pair").value, vec![7; 1_000_000]);
    // Who only could read it is not made to.
    let answer = member.kv().accept_compressed(Gzip).range(range()).await.expect("an answer");
    assert_eq!(answer.metadata().get("grpc-encoding"), None);
}

/// tonic's client counts the same time, so it may be the first to say that it is over, with its own code.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_time_is_over_ends_with_its_deadline() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let lock = |name: &str| LockRequest { name: name.to_owned().into(), lease: 0 };
    member.lock().lock(lock("l")).await.expect("held");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = member.lock().lock(within(lock("l"), "1S")).await.expect_err("it waits");
        if error.code() == Code::DeadlineExceeded {
            assert_eq!(error.message(), "context deadline exceeded");
            break;
        }
        assert!(Instant::now() < deadline, "{error}");
    }
    let requests = within(watching("w", 0), "2S");
    let mut answers = member.watch().watch(requests).await.expect("a stream").into_inner();
    let ended = async {
        loop {
            if let Err(error) = answers.message().await {
                return error;
            }
        }
    };
    let error = timeout(PATIENCE, ended).await.expect("the stream ends with its time");
    assert_eq!((error.code(), error.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_may_be_as_large_as_with_etcd() {
    let cluster = Cluster::start(1).await;
    let put = pb::PutRequest { key: "a".into(), ..Default::default() };
    let mut request = Request::new(put);
    for name in ["x-a", "x-b", "x-c", "x-d"] {
        request.metadata_mut().insert(name, "v".repeat(15_000).parse().expect("a value"));
    }
    cluster.members[0].kv().put(request).await.expect("taken");
}

/// A page in a browser can send this: no header of it needs to be asked for first.
#[tokio::test(flavor = "multi_thread")]
async fn the_services_are_not_there_for_plain_http() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    member.put("a", "secret").await.expect("a write");
    let frame = [0, 0, 0, 0, 3, 0x0a, 1, b'a'];
    let to = |path: &str, headers: &[&str]| {
        let headers = headers.iter().map(|header| (*header).to_owned()).collect();
        http::Request { headers, ..http::Request::post(path, frame) }
    };
    let etcd = Etcd::start().await;
    for kind in ["Content-Type: text/plain", "Content-Type: application/grpc"] {
        for port in [member.client_port].into_iter().chain(etcd.as_ref().map(|etcd| etcd.port)) {
            let answer = to("/etcdserverpb.KV/Range", &[kind]).send(port).await;
            assert_eq!(answer.status, 404, "{kind}: {answer:?}");
        }
        for path in ["/etcdserverpb.Cluster/MemberList", "/balsa.node.v1.Node/State"] {
            let answer = to(path, &[kind]).send(member.peer_port).await;
            assert_eq!(answer.status, 404, "{kind}: {answer:?}");
        }
    }
    let guarded = Single::start(|_| vec!["--host-whitelist=localhost".into()]);
    healthy(guarded.client).await;
    let answer = to("/etcdserverpb.KV/Range", &["Host: evil.example"]).send(guarded.client).await;
    assert_eq!(answer.status, 421, "{answer:?}");
}
