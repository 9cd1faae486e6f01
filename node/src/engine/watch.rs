//! The watch hub: hands each applied revision to the watchers that want it.
//!
//! Owns which watcher is in step with the store (*synced*: found through the index as revisions are published) and
//! which is *behind* (reads what it missed from the store by itself). The promise to each watcher is every event from
//! its start on, each once, in order of revision. It holds because one lock guards the last published revision together
//! with the index: a watcher joins the index only if it has everything up to that revision.
//!
//! The applier publishes and must never wait for a client, so each stream has a bounded buffer. When the buffer is full
//! the watcher falls behind: nothing more is kept for it until its client has read on. What all buffers hold together is
//! bounded too ([`room`]). It must not know wire answers or watch requests; the watch service does.

mod buffer;
mod catch_up;
mod room;
#[cfg(test)]
mod simulation;
mod source;
mod stream;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::Failure;
use crate::domain::mvcc::watch::{Interest, Selection, WatchIndex, WatcherKey};
use crate::domain::mvcc::{RevisionEvents, Revisions, Unlisted};
use buffer::{Buffer, Item, Live};
use room::{Room, Shared, revision_bytes};

pub use source::{ChangeSource, Missed, ViewSource};
pub use stream::{Delivery, WatchRequest, WatchStream};

/// Bounds of the hub's memory and work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchOptions {
    /// Items that wait for one stream's client. When full, watchers of the stream fall behind.
    pub stream_items: usize,
    /// Bytes of events that wait for one stream's client. When full, the same; one item always fits.
    pub stream_bytes: usize,
    /// Bytes of events that wait for all clients together, or are on their way to one. When full, the same for every
    /// stream, and missed events are read by small pieces.
    pub total_bytes: usize,
    /// Reads of missed events that run at once, over all streams. When full, further streams wait for their turn.
    pub catch_up_tasks: usize,
    /// Bytes of one such read.
    pub piece_bytes: usize,
    /// Bytes of a revision from which it is in memory for one stream at a time, beside the others.
    pub revision_bytes: usize,
    /// How long the next stream waits for a client that is slow to take such a one. The more wait, the shorter.
    pub large_turn: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            stream_items: 4096,
            stream_bytes: 4 << 20,
            total_bytes: 256 << 20,
            catch_up_tasks: 4,
            piece_bytes: 4 << 20,
            revision_bytes: 16 << 20,
            large_turn: Duration::from_secs(10),
        }
    }
}

/// How much the hub has to do, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchCounts {
    /// Open streams.
    pub streams: usize,
    /// Watchers.
    pub watchers: usize,
    /// Watchers that are behind.
    pub behind: usize,
    /// Events that wait for their clients.
    pub pending_events: usize,
    /// Bytes that they take, and those of what is on its way to clients, without the large revision whose turn it is.
    pub pending_bytes: usize,
    /// Events handed to streams since the process started.
    pub events: u64,
}

/// Names a stream within the process. Never used twice.
type StreamKey = u64;

/// See the module. One per group of a member.
pub struct WatchHub {
    source: Arc<dyn ChangeSource>,
    room: Arc<Room>,
    turns: Arc<Semaphore>,
    delivered: AtomicU64,
    /// Taken before the lock of a buffer, never after it.
    state: Mutex<State>,
}

struct State {
    room: Arc<Room>,
    /// Synced watchers.
    index: WatchIndex,
    /// Every synced watcher has been handed all of its events up to here.
    published: i64,
    compacted: i64,
    watchers: HashMap<WatcherKey, Watcher>,
    streams: HashMap<StreamKey, Stream>,
    last_key: u64,
}

struct Watcher {
    stream: StreamKey,
    buffer: Arc<Buffer>,
    interest: Interest,
    prev_kv: bool,
    /// As asked for; 0 = from now.
    start: i64,
    /// Events below it were handed over already or are not wanted.
    next: i64,
}

struct Stream {
    buffer: Arc<Buffer>,
    watchers: BTreeSet<WatcherKey>,
    /// (next, watcher) of those that are behind.
    behind: BTreeSet<(i64, WatcherKey)>,
    /// (revision, watcher): no promise on behalf of all before this is published, because the watcher starts there or has
    /// read that far already. What lies in the past is removed when it is looked at.
    ahead: BTreeSet<(i64, WatcherKey)>,
    /// Those that a compaction ended and the client has not canceled yet. As in etcd they keep their ids and hold back
    /// promises on behalf of all.
    ended: BTreeSet<WatcherKey>,
}

impl WatchHub {
    /// A hub over `source`, which begins at the source's current revision.
    ///
    /// # Errors
    /// Of the source.
    pub fn new(source: Arc<dyn ChangeSource>, options: WatchOptions) -> Result<Arc<Self>, Failure> {
        let now = source.revisions()?;
        let room = Room::new(options);
        let state = State {
            room: room.clone(),
            index: WatchIndex::new(RandomState::new().hash_one(0)),
            published: now.revision,
            compacted: now.compacted,
            watchers: HashMap::new(),
            streams: HashMap::new(),
            last_key: 0,
        };
        Ok(Arc::new(Self {
            source,
            turns: Arc::new(Semaphore::new(options.catch_up_tasks.max(1))),
            room,
            delivered: AtomicU64::new(0),
            state: Mutex::new(state),
        }))
    }

    /// Opens a stream; dropping it cancels its watchers.
    pub fn open(self: &Arc<Self>) -> WatchStream {
        let buffer = Arc::new(Buffer::new(self.room.clone()));
        let mut state = self.state.lock();
        let key = state.new_key();
        let stream = Stream {
            buffer: buffer.clone(),
            watchers: BTreeSet::new(),
            behind: BTreeSet::new(),
            ahead: BTreeSet::new(),
            ended: BTreeSet::new(),
        };
        state.streams.insert(key, stream);
        drop(state);
        WatchStream::new(self.clone(), key, buffer)
    }

    /// Without `unlisted`.
    #[cfg(test)]
    pub(crate) fn publish(&self, batch: &[RevisionEvents]) {
        self.publish_all(batch, &[]);
    }

    /// Hands over revisions in order. Called by the applier after they are visible in the store; revisions that were
    /// published before are skipped. Never waits for a client. Of the revisions `unlisted` among them the events are only in
    /// the store: the watchers that they may be for read them there.
    pub fn publish_all(&self, batch: &[RevisionEvents], unlisted: &[Unlisted]) {
        let mut state = self.state.lock();
        let published = state.published;
        let mut unlisted = unlisted.iter().filter(|passed| passed.revision > published).peekable();
        for revision in batch {
            while let Some(passed) = unlisted.next_if(|passed| passed.revision < revision.revision) {
                state.pass_over(passed);
            }
            if revision.revision > state.published {
                state.publish(revision);
            }
        }
        unlisted.for_each(|passed| state.pass_over(passed));
    }

    /// Cancels the watchers that are behind `revision`, which was compacted. Called by the applier after the compaction
    /// is visible.
    pub fn compacted(&self, revision: i64) {
        let mut state = self.state.lock();
        state.compacted = state.compacted.max(revision);
        let streams: Vec<_> = state.streams.keys().copied().collect();
        streams.into_iter().for_each(|stream| state.cancel_compacted(stream, revision));
    }

    /// Takes up the state after a snapshot was installed in the store: no revision between the last published one and
    /// `now`, that of the snapshot, will be published, so each watcher reads them from the store. It needs nothing of the
    /// source: a hub that was not reset would go on and leave these revisions out.
    pub fn reset(&self, now: Revisions) {
        let mut state = self.state.lock();
        let missed = state.published + 1;
        let synced = |(key, watcher): (&WatcherKey, &Watcher)| {
            let next = watcher.next.max(missed);
            (state.is_synced(*key, watcher) && next <= now.revision).then_some((*key, next))
        };
        let behind: Vec<_> = state.watchers.iter().filter_map(synced).collect();
        behind.into_iter().for_each(|(key, next)| state.fall_behind(key, next));
        state.published = state.published.max(now.revision);
        drop(state);
        self.compacted(now.compacted);
    }

    /// The last published revision.
    pub fn revision(&self) -> i64 {
        self.state.lock().published
    }

    /// What there is to do at present.
    pub fn counts(&self) -> WatchCounts {
        let state = self.state.lock();
        WatchCounts {
            streams: state.streams.len(),
            watchers: state.watchers.len(),
            behind: state.watchers.len() - state.index.len(),
            pending_events: self.room.events(),
            pending_bytes: self.room.bytes(),
            events: self.delivered.load(Ordering::Relaxed),
        }
    }

    /// Adds a watcher to a stream. Answers its key and the revision after which it begins, if it begins now.
    fn watch(&self, stream: StreamKey, watch_id: i64, request: WatchRequest) -> (WatcherKey, i64) {
        let WatchRequest { interest, start_revision: start, prev_kv } = request;
        let mut state = self.state.lock();
        let (key, published) = (WatcherKey(state.new_key()), state.published);
        let compacted = state.compacted;
        let Some(open) = state.streams.get_mut(&stream) else { return (key, published) };
        let buffer = open.buffer.clone();
        buffer.admit(key, Live { watch_id, prev_kv });
        if start != 0 {
            // What is promised and not sent yet was promised for the watchers that were there.
            buffer.retract_progress();
        }
        if start > 0 && start < compacted {
            buffer.push(Item::Compacted { watcher: key, revision: compacted });
            open.ended.insert(key);
            return (key, published);
        }
        open.watchers.insert(key);
        if start > published {
            open.ahead.insert((start, key));
        }
        let next = if start == 0 { published + 1 } else { start };
        state.index.insert(key, interest.clone());
        state.watchers.insert(key, Watcher { stream, buffer, interest, prev_kv, start, next });
        if next <= published {
            state.fall_behind(key, next);
        }
        (key, published)
    }

    fn cancel(&self, stream: StreamKey, watcher: WatcherKey) {
        let mut state = self.state.lock();
        state.remove(watcher);
        if let Some(stream) = state.streams.get_mut(&stream) {
            stream.ended.remove(&watcher);
        }
    }

    /// Promises on behalf of the whole stream that everything up to the published revision is on its way, if so.
    fn progress_of_all(&self, stream: StreamKey) {
        let mut state = self.state.lock();
        let published = state.published;
        let Some(stream) = state.streams.get_mut(&stream) else { return };
        while stream.ahead.first().is_some_and(|(start, _)| *start <= published) {
            stream.ahead.pop_first();
        }
        let caught_up = stream.behind.is_empty() && stream.ahead.is_empty() && stream.ended.is_empty();
        if caught_up && !stream.watchers.is_empty() {
            stream.buffer.push(Item::Progress { watcher: None, revision: published });
        }
    }

    /// The same for one watcher.
    fn progress_of(&self, watcher: WatcherKey) {
        let state = self.state.lock();
        let Some(found) = state.watchers.get(&watcher) else { return };
        let reached = found.start.max(found.next - 1);
        if state.is_synced(watcher, found) && reached <= state.published {
            found.buffer.push(Item::Progress { watcher: Some(watcher), revision: state.published });
        }
    }

    fn close(&self, stream: StreamKey) {
        let mut state = self.state.lock();
        let watchers = state.streams.get(&stream).map(|stream| stream.watchers.clone());
        watchers.into_iter().flatten().for_each(|watcher| state.remove(watcher));
        state.streams.remove(&stream);
    }
}

impl State {
    fn new_key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }

    fn is_synced(&self, key: WatcherKey, watcher: &Watcher) -> bool {
        self.streams.get(&watcher.stream).is_some_and(|stream| !stream.behind.contains(&(watcher.next, key)))
    }

    fn publish(&mut self, revision: &RevisionEvents) {
        self.published = revision.revision;
        let selected = self.index.select(revision);
        if selected.is_empty() {
            return;
        }
        if revision_bytes(revision) > self.room.options().revision_bytes {
            // Each stream reads it when it is its turn.
            selected.into_iter().for_each(|(key, _)| self.pass_by(key, revision.revision));
            return;
        }
        // One copy for all watchers; keys and values are shared with the applier's own.
        let shared = Arc::new(Shared::new(&self.room, revision.clone(), None));
        for (key, selection) in selected {
            self.offer(key, &shared, selection);
        }
    }

    fn pass_over(&mut self, passed: &Unlisted) {
        self.published = passed.revision;
        for key in self.index.touched_by(passed) {
            self.pass_by(key, passed.revision);
        }
    }

    /// The watcher reads the revision from the store if it wants it.
    fn pass_by(&mut self, key: WatcherKey, revision: i64) {
        if self.watchers.get(&key).is_some_and(|watcher| watcher.next <= revision) {
            self.fall_behind(key, revision);
        }
    }

    fn offer(&mut self, key: WatcherKey, shared: &Arc<Shared>, selection: Selection) {
        let Some(watcher) = self.watchers.get(&key) else { return };
        let revision = shared.revision().revision;
        if revision < watcher.next {
            return;
        }
        if !watcher.buffer.offer(Item::events(key, shared, selection, revision)) {
            self.fall_behind(key, revision);
        }
    }

    /// From now on the watcher reads its events from `next` on from the store.
    fn fall_behind(&mut self, key: WatcherKey, next: i64) {
        self.index.remove(key);
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        watcher.next = next;
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.behind.insert((next, key));
            stream.buffer.set_behind(true);
        }
    }

    fn cancel_compacted(&mut self, stream: StreamKey, revision: i64) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        let lost: Vec<_> = stream.behind.range(..(revision, WatcherKey(0))).map(|(_, watcher)| *watcher).collect();
        stream.ended.extend(&lost);
        let buffer = stream.buffer.clone();
        for watcher in lost {
            buffer.push(Item::Compacted { watcher, revision });
            self.remove(watcher);
        }
    }

    /// Takes the watcher out; what its buffer still holds for it is the buffer's matter.
    fn remove(&mut self, key: WatcherKey) {
        self.index.remove(key);
        let Some(watcher) = self.watchers.remove(&key) else { return };
        let Some(stream) = self.streams.get_mut(&watcher.stream) else { return };
        stream.watchers.remove(&key);
        stream.ahead.remove(&(watcher.start, key));
        stream.behind.remove(&(watcher.next, key));
        stream.buffer.set_behind(!stream.behind.is_empty());
    }
}
