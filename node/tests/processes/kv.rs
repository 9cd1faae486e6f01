//! The key space over the wire, through any member.

use balsa_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::cluster::Cluster;
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::healthy;

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_any_member_is_read_through_every_member() {
    let cluster = Cluster::start(3).await;
    for (index, member) in cluster.members.iter().enumerate() {
        let key = format!("key-{index}");
        member.put(&key, "value").await.expect("a write");
        for other in &cluster.members {
            assert_eq!(other.get(&key).await.expect("a read").as_deref(), Some("value"));
        }
    }
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_and_errors_are_etcds() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let first = member.put("a", "1").await.expect("a write");
    assert_eq!(member.put("a", "2").await.expect("a write"), first + 1);

    let old = pb::RangeRequest { key: "a".into(), revision: first, ..Default::default() };
    let answer = member.kv().range(old.clone()).await.expect("a read").into_inner();
    assert_eq!((&answer.kvs[0].value[..], answer.kvs[0].version, answer.count), (&b"1"[..], 1, 1));

    let compact = pb::CompactionRequest { revision: first + 1, physical: true };
    member.kv().compact(compact).await.expect("a compaction");
    let error = member.kv().range(old).await.expect_err("compacted");
    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(error.message(), "etcdserver: mvcc: required revision has been compacted");

    let future = pb::RangeRequest { key: "a".into(), revision: 1_000, ..Default::default() };
    let error = member.kv().range(future).await.expect_err("in the future");
    assert_eq!(error.message(), "etcdserver: mvcc: required revision is a future revision");
    let error = member.put("", "x").await.expect_err("no key");
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_every_revision_once_and_in_order() {
    use pb::watch_request::RequestUnion;

    let cluster = Cluster::start(3).await;
    let first = cluster.members[0].put("w/0", "x").await.expect("a write");
    let (requests, stream) = tokio::sync::mpsc::channel(4);
    let create = pb::WatchCreateRequest {
        key: "w/".into(),
        range_end: "w0".into(),
        start_revision: first,
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(create).await.expect("sent");
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut events = cluster.members[2].watch().watch(stream).await.expect("a watch").into_inner();
    for number in 1..200 {
        cluster.members[number % 3].put(&format!("w/{number}"), "x").await.expect("a write");
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        let answer = events.message().await.expect("open").expect("more");
        seen.extend(answer.events.iter().map(|event| event.kv.as_ref().expect("a pair").mod_revision));
    }
    let expected: Vec<i64> = (first..first + 200).collect();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_through_writes_compaction_and_restarts() {
    let mut cluster = Cluster::start(1).await;
    let put = |number: usize| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
            key: format!("c/{number:05}").into(),
            value: "v".into(),
            ..Default::default()
        })),
    };
    for chunk in 0..50 {
        let success = (chunk * 100..(chunk + 1) * 100).map(put).collect();
        cluster.members[0].kv().txn(pb::TxnRequest { success, ..Default::default() }).await.expect("a write");
    }
    let range = |key: &'static str, limit: i64, revision: i64| pb::RangeRequest {
        key: key.into(),
        range_end: "c0".into(),
        limit,
        revision,
        ..Default::default()
    };
    let member = &cluster.members[0];
    let first = member.kv().range(range("c/", 500, 0)).await.expect("a read").into_inner();
    assert_eq!((first.kvs.len(), first.count, first.more), (500, 5_000, true));
    let before = first.header.expect("a header").revision;
    let delete = pb::DeleteRangeRequest { key: "c/01".into(), range_end: "c/02".into(), ..Default::default() };
    assert_eq!(member.kv().delete_range(delete).await.expect("a delete").into_inner().deleted, 1_000);
    cluster.members[0].kill();
    cluster.restart(0);
    cluster.leader().await;
    let member = &cluster.members[0];
    for (key, revision, count) in
        [("c/", 0, 4_000), ("c/00500", 0, 3_500), ("c/", before, 5_000), ("c/03", before, 2_000)]
    {
        let answer = member.kv().range(range(key, 10, revision)).await.expect("a read").into_inner();
        assert_eq!(answer.count, count, "from {key} at {revision}");
        let count_only = pb::RangeRequest { count_only: true, ..range(key, 0, revision) };
        assert_eq!(member.kv().range(count_only).await.expect("a count").into_inner().count, count);
        let mut stream = member.kv().range_stream(range(key, 700, revision)).await.expect("a stream").into_inner();
        let (mut kvs, mut last) = (0, pb::RangeResponse::default());
        while let Some(piece) = stream.message().await.expect("a piece") {
            last = piece.range_response.expect("a range");
            kvs += last.kvs.len();
        }
        assert_eq!((kvs, last.count, last.more, last.header.is_some()), (700, count, true, true));
    }
    let sorted = pb::RangeRequest { sort_order: 2, ..range("c/", 0, 0) };
    let error = member.kv().range_stream(sorted).await.expect_err("refused");
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unimplemented, "RangeStream does not support custom sort orders")
    );
}

/// How many pairs each piece of a streamed range has: 100 pairs of a little over 1,000 bytes.
async fn pieces(port: u16) -> Vec<usize> {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
    let mut kv = KvClient::new(channel);
    for number in 0..100 {
        let put =
            pb::PutRequest { key: format!("s/{number:03}").into(), value: vec![7; 1000].into(), ..Default::default() };
        kv.put(put).await.expect("a write");
    }
    let all = pb::RangeRequest { key: "s/".into(), range_end: "s0".into(), ..Default::default() };
    let mut stream = kv.range_stream(all).await.expect("a stream").into_inner();
    let mut pieces = Vec::new();
    while let Some(piece) = stream.message().await.expect("a piece") {
        pieces.push(piece.range_response.expect("a range").kvs.len());
    }
    pieces
}

/// The first ten pairs are already more than half of what a request may have, so no later piece has more of them.
#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_a_stream_are_about_as_large_as_a_request_may_be() {
    const FLAG: &str = "--max-request-bytes=20000";
    let cluster = Cluster::start_with(1, &[FLAG]).await;
    let ours = pieces(cluster.members[0].client_port).await;
    assert_eq!(ours, [10; 10]);
    if let Some(program) = program(RELEASES[1]) {
        let etcd = Etcd::run(&program, 1, &[FLAG.to_owned()]);
        healthy(etcd.port).await;
        assert_eq!(ours, pieces(etcd.port).await);
    }
    let cluster = Cluster::start(1).await;
    assert_eq!(pieces(cluster.members[0].client_port).await, [10, 20, 40, 30], "far from what a request may have");
}
