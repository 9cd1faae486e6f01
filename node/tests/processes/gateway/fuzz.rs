//! Bad input for the gateway: bodies from a seeded generator, each some mutations away from a good one. Every answer must be
//! one of the API, etcd's own when etcd is there, and the node must still serve afterwards, and hold nothing of what it was
//! asked. Each run has a new seed; `BALSA_SEED=n` repeats one.

use std::collections::BTreeSet;
use std::future::pending;
use std::time::{Duration, SystemTime};

use balsa_node::domain::random::Random;
use futures::future::{Either, select};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::http::{Answer, Request, healthy};
use super::normal;
use crate::cluster::{Cluster, Member};
use crate::etcd::Etcd;
use crate::unread::{eventually, open_files, open_sockets, resident_kib};

/// Requests of one run.
const REQUESTS: usize = 800;

/// Requests after which a node has grown to its size.
const WARM: usize = 200;

/// What it may grow by afterwards: 50 KiB kept of each request would be found.
const GROWTH_KIB: u64 = 30 << 10;

/// Files that its store may open meanwhile.
const STORE_FILES: usize = 16;

/// Good bodies, and the paths that take them. None of them, a little changed, makes one side wait for the clock, or ends a
/// cluster of one member.
const GOOD: [(&str, &str); 32] = [
    ("/v3/kv/range", r#"{"key":"Zm9v","range_end":"Zm9w","limit":"10","sort_order":"DESCEND","sort_target":"MOD"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":2,"serializable":true,"countOnly":false,"min_mod_revision":"1"}"#),
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFyYmF6","prev_kv":true,"lease":"0"}"#),
    ("/v3/kv/put", r#"{"key":"YQ==","ignore_value":true,"ignoreLease":false}"#),
    ("/v3/kv/deleterange", r#"{"key":"YQ==","range_end":"Yg==","prev_kv":true}"#),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"VERSION","result":"GREATER","version":"0"}],"success":[{"request_put":{"key":"Yg==","value":"Yw=="}}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#,
    ),
    ("/v3/kv/txn", r#"{"success":[{"request_txn":{"success":[{"requestDeleteRange":{"key":"Yg=="}}]}},{}]}"#),
    ("/v3/kv/compaction", r#"{"revision":"99999","physical":true}"#),
    ("/v3/auth/nope", r#"{"name":"a\u00e9\ud83d\ude00"}"#),
    ("/v3/lease/grant", r#"{"TTL":"100000"}"#),
    ("/v3/lease/grant", r#"{"TTL":"99999999999","ID":"77"}"#),
    ("/v3/lease/revoke", r#"{"ID":"77"}"#),
    ("/v3/kv/lease/timetolive", r#"{"ID":"7777","keys":true}"#),
    ("/v3/lease/keepalive", r#"{"ID":"77"}{"ID":"78"}"#),
    (
        "/v3/watch",
        r#"{"create_request":{"key":"Zm9v","start_revision":"1","progressNotify":true,"filters":["NOPUT"]}}"#,
    ),
    (
        "/v3/watch",
        r#"{"createRequest":{"key":"YQ==","range_end":"Yg==","watch_id":"7","prev_kv":true,"fragment":true}}"#,
    ),
    ("/v3/watch", r#"{"cancel_request":{"watch_id":"1"}}{"create_request":{"key":"AA==","rangeEnd":"AA=="}}"#),
    ("/v3/watch", r#"{"progress_request":{}}"#),
    ("/v3/maintenance/alarm", r#"{"action":"GET","memberID":"0","alarm":"NONE"}"#),
    ("/v3/maintenance/status", r#"{"nope":[1,{"a":null}]}"#),
    ("/v3/maintenance/hashkv", r#"{"revision":"99999"}"#),
    ("/v3/maintenance/hash", r#"{"x":{}}"#),
    ("/v3/maintenance/downgrade", r#"{"action":"VALIDATE","version":"3.5.0"}"#),
    ("/v3/maintenance/transfer-leadership", r#"{"targetID":"99"}"#),
    ("/v3/cluster/member/promote", r#"{"ID":"99"}"#),
    ("/v3/cluster/member/list", r#"{"linearizable":true}"#),
    ("/v3/auth/status", r#"{"a":1}"#),
    ("/v3/auth/authenticate", r#"{"name":"a","password":"b"}"#),
    ("/v3/auth/role/grant", r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#),
    ("/v3/lock/unlock", r#"{"key":"bm8="}"#),
    ("/v3/election/leader", r#"{"name":"bQ=="}"#),
    ("/v3/election/proclaim", r#"{"leader":{"name":"bQ==","key":"bQ==","rev":"1","lease":"1"},"value":"YQ=="}"#),
];

/// Paths whose good answers say what no two servers have alike: sizes, versions, hashes.
const OWN: [&str; 3] = ["/v3/maintenance/status", "/v3/maintenance/hashkv", "/v3/maintenance/hash"];

/// Paths whose answers are lines.
const STREAMS: [&str; 2] = ["/v3/watch", "/v3/lease/keepalive"];

/// A watch may have nothing to say. It is taken for silent when neither side has said anything for so long; a side that
/// is only slow is waited for.
const SILENCE: Duration = Duration::from_millis(250);

/// Seconds that a lease lasts at least, to be there for the rest of a run on both sides.
const LASTING: i64 = 3600;

/// What mutations put in.
const PIECES: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "null",
    "true",
    "-",
    "0",
    "1e3",
    "1.5",
    "\"\"",
    "\\u00",
    "\\ud800",
    " ",
    "\n",
    "é",
    "\u{1}",
    "99999999999999999999",
    "\"key\":",
    "=",
];

fn mutated(body: &str, random: &mut Random) -> Vec<u8> {
    let mut body = body.as_bytes().to_vec();
    for _ in 0..random.below(4) {
        let (at, end) = (random.below(body.len() + 1), random.below(body.len() + 1));
        match random.below(6) {
            0 => body.truncate(at.max(1)),
            1 if at < body.len() => drop(body.remove(at)),
            2 => {
                let piece = PIECES[random.below(PIECES.len())];
                body.splice(at..at, piece.bytes());
            }
            3 => {
                let copy = body[at.min(end)..at.max(end)].to_vec();
                body.splice(at..at, copy);
            }
            4 if at < body.len() => body[at] = u8::try_from(random.below(256)).expect("a byte"),
            _ => drop(body.drain(at.min(end)..at.max(end).min(at.min(end) + 8))),
        }
    }
    body
}

/// What a node answered is one of the answers of the API.
fn check(path: &str, answer: &Answer) {
    assert!([200, 400, 404, 500, 501].contains(&answer.status), "{path}: {answer:?}");
    let text = String::from_utf8_lossy(&answer.body);
    let values: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{path}: {text}"))).collect();
    if STREAMS.contains(&path) {
        assert!(values.iter().all(|value| ["result", "error", "code"].iter().any(|name| value.get(name).is_some())));
    } else {
        let good = values.len() == 1 && (values[0].get("code").is_none() == (answer.status == 200));
        assert!(good, "{path}: {answer:?}");
    }
}

/// What two answers must have alike.
fn comparable(path: &str, answer: &Answer) -> String {
    match (path, answer.status) {
        (path, 200) if OWN.contains(&path) => "200".to_owned(),
        // Whether a stream without requests begins before it ends is a race, in etcd too.
        ("/v3/lease/keepalive", 200 | 501) if !answer.body.starts_with(b"{\"result") => "nothing".to_owned(),
        _ => normal(answer),
    }
}

/// Ends a lease at once that was granted for so short a time that it would end within the run; of a body that has lost its `TTL`
/// that are two seconds. etcd looks for leases that are over twice in a second, Balsa when the first one is, and whoever revokes it
/// or grants it again in between would be told by one side alone that it is there.
async fn end_short_lease(granted: &Answer, port: u16) {
    let granted: Value = serde_json::from_slice(&granted.body).unwrap_or_default();
    let seconds = granted["TTL"].as_str().and_then(|seconds| seconds.parse::<i64>().ok());
    if seconds.is_some_and(|seconds| seconds < LASTING) {
        let revoked = Request::post("/v3/lease/revoke", json!({"ID": granted["ID"]}).to_string()).send(port).await;
        // A busy machine may have come too late.
        assert!([200, 404].contains(&revoked.status), "{granted}: {revoked:?}");
    }
}

/// The answers of both, or `None` of both for a watch that has nothing to say.
async fn ask(request: &Request, port: u16, etcd: Option<u16>) -> (Option<Answer>, Option<Answer>) {
    let ours = Box::pin(request.send(port));
    let theirs = Box::pin(async {
        match etcd {
            Some(port) => Some(request.send(port).await),
            None => pending().await,
        }
    });
    let first = select(ours, theirs);
    let first = if request.lines > 0 { timeout(SILENCE, first).await } else { Ok(first.await) };
    match first {
        Err(_) => (None, None),
        Ok(Either::Left((ours, theirs))) if etcd.is_some() => (Some(ours), theirs.await),
        Ok(Either::Left((ours, _))) => (Some(ours), None),
        Ok(Either::Right((theirs, ours))) => (Some(ours.await), theirs),
    }
}

/// The seed of a run, said aloud when the run fails.
struct Seed(u64);

impl Seed {
    fn draw() -> Self {
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
        let given = std::env::var("BALSA_SEED").ok().and_then(|seed| seed.parse().ok());
        Self(given.unwrap_or_else(|| u64::try_from(now()).expect("before the year 584,000,000")))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the fuzzer had seed {seed}: BALSA_SEED={seed} repeats it", seed = self.0);
        }
    }
}

/// What a node holds while nobody asks it for anything.
struct Level {
    sockets: usize,
    files: usize,
}

impl Level {
    fn of(member: &Member) -> Self {
        Self { sockets: open_sockets(member), files: open_files(member) }
    }

    /// Waits until nothing is left of what was asked.
    async fn is_back(&self, cluster: &Cluster) {
        let member = &cluster.members[0];
        eventually(member, "etcd_debugging_mvcc_watcher_total", |watchers| watchers == 0.0).await;
        eventually(member, "etcd_debugging_mvcc_watch_stream_total", |streams| streams == 0.0).await;
        let under_way = || async { calls_under_way(member).await.is_empty() };
        cluster.eventually("all calls have ended", under_way).await;
        let closed =
            || async { open_sockets(member) <= self.sockets && open_files(member) <= self.files + STORE_FILES };
        cluster.eventually("sockets and files are closed", closed).await;
        assert!(!member.log_text().contains("panicked"), "{}", cluster.logs());
    }
}

/// Methods of which more calls have begun than ended: renewals that nobody hears any more would be among them.
async fn calls_under_way(member: &Member) -> Vec<String> {
    let text = String::from_utf8(Request::get("/metrics").send(member.client_port).await.body).expect("text");
    let sum = |family: &str, method: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(family) && line.contains(method));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let labels = text.lines().filter(|line| line.starts_with("grpc_server_started_total{"));
    let methods: BTreeSet<&str> =
        labels.filter_map(|line| line.split([',', '{']).find(|label| label.starts_with("grpc_method="))).collect();
    assert!(methods.contains("grpc_method=\"LeaseKeepAlive\""), "{methods:?}");
    let begun = |method: &&str| sum("grpc_server_started_total{", method) > sum("grpc_server_handled_total{", method);
    methods.into_iter().filter(begun).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_brings_the_gateway_down_and_etcd_says_the_same_of_each() {
    let seed = Seed::draw();
    let mut random = Random::new(seed.0);
    let (etcd, cluster) = (Etcd::start().await, Cluster::start(1).await);
    let member = &cluster.members[0];
    let port = member.client_port;
    healthy(port).await;
    let (level, mut warm_kib) = (Level::of(member), 0);
    let (mut asked, mut compared) = (BTreeSet::new(), 0);
    for number in 0..REQUESTS {
        if number == WARM {
            warm_kib = resident_kib(member);
        }
        let (path, good) = GOOD[random.below(GOOD.len())];
        let body = mutated(good, &mut random);
        let lines = usize::from(path == "/v3/watch");
        let request = Request { lines, ..Request::post(path, body.clone()) };
        let (mut ours, mut theirs) = ask(&request, port, etcd.as_ref().map(|etcd| etcd.port)).await;
        // What came of a stream beyond the lines that were waited for is chance.
        for answer in [&mut ours, &mut theirs].into_iter().flatten().filter(|_| lines > 0) {
            answer.body = answer.body.split_inclusive(|byte| *byte == b'\n').take(lines).flatten().copied().collect();
        }
        let case = format!("{number}: {path} {}", String::from_utf8_lossy(&body));
        if let Some(answer) = &ours {
            check(path, answer);
        }
        if etcd.is_some() {
            let [ours, theirs] = [&ours, &theirs].map(|side| side.as_ref().map(|answer| comparable(path, answer)));
            assert_eq!(ours, theirs, "{case}");
            compared += 1;
        }
        for (side, port) in [(&ours, Some(port)), (&theirs, etcd.as_ref().map(|etcd| etcd.port))] {
            let granted = side.as_ref().filter(|answer| path == "/v3/lease/grant" && answer.status == 200);
            if let (Some(granted), Some(port)) = (granted, port) {
                end_short_lease(granted, port).await;
            }
        }
        asked.insert(path);
    }
    assert_eq!(asked.len(), GOOD.iter().map(|(path, _)| path).collect::<BTreeSet<_>>().len(), "each path is asked");
    assert!(etcd.is_none() || compared == REQUESTS);
    level.is_back(&cluster).await;
    let grown = resident_kib(member).saturating_sub(warm_kib);
    assert!(grown < GROWTH_KIB, "the process grew by {grown} KiB");
    assert_eq!(Request::post("/v3/kv/put", r#"{"key":"ZW5k"}"#).send(port).await.status, 200);
    assert!(member.get("end").await.expect("a read").is_some(), "it still serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_is_cut_off() {
    let cluster = Cluster::start(1).await;
    let port = cluster.members[0].client_port;
    for path in ["/v3/kv/put", "/v3/kv/range"] {
        let mut body = br#"{"nope":""#.to_vec();
        body.resize(24 << 20, b'a');
        let answer = Request::post(path, body).send(port).await;
        assert_eq!(answer.status, 429, "{answer:?}");
    }
    // On a stream it ends the requests, and the answer is still etcd's: nothing but the end of a client that says no more.
    let keepalive = Request::post("/v3/lease/keepalive", "junk").send(port).await;
    assert!([200, 501].contains(&keepalive.status), "{keepalive:?}");
    healthy(port).await;
}
