//! Flags whose work shows only while a server runs: the same script on Balsa and on each installed etcd.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::auth::etcdctl;
use crate::cluster::{PATIENCE, free_port};
use crate::etcd::{Etcd, RELEASES, command, program};
use crate::gateway::http::{Request, healthy};
use crate::unread::{Frame, Mute};

/// Balsa first.
fn programs() -> Vec<PathBuf> {
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_balsa"));
    [Some(ours)].into_iter().chain(RELEASES.map(program)).flatten().collect()
}

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

async fn started(program: &Path, size: usize, more: &[&str]) -> Etcd {
    let servers = Etcd::run(program, size, &flags(more));
    all_there(&servers).await;
    servers
}

/// Waits until every member has told the others where its clients go, as the last of its start.
async fn all_there(servers: &Etcd) -> Vec<Value> {
    for port in &servers.ports {
        healthy(*port).await;
    }
    let listed = async {
        loop {
            let (_, list) = ask(servers.port, "cluster/member/list", json!({"linearizable": true})).await;
            let members = list["members"].as_array().cloned().unwrap_or_default();
            if members.len() == servers.ports.len() && members.iter().all(|member| member["clientURLs"].is_array()) {
                return members;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, listed).await.expect("all are there")
}

/// The same on all at once; each must say what `expected` is.
async fn on_each<T: PartialEq + std::fmt::Debug, F: Future<Output = T>>(script: impl Fn(PathBuf) -> F, expected: T) {
    let programs = programs();
    let said = join_all(programs.iter().cloned().map(script)).await;
    for (program, said) in programs.iter().zip(said) {
        assert_eq!(said, expected, "{}", program.display());
    }
}

async fn ask(port: u16, path: &str, body: Value) -> (u16, Value) {
    let answer = Request::post(&format!("/v3/{path}"), body.to_string()).send(port).await;
    (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
}

/// The port of the member that leads, and the ids of the others.
async fn leader(ports: &[u16]) -> (u16, Vec<Value>) {
    let states = join_all(ports.iter().map(async |port| ask(*port, "maintenance/status", json!({})).await.1)).await;
    let leader = states[0]["leader"].clone();
    let id = |state: &Value| state["header"]["member_id"].clone();
    let at = states.iter().position(|state| id(state) == leader).expect("a leader");
    (ports[at], states.iter().map(id).filter(|id| *id != leader).collect())
}

/// Changes that end in what the strict check refuses: a second member beside one that has not started, and the removal of one
/// whom the quorum needs.
async fn endangers_the_quorum(program: PathBuf, strict: bool, removals: usize) -> Vec<String> {
    let servers = started(&program, 3, &[&format!("--strict-reconfig-check={strict}")]).await;
    let (port, others) = leader(&servers.ports).await;
    let adds = (1..3).map(|number| ("add", json!({"peerURLs": [format!("http://127.0.0.9:{number}")]})));
    let removes = others.iter().take(removals).map(|id| ("remove", json!({"ID": id})));
    let mut said = Vec::new();
    for (path, body) in adds.chain(removes) {
        let (status, answer) = ask(port, &format!("cluster/member/{path}"), body).await;
        let members = answer["members"].as_array().map_or(0, Vec::len);
        said.push(format!("{path}: {status} {members} {}", answer["message"].as_str().unwrap_or_default()));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_strict_check_the_quorum_may_be_endangered_as_in_etcd() {
    let all = ["add: 200 4 ", "add: 200 5 ", "remove: 200 4 "].map(str::to_owned).to_vec();
    let lenient = on_each(|program| endangers_the_quorum(program, false, 1), all);
    // Here alone: with it etcd takes nothing for 5 s after a start.
    let strict = endangers_the_quorum(programs().swap_remove(0), true, 2);
    let ((), strict) = tokio::join!(lenient, strict);
    let refused = [
        "add: 200 4 ",
        "add: 503 0 etcdserver: unhealthy cluster",
        "remove: 200 3 ",
        "remove: 500 0 etcdserver: re-configuration failed due to not enough started members",
    ];
    assert_eq!(strict, refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lives_while_it_is_used_and_for_its_time_as_in_etcd() {
    const TTL: u64 = 3;
    let script = async |program: PathBuf| {
        let server = started(&program, 1, &[&format!("--auth-token-ttl={TTL}"), "--bcrypt-cost=4"]).await;
        let url = format!("http://127.0.0.1:{}", server.port);
        for line in ["user add root:pw", "user grant-role root root", "auth enable"] {
            assert_eq!(etcdctl(&url, line).0, Some(0), "{line}");
        }
        let login = json!({"name": "root", "password": "pw"});
        let token = ask(server.port, "auth/authenticate", login).await.1["token"].as_str().expect("a token").to_owned();
        let mut range = Request::post("/v3/kv/range", r#"{"key":"YQ=="}"#);
        range.headers.push(format!("Authorization: {token}"));
        let mut said = Vec::new();
        for _ in 0..2 * TTL {
            sleep(Duration::from_secs(1)).await;
            said.push(range.send(server.port).await.status);
        }
        sleep(Duration::from_secs(2 * TTL)).await;
        said.push(range.send(server.port).await.status);
        said
    };
    let mut expected = vec![200; 2 * TTL as usize];
    expected.push(401);
    on_each(script, expected).await;
}

const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

/// Whether a client that pings so often, with a call open, is sent away.
async fn is_sent_away(port: u16, every: Duration) -> bool {
    let mut wire = Mute::open(port).await;
    wire.call(1, "/etcdserverpb.Watch/Watch").await;
    for _ in 0..6 {
        if wire.try_frame(PING, 0, 0, &[0; 8]).await.is_err() {
            return true;
        }
        loop {
            match timeout(PATIENCE, wire.next()).await.expect("an answer") {
                None | Some(Frame { kind: GOAWAY, .. }) => return true,
                Some(Frame { kind: PING, flags: ACK, .. }) => break,
                // Who does not answer is cut off for that.
                Some(Frame { kind: PING, body, .. }) => drop(wire.try_frame(PING, ACK, 0, &body).await),
                Some(_) => {}
            }
        }
        sleep(every).await;
    }
    false
}

/// What a client hears that calls nothing, until it has answered three pings or is cut off.
async fn pings_to(port: u16, answers: bool) -> Vec<&'static str> {
    let (mut wire, mut heard) = (Mute::open(port).await, Vec::new());
    while heard.len() < 3 {
        match timeout(PATIENCE, wire.next()).await.expect("a ping or an end") {
            None => {
                heard.push("end");
                return heard;
            }
            Some(frame) if (frame.kind, frame.flags & ACK) == (PING, 0) => {
                heard.push("ping");
                if answers {
                    wire.try_frame(PING, ACK, 0, &frame.body).await.expect("written");
                }
            }
            Some(_) => {}
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_of_clients_and_of_the_server_are_bounded_by_the_flags_as_in_etcd() {
    let (often, seldom) = (Duration::from_millis(50), Duration::from_millis(500));
    let script = async |program: PathBuf| {
        let bounds = ["--grpc-keepalive-min-time=300ms", "--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=1s"];
        let server = started(&program, 1, &bounds).await;
        let none = started(&program, 1, &["--grpc-keepalive-min-time=0s"]).await;
        tokio::join!(
            is_sent_away(server.port, often),
            is_sent_away(server.port, seldom),
            is_sent_away(none.port, seldom),
            pings_to(server.port, true),
            pings_to(server.port, false),
        )
    };
    // Of no bound gRPC makes its own, which is 5 minutes.
    on_each(script, (true, false, true, vec!["ping"; 3], vec!["ping", "end"])).await;
}

/// Whether another process could listen beside the one that does.
fn can_be_shared(port: u16) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("set");
    socket.set_reuse_port(true).expect("set");
    let bound = socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into());
    bound.and_then(|()| socket.listen(1)).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_shared_with_other_processes_when_the_flag_says_so_as_in_etcd() {
    let script = async |program: PathBuf| {
        let mut shared = Vec::new();
        for more in [&[][..], &["--socket-reuse-address"], &["--socket-reuse-port"]] {
            shared.push(can_be_shared(started(&program, 1, more).await.port));
        }
        shared
    };
    on_each(script, vec![false, false, true]).await;
}

/// Members that know each other by a name, as in many a quick start.
#[tokio::test(flavor = "multi_thread")]
async fn members_at_localhost_found_a_cluster_and_are_listed_so_as_in_etcd() {
    let script = async |program: PathBuf| {
        let servers = Etcd::run_at("localhost", &program, 3, &[]);
        let members = all_there(&servers).await;
        let without_ports = |urls: &Value| urls.to_string().replace(|c: char| c.is_ascii_digit(), "");
        let mut said: Vec<String> = members
            .iter()
            .map(|member| {
                format!(
                    "{} {} {}",
                    member["name"],
                    without_ports(&member["peerURLs"]),
                    without_ports(&member["clientURLs"])
                )
            })
            .collect();
        said.sort();
        said
    };
    let url = r#"["http://localhost:"]"#;
    on_each(script, (0..3).map(|index| format!("\"m{index}\" {url} {url}")).collect()).await;
}

/// Where a process can be the first of its own: root in a user namespace of its own is enough, and where there may be none, root.
const NAMESPACES: [&[&str]; 2] = [&["--user", "--map-root-user"], &[]];

/// Starts a command as the first process of a namespace, which ends with the one that is returned; the pid of the first.
async fn as_first(inner: &std::process::Command) -> (Child, String) {
    let program = std::fs::canonicalize(inner.get_program()).expect("the program");
    let mut whys = Vec::new();
    for namespaces in NAMESPACES {
        let mut outer = Command::new("unshare");
        outer.args(namespaces).args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        outer.arg(inner.get_program()).args(inner.get_args());
        outer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut outer = outer.spawn().expect("unshare");
        let children = format!("/proc/{0}/task/{0}/children", outer.id().expect("it runs"));
        while outer.try_wait().expect("asked").is_none() {
            let first = std::fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            if std::fs::read_link(format!("/proc/{first}/exe")).is_ok_and(|exe| exe == program) {
                return (outer, first);
            }
            sleep(Duration::from_millis(5)).await;
        }
        let said = outer.wait_with_output().await.expect("an output").stderr;
        whys.push(String::from_utf8_lossy(&said).trim().to_owned());
    }
    panic!("no process can be the first of a namespace here, so it was NOT tested how one ends: {}", whys.join("; "));
}

/// As in a container without an init. The kernel shields such a process from the signal that others die of.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_of_a_namespace_is_stopped_by_sigterm_and_ends_with_0_as_in_etcd() {
    let script = async |program: PathBuf| {
        let directory = TempDir::new().expect("a directory");
        let port = free_port();
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        let mut inner = command(&program, directory.path(), "first", &client, &peer);
        inner.arg(format!("--initial-cluster=first={peer}"));
        let (mut outer, first) = as_first(&inner).await;
        healthy(port).await;
        assert!(Command::new("kill").args(["-TERM", &first]).status().await.expect("kill runs").success());
        timeout(PATIENCE, outer.wait()).await.expect("in time").expect("an end").code()
    };
    on_each(script, Some(0)).await;
}
