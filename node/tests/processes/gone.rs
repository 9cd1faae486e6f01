//! Clients that are gone in the middle of a large answer: nothing of it stays.

use std::path::Path;

use balsa_proto::etcdserverpb as pb;
use pb::watch_request::RequestUnion;

use crate::cluster::{Cluster, Member};
use crate::moved::noise;
use crate::unread::{Mute, eventually, open_sockets, resident_kib};

/// Large values, each of 1 MiB.
const VALUES: usize = 64;

const CLIENTS: usize = 16;

/// Of these the answer is one message, which is in memory as a whole, as in etcd.
const WHOLE: usize = 2;

/// The calls of a client: a range as a stream, a snapshot, a watch of the past with the pairs before, and a range.
const CALLS: [u32; 4] = [1, 3, 5, 7];

/// What the process may have more than before: while the answers are under way, which are 64 MiB for each call together, and
/// when nothing of them is left.
const PEAK_KIB: u64 = 700 << 10;
const GROWTH_KIB: u64 = 48 << 10;

const VIEWS: &str = "etcd_mvcc_db_open_read_transactions";
const STREAMS: &str = "etcd_debugging_mvcc_watch_stream_total";
const PENDING: &str = "etcd_debugging_mvcc_pending_events_total";

/// A client whose large answers have begun, none of which it reads on.
async fn begin(member: &Member, whole: bool) -> Mute {
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let create = pb::WatchCreateRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        start_revision: 1,
        prev_kv: true,
        ..Default::default()
    };
    let past = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut mute = Mute::connect(member, 1 << 20).await;
    mute.ask(CALLS[0], "/etcdserverpb.KV/RangeStream", &all, true).await;
    mute.ask(CALLS[1], "/etcdserverpb.Maintenance/Snapshot", &pb::SnapshotRequest {}, true).await;
    mute.ask(CALLS[2], "/etcdserverpb.Watch/Watch", &past, false).await;
    if whole {
        mute.ask(CALLS[3], "/etcdserverpb.KV/Range", &all, true).await;
    }
    mute
}

fn checkpoints(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Waits until each client's answers are under way.
async fn under_way(cluster: &Cluster, ranges: f64) {
    let (member, clients) = (&cluster.members[0], f64::from(u32::try_from(CLIENTS).expect("few")));
    eventually(member, VIEWS, |views| views >= clients).await;
    eventually(member, STREAMS, |streams| streams == clients).await;
    eventually(member, PENDING, |events| events >= clients).await;
    eventually(member, "etcd_mvcc_range_total", |ended| ended >= ranges).await;
    let scratch = member.data.join("snapshot");
    cluster.eventually("each has a checkpoint", || async { checkpoints(&scratch) == CLIENTS }).await;
}

/// Waits until the member has nothing of them any more.
async fn nothing_stays(cluster: &Cluster) {
    let member = &cluster.members[0];
    for name in [VIEWS, STREAMS, PENDING, "etcd_debugging_mvcc_watcher_total"] {
        eventually(member, name, |value| value == 0.0).await;
    }
    let scratch = member.data.join("snapshot");
    cluster.eventually("no checkpoint stays", || async { checkpoints(&scratch) == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_answers_whose_clients_are_gone_half_way() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    for number in 0..VALUES {
        let put =
            pb::PutRequest { key: format!("k/{number}").into(), value: noise(number).into(), ..Default::default() };
        member.kv().put(put).await.expect("a write");
    }
    let (before, sockets) = (resident_kib(member), open_sockets(member));
    for round in 1..=2 {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            clients.push(begin(member, number < WHOLE).await);
        }
        let whole = u32::try_from(round * WHOLE).expect("few");
        under_way(&cluster, f64::from(whole)).await;
        let peak = resident_kib(member);
        assert!(peak < before + PEAK_KIB, "{before} KiB before, {peak} in round {round}");
        if round % 2 == 0 {
            // They give their calls up and stay connected.
            for client in &mut clients {
                for call in CALLS {
                    client.reset(call).await;
                }
            }
            nothing_stays(&cluster).await;
        }
        drop(clients);
        nothing_stays(&cluster).await;
        cluster.eventually("their sockets are closed", || async { open_sockets(member) <= sockets }).await;
        // The allocator gives pages back some seconds after they are free.
        let given_back = || async { resident_kib(member) < before + GROWTH_KIB };
        cluster.eventually("its memory is given back", given_back).await;
    }
}
