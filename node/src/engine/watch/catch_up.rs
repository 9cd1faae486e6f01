//! Reading what the watchers of a stream have missed, and joining them to the index again.
//!
//! Three steps, so that no lock is held while the store is read: choose the watchers, read, hand over and join. A
//! revision that is published in between is not lost: the watcher joins only if it has everything up to the last
//! published revision, and reads on otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::buffer::{Buffer, Item};
use super::{ChangeSource, Failure, Missed, State, StreamKey, WatchHub};
use crate::domain::mvcc::watch::{Interest, Selection, WatchIndex, WatcherKey, hull};
use crate::domain::mvcc::{KeyRange, RevisionEvents};

/// Watchers of a stream that share one read of the store.
const WATCHERS_PER_READ: usize = 128;

/// A read to make.
pub(super) struct Plan {
    stream: StreamKey,
    buffer: Arc<Buffer>,
    /// With the revision that each needs next; lowest first.
    watchers: Vec<(WatcherKey, i64, Interest)>,
    range: KeyRange,
    from: i64,
}

impl Plan {
    pub(super) fn read(&self, source: &dyn ChangeSource) -> Result<Missed, Failure> {
        source.missed(&self.range, self.from)
    }

    /// What each watcher gets, in order.
    fn distribute(
        &self,
        revisions: Vec<RevisionEvents>,
    ) -> BTreeMap<WatcherKey, Vec<(Arc<RevisionEvents>, Selection)>> {
        let mut index = WatchIndex::new(self.from as u64);
        for (watcher, _, interest) in &self.watchers {
            index.insert(*watcher, interest.clone());
        }
        let mut shares: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for revision in revisions {
            let selected = index.select(&revision);
            let shared = Arc::new(revision);
            for (watcher, selection) in selected {
                shares.entry(watcher).or_default().push((shared.clone(), selection));
            }
        }
        for (watcher, next, _) in &self.watchers {
            if let Some(share) = shares.get_mut(watcher) {
                share.retain(|(revision, _)| revision.revision >= *next);
            }
        }
        shares
    }
}

impl WatchHub {
    /// One turn for the watchers of a stream that are behind. Blocks on the store.
    ///
    /// # Errors
    /// Of the source.
    pub(crate) fn catch_up(&self, stream: StreamKey) -> Result<(), Failure> {
        let Some(plan) = self.plan_catch_up(stream) else { return Ok(()) };
        let missed = plan.read(&*self.source)?;
        self.finish_catch_up(plan, missed)
    }

    pub(super) fn plan_catch_up(&self, stream: StreamKey) -> Option<Plan> {
        let state = self.state.lock();
        let open = state.streams.get(&stream)?;
        let chosen = open.behind.iter().take(WATCHERS_PER_READ);
        let interest = |watcher| state.watchers.get(watcher).map(|found| found.interest.clone());
        let watchers: Vec<_> =
            chosen.filter_map(|(next, watcher)| Some((*watcher, *next, interest(watcher)?))).collect();
        let range = hull(watchers.iter().map(|(_, _, interest)| &interest.range))?;
        let from = watchers.first()?.1;
        Some(Plan { stream, buffer: open.buffer.clone(), watchers, range, from })
    }

    pub(super) fn finish_catch_up(&self, plan: Plan, missed: Missed) -> Result<(), Failure> {
        let (revisions, through) = match missed {
            Missed::Compacted { revision } => {
                self.state.lock().cancel_compacted(plan.stream, revision);
                return Ok(());
            }
            Missed::Changes { revisions, through } => (revisions, through),
        };
        if through < plan.from {
            return Err(Failure::Storage(format!("revision {} was published and is not in the store", plan.from)));
        }
        // Nobody else appends for these watchers while they are behind, so the hub's lock is not needed.
        for (watcher, share) in plan.distribute(revisions) {
            let last = share.len().saturating_sub(1);
            for (place, (revision, selection)) in share.into_iter().enumerate() {
                let complete = if place == last { through } else { revision.revision };
                plan.buffer.push(Item::events(watcher, &revision, selection, complete));
            }
        }
        let mut state = self.state.lock();
        for (watcher, next, interest) in plan.watchers {
            state.advance(plan.stream, watcher, next, next.max(through + 1), interest);
        }
        Ok(())
    }
}

impl State {
    /// Notes that a watcher has everything below `reached`, and joins it to the index if nothing was published since.
    fn advance(&mut self, stream: StreamKey, key: WatcherKey, next: i64, reached: i64, interest: Interest) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        // Cancelled meanwhile, by its client or by a compaction.
        if !stream.behind.remove(&(next, key)) {
            return;
        }
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        watcher.next = reached;
        if reached > self.published {
            self.index.insert(key, interest);
            // The store was ahead of what is published: no promise may fall behind what was sent already.
            if reached > self.published + 1 {
                stream.ahead.insert((reached - 1, key));
            }
        } else {
            stream.behind.insert((reached, key));
        }
        stream.buffer.set_behind(!stream.behind.is_empty());
    }
}
