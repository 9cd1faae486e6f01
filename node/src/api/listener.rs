//! A port: accepted connections, behind a TLS handshake where the URL says https, as a stream for the server.
//!
//! Handshakes run beside each other and never in the way of the next connection. Each has [`HANDSHAKE_BOUND`]; of more than
//! [`MAX_HANDSHAKES`] the oldest is given up, because a client that means well is done in milliseconds.
//!
//! A port that is closed has connections that nobody has accepted, and handshakes under way. Their clients are told that no
//! call was begun, as is one whose connection the server drops before it has begun with it (`parting.rs`).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::certificate_hosts;
use super::parting::{self, Greeting, Linger, Partings};
use crate::metrics::{QUEUE_FULL, TLS_HANDSHAKE_FAILURES};
use crate::transport::tls::{Subject, Tls};

/// etcd's bound on one handshake.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(10);
/// Handshakes under way at once, per port; about 20 KiB each.
const MAX_HANDSHAKES: usize = 1_024;
/// Connections that are ready and that the server has not taken yet. A handshake that finds it full waits within its bound.
const READY: usize = 64;
/// First byte of a TLS handshake.
const HANDSHAKE: u8 = 22;
/// Bytes from there to the end of the version that a client asks for: record, message, version.
const HELLO: usize = 5 + 4 + 2;
/// The message that a client begins with.
const CLIENT_HELLO: u8 = 1;
/// TLS 1.2 on the wire; 1.3 pretends to be it.
const TLS_1_2: u16 = 0x0303;
/// A record with its head.
const LARGEST_RECORD: usize = 5 + (16 << 10);
/// The alert that says so, as a record of TLS 1.0.
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];
/// How long handshakes are waited for when the port closes; the client's first call may come with the end of its own.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);
/// Connections that the system holds for us until they are accepted.
pub(super) const BACKLOG: u32 = 1_024;
/// A filter of packets (BPF) that takes none which asks for a new connection: SYN without ACK among the flags of TCP, of which
/// these two bits stand in byte 13. The instructions are: load a byte, mask it, compare it, leave out, take.
pub(super) const NOBODY_NEW: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];
/// Pause after an accept that failed, mostly for want of file descriptors.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection; every request on it carries this in its extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Whether it is behind TLS.
    pub secure: bool,
    /// What it showed, if a certificate was demanded and its chain is good.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Ends it.
    pub closer: Closer,
    /// Gets its bytes.
    pub takeover: Takeover,
}

impl Connection {
    /// One that nobody ends or takes over yet.
    pub(super) fn new(remote: SocketAddr, secure: bool, certificate: Option<Arc<ClientCertificate>>) -> Self {
        Self { remote, secure, certificate, closer: Closer::default(), takeover: Takeover::default() }
    }
}

/// Hands the bytes of a connection to whoever will go on with them in another protocol, once the server lets go of them:
/// after an answer with status 101 it does. (hyper's own way is not open to users of tonic's server.)
#[derive(Clone, Default)]
pub struct Takeover(Arc<Mutex<Option<oneshot::Sender<Stream>>>>);

impl Takeover {
    /// Asks for them. What the client sends before it has the answer is lost.
    pub fn ask(&self) -> oneshot::Receiver<Stream> {
        let (asked, stream) = oneshot::channel();
        *self.0.lock() = Some(asked);
        stream
    }
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Takeover")
    }
}

/// Ends a connection from anywhere. The server sees it as broken off.
#[derive(Debug, Clone, Default)]
pub struct Closer(Arc<Closed>);

#[derive(Debug, Default)]
struct Closed {
    asked: AtomicBool,
    connection: AtomicWaker,
}

impl Closer {
    /// Ends it. False if that was asked for already.
    pub fn close(&self) -> bool {
        let first = !self.0.asked.swap(true, Ordering::AcqRel);
        self.0.connection.wake();
        first
    }

    /// Whether it has been ended.
    pub fn is_closed(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }

    /// An error once it is to end, of which the task of the connection hears.
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.0.connection.register(context.waker());
        if self.is_closed() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

/// The verified certificate of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its common name: the user that it stands for.
    pub common_name: String,
}

impl ClientCertificate {
    /// The certificate behind a request, by its extensions.
    pub fn of(extensions: &axum::http::Extensions) -> Option<&Self> {
        extensions.get::<Connection>()?.certificate.as_deref()
    }
}

/// The bytes of a connection.
pub struct Stream {
    bytes: Bytes,
    connection: Connection,
    stage: Stage,
    partings: Partings,
}

/// How far a connection has come.
enum Stage {
    /// Nothing was sent yet, so no call was begun.
    Fresh(Greeting),
    /// Served.
    Served,
    /// Our direction is closed.
    Closed(Linger),
}

enum Bytes {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Gone to whoever took them over.
    Taken,
}

impl Stream {
    fn new(bytes: Bytes, connection: Connection, partings: Partings) -> Self {
        Self { bytes, connection, stage: Stage::Fresh(Greeting::default()), partings }
    }

    /// The same connection in other hands.
    fn take(&mut self) -> Self {
        let bytes = std::mem::replace(&mut self.bytes, Bytes::Taken);
        let stage = std::mem::replace(&mut self.stage, Stage::Served);
        Self { bytes, connection: self.connection.clone(), stage, partings: self.partings.clone() }
    }

    /// Whether something was sent.
    fn sent(&mut self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) && matches!(self.stage, Stage::Fresh(_)) {
            self.stage = Stage::Served;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let asked = self.connection.takeover.0.lock().take();
        if let Some(asked) = asked {
            let _ = asked.send(self.take());
        } else if let Stage::Fresh(greeting) = self.stage
            && self.partings.are_due()
            && !matches!(self.bytes, Bytes::Taken)
        {
            let mut stream = self.take();
            stream.stage = Stage::Served;
            self.partings.spawn(parting::without_a_call(stream, greeting));
        }
    }
}

impl Connected for Stream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

/// Serves connections of `listener` until the stream is dropped. With `unread` a connection is over whose other end has
/// taken nothing for so long of what it was sent. A port that closes before the process ends has `partings`.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    unread: Option<Duration>,
    partings: Option<Partings>,
) -> ReceiverStream<io::Result<Stream>> {
    let (ready, stream) = mpsc::channel(READY);
    let port =
        Port { tls, unread, ready, partings: partings.clone().unwrap_or_default(), handshakes: Handshakes::default() };
    match partings {
        Some(partings) => partings.spawn(port.accept(listener)),
        None => drop(tokio::spawn(port.accept(listener))),
    }
    ReceiverStream::new(stream)
}

/// What is done with connections of a port.
struct Port {
    tls: Option<Arc<Tls>>,
    unread: Option<Duration>,
    ready: mpsc::Sender<io::Result<Stream>>,
    partings: Partings,
    handshakes: Handshakes,
}

impl Port {
    async fn accept(mut self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.ready.closed() => break,
            };
            match accepted {
                Ok((stream, remote)) => self.accepted(stream, remote).await,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(AFTER_FAILURE).await;
                }
            }
        }
        if self.partings.are_due() {
            self.close(listener).await;
        }
    }

    async fn accepted(&mut self, stream: TcpStream, remote: SocketAddr) {
        let _ = stream.set_nodelay(true);
        // As gRPC-Go does. Where the system does not know it, the connection lasts until it gives up by itself.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(self.unread);
        match &self.tls {
            None => {
                let connection = Connection::new(remote, false, None);
                let stream = Stream::new(Bytes::Plain(stream), connection, self.partings.clone());
                // Nobody takes it once the port is closed, and dropping it says so to its client.
                let _ = self.ready.send(Ok(stream)).await;
            }
            Some(tls) => {
                self.handshakes.start(tls.clone(), stream, remote, self.partings.clone(), self.ready.clone());
            }
        }
    }

    /// Says farewell to whoever is waiting, whom the system would send a reset as the port goes.
    async fn close(mut self, listener: TcpListener) {
        // Whoever comes now is not answered, and refused when the system tries again a second later. Without it he could be
        // accepted behind our back until the port is gone, and be reset then.
        let _ = SockRef::from(&listener).attach_filter(&NOBODY_NEW);
        // Asks the system itself: what it has told the runtime may be old.
        let Ok(listener) = listener.into_std() else { return };
        for _ in 0..BACKLOG {
            let Ok((stream, remote)) = listener.accept() else { break };
            if let (Ok(()), Ok(stream)) = (stream.set_nonblocking(true), TcpStream::from_std(stream)) {
                self.accepted(stream, remote).await;
            }
        }
        drop(listener);
        let _ = timeout(LAST_HANDSHAKES, self.handshakes.all()).await;
    }
}

/// The handshakes under way; they end with it.
#[derive(Default)]
struct Handshakes {
    tasks: JoinSet<()>,
    oldest_first: VecDeque<AbortHandle>,
}

impl Handshakes {
    async fn all(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    fn start(
        &mut self,
        tls: Arc<Tls>,
        stream: TcpStream,
        remote: SocketAddr,
        partings: Partings,
        ready: mpsc::Sender<io::Result<Stream>>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        if self.oldest_first.len() >= MAX_HANDSHAKES {
            self.oldest_first.retain(|task| !task.is_finished());
        }
        if self.oldest_first.len() >= MAX_HANDSHAKES
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            QUEUE_FULL.with_label_values(&["handshakes"]).inc();
            oldest.abort();
        }
        self.oldest_first.push_back(self.tasks.spawn(async move {
            let shaken = timeout(HANDSHAKE_BOUND, handshake(&tls, stream, remote, partings)).await;
            match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => drop(timeout(HANDSHAKE_BOUND, ready.send(Ok(stream))).await),
                Err(error) => {
                    TLS_HANDSHAKE_FAILURES.with_label_values(&[tls.port()]).inc();
                    tracing::warn!("remote-addr" = %remote, %error, "rejected connection on {} endpoint", tls.port());
                }
            }
        }));
    }
}

/// Looks at how the client begins, without taking anything of it.
async fn greeted(mut stream: TcpStream) -> io::Result<TcpStream> {
    let mut first = [0; HELLO];
    let length = stream.peek(&mut first).await?;
    // Whoever speaks another protocol could not read an alert either: as with etcd the connection just ends.
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] != HANDSHAKE {
        return Err(io::Error::other("tls: first record does not look like a TLS handshake"));
    }
    if length == HELLO
        && let Some(version) = too_old(&first)
    {
        // What stays unread would reset the connection, and the alert with it.
        let _read = stream.read(&mut vec![0; LARGEST_RECORD]).await?;
        stream.write_all(&PROTOCOL_VERSION).await?;
        stream.shutdown().await?;
        return Err(io::Error::other(format!("tls: client offered only unsupported versions: [{version:x}]")));
    }
    Ok(stream)
}

/// The version that a client's first message asks for, if it is below TLS 1.2. rustls would miss its signature algorithms,
/// which came with 1.2, before it looked at that, and answer that the handshake failed.
fn too_old(hello: &[u8; HELLO]) -> Option<u16> {
    let [.., kind, _, _, _, major, minor] = hello;
    let version = u16::from_be_bytes([*major, *minor]);
    (*kind == CLIENT_HELLO && version < TLS_1_2).then_some(version)
}

async fn handshake(tls: &Tls, stream: TcpStream, remote: SocketAddr, partings: Partings) -> io::Result<Stream> {
    let config = tls.server().ok_or_else(|| io::Error::other("there is no certificate to serve with"))?;
    let stream = greeted(stream).await?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let certificate = match stream.get_ref().1.peer_certificates() {
        Some([leaf, ..]) => Some(admitted(tls, leaf, remote).await?),
        _ => None,
    };
    let connection = Connection::new(remote, true, certificate);
    Ok(Stream::new(Bytes::Tls(Box::new(stream)), connection, partings))
}

/// The certificate of a client whose chain is good already. A peer's must be of the host that it connects from.
async fn admitted(tls: &Tls, leaf: &CertificateDer<'_>, remote: SocketAddr) -> io::Result<Arc<ClientCertificate>> {
    let subject = Subject::of(leaf).map_err(io::Error::other)?;
    if tls.options().checks_origin {
        certificate_hosts::check(&subject, remote.ip()).await.map_err(io::Error::other)?;
    }
    Ok(Arc::new(ClientCertificate { common_name: subject.common_name }))
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.connection.closer.check(context)?;
        let before = into.filled().len();
        let read = match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Bytes::Tls(stream) => Pin::new(stream).poll_read(context, into),
            Bytes::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        if let Stage::Fresh(greeting) = &mut self.stage {
            greeting.note(&into.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.closer.check(context)?;
        let written = match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Bytes::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Bytes::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        self.sent(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.closer.check(context)?;
        let written = match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Bytes::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Bytes::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        self.sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        match &self.bytes {
            Bytes::Plain(stream) => stream.is_write_vectored(),
            Bytes::Tls(stream) => stream.is_write_vectored(),
            Bytes::Taken => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.closer.check(context)?;
        match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_flush(context),
            Bytes::Tls(stream) => Pin::new(stream).poll_flush(context),
            Bytes::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Closes our direction and waits for the client's. With TLS the end is said there first.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let linger = match &mut this.stage {
            Stage::Closed(linger) => linger,
            Stage::Fresh(_) | Stage::Served => {
                ready!(match &mut this.bytes {
                    Bytes::Plain(stream) => Pin::new(stream).poll_shutdown(context),
                    Bytes::Tls(stream) => Pin::new(stream).poll_shutdown(context),
                    Bytes::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                })?;
                this.stage = Stage::Closed(Linger::new());
                return self.poll_shutdown(context);
            }
        };
        this.connection.closer.check(context)?;
        match &mut this.bytes {
            Bytes::Plain(stream) => linger.poll(stream, context).map(Ok),
            Bytes::Tls(stream) => linger.poll(stream.get_mut().0, context).map(Ok),
            Bytes::Taken => Poll::Ready(Ok(())),
        }
    }
}
