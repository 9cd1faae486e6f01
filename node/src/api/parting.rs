//! How a connection ends so that its client knows which of its calls were begun.
//!
//! The system answers bytes that nobody will read with a reset, and a reset takes with it what the client has not read yet,
//! our GOAWAY among it. So a connection that is closed is closed in one direction first; what the client still sends is read
//! and thrown away until it has closed too. gRPC-Go's server waits for its clients in the same way, and as long.
//!
//! A connection that the server was not given any more, or had not begun to serve, has no GOAWAY of the server's: it gets one
//! here, which says that no call was begun.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a client is waited for; gRPC-Go's number.
const BOUND: Duration = Duration::from_secs(1);
/// How much is thrown away: more than a client can have sent without hearing of us. The window of a connection is 16 MiB.
const MOST_BYTES: usize = 32 << 20;
/// Read at once.
const SCRATCH: usize = 16 << 10;
/// What HTTP/2's preface begins with, and no request of HTTP/1.
const HTTP_2: [u8; 3] = *b"PRI";
/// SETTINGS without any, and GOAWAY with NO_ERROR: calls after the one with number 0, which are all, were not begun.
const NOTHING_BEGUN: [u8; 9 + 9 + 8] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The wait for a client of whose connection our direction is closed.
pub(super) struct Linger {
    until: Pin<Box<Sleep>>,
    left: usize,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self { until: Box::pin(sleep(BOUND)), left: MOST_BYTES }
    }

    /// Ready when the client has closed too, or was waited for long enough.
    pub(super) fn poll(&mut self, stream: &mut (impl AsyncRead + Unpin), context: &mut Context<'_>) -> Poll<()> {
        if self.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; SCRATCH];
        while self.left > 0 {
            let mut into = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut into)) {
                Ok(()) if !into.filled().is_empty() => self.left = self.left.saturating_sub(into.filled().len()),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }
}

/// The first bytes of a client, as far as they tell its protocol.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Greeting {
    bytes: [u8; HTTP_2.len()],
    read: usize,
}

impl Greeting {
    /// Notes what was read.
    pub(super) fn note(&mut self, bytes: &[u8]) {
        let new = bytes.len().min(self.bytes.len() - self.read);
        self.bytes[self.read..self.read + new].copy_from_slice(&bytes[..new]);
        self.read += new;
    }

    fn is_http_2(self) -> bool {
        self.read == self.bytes.len() && self.bytes == HTTP_2
    }
}

/// The connections of a port that are told to go away when the process stops, and that nobody serves.
#[derive(Clone, Default)]
pub struct Partings {
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Partings {
    /// Of a port that closes once `closing` says so.
    pub fn new(closing: CancellationToken) -> Self {
        Self { closing, tasks: TaskTracker::new() }
    }

    /// Whether the port is closing.
    pub(super) fn are_due(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Runs `task`, for which [`Self::all`] waits.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Connections are dropped with the runtime too.
        if let Ok(runtime) = Handle::try_current() {
            self.tasks.spawn_on(task, &runtime);
        }
    }

    /// Returns when none is under way, after the port was closed.
    pub async fn all(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Says farewell on a connection of which no call was begun; `greeting` is what was read of it.
pub(super) async fn without_a_call(mut stream: impl AsyncRead + AsyncWrite + Unpin, mut greeting: Greeting) {
    let farewell = async {
        while greeting.read < HTTP_2.len() {
            let mut first = [0; HTTP_2.len()];
            match stream.read(&mut first[greeting.read..]).await? {
                0 => break,
                read => greeting.note(&first[greeting.read..][..read]),
            }
        }
        if greeting.is_http_2() {
            stream.write_all(&NOTHING_BEGUN).await?;
        }
        stream.shutdown().await
    };
    // A client that says nothing has begun nothing either.
    let _: Result<io::Result<()>, _> = timeout(BOUND, farewell).await;
}

#[cfg(test)]
#[path = "parting_tests.rs"]
mod tests;
