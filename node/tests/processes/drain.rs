//! SIGTERM with a `--drain-delay`: unready first, serving until it is over, and then the end, in the order of docs/api.md.

use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::gateway::http::Request;
use crate::writer::{Fate, Writers, fate_of};

/// What the end takes beside the delay, at most: hand-over and flush are within it, then calls in flight and their clients
/// have 5 s, and those in the store 5 s more.
const THE_END: Duration = Duration::from_secs(10);

/// How streams end by the stop, which is not what a broken connection says.
const SERVER_STOPPED: (Code, &str) = (Code::Unavailable, "etcdserver: server stopped");

/// A watch of everything under `watched`, which is made.
async fn watch(member: &Member) -> Streaming<pb::WatchResponse> {
    let create = pb::WatchCreateRequest { key: "watched".into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let mut stream = member.watch().watch(requests).await.expect("a stream").into_inner();
    let created = timeout(PATIENCE, stream.message()).await.expect("in time").expect("no error").expect("a message");
    assert!(created.created);
    stream
}

/// What `/readyz` says, over a connection of its own.
async fn readiness(member: &Member) -> (u16, String) {
    let answer = Request::get("/readyz").send(member.client_port).await;
    (answer.status, String::from_utf8(answer.body).expect("text"))
}

async fn unready(cluster: &Cluster, index: usize) {
    let drains = || async {
        let (status, body) = readiness(&cluster.members[index]).await;
        assert!(status == 200 || body.contains("[-]not_draining failed: the node is stopping"), "{status} {body}");
        status == 503
    };
    cluster.eventually("it is unready", drains).await;
}

fn values(message: &pb::WatchResponse) -> Vec<String> {
    let values = message.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| &kv.value);
    values.map(|value| String::from_utf8(value.to_vec()).expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_refused_before_the_drain_delay_is_over() {
    use std::os::unix::process::ExitStatusExt;
    const DELAY: Duration = Duration::from_secs(3);

    let mut cluster = Cluster::start_with(3, &["--drain-delay=3s", "--election-timeout=3000"]).await;
    let leader = cluster.leader().await;
    assert_eq!(readiness(&cluster.members[leader]).await.0, 200);
    let mut watched = watch(&cluster.members[leader]).await;
    let told = Instant::now();
    cluster.members[leader].signal("TERM");
    unready(&cluster, leader).await;
    let member = &cluster.members[leader];
    let mut number = 0_usize;
    let error = loop {
        // Each has a connection of its own.
        match member.put("watched", &number.to_string()).await {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
        if told.elapsed() < DELAY / 2 {
            assert_eq!(readiness(member).await.0, 503, "it stays so");
        }
    };
    assert!(told.elapsed() >= DELAY, "after {:?} with {number} writes: {error:?}\n{}", told.elapsed(), cluster.logs());
    assert_eq!(fate_of(&error), Fate::Refused, "{error:?}");
    assert!(number > 10, "{number} writes");
    let mut heard = Vec::new();
    let ended = loop {
        match timeout(PATIENCE, watched.message()).await.expect("in time") {
            Ok(message) => heard.extend(values(&message.expect("an end with a status"))),
            Err(status) => break status,
        }
    };
    assert_eq!((ended.code(), ended.message()), SERVER_STOPPED);
    // The last ones may not have come; a client goes on behind what it has, at another member.
    let written: Vec<String> = (0..number).map(|number| number.to_string()).collect();
    assert!(heard.len() > number / 2 && written.starts_with(&heard), "{} of {number} events", heard.len());
    let status = cluster.members[leader].wait_for_exit();
    assert_eq!(status.signal(), Some(15), "etcd dies of the signal it was sent");
    assert!(told.elapsed() < DELAY + THE_END, "it took {:?}", told.elapsed());
    let closed = TcpStream::connect(("127.0.0.1", cluster.members[leader].client_port)).await;
    assert!(closed.is_err(), "nobody listens any more");
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_cuts_the_delay_short_and_nothing_else() {
    use std::os::unix::process::ExitStatusExt;

    let mut cluster = Cluster::start_with(3, &["--drain-delay=600s", "--election-timeout=3000"]).await;
    let writers = Writers::start(&cluster, 6);
    let leader = cluster.leader().await;
    let mut watched = watch(&cluster.members[leader]).await;
    cluster.members[leader].signal("TERM");
    unready(&cluster, leader).await;
    let handed_over = || async { cluster.leader().await != leader };
    cluster.eventually("leadership is handed over", handed_over).await;
    cluster.members[leader].put("still", "served").await.expect("a write");
    cluster.members[leader].signal("TERM");
    let told = Instant::now();
    let ended = timeout(PATIENCE, watched.message()).await.expect("in time").expect_err("an end with a status");
    assert_eq!((ended.code(), ended.message()), SERVER_STOPPED);
    let status = cluster.members[leader].wait_for_exit();
    assert_eq!(status.signal(), Some(15), "etcd dies of the signal it was sent");
    assert!(told.elapsed() < THE_END, "it took {:?}", told.elapsed());
    let history = writers.finish().await;
    history.check(&cluster).await;
    assert!(history.unknown_errors.is_empty(), "{:#?}\n{}", history.unknown_errors, cluster.logs());
}

/// Who asks gRPC's health service where to go is told in time, as who asks `/readyz`.
#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_tells_of_the_stop_while_everything_is_served() {
    let cluster = Cluster::start_with(1, &["--drain-delay=600s"]).await;
    let member = &cluster.members[0];
    let mut health = HealthClient::new(member.channel());
    let check = HealthCheckRequest::default();
    let mut followed = health.watch(check.clone()).await.expect("a stream").into_inner();
    let mut said = async || {
        let next = timeout(PATIENCE, followed.message()).await.expect("in time");
        next.expect("no error").expect("an answer").status()
    };
    assert_eq!(said().await, ServingStatus::Serving);
    member.signal("TERM");
    assert_eq!(said().await, ServingStatus::NotServing);
    let checked = health.check(check).await.expect("an answer").into_inner().status();
    assert_eq!(checked, ServingStatus::NotServing);
    member.put("still", "served").await.expect("a write");
}

/// The typed end is not kept waiting by a delay that may be long.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_during_the_delay_ends_the_member_at_once() {
    let mut cluster = Cluster::start_with(1, &["--drain-delay=600s"]).await;
    cluster.members[0].kill();
    cluster.restart_to_fail(0, "raft-before-persist=60*off->return(the disk is gone)");
    cluster.serves(0).await;
    cluster.members[0].signal("TERM");
    unready(&cluster, 0).await;
    for number in 0..60 {
        if cluster.members[0].put(&format!("k{number}"), "v").await.is_err() {
            break;
        }
    }
    assert_eq!(cluster.members[0].wait_for_exit().code(), Some(74), "DiskFailed\n{}", cluster.logs());
}
