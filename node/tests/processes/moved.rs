//! Streams that are open while the whole state under them is replaced by a leader's snapshot: their member was cut off until
//! no log of the others went back to where it stood.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use balsa_node::domain::random::Random;
use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::event::EventType;
use balsa_proto::mvccpb::{Event, KeyValue};
use balsa_proto::v3lockpb as lock;
use bytes::Bytes;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::gateway::http::Request;
use crate::proxy::Network;
use crate::unread::metric;

/// Bytes of one large value.
const LARGE: usize = 1 << 20;

/// A log is trimmed when 64 MiB have gone to the files, down to 64 MiB: this is more than enough of both.
const MOST: usize = 400;

/// Large values that are read while the store changes: more than the client's side of a stream takes in before it is read.
const READ: usize = 24;

/// What a watch said of a change: its revision, key and kind.
type Change = (i64, String, EventType);

/// A value that does not become small on a disk or a wire.
pub(crate) fn noise(number: usize) -> Vec<u8> {
    let mut random = Random::new(number as u64);
    (0..LARGE / 8).flat_map(|_| random.draw().to_le_bytes()).collect()
}

/// Asks once more where nobody can say whether it was done: only calls of which a second one does no harm.
async fn patiently<T, F: Future<Output = Result<tonic::Response<T>, Status>>>(call: impl Fn() -> F) -> T {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => assert!(is_late(&status) && begun.elapsed() < PATIENCE, "{status}"),
        }
    }
}

/// Puts a key. Its revision.
async fn put(member: &Member, key: String, value: Vec<u8>) -> i64 {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    let answer = patiently(|| async { member.kv().put(put.clone()).await }).await;
    answer.header.expect("a header").revision
}

/// What a busy machine makes of any call. Lock has no codes, only texts.
fn is_late(status: &Status) -> bool {
    let text = status.message();
    text.starts_with("etcdserver: request timed out") || text == "context deadline exceeded"
}

/// How many snapshots of others a member has taken. There is no series before the first.
async fn snapshots(member: &Member) -> f64 {
    let body = Request::get("/metrics").send(member.client_port).await.body;
    let text = String::from_utf8(body).expect("text");
    let series = text.lines().filter(|line| line.starts_with("etcd_network_snapshot_receive_success{"));
    series.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")).sum()
}

/// Three members with a network that can be cut between them, and the one that will be behind.
struct Scene {
    cluster: Cluster,
    network: Network,
    leader: usize,
    behind: usize,
    third: usize,
}

impl Scene {
    async fn new() -> Self {
        let mut cluster = Cluster::unstarted(3);
        let network = Network::before(&mut cluster).await;
        cluster.found().await;
        network.note_processes(&cluster);
        let leader = cluster.leader().await;
        Self { cluster, network, leader, behind: (leader + 1) % 3, third: (leader + 2) % 3 }
    }

    fn behind(&self) -> &Member {
        &self.cluster.members[self.behind]
    }

    fn writer(&self) -> &Member {
        &self.cluster.members[self.leader]
    }

    /// Cuts the member off, and writes until the log of neither other member has all that it lacks.
    async fn leave_behind(&self) {
        self.network.cut(Network::isolation(self.behind, 3));
        let alone = || async { metric(self.behind(), "etcd_server_has_leader").await == 0.0 };
        self.cluster.eventually("it has no leader", alone).await;
        let last = metric(self.behind(), "balsa_raft_last_index").await;
        for number in 0..MOST {
            put(self.writer(), format!("p/{number}"), noise(number)).await;
            let mut first = f64::INFINITY;
            for index in [self.leader, self.third] {
                first = first.min(metric(&self.cluster.members[index], "balsa_raft_first_index").await);
            }
            if first > last + 1.0 {
                assert_eq!(metric(self.behind(), "balsa_raft_last_index").await, last, "it was cut off");
                return;
            }
        }
        panic!("the logs are not trimmed:\n{}", self.cluster.logs());
    }

    /// Lets the member reach the others again, and waits until it serves what a snapshot brought it.
    async fn take_up(&self) {
        assert_eq!(snapshots(self.behind()).await, 0.0);
        self.network.cut([].into());
        let received = || async { snapshots(self.behind()).await >= 1.0 };
        self.cluster.eventually("it gets a snapshot", received).await;
        self.cluster.serves(self.behind).await;
        let told = || async { self.behind().log_text().contains("applied snapshot") };
        self.cluster.eventually("it says so", told).await;
        // Who led then says it, once it has heard that all of it arrived.
        let sent =
            || async { self.cluster.members.iter().any(|one| one.log_text().contains("sent database snapshot")) };
        self.cluster.eventually("its sender says so", sent).await;
    }
}

/// A watch of everything.
struct Watching {
    _requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn from(member: &Member, start_revision: i64) -> Self {
        let create = pb::WatchCreateRequest { range_end: "\0".into(), start_revision, ..Default::default() };
        let (requests, receiver) = mpsc::channel(1);
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(request).await.expect("sent");
        let mut client = member.watch().max_decoding_message_size(usize::MAX);
        let answers = client.watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();
        let mut watching = Self { _requests: requests, answers };
        assert!(watching.next().await.created);
        watching
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.answers.message().await.expect("the stream goes on").expect("an answer")
    }

    /// All that it says up to a change of the key `end`.
    async fn until_end(mut self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        while changes.last().is_none_or(|(_, key, _)| key != "end") {
            let answer = self.next().await;
            assert!(!answer.canceled, "{answer:?}");
            changes.extend(answer.events.iter().map(change));
        }
        changes
    }

    fn read(self) -> JoinHandle<Vec<Change>> {
        tokio::spawn(self.until_end())
    }
}

/// What a watch has read, which has its end before it or has read it.
async fn all_of(reading: JoinHandle<Vec<Change>>) -> Vec<Change> {
    timeout(PATIENCE * 2, reading).await.expect("in time").expect("every event")
}

fn change(event: &Event) -> Change {
    let kv = event.kv.as_ref().expect("a pair");
    (kv.mod_revision, String::from_utf8_lossy(&kv.key).into_owned(), event.r#type())
}

/// A stream that renews one lease.
pub(crate) struct Renewals {
    id: i64,
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Renewals {
    pub(crate) async fn of(member: &Member, id: i64) -> Self {
        let (requests, receiver) = mpsc::channel(1);
        let answers = member.lease().lease_keep_alive(ReceiverStream::new(receiver)).await.expect("a stream");
        let mut renewals = Self { id, requests, answers: answers.into_inner() };
        renewals.renew().await;
        renewals
    }

    pub(crate) async fn renew(&mut self) {
        self.requests.send(pb::LeaseKeepAliveRequest { id: self.id }).await.expect("the stream is open");
        let answer = timeout(PATIENCE, self.answers.message()).await.expect("in time");
        assert_eq!(answer.expect("the stream goes on").expect("an answer").ttl, 600);
    }
}

pub(crate) async fn grant(member: &Member) -> i64 {
    let request = pb::LeaseGrantRequest { ttl: 600, id: 0 };
    patiently(|| async { member.lease().lease_grant(request).await }).await.id
}

/// Asks for the lock `door` in a task of its own.
pub(crate) fn ask_for_door(member: &Member, lease: i64) -> JoinHandle<Result<lock::LockResponse, Status>> {
    let mut client = member.lock();
    let request = lock::LockRequest { name: "door".into(), lease };
    tokio::spawn(async move { client.lock(request).await.map(tonic::Response::into_inner) })
}

/// The answer of who waits for the door; whoever could not be told in time asks again, and stands where it stood.
pub(crate) async fn take_turn(
    member: &Member,
    lease: i64,
    mut waiting: JoinHandle<Result<lock::LockResponse, Status>>,
) -> lock::LockResponse {
    let begun = Instant::now();
    loop {
        match timeout(PATIENCE, waiting).await.expect("in time").expect("no panic") {
            Ok(locked) => return locked,
            Err(status) => assert!(is_late(&status) && begun.elapsed() < PATIENCE, "{status}"),
        }
        waiting = ask_for_door(member, lease);
    }
}

/// A lock that one lease has taken at the writer; another one waits for it at the member that will be behind.
async fn wait_at_door(scene: &Scene, lease: i64) -> (Bytes, JoinHandle<Result<lock::LockResponse, Status>>) {
    let own = grant(scene.writer()).await;
    let held = take_turn(scene.writer(), own, ask_for_door(scene.writer(), own)).await;
    let waiting = ask_for_door(scene.behind(), lease);
    let waits = || async { scene.behind().get(&format!("door/{lease:x}")).await.is_ok_and(|key| key.is_some()) };
    scene.cluster.eventually("it stands in line", waits).await;
    // Its key is there a moment before it watches the one ahead.
    let watches = || async { metric(scene.behind(), "etcd_debugging_mvcc_watcher_total").await >= 1.0 };
    scene.cluster.eventually("it watches", watches).await;
    (held.key, waiting)
}

async fn piece(stream: &mut Streaming<pb::RangeStreamResponse>) -> Option<Vec<KeyValue>> {
    let piece = timeout(PATIENCE, stream.message()).await.expect("in time").expect("the stream goes on");
    piece.map(|piece| piece.range_response.expect("a piece").kvs)
}

async fn delete_all_read(member: &Member) {
    let delete = || pb::DeleteRangeRequest { key: "r/".into(), range_end: "r0".into(), prev_kv: false };
    patiently(|| async { member.kv().delete_range(delete()).await }).await;
}

async fn unlock(member: &Member, key: &Bytes) {
    patiently(|| async { member.lock().unlock(lock::UnlockRequest { key: key.clone() }).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_member_outlive_the_snapshot_that_its_leader_sends_it() {
    let scene = Scene::new().await;
    let (member, third) = (scene.behind(), &scene.cluster.members[scene.third]);
    let mut last = 0;
    for number in 0..READ {
        last = put(scene.writer(), format!("r/{number:03}"), noise(number)).await;
    }
    scene.cluster.serves(scene.behind).await;
    let lease = grant(member).await;
    let (door, waiting) = wait_at_door(&scene, lease).await;
    let mut renewals = Renewals::of(member, lease).await;
    let read = Watching::from(member, last + 1).await.read();
    let unread = Watching::from(member, last + 1).await;
    let ahead = Watching::from(member, last + 20).await.read();
    let known = Watching::from(third, last + 1).await.read();
    let request = pb::RangeRequest { key: "r/".into(), range_end: "r0".into(), ..Default::default() };
    let mut range = member.kv().range_stream(request).await.expect("a stream").into_inner();
    let mut kvs = piece(&mut range).await.expect("a piece");
    assert!(!kvs.is_empty() && kvs.len() < READ);

    scene.leave_behind().await;
    // What the stream of a range reads is gone from the state that comes.
    delete_all_read(scene.writer()).await;
    unlock(scene.writer(), &door).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, mut kv) = (stop.clone(), third.kv());
    let writing = tokio::spawn(async move {
        let mut number = 0;
        while !stopped.load(Ordering::Relaxed) {
            let put = pb::PutRequest { key: format!("w/{number}").into(), ..Default::default() };
            if let Err(status) = kv.put(put).await {
                assert!(is_late(&status), "{status}");
            }
            number += 1;
        }
    });
    scene.take_up().await;
    stop.store(true, Ordering::Relaxed);
    writing.await.expect("every write");
    renewals.renew().await;
    let taken = take_turn(member, lease, waiting).await;
    assert_eq!(taken.key, format!("door/{lease:x}"));
    put(scene.writer(), "end".to_owned(), Vec::new()).await;

    let known = all_of(known).await;
    assert!(known.iter().filter(|(_, key, _)| key.starts_with("p/")).count() > 64, "{known:?}");
    assert_eq!(known.iter().filter(|(.., kind)| *kind == EventType::Delete).count(), READ + 1, "and the lock");
    assert_eq!(all_of(read).await, known);
    let after: Vec<_> = known.iter().filter(|(revision, ..)| *revision >= last + 20).cloned().collect();
    assert_eq!(all_of(ahead).await, after);
    assert_eq!(all_of(unread.read()).await, known);
    while let Some(more) = piece(&mut range).await {
        kvs.extend(more);
    }
    let keys: Vec<_> = kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
    assert_eq!(keys, (0..READ).map(|number| format!("r/{number:03}")).collect::<Vec<_>>());
    assert!(kvs.iter().enumerate().all(|(number, kv)| kv.value == noise(number)));
    scene.cluster.assert_hashes_agree().await;
}

/// Further ahead than the large values go.
const AHEAD: i64 = MOST as i64 + 100;

#[tokio::test(flavor = "multi_thread")]
async fn watches_end_as_on_etcd_when_the_snapshot_is_compacted_beyond_them() {
    let scene = Scene::new().await;
    let (member, third) = (scene.behind(), &scene.cluster.members[scene.third]);
    let first = put(scene.writer(), "s/0".to_owned(), Vec::new()).await;
    let (_, waiting) = wait_at_door(&scene, grant(member).await).await;
    let mut watching = Watching::from(member, first).await;
    let ahead = Watching::from(member, first + AHEAD).await.read();
    let known = Watching::from(third, first + AHEAD).await.read();
    let last = put(scene.writer(), "s/1".to_owned(), Vec::new()).await;
    member.get("s/1").await.expect("a read");

    scene.leave_behind().await;
    let revision = put(scene.writer(), "s/2".to_owned(), Vec::new()).await;
    let compaction = pb::CompactionRequest { revision, physical: true };
    scene.writer().kv().compact(compaction).await.expect("compacted");
    put(scene.writer(), "s/3".to_owned(), Vec::new()).await;
    scene.take_up().await;

    // What it was told before stays told, each change once; then its end.
    let mut told: Vec<i64> = Vec::new();
    let end = loop {
        let answer = timeout(PATIENCE, watching.next()).await.expect("in time");
        told.extend(answer.events.iter().map(|event| change(event).0));
        if answer.canceled {
            break answer;
        }
    };
    assert_eq!(told, (first..=last).collect::<Vec<_>>());
    assert_eq!((end.compact_revision, end.watch_id), (revision, 0));
    let refused = timeout(PATIENCE, waiting).await.expect("in time").expect("no panic").expect_err("compacted");
    assert_eq!(refused.message(), "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(refused.code(), Code::Unknown, "as etcd passes on what its own client says");
    while put(scene.writer(), "w".to_owned(), Vec::new()).await < first + AHEAD + 10 {}
    put(scene.writer(), "end".to_owned(), Vec::new()).await;
    let known = all_of(known).await;
    assert_eq!(known[0].0, first + AHEAD);
    assert_eq!(all_of(ahead).await, known);
    scene.cluster.assert_hashes_agree().await;
}
