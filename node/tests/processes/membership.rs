//! Members come and go through etcd's own calls.

use balsa_proto::etcdserverpb as pb;
use balsa_proto::node::ListRequest;
use balsa_proto::node::node_client::NodeClient;
use tonic::Code;

use crate::cluster::Cluster;

async fn add_learner(cluster: &Cluster, url: String) -> u64 {
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
    cluster.run(index, &all, "existing");
    let status = cluster.members[index].wait_for_exit();
    assert_eq!(status.code(), Some(71), "its disk is refused for good\n{}", cluster.logs());
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
