//! Who is at the other end of a connection, and what may be asked of it from the side: its end, and its bytes.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::socket::Remote;
use super::stream::Stream;

/// Who is at the other end of a connection; every request on it carries this in its extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Where it comes from.
    pub remote: Remote,
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
    pub(super) fn new(remote: Remote, secure: bool, certificate: Option<Arc<ClientCertificate>>) -> Self {
        Self { remote, secure, certificate, closer: Closer::default(), takeover: Takeover::default() }
    }

    /// What a call knows of it that is made for its client.
    pub(super) fn behind(&self) -> Behind {
        Behind { remote: self.remote, closer: self.closer.clone() }
    }
}

/// The connection of the client that the gateway makes a call for, in the extensions of that call. It has no certificate: over
/// the gateway that stands for no user.
#[derive(Debug, Clone)]
pub struct Behind {
    /// Where it comes from.
    pub remote: Remote,
    /// Ends it.
    pub closer: Closer,
}

/// Hands the bytes of a connection to whoever will go on with them in another protocol, once the server lets go of them:
/// after an answer with status 101 it does.
#[derive(Clone, Default)]
pub struct Takeover(Arc<Mutex<Option<oneshot::Sender<Stream>>>>);

impl Takeover {
    /// Asks for them. What the client sends before it has the answer is lost.
    pub fn ask(&self) -> oneshot::Receiver<Stream> {
        let (asked, stream) = oneshot::channel();
        *self.0.lock() = Some(asked);
        stream
    }

    /// Who has asked, once.
    pub(super) fn asked(&self) -> Option<oneshot::Sender<Stream>> {
        self.0.lock().take()
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
    pub(super) fn check(&self, context: &Context<'_>) -> io::Result<()> {
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
