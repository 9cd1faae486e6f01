//! The program as its flags and its name make it: what it prints, how it ends, where it writes and listens.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::cluster::{PATIENCE, free_port};
use crate::gateway::http::{Request, healthy};

/// The program under etcd's name.
fn etcd(directory: &TempDir) -> PathBuf {
    let link = directory.path().join("etcd");
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_balsa"), &link).expect("a link");
    }
    link
}

fn output(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().expect("the program runs")
}

fn get(path: &str) -> Request {
    Request { method: "GET".into(), path: path.into(), ..Request::default() }
}

/// A single member on ports of its own. Ends with the value.
struct Single {
    client: u16,
    log: PathBuf,
    process: Child,
    directory: TempDir,
}

impl Single {
    fn start(more: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = TempDir::new().expect("a directory");
        let (client, peer) = (free_port(), free_port());
        let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let log = directory.path().join("log");
        let file = std::fs::File::create(&log).expect("a log file");
        let process = Command::new(etcd(&directory))
            .arg("--name=single")
            .arg(format!("--data-dir={}", directory.path().join("data").display()))
            .arg(format!("--listen-client-urls={client_url}"))
            .arg(format!("--advertise-client-urls={client_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=single={peer_url}"))
            .arg("--drain-delay=0s")
            .args(more(directory.path()))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the program runs");
        Self { client, log, process, directory }
    }

    /// Waits until the log says so, and returns it.
    async fn logged(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            if log.contains(text) {
                return log;
            }
            assert!(Instant::now() < deadline, "{text:?} is not logged:\n{log}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn under_etcds_name_it_prints_etcds_version() {
    let directory = TempDir::new().expect("a directory");
    let printed = output(&etcd(&directory), &["--version"]);
    let text = String::from_utf8(printed.stdout).expect("text");
    let version =
        text.lines().next().and_then(|line| line.strip_prefix("etcd Version: ")).expect("the version is first");
    assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
    for (line, head) in text.lines().zip(["etcd Version: ", "Git SHA: ", "Go Version: ", "Go OS/Arch: "]) {
        assert!(line.starts_with(head), "{line}");
    }
    assert!(printed.status.success());
}

#[test]
fn a_wrong_start_ends_with_etcds_code_and_names_the_flag() {
    let directory = TempDir::new().expect("a directory");
    for (arg, code, named) in [
        ("--no-such-flag", 2, "no-such-flag"),
        ("--heartbeat-interval=x", 2, "heartbeat-interval"),
        ("--pre-vote=maybe", 2, "pre-vote"),
        ("--max-wals=x", 2, "max-wals"),
        ("--feature-gates=Foo=true", 2, "Foo"),
        ("--initial-cluster-state=x", 2, "initial-cluster-state"),
        ("stray", 1, "stray"),
        ("--logger=foo", 1, "foo"),
        ("--log-format=foo", 1, "log-format"),
        ("--log-outputs=/no/such/folder/log", 1, "/no/such/folder/log"),
        ("--election-timeout=1", 1, "election-timeout"),
        ("--listen-client-urls=http://127.0.0.1:1", 1, "advertise-client-urls"),
        ("--force-new-cluster", 1, "force-new-cluster"),
    ] {
        let data = format!("--data-dir={}", directory.path().join("data").display());
        let ended = output(&etcd(&directory), &[arg, &data]);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{arg}: {text}");
        assert!(text.contains(named), "{arg}: {text}");
    }
    assert_eq!(output(&etcd(&directory), &["-h"]).status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_that_drivers_wait_for_has_etcds_fields() {
    let single = Single::start(|directory| {
        let file = directory.join("file.log").display().to_string();
        vec![format!("--log-outputs=stderr,{file}"), "--max-wals=9".into(), "--snapshot-count=10000".into()]
    });
    let log = single.logged("ready to serve client requests").await;
    std::net::TcpStream::connect(("127.0.0.1", single.client)).expect("it accepts connections by then");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        for field in ["level", "ts", "caller", "msg"] {
            assert!(line[field].is_string(), "{field} is missing: {line}");
        }
    }
    let ready = log.lines().find(|line| line.contains("ready to serve client requests")).expect("the line");
    assert!(ready.starts_with("{\"level\":\"info\",\"ts\":\""), "{ready}");
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("has no effect")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("--max-wals has no effect: "), "{warnings:?}");
    let file = std::fs::read_to_string(single.directory.path().join("file.log")).expect("the file");
    assert!(file.contains("ready to serve client requests"), "{file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_metrics_can_have_ports_of_their_own() {
    let (http, metrics) = (free_port(), free_port());
    let single = Single::start(|_| {
        vec![
            format!("--listen-client-http-urls=http://127.0.0.1:{http}"),
            format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"),
            "--cors=http://page.example".into(),
            "--host-whitelist=localhost,127.0.0.1".into(),
            "--metrics=extensive".into(),
            "--feature-gates=CompactHashCheck=true".into(),
        ]
    });
    single.logged("ready to serve client requests").await;
    healthy(http).await;
    healthy(metrics).await;
    let put = Request::post("/v3/kv/put", r#"{"key":"YQ=="}"#);
    assert_eq!(put.send(http).await.status, 200);
    assert_eq!(put.send(single.client).await.status, 404, "the client port is gRPC's alone");
    assert_eq!(put.send(metrics).await.status, 404);
    let text = String::from_utf8(get("/metrics").send(metrics).await.body).expect("text");
    for line in [
        r#"etcd_server_feature_enabled{name="CompactHashCheck",stage="ALPHA"} 1"#,
        r#"grpc_server_handling_seconds_count{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is missing");
    }
    let with = |header: &str| Request { headers: vec![header.to_owned()], ..get("/version") };
    assert_eq!(with("Host: elsewhere.example").send(http).await.status, 421);
    let allowed = "access-control-allow-origin: http://page.example";
    assert!(with("Origin: http://page.example").send(http).await.head.contains(allowed));
    assert!(!with("Origin: http://other.example").send(http).await.head.contains("access-control"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_gateway_only_grpc_and_probes_are_served() {
    let single = Single::start(|_| vec!["--enable-grpc-gateway=false".into()]);
    healthy(single.client).await;
    assert_eq!(Request::post("/v3/kv/range", r#"{"key":"YQ=="}"#).send(single.client).await.status, 404);
    assert_eq!(get("/openapi.json").send(single.client).await.status, 404);
}
