//! What probes are told in states that are seldom: with alarms, on a learner, and with users.

use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::http::{Answer, Request, healthy};
use super::normal;
use crate::auth::etcdctl;
use crate::cluster::{Cluster, PATIENCE, free_port};
use crate::etcd::{Etcd, RELEASES, program};

const PROBES: [&str; 14] = [
    "/health",
    "/health?serializable=true",
    "/health?exclude=NOSPACE",
    "/health?exclude=CORRUPT",
    "/health?exclude=NOSPACE&exclude=CORRUPT",
    "/livez",
    "/livez?verbose",
    "/livez/serializable_read",
    "/readyz",
    "/readyz?exclude=data_corruption",
    "/readyz?exclude=non_learner",
    "/readyz/data_corruption",
    "/readyz/linearizable_read",
    "/readyz/non_learner",
];

/// Checks that etcd has not.
const OURS: [&str; 2] = ["not_draining", "cluster_id"];

/// The state with both alarms,
const BOTH: &str = "no space and corrupt";

/// and those of the probes that are told of one of them, and exclude neither.
const OF_EITHER: [&str; 2] = ["/health", "/health?serializable=true"];

/// What the answer says. etcd's checks come in the order of a map.
fn shown(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    if !text.starts_with('[') {
        return normal(answer);
    }
    let of_etcd = |line: &&str| !line.is_empty() && !OURS.iter().any(|name| line.contains(name));
    let mut lines: Vec<&str> = text.lines().filter(of_etcd).collect();
    lines.sort_unstable();
    format!("{} {}", answer.status, lines.join(" "))
}

/// A line as it is compared: which of both alarms is named is chance. etcd names the first of all, and these are in a map of Go
/// (`AlarmStore.Get`), so that of eight requests one is told of CORRUPT and the others of NOSPACE. Balsa may name either, too.
fn compared(line: &str) -> String {
    let names_either = OF_EITHER.iter().any(|path| line.starts_with(&format!("{BOTH}: {path} ")));
    if names_either { line.replace("ALARM CORRUPT", "ALARM NOSPACE") } else { line.to_owned() }
}

/// The lines that differ, of both.
fn differences(ours: &[String], theirs: &[String], release: &str) -> Vec<String> {
    assert_eq!(ours.len(), theirs.len(), "{release}");
    let differ = ours.iter().zip(theirs).filter(|(ours, theirs)| compared(ours) != compared(theirs));
    differ.map(|(ours, theirs)| format!("{ours}\n{release}: {theirs}")).collect()
}

/// What all probes are told, in a state of this name.
async fn probe(state: &str, port: u16, told: &mut Vec<String>) {
    for path in PROBES {
        told.push(format!("{state}: {path} {}", shown(&Request::get(path).send(port).await)));
    }
    for path in ["/metrics", "/version"] {
        told.push(format!("{state}: {path} {}", Request::get(path).send(port).await.status));
    }
}

/// What gRPC's health service says.
async fn check(state: &str, port: u16, told: &mut Vec<String>) {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    told.push(format!(
        "{state}: {:?}",
        answer
            .map(|answer| answer.into_inner().status())
            .map_err(|status| (status.code(), status.message().to_owned()))
    ));
}

async fn alarm(port: u16, action: &str, alarm: &str) {
    let request = json!({"action": action, "memberID": "7", "alarm": alarm}).to_string();
    assert_eq!(Request::post("/v3/maintenance/alarm", request).send(port).await.status, 200, "{action} {alarm}");
}

async fn alarms_and_users(port: u16) -> Vec<String> {
    healthy(port).await;
    let mut told = Vec::new();
    for (state, action, which) in [
        ("no space", "ACTIVATE", "NOSPACE"),
        (BOTH, "ACTIVATE", "CORRUPT"),
        ("corrupt", "DEACTIVATE", "NOSPACE"),
        ("well again", "DEACTIVATE", "CORRUPT"),
    ] {
        alarm(port, action, which).await;
        probe(state, port, &mut told).await;
        check(state, port, &mut told).await;
    }
    for line in ["user add root:pw", "user grant-role root root", "auth enable"] {
        assert_eq!(etcdctl(&format!("http://127.0.0.1:{port}"), line).0, Some(0), "{line}");
    }
    probe("users", port, &mut told).await;
    check("users", port, &mut told).await;
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_told_of_alarms_as_by_etcd_and_need_no_user() {
    let cluster = Cluster::start_with(1, &["--bcrypt-cost=4"]).await;
    let ours = alarms_and_users(cluster.members[0].client_port).await;
    let failed = r#"no space: /health 503 {"health":"false","reason":"ALARM NOSPACE"}"#;
    assert_eq!(ours[0], failed);
    let failed = "corrupt: /readyz/data_corruption 503 [-]data_corruption failed: alarm activated: CORRUPT";
    assert!(ours.iter().any(|line| line.starts_with(failed)), "{ours:#?}");
    let mut wrong = Vec::new();
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 1, &["--bcrypt-cost=4".to_owned()]);
        wrong.extend(differences(&ours, &alarms_and_users(etcd.port).await, release));
    }
    // Its log would follow what is wrong, and say nothing of it.
    drop(cluster);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Adds a learner and says how the first member is known.
async fn add_learner(port: u16, peer: &str) -> String {
    let request = json!({"peerURLs": [peer], "isLearner": true}).to_string();
    let begun = std::time::Instant::now();
    loop {
        let answer = Request::post("/v3/cluster/member/add", &*request).send(port).await;
        let added: Value = serde_json::from_slice(&answer.body).expect("JSON");
        if answer.status == 200 {
            let first = added["members"].as_array().expect("members").iter().find(|one| one["name"] != Value::Null);
            return first.expect("the first")["peerURLs"][0].as_str().expect("a URL").to_owned();
        }
        // etcd takes none for 5 s after its start.
        assert!(begun.elapsed() < PATIENCE, "{added}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

async fn learner(port: u16) -> Vec<String> {
    healthy(port).await;
    let mut told = Vec::new();
    probe("learner", port, &mut told).await;
    check("learner", port, &mut told).await;
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learners_probes_are_told_as_by_etcd() {
    let mut cluster = Cluster::start(1).await;
    let index = cluster.add_unstarted("learner");
    add_learner(cluster.members[0].client_port, &cluster.members[index].peer_url()).await;
    let all = cluster.initial_cluster();
    cluster.run(index, &all, "existing");
    let ours = learner(cluster.members[index].client_port).await;
    let failed = "learner: /readyz/non_learner 503 [-]non_learner failed: not supported for learner";
    assert!(ours.iter().any(|line| line.starts_with(failed)), "{ours:#?}");
    let refused = r#"learner: Err((FailedPrecondition, "etcdserver: rpc not supported for learner"))"#;
    assert_eq!(ours.last().map(String::as_str), Some(refused));
    let mut wrong = Vec::new();
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let mut etcd = Etcd::run(&program, 1, &[]);
        healthy(etcd.port).await;
        let peer = format!("http://127.0.0.1:{}", free_port());
        let first = add_learner(etcd.port, &peer).await;
        let port = etcd.join(&program, "learner", &peer, &format!("m0={first},learner={peer}"));
        wrong.extend(differences(&ours, &learner(port).await, release));
    }
    drop(cluster);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
