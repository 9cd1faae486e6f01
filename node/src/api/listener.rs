//! A port: accepted connections, behind a TLS handshake where the URL says https, as a stream for the server (`stream.rs`).
//!
//! Handshakes run beside each other and never in the way of the next connection. Each has [`HANDSHAKE_BOUND`]; of more than
//! [`MAX_HANDSHAKES`] the oldest is given up, because a client that means well is done in milliseconds.
//!
//! A port that is closed has connections that nobody has accepted, and handshakes under way. Their clients are told that no
//! call was begun, as is one whose connection the server drops before it has begun with it (`parting.rs`).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::certificate_hosts;
use super::connection::{ClientCertificate, Connection};
use super::parting::Partings;
use super::socket::{Listener, Remote, Socket};
use super::stream::{Bytes, Stream};
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
/// Pause after an accept that failed, mostly for want of file descriptors.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// A connection's place among those that clients may have; free when it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// What holds for a port of clients, which closes before the process ends.
#[derive(Clone)]
pub struct OfClients {
    /// Who is to be told that it closes.
    pub partings: Partings,
    /// The connections that clients may have, on all ports together.
    pub places: Arc<Semaphore>,
}

/// Serves connections of `listener` until the stream is dropped. With `unread` a connection is over whose other end has
/// taken nothing for so long of what it was sent.
pub fn incoming(
    listener: Listener,
    tls: Option<Arc<Tls>>,
    unread: Option<Duration>,
    clients: Option<OfClients>,
) -> ReceiverStream<io::Result<Stream>> {
    let (ready, stream) = mpsc::channel(READY);
    let (partings, places) = clients.map(|clients| (clients.partings, clients.places)).unzip();
    let port = Port {
        tls,
        unread,
        ready,
        partings: partings.clone().unwrap_or_default(),
        places,
        handshakes: Handshakes::default(),
    };
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
    /// None where nobody counts.
    places: Option<Arc<Semaphore>>,
    handshakes: Handshakes,
}

impl Port {
    async fn accept(mut self, listener: Listener) {
        loop {
            // Whoever finds no place waits with the system, as with etcd, and nobody who is here suffers from it.
            let next = async { (self.place().await, listener.accept().await) };
            let (place, accepted) = tokio::select! {
                next = next => next,
                () = self.ready.closed() => break,
            };
            match accepted {
                Ok((stream, remote)) => self.accepted(stream, remote, place).await,
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

    async fn place(&self) -> Option<Place> {
        // It fails only for a semaphore that somebody has closed, and nobody does.
        self.places.clone()?.acquire_owned().await.ok()
    }

    async fn accepted(&mut self, stream: Socket, remote: Remote, place: Option<Place>) {
        stream.set_up(self.unread);
        match &self.tls {
            None => {
                let connection = Connection::new(remote, false, None);
                let stream = Stream::new(Bytes::Plain(stream), connection, self.partings.clone(), place);
                // Nobody takes it once the port is closed, and dropping it says so to its client.
                let _ = self.ready.send(Ok(stream)).await;
            }
            Some(tls) => {
                let shaken = handshake(tls.clone(), stream, remote, self.partings.clone(), place);
                self.handshakes.start(tls.port(), remote, shaken, self.ready.clone());
            }
        }
    }

    /// Says farewell to whoever is waiting, whom the system would send a reset as the port goes.
    async fn close(mut self, listener: Listener) {
        for (stream, remote) in listener.close() {
            self.accepted(stream, remote, None).await;
        }
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
        port: &'static str,
        remote: Remote,
        shaken: impl Future<Output = io::Result<Stream>> + Send + 'static,
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
            let shaken = timeout(HANDSHAKE_BOUND, shaken).await;
            match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => drop(timeout(HANDSHAKE_BOUND, ready.send(Ok(stream))).await),
                Err(error) => {
                    TLS_HANDSHAKE_FAILURES.with_label_values(&[port]).inc();
                    tracing::warn!("remote-addr" = %remote, %error, "rejected connection on {port} endpoint");
                }
            }
        }));
    }
}

/// Looks at how the client begins, without taking anything of it.
async fn greeted(stream: Socket) -> io::Result<Socket> {
    match stream {
        Socket::Tcp(stream) => greeted_by_tcp(stream).await.map(Socket::Tcp),
        // Its clients are of this host and this day.
        Socket::Unix(_) => Ok(stream),
    }
}

async fn greeted_by_tcp(mut stream: TcpStream) -> io::Result<TcpStream> {
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

async fn handshake(
    tls: Arc<Tls>,
    stream: Socket,
    remote: Remote,
    partings: Partings,
    place: Option<Place>,
) -> io::Result<Stream> {
    let config = tls.server().ok_or_else(|| io::Error::other("there is no certificate to serve with"))?;
    let stream = greeted(stream).await?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let certificate = match stream.get_ref().1.peer_certificates() {
        Some([leaf, ..]) => Some(admitted(&tls, leaf, remote).await?),
        _ => None,
    };
    let connection = Connection::new(remote, true, certificate);
    Ok(Stream::new(Bytes::Tls(Box::new(stream)), connection, partings, place))
}

/// The certificate of a client whose chain is good already. A peer's must be of the host that it connects from.
async fn admitted(tls: &Tls, leaf: &CertificateDer<'_>, remote: Remote) -> io::Result<Arc<ClientCertificate>> {
    let subject = Subject::of(leaf).map_err(io::Error::other)?;
    if let Remote::Tcp(remote) = remote
        && tls.options().checks_origin
    {
        certificate_hosts::check(&subject, remote.ip()).await.map_err(io::Error::other)?;
    }
    Ok(Arc::new(ClientCertificate { common_name: subject.common_name }))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::config::url::Listen;

    #[tokio::test]
    async fn who_finds_no_place_waits_until_another_goes() {
        let listener = Listener::bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap()), false).unwrap();
        let address = listener.local_addr().unwrap().unwrap();
        let clients = OfClients { partings: Partings::default(), places: Arc::new(Semaphore::new(1)) };
        let mut incoming = incoming(listener, None, None, Some(clients));
        let _clients = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let first = incoming.next().await.unwrap().unwrap();
        assert!(timeout(Duration::from_millis(100), incoming.next()).await.is_err(), "there is one place");
        drop(first);
        timeout(Duration::from_secs(30), incoming.next()).await.expect("it is free").unwrap().unwrap();
    }
}
