//! What is measured where it happens: disks, peers, queues, snapshots. The lowest module, so that every layer but the
//! pure ones may count into it. Names that etcd has are etcd's, because its dashboards and alerts read them; the rest
//! begins with `balsa_`. What can be read off a member's status is not here: `service/metrics.rs` reads it on demand.
//!
//! Label values of members are ids in lower-case hex, without `0x`.

pub mod process;

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, core::Collector,
    exponential_buckets,
};

/// Registers a metric with the process's registry. A second registration cannot happen: each is made once, in a static.
fn registered<C: Collector + Clone + 'static>(metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels below are valid");
    prometheus::default_registry().register(Box::new(metric.clone())).expect("each name below is used once");
    metric
}

fn buckets(start: f64, count: usize) -> Vec<f64> {
    exponential_buckets(start, 2.0, count).expect("bounds below are valid")
}

fn histogram(name: &str, help: &str, start: f64, count: usize) -> Histogram {
    registered(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets(start, count))))
}

fn counter(name: &str, help: &str) -> IntCounter {
    registered(IntCounter::new(name, help))
}

fn counters(name: &str, help: &str, label: &str) -> IntCounterVec {
    registered(IntCounterVec::new(Opts::new(name, help), &[label]))
}

/// Seconds of one synced write of the Raft log.
pub static LOG_SYNC: LazyLock<Histogram> = LazyLock::new(|| {
    histogram("etcd_disk_wal_fsync_duration_seconds", "The latency distributions of fsync called by WAL.", 0.001, 14)
});

/// Seconds of one write batch of the key space.
pub static APPLY_COMMIT: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The latency distributions of commit called by backend.";
    histogram("etcd_disk_backend_commit_duration_seconds", help, 0.001, 14)
});

/// Bytes written to the Raft log. A gauge, because etcd's is one.
pub static LOG_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    registered(IntGauge::new("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL."))
});

/// Seconds from a question to a peer until its answer.
pub static PEER_ROUND_TRIP: LazyLock<HistogramVec> = LazyLock::new(|| {
    let name = "etcd_network_peer_round_trip_time_seconds";
    let help = "Round-Trip-Time histogram between peers.";
    registered(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets(0.0001, 16)), &["To"]))
});

/// Bytes sent to a peer.
pub static PEER_SENT_BYTES: LazyLock<IntCounterVec> =
    LazyLock::new(|| counters("etcd_network_peer_sent_bytes_total", "The total number of bytes sent to peers.", "To"));

/// Bytes received from a peer.
pub static PEER_RECEIVED_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("etcd_network_peer_received_bytes_total", "The total number of bytes received from peers.", "From")
});

/// Messages that could not be sent to a peer.
pub static PEER_SEND_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("etcd_network_peer_sent_failures_total", "The total number of send failures to peers.", "To")
});

/// Peers that this member has a connection to, by both ids.
pub static ACTIVE_PEERS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = Opts::new("etcd_network_active_peers", "The current number of active peer connections.");
    registered(IntGaugeVec::new(options, &["Local", "Remote"]))
});

/// Connections to peers that were lost, by both ids.
pub static DISCONNECTED_PEERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = Opts::new("etcd_network_disconnected_peers_total", "The total number of disconnected peers.");
    registered(IntCounterVec::new(options, &["Local", "Remote"]))
});

/// Snapshots of a peer that were taken.
pub static SNAPSHOTS_RECEIVED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("etcd_network_snapshot_receive_success", "Total number of successful snapshot receives.", "From")
});

/// Snapshots of a peer that broke off or could not be used.
pub static SNAPSHOTS_NOT_RECEIVED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("etcd_network_snapshot_receive_failures", "Total number of snapshot receive failures.", "From")
});

/// Snapshots that are coming from a peer.
pub static SNAPSHOTS_COMING: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "Total number of inflight snapshot receives.";
    registered(IntGaugeVec::new(Opts::new("etcd_network_snapshot_receive_inflights_total", help), &["From"]))
});

/// Seconds of a snapshot's way from a peer.
pub static SNAPSHOT_RECEIVE_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let (name, help) =
        ("etcd_network_snapshot_receive_total_duration_seconds", "Total latency distributions of snapshot receives.");
    registered(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets(0.1, 10)), &["From"]))
});

/// Seconds until a received snapshot was on the disk, with its way here.
pub static SNAPSHOT_SAVE: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The total latency distributions of v3 snapshot save";
    histogram("etcd_snap_db_save_total_duration_seconds", help, 0.1, 10)
});

/// Seconds of the sync of one file of a received snapshot.
pub static SNAPSHOT_SYNC: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The latency distributions of fsyncing .snap.db file";
    histogram("etcd_snap_db_fsync_duration_seconds", help, 0.001, 14)
});

/// Whether a received snapshot is being switched to.
pub static SNAPSHOT_INSTALLING: LazyLock<IntGauge> = LazyLock::new(|| {
    let help = "1 if the server is applying the incoming snapshot. 0 if none.";
    registered(IntGauge::new("etcd_server_snapshot_apply_in_progress_total", help))
});

/// Views of the key space that are open.
pub static OPEN_VIEWS: LazyLock<IntGauge> = LazyLock::new(|| {
    let help = "The number of currently open read transactions";
    registered(IntGauge::new("etcd_mvcc_db_open_read_transactions", help))
});

/// Seconds of the write batch that a command was applied in, by the kind of command.
pub static APPLY_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let help = "The latency distributions of v2 apply called by backend.";
    let options = HistogramOpts::new("etcd_server_apply_duration_seconds", help).buckets(buckets(0.0001, 20));
    registered(HistogramVec::new(options, &["version", "op", "success"]))
});

/// Snapshots that a peer has taken.
pub static SNAPSHOTS_SENT: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("etcd_network_snapshot_send_success", "Total number of successful snapshot sends.", "To")
});

/// Snapshots that a peer has not taken.
pub static SNAPSHOTS_FAILED: LazyLock<IntCounterVec> =
    LazyLock::new(|| counters("etcd_network_snapshot_send_failures", "Total number of snapshot send failures.", "To"));

/// Snapshots on their way to a peer.
pub static SNAPSHOTS_RUNNING: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "Total number of inflight snapshot sends.";
    registered(IntGaugeVec::new(Opts::new("etcd_network_snapshot_send_inflights_total", help), &["To"]))
});

/// What waits in a bounded queue, by the queue's name.
pub static QUEUE_LENGTH: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "What waits in a bounded queue.";
    registered(IntGaugeVec::new(Opts::new("balsa_queue_length", help), &["queue"]))
});

/// What was dropped or refused because a bounded queue was full, by the queue's name.
pub static QUEUE_FULL: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("balsa_queue_full_total", "What was dropped or refused because a bounded queue was full.", "queue")
});

/// Commands packed into one log entry.
pub static COMMANDS_PER_ENTRY: LazyLock<Histogram> =
    LazyLock::new(|| histogram("balsa_raft_commands_per_entry", "Client commands packed into one log entry.", 1.0, 12));

/// Seconds of one defragmentation.
pub static DEFRAGMENTED: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The latency distribution of backend defragmentation.";
    histogram("etcd_disk_backend_defrag_duration_seconds", help, 0.1, 13)
});

/// Defragmentations under way.
pub static DEFRAGMENTING: LazyLock<IntGauge> = LazyLock::new(|| {
    let help = "Whether or not defrag is active on the member. 1 means active, 0 means not.";
    registered(IntGauge::new("etcd_disk_defrag_inflight", help))
});
/// Grants of leases that were applied.
pub static LEASES_GRANTED: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_debugging_lease_granted_total", "The total number of granted leases."));

/// Revocations of leases that were applied, whoever asked for them.
pub static LEASES_REVOKED: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_debugging_lease_revoked_total", "The total number of revoked leases."));

/// Renewals by this member's clock.
pub static LEASES_RENEWED: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_debugging_lease_renewed_total", "The number of renewed leases seen by the leader."));

/// Seconds that leases were granted for: 1 s to 3 months.
pub static LEASE_TTL: LazyLock<Histogram> =
    LazyLock::new(|| histogram("etcd_debugging_lease_ttl_total", "Bucketed histogram of lease TTLs.", 1.0, 24));

/// Leases that were over by this member's clock and revoked.
pub static LEASES_EXPIRED: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_debugging_server_lease_expired_total", "The total number of expired leases."));

/// Version of the active settings of those that can change at run time.
pub static CONFIG_VERSION: LazyLock<IntGauge> = LazyLock::new(|| {
    registered(IntGauge::new("balsa_config_version", "Version of the active settings that can change at run time."))
});

/// Changes of settings that were refused.
pub static CONFIG_REFUSED: LazyLock<IntCounter> = LazyLock::new(|| {
    registered(IntCounter::new("balsa_config_refused_total", "Changes of settings that were refused."))
});

/// Keys set, by whatever command, as applied on this member.
pub static PUTS: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_mvcc_put_total", "Total number of puts seen by this member."));

/// Deletes of keys and ranges, as applied on this member.
pub static DELETES: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member."));

/// Transactions of more than one operation: written ones as applied, the others as answered.
pub static TXNS: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_mvcc_txn_total", "Total number of txns seen by this member."));

/// Ranges read: for clients of this member, and by what is applied.
pub static RANGES: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_mvcc_range_total", "Total number of ranges seen by this member."));

/// Counts into [`RANGES`] and [`RANGE_SECONDS`].
pub fn range_took(success: bool, time: Duration) {
    RANGES.inc();
    RANGE_SECONDS.with_label_values(&[if success { "true" } else { "false" }]).observe(time.as_secs_f64());
}

/// Bytes of keys and values set. A gauge, because etcd's is one.
pub static PUT_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    let help = "The total size of put kv pairs seen by this member.";
    registered(IntGauge::new("etcd_debugging_mvcc_total_put_size_in_bytes", help))
});

/// Seconds of one range, with its way through the cluster, by `success`.
pub static RANGE_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let options = HistogramOpts::new("etcd_server_range_duration_seconds", "The latency distributions of txn.Range");
    registered(HistogramVec::new(options.buckets(buckets(0.0001, 20)), &["success"]))
});

/// Seconds of one request, with its way through the cluster, by etcd's word for it and `success`.
pub static REQUEST_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let help = "Response latency distribution in seconds for each type.";
    let options = HistogramOpts::new("etcd_server_request_duration_seconds", help).buckets(buckets(0.001, 14));
    registered(HistogramVec::new(options, &["type", "success"]))
});

/// Counts into [`REQUEST_SECONDS`].
pub fn request_took(kind: &str, success: bool, time: Duration) {
    let success = if success { "true" } else { "false" };
    REQUEST_SECONDS.with_label_values(&[kind, success]).observe(time.as_secs_f64());
}

/// Seconds until a watch's events were taken over by its connection.
pub static WATCH_EVENTS_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The total duration in seconds of running through the send loop watch stream response all events.";
    histogram("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", help, 0.001, 14)
});

/// The same, divided by the number of events.
pub static WATCH_PER_EVENT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The average duration in seconds of running through the send loop watch stream response, per event.";
    histogram("etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", help, 0.001, 14)
});

/// Seconds until an answer to a watch's client was taken over by its connection.
pub static WATCH_CONTROL_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The total duration in seconds of running through the send loop control stream response.";
    histogram("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", help, 0.001, 14)
});

/// Seconds of asking for the progress of a stream's watches.
pub static WATCH_PROGRESS_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The total duration in seconds of running through the progress loop control stream response.";
    histogram("etcd_debugging_server_watch_send_loop_progress_duration_seconds", help, 0.001, 14)
});

/// Readings of `/metrics`, by the status of the answer.
pub static SCRAPES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Total number of scrapes by HTTP status code.";
    counters("promhttp_metric_handler_requests_total", help, "code")
});

/// Readings of `/metrics` that are under way.
pub static SCRAPES_RUNNING: LazyLock<IntGauge> = LazyLock::new(|| {
    let help = "Current number of scrapes being served.";
    registered(IntGauge::new("promhttp_metric_handler_requests_in_flight", help))
});

/// Reads that could not be confirmed by the cluster.
pub static READ_INDEXES_FAILED: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_server_read_indexes_failed_total", "The total number of failed read indexes seen."));

/// Learners that became voters by this member's doing.
pub static PROMOTED: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "The total number of successful learner promotions while this member is leader.";
    counter("etcd_server_learner_promote_successes", help)
});

/// Calls of clients, by the version of the API that they say they use.
pub static CLIENT_REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options =
        Opts::new("etcd_server_client_requests_total", "The total number of client requests per client version.");
    registered(IntCounterVec::new(options, &["type", "client_api_version"]))
});

/// Good answers of `/health`.
pub static HEALTH_SUCCESS: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_server_health_success", "The total number of successful health checks"));

/// Bad answers of `/health`.
pub static HEALTH_FAILURES: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_server_health_failures", "The total number of failed health checks"));

/// The last result of each check: 1 is good.
pub static HEALTH_CHECK: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = Opts::new("etcd_server_healthcheck", "The result of each kind of healthcheck.");
    registered(IntGaugeVec::new(options, &["type", "name"]))
});

/// How often each check had each result.
pub static HEALTH_CHECKS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = Opts::new("etcd_server_healthchecks_total", "The total number of each kind of healthcheck.");
    registered(IntCounterVec::new(options, &["type", "name", "status"]))
});

/// Seconds of one write of the Raft log, synced or not.
pub static LOG_WRITE: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The latency distributions of write called by WAL.";
    histogram("etcd_disk_wal_write_duration_seconds", help, 0.001, 14)
});

/// Seconds until a checkpoint for a snapshot stream was made and sent.
pub static SNAPSHOT_STREAM: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The latency distribution of backend snapshots.";
    histogram("etcd_disk_backend_snapshot_duration_seconds", help, 0.01, 17)
});

/// Seconds of a snapshot's way to a peer.
pub static SNAPSHOT_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let (name, help) =
        ("etcd_network_snapshot_send_total_duration_seconds", "Total latency distributions of snapshot sends.");
    registered(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets(0.1, 10)), &["To"]))
});

/// Ticks of a leader that came late, so that its heartbeats did too.
pub static LATE_HEARTBEATS: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "The total number of leader heartbeat send failures (likely overloaded from slow disk).";
    counter("etcd_server_heartbeat_send_failures_total", help)
});

/// Runs of entries whose applying took longer than `--warning-apply-duration`, and reads that did.
pub static SLOW_APPLIES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "etcd_server_slow_apply_total",
        "The total number of slow apply requests (likely overloaded from slow disk).",
    )
});

/// Read indexes that took over 500 ms.
pub static SLOW_READ_INDEXES: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "The total number of pending read indexes not in sync with leader's or timed out read index requests.";
    counter("etcd_server_slow_read_indexes_total", help)
});

/// Seconds of a hash over everything.
pub static HASH_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram("etcd_mvcc_hash_duration_seconds", "The latency distribution of storage hash operation.", 0.01, 15)
});

/// Seconds of a hash of the key history.
pub static HASH_KV_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let help = "The latency distribution of storage hash by revision operation.";
    histogram("etcd_mvcc_hash_rev_duration_seconds", help, 0.01, 15)
});

/// Rows that compactions have deleted.
pub static COMPACTED_ROWS: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_debugging_mvcc_db_compaction_keys_total", "Total number of db keys compacted."));

/// When a compaction last deleted everything, in seconds since 1970.
pub static COMPACTED_AT: LazyLock<IntGauge> = LazyLock::new(|| {
    let help = "The unix time of the last db compaction. Resets to 0 on start.";
    registered(IntGauge::new("etcd_debugging_mvcc_db_compaction_last", help))
});

/// Milliseconds of one step of a compaction.
pub static COMPACTION_STEP_MS: LazyLock<Histogram> = LazyLock::new(|| {
    let name = "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds";
    histogram(name, "Bucketed histogram of db compaction pause duration.", 1.0, 13)
});

/// Milliseconds of a whole compaction.
pub static COMPACTION_MS: LazyLock<Histogram> = LazyLock::new(|| {
    let name = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds";
    histogram(name, "Bucketed histogram of db compaction total duration.", 100.0, 14)
});

/// TLS files that changed and are in use, by port.
pub static TLS_RELOADS: LazyLock<IntCounterVec> =
    LazyLock::new(|| counters("balsa_tls_reloads_total", "Changed TLS files that were taken over.", "port"));

/// TLS files that changed and cannot be used, by port; the old ones stay.
pub static TLS_RELOAD_FAILURES: LazyLock<IntCounterVec> =
    LazyLock::new(|| counters("balsa_tls_reload_failures_total", "Changed TLS files that cannot be used.", "port"));

/// TLS handshakes of clients or peers that failed, by port.
pub static TLS_HANDSHAKE_FAILURES: LazyLock<IntCounterVec> =
    LazyLock::new(|| counters("balsa_tls_handshake_failures_total", "TLS handshakes that failed.", "port"));

/// Frames of peers that arrived and had no room.
pub static PEER_RECEIVE_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("etcd_network_peer_received_failures_total", "The total number of receive failures from peers.", "From")
});

/// Learners that were not promoted, by the text of the refusal, at the leader.
pub static NOT_PROMOTED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let name = "etcd_server_learner_promote_failures";
    counters(
        name,
        "The total number of failed learner promotions (likely learner not ready) while this member is leader.",
        "Reason",
    )
});

/// Streams of clients that ended with what cannot be read.
pub static STREAM_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "The total number of stream failures from the local server.";
    let options = Opts::new("etcd_network_server_stream_failures_total", help);
    registered(IntCounterVec::new(options, &["Type", "API"]))
});

/// Streams that were ended because their clients did not read them.
pub static UNREAD_STREAMS: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("balsa_unread_streams_ended_total", "Streams that were ended because their clients did not read them.")
});

/// Connections that were closed because their clients did not even read that a stream had ended.
pub static UNREAD_CONNECTIONS: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("balsa_unread_connections_closed_total", "Connections that were closed because their clients did not read.")
});

/// Makes every metric exist from the start, with 0, so that a rate over it is right from the first event on.
pub fn register_all() {
    for counter in [
        &PUTS,
        &DELETES,
        &TXNS,
        &RANGES,
        &READ_INDEXES_FAILED,
        &UNREAD_STREAMS,
        &UNREAD_CONNECTIONS,
        &PROMOTED,
        &HEALTH_SUCCESS,
        &HEALTH_FAILURES,
    ] {
        LazyLock::force(counter);
    }
    register_answers();
    process::register();
    LazyLock::force(&LOG_SYNC);
    LazyLock::force(&APPLY_COMMIT);
    LazyLock::force(&LOG_BYTES);
    LazyLock::force(&PEER_ROUND_TRIP);
    LazyLock::force(&PEER_SENT_BYTES);
    LazyLock::force(&PEER_RECEIVED_BYTES);
    LazyLock::force(&PEER_SEND_FAILURES);
    LazyLock::force(&PEER_RECEIVE_FAILURES);
    LazyLock::force(&NOT_PROMOTED);
    for api in ["watch", "lease-keepalive"] {
        STREAM_FAILURES.with_label_values(&["receive", api]);
    }
    LazyLock::force(&SNAPSHOTS_SENT);
    LazyLock::force(&SNAPSHOTS_FAILED);
    LazyLock::force(&SNAPSHOTS_RUNNING);
    LazyLock::force(&QUEUE_LENGTH);
    LazyLock::force(&QUEUE_FULL);
    LazyLock::force(&COMMANDS_PER_ENTRY);
    LazyLock::force(&DEFRAGMENTED);
    LazyLock::force(&DEFRAGMENTING);
    LazyLock::force(&CONFIG_VERSION);
    LazyLock::force(&CONFIG_REFUSED);
    for histogram in
        [&LOG_WRITE, &SNAPSHOT_STREAM, &HASH_SECONDS, &HASH_KV_SECONDS, &COMPACTION_STEP_MS, &COMPACTION_MS]
    {
        LazyLock::force(histogram);
    }
    for histogram in [&SNAPSHOT_SAVE, &SNAPSHOT_SYNC] {
        LazyLock::force(histogram);
    }
    for gauge in [&SNAPSHOT_INSTALLING, &OPEN_VIEWS] {
        LazyLock::force(gauge);
    }
    for counter in [&LATE_HEARTBEATS, &SLOW_APPLIES, &SLOW_READ_INDEXES, &COMPACTED_ROWS] {
        LazyLock::force(counter);
    }
    LazyLock::force(&COMPACTED_AT);
    LazyLock::force(&SNAPSHOT_SECONDS);
    for queue in ["requests", "frames", "peer_frames", "handshakes", "apply"] {
        QUEUE_FULL.with_label_values(&[queue]);
    }
    QUEUE_LENGTH.with_label_values(&["inbox"]);
    LazyLock::force(&LEASES_GRANTED);
    LazyLock::force(&LEASES_REVOKED);
    LazyLock::force(&LEASES_RENEWED);
    LazyLock::force(&LEASE_TTL);
    LazyLock::force(&LEASES_EXPIRED);
    LazyLock::force(&TLS_RELOADS);
    LazyLock::force(&TLS_RELOAD_FAILURES);
    LazyLock::force(&TLS_HANDSHAKE_FAILURES);
}

/// Those of what clients and probes are answered.
fn register_answers() {
    LazyLock::force(&PUT_BYTES);
    LazyLock::force(&RANGE_SECONDS);
    LazyLock::force(&REQUEST_SECONDS);
    for histogram in [&WATCH_EVENTS_SECONDS, &WATCH_PER_EVENT_SECONDS, &WATCH_CONTROL_SECONDS, &WATCH_PROGRESS_SECONDS]
    {
        LazyLock::force(histogram);
    }
    LazyLock::force(&SCRAPES_RUNNING);
    for code in ["200", "500", "503"] {
        SCRAPES.with_label_values(&[code]);
    }
    LazyLock::force(&CLIENT_REQUESTS);
    LazyLock::force(&HEALTH_CHECK);
    LazyLock::force(&HEALTH_CHECKS);
}
