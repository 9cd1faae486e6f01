//! Requests over HTTP/1 that are none, as Go's server and ours answer them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::Etcd;

/// How much of an answer is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Like {
    /// The first line, the content type, the body, and whether the connection is closed.
    All,
    /// The status, and that the connection is closed: hyper says no more of what it cannot read.
    Status,
}

/// A request for `/version` with these lines of its head.
fn get(lines: &[&str]) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("GET /version HTTP/1.1\r\n{lines}\r\n").into_bytes()
}

/// One for a range, with this body.
fn post(lines: &[&str], body: &str) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("POST /v3/kv/range HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}").into_bytes()
}

/// A request with this first line.
fn line(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: a\r\n\r\n").into_bytes()
}

fn cases() -> Vec<(&'static str, Like, Vec<u8>)> {
    let many: Vec<String> = (0..900).map(|number| format!("X-{number}: v")).collect();
    let many: Vec<&str> = ["Host: a"].into_iter().chain(many.iter().map(String::as_str)).collect();
    let large = |bytes| format!("X: {}", "v".repeat(bytes));
    vec![
        ("a host", Like::All, get(&["Host: a"])),
        ("no host", Like::All, get(&[])),
        ("no host over HTTP/1.0", Like::All, b"GET /version HTTP/1.0\r\n\r\n".to_vec()),
        ("an empty host", Like::All, get(&["Host: "])),
        ("two hosts", Like::All, get(&["Host: a", "Host: b"])),
        ("a host twice", Like::All, get(&["Host: a", "Host: a"])),
        ("a host of two words", Like::All, get(&["Host: a b"])),
        ("a host with a path", Like::All, get(&["Host: a/b"])),
        ("a host with a user", Like::All, get(&["Host: u@h:99999999"])),
        ("a host in brackets", Like::All, get(&["Host: <a>"])),
        ("a host that is half an address", Like::All, get(&["Host: [::1"])),
        ("a host with a comma", Like::All, get(&["Host: a,b"])),
        ("a whole URL without a host", Like::All, b"GET http://x/version HTTP/1.1\r\n\r\n".to_vec()),
        ("many headers", Like::All, get(&many)),
        ("a header of 500 KB", Like::All, get(&["Host: a", &large(500_000)])),
        ("a header of 1.1 MB", Like::Status, get(&["Host: a", &large(1_100_000)])),
        ("a method of our own", Like::All, line("FOO /version HTTP/1.1")),
        ("a method in small letters", Like::All, line("get /version HTTP/1.1")),
        ("no method", Like::Status, line("GET@ /version HTTP/1.1")),
        ("a path with a zero", Like::Status, line("GET /\0 HTTP/1.1")),
        ("a path of other letters", Like::All, line("GET /\u{fc} HTTP/1.1")),
        ("a header without a colon", Like::Status, get(&["Host: a", "nocolon"])),
        ("a header with a space before the colon", Like::Status, get(&["Host: a", "X : v"])),
        ("a header without a name", Like::Status, get(&["Host: a", ": v"])),
        ("a header with a name of wrong letters", Like::Status, get(&["Host: a", "X@y: v"])),
        ("a header with a control letter", Like::Status, get(&["Host: a", "X: \u{1}"])),
        ("a header with a zero", Like::Status, get(&["Host: a", "X: \0"])),
        ("lines that end with LF", Like::All, b"GET /version HTTP/1.1\nHost: a\n\n".to_vec()),
        ("a length that is none", Like::Status, post(&["Content-Length: x"], "")),
        ("a length below zero", Like::Status, post(&["Content-Length: -1"], "")),
        ("a length with a sign", Like::Status, post(&["Content-Length: +2"], "{}")),
        ("two lengths", Like::Status, post(&["Content-Length: 2", "Content-Length: 3"], "{}")),
        ("a length twice", Like::All, post(&["Content-Length: 2", "Content-Length: 2"], "{}")),
        ("a length beyond all", Like::Status, post(&["Content-Length: 99999999999999999999"], "{}")),
    ]
}

/// What came back: first line, content type and body, and whether the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    line: String,
    content_type: Option<String>,
    body: String,
    closed: bool,
}

impl Answer {
    fn compared(mut self, like: Like) -> Self {
        // The version of the server.
        if self.body.starts_with("{\"etcdserver\"") {
            self.body = "versions".to_owned();
        }
        if like == Like::Status {
            self.line.truncate("HTTP/1.1 400".len());
            (self.content_type, self.body) = (None, String::new());
        }
        self
    }
}

/// How long more is waited for, or the end, once something has come.
const QUIET: Duration = Duration::from_secs(2);

async fn ask(port: u16, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the port is open");
    // A server may answer and close before it has read all.
    let _ = stream.write_all(request).await;
    let (mut received, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    let closed = loop {
        let patience = if received.is_empty() { PATIENCE } else { QUIET };
        match timeout(patience, stream.read(&mut piece)).await {
            Ok(Ok(length)) if length > 0 => received.extend_from_slice(&piece[..length]),
            Ok(_) => break true,
            Err(_) => break false,
        }
    };
    let text = String::from_utf8_lossy(&received);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let content_type =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-type: ").map(str::to_owned));
    let line = head.lines().next().unwrap_or_default().to_owned();
    Answer { line, content_type, body: body.to_owned(), closed }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_none_is_answered_as_by_gos_server() {
    let cluster = Cluster::start(1).await;
    let Some(etcd) = Etcd::start().await else { return };
    let (cluster, etcd) = (&cluster, &etcd);
    let both = cases().into_iter().map(|(name, like, request)| async move {
        let (ours, theirs) = tokio::join!(ask(cluster.members[0].client_port, &request), ask(etcd.port, &request));
        let (ours, theirs) = (ours.compared(like), theirs.compared(like));
        (ours != theirs).then(|| format!("{name}\n  etcd:  {theirs:?}\n  balsa: {ours:?}"))
    });
    let differences: Vec<_> = futures::future::join_all(both).await.into_iter().flatten().collect();
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}
