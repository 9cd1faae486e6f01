//! The program as its flags and its name make it: what it prints, how it ends, where it writes and listens.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::cluster::{PATIENCE, free_port};
use crate::etcd::{RELEASES, program};
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

/// A single member on ports of its own. Ends with the value.
struct Single {
    client: u16,
    log: PathBuf,
    process: Child,
    directory: TempDir,
}

impl Single {
    fn start(more: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::start_with(|command, directory| {
            command.args(more(directory));
        })
    }

    fn start_with(more: impl FnOnce(&mut Command, &Path)) -> Self {
        let directory = TempDir::new().expect("a directory");
        let (client, peer) = (free_port(), free_port());
        let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let log = directory.path().join("log");
        let file = std::fs::File::create(&log).expect("a log file");
        let mut command = Command::new(etcd(&directory));
        command
            .arg("--name=single")
            .arg(format!("--data-dir={}", directory.path().join("data").display()))
            .arg(format!("--listen-client-urls={client_url}"))
            .arg(format!("--advertise-client-urls={client_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=single={peer_url}"))
            .arg("--drain-delay=0s")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file);
        more(&mut command, directory.path());
        let process = command.spawn().expect("the program runs");
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

/// Starts that go wrong before anything is listened on, the code that they end with, and what the last words name.
const WRONG: [(&str, i32, &str); 17] = [
    ("--no-such-flag", 2, "no-such-flag"),
    ("--heartbeat-interval=x", 2, "heartbeat-interval"),
    ("--pre-vote=maybe", 2, "pre-vote"),
    ("--max-wals=x", 2, "max-wals"),
    ("--grpc-keepalive-timeout=5", 2, "grpc-keepalive-timeout"),
    ("--feature-gates=Foo=true", 2, "Foo"),
    ("--initial-cluster-state=x", 2, "initial-cluster-state"),
    ("--listen-client-urls=http://127.0.0.1", 2, "listen-client-urls"),
    ("--listen-peer-urls=ftp://127.0.0.1:1", 2, "listen-peer-urls"),
    ("--listen-peer-urls=http://example.com:1", 1, "example.com"),
    ("stray", 1, "stray"),
    ("--logger=foo", 1, "foo"),
    ("--log-format=foo", 1, "format"),
    ("--log-outputs=/no/such/folder/log", 1, "/no/such/folder/log"),
    ("--election-timeout=1", 1, "election-timeout"),
    ("--listen-client-urls=http://127.0.0.1:1", 1, "advertise-client-urls"),
    ("--auto-compaction-mode=x", 1, "auto-compaction-mode"),
];

#[test]
fn a_wrong_start_ends_with_etcds_code_and_names_the_flag() {
    let directory = TempDir::new().expect("a directory");
    let data = format!("--data-dir={}", directory.path().join("data").display());
    let check = |program: &Path, (arg, code, named): (&str, i32, &str)| {
        let ended = output(program, &[arg, &data]);
        let text = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{} {arg}: {text}", program.display());
        assert!(text.contains(named), "{arg}: {text}");
    };
    let ours = etcd(&directory);
    for case in WRONG {
        check(&ours, case);
    }
    check(&ours, ("--force-new-cluster", 1, "force-new-cluster"));
    for program in RELEASES.into_iter().filter_map(program) {
        for case in WRONG {
            check(&program, case);
        }
    }
    assert_eq!(output(&etcd(&directory), &["-h"]).status.code(), Some(0));
}

/// A wrong value of a variable or of the file is a wrong setting, not a wrong command.
#[test]
fn a_wrong_value_from_elsewhere_ends_with_another_code() {
    let directory = TempDir::new().expect("a directory");
    let (data, file) = (directory.path().join("data"), directory.path().join("file.yml"));
    std::fs::write(&file, "max-learners: x\n").expect("written");
    let programs = RELEASES.into_iter().filter_map(program).chain([etcd(&directory)]);
    for program in programs {
        let mut by_variable = Command::new(&program);
        by_variable.arg(format!("--data-dir={}", data.display())).env("ETCD_MAX_LEARNERS", "x");
        let mut by_file = Command::new(&program);
        by_file.arg(format!("--config-file={}", file.display()));
        for mut command in [by_variable, by_file] {
            let ended = command.stdin(Stdio::null()).output().expect("the program runs");
            let text = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
            assert_eq!(ended.status.code(), Some(1), "{}: {text}", program.display());
        }
    }
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

/// As in etcd: manifests name the files whatever the scheme.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_port_without_tls_are_not_looked_at() {
    let single = Single::start(|_| vec!["--cert-file=/no/cert".into(), "--key-file=/no/key".into()]);
    let log = single.logged("ready to serve client requests").await;
    assert!(log.contains("ignoring key and cert files"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_when_it_serves() {
    let directory = TempDir::new().expect("a directory");
    let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let single = Single::start_with(|command, _| {
        command.env("NOTIFY_SOCKET", directory.path().join("notify"));
    });
    let mut said = [0; 16];
    let told = tokio::task::spawn_blocking(move || socket.recv(&mut said).map(|length| said[..length].to_vec()));
    assert_eq!(told.await.expect("a thread").expect("told"), b"READY=1");
    assert!(std::fs::read_to_string(&single.log).expect("a log").contains("ready to serve client requests"));
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
    let text = String::from_utf8(Request::get("/metrics").send(metrics).await.body).expect("text");
    for line in [
        r#"etcd_server_feature_enabled{name="CompactHashCheck",stage="ALPHA"} 1"#,
        r#"grpc_server_handling_seconds_count{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is missing");
    }
    let with = |header: &str| Request { headers: vec![header.to_owned()], ..Request::get("/version") };
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
    assert_eq!(Request::get("/openapi.json").send(single.client).await.status, 404);
}

/// Every flag of docs/flags.md, with its default, as the table has it.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let table = include_str!("../../../docs/flags.md").lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = table.map(|row| row.split(" | ").map(|cell| cell.trim_matches('`')));
    cells.filter_map(|mut cells| Some((cells.next()?, cells.next()?))).collect()
}

/// The flag of a line of etcd's help, with its default where the line says one.
fn of_help(line: &str) -> Option<(&str, Option<&str>)> {
    let flag = line.strip_prefix("  --")?;
    Some(match flag.split_once(' ') {
        None => (flag, None),
        Some((name, default)) => (name, Some(default.trim_matches('\''))),
    })
}

/// What etcd's help says of a default, and what is meant.
const MEANT: [(&str, &str); 5] = [
    ("data-dir", "${name}.etcd"),
    ("initial-cluster", "default=http://localhost:2380"),
    ("max-concurrent-streams", "math.MaxUint32"),
    ("backend-batch-interval", ""),
    (
        "log-rotation-config-json",
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
    ),
];

#[test]
fn the_flags_and_their_defaults_are_those_of_the_installed_etcd() {
    let ours = documented();
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let printed = output(&program, &["--help"]);
        let help = String::from_utf8([printed.stdout, printed.stderr].concat()).expect("text");
        let theirs: Vec<_> = help.lines().filter_map(of_help).collect();
        assert!(theirs.len() > 100, "{help}");
        let mut wrong = Vec::new();
        for (name, default) in theirs {
            // Of those that stand for another flag or a gate the table has only that one.
            let present = name.strip_prefix("experimental-").filter(|_| !ours.contains_key(name)).unwrap_or(name);
            match (ours.get(present), default) {
                (None, _) => wrong.push(format!("--{name} is missing")),
                (Some(own), Some(default)) if !MEANT.contains(&(name, default)) => {
                    let default = if default.is_empty() { "–" } else { default };
                    if *own != default {
                        wrong.push(format!("--{name} is {own} by default, in etcd {default}"));
                    }
                }
                _ => {}
            }
        }
        assert!(wrong.is_empty(), "{release}:\n{}", wrong.join("\n"));
    }
}

/// The list that the table of flags is held to is no invention: the installed etcd takes each of its flags.
#[test]
fn etcd_takes_every_flag_of_the_list_of_its_flags() {
    let Some(program) = program(RELEASES[0]) else { return };
    let ours = documented();
    let value = |name: &str| {
        let present = name.strip_prefix("experimental-").filter(|_| !ours.contains_key(name)).unwrap_or(name);
        ours.get(present).map_or("", |default| if *default == "–" { "" } else { default })
    };
    let names = include_str!("../../config/src/etcd_flags.txt").lines();
    let mut args: Vec<String> = names.map(|name| format!("--{name}={}", value(name))).collect();
    assert!(args.len() > 140);
    args.push("--version".to_owned());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let printed = output(&program, &args);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
}
