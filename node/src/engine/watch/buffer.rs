//! What waits for the client of one stream: events, promises of progress and cancellations, in the order of sending.
//!
//! Owns the bounds of one stream. The hub fills it and the stream's session empties it; it must not know how watchers are matched.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use balsa_proto::mvccpb::Event;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::room::{Held, LargeTurn, Room, Shared};
use super::{Delivery, Failure};
use crate::domain::mvcc::watch::{MAX_REVISIONS_PER_RESPONSE, Selection, WatcherKey, event_bytes};

/// Stream-wide promises that may wait for a client that asks without reading. When full, further requests stay
/// unanswered, as they do while a watcher is behind.
const MAX_WAITING_PROGRESS: usize = 16;

/// One thing to tell the client.
#[derive(Debug)]
pub(super) enum Item {
    /// Events of one revision for one watcher.
    Events {
        watcher: WatcherKey,
        revision: Arc<Shared>,
        selection: Selection,
        /// Number and bytes of the events.
        size: (usize, usize),
        /// The watcher has everything up to here once this is sent.
        through: i64,
    },
    /// All events up to `revision` were sent before this; of one watcher, or of all on the stream.
    Progress { watcher: Option<WatcherKey>, revision: i64 },
    /// The watcher has lost events to a compaction and is no more.
    Compacted { watcher: WatcherKey, revision: i64 },
}

impl Item {
    pub(super) fn events(watcher: WatcherKey, revision: &Arc<Shared>, selection: Selection, through: i64) -> Self {
        let size = selection
            .of(&revision.revision().events)
            .fold((0, size_of::<Item>()), |(events, bytes), event| (events + 1, bytes + event_bytes(event)));
        Item::Events { watcher, revision: revision.clone(), selection, size, through }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Item::Events { size, .. } => *size,
            Item::Progress { .. } | Item::Compacted { .. } => (0, 0),
        }
    }
}

/// A watcher whose client still wants to hear of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    pub(super) watch_id: i64,
    pub(super) prev_kv: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Buffer {
    room: Arc<Room>,
    /// Some watcher of the stream is behind.
    behind: AtomicBool,
    /// A read of missed events is under way.
    catching_up: AtomicBool,
    queue: Mutex<Queue>,
    wake: Notify,
    /// The client has taken everything.
    taken: Notify,
    closed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    waiting_progress: usize,
    /// Items of other watchers are dropped unsent.
    live: HashMap<WatcherKey, Live>,
    /// The client has taken what it was handed and waits for more.
    asked: bool,
    /// Nothing is appended for watchers in step: what is there has to go out first.
    refusing: bool,
    failure: Option<Failure>,
}

impl Buffer {
    pub(super) fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            behind: AtomicBool::new(false),
            catching_up: AtomicBool::new(false),
            queue: Mutex::default(),
            wake: Notify::new(),
            taken: Notify::new(),
            closed: Notify::new(),
        }
    }

    pub(super) fn admit(&self, watcher: WatcherKey, live: Live) {
        self.queue.lock().live.insert(watcher, live);
    }

    /// Nothing of this watcher is sent any more.
    pub(super) fn forget(&self, watcher: WatcherKey) {
        self.queue.lock().live.remove(&watcher);
    }

    /// Appends events, which are charged already, if there is room; an empty buffer has room unless it
    /// [refuses](Self::refuse).
    pub(super) fn offer(&self, item: Item) -> bool {
        let options = self.room.options();
        let mut queue = self.queue.lock();
        let full = queue.items.len() >= options.stream_items
            || queue.bytes + item.size().1 > options.stream_bytes
            || self.room.is_short();
        if queue.refusing || full && !queue.items.is_empty() {
            return false;
        }
        self.append(&mut queue, item);
        true
    }

    /// Appends whether there is room or not. For items without weight, and for the one batch that the stream read
    /// itself, having found enough room for it.
    pub(super) fn push(&self, item: Item) {
        let mut queue = self.queue.lock();
        if let Item::Progress { watcher: None, .. } = item {
            if queue.waiting_progress >= MAX_WAITING_PROGRESS {
                return;
            }
            queue.waiting_progress += 1;
        }
        self.append(&mut queue, item);
    }

    fn append(&self, queue: &mut Queue, item: Item) {
        let size = item.size();
        self.room.add_events(size.0);
        queue.bytes += size.1;
        queue.items.push_back(item);
        self.wake.notify_one();
    }

    /// Takes back the promises on behalf of the whole stream that are not sent yet.
    pub(super) fn retract_progress(&self) {
        let mut queue = self.queue.lock();
        if queue.waiting_progress > 0 {
            queue.items.retain(|item| !matches!(item, Item::Progress { watcher: None, .. }));
            queue.waiting_progress = 0;
        }
    }

    /// The next thing to send, if any, and what is charged for it until it is sent. Revisions of one watcher that wait in a
    /// row are sent together.
    pub(super) fn pop(&self) -> Option<(Delivery, Option<InHand>)> {
        let mut queue = self.queue.lock();
        queue.asked = false;
        loop {
            let Some(item) = self.take(&mut queue) else {
                queue.asked = true;
                self.taken.notify_one();
                return None;
            };
            match item {
                Item::Progress { watcher: None, revision } => {
                    return Some((Delivery::Progress { watch_id: None, revision }, None));
                }
                Item::Progress { watcher: Some(watcher), revision } => {
                    if let Some(live) = queue.live.get(&watcher) {
                        return Some((Delivery::Progress { watch_id: Some(live.watch_id), revision }, None));
                    }
                }
                Item::Compacted { watcher, revision } => {
                    if let Some(live) = queue.live.remove(&watcher) {
                        let told = Delivery::Compacted { watch_id: live.watch_id, compact_revision: revision };
                        return Some((told, None));
                    }
                }
                Item::Events { watcher, revision, selection, size, through } => {
                    if let Some(live) = queue.live.get(&watcher).copied() {
                        let rest = self.take_rest(&mut queue, watcher, size.1);
                        drop(queue);
                        let first = Item::Events { watcher, revision, selection, size, through };
                        return Some(self.respond(live, first, rest));
                    }
                }
            }
        }
    }

    fn respond(&self, live: Live, first: Item, rest: Vec<Item>) -> (Delivery, Option<InHand>) {
        let mut response = Response { live, through: 0, events: Vec::new(), turn: None };
        response.add(first);
        rest.into_iter().for_each(|item| response.add(item));
        let bytes = response.events.iter().map(event_bytes).sum();
        let held = self.room.hold(bytes, response.turn.take());
        (response.into(), Some(InHand { _held: held }))
    }

    /// Further events of `watcher` at the front of the queue that fit in the same response.
    fn take_rest(&self, queue: &mut Queue, watcher: WatcherKey, mut bytes: usize) -> Vec<Item> {
        let (mut rest, most) = (Vec::new(), self.room.response_bytes());
        while rest.len() + 1 < MAX_REVISIONS_PER_RESPONSE {
            match queue.items.front() {
                Some(Item::Events { watcher: same, size, .. }) if *same == watcher => bytes += size.1,
                _ => break,
            }
            if bytes > most {
                break;
            }
            rest.extend(self.take(queue));
        }
        rest
    }

    fn take(&self, queue: &mut Queue) -> Option<Item> {
        let item = queue.items.pop_front()?;
        let size = item.size();
        self.room.remove_events(size.0);
        queue.bytes -= size.1;
        if let Item::Progress { watcher: None, .. } = item {
            queue.waiting_progress -= 1;
        }
        Some(item)
    }

    /// Ends the stream with this failure, after what waits.
    pub(super) fn fail(&self, failure: Failure) {
        self.queue.lock().failure.get_or_insert(failure);
        self.wake.notify_one();
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.queue.lock().failure.clone()
    }

    pub(super) fn set_behind(&self, behind: bool) {
        self.behind.store(behind, Ordering::Release);
        if behind {
            self.wake.notify_one();
        }
    }

    #[cfg(test)]
    pub(super) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Acquire)
    }

    /// Whether to begin a read of missed events now; if so the caller must end it with
    /// [`end_catch_up`](Self::end_catch_up). It waits until half of the buffer is free: the client is reading. While the
    /// budget is used up it waits until the client has taken all events.
    pub(super) fn begin_catch_up(&self) -> bool {
        if !self.behind.load(Ordering::Acquire) {
            return false;
        }
        let options = self.room.options();
        let queue = self.queue.lock();
        let bytes = if self.room.has_piece() { options.stream_bytes / 2 } else { 0 };
        let room = queue.items.len() <= options.stream_items / 2 && queue.bytes <= bytes;
        room && !self.catching_up.swap(true, Ordering::AcqRel)
    }

    pub(super) fn end_catch_up(&self) {
        self.catching_up.store(false, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether watchers in step fall behind from now on, so that the client comes to the end of what waits. A large
    /// revision goes straight to a client that is there, and must not wait behind what another has not taken.
    pub(super) fn refuse(&self, refusing: bool) {
        self.queue.lock().refusing = refusing;
    }

    /// Resolves when the client has taken everything; the one read of missed events waits here.
    pub(super) async fn taken(&self) {
        while !self.is_taken() {
            self.taken.notified().await;
        }
    }

    fn is_taken(&self) -> bool {
        let queue = self.queue.lock();
        queue.asked && queue.items.is_empty()
    }

    /// The stream is over; what it had begun to read is not wanted.
    pub(super) fn close(&self) {
        self.closed.notify_one();
    }

    /// Resolves when the stream is over; the one read of missed events waits here too.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }

    /// Resolves when something changed since the last time; the one session of the stream waits here.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.queue.get_mut().items.iter().for_each(|item| self.room.remove_events(item.size().0));
    }
}

/// What is charged for a response that is being sent.
#[derive(Debug)]
pub(super) struct InHand {
    _held: Held,
}

/// Events of one watcher on their way into a response.
struct Response {
    live: Live,
    through: i64,
    events: Vec<Event>,
    turn: Option<Arc<LargeTurn>>,
}

impl Response {
    fn add(&mut self, item: Item) {
        let Item::Events { revision, selection, size, through, .. } = item else { return };
        self.through = through;
        self.turn = self.turn.take().or(revision.turn());
        let first = self.events.len();
        match (Arc::try_unwrap(revision), selection) {
            // A copy of a large one counts.
            (Ok(mine), Selection::All) if first == 0 => self.events = mine.into_revision().events,
            (Ok(mine), selection) => self.copy(&mine, &selection, size.0),
            (Err(shared), selection) => self.copy(&shared, &selection, size.0),
        }
        if !self.live.prev_kv {
            self.events[first..].iter_mut().for_each(|event| event.prev_kv = None);
        }
    }

    fn copy(&mut self, shared: &Shared, selection: &Selection, count: usize) {
        self.events.reserve(count);
        self.events.extend(selection.of(&shared.revision().events).cloned());
    }
}

impl From<Response> for Delivery {
    fn from(response: Response) -> Self {
        Delivery::Events { watch_id: response.live.watch_id, revision: response.through, events: response.events }
    }
}
