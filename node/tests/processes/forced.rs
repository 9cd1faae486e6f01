//! `--force-new-cluster`: the last member of a lost cluster goes on alone, with everything that it has.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::cluster_client::ClusterClient;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use balsa_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::Endpoint;

use crate::cluster::{Cluster, Member};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::healthy;
use crate::writer::{Fate, Writers};

const FORCE: &str = "--force-new-cluster";
const KEYS: usize = 50;
const REMOVED: Option<i32> = Some(71);
const WRONG_DISK: Option<i32> = Some(72);
const SIGABRT: Option<i32> = Some(6);

/// Members with keys that all of them have, all killed at once; and what the first one said of itself.
async fn lost(size: usize) -> (Cluster, pb::ResponseHeader) {
    let mut cluster = Cluster::start(size).await;
    for number in 0..KEYS {
        cluster.members[number % size].put(&format!("k/{number}"), "v").await.expect("a write");
    }
    for member in &cluster.members {
        member.get("absent").await.expect("it has them all");
    }
    let header = cluster.members[0].status().await.and_then(|status| status.header).expect("a header");
    cluster.members.iter_mut().for_each(Member::kill);
    (cluster, header)
}

/// Starts a member with the flag, or without.
fn start(cluster: &mut Cluster, index: usize, forced: bool) {
    cluster.members[index].flags = forced.then(|| FORCE.to_owned()).into_iter().collect();
    cluster.restart(index);
}

async fn members(of: &Member) -> Vec<pb::Member> {
    let listed = of.cluster().member_list(pb::MemberListRequest::default()).await;
    listed.expect("a list").into_inner().members
}

/// The only member, once it has said its name: a member serves a moment before that.
async fn named(cluster: &Cluster, index: usize) -> pb::Member {
    cluster.serves(index).await;
    let member = &cluster.members[index];
    let says = || async { members(member).await.iter().all(|one| one.name == member.name) };
    cluster.eventually("it has said its name", says).await;
    let mut listed = members(member).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    listed.remove(0)
}

/// The first member is the whole cluster that it was one of, and has every key.
async fn assert_alone(cluster: &Cluster, before: &pb::ResponseHeader) {
    cluster.serves(0).await;
    let (member, own) = (&cluster.members[0], before.member_id);
    let listed = members(member).await;
    let shown: Vec<_> = listed.iter().map(|one| (one.id, one.name.as_str(), one.is_learner)).collect();
    assert_eq!(shown, [(own, "m0", false)]);
    assert_eq!(listed[0].peer_ur_ls, [member.peer_url()]);
    let header = member.status().await.and_then(|status| status.header).expect("a header");
    assert_eq!((header.cluster_id, header.member_id), (before.cluster_id, own));
    for number in 0..KEYS {
        assert_eq!(member.get(&format!("k/{number}")).await.expect("a read").as_deref(), Some("v"));
    }
}

/// A further member, added as a learner, caught up and promoted; its index.
async fn joined(cluster: &mut Cluster, name: &str) -> usize {
    let index = cluster.add_unstarted(name);
    let request = pb::MemberAddRequest { peer_ur_ls: vec![cluster.members[index].peer_url()], is_learner: true };
    let leader = cluster.leader().await;
    let added = cluster.members[leader].cluster().member_add(request).await.expect("added").into_inner();
    let id = added.member.expect("a member").id;
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");
    let promotes = || async {
        let leader = &cluster.members[cluster.leader().await];
        leader.cluster().member_promote(pb::MemberPromoteRequest { id }).await.is_ok()
    };
    cluster.eventually("it is caught up and promoted", promotes).await;
    cluster.serves(index).await;
    index
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_member_goes_on_alone_and_new_ones_make_a_cluster_with_it() {
    let (mut cluster, before) = lost(3).await;
    start(&mut cluster, 0, true);
    assert_alone(&cluster, &before).await;
    let log = cluster.members[0].log_text();
    assert!(log.contains("forcing restart member") && log.contains("take the flag away"), "{log}");
    // What the member to go on with is chosen by (docs/recovery.md).
    assert!(log.contains(r#""last_term":"#), "{log}");
    // Again, and without the flag; killed, so that nothing is flushed on the way.
    for forced in [true, false] {
        cluster.members[0].kill();
        start(&mut cluster, 0, forced);
        assert_alone(&cluster, &before).await;
    }
    let (first, second) = (joined(&mut cluster, "n1").await, joined(&mut cluster, "n2").await);
    let ids: Vec<u64> = members(&cluster.members[0]).await.iter().map(|member| member.id).collect();
    assert_eq!(ids, [before.member_id, 4, 5], "no id comes again");
    // A member of old is none of it, whatever its disk says.
    start(&mut cluster, 1, false);
    assert_eq!(cluster.members[1].wait_for_exit().code(), REMOVED, "{}", cluster.logs());
    cluster.assert_hashes_agree().await;
    cluster.members[0].kill();
    cluster.serves(first).await;
    cluster.members[second].put("a", "1").await.expect("two of three");
}

/// Of three members one is gone, so that what is acknowledged is on the disks of the two others. When one of these is lost too,
/// the other one has it all, and does not know of the last ones yet that they are committed.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_and_not_known_to_be_is_kept() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (gone, last) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.members[gone].kill();
    let writers = Writers::start(&cluster, 8);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The leader last: it acknowledges what this one has as long as it can.
    cluster.members[last].kill();
    cluster.members[leader].kill();
    let history = writers.finish().await;
    assert!(history.count(Fate::Acknowledged) > 100, "{}", cluster.logs());
    start(&mut cluster, last, true);
    cluster.serves(last).await;
    history.check(&cluster).await;
}

/// A unit that keeps the flag, on a machine that fails now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_alone_loses_nothing_by_the_flag() {
    let mut cluster = Cluster::start(1).await;
    let writers = Writers::start(&cluster, 8);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.members[0].kill();
        start(&mut cluster, 0, true);
        cluster.serves(0).await;
    }
    let history = writers.finish().await;
    assert!(history.count(Fate::Acknowledged) > 100, "{}", cluster.logs());
    history.check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_goes_on_as_a_voter() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].put("a", "1").await.expect("a write");
    let index = cluster.add_unstarted("learner");
    let request = pb::MemberAddRequest { peer_ur_ls: vec![cluster.members[index].peer_url()], is_learner: true };
    cluster.members[0].cluster().member_add(request).await.expect("added");
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");
    let has_it = || async {
        let request = pb::RangeRequest { key: "a".into(), serializable: true, ..Default::default() };
        cluster.members[index].kv().range(request).await.is_ok_and(|answer| answer.into_inner().count == 1)
    };
    cluster.eventually("the learner has the key", has_it).await;
    cluster.members.iter_mut().for_each(Member::kill);
    start(&mut cluster, index, true);
    assert!(!named(&cluster, index).await.is_learner);
    assert_eq!(cluster.members[index].get("a").await.expect("a read").as_deref(), Some("1"));
}

/// Its own machine may be gone, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_goes_on_in_the_place_of_another_member() {
    let (mut cluster, before) = lost(3).await;
    cluster.members[1].data = cluster.members[0].data.clone();
    start(&mut cluster, 1, false);
    assert_eq!(cluster.members[1].wait_for_exit().code(), WRONG_DISK, "{}", cluster.logs());
    start(&mut cluster, 1, true);
    let shown = named(&cluster, 1).await;
    assert_eq!(shown.id, before.member_id);
    assert_eq!(shown.peer_ur_ls, [cluster.members[0].peer_url()], "as long as nobody says otherwise");
    let update = pb::MemberUpdateRequest { id: before.member_id, peer_ur_ls: vec![cluster.members[1].peer_url()] };
    cluster.members[1].cluster().member_update(update).await.expect("it has moved");
    joined(&mut cluster, "n1").await;
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_while_it_is_forced_is_the_old_one_or_the_new_one() {
    let (mut cluster, before) = lost(3).await;
    let (data, kept) = (cluster.members[0].data.clone(), cluster.directory.path().join("kept"));
    copy(&data, &kept);
    for point in ["force-before-write", "force-after-write", "force-after-flush"] {
        for forced in [true, false] {
            std::fs::remove_dir_all(&data).expect("removed");
            copy(&kept, &data);
            cluster.members[0].flags = vec![FORCE.to_owned()];
            cluster.restart_to_fail(0, &format!("{point}=return"));
            let status = cluster.members[0].wait_for_exit();
            assert_eq!(status.signal(), SIGABRT, "{point}: {status}\n{}", cluster.logs());
            start(&mut cluster, 0, forced);
            if point == "force-before-write" && !forced {
                let (member, port) = (&cluster.members[0], cluster.members[0].client_port);
                let answers = || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
                cluster.eventually("it runs", answers).await;
                assert_eq!(members(member).await.len(), 3, "nothing has changed");
            } else {
                assert_alone(&cluster, &before).await;
            }
            cluster.members[0].kill();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("cp runs").success());
}

/// Where the flag is a slip: the cluster is alive.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_has_a_leader_is_not_made_two() {
    let mut cluster = Cluster::start(3).await;
    for index in [cluster.leader().await, (cluster.leader().await + 1) % 3] {
        cluster.members[index].kill();
        start(&mut cluster, index, true);
        let status = cluster.members[index].wait_for_exit();
        assert_eq!(status.code(), Some(1), "{}", cluster.logs());
        assert!(cluster.members[index].log_text().contains("Nothing is changed"), "{}", cluster.logs());
        start(&mut cluster, index, false);
        cluster.serves(index).await;
        cluster.leader().await;
    }
    assert_eq!(members(&cluster.members[0]).await.len(), 3);
    cluster.assert_hashes_agree().await;
}

/// As where the unit starts before the network does: the first question is not answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_reached_a_moment_later_is_not_made_two() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let forced = (leader + 1) % 3;
    let others = [leader, (leader + 2) % 3];
    cluster.members[forced].kill();
    others.iter().for_each(|index| cluster.members[*index].signal("STOP"));
    let opened = |cluster: &Cluster| cluster.members[forced].log_text().matches("disk opened").count();
    let before = opened(&cluster);
    start(&mut cluster, forced, true);
    cluster.eventually("it asks", || async { opened(&cluster) > before }).await;
    // The question has a second, and there are two election time-outs until the next.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    others.iter().for_each(|index| cluster.members[*index].signal("CONT"));
    assert_eq!(cluster.members[forced].wait_for_exit().code(), Some(1), "{}", cluster.logs());
    start(&mut cluster, forced, false);
    cluster.serves(forced).await;
    assert_eq!(members(&cluster.members[forced]).await.len(), 3);
}

/// A member of old that still runs, without a leader, is no hindrance, and ends when it hears of its removal.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_member_that_still_runs_disturbs_nobody() {
    let mut cluster = Cluster::start(3).await;
    for index in [0, 1] {
        cluster.members[index].put("a", "1").await.expect("a write");
    }
    cluster.members[0].get("a").await.expect("it has it");
    cluster.members[2].kill();
    cluster.members[0].kill();
    let leaderless = || async { cluster.members[1].status().await.is_some_and(|status| status.leader == 0) };
    cluster.eventually("the other one has no leader", leaderless).await;
    start(&mut cluster, 0, true);
    cluster.serves(0).await;
    let term = async |cluster: &Cluster| cluster.members[0].status().await.expect("a status").raft_term;
    let before = term(&cluster).await;
    assert_eq!(cluster.members[1].wait_for_exit().code(), REMOVED, "{}", cluster.logs());
    assert_eq!(term(&cluster).await, before, "nobody was elected meanwhile");
    assert_eq!(members(&cluster.members[0]).await.len(), 1);
    cluster.members[0].put("a", "2").await.expect("a write");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_empty_disk_the_flag_means_nothing() {
    let mut cluster = Cluster::unstarted(3);
    cluster.flags = &[FORCE];
    cluster.found().await;
    assert_eq!(members(&cluster.members[0]).await.len(), 3, "they found a cluster together, as with etcd");
    assert!(cluster.members[0].log_text().contains("has no effect on an empty data directory"), "{}", cluster.logs());
}

/// What a client sees of the first of three members when `force` has ended all and started it with the flag; and when that
/// comes again after another one was added.
async fn what_is_left(port: u16, mut force: impl FnMut()) -> Vec<String> {
    healthy(port).await;
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
    let (mut kv, mut cluster) = (KvClient::new(channel.clone()), ClusterClient::new(channel.clone()));
    let mut maintenance = MaintenanceClient::new(channel);
    let put = |value: &'static str| pb::PutRequest { key: "a".into(), value: value.into(), ..Default::default() };
    let get = pb::RangeRequest { key: "a".into(), ..Default::default() };
    let before = kv.put(put("1")).await.expect("a write").into_inner().header.expect("a header");
    kv.range(get.clone()).await.expect("this member has it");
    let mut said = Vec::new();
    for round in 0..2 {
        // etcd throws away what it has not written down as committed, which it does within this time.
        tokio::time::sleep(Duration::from_secs(1)).await;
        force();
        healthy(port).await;
        let status = maintenance.status(pb::StatusRequest {}).await.expect("a status").into_inner();
        let header = status.header.expect("a header");
        let same = (header.cluster_id == before.cluster_id, header.member_id == status.leader);
        let listed = cluster.member_list(pb::MemberListRequest::default()).await.expect("a list").into_inner().members;
        let names: Vec<_> = listed.iter().map(|one| format!("{} {}", one.name, one.id == header.member_id)).collect();
        let value = kv.range(get.clone()).await.expect("a read").into_inner().kvs[0].value.clone();
        let revision = kv.put(put("2")).await.expect("a write").into_inner().header.expect("a header").revision;
        said.push(format!("{round}: {same:?} {names:?} {value:?} at {}", revision - before.revision));
        let request = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.9:9".to_owned()], is_learner: true };
        let added = cluster.member_add(request).await.expect("added").into_inner();
        said.push(format!("{} members", added.members.len()));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flag_leaves_what_etcds_leaves() {
    let mut ours = Cluster::start(3).await;
    let port = ours.members[0].client_port;
    let said = what_is_left(port, || {
        ours.members.iter_mut().for_each(Member::kill);
        start(&mut ours, 0, true);
    });
    let said = said.await;
    assert_eq!(said[1], "2 members", "{said:?}");
    for release in RELEASES {
        let Some(program): Option<PathBuf> = program(release) else { continue };
        let mut etcd = Etcd::run(&program, 3, &[]);
        let port = etcd.port;
        let etcds = what_is_left(port, || {
            (0..3).for_each(|index| etcd.kill(index));
            etcd.restart(&program, 0, &[FORCE]);
        });
        assert_eq!(etcds.await, said, "{release}");
    }
}
