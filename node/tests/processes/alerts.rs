//! What the alerts and dashboards of etcd's mixin compute from, on a cluster that is well and on one that lost a member:
//! the values, where the test of the metrics compares names and labels. Their expressions are not repeated here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::gateway::http::Request;

/// Histograms of which the alerts take the 99th percentile over five minutes.
const TIMED: [&str; 2] = ["etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"];

/// By the member that something was meant for.
const FAILURES: &str = "etcd_network_peer_sent_failures_total";

/// What a panel shows a rate of, so it has to grow.
const GROWING: [&str; 4] = [
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
];

/// The series of one member.
struct Seen(BTreeMap<String, f64>);

impl Seen {
    async fn of(member: &Member) -> Self {
        let text = String::from_utf8(Request::get("/metrics").send(member.client_port).await.body).expect("text");
        let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    fn get(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("{series} is not shown"))
    }

    /// Of a name with one label, by the label's value.
    fn by_label(&self, name: &str) -> Vec<(&str, f64)> {
        let values = self.0.iter().filter(|(series, _)| series.split('{').next() == Some(name));
        values.filter_map(|(series, value)| Some((series.split('"').nth(1)?, *value))).collect()
    }

    /// Sums over the series of a name that have all of these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of = |series: &str| series.starts_with(name) && labels.iter().all(|label| series.contains(label));
        self.0.iter().filter(|(series, _)| of(series)).map(|(_, value)| value).sum()
    }
}

/// The two alerts on the quota, and those on fragmentation, leader and proposals.
fn is_well(seen: &Seen) {
    let (quota, size) = (seen.get("etcd_server_quota_backend_bytes"), seen.get("etcd_mvcc_db_total_size_in_bytes"));
    assert!(size > 0.0 && size < quota * 0.95, "{size} of {quota} bytes");
    assert!(seen.get("etcd_mvcc_db_total_size_in_use_in_bytes") <= size);
    assert!((seen.get("etcd_server_has_leader") - 1.0).abs() < f64::EPSILON);
    assert!(seen.get("etcd_server_leader_changes_seen_total") < 4.0);
    assert!(seen.get("etcd_server_proposals_failed_total") < 5.0);
    assert!(seen.get("process_resident_memory_bytes") > 0.0);
    for name in TIMED {
        assert!(seen.get(&format!("{name}_count")) > 0.0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcds_alerts_read_is_quiet_on_a_healthy_cluster_and_tells_of_a_lost_member() {
    let mut cluster = Cluster::start_with(3, &["--metrics=extensive"]).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    let before = Seen::of(&cluster.members[leader]).await;
    for member in &cluster.members {
        member.put("k", "v").await.expect("a write");
    }
    for member in &cluster.members {
        let seen = Seen::of(member).await;
        is_well(&seen);
        for name in [FAILURES, "etcd_network_peer_round_trip_time_seconds_count"] {
            assert_eq!(seen.by_label(name).len(), 2, "{name}: a series for each of the others");
        }
        let put = [r#"grpc_method="Put""#, r#"grpc_type="unary""#, r#"grpc_service="etcdserverpb.KV""#];
        assert!(seen.sum("grpc_server_started_total", &put) >= 1.0);
        assert!(seen.sum("grpc_server_handled_total", &[&put[..], &[r#"grpc_code="OK""#]].concat()) >= 1.0);
        assert!(seen.sum("grpc_server_handling_seconds_bucket", &[&put[..], &[r#"le="+Inf""#]].concat()) >= 1.0);
        // Followers have little to say to each other.
        for name in ["etcd_network_peer_received_bytes_total", "etcd_network_peer_sent_bytes_total"] {
            assert!(seen.sum(name, &[]) > 0.0, "{name}");
        }
    }
    let seen = Seen::of(&cluster.members[leader]).await;
    for name in GROWING {
        assert!(seen.get(name) > before.get(name), "{name}");
    }
    let measured = async |member: &Member| {
        let seen = Seen::of(member).await;
        let trips = seen.by_label("etcd_network_peer_round_trip_time_seconds_count");
        trips.len() == 2 && trips.iter().all(|(_, count)| *count > 0.0)
    };
    let all_measured = || async {
        for member in &cluster.members {
            if !measured(member).await {
                return false;
            }
        }
        true
    };
    cluster.eventually("every member measures every other, whoever leads", all_measured).await;
    let id = cluster.members[lost].status().await.and_then(|status| status.header).expect("a header").member_id;
    // While all three were starting, something for any of them may have failed.
    let at_start = Seen::of(&cluster.members[leader]).await;
    cluster.members[lost].kill();
    let begun = Instant::now();
    loop {
        let failures = Seen::of(&cluster.members[leader]).await;
        let failures: Vec<(&str, f64)> = failures.by_label(FAILURES);
        let earlier: BTreeMap<&str, f64> = at_start.by_label(FAILURES).into_iter().collect();
        let has_failed = |(peer, count): &&(&str, f64)| count - earlier.get(peer).copied().unwrap_or_default() >= 3.0;
        let failing: Vec<&str> = failures.iter().filter(has_failed).map(|(peer, _)| *peer).collect();
        if failing == [format!("{id:x}")] {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{failures:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
