//! The bytes of a connection as the server reads and writes them: plain or behind TLS, until somebody takes them over or ends
//! them. How far it has come decides what its client is told when the server lets go of it (`parting.rs`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::connection::Connection;
use super::parting::{self, Greeting, Linger, Partings};
use super::socket::Socket;

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

/// Where they come from.
pub(super) enum Bytes {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
    /// Gone to whoever took them over.
    Taken,
}

/// What reads and writes bytes.
trait Transport: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Transport for T {}

impl Bytes {
    /// To read and write them, unless they are gone.
    fn open(&mut self) -> io::Result<Pin<&mut dyn Transport>> {
        match self {
            Self::Plain(stream) => Ok(Pin::new(stream)),
            Self::Tls(stream) => Ok(Pin::new(stream)),
            Self::Taken => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Stream {
    pub(super) fn new(bytes: Bytes, connection: Connection, partings: Partings) -> Self {
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
        if let Some(asked) = self.connection.takeover.asked() {
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

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.connection.closer.check(context)?;
        let before = into.filled().len();
        let read = self.bytes.open()?.poll_read(context, into);
        if let Stage::Fresh(greeting) = &mut self.stage {
            greeting.note(&into.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.closer.check(context)?;
        let written = self.bytes.open()?.poll_write(context, bytes);
        self.sent(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.closer.check(context)?;
        let written = self.bytes.open()?.poll_write_vectored(context, parts);
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
        self.bytes.open()?.poll_flush(context)
    }

    /// Closes our direction and waits for the client's. With TLS the end is said there first.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let linger = match &mut this.stage {
            Stage::Closed(linger) => linger,
            Stage::Fresh(_) | Stage::Served => {
                ready!(this.bytes.open()?.poll_shutdown(context))?;
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
