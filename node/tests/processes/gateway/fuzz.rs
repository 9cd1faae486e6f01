//! Bad input for the gateway: bodies from a seeded generator, each some mutations away from a good one. Every answer must be
//! one of the API, etcd's own when etcd is there, and the node must still serve afterwards.

use super::etcd::Etcd;
use super::http::{Request, healthy};
use super::normal;
use crate::cluster::Cluster;

/// Requests of one run.
const REQUESTS: usize = 600;

/// Good bodies, and the paths that take them.
const GOOD: [(&str, &str); 9] = [
    ("/v3/kv/range", r#"{"key":"Zm9v","range_end":"Zm9w","limit":"10","sort_order":"DESCEND","sort_target":"MOD"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":2,"serializable":true,"countOnly":false,"min_mod_revision":"1"}"#),
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFyYmF6","prev_kv":true,"lease":"0"}"#),
    ("/v3/kv/put", r#"{"key":"YQ==","ignore_value":true,"ignoreLease":false}"#),
    ("/v3/kv/deleterange", r#"{"key":"YQ==","range_end":"Yg==","prev_kv":true}"#),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"VERSION","result":"GREATER","version":"0"}],"success":[{"request_put":{"key":"Yg==","value":"Yw=="}}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#,
    ),
    ("/v3/kv/txn", r#"{"success":[{"request_txn":{"success":[{"requestDeleteRange":{"key":"Yg=="}}]}},{}]}"#),
    ("/v3/kv/compaction", r#"{"revision":"99999","physical":true}"#),
    ("/v3/auth/nope", r#"{"name":"a\u00e9\ud83d\ude00"}"#),
];

/// What mutations put in.
const PIECES: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "null",
    "true",
    "-",
    "0",
    "1e3",
    "1.5",
    "\"\"",
    "\\u00",
    "\\ud800",
    " ",
    "\n",
    "é",
    "\u{1}",
    "99999999999999999999",
    "\"key\":",
    "=",
];

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).expect("below the bound")
    }
}

fn mutated(body: &str, random: &mut Random) -> Vec<u8> {
    let mut body = body.as_bytes().to_vec();
    for _ in 0..random.below(4) {
        let (at, end) = (random.below(body.len() + 1), random.below(body.len() + 1));
        match random.below(6) {
            0 => body.truncate(at.max(1)),
            1 if at < body.len() => drop(body.remove(at)),
            2 => {
                let piece = PIECES[random.below(PIECES.len())];
                body.splice(at..at, piece.bytes());
            }
            3 => {
                let copy = body[at.min(end)..at.max(end)].to_vec();
                body.splice(at..at, copy);
            }
            4 if at < body.len() => body[at] = u8::try_from(random.below(256)).expect("a byte"),
            _ => drop(body.drain(at.min(end)..at.max(end).min(at.min(end) + 8))),
        }
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_brings_the_gateway_down_and_etcd_says_the_same_of_each() {
    let seed = std::env::var("BALSA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_251_124);
    let mut random = Random(seed);
    let (etcd, cluster) = (Etcd::start().await, Cluster::start(1).await);
    let port = cluster.members[0].client_port;
    healthy(port).await;
    for number in 0..REQUESTS {
        let (path, good) = GOOD[random.below(GOOD.len())];
        let body = mutated(good, &mut random);
        let request = Request::post(path, body.clone());
        let answer = request.send(port).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!([200, 400, 404, 501].contains(&answer.status), "seed {seed}, {number}: {path} {text}: {answer:?}");
        let json: serde_json::Value = serde_json::from_slice(&answer.body).expect("every answer is JSON");
        assert!((answer.status == 200) == json.get("header").is_some(), "{json}");
        if let Some(etcd) = &etcd {
            let theirs = normal(&request.send(etcd.port).await);
            assert_eq!(normal(&answer), theirs, "seed {seed}, {number}: {path} {text}");
        }
    }
    assert_eq!(Request::post("/v3/kv/put", r#"{"key":"ZW5k"}"#).send(port).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_is_cut_off() {
    let cluster = Cluster::start(1).await;
    let port = cluster.members[0].client_port;
    for path in ["/v3/kv/put", "/v3/kv/range"] {
        let mut body = br#"{"nope":""#.to_vec();
        body.resize(24 << 20, b'a');
        let answer = Request::post(path, body).send(port).await;
        assert_eq!(answer.status, 429, "{answer:?}");
    }
    // On a stream it ends the requests, and the answer is still etcd's: nothing but the end of a client that says no more.
    let keepalive = Request::post("/v3/lease/keepalive", "junk").send(port).await;
    assert!([200, 501].contains(&keepalive.status), "{keepalive:?}");
    healthy(port).await;
}
