//! The gateway with users, beside etcd: who shows which token where, and how a refusal reads.

use serde_json::{Value, json};

use super::http::{Request, healthy};
use super::{normal, normalize};
use crate::auth::etcdctl;
use crate::cluster::Cluster;
use crate::etcd::{Etcd, RELEASES, program};

/// alice may read and write the key a.
const SETUP: [&str; 8] = [
    "user add root:pw",
    "user grant-role root root",
    "user add alice:pw",
    "role add role",
    "role grant-permission role readwrite a",
    "user grant-role alice role",
    "put b 1",
    "auth enable",
];

/// A header that shows a token, and what stands in front of it.
const SHOWN: [(&str, &str); 6] = [
    ("Authorization", ""),
    ("Authorization", "Bearer "),
    ("Authorization", "bearer "),
    ("Authorization", "Basic "),
    ("Grpc-Metadata-Token", ""),
    ("Grpc-Metadata-Authorization", ""),
];

const CALLS: [(&str, &str); 12] = [
    ("/v3/kv/range", r#"{"key":"YQ=="}"#),
    ("/v3/kv/range", r#"{"key":"Yg=="}"#),
    ("/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#),
    ("/v3/kv/put", r#"{"key":"Yg==","value":"MQ=="}"#),
    ("/v3/kv/deleterange", r#"{"key":"Yg=="}"#),
    ("/v3/kv/txn", r#"{"success":[{"requestPut":{"key":"Yg=="}}]}"#),
    ("/v3/kv/compaction", r#"{"revision":"1"}"#),
    ("/v3/lease/grant", r#"{"TTL":"60","ID":"0"}"#),
    ("/v3/lease/keepalive", r#"{"ID":"77"}"#),
    ("/v3/auth/user/list", "{}"),
    ("/v3/maintenance/status", "{}"),
    ("/v3/maintenance/snapshot", "{}"),
];

/// Status, body and what the answer says of credentials, without what differs from server to server.
async fn said(port: u16, path: &str, body: &str, header: Option<String>, lines: usize) -> String {
    let request = Request { headers: header.into_iter().collect(), lines, ..Request::post(path, body) };
    let answer = request.send(port).await;
    let asked = answer.head.lines().find(|line| line.starts_with("www-authenticate")).unwrap_or_default().to_owned();
    let own = answer.status == 200 && ["/v3/maintenance/status", "/v3/maintenance/snapshot"].contains(&path);
    if own { format!("200 its own {asked}") } else { format!("{} {asked}", normal(&answer)) }
}

async fn token(port: u16, user: &str, password: &str) -> Value {
    let request = json!({"name": user, "password": password}).to_string();
    let answer = Request::post("/v3/auth/authenticate", request).send(port).await;
    let mut body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    normalize(&mut body);
    body
}

async fn told(port: u16) -> Vec<String> {
    healthy(port).await;
    for line in SETUP {
        assert_eq!(etcdctl(&format!("http://127.0.0.1:{port}"), line).0, Some(0), "{line}");
    }
    let mut told = vec![
        format!("wrong password {}", token(port, "alice", "x").await),
        format!("nobody {}", token(port, "nobody", "pw").await),
    ];
    let tokens: Vec<(&str, Value)> = vec![
        ("alice", token(port, "alice", "pw").await["token"].clone()),
        ("root", token(port, "root", "pw").await["token"].clone()),
        ("void", json!("prefix.1")),
        ("none", json!("x")),
    ];
    for (path, body) in CALLS {
        told.push(format!("{path} {body} without {}", said(port, path, body, None, 0).await));
        for (whose, token) in &tokens {
            let token = token.as_str().expect("a token");
            for (name, before) in SHOWN {
                let header = format!("{name}: {before}{token}");
                let said = said(port, path, body, Some(header), 0).await;
                told.push(format!("{path} {body} {whose} by {name}: {before} {said}"));
            }
        }
    }
    // Watches: their answers do not end.
    for (key, whose) in [("YQ==", 0), ("Yg==", 0), ("Yg==", 1), ("YQ==", 2)] {
        let body = format!(r#"{{"create_request":{{"key":"{key}"}}}}"#);
        let header = format!("Authorization: {}", tokens[whose].1.as_str().expect("a token"));
        told.push(format!("watch {key} {} {}", tokens[whose].0, said(port, "/v3/watch", &body, Some(header), 1).await));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn with_users_the_gateway_answers_as_etcds() {
    let cluster = Cluster::start_with(1, &["--bcrypt-cost=4"]).await;
    let ours = told(cluster.members[0].client_port).await;
    assert!(ours.iter().any(|said| said.contains(" 401 ")) && ours.iter().any(|said| said.contains(" 403 ")));
    // Of 3.6 anybody may renew any lease, so that the newer one is the measure.
    let Some(program) = program(RELEASES[1]) else { return };
    let etcd = Etcd::run(&program, 1, &["--bcrypt-cost=4".to_owned()]);
    let theirs = told(etcd.port).await;
    let differ = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs);
    let wrong: Vec<String> = differ.map(|(ours, theirs)| format!("{ours}\netcd: {theirs}")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
