//! Reads what a refused request is still sending. A refusal needs no body to be decided; but who sends one over HTTP/2 has
//! his stream reset when nobody reads it, and some clients, curl among them, then never see the answer. etcd's server reads
//! on too, within the same bound.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::timeout;

/// How much is read; Go's number.
const BYTES: usize = 256 << 10;
/// How long an answer is held back for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A body that can be read on when whoever it was given to has dropped it.
#[derive(Clone)]
struct Lent(Arc<Mutex<Body>>);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}

/// Passes a request on, and holds a refusal back until the request has come whole or a bound is reached.
pub async fn read(request: Request, next: Next) -> Response {
    // Who asks whether to send a body at all has sent none.
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Lent(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(parts, Body::new(body.clone()))).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        let _ = timeout(PATIENCE, drain(body)).await;
    }
    response
}

async fn drain(mut body: Lent) {
    let mut read = 0;
    while read < BYTES {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::middleware::from_fn;
    use futures::{StreamExt, stream};
    use tower::ServiceExt;

    use super::*;

    /// How many of 600 pieces of 1 KiB are read of a request that is answered with `status` unread.
    async fn pieces_read(status: StatusCode, expect: bool) -> usize {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = read.clone();
        let pieces = stream::iter(0..600).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from_static(&[0; 1024]))
        });
        let mut request = Request::new(Body::from_stream(pieces));
        if expect {
            request.headers_mut().insert(EXPECT, "100-continue".parse().unwrap());
        }
        let router = Router::new().fallback(move || async move { status }).layer(from_fn(super::read));
        assert_eq!(router.oneshot(request).await.unwrap().status(), status);
        read.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_a_refused_request_sends_is_read_within_bounds() {
        assert_eq!(pieces_read(StatusCode::NOT_FOUND, false).await, 256);
        assert_eq!(pieces_read(StatusCode::NOT_FOUND, true).await, 0);
        assert_eq!(pieces_read(StatusCode::OK, false).await, 0);
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_holds_a_refusal_back_for_a_moment_only() {
        let request = Request::new(Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()));
        let router = Router::new().fallback(|| async { StatusCode::NOT_FOUND }).layer(from_fn(super::read));
        assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::NOT_FOUND);
    }
}
