//! Texts of etcd's log that people and test drivers look for, where the same happens here.

use crate::cluster::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_durable_without_the_log_is_a_saved_snapshot() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].put("k", "v").await.expect("a write");
    assert!(!cluster.members[0].log_text().contains("saved snapshot"), "nothing is flushed yet");
    cluster.members[0].signal("TERM");
    cluster.members[0].wait_for_exit();
    let log = cluster.members[0].log_text();
    let line = log.lines().find(|line| line.contains("saved snapshot")).expect("the last flush is told");
    assert!(line.contains("\"snapshot-index\":"), "{line}");
}
