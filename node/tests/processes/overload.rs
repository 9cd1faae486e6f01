//! More writes than a member can hold: those above the bound are refused at once, and all others have their outcome.

use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use futures::{StreamExt, stream};
use pb::kv_client::KvClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cluster::{Cluster, Member};

/// Writes without an outcome that a member holds.
const BOUND: usize = 32_768;
/// What is sent: so many more.
const SENT: usize = BOUND + 232;
/// Connections, because each has its share of a client's patience.
const CONNECTIONS: usize = 8;
/// How long the applier sleeps: longer than all of them take to arrive.
const ASLEEP: Duration = Duration::from_secs(30);

async fn put(mut kv: KvClient<Channel>, number: usize) -> Result<(), Status> {
    let (key, value) = (format!("k/{}", number % 100).into(), "v".into());
    kv.put(pb::PutRequest { key, value, ..Default::default() }).await.map(drop)
}

async fn read(member: &Member) -> Result<(), Status> {
    let request = pb::RangeRequest { key: "before".into(), serializable: true, ..Default::default() };
    member.kv().range(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_cannot_hold_is_refused_at_once_and_the_rest_is_done() {
    let mut cluster = Cluster::unstarted(1);
    // A request has 5 s and two election time-outs.
    cluster.flags = &["--election-timeout=30000", "--heartbeat-interval=100"];
    cluster.found().await;
    cluster.members[0].put("before", "x").await.expect("a write");
    cluster.members[0].kill();
    let asleep = format!("apply-before-write=20*off->1*sleep({})->off", ASLEEP.as_millis());
    cluster.restart_to_fail(0, &asleep);
    cluster.serves(0).await;
    let member = &cluster.members[0];
    let fallen_asleep = async {
        loop {
            let waits = tokio::time::timeout(Duration::from_secs(1), member.put("awake", "x")).await;
            if waits.is_err() {
                return;
            }
        }
    };
    fallen_asleep.await;
    let begun = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| member.kv()).collect();
    let puts = (0..SENT).map(|number| {
        let kv = clients[number % CONNECTIONS].clone();
        tokio::spawn(async move { (put(kv, number).await, Instant::now()) })
    });
    let outcomes = stream::iter(puts.collect::<Vec<_>>()).buffer_unordered(SENT);
    let (mut done, mut refused) = (0, 0);
    let mut outcomes = std::pin::pin!(outcomes);
    while let Some(outcome) = outcomes.next().await {
        match outcome.expect("the task ends") {
            (Ok(()), _) => done += 1,
            (Err(status), at) => {
                assert_eq!((status.code(), status.message()), (Code::Unknown, "etcdserver: too many requests"));
                assert!(at - begun < ASLEEP, "it was refused only after {:?}", at - begun);
                refused += 1;
                if refused == 1 {
                    read(member).await.expect("reads of what is there are answered meanwhile");
                }
            }
        }
    }
    // The puts that found the applier asleep wait too, and only one of them has given up.
    assert_eq!(done + refused, SENT);
    assert!((BOUND - 4..=BOUND).contains(&done), "{done} were done and {refused} refused");
    member.put("after", "x").await.expect("a write");
}
