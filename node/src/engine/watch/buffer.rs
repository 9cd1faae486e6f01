//! What waits for the client of one stream: events, promises of progress and cancellations, in the order of sending.
//!
//! Owns the bounds. The hub fills it and the stream's session empties it; it must not know how watchers are matched.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Delivery, Failure, WatchOptions};
use crate::domain::mvcc::RevisionEvents;
use crate::domain::mvcc::watch::{MAX_REVISIONS_PER_RESPONSE, Selection, WatcherKey, event_bytes};

/// A response is not filled beyond this many bytes with further revisions, so that one client's arrears do not take
/// memory twice. One revision is never split here.
const RESPONSE_BYTES: usize = 1 << 20;

/// Stream-wide promises that may wait for a client that asks without reading. When full, further requests stay
/// unanswered, as they do while a watcher is behind.
const MAX_WAITING_PROGRESS: usize = 16;

/// The bounds, and what all buffers together hold.
#[derive(Debug)]
pub(super) struct Room {
    options: WatchOptions,
    bytes: AtomicUsize,
    events: AtomicUsize,
}

impl Room {
    pub(super) fn new(options: WatchOptions) -> Self {
        Self { options, bytes: AtomicUsize::new(0), events: AtomicUsize::new(0) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    fn take(&self, (events, bytes): (usize, usize)) {
        self.events.fetch_add(events, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, (events, bytes): (usize, usize)) {
        self.events.fetch_sub(events, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One thing to tell the client.
#[derive(Debug)]
pub(super) enum Item {
    /// Events of one revision for one watcher.
    Events {
        watcher: WatcherKey,
        revision: Arc<RevisionEvents>,
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
    pub(super) fn events(
        watcher: WatcherKey,
        revision: &Arc<RevisionEvents>,
        selection: Selection,
        through: i64,
    ) -> Self {
        let size = selection
            .of(&revision.events)
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
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    waiting_progress: usize,
    /// Items of other watchers are dropped unsent.
    live: HashMap<WatcherKey, Live>,
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
        }
    }

    pub(super) fn admit(&self, watcher: WatcherKey, live: Live) {
        self.queue.lock().live.insert(watcher, live);
    }

    /// Nothing of this watcher is sent any more.
    pub(super) fn forget(&self, watcher: WatcherKey) {
        self.queue.lock().live.remove(&watcher);
    }

    /// Appends events if there is room; an empty buffer always has room.
    pub(super) fn offer(&self, item: Item) -> bool {
        let options = &self.room.options;
        let mut queue = self.queue.lock();
        let bytes = item.size().1;
        let full = queue.items.len() >= options.stream_items
            || queue.bytes + bytes > options.stream_bytes
            || self.room.bytes() + bytes > options.total_bytes;
        if full && !queue.items.is_empty() {
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
        self.room.take(size);
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

    /// The next thing to send, if any. Revisions of one watcher that wait in a row are sent together.
    pub(super) fn pop(&self) -> Option<Delivery> {
        let mut queue = self.queue.lock();
        loop {
            match self.take(&mut queue)? {
                Item::Progress { watcher: None, revision } => {
                    return Some(Delivery::Progress { watch_id: None, revision });
                }
                Item::Progress { watcher: Some(watcher), revision } => {
                    if let Some(live) = queue.live.get(&watcher) {
                        return Some(Delivery::Progress { watch_id: Some(live.watch_id), revision });
                    }
                }
                Item::Compacted { watcher, revision } => {
                    if let Some(live) = queue.live.remove(&watcher) {
                        return Some(Delivery::Compacted { watch_id: live.watch_id, compact_revision: revision });
                    }
                }
                Item::Events { watcher, revision, selection, size, through } => {
                    if let Some(live) = queue.live.get(&watcher).copied() {
                        let rest = self.take_rest(&mut queue, watcher, size.1);
                        drop(queue);
                        let mut response = Response { live, through, events: Vec::with_capacity(size.0) };
                        response.add(&revision, &selection, through);
                        rest.iter().for_each(|item| response.add_item(item));
                        return Some(response.into());
                    }
                }
            }
        }
    }

    /// Further events of `watcher` at the front of the queue that fit in the same response.
    fn take_rest(&self, queue: &mut Queue, watcher: WatcherKey, mut bytes: usize) -> Vec<Item> {
        let mut rest = Vec::new();
        while rest.len() + 1 < MAX_REVISIONS_PER_RESPONSE {
            match queue.items.front() {
                Some(Item::Events { watcher: same, size, .. }) if *same == watcher => bytes += size.1,
                _ => break,
            }
            if bytes > RESPONSE_BYTES {
                break;
            }
            rest.extend(self.take(queue));
        }
        rest
    }

    fn take(&self, queue: &mut Queue) -> Option<Item> {
        let item = queue.items.pop_front()?;
        let size = item.size();
        self.room.give_back(size);
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
    /// [`end_catch_up`](Self::end_catch_up). It waits until half of the buffer is free: the client is reading.
    pub(super) fn begin_catch_up(&self) -> bool {
        if !self.behind.load(Ordering::Acquire) {
            return false;
        }
        let options = &self.room.options;
        let queue = self.queue.lock();
        let room = queue.items.len() <= options.stream_items / 2 && queue.bytes <= options.stream_bytes / 2;
        room && !self.catching_up.swap(true, Ordering::AcqRel)
    }

    pub(super) fn end_catch_up(&self) {
        self.catching_up.store(false, Ordering::Release);
        self.wake.notify_one();
    }

    /// Resolves when something changed since the last time; the one session of the stream waits here.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.queue.get_mut().items.iter().for_each(|item| self.room.give_back(item.size()));
    }
}

/// Events of one watcher on their way into a response.
struct Response {
    live: Live,
    through: i64,
    events: Vec<balsa_proto::mvccpb::Event>,
}

impl Response {
    fn add_item(&mut self, item: &Item) {
        if let Item::Events { revision, selection, through, .. } = item {
            self.add(revision, selection, *through);
        }
    }

    fn add(&mut self, revision: &RevisionEvents, selection: &Selection, through: i64) {
        self.through = through;
        self.events.extend(selection.of(&revision.events).map(|event| {
            let mut event = event.clone();
            event.prev_kv = event.prev_kv.filter(|_| self.live.prev_kv);
            event
        }));
    }
}

impl From<Response> for Delivery {
    fn from(response: Response) -> Self {
        Delivery::Events { watch_id: response.live.watch_id, revision: response.through, events: response.events }
    }
}
