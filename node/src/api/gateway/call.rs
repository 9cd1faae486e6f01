//! One gRPC call, made within the process: the router that serves the client port is asked as if a client had sent the
//! request, so that every service and layer behind it works as it does for gRPC.

use std::future::poll_fn;
use std::pin::Pin;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, TE};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::body::Body as HttpBody;
use percent_encoding::percent_decode_str;
use tonic::Code;
use tower::ServiceExt;

use super::super::connection::Behind;

/// Flag and length before each message.
const PREFIX: usize = 5;
/// Messages that are larger take the memory of their buffer with them.
const KEPT_BYTES: usize = 64 << 10;

/// How a call ended that brought no answer, or no further one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// gRPC's code.
    pub(super) code: Code,
    /// Its text.
    pub(super) message: String,
}

impl Failed {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The status of a call's headers or trailers; `None` when they have none.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let code: i32 = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        let text = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
        Some(Self::new(Code::from_i32(code), percent_decode_str(text).decode_utf8_lossy()))
    }
}

/// A message with what gRPC puts before it.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// What has come of a call so far. Dropping it cancels the call.
pub(super) struct Reply {
    /// The metadata in front of the messages.
    pub(super) headers: HeaderMap,
    body: Body,
    buffer: BytesMut,
    status: Option<Failed>,
}

impl Reply {
    /// Sends a request with `metadata` to the method at `path`, for the client of a connection; `body` holds its frames.
    /// Resolves with the headers of the answer.
    pub(super) async fn to(
        router: Router,
        path: &str,
        metadata: HeaderMap,
        client: Option<Behind>,
        body: Body,
    ) -> Self {
        let mut request = Request::new(body);
        if let Some(client) = client {
            request.extensions_mut().insert(client);
        }
        *request.method_mut() = Method::POST;
        *request.headers_mut() = metadata;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let response = match path.parse() {
            Ok(uri) => {
                *request.uri_mut() = uri;
                let Ok(response) = router.oneshot(request).await;
                response
            }
            Err(_) => axum::response::Response::default(),
        };
        let (parts, body) = response.into_parts();
        let status = Failed::of(&parts.headers).or_else(|| {
            let text = format!("unexpected HTTP status {}", parts.status);
            (parts.status != StatusCode::OK).then(|| Failed::new(Code::Internal, text))
        });
        Self { headers: parts.headers, body, buffer: BytesMut::new(), status }
    }

    /// Whether the answer is nothing but a status.
    pub(super) fn is_bare(&self) -> bool {
        self.status.is_some()
    }

    /// The next message; `None` when the call has ended well.
    ///
    /// # Errors
    /// How it has ended else.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            if let Some(message) = self.cut() {
                return Ok(Some(message));
            }
            if let Some(status) = self.status.take() {
                return if status.code == Code::Ok { Ok(None) } else { Err(status) };
            }
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                None => return Err(Failed::new(Code::Internal, "the answer has no status")),
                Some(Err(error)) => return Err(Failed::new(Code::Internal, error.to_string())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.status = frame.trailers_ref().and_then(Failed::of),
                },
            }
        }
    }

    /// The first message that is there whole.
    fn cut(&mut self) -> Option<Bytes> {
        let head = self.buffer.get(1..PREFIX)?;
        let length = u32::from_be_bytes(head.try_into().ok()?) as usize;
        if self.buffer.len() - PREFIX < length {
            return None;
        }
        self.buffer.advance(PREFIX);
        Some(take_first(&mut self.buffer, length))
    }
}

/// Takes the first `length` bytes of a buffer that lives as long as its stream. The memory of many goes with them: the buffer
/// would else stay as large as the largest message was.
pub(super) fn take_first(buffer: &mut BytesMut, length: usize) -> Bytes {
    let first = buffer.split_to(length).freeze();
    if length > KEPT_BYTES {
        *buffer = BytesMut::from(&buffer[..]);
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_gives_the_memory_of_large_messages_away() {
        let mut buffer = BytesMut::new();
        for length in [KEPT_BYTES + 1, 100, 8 << 20, 7] {
            buffer.extend_from_slice(&vec![1; length]);
            buffer.extend_from_slice(b"rest");
            assert_eq!(take_first(&mut buffer, length), vec![1; length]);
            assert_eq!(take_first(&mut buffer, 4), "rest");
            // Nothing else holds what it had, so it could have all of it again.
            assert!(!buffer.try_reclaim(2 * KEPT_BYTES), "after {length}");
        }
    }
}
