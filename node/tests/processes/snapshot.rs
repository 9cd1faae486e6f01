//! A snapshot saved from a cluster becomes another cluster.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use tokio_stream::StreamExt;

use crate::cluster::{Cluster, Member, PATIENCE, free_port};
use crate::etcdctl;

/// What `etcdctl snapshot save` does: the messages of the stream, one behind the other.
async fn save(member: &Member, path: &Path) {
    let mut stream = member.maintenance().snapshot(pb::SnapshotRequest {}).await.expect("a stream").into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.next().await {
        bytes.extend_from_slice(&message.expect("a message").blob);
    }
    std::fs::write(path, bytes).expect("the snapshot is written");
}

fn balsa(arguments: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_balsa")).arg("snapshot").args(arguments).output().expect("the binary runs")
}

fn status(path: &Path) -> serde_json::Value {
    let output = balsa(&["status".to_owned(), "--write-out=json".to_owned(), path.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

async fn everything(member: &Member, revision: i64) -> pb::RangeResponse {
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() };
    member.kv().range(all).await.expect("a read").into_inner()
}

async fn ids(member: &Member) -> Vec<u64> {
    let list = member.cluster().member_list(pb::MemberListRequest { linearizable: true }).await.expect("a list");
    list.into_inner().members.iter().map(|member| member.id).collect()
}

/// A cluster of three whose disks are made from the snapshot, started.
async fn restored(path: &Path, further: &[&str]) -> Cluster {
    let mut cluster = Cluster::unstarted(3);
    let initial_cluster = cluster.initial_cluster();
    for member in &cluster.members {
        let mut arguments = vec!["restore".to_owned(), path.display().to_string()];
        arguments.extend([
            format!("--name={}", member.name),
            format!("--data-dir={}", member.data.display()),
            format!("--initial-cluster={initial_cluster}"),
            "--initial-cluster-token=restored".to_owned(),
            format!("--initial-advertise-peer-urls={}", member.peer_url()),
        ]);
        arguments.extend(further.iter().map(|argument| (*argument).to_owned()));
        let output = balsa(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let again = balsa(&arguments);
        assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"), "a disk in use is left alone");
    }
    for index in 0..3 {
        cluster.run(index, &initial_cluster, "new");
    }
    // A quorum has a leader before the third has begun to listen.
    for index in 0..3 {
        cluster.serves(index).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_snapshot_becomes_a_new_cluster_with_the_same_keys_and_revisions() {
    let old = Cluster::start(3).await;
    let member = &old.members[old.leader().await];
    let first = member.put("a", "1").await.expect("a write");
    for number in 0..200 {
        member.put(&format!("k{}", number % 50), &number.to_string()).await.expect("a write");
    }
    let delete = pb::DeleteRangeRequest { key: "k7".into(), ..Default::default() };
    member.kv().delete_range(delete).await.expect("a delete");
    let last = member.put("a", "2").await.expect("a write");
    let path = old.directory.path().join("saved");
    save(member, &path).await;
    let saved_hash = member.maintenance().hash_kv(pb::HashKvRequest { revision: last }).await.expect("a hash");
    member.put("after", "x").await.expect("a write");

    let status = status(&path);
    assert_eq!(status["revision"], last);
    assert_eq!(status["hash"], saved_hash.into_inner().hash);
    assert_eq!(status["totalKey"], 202, "each put is a version");
    assert_eq!(status["totalSize"], std::fs::metadata(&path).expect("the snapshot").len());

    let new = restored(&path, &[]).await;
    let (then, now) = (everything(member, last).await, everything(&new.members[0], 0).await);
    assert_eq!((then.kvs, then.count), (now.kvs, now.count));
    assert_eq!(now.header.expect("a header").revision, last, "revisions go on where they were");
    let history = everything(&new.members[1], first).await;
    assert_eq!(history.kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"1"], "history is there too");
    let (old_ids, new_ids) = (ids(member).await, ids(&new.members[0]).await);
    assert_eq!(new_ids.len(), 3);
    assert!(new_ids.iter().all(|id| !old_ids.contains(id)), "{new_ids:?} were used before");
    assert_eq!(new.members[2].put("a", "3").await.expect("a write"), last + 1);
    new.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcdctl_saves_is_served_after_a_restore() {
    let old = Cluster::start(1).await;
    let member = &old.members[0];
    for number in 0..300 {
        member.put(&format!("k{}", number % 200), &"v".repeat(10_000 + number)).await.expect("a write");
    }
    let lease = member.lease().lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 77 }).await.expect("granted");
    let put = pb::PutRequest { key: "held".into(), lease: lease.into_inner().id, ..Default::default() };
    member.kv().put(put).await.expect("a write");
    let path = old.directory.path().join("saved");
    let text = path.display().to_string();
    assert!(etcdctl::run(&old, &["snapshot", "save", &text]).contains("Snapshot saved at"));
    let then = everything(member, 0).await;
    let status = status(&path);
    let revision = then.header.as_ref().expect("a header").revision;
    assert_eq!((status["revision"].as_i64(), status["totalKey"].as_u64()), (Some(revision), Some(301)));

    let new = restored(&path, &[]).await;
    let now = everything(&new.members[1], 0).await;
    assert_eq!((now.kvs.len(), now.kvs == then.kvs), (201, true));
    assert_eq!(etcdctl::run(&new, &["get", "k7", "--print-value-only"]), "v".repeat(10_207));
    let held = etcdctl::run(&new, &["lease", "timetolive", "4d", "--keys"]);
    assert!(held.contains("granted with TTL(600s)") && held.contains("attached keys([held])"), "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bumped_revision_is_compacted_up_to_itself() {
    let old = Cluster::start(1).await;
    let last = old.members[0].put("a", "1").await.expect("a write");
    let path = old.directory.path().join("saved");
    save(&old.members[0], &path).await;

    let new = restored(&path, &["--bump-revision=1000", "--mark-compacted"]).await;
    let member = &new.members[new.leader().await];
    assert_eq!(member.get("a").await.expect("a read").as_deref(), Some("1"));
    let before = pb::RangeRequest { key: "a".into(), revision: last, ..Default::default() };
    let error = member.kv().range(before).await.expect_err("compacted");
    assert_eq!(error.message(), "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(member.put("a", "2").await.expect("a write"), last + 1001);
}

#[test]
fn a_broken_snapshot_makes_no_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("saved");
    std::fs::write(&path, b"SQLite format 3").expect("written");
    let data = directory.path().join("data");
    let arguments = ["restore".to_owned(), path.display().to_string(), format!("--data-dir={}", data.display())];
    let output = balsa(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a snapshot that was saved from Balsa"));
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (url(free_port()), url(free_port()));
    let mut started = Command::new(env!("CARGO_BIN_EXE_balsa"))
        .arg(format!("--data-dir={}", data.display()))
        .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
        .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
        .arg(format!("--initial-cluster=default={peer}"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program runs");
    let deadline = Instant::now() + PATIENCE;
    while started.try_wait().expect("its state").is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = started.kill();
    let started = started.wait_with_output().expect("it has ended");
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert_eq!(started.status.code(), Some(73), "no empty cluster stands where data was to be: {said}");
    assert!(said.contains("a restore did not finish"), "{said}");
}
