//! Streams whose pieces are read from the disk.
//!
//! A client may leave a stream unread for minutes, and the threads that may block are few: all reads, and much else,
//! share them. So a thread reads one piece, and none of them waits for a client.

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;

use super::failure::Error;

/// Sends what `pieces` yields, up to and including the first error. At most `ahead` pieces are read before the client takes
/// them; the next is read when there is room for it.
pub(super) fn stream<I, T>(pieces: I, ahead: usize) -> ReceiverStream<Result<T, Error>>
where
    I: Iterator<Item = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = mpsc::channel(ahead);
    tokio::spawn(send_all(pieces, sender));
    ReceiverStream::new(receiver)
}

async fn send_all<I, T>(mut pieces: I, sender: mpsc::Sender<Result<T, Error>>)
where
    I: Iterator<Item = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    // Without room for ever the client is gone, and nobody is left to be told.
    while let Ok(room) = sender.reserve().await {
        let read = move || {
            let piece = pieces.next();
            (piece, pieces)
        };
        let (piece, rest) = match spawn_blocking(read).await {
            Ok(read) => read,
            Err(error) => return room.send(Err(Error::Internal(error.to_string()))),
        };
        pieces = rest;
        let Some(piece) = piece else { break };
        let last = piece.is_err();
        room.send(piece);
        if last {
            break;
        }
    }
    // What it reads from may have to be closed and removed.
    spawn_blocking(move || drop(pieces));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::StreamExt;
    use tokio::time::timeout;

    use super::*;

    /// Counts what was read, and those that are there to read.
    fn counted() -> (Arc<AtomicUsize>, impl Iterator<Item = Result<usize, Error>> + Send + 'static) {
        let read = Arc::new(AtomicUsize::new(0));
        let counter = read.clone();
        (read, std::iter::from_fn(move || Some(Ok(counter.fetch_add(1, Ordering::SeqCst)))))
    }

    #[tokio::test]
    async fn an_error_comes_last() {
        let pieces = vec![Ok(1), Ok(2), Err(Error::Internal("x".to_owned())), Ok(3)];
        let sent: Vec<_> = stream(pieces.into_iter(), 1).map(Result::ok).collect().await;
        assert_eq!(sent, [Some(1), Some(2), None]);
    }

    #[test]
    fn streams_that_nobody_reads_keep_no_thread() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).max_blocking_threads(1).enable_time().build().unwrap();
        runtime.block_on(async {
            let unread: Vec<_> = (0..3).map(|_| counted()).map(|(read, pieces)| (read, stream(pieces, 2))).collect();
            let all_wait = async {
                for (read, _) in &unread {
                    while read.load(Ordering::SeqCst) < 2 {
                        tokio::task::yield_now().await;
                    }
                }
                spawn_blocking(|| "answered").await.unwrap()
            };
            assert_eq!(timeout(Duration::from_secs(20), all_wait).await.expect("in time"), "answered");
            assert!(unread.iter().all(|(read, _)| read.load(Ordering::SeqCst) == 2), "no more than was allowed");
        });
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_reading() {
        let (read, pieces) = counted();
        let mut stream = stream(pieces, 1);
        assert_eq!(stream.next().await.and_then(Result::ok), Some(0));
        drop(stream);
        // The counter's other half goes with the pieces.
        while Arc::strong_count(&read) > 1 {
            tokio::task::yield_now().await;
        }
        assert!(read.load(Ordering::SeqCst) <= 3);
    }
}
