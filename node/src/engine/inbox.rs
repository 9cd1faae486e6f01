//! The one way into the driver: bounded, drained as a whole, so that what arrives during an fsync becomes one batch.

use std::time::Instant;

use balsa_proto::log;
use balsa_proto::peer;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::Failure;
use super::calm::Calm;
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
    /// The same for the member itself, which can wait.
    BackgroundRead(Reply<()>),
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
    /// Something is among them that the driver is woken for.
    urgent: bool,
    /// What it is not woken for.
    calm: Option<Calm>,
    /// A heartbeat waits.
    heard_leader: bool,
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
        let can_wait = matches!(input, Input::BackgroundRead(_)) && queue.calm.is_some_and(|calm| calm.reads_wait);
        queue.inputs.push(input);
        if !can_wait {
            self.wake(&mut queue);
        }
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
        let can_wait = queue.calm.is_some_and(|calm| calm.can_wait(&frame, &mut queue.heard_leader));
        queue.inputs.push(Input::Frame(frame));
        if !can_wait {
            self.wake(&mut queue);
        }
        true
    }

    /// Queues what the engine's own threads report: as many as there is work under way, so no bound of its own.
    pub(crate) fn report(&self, input: Input) {
        let mut queue = self.queue.lock();
        queue.inputs.push(input);
        self.wake(&mut queue);
    }

    /// Takes all there is, waiting until `deadline` for something that cannot wait till then; `calm` says what can.
    pub(crate) fn drain(&self, deadline: Instant, calm: Option<Calm>, into: &mut Vec<Input>) {
        let mut queue = self.queue.lock();
        // What came meanwhile was judged by what was so before.
        queue.urgent |= queue.calm != calm && !queue.inputs.is_empty();
        queue.calm = calm;
        if !queue.urgent {
            self.filled.wait_until(&mut queue, deadline);
        }
        (queue.urgent, queue.heard_leader) = (false, false);
        queue.requests = 0;
        queue.frame_bytes = 0;
        std::mem::swap(&mut queue.inputs, into);
    }

    /// How many inputs wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.lock().inputs.len()
    }

    fn wake(&self, queue: &mut Queue) {
        if !std::mem::replace(&mut queue.urgent, true) {
            self.filled.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use balsa_proto::peer::RaftMessage;
    use balsa_proto::peer::frame::Body;
    use raft::eraftpb::MessageType;

    use super::*;
    use crate::domain::raft::Role;
    use crate::engine::calm::Quiet;

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
        inbox.drain(Instant::now(), None, &mut taken);
        assert_eq!((taken.len(), inbox.len()), (16_384 + 1 + 1, 0));
        assert!(matches!(taken.last(), Some(Input::Flushed(7))), "what the engine reports is never refused");
        assert!(ask().is_ok() && hear(128 << 20), "what was drained has left room");
    }

    #[test]
    fn what_can_wait_wakes_nobody_and_comes_with_what_cannot() {
        let inbox = Arc::new(Inbox::default());
        let role = Role { leader: 2, term: 1, leads: true };
        let mut quiet = Quiet::default();
        let mut calm = || quiet.calm(role, 1, 1, Duration::ZERO, Instant::now());
        let calm = calm().or_else(calm).map(|calm| calm.with_reads(true));
        let answer = || {
            let message =
                RaftMessage { msg_type: MessageType::MsgHeartbeatResponse as u32, term: 1, ..RaftMessage::default() };
            let body = Some(Body::Raft(peer::RaftMessages { messages: vec![message] }));
            inbox.frame(peer::Frame { from: 1, body, ..peer::Frame::default() }, 1)
        };

        // Before the driver said that it is calm, and once it waits.
        assert!(answer());
        let (late, mut taken) = (Instant::now() + Duration::from_secs(60), Vec::new());
        inbox.drain(late, calm, &mut taken);
        assert_eq!((taken.len(), Instant::now() < late), (1, true));
        taken.clear();
        let other = inbox.clone();
        let waits = std::thread::spawn(move || {
            let mut taken = Vec::new();
            other.drain(late, calm, &mut taken);
            taken.len()
        });
        let (reply, _waits) = oneshot::channel();
        assert!(answer() && answer() && inbox.request(Input::BackgroundRead(reply)).is_ok());
        inbox.report(Input::Flushed(7));
        assert_eq!(waits.join().expect("a driver that was woken"), 4);

        assert!(answer());
        inbox.drain(Instant::now() + Duration::from_millis(50), calm, &mut taken);
        assert_eq!(taken.len(), 1, "at its deadline");
        taken.clear();
        assert!(answer());
        inbox.drain(late, None, &mut taken);
        assert_eq!((taken.len(), Instant::now() < late), (1, true), "it is not calm any more");
    }
}
