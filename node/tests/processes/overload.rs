//! More writes than a member can hold: those above the bound are refused at once, reads go on, and what was taken is not lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cluster::Cluster;

/// Writes without an outcome that a member holds.
const BOUND: usize = 32_768;
/// What is sent at most; some are given up meanwhile where a machine is slow.
const SENT: usize = 2 * BOUND;
const CONNECTIONS: usize = 8;

async fn put(mut kv: KvClient<Channel>, number: usize) -> Result<(), Status> {
    let (key, value) = (format!("k/{}", number % 100).into(), "v".into());
    kv.put(pb::PutRequest { key, value, ..Default::default() }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_cannot_hold_is_refused_at_once_and_reads_go_on() {
    let mut cluster = Cluster::unstarted(1);
    // A request has 5 s and two election time-outs.
    cluster.flags = &["--election-timeout=50000", "--heartbeat-interval=100"];
    cluster.found().await;
    cluster.members[0].put("before", "x").await.expect("a write");
    cluster.members[0].kill();
    // From the thirtieth run on, nothing is applied any more.
    cluster.restart_to_fail(0, "apply-before-write=30*off->sleep(600000)");
    cluster.serves(0).await;
    let member = &cluster.members[0];
    while tokio::time::timeout(Duration::from_secs(2), member.put("awake", "x")).await.is_ok() {}

    let clients: Vec<_> = (0..CONNECTIONS).map(|_| member.kv()).collect();
    let begun = Arc::new(AtomicUsize::new(0));
    let mut puts = JoinSet::new();
    for number in 0..SENT {
        let (kv, begun) = (clients[number % CONNECTIONS].clone(), begun.clone());
        puts.spawn(async move {
            begun.fetch_add(1, Ordering::Relaxed);
            put(kv, number).await
        });
    }
    let first = loop {
        match puts.join_next().await.expect("one is refused").expect("the task ends") {
            Ok(()) => panic!("nothing is applied"),
            Err(status) if status.message().contains("request timed out") => {}
            Err(status) => break status,
        }
    };
    assert_eq!((first.code(), first.message()), (Code::Unknown, "etcdserver: too many requests"));
    assert!(begun.load(Ordering::Relaxed) >= BOUND, "{begun:?} are fewer than it holds");
    let own = pb::RangeRequest { key: "before".into(), serializable: true, ..Default::default() };
    assert_eq!(member.kv().range(own).await.expect("reads of what is there are answered").into_inner().count, 1);

    puts.abort_all();
    cluster.members[0].kill();
    cluster.restart(0);
    cluster.serves(0).await;
    cluster.members[0].put("after", "x").await.expect("a write");
}
