//! Leases over the wire: through any member, over the end of a leader, over a restart of all.
//!
//! "Too early" is measured: no lease may be over before its last promise. "Too late" is only bounded by patience, because
//! the machine may be busy.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use balsa_proto::etcdserverpb::lease_client::LeaseClient;
use futures::{StreamExt, stream};
use pb::alarm_request::AlarmAction;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::cluster::{Cluster, Member, PATIENCE};

/// Grants a lease and puts a key under it.
async fn hold(member: &Member, id: i64, ttl: i64, key: &str) -> i64 {
    let granted = member.lease().lease_grant(pb::LeaseGrantRequest { ttl, id }).await.expect("granted").into_inner();
    let put = pb::PutRequest { key: key.to_owned().into(), lease: granted.id, ..Default::default() };
    member.kv().put(put).await.expect("a write");
    granted.id
}

async fn time_to_live(member: &Member, id: i64, keys: bool) -> Result<pb::LeaseTimeToLiveResponse, Status> {
    let answer = member.lease().lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys }).await?;
    Ok(answer.into_inner())
}

/// One stream of renewals.
struct Renewals {
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Renewals {
    async fn open(member: &Member) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(1024);
        let answers = member.lease().lease_keep_alive(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, answers })
    }

    /// The TTL that the answer promises.
    async fn renew(&mut self, id: i64) -> Result<i64, Status> {
        let gone = || Status::unavailable("the stream has ended");
        self.requests.send(pb::LeaseKeepAliveRequest { id }).await.map_err(|_| gone())?;
        let answer = self.answers.message().await?.ok_or_else(gone)?;
        assert_eq!(answer.id, id);
        Ok(answer.ttl)
    }
}

/// Waits until the key is deleted, and answers when that was seen: it was deleted before, so what is over too early by
/// this time certainly is.
async fn wait_until_gone(cluster: &Cluster, key: &str) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for member in cluster.members.iter().filter(|member| member.is_running()) {
            if let Ok(Ok(None)) = tokio::time::timeout(Duration::from_secs(2), member.get(key)).await {
                return Instant::now();
            }
        }
        assert!(Instant::now() < deadline, "{key} is still there\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_granted_renewed_described_and_revoked_through_any_member() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.members[..] else { panic!("three members") };
    let id = hold(a, 0, 60, "l/b").await;
    assert!(id > 0, "a member chooses positive ids");
    let put = pb::PutRequest { key: "l/a".into(), lease: id, ..Default::default() };
    b.kv().put(put).await.expect("a write");
    for member in &cluster.members {
        let left = time_to_live(member, id, true).await.expect("described");
        assert_eq!((left.id, left.granted_ttl), (id, 60));
        assert!((50..=60).contains(&left.ttl), "{left:?}");
        assert_eq!(left.keys, ["l/a", "l/b"]);
        assert!(time_to_live(member, id, false).await.expect("described").keys.is_empty());
        assert_eq!(Renewals::open(member).await.expect("a stream").renew(id).await.expect("renewed"), 60);
        member.get("l/a").await.expect("a linearizable read");
        let list = member.lease().lease_leases(pb::LeaseLeasesRequest {}).await.expect("a list").into_inner();
        assert_eq!(list.leases, [pb::LeaseStatus { id }]);
    }
    let before = a.put("l/c", "stays").await.expect("a write");
    let revoked = c.lease().lease_revoke(pb::LeaseRevokeRequest { id }).await.expect("revoked").into_inner();
    assert_eq!(revoked.header.expect("a header").revision, before + 1, "all keys go in one revision");
    for member in &cluster.members {
        assert_eq!(member.get("l/a").await.expect("a read"), None);
        assert_eq!(member.get("l/b").await.expect("a read"), None);
        assert_eq!(member.get("l/c").await.expect("a read").as_deref(), Some("stays"));
        assert_eq!(time_to_live(member, id, true).await.expect("described").ttl, -1);
        assert_eq!(Renewals::open(member).await.expect("a stream").renew(id).await.expect("answered"), 0);
    }
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_refuses_of_leases_is_refused_in_its_words() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let grant = |id, ttl| async move { member.lease().lease_grant(pb::LeaseGrantRequest { ttl, id }).await };
    let error = |status: Status| (status.code(), status.message().to_owned());
    assert_eq!(grant(7, 1).await.expect("granted").into_inner().ttl, 2, "at least what outlasts an election");
    assert_eq!(
        error(grant(7, 60).await.expect_err("taken")),
        (Code::FailedPrecondition, "etcdserver: lease already exists".to_owned())
    );
    assert_eq!(
        error(grant(8, 9_000_000_001).await.expect_err("too long")),
        (Code::OutOfRange, "etcdserver: too large lease TTL".to_owned())
    );
    grant(9, 9_000_000_000).await.expect("the longest");
    let missing = (Code::NotFound, "etcdserver: requested lease not found".to_owned());
    let revoke = member.lease().lease_revoke(pb::LeaseRevokeRequest { id: 99 }).await;
    assert_eq!(error(revoke.expect_err("no such lease")), missing);
    let put = pb::PutRequest { key: "a".into(), lease: 99, ..Default::default() };
    assert_eq!(error(member.kv().put(put).await.expect_err("no such lease")), missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_over_when_nobody_renews_it_and_not_while_somebody_does() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (leader, follower) = (&cluster.members[leader], &cluster.members[(leader + 1) % 3]);
    let granted = Instant::now();
    hold(follower, 1, 2, "e/left").await;
    hold(follower, 2, 4, "e/renewed").await;
    let mut renewals = Renewals::open(follower).await.expect("a stream");
    let renewing = async {
        while granted.elapsed() < Duration::from_secs(9) {
            let ttl = renewals.renew(2).await.expect("renewed");
            assert_eq!(ttl, 4, "renewed in time, it is never over");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let leaving = async {
        let gone = wait_until_gone(&cluster, "e/left").await;
        assert!(gone - granted >= Duration::from_secs(2), "over after {:?}", gone - granted);
        assert_eq!(Renewals::open(leader).await.expect("a stream").renew(1).await.expect("answered"), 0);
    };
    tokio::join!(renewing, leaving);
    assert!(follower.get("e/renewed").await.expect("a read").is_some());
    wait_until_gone(&cluster, "e/renewed").await;
}

/// The leases of the killed leader are counted by the next one: none is over before the last promise, all are after it.
#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_their_leader_and_are_over_under_the_next_one() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..2 {
        let victim = cluster.leader().await;
        let other = &cluster.members[(victim + 1) % 3];
        let (id, key) = (100 + round, format!("k/{round}"));
        hold(other, id, 4, &key).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut promised = Instant::now();
        let ttl = Renewals::open(other).await.expect("a stream").renew(id).await.expect("renewed");
        assert_eq!(ttl, 4);
        cluster.members[victim].kill();
        let other = &cluster.members[(victim + 1) % 3];
        if round == 1 {
            // A renewal that is asked for while there is no leader waits for the next one.
            promised = Instant::now();
            assert_eq!(Renewals::open(other).await.expect("a stream").renew(id).await.expect("renewed"), 4);
        }
        let gone = wait_until_gone(&cluster, &key).await;
        assert!(gone - promised >= Duration::from_secs(4), "over {:?} after the promise", gone - promised);
        cluster.restart(victim);
        cluster.eventually("it is back", || async { cluster.members[victim].status().await.is_some() }).await;
    }
    cluster.assert_hashes_agree().await;
}

/// Without checkpoints a lease that nobody renews begins anew under each leader, and leaders that follow each other quickly
/// keep it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn with_checkpoints_a_lease_goes_on_under_the_next_leader_with_what_it_had_left() {
    let flags = &["--feature-gates=LeaseCheckpoint=true", "--lease-checkpoint-interval=1s"];
    let mut cluster = Cluster::start_with(3, flags).await;
    let victim = cluster.leader().await;
    let member = &cluster.members[(victim + 1) % 3];
    let (left, renewed) = (hold(member, 0, 600, "c/left").await, hold(member, 0, 600, "c/renewed").await);
    let granted = Instant::now();
    let is_below = |id, ttl| async move { time_to_live(member, id, false).await.is_ok_and(|lease| lease.ttl < ttl) };
    cluster.eventually("five seconds have passed", || is_below(left, 596)).await;
    // A renewal after a checkpoint takes it back.
    assert_eq!(Renewals::open(member).await.expect("a stream").renew(renewed).await.expect("renewed"), 600);
    cluster.members[victim].kill();
    let other = &cluster.members[(victim + 1) % 3];
    cluster.eventually("another leader counts", || async { time_to_live(other, left, false).await.is_ok() }).await;
    let ttl = time_to_live(other, left, false).await.expect("described").ttl;
    let passed = i64::try_from(granted.elapsed().as_secs()).expect("seconds");
    // Its grace is a second, a checkpoint up to one old and rounded up.
    assert!((600 - passed - 1..=599).contains(&ttl), "{ttl} s left {passed} s after the grant");
    let ttl = time_to_live(other, renewed, false).await.expect("described").ttl;
    assert!(ttl > 590, "{ttl} s left of a lease that was renewed");
}

/// In etcd the gate LeaseCheckpointPersist decides whether what a checkpoint says survives a restart. Here it always does,
/// so the gate is taken and changes nothing; without checkpoints a lease begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_checkpoint_says_survives_a_restart_with_the_gate_for_it_and_without() {
    const ALONE: [&str; 2] = ["--feature-gates=LeaseCheckpoint=true", "--lease-checkpoint-interval=1s"];
    const PERSIST: [&str; 2] =
        ["--feature-gates=LeaseCheckpoint=true,LeaseCheckpointPersist=true", "--lease-checkpoint-interval=1s"];
    let after_restart = |flags: &'static [&'static str]| async move {
        let mut cluster = Cluster::start_with(1, flags).await;
        let id = hold(&cluster.members[0], 0, 600, "p/key").await;
        let member = &cluster.members[0];
        let passed = || async move { time_to_live(member, id, false).await.is_ok_and(|lease| lease.ttl < 593) };
        cluster.eventually("eight seconds have passed", passed).await;
        cluster.members[0].kill();
        cluster.restart(0);
        cluster.serves(0).await;
        let warned = cluster.members[0].log_text().contains("feature gate LeaseCheckpointPersist has no effect");
        (time_to_live(&cluster.members[0], id, false).await.expect("described").ttl, warned)
    };
    let (none, alone, persist) = tokio::join!(after_restart(&[]), after_restart(&ALONE), after_restart(&PERSIST));
    assert!(none.0 > 595 && !none.1, "{none:?}");
    assert!(alone.0 <= 595 && !alone.1, "{alone:?}");
    assert!(persist.0 <= 595 && persist.1, "{persist:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_a_restart_of_all_members() {
    let mut cluster = Cluster::start(3).await;
    let id = hold(&cluster.members[0], 0, 3, "r/key").await;
    let other = hold(&cluster.members[0], 0, 600, "r/long").await;
    cluster.members.iter_mut().for_each(Member::kill);
    let killed = Instant::now();
    for index in 0..3 {
        cluster.restart(index);
    }
    cluster.leader().await;
    let gone = wait_until_gone(&cluster, "r/key").await;
    assert!(gone - killed >= Duration::from_secs(3), "the next leader begins with the whole TTL");
    for member in &cluster.members {
        assert_eq!(time_to_live(member, id, true).await.expect("described").ttl, -1);
        let left = time_to_live(member, other, true).await.expect("described");
        assert_eq!((left.granted_ttl, &left.keys[..]), (600, &["r/long".into()][..]));
    }
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leases_on_one_stream_are_renewed_and_then_over_while_puts_go_on() {
    const LEASES: i64 = 2_000;
    let cluster = Cluster::start(3).await;
    let member = &cluster.members[(cluster.leader().await + 1) % 3];
    let grants = (1..=LEASES).map(|id| hold(member, id, 5, "m/0"));
    stream::iter(grants).buffer_unordered(100).collect::<Vec<_>>().await;
    let mut renewals = Renewals::open(member).await.expect("a stream");
    let requests = renewals.requests.clone();
    tokio::spawn(async move {
        for id in 1..=LEASES {
            let _ = requests.send(pb::LeaseKeepAliveRequest { id }).await;
        }
    });
    let mut renewed = 0;
    for _ in 0..LEASES {
        renewed += i64::from(renewals.answers.message().await.expect("open").expect("more").ttl == 5);
    }
    assert!(renewed > 0, "those that were granted last are not over");
    let count = || async {
        let list = member.lease().lease_leases(pb::LeaseLeasesRequest {}).await.expect("a list").into_inner();
        list.leases.len()
    };
    let deadline = Instant::now() + PATIENCE;
    while count().await > 0 {
        member.put("m/put", "goes on").await.expect("a write");
        assert!(Instant::now() < deadline, "{} leases are left\n{}", count().await, cluster.logs());
    }
    cluster.assert_hashes_agree().await;
}

/// More of them than are asked for at once, in batches that do not fill that up.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_full_of_leases_that_are_over_waits_for_their_end_on_a_follower_too() {
    let cluster = Cluster::start(3).await;
    let follower = &cluster.members[(cluster.leader().await + 1) % 3];
    let alarm = |action: AlarmAction| {
        let request = pb::AlarmRequest { action: action.into(), member_id: 7, alarm: pb::AlarmType::Corrupt.into() };
        async move { follower.maintenance().alarm(request).await.expect("an answer") }
    };
    let lease = hold(follower, 77, 2, "held").await;
    // Nothing changes data under this alarm, so no lease is revoked.
    alarm(AlarmAction::Activate).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut renewals = Renewals::open(follower).await.expect("a stream");
    renewals.requests.send(pb::LeaseKeepAliveRequest { id: lease }).await.expect("the stream is open");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = renewals.requests.clone();
    let asking = tokio::spawn(async move {
        for _ in 0..4096 {
            asked.send(pb::LeaseKeepAliveRequest { id: lease }).await.expect("the stream is open");
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    alarm(AlarmAction::Deactivate).await;
    for number in 0..=4096 {
        let answer = timeout(PATIENCE, renewals.answers.message()).await.expect("in time");
        let answer = answer.unwrap_or_else(|error| panic!("{number}: {error}")).expect("an answer");
        assert_eq!((answer.id, answer.ttl), (lease, 0), "{number}");
    }
    asking.await.expect("all are sent");
}

/// Deletes of keys that begin with `key`, as a member tells them.
async fn watch_deletes(member: &Member, key: &str) -> (mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>) {
    let create = pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: format!("{key}\u{7f}").into(),
        filters: vec![pb::watch_create_request::FilterType::Noput.into()],
        ..Default::default()
    };
    let (requests, receiver) = mpsc::channel(1);
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    requests.send(pb::WatchRequest { request_union: Some(create) }).await.expect("sent");
    let mut events = member.watch().watch(ReceiverStream::new(receiver)).await.expect("a watch").into_inner();
    assert!(events.message().await.expect("open").expect("an answer").created);
    (requests, events)
}

/// Puts until it is told that all is over, and answers how long the longest took.
async fn longest_put(member: &Member, mut over: tokio::sync::oneshot::Receiver<()>) -> Duration {
    let (mut kv, mut longest) = (member.kv(), Duration::ZERO);
    while over.try_recv().is_err() {
        let begun = Instant::now();
        kv.put(pb::PutRequest { key: "beside".into(), ..Default::default() }).await.expect("puts go on");
        longest = longest.max(begun.elapsed());
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_end_together_are_over_a_thousand_a_second_and_each_is_told_once() {
    const LEASES: i64 = 3_000;
    const TTL: i64 = 8;
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let [leader, member, other] = [0, 1, 2].map(|place| &cluster.members[(leader + place) % 3]);
    let (_open, mut events) = watch_deletes(other, "t/").await;
    let channel = member.channel();
    let grants = (1..=LEASES).map(|id| {
        let (mut leases, mut kv) = (LeaseClient::new(channel.clone()), KvClient::new(channel.clone()));
        async move {
            leases.lease_grant(pb::LeaseGrantRequest { ttl: 6_000, id }).await.expect("granted");
            let put = pb::PutRequest { key: format!("t/{id}").into(), lease: id, ..Default::default() };
            kv.put(put).await.expect("a write");
        }
    });
    stream::iter(grants).buffer_unordered(200).collect::<Vec<_>>().await;
    // A second lease of each key, and these end together: of the first ones nothing more is heard.
    let moves = (1..=LEASES).map(|id| {
        let (mut leases, mut kv) = (LeaseClient::new(channel.clone()), KvClient::new(channel.clone()));
        async move {
            leases.lease_grant(pb::LeaseGrantRequest { ttl: TTL, id: LEASES + id }).await.expect("granted");
            let put = pb::PutRequest { key: format!("t/{id}").into(), lease: LEASES + id, ..Default::default() };
            kv.put(put).await.expect("a write");
        }
    });
    let begun = Instant::now();
    stream::iter(moves).buffer_unordered(200).collect::<Vec<_>>().await;
    let spread = begun.elapsed();

    let (over, is_over) = tokio::sync::oneshot::channel();
    let reading = async {
        let (mut deleted, mut first, mut last) = (BTreeSet::new(), None, None);
        while !deleted.contains("t/end") {
            for event in events.message().await.expect("open").expect("an answer").events {
                let key = String::from_utf8(event.kv.expect("a pair").key.to_vec()).expect("text");
                assert!(deleted.insert(key.clone()), "{key} is told twice");
            }
            first = first.or((!deleted.is_empty()).then(Instant::now));
            if last.is_none() && deleted.len() == LEASES as usize {
                last = Some(Instant::now());
                other.put("t/end", "").await.expect("a write");
                let end = pb::DeleteRangeRequest { key: "t/end".into(), ..Default::default() };
                other.kv().delete_range(end).await.expect("a delete");
            }
        }
        over.send(()).expect("puts go on");
        last.expect("all of them") - first.expect("one of them")
    };
    let both = async { tokio::join!(reading, longest_put(leader, is_over)) };
    let (took, longest) = tokio::time::timeout(PATIENCE * 2, both).await.expect("all are over");
    let allowed = spread + Duration::from_secs(LEASES.unsigned_abs() / 1_000);
    assert!(took <= allowed, "{took:?} for what was granted within {spread:?}");
    // One that waited for the end of them all would take as long as that.
    assert!(longest < Duration::from_secs(1) || longest < took / 2, "a put took {longest:?} of {took:?}");
    let left = member.lease().lease_leases(pb::LeaseLeasesRequest {}).await.expect("a list").into_inner().leases;
    assert_eq!(left.len(), LEASES as usize, "the first ones");
    cluster.assert_hashes_agree().await;
}
