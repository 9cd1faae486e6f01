//! "request stats": the line that etcd logs of each unary call at the level debug, and else of slow ones. The same calls, and every
//! field that is not of time, address or ids is the same.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::time::{Duration, Instant, sleep};

use crate::auth::etcdctl;
use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::{Request, healthy};

/// What etcdctl is called with.
const CALLS: [&str; 7] = [
    "put a bcd",
    "put b \u{1}\"ä --prev-kv",
    "get a --prefix",
    "get a z --limit=5 --rev=1 --sort-by=MODIFY --order=DESCEND --consistency=s --keys-only",
    "del a --prev-kv",
    "put x y --lease=77",
    "member list",
];

/// By the gateway: transactions.
const TXN: &str = r#"{"compare":[{"key":"YQ==","target":"VERSION","version":"0"},{"key":"Yg==","target":"VALUE","value":"eA=="}],
    "success":[{"requestPut":{"key":"Yw==","value":"ZGVm"}},{"requestRange":{"key":"Yw=="}}],
    "failure":[{"requestPut":{"key":"ZQ==","value":"eQ=="}},{"requestDeleteRange":{"key":"cQ==","prevKv":true}}]}"#;

/// The fields that are compared; sizes of answers depend on ids.
const FIELDS: [&str; 6] =
    ["level", "response type", "request count", "request size", "response count", "request content"];

/// The lines of a log, of calls of the client only.
fn told(log: &str) -> Vec<BTreeMap<String, Value>> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let stats = lines.filter(|line| line["msg"] == "request stats");
    let stats = stats.filter(|line| line["request content"] != "" || line["request count"] == -1);
    // Whoever started the member asked whether it is up.
    let stats = stats.skip_while(|line| line["request content"] == "");
    stats
        .map(|line| {
            for field in ["ts", "caller", "start time", "time spent", "remote", "response size"] {
                assert!(!line[field].is_null(), "{field} is missing: {line}");
            }
            FIELDS.iter().map(|field| ((*field).to_owned(), plain(&line[*field]))).collect()
        })
        .collect()
}

/// Go's protobuf puts two spaces between fields now and then, so that nobody relies on its text; that of 3.6 has other brackets.
fn plain(value: &Value) -> Value {
    match value.as_str() {
        Some(text) => text.replace("  ", " ").replace('<', "{").replace('>', "}").replace(" }", "}").trim().into(),
        None => value.clone(),
    }
}

async fn calls(url: &str, port: u16) {
    healthy(port).await;
    for call in CALLS {
        etcdctl(url, call);
    }
    assert_eq!(Request::post("/v3/kv/txn", TXN).send(port).await.status, 200);
}

/// The lines, once the last call has its own.
async fn eventually(log: impl Fn() -> String) -> Vec<BTreeMap<String, Value>> {
    let begun = std::time::Instant::now();
    loop {
        let told = told(&log());
        if told.last().is_some_and(|last| last["response type"] == "/etcdserverpb.KV/Txn") {
            return told;
        }
        assert!(begun.elapsed() < PATIENCE, "{told:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_debug_each_call_has_etcds_line() {
    // Of a call that takes long the line has another level.
    let cluster = Cluster::start_with(1, &["--log-level=debug", "--warning-unary-request-duration=1h"]).await;
    let member = &cluster.members[0];
    calls(&member.client_url(), member.client_port).await;
    let ours = eventually(|| member.log_text()).await;
    assert_eq!(ours[0]["request content"], r#"key:"a" value_size:3"#);
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd =
            Etcd::run(&program, 1, &["--log-level=debug".to_owned(), "--warning-unary-request-duration=1h".to_owned()]);
        calls(&format!("http://127.0.0.1:{}", etcd.port), etcd.port).await;
        assert_eq!(ours, eventually(|| etcd.log_text()).await, "the second is {release}'s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn else_only_calls_that_take_long_have_one() {
    let mut cluster = Cluster::start_with(1, &["--warning-unary-request-duration=100ms"]).await;
    cluster.members[0].kill();
    cluster.restart_to_fail(0, "apply-before-write=5*off->1*sleep(300)->off");
    cluster.serves(0).await;
    let member = &cluster.members[0];
    let mut calls = Vec::new();
    for number in 0..10 {
        let begun = Instant::now();
        member.put(&format!("k{number}"), "x").await.expect("a write");
        calls.push((format!(r#"key:"k{number}" value_size:1"#), begun.elapsed()));
    }
    let has_line = |content: &str| told(&member.log_text()).into_iter().find(|line| line["request content"] == content);
    // Whose client had the answer in less than the time was no slow call; any other may be, where the machine is busy.
    for (content, _) in calls.iter().filter(|(_, took)| *took < Duration::from_millis(100)) {
        assert_eq!(has_line(content), None);
    }
    let (slowest, took) = calls.iter().max_by_key(|(_, took)| *took).expect("ten calls");
    assert!(*took >= Duration::from_millis(300), "{calls:?}");
    cluster.eventually("the slow call has its line", || async { has_line(slowest).is_some() }).await;
    assert_eq!(has_line(slowest).expect("it is there")["level"], "warn");
}
