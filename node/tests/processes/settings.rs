//! Settings that change while the nodes run: pushed through the node service, or written into the file. Each of them, both ways
//! and on three members, is in `hot_settings.rs`.

use std::collections::HashMap;
use std::path::PathBuf;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::node as wire;
use balsa_proto::node::node_client::NodeClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Member};

pub(crate) async fn node(member: &Member) -> NodeClient<Channel> {
    NodeClient::connect(member.peer_url()).await.expect("the peer port answers")
}

pub(crate) fn settings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) async fn active(member: &Member) -> wire::GetConfigResponse {
    node(member).await.get_config(wire::GetConfigRequest {}).await.expect("an answer").into_inner()
}

/// A transaction of so many puts.
pub(crate) async fn puts(member: &Member, count: usize) -> Result<(), tonic::Status> {
    let put = |number: usize| {
        let put = pb::PutRequest { key: format!("t/{number}").into(), ..Default::default() };
        pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
    };
    let request = pb::TxnRequest { success: (0..count).map(put).collect(), ..Default::default() };
    member.kv().txn(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_active_on_each_node_that_acknowledged_it_and_survives_its_restart() {
    let mut cluster = Cluster::start(3).await;
    let pushed = settings(&[("max-txn-ops", "3"), ("max-request-bytes", "1000"), ("log-level", "debug")]);
    for member in &cluster.members {
        let request = wire::SetConfigRequest { version: 7, settings: pushed.clone(), ..Default::default() };
        let answer = node(member).await.set_config(request).await.expect("taken").into_inner();
        let state = node(member).await.state(wire::StateRequest::default()).await.expect("a state").into_inner();
        assert_eq!((answer.version, state.config_version), (7, 7));
        assert_eq!(answer.config_hash, state.config_hash, "all nodes say the same of the same settings");
        assert!(puts(member, 3).await.is_ok());
        let error = puts(member, 4).await.expect_err("too many");
        assert_eq!(error.message(), "etcdserver: too many operations in txn request");
        let error = member.put("k", &"v".repeat(1_000)).await.expect_err("too large");
        assert_eq!(error.message(), "etcdserver: request is too large");
    }
    // The logger hears of the settings, too, a moment later than whoever pushed them.
    let has_changed = || async {
        cluster.members[0].get("k").await.expect("a read");
        cluster.members[0].log_text().contains(r#""level":"debug""#)
    };
    cluster.eventually("the level has changed", has_changed).await;

    cluster.members[1].kill();
    cluster.restart(1);
    let is_up = || async { cluster.members[1].status().await.is_some() };
    cluster.eventually("the member is up again", is_up).await;
    let kept = active(&cluster.members[1]).await;
    assert_eq!((kept.version, kept.settings["max-txn-ops"].as_str()), (7, "3"));
    let wider = settings(&[("max-txn-ops", "5")]);
    let request = wire::SetConfigRequest { version: 8, settings: wider, ..Default::default() };
    node(&cluster.members[1]).await.set_config(request).await.expect("taken");
    cluster.eventually("the restarted member serves", || async { puts(&cluster.members[1], 5).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_or_stale_push_changes_nothing() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let before = active(member).await;
    for (version, pairs, code, reason) in [
        (2, &[("max-txn-ops", "3"), ("log-level", "loud")][..], Code::InvalidArgument, "InvalidRequest"),
        (2, &[("max-txn-ops", "3"), ("election-timeout", "9")], Code::InvalidArgument, "InvalidRequest"),
        (before.version, &[("max-txn-ops", "3")], Code::FailedPrecondition, "StaleConfig"),
    ] {
        let request = wire::SetConfigRequest { version, settings: settings(pairs), ..Default::default() };
        let error = node(member).await.set_config(request).await.expect_err("refused");
        let said = error.metadata().get("balsa-reason").map(tonic::metadata::MetadataValue::as_bytes);
        assert_eq!((error.code(), said), (code, Some(reason.as_bytes())), "{error:?}");
    }
    let after = active(member).await;
    // The last one that was refused for what it says, and not for its version.
    assert_eq!(after.refused, settings(&[("max-txn-ops", "3"), ("election-timeout", "9")]));
    assert!(after.refusal.contains("election-timeout cannot change at run time"), "{}", after.refusal);
    assert_eq!(wire::GetConfigResponse { refused: HashMap::new(), refusal: String::new(), ..after }, before);
    assert!(puts(member, 128).await.is_ok());
}

/// The file of a member, with these settings.
pub(crate) fn file_of(cluster: &Cluster, member: &Member, more: &str) -> String {
    format!(
        "name: {}\ndata-dir: {}\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\n\
         listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\ninitial-cluster: {all}\n{more}",
        member.name,
        member.data.display(),
        client = member.client_url(),
        peer = member.peer_url(),
        all = cluster.initial_cluster(),
    )
}

/// A member that was started by a file with these settings.
async fn started_by_file(more: &str) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::empty();
    let index = cluster.add_unstarted("m0");
    let path = cluster.directory.path().join("config.yaml");
    std::fs::write(&path, file_of(&cluster, &cluster.members[index], more)).expect("written");
    cluster.run_by_file(index, &path);
    cluster.leader().await;
    (cluster, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_active_without_a_restart() {
    let (cluster, path) = started_by_file("max-txn-ops: 10\n").await;
    let member = &cluster.members[0];
    let [bad, good] = ["max-txn-ops: 0\n", "max-txn-ops: 3\n"].map(|more| file_of(&cluster, member, more));
    cluster.eventually("ten operations fit", || async { puts(member, 10).await.is_ok() }).await;

    std::fs::write(&path, bad).expect("written");
    let refused = || async { member.log_text().contains("the changed file is refused") };
    cluster.eventually("the bad file is refused", refused).await;
    assert!(puts(member, 10).await.is_ok(), "the old settings stay");

    std::fs::write(&path, good).expect("written");
    cluster.eventually("the good file is active", || async { active(member).await.version == 2 }).await;
    assert!(puts(member, 4).await.is_err() && puts(member, 3).await.is_ok());
}
