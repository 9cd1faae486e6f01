//! What stands around a message: compression, a client's time, metadata, and what only looks like a call of gRPC.

use std::time::{Duration, Instant};

use balsa_e2e::differential::frames::{End, Frames, message};
use balsa_proto::etcdserverpb as pb;
use balsa_proto::v3lockpb::LockRequest;
use futures::{StreamExt, stream};
use prost::Message;
use tokio::time::timeout;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::{Code, Request};

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::Etcd;
use crate::flags::Single;
use crate::gateway::http::{self, healthy};

/// Asks for the events of a key.
fn created(key: &str, start_revision: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.to_owned().into(), start_revision, ..Default::default() };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
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
    let mut answers =
        watch.watch(tokio_stream::once(created("a", 2)).chain(stream::pending())).await.expect("a stream").into_inner();
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

/// A client that does not count itself: tonic's gives up by its own clock, with its own code.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_time_is_over_ends_with_its_deadline() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let address = format!("127.0.0.1:{}", member.client_port);
    let lock = LockRequest { name: "l".into(), lease: 0 };
    member.lock().lock(lock.clone()).await.expect("held");
    let waiting = Frames::new("/v3lockpb.Lock/Lock", message(0, &lock.encode_to_vec()));
    let watching = Frames::new("/etcdserverpb.Watch/Watch", message(0, &created("w", 0).encode_to_vec()));
    for call in [waiting, watching.ending(End::Open)] {
        let sent = Instant::now();
        let heard = call.with("grpc-timeout", "1S").send(&address).await;
        assert_eq!(heard.ended, Some((Code::DeadlineExceeded, "context deadline exceeded".to_owned())), "{heard:?}");
        assert!(sent.elapsed() >= Duration::from_secs(1), "before its time");
    }
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
