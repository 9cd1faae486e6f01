//! Clients that take all the connections that they get.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tokio::time::timeout;

use crate::cluster::{Cluster, PATIENCE};
use crate::unread::open_sockets;

/// Files that the member may have open; it keeps half of so few.
const FILES: usize = 256;

/// Whoever is connected goes on, and the member opens whatever files it needs: the backup and the rewriting here open some.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_keeps_files_for_itself_whoever_connects() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].kill();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {FILES}; exec \"$0\" \"$@\"")]).arg(env!("CARGO_BIN_EXE_balsa"));
    cluster.run_inside(0, command);
    cluster.serves(0).await;
    let member = &cluster.members[0];
    let channel = member.channel();
    let (mut kv, mut maintenance) = (KvClient::new(channel.clone()), MaintenanceClient::new(channel));
    let put = || pb::PutRequest { key: "a".into(), value: "b".into(), ..Default::default() };
    kv.put(put()).await.expect("it serves");
    let connect = |_| TcpStream::connect(("127.0.0.1", member.client_port)).expect("the system takes it");
    let silent: Vec<_> = (0..FILES + 100).map(connect).collect();
    cluster.eventually("its places are taken", || async { open_sockets(member) >= FILES / 2 }).await;
    // More would come now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sockets = open_sockets(member);
    assert!(sockets < FILES / 2 + 30, "{sockets} sockets");
    let calls = async {
        kv.put(put()).await.expect("a write");
        maintenance.defragment(pb::DefragmentRequest {}).await.expect("the files are rewritten");
        let mut backup = maintenance.snapshot(pb::SnapshotRequest {}).await.expect("a backup").into_inner();
        while backup.message().await.expect("the backup goes on").is_some() {}
    };
    timeout(PATIENCE, calls).await.expect("in time");
    drop(silent);
    cluster.eventually("there is room again", || async { member.put("a", "c").await.is_ok() }).await;
}
