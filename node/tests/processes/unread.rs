//! Clients that misuse a stream: nobody else may notice.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::{Cluster, Member, PATIENCE};

/// Watchers of the client that does not read.
const WATCHERS: usize = 10_000;

/// Writes, each of which every watcher wants.
const WRITES: usize = 500;

/// What the process may grow by: far below what one event for each watcher and write would take.
const GROWTH_KIB: u64 = 200 << 10;

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

fn watch_all() -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { range_end: "\0".into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn resident_kib(member: &Member) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.pid())).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
