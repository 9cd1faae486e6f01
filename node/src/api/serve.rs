//! Serves connections in HTTP/1.1 and HTTP/2, told apart by their first bytes, by hyper itself. tonic's server is a layer
//! above: it ends a call whose time is over with a status of its own, and leaves all that concerns HTTP/1.1 as it is.

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures::{Stream, StreamExt as _};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;
use tower::ServiceExt as _;

use super::connection::Connection;
use super::http1;
use crate::config::Http2;

/// Headers that a request over HTTP/1.1 may have. Go has no bound but that on bytes; here each has a place from the start.
const HEADERS: usize = 1_000;
/// How long the head of a request over HTTP/1.1 may take; etcd's number.
pub(super) const HEAD_BOUND: Duration = Duration::from_secs(5 * 60);
/// Streams of one connection that are reset for faults of its client before the connection is. Each has a frame that waits to
/// be sent, so without a bound a client that does not read would fill the memory.
const FAULTS: usize = 10_000;

/// The windows in which a port takes what it is sent, and how large metadata may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) stream_window: u32,
    pub(super) connection_window: u32,
    pub(super) metadata: Option<u32>,
}

/// How a port serves.
pub(super) fn builder(limits: Http2, bounds: Bounds) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_BOUND)
        .max_buf_size(http1::HEAD)
        .max_headers(HEADERS);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_concurrent_streams)
        .initial_stream_window_size(bounds.stream_window)
        .initial_connection_window_size(bounds.connection_window)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_local_error_reset_streams(FAULTS);
    if let Some(metadata) = bounds.metadata {
        http2.max_header_list_size(metadata);
    }
    builder
}

/// Serves what comes in until `closing`; then tells the clients to go away and waits until they have.
pub(super) async fn serve<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    builder: Builder<TokioExecutor>,
    routes: Router,
    closing: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Connected<ConnectInfo = Connection> + Unpin + Send + 'static,
{
    let connections = TaskTracker::new();
    {
        let mut incoming = pin!(incoming);
        loop {
            let stream = tokio::select! {
                () = closing.cancelled() => break,
                stream = incoming.next() => stream,
            };
            match stream {
                Some(Ok(stream)) => {
                    connections.spawn(connection(stream, builder.clone(), routes.clone(), closing.clone()));
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection could not be taken"),
                None => break,
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection<S>(stream: S, builder: Builder<TokioExecutor>, routes: Router, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Connected<ConnectInfo = Connection> + Unpin + Send + 'static,
{
    let from = stream.connect_info();
    let service = tower::service_fn(move |request: hyper::Request<Incoming>| {
        let (routes, from) = (routes.clone(), from.clone());
        async move {
            if let Some(refusal) = http1::refusal(&request) {
                return Ok(refusal);
            }
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(from);
            routes.oneshot(request).await
        }
    });
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = closing.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
