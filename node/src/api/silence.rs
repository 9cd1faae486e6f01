//! A client that connects and does not say which HTTP it speaks. hyper waits for that without a bound, so that a connection cost
//! whoever opens it nothing, and us a place for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::ping_guard::PREFACE;

/// The wait for the bytes that tell the one from the other.
pub(super) struct Silence {
    /// So many bytes of HTTP/2's beginning have come, and nothing else.
    matched: usize,
    over: Pin<Box<Sleep>>,
}

impl Silence {
    /// From now on for so long.
    pub(super) fn new(bound: Duration) -> Self {
        Self { matched: 0, over: Box::pin(sleep(bound)) }
    }

    /// Whether it is known now which HTTP this is, or that it is none.
    pub(super) fn is_broken_by(&mut self, bytes: &[u8]) -> bool {
        let same = bytes.iter().zip(&PREFACE[self.matched..]).take_while(|(one, other)| one == other).count();
        self.matched += same;
        self.matched == PREFACE.len() || same < bytes.len()
    }

    /// Ready when it has lasted too long.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.over.as_mut().poll(context));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_with_the_byte_that_tells() {
        let after = |pieces: &[&[u8]]| {
            let mut silence = Silence::new(Duration::from_secs(60));
            pieces.iter().map(|piece| silence.is_broken_by(piece)).collect::<Vec<_>>()
        };
        assert_eq!(after(&[b"", b"P", b"RI * HTTP/2.0\r\n\r\nSM\r\n\r", b"\n"]), [false, false, false, true]);
        assert_eq!(after(&[b"P", b"U", b"T"]), [false, true, true]);
        assert_eq!(after(&[b"GET / HTTP/1.1\r\n"]), [true]);
        assert_eq!(after(&[&[&PREFACE[..], b"more"].concat()]), [true]);
    }
}
