//! The messages of a call as gRPC-Go reads them. tonic reads them otherwise: it answers a call with one message only once
//! its client has ended the stream, and has other codes and texts for what is no message.
//!
//! So the body that tonic gets is one that holds whole messages and nothing else; where gRPC-Go would refuse, it ends with
//! the status. A call of one message ends behind it, whatever follows; and it begins only when that has come whole, so that a
//! client which does not send it all holds little more than what it has sent.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::decode_limit::decode_limit;
use super::gateway::go_quoted;
use super::methods::{Kind, Methods};
use crate::engine::Limit;

/// Flag and length before each message.
const HEAD: usize = 5;
/// Pieces of a message that have no more together are one.
const SMALL: usize = 256;
/// How long the end of a call of one message is waited for once that has come. Most clients send it with the message, or in
/// a frame right behind; answering before it has come makes HTTP/2 reset the stream, and h2 remembers only 50 of these.
const END_BOUND: Duration = Duration::from_millis(10);
/// Names how messages are compressed.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// Names what the client can read.
const ACCEPTED: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const IDENTITY: &[u8] = b"identity";
const GZIP: &[u8] = b"gzip";

/// What decides over the messages of a call.
#[derive(Clone)]
pub(super) struct Framing {
    pub(super) methods: Arc<Methods>,
    pub(super) max_request_bytes: Limit<usize>,
}

/// Passes on a call of a method that there is, with messages that can be read.
pub(super) async fn check(State(framing): State<Framing>, mut request: Request, next: Next) -> Response {
    let kind = match framing.methods.find(request.uri()) {
        Ok(kind) => kind,
        Err(status) => return status.into_http(),
    };
    let is_compressed = match compression(request.headers_mut()) {
        Ok(is_compressed) => is_compressed,
        Err(status) => return status.into_http(),
    };
    let limit = decode_limit(&framing.max_request_bytes);
    let (parts, body) = request.into_parts();
    let mut framed = Framed::new(body, kind, limit, is_compressed);
    if kind == Kind::Stream {
        return next.run(Request::from_parts(parts, Body::new(framed))).await;
    }
    match framed.whole().await {
        Ok(message) => in_words_of_grpc_go(next.run(Request::from_parts(parts, Body::new(message))).await, limit),
        Err(error) => Status::from_error(error.into()).into_http(),
    }
}

/// How tonic begins what it says of messages that cannot be decompressed, as it stands in the header; and of those that are
/// too large then.
const NOT_DECOMPRESSED: &str = "Error%20decompressing:%20";
const TOO_LARGE: &str = "size%20limit";

/// tonic decompresses messages, and has texts of its own for it.
fn in_words_of_grpc_go(mut response: Response, limit: usize) -> Response {
    let message = response.headers().get("grpc-message").and_then(|value| value.to_str().ok());
    let Some(flaw) = message.and_then(|message| message.strip_prefix(NOT_DECOMPRESSED)) else { return response };
    let text = match flaw.starts_with(TOO_LARGE) {
        true => format!("grpc: received message after decompression larger than max {limit}"),
        false => format!("grpc: failed to decompress the message: {flaw}"),
    };
    if let Ok(text) = HeaderValue::from_str(&text) {
        response.headers_mut().insert("grpc-message", text);
    }
    response
}

/// Whether messages may be compressed. Of several encodings the last counts; the others are taken out for tonic. Who
/// compresses is answered so, whatever he says that he can read.
fn compression(headers: &mut HeaderMap) -> Result<bool, Status> {
    let Some(encoding) = headers.get_all(ENCODING).iter().next_back().map(HeaderValue::as_bytes) else {
        return Ok(false);
    };
    match encoding {
        GZIP => {
            headers.insert(ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(ACCEPTED, HeaderValue::from_static("gzip"));
            Ok(true)
        }
        b"" | IDENTITY => {
            headers.remove(ENCODING);
            Ok(false)
        }
        other => {
            let text = format!("grpc: Decompressor is not installed for grpc-encoding {}", go_quoted(other));
            Err(Status::unimplemented(text))
        }
    }
}

/// A body of whole messages.
struct Framed {
    body: Body,
    kind: Kind,
    limit: usize,
    is_compressed: bool,
    /// What was received and not passed on.
    rest: Bytes,
    at: At,
}

/// Where in the bytes it is.
enum At {
    /// Within the head of a message, so many bytes of which have come.
    Head([u8; HEAD], usize),
    /// Within a message of which so much is to come.
    Message(usize),
    /// Within a message that will be refused, of which so much is to come.
    Refused(usize, Status),
    /// Behind the only message.
    End(Option<Pin<Box<Sleep>>>),
    Over,
}

const START: At = At::Head([0; HEAD], 0);

type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

impl Framed {
    fn new(body: Body, kind: Kind, limit: usize, is_compressed: bool) -> Self {
        Self { body, kind, limit, is_compressed, rest: Bytes::new(), at: START }
    }

    /// The only message.
    async fn whole(&mut self) -> Result<Pieces, axum::Error> {
        let mut pieces = Pieces::default();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await {
            frame?.into_data().into_iter().for_each(|piece| pieces.push(piece));
        }
        Ok(pieces)
    }

    /// What the bytes that are there give, if anything.
    fn step(&mut self) -> Option<Result<Bytes, Status>> {
        match &mut self.at {
            At::Head(head, have) => {
                let take = self.rest.len().min(HEAD - *have);
                head[*have..*have + take].copy_from_slice(&self.rest[..take]);
                *have += take;
                let (head, is_whole, is_here) = (*head, *have == HEAD, take == HEAD);
                if !is_whole {
                    self.rest.clear();
                    return None;
                }
                self.head(head, is_here, take)
            }
            At::Message(left) => {
                let piece = self.rest.split_to(self.rest.len().min(*left));
                *left -= piece.len();
                self.ended();
                Some(Ok(piece))
            }
            At::Refused(left, status) => {
                let skipped = self.rest.len().min(*left);
                self.rest.advance(skipped);
                *left -= skipped;
                if *left > 0 {
                    return None;
                }
                let status = status.clone();
                Some(self.refuse(status))
            }
            At::End(_) | At::Over => None,
        }
    }

    /// Behind a head, `taken` bytes of which are the first of the rest; all of them, if it `is_here`.
    fn head(&mut self, head: [u8; HEAD], is_here: bool, taken: usize) -> Option<Result<Bytes, Status>> {
        let [flag, a, b, c, d] = head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            let text = format!("grpc: received message larger than max ({length} vs. {})", self.limit);
            return Some(self.refuse(Status::resource_exhausted(text)));
        }
        if let Some(status) = self.flaw(flag) {
            self.rest.advance(taken);
            self.at = At::Refused(length, status);
            return self.step();
        }
        if !is_here {
            self.rest.advance(taken);
            self.at = At::Message(length);
            self.ended();
            return Some(Ok(Bytes::copy_from_slice(&head)));
        }
        let piece = self.rest.split_to(self.rest.len().min(HEAD + length));
        self.at = At::Message(HEAD + length - piece.len());
        self.ended();
        Some(Ok(piece))
    }

    /// What is wrong with a message under this flag.
    fn flaw(&self, flag: u8) -> Option<Status> {
        match flag {
            0 => None,
            1 if self.is_compressed => None,
            1 => Some(Status::internal("grpc: compressed flag set with identity or empty encoding")),
            other => Some(Status::internal(format!("grpc: received unexpected payload format {other}"))),
        }
    }

    /// Goes on when a message has come whole.
    fn ended(&mut self) {
        if matches!(self.at, At::Message(0)) {
            self.at = if self.kind == Kind::Stream { START } else { At::End(None) };
        }
    }

    fn refuse(&mut self, status: Status) -> Result<Bytes, Status> {
        self.at = At::Over;
        self.rest.clear();
        Err(status)
    }

    /// What an end at this place means. Of a head that is cut gRPC-Go sees nothing.
    fn cut(&self) -> Option<Status> {
        match (&self.at, self.kind) {
            (At::Head(..), Kind::Stream) | (At::End(_) | At::Over, _) => None,
            (At::Head(..), _) => Some(Status::unknown("EOF")),
            (_, Kind::Unary) => Some(Status::unknown("unexpected EOF")),
            (_, _) => Some(Status::internal("unexpected EOF")),
        }
    }

    /// Behind the only message: over when the client has ended too, sends more, or is not quick about it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.rest.is_empty() {
            let Poll::Ready(polled) = Pin::new(&mut self.body).poll_frame(cx) else { break };
            match polled {
                Some(Ok(frame)) if frame.is_data() => self.rest = frame.into_data().unwrap_or_default(),
                _ => return Poll::Ready(()),
            }
        }
        let At::End(waited) = &mut self.at else { return Poll::Ready(()) };
        if !self.rest.is_empty() {
            return Poll::Ready(());
        }
        waited.get_or_insert_with(|| Box::pin(sleep(END_BOUND))).as_mut().poll(cx)
    }
}

impl HttpBody for Framed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        loop {
            if matches!(this.at, At::End(_)) {
                ready!(this.poll_end(cx));
                this.at = At::Over;
            }
            if matches!(this.at, At::Over) {
                return Poll::Ready(None);
            }
            if !this.rest.is_empty()
                && let Some(given) = this.step()
            {
                return Poll::Ready(Some(given.map(Frame::data).map_err(axum::Error::new)));
            }
            if matches!(this.at, At::End(_) | At::Over) || !this.rest.is_empty() {
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    this.at = At::Over;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let cut = this.cut();
                    this.at = At::Over;
                    return Poll::Ready(cut.map(|status| Err(axum::Error::new(status))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.at, At::Over)
    }
}

/// A message, in the pieces in which it came.
#[derive(Default)]
struct Pieces(VecDeque<Bytes>);

impl Pieces {
    /// Small ones are joined: each piece costs more memory than a byte, and keeps what else was read with it.
    fn push(&mut self, piece: Bytes) {
        match self.0.back_mut() {
            Some(last) if last.len() + piece.len() <= SMALL => *last = [&last[..], &piece].concat().into(),
            _ => self.0.push_back(piece),
        }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Polled {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt, stream};

    use tonic::Code;

    use super::*;

    const LIMIT: usize = 10;

    /// What a body of these pieces gives: its bytes, and the status that it ends with. `open`: the client goes on.
    async fn read(kind: Kind, is_compressed: bool, pieces: &[&[u8]], open: bool) -> (Vec<u8>, Option<(Code, String)>) {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
        let stream = stream::iter(pieces);
        let body = if open { Body::from_stream(stream.chain(stream::pending())) } else { Body::from_stream(stream) };
        let mut framed = Framed::new(body, kind, LIMIT, is_compressed);
        let mut bytes = Vec::new();
        loop {
            match poll_fn(|cx| Pin::new(&mut framed).poll_frame(cx)).await {
                Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(error)) => {
                    let status = Status::from_error(Box::new(error));
                    return (bytes, Some((status.code(), status.message().to_owned())));
                }
                None => return (bytes, None),
            }
        }
    }

    const ABC: &[u8] = &[0, 0, 0, 0, 3, 1, 2, 3];
    const EMPTY: &[u8] = &[0, 0, 0, 0, 0];

    #[tokio::test]
    async fn messages_pass_however_they_are_cut() {
        let two = [ABC, EMPTY, ABC].concat();
        for size in 1..two.len() {
            let pieces: Vec<_> = two.chunks(size).collect();
            assert_eq!(read(Kind::Stream, false, &pieces, false).await, (two.clone(), None), "{size}");
            assert_eq!(read(Kind::Unary, false, &pieces, false).await, (ABC.to_vec(), None), "{size}");
        }
    }

    /// Each piece costs as much as a few dozen bytes.
    #[tokio::test]
    async fn a_message_that_comes_byte_by_byte_is_not_held_byte_by_byte() {
        let message: Vec<u8> =
            [&[0, 0, 0, 0x27, 0x10][..], &(0..=255).cycle().take(10_000).collect::<Vec<_>>()].concat();
        for (size, most) in [(1, 2 * message.len() / SMALL), (100, 2 * message.len() / SMALL), (5_000, 4)] {
            let pieces: Vec<_> = message.chunks(size).map(|p| Ok::<_, Infallible>(Bytes::copy_from_slice(p))).collect();
            let mut framed = Framed::new(Body::from_stream(stream::iter(pieces)), Kind::Unary, 10_000, false);
            let whole = framed.whole().await.unwrap().0;
            assert!(whole.len() <= most, "{} pieces of {size}", whole.len());
            assert_eq!(whole.iter().flatten().copied().collect::<Vec<u8>>(), message);
        }
    }

    #[tokio::test]
    async fn a_call_of_one_message_does_not_wait_for_its_end() {
        for kind in [Kind::Unary, Kind::Answers] {
            assert_eq!(read(kind, false, &[ABC], true).await, (ABC.to_vec(), None));
            assert_eq!(read(kind, false, &[EMPTY, &[0, 0]], true).await, (EMPTY.to_vec(), None));
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused_in_the_words_of_grpc_go() {
        let (eof, unexpected) = ("EOF", "unexpected EOF");
        let flag = "grpc: compressed flag set with identity or empty encoding";
        let format = "grpc: received unexpected payload format 2";
        let large = "grpc: received message larger than max (11 vs. 10)";
        for (kind, bytes, code, text) in [
            (Kind::Unary, &b""[..], Code::Unknown, eof),
            (Kind::Unary, &ABC[..4], Code::Unknown, eof),
            (Kind::Unary, &ABC[..5], Code::Unknown, unexpected),
            (Kind::Unary, &ABC[..7], Code::Unknown, unexpected),
            (Kind::Unary, &[1, 0, 0, 0, 1, 1], Code::Internal, flag),
            (Kind::Unary, &[2, 0, 0, 0, 1, 1], Code::Internal, format),
            (Kind::Unary, &[2, 0, 0, 0, 1], Code::Unknown, unexpected),
            (Kind::Unary, &[2, 0, 0, 0, 11], Code::ResourceExhausted, large),
            (Kind::Answers, b"", Code::Unknown, eof),
            (Kind::Answers, &ABC[..7], Code::Internal, unexpected),
            (Kind::Stream, &ABC[..7], Code::Internal, unexpected),
            (Kind::Stream, &[2, 0, 0, 0, 0], Code::Internal, format),
        ] {
            let whole = read(kind, false, &[bytes], false).await;
            assert_eq!(whole.1, Some((code, text.to_owned())), "{kind:?} {bytes:?}");
            let single: Vec<_> = bytes.chunks(1).collect();
            assert_eq!(read(kind, false, &single, false).await.1, whole.1, "{kind:?} {bytes:?}");
        }
        assert_eq!(read(Kind::Stream, false, &[ABC, &[0, 0]], false).await, (ABC.to_vec(), None));
        assert_eq!(read(Kind::Unary, true, &[&[1, 0, 0, 0, 0]], false).await.1, None);
    }

    #[test]
    fn what_does_not_decompress_is_refused_in_the_words_of_grpc_go() {
        let told = |status: Status| {
            let response = in_words_of_grpc_go(status.into_http(), 9);
            percent_encoding::percent_decode(response.headers()["grpc-message"].as_bytes())
                .decode_utf8_lossy()
                .into_owned()
        };
        let bomb = "Error decompressing: size limit, of 9 bytes, exceeded while decompressing message";
        let large = "grpc: received message after decompression larger than max 9";
        assert_eq!(told(Status::resource_exhausted(bomb)), large);
        let broken = Status::internal("Error decompressing: no, while sending request");
        assert_eq!(told(broken), "grpc: failed to decompress the message: no, while sending request");
        let other = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(told(Status::out_of_range(other)), other);
    }

    #[test]
    fn of_several_encodings_the_last_counts() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ENCODING, HeaderValue::from_static(value));
            }
            let compressed = compression(&mut headers).map_err(|status| status.message().to_owned());
            (compressed, headers.get_all(ENCODING).iter().count())
        };
        assert_eq!(of(&[]), (Ok(false), 0));
        assert_eq!(of(&["br", "gzip"]), (Ok(true), 1));
        assert_eq!(of(&["gzip", "identity"]), (Ok(false), 0));
        assert_eq!(of(&[""]), (Ok(false), 0));
        let unknown = "grpc: Decompressor is not installed for grpc-encoding \"br\"".to_owned();
        assert_eq!(of(&["br"]).0, Err(unknown));
    }
}
