//! `/metrics` beside etcd's: every name, with its type, its labels and its buckets, is there, or its absence has a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::watch_client::WatchClient;
use balsa_proto::peer::{Frame, RaftMessage, RaftMessages, frame::Body, peer_client::PeerClient};

use flate2::read::GzDecoder;
use futures::{StreamExt as _, future::ready, stream};

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::{Request, healthy};

/// What etcd 3.6 or 3.7 shows and Balsa does not, by the begin of the name, and why.
const ABSENT: [(&str, &str); 8] = [
    ("go_", "there is no Go"),
    ("etcd_server_go_version", "there is no Go"),
    ("etcd_grpc_proxy_", "of what etcd's proxy of calls keeps and combines; ours does neither"),
    ("etcd_debugging_disk_", "of bbolt: rebalancing, spilling and writing pages"),
    ("etcd_debugging_snap_", "of the second file of a snapshot, which is none here"),
    ("etcd_snap_fsync_duration_seconds", "of the same file"),
    ("etcd_debugging_store_", "of the v2 store"),
    ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "there is no index in memory"),
];

/// What etcd shows only after what does not happen in this test, with its type and its labels.
const LATER: [(&str, &str, &[&str]); 13] = [
    // Half a minute after the start.
    ("etcd_network_peer_round_trip_time_seconds", "histogram", &["To"]),
    // After a message could not be sent, or had no room.
    ("etcd_network_peer_sent_failures_total", "counter", &["To"]),
    ("etcd_network_peer_received_failures_total", "counter", &["From"]),
    ("etcd_network_disconnected_peers_total", "counter", &["Local", "Remote"]),
    // After a stream broke; one message that is too large is no such thing to it.
    ("etcd_network_server_stream_failures_total", "counter", &["Type", "API"]),
    // After a snapshot went from one member to another.
    ("etcd_network_snapshot_send_success", "counter", &["To"]),
    ("etcd_network_snapshot_send_failures", "counter", &["To"]),
    ("etcd_network_snapshot_send_inflights_total", "gauge", &["To"]),
    ("etcd_network_snapshot_send_total_duration_seconds", "histogram", &["To"]),
    ("etcd_network_snapshot_receive_success", "counter", &["From"]),
    ("etcd_network_snapshot_receive_failures", "counter", &["From"]),
    ("etcd_network_snapshot_receive_inflights_total", "gauge", &["From"]),
    ("etcd_network_snapshot_receive_total_duration_seconds", "histogram", &["From"]),
];

/// Those whose series are the same too: which methods, gates and checks there are.
const SAME_SERIES: [&str; 5] = [
    "grpc_server_started_total",
    "grpc_server_handling_seconds_bucket",
    "etcd_server_feature_enabled",
    "etcd_server_healthcheck",
    "promhttp_metric_handler_requests_total",
];

/// What our library shows beside what etcd's does.
const OURS: [&str; 1] = ["process_threads"];

/// Begins of names that are etcd's to give.
const THEIRS: [&str; 5] = ["etcd_", "grpc_", "os_", "process_", "promhttp_"];

/// One name: what dashboards rely on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    buckets: BTreeSet<String>,
}

/// Families by name, and series without their values.
#[derive(Debug, Default)]
struct Shown {
    families: BTreeMap<String, Family>,
    series: BTreeSet<String>,
}

impl Shown {
    fn take(&mut self, text: &str) {
        let mut kinds = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                kinds.insert(name, kind);
            }
            let Some((series, _)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let suffixes = ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
            let whole = suffixes.filter(|base| kinds.get(base) == Some(&"histogram")).chain([name]).next();
            let family = whole.unwrap_or(name).to_owned();
            let shown = self.families.entry(family).or_default();
            shown.kind = kinds.get(whole.unwrap_or(name)).copied().unwrap_or("untyped").to_owned();
            for label in labels.trim_end_matches('}').split("\",") {
                match label.split_once("=\"") {
                    Some(("le", bound)) => drop(shown.buckets.insert(number(bound.trim_end_matches('"')))),
                    Some((label, _)) => drop(shown.labels.insert(label.to_owned())),
                    None => {}
                }
            }
            self.series.insert(series.to_owned());
        }
    }

    async fn of(ports: &[u16]) -> Self {
        let mut shown = Self::default();
        for port in ports {
            let answer = Request::get("/metrics").send(*port).await;
            assert_eq!(answer.status, 200);
            shown.take(&String::from_utf8(answer.body).expect("text"));
        }
        shown
    }
}

/// A bound, however it is written.
fn number(text: &str) -> String {
    text.parse::<f64>().map_or_else(|_| text.to_owned(), |bound| bound.to_string())
}

/// A little of everything that adds labels, on each member; at last an alarm.
async fn load(ports: &[u16]) -> Shown {
    let id = Request::post("/v3/cluster/member/list", "{}").send(ports[0]).await.body;
    let id: serde_json::Value = serde_json::from_slice(&id).expect("JSON");
    let id = id["members"][0]["ID"].as_str().expect("an id").to_owned();
    let promotion = format!(r#"{{"ID":"{id}"}}"#);
    for port in ports {
        for (path, body) in [
            ("/v3/kv/put", r#"{"key":"YQ=="}"#),
            ("/v3/kv/range", r#"{"key":"YQ=="}"#),
            ("/v3/kv/txn", r#"{"success":[{"request_range":{"key":"YQ=="}}]}"#),
            ("/v3/lease/grant", r#"{"TTL":"100"}"#),
            ("/v3/cluster/member/promote", &promotion),
        ] {
            let _ = Request::post(path, body).send(*port).await;
        }
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(Request::get(path).send(*port).await.status, 200, "{path}");
        }
        broken_watch(*port).await;
    }
    let alarm = format!(r#"{{"action":"ACTIVATE","memberID":"{id}","alarm":"NOSPACE"}}"#);
    assert_eq!(Request::post("/v3/maintenance/alarm", alarm).send(ports[0]).await.status, 200);
    let begun = Instant::now();
    loop {
        let shown = Shown::of(ports).await;
        // What members hear of each other comes a little later.
        let wanted =
            ["etcd_network_active_peers", "etcd_network_peer_received_bytes_total", "etcd_debugging_server_alarms"];
        let missing: Vec<_> = wanted.iter().filter(|name| !shown.families.contains_key(**name)).collect();
        if missing.is_empty() {
            return shown;
        }
        assert!(begun.elapsed() < PATIENCE, "{missing:?} are not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A stream that ends with a request that is too large to be read.
async fn broken_watch(port: u16) {
    let create = pb::WatchCreateRequest { key: vec![b'k'; 4 << 20].into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let mut client = WatchClient::connect(format!("http://127.0.0.1:{port}")).await.expect("connects");
    if let Ok(answers) = client.watch(tokio_stream::once(request)).await {
        answers.into_inner().message().await.expect_err("too large");
    }
}

fn reason(name: &str) -> Option<&'static str> {
    ABSENT.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, reason)| *reason)
}

/// Whether a family is one of [`LATER`], as the table has it.
fn is_later(name: &str, family: &Family) -> bool {
    let labels: BTreeSet<&str> = family.labels.iter().map(String::as_str).collect();
    LATER.iter().any(|(later, kind, own)| {
        *later == name && *kind == family.kind && labels == own.iter().copied().collect::<BTreeSet<&str>>()
    })
}

/// What of theirs is not in ours, in words.
fn differences(theirs: &Shown, ours: &Shown) -> Vec<String> {
    let mut found = Vec::new();
    for (name, family) in &theirs.families {
        match (ours.families.get(name), reason(name)) {
            (Some(own), None) if own != family => found.push(format!("{name} is {own:?}, etcd's {family:?}")),
            // Where the machine is busy, that may happen to one of them.
            (None, None) if is_later(name, family) => {}
            (None, None) => found.push(format!("{name} is missing")),
            (Some(_), Some(_)) => found.push(format!("{name} is in the table of absent ones")),
            _ => {}
        }
    }
    for series in &theirs.series {
        let name = series.split('{').next().unwrap_or(series);
        if SAME_SERIES.contains(&name) && !ours.series.contains(series) && reason(series).is_none() {
            found.push(format!("{series} is missing"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_of_etcds_is_there_with_its_type_and_labels_or_has_a_reason() {
    let cluster = Cluster::start_with(3, &["--metrics=extensive"]).await;
    let ports: Vec<u16> = cluster.members.iter().map(|member| member.client_port).collect();
    let ours = load(&ports).await;
    let mut unknown: BTreeSet<&String> =
        ours.families.keys().filter(|name| THEIRS.iter().any(|begin| name.starts_with(begin))).collect();
    for (name, kind, labels) in LATER {
        if let Some(family) = ours.families.get(name) {
            let expected: BTreeSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            assert_eq!((family.kind.as_str(), &family.labels), (kind, &expected), "{name}");
        }
        unknown.retain(|found| *found != name);
    }
    unknown.retain(|name| !OURS.contains(&name.as_str()));
    let mut absent: BTreeSet<&str> = ABSENT.iter().map(|(begin, _)| *begin).collect();
    let mut compared = 0;
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 3, &["--metrics=extensive".to_owned()]);
        for port in &etcd.ports {
            healthy(*port).await;
        }
        let theirs = load(&etcd.ports).await;
        let found = differences(&theirs, &ours);
        assert!(found.is_empty(), "{release}:\n{}", found.join("\n"));
        unknown.retain(|name| !theirs.families.contains_key(*name));
        absent.retain(|begin| !theirs.families.keys().chain(&theirs.series).any(|name| name.starts_with(begin)));
        compared += 1;
    }
    if compared == RELEASES.len() {
        assert!(unknown.is_empty(), "etcd has not: {unknown:?}");
        assert!(absent.is_empty(), "no etcd shows: {absent:?}");
    }
}

/// A frame of a stranger that costs room, and that Raft never sees.
fn large_frame(cluster_id: u64, to: u64) -> Frame {
    let message = RaftMessage { msg_type: 255, context: vec![0; 8 << 20].into(), ..Default::default() };
    let body = Some(Body::Raft(RaftMessages { messages: vec![message] }));
    Frame { cluster_id, from: 0x77, to, incarnation: 1, body }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_sends_to_a_member_without_room_for_it_is_counted() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].kill();
    // A disk that takes three seconds once: meanwhile nobody takes what arrives.
    cluster.restart_to_fail(0, "raft-before-persist=30*off->1*sleep(3000)->off");
    cluster.serves(0).await;
    let member = &cluster.members[0];
    let header = member.status().await.expect("a status").header.expect("a header");
    let frame = large_frame(header.cluster_id, header.member_id);
    let failures = || async {
        let shown = String::from_utf8(Request::get("/metrics").send(member.client_port).await.body).expect("text");
        let count =
            |line: &str| line.strip_prefix(r#"etcd_network_peer_received_failures_total{From="77"} "#)?.parse().ok();
        shown.lines().find_map(count).unwrap_or(0_u64)
    };
    let written = Arc::new(AtomicBool::new(false));
    let flooding = async {
        let url = format!("http://127.0.0.1:{}", member.peer_port);
        let mut peer = PeerClient::connect(url).await.expect("connects");
        let more = written.clone();
        let frames = stream::repeat(frame).take_while(move |_| ready(!more.load(Ordering::Relaxed)));
        peer.frames(frames).await.expect("the stream is taken to its end");
    };
    let writing = async {
        for number in 0..40 {
            member.put("k", &number.to_string()).await.expect("a write");
        }
        written.store(true, Ordering::Relaxed);
    };
    tokio::join!(flooding, writing);
    assert!(failures().await > 0, "{}", cluster.logs());
    member.put("still", "here").await.expect("a write");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_packed_for_whom_etcd_packs_them() {
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::start().await;
    for (wanted, packed) in [
        ("", false),
        ("gzip", true),
        ("zstd, gzip", true),
        ("identity;q=0.5, gzip;q=0.8", true),
        ("identity, gzip", false),
        ("*", false),
        ("gzip;q=0", false),
    ] {
        let request = Request { headers: vec![format!("Accept-Encoding: {wanted}")], ..Request::get("/metrics") };
        let answer = request.send(cluster.members[0].client_port).await;
        assert_eq!(answer.header("content-encoding") == Some("gzip"), packed, "{wanted}");
        if let Some(etcd) = &etcd {
            let theirs = request.send(etcd.port).await;
            assert_eq!(answer.header("content-encoding"), theirs.header("content-encoding"), "{wanted}");
        }
        let mut text = String::from_utf8_lossy(&answer.body).into_owned();
        if packed {
            text.clear();
            GzDecoder::new(&answer.body[..]).read_to_string(&mut text).expect("gzip of text");
        }
        assert!(text.contains("etcd_server_has_leader 1\n"), "{wanted}: {text}");
    }
}
