//! `gateway start` on Balsa and on each installed etcd: what it prints, whom it connects to, and how it ends.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cluster::{Cluster, PATIENCE, free_port};
use crate::etcd::{RELEASES, program};

/// A gateway on a port of its own. Ends with the value.
struct Gateway {
    process: Child,
    port: u16,
}

impl Gateway {
    fn start(program: &Path, endpoints: &[String]) -> Self {
        let port = free_port();
        let process = Command::new(program)
            .args(["gateway", "start", "--retry-delay=200ms"])
            .arg(format!("--listen-addr=127.0.0.1:{port}"))
            .args(endpoints.iter().map(|endpoint| format!("--endpoints={endpoint}")))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program runs");
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{} does not listen", program.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, port }
    }

    /// Who answers a new connection; nobody if it is just closed.
    fn answered(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
        let mut name = String::new();
        let _ = stream.read_to_string(&mut name);
        name
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says its name to everybody.
fn server(name: &'static str, port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut { stream }, name.as_bytes());
        }
    });
}

/// The same on Balsa and on each installed etcd.
fn on_each(script: impl Fn(&Path) -> Vec<String>) {
    let directory = TempDir::new().expect("a directory");
    let link = directory.path().join("etcd");
    symlink(env!("CARGO_BIN_EXE_balsa"), &link).expect("a link");
    let ours = script(&link);
    assert!(!ours.is_empty());
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        assert_eq!(ours, script(&program), "the second is {release}'s");
    }
}

#[test]
fn what_it_prints_is_what_etcds_prints() {
    const LINES: [&str; 15] = [
        "",
        "-h",
        "stop",
        "--nope",
        "start --help",
        "start --nope",
        "start -x",
        "start --listen-addr",
        "start --retry-delay=x",
        "start --insecure-discovery=x",
        "start --listen-addr=nope",
        "start --endpoints=nope",
        "start --endpoints=http://127.0.0.1:23790",
        "start --endpoints=127.0.0.1:1 --endpoints= --listen-addr=1.2.3.4:5",
        "start --endpoints=",
    ];
    on_each(|program| {
        let said = LINES.iter().map(|line| {
            let output =
                Command::new(program).arg("gateway").args(line.split_whitespace()).stdin(Stdio::null()).output();
            let output = output.expect("the program runs");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let stderr: String =
                text(&output.stderr).split_inclusive('\n').filter(|line| !line.starts_with('{')).collect();
            format!("{line}: {:?}\n{}{stderr}", output.status.code(), text(&output.stdout))
        });
        said.collect()
    });
}

#[test]
fn connections_go_to_those_that_can_be_reached_in_turn() {
    on_each(|program| {
        let ports = [free_port(), free_port(), free_port()];
        server("a", ports[0]);
        server("c", ports[2]);
        let endpoints =
            [format!("http://127.0.0.1:{},localhost:{}", ports[0], ports[1]), format!("127.0.0.1:{}", ports[2])];
        let gateway = Gateway::start(program, &endpoints);
        let heard: Vec<_> = (0..6).map(|_| gateway.answered()).collect();
        let mut said = vec![format!("{}", heard.iter().all(|name| ["a", "c"].contains(&name.as_str())))];
        // Not strictly by turns: etcd tries the one that is away again at a time of its own, and that takes a turn.
        said.push(format!("{}", ["a", "c"].iter().all(|name| heard.iter().any(|answer| answer == name))));
        server("b", ports[1]);
        let deadline = Instant::now() + PATIENCE;
        while gateway.answered() != "b" {
            assert!(Instant::now() < deadline, "{}: it is not tried again", program.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        said
    });
}

#[test]
fn without_anybody_a_connection_is_closed_and_a_signal_ends_it() {
    on_each(|program| {
        let mut gateway = Gateway::start(program, &[format!("127.0.0.1:{}", free_port())]);
        let mut said = vec![gateway.answered(), gateway.answered()];
        let status = Command::new("kill").arg(gateway.process.id().to_string()).status();
        assert!(status.expect("kill runs").success());
        said.push(format!("{:?}", gateway.process.wait().expect("it ends").signal()));
        said
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_reaches_a_cluster_through_it() {
    let cluster = Cluster::start(3).await;
    let endpoints: Vec<_> = cluster.members.iter().map(|member| member.client_url()).collect();
    let gateway = Gateway::start(Path::new(env!("CARGO_BIN_EXE_balsa")), &endpoints);
    let etcdctl = |arguments: &[&str]| {
        let endpoint = format!("--endpoints=127.0.0.1:{}", gateway.port);
        let output = Command::new("etcdctl").arg(endpoint).args(arguments).stdin(Stdio::null()).output();
        String::from_utf8_lossy(&output.expect("etcdctl runs (e2e/install etcd)").stdout).trim().to_owned()
    };
    assert_eq!(etcdctl(&["put", "a", "b"]), "OK");
    for _ in 0..3 {
        assert_eq!(etcdctl(&["get", "a", "--print-value-only"]), "b", "at each member");
    }
}
