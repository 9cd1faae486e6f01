//! What waits for one peer's stream.

use std::collections::VecDeque;
use std::time::Instant;

use balsa_proto::peer::Frame;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::Notify;

use crate::metrics;

/// Bytes that wait for one peer. Raft has up to 256 MiB on its way to a peer that lags; what does not fit is refused, and
/// Raft sends it again from where the peer is.
pub(super) const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Frames that wait for one peer; when full they are refused. Heartbeats alone fill it in minutes.
pub(super) const MAX_QUEUED_FRAMES: usize = 4_096;

/// Frames in order, with their encoded lengths.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    /// None when the last attempt to connect failed, and none has succeeded since.
    up: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<(Frame, usize)>,
    bytes: usize,
    closed: bool,
}

impl Default for Queue {
    fn default() -> Self {
        // Taken for a way until the first attempt says otherwise.
        Self { waiting: Mutex::default(), arrived: Notify::new(), up: Mutex::new(Some(Instant::now())) }
    }
}

impl Queue {
    /// Adds a frame; false when that would exceed a bound. A queue that is empty takes any frame.
    pub(super) fn push(&self, frame: Frame) -> bool {
        let size = frame.encoded_len();
        let mut waiting = self.waiting.lock();
        let fits = waiting.frames.len() < MAX_QUEUED_FRAMES && waiting.bytes + size <= MAX_QUEUED_BYTES;
        if waiting.closed || !(fits || waiting.frames.is_empty()) {
            metrics::QUEUE_FULL.with_label_values(&["peer_frames"]).inc();
            return false;
        }
        waiting.bytes += size;
        waiting.frames.push_back((frame, size));
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    /// The next frame and its length; none once the queue is closed and empty. One caller at a time.
    pub(super) async fn pop(&self) -> Option<(Frame, usize)> {
        loop {
            {
                let mut waiting = self.waiting.lock();
                if let Some((frame, size)) = waiting.frames.pop_front() {
                    waiting.bytes -= size;
                    return Some((frame, size));
                }
                if waiting.closed {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }

    /// Drops what waits and says how many frames that were.
    pub(super) fn clear(&self) -> usize {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.frames).len()
    }

    /// Takes no more; what waits may still be sent.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.waiting.lock().closed
    }

    pub(super) fn up_since(&self) -> Option<Instant> {
        *self.up.lock()
    }

    pub(super) fn set_up(&self, up: bool) {
        *self.up.lock() = up.then(Instant::now);
    }
}
