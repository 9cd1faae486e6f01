//! Watches, leases and locks while leaders change, history is compacted, and a member dies at its housekeeping.

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use balsa_proto::v3lockpb as lock;
use futures::future::join_all;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::moved::{Renewals, ask_for_door, grant, noise, take_turn};
use crate::unread::metric;

/// Changes of 64 KiB each: four times what a member reads ahead for one stream.
const CHANGES: i64 = 512;
const BYTES: usize = 64 << 10;

/// A watch of everything whose client takes little before it reads.
struct Slow {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
    /// The revision that comes next.
    next: i64,
}

impl Slow {
    async fn open(member: &Member) -> Self {
        let endpoint = Endpoint::from_shared(member.client_url()).expect("a URL");
        let endpoint = endpoint.initial_stream_window_size(64 << 10).initial_connection_window_size(64 << 10);
        let mut client = WatchClient::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX);
        let (requests, receiver) = mpsc::channel(1);
        let first = creation(1);
        requests.send(first).await.expect("sent");
        let answers = client.watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();
        let mut slow = Self { requests, answers, next: 2 };
        assert!(slow.answer().await.created);
        slow.read_once().await;
        slow
    }

    async fn answer(&mut self) -> pb::WatchResponse {
        let answer = timeout(PATIENCE, self.answers.message()).await.expect("in time");
        answer.expect("the stream goes on").expect("an answer")
    }

    /// Takes one answer. Each revision is one event, so none may be missing, doubled or out of order. The compacted revision, if it
    /// ended the watch.
    async fn read_once(&mut self) -> Option<i64> {
        let answer = self.answer().await;
        for event in answer.events {
            assert_eq!(event.kv.expect("a pair").mod_revision, self.next);
            self.next += 1;
        }
        answer.canceled.then_some(answer.compact_revision)
    }

    /// Reads up to the end that a compaction makes, and watches on from there.
    async fn until_compacted(&mut self, revision: i64) {
        let compacted = loop {
            if let Some(compacted) = self.read_once().await {
                break compacted;
            }
        };
        assert_eq!(compacted, revision);
        assert!(self.next < revision, "who had come to {} was not behind {revision}", self.next);
        self.requests.send(creation(revision)).await.expect("the stream is open");
        self.next = revision;
        assert!(self.answer().await.created);
        assert_eq!(self.read_once().await, None);
    }

    async fn until(&mut self, last: i64) {
        while self.next <= last {
            assert_eq!(self.read_once().await, None, "nothing was compacted");
        }
    }
}

fn creation(start_revision: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { range_end: "\0".into(), start_revision, ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// Writes changes up to a revision.
async fn change(member: &Member, last: i64) {
    let mut kv = member.kv();
    let value = noise(1)[..BYTES].to_vec();
    for number in 0.. {
        let put =
            pb::PutRequest { key: format!("k/{number}").into(), value: value.clone().into(), ..Default::default() };
        let answer = kv.put(put).await.expect("a write").into_inner();
        if answer.header.expect("a header").revision >= last {
            return;
        }
    }
}

/// Another member leads, with the one that led before stopped.
async fn stop_leader(cluster: &Cluster) -> (usize, usize) {
    let old = cluster.leader().await;
    cluster.members[old].signal("STOP");
    let others = [(old + 1) % 3, (old + 2) % 3];
    let leads = |index: usize| async move {
        let status = cluster.members[index].status().await;
        status.is_some_and(|status| status.header.is_some_and(|header| header.member_id == status.leader))
    };
    cluster.eventually("another leads", || async { leads(others[0]).await || leads(others[1]).await }).await;
    let new = if leads(others[0]).await { others[0] } else { others[1] };
    (old, new)
}

/// Watches that are behind on every member, in the middle of catching up: a leader stands still, another is elected, and history
/// is compacted beyond them. Who waits for a lock is not behind, however long ago the wait began.
#[tokio::test(flavor = "multi_thread")]
async fn watches_that_catch_up_lose_nothing_while_leaders_change_and_history_goes() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let waiter = &cluster.members[(leader + 1) % 3];
    let (holder_lease, lease) = (grant(waiter).await, grant(waiter).await);
    let held = ask_for_door(waiter, holder_lease).await.expect("no panic").expect("locked");
    let waiting = ask_for_door(waiter, lease);
    let mut renewals = Renewals::of(waiter, lease).await;
    let waits = || async { metric(waiter, "etcd_debugging_mvcc_watcher_total").await == 1.0 };
    cluster.eventually("it waits", waits).await;
    change(&cluster.members[leader], CHANGES).await;
    for index in 0..3 {
        cluster.serves(index).await;
    }
    let mut watches = Vec::new();
    for member in cluster.members.iter().chain(&cluster.members) {
        watches.push(Slow::open(member).await);
    }

    let (old, new) = stop_leader(&cluster).await;
    let compacted = CHANGES * 3 / 4;
    let compaction = pb::CompactionRequest { revision: compacted, physical: true };
    cluster.members[new].kv().compact(compaction).await.expect("compacted");
    let mut unlocking = cluster.members[new].lock();
    unlocking.unlock(lock::UnlockRequest { key: held.key }).await.expect("unlocked");
    let taken = take_turn(waiter, lease, waiting).await;
    cluster.members[old].signal("CONT");
    assert_eq!(taken.key, format!("door/{lease:x}"));
    renewals.renew().await;
    cluster.serves(old).await;
    join_all(watches.iter_mut().map(|watch| watch.until_compacted(compacted))).await;

    let (old, new) = stop_leader(&cluster).await;
    let last = CHANGES + 20;
    change(&cluster.members[new], last).await;
    cluster.members[old].signal("CONT");
    join_all(watches.iter_mut().map(|watch| watch.until(last))).await;
    renewals.renew().await;
    cluster.assert_hashes_agree().await;
}

async fn lease_keys(member: &Member, id: i64) -> Vec<prost::bytes::Bytes> {
    let request = pb::LeaseTimeToLiveRequest { id, keys: true };
    member.lease().lease_time_to_live(request).await.expect("an answer").into_inner().keys
}

/// Begins a defragmentation, and kills the member while it runs.
async fn kill_in_defragmentation(cluster: &mut Cluster, index: usize) {
    for _ in 0..50 {
        let member = &cluster.members[index];
        let mut client = member.maintenance();
        let running = tokio::spawn(async move { client.defragment(pb::DefragmentRequest {}).await });
        while !running.is_finished() {
            if metric(member, "etcd_disk_defrag_inflight").await == 1.0 {
                cluster.members[index].kill();
                if running.await.expect("no panic").is_err() {
                    return;
                }
                // It was done between the look and the end.
                cluster.restart(index);
                cluster.serves(index).await;
                break;
            }
        }
    }
    panic!("it was never seen to defragment");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_killed_while_it_defragments_has_lost_nothing() {
    let mut cluster = Cluster::start(3).await;
    let index = (cluster.leader().await + 1) % 3;
    let member = &cluster.members[index];
    let lease = grant(member).await;
    for number in 0..48 {
        let key = format!("k/{}", number % 16);
        let put = pb::PutRequest { key: key.into(), value: noise(number).into(), lease, ..Default::default() };
        member.kv().put(put).await.expect("a write");
    }
    let pairs = async |member: &Member| -> Vec<KeyValue> {
        let all = pb::RangeRequest { key: "k/".into(), range_end: "k0".into(), ..Default::default() };
        let mut client = member.kv().max_decoding_message_size(usize::MAX);
        client.range(all).await.expect("a read").into_inner().kvs
    };
    let before = pairs(member).await;
    for _ in 0..2 {
        kill_in_defragmentation(&mut cluster, index).await;
        cluster.restart(index);
        cluster.serves(index).await;
        let member = &cluster.members[index];
        assert!(pairs(member).await == before, "every pair is as it was");
        assert_eq!(lease_keys(member, lease).await.len(), 16);
        Renewals::of(member, lease).await;
    }
    let member = &cluster.members[index];
    member.maintenance().defragment(pb::DefragmentRequest {}).await.expect("defragmented");
    cluster.assert_hashes_agree().await;
}
