//! Alarms, quota, defragmentation and the other maintenance calls over the wire.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use balsa_node::domain::random::Random;
use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use pb::alarm_request::AlarmAction;
use pb::maintenance_client::MaintenanceClient;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::{Request, healthy};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

async fn alarm(member: &Member, action: AlarmAction, member_id: u64, alarm: pb::AlarmType) -> Vec<pb::AlarmMember> {
    let request = pb::AlarmRequest { action: action.into(), member_id, alarm: alarm.into() };
    member.maintenance().alarm(request).await.expect("an answer").into_inner().alarms
}

async fn put_value(member: &Member, key: &str, bytes: usize) -> Result<(), tonic::Status> {
    // Not compressible, or the disk would hold less than was written.
    let mut random = Random::new(bytes as u64);
    let value: Vec<u8> = (0..bytes).map(|_| random.draw() as u8).collect();
    let put = pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
    member.kv().put(put).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_refuses_puts_until_space_is_given_back_and_the_alarm_cleared() {
    let cluster = Cluster::start_with(3, &["--quota-backend-bytes=8388608"]).await;
    let writer = &cluster.members[cluster.leader().await];
    let refused = loop {
        // The same key again and again: what is superseded can be given back.
        if let Err(refused) = put_value(writer, "k", 100_000).await {
            break refused;
        }
    };
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, NO_SPACE));
    let status = writer.status().await.expect("a status");
    assert_eq!(status.db_size_quota, 8_388_608);
    assert!(status.errors.iter().any(|error| error.contains("alarm:NOSPACE")), "{:?}", status.errors);
    for member in &cluster.members {
        let error = put_value(member, "other", 10).await.expect_err("refused on every member");
        assert_eq!(error.message(), NO_SPACE);
        assert_eq!(member.get("k").await.expect("reads go on").map(|value| value.is_empty()), Some(false));
    }
    // Reads and deletes are served, so a Service goes on sending clients here.
    for member in &cluster.members {
        let is_ready = || async { Request::get("/readyz").send(member.client_port).await.status == 200 };
        cluster.eventually("it is ready while the alarm is raised", is_ready).await;
    }
    let delete = pb::DeleteRangeRequest { key: "none".into(), ..Default::default() };
    writer.kv().delete_range(delete).await.expect("deletes go on");
    let revision = status.header.expect("a header").revision;
    let compaction = pb::CompactionRequest { revision, physical: true };
    writer.kv().compact(compaction).await.expect("compactions go on");
    for member in &cluster.members {
        member.maintenance().defragment(pb::DefragmentRequest {}).await.expect("defragmented");
    }
    assert!(put_value(writer, "k", 10).await.is_err(), "space alone does not clear the alarm");
    let raised = alarm(writer, AlarmAction::Get, 0, pb::AlarmType::None).await;
    assert!(!raised.is_empty());
    assert!(alarm(writer, AlarmAction::Deactivate, 0, pb::AlarmType::Nospace).await.is_empty(), "0 names nobody");
    let deadline = Instant::now() + PATIENCE;
    // Deletion on the others may come after ours, and a put may raise the alarm once more until then.
    loop {
        for one in alarm(writer, AlarmAction::Get, 0, pb::AlarmType::None).await {
            alarm(writer, AlarmAction::Deactivate, one.member_id, one.alarm()).await;
        }
        match put_value(writer, "k", 10).await {
            Ok(()) => break,
            Err(error) => assert!(Instant::now() < deadline, "still refused: {error}"),
        }
        for member in &cluster.members {
            member.maintenance().defragment(pb::DefragmentRequest {}).await.expect("defragmented");
        }
    }
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_alarm_stops_all_changes_and_survives_a_restart() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].put("k", "v").await.expect("a write");
    let raised = alarm(&cluster.members[0], AlarmAction::Activate, 7, pb::AlarmType::Corrupt).await;
    assert_eq!(raised, [pb::AlarmMember { member_id: 7, alarm: pb::AlarmType::Corrupt.into() }]);
    cluster.members[0].kill();
    cluster.restart(0);
    cluster.leader().await;
    let member = &cluster.members[0];
    let error = member.put("k", "w").await.expect_err("refused");
    assert_eq!((error.code(), error.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
    let delete = pb::DeleteRangeRequest { key: "k".into(), ..Default::default() };
    assert_eq!(member.kv().delete_range(delete).await.expect_err("refused").code(), Code::DataLoss);
    assert_eq!(member.get("k").await.expect("reads go on").as_deref(), Some("v"));
    assert_eq!(alarm(member, AlarmAction::Deactivate, 7, pb::AlarmType::Corrupt).await.len(), 1);
    member.put("k", "w").await.expect("a write");
}

/// Checks, announces and takes back a downgrade. What is said to each call, and what Status says after those that succeed.
async fn downgrades(port: u16) -> Vec<String> {
    use pb::downgrade_request::DowngradeAction::{Cancel, Enable, Validate};

    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
    let mut maintenance = MaintenanceClient::new(channel);
    let mut said = Vec::new();
    for (action, version) in [
        (Validate, "3.5"),
        (Validate, "3.5.9"),
        (Validate, "x"),
        (Validate, "3.6"),
        (Enable, "3.4"),
        (Enable, ""),
        (Cancel, ""),
        (Enable, "3.5.0"),
        (Validate, "3.5"),
        (Enable, "3.5"),
        (Enable, "3.4"),
        (Cancel, "x"),
        (Cancel, ""),
        (Validate, "3.5"),
    ] {
        let request = pb::DowngradeRequest { action: action.into(), version: version.to_owned() };
        said.push(match maintenance.downgrade(request).await {
            Ok(answer) => {
                let status = maintenance.status(pb::StatusRequest {}).await.expect("a status").into_inner();
                let info = status.downgrade_info.expect("it says so");
                let version = answer.into_inner().version;
                format!("{action:?}: {version:?}, now {} {:?}", info.enabled, info.target_version)
            }
            Err(status) => format!("{action:?} {version:?}: {:?} {}", status.code(), status.message()),
        });
    }
    said
}

/// The version that a cluster of etcd has agreed on.
async fn agreed_version(port: u16) -> serde_json::Value {
    let body = Request::get("/version").send(port).await.body;
    let mut versions: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    versions["etcdcluster"].take()
}

/// The same of etcd 3.6. It looks every four seconds whether the version of the cluster must follow an announcement, and
/// then it says other things, so that is done again until no look was between the first call and the last one.
async fn downgrades_of_etcd(port: u16) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "it looks all the time");
        let before = agreed_version(port).await;
        if before != "3.6.0" {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let began = Instant::now();
        let said = downgrades(port).await;
        // There and back again takes two looks.
        if began.elapsed() < Duration::from_secs(3) && agreed_version(port).await == before {
            return said;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downgrade_is_checked_announced_and_taken_back() {
    const TARGET: &str = "InvalidArgument etcdserver: invalid downgrade target version";
    const FORMAT: &str = "InvalidArgument etcdserver: wrong downgrade target version format";
    const RUNNING: &str = "FailedPrecondition etcdserver: cluster has a downgrade job in progress";
    let cluster = Cluster::start(1).await;
    let ours = downgrades(cluster.members[0].client_port).await;
    let expected = [
        "Validate: \"3.6\", now false \"\"".to_owned(),
        "Validate: \"3.6\", now false \"\"".to_owned(),
        format!("Validate \"x\": {FORMAT}"),
        format!("Validate \"3.6\": {TARGET}"),
        format!("Enable \"3.4\": {TARGET}"),
        format!("Enable \"\": {FORMAT}"),
        "Cancel: \"3.6\", now false \"\"".to_owned(),
        "Enable: \"3.6\", now true \"3.5.0\"".to_owned(),
        format!("Validate \"3.5\": {RUNNING}"),
        format!("Enable \"3.5\": {RUNNING}"),
        format!("Enable \"3.4\": {TARGET}"),
        "Cancel: \"3.6\", now false \"\"".to_owned(),
        "Cancel: \"3.6\", now false \"\"".to_owned(),
        "Validate: \"3.6\", now false \"\"".to_owned(),
    ];
    assert_eq!(ours, expected);
    // The release whose version of a cluster Balsa has.
    let Some(program) = program(RELEASES[0]) else { return };
    let etcd = Etcd::run(&program, 1, &[]);
    healthy(etcd.port).await;
    assert_eq!(ours, downgrades_of_etcd(etcd.port).await, "the second is etcd's");
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_a_voter_that_is_there() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut ids = Vec::new();
    for member in &cluster.members {
        ids.push(member.status().await.expect("a status").header.expect("a header").member_id);
    }
    let ask = async |asked: usize, target_id: u64| {
        let answer = cluster.members[asked].maintenance().move_leader(pb::MoveLeaderRequest { target_id }).await;
        answer.map(|answer| answer.into_inner()).map_err(|error| (error.code(), error.message().to_owned()))
    };
    let (next, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let refused = |code, text: &str| Err((code, text.to_owned()));
    assert_eq!(ask(next, ids[next]).await, refused(Code::FailedPrecondition, "etcdserver: not leader"));
    assert_eq!(ask(leader, 777).await, refused(Code::FailedPrecondition, "etcdserver: bad leader transferee"));
    assert_eq!(ask(leader, ids[next]).await, Ok(pb::MoveLeaderResponse { header: None }));
    assert_eq!(cluster.members[next].status().await.expect("a status").leader, ids[next]);
    cluster.members[other].signal("STOP");
    let text = "etcdserver: request timed out, leader transfer took too long";
    assert_eq!(ask(next, ids[other]).await, refused(Code::Unknown, text));
}

/// While one target does not answer, its transfer runs for an election time-out.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_runs_is_joined_or_gives_way_to_another_one() {
    const ELECTION: Duration = Duration::from_secs(3);
    let cluster = Cluster::start_with(3, &["--election-timeout=3000", "--heartbeat-interval=300"]).await;
    let leader = cluster.leader().await;
    let mut ids = Vec::new();
    for member in &cluster.members {
        ids.push(member.status().await.expect("a status").header.expect("a header").member_id);
    }
    let ask = async |target_id: u64| {
        let answer = cluster.members[leader].maintenance().move_leader(pb::MoveLeaderRequest { target_id }).await;
        answer.map(drop).map_err(|error| (error.code(), error.message().to_owned()))
    };
    let refused = |code, text: &str| Err((code, text.to_owned()));
    let (away, there) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.members[away].signal("STOP");
    let later = async |target: u64| {
        tokio::time::sleep(Duration::from_millis(500)).await;
        ask(target).await
    };
    let ended = || refused(Code::Unknown, "etcdserver: request timed out, leader transfer took too long");
    let (first, second, unknown) = tokio::join!(ask(ids[away]), ask(ids[away]), later(777));
    assert_eq!((first, second), (ended(), ended()), "both wait for it");
    assert_eq!(unknown, refused(Code::FailedPrecondition, "etcdserver: bad leader transferee"));
    let asked = Instant::now();
    assert_eq!(tokio::join!(ask(ids[away]), later(ids[leader])), (ended(), Ok(())), "it goes on leading");
    assert_eq!(tokio::join!(ask(ids[away]), later(ids[there])), (ended(), Ok(())), "another one leads");
    assert!(asked.elapsed() < 2 * ELECTION, "neither was waited for");
    assert_eq!(cluster.members[there].status().await.expect("a status").leader, ids[there]);
    cluster.members[away].signal("CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_compacts_what_is_older_than_the_period() {
    let cluster = Cluster::start_with(3, &["--auto-compaction-retention=1s"]).await;
    let first = cluster.members[0].put("k", "0").await.expect("a write");
    let compacted = || async {
        // Its own revision is not the oldest for long.
        cluster.members[0].put("k", "x").await.expect("a write");
        let old = pb::RangeRequest { key: "k".into(), revision: first, ..Default::default() };
        cluster.members[1].kv().range(old).await.is_err_and(|error| error.code() == Code::OutOfRange)
    };
    cluster.eventually("the first revision is compacted", compacted).await;
    cluster.assert_hashes_agree().await;
}

/// Plain HTTP without a client library: one request, the body of its answer.
async fn http_get(member: &Member, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", member.client_port)).await.expect("connected");
    let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn etcds_dashboards_and_alerts_find_their_series() {
    let cluster = Cluster::start_with(3, &["--metrics=extensive"]).await;
    for member in &cluster.members {
        member.put("k", "v").await.expect("a write");
    }
    let leader = &cluster.members[cluster.leader().await];
    let missing = |text: &str| -> Vec<String> {
        let wanted = include_str!("../data/mixin_metrics.txt").lines().filter(|line| !line.starts_with('#'));
        let has = |series: &str| {
            let mut words = series.split_whitespace();
            let name = words.next().unwrap_or_default();
            let labels: Vec<String> = words.map(|label| format!("{label}=\"")).collect();
            text.lines().any(|line| {
                let (found, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
                found == name && labels.iter().all(|label| rest.contains(label.as_str()))
            })
        };
        wanted.filter(|series| !has(series)).map(str::to_owned).collect()
    };
    for member in &cluster.members {
        let missing = missing(&http_get(member, "/metrics").await);
        assert!(missing.is_empty(), "{} lacks {missing:?}", member.name);
    }
    let measured = || async {
        let text = http_get(leader, "/metrics").await;
        let count = |line: &&str| line.starts_with("etcd_network_peer_round_trip_time_seconds_count");
        text.lines().filter(count).all(|line| !line.ends_with(" 0"))
    };
    cluster.eventually("the leader has measured its peers' round trips", measured).await;
    let text = http_get(leader, "/metrics").await;
    for line in ["etcd_debugging_mvcc_keys_total 1", "etcd_server_has_leader 1"] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_measures_has_values_after_some_load() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let member = &cluster.members[leader];
    for number in 0..5 {
        member.put(&format!("k{number}"), "v").await.expect("a write");
    }
    let delete = pb::DeleteRangeRequest { key: "k1".into(), ..Default::default() };
    member.kv().delete_range(delete).await.expect("a delete");
    member.lease().lease_grant(pb::LeaseGrantRequest { ttl: 100, id: 7 }).await.expect("a grant");
    member.lease().lease_grant(pb::LeaseGrantRequest { ttl: 100, id: 7 }).await.expect_err("refused");
    let compact = pb::CompactionRequest { revision: 3, physical: true };
    member.kv().compact(compact).await.expect("a compaction");
    let own = member.status().await.expect("a status").header.expect("a header").member_id;
    member.cluster().member_promote(pb::MemberPromoteRequest { id: own }).await.expect_err("it votes already");
    let create = pb::WatchCreateRequest { key: vec![b'k'; 4 << 20].into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let mut answers = member.watch().watch(tokio_stream::once(request)).await.expect("a stream").into_inner();
    answers.message().await.expect_err("too large");

    let text = http_get(member, "/metrics").await;
    // As etcd counts it: by the text of its own error, not by that which the client is told.
    let reason = "membership: can only promote a learner member";
    assert_eq!(
        value(&text, &format!("etcd_server_learner_promote_failures{{Reason=\"{reason}\"}}")),
        Some(1.0),
        "{text}"
    );
    let broken = |api: &str| {
        value(&text, &format!("etcd_network_server_stream_failures_total{{API=\"{api}\",Type=\"receive\"}}"))
    };
    assert_eq!((broken("watch"), broken("lease-keepalive")), (Some(1.0), Some(0.0)));
    let applied = |op: &str, success: bool| {
        let labels = format!("{{op=\"{op}\",success=\"{success}\",version=\"v3\"}}");
        value(&text, &format!("etcd_server_apply_duration_seconds_count{labels}")).unwrap_or_default()
    };
    for (op, count) in [("Put", 5.0), ("DeleteRange", 1.0), ("LeaseGrant", 1.0), ("Compaction", 1.0)] {
        assert_eq!(applied(op, true), count, "{op}\n{text}");
    }
    assert_eq!(applied("LeaseGrant", false), 1.0);
    assert!(value(&text, "etcd_mvcc_db_open_read_transactions").is_some());
    assert_eq!(value(&text, "etcd_server_snapshot_apply_in_progress_total"), Some(0.0));
    let connected = |text: &str| sum(text, "etcd_network_active_peers{");
    cluster.eventually("both are", || async { connected(&http_get(member, "/metrics").await) == 2.0 }).await;
    assert_eq!(sum(&http_get(member, "/metrics").await, "etcd_network_disconnected_peers_total{"), 0.0);
    cluster.members[(leader + 1) % 3].kill();
    let member = &cluster.members[leader];
    cluster.eventually("one is not", || async { connected(&http_get(member, "/metrics").await) == 1.0 }).await;
    assert_eq!(sum(&http_get(member, "/metrics").await, "etcd_network_disconnected_peers_total{"), 1.0);
}

fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).and_then(|value| value.parse().ok())
}

fn sum(text: &str, prefix: &str) -> f64 {
    let values = text.lines().filter(|line| line.starts_with(prefix)).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

/// Who follows the health of a member; with `required` he wants to hear of it when there is no leader.
async fn health_followed(port: u16, required: bool) -> tonic::Streaming<HealthCheckResponse> {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    if required {
        request.metadata_mut().insert("hasleader", "true".parse().expect("a value"));
    }
    HealthClient::new(channel).watch(request).await.expect("a stream").into_inner()
}

/// What is said next on such a stream.
async fn next_health(stream: &mut tonic::Streaming<HealthCheckResponse>) -> String {
    match tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time") {
        Ok(answer) => format!("{:?}", answer.map(|answer| answer.status())),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

/// What the health service of the first of three members says while all are there, and after the others were killed.
async fn health_alone(ports: &[u16], kill_others: impl FnOnce()) -> Vec<String> {
    for port in ports {
        healthy(*port).await;
    }
    let mut followed = health_followed(ports[0], false).await;
    let mut required = health_followed(ports[0], true).await;
    let mut told = vec![next_health(&mut followed).await, next_health(&mut required).await];
    kill_others();
    // That takes three election time-outs without a leader, so there is none when the rest is asked.
    told.push(next_health(&mut required).await);
    let mut again = health_followed(ports[0], false).await;
    told.push(next_health(&mut again).await);
    let more = tokio::time::timeout(Duration::from_millis(300), followed.message()).await;
    assert!(more.is_err(), "neither ended nor told anything else: {more:?}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_says_serving_without_a_leader_as_etcds() {
    let mut cluster = Cluster::start(3).await;
    let ports: Vec<u16> = cluster.members.iter().map(|member| member.client_port).collect();
    let ours = health_alone(&ports, || cluster.members[1..].iter_mut().for_each(Member::kill)).await;
    let serving = "Some(Serving)";
    assert_eq!(ours, [serving, serving, "Cancelled Stream has ended.", serving]);
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let mut etcd = Etcd::run(&program, 3, &[]);
        let ports = etcd.ports.clone();
        let theirs = health_alone(&ports, || [1, 2].into_iter().for_each(|index| etcd.kill(index))).await;
        assert_eq!(ours, theirs, "the second is {release}'s");
    }
}

/// What the health service says of a service that there is not: to a check, and at first to a watch, which stays open.
async fn unknown_service(port: u16) -> (Code, String, i32) {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest { service: "nobody".to_owned() };
    let refused = client.check(request.clone()).await.expect_err("there is none");
    let mut watch = client.watch(request).await.expect("a stream").into_inner();
    let first = watch.message().await.expect("no error").expect("an answer").status;
    let more = tokio::time::timeout(Duration::from_millis(300), watch.message()).await;
    assert!(more.is_err(), "neither ended nor told again: {more:?}");
    (refused.code(), refused.message().to_owned(), first)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_there_is_not_may_be_watched_as_with_etcd() {
    let cluster = Cluster::start(1).await;
    let ours = unknown_service(cluster.members[0].client_port).await;
    let unknown = ServingStatus::ServiceUnknown;
    assert_eq!(ours, (Code::NotFound, "unknown service".to_owned(), unknown.into()));
    if let Some(etcd) = Etcd::start().await {
        assert_eq!(ours, unknown_service(etcd.port).await);
    }
}

/// Changes the value of `key` on a disk that nobody uses, behind the back of everything that would notice.
fn damage(data: &std::path::Path, key: &str) {
    use balsa_node::storage::rocks::{KeySpaceOptions, RocksKeySpace};
    use balsa_node::storage::{KeySpace, Table, View, WriteBatch};

    let directory = std::fs::read_dir(data.join("kv")).expect("key spaces").next().expect("one").expect("readable");
    let store = RocksKeySpace::open(&directory.path(), &KeySpaceOptions::default()).expect("the key space opens");
    let version = store.view().expect("a view").get(Table::Live, key.as_bytes()).expect("a read").expect("the key");
    let mut bytes = version.to_vec();
    *bytes.last_mut().expect("a value") ^= 1;
    let mut batch = WriteBatch::default();
    batch.put(Table::Live, key.as_bytes().to_vec(), bytes);
    store.write(batch).expect("a write");
    store.flush().expect("a flush");
}

/// Has a member that does not lead hold another value of `k` than the others. It is down then.
async fn with_other_data(flags: &'static [&'static str]) -> (Cluster, usize, usize, u64) {
    let mut cluster = Cluster::start_with(3, flags).await;
    let leader = cluster.leader().await;
    cluster.members[leader].put("k", "value").await.expect("a write");
    let damaged = (leader + 1) % 3;
    cluster
        .eventually("it has applied the write", || async {
            cluster.members[damaged].get("k").await.is_ok_and(|value| value.is_some())
        })
        .await;
    let id = cluster.members[damaged].status().await.expect("a status").header.expect("a header").member_id;
    cluster.members[damaged].signal("TERM");
    cluster.members[damaged].wait_for_exit();
    damage(&cluster.members[damaged].data, "k");
    (cluster, leader, damaged, id)
}

/// Waits until the alarm CORRUPT is raised for one member.
async fn named_as_corrupt(cluster: &Cluster, leader: usize, id: u64) {
    let raised = || async {
        let request = pb::AlarmRequest::default();
        let answer = cluster.members[leader].maintenance().alarm(request).await;
        answer.is_ok_and(|answer| !answer.into_inner().alarms.is_empty())
    };
    cluster.eventually("the alarm is raised", raised).await;
    let alarms = alarm(&cluster.members[leader], AlarmAction::Get, 0, pb::AlarmType::None).await;
    assert_eq!(alarms, [pb::AlarmMember { member_id: id, alarm: pb::AlarmType::Corrupt.into() }]);
    let error = cluster.members[leader].put("k", "w").await.expect_err("refused");
    assert_eq!(error.code(), Code::DataLoss);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_other_data_raises_the_corrupt_alarm() {
    let (mut cluster, leader, damaged, id) = with_other_data(&["--corrupt-check-time=300ms"]).await;
    cluster.restart(damaged);
    named_as_corrupt(&cluster, leader, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_shows_which_member_has_other_data() {
    let flags = &["--feature-gates=CompactHashCheck=true", "--experimental-compact-hash-check-time=300ms"];
    let (mut cluster, leader, damaged, id) = with_other_data(flags).await;
    cluster.restart(damaged);
    cluster.serves(damaged).await;
    let compact = |revision| pb::CompactionRequest { revision, physical: true };
    let revision = cluster.members[leader].put("k2", "v").await.expect("a write");
    cluster.members[leader].kv().compact(compact(revision)).await.expect("a compaction");
    named_as_corrupt(&cluster, leader, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compactions_of_equal_members_are_compared_and_raise_nothing() {
    let flags = &["--experimental-compact-hash-check-enabled", "--compact-hash-check-time=300ms"];
    let cluster = Cluster::start_with(3, flags).await;
    let leader = &cluster.members[cluster.leader().await];
    for number in 0..3 {
        let revision = leader.put("k", &format!("v{number}")).await.expect("a write");
        leader.kv().compact(pb::CompactionRequest { revision, physical: true }).await.expect("a compaction");
        let finished = format!("\"msg\":\"finished compaction hash check\",\"peers\":2,\"revision\":{revision}}}");
        cluster.eventually("it was compared", || async { leader.log_text().contains(&finished) }).await;
    }
    assert!(alarm(leader, AlarmAction::Get, 0, pb::AlarmType::None).await.is_empty());
    leader.put("k", "after").await.expect("a write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_other_data_does_not_start_when_it_compares_itself_first() {
    let (mut cluster, leader, damaged, _) = with_other_data(&["--experimental-initial-corrupt-check"]).await;
    cluster.restart(damaged);
    assert_eq!(cluster.members[damaged].wait_for_exit().code(), Some(73), "{}", cluster.logs());
    let log = cluster.members[damaged].log_text();
    assert!(log.contains("found data inconsistency with peers"), "{log}");
    cluster.members[leader].put("k", "w").await.expect("the others go on");

    let healthy = 3 - leader - damaged;
    cluster.members[healthy].kill();
    // Its one peer says nothing against it.
    cluster.restart(healthy);
    cluster.serves(healthy).await;
    assert!(cluster.members[healthy].log_text().contains("initial corruption checking passed"), "{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_and_reads_go_on_beside_a_defragmentation() {
    let cluster = Cluster::start(3).await;
    let writer = &cluster.members[cluster.leader().await];
    for number in 0..200 {
        put_value(writer, &format!("k/{}", number % 50), 500_000).await.expect("a write");
    }
    let revision = writer.put("last", "x").await.expect("a write");
    writer.kv().compact(pb::CompactionRequest { revision, physical: true }).await.expect("compacted");

    for member in &cluster.members {
        let (took, puts, reads) = beside_a_defragmentation(member).await;
        println!("{took:?}: {puts:?} puts, {reads:?} reads");
        for (within, longest) in [puts, reads] {
            assert!(within > 0, "none of the calls began and ended within {took:?}");
            // One that waited for its end would take as long as that.
            assert!(longest < Duration::from_secs(1) || longest < took * 2 / 3, "{longest:?} beside {took:?}");
        }
    }
    cluster.assert_hashes_agree().await;
}

/// How long a defragmentation took, and of puts and of reads at the same member how many began and ended within it, and
/// how long the longest took.
async fn beside_a_defragmentation(member: &Member) -> (Duration, (usize, Duration), (usize, Duration)) {
    let (busy, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let calls = async |put: bool| {
        let (mut kv, mut within, mut longest) = (member.kv(), 0, Duration::ZERO);
        while !done.load(Ordering::SeqCst) {
            let (begun, beside) = (Instant::now(), busy.load(Ordering::SeqCst));
            let key = Bytes::from_static(b"beside");
            if put {
                kv.put(pb::PutRequest { key, ..Default::default() }).await.expect("no put fails");
            } else {
                kv.range(pb::RangeRequest { key, ..Default::default() }).await.expect("no read fails");
            }
            within += usize::from(beside && busy.load(Ordering::SeqCst));
            longest = longest.max(begun.elapsed());
        }
        (within, longest)
    };
    let defragmenting = async {
        let mut maintenance = member.maintenance();
        maintenance.status(pb::StatusRequest {}).await.expect("connected");
        let begun = Instant::now();
        busy.store(true, Ordering::SeqCst);
        maintenance.defragment(pb::DefragmentRequest {}).await.expect("defragmented");
        busy.store(false, Ordering::SeqCst);
        done.store(true, Ordering::SeqCst);
        begun.elapsed()
    };
    tokio::join!(defragmenting, calls(true), calls(false))
}
