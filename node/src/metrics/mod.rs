//! What is measured where it happens: disks, peers, queues, snapshots. The lowest module, so that every layer but the
//! pure ones may count into it. Names that etcd has are etcd's, because its dashboards and alerts read them; the rest
//! begins with `balsa_`. What can be read off a member's status is not here: `service/metrics.rs` reads it on demand.
//!
//! Label values of members are ids in lower-case hex, without `0x`.

use std::sync::LazyLock;

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

/// Bytes written to the Raft log.
pub static LOG_BYTES: LazyLock<IntCounter> = LazyLock::new(|| {
    registered(IntCounter::new("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL."))
});

/// Seconds from a message to a peer until its answer.
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

/// Version of the active settings of those that can change at run time.
pub static CONFIG_VERSION: LazyLock<IntGauge> = LazyLock::new(|| {
    registered(IntGauge::new("balsa_config_version", "Version of the active settings that can change at run time."))
});

/// Changes of settings that were refused.
pub static CONFIG_REFUSED: LazyLock<IntCounter> = LazyLock::new(|| {
    registered(IntCounter::new("balsa_config_refused_total", "Changes of settings that were refused."))
});

/// Makes every metric exist from the start, with 0, so that a rate over it is right from the first event on.
pub fn register_all() {
    LazyLock::force(&LOG_SYNC);
    LazyLock::force(&APPLY_COMMIT);
    LazyLock::force(&LOG_BYTES);
    LazyLock::force(&PEER_ROUND_TRIP);
    LazyLock::force(&PEER_SENT_BYTES);
    LazyLock::force(&PEER_RECEIVED_BYTES);
    LazyLock::force(&PEER_SEND_FAILURES);
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
}
