//! Real ports on the loopback, and clients that speak HTTP/2 in bytes.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::api::server::{Closing, Listeners};
use crate::api::socket::NOBODY_NEW;
use crate::config::{Http2, url::Url};
use crate::transport::tls::{Tls, TlsOptions, self_signed};

/// The preface and SETTINGS without any.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A request of HTTP/1 for what there is not.
const GET: &[u8] = b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n";
const GOAWAY: u8 = 7;
const PING: u8 = 6;
const ACK: u8 = 1;

fn port(tls: Option<&Arc<Tls>>) -> (Listeners, SocketAddr) {
    let limits = Http2 {
        max_concurrent_streams: 100,
        ping_min_time: Duration::ZERO,
        keepalive_interval: None,
        keepalive_timeout: Duration::from_secs(20),
    };
    let mut listeners = Listeners::new(limits, false, usize::MAX);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = Url::parse(&format!("{scheme}://127.0.0.1:0")).unwrap();
    let bound = listeners.serve(&[url], tls, &Router::new(), Closing::Gracefully).unwrap();
    (listeners, bound[0])
}

/// The kind, flags and body of the next frame; None when the server has closed, which is no error.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    if stream.read(&mut head[..1]).await.expect("no reset") == 0 {
        return None;
    }
    stream.read_exact(&mut head[1..]).await.expect("no reset");
    let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut body).await.expect("no reset");
    Some((head[3], head[4], body))
}

/// Ends a connection that is served as a client of HTTP/2 does, but does not close it. The last GOAWAY's last call.
async fn told_to_go(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> u32 {
    let mut last = None;
    while let Some((kind, flags, body)) = frame(stream).await {
        match kind {
            GOAWAY => last = Some(u32::from_be_bytes(body[..4].try_into().unwrap())),
            PING if flags & ACK == 0 => {
                stream.write_all(&[&[0, 0, 8, PING, ACK, 0, 0, 0, 0][..], &body].concat()).await.unwrap();
            }
            _ => {}
        }
    }
    last.expect("a GOAWAY")
}

/// A client that goes on sending when it was told to go away, and what it is answered.
async fn sends_on(mut stream: impl AsyncRead + AsyncWrite + Unpin, listeners: Listeners) {
    stream.write_all(HELLO).await.unwrap();
    assert!(frame(&mut stream).await.is_some(), "it is served");
    let closing = tokio::spawn(listeners.close());
    assert_eq!(told_to_go(&mut stream).await, 0);
    // A reset would come as the answer to the first, and be an error of the second or third.
    for _ in 0..3 {
        stream.write_all(&[0, 0, 0, 0, 0, 0, 0, 0, 1]).await.expect("it is read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!closing.is_finished(), "the client is waited for");
    drop(stream);
    closing.await.unwrap();
}

#[tokio::test]
async fn what_comes_after_the_farewell_is_read() {
    let (listeners, address) = port(None);
    sends_on(TcpStream::connect(address).await.unwrap(), listeners).await;
}

#[tokio::test]
async fn what_comes_after_the_farewell_is_read_behind_tls_too() {
    let directory = tempfile::tempdir().unwrap();
    let identity = self_signed(directory.path(), &["127.0.0.1".to_owned()], 1).unwrap();
    let options = TlsOptions { identity: Some(identity), self_signed: true, dials: true, ..TlsOptions::default() };
    let tls = Arc::new(Tls::new("client", options).unwrap());
    let (listeners, address) = port(Some(&tls));
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(tls.client().unwrap());
    let stream = connector.connect(ServerName::IpAddress(address.ip().into()), stream).await.unwrap();
    // An end without TLS's own would be an error to read.
    sends_on(stream, listeners).await;
}

#[tokio::test]
async fn a_client_that_stays_is_waited_for_for_a_moment_only() {
    let (listeners, address) = port(None);
    let (mut stays, _silent) = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
    stays.write_all(HELLO).await.unwrap();
    assert!(frame(&mut stays).await.is_some(), "it is served");
    let closing = tokio::spawn(listeners.close());
    told_to_go(&mut stays).await;
    let told = Instant::now();
    closing.await.unwrap();
    let waited = told.elapsed();
    assert!(waited >= BOUND / 2 && waited < 3 * BOUND, "it was waited for {waited:?}");
}

/// The runtime runs nothing between the client's connect and the close: the connection is the system's alone.
#[tokio::test]
async fn whoever_was_not_accepted_yet_hears_that_nothing_was_begun() {
    let (listeners, address) = port(None);
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(HELLO).unwrap();
    let mut stream = {
        stream.set_nonblocking(true).unwrap();
        TcpStream::from_std(stream).unwrap()
    };
    let closing = tokio::spawn(listeners.close());
    assert_eq!(told_to_go(&mut stream).await, 0);
    drop(stream);
    closing.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

/// The system completes connections by itself: without the filter it would go on while the port is emptied.
#[test]
fn a_port_that_is_being_emptied_keeps_who_is_there_and_takes_nobody_new() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300));
    let mut early = connect().unwrap();
    SockRef::from(&listener).attach_filter(&NOBODY_NEW).unwrap();
    early.write_all(b"a call").unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), early.local_addr().unwrap());
    assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::TimedOut);
}

/// The server drops a connection whose protocol it does not know yet.
#[tokio::test]
async fn whoever_says_its_protocol_when_the_port_closes_hears_that_nothing_was_begun() {
    for early in [0, 1, 20] {
        let (listeners, address) = port(None);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&HELLO[..early]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let closing = tokio::spawn(listeners.close());
        tokio::task::yield_now().await;
        stream.write_all(&HELLO[early..]).await.unwrap();
        assert_eq!(told_to_go(&mut stream).await, 0, "{early} bytes before");
        drop(stream);
        closing.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_sends_without_end_is_not_read_without_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let sending = tokio::spawn(async move {
        let mut client = client;
        while client.write_all(&[0; SCRATCH]).await.is_ok() {}
    });
    let mut linger = Linger { until: Box::pin(sleep(Duration::from_secs(3600))), left: 10 * SCRATCH };
    std::future::poll_fn(|context| linger.poll(&mut server, context)).await;
    assert_eq!(linger.left, 0);
    drop(server);
    sending.await.unwrap();
}

#[test]
fn a_greeting_is_told_however_it_comes() {
    for size in 1..5 {
        let greeted = |bytes: &[u8]| {
            let mut greeting = Greeting::default();
            bytes.chunks(size).for_each(|chunk| greeting.note(chunk));
            greeting.is_http_2()
        };
        assert!(greeted(HELLO) && greeted(b"PRI"));
        assert!(!greeted(b"PR") && !greeted(b"PUT /") && !greeted(b""));
    }
}

/// What is read until the server has closed, which is no error.
async fn until_the_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.expect("an end, and no reset");
    String::from_utf8(said).unwrap()
}

/// What a client sends that has not seen the end yet.
async fn is_read_on(stream: &mut TcpStream) {
    for _ in 0..3 {
        stream.write_all(GET).await.expect("it is read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// HTTP/1 knows no GOAWAY: the end itself says that no further request was begun.
#[tokio::test]
async fn a_client_of_http_1_that_sends_on_hears_an_end() {
    let (listeners, address) = port(None);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(GET).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 404");
    let closing = tokio::spawn(listeners.close());
    let rest = until_the_end(&mut stream).await;
    assert!(!rest.contains("HTTP/1.1"), "a second answer: {rest}");
    is_read_on(&mut stream).await;
    assert!(!closing.is_finished(), "the client is waited for");
    drop(stream);
    closing.await.unwrap();
}

/// The server closes the connection by itself; what is on its way behind the bad request must not take the answer away.
#[tokio::test]
async fn a_client_whose_request_is_bad_hears_that_and_an_end() {
    let (listeners, address) = port(None);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"no request\r\n\r\n").await.unwrap();
    stream.write_all(&GET.repeat(1_000)).await.unwrap();
    let said = until_the_end(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said}");
    is_read_on(&mut stream).await;
    drop(stream);
    listeners.close().await;
}

/// Nothing was begun for it, and it may say the request elsewhere.
#[tokio::test]
async fn a_client_of_http_1_that_says_its_protocol_when_the_port_closes_hears_an_end() {
    let (listeners, address) = port(None);
    let mut stream = TcpStream::connect(address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let closing = tokio::spawn(listeners.close());
    tokio::task::yield_now().await;
    stream.write_all(GET).await.unwrap();
    assert_eq!(until_the_end(&mut stream).await, "");
    is_read_on(&mut stream).await;
    drop(stream);
    closing.await.unwrap();
}
