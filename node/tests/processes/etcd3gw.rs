//! Python's etcd3gw, a client of the JSON gateway that knows nothing of us: the tests that it ships, against a follower.

use std::path::Path;
use std::process::Command;

use crate::cluster::Cluster;

/// What `run` ends with when Python or its packages cannot be had. Where real clients are demanded, that is a failure.
const NOT_THERE: i32 = 77;

#[tokio::test(flavor = "multi_thread")]
async fn etcd3gw_finds_an_etcd() {
    let cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/clients/python/run");
    let port = cluster.members[follower].client_port.to_string();
    let ended = tokio::task::spawn_blocking(move || Command::new(run).arg(port).output()).await.expect("it ends");
    let ended = ended.expect("the script runs");
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    if ended.status.code() == Some(NOT_THERE) {
        let required = ["BALSA_REQUIRE_ETCD", "CI"].into_iter().find(|name| std::env::var_os(name).is_some());
        assert!(required.is_none(), "{required:?} is set, and etcd3gw cannot be had here:\n{text}");
        eprintln!("etcd3gw cannot be had here:\n{text}");
        return;
    }
    // The tests skip themselves when they find no server.
    assert!(ended.status.success() && !text.contains("skipped"), "{text}");
}
