//! The one way into the driver: bounded, drained as a whole, so that what arrives during an fsync becomes one batch.

use std::time::Instant;

use balsa_proto::log;
use balsa_proto::peer;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::Failure;
use super::changes::Terms;
use super::handle::Change;
use super::snapshot::Checkpoint;
use crate::metrics;
use crate::storage::SnapshotPoint;

/// Client inputs waiting for the driver. It drains all of them per batch, so a full inbox means seconds of backlog;
/// when full the request is refused with `TooManyRequests`.
const MAX_REQUESTS: usize = 16_384;
/// Bytes of frames waiting for the driver; when full, Raft frames are dropped (Raft repeats them) and forwarded
/// proposals stay with their origin, unknown until its time-out.
const MAX_FRAME_BYTES: usize = 128 << 20;

/// The answer channel of a call.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What the driver takes.
pub(crate) enum Input {
    /// A command of a client of this member, encoded as a one-element `log.Batch`, registered with the waiters.
    Propose { sequence: u64, data: Bytes },
    /// A linearizable read.
    Read(Reply<()>),
    /// From a peer.
    Frame(peer::Frame),
    /// A membership change.
    Change { change: Change, terms: Terms, reply: Reply<std::sync::Arc<log::Membership>> },
    /// A transfer of leadership.
    MoveLeader { target: u64, reply: Reply<()> },
    /// The transport lost a peer.
    Unreachable(u64),
    /// The applier is done up to here.
    Applied(super::applier::Report),
    /// The key space is durable up to this index.
    Flushed(u64),
    /// The answer to a wanted snapshot.
    SnapshotMade(Option<Checkpoint>),
    /// A transfer ended.
    SnapshotSent { to: u64, arrived: bool },
    /// A received snapshot, complete and verified on disk.
    Install { name: String, point: SnapshotPoint, from: u64, term: u64, reply: Reply<bool> },
    /// End the thread.
    Stop(oneshot::Sender<()>),
}

#[derive(Default)]
struct Queue {
    inputs: Vec<Input>,
    requests: usize,
    frame_bytes: usize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl Inbox {
    /// Queues a client's input, or refuses it.
    pub(crate) fn request(&self, input: Input) -> Result<(), Failure> {
        let mut queue = self.queue.lock();
        if queue.requests >= MAX_REQUESTS {
            metrics::QUEUE_FULL.with_label_values(&["requests"]).inc();
            return Err(Failure::TooManyRequests);
        }
        queue.requests += 1;
        queue.inputs.push(input);
        self.wake(queue.inputs.len());
        Ok(())
    }

    /// Queues a peer's frame of about `bytes`, or drops it; says which.
    pub(crate) fn frame(&self, frame: peer::Frame, bytes: usize) -> bool {
        let mut queue = self.queue.lock();
        if queue.frame_bytes + bytes > MAX_FRAME_BYTES {
            metrics::QUEUE_FULL.with_label_values(&["frames"]).inc();
            return false;
        }
        queue.frame_bytes += bytes;
        queue.inputs.push(Input::Frame(frame));
        self.wake(queue.inputs.len());
        true
    }

    /// Queues what the engine's own threads report: as many as there is work under way, so no bound of its own.
    pub(crate) fn report(&self, input: Input) {
        let mut queue = self.queue.lock();
        queue.inputs.push(input);
        self.wake(queue.inputs.len());
    }

    /// Takes all there is, waiting for something until `deadline`.
    pub(crate) fn drain(&self, deadline: Instant, into: &mut Vec<Input>) {
        let mut queue = self.queue.lock();
        if queue.inputs.is_empty() {
            self.filled.wait_until(&mut queue, deadline);
        }
        queue.requests = 0;
        queue.frame_bytes = 0;
        std::mem::swap(&mut queue.inputs, into);
    }

    /// How many inputs wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.lock().inputs.len()
    }

    fn wake(&self, len: usize) {
        if len == 1 {
            self.filled.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(queue: &str) -> u64 {
        metrics::QUEUE_FULL.with_label_values(&[queue]).get()
    }

    /// A log that is slow must make clients wait and peers repeat, and not fill the memory.
    #[test]
    fn a_full_inbox_refuses_requests_drops_frames_and_takes_reports() {
        let inbox = Inbox::default();
        let ask = || inbox.request(Input::Propose { sequence: 1, data: Bytes::new() });
        let hear = |bytes| inbox.frame(peer::Frame::default(), bytes);
        let before = [refused("requests"), refused("frames")];
        for _ in 0..16_384 {
            ask().expect("there is room");
        }
        assert!(matches!(ask(), Err(Failure::TooManyRequests)));
        assert!(hear(128 << 20), "frames have room of their own");
        assert!(!hear(1));
        assert_eq!([refused("requests") - before[0], refused("frames") - before[1]], [1, 1]);
        inbox.report(Input::Flushed(7));

        let mut taken = Vec::new();
        inbox.drain(Instant::now(), &mut taken);
        assert_eq!((taken.len(), inbox.len()), (16_384 + 1 + 1, 0));
        assert!(matches!(taken.last(), Some(Input::Flushed(7))), "what the engine reports is never refused");
        assert!(ask().is_ok() && hear(128 << 20), "what was drained has left room");
    }
}
