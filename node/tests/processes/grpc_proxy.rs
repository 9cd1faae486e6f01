//! `grpc-proxy start` on Balsa and on each installed etcd, before a cluster of Balsa.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::certificates::Authority;
use crate::cluster::{Cluster, PATIENCE, free_port};
use crate::etcd::{RELEASES, program};
use crate::gateway::http::{Request, healthy};
use crate::tls::open_to_all;

/// A proxy on a port of its own. Ends with the value.
struct Proxy {
    process: Child,
    port: u16,
    _directory: TempDir,
}

impl Proxy {
    async fn start(program: &Path, cluster: &Cluster, flags: &[&str]) -> Self {
        let endpoints: Vec<_> =
            cluster.members.iter().map(|member| format!("127.0.0.1:{}", member.client_port)).collect();
        Self::before(Command::new(program), &endpoints.join(","), flags).await
    }

    async fn before(mut command: Command, endpoints: &str, flags: &[&str]) -> Self {
        let (port, directory) = (free_port(), TempDir::new().expect("a directory"));
        let process = command
            .current_dir(directory.path())
            .args(["grpc-proxy", "start"])
            .arg(format!("--listen-addr=127.0.0.1:{port}"))
            .arg(format!("--advertise-client-url=127.0.0.1:{port}"))
            .arg(format!("--endpoints={endpoints}"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program runs");
        healthy(port).await;
        Self { process, port, _directory: directory }
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port)).expect("a URL").connect_lazy()
    }

    fn etcdctl(&self, arguments: &[&str]) -> String {
        etcdctl(&format!("127.0.0.1:{}", self.port), arguments)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn etcdctl(endpoint: &str, arguments: &[&str]) -> String {
    let output =
        Command::new("etcdctl").arg(format!("--endpoints={endpoint}")).args(arguments).stdin(Stdio::null()).output();
    let output = output.expect("etcdctl runs (e2e/install etcd)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    // What the client logs has times.
    let errors: Vec<_> =
        text(&output.stderr).lines().filter(|line| line.starts_with("Error")).map(str::to_owned).collect();
    format!("{}{}", text(&output.stdout), errors.join("\n"))
}

/// The same before a new cluster on Balsa and on each installed etcd.
async fn on_each<F: Future<Output = Vec<String>>>(script: impl Fn(std::path::PathBuf, Cluster) -> F) {
    let directory = TempDir::new().expect("a directory");
    let link = directory.path().join("etcd");
    symlink(env!("CARGO_BIN_EXE_balsa"), &link).expect("a link");
    let ours = script(link, Cluster::start(1).await).await;
    assert!(!ours.is_empty());
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let theirs = script(program, Cluster::start(1).await).await;
        assert_eq!(ours, theirs, "the second is {release}'s");
    }
}

#[test]
fn what_it_prints_and_refuses_is_what_etcds_does() {
    const LINES: [&str; 9] = [
        "",
        "start -h",
        "start --nope",
        "start --max-send-bytes=x",
        "start --resolver-prefix=x",
        "start --resolver-ttl=1",
        "start --auto-tls --self-signed-cert-validity=0",
        "start --tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
        "start --tls-min-version=x",
    ];
    let directory = TempDir::new().expect("a directory");
    let link = directory.path().join("etcd");
    symlink(env!("CARGO_BIN_EXE_balsa"), &link).expect("a link");
    let say = |program: &Path, line: &str| {
        let output =
            Command::new(program).arg("grpc-proxy").args(line.split_whitespace()).stdin(Stdio::null()).output();
        let output = output.expect("the program runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        format!("{:?}\n{}{}", output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    for program in RELEASES.into_iter().filter_map(program) {
        for line in LINES {
            assert_eq!(say(&link, line), say(&program, line), "{line}: the second is {}'s", program.display());
        }
    }
}

/// A certificate towards the members that names a user would make that user of everybody who comes through the proxy; and half
/// of what TLS takes is no reason to do without.
#[test]
fn a_proxy_that_would_lend_its_name_or_leave_tls_out_does_not_start() {
    let directory = TempDir::new().expect("a directory");
    let authority = Authority::new(directory.path().to_owned());
    authority.sign("named", "root");
    let link = directory.path().join("etcd");
    symlink(env!("CARGO_BIN_EXE_balsa"), &link).expect("a link");
    let port = free_port();
    let said = |program: &Path, flags: &[&str]| {
        let output = Command::new(program)
            .current_dir(directory.path())
            .args(["grpc-proxy", "start", "--endpoints=127.0.0.1:1"])
            .arg(format!("--listen-addr=127.0.0.1:{port}"))
            .args(flags)
            .stdin(Stdio::null())
            .output()
            .expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (flags, words) in [
        (
            &["--cert=named.pem", "--key=named-key.pem", "--cacert=ca.pem"][..],
            "cert has non empty Common Name (root): named.pem",
        ),
        (&["--cert=named.pem"], "KeyFile and CertFile must both be present[key: , cert: named.pem]"),
        (&["--cert-file=named.pem"], "KeyFile and CertFile must both be present[key: , cert: named.pem]"),
        (&["--key-file=named-key.pem"], "KeyFile and CertFile must both be present[key: named-key.pem, cert: ]"),
        (&["--trusted-ca-file=ca.pem"], "KeyFile and CertFile are not presented"),
    ] {
        for program in std::iter::once(link.clone()).chain(RELEASES.into_iter().filter_map(program)) {
            let (code, text) = said(&program, flags);
            assert!(code == Some(1) && text.contains(words), "{} {flags:?}: {code:?} {text}", program.display());
        }
    }
}

/// Without a flag that says whom to trust, the system's authorities are.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_url_is_https_is_spoken_to_by_tls_whatever_the_flags_are() {
    let (cluster, authority) = open_to_all().await;
    let ours = Path::new(env!("CARGO_BIN_EXE_balsa")).to_owned();
    for program in std::iter::once(ours).chain(RELEASES.into_iter().filter_map(program)) {
        let mut command = Command::new(&program);
        command.env("SSL_CERT_FILE", authority.ca());
        let proxy = Proxy::before(command, &cluster.members[0].client_url(), &[]).await;
        assert_eq!(proxy.etcdctl(&["put", "a", "b"]), "OK", "{}", program.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_put_under_the_namespace_and_taken_from_under_it() {
    on_each(|program, cluster| async move {
        let proxy = Proxy::start(&program, &cluster, &["--namespace=ns/"]).await;
        let member = format!("127.0.0.1:{}", cluster.members[0].client_port);
        etcdctl(&member, &["put", "outside", "x"]);
        etcdctl(&member, &["put", "nsz", "x"]);
        let mut watch = watch(proxy.channel()).await;
        let lease = proxy.etcdctl(&["lease", "grant", "600"]);
        let lease = lease.split_whitespace().nth(1).expect("an id").to_owned();
        let mut said = vec![
            proxy.etcdctl(&["put", "a", "1"]),
            proxy.etcdctl(&["put", "b", "2", "--lease", &lease]),
            proxy.etcdctl(&["get", "", "--from-key"]),
            proxy.etcdctl(&["get", "a", "c"]),
            proxy.etcdctl(&["put", "a", "3", "--prev-kv"]),
            proxy.etcdctl(&["put", "", "3"]),
            proxy.etcdctl(&["del", "a", "--prev-kv"]),
            etcdctl(&member, &["get", "", "--from-key"]),
            proxy.etcdctl(&["lease", "timetolive", &lease, "--keys"]).split("attached").last().expect("it").to_owned(),
        ];
        said.push(format!("{:?}", txn(proxy.channel()).await));
        let mut events = Vec::new();
        while events.len() < 4 {
            let response = timeout(PATIENCE, watch.message()).await.expect("in time").expect("no error").expect("one");
            events.extend(response.events);
        }
        let key = |kv: &Option<balsa_proto::mvccpb::KeyValue>| kv.as_ref().map(|kv| kv.key.clone());
        said.extend(
            events.iter().map(|event| format!("{:?} {:?} {:?}", event.r#type(), key(&event.kv), key(&event.prev_kv))),
        );
        said
    })
    .await;
}

async fn watch(channel: Channel) -> tonic::Streaming<pb::WatchResponse> {
    let create =
        pb::WatchCreateRequest { key: "a".into(), range_end: vec![0u8].into(), prev_kv: true, ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let mut stream = WatchClient::new(channel).watch(requests).await.expect("a stream").into_inner();
    assert!(stream.message().await.expect("no error").expect("an answer").created);
    stream
}

/// Whether both branches are under the prefix, and what a nested one answers.
async fn txn(channel: Channel) -> Vec<pb::ResponseOp> {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    use pb::request_op::Request;
    let compare = pb::Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Version.into(),
        key: "b".into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    let range = pb::RangeRequest { key: "b".into(), ..Default::default() };
    let operation = |request| pb::RequestOp { request: Some(request) };
    let inner = pb::TxnRequest { success: vec![operation(Request::RequestRange(range))], ..Default::default() };
    let request = pb::TxnRequest {
        compare: vec![compare],
        success: vec![operation(Request::RequestTxn(inner))],
        failure: Vec::new(),
    };
    let answer = KvClient::new(channel).txn(request).await.expect("an answer").into_inner();
    let mut responses = answer.responses;
    for response in &mut responses {
        if let Some(pb::response_op::Response::ResponseTxn(inner)) = &mut response.response {
            // Who answered and in which term is not what is compared.
            inner.header = None;
            for response in &mut inner.responses {
                if let Some(pb::response_op::Response::ResponseRange(range)) = &mut response.response {
                    range.header = None;
                    range.kvs.iter_mut().for_each(|kv| kv.lease = 0);
                }
            }
        }
    }
    responses
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_register_and_are_the_members_that_clients_see() {
    on_each(|program, cluster| async move {
        let flags = ["--resolver-prefix=proxies", "--resolver-ttl=60"];
        let one = Proxy::start(&program, &cluster, &flags).await;
        let two = Proxy::start(&program, &cluster, &flags).await;
        let member = format!("127.0.0.1:{}", cluster.members[0].client_port);
        let deadline = Instant::now() + PATIENCE;
        let ports = [format!(":{}", one.port), format!(":{}", two.port)];
        while !ports.iter().all(|port| one.etcdctl(&["member", "list"]).contains(port.as_str())) {
            assert!(Instant::now() < deadline, "{}", one.etcdctl(&["member", "list"]));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut list: Vec<_> = one.etcdctl(&["member", "list"]).lines().map(str::to_owned).collect();
        list.sort();
        let without_ports = |text: &str| text.replace(&ports[0], ":1").replace(&ports[1], ":2");
        let mut said: Vec<_> = list.iter().map(|line| without_ports(line)).collect();
        said.sort();
        let mut keys: Vec<_> = etcdctl(&member, &["get", "proxies", "--prefix"]).lines().map(without_ports).collect();
        keys.sort();
        said.extend(keys);
        said
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_locks_elections_and_http_pass() {
    on_each(|program, cluster| async move {
        let proxy = Proxy::start(&program, &cluster, &[]).await;
        let lease = proxy.etcdctl(&["lease", "grant", "600"]).split_whitespace().nth(1).expect("an id").to_owned();
        let http = async |path: &str| {
            let answer = Request::get(path).send(proxy.port).await;
            format!("{path} {} {}", answer.status, String::from_utf8_lossy(&answer.body))
        };
        let metrics = http("/metrics").await;
        vec![
            proxy.etcdctl(&["lease", "keep-alive", "--once", &lease]).replace(&lease, "ID"),
            proxy.etcdctl(&["lock", "l", "echo", "locked"]),
            proxy.etcdctl(&["lease", "revoke", &lease]).replace(&lease, "ID"),
            proxy.etcdctl(&["get", "nothing", "--consistency=s"]),
            proxy.etcdctl(&["compaction", "1000"]),
            proxy.etcdctl(&["user", "add", "u:p"]),
            proxy.etcdctl(&["alarm", "list"]),
            http("/health").await,
            http("/proxy/health").await,
            http("/nothing").await,
            format!("{}", metrics.contains("etcd_server_has_leader 1")),
        ]
    })
    .await;
}

/// A member ends a connection that is pinged more often than it allows, after four times; all calls of a proxy share one.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_which_nothing_happens_is_not_cut() {
    let cluster = Cluster::start(1).await;
    let flags: [&[&str]; 2] = [&[], &["--dial-keepalive-time=1ms", "--permit-without-stream"]];
    let proxies = [
        Proxy::start(Path::new(env!("CARGO_BIN_EXE_balsa")), &cluster, flags[0]).await,
        Proxy::start(Path::new(env!("CARGO_BIN_EXE_balsa")), &cluster, flags[1]).await,
    ];
    let (mut one, mut two) = (watch(proxies[0].channel()).await, watch(proxies[1].channel()).await);
    // Every second, as members ping each other, it would be over by now.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(proxies[0].etcdctl(&["put", "a", "b"]), "OK");
    for watch in [&mut one, &mut two] {
        let response = timeout(PATIENCE, watch.message()).await.expect("in time").expect("no error").expect("one");
        assert_eq!(response.events.len(), 1);
    }
}

/// A member that is gone is left out; whoever is told so may ask again at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_gone_is_left_out() {
    let mut cluster = Cluster::start(3).await;
    let proxy = Proxy::start(Path::new(env!("CARGO_BIN_EXE_balsa")), &cluster, &[]).await;
    assert_eq!(proxy.etcdctl(&["put", "a", "b"]), "OK");
    cluster.members[0].kill();
    let deadline = Instant::now() + PATIENCE;
    let mut kept = 0;
    while kept < 6 {
        let answer = proxy.etcdctl(&["get", "a", "--print-value-only"]);
        kept = if answer == "b" { kept + 1 } else { 0 };
        assert!(Instant::now() < deadline, "{answer}");
    }
}
