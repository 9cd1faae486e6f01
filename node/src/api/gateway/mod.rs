//! The JSON gateway: etcd's API for clients that speak HTTP/1.1 and JSON. `POST /v3/kv/range` with a message as JSON is the
//! gRPC call of it, and its answer the message of the answer as JSON; a stream is a line per message, `{"result":…}` or
//! `{"error":…}`. Over a WebSocket each line is a message, either way.
//!
//! Works by the descriptors of the contract and asks the router of the client port, so a service is served here by being
//! registered there. It must not know what any message means.

mod call;
mod decode;
mod encode;
mod metadata;
mod number;
mod openapi;
mod paths;
mod scan;
mod text;
mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use percent_encoding::percent_decode_str;
use prost_reflect::{DescriptorError, DynamicMessage, MessageDescriptor};
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::connection::{Behind, Connection};
use super::decode_limit::decode_limit;
use crate::engine::Limit;

use self::call::{Failed, Reply, framed};
use self::paths::Method;
use self::scan::Values;
pub(super) use self::text::go_quoted;

/// Where the document of the gateway is; etcd serves none.
pub const OPENAPI_PATH: &str = "/openapi.json";

/// How much longer a message may be as JSON than on the wire: base64 and names, escapes and white space, with room.
const JSON_FACTOR: usize = 4;

/// The gateway of one router.
#[derive(Clone)]
pub struct Gateway {
    router: Router,
    methods: Arc<HashMap<&'static str, Method>>,
    openapi: Bytes,
    max_request_bytes: Limit<usize>,
}

/// What the body of a request is read from.
type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, axum::Error>> + Send>>;

impl Gateway {
    /// Calls the services of `router`. `max_request_bytes` is the flag of that name.
    ///
    /// # Errors
    /// The contract's descriptors cannot be read.
    pub fn new(router: Router, max_request_bytes: Limit<usize>) -> Result<Self, DescriptorError> {
        let methods = paths::methods()?;
        let openapi = openapi::document(methods.iter().map(|(path, method)| (*path, method))).into();
        Ok(Self { router, methods: Arc::new(methods), openapi, max_request_bytes })
    }

    /// The document of all that is served.
    pub fn openapi(&self) -> Response {
        json(StatusCode::OK, HeaderMap::new(), Body::from(self.openapi.clone()))
    }

    /// Answers a request whose path begins with `/v3/`, or goes on with it over a WebSocket.
    pub async fn answer(&self, request: Request<Body>) -> Response {
        if websocket::is_asked_for(request.headers()) {
            websocket::open(self, request)
        } else {
            self.post(request).await
        }
    }

    async fn post(&self, request: Request<Body>) -> Response {
        let path = percent_decode_str(request.uri().path()).decode_utf8_lossy();
        let Some(method) = self.methods.get(path.as_ref()) else {
            return failure(&Failed::new(Code::NotFound, "Not Found"));
        };
        if request.method() != HttpMethod::POST || metadata::is_overridden(request.headers()) {
            return failure(&Failed::new(Code::Unimplemented, "Method Not Allowed"));
        }
        let (parts, body) = request.into_parts();
        let client = parts.extensions.get().map(Connection::behind);
        match self.call(method, &parts.headers, client, Box::pin(body.into_data_stream())).await {
            Ok(response) => response,
            Err(failed) => failure(&failed),
        }
    }

    async fn call(
        &self,
        method: &Method,
        headers: &HeaderMap,
        client: Option<Behind>,
        pieces: Pieces,
    ) -> Result<Response, Failed> {
        let deadline = metadata::timeout(headers)?.and_then(|timeout| Instant::now().checked_add(timeout));
        let call = async {
            let metadata = metadata::incoming(headers)?;
            let body = self.request_body(method, pieces).await?;
            let reply = Reply::to(self.router.clone(), method.path, metadata, client, body).await;
            if method.answers_stream { self.stream(method, reply, deadline).await } else { unary(method, reply).await }
        };
        match within(deadline, call).await {
            Ok(answered) => answered,
            // Of a stream the end is a line, also when nothing came before it.
            Err(over) if method.answers_stream => {
                Ok(json(http_status(over.code), HeaderMap::new(), Body::from(error_line(&over))))
            }
            Err(over) => Err(over),
        }
    }

    /// The frames of the request: one, or one for each value of the body as it comes.
    async fn request_body(&self, method: &Method, mut pieces: Pieces) -> Result<Body, Failed> {
        let limit = decode_limit(&self.max_request_bytes).saturating_mul(JSON_FACTOR);
        let mut values = Values::default();
        if method.takes_stream {
            return Ok(Body::from_stream(frames(pieces, values, method.input.clone(), limit)));
        }
        let invalid = |text| Failed::new(Code::InvalidArgument, text);
        let message = match next_value(&mut pieces, &mut values, limit).await? {
            Some(value) => decode::message(&value, &method.input).map_err(invalid)?,
            None => Vec::new(),
        };
        Ok(Body::from(framed(&message)))
    }

    /// Answers once the first message or the end is there: only then is the status known.
    async fn stream(&self, method: &Method, mut reply: Reply, deadline: Option<Instant>) -> Result<Response, Failed> {
        let mut headers = HeaderMap::new();
        if !reply.is_bare() {
            metadata::outgoing(&reply.headers, &mut headers);
        }
        let first = match reply.next().await.transpose() {
            Some(first) => first,
            None => return Ok(json(StatusCode::OK, headers, Body::empty())),
        };
        let status = first.as_ref().map_or_else(|failed| http_status(failed.code), |_| StatusCode::OK);
        let lines = lines(first, reply, method.output.clone(), deadline);
        Ok(json(status, headers, Body::from_stream(lines)))
    }
}

/// The next value of a body; `None` when there is no further one.
async fn next_value(pieces: &mut Pieces, values: &mut Values, limit: usize) -> Result<Option<Bytes>, Failed> {
    let invalid = |text| Failed::new(Code::InvalidArgument, text);
    loop {
        if let Some(value) = values.next().map_err(invalid)? {
            return Ok(Some(value));
        }
        match pieces.next().await {
            Some(Ok(piece)) => values.push(&piece),
            Some(Err(error)) => return Err(invalid(error.to_string())),
            None => return values.last().map_err(invalid),
        }
        if values.len() > limit {
            let text = format!("grpc: received message larger than max ({} vs. {limit})", values.len());
            return Err(Failed::new(Code::ResourceExhausted, text));
        }
    }
}

/// The values of a body as frames. As in etcd, one that cannot be read ends the requests and not the answers.
fn frames(
    pieces: Pieces,
    values: Values,
    of: MessageDescriptor,
    limit: usize,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold((pieces, values, of), move |(mut pieces, mut values, of)| async move {
        let value = next_value(&mut pieces, &mut values, limit).await.ok()??;
        let message = decode::message(&value, &of).ok()?;
        Some((Ok(framed(&message)), (pieces, values, of)))
    })
}

/// The messages of a stream as lines.
fn lines(
    first: Result<Bytes, Failed>,
    reply: Reply,
    of: MessageDescriptor,
    deadline: Option<Instant>,
) -> impl Stream<Item = Result<String, Infallible>> + Send {
    stream::unfold((Some(first), Some(reply), of), move |(first, reply, of)| async move {
        let mut reply = reply?;
        let message = match first {
            Some(message) => message,
            None => within(deadline, reply.next()).await.and_then(|next| next).transpose()?,
        };
        match message.and_then(|message| decoded(&of, message)) {
            Ok(message) => {
                let line = format!("{{\"result\":{}}}\n", encode::message(&message));
                Some((Ok(line), (None, Some(reply), of)))
            }
            Err(failed) => Some((Ok(error_line(&failed)), (None, None, of))),
        }
    })
}

/// The end of a stream that did not end well.
fn error_line(failed: &Failed) -> String {
    format!("{{\"error\":{}}}\n", encode::error(failed.code as i32, &failed.message))
}

async fn unary(method: &Method, mut reply: Reply) -> Result<Response, Failed> {
    let Some(message) = reply.next().await? else {
        return Err(Failed::new(Code::Internal, "the answer is empty"));
    };
    // The status comes behind the message, and may be an error still.
    reply.next().await?;
    let message = decoded(&method.output, message)?;
    let mut headers = HeaderMap::new();
    metadata::outgoing(&reply.headers, &mut headers);
    Ok(json(StatusCode::OK, headers, Body::from(encode::message(&message))))
}

fn decoded(of: &MessageDescriptor, message: Bytes) -> Result<DynamicMessage, Failed> {
    DynamicMessage::decode(of.clone(), message).map_err(|error| Failed::new(Code::Internal, error.to_string()))
}

async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T, Failed> {
    let Some(deadline) = deadline else { return Ok(future.await) };
    let exceeded = || Failed::new(Code::DeadlineExceeded, "context deadline exceeded");
    if deadline <= Instant::now() {
        return Err(exceeded());
    }
    timeout_at(deadline, future).await.map_err(|_| exceeded())
}

fn failure(failed: &Failed) -> Response {
    let mut headers = HeaderMap::new();
    metadata::challenge(failed, &mut headers);
    let body = encode::error(failed.code as i32, &failed.message);
    json(http_status(failed.code), headers, Body::from(body))
}

fn json(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// grpc-gateway's table.
fn http_status(code: Code) -> StatusCode {
    let number = match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Cancelled => 499,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    };
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests;
