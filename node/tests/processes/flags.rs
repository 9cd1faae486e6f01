//! The program as its flags and its name make it: what it prints, how it ends, where it writes and listens.

use std::collections::BTreeMap;
use std::io::{Read, Write};
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
pub(crate) struct Single {
    pub(crate) client: u16,
    log: PathBuf,
    process: Child,
    directory: TempDir,
}

impl Single {
    pub(crate) fn start(more: impl FnOnce(&Path) -> Vec<String>) -> Self {
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

    /// SIGTERM, and the end.
    pub(crate) async fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        let wait = move || {
            let ended = self.process.wait();
            drop(self);
            ended
        };
        tokio::task::spawn_blocking(wait).await.expect("a thread").expect("it ends");
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
    check(&ours, ("--discovery=https://example.com", 1, "discovery"));
    let of_the_operator = output(&ours, &["--force-new-cluster", "--bootstrap=operator", &data]);
    let text = String::from_utf8_lossy(&[of_the_operator.stdout, of_the_operator.stderr].concat()).into_owned();
    assert!(of_the_operator.status.code() == Some(1) && text.contains("RaftCluster"), "{text}");
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

/// Where a start line gets its setting from.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Args(&'static [&'static str]),
    Variable(&'static str, &'static str),
    /// Further lines of the file that everything comes from.
    File(&'static str),
}
use Origin::{Args, File, Variable};

/// How a start ends: with a code, or not.
type Ends = Option<i32>;
const SERVES: Ends = None;
const REFUSED: Ends = Some(1);
const MISREAD: Ends = Some(2);

/// What etcd says of rotation without a file, and with two.
const NO_SINGLE_FILE: &str = "--log-outputs requires a single file path when --log-rotate-config-json is defined";

/// What etcd says of two ways to the members at once; which there are differs between 3.6 and 3.7.
const CONFLICT: &str = r#"multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "#;
/// And of one that is told by half.
const HALF_A_REGISTRY: &str = "both --discovery-token and --discovery-endpoints must be set";

/// Start lines that etcd 3.6, 3.7 and Balsa take alike. Where they refuse one, all their texts hold the word. `{client}` and
/// `{peer}` are the addresses of the member's ports.
const ALIKE: &[(Origin, Ends, &str)] = &[
    (Args(&["--log-level=INFO", "--log-format=", "--logger=zap", "--log-outputs=stderr,stdout"]), SERVES, ""),
    (Args(&["--log-level=", "--log-format=console", "--log-rotation-config-json={"]), SERVES, ""),
    (Args(&["--log-level=dpanic", "--enable-log-rotation", "--log-outputs=rotated.log"]), SERVES, ""),
    (Args(&["--log-level=Debug", "--log-outputs=stderr,stderr", "--feature-gates=AllAlpha=false"]), SERVES, ""),
    (Args(&["--log-format=JSON"]), REFUSED, "JSON"),
    (Args(&["--log-format=text"]), REFUSED, "text"),
    (Args(&["--logger=ZAP"]), REFUSED, "ZAP"),
    (Args(&["--logger="]), REFUSED, "logger"),
    (Args(&["--log-outputs="]), REFUSED, "open : no such file or directory"),
    (Args(&["--log-outputs=/no/such/folder/x"]), REFUSED, "open /no/such/folder/x: no such file or directory"),
    (Args(&["--log-outputs=default,stderr"]), REFUSED, "is not supported yet"),
    (Args(&["--log-outputs=systemd/journal,stderr"]), REFUSED, "override 'default' value with something else"),
    (Args(&["--logger=capnslog"]), REFUSED, "--logger=capnslog is removed in v3.5"),
    (Args(&["--enable-log-rotation"]), REFUSED, NO_SINGLE_FILE),
    (Args(&["--enable-log-rotation", "--log-outputs=stderr,a.log"]), SERVES, ""),
    (Args(&["--enable-log-rotation", "--log-outputs=new/folder/a.log"]), SERVES, ""),
    (Args(&["--enable-log-rotation", "--log-outputs=stderr,stdout"]), SERVES, ""),
    (Args(&["--enable-log-rotation", "--log-outputs=a.log,b.log"]), REFUSED, NO_SINGLE_FILE),
    (
        Args(&["--enable-log-rotation", "--log-outputs=a.log", "--log-rotation-config-json={"]),
        REFUSED,
        "improperly formatted log rotation config: unexpected end of JSON input",
    ),
    (
        Args(&["--enable-log-rotation", "--log-outputs=a.log", "--log-rotation-config-json={x}"]),
        REFUSED,
        "improperly formatted log rotation config: invalid character 'x' looking for beginning of object key string",
    ),
    (
        Args(&["--enable-log-rotation", "--log-outputs=a.log", r#"--log-rotation-config-json={"maxsize":"x"}"#]),
        REFUSED,
        "invalid log rotation config: json: cannot unmarshal string into Go struct field logRotationConfig.Logger.maxsize of \
         type int",
    ),
    (Args(&["--listen-client-urls=unix:///no/such/folder/s"]), REFUSED, "/no/such/folder/s"),
    (
        Args(&["--listen-client-urls=unixs://s"]),
        REFUSED,
        "TLS key/cert (--cert-file, --key-file) must be provided for client url unixs://s with HTTPS scheme",
    ),
    (Args(&["--listen-client-urls=udp://127.0.0.1:1"]), MISREAD, "must be http, https, unix, or unixs"),
    (Args(&["--enable-log-rotation=maybe"]), MISREAD, "enable-log-rotation"),
    (Args(&["--feature-gates=CompactHashCheck=maybe"]), MISREAD, "CompactHashCheck"),
    (Args(&["--feature-gates=CompactHashCheck"]), MISREAD, "CompactHashCheck"),
    (Args(&["--feature-gates=compacthashcheck=true"]), MISREAD, "compacthashcheck"),
    (Args(&["--feature-gates=LeaseCheckpointPersist=true"]), REFUSED, "LeaseCheckpointPersist"),
    (Args(&["--experimental-foo=1"]), MISREAD, "experimental-foo"),
    (Args(&["--v2-deprecation=x"]), MISREAD, "v2-deprecation"),
    (Args(&["--v2-deprecation=write-only-drop-data", "--discovery-fallback=exit", "--max-snapshots=3"]), SERVES, ""),
    (Args(&["--discovery-fallback=x"]), MISREAD, "discovery-fallback"),
    (
        Args(&["--discovery-fallback=proxy"]),
        REFUSED,
        r#"v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy""#,
    ),
    (Args(&["--snapshot-count=-1"]), MISREAD, "snapshot-count"),
    (Args(&["--cluster-active-size=1", "--force", "--v", "--snapshot=x", "--peer-election-timeout=x"]), SERVES, ""),
    (Args(&["--debug"]), MISREAD, "debug"),
    (Args(&["--log-package-levels=x"]), MISREAD, "log-package-levels"),
    (Args(&["--addr=127.0.0.1:1"]), MISREAD, "addr"),
    (Variable("ETCD_LOG_FORMAT", "x"), REFUSED, "x"),
    (Variable("ETCD_LOG_OUTPUTS", "/no/such/folder/x"), REFUSED, "/no/such/folder/x"),
    (Variable("ETCD_HEARTBEAT_INTERVAL", "x"), REFUSED, "x"),
    (Variable("ETCD_HEARTBEAT_INTERVAL", ""), SERVES, ""),
    (Variable("ETCD_PRE_VOTE", "maybe"), REFUSED, "maybe"),
    (Variable("ETCD_FEATURE_GATES", "Foo=true"), REFUSED, "Foo"),
    (Variable("ETCD_INITIAL_CLUSTER_STATE", "x"), REFUSED, "x"),
    (Variable("ETCD_AUTO_COMPACTION_MODE", "x"), REFUSED, "auto-compaction-mode"),
    (Variable("ETCD_QUOTA_BACKEND_BYTES", "x"), REFUSED, "x"),
    (Variable("ETCD_GRPC_KEEPALIVE_MIN_TIME", "5"), REFUSED, "5"),
    (Variable("ETCD_SNAPSHOT_COUNT", "-1"), REFUSED, "-1"),
    (Variable("ETCD_DISCOVERY_FALLBACK", "x"), REFUSED, "x"),
    (Variable("ETCD_NAME", "m"), REFUSED, "conflict"),
    (Variable("ETCD_UNKNOWN_FLAG", "x"), SERVES, ""),
    (Variable("ETCD_VERIFY", "all"), SERVES, ""),
    (Variable("ETCD_MAX_SNAPSHOTS", "3"), SERVES, ""),
    (File("unknown-key: 1\n"), SERVES, ""),
    (File("unknown-section: {a: {b: [1, {c: 2}]}}\n"), SERVES, ""),
    (File("experimental-foo: 1\nLog-Level: debug\nETCD_NAME: x\n"), SERVES, ""),
    (File("Auto-Compaction-Mode: x\n"), REFUSED, "auto-compaction-mode"),
    (File("log-level: DEBUG\nlog-outputs: [stderr]\nfeature-gates: CompactHashCheck=true\n"), SERVES, ""),
    (File("log-format: x\n"), REFUSED, "x"),
    (File("logger: x\n"), REFUSED, "x"),
    (File("heartbeat-interval: x\n"), REFUSED, ""),
    (File("heartbeat-interval: -1\n"), REFUSED, ""),
    (File("feature-gates: Foo=true\n"), REFUSED, "Foo"),
    (File("feature-gates: 5\n"), REFUSED, ""),
    (File("feature-gates: {CompactHashCheck: true}\n"), REFUSED, ""),
    (File("pre-vote: maybe\n"), REFUSED, ""),
    (File("enable-log-rotation: true\n"), REFUSED, ""),
    (File("initial-cluster-state: x\n"), REFUSED, ""),
    (File("auto-compaction-mode: x\n"), REFUSED, "auto-compaction-mode"),
    (File("client-transport-security: {foo: 1}\n"), SERVES, ""),
    (File("client-transport-security: {auto-tls: true}\nself-signed-cert-validity: 0\n"), SERVES, ""),
    (File("grpc-keepalive-min-time: 5000000000\n"), SERVES, ""),
    // Numbers.
    (
        Args(&[
            "--quota-backend-bytes=0x40000000",
            "--max-txn-ops=1_0",
            "--max-learners=0b1",
            "--max-wals=0o5",
            "--bcrypt-cost=012",
            "--heartbeat-interval=0x64",
            "--max-concurrent-streams=1_00",
            "--backend-batch-limit=-1",
        ]),
        SERVES,
        "",
    ),
    (
        Args(&[
            "--quota-backend-bytes=-0x10",
            "--max-learners=0",
            "--auth-token-ttl=4294967296",
            "--bcrypt-cost=4294967306",
            "--self-signed-cert-validity=0",
            "--distributed-tracing-sampling-rate=-1",
        ]),
        SERVES,
        "",
    ),
    (
        Args(&["--quota-backend-bytes=1e3"]),
        MISREAD,
        r#"invalid value "1e3" for flag -quota-backend-bytes: parse error"#,
    ),
    (Args(&["--quota-backend-bytes=08"]), MISREAD, r#"invalid value "08" for flag -quota-backend-bytes: parse error"#),
    (Args(&["--quota-backend-bytes="]), MISREAD, r#"invalid value "" for flag -quota-backend-bytes: parse error"#),
    (
        Args(&["--quota-backend-bytes=9223372036854775808"]),
        MISREAD,
        "for flag -quota-backend-bytes: value out of range",
    ),
    (Args(&["--max-txn-ops=-1"]), MISREAD, r#"invalid value "-1" for flag -max-txn-ops: parse error"#),
    (Args(&["--max-txn-ops=+1"]), MISREAD, r#"invalid value "+1" for flag -max-txn-ops: parse error"#),
    (Args(&["--max-concurrent-streams=4294967296"]), MISREAD, "value out of range"),
    (Args(&["--max-learners=-1"]), REFUSED, "membership: too many learner members in cluster"),
    (Args(&["--heartbeat-interval=0"]), REFUSED, "--heartbeat-interval must be >0 (set to 0ms)"),
    (Args(&["--election-timeout=0"]), REFUSED, "--election-timeout must be >0 (set to 0ms)"),
    (
        Args(&["--election-timeout=499"]),
        REFUSED,
        "--election-timeout[499ms] should be at least as 5 times as --heartbeat-interval[100ms]",
    ),
    (
        Args(&["--election-timeout=50_001"]),
        REFUSED,
        "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
    ),
    // Tracing: nobody need be there.
    (Args(&["--enable-distributed-tracing", "--distributed-tracing-address=127.0.0.1:1"]), SERVES, ""),
    (
        Args(&["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=-1"]),
        REFUSED,
        "distributed tracing configurition is not valid: (tracing sampling rate must be positive)",
    ),
    (
        Args(&["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=1000001"]),
        REFUSED,
        "distributed tracing configurition is not valid: (tracing sampling rate must be less than 1000000)",
    ),
    // Durations.
    (
        Args(&[
            "--watch-progress-notify-interval=1h2m",
            "--grpc-keepalive-min-time=.5s",
            "--grpc-keepalive-interval=1.5s",
            "--grpc-keepalive-timeout=+1m1s",
            "--warning-apply-duration=100us",
            "--backend-batch-interval=1\u{3bc}s",
        ]),
        SERVES,
        "",
    ),
    (
        Args(&[
            "--watch-progress-notify-interval=-1s",
            "--grpc-keepalive-min-time=-1s",
            "--grpc-keepalive-interval=-1s",
            "--grpc-keepalive-timeout=0",
            "--warning-apply-duration=-1s",
            "--warning-unary-request-duration=0",
            "--downgrade-check-time=-1s",
            "--auto-compaction-retention=0h",
        ]),
        SERVES,
        "",
    ),
    (Args(&["--grpc-keepalive-min-time=1d"]), MISREAD, r#""1d" for flag -grpc-keepalive-min-time: parse error"#),
    (Args(&["--grpc-keepalive-min-time=2562047h47m17s"]), MISREAD, "for flag -grpc-keepalive-min-time: parse error"),
    (Args(&["--compact-hash-check-time=0"]), REFUSED, "--compact-hash-check-time must be >0 (set to 0s)"),
    (
        Args(&["--auto-compaction-retention=-10"]),
        REFUSED,
        r#"error parsing CompactionRetention: time: missing unit in duration "-10""#,
    ),
    (
        Args(&["--auto-compaction-retention=0x10"]),
        REFUSED,
        r#"error parsing CompactionRetention: time: unknown unit "x" in duration "0x10""#,
    ),
    (Args(&["--auto-compaction-mode="]), REFUSED, "undefined auto-compaction-mode"),
    (Args(&["--auto-compaction-mode=x"]), REFUSED, r#"unknown auto-compaction-mode "x""#),
    // Booleans.
    (
        Args(&[
            "--pre-vote=T",
            "--strict-reconfig-check=TRUE",
            "--enable-grpc-gateway=True",
            "--initial-election-tick-advance=1",
            "--auto-tls=F",
        ]),
        SERVES,
        "",
    ),
    (Args(&["--pre-vote=yes"]), MISREAD, r#"invalid boolean value "yes" for -pre-vote: parse error"#),
    (Args(&["--pre-vote="]), MISREAD, r#"invalid boolean value "" for -pre-vote: parse error"#),
    (Args(&["--pre-vote", "false"]), REFUSED, r#""false" is not a valid flag"#),
    // The command line itself.
    (Args(&["--no-such-flag", "stray"]), MISREAD, "flag provided but not defined: -no-such-flag"),
    (Args(&["stray", "--no-such-flag"]), REFUSED, r#""stray" is not a valid flag"#),
    (Args(&["--max-wals"]), MISREAD, "flag needs an argument: -max-wals"),
    (Args(&["---x"]), MISREAD, "bad flag syntax: ---x"),
    (Args(&["--version=x"]), MISREAD, r#"invalid boolean value "x" for -version: parse error"#),
    (Args(&["--"]), SERVES, ""),
    (Args(&["-"]), REFUSED, r#""-" is not a valid flag"#),
    // URLs.
    (
        Args(&[
            "--listen-client-urls=http://{client},HTTP://{client}",
            "--listen-peer-urls=http://{peer},http://{peer}",
            "--initial-advertise-peer-urls=HTTP://{peer}",
            "--initial-cluster=,m=HTTP://{peer},",
        ]),
        SERVES,
        "",
    ),
    (Args(&["--listen-peer-urls=", "--listen-client-urls=", "--initial-advertise-peer-urls="]), SERVES, ""),
    (Args(&["--listen-client-urls=http://{peer}"]), REFUSED, "ddress already in use"),
    (Args(&["--listen-metrics-urls=http://{peer}"]), REFUSED, "ddress already in use"),
    (
        Args(&["--listen-client-http-urls=http://{client}"]),
        REFUSED,
        "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url",
    ),
    (
        Args(&["--listen-peer-urls=http://{peer}/"]),
        MISREAD,
        "for flag -listen-peer-urls: URL must not contain a path: ",
    ),
    (Args(&["--advertise-client-urls=http://{peer}/x"]), MISREAD, "URL must not contain a path: "),
    (
        Args(&["--advertise-client-urls=http://a"]),
        MISREAD,
        r#"URL address does not have the form "host:port": http://a"#,
    ),
    (Args(&["--listen-peer-urls={peer}"]), MISREAD, "first path segment in URL cannot contain colon"),
    (Args(&["--listen-peer-urls=http://{peer},"]), MISREAD, "URL scheme must be http, https, unix, or unixs: "),
    (Args(&["--listen-peer-urls=http://127.0.0.1:+1"]), MISREAD, r#"invalid port ":+1" after host"#),
    (Args(&["--listen-peer-urls=http://127.0.0.1:99999"]), REFUSED, "address 99999: invalid port"),
    (Args(&["--listen-peer-urls=http://:1"]), REFUSED, ""),
    (Args(&["--listen-peer-urls=http://LOCALHOST:1"]), REFUSED, "expected IP in URL for binding (http://LOCALHOST:1)"),
    (Args(&["--advertise-client-urls=http://:1"]), REFUSED, ""),
    // The cluster.
    (
        Args(&["--initial-cluster-state=existing"]),
        REFUSED,
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs",
    ),
    (
        Args(&["--initial-cluster-state=existing", "--initial-cluster=m=http://{peer},n=http://127.0.0.1:1"]),
        REFUSED,
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs",
    ),
    (
        Args(&["--initial-cluster-state=NEW"]),
        MISREAD,
        r#"invalid value "NEW" for flag -initial-cluster-state: invalid value"#,
    ),
    (Args(&["--initial-cluster="]), REFUSED, r#"couldn't find local name "m" in the initial cluster configuration"#),
    (Args(&["--name="]), REFUSED, r#"couldn't find local name "" in the initial cluster configuration"#),
    (
        Args(&["--initial-cluster=m"]),
        REFUSED,
        "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
    ),
    (
        Args(&["--initial-cluster=m=http://{peer}/"]),
        REFUSED,
        "error setting up initial cluster: URL must not contain a path: http://",
    ),
    (Args(&["--initial-cluster=m=http://{peer},n=http://{peer}"]), REFUSED, " has duplicate url"),
    (
        Args(&["--initial-cluster=m=http://127.0.0.1:1"]),
        REFUSED,
        "--initial-cluster has m=http://127.0.0.1:1 but missing from --initial-advertise-peer-urls=http://",
    ),
    (Args(&["--initial-cluster-token="]), SERVES, ""),
    // Discovery.
    (Args(&["--discovery-srv=balsa.test"]), REFUSED, CONFLICT),
    (Args(&["--discovery-token=t", "--discovery-endpoints=127.0.0.1:1"]), REFUSED, CONFLICT),
    (
        Args(&["--initial-cluster=", "--discovery-srv=a", "--discovery-token=t", "--discovery-endpoints=127.0.0.1:1"]),
        REFUSED,
        CONFLICT,
    ),
    (Args(&["--initial-cluster=", "--discovery-token=t"]), REFUSED, HALF_A_REGISTRY),
    (Args(&["--initial-cluster=", "--discovery-endpoints=127.0.0.1:1"]), REFUSED, HALF_A_REGISTRY),
    (Args(&["--initial-cluster=", "--discovery-endpoints="]), REFUSED, HALF_A_REGISTRY),
    (
        Args(&["--initial-cluster=", "--discovery-token=t", "--discovery-endpoints="]),
        REFUSED,
        "--discovery-endpoints must not contain empty endpoints",
    ),
    (
        Args(&["--initial-cluster=", "--discovery-token=t", "--discovery-endpoints=a:1, "]),
        REFUSED,
        "--discovery-endpoints must not contain empty endpoints",
    ),
    (
        Args(&["--initial-cluster=", "--discovery-token=t", "--discovery-endpoints=a:1", "--discovery-cert=x"]),
        REFUSED,
        "failed to join discovery cluster (KeyFile and CertFile must both be present[key: , cert: x])",
    ),
    (
        Args(&[
            "--initial-cluster=",
            "--discovery-token=t",
            "--discovery-endpoints=a:1",
            "--initial-cluster-state=existing",
        ]),
        REFUSED,
        // 3.6 looks for the cluster in a list of itself, and says that nobody is there.
        "",
    ),
    (
        Args(&["--initial-cluster=", "--discovery-srv-name=x"]),
        REFUSED,
        r#"couldn't find local name "m" in the initial cluster configuration"#,
    ),
    (Args(&["--discovery-srv-name=x", "--discovery-srv=", "--discovery-user=u", "--discovery-cert=x"]), SERVES, ""),
    (
        Args(&["--discovery-dial-timeout=5"]),
        MISREAD,
        r#"invalid value "5" for flag -discovery-dial-timeout: parse error"#,
    ),
    (Variable("ETCD_DISCOVERY_SRV", "balsa.test"), REFUSED, CONFLICT),
    (File("discovery-srv: balsa.test\n"), REFUSED, CONFLICT),
    (File("discovery-config: {token: t}\n"), REFUSED, HALF_A_REGISTRY),
    (File("discovery-config: {token: t, client: {endpoints: [a], dial-timeout: 5}}\n"), REFUSED, CONFLICT),
    (File("discovery-config: {client: {secure: {cacert: x}, auth: {username: u}}}\n"), SERVES, ""),
    (File("discovery-config: 5\n"), REFUSED, ""),
    (File("discovery-config: {client: {dial-timeout: x}}\n"), REFUSED, ""),
    // The same from variables and from the file.
    (Variable("ETCD_QUOTA_BACKEND_BYTES", "0x40000000"), SERVES, ""),
    (
        Variable("ETCD_QUOTA_BACKEND_BYTES", "08"),
        REFUSED,
        r#"invalid value "08" for ETCD_QUOTA_BACKEND_BYTES: parse error"#,
    ),
    (Variable("ETCD_MAX_TXN_OPS", "-1"), REFUSED, r#"invalid value "-1" for ETCD_MAX_TXN_OPS: parse error"#),
    (Variable("ETCD_GRPC_KEEPALIVE_MIN_TIME", "-1.5s"), SERVES, ""),
    (Variable("ETCD_PRE_VOTE", "T"), SERVES, ""),
    (Variable("ETCD_PRE_VOTE", "yes"), REFUSED, r#"invalid value "yes" for ETCD_PRE_VOTE: parse error"#),
    (
        Variable("ETCD_LISTEN_METRICS_URLS", "x"),
        REFUSED,
        r#"invalid value "x" for ETCD_LISTEN_METRICS_URLS: URL scheme must be http, https, unix, or unixs: x"#,
    ),
    (Variable("ETCD_LISTEN_METRICS_URLS", "http://127.0.0.1:99999"), REFUSED, "address 99999: invalid port"),
    (
        Variable("ETCD_FEATURE_GATES", "Foo=true"),
        REFUSED,
        r#"invalid value "Foo=true" for ETCD_FEATURE_GATES: unrecognized feature gate: Foo"#,
    ),
    (
        File(
            "quota-backend-bytes: 0x40000000\nmax-learners: 1.0\npre-vote: yes\ngrpc-keepalive-min-time: 1e9\n\
             watch-progress-notify-interval: -5\nauto-compaction-retention: \"5\"\ninitial-cluster-token:\n\
             client-transport-security:\nlog-outputs: []\nlisten-metrics-urls: \"\"\nmax-txn-ops: 1_000\n",
        ),
        SERVES,
        "",
    ),
    (File("quota-backend-bytes: 1.5\n"), REFUSED, ""),
    (File("quota-backend-bytes: [1]\n"), REFUSED, ""),
    (File("quota-backend-bytes: true\n"), REFUSED, ""),
    (File("max-txn-ops: -1\n"), REFUSED, ""),
    (File("max-concurrent-streams: 4294967296\n"), REFUSED, ""),
    (File("initial-cluster-token: 5\n"), REFUSED, ""),
    (File("initial-cluster-token: true\n"), REFUSED, ""),
    (File("metrics: 5\n"), REFUSED, ""),
    (File("log-rotation-config-json: 5\n"), REFUSED, ""),
    (File("log-level: 5\n"), REFUSED, ""),
    (File("log-outputs: [stderr, 5]\n"), REFUSED, ""),
    (File("auto-compaction-retention: 5\n"), REFUSED, ""),
    (File("grpc-keepalive-min-time: 1.5\n"), REFUSED, ""),
    (File("grpc-keepalive-min-time: true\n"), REFUSED, ""),
    (File("compact-hash-check-time: 0\n"), REFUSED, "--compact-hash-check-time must be >0 (set to 0s)"),
    (File("pre-vote: [true]\n"), REFUSED, ""),
    (File("enable-pprof: x\n"), REFUSED, ""),
    (File("force-new-cluster: x\n"), REFUSED, ""),
    (File("force-new-cluster: true\n"), SERVES, ""),
    (Args(&["--force-new-cluster"]), SERVES, ""),
    (Variable("ETCD_FORCE_NEW_CLUSTER", "true"), SERVES, ""),
    (Args(&["--force-new-cluster=x"]), MISREAD, "for -force-new-cluster: parse error"),
    (Args(&["--force-new-cluster", "false"]), REFUSED, "false"),
    (File("backend-batch-limit: x\n"), REFUSED, ""),
    (File("client-transport-security: 5\n"), REFUSED, ""),
    (File("client-transport-security: {auto-tls: 5}\n"), REFUSED, ""),
    (File("client-transport-security: {cert-file: 5}\n"), REFUSED, ""),
    (File("peer-transport-security: x\n"), REFUSED, ""),
    (File("socket-options: {reuse-port: true}\n"), SERVES, ""),
    (File("listen-metrics-urls: http://127.0.0.1:1/x\n"), REFUSED, "URL must not contain a path: http://127.0.0.1:1/x"),
];

/// Start lines that Balsa takes in another way, with what both etcds do, what Balsa does, and why.
const UNLIKE: &[(Origin, Ends, Ends, &str)] = &[
    (Args(&["--log-level=x"]), MISREAD, REFUSED, "etcd panics"),
    (Args(&["--log-level=trace"]), MISREAD, REFUSED, "etcd panics"),
    (Variable("ETCD_LOG_LEVEL", "x"), MISREAD, REFUSED, "etcd panics"),
    (File("log-level: x\n"), MISREAD, REFUSED, "etcd panics"),
    (
        Args(&["--enable-log-rotation", "--log-outputs=a.log", "--log-rotation-config-json={}"]),
        MISREAD,
        SERVES,
        "etcd panics",
    ),
    (
        Args(&["--enable-log-rotation", "--log-outputs=a.log", r#"--log-rotation-config-json={"maxsize":-1}"#]),
        SERVES,
        REFUSED,
        "etcd logs nothing then",
    ),
    (Args(&["--v2-deprecation=not-yet"]), MISREAD, SERVES, "a manifest of 3.5"),
    (Args(&["--enable-v2=true"]), MISREAD, SERVES, "a manifest of 3.5; Jepsen passes it"),
    (Args(&["--proxy=off", "--proxy-dial-timeout=1"]), MISREAD, SERVES, "a manifest of 3.5"),
    (Args(&["--experimental-enable-v2v3=x"]), MISREAD, SERVES, "a manifest of 3.5"),
    (Variable("ETCD_METRICS", "x"), SERVES, REFUSED, "etcd takes any other word for basic"),
    (File("log-outputs: stderr\n"), REFUSED, SERVES, "a text is split as on the command line"),
    (File("heartbeat-interval: \"100\"\n"), REFUSED, SERVES, "a number may stand in quotes"),
    (File("grpc-keepalive-min-time: 5s\n"), REFUSED, SERVES, "a duration may have a unit"),
    (File("pre-vote: \"true\"\n"), REFUSED, SERVES, "a boolean may stand in quotes"),
    (File("pre-vote: 1\n"), REFUSED, SERVES, "a boolean as Go's flags have it"),
    (Args(&["--corrupt-check-time=-1s"]), MISREAD, REFUSED, "etcd panics"),
    (
        Args(&["--auto-compaction-mode=revision", "--auto-compaction-retention=1h"]),
        SERVES,
        REFUSED,
        "nobody means 3,600,000,000,000 revisions",
    ),
    (Args(&["--max-txn-ops=0"]), SERVES, REFUSED, "no transaction could do anything"),
    (Args(&["--max-request-bytes=4294967296"]), SERVES, REFUSED, "a command must fit into one frame between members"),
    (Args(&["--advertise-client-urls=http://u:p@{client}"]), SERVES, MISREAD, "nobody would look at it"),
    (Args(&["--advertise-client-urls=http://{client}?x=1"]), SERVES, MISREAD, "nobody would look at it"),
    (Args(&["--advertise-client-urls=http://127.0.0.1:99999"]), SERVES, REFUSED, "nobody can go there"),
    (Args(&["--listen-peer-urls=http://127.0.0.1:"]), SERVES, MISREAD, "nobody would know the port"),
    (Variable("ETCD_CORS", "x"), REFUSED, SERVES, "a page's origin has no port where it is the usual one"),
    (File("quota-backend-bytes: \"0x40000000\"\n"), REFUSED, SERVES, "a number may stand in quotes"),
    (File("initial-cluster-token: [a]\n"), REFUSED, SERVES, "a list is one with commas"),
    (File("peer-transport-security: {allowed-cn: a}\n"), REFUSED, SERVES, "a text is split as on the command line"),
    (File("pre-vote: T\n"), REFUSED, SERVES, "a boolean as Go's flags have it"),
];

/// How a start ends and what is said until then.
fn start(program: &Path, from: Origin) -> (Ends, String) {
    let directory = TempDir::new().expect("a directory");
    let (client, peer) = (free_port(), free_port());
    let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let settings = [
        ("name", "m".to_owned()),
        ("data-dir", "data".to_owned()),
        ("listen-client-urls", client_url.clone()),
        ("advertise-client-urls", client_url),
        ("listen-peer-urls", peer_url.clone()),
        ("initial-advertise-peer-urls", peer_url.clone()),
        ("initial-cluster", format!("m={peer_url}")),
    ];
    let log = std::fs::File::create(directory.path().join("log")).expect("a log file");
    let mut command = Command::new(program);
    command.current_dir(directory.path()).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a second handle")).stderr(log);
    if let File(more) = from {
        let lines: String = settings.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        std::fs::write(directory.path().join("file"), lines + more).expect("written");
        command.arg("--config-file=file");
    } else {
        command.args(settings.iter().map(|(name, value)| format!("--{name}={value}")));
    }
    let address = |arg: &&str| {
        arg.replace("{client}", &format!("127.0.0.1:{client}")).replace("{peer}", &format!("127.0.0.1:{peer}"))
    };
    match from {
        Args(args) => command.args(args.iter().map(address)),
        Variable(name, value) => command.env(name, value),
        File(_) => &mut command,
    };
    let mut process = command.spawn().expect("the program runs");
    let ends = until_it_serves(&mut process, client);
    let _ = process.kill();
    let _ = process.wait();
    // What stands in a line of JSON has its quotes behind strokes.
    let said = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
    (ends, said.replace("\\\"", "\""))
}

/// How it ends, if it does before it serves.
fn until_it_serves(process: &mut Child, port: u16) -> Ends {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match process.try_wait().expect("its state") {
            Some(status) => return status.code(),
            None if serves(port) => return SERVES,
            None => assert!(Instant::now() < deadline, "it neither serves nor ends"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Whether it has a leader, by its own word.
fn serves(port: u16) -> bool {
    let Ok(mut connection) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = connection.set_read_timeout(Some(std::time::Duration::from_secs(1)));
    let _ = connection.write_all(b"GET /health HTTP/1.0\r\n\r\n");
    let mut answer = String::new();
    let _ = connection.read_to_string(&mut answer);
    answer.contains(r#""health":"true""#)
}

#[test]
fn every_start_line_of_the_tables_ends_as_etcds() {
    let directory = TempDir::new().expect("a directory");
    let check = |program: &Path, from: Origin, expected: Ends, word: &str| {
        let (ends, said) = start(program, from);
        let wrong = ends != expected || !said.contains(word);
        wrong.then(|| format!("{} {from:?}: {ends:?}, not {expected:?} with {word:?}: {said}", program.display()))
    };
    let of = |program: PathBuf, is_etcd: bool| {
        let alike = ALIKE.iter().filter_map(|(from, ends, word)| check(&program, *from, *ends, word));
        let unlike = UNLIKE
            .iter()
            .filter_map(|(from, etcds, ours, _)| check(&program, *from, if is_etcd { *etcds } else { *ours }, ""));
        alike.chain(unlike).collect::<Vec<_>>()
    };
    let etcds: Vec<_> = RELEASES.into_iter().filter_map(program).collect();
    let wrong = std::thread::scope(|scope| {
        let ours = scope.spawn(|| of(etcd(&directory), false));
        let theirs: Vec<_> = etcds.into_iter().map(|program| scope.spawn(|| of(program, true))).collect();
        let all = theirs.into_iter().chain([ours]).map(|thread| thread.join().expect("a thread"));
        all.flatten().collect::<Vec<_>>()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the flags say of the cluster is asked by an empty disk alone, so that a member that moved or was renamed starts from an
/// old script.
#[test]
fn a_member_that_restarts_is_not_asked_what_cluster_it_founds() {
    let directory = TempDir::new().expect("a directory");
    for program in program(RELEASES[0]).into_iter().chain([etcd(&directory)]) {
        let place = TempDir::new().expect("a directory");
        let (client, peer) = (free_port(), free_port());
        let (client, peer) = (format!("127.0.0.1:{client}"), format!("127.0.0.1:{peer}"));
        let start = |more: &[&str]| {
            let mut command = Command::new(&program);
            command.current_dir(place.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.args(["--name=m", "--data-dir=data"].map(str::to_owned));
            command.args(["listen", "advertise"].map(|what| format!("--{what}-client-urls=http://{client}")));
            command.args(["listen", "initial-advertise"].map(|what| format!("--{what}-peer-urls=http://{peer}")));
            let mut process = command.args(more).spawn().expect("the program runs");
            let ends =
                until_it_serves(&mut process, client.rsplit(':').next().unwrap_or_default().parse().expect("a port"));
            let _ = process.kill();
            let _ = process.wait();
            assert_eq!(ends, SERVES, "{} {more:?}", program.display());
        };
        start(&[]);
        for more in [
            &["--initial-cluster="][..],
            &["--initial-cluster=other=http://127.0.0.1:1"],
            &["--initial-cluster=m=bad"],
            &["--name=other", "--initial-cluster-token=other"],
            &["--initial-advertise-peer-urls=http://127.0.0.1:1"],
            &["--initial-cluster-state=existing"],
        ] {
            start(more);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_that_drivers_wait_for_has_etcds_fields() {
    let single = Single::start(|directory| {
        let file = directory.join("file.log").display().to_string();
        vec![
            format!("--log-outputs=stderr,{file}"),
            "--max-wals=9".into(),
            "--snapshot-count=10000".into(),
            "--max-snapshots=5".into(),
        ]
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
    // It has each line a moment after the one before it has.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let file = std::fs::read_to_string(single.directory.path().join("file.log")).expect("the file");
        if file.contains("ready to serve client requests") {
            return;
        }
        assert!(Instant::now() < deadline, "{file}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What takes longer than the flag says is logged in etcd's words, with etcd's fields.
#[tokio::test(flavor = "multi_thread")]
async fn what_takes_long_to_apply_or_to_read_is_logged() {
    const TEXT: &str = "apply request took too long";
    let calls = async |single: &Single| {
        single.logged("ready to serve client requests").await;
        for (path, body) in [
            ("/v3/kv/put", r#"{"key":"YQ==","value":"c2VjcmV0"}"#),
            ("/v3/kv/range", r#"{"key":"YQ==","range_end":"Yg=="}"#),
            ("/v3/kv/txn", r#"{"success":[{"request_range":{"key":"YQ=="}}]}"#),
        ] {
            assert_eq!(Request::post(path, body).send(single.client).await.status, 200, "{path}");
        }
    };
    let single = Single::start(|_| vec!["--experimental-warning-apply-duration=1ns".into()]);
    calls(&single).await;
    let log = single.logged("read-only txn").await;
    let lines: Vec<serde_json::Value> =
        log.lines().filter(|line| line.contains(TEXT)).map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let line = |prefix: &str, request: &str| {
        let found = lines.iter().find(|line| {
            line["prefix"].as_str().unwrap_or_default() == prefix && line["request"].as_str() == Some(request)
        });
        found.unwrap_or_else(|| panic!("no {prefix}{request} in {log}"))
    };
    for line in &lines {
        assert_eq!((line["level"].as_str(), line["expected-duration"].as_str()), (Some("warn"), Some("1ns")), "{line}");
        assert!(line["took"].is_string() && line["response"].is_string(), "{line}");
    }
    assert!(line("", "Put:1")["response"].as_str().is_some_and(|text| text.starts_with("size:")));
    let range = &line("read-only range ", r#"key:"a" range_end:"b""#)["response"];
    assert!(range.as_str().is_some_and(|text| text.starts_with("range_response_count:1 size:")), "{range}");
    let txn = &line("read-only txn ", "compare:0 success:1 failure:0")["response"];
    assert!(txn.as_str().is_some_and(|text| text.starts_with("responses:<range_response_count:1> size:")), "{txn}");
    assert!(!log.contains("secret"), "no value is shown");

    let single = Single::start(|_| vec!["--warning-apply-duration=1h".into()]);
    calls(&single).await;
    assert!(!std::fs::read_to_string(&single.log).expect("a log").contains(TEXT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_goes_in_the_steps_that_the_flags_say() {
    const CHANGES: u32 = 100;
    let single = Single::start(|_| {
        vec!["--compaction-batch-limit=10".into(), "--experimental-compaction-sleep-interval=50ms".into()]
    });
    single.logged("ready to serve client requests").await;
    for _ in 0..CHANGES {
        assert_eq!(Request::post("/v3/kv/put", r#"{"key":"YQ=="}"#).send(single.client).await.status, 200);
    }
    let began = Instant::now();
    let compact = Request::post("/v3/kv/compaction", r#"{"revision":"101","physical":true}"#);
    assert_eq!(compact.send(single.client).await.status, 200);
    let took = began.elapsed();
    let shown = String::from_utf8(Request::get("/metrics").send(single.client).await.body).expect("text");
    let steps = "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count ";
    let steps: u32 = shown.lines().find_map(|line| line.strip_prefix(steps)?.parse().ok()).expect("a count");
    assert!((CHANGES / 10..=CHANGES / 10 + 1).contains(&steps), "{steps} steps");
    assert!(took >= std::time::Duration::from_millis(50) * (steps - 1), "{steps} steps in {took:?}");
    single.logged("finished scheduled compaction").await;
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
const MEANT: [(&str, &str); 4] = [
    ("data-dir", "${name}.etcd"),
    ("initial-cluster", "default=http://localhost:2380"),
    ("max-concurrent-streams", "math.MaxUint32"),
    ("backend-batch-interval", ""),
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
