//! Kills, stops and restarts under load.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::writer::{Fate, Writers};

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_leader_loses_no_acknowledged_write() {
    let mut cluster = Cluster::start(3).await;
    let writers = Writers::start(&cluster, 6);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let leader = cluster.leader().await;
        cluster.members[leader].kill();
        cluster.leader().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.restart(leader);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let history = writers.finish().await;
    assert!(history.count(Fate::Acknowledged) > 100, "{}", cluster.logs());
    history.check(&cluster).await;
    cluster.assert_hashes_agree().await;
    // An election takes one to two election time-outs; with detection and the first write it stays below this.
    assert!(history.longest_pause < Duration::from_secs(10), "writes paused for {:?}", history.longest_pause);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_killed_at_once_come_back_with_everything_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    let writers = Writers::start(&cluster, 4);
    tokio::time::sleep(Duration::from_millis(800)).await;
    cluster.members.iter_mut().for_each(crate::cluster::Member::kill);
    let history = writers.finish().await;
    for index in 0..3 {
        cluster.restart(index);
    }
    assert!(history.count(Fate::Acknowledged) > 20);
    history.check(&cluster).await;
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_leader_hands_over_and_ends_by_the_signal() {
    use std::os::unix::process::ExitStatusExt;

    let mut cluster = Cluster::start(3).await;
    let writers = Writers::start(&cluster, 4);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let leader = cluster.leader().await;
    cluster.members[leader].signal("TERM");
    let status = cluster.members[leader].wait_for_exit();
    assert_eq!(status.signal(), Some(15), "etcd dies of the signal it was sent");
    cluster.leader().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let history = writers.finish().await;
    history.check(&cluster).await;
    assert!(history.longest_pause < Duration::from_secs(1), "writes paused for {:?}", history.longest_pause);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stops_answers_every_call_that_it_took_up() {
    let cluster = Cluster::start(3).await;
    let writers = Writers::start(&cluster, 24);
    each_stops_and_nobody_is_left_in_doubt(cluster, writers).await;
}

/// Most of them come to a port that is about to close, or has not begun with them.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stops_answers_those_that_are_connecting() {
    let cluster = Cluster::start(3).await;
    let writers = Writers::start_connecting(&cluster, 24);
    each_stops_and_nobody_is_left_in_doubt(cluster, writers).await;
}

async fn each_stops_and_nobody_is_left_in_doubt(mut cluster: Cluster, writers: Writers) {
    for index in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.members[index].signal("TERM");
        cluster.members[index].wait_for_exit();
        cluster.restart(index);
        cluster.serves(index).await;
    }
    let history = writers.finish().await;
    history.check(&cluster).await;
    assert_eq!(history.unknown_errors, Vec::<String>::new(), "{}", cluster.logs());
}
