//! WebSockets on the gateway's paths, for browsers, which can send no stream otherwise: each message of the client is a
//! value of the request's body, and each line of the answer is a message. As in etcd the request is always a POST, its
//! status and headers stay unseen, a token comes as a subprotocol or a cookie, and when the answer is over the connection is
//! too, without WebSocket's farewell.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::super::connection::Connection;
use super::super::decode_limit::decode_limit;
use super::super::http::plain_error;
use super::super::stream::Stream;
use super::call::take_first;
use super::{Gateway, JSON_FACTOR};

/// The only version of the protocol.
const VERSION: &str = "13";
/// Which subprotocol brings a token: the one after it.
const BEARER: &str = "Bearer";
/// The cookie that brings a token.
const TOKEN_COOKIE: &str = "token";
/// Messages that wait to be read by the call. When it does not read, the client is not read either.
const MESSAGES: usize = 1;
/// Bytes of the largest frame.
const FRAME_BYTES: usize = 64 << 10;

type Socket = WebSocketStream<Stream>;

/// Whether a request asks for one.
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    lists(headers, &CONNECTION, "upgrade") && lists(headers, &UPGRADE, "websocket")
}

/// Answers the handshake. What follows on the connection is served in a task of its own.
pub(super) fn open(gateway: &Gateway, request: Request<Body>) -> Response {
    let headers = request.headers();
    if request.method() != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
    let (Some(key), true) = (key, lists(headers, &SEC_WEBSOCKET_VERSION, VERSION)) else {
        return refused(StatusCode::BAD_REQUEST, "Bad Request");
    };
    let connection = request.extensions().get::<Connection>();
    let (Some(connection), Some(_)) = (connection, request.extensions().get::<OnUpgrade>()) else {
        // HTTP/2 has no such upgrade.
        return refused(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if headers.get(SEC_WEBSOCKET_PROTOCOL).is_some_and(|list| list.as_bytes().starts_with(BEARER.as_bytes())) {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
    }
    let stream = connection.takeover.ask();
    let gateway = gateway.clone();
    tokio::spawn(async move {
        if let Ok(stream) = stream.await {
            serve(gateway, request, stream).await;
        }
    });
    response
}

/// Makes the call, until its answer or the client is over.
async fn serve(gateway: Gateway, request: Request<Body>, stream: Stream) {
    let limit = decode_limit(&gateway.max_request_bytes).saturating_mul(JSON_FACTOR);
    let config = WebSocketConfig::default().max_message_size(Some(limit)).max_frame_size(Some(limit));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut sink, mut messages) = socket.split();
    let (values, body) = mpsc::channel(MESSAGES);
    let call = call(&request, Body::from_stream(ReceiverStream::new(body)));
    tokio::select! {
        () = receive(&mut messages, values) => {}
        () = send(gateway, call, &mut sink) => {}
    }
    if let Ok(mut socket) = sink.reunite(messages) {
        // The end of the connection, which behind TLS is a message of its own.
        let _ = socket.get_mut().shutdown().await;
    }
}

/// The call that a handshake stands for.
fn call(handshake: &Request<Body>, body: Body) -> Request<Body> {
    let mut call = Request::new(body);
    *call.method_mut() = Method::POST;
    *call.uri_mut() = handshake.uri().clone();
    if let Some(token) = token(handshake.headers()) {
        call.headers_mut().insert(AUTHORIZATION, token);
    }
    if let Some(connection) = handshake.extensions().get::<Connection>() {
        call.extensions_mut().insert(connection.clone());
    }
    call
}

/// `Bearer, token` in the list of subprotocols, whatever else is there; a cookie goes before it.
fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    let bearer = |token: &str| format!("{BEARER} {token}").parse().ok();
    let texts = |name| headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    let cookies =
        texts(COOKIE).flat_map(|cookies| cookies.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    if let Some((_, token)) = cookies.into_iter().find(|(name, _)| *name == TOKEN_COOKIE) {
        return bearer(token.trim_matches('"'));
    }
    let protocols = texts(SEC_WEBSOCKET_PROTOCOL).next().filter(|protocols| !protocols.is_empty())?;
    match protocols.split_once("Bearer,") {
        Some((_, token)) => bearer(token.trim_matches(' ')),
        None => Some(HeaderValue::from_static("")),
    }
}

/// Passes the client's messages on until it is gone.
async fn receive(messages: &mut SplitStream<Socket>, values: mpsc::Sender<Result<Bytes, Infallible>>) {
    while let Some(Ok(message)) = messages.next().await {
        let value = match message {
            Message::Text(text) => Bytes::from(text),
            Message::Binary(bytes) => bytes,
            // Answered where they are read.
            _ => continue,
        };
        // A call that takes no further value is still heard to its end.
        let _ = values.send(Ok(value)).await.is_ok() && values.send(Ok(Bytes::from_static(b"\n"))).await.is_ok();
    }
}

/// Passes the lines of the answer on until there are no more.
async fn send(gateway: Gateway, call: Request<Body>, sink: &mut SplitSink<Socket, Message>) {
    let mut pieces = gateway.post(call).await.into_body().into_data_stream();
    let mut rest = BytesMut::new();
    loop {
        let piece = pieces.next().await.and_then(Result::ok);
        match &piece {
            Some(piece) => rest.extend_from_slice(piece),
            None => rest.extend_from_slice(b"\n"),
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = take_first(&mut rest, end + 1).slice(..end);
            let Ok(line) = Utf8Bytes::try_from(line) else { return };
            if !line.is_empty() && send_line(line, sink).await.is_err() {
                return;
            }
        }
        if piece.is_none() {
            return;
        }
    }
}

/// Sends a message, a large one in frames: the socket's own buffer stays as large as the largest frame was, and moves what
/// is left in it at each write.
async fn send_line<S: Sink<Message> + Unpin>(line: Utf8Bytes, sink: &mut S) -> Result<(), S::Error> {
    if line.len() <= FRAME_BYTES {
        return sink.send(Message::Text(line)).await;
    }
    let (mut rest, mut kind) = (Bytes::from(line), Data::Text);
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(FRAME_BYTES));
        let frame = Frame::message(piece, OpCode::Data(kind), rest.is_empty());
        sink.send(Message::Frame(frame)).await?;
        kind = Data::Continue;
    }
    Ok(())
}

/// Whether a header's list has a word, in any case.
fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
}

fn refused(status: StatusCode, text: &str) -> Response {
    let mut response = plain_error(status, text);
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_handshake_is_known_in_any_spelling() {
        let asked = |connection, upgrade| is_asked_for(&headers(&[(CONNECTION, connection), (UPGRADE, upgrade)]));
        assert!(asked("Upgrade", "websocket"));
        assert!(asked("keep-alive, upgrade", "h2c, WebSocket"));
        assert!(!asked("keep-alive", "websocket"));
        assert!(!asked("upgrade", "h2c"));
        assert!(!is_asked_for(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_large_line_is_one_message_in_frames() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut server = WebSocketStream::from_raw_socket(ours, Role::Server, None).await;
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        for length in [1, FRAME_BYTES, FRAME_BYTES + 1, 5 * FRAME_BYTES] {
            // Frames cut letters of two bytes.
            let line = "x".to_owned() + &"\u{e9}".repeat(length / 2);
            let (sent, received) = tokio::join!(send_line(line.clone().into(), &mut server), client.next());
            sent.unwrap();
            assert_eq!(received.unwrap().unwrap(), Message::Text(line.into()));
        }
        let mut frames = Vec::new();
        send_line("x".repeat(3 * FRAME_BYTES + 5).into(), &mut frames).await.unwrap();
        assert!(frames.len() == 4 && frames.iter().all(|frame| frame.len() < FRAME_BYTES + 16));
    }

    #[test]
    fn a_token_is_a_subprotocol_or_a_cookie() {
        let of = |pairs: &[(HeaderName, &str)]| token(&headers(pairs)).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer, a.1")]).as_deref(), Some("Bearer a.1"));
        assert_eq!(of(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer,a.1")]).as_deref(), Some("Bearer a.1"));
        assert_eq!(of(&[(SEC_WEBSOCKET_PROTOCOL, "json")]).as_deref(), Some(""), "a token that nobody was given");
        assert_eq!(of(&[(COOKIE, "a=b; token=a.1")]).as_deref(), Some("Bearer a.1"));
        assert_eq!(
            of(&[(COOKIE, "token=\"a.2\""), (SEC_WEBSOCKET_PROTOCOL, "Bearer, a.1")]).as_deref(),
            Some("Bearer a.2")
        );
    }
}
