//! etcd's policy on pings: a client that pings too often, or without a call open, hears GOAWAY `too_many_pings` and loses
//! its connection. Clients of gRPC double their interval on it.
//!
//! hyper answers pings and does not count them, so this looks at the headers of the frames that pass, and at nothing else
//! of them. A connection that does not begin with HTTP/2's preface is not looked at any further.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What every HTTP/2 connection begins with.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header.
const HEADER: usize = 9;
/// Pings too many that are forgiven; gRPC's number.
const FORGIVEN: u32 = 2;
/// How far apart pings must be while no call is open; gRPC's number.
const IDLE: Duration = Duration::from_secs(2 * 3600);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the frames in the bytes of one direction.
#[derive(Default)]
struct Frames {
    header: [u8; HEADER],
    filled: usize,
    body_left: usize,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Head)) {
        while !bytes.is_empty() {
            let skipped = self.body_left.min(bytes.len());
            self.body_left -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEADER {
                let [a, b, c, kind, flags, stream @ ..] = self.header;
                self.filled = 0;
                self.body_left = u32::from_be_bytes([0, a, b, c]) as usize;
                seen(Head { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) });
            }
        }
    }

    fn is_between(&self) -> bool {
        self.filled == 0 && self.body_left == 0
    }
}

/// The pings of one connection against the policy. Pure: time is passed in.
#[derive(Default)]
struct Policy {
    min_time: Duration,
    open: HashSet<u32>,
    highest: u32,
    last_ping: Option<Instant>,
    strikes: u32,
    /// Something was sent since the last ping, which makes up for it.
    sent: bool,
}

impl Policy {
    /// A frame of the client. False when the connection has to end.
    fn received(&mut self, head: Head, now: Instant) -> bool {
        match head.kind {
            HEADERS if head.stream > self.highest => {
                self.highest = head.stream;
                self.open.insert(head.stream);
            }
            RST_STREAM => drop(self.open.remove(&head.stream)),
            PING if head.flags & ACK == 0 => return self.pinged(now),
            _ => {}
        }
        true
    }

    fn pinged(&mut self, now: Instant) -> bool {
        let last = self.last_ping.replace(now);
        if std::mem::take(&mut self.sent) {
            self.strikes = 0;
            return true;
        }
        let apart = if self.open.is_empty() { IDLE } else { self.min_time };
        if last.is_some_and(|last| now.duration_since(last) < apart) {
            self.strikes += 1;
        }
        self.strikes <= FORGIVEN
    }

    /// A frame to the client.
    fn sent(&mut self, head: Head) {
        match head.kind {
            DATA | HEADERS => {
                self.sent = true;
                if head.flags & END_STREAM != 0 {
                    self.open.remove(&head.stream);
                }
            }
            RST_STREAM => drop(self.open.remove(&head.stream)),
            _ => {}
        }
    }

    /// GOAWAY with the last stream that was seen, ENHANCE_YOUR_CALM and the words that gRPC clients look for.
    fn farewell(&self) -> Vec<u8> {
        let words = b"too_many_pings";
        let mut frame = vec![0, 0, 8 + words.len() as u8, 7, 0, 0, 0, 0, 0];
        frame.extend(self.highest.to_be_bytes());
        frame.extend(11_u32.to_be_bytes());
        frame.extend(words);
        frame
    }
}

/// What is known of a connection so far.
enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// HTTP/2.
    Frames(Box<Watched>),
    /// The farewell, of which so many bytes are sent.
    Farewell(Vec<u8>, usize),
    /// Not HTTP/2, or nothing to enforce.
    Free,
}

#[derive(Default)]
struct Watched {
    policy: Policy,
    incoming: Frames,
    outgoing: Frames,
    /// Too many pings: the farewell follows the frame that is being sent.
    over: bool,
    reader: Option<Waker>,
}

/// A connection under the policy.
pub struct Guarded<S> {
    stream: S,
    min_time: Duration,
    state: State,
}

impl<S> Guarded<S> {
    /// Pings of calls must be `min_time` apart; with zero nothing is enforced.
    pub fn new(stream: S, min_time: Duration) -> Self {
        let state = if min_time.is_zero() { State::Free } else { State::Preface(0) };
        Self { stream, min_time, state }
    }

    fn received(&mut self, mut bytes: &[u8]) {
        if let State::Preface(matched) = &mut self.state {
            let taken = (PREFACE.len() - *matched).min(bytes.len());
            if bytes[..taken] != PREFACE[*matched..*matched + taken] {
                self.state = State::Free;
                return;
            }
            *matched += taken;
            bytes = &bytes[taken..];
            if *matched == PREFACE.len() {
                let policy = Policy { min_time: self.min_time, ..Policy::default() };
                self.state = State::Frames(Box::new(Watched { policy, ..Watched::default() }));
            }
        }
        if let State::Frames(watched) = &mut self.state {
            let Watched { policy, incoming, over, .. } = &mut **watched;
            let now = Instant::now();
            incoming.pass(bytes, |head| *over |= !policy.received(head, now));
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        if let State::Frames(watched) = &mut self.state {
            let Watched { policy, outgoing, reader, .. } = &mut **watched;
            outgoing.pass(bytes, |head| policy.sent(head));
            if outgoing.is_between()
                && let Some(reader) = reader.take()
            {
                reader.wake();
            }
        }
    }

    /// Whether the farewell is due, now that no frame is half sent.
    fn turn_to_farewell(&mut self) {
        if let State::Frames(watched) = &self.state
            && watched.over
            && watched.outgoing.is_between()
        {
            self.state = State::Farewell(watched.policy.farewell(), 0);
        }
    }
}

impl<S: Connected> Connected for Guarded<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.turn_to_farewell();
        match &mut this.state {
            State::Farewell(frame, sent) => {
                while *sent < frame.len() {
                    match ready!(Pin::new(&mut this.stream).poll_write(context, &frame[*sent..]))? {
                        0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        written => *sent += written,
                    }
                }
                // What the client still sends must not take the farewell away.
                ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                return Poll::Ready(Err(io::Error::other("got too many pings from the client")));
            }
            State::Frames(watched) if watched.over => {
                watched.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            _ => {}
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
        this.received(&into.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Nothing follows the farewell. An error here would end the connection before the client has read it.
        if matches!(self.state, State::Farewell(..)) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if matches!(self.state, State::Farewell(..)) {
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
        let mut left = written;
        for part in parts {
            let passed = left.min(part.len());
            self.sent(&part[..passed]);
            left -= passed;
        }
        Poll::Ready(Ok(written))
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const fn head(kind: u8, flags: u8, stream: u32) -> Head {
        Head { kind, flags, stream }
    }

    fn frame(kind: u8, flags: u8, stream: u8, body: &[u8]) -> Vec<u8> {
        [&[0, 0, body.len() as u8, kind, flags, 0, 0, 0, stream][..], body].concat()
    }

    /// Whether the last of the pings, so many seconds apart, is forgiven.
    fn pings(policy: &mut Policy, apart: u64, count: u32) -> bool {
        let start = policy.last_ping.unwrap_or_else(Instant::now);
        (1..=count).all(|number| policy.received(head(PING, 0, 0), start + Duration::from_secs(apart) * number))
    }

    #[test]
    fn pings_of_a_call_must_be_apart() {
        let policy = || {
            let mut policy = Policy { min_time: Duration::from_secs(5), ..Policy::default() };
            policy.received(head(HEADERS, 0, 1), Instant::now());
            policy
        };
        assert!(pings(&mut policy(), 5, 100));
        assert!(pings(&mut policy(), 4, 3), "the first counts from nothing, two more are forgiven");
        assert!(!pings(&mut policy(), 4, 4));
        let mut busy = policy();
        for _ in 0..10 {
            assert!(pings(&mut busy, 1, 2));
            busy.sent(head(DATA, 0, 1));
        }
        let mut ended = policy();
        ended.sent(head(HEADERS, END_STREAM, 1));
        assert!(pings(&mut ended, 60, 1), "what was sent makes up for one");
        assert!(!pings(&mut ended, 60, 4), "no call is open");
        assert!(pings(&mut Policy::default(), 7200, 10));
    }

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let bytes = [frame(DATA, 1, 3, b"body"), frame(PING, 0, 0, &[9; 8]), frame(DATA, 0, 5, b"")].concat();
        let expected = [head(DATA, 1, 3), head(PING, 0, 0), head(DATA, 0, 5)];
        for size in 1..bytes.len() {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            bytes.chunks(size).for_each(|chunk| frames.pass(chunk, |head| seen.push(head)));
            assert_eq!(seen, expected);
            assert!(frames.is_between());
        }
    }

    #[tokio::test]
    async fn the_farewell_never_cuts_a_frame_in_two() {
        let (mut client, server) = duplex(4096);
        let mut server = Guarded::new(server, Duration::from_secs(5));
        let ping = frame(PING, 0, 0, &[0; 8]);
        client.write_all(&[PREFACE.to_vec(), ping.repeat(4)].concat()).await.unwrap();
        let mut read = vec![0; PREFACE.len() + 4 * ping.len()];
        server.read_exact(&mut read).await.unwrap();
        let sent = frame(DATA, 0, 1, b"whole");
        server.write_all(&sent[..7]).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(server);
        let mut more = [0; 9];
        let (ended, ()) = tokio::join!(reader.read(&mut more), async {
            tokio::task::yield_now().await;
            writer.write_all(&sent[7..]).await.unwrap();
            tokio::task::yield_now().await;
            // h2 has the answers to the pings still to write.
            writer.write_all(&ping).await.expect("it goes nowhere, and ends nothing");
        });
        assert!(ended.is_err());
        drop((reader, writer));
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received[..sent.len()], sent);
        let farewell = &received[sent.len()..];
        assert_eq!((farewell[3], &farewell[13..17], &farewell[17..]), (7, &[0, 0, 0, 11][..], &b"too_many_pings"[..]));
    }

    #[tokio::test]
    async fn another_protocol_passes_untouched() {
        let (mut client, server) = duplex(4096);
        let mut server = Guarded::new(server, Duration::from_secs(5));
        client.write_all(b"PRI is not HTTP/2").await.unwrap();
        server.read_exact(&mut [0; 17]).await.unwrap();
        assert!(matches!(server.state, State::Free));
    }
}
