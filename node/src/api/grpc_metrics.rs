//! Counts gRPC calls as etcd does, whatever service they are for. Sits between the router and the services; sees frames,
//! never messages.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;

use super::connection::Connection;
use super::deadline;
use super::request_stats;
use super::socket::Remote;
use super::spans::{Open, Tracing};
use crate::metrics;
use crate::service::metrics::{Grpc, Method};

/// What calls are counted into, and how long a unary one may take before it is logged.
#[derive(Clone)]
pub struct Counting {
    /// The methods that are known; any other call passes untouched.
    pub methods: Arc<Grpc>,
    /// How long a unary call may take.
    pub slow: Duration,
    /// Makes spans of calls, if there is a collector for them.
    pub tracing: Option<Arc<Tracing>>,
}

/// Passes a call on, for as long as its client gives it, and counts it.
pub async fn count(State(counting): State<Counting>, request: Request, next: Next) -> Response {
    let Some(method) = counting.methods.method(request.uri().path()) else {
        return deadline::keep(request, next, true).await;
    };
    count_client(&method, request.headers());
    let span = counting.tracing.as_ref().and_then(|tracing| tracing.begin(&request)).map(Box::new);
    let mut call = Call::start(method, counting.slow, span);
    call.remote = request.extensions().get::<Connection>().map(|connection| connection.remote);
    let received = Observed::new(call.receiver());
    let streams = !call.method.is_unary;
    let response = deadline::keep(request.map(|body| Body::new(received.over(body))), next, streams).await;
    call.look_at(response.headers());
    response.map(|body| Body::new(Observed::new(Direction::Sent(Box::new(call))).over(body)))
}

/// The metadata in which clients say which version of the API they use.
pub(super) const CLIENT_VERSION: &str = "client-api-version";

/// Counts a call under what its client says of itself. Only `3.` and a minor version becomes a label, so that no client
/// makes many.
fn count_client(method: &Method, headers: &HeaderMap) {
    let named = headers.get(CLIENT_VERSION).and_then(|version| version.to_str().ok());
    let minor = |version: &str| version.strip_prefix("3.").is_some_and(|minor| minor.parse::<u8>().is_ok());
    let version = named.filter(|version| version.len() <= 4 && minor(version)).unwrap_or("unknown");
    let kind = if method.is_unary { "unary" } else { "stream" };
    metrics::CLIENT_REQUESTS.with_label_values(&[kind, version]).inc();
}

/// One call on its way. Whatever becomes of it, it is handled once: with its status, or cancelled when it is dropped.
struct Call {
    method: Arc<Method>,
    started: Instant,
    slow: Duration,
    /// On the heap, where there is one: a call without it stays small.
    span: Option<Box<Open>>,
    remote: Option<Remote>,
    done: bool,
}

impl Call {
    fn start(method: Arc<Method>, slow: Duration, span: Option<Box<Open>>) -> Self {
        method.started.inc();
        Self { method, started: Instant::now(), slow, span, remote: None, done: false }
    }

    fn receiver(&self) -> Direction {
        Direction::Received(self.method.clone())
    }

    fn end(&mut self, code: usize, message: impl FnOnce() -> String) {
        let time = self.started.elapsed();
        self.method.handled(code);
        self.method.took(time);
        if self.method.is_unary {
            // One message, as the library that etcd counts by says even of a refusal, which has none.
            self.method.sent(1, 0);
        }
        if self.method.is_unary && !request_stats::has_content(&self.method.path) {
            request_stats::other(&self.method.path, self.remote, time, self.slow);
        }
        if let Some(span) = self.span.take() {
            span.end(code, &message());
        }
    }

    /// The status is in the headers when there is no message, else in the trailers.
    fn look_at(&mut self, headers: &HeaderMap) {
        let code = headers.get("grpc-status").and_then(|value| value.to_str().ok()).and_then(|code| code.parse().ok());
        if let Some(code) = code
            && !self.done
        {
            self.done = true;
            let message =
                || Status::from_header_map(headers).map_or_else(String::new, |status| status.message().to_owned());
            self.end(code, message);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            self.end(tonic::Code::Cancelled as usize, String::new);
        }
    }
}

/// Which way a body goes.
enum Direction {
    Received(Arc<Method>),
    Sent(Box<Call>),
}

/// A body whose messages are counted.
struct Observed {
    inner: Body,
    direction: Direction,
    messages: Messages,
}

impl Observed {
    fn new(direction: Direction) -> Self {
        Self { inner: Body::empty(), direction, messages: Messages::default() }
    }

    fn over(mut self, body: Body) -> Self {
        self.inner = body;
        self
    }

    fn observe(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            let messages = self.messages.count(data);
            let bytes = data.len() as u64;
            match &self.direction {
                Direction::Received(method) => method.received(messages, bytes),
                Direction::Sent(call) => call.method.sent(if call.method.is_unary { 0 } else { messages }, bytes),
            }
        } else if let (Some(trailers), Direction::Sent(call)) = (frame.trailers_ref(), &mut self.direction) {
            call.look_at(trailers);
        }
    }
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.observe(frame);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Finds the starts of messages in a stream of bytes: a flag, a length in four bytes, then as many bytes.
#[derive(Default)]
struct Messages {
    head: [u8; 5],
    have: usize,
    left: usize,
}

impl Messages {
    /// How many messages begin in `data`, with a complete head.
    fn count(&mut self, mut data: &[u8]) -> u64 {
        let mut count = 0;
        while !data.is_empty() {
            if self.left > 0 {
                let skip = self.left.min(data.len());
                self.left -= skip;
                data = &data[skip..];
                continue;
            }
            let take = (self.head.len() - self.have).min(data.len());
            self.head[self.have..self.have + take].copy_from_slice(&data[..take]);
            self.have += take;
            data = &data[take..];
            if self.have == self.head.len() {
                let [_, a, b, c, d] = self.head;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.have = 0;
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_stream_is_cut() {
        let stream: Vec<u8> = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 1, 0]].concat();
        let whole = Messages::default().count(&stream);
        assert_eq!(whole, 3);
        for size in 1..stream.len() {
            let mut messages = Messages::default();
            let count: u64 = stream.chunks(size).map(|chunk| messages.count(chunk)).sum();
            assert_eq!(count, whole, "cut into {size}");
        }
    }
}
