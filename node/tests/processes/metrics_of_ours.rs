//! Every `balsa_*` metric of a cluster under a few writes has a line here that says what it may be, and what it says is so.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PATIENCE};
use crate::gateway::http::Request;

/// Members of the cluster, and keys set one after the other.
const MEMBERS: usize = 3;
const PUTS: usize = 50;

/// Tables of both databases.
const TABLES: usize = 7 + 2;

/// One family at one member: its values by series.
type Values = BTreeMap<String, f64>;

/// Whether a family is as it must be, at all members.
type Check = fn(&[Values]) -> bool;

/// The families and what they say.
const FAMILIES: [(&str, Check); 29] = [
    ("balsa_build_info", |all| every(all, 1, |value| value == 1.0)),
    ("balsa_config_refused_total", |all| every(all, 1, |value| value == 0.0)),
    ("balsa_config_version", |all| every(all, 1, |value| value == 1.0)),
    ("balsa_draining", |all| every(all, 1, |value| value == 0.0)),
    ("balsa_members", |all| {
        all.iter().all(|of| labelled(of, "voter") == Some(3.0) && labelled(of, "learner") == Some(0.0))
    }),
    ("balsa_membership_index", |all| same(all) && every(all, 1, |value| value >= 0.0)),
    ("balsa_peer_foreign_frames_total", |all| every(all, 1, |value| value == 0.0)),
    ("balsa_queue_full_total", |all| every(all, 5, |value| value == 0.0)),
    ("balsa_queue_length", |all| every(all, 1, |value| (0.0..1_000.0).contains(&value))),
    ("balsa_raft_commands_per_entry", |all| commands(all) >= PUTS as f64),
    ("balsa_raft_first_index", |all| every(all, 1, |value| (1.0..=2.0).contains(&value))),
    ("balsa_raft_inbox_length", |all| every(all, 1, |value| (0.0..1_000.0).contains(&value))),
    ("balsa_raft_last_index", |all| same(all) && every(all, 1, |value| value >= PUTS as f64)),
    ("balsa_raft_match_index", |all| at_one(all, |value| value >= PUTS as f64)),
    ("balsa_raft_member_active", |all| at_one(all, |value| value == 1.0)),
    ("balsa_raft_term", |all| same(all) && every(all, 1, |value| value > 0.0)),
    ("balsa_ready", |all| every(all, 1, |value| value == 1.0)),
    ("balsa_rocksdb_background_errors", |all| every(all, 2, |value| value == 0.0)),
    ("balsa_rocksdb_block_cache_bytes", |all| every(all, 2, |value| (0.0..64e6).contains(&value))),
    ("balsa_rocksdb_delayed_write_rate_bytes_per_second", |all| every(all, 2, |value| value == 0.0)),
    ("balsa_rocksdb_level0_files", |all| every(all, TABLES, |value| (0.0..20.0).contains(&value))),
    ("balsa_rocksdb_memtable_bytes", |all| every(all, TABLES, |value| (1.0..64e6).contains(&value))),
    ("balsa_rocksdb_pending_compaction_bytes", |all| every(all, TABLES, |value| value == 0.0)),
    ("balsa_rocksdb_running_compactions", |all| every(all, 2, |value| (0.0..=2.0).contains(&value))),
    ("balsa_rocksdb_running_flushes", |all| every(all, 2, |value| (0.0..=2.0).contains(&value))),
    ("balsa_rocksdb_sst_bytes", |all| every(all, TABLES, |value| (0.0..64e6).contains(&value))),
    ("balsa_rocksdb_write_stopped", |all| every(all, 2, |value| value == 0.0)),
    ("balsa_unread_connections_closed_total", |all| every(all, 1, |value| value == 0.0)),
    ("balsa_unread_streams_ended_total", |all| every(all, 1, |value| value == 0.0)),
];

/// So many series at every member, and each value passes.
fn every(all: &[Values], series: usize, passes: impl Fn(f64) -> bool) -> bool {
    all.iter().all(|of| of.len() == series && of.values().all(|value| passes(*value)))
}

/// One series, with the same value at every member.
fn same(all: &[Values]) -> bool {
    all.iter().all(|of| of.len() == 1 && *of == all[0])
}

/// One member, the leader, shows a series of each member, and each value passes; the others show none.
fn at_one(all: &[Values], passes: impl Fn(f64) -> bool) -> bool {
    let shown: Vec<&Values> = all.iter().filter(|of| !of.is_empty()).collect();
    matches!(shown[..], [of] if of.len() == MEMBERS && of.values().all(|value| passes(*value)))
}

/// The value of the series with such a label.
fn labelled(of: &Values, label: &str) -> Option<f64> {
    of.iter().find(|(series, _)| series.contains(&format!("=\"{label}\""))).map(|(_, value)| *value)
}

/// Commands that any member has packed into entries. A write that waits for its answer is alone in its entry.
fn commands(all: &[Values]) -> f64 {
    all.iter().filter_map(|of| of.get("balsa_raft_commands_per_entry_sum")).sum()
}

/// What one member shows of ours, by family.
async fn shown(port: u16) -> BTreeMap<String, Values> {
    let answer = Request::get("/metrics").send(port).await;
    assert_eq!(answer.status, 200);
    let mut families: BTreeMap<String, Values> = BTreeMap::new();
    let mut family = String::new();
    for line in String::from_utf8(answer.body).expect("text").lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            family = typed.split(' ').next().expect("a name").to_owned();
        } else if let Some((series, value)) = line.rsplit_once(' ')
            && !line.starts_with('#')
            && series.starts_with("balsa_")
        {
            assert!(series.starts_with(&family), "{series} is not of {family}");
            let value = value.parse().expect("a number");
            families.entry(family.clone()).or_default().insert(series.to_owned(), value);
        }
    }
    families
}

/// The families of all members that are not as they must be, or have no line.
async fn wrong(cluster: &Cluster) -> Vec<String> {
    let mut members = Vec::new();
    for member in &cluster.members {
        members.push(shown(member.client_port).await);
    }
    let mut wrong = Vec::new();
    for (name, check) in FAMILIES {
        let values: Vec<Values> = members.iter_mut().map(|of| of.remove(name).unwrap_or_default()).collect();
        if !check(&values) {
            wrong.push(format!("{name}: {values:?}"));
        }
    }
    wrong.extend(members.into_iter().flatten().map(|(name, values)| format!("{name} has no line: {values:?}")));
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_ours_says_what_is_so() {
    let cluster = Cluster::start(MEMBERS).await;
    for number in 0..PUTS {
        cluster.members[0].put("key", &number.to_string()).await.expect("a write");
    }
    let begun = Instant::now();
    loop {
        // What was written reaches the others a little later.
        let wrong = wrong(&cluster).await;
        if wrong.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", wrong.join("\n"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
