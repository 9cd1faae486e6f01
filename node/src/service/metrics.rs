//! Metrics that can be read off a member when they are asked for, and the counters of gRPC calls. etcd's names where
//! etcd has one. [`Metrics::render`] adds what `crate::metrics` has measured and the process's own numbers.

mod rocks;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use self::rocks::Rocks;
use super::failure::Error;
use super::free_space::FreeSpace;
use super::health;
use super::member::Member;
use crate::config::version::{BALSA_VERSION, ETCD_VERSION};
use crate::engine::Status;
use crate::engine::watch::WatchCounts;
use crate::metrics;
use crate::storage::{KeySpace, disk};

/// All that `/metrics` shows of this member.
pub struct Metrics {
    registry: Registry,
    observed: Observed,
    grpc: Arc<Grpc>,
    free: FreeSpace,
}

impl Metrics {
    /// Registers everything, with 0.
    ///
    /// # Errors
    /// A name that is used twice, which is a fault of this file.
    pub fn new() -> prometheus::Result<Self> {
        metrics::register_all();
        let registry = Registry::new();
        let observed = Observed::new(&registry)?;
        let grpc = Arc::new(Grpc::new(&registry)?);
        Ok(Self { registry, observed, grpc, free: FreeSpace::new() })
    }

    /// The counters of gRPC calls.
    pub fn grpc(&self) -> Arc<Grpc> {
        self.grpc.clone()
    }

    /// Measures every call from now on, as etcd's `--metrics=extensive` does.
    ///
    /// # Errors
    /// It was called before.
    pub fn time_calls(&self) -> prometheus::Result<()> {
        let help =
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.";
        let options = HistogramOpts::new("grpc_server_handling_seconds", help);
        let seconds = HistogramVec::new(options, &["grpc_type", "grpc_service", "grpc_method"])?;
        self.registry.register(Box::new(seconds.clone()))?;
        for (service, kind, names) in METHODS {
            for name in names {
                let Some(method) = self.grpc.method(&format!("/{service}/{name}")) else { continue };
                // Registered once, so it cannot have been set.
                let _ = method.seconds.set(seconds.with_label_values(&[kind, service, name]));
            }
        }
        Ok(())
    }

    /// Publishes etcd's feature gates: name, stage and whether each is on.
    ///
    /// # Errors
    /// It was called before.
    pub fn show_gates<'a>(&self, gates: impl Iterator<Item = (&'a str, &'a str, bool)>) -> prometheus::Result<()> {
        let help = "Whether or not a feature is enabled. 1 is enabled, 0 is not.";
        let enabled = IntGaugeVec::new(Opts::new("etcd_server_feature_enabled", help), &["name", "stage"])?;
        self.registry.register(Box::new(enabled.clone()))?;
        for (name, stage, on) in gates {
            enabled.with_label_values(&[name, stage]).set(i64::from(on));
        }
        Ok(())
    }

    /// Reads the member and renders everything as text.
    ///
    /// # Errors
    /// The encoder fails, which it does not on valid names.
    pub async fn render(&self, member: &Member) -> Result<String, Error> {
        let data_dir = member.settings().data_dir.clone();
        let free = self.free.ask(move || disk::free_bytes(&data_dir).ok()).await;
        self.observed.read(member, free);
        metrics::process::read();
        let mut families = prometheus::gather();
        families.extend(self.registry.gather());
        TextEncoder::new().encode_to_string(&families).map_err(|error| Error::Internal(error.to_string()))
    }
}

/// Gauges and counters that are set from the member's status at each reading.
struct Observed {
    has_leader: IntGauge,
    is_leader: IntGauge,
    is_learner: IntGauge,
    leader_changes: IntCounter,
    committed: IntGauge,
    applied: IntGauge,
    pending: IntGauge,
    failed: IntCounter,
    quota: IntGauge,
    size: IntGauge,
    size_in_use: IntGauge,
    revision: IntGauge,
    compacted: IntGauge,
    id: IntGaugeVec,
    term: IntGauge,
    first_index: IntGauge,
    last_index: IntGauge,
    membership_index: IntGauge,
    members: IntGaugeVec,
    match_index: IntGaugeVec,
    active: IntGaugeVec,
    ready: IntGauge,
    draining: IntGauge,
    inbox: IntGauge,
    auth_revision: IntGauge,
    watch: Watch,
    rocks: Rocks,
    keys: IntGauge,
    alarms: IntGaugeVec,
    known_peers: IntGaugeVec,
}

/// What the watch hub counts.
struct Watch {
    streams: IntGauge,
    watchers: IntGauge,
    slow: IntGauge,
    pending: IntGauge,
    events: IntCounter,
}

impl Watch {
    fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            streams: make.gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.")?,
            watchers: make.gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.")?,
            slow: make.gauge("etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.")?,
            pending: make
                .gauge("etcd_debugging_mvcc_pending_events_total", "Total number of pending events to be sent.")?,
            events: make.counter("etcd_debugging_mvcc_events_total", "Total number of events sent by this member.")?,
        })
    }

    fn set(&self, counts: &WatchCounts) {
        self.streams.set(counts.streams as i64);
        self.watchers.set(counts.watchers as i64);
        self.slow.set(counts.behind as i64);
        self.pending.set(counts.pending_events as i64);
        advance(&self.events, counts.events);
    }
}

/// Makes and registers single gauges and counters.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let gauge = IntGauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn gauges2(&self, name: &str, help: &str, labels: [&str; 2]) -> prometheus::Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }
}

impl Observed {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let make = Maker(registry);
        let version = make.gauges("etcd_server_version", "Which version is running.", "server_version")?;
        version.with_label_values(&[ETCD_VERSION]).set(1);
        let cluster_version = make.gauges("etcd_cluster_version", "Which version is running.", "cluster_version")?;
        let minor = ETCD_VERSION.rsplit_once('.').map_or(ETCD_VERSION, |(minor, _)| minor);
        cluster_version.with_label_values(&[minor]).set(1);
        let build = make.gauges("balsa_build_info", "The version of this program.", "version")?;
        build.with_label_values(&[BALSA_VERSION]).set(1);
        Ok(Self {
            has_leader: make.gauge("etcd_server_has_leader", "Whether or not a leader exists.")?,
            is_leader: make.gauge("etcd_server_is_leader", "Whether or not this member is a leader.")?,
            is_learner: make.gauge("etcd_server_is_learner", "Whether or not this member is a learner.")?,
            leader_changes: make
                .counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.")?,
            committed: make.gauge("etcd_server_proposals_committed_total", "The index of the last committed entry.")?,
            applied: make.gauge("etcd_server_proposals_applied_total", "The index of the last applied entry.")?,
            pending: make.gauge("etcd_server_proposals_pending", "The current number of pending proposals.")?,
            failed: make.counter("etcd_server_proposals_failed_total", "The total number of failed proposals seen.")?,
            quota: make.gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.")?,
            size: make.gauge("etcd_mvcc_db_total_size_in_bytes", "Total size of the key space on disk in bytes.")?,
            size_in_use: make
                .gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the key space on disk that are live.")?,
            revision: make.gauge("etcd_debugging_mvcc_current_revision", "The current revision of the store.")?,
            compacted: make
                .gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store.")?,
            id: make.gauges("etcd_server_id", "Server or member ID in hexadecimal format.", "server_id")?,
            term: make.gauge("balsa_raft_term", "Raft term.")?,
            first_index: make
                .gauge("balsa_raft_first_index", "Index of the first entry that the Raft log still has.")?,
            last_index: make.gauge("balsa_raft_last_index", "Index of the last entry of the Raft log.")?,
            membership_index: make.gauge("balsa_membership_index", "Number of applied membership changes.")?,
            members: make.gauges("balsa_members", "Members as applied, by role.", "role")?,
            match_index: make.gauges("balsa_raft_match_index", "What a member is known to hold (leader).", "member")?,
            active: make.gauges("balsa_raft_member_active", "Whether a member was heard from (leader).", "member")?,
            ready: make.gauge("balsa_ready", "Whether this member is ready to serve.")?,
            draining: make.gauge("balsa_draining", "Whether this member is on its way out.")?,
            inbox: make.gauge("balsa_raft_inbox_length", "Inputs that wait for the driver.")?,
            auth_revision: make.gauge("etcd_debugging_auth_revision", "The current revision of auth store.")?,
            watch: Watch::new(&make)?,
            rocks: Rocks::new(&make)?,
            keys: make.gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.")?,
            alarms: make.gauges2(
                "etcd_debugging_server_alarms",
                "Alarms for every member in cluster. 1 for 'server_id' label with current ID.",
                ["server_id", "alarm_type"],
            )?,
            known_peers: make.gauges2(
                "etcd_network_known_peers",
                "The current number of known peers.",
                ["Local", "Remote"],
            )?,
        })
    }

    fn read(&self, member: &Member, free: Option<u64>) {
        self.ready.set(i64::from(health::is_ready(member)));
        self.draining.set(i64::from(member.is_draining()));
        let quota = member.hot().values.quota_bytes;
        let Ok(handle) = member.handle() else { return self.quota.set(room(quota, 0, free)) };
        let (size, live) = handle.store().size_bytes();
        self.quota.set(room(quota, size, free));
        self.size.set(clamp(size));
        self.size_in_use.set(clamp(live));
        self.inbox.set(handle.queued() as i64);
        metrics::QUEUE_LENGTH.with_label_values(&["inbox"]).set(handle.queued() as i64);
        self.auth_revision.set(clamp(handle.auth().revision()));
        self.watch.set(&handle.watch_hub().counts());
        self.rocks.set(&handle.numbers());
        self.set(&handle.status());
    }

    fn set(&self, status: &Status) {
        self.has_leader.set(i64::from(status.leader != 0));
        self.is_leader.set(i64::from(status.is_leader()));
        self.is_learner.set(i64::from(status.is_learner()));
        advance(&self.leader_changes, status.leader_changes);
        self.committed.set(clamp(status.commit));
        self.applied.set(clamp(status.applied));
        self.pending.set(clamp(status.pending));
        advance(&self.failed, status.failed);
        self.revision.set(status.revision);
        self.compacted.set(status.compacted);
        self.id.with_label_values(&[&format!("{:x}", status.raft_id)]).set(1);
        self.term.set(clamp(status.term));
        self.first_index.set(clamp(status.first_index));
        self.last_index.set(clamp(status.last_index));
        self.membership_index.set(clamp(status.membership.index));
        let learners = status.membership.members.iter().filter(|member| member.is_learner).count();
        self.members.with_label_values(&["learner"]).set(learners as i64);
        self.members.with_label_values(&["voter"]).set((status.membership.members.len() - learners) as i64);
        self.keys.set(status.counts.as_ref().map_or(0, |counts| clamp(counts.total())));
        self.alarms.reset();
        for alarm in &status.maintenance.alarms {
            let labels = [&format!("{:x}", alarm.member_id), alarm.alarm().as_str_name()];
            self.alarms.with_label_values(&labels).set(1);
        }
        self.peers(status);
        self.match_index.reset();
        self.active.reset();
        for peer in status.progress.iter() {
            let id = format!("{:x}", peer.id);
            self.match_index.with_label_values(&[&id]).set(clamp(peer.match_index));
            self.active.with_label_values(&[&id]).set(i64::from(peer.active));
        }
    }
}

impl Observed {
    /// The series of the other members, with 0, so that a rate over them is right from the first event on.
    fn peers(&self, status: &Status) {
        self.known_peers.reset();
        let own = format!("{:x}", status.raft_id);
        for member in &status.membership.members {
            let peer = format!("{:x}", member.id);
            // As in etcd, a member is among those that it knows.
            self.known_peers.with_label_values(&[&own, &peer]).set(1);
            if member.id == status.raft_id {
                continue;
            }
            for counters in [
                &metrics::PEER_SENT_BYTES,
                &metrics::PEER_RECEIVED_BYTES,
                &metrics::PEER_SEND_FAILURES,
                &metrics::PEER_RECEIVE_FAILURES,
            ] {
                counters.with_label_values(&[&peer]);
            }
            metrics::PEER_ROUND_TRIP.with_label_values(&[&peer]);
        }
    }
}

/// What the key space may hold: the quota, or without one what it will hold when the disk is full. etcd's alerts divide by
/// this and compare with it, so that 0 for "no quota" would fire them for ever; with the disk they say in time that it
/// fills up, whoever fills it. A disk that does not tell is taken for an endless one.
fn room(quota: i64, held: u64, free: Option<u64>) -> i64 {
    if quota > 0 { quota } else { free.map_or(i64::MAX, |free| clamp(held.saturating_add(free))) }
}

/// A counter that follows a number which only grows. Two readings at once may not both add the difference: the second
/// finds less left to add, and none is ever subtracted.
fn advance(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The names of gRPC's codes, by number, as Go prints them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Service, type of call, methods. The services of the client port.
const METHODS: [(&str, &str, &[&str]); 11] = [
    ("etcdserverpb.KV", "unary", &["Range", "Put", "DeleteRange", "Txn", "Compact"]),
    ("etcdserverpb.KV", "server_stream", &["RangeStream"]),
    ("etcdserverpb.Watch", "bidi_stream", &["Watch"]),
    ("etcdserverpb.Lease", "unary", &["LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"]),
    ("etcdserverpb.Lease", "bidi_stream", &["LeaseKeepAlive"]),
    ("etcdserverpb.Cluster", "unary", &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"]),
    (
        "etcdserverpb.Maintenance",
        "unary",
        &["Alarm", "Status", "Defragment", "Hash", "HashKV", "MoveLeader", "Downgrade"],
    ),
    ("etcdserverpb.Maintenance", "server_stream", &["Snapshot"]),
    (
        "etcdserverpb.Auth",
        "unary",
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
    ),
    ("grpc.health.v1.Health", "unary", &["Check", "List"]),
    ("grpc.health.v1.Health", "server_stream", &["Watch"]),
];

/// The counters of every method, made at the start.
pub struct Grpc {
    methods: HashMap<String, Arc<Method>>,
}

/// The counters of one method.
pub struct Method {
    /// `/package.Service/Method`.
    pub path: String,
    /// Calls begun.
    pub started: IntCounter,
    handled: Vec<IntCounter>,
    messages_received: IntCounter,
    messages_sent: IntCounter,
    bytes_received: IntCounter,
    bytes_sent: IntCounter,
    /// Only when calls are timed.
    seconds: OnceLock<Histogram>,
    /// Whether a call is one request and one answer.
    pub is_unary: bool,
}

impl Method {
    /// A call ended with this code.
    pub fn handled(&self, code: usize) {
        // An unknown number is gRPC's Unknown.
        self.handled.get(code).unwrap_or(&self.handled[2]).inc();
    }

    /// A call has taken so long.
    pub fn took(&self, time: Duration) {
        if let Some(seconds) = self.seconds.get() {
            seconds.observe(time.as_secs_f64());
        }
    }

    /// Messages and bytes came in.
    pub fn received(&self, messages: u64, bytes: u64) {
        self.messages_received.inc_by(messages);
        self.bytes_received.inc_by(bytes);
    }

    /// Messages and bytes went out.
    pub fn sent(&self, messages: u64, bytes: u64) {
        self.messages_sent.inc_by(messages);
        self.bytes_sent.inc_by(bytes);
    }
}

impl Grpc {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let with_code = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let started = counters("grpc_server_started_total", "Total number of RPCs started on the server.", &labels)?;
        let handled =
            counters("grpc_server_handled_total", "Total number of RPCs completed on the server.", &with_code)?;
        let help = "Total number of RPC stream messages received on the server.";
        let received = counters("grpc_server_msg_received_total", help, &labels)?;
        let help = "Total number of gRPC stream messages sent by the server.";
        let sent = counters("grpc_server_msg_sent_total", help, &labels)?;
        let make = Maker(registry);
        let help = "The total number of bytes received from grpc clients.";
        let bytes_received = make.counter("etcd_network_client_grpc_received_bytes_total", help)?;
        let help = "The total number of bytes sent to grpc clients.";
        let bytes_sent = make.counter("etcd_network_client_grpc_sent_bytes_total", help)?;

        let mut methods = HashMap::new();
        for (service, kind, names) in METHODS {
            for name in names {
                let handled = CODES.iter().map(|code| handled.with_label_values(&[kind, service, name, code]));
                let path = format!("/{service}/{name}");
                let method = Method {
                    path: path.clone(),
                    started: started.with_label_values(&[kind, service, name]),
                    handled: handled.collect(),
                    messages_received: received.with_label_values(&[kind, service, name]),
                    messages_sent: sent.with_label_values(&[kind, service, name]),
                    bytes_received: bytes_received.clone(),
                    bytes_sent: bytes_sent.clone(),
                    seconds: OnceLock::new(),
                    is_unary: kind == "unary",
                };
                methods.insert(path, Arc::new(method));
            }
        }
        Ok(Self { methods })
    }

    /// The counters of the method with this path, if it is counted.
    pub fn method(&self, path: &str) -> Option<Arc<Method>> {
        self.methods.get(path).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::Progress;

    fn rendered(metrics: &Metrics) -> String {
        TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap()
    }

    #[test]
    fn every_method_is_there_from_the_start() {
        let text = rendered(&Metrics::new().unwrap());
        let line = r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 0"#;
        assert!(text.contains(line));
        let line = r#"grpc_server_handled_total{grpc_code="Unavailable",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 0"#;
        assert!(text.contains(line));
    }

    #[test]
    fn the_names_of_etcds_alerts_follow_the_status() {
        let metrics = Metrics::new().unwrap();
        let mut status =
            Status { raft_id: 0xab, leader: 0xab, commit: 7, applied: 6, leader_changes: 2, ..Status::default() };
        (status.first_index, status.last_index) = (3, 8);
        status.progress = Arc::new(vec![Progress { id: 0xcd, match_index: 5, active: true, ..Progress::default() }]);
        metrics.observed.set(&status);
        metrics.observed.set(&status);
        let text = rendered(&metrics);
        for line in [
            "etcd_server_has_leader 1",
            "etcd_server_is_leader 1",
            "etcd_server_leader_changes_seen_total 2",
            "etcd_server_proposals_committed_total 7",
            "etcd_server_proposals_applied_total 6",
            "balsa_raft_first_index 3",
            "balsa_raft_last_index 8",
            r#"etcd_server_id{server_id="ab"} 1"#,
            r#"balsa_raft_match_index{member="cd"} 5"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        metrics.observed.set(&Status::default());
        assert!(
            !rendered(&metrics).contains("balsa_raft_match_index{"),
            "a member that is gone leaves no series behind"
        );
    }

    #[test]
    fn without_a_quota_the_disk_is_the_limit() {
        assert_eq!(room(1_000, 700, Some(5)), 1_000);
        for none in [0, -1] {
            assert_eq!(room(none, 700, Some(5)), 705);
            assert_eq!(room(none, 0, Some(5)), 5, "before it is a member");
            assert_eq!(room(none, 700, None), i64::MAX);
            assert_eq!(room(none, u64::MAX, Some(5)), i64::MAX);
        }
    }

    #[test]
    fn calls_are_timed_only_when_asked_for() {
        let metrics = Metrics::new().unwrap();
        let method = metrics.grpc().method("/etcdserverpb.KV/Put").unwrap();
        method.took(Duration::from_secs(1));
        assert!(!rendered(&metrics).contains("grpc_server_handling_seconds"));
        metrics.time_calls().unwrap();
        method.took(Duration::from_secs(1));
        let line = r#"grpc_server_handling_seconds_count{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#;
        assert!(rendered(&metrics).contains(line));
    }

    #[test]
    fn a_call_is_counted_under_its_code() {
        let metrics = Metrics::new().unwrap();
        let method = metrics.grpc().method("/etcdserverpb.KV/Put").unwrap();
        method.started.inc();
        method.handled(14);
        method.handled(99);
        assert_eq!(method.handled[14].get(), 1);
        assert_eq!(method.handled[2].get(), 1);
        assert!(metrics.grpc().method("/unknown").is_none());
    }
}
