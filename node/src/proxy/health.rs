//! Plain HTTP of a proxy: whether the cluster answers through it, whether it answers itself, its metrics, and a member's.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use balsa_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use prometheus::TextEncoder;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::grpc::Calls;
use crate::transport::tls::Tls;
use crate::transport::tonic::Dialer;

/// How long a read may take of which the health is told.
const READ: Duration = Duration::from_secs(1);
/// How long a watch may take to begin.
const WATCH: Duration = Duration::from_secs(3);
/// How long a member's metrics may take, and how large they may be.
const METRICS: Duration = Duration::from_secs(5);
/// See [`METRICS`].
const LARGEST: u64 = 16 << 20;

/// How the proxy speaks to itself and to members.
pub(super) struct Own {
    /// None when its port is without TLS.
    pub(super) to_itself: Option<Arc<Tls>>,
    pub(super) to_members: Option<Arc<Tls>>,
}

type Known = State<(Arc<Calls>, Arc<Own>)>;

/// `/health`.
pub(super) async fn of_cluster(State((calls, _)): Known) -> Response {
    let read = match calls.upstream.channel().await {
        Ok((index, channel)) => read(channel).await.inspect_err(|_| calls.upstream.lost(index)),
        Err(status) => Err(format!("GET ERROR:{}", status.message())),
    };
    told(&read)
}

/// `/proxy/health`: by its own port.
pub(super) async fn of_proxy(State((calls, own)): Known) -> Response {
    let advertised = calls.registry.advertised();
    if advertised.is_empty() {
        return told(&Err("no connection to proxy".to_owned()));
    }
    let scheme = if own.to_itself.is_some() { "https" } else { "http" };
    let url = if advertised.contains("://") { advertised.to_owned() } else { format!("{scheme}://{advertised}") };
    let health = match Dialer::new(own.to_itself.clone()).connect(&url).await {
        Err(error) => Err(format!("GET ERROR:{error}")),
        Ok(channel) => match read(channel.clone()).await {
            Ok(()) => watch(channel).await,
            unhealthy => unhealthy,
        },
    };
    told(&health)
}

async fn read(channel: Channel) -> Result<(), String> {
    let request = pb::RangeRequest { key: "a".into(), ..Default::default() };
    let answer = timeout(READ, KvClient::new(channel).range(request)).await;
    match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded"))) {
        Ok(_) => Ok(()),
        // Who may not read it has been answered all the same.
        Err(status) if status.code() == Code::PermissionDenied => Ok(()),
        Err(status) => Err(format!("GET ERROR:{}", status.message())),
    }
}

async fn watch(channel: Channel) -> Result<(), String> {
    let create = pb::WatchCreateRequest { key: "a".into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let created = async { WatchClient::new(channel).watch(requests).await?.into_inner().message().await };
    match timeout(WATCH, created).await {
        Ok(Ok(Some(_))) => Ok(()),
        _ => Err("WATCH TIMEOUT".to_owned()),
    }
}

/// As etcd's handler says it.
fn told(health: &Result<(), String>) -> Response {
    let (status, text) = match health {
        Ok(()) => (StatusCode::OK, serde_json::json!({"health": "true", "reason": ""})),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, serde_json::json!({"health": "false", "reason": reason})),
    };
    (status, [(CONTENT_TYPE, "application/json")], text.to_string()).into_response()
}

/// `/proxy/metrics`.
pub(super) async fn metrics() -> Response {
    match TextEncoder::new().encode_to_string(&prometheus::gather()) {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// `/metrics`: those of one of the members.
pub(super) async fn metrics_of_member(State((calls, own)): Known) -> Response {
    let endpoints = calls.upstream.endpoints();
    let endpoint = &endpoints[fastrand::usize(..endpoints.len())];
    match timeout(METRICS, fetch(endpoint, own.to_members.as_ref())).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "Internal server error\n").into_response(),
    }
}

async fn fetch(endpoint: &str, tls: Option<&Arc<Tls>>) -> std::io::Result<String> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    let address = rest.split('/').next().unwrap_or_default();
    let stream = TcpStream::connect(address).await?;
    if scheme != "https" {
        return asked(stream, address).await;
    }
    let config = tls.and_then(|tls| tls.client()).ok_or(std::io::ErrorKind::Unsupported)?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    asked(TlsConnector::from(config).connect(name, stream).await?, address).await
}

/// The oldest HTTP has no chunks, and ends with the connection.
async fn asked(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.take(LARGEST).read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}
