//! Disks that fail or do not hold what was written: the member ends with its code and says where, serves nothing that is
//! wrong, and the others go on.

use std::path::{Path, PathBuf};

use balsa_proto::etcdserverpb as pb;

use crate::cluster::{Cluster, PATIENCE};
use crate::membership::add_learner;
use crate::writer::Writers;

const CORRUPT: Option<i32> = Some(73);
const DISK_FAILED: Option<i32> = Some(74);

/// A cluster of three with some keys, a member of it that does not lead and was killed, and one that runs.
async fn with_a_dead_follower() -> (Cluster, usize, usize) {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for number in 0..40 {
        cluster.members[leader].put(&format!("k/{number}"), "v").await.expect("a write");
    }
    let victim = (leader + 1) % 3;
    cluster.members[victim].get("k/39").await.expect("the follower has everything");
    cluster.members[victim].kill();
    (cluster, victim, leader)
}

/// The files of a directory with an extension, the newest last.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(directory).expect("a directory").map(|file| file.expect("a file").path());
    let mut files: Vec<PathBuf> = listed.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

fn cut_wal(cluster: &Cluster, member: usize, bytes: u64) {
    let wal = files(&cluster.members[member].data.join("log"), "log").pop().expect("a WAL");
    let file = std::fs::File::options().write(true).open(&wal).expect("opens");
    let length = file.metadata().expect("a size").len();
    assert!(length > bytes, "the WAL has {length} bytes");
    file.set_len(length - bytes).expect("cut");
}

/// The member ends as corrupt and says `what`; the two others go on.
async fn ends_as_corrupt(cluster: &mut Cluster, victim: usize, what: &str) {
    let status = cluster.members[victim].wait_for_exit();
    assert_eq!(status.code(), CORRUPT, "{}", cluster.logs());
    assert!(cluster.members[victim].log_text().contains(what), "it says {what:?}\n{}", cluster.logs());
    let leader = cluster.leader().await;
    cluster.members[leader].put("after", "v").await.expect("the others go on");
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_synced_tail_ends_the_member() {
    let (mut cluster, victim, _) = with_a_dead_follower().await;
    cut_wal(&cluster, victim, 700);
    cluster.restart(victim);
    ends_as_corrupt(&mut cluster, victim, "it must not vote again").await;
}

/// A power loss may take the newest number of synced writes along with the writes. Then the leader knows better.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_tells_a_member_that_its_log_lost_its_tail() {
    let (mut cluster, victim, _) = with_a_dead_follower().await;
    cut_wal(&cluster, victim, 700);
    std::fs::remove_file(cluster.members[victim].data.join("log/SYNCED")).expect("removed");
    cluster.restart(victim);
    ends_as_corrupt(&mut cluster, victim, "was acknowledged to the leader here").await;
}

/// It would have forgotten its vote, and a disk without a log looks like that of a member which never started.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_log_is_gone_does_not_begin_anew_and_keeps_its_key_space() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.members[leader].put("k", "v").await.expect("a write");
    // This one gets its key space by a snapshot.
    let joiner = cluster.add_unstarted("joiner");
    add_learner(&cluster, cluster.members[joiner].peer_url()).await;
    let all = cluster.initial_cluster();
    cluster.run(joiner, &all, "existing");
    let has_started = || async {
        let list = cluster.members[leader].cluster().member_list(pb::MemberListRequest::default()).await;
        list.is_ok_and(|list| list.into_inner().members.iter().any(|member| member.name == "joiner"))
    };
    cluster.eventually("the joiner has started", has_started).await;
    for member in [joiner, (leader + 1) % 3] {
        cluster.members[member].kill();
        let data = cluster.members[member].data.clone();
        std::fs::remove_dir_all(data.join("log")).expect("removed");
        cluster.restart(member);
        ends_as_corrupt(&mut cluster, member, "the log is lost").await;
        let mut kept = std::fs::read_dir(data.join("kv")).expect("key spaces");
        assert!(kept.next().is_some(), "what was applied is kept");
    }
    let data = cluster.members[joiner].data.clone();
    for directory in ["log", "kv"] {
        std::fs::remove_dir_all(data.join(directory)).expect("removed");
    }
    cluster.restart(joiner);
    assert_eq!(cluster.members[joiner].wait_for_exit().code(), Some(70), "DiskLost\n{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_ends_the_member() {
    let (mut cluster, victim, _) = with_a_dead_follower().await;
    let wal = files(&cluster.members[victim].data.join("log"), "log").pop().expect("a WAL");
    let mut bytes = std::fs::read(&wal).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&wal, bytes).expect("damaged");
    cluster.restart(victim);
    let directory = cluster.members[victim].data.join("log").display().to_string();
    ends_as_corrupt(&mut cluster, victim, &directory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_manifest_ends_the_member() {
    let (mut cluster, victim, _) = with_a_dead_follower().await;
    std::fs::write(cluster.members[victim].data.join("log/CURRENT"), "MANIFEST-999999\n").expect("damaged");
    cluster.restart(victim);
    let status = cluster.members[victim].wait_for_exit();
    assert!([CORRUPT, DISK_FAILED].contains(&status.code()), "{status}\n{}", cluster.logs());
    cluster.members[cluster.leader().await].put("after", "v").await.expect("the others go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_another_member_is_refused() {
    let (mut cluster, victim, leader) = with_a_dead_follower().await;
    let third = 3 - victim - leader;
    cluster.members[third].kill();
    let (one, other) = (cluster.members[victim].data.clone(), cluster.members[third].data.clone());
    let aside = one.with_extension("aside");
    for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
        std::fs::rename(from, to).expect("swapped");
    }
    for index in [victim, third] {
        cluster.restart(index);
        assert_eq!(cluster.members[index].wait_for_exit().code(), Some(72), "WrongDisk\n{}", cluster.logs());
        assert!(cluster.members[index].log_text().contains("is the disk of member"), "{}", cluster.logs());
    }
    for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
        std::fs::rename(from, to).expect("swapped back");
    }
    for index in [victim, third] {
        cluster.restart(index);
        cluster.serves(index).await;
    }
    cluster.assert_hashes_agree().await;
}

/// One byte of every block of the data in the tables of the key space; what stands at their ends is left whole, so that
/// they open.
fn damage_tables(data: &Path) {
    let key_space = std::fs::read_dir(data.join("kv")).expect("key spaces").next().expect("one").expect("one").path();
    let tables = files(&key_space, "sst");
    assert!(!tables.is_empty(), "the key space is on the disk");
    for table in tables {
        let mut bytes = std::fs::read(&table).expect("reads");
        for at in (100..bytes.len().saturating_sub(6_000)).step_by(2_000) {
            bytes[at] ^= 0x55;
        }
        std::fs::write(&table, bytes).expect("damaged");
    }
}

fn value(number: usize) -> String {
    // Not to be compressed away: every key has blocks of its own.
    (0..2_000usize).map(|at| char::from(b'a' + ((number * 7919 + at * at * 31 + at) % 23) as u8)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_table_of_a_running_member_is_noticed_and_never_served() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for number in 0..100 {
        cluster.members[leader].put(&format!("k/{number:03}"), &value(number)).await.expect("a write");
    }
    let victim = (leader + 1) % 3;
    // A clean stop leaves everything in tables.
    cluster.members[victim].signal("TERM");
    cluster.members[victim].wait_for_exit();
    cluster.restart(victim);
    cluster.serves(victim).await;
    let member = &cluster.members[victim];
    damage_tables(&member.data);
    let mut wrong = Vec::new();
    for number in 0..100 {
        let request =
            pb::RangeRequest { key: format!("k/{number:03}").into(), serializable: true, ..Default::default() };
        let answer = tokio::time::timeout(PATIENCE, member.kv().range(request)).await.expect("an answer");
        // A failure is as good as the right value.
        let Ok(answer) = answer else { continue };
        let read = answer.into_inner().kvs.first().map(|kv| kv.value.to_vec());
        if read.as_deref() != Some(value(number).as_bytes()) {
            wrong.push(number);
        }
    }
    assert!(wrong.is_empty(), "served other bytes than were written: {wrong:?}\n{}", cluster.logs());
    ends_as_corrupt(&mut cluster, victim, "block checksum mismatch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_member_and_costs_nothing_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    let victim = (cluster.leader().await + 1) % 3;
    cluster.members[victim].kill();
    cluster.restart_limited(victim, 2 << 20);
    let writers = Writers::start(&cluster, 3);
    let large = "x".repeat(100_000);
    for number in 0..40 {
        let leader = cluster.leader().await;
        let _ = cluster.members[leader].put(&format!("large/{number}"), &large).await;
    }
    let status = cluster.members[victim].wait_for_exit();
    assert_eq!(status.code(), DISK_FAILED, "{}", cluster.logs());
    assert!(cluster.members[victim].log_text().contains("write to log"), "{}", cluster.logs());
    cluster.restart(victim);
    cluster.serves(victim).await;
    let history = writers.finish().await;
    history.check(&cluster).await;
    cluster.assert_hashes_agree().await;
}

/// The leader's syncs take long: writes are slow, and none is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_slows_writes_and_loses_none() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    cluster.restart_to_fail(leader, "raft-before-persist=sleep(150)");
    let next = cluster.leader().await;
    cluster.members[next].put("a", "1").await.expect("a write");
    let all = &cluster;
    let slow = &cluster.members[leader];
    all.eventually("the slow one takes part", || async { slow.get("a").await.is_ok_and(|value| value.is_some()) })
        .await;
    cluster.lead(leader).await;
    let writers = Writers::start(&cluster, 4);
    for number in 0..10 {
        cluster.members[number % 3].put(&format!("slow/{number}"), "v").await.expect("a write");
    }
    let history = writers.finish().await;
    history.check(&cluster).await;
    cluster.assert_hashes_agree().await;
}
