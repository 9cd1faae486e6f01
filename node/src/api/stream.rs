//! The bytes of a connection as the server reads and writes them: plain or behind TLS, until somebody takes them over or ends
//! them. How far it has come decides what its client is told when the server lets go of it (`parting.rs`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::connection::Connection;
use super::listener::Place;
use super::parting::{self, Greeting, Linger, Partings};
use super::serve::HEAD_BOUND;
use super::silence::Silence;
use super::socket::Socket;

/// The bytes of a connection.
pub struct Stream {
    bytes: Bytes,
    connection: Connection,
    stage: Stage,
    /// Until it is known which HTTP the client speaks.
    silence: Option<Silence>,
    partings: Partings,
    /// Free when the connection is gone.
    place: Option<Place>,
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
    pub(super) fn new(bytes: Bytes, connection: Connection, partings: Partings, place: Option<Place>) -> Self {
        let silence = Some(Silence::new(HEAD_BOUND));
        Self { bytes, connection, stage: Stage::Fresh(Greeting::default()), silence, partings, place }
    }

    /// The same connection in other hands.
    fn take(&mut self) -> Self {
        let bytes = std::mem::replace(&mut self.bytes, Bytes::Taken);
        let stage = std::mem::replace(&mut self.stage, Stage::Served);
        let (connection, partings) = (self.connection.clone(), self.partings.clone());
        Self { bytes, connection, stage, silence: None, partings, place: self.place.take() }
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
        let new = &into.filled()[before..];
        if let Stage::Fresh(greeting) = &mut self.stage {
            greeting.note(new);
        }
        if self.silence.as_mut().is_some_and(|silence| silence.is_broken_by(new)) {
            self.silence = None;
        }
        match &mut self.silence {
            Some(silence) if read.is_pending() => silence.poll(context).map(Err),
            _ => read,
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::api::socket::Listener;
    use crate::config::url::Listen;

    #[tokio::test]
    async fn who_never_says_what_he_speaks_is_let_go() {
        let listener = Listener::bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap()), false).unwrap();
        let address = listener.local_addr().unwrap().unwrap();
        for (said, known) in [(&b""[..], false), (b"PRI * HTTP/2", false), (b"GET", true)] {
            let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
            let (socket, remote) = listener.accept().await.unwrap();
            let connection = Connection::new(remote, false, None);
            let mut stream = Stream::new(Bytes::Plain(socket), connection, Partings::default(), None);
            stream.silence = Some(Silence::new(Duration::from_millis(300)));
            client.write_all(said).await.unwrap();
            let all = async {
                let mut read = [0; 64];
                loop {
                    let _read = stream.read(&mut read).await?;
                }
            };
            let ended: Result<io::Result<()>, _> = tokio::time::timeout(Duration::from_secs(2), all).await;
            let error = ended.ok().map(|ended| ended.unwrap_err().kind());
            assert_eq!(error, (!known).then_some(io::ErrorKind::TimedOut), "{said:?}");
        }
    }
}
