//! WebSockets on the gateway's paths: one conversation, with the answers that etcd gives, and with etcd when it is there.

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::http::{Request, healthy};
use super::{normal, normalize};
use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::Etcd;

/// A client, and what it hears.
struct Client(WebSocketStream<TcpStream>);

impl Client {
    async fn open(port: u16, path: &str, protocol: Option<&str>) -> Self {
        let mut request = format!("ws://127.0.0.1:{port}{path}").into_client_request().expect("a request");
        if let Some(protocol) = protocol {
            let value = protocol.parse().expect("a header");
            request.headers_mut().insert("sec-websocket-protocol", value);
        }
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the port is open");
        let opened = timeout(PATIENCE, client_async(request, stream)).await.expect("in time");
        Self(opened.expect("a handshake").0)
    }

    async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.expect("sent");
    }

    /// The next message without what differs between two clusters, or how the connection ended.
    async fn hear(&mut self) -> String {
        match timeout(PATIENCE, self.0.next()).await.expect("in time") {
            Some(Ok(Message::Text(text))) => match serde_json::from_str::<Value>(&text) {
                Ok(mut value) => {
                    normalize(&mut value);
                    value.to_string()
                }
                Err(_) => format!("{text:?}"),
            },
            Some(Ok(Message::Pong(bytes))) => format!("pong {}", bytes.len()),
            Some(Ok(Message::Close(_))) => "farewell".to_owned(),
            Some(Ok(other)) => format!("{other:?}"),
            Some(Err(_)) | None => "end".to_owned(),
        }
    }
}

/// Sends one value to a path and hears everything.
async fn once(port: u16, path: &str, protocol: Option<&str>, value: &str) -> Vec<String> {
    let mut client = Client::open(port, path, protocol).await;
    client.say(value).await;
    let mut heard = vec![client.hear().await];
    while heard.last().is_some_and(|last| last != "end") {
        heard.push(client.hear().await);
    }
    heard
}

async fn post(port: u16, path: &str, body: &str) -> String {
    let answer = Request::post(path, body).send(port).await;
    assert_eq!(answer.status, 200, "{path} {}", String::from_utf8_lossy(&answer.body));
    String::from_utf8(answer.body).expect("text")
}

async fn watch(port: u16) -> Vec<String> {
    let mut client = Client::open(port, "/v3/watch", None).await;
    client.say(r#"{"create_request":{"key":"d3M="}}"#).await;
    let mut heard = vec![client.hear().await];
    post(port, "/v3/kv/put", r#"{"key":"d3M=","value":"YQ=="}"#).await;
    heard.push(client.hear().await);
    client.say(r#"{"create_request":{"key":"d3My","watch_id":"7"}}"#).await;
    heard.push(client.hear().await);
    client.0.send(Message::Ping(vec![1, 2].into())).await.expect("sent");
    heard.push(client.hear().await);
    // One value may come in two messages, and two in one; a message may be bytes.
    client.say(r#"{"cancel_request":"#).await;
    client.0.send(Message::binary(r#"{"watch_id":"7"}}{"progress_request":{}}"#)).await.expect("sent");
    heard.push(client.hear().await);
    heard.push(client.hear().await);
    client.0.close(None).await.expect("sent");
    heard.push(client.hear().await);
    heard.push(client.hear().await);
    heard
}

async fn keep_alive(port: u16) -> Vec<String> {
    post(port, "/v3/lease/grant", r#"{"ID":"7","TTL":"600"}"#).await;
    let mut client = Client::open(port, "/v3/lease/keepalive", None).await;
    let mut heard = Vec::new();
    for _ in 0..2 {
        client.say(r#"{"ID":"7"}"#).await;
        heard.push(client.hear().await);
    }
    heard
}

/// What a handshake that is none is answered.
async fn handshakes(port: u16) -> Vec<String> {
    const GOOD: [&str; 4] = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ];
    let headers = |left_out: usize| {
        let kept = GOOD.iter().enumerate().filter(move |(index, _)| *index != left_out);
        kept.map(|(_, header)| (*header).to_owned()).collect::<Vec<_>>()
    };
    let mut heard = Vec::new();
    for (method, left_out) in [("POST", 4), ("GET", 0), ("GET", 1), ("GET", 2), ("GET", 3)] {
        let request = Request {
            method: method.into(),
            path: "/v3/watch".into(),
            headers: headers(left_out),
            ..Request::default()
        };
        heard.push(normal(&request.send(port).await));
    }
    heard
}

const RANGE: &str = r#"{"key":"d3M=","keys_only":true}"#;

async fn guarded(port: u16) -> Vec<String> {
    post(port, "/v3/auth/user/add", r#"{"name":"root","password":"secret"}"#).await;
    post(port, "/v3/auth/role/add", r#"{"name":"root"}"#).await;
    post(port, "/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#).await;
    post(port, "/v3/auth/enable", "").await;
    let mut heard = once(port, "/v3/kv/range", None, RANGE).await;
    heard.extend(once(port, "/v3/kv/range", Some("Bearer, none.1"), RANGE).await);
    heard
}

async fn conversation(port: u16) -> Vec<String> {
    let mut heard = watch(port).await;
    heard.extend(keep_alive(port).await);
    heard.extend(once(port, "/v3/kv/range", None, r#"{"key":"d3M="}"#).await);
    heard.extend(once(port, "/v3/kv/range", None, "{}").await);
    heard.extend(once(port, "/v3/kv/range", None, r#"{"key":!}"#).await);
    heard.extend(once(port, "/v3/nope", None, "{}").await);
    heard.extend(handshakes(port).await);
    heard.extend(guarded(port).await);
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_a_websocket_are_etcds() {
    let expected: Vec<&str> = include_str!("websocket.txt").lines().collect();
    if let Some(etcd) = Etcd::start().await {
        let heard = conversation(etcd.port).await;
        assert_eq!(heard, expected, "etcd:\n{}", heard.join("\n"));
    }
    let cluster = Cluster::start(1).await;
    let port = cluster.members[0].client_port;
    healthy(port).await;
    let heard = conversation(port).await;
    assert_eq!(heard, expected, "{}", heard.join("\n"));
    // etcd takes the word before the token off from 3.7 on.
    let answer = post(port, "/v3/auth/authenticate", r#"{"name":"root","password":"secret"}"#).await;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let protocol = format!("Bearer, {}", answer["token"].as_str().expect("a token"));
    let heard = once(port, "/v3/kv/range", Some(&protocol), RANGE).await;
    assert!(heard.len() == 2 && heard[0].contains(r#""count":"1""#), "{heard:?}");
}
