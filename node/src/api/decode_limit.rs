//! What a service does with the bytes of a call, as it is when the call comes: tonic fixes that when the service is built.
//! The bound on a request can change while the node runs; and an answer is compressed only where the request was, as by
//! gRPC-Go: tonic would compress for everybody who could read it, which is nearly everybody, and compressing costs more than
//! the network of most.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, Request};
use tonic::server::NamedService;
use tower::Service;

use crate::engine::Limit;

/// What a request may be larger than the limit on the command in it; etcd's own allowance.
const REQUEST_OVERHEAD: usize = 512 * 1024;

/// What a message may have on the wire now.
pub fn decode_limit(max_request_bytes: &Limit<usize>) -> usize {
    max_request_bytes.get().saturating_add(REQUEST_OVERHEAD)
}

/// A gRPC service whose bound on messages follows `max_request_bytes`.
#[derive(Clone)]
pub struct DecodeLimit<S> {
    service: S,
    max_request_bytes: Limit<usize>,
    bounded: fn(S, usize) -> S,
    compressing: fn(S) -> S,
}

impl<S> DecodeLimit<S> {
    /// `bounded` is the service's own way to set its bound, `compressing` the one to take and send compressed messages.
    pub fn new(
        service: S,
        max_request_bytes: Limit<usize>,
        bounded: fn(S, usize) -> S,
        compressing: fn(S) -> S,
    ) -> Self {
        Self { service, max_request_bytes, bounded, compressing }
    }
}

/// Whether the client compresses what it sends, or means to.
fn compresses(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_some_and(|encoding| encoding.as_bytes() != b"identity")
}

impl<S: NamedService> NamedService for DecodeLimit<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for DecodeLimit<S>
where
    S: Service<Request<B>, Error = Infallible> + Clone,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    /// The clone is of a few pointers, and ready because the services that tonic generates always are.
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let bound = decode_limit(&self.max_request_bytes);
        let mut service = (self.bounded)(self.service.clone(), bound);
        if compresses(request.headers()) {
            service = (self.compressing)(service);
        }
        service.call(request)
    }
}
