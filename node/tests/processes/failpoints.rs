//! A process that dies between any two steps of its work, and comes back.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use balsa_proto::etcdserverpb as pb;

use crate::cluster::{Cluster, Member, free_port};
use crate::gateway::http::Request;
use crate::writer::Writers;

const SIGABRT: Option<i32> = Some(6);
const DISK_FAILED: Option<i32> = Some(74);
const FAULT: Option<i32> = Some(75);

/// Waits for a member to die at a failpoint.
fn dies_at(cluster: &mut Cluster, index: usize, point: &str) {
    let status = cluster.members[index].wait_for_exit();
    assert_eq!(status.signal(), SIGABRT, "{point}: {status}\n{}", cluster.logs());
    assert!(cluster.members[index].log_text().contains(&format!("failpoint {point}")), "{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_around_a_write_or_an_apply_comes_back_with_everything() {
    let mut cluster = Cluster::start(3).await;
    let writers = Writers::start(&cluster, 4);
    let points =
        ["raft-before-persist", "raft-after-persist", "raft-after-batch", "apply-before-write", "apply-after-write"];
    for (turn, point) in points.into_iter().enumerate() {
        // The leader and a follower by turns.
        let index = (cluster.leader().await + turn % 2) % 3;
        cluster.members[index].kill();
        cluster.restart_to_fail(index, &format!("{point}=25*off->return"));
        dies_at(&mut cluster, index, point);
        cluster.restart(index);
        cluster.serves(index).await;
    }
    let history = writers.finish().await;
    history.check(&cluster).await;
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_around_a_flush_comes_back_with_everything() {
    let mut cluster = Cluster::start(3).await;
    for point in ["flush-before", "flush-after"] {
        let index = (cluster.leader().await + 1) % 3;
        cluster.members[index].kill();
        cluster.restart_to_fail(index, &format!("{point}=return"));
        cluster.serves(index).await;
        cluster.members[index].put(point, "v").await.expect("a write");
        // A clean stop ends with a flush.
        cluster.members[index].signal("TERM");
        dies_at(&mut cluster, index, point);
        cluster.restart(index);
        let (all, member) = (&cluster, &cluster.members[index]);
        all.eventually("it is back", || async { member.get(point).await.is_ok_and(|value| value.is_some()) }).await;
    }
    cluster.assert_hashes_agree().await;
}

async fn add_learner(cluster: &Cluster, url: String) -> u64 {
    let leader = &cluster.members[cluster.leader().await];
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
    leader.cluster().member_add(request).await.expect("added").into_inner().member.expect("a member").id
}

async fn remove(cluster: &Cluster, id: u64) {
    let leader = &cluster.members[cluster.leader().await];
    leader.cluster().member_remove(pb::MemberRemoveRequest { id }).await.expect("removed");
}

/// Syncs of the log so far.
async fn syncs(member: &Member) -> u64 {
    let answer = Request::get("/metrics").send(member.client_port).await;
    let text = String::from_utf8(answer.body).expect("text");
    let count = text.lines().find_map(|line| line.strip_prefix("etcd_disk_wal_fsync_duration_seconds_count "));
    count.expect("it is counted").parse().expect("a number")
}

/// What arrives while the disk is busy is one batch with one sync; with a sync each, 100 would take 20 s of this disk.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_come_together_share_a_sync() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].kill();
    cluster.restart_to_fail(0, "raft-before-persist=sleep(200)");
    cluster.serves(0).await;
    let member = &cluster.members[0];
    let before = syncs(member).await;
    let client = member.kv();
    let puts = (0..100).map(|number| {
        let mut client = client.clone();
        async move { client.put(pb::PutRequest { key: format!("{number}").into(), ..Default::default() }).await }
    });
    let revisions = futures::future::try_join_all(puts).await.expect("all are taken");
    let revisions: BTreeSet<i64> = revisions.into_iter().map(|put| put.into_inner().header.unwrap().revision).collect();
    assert_eq!(revisions.len(), 100, "each is a change of its own");
    let took = syncs(member).await - before;
    assert!((1..=10).contains(&took), "{took} syncs");
}

/// Raft takes one change at a time, and hears of one that is applied a little later than the data does.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_the_answer_to_a_membership_change_may_ask_for_the_next() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].kill();
    cluster.restart_to_fail(0, "change-before-raft=sleep(200)");
    cluster.serves(0).await;
    for _ in 0..3 {
        let id = add_learner(&cluster, "http://127.0.0.1:1".to_owned()).await;
        remove(&cluster, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_around_a_membership_change_has_it_afterwards() {
    for point in ["change-before-raft", "change-after-raft"] {
        let mut cluster = Cluster::start(3).await;
        let index = (cluster.leader().await + 1) % 3;
        cluster.members[index].kill();
        cluster.restart_to_fail(index, &format!("{point}=return"));
        cluster.serves(index).await;
        let id = add_learner(&cluster, "http://127.0.0.1:1".to_owned()).await;
        dies_at(&mut cluster, index, point);
        cluster.restart(index);
        cluster.serves(index).await;
        let request = pb::MemberListRequest { linearizable: true };
        let listed = cluster.members[index].cluster().member_list(request).await.expect("a list").into_inner();
        assert!(listed.members.iter().any(|member| member.id == id), "{point}: {listed:?}");
        remove(&cluster, id).await;
        // Raft runs with the right configuration: a voter can be lost.
        let lost = (index + 1) % 3;
        cluster.members[lost].kill();
        cluster.members[cluster.leader().await].put("a", "1").await.expect("two of three");
        cluster.assert_hashes_agree().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_dies_at_any_stage_of_its_snapshot_catches_up_in_the_end() {
    let mut cluster = Cluster::start(1).await;
    for number in 0..50 {
        cluster.members[0].put(&format!("k/{number}"), "v").await.expect("a write");
    }
    let index = cluster.add_unstarted("joiner");
    let id = add_learner(&cluster, cluster.members[index].peer_url()).await;
    let all = cluster.initial_cluster();
    for point in ["snapshot-received", "snapshot-before-switch", "snapshot-after-switch"] {
        cluster.run_with(index, &all, "existing", &[("BALSA_FAILPOINTS", &format!("{point}=return"))]);
        dies_at(&mut cluster, index, point);
    }
    // The log names the snapshot: it is the member's from here on, and the last stage needs another member.
    cluster.run(index, &all, "existing");
    promoted(&cluster, id).await;
    let index = cluster.add_unstarted("second");
    let id = add_learner(&cluster, cluster.members[index].peer_url()).await;
    let all = cluster.initial_cluster();
    cluster.run_with(index, &all, "existing", &[("BALSA_FAILPOINTS", "snapshot-opened=return")]);
    dies_at(&mut cluster, index, "snapshot-opened");
    cluster.run(index, &all, "existing");
    promoted(&cluster, id).await;
    cluster.serves(index).await;
    assert_eq!(cluster.members[index].get("k/7").await.expect("a read").as_deref(), Some("v"));
    cluster.assert_hashes_agree().await;
}

async fn promoted(cluster: &Cluster, id: u64) {
    let promotes = || async {
        let leader = &cluster.members[cluster.leader().await];
        leader.cluster().member_promote(pb::MemberPromoteRequest { id }).await.is_ok()
    };
    cluster.eventually("the learner is caught up and promoted", promotes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_with_a_checkpoint_made_leaves_a_joiner_to_the_next() {
    let mut cluster = Cluster::start(3).await;
    cluster.members[0].put("a", "1").await.expect("a write");
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    cluster.restart_to_fail(leader, "checkpoint-made=return");
    let member = &cluster.members[leader];
    cluster.eventually("it is back", || async { member.get("a").await.is_ok() }).await;
    cluster.lead(leader).await;
    let index = cluster.add_unstarted("joiner");
    let joiner = add_learner(&cluster, cluster.members[index].peer_url()).await;
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");
    dies_at(&mut cluster, leader, "checkpoint-made");
    promoted(&cluster, joiner).await;
    cluster.restart(leader);
    cluster.serves(leader).await;
    cluster.serves(index).await;
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_that_dies_around_its_marker_founds_once() {
    for point in ["found-before-marker", "found-after-marker"] {
        let mut cluster = Cluster::unstarted(1);
        cluster.restart_to_fail(0, &format!("{point}=return"));
        dies_at(&mut cluster, 0, point);
        cluster.found().await;
        cluster.members[0].put("a", "1").await.expect("a write");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_disk_refuses_ends_the_member() {
    let mut cluster = Cluster::start(3).await;
    let writers = Writers::start(&cluster, 3);
    for point in ["raft-before-persist", "apply-before-write"] {
        let index = cluster.leader().await;
        cluster.members[index].kill();
        cluster.restart_to_fail(index, &format!("{point}=15*off->return(No space left on device)"));
        let status = cluster.members[index].wait_for_exit();
        assert_eq!(status.code(), DISK_FAILED, "{}", cluster.logs());
        assert!(cluster.members[index].log_text().contains("No space left on device"), "{}", cluster.logs());
        cluster.restart(index);
        cluster.serves(index).await;
    }
    let history = writers.finish().await;
    history.check(&cluster).await;
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_one_of_its_threads_ends() {
    let mut cluster = Cluster::start(3).await;
    for point in ["raft-before-persist", "apply-before-write", "flush-before"] {
        let index = cluster.leader().await;
        cluster.members[index].kill();
        cluster.restart_to_fail(index, &format!("{point}=panic"));
        if point == "flush-before" {
            cluster.serves(index).await;
            cluster.members[index].signal("TERM");
            cluster.members[index].wait_for_exit();
        } else {
            assert_eq!(cluster.members[index].wait_for_exit().code(), FAULT, "{point}\n{}", cluster.logs());
        }
        assert!(cluster.members[index].log_text().contains("of this member panicked"), "{}", cluster.logs());
        cluster.restart(index);
        cluster.serves(index).await;
    }
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failpoint_that_does_not_exist_is_refused() {
    let mut cluster = Cluster::unstarted(1);
    cluster.restart_to_fail(0, "nowhere=return");
    assert_eq!(cluster.members[0].wait_for_exit().code(), Some(2), "{}", cluster.logs());
    assert!(cluster.members[0].log_text().contains("there is no failpoint"), "{}", cluster.logs());
}

/// etcd's own test drivers speak to `GOFAIL_HTTP`: what they set is answered first, and holds from then on.
#[tokio::test(flavor = "multi_thread")]
async fn etcds_failpoints_are_set_while_a_member_runs() {
    let mut cluster = Cluster::start(3).await;
    let index = (cluster.leader().await + 1) % 3;
    cluster.members[index].kill();
    let (port, all) = (free_port(), cluster.initial_cluster());
    let address = format!("127.0.0.1:{port}");
    let variables = [
        ("GOFAIL_HTTP", address.as_str()),
        ("GOFAIL_FAILPOINTS", "afterCommit=sleep(1);compactBeforeCommitBatch=panic"),
    ];
    cluster.run_with(index, &all, "new", &variables);
    cluster.serves(index).await;
    let ask = async |method: &str, path: &str, body: &str| {
        let request = Request { method: method.into(), ..Request::post(path, body) };
        let answer = request.send(port).await;
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    };
    let (status, list) = ask("GET", "/", "").await;
    assert!(status == 200 && list.lines().any(|line| line == "afterCommit=sleep(1)"), "{list}");
    assert!(list.lines().any(|line| line == "raftBeforeSave=") && !list.contains("compact"), "{list}");
    assert_eq!(ask("GET", "/afterCommit", "").await, (200, "sleep(1)\n".into()));
    assert_eq!(ask("DELETE", "/afterCommit", "").await.0, 204);
    assert_eq!(ask("DELETE", "/afterCommit", "").await.0, 400);
    assert_eq!(ask("GET", "/afterCommit", "").await.0, 404);
    assert_eq!(ask("PUT", "/nowhere", "panic").await.0, 400);
    assert_eq!(ask("PUT", "/raftAfterSave", "explode").await.0, 400);
    let writers = Writers::start(&cluster, 2);
    assert_eq!(ask("PUT", "/raftAfterSave", "panic").await, (204, String::new()));
    let status = cluster.members[index].wait_for_exit();
    assert_eq!(status.signal(), SIGABRT, "{status}\n{}", cluster.logs());
    cluster.restart(index);
    cluster.serves(index).await;
    writers.finish().await.check(&cluster).await;
}
