//! Plain HTTP of the peer port beside etcd's.

use futures::future::join_all;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::{Answer, Request, healthy};

/// Method and path of each request.
const REQUESTS: [(&str, &str); 16] = [
    ("GET", "/version"),
    ("POST", "/version"),
    ("GET", "/version/"),
    ("GET", "//version"),
    ("GET", "/members"),
    ("POST", "/members"),
    ("GET", "/members?x=y"),
    ("GET", "/members/"),
    ("GET", "/raft/probing"),
    ("POST", "/raft/probing"),
    ("GET", "/raft/probing/"),
    ("GET", "/"),
    ("GET", "/nope"),
    ("POST", "/nope"),
    ("GET", "/health"),
    ("GET", "/metrics"),
];

/// The port that a server's peers are told of.
async fn peer_port(client_port: u16) -> u16 {
    let listed = Request::post("/v3/cluster/member/list", "{}").send(client_port).await.body;
    let listed: Value = serde_json::from_slice(&listed).expect("JSON");
    let url = listed["members"][0]["peerURLs"][0].as_str().expect("a URL");
    url.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port")
}

/// What is the same whoever answers: the status, the headers that mean something, and the body without values.
fn shape(answer: &Answer) -> String {
    let header = |name| answer.header(name).unwrap_or("-");
    let listed = header("x-etcd-cluster-id") != "-";
    let body = match serde_json::from_slice(&answer.body) {
        Ok(body) => kinds(&body),
        Err(_) => String::from_utf8_lossy(&answer.body).into_owned(),
    };
    let (kind, allow, to) = (header("content-type"), header("allow"), header("location"));
    format!("{} {kind} allow {allow} to {to} cluster {listed}: {body}", answer.status)
}

/// The names of a JSON value, with the kind of what they name.
fn kinds(value: &Value) -> String {
    match value {
        Value::Object(of) => of.iter().map(|(name, value)| format!("{name} {};", kinds(value))).collect(),
        Value::Array(of) => format!("[{}]", of.iter().map(kinds).collect::<String>()),
        Value::String(text) if is_time(text) => "time".to_owned(),
        Value::String(_) => "text".to_owned(),
        Value::Number(_) => "number".to_owned(),
        other => other.to_string(),
    }
}

/// As Go writes it, in UTC.
fn is_time(text: &str) -> bool {
    let kinds: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let Some(fraction) = kinds.strip_prefix("0000-00-00T00:00:00").and_then(|rest| rest.strip_suffix('Z')) else {
        return false;
    };
    let digits = fraction.strip_prefix('.').is_some_and(|digits| digits.chars().all(|c| c == '0') && digits.len() <= 9);
    fraction.is_empty() || digits && fraction.len() > 1 && !text.ends_with("0Z")
}

/// All at once: etcd keeps each connection of its peer port open for 5 s after the answer, and the end of it is waited for.
async fn shapes(client_port: u16) -> Vec<String> {
    let port = peer_port(client_port).await;
    let ask = |(method, path): (&'static str, &'static str)| async move {
        let request = Request { method: method.into(), ..Request::get(path) };
        format!("{method} {path}: {}", shape(&request.send(port).await))
    };
    join_all(REQUESTS.map(ask)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peer_port_answers_plain_http_as_etcd() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let ours = &shapes(member.client_port).await;
    let compare = |release: &'static str| async move {
        let Some(program) = program(release) else { return };
        let etcd = Etcd::run(&program, 1, &[]);
        healthy(etcd.port).await;
        assert_eq!(*ours, shapes(etcd.port).await, "the second is {release}'s");
    };
    join_all(RELEASES.map(compare)).await;
    let answer = Request::get("/members").send(member.peer_port).await;
    let header = member.status().await.expect("a status").header.expect("a header");
    assert_eq!(answer.header("x-etcd-cluster-id"), Some(&*format!("{:x}", header.cluster_id)));
    let members: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(members[0]["id"].as_u64(), Some(header.member_id));
    assert_eq!(members[0]["peerURLs"][0].as_str(), Some(&*member.peer_url()));
    assert_eq!(Request::get("/nope").send(member.peer_port).await.status, 404);
}
