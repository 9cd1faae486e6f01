//! Every setting that may change while members run: on each of three members it goes one way and back, pushed through the node
//! service or written into their files, and what it does is looked for each time. What is wrong is refused, and the settings stay.
//!
//! [`SETTINGS`] has a row for each, and a setting that a member knows and that has none fails the tests.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use balsa_proto::node as wire;
use pb::alarm_request::AlarmAction;
use pb::kv_client::KvClient;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::etcd::Etcd;
use crate::gateway::http::healthy;
use crate::settings::{active, file_of, node, puts, settings};
use crate::unread::metric;

/// A setting, its value in each [`State`], and values that are refused.
struct Setting {
    name: &'static str,
    values: [&'static str; 4],
    wrong: &'static [&'static str],
}

const SETTINGS: [Setting; 7] = [
    Setting {
        name: "auto-compaction-mode",
        values: ["periodic", "periodic", "revision", "periodic"],
        wrong: &["hourly"],
    },
    Setting { name: "auto-compaction-retention", values: ["1s", "1h", "1000", "1s"], wrong: &["x", "-1h"] },
    Setting { name: "log-level", values: ["info", "debug", "debug", "info"], wrong: &["loud"] },
    Setting { name: "max-learners", values: ["0", "1", "1", "0"], wrong: &["-1", "x"] },
    Setting {
        name: "max-request-bytes",
        values: ["1572864", "8388608", "8388608", "1572864"],
        wrong: &["0", "50331649", "x"],
    },
    Setting { name: "max-txn-ops", values: ["3", "200", "200", "3"], wrong: &["0", "x"] },
    Setting { name: "quota-backend-bytes", values: ["1073741824", "2147483648", "2147483648", "1"], wrong: &["x"] },
];

/// What all settings are at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Narrow,
    Wide,
    /// Wide, and compacted by the number of revisions.
    ByRevision,
    /// Narrow, and there is no space.
    Full,
}

/// Each setting goes from the first to another and back.
const WAY: [State; 7] =
    [State::Narrow, State::Wide, State::Narrow, State::ByRevision, State::Narrow, State::Full, State::Narrow];

/// The settings of a state.
fn of(state: State) -> Vec<(&'static str, &'static str)> {
    SETTINGS.iter().map(|setting| (setting.name, setting.values[state as usize])).collect()
}

/// How members are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Push,
    File,
}

/// Three members that are told settings.
struct Told {
    cluster: Cluster,
    by: By,
}

impl Told {
    async fn start(by: By) -> Self {
        let mut told = Self { cluster: Cluster::unstarted(3), by };
        match by {
            By::Push => told.cluster.found().await,
            By::File => {
                for index in 0..3 {
                    let member = &told.cluster.members[index];
                    let path = told.write(member, &[]);
                    told.cluster.run_by_file(index, &path);
                }
            }
        }
        for index in 0..3 {
            told.cluster.serves(index).await;
        }
        told
    }

    /// Puts the file of a member in the place of the one that is there, which it may be reading.
    fn write(&self, member: &Member, settings: &[(&str, &str)]) -> PathBuf {
        let (path, new) = (member.data.with_extension("yaml"), member.data.with_extension("new"));
        let line = |(name, value): &(&str, &str)| match *name {
            // A text, also when it is a number.
            "auto-compaction-retention" => format!("{name}: '{value}'\n"),
            _ => format!("{name}: {value}\n"),
        };
        let lines: String = settings.iter().map(line).collect();
        std::fs::write(&new, file_of(&self.cluster, member, &lines)).expect("written");
        std::fs::rename(&new, &path).expect("in its place");
        path
    }

    /// Tells every member these, and waits until it has them.
    async fn tell(&self, wanted: &[(&str, &str)]) {
        for member in &self.cluster.members {
            match self.by {
                By::Push => push(member, wanted).await.expect("taken"),
                By::File => drop(self.write(member, wanted)),
            }
        }
        for member in &self.cluster.members {
            let has_them = || async { active(member).await.settings == settings(wanted) };
            self.cluster.eventually("the settings are active", has_them).await;
        }
    }

    /// Tells every member these, which are wrong, and waits until it has refused them.
    async fn tell_wrong(&self, wrong: &[(&str, &str)]) {
        let mut before = Vec::new();
        for member in &self.cluster.members {
            before.push((active(member).await, metric(member, "balsa_config_refused_total").await));
            match self.by {
                By::Push => {
                    let refused = push(member, wrong).await.expect_err("refused");
                    assert_eq!(refused.code(), Code::InvalidArgument, "{wrong:?}: {refused:?}");
                    assert_eq!(active(member).await.refused, settings(wrong));
                }
                By::File => drop(self.write(member, wrong)),
            }
        }
        for (member, (had, refusals)) in self.cluster.members.iter().zip(before) {
            let what = format!("{wrong:?} are refused");
            let refused = || async { metric(member, "balsa_config_refused_total").await > refusals };
            self.cluster.eventually(&what, refused).await;
            let has = active(member).await;
            assert_eq!(
                (has.version, has.config_hash, has.settings),
                (had.version, had.config_hash, had.settings),
                "after {wrong:?}"
            );
        }
    }
}

async fn push(member: &Member, wanted: &[(&str, &str)]) -> Result<(), tonic::Status> {
    let version = active(member).await.version + 1;
    let request = wire::SetConfigRequest { version, settings: settings(wanted), ..Default::default() };
    node(member).await.set_config(request).await.map(drop)
}

/// Looks for what a setting does in this state, on each member.
async fn look(name: &str, cluster: &Cluster, state: State) {
    match name {
        // The mode says what the retention is of: they are looked for together, and once, because it takes seconds.
        "auto-compaction-mode" => compaction(cluster, state).await,
        "auto-compaction-retention" => {}
        "log-level" => log_level(cluster, state).await,
        "max-learners" => learners(cluster, state).await,
        "max-request-bytes" => request_bytes(cluster, state).await,
        "max-txn-ops" => txn_ops(cluster, state).await,
        "quota-backend-bytes" => quota(cluster, state).await,
        other => panic!("nobody looks for what {other} does"),
    }
}

/// What is older than a second is compacted, or nothing is for a while.
async fn compaction(cluster: &Cluster, state: State) {
    let member = &cluster.members[0];
    let old = member.put("old", "x").await.expect("a write");
    let is_compacted = || async {
        member.put("more", "x").await.expect("a write");
        let at_old = pb::RangeRequest { key: "old".into(), revision: old, ..Default::default() };
        member.kv().range(at_old).await.is_err_and(|error| error.code() == Code::OutOfRange)
    };
    if state == State::Narrow {
        cluster.eventually("what is older than a second is compacted", is_compacted).await;
    } else {
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!is_compacted().await, "compacted in {state:?}");
    }
}

/// A call has its line at the level debug alone.
async fn log_level(cluster: &Cluster, state: State) {
    for member in &cluster.members {
        let lines = || member.log_text().matches(r#""level":"debug""#).count();
        let told_of_a_call = || async {
            let before = lines();
            member.put("k", "v").await.expect("a write");
            tokio::time::sleep(Duration::from_millis(200)).await;
            lines() > before
        };
        let what = format!("{} logs as in {state:?}", member.name);
        let debug = state != State::Narrow;
        cluster.eventually(&what, || async { told_of_a_call().await == debug }).await;
    }
}

/// A learner may be added, and is taken out again, or there are too many.
async fn learners(cluster: &Cluster, state: State) {
    for member in &cluster.members {
        let may = may_add_learner(member).await;
        assert_eq!(may, state != State::Narrow, "a learner through {} in {state:?}", member.name);
    }
}

async fn may_add_learner(member: &Member) -> bool {
    let begun = Instant::now();
    loop {
        let request = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.9:1".to_owned()], is_learner: true };
        match member.cluster().member_add(request).await {
            Ok(added) => {
                let id = added.into_inner().member.expect("a member").id;
                member.cluster().member_remove(pb::MemberRemoveRequest { id }).await.expect("removed");
                return true;
            }
            Err(error) if error.message() == "etcdserver: too many learner members in cluster" => return false,
            // As long as the leader has not heard of everybody.
            Err(error) if error.message() == "etcdserver: unhealthy cluster" => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(begun.elapsed() < PATIENCE, "the cluster stays unhealthy");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Requests that are too large for the narrow bound, with what is said then: to the first by what reads messages, which leaves
/// room around a request, to the other by the server.
const LARGE: [(usize, Code, &str); 2] = [
    (4 << 20, Code::ResourceExhausted, "grpc: received message larger than max (4194316 vs. 2097152)"),
    (1_700_000, Code::InvalidArgument, "etcdserver: request is too large"),
];

/// A put with a value of so many bytes, and what is said to it if it is refused.
async fn put_large(mut kv: KvClient<Channel>, bytes: usize) -> Result<(), (Code, String)> {
    let put = pb::PutRequest { key: "large".into(), value: vec![b'v'; bytes].into(), ..Default::default() };
    kv.put(put).await.map(drop).map_err(|error| (error.code(), error.message().to_owned()))
}

async fn request_bytes(cluster: &Cluster, state: State) {
    for member in &cluster.members {
        for (bytes, code, text) in LARGE {
            let refused = Err((code, text.to_owned()));
            let expected = if state == State::Narrow { refused } else { Ok(()) };
            assert_eq!(put_large(member.kv(), bytes).await, expected, "{bytes} to {} in {state:?}", member.name);
        }
    }
}

async fn txn_ops(cluster: &Cluster, state: State) {
    for member in &cluster.members {
        let said = puts(member, 4).await.map_err(|error| error.message().to_owned());
        let too_many = Err("etcdserver: too many operations in txn request".to_owned());
        assert_eq!(said, if state == State::Narrow { too_many } else { Ok(()) }, "{} in {state:?}", member.name);
    }
}

/// There is space, or none; alarms of before are taken back first.
async fn quota(cluster: &Cluster, state: State) {
    const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
    let quota = SETTINGS.iter().find(|setting| setting.name == "quota-backend-bytes").expect("a row");
    for member in &cluster.members {
        let told = member.status().await.expect("a status").db_size_quota;
        assert_eq!(told.to_string(), quota.values[state as usize], "of {}", member.name);
        let has_space = || async {
            match member.put("k", "v").await {
                Ok(_) => true,
                Err(error) => {
                    assert_eq!(error.message(), NO_SPACE);
                    false
                }
            }
        };
        if state == State::Full {
            cluster.eventually("there is no space", || async { !has_space().await }).await;
        } else {
            let has_space_again = || async {
                disarm(member).await;
                has_space().await
            };
            cluster.eventually("there is space", has_space_again).await;
        }
    }
}

/// Takes back all alarms.
async fn disarm(member: &Member) {
    let mut maintenance = member.maintenance();
    let raised = maintenance.alarm(pb::AlarmRequest::default()).await.expect("an answer").into_inner().alarms;
    for pb::AlarmMember { member_id, alarm } in raised {
        let request = pb::AlarmRequest { action: AlarmAction::Deactivate.into(), member_id, alarm };
        maintenance.alarm(request).await.expect("an answer");
    }
}

async fn go_both_ways(by: By) {
    let told = Told::start(by).await;
    for state in WAY {
        told.tell(&of(state)).await;
        // Nothing is written while there is no space, and afterwards space comes first.
        quota(&told.cluster, state).await;
        for setting in SETTINGS.iter().filter(|_| state != State::Full) {
            look(setting.name, &told.cluster, state).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_goes_both_ways_by_a_push_to_each_of_three_members() {
    go_both_ways(By::Push).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_goes_both_ways_by_the_file_of_each_of_three_members() {
    go_both_ways(By::File).await;
}

async fn wrong_ones_are_refused(by: By) {
    let told = Told::start(by).await;
    told.tell(&of(State::Narrow)).await;
    for setting in &SETTINGS {
        for wrong in setting.wrong.iter().copied() {
            // Everything else is right, and other than it is.
            let mut settings = of(State::Wide);
            settings.retain(|(name, _)| *name != setting.name);
            settings.push((setting.name, wrong));
            told.tell_wrong(&settings).await;
        }
    }
    for setting in &SETTINGS {
        look(setting.name, &told.cluster, State::Narrow).await;
    }
    told.tell(&of(State::Wide)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_value_of_each_setting_is_refused_when_it_is_pushed() {
    wrong_ones_are_refused(By::Push).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_value_of_each_setting_is_refused_in_the_file() {
    wrong_ones_are_refused(By::File).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_that_may_change_has_a_row() {
    let cluster = Cluster::start(1).await;
    let mut known: Vec<String> = active(&cluster.members[0]).await.settings.into_keys().collect();
    known.sort_unstable();
    assert_eq!(known, SETTINGS.map(|setting| setting.name));
    for setting in &SETTINGS {
        let changes = setting.values.iter().any(|value| *value != setting.values[0]);
        assert!(changes && !setting.wrong.is_empty(), "{} is not changed, or never wrong", setting.name);
    }
}

/// The narrow bound is etcd's default.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_large_requests_is_etcds() {
    let Some(etcd) = Etcd::start().await else { return };
    healthy(etcd.port).await;
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", etcd.port)).expect("a URL");
    for (bytes, code, text) in LARGE {
        let said = put_large(KvClient::new(endpoint.connect_lazy()), bytes).await;
        assert_eq!(said, Err((code, text.to_owned())), "{bytes}");
    }
}
