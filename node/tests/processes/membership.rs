//! Members come and go through etcd's own calls.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::cluster_client::ClusterClient;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use balsa_proto::node::ListRequest;
use balsa_proto::node::node_client::NodeClient;
use tonic::Code;

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::{Request, healthy};
use crate::proxy::{Cuts, Network};
use crate::unread::metric;

/// Starts of a removed member, of which in one at least the others must be left in peace.
const STARTS: usize = 5;

pub(crate) async fn add_learner(cluster: &Cluster, url: String) -> u64 {
    let leader = &cluster.members[cluster.leader().await];
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
    leader.cluster().member_add(request).await.expect("added").into_inner().member.expect("a member").id
}

#[tokio::test(flavor = "multi_thread")]
async fn m3_a_learner_catches_up_is_promoted_and_once_removed_never_runs_again_on_its_disk() {
    let mut cluster = Cluster::start(3).await;
    for number in 0..200 {
        cluster.members[number % 3].put(&format!("k/{number}"), "v").await.expect("a write");
    }
    let index = cluster.add_unstarted("joiner");
    let id = add_learner(&cluster, cluster.members[index].peer_url()).await;
    assert_eq!(id, 4, "ids are counted, never reused");
    for (url, reason) in [
        (cluster.members[index].peer_url(), "etcdserver: Peer URLs already exists"),
        ("http://127.0.0.9:1".to_owned(), "etcdserver: too many learner members in cluster"),
    ] {
        let another = pb::MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
        let refused = cluster.members[0].cluster().member_add(another).await.expect_err("one learner at a time");
        assert_eq!(refused.message(), reason);
    }
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");

    let promote = pb::MemberPromoteRequest { id };
    cluster
        .eventually("the learner is caught up and promoted", || async {
            let leader = &cluster.members[cluster.leader().await];
            leader.cluster().member_promote(promote).await.is_ok()
        })
        .await;
    cluster.serves(index).await;
    assert_eq!(cluster.members[index].get("k/7").await.expect("a read").as_deref(), Some("v"));
    cluster.assert_hashes_agree().await;

    let other = (cluster.leader().await + 1) % 3;
    let removed = cluster.members[other].cluster().member_remove(pb::MemberRemoveRequest { id }).await;
    assert_eq!(removed.expect("removed").into_inner().members.len(), 3);
    let status = cluster.members[index].wait_for_exit();
    assert_eq!(status.code(), Some(71), "MemberRemoved\n{}", cluster.logs());
    let mut heard = Vec::new();
    for _ in 0..STARTS {
        let (before, told) = (heard_by_voters(&cluster).await, cluster.members[index].log_text().len());
        cluster.run(index, &all, "existing");
        let status = cluster.members[index].wait_for_exit();
        assert_eq!(status.code(), Some(71), "its disk is refused for good\n{}", cluster.logs());
        let log = cluster.members[index].log_text().split_off(told);
        assert!(!log.contains("ready to serve client requests"), "{log}");
        let after = heard_by_voters(&cluster).await;
        // The others may elect for reasons of their own, or find late what its first run sent, but not each time.
        if before == after {
            return;
        }
        heard.push((before, after));
    }
    panic!("each of its starts is heard: {heard:?}\n{}", cluster.logs());
}

/// Of each of the three that are left, its term and the frames that it dropped as a removed member's: votes, appends and
/// reads alike are frames. Each has answered a read, so that it knows of the removal.
async fn heard_by_voters(cluster: &Cluster) -> Vec<[f64; 2]> {
    let mut heard = Vec::new();
    for index in 0..3 {
        cluster.serves(index).await;
        let member = &cluster.members[index];
        heard.push([metric(member, "balsa_raft_term").await, metric(member, "balsa_peer_foreign_frames_total").await]);
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_lacks_a_tenth_of_a_young_log_is_not_promoted_as_in_etcd() {
    let mut cluster = Cluster::start(1).await;
    let index = cluster.add_unstarted("joiner");
    let id = add_learner(&cluster, cluster.members[index].peer_url()).await;
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");
    let url = cluster.members[0].peer_url();
    let follows = || async {
        let mut node = NodeClient::connect(url.clone()).await.expect("the peer port answers");
        let listed = node.list(ListRequest::default()).await.expect("a list").into_inner();
        listed.progress.iter().any(|peer| peer.id == id && peer.match_index > 0)
    };
    cluster.eventually("the learner follows", follows).await;
    cluster.members[index].kill();
    for number in 0..100 {
        cluster.members[0].put(&format!("k/{number}"), "v").await.expect("a write");
    }
    let promote =
        async |cluster: &Cluster| cluster.members[0].cluster().member_promote(pb::MemberPromoteRequest { id }).await;
    let refused = promote(&cluster).await.expect_err("it has a small part of the log");
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, BEHIND));
    cluster.restart(index);
    cluster.eventually("it has the rest and is promoted", || async { promote(&cluster).await.is_ok() }).await;
}

/// What is said of a member that lacks a tenth of the log.
const BEHIND: &str = "etcdserver: can only promote a learner member which is in sync with leader";

/// What a member's promotion is answered by its leader, beside etcd: whether it is behind is looked at before whether it is a
/// learner.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_reasons_against_a_promotion_etcds_is_said() {
    let mut cluster = Cluster::start(3).await;
    let ports: Vec<u16> = cluster.members.iter().map(|member| member.client_port).collect();
    let ours = refused_promotions(&ports, |index| cluster.members[index].kill()).await;
    assert_eq!(ours, ["etcdserver: can only promote a learner member", BEHIND, "etcdserver: member not found"]);
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let mut etcd = Etcd::run(&program, 3, &[]);
        let ports = etcd.ports.clone();
        for port in &ports {
            healthy(*port).await;
        }
        assert_eq!(refused_promotions(&ports, |index| etcd.kill(index)).await, ours, "{release}");
    }
}

/// The texts for a voter that is there, for one that `kill` took away long ago, and for nobody.
async fn refused_promotions(ports: &[u16], mut kill: impl FnMut(usize)) -> [String; 3] {
    let channel =
        |port: u16| tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL");
    let status = async |port: u16| {
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel(port).connect_lazy());
        maintenance.status(pb::StatusRequest {}).await.expect("a status").into_inner()
    };
    let leader = status(ports[0]).await.leader;
    let mut ids = Vec::new();
    for port in ports {
        ids.push(status(*port).await.header.expect("a header").member_id);
    }
    let place = ids.iter().position(|id| *id == leader).expect("the leader is one of them");
    let (there, away) = ((place + 1) % ids.len(), (place + 2) % ids.len());
    let mut asked = ClusterClient::new(channel(ports[place]).connect_lazy());
    let until = std::time::Instant::now() + PATIENCE;
    // Asks until something else is said than what passes.
    let mut promote = async |id, passing: &str| loop {
        let promoted = asked.member_promote(pb::MemberPromoteRequest { id }).await;
        let said = promoted.expect_err("no learner").message().to_owned();
        if said != passing || std::time::Instant::now() > until {
            return said;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let write = async |count: usize| {
        for number in 0..count {
            let body = format!(r#"{{"key":"YQ==","value":"{number:04}"}}"#);
            assert_eq!(Request::post("/v3/kv/put", body).send(ports[place]).await.status, 200);
        }
    };
    // Of a log of a few entries the one that is on its way is a tenth, and who lacks it is behind.
    write(100).await;
    // A write is answered when a quorum has it, and the third member has it when its disk is done.
    let of_voter = promote(ids[there], BEHIND).await;
    kill(away);
    write(400).await;
    let of_absent = promote(ids[away], &of_voter).await;
    [of_voter, of_absent, promote(77, "").await]
}

/// etcd asks whom it is before what is wanted of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_says_that_it_is_one_whatever_the_request() {
    let mut cluster = Cluster::start(1).await;
    let index = cluster.add_unstarted("joiner");
    add_learner(&cluster, cluster.members[index].peer_url()).await;
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");
    let asked = || async {
        let request = pb::MemberAddRequest { peer_ur_ls: vec!["no URL".to_owned()], is_learner: false };
        let refused = cluster.members[index].cluster().member_add(request).await.expect_err("it is a learner");
        refused.message() == "etcdserver: rpc not supported for learner"
    };
    cluster.eventually("the learner is up and says so", asked).await;
    let request = pb::MemberAddRequest { peer_ur_ls: vec!["no URL".to_owned()], is_learner: false };
    let refused = cluster.members[0].cluster().member_add(request).await.expect_err("no URL");
    assert_eq!(refused.message(), "etcdserver: given member URLs are invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_member_whose_disk_was_emptied_refuses_to_run() {
    let mut cluster = Cluster::start(3).await;
    cluster.members[0].put("a", "1").await.expect("a write");
    let victim = (cluster.leader().await + 1) % 3;
    cluster.members[victim].kill();
    std::fs::remove_dir_all(&cluster.members[victim].data).expect("emptied");
    cluster.restart(victim);
    assert_eq!(cluster.members[victim].wait_for_exit().code(), Some(70), "DiskLost\n{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_added_where_one_more_that_is_down_would_end_the_quorum() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let add = async |cluster: &Cluster, is_learner| {
        let request = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.9:9".into()], is_learner };
        cluster.members[leader].cluster().member_add(request).await.map(|answer| answer.into_inner())
    };
    // Raft itself forgets once per election time-out who was there.
    for _ in 0..40 {
        let added = add(&cluster, true).await.expect("all are there").member.expect("a member");
        let remove = pb::MemberRemoveRequest { id: added.id };
        cluster.members[leader].cluster().member_remove(remove).await.expect("removed");
    }
    cluster.members[(leader + 1) % 3].kill();
    let url = cluster.members[leader].peer_url();
    let active = || async {
        let mut node = NodeClient::connect(url.clone()).await.expect("the peer port answers");
        let listed = node.list(ListRequest::default()).await.expect("a list").into_inner();
        listed.progress.iter().filter(|peer| peer.active).count()
    };
    cluster.eventually("one is missed", || async { active().await == 2 }).await;
    for is_learner in [true, false] {
        let refused = add(&cluster, is_learner).await.expect_err("two of four are no quorum");
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: unhealthy cluster"));
    }
    cluster.members[leader].put("k", "v").await.expect("the two go on");
}

/// Whether a member has a connection to another one.
async fn is_connected(client_port: u16) -> bool {
    let shown = String::from_utf8(Request::get("/metrics").send(client_port).await.body).expect("text");
    shown.lines().any(|line| line.starts_with("etcd_network_active_peers{") && line.ends_with(" 1"))
}

/// A leader that has just lost its followers leads on for an election time-out. What it would take into its log then has no
/// outcome.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_added_by_a_leader_whose_followers_have_just_died() {
    let mut cluster = Cluster::start_with(3, &["--election-timeout=10000"]).await;
    let leader = cluster.leader().await;
    for other in (0..3).filter(|other| *other != leader) {
        cluster.members[other].kill();
    }
    let port = cluster.members[leader].client_port;
    cluster.eventually("the connections are gone", || async { !is_connected(port).await }).await;
    for is_learner in [true, false] {
        let request = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.9:9".into()], is_learner };
        let refused = cluster.members[leader].cluster().member_add(request).await.expect_err("one of three");
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: unhealthy cluster"));
    }
    let status = cluster.members[leader].status().await.expect("a status");
    assert_eq!(status.header.map(|header| header.member_id), Some(status.leader), "it still leads");
}

/// etcd waits for as long as the client does, over the seconds that other requests have.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_waits_for_a_leader_as_long_as_its_client() {
    let mut cluster = Cluster::start(3).await;
    let id =
        async |member: &Member| member.status().await.and_then(|status| status.header).expect("a header").member_id;
    let dead = id(&cluster.members[2]).await;
    cluster.members[1].kill();
    cluster.members[2].kill();
    let leaderless = || async { cluster.members[0].status().await.is_some_and(|status| status.leader == 0) };
    cluster.eventually("the leader is given up", leaderless).await;
    let mut asked = cluster.members[0].cluster();
    let removal = tokio::spawn(async move { asked.member_remove(pb::MemberRemoveRequest { id: dead }).await });
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!removal.is_finished(), "{:?}", removal.await);
    cluster.restart(1);
    let removed = removal.await.expect("it ends").expect("removed").into_inner();
    assert_eq!(removed.members.len(), 2);
}

/// A leader that is cut off takes a change into its log and loses its place before a quorum has it. etcd's Raft would leave the
/// client without an answer; here the change is nowhere, and the member asks the next leader for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_a_lost_leader_never_brought_about_is_asked_of_the_next_one() {
    let mut cluster = Cluster::unstarted(3);
    // For so long a leader that is cut off takes changes.
    cluster.flags = &["--election-timeout=3000"];
    let network = Network::before(&mut cluster).await;
    cluster.found().await;
    network.note_processes(&cluster);
    let lost = cluster.leader().await;
    let (other, third) = ((lost + 1) % 3, (lost + 2) % 3);
    let status = cluster.members[third].status().await.expect("a status");
    let id = status.header.expect("a header").member_id;
    network.cut(Network::isolation(lost, 3));
    let port = cluster.members[lost].client_port;
    cluster.eventually("it is cut off", || async { !is_connected(port).await }).await;
    let peer_urls = vec![cluster.members[third].peer_url(), "http://127.0.0.9:9".to_owned()];
    let mut asked = cluster.members[lost].cluster();
    let request = pb::MemberUpdateRequest { id, peer_ur_ls: peer_urls.clone() };
    let update = tokio::spawn(async move { asked.member_update(request).await });
    let others_lead = || async {
        let leader = cluster.members[other].status().await.map_or(0, |status| status.leader);
        leader != 0 && leader != status.leader
    };
    cluster.eventually("the others have a leader", others_lead).await;
    cluster.members[other].put("k", "v").await.expect("a later term is committed");
    assert!(!update.is_finished(), "the change is in one log only: {:?}", update.await);
    network.cut(Cuts::new());
    let updated = update.await.expect("it ends").expect("the new leader makes the change").into_inner();
    let shown = updated.members.into_iter().find(|member| member.id == id).expect("the member");
    assert_eq!(shown.peer_ur_ls, peer_urls);
}

/// Names are slow to follow their pods: what was the leader's address may be that of another cluster's member, and ids of
/// members are small numbers in both.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_passed_on_to_another_clusters_member_changes_nothing_there() {
    let foreign = Cluster::start(1).await;
    let foreign = &foreign.members[0];
    let mut cluster = Cluster::unstarted(3);
    // For so long a leader that hears no answers is taken for one.
    cluster.flags = &["--election-timeout=5000"];
    cluster.found().await;
    let place = cluster.leader().await;
    let other = &cluster.members[(place + 1) % 3];
    let leader = other.status().await.expect("a status").leader;
    let away = pb::MemberUpdateRequest { id: leader, peer_ur_ls: vec![foreign.peer_url()] };
    cluster.members[place].cluster().member_update(away).await.expect("updated");
    let of = |member: pb::Member| (member.id == leader).then_some(member.peer_ur_ls);
    let knows = || async { members(other).await.into_iter().find_map(of) == Some(vec![foreign.peer_url()]) };
    cluster.eventually("the other knows the address", knows).await;

    let before = members(foreign).await;
    // There is a member 1 in both.
    let back = vec![cluster.members[0].peer_url(), "http://127.0.0.9:9".to_owned()];
    let update = pb::MemberUpdateRequest { id: 1, peer_ur_ls: back.clone() };
    let updated = other.cluster().member_update(update).await;
    assert_eq!(members(foreign).await, before);
    let updated = updated.expect("the next leader of its own cluster makes the change").into_inner();
    let changed = updated.members.into_iter().find(|member| member.id == 1).expect("the member");
    assert_eq!(changed.peer_ur_ls, back);
}

/// As a member passes it on: for its cluster, for another one, and without saying, as those of older releases do.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_from_a_member_says_which_cluster_it_is_meant_for() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let cluster_id = member.status().await.and_then(|status| status.header).expect("a header").cluster_id;
    let before = members(member).await;
    let mut peer = ClusterClient::connect(member.peer_url()).await.expect("the peer port answers");
    let mut pass_on = async |meant: Option<String>| {
        let request = pb::MemberUpdateRequest { id: before[0].id, peer_ur_ls: vec![member.peer_url()] };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("balsa-forwarded", "1".parse().expect("a value"));
        if let Some(meant) = meant {
            request.metadata_mut().insert("balsa-cluster-id", meant.parse().expect("a value"));
        }
        peer.member_update(request).await.map(drop)
    };
    let refused = pass_on(Some((cluster_id ^ 1).to_string())).await.expect_err("another cluster is meant");
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "etcdserver: cluster ID mismatch"));
    let refused = pass_on(Some("x".to_owned())).await.expect_err("no cluster is meant");
    assert_eq!(refused.code(), Code::InvalidArgument);
    for meant in [Some(cluster_id.to_string()), None] {
        pass_on(meant).await.expect("it is meant");
    }
    assert_eq!(members(member).await, before);
}

/// Also one who says to be a member is not told the list there: members do not pass that call on.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_finds_no_service_on_the_peer_port() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let before = members(member).await;
    let mut peer = ClusterClient::connect(member.peer_url()).await.expect("the peer port answers");
    let mut kv = KvClient::connect(member.peer_url()).await.expect("the peer port answers");
    let mut list = tonic::Request::new(pb::MemberListRequest::default());
    list.metadata_mut().insert("balsa-forwarded", "1".parse().expect("a value"));
    let learner = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.9:9".to_owned()], is_learner: true };
    let own = pb::MemberUpdateRequest { id: before[0].id, peer_ur_ls: learner.peer_ur_ls.clone() };
    let refusals = [
        peer.member_list(pb::MemberListRequest::default()).await.map(drop),
        peer.member_list(list).await.map(drop),
        peer.member_add(learner).await.map(drop),
        peer.member_update(own).await.map(drop),
        peer.member_promote(pb::MemberPromoteRequest { id: 1 }).await.map(drop),
        peer.member_remove(pb::MemberRemoveRequest { id: before[0].id }).await.map(drop),
    ];
    for refused in refusals {
        let refused = refused.expect_err("there is no such service");
        assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, "unknown service etcdserverpb.Cluster"));
    }
    let refused = kv.range(pb::RangeRequest { key: "k".into(), ..Default::default() }).await.expect_err("nor this one");
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(members(member).await, before);
}

async fn members(of: &Member) -> Vec<pb::Member> {
    let listed = of.cluster().member_list(pb::MemberListRequest::default()).await;
    listed.expect("a list").into_inner().members
}
