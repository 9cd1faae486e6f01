//! What counters and histograms count: the same calls to etcd and to Balsa, and every series must have grown by the same number,
//! or its difference has a reason. Names, types and labels are compared in `metrics.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::auth_client::AuthClient;
use balsa_proto::etcdserverpb::cluster_client::ClusterClient;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use balsa_proto::etcdserverpb::lease_client::LeaseClient;
use balsa_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use balsa_proto::etcdserverpb::watch_client::WatchClient;
use pb::compare::{CompareTarget, TargetUnion};
use pb::request_op::Request as Op;
use pb::watch_request::RequestUnion;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use crate::auth::with;
use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::{Request, healthy};

/// Series that grow otherwise, by the begin of their names and labels, and why.
const DIFFERENT: [(&str, &str); 22] = [
    ("etcd_disk_", "of how each stores: syncs and batches of time, not of calls"),
    ("etcd_snap_", "of the same"),
    ("etcd_debugging_disk_", "of bbolt"),
    ("etcd_debugging_snap_", "of the same"),
    ("etcd_debugging_store_", "of the v2 store"),
    ("etcd_debugging_mvcc_db_compaction_", "rows of our tables, in steps of our own"),
    ("etcd_debugging_mvcc_index_", "there is no index in memory"),
    ("etcd_debugging_server_watch_send_loop_", "of how watchers are told"),
    ("etcd_server_apply_duration_seconds_count{op=\"AuthUserGet\"", "is no entry of the log here"),
    ("etcd_server_apply_duration_seconds_count{op=\"ClusterVersionSet\"", "of etcd's start"),
    ("etcd_server_read_indexes_failed_total", "of the moment"),
    ("etcd_server_slow_", "of the moment"),
    ("etcd_network_client_grpc_", "bytes: of lengths of ids"),
    ("etcd_grpc_proxy_", "there is no proxy"),
    ("etcd_server_client_requests_total", "etcd's gateway is a client of its own"),
    ("etcd_server_heartbeat_send_failures_total", "of the moment"),
    ("grpc_server_handled_total{grpc_code=\"Canceled\"", "of when the test's client breaks off"),
    ("grpc_server_msg_sent_total{grpc_method=\"Snapshot\"", "messages of another size"),
    ("grpc_server_msg_received_total{grpc_method=\"LeaseKeepAlive\"", "etcd takes the end of a stream for a message"),
    ("grpc_server_msg_received_total{grpc_method=\"Watch\"", "the same"),
    ("etcd_server_healthchecks_total{name=\"cluster_id\"", "a check that etcd has not"),
    ("etcd_server_healthchecks_total{name=\"not_draining\"", "the same"),
];

/// What has grown since the start, by series.
type Counts = BTreeMap<String, f64>;

/// Counters, and how much was observed by histograms. Labels in the order of their names, as every library writes them.
async fn counts(port: u16) -> Counts {
    let text = String::from_utf8(Request::get("/metrics").send(port).await.body).expect("text");
    let mut kinds = BTreeMap::new();
    let mut counts = Counts::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind);
        }
        let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else { continue };
        let name = series.split('{').next().unwrap_or(series);
        let counted = match name.strip_suffix("_count") {
            Some(base) => kinds.get(base) == Some(&"histogram"),
            None => kinds.get(name) == Some(&"counter") || name.ends_with("_total_put_size_in_bytes"),
        };
        if counted && ["etcd_", "grpc_"].iter().any(|begin| name.starts_with(begin)) {
            counts.insert(series.to_owned(), value.parse().expect("a number"));
        }
    }
    counts
}

fn key(key: &str) -> bytes::Bytes {
    key.to_owned().into()
}

fn put(name: &str) -> pb::PutRequest {
    pb::PutRequest { key: key(name), value: "value".into(), ..Default::default() }
}

fn get(name: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key(name), ..Default::default() }
}

fn delete(name: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key(name), ..Default::default() }
}

fn ops(requests: Vec<Op>) -> Vec<pb::RequestOp> {
    requests.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect()
}

/// Holds when the key has this version.
fn compare(name: &str, version: i64) -> pb::Compare {
    pb::Compare {
        key: key(name),
        target: CompareTarget::Version.into(),
        target_union: Some(TargetUnion::Version(version)),
        ..Default::default()
    }
}

/// One server under test.
struct Asked {
    channel: Channel,
    port: u16,
}

impl Asked {
    async fn new(port: u16) -> Self {
        healthy(port).await;
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
        Self { channel, port }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// Puts, ranges and deletes, taken and refused.
    async fn keys(&self) {
        let mut kv = self.kv();
        for name in ["a", "b", "c"] {
            kv.put(put(name)).await.expect("written");
        }
        kv.put(pb::PutRequest { prev_kv: true, ..put("a") }).await.expect("written");
        kv.put(pb::PutRequest { ignore_value: true, value: key(""), ..put("a") }).await.expect("written");
        kv.put(pb::PutRequest { ignore_lease: true, ..put("b") }).await.expect("written");
        for _ in 0..10 {
            kv.put(pb::PutRequest { lease: 99, ..put("a") }).await.expect_err("no such lease");
        }
        kv.put(put("")).await.expect_err("no key");
        for range_end in ["", "z"] {
            for serializable in [true, false] {
                kv.range(pb::RangeRequest { range_end: key(range_end), serializable, ..get("a") }).await.expect("read");
            }
        }
        kv.range(pb::RangeRequest { revision: 1_000, ..get("a") }).await.expect_err("the future");
        kv.range(get("")).await.expect_err("no key");
        kv.delete_range(delete("nothing")).await.expect("done");
        kv.delete_range(pb::DeleteRangeRequest { range_end: key("d"), prev_kv: true, ..delete("b") })
            .await
            .expect("done");
        kv.delete_range(delete("a")).await.expect("done");
    }

    async fn transactions(&self) {
        let mut kv = self.kv();
        let nested = pb::TxnRequest { success: ops(vec![Op::RequestPut(put("n"))]), ..Default::default() };
        let all_deleted = pb::DeleteRangeRequest { prev_kv: true, ..delete("x") };
        for (compare, success, failure) in [
            (vec![], vec![Op::RequestPut(put("x"))], vec![]),
            (vec![compare("x", 1)], vec![Op::RequestPut(put("x"))], vec![]),
            (
                vec![compare("x", 7), compare("x", 2)],
                vec![],
                vec![Op::RequestPut(put("y")), Op::RequestRange(get("x"))],
            ),
            (vec![compare("x", 2), compare("y", 7)], vec![], vec![Op::RequestPut(put("y"))]),
            (
                vec![],
                vec![Op::RequestTxn(nested), Op::RequestPut(put("m")), Op::RequestDeleteRange(all_deleted)],
                vec![],
            ),
            (vec![], vec![Op::RequestRange(get("x"))], vec![]),
            (vec![compare("y", 2)], vec![Op::RequestRange(get("x")), Op::RequestRange(get("y"))], vec![]),
        ] {
            let request = pb::TxnRequest { compare, success: ops(success), failure: ops(failure) };
            kv.txn(request).await.expect("done");
        }
        let twice = ops(vec![Op::RequestPut(put("x")), Op::RequestPut(put("x"))]);
        kv.txn(pb::TxnRequest { success: twice, ..Default::default() }).await.expect_err("twice");
        let unknown = ops(vec![Op::RequestPut(pb::PutRequest { lease: 99, ..put("x") })]);
        kv.txn(pb::TxnRequest { success: unknown, ..Default::default() }).await.expect_err("no such lease");
    }

    /// One that is revoked with two keys, and one that is over with one.
    async fn leases(&self) {
        let mut leases = LeaseClient::new(self.channel.clone());
        for (id, ttl) in [(1, 100), (2, 2)] {
            leases.lease_grant(pb::LeaseGrantRequest { id, ttl }).await.expect("granted");
        }
        leases.lease_grant(pb::LeaseGrantRequest { id: 1, ttl: 100 }).await.expect_err("it is there");
        for (name, lease) in [("k1", 1), ("k2", 1), ("k3", 2)] {
            self.kv().put(pb::PutRequest { lease, ..put(name) }).await.expect("written");
        }
        let requests = tokio_stream::iter([1, 99].map(|id| pb::LeaseKeepAliveRequest { id }));
        let mut answers = leases.lease_keep_alive(requests).await.expect("a stream").into_inner();
        while answers.message().await.expect("an answer").is_some() {}
        leases.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 1, keys: true }).await.expect("an answer");
        leases.lease_leases(pb::LeaseLeasesRequest {}).await.expect("an answer");
        leases.lease_revoke(pb::LeaseRevokeRequest { id: 1 }).await.expect("revoked");
        leases.lease_revoke(pb::LeaseRevokeRequest { id: 1 }).await.expect_err("it is gone");
        let gone = async {
            while !self.kv().range(get("k3")).await.expect("read").into_inner().kvs.is_empty() {
                // Unequal numbers of reads would be counted: etcd ends a lease within a second.
                sleep(Duration::from_secs(8)).await;
            }
        };
        sleep(Duration::from_secs(5)).await;
        timeout(PATIENCE, gone).await.expect("over in time");
    }

    async fn watches(&self) {
        let create = pb::WatchCreateRequest { key: key("w"), ..Default::default() };
        let (send, requests) = tokio::sync::mpsc::channel(4);
        let request = |union| pb::WatchRequest { request_union: Some(union) };
        send.send(request(RequestUnion::CreateRequest(create))).await.expect("sent");
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = WatchClient::new(self.channel.clone()).watch(requests).await.expect("a stream").into_inner();
        assert!(answers.message().await.expect("open").expect("an answer").created);
        self.kv().put(put("w")).await.expect("written");
        assert_eq!(answers.message().await.expect("open").expect("an answer").events.len(), 1);
        let cancel = pb::WatchCancelRequest { watch_id: 0 };
        send.send(request(RequestUnion::CancelRequest(cancel))).await.expect("sent");
        assert!(answers.message().await.expect("open").expect("an answer").canceled);
    }

    async fn maintenance(&self) {
        let mut maintenance = MaintenanceClient::new(self.channel.clone());
        let header = maintenance.status(pb::StatusRequest {}).await.expect("a status").into_inner().header;
        let compaction = pb::CompactionRequest { revision: header.expect("a header").revision, physical: true };
        self.kv().compact(compaction).await.expect("compacted");
        self.kv().compact(compaction).await.expect_err("it is compacted");
        self.kv().range(pb::RangeRequest { revision: 2, ..get("a") }).await.expect_err("it is compacted");
        maintenance.hash(pb::HashRequest {}).await.expect("a hash");
        maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.expect("a hash");
        maintenance.alarm(pb::AlarmRequest { action: 1, member_id: 7, alarm: 1 }).await.expect("raised");
        maintenance.alarm(pb::AlarmRequest { action: 2, member_id: 7, alarm: 1 }).await.expect("taken back");
        let mut pieces = maintenance.snapshot(pb::SnapshotRequest {}).await.expect("a stream").into_inner();
        while pieces.message().await.expect("a piece").is_some() {}
        let mut members = ClusterClient::new(self.channel.clone());
        members.member_list(pb::MemberListRequest { linearizable: true }).await.expect("a list");
        members.member_promote(pb::MemberPromoteRequest { id: 99 }).await.expect_err("no such member");
    }

    /// What probes ask.
    async fn probes(&self) {
        for path in ["/health", "/health?serializable=true", "/livez", "/readyz", "/readyz/data_corruption"] {
            assert_eq!(Request::get(path).send(self.port).await.status, 200, "{path}");
        }
    }

    /// Users; root may do everything, alice nothing.
    async fn users(&self) {
        let mut auth = AuthClient::new(self.channel.clone());
        auth.auth_enable(pb::AuthEnableRequest {}).await.expect_err("no root");
        for name in ["root", "alice"] {
            let user = pb::AuthUserAddRequest { name: name.into(), password: "pw".into(), ..Default::default() };
            auth.user_add(user).await.expect("added");
        }
        let root = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        auth.user_grant_role(root).await.expect("granted");
        auth.role_add(pb::AuthRoleAddRequest { name: "role".into() }).await.expect("added");
        auth.role_delete(pb::AuthRoleDeleteRequest { role: "role".into() }).await.expect("deleted");
        auth.auth_enable(pb::AuthEnableRequest {}).await.expect("enabled");
        let mut token = async |name: &str, password: &str| {
            let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
            auth.authenticate(request).await.map(|answer| answer.into_inner().token)
        };
        token("alice", "wrong").await.expect_err("another password");
        let (root, alice) = (token("root", "pw").await.expect("a token"), token("alice", "pw").await.expect("a token"));
        let mut kv = self.kv();
        for _ in 0..10 {
            kv.put(with(&alice, put("a"))).await.expect_err("denied");
        }
        kv.range(with(&alice, get("a"))).await.expect_err("denied");
        kv.range(get("a")).await.expect_err("nobody");
        kv.put(with("nobody.1", put("a"))).await.expect_err("no such token");
        kv.put(with(&root, put("a"))).await.expect("written");
        auth.auth_disable(with(&root, pb::AuthDisableRequest {})).await.expect("disabled");
    }

    /// Makes all calls and says what grew by them.
    async fn run(&self) -> Counts {
        let before = counts(self.port).await;
        self.keys().await;
        self.transactions().await;
        self.leases().await;
        self.watches().await;
        self.maintenance().await;
        self.users().await;
        let mut grown = grown_since(&before, counts(self.port).await);
        let before = counts(self.port).await;
        self.probes().await;
        // etcd's probes read a key, those of ours look whether they could: only what is counted of the probes is the same.
        let by_probes = grown_since(&before, counts(self.port).await);
        grown.extend(by_probes.into_iter().filter(|(series, _)| series.starts_with("etcd_server_health")));
        grown
    }
}

fn grown_since(before: &Counts, after: Counts) -> Counts {
    let grown = after.into_iter().map(|(series, value)| {
        let grown = value - before.get(&series).copied().unwrap_or_default();
        (series, grown)
    });
    grown.filter(|(_, grown)| *grown != 0.0).collect()
}

fn has_reason(series: &str) -> bool {
    DIFFERENT.iter().any(|(begin, _)| series.starts_with(begin))
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_grow_as_etcds_by_the_same_calls() {
    let cluster = Cluster::start_with(1, &["--bcrypt-cost=4", "--metrics=extensive"]).await;
    let ours = Asked::new(cluster.members[0].client_port).await.run().await;
    assert!(!ours.contains_key("etcd_server_proposals_failed_total"), "a refused write is no failed proposal");
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 1, &["--bcrypt-cost=4".to_owned(), "--metrics=extensive".to_owned()]);
        let theirs = Asked::new(etcd.port).await.run().await;
        let known = |series: &str| shown_by(series, release) && !has_reason(series);
        let series = theirs.keys().chain(ours.keys()).filter(|series| known(series));
        let of = |counts: &Counts, series: &str| counts.get(series).copied().unwrap_or_default();
        let differ = |series: &&String| (of(&theirs, series) - of(&ours, series)).abs() > f64::EPSILON;
        let mut wrong: Vec<String> = series
            .filter(differ)
            .map(|series| format!("{series}: {} of {release}'s {}", of(&ours, series), of(&theirs, series)))
            .collect();
        wrong.sort();
        wrong.dedup();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// What only 3.7 has is compared with 3.7.
fn shown_by(series: &str, release: &str) -> bool {
    release != RELEASES[0] || !series.starts_with("etcd_server_request_duration_seconds")
}
