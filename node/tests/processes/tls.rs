//! Both ports behind TLS: who gets in, over which protocol, and what happens while certificates change.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use balsa_node::transport::tls::{Identity, Tls, TlsOptions};
use rcgen::ExtendedKeyUsagePurpose::{CodeSigning, ServerAuth};
use tokio_rustls::TlsConnector;

use crate::certificates::{Authority, alert, curl, curl_as, etcdctl_at, flag, text};
use crate::cluster::{Cluster, Member, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::unread::open_sockets;

/// A cluster that demands certificates on both ports, and a client's.
pub(crate) async fn secured(size: usize) -> (Cluster, Authority, Identity) {
    let mut cluster = Cluster::unstarted(size);
    let authority = Authority::new(cluster.directory.path().join("tls"));
    let client = authority.sign("client", "client");
    let tls = authority.client(Some(client.clone()));
    for member in &mut cluster.members {
        let identity = authority.sign(&member.name, &member.name);
        member.flags = vec![
            flag("cert-file", &identity.cert),
            flag("key-file", &identity.key),
            flag("trusted-ca-file", &authority.ca()),
            "--client-cert-auth".to_owned(),
            flag("peer-cert-file", &identity.cert),
            flag("peer-key-file", &identity.key),
            flag("peer-trusted-ca-file", &authority.ca()),
            "--peer-client-cert-auth".to_owned(),
        ];
        member.tls = Some(tls.clone());
    }
    cluster.found().await;
    (cluster, authority, client)
}

/// A member behind TLS that demands nobody's certificate for its client port.
pub(crate) async fn open_to_all() -> (Cluster, Authority) {
    let mut cluster = Cluster::unstarted(1);
    let authority = Authority::new(cluster.directory.path().join("tls"));
    let (identity, member) = (authority.sign("m0", "m0"), &mut cluster.members[0]);
    let files = [("cert-file", &identity.cert), ("key-file", &identity.key)];
    let of_peers = [("peer-cert-file", &identity.cert), ("peer-key-file", &identity.key)];
    member.flags = files.into_iter().chain(of_peers).map(|(name, path)| flag(name, path)).collect();
    member.flags.push(flag("peer-trusted-ca-file", &authority.ca()));
    member.tls = Some(authority.client(None));
    cluster.found().await;
    (cluster, authority)
}

fn etcdctl(member: &Member, authority: &Authority, identity: Option<&Identity>, words: &[&str]) -> Output {
    etcdctl_at(&member.client_url(), authority, identity, words)
}

/// An etcd with the client port of a member of [`secured`], once it is well in the eyes of `client`.
async fn etcd_like(program: &Path, member: &Member, authority: &Authority, client: &Identity) -> Etcd {
    let flags: Vec<String> = member.flags.iter().filter(|flag| !flag.starts_with("--peer-")).cloned().collect();
    let etcd = Etcd::run(program, 1, &flags);
    let (health, begun) = (format!("https://127.0.0.1:{}/health", etcd.port), Instant::now());
    while !curl_as(&health, &authority.ca(), client, &["-f"]).status.success() {
        assert!(begun.elapsed() < PATIENCE, "{}", etcd.log_text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    etcd
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_are_served_to_those_with_a_certificate() {
    let (cluster, authority, client) = secured(3).await;
    let [first, second, third] = &cluster.members[..] else { panic!("three members") };
    first.put("a", "over grpc").await.expect("a write");
    let put = etcdctl(second, &authority, Some(&client), &["put", "b", "by etcdctl"]);
    assert_eq!(text(&put), "OK\n");
    assert_eq!(third.get("b").await.expect("a read").as_deref(), Some("by etcdctl"));
    assert_eq!(text(&etcdctl(third, &authority, Some(&client), &["get", "a"])), "a\nover grpc\n");

    let (ca, health) = (authority.ca(), format!("{}/health", first.client_url()));
    for protocol in ["--http1.1", "--http2"] {
        let said = curl_as(&health, &ca, &client, &[protocol]);
        assert_eq!(text(&said), r#"{"health":"true","reason":""}"#, "{protocol}");
    }

    let refused = curl(&health, &["--cacert", &ca.display().to_string()]);
    assert!(!refused.status.success(), "without a certificate: {}", text(&refused));
    assert!(!etcdctl(first, &authority, None, &["get", "a"]).status.success());
    let stranger = Authority::new(cluster.directory.path().join("stranger"));
    let stranger = stranger.sign("client", "client");
    assert!(!etcdctl(first, &authority, Some(&stranger), &["get", "a"]).status.success());
    let rejected = || async { first.log_text().contains("rejected connection on client endpoint") };
    cluster.eventually("the log says so", rejected).await;
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_a_user_does_not_come_through_the_gateway() {
    let (cluster, authority, client) = secured(1).await;
    let member = &cluster.members[0];
    let ask = |identity: &Identity, path: &str| {
        let words = ["-d", r#"{"key":"YQ=="}"#, "-w", " %{http_code}"];
        text(&curl_as(&format!("{}{path}", member.client_url()), &authority.ca(), identity, &words))
    };
    assert!(ask(&client, "/v3/kv/range").ends_with(" 200"), "as long as auth is off");
    for words in ["user add root:secret", "user grant-role root root", "auth enable"] {
        let done = etcdctl(member, &authority, Some(&client), &words.split(' ').collect::<Vec<_>>());
        assert!(done.status.success(), "{words}: {}", text(&done));
    }
    let refused =
        "CommonName of client sending a request against gateway will be ignored and not used as expected\n 400";
    assert_eq!(ask(&client, "/v3/kv/range"), refused);
    let nameless = authority.sign("nameless", "");
    let answer = ask(&nameless, "/v3/kv/range");
    assert_eq!(answer, r#"{"code":3,"message":"etcdserver: user name is empty"} 400"#);
}

/// Names of a certificate, and what each asks once users are checked. `client` sets it all up.
const ASKED_BY_NAME: &str = "
client user add root:secret
client user grant-role root root
client user add alice --no-password
client role add mine
client role grant-permission mine readwrite a b
client user grant-role alice mine
client auth enable
alice put a1 one
alice get a1
alice get a b
alice del a2
alice lease revoke 1
alice put b1 two
alice get b1
alice get a c
alice user list
alice --user=root:secret put b1 two
alice get b1
alice --user=root:wrong get b1
stranger get a1
stranger put a1 three
stranger lease grant 60
nameless get a1
nameless put a1 three
nameless lease grant 60
nameless user list
nameless --user=root:secret get b1
";

/// The ids of leases, which are drawn, are left out.
fn without_ids(line: &str) -> String {
    let is_id = |word: &str| word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    line.split(' ').map(|word| if is_id(word) { "ID" } else { word }).collect::<Vec<_>>().join(" ")
}

/// What is printed in answer to each line, and what the gateway says to a name that is a user.
fn answers_by_name(url: &str, authority: &Authority) -> Vec<String> {
    let asked = ASKED_BY_NAME.lines().filter(|line| !line.is_empty()).map(|line| {
        let (name, words) = line.split_once(' ').expect("a name");
        let words: Vec<&str> = words.split(' ').collect();
        let output = etcdctl_at(url, authority, Some(&authority.identity(name)), &words);
        // The logger of etcdctl puts the time of day in front.
        let said = text(&output);
        let lines = said.lines().filter(|line| !line.starts_with('{'));
        format!("{line}: {}", lines.map(without_ids).collect::<Vec<_>>().join(" / "))
    });
    let mut answers: Vec<String> = asked.collect();
    for name in ["alice", "stranger"] {
        let words = ["-d", r#"{"key":"YTE="}"#, "-w", " %{http_code}"];
        let identity = authority.identity(name);
        let output = curl_as(&format!("{url}/v3/kv/range"), &authority.ca(), &identity, &words);
        answers.push(format!("{name} through the gateway: {}", text(&output)));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_name_is_the_user_of_its_calls_and_may_do_what_that_user_may() {
    let (cluster, authority, client) = secured(1).await;
    for name in ["alice", "stranger"] {
        authority.sign(name, name);
    }
    authority.sign("nameless", "");
    let member = &cluster.members[0];
    let answers = answers_by_name(&member.client_url(), &authority);
    let has = |line: &str, said: &str| {
        let answer = answers.iter().find(|answer| answer.starts_with(&format!("{line}: ")));
        assert!(answer.is_some_and(|answer| answer.contains(said)), "{line}: no {said} in {answers:#?}");
    };
    has("alice put a1 one", "OK");
    has("alice get a1", "a1 / one");
    for line in ["alice put b1 two", "alice get b1", "alice get a c", "alice user list", "stranger get a1"] {
        has(line, "permission denied");
    }
    has("alice --user=root:secret put b1 two", "OK");
    has("alice through the gateway", "CommonName of client sending a request against gateway will be ignored");
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = etcd_like(&program, member, &authority, &client).await;
        let url = format!("https://127.0.0.1:{}", etcd.port);
        assert_eq!(answers_by_name(&url, &authority), answers, "{release}");
    }
}

/// Whether a port takes a certificate: it answers inside TLS, whatever it says, or ends the handshake.
fn is_taken(port: u16, ca: &Path, identity: &Identity) -> Result<(), String> {
    let output = curl_as(&format!("https://127.0.0.1:{port}/version"), ca, identity, &["-o", "/dev/null"]);
    if output.status.success() { Ok(()) } else { Err(text(&output)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_authority_is_trusted_by_those_that_run_and_the_old_one_no_more() {
    let (mut cluster, old, client) = secured(3).await;
    let new = Authority::new(cluster.directory.path().join("new"));
    let successor = new.sign("client", "client");
    let (old_ca, new_ca) = (std::fs::read(old.ca()).expect("read"), std::fs::read(new.ca()).expect("read"));
    let ports: Vec<u16> = cluster.members.iter().flat_map(|member| [member.client_port, member.peer_port]).collect();
    let all = |identity: &Identity, taken: bool| {
        ports.iter().all(|port| is_taken(*port, &old.ca(), identity).is_ok() == taken)
    };
    assert!(all(&client, true) && all(&successor, false), "before");

    // Both are trusted.
    std::fs::write(old.ca(), [&old_ca[..], &new_ca[..]].concat()).expect("written");
    cluster.eventually("the new one is trusted too", || async { all(&successor, true) }).await;
    assert!(all(&client, true), "and the old one still is");
    // Members show what the new one signed.
    for member in &cluster.members {
        let signed = new.sign(&member.name, &member.name);
        let shown = old.identity(&member.name);
        for (from, to) in [(signed.key, shown.key), (signed.cert, shown.cert)] {
            std::fs::copy(from, to).expect("copied");
        }
    }
    let serve = |ca: PathBuf| {
        let ports = &ports;
        let successor = &successor;
        move || {
            let ca = ca.clone();
            async move { ports.iter().all(|port| is_taken(*port, &ca, successor).is_ok()) }
        }
    };
    cluster.eventually("the new certificates are shown", serve(new.ca())).await;
    // The old one is trusted no more.
    std::fs::write(old.ca(), &new_ca).expect("written");
    cluster.eventually("the old one is refused", || async { all(&client, false) }).await;
    assert!(all(&successor, true));

    // Members meet again: one that begins anew, and those that know the new authority only from its file.
    let tls = old.client(Some(successor.clone()));
    cluster.members.iter_mut().for_each(|member| member.tls = Some(tls.clone()));
    cluster.members[0].kill();
    cluster.restart(0);
    cluster.serves(0).await;
    cluster.members[0].put("a", "b").await.expect("a write");
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_writes_and_nothing_fails() {
    let (cluster, authority, _) = secured(3).await;
    let (done, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let writer = async {
        while !done.load(Ordering::Relaxed) {
            // Each call makes a connection of its own.
            let number = written.fetch_add(1, Ordering::Relaxed);
            let member = &cluster.members[number % cluster.members.len()];
            member.put(&format!("w/{number}"), "x").await.expect("no write fails");
        }
    };
    let rotation = async {
        for round in 0..3 {
            let target = written.load(Ordering::Relaxed) + 20;
            for member in &cluster.members {
                // The two files are not of one moment: in between they do not fit together.
                authority.sign(&member.name, &format!("{}-{round}", member.name));
            }
            authority.sign("client", &format!("client-{round}"));
            cluster.eventually("writes go on", || async { written.load(Ordering::Relaxed) >= target }).await;
        }
        for member in &cluster.members {
            let shown = || async { shown_name(member).await == format!("{}-2", member.name) };
            cluster.eventually("the newest certificate is shown", shown).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(writer, rotation);
    cluster.assert_hashes_agree().await;
}

/// The common name of the certificate that a member shows.
async fn shown_name(member: &Member) -> String {
    let config = member.tls.as_ref().expect("TLS").client().expect("it dials");
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", member.client_port)).await.expect("connects");
    let name = "127.0.0.1".try_into().expect("an address");
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("a handshake");
    let leaf = &stream.get_ref().1.peer_certificates().expect("a certificate")[0];
    balsa_node::transport::tls::Subject::of(leaf).expect("a certificate").common_name
}

#[tokio::test(flavor = "multi_thread")]
async fn members_make_their_own_certificates_when_told_to() {
    let mut cluster = Cluster::unstarted(3);
    let anybody = TlsOptions { self_signed: true, dials: true, ..TlsOptions::default() };
    let anybody = Arc::new(Tls::new("test", anybody).expect("no files"));
    for member in &mut cluster.members {
        member.flags = vec!["--auto-tls".to_owned(), "--peer-auto-tls".to_owned()];
        member.tls = Some(anybody.clone());
    }
    cluster.found().await;
    cluster.members[0].put("a", "b").await.expect("a write");
    let health = curl(&format!("{}/health", cluster.members[1].client_url()), &["-k"]);
    assert_eq!(text(&health), r#"{"health":"true","reason":""}"#);
    assert!(cluster.members[2].data.join("fixtures/peer/cert.pem").exists());
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_and_slow_handshakes_are_cut_off_and_harm_nobody() {
    let (cluster, _authority, _) = secured(1).await;
    let member = &cluster.members[0];
    member.put("first", "x").await.expect("a write");
    let sockets = open_sockets(member);
    let connect = |port| {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
    };
    // A record of a handshake that never goes on.
    let slow: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = connect(if number % 2 == 0 { member.client_port } else { member.peer_port });
            stream.write_all(&[22, 3, 1]).expect("written");
            stream
        })
        .collect();
    for port in [member.client_port, member.peer_port] {
        for garbage in [&b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 512], &[22, 3, 1, 0xff, 0xff, 1, 2, 3]] {
            let mut stream = connect(port);
            stream.write_all(garbage).expect("written");
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let plain = garbage[0] != 22;
            assert!(!plain || answer.is_empty(), "another protocol gets no answer, as with etcd: {answer:?}");
        }
    }
    // One that does not know who signed for the member says so and leaves.
    let stranger = Authority::new(cluster.directory.path().join("stranger")).client(None).client().expect("it dials");
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", member.client_port)).await.expect("connects");
    let shaken = TlsConnector::from(stranger).connect("127.0.0.1".try_into().expect("an address"), stream).await;
    assert!(shaken.is_err());
    member.put("still", "here").await.expect("a write while 200 handshakes hang");
    let first = "tls: first record does not look like a TLS handshake";
    cluster.eventually("the log says so", || async { member.log_text().contains(first) }).await;
    for mut stream in slow {
        let ended = tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new()));
        let ended = ended.await.expect("a thread");
        // Closed, or reset because of the bytes that nobody read.
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "still open");
    }
    cluster.eventually("nothing is left of them", || async { open_sockets(member) <= sockets }).await;
    assert!(!member.log_text().contains("panicked"), "{}", cluster.logs());
}

/// What a client shows that is refused, and the alert that it hears.
struct Refused {
    what: &'static str,
    identity: Option<Identity>,
    words: &'static str,
    /// As etcd answers.
    alert: &'static str,
    /// As Balsa does, where rustls leaves no choice or says more; the reason stands beside it.
    ours: Option<&'static str>,
}

/// Clients that are refused, by what they show and by what they speak.
fn refused(authority: &Authority, foreign: &Authority) -> Vec<Refused> {
    let good = authority.sign("good", "client");
    let old = authority.sign_for("over", "client", 2020..2021);
    let early = authority.sign_for("early", "client", 4094..4096);
    let server = authority.sign_as("server", "client", &[ServerAuth]);
    let code = authority.sign_as("code", "client", &[CodeSigning]);
    let foreign = foreign.sign("foreign", "client");
    let case = |what, identity, words, alert| Refused { what, identity, words, alert, ours: None };
    vec![
        case("nothing", None, "-tls1_3", "certificate required"),
        // rustls has one alert for both versions.
        Refused { ours: Some("certificate required"), ..case("nothing", None, "-tls1_2", "handshake failure") },
        case("one that is over", Some(old.clone()), "-tls1_3", "certificate expired"),
        case("one that is over", Some(old), "-tls1_2", "certificate expired"),
        case("one that is not yet good", Some(early), "-tls1_3", "certificate expired"),
        case("one of another authority", Some(foreign.clone()), "-tls1_3", "unknown ca"),
        case("one of another authority", Some(foreign), "-tls1_2", "unknown ca"),
        case("one for servers", Some(server), "-tls1_3", "bad certificate"),
        case("one for code", Some(code), "-tls1_2", "bad certificate"),
        case("an old protocol", Some(good.clone()), "-tls1_1 -cipher ALL:@SECLEVEL=0", "protocol version"),
        case("other ciphers", Some(good.clone()), "-tls1_2 -cipher AES128-SHA256:@SECLEVEL=0", "handshake failure"),
        case("other ciphers", Some(good.clone()), "-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256", "handshake failure"),
        case("other groups", Some(good.clone()), "-tls1_3 -groups ffdhe2048", "handshake failure"),
        case("another protocol inside", Some(good), "-alpn nope", "no application protocol"),
    ]
}

/// The alert that a client hears at a port.
fn hears(client: &Refused, port: u16, ca: &Path) -> String {
    let heard = alert(port, ca, client.identity.as_ref(), client.words);
    heard.unwrap_or_else(|said| format!("no alert: {said}"))
}

/// The alerts are those of Go's TLS, which etcd's clients know: as recorded, and as the installed etcd gives them.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_hears_etcds_alert() {
    let (cluster, authority, good) = secured(1).await;
    let member = &cluster.members[0];
    member.put("first", "x").await.expect("a write");
    let sockets = open_sockets(member);
    let foreign = Authority::new(cluster.directory.path().join("foreign"));
    let cases = refused(&authority, &foreign);
    for client in &cases {
        let expected = client.ours.unwrap_or(client.alert);
        for port in [member.client_port, member.peer_port] {
            // The peer port speaks nothing inside TLS that could not be h2's.
            let heard = hears(client, port, &authority.ca());
            assert_eq!(heard, expected, "{} {} at {port}", client.what, client.words);
        }
    }
    cluster.eventually("nothing is left of them", || async { open_sockets(member) <= sockets }).await;
    member.put("still", "here").await.expect("a write");
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = etcd_like(&program, member, &authority, &good).await;
        for client in &cases {
            let heard = hears(client, etcd.port, &authority.ca());
            assert_eq!(heard, client.alert, "{release}: {} {}", client.what, client.words);
        }
    }
}

/// Both refuse each other: those that dial it because of what it shows, and those that it dials because of the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_certificate_is_over_is_refused_by_its_peers_until_it_has_a_new_one() {
    let (mut cluster, authority, _) = secured(3).await;
    let victim = (cluster.leader().await + 1) % 3;
    cluster.members[victim].kill();
    let name = cluster.members[victim].name.clone();
    authority.sign_for(&name, &name, 2020..2021);
    cluster.restart(victim);
    let others: Vec<&Member> = cluster.members.iter().filter(|member| member.name != name).collect();
    for member in &others {
        let dialled = || async {
            let log = member.log_text();
            let mut lines = log.lines().filter(|line| line.contains("lost the way to a peer"));
            lines.any(|line| line.contains("certificate expired"))
        };
        cluster.eventually("who dials it says why it is refused", dialled).await;
        let accepted = || async {
            let log = member.log_text();
            let mut lines = log.lines().filter(|line| line.contains("rejected connection on peer endpoint"));
            lines.any(|line| line.contains("certificate expired"))
        };
        cluster.eventually("who is dialled says why it is refused", accepted).await;
        member.put("without", "it").await.expect("two of three go on");
    }
    let victims = || async { cluster.members[victim].log_text().contains("received fatal alert") };
    cluster.eventually("it hears the alert", victims).await;
    authority.sign(&name, &name);
    cluster.serves(victim).await;
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_at_a_port_without_tls_is_answered_and_closed() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    member.put("first", "x").await.expect("a write");
    let sockets = open_sockets(member);
    let authority = Authority::new(cluster.directory.path().join("tls"));
    for port in [member.client_port, member.peer_port] {
        let connector = TlsConnector::from(authority.client(None).client().expect("it dials"));
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        let shaking = connector.connect("127.0.0.1".try_into().expect("an address"), stream);
        let shaken = tokio::time::timeout(PATIENCE, shaking).await.expect("in time");
        assert!(shaken.is_err(), "there is no TLS on port {port}");
    }
    cluster.eventually("nothing is left of them", || async { open_sockets(member) <= sockets }).await;
    member.put("still", "here").await.expect("a write");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_there_end_the_start_in_etcds_words() {
    let mut cluster = Cluster::unstarted(1);
    let nobody = TlsOptions { self_signed: true, dials: true, ..TlsOptions::default() };
    cluster.members[0].tls = Some(Arc::new(Tls::new("test", nobody).expect("no files")));
    for (flags, words) in [
        (&["--cert-file=/no/c", "--key-file=/no/k", "--peer-auto-tls"][..], "open /no/c: no such file or directory"),
        (&["--peer-auto-tls"], "TLS key/cert (--cert-file, --key-file) must be provided for client url"),
        (&["--auto-tls", "--peer-auto-tls", "--cipher-suites=X"], r#"unexpected TLS cipher suite \"X\""#),
    ] {
        cluster.members[0].flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let all = cluster.initial_cluster();
        cluster.run(0, &all, "new");
        assert_eq!(cluster.members[0].wait_for_exit().code(), Some(1), "{}", cluster.logs());
        assert!(cluster.members[0].log_text().contains(words), "{words}\n{}", cluster.logs());
    }
}
