//! Gathers what the tasks of one connection have to send into few writes.
//!
//! Each answer and each watched event wakes its connection at once, which would hand every one of them to the kernel by
//! itself. So the first write of a turn waits until this thread has nothing else to do, a few microseconds at most: what
//! becomes ready meanwhile on the same connection goes out with it. Nothing is kept here, so nothing can be lost.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// How far a turn is. HTTP/2 looks for bytes to read at the beginning of each turn, before it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The next write waits.
    Gathering,
    /// A write waits.
    Waiting,
    /// Writes pass until the next turn.
    Writing,
}

/// A connection whose writes are gathered.
pub struct Gathered<S> {
    stream: S,
    turn: Turn,
}

impl<S> Gathered<S> {
    /// Over `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, turn: Turn::Gathering }
    }

    /// Whether a write may pass. If not, the task is woken for the next try. The second try passes even if nothing was
    /// read in between.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.turn == Turn::Gathering {
            self.turn = Turn::Waiting;
            // Wakes the task once this thread has nothing else to do.
            if pin!(tokio::task::yield_now()).poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        self.turn = Turn::Writing;
        Poll::Ready(())
    }
}

impl<S: Connected> Connected for Gathered<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turn == Turn::Writing {
            self.turn = Turn::Gathering;
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(context));
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(context));
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use futures::task::AtomicWaker;
    use parking_lot::Mutex;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A connection on which nothing arrives and which remembers each write.
    #[derive(Clone, Default)]
    struct Line(Arc<Mutex<Vec<Vec<u8>>>>);

    impl AsyncRead for Line {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Line {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Sends what is in `unsent` as soon as it is woken, in turns like those of HTTP/2, until `total` bytes are gone.
    async fn connection(mut stream: Gathered<Line>, unsent: Arc<Mutex<Vec<u8>>>, wake: Arc<AtomicWaker>, total: usize) {
        let mut sent = 0;
        poll_fn(|context| {
            wake.register(context.waker());
            let mut byte = [0];
            assert!(Pin::new(&mut stream).poll_read(context, &mut ReadBuf::new(&mut byte)).is_pending());
            let mut unsent = unsent.lock();
            if !unsent.is_empty() {
                sent += ready!(Pin::new(&mut stream).poll_write(context, &unsent)).unwrap();
                unsent.clear();
            }
            if sent == total { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[tokio::test]
    async fn what_tasks_send_one_after_the_other_is_one_write_each_time() {
        let (line, unsent, wake) = (Line::default(), Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicWaker::new()));
        let sending = tokio::spawn(connection(Gathered::new(line.clone()), unsent.clone(), wake.clone(), 6));
        for round in [b"abc", b"def"] {
            for byte in round {
                let (unsent, wake) = (unsent.clone(), wake.clone());
                tokio::spawn(async move {
                    unsent.lock().push(*byte);
                    wake.wake();
                });
            }
            while !line.0.lock().concat().ends_with(round) {
                tokio::task::yield_now().await;
            }
        }
        sending.await.unwrap();
        assert_eq!(*line.0.lock(), [b"abc", b"def"]);
    }

    #[tokio::test]
    async fn who_never_reads_is_held_up_once_and_not_for_ever() {
        let line = Line::default();
        let mut stream = Gathered::new(line.clone());
        stream.write_all(b"one").await.unwrap();
        stream.write_all(b"two").await.unwrap();
        assert_eq!(*line.0.lock(), [b"one", b"two"]);
    }
}
