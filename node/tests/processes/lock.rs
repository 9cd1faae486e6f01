//! etcd's Lock and Election services.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::v3electionpb as election;
use balsa_proto::v3lockpb as lock;
use tonic::{Code, Status};

use crate::cluster::{Cluster, Member};

async fn grant(member: &Member, ttl: i64) -> i64 {
    let request = pb::LeaseGrantRequest { ttl, id: 0 };
    member.lease().lease_grant(request).await.expect("granted").into_inner().id
}

async fn take(member: &Member, name: &'static str, lease: i64) -> Result<lock::LockResponse, Status> {
    let request = lock::LockRequest { name: name.into(), lease };
    member.lock().lock(request).await.map(tonic::Response::into_inner)
}

/// How many stand in the queue.
async fn queued(member: &Member, prefix: &str) -> usize {
    let end = format!("{}0", prefix.trim_end_matches('/'));
    let request = pb::RangeRequest { key: prefix.to_owned().into(), range_end: end.into(), ..Default::default() };
    member.kv().range(request).await.expect("a read").into_inner().kvs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_held_by_one_lease_at_a_time() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.members[..] else { panic!("three members") };
    let (first, second) = (grant(a, 60).await, grant(b, 60).await);
    let held = take(a, "door", first).await.expect("locked");
    assert_eq!(held.key, format!("door/{first:x}"));
    assert_eq!(take(c, "door", first).await.expect("the same lease again").key, held.key);
    assert!(a.get(&format!("door/{first:x}")).await.expect("a read").is_some());

    let waiting = take(b, "door", second);
    let unlocking = async {
        cluster.eventually("the second one stands in the queue", || async { queued(c, "door/").await == 2 }).await;
        c.lock().unlock(lock::UnlockRequest { key: held.key.clone() }).await.expect("unlocked");
    };
    let (taken, ()) = tokio::join!(waiting, unlocking);
    let taken = taken.expect("locked");
    assert_eq!(taken.key, format!("door/{second:x}"));

    // The lease ends: the lock is free.
    b.lease().lease_revoke(pb::LeaseRevokeRequest { id: second }).await.expect("revoked");
    assert!(take(a, "door", 0).await.is_ok(), "without a lease one is granted");
    let refused = take(a, "other", 12345).await.expect_err("no such lease");
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "etcdserver: requested lease not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_the_queue() {
    let cluster = Cluster::start(3).await;
    let [a, b, _] = &cluster.members[..] else { panic!("three members") };
    let (first, second) = (grant(a, 60).await, grant(b, 60).await);
    take(a, "door", first).await.expect("locked");
    let waiting = tokio::time::timeout(Duration::from_millis(500), take(b, "door", second)).await;
    assert!(waiting.is_err(), "the lock is held");
    cluster.eventually("its place is free", || async { queued(a, "door/").await == 1 }).await;

    // A lease that ends during the wait ends the wait.
    let third = grant(b, 60).await;
    let waiting = take(b, "door", third);
    let ending = async {
        cluster.eventually("it waits", || async { queued(a, "door/").await == 2 }).await;
        a.lease().lease_revoke(pb::LeaseRevokeRequest { id: third }).await.expect("revoked");
        a.lease().lease_revoke(pb::LeaseRevokeRequest { id: first }).await.expect("revoked");
    };
    let (taken, ()) = tokio::join!(waiting, ending);
    let refused = taken.expect_err("expired");
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "mutex: session is expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_has_one_leader_whom_everybody_sees() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.members[..] else { panic!("three members") };
    let (first, second) = (grant(a, 60).await, grant(b, 60).await);
    let nobody = c.election().leader(election::LeaderRequest { name: "post".into() }).await.expect_err("nobody");
    assert_eq!((nobody.code(), nobody.message()), (Code::Unknown, "election: no leader"));
    let observed = c.election().observe(election::LeaderRequest { name: "post".into() }).await.expect("a stream");
    let mut observed = observed.into_inner();
    let mut next = async || {
        let seen = observed.message().await.expect("open").expect("more").kv.expect("a pair");
        (seen.lease, String::from_utf8(seen.value.to_vec()).expect("text"))
    };

    let campaign =
        |lease, value: &'static str| election::CampaignRequest { name: "post".into(), lease, value: value.into() };
    let elected = a.election().campaign(campaign(first, "one")).await.expect("elected").into_inner();
    let leader = elected.leader.expect("a key");
    assert_eq!((&leader.name[..], leader.lease), (&b"post"[..], first));
    assert_eq!(leader.key, format!("post/{first:x}"));
    assert_eq!(next().await, (first, "one".to_owned()));
    let proclaim = election::ProclaimRequest { leader: Some(leader.clone()), value: "uno".into() };
    b.election().proclaim(proclaim.clone()).await.expect("proclaimed");
    assert_eq!(next().await, (first, "uno".to_owned()));
    let now = c.election().leader(election::LeaderRequest { name: "post".into() }).await.expect("a leader");
    assert_eq!(now.into_inner().kv.expect("a pair").value, "uno");

    let (mut election, request) = (b.election(), campaign(second, "two"));
    let waiting = election.campaign(request);
    let resigning = async {
        cluster.eventually("the second one stands", || async { queued(c, "post/").await == 2 }).await;
        c.election().resign(election::ResignRequest { leader: Some(leader.clone()) }).await.expect("resigned");
    };
    let (elected, ()) = tokio::join!(waiting, resigning);
    assert_eq!(elected.expect("elected").into_inner().leader.expect("a key").lease, second);
    assert_eq!(next().await, (second, "two".to_owned()));

    let stale = a.election().proclaim(proclaim).await.expect_err("it has resigned");
    assert_eq!((stale.code(), stale.message()), (Code::Unknown, "election: not leader"));
    let nameless = a.election().resign(election::ResignRequest { leader: None }).await.expect_err("no key");
    assert_eq!((nameless.code(), nameless.message()), (Code::Unknown, "\"leader\" field must be provided"));
}
