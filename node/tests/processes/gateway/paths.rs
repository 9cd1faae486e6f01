//! Every path of plain HTTP by every method, beside etcd: status, headers and body are the same, but for a table.

use super::http::{Answer, Request, healthy};
use super::normal;
use crate::cluster::{Cluster, PATIENCE, free_port};
use crate::etcd::{Etcd, RELEASES, program};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"];

const PATHS: [&str; 36] = [
    "/health",
    "/health?exclude=NOSPACE&exclude=CORRUPT",
    "/health?exclude=NOSPACE,CORRUPT&serializable=true",
    "/health?exclude=",
    "/health/",
    "/HEALTH",
    "/livez",
    "/livez?verbose=true",
    "/livez?exclude=serializable_read&verbose",
    "/livez/",
    "/livez/serializable_read",
    "/livez/linearizable_read",
    "/readyz",
    "/readyz?exclude=non_learner&exclude=data_corruption",
    "/readyz/data_corruption?exclude=data_corruption&verbose",
    "/readyz/serializable_read?verbose",
    "/readyz/linearizable_read",
    "/readyz/non_learner",
    "/readyz/nope",
    "/readyz/linearizable_read/x",
    "/version",
    "/metrics",
    "/metrics/",
    "/debug/vars",
    "/debug/pprof/",
    "/members",
    "/config/",
    "/config/local/log",
    "/v2/keys",
    "/",
    "/v3",
    "/v3/",
    "//health",
    "/v3//kv/range",
    "/health/../version?x='1'&y",
    "/v3/kv/./nope/",
];

/// Bodies that are of one server: its numbers, its version, its command line.
const OWN: [&str; 3] = ["/metrics", "/debug/vars", "/version"];

/// What an answer says, but for times and lengths.
fn shown(path: &str, answer: &Answer) -> String {
    let own = answer.status == 200 && OWN.contains(&path);
    let body = if own { format!("{} its own", answer.status) } else { normal(answer) };
    let left_out = ["date: ", "content-length: ", "transfer-encoding: ", "connection: "];
    let headers = answer.head.lines().skip(1).filter(|line| !left_out.iter().any(|name| line.starts_with(name)));
    let mut headers: Vec<&str> = headers.collect();
    headers.sort_unstable();
    format!("{body}\n  {}", headers.join("\n  "))
}

async fn asked(port: u16) -> Vec<(String, String)> {
    let mut answers = Vec::new();
    for path in PATHS {
        for method in METHODS {
            let request = Request { method: method.into(), path: path.into(), ..Request::default() };
            answers.push((format!("{method} {path}"), shown(path, &request.send(port).await)));
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_is_answered_by_every_method_as_by_etcd() {
    let cluster = Cluster::start(1).await;
    let port = cluster.members[0].client_port;
    healthy(port).await;
    let ours = asked(port).await;
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 1, &[]);
        healthy(etcd.port).await;
        let theirs = asked(etcd.port).await;
        let wrong = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs);
        let wrong: Vec<String> =
            wrong.map(|((request, ours), (_, theirs))| format!("{request}\n{ours}\n{release}: {theirs}")).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }
}

/// The ports of `--listen-metrics-urls` have the same paths and nothing before them.
#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_port_answers_as_etcds() {
    let flag = |port: u16| format!("--listen-metrics-urls=http://127.0.0.1:{port}");
    let (port, etcds) = (free_port(), free_port());
    let mut cluster = Cluster::unstarted(1);
    cluster.members[0].flags = vec![flag(port)];
    cluster.found().await;
    healthy(port).await;
    let ours = asked(port).await;
    let Some(program) = program(RELEASES[0]) else { return };
    let _etcd = Etcd::run(&program, 1, &[flag(etcds)]);
    healthy(etcds).await;
    let theirs = asked(etcds).await;
    let wrong = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs);
    let wrong: Vec<String> =
        wrong.map(|((request, ours), (_, theirs))| format!("{request}\n{ours}\netcd: {theirs}")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Requests to a member that has lost the others. Each write and linearizable read has a second.
const ALONE: [(&str, &str, &str); 11] = [
    ("GET", "/health", ""),
    ("GET", "/health?exclude=NOSPACE", ""),
    ("GET", "/health?serializable=true", ""),
    ("GET", "/livez?verbose", ""),
    ("GET", "/readyz?exclude=linearizable_read", ""),
    ("GET", "/readyz/non_learner", ""),
    ("POST", "/v3/kv/range", r#"{"key":"YQ==","serializable":true}"#),
    ("POST", "/v3/kv/range", r#"{"key":"YQ=="}"#),
    ("POST", "/v3/kv/put", r#"{"key":"YQ=="}"#),
    ("POST", "/v3/lease/grant", r#"{"TTL":"100"}"#),
    ("POST", "/v3/lease/keepalive", r#"{"ID":"7"}"#),
];

/// What the first of three members says once the others are gone, and what its check of a linearizable read begins with.
async fn alone(port: u16) -> Vec<String> {
    let lost = async {
        while Request::get("/health").send(port).await.status != 503 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, lost).await.expect("it notices");
    let mut answers = Vec::new();
    for (method, path, body) in ALONE {
        let headers = if method == "POST" { vec!["Grpc-Timeout: 1S".to_owned()] } else { Vec::new() };
        let body = body.as_bytes().to_vec();
        let request = Request { method: method.into(), path: path.into(), headers, body, ..Request::default() };
        answers.push(format!("{path} {}", normal(&request.send(port).await)));
    }
    let answer = Request::get("/readyz/linearizable_read").send(port).await;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    answers.push(format!("{} {}", answer.status, text.split_inclusive("failed: ").next().unwrap_or_default()));
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_has_lost_the_others_says_what_etcds_says() {
    let mut cluster = Cluster::start(3).await;
    for index in [1, 2] {
        cluster.members[index].kill();
    }
    let ours = alone(cluster.members[0].client_port).await;
    let failed = r#"503 {"health":"false","reason":"RAFT NO LEADER"}"#;
    assert_eq!(ours[0], format!("/health {failed}"));
    assert_eq!(ours[11], "503 [-]linearizable_read failed: ");
    let over = r#"504 {"code":4,"message":"context deadline exceeded"}"#;
    assert_eq!(ours[8], format!("/v3/kv/put {over}"), "a write that is not known to be there is no success");
    let Some(program) = program(RELEASES[0]) else { return };
    let mut etcd = Etcd::run(&program, 3, &[]);
    for port in &etcd.ports {
        healthy(*port).await;
    }
    for index in [1, 2] {
        etcd.kill(index);
    }
    assert_eq!(ours, alone(etcd.port).await);
}
