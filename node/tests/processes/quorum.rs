//! What every call is answered by a member that has lost its quorum: on etcd and here, through the gateway, which shows code
//! and text. The clock of both is etcd's: 5 s and two election time-outs.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::{Request, healthy};
use crate::proxy::{Cuts, Network};

/// `{dead}` and `{self}` stand for ids. What etcd lets wait for ever has a deadline of 3 s.
const CALLS: &str = r#"
kv/put {"key":"YQ==","value":"Yg=="}
kv/txn {"success":[{"request_put":{"key":"YQ==","value":"Yg=="}}]}
kv/txn {"success":[{"request_range":{"key":"YQ=="}}]}
kv/deleterange {"key":"YQ=="}
kv/compaction {"revision":"1"}
kv/range {"key":"YQ=="}
lease/grant {"TTL":"60"}
lease/revoke {"ID":"78"}
lease/timetolive {"ID":"77"}
lease/keepalive {"ID":"77"}
cluster/member/list {"linearizable":true}
cluster/member/add {"peerURLs":["http://127.0.0.1:1"]}
cluster/member/add {"peerURLs":["http://127.0.0.1:1"],"isLearner":true}
cluster/member/remove {"ID":"{self}"}
cluster/member/promote {"ID":"{dead}"}
3S cluster/member/remove {"ID":"{dead}"}
3S cluster/member/remove {"ID":"5"}
3S cluster/member/update {"ID":"{self}","peerURLs":["http://127.0.0.1:3"]}
auth/status {}
auth/enable {}
auth/user/add {"name":"x","password":"x"}
auth/user/list {}
auth/user/get {"name":"x"}
auth/role/list {}
auth/authenticate {"name":"x","password":"x"}
maintenance/alarm {}
maintenance/alarm {"action":"ACTIVATE","alarm":"NOSPACE"}
maintenance/transfer-leadership {"targetID":"{dead}"}
maintenance/downgrade {"action":"VALIDATE","version":"3.5"}
maintenance/downgrade {"action":"ENABLE","version":"3.5"}
lock/lock {"name":"bA==","lease":"77"}
lock/unlock {"key":"bA=="}
election/campaign {"name":"bA==","lease":"77"}
election/leader {"name":"bA=="}
"#;

/// A member without the others.
struct Alone {
    port: u16,
    own: String,
    dead: String,
}

impl Alone {
    async fn status(port: u16) -> Value {
        let answer = Request::post("/v3/maintenance/status", "{}").send(port).await;
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// Of members on these ports; the last one stays.
    async fn of(ports: &[u16]) -> Self {
        let id = |status: Value| status["header"]["member_id"].as_str().expect("an id").to_owned();
        let port = *ports.last().expect("a member");
        Self { port, own: id(Self::status(port).await), dead: id(Self::status(ports[0]).await) }
    }

    async fn without_leader(&self) {
        let wait = async {
            while Self::status(self.port).await["leader"] != Value::Null {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("the leader is given up");
    }

    /// "status code text" of a call.
    async fn call(&self, line: &str) -> String {
        let (deadline, call) = line.strip_prefix("3S ").map_or((None, line), |call| (Some("Grpc-Timeout: 3S"), call));
        let (path, body) = call.split_once(' ').expect("a path and a body");
        let body = body.replace("{self}", &self.own).replace("{dead}", &self.dead);
        let mut request = Request::post(&format!("/v3/{path}"), body);
        request.headers.extend(deadline.map(str::to_owned));
        let answer = request.send(self.port).await;
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        // A stream says it inside `error`.
        let said = body.get("error").filter(|error| error.is_object()).unwrap_or(&body);
        format!("{} {} {}", answer.status, said["code"], said["message"])
    }

    async fn answers(&self) -> Vec<String> {
        join_all(CALLS.trim().lines().map(async |line| format!("{line}: {}", self.call(line).await))).await
    }
}

/// A put that the leader took and a quorum never had, and then [`CALLS`] once there is no leader.
async fn of_etcd(program: &Path) -> (String, Vec<String>) {
    let mut etcd = Etcd::run(program, 3, &[]);
    for port in &etcd.ports {
        healthy(*port).await;
    }
    let leader = {
        let status = Alone::status(etcd.port).await;
        let mut ids = Vec::new();
        for port in &etcd.ports {
            ids.push(Alone::status(*port).await["header"]["member_id"].clone());
        }
        ids.iter().position(|id| *id == status["leader"]).expect("a leader")
    };
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let alone = Alone::of(&[etcd.ports[others[0]], etcd.ports[leader]]).await;
    others.iter().for_each(|index| etcd.kill(*index));
    let put = alone.call("kv/put {\"key\":\"YQ==\"}").await;
    alone.without_leader().await;
    (put, alone.answers().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_every_call_is_answered_as_by_etcd() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let ports = [cluster.members[others[0]].client_port, cluster.members[leader].client_port];
    let alone = Alone::of(&ports).await;
    others.iter().for_each(|index| cluster.members[*index].kill());
    assert_eq!(
        alone.call("kv/put {\"key\":\"YQ==\"}").await,
        format!("503 14 {}", json!("etcdserver: request timed out"))
    );
    alone.without_leader().await;
    let ours = alone.answers().await;
    let said = |line: &str| ours.iter().find_map(|answer| answer.strip_prefix(line)).expect("a call").to_owned();
    assert_eq!(said("kv/put {\"key\":\"YQ==\",\"value\":\"Yg==\"}: "), "504 4 \"context deadline exceeded\"");

    let Some(etcd) = program(RELEASES[0]) else { return };
    let (put, theirs) = of_etcd(&etcd).await;
    assert_eq!(put, format!("503 14 {}", json!("etcdserver: request timed out")));
    let differ: Vec<String> =
        theirs.iter().zip(&ours).filter(|(a, b)| a != b).map(|(a, b)| format!("etcd:  {a}\nbalsa: {b}")).collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// A follower's disk takes longer than a request may. A leader is known all the while, so what etcd says depends on the
/// connection to it alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_an_outcome_tells_whether_the_connection_to_the_leader_broke_meanwhile() {
    let mut cluster = Cluster::unstarted(3);
    // Requests have 9 s then, and the leader stays on a busy machine.
    cluster.members.iter_mut().for_each(|member| member.flags.push("--election-timeout=2000".to_owned()));
    let network = Network::before(&mut cluster).await;
    cluster.found().await;
    let leader = cluster.leader().await;
    let (breaks, lasts) = ((leader + 1) % 3, (leader + 2) % 3);
    for index in [breaks, lasts] {
        cluster.members[index].kill();
        cluster.restart_to_fail(index, "apply-before-write=20*off->1*sleep(11000)->off");
        cluster.serves(index).await;
    }
    network.note_processes(&cluster);
    assert_eq!(cluster.leader().await, leader);
    let put_until_it_hangs = async |index: usize| loop {
        if let Err(status) = cluster.members[index].put("k", "v").await {
            return status.message().to_owned();
        }
    };
    let both = async { tokio::join!(put_until_it_hangs(breaks), put_until_it_hangs(lasts)) };
    let cuts = async {
        loop {
            sleep(Duration::from_secs(2)).await;
            network.cut(Cuts::from([(breaks, leader)]));
            sleep(Duration::from_millis(100)).await;
            network.cut(Cuts::new());
        }
    };
    let (broke, lasted) = tokio::select! {
        both = both => both,
        () = cuts => return,
    };
    assert_eq!(broke, "etcdserver: request timed out, possibly due to connection lost", "{}", cluster.logs());
    assert_eq!(lasted, "etcdserver: request timed out", "{}", cluster.logs());
}
