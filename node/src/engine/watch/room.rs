//! The memory that the clients of all streams may keep busy, and what goes on when it is.
//!
//! Owns three rules. All that waits for clients or is on its way to one is charged to one budget, once for all streams that
//! share it. When the budget is used up, each stream still gets on by small pieces, one at a time, so that those who read
//! are not stopped by those who do not. A revision that is too large for a piece has to be whole in memory, because a
//! response must not cut it: one stream at a time has the turn for that, beside the budget. What is still there when the
//! turn is over is charged like all else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Failure, WatchOptions};
use crate::domain::mvcc::watch::{MAX_REVISIONS_PER_RESPONSE, event_bytes};
use crate::domain::mvcc::{Most, RevisionEvents};

/// A response is not filled beyond this many bytes with further revisions, so that one client's arrears do not take
/// memory twice.
const RESPONSE_BYTES: usize = 1 << 20;

/// When the budget is used up, pieces are smaller by this factor.
const SHORTAGE: usize = 64;

/// A turn is shorter the more streams wait for theirs, by this factor at most.
const HASTE: usize = 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    options: WatchOptions,
    bytes: AtomicUsize,
    events: AtomicUsize,
    large: Arc<Semaphore>,
    /// Streams that wait for that turn.
    in_line: AtomicUsize,
}

impl Room {
    pub(super) fn new(options: WatchOptions) -> Arc<Self> {
        let large = Arc::new(Semaphore::new(1));
        let [bytes, events, in_line] = [const { AtomicUsize::new(0) }; 3];
        Arc::new(Self { options, bytes, events, large, in_line })
    }

    pub(super) fn options(&self) -> &WatchOptions {
        &self.options
    }

    /// Bytes that are charged at present.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Events that wait, each once for every watcher.
    pub(super) fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    pub(super) fn add_events(&self, events: usize) {
        self.events.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn remove_events(&self, events: usize) {
        self.events.fetch_sub(events, Ordering::Relaxed);
    }

    /// Whether the budget has a whole piece left.
    pub(super) fn has_piece(&self) -> bool {
        self.bytes().saturating_add(self.options.piece_bytes) <= self.options.total_bytes
    }

    /// Whether the budget is exceeded.
    pub(super) fn is_short(&self) -> bool {
        self.bytes() > self.options.total_bytes
    }

    /// Charges what is in memory already, unless it is beside the budget.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize, turn: Option<Arc<LargeTurn>>) -> Held {
        match &turn {
            Some(turn) => turn.add(bytes),
            None => _ = self.bytes.fetch_add(bytes, Ordering::Relaxed),
        }
        Held { room: self.clone(), bytes, turn }
    }

    /// What a read of missed events may bring now, and the charge for it meanwhile.
    pub(super) fn reserve_piece(self: &Arc<Self>) -> (Most, Option<Held>) {
        let WatchOptions { piece_bytes, revision_bytes, total_bytes, .. } = self.options;
        let more = |bytes: usize| bytes.checked_add(piece_bytes).filter(|bytes| *bytes <= total_bytes);
        let charged = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        let held = charged.then(|| Held { room: self.clone(), bytes: piece_bytes, turn: None });
        let share = if charged { 1 } else { SHORTAGE };
        let revisions = MAX_REVISIONS_PER_RESPONSE;
        (Most { revisions, bytes: piece_bytes / share, revision_bytes: revision_bytes / share }, held)
    }

    /// Bytes from which a response takes no further revision.
    pub(super) fn response_bytes(&self) -> usize {
        if self.is_short() { RESPONSE_BYTES / SHORTAGE } else { RESPONSE_BYTES }
    }

    /// Waits for the turn to have a large revision in memory.
    ///
    /// # Errors
    /// `Stopped`.
    pub(super) async fn large_turn(self: &Arc<Self>) -> Result<Arc<LargeTurn>, Failure> {
        let _in_line = InLine::join(&self.in_line);
        let permit = self.large.clone().acquire_owned().await.map_err(|_| Failure::Stopped)?;
        let beside = Mutex::new(Beside { permit: Some(permit), bytes: 0 });
        Ok(Arc::new(LargeTurn { room: self.clone(), beside }))
    }

    /// Streams that wait for that turn.
    #[cfg(test)]
    pub(super) fn in_line(&self) -> usize {
        self.in_line.load(Ordering::Relaxed)
    }

    /// How long those who wait at present wait for a client that does not take what it has the turn for.
    fn patience(&self) -> Duration {
        let in_line = self.in_line.load(Ordering::Relaxed).clamp(1, HASTE);
        self.options.large_turn / in_line as u32
    }

    /// The same when many wait.
    pub(super) fn least_patience(&self) -> Duration {
        self.options.large_turn / HASTE as u32
    }
}

/// Counts one that waits, also when it gives up.
struct InLine<'a>(&'a AtomicUsize);

impl<'a> InLine<'a> {
    fn join(line: &'a AtomicUsize) -> Self {
        line.fetch_add(1, Ordering::Relaxed);
        Self(line)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A charge, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    room: Arc<Room>,
    bytes: usize,
    turn: Option<Arc<LargeTurn>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        match &self.turn {
            Some(turn) => turn.remove(self.bytes),
            None => _ = self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed),
        }
    }
}

/// The turn to have a revision in memory that is too large for a piece. It ends when the response is sent, or before.
#[derive(Debug)]
pub(super) struct LargeTurn {
    room: Arc<Room>,
    beside: Mutex<Beside>,
}

/// What a turn has in memory.
#[derive(Debug)]
struct Beside {
    /// Until the turn is over.
    permit: Option<OwnedSemaphorePermit>,
    /// Charged once it is.
    bytes: usize,
}

impl LargeTurn {
    /// Ends the turn when the patience of those in line is over: nobody waits longer for a client that does not read.
    pub(super) fn end_in_time(self: Arc<Self>) {
        let (room, turn, began) = (self.room.clone(), Arc::downgrade(&self), Instant::now());
        tokio::spawn(async move {
            while turn.strong_count() > 0 && began.elapsed() < room.patience() {
                tokio::time::sleep(room.least_patience()).await;
            }
            if let Some(turn) = turn.upgrade() {
                turn.end();
            }
        });
    }

    fn end(&self) {
        let mut beside = self.beside.lock();
        if beside.permit.take().is_some() {
            self.room.bytes.fetch_add(beside.bytes, Ordering::Relaxed);
        }
    }

    fn add(&self, bytes: usize) {
        let mut beside = self.beside.lock();
        beside.bytes += bytes;
        if beside.permit.is_none() {
            self.room.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn remove(&self, bytes: usize) {
        let mut beside = self.beside.lock();
        beside.bytes -= bytes;
        if beside.permit.is_none() {
            self.room.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// A revision that waits for some watchers: one copy for all.
#[derive(Debug)]
pub(super) struct Shared {
    revision: RevisionEvents,
    held: Held,
}

impl Shared {
    /// With a turn it is beside the budget until that is over.
    pub(super) fn new(room: &Arc<Room>, revision: RevisionEvents, turn: Option<Arc<LargeTurn>>) -> Self {
        let held = room.hold(revision_bytes(&revision), turn);
        Self { revision, held }
    }

    pub(super) fn revision(&self) -> &RevisionEvents {
        &self.revision
    }

    pub(super) fn turn(&self) -> Option<Arc<LargeTurn>> {
        self.held.turn.clone()
    }

    pub(super) fn into_revision(self) -> RevisionEvents {
        self.revision
    }
}

/// Bytes that a revision takes in memory.
pub(super) fn revision_bytes(revision: &RevisionEvents) -> usize {
    revision.events.iter().map(event_bytes).sum()
}
