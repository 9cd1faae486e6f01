//! etcd's own command line against a cluster: leases, and locks and elections as its client library makes them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::cluster::{Cluster, Member};
use crate::etcd::Etcd;

fn etcdctl(cluster: &Cluster) -> Command {
    let endpoints: Vec<String> = cluster.members.iter().map(Member::client_url).collect();
    let mut command = Command::new("etcdctl");
    command.arg(format!("--endpoints={}", endpoints.join(","))).stdin(Stdio::null());
    command
}

pub(crate) fn run(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = etcdctl(cluster).args(arguments).output().expect("etcdctl runs (e2e/install etcd)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{arguments:?}: {}\n{}", text(&output.stderr), cluster.logs());
    text(&output.stdout)
}

/// A command that holds something until it is told to end.
struct Holding(Child);

impl Holding {
    /// Starts it and waits for its first `lines` lines.
    fn start(cluster: &Cluster, arguments: &[&str], lines: usize) -> (Self, Vec<String>) {
        let mut child = etcdctl(cluster).args(arguments).stdout(Stdio::piped()).spawn().expect("etcdctl runs");
        let output = child.stdout.take().expect("a pipe");
        let said = BufReader::new(output).lines().take(lines).map(|line| line.expect("text")).collect();
        (Self(child), said)
    }

    /// As a user would with ctrl-C.
    fn interrupt(mut self) {
        let status = Command::new("kill").arg("-INT").arg(self.0.id().to_string()).status();
        assert!(status.expect("kill runs").success());
        self.0.wait().expect("it ends");
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_grants_renews_describes_lists_and_revokes_leases() {
    let cluster = Cluster::start(3).await;
    let granted = run(&cluster, &["lease", "grant", "100"]);
    let id = granted.split_whitespace().nth(1).expect("lease ID granted with TTL(100s)").to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(100s)"));
    assert_eq!(run(&cluster, &["put", "--lease", &id, "one", "1"]), "OK");
    assert_eq!(run(&cluster, &["put", "--lease", &id, "two", "2"]), "OK");
    let renewed = run(&cluster, &["lease", "keep-alive", "--once", &id]);
    assert_eq!(renewed, format!("lease {id} keepalived with TTL(100)"));
    let left = run(&cluster, &["lease", "timetolive", "--keys", &id]);
    assert!(left.starts_with(&format!("lease {id} granted with TTL(100s), remaining(")), "{left}");
    assert!(left.ends_with("attached keys([one two])"), "{left}");
    assert_eq!(run(&cluster, &["lease", "list"]), format!("found 1 leases\n{id}"));
    assert_eq!(run(&cluster, &["lease", "revoke", &id]), format!("lease {id} revoked"));
    assert_eq!(run(&cluster, &["get", "--prefix", ""]), "");
    assert_eq!(run(&cluster, &["lease", "timetolive", &id]), format!("lease {id} already expired"));
    let (renewing, said) = Holding::start(&cluster, &["lease", "keep-alive", &id], 1);
    assert_eq!(said, [format!("lease {id} expired or revoked.")]);
    drop(renewing);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_locks_and_elects() {
    let cluster = Cluster::start(3).await;
    let (holder, key) = Holding::start(&cluster, &["lock", "door"], 1);
    assert!(key[0].starts_with("door/"), "{key:?}");
    assert_eq!(run(&cluster, &["get", "--prefix", "--keys-only", "door/"]), key[0]);
    let waiting = tokio::task::spawn_blocking({
        let mut command = etcdctl(&cluster);
        command.args(["lock", "door", "--", "echo", "inside"]);
        move || command.output().expect("etcdctl runs")
    });
    let two = || async {
        run(&cluster, &["get", "--prefix", "--count-only", "--write-out=fields", "door/"]).contains("\"Count\" : 2")
    };
    cluster.eventually("the second one waits", two).await;
    assert!(!waiting.is_finished());
    holder.interrupt();
    let output = waiting.await.expect("a result");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "inside");
    assert_eq!(run(&cluster, &["get", "--prefix", "door/"]), "", "the lock was given back");

    let (candidate, said) = Holding::start(&cluster, &["elect", "post", "alice"], 2);
    assert!(said[0].starts_with("post/") && said[1] == "alice", "{said:?}");
    let (observer, seen) = Holding::start(&cluster, &["elect", "--listen", "post"], 2);
    assert_eq!(seen, said);
    candidate.interrupt();
    drop(observer);
    assert_eq!(run(&cluster, &["get", "--prefix", "post/"]), "", "the candidacy has ended");
}

/// The way that a node names which is started on etcd's own data.
#[tokio::test(flavor = "multi_thread")]
async fn make_mirror_copies_the_keys_of_a_running_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    let of_etcd = || {
        let mut command = Command::new("etcdctl");
        command.arg(format!("--endpoints=127.0.0.1:{}", etcd.port)).stdin(Stdio::null());
        command
    };
    let put = |key: &str, value: &str| assert!(of_etcd().args(["put", key, value]).status().expect("runs").success());
    put("before", "1");
    let cluster = Cluster::start(1).await;
    let (member, to) = (&cluster.members[0], format!("127.0.0.1:{}", cluster.members[0].client_port));
    let mirror = of_etcd().args(["make-mirror", &to]).stdout(Stdio::null()).spawn().expect("etcdctl runs");
    let _mirror = Holding(mirror);
    let has = async |key: &str, value: &str| member.get(key).await.is_ok_and(|found| found.as_deref() == Some(value));
    cluster.eventually("what was there is copied", || has("before", "1")).await;
    put("before", "2");
    put("after", "3");
    cluster
        .eventually("what changes is copied", || async { has("before", "2").await && has("after", "3").await })
        .await;
}
