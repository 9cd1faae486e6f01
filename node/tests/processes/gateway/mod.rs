//! The JSON gateway and plain HTTP against a recording of etcd, and against etcd itself when it is there.
//!
//! `golden.txt` holds the cases in order, each on the state that the ones before it left: a line with method, path and body,
//! headers on lines that begin with `@`, then the answer behind `=`, and behind `!` the answer of Balsa where it differs, with
//! the reason. `lines=N` before the body waits for so many lines of an endless answer. `UPDATE_GOLDEN=1` records etcd's
//! answers anew.

mod fuzz;
pub(crate) mod http;
mod paths;
mod states;
mod users;
mod websocket;

use std::path::PathBuf;

use serde_json::Value;

use self::http::{Answer, Request, healthy};
use crate::cluster::Cluster;
use crate::etcd::Etcd;

/// One case of the recording.
struct Case {
    /// Comments before it and its own lines, as they stand.
    text: Vec<String>,
    request: Request,
    expected: String,
    /// What Balsa answers instead, and why.
    different: Option<String>,
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/processes/gateway/golden.txt")
}

fn cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut comments = Vec::new();
    for line in text.lines() {
        let case = cases.last_mut();
        match (line.chars().next(), case) {
            (None | Some('#'), _) => comments.push(line.to_owned()),
            (Some('@'), Some(case)) => {
                case.request.headers.push(line[1..].to_owned());
                case.text.push(line.to_owned());
            }
            (Some('='), Some(case)) => case.expected = line[2..].to_owned(),
            (Some('!'), Some(case)) => case.different = Some(line[2..].to_owned()),
            _ => {
                let mut text = std::mem::take(&mut comments);
                text.push(line.to_owned());
                cases.push(Case { text, request: request(line), expected: String::new(), different: None });
            }
        }
    }
    cases
}

fn request(line: &str) -> Request {
    let (method, rest) = line.split_once(' ').expect("a method and a path");
    let (path, mut body) = rest.split_once(' ').unwrap_or((rest, ""));
    let mut lines = 0;
    if let Some((number, rest)) = body.strip_prefix("lines=").and_then(|rest| rest.split_once(' ')) {
        (lines, body) = (number.parse().expect("a number"), rest);
    }
    // `{{N}}` stands for N times the letter A.
    let body = match body.split_once("{{").and_then(|(head, rest)| Some((head, rest.split_once("}}")?))) {
        Some((head, (count, tail))) => format!("{head}{}{tail}", "A".repeat(count.parse().expect("a number"))),
        None => body.to_owned(),
    };
    Request { method: method.into(), path: path.into(), body: body.into_bytes(), lines, headers: Vec::new() }
}

/// Status and body without what differs between two clusters: ids, terms, addresses.
fn normal(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    let one = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(mut value @ Value::Object(_)) => {
            normalize(&mut value);
            value.to_string()
        }
        _ => format!("{line:?}"),
    };
    let body = text.split_inclusive('\n').map(one).collect::<Vec<_>>().join(" ");
    format!("{} {body}", answer.status).trim_end().to_owned()
}

fn normalize(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in ["cluster_id", "member_id", "raft_term", "ID", "peerURLs", "clientURLs"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(normalize);
        }
        Value::Array(values) => values.iter_mut().for_each(normalize),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_as_the_golden_recording_of_etcd() {
    let mut cases = cases(&std::fs::read_to_string(golden()).expect("the recording"));
    if let Some(etcd) = Etcd::start().await {
        let update = std::env::var_os("UPDATE_GOLDEN").is_some();
        for case in &mut cases {
            let answer = normal(&case.request.send(etcd.port).await);
            if update {
                case.expected = answer;
            } else {
                assert_eq!(answer, case.expected, "etcd: {}", case.text.join("\n"));
            }
        }
        if update {
            std::fs::write(golden(), render(&cases)).expect("the recording is written");
        }
    }
    let cluster = Cluster::start(1).await;
    let port = cluster.members[0].client_port;
    healthy(port).await;
    let mut wrong = Vec::new();
    for case in &cases {
        let answer = normal(&case.request.send(port).await);
        let expected =
            case.different.as_ref().and_then(|text| text.split_once(" # ")).map_or(&*case.expected, |it| it.0);
        if answer != expected {
            wrong.push(format!("{}\nexpected {expected}\nanswered {answer}", case.text.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn render(cases: &[Case]) -> String {
    let mut text = String::new();
    for case in cases {
        text += &format!("{}\n= {}\n", case.text.join("\n"), case.expected);
        if let Some(different) = &case.different {
            text += &format!("! {different}\n");
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_etcds() {
    let cluster = Cluster::start(1).await;
    let port = cluster.members[0].client_port;
    let answer = Request::post("/v3/kv/range", r#"{"key":"Zm9v"}"#).send(port).await;
    for header in [
        "content-type: application/json",
        "grpc-metadata-content-type: application/grpc",
        "access-control-allow-origin: *",
    ] {
        assert!(answer.head.contains(header), "{header} is missing:\n{}", answer.head);
    }
    let refused = Request::post("/v3/kv/range", "{}").send(port).await;
    assert!(!refused.head.contains("grpc-metadata"), "{}", refused.head);
    let openapi = Request { method: "GET".into(), path: "/openapi.json".into(), ..Request::default() };
    let document: Value = serde_json::from_slice(&openapi.send(port).await.body).expect("JSON");
    assert!(document["paths"]["/v3/kv/range"]["post"].is_object());
    let get = Request { method: "HEAD".into(), path: "/health".into(), ..Request::default() };
    assert!(get.send(port).await.head.contains("allow: get"));
}
