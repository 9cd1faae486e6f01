//! Deletes that are too large for one batch, and members that die between their parts.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::Event;
use balsa_proto::mvccpb::event::EventType;
use pb::watch_request::RequestUnion;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cluster::{Cluster, Member};

/// Twelve parts, and more than a member keeps in memory before it writes to its files.
const BIG_KEYS: usize = 48;
const BIG: usize = 1 << 20;
const SMALL_KEYS: usize = 2000;
const KEYS: usize = BIG_KEYS + SMALL_KEYS;
const LEASE: i64 = 77;

async fn fill(member: &Member, lease: i64) {
    let put = |key: String, value: Vec<u8>| pb::PutRequest {
        key: key.into(),
        value: value.into(),
        lease,
        ..Default::default()
    };
    for number in 0..BIG_KEYS {
        member.kv().put(put(format!("k/big/{number:03}"), vec![b'x'; BIG])).await.expect("a write");
    }
    for first in (0..SMALL_KEYS).step_by(100) {
        let op = |number| {
            let put = put(format!("k/small/{number:05}"), b"v".to_vec());
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
        };
        let success = (first..first + 100).map(op).collect();
        member.kv().txn(pb::TxnRequest { success, ..Default::default() }).await.expect("a write");
    }
    member.put("l", "beside").await.expect("a write");
}

fn all(revision: i64, serializable: bool) -> pb::RangeRequest {
    let (key, range_end) = ("k/".into(), "k0".into());
    pb::RangeRequest { key, range_end, revision, serializable, count_only: true, ..Default::default() }
}

async fn count(member: &Member, revision: i64) -> usize {
    member.kv().range(all(revision, true)).await.expect("a count").into_inner().count as usize
}

async fn watch(member: &Member) -> (tokio::sync::mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>) {
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        filters: vec![pb::watch_create_request::FilterType::Noput.into()],
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(request).await.expect("sent");
    let mut answers = member.watch().watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();
    assert!(answers.message().await.expect("open").expect("an answer").created);
    (requests, answers)
}

async fn deletes(answers: &mut Streaming<pb::WatchResponse>) -> Vec<Event> {
    let mut events = Vec::new();
    let reading = async {
        while events.len() < KEYS {
            events.extend(answers.message().await.expect("open").expect("an answer").events);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("all deletes are told");
    events
}

fn check(events: &[Event], revision: i64) {
    let of_delete = |event: &Event| {
        let kv = event.kv.as_ref().expect("a pair");
        event.r#type() == EventType::Delete && kv.mod_revision == revision && kv.key.starts_with(b"k/")
    };
    assert!(events.len() == KEYS && events.iter().all(of_delete), "{} events", events.len());
    assert!(events.is_sorted_by_key(|event| event.kv.as_ref().map(|kv| kv.key.clone())), "in the order of the keys");
}

/// Lets a member die between two parts and come back.
async fn dies_and_comes_back(cluster: &mut Cluster, index: usize, revision: i64) {
    let status = cluster.members[index].wait_for_exit();
    assert_eq!(status.signal(), Some(6), "{status}\n{}", cluster.logs());
    assert!(cluster.members[index].log_text().contains("failpoint apply-part"), "{}", cluster.logs());
    cluster.restart(index);
    cluster.serves(index).await;
    assert_eq!(count(&cluster.members[index], revision).await, 0);
    assert_eq!(count(&cluster.members[index], revision - 1).await, KEYS);
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_between_two_parts_of_a_delete_begins_it_anew() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    cluster.members[follower].kill();
    cluster.restart_to_fail(follower, "apply-part=8*off->return");
    cluster.serves(follower).await;
    let member = &cluster.members[leader];
    fill(member, 0).await;
    let (_requests, mut answers) = watch(member).await;
    let delete = pb::DeleteRangeRequest { key: "k/".into(), range_end: "k0".into(), prev_kv: false };
    let deleted = member.kv().delete_range(delete).await.expect("a delete").into_inner();
    let revision = deleted.header.expect("a header").revision;
    assert_eq!(deleted.deleted as usize, KEYS);
    assert_eq!((count(member, 0).await, count(member, revision - 1).await), (0, KEYS));
    check(&deletes(&mut answers).await, revision);
    dies_and_comes_back(&mut cluster, follower, revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_between_two_parts_of_the_end_of_a_lease_leaves_it_to_the_others() {
    let mut cluster = Cluster::start(3).await;
    for index in 0..3 {
        cluster.members[index].kill();
        cluster.restart_to_fail(index, if index == 0 { "apply-part=2*off->return" } else { "apply-part=off" });
    }
    cluster.leader().await;
    for index in 0..3 {
        cluster.serves(index).await;
    }
    let member = &cluster.members[1];
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: 6000 };
    member.lease().lease_grant(grant).await.expect("granted");
    fill(member, LEASE).await;
    cluster.lead(0).await;
    let (_requests, mut answers) = watch(&cluster.members[2]).await;
    let revoke = pb::LeaseRevokeRequest { id: LEASE };
    let _ = cluster.members[1].lease().lease_revoke(revoke).await;
    let events = deletes(&mut answers).await;
    let revision = events[0].kv.as_ref().expect("a pair").mod_revision;
    check(&events, revision);
    dies_and_comes_back(&mut cluster, 0, revision).await;
}

/// Watches with the pairs before, which make the answer as large as what is deleted.
async fn watch_pairs(
    member: &Member,
    fragment: bool,
) -> (tokio::sync::mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>) {
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        prev_kv: true,
        fragment,
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(request).await.expect("sent");
    let mut client = member.watch().max_decoding_message_size(usize::MAX);
    let mut answers = client.watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();
    assert!(answers.message().await.expect("open").expect("an answer").created);
    (requests, answers)
}

async fn answer(answers: &mut Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    let answer = tokio::time::timeout(Duration::from_secs(60), answers.message()).await.expect("in time");
    answer.expect("open").expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_delete_is_told_to_each_watcher_in_one_answer_or_in_fragments_and_then_all_go_on() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    fill(member, 0).await;
    let mut whole = Vec::new();
    for _ in 0..5 {
        whole.push(watch_pairs(member, false).await);
    }
    let mut fragments = watch_pairs(member, true).await;
    let delete = pb::DeleteRangeRequest { key: "k/".into(), range_end: "k0".into(), ..Default::default() };
    let deleted = member.kv().delete_range(delete).await.expect("a delete").into_inner();
    let revision = deleted.header.expect("a header").revision;
    member.put("k/after", "v").await.expect("a write");
    let bytes = |events: &[Event]| {
        events.iter().map(|event| event.prev_kv.as_ref().map_or(0, |kv| kv.value.len())).sum::<usize>()
    };
    for (_requests, answers) in &mut whole {
        let told = answer(answers).await;
        check(&told.events, revision);
        assert_eq!((told.fragment, bytes(&told.events)), (false, BIG_KEYS * BIG + SMALL_KEYS));
        assert_eq!(answer(answers).await.events[0].kv.as_ref().expect("a pair").key, "k/after");
    }
    let (mut events, mut parts) = (Vec::new(), 0);
    loop {
        let told = answer(&mut fragments.1).await;
        events.extend(told.events);
        parts += 1;
        if !told.fragment {
            break;
        }
    }
    check(&events, revision);
    assert!(parts >= BIG_KEYS / 2, "{parts}");
    assert_eq!(answer(&mut fragments.1).await.events[0].kv.as_ref().expect("a pair").key, "k/after");
}
