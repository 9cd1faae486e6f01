//! One client's stream: its watchers by the client's ids, and what comes next for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use balsa_proto::mvccpb;

use super::buffer::{Buffer, InHand};
use super::{Failure, StreamKey, WatchHub};
use crate::domain::mvcc::watch::{Interest, WatcherKey};

/// A watcher to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// What it wants.
    pub interest: Interest,
    /// The first revision it wants; 0 = whatever comes after now.
    pub start_revision: i64,
    /// Whether events carry the pair before them.
    pub prev_kv: bool,
}

/// Something to tell the client.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// Events of one watcher, at least one, in order.
    Events {
        /// The client's id of the watcher.
        watch_id: i64,
        /// The watcher has all its events up to this revision, which is not below the last event's.
        revision: i64,
        /// The events; those of one revision are together.
        events: Vec<mvccpb::Event>,
    },
    /// No event at or below `revision` is still to come.
    Progress {
        /// Of this watcher, or of all on the stream.
        watch_id: Option<i64>,
        /// The revision.
        revision: i64,
    },
    /// The watcher lost events to a compaction: nothing more comes, and its id is in use until the client cancels it.
    Compacted {
        /// The client's id of the watcher.
        watch_id: i64,
        /// The compacted revision.
        compact_revision: i64,
    },
}

/// A stream of a [`WatchHub`]. Its client pulls: whoever does not read makes no work and holds no more than the buffer.
pub struct WatchStream {
    hub: Arc<WatchHub>,
    key: StreamKey,
    buffer: Arc<Buffer>,
    watchers: HashMap<i64, WatcherKey>,
    /// What the last delivery holds until the next one is asked for.
    in_hand: Option<InHand>,
}

impl WatchStream {
    pub(super) fn new(hub: Arc<WatchHub>, key: StreamKey, buffer: Arc<Buffer>) -> Self {
        Self { hub, key, buffer, watchers: HashMap::new(), in_hand: None }
    }

    /// Whether a watcher has this id.
    pub fn contains(&self, watch_id: i64) -> bool {
        self.watchers.contains_key(&watch_id)
    }

    /// Adds a watcher under an id that is not in use, and answers the present revision. A watcher that starts below
    /// the compacted revision is added too and [`Delivery::Compacted`] comes next for it.
    pub fn watch(&mut self, watch_id: i64, request: WatchRequest) -> i64 {
        self.cancel(watch_id);
        let (watcher, revision) = self.hub.watch(self.key, watch_id, request);
        self.watchers.insert(watch_id, watcher);
        revision
    }

    /// Removes a watcher; nothing of it comes after this. Answers whether it was there.
    pub fn cancel(&mut self, watch_id: i64) -> bool {
        let Some(watcher) = self.watchers.remove(&watch_id) else { return false };
        self.hub.cancel(self.key, watcher);
        self.buffer.forget(watcher);
        true
    }

    /// Asks for a promise on behalf of all watchers. It comes only if there are any, each is synced and has reached
    /// its start; otherwise nothing comes.
    pub fn request_progress(&self) {
        self.hub.progress_of_all(self.key);
    }

    /// The same on behalf of one watcher.
    pub fn request_progress_of(&self, watch_id: i64) {
        if let Some(watcher) = self.watchers.get(&watch_id) {
            self.hub.progress_of(*watcher);
        }
    }

    /// The last published revision.
    pub fn revision(&self) -> i64 {
        self.hub.revision()
    }

    /// Waits for what comes next; to ask says that the client has taken what came before. Nothing is lost when the future
    /// is dropped before it resolves.
    ///
    /// # Errors
    /// `Stopped`; `Storage` when missed events cannot be read. The stream is over then.
    pub async fn next(&mut self) -> Result<Delivery, Failure> {
        loop {
            self.start_catch_up();
            if let Some(delivery) = self.try_next() {
                return Ok(delivery);
            }
            if let Some(failure) = self.buffer.failure() {
                return Err(failure);
            }
            self.buffer.changed().await;
        }
    }

    /// What is there already.
    pub(crate) fn try_next(&mut self) -> Option<Delivery> {
        self.in_hand = None;
        let (delivery, in_hand) = self.buffer.pop()?;
        self.in_hand = in_hand;
        if let Delivery::Events { events, .. } = &delivery {
            self.hub.delivered.fetch_add(events.len() as u64, Ordering::Relaxed);
        }
        Some(delivery)
    }

    /// Begins a read of missed events beside the client's own pace, if there are any and none is under way.
    fn start_catch_up(&self) {
        if !self.buffer.begin_catch_up() {
            return;
        }
        let (hub, buffer, key) = (self.hub.clone(), self.buffer.clone(), self.key);
        tokio::spawn(async move {
            tokio::select! {
                read = hub.read_missed(key, &buffer) => if let Err(failure) = read {
                    buffer.fail(failure);
                },
                () = buffer.closed() => {}
            }
            buffer.end_catch_up();
        });
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> StreamKey {
        self.key
    }

    #[cfg(test)]
    pub(crate) fn is_behind(&self) -> bool {
        self.buffer.is_behind()
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.hub.close(self.key);
        self.buffer.close();
    }
}
