//! Reading what the watchers of a stream have missed, and joining them to the index again.
//!
//! Three steps, so that no lock is held while the store is read: choose the watchers, read, hand over and join. A
//! revision that is published in between is not lost: the watcher joins only if it has everything up to the last
//! published revision, and reads on otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::buffer::{Buffer, Item};
use super::room::{Held, LargeTurn, Room, Shared};
use super::{ChangeSource, Failure, Missed, State, StreamKey, WatchHub};
use crate::domain::mvcc::watch::{Interest, Selection, WatchIndex, WatcherKey};
use crate::domain::mvcc::{KeyRange, Most, RevisionEvents, Wanted};

/// Watchers of a stream that share one read of the store.
const WATCHERS_PER_READ: usize = 128;

/// A read to make.
pub(super) struct Plan {
    stream: StreamKey,
    buffer: Arc<Buffer>,
    /// With the revision that each needs next; lowest first.
    watchers: Vec<(WatcherKey, i64, Interest)>,
    ranges: Vec<KeyRange>,
    from: i64,
    /// Some watcher wants the pairs before.
    prev_kv: bool,
    most: Most,
    /// For what is read, until it waits in the buffer.
    _held: Option<Held>,
    turn: Option<Arc<LargeTurn>>,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaughtUp {
    /// What was read waits in the buffer.
    Done,
    /// Nothing was: the next revision is too large for a piece.
    TooLarge,
}

impl Plan {
    pub(super) fn read(&self, source: &dyn ChangeSource) -> Result<Missed, Failure> {
        let Self { ranges, from, prev_kv, most, .. } = self;
        source.missed(&Wanted { ranges, from: *from, to: i64::MAX, prev_kv: *prev_kv, most: *most })
    }

    /// What each watcher gets, in order.
    fn distribute(
        &self,
        room: &Arc<Room>,
        revisions: Vec<RevisionEvents>,
    ) -> BTreeMap<WatcherKey, Vec<(Arc<Shared>, Selection)>> {
        let mut index = WatchIndex::new(self.from as u64);
        for (watcher, _, interest) in &self.watchers {
            index.insert(*watcher, interest.clone());
        }
        let mut shares: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for revision in revisions {
            let selected = index.select(&revision);
            let shared = Arc::new(Shared::new(room, revision, self.turn.clone()));
            for (watcher, selection) in selected {
                shares.entry(watcher).or_default().push((shared.clone(), selection));
            }
        }
        for (watcher, next, _) in &self.watchers {
            if let Some(share) = shares.get_mut(watcher) {
                share.retain(|(shared, _)| shared.revision().revision >= *next);
            }
        }
        shares
    }
}

impl WatchHub {
    /// Reads on for the watchers of a stream that are behind, when it is the stream's turn.
    ///
    /// # Errors
    /// Of the source; `Stopped`.
    pub(super) async fn read_missed(self: Arc<Self>, stream: StreamKey, buffer: &Buffer) -> Result<(), Failure> {
        let turn = self.turns.clone().acquire_owned().await;
        let hub = self.clone();
        let caught_up = blocking(move || {
            let caught_up = hub.catch_up(stream);
            drop(turn);
            caught_up
        });
        if caught_up.await? == CaughtUp::Done {
            return Ok(());
        }
        let turn = self.large_turn(buffer).await?;
        let (hub, mine) = (self.clone(), turn.clone());
        blocking(move || hub.catch_up_large(stream, Some(mine))).await?;
        turn.end_in_time();
        // Also when the watchers were cancelled meanwhile and there was nothing to read.
        buffer.refuse(false);
        Ok(())
    }

    /// Waits until a large revision goes straight into a response: the client has taken all else and the stream has the turn.
    async fn large_turn(&self, buffer: &Buffer) -> Result<Arc<LargeTurn>, Failure> {
        let mut is_slow = false;
        loop {
            buffer.taken().await;
            // Other watchers of the stream go on while it stands in line, unless their events were not taken the last time.
            buffer.refuse(is_slow);
            let turn = self.room.large_turn().await?;
            buffer.refuse(true);
            if tokio::time::timeout(self.room.least_patience(), buffer.taken()).await.is_ok() {
                return Ok(turn);
            }
            is_slow = true;
        }
    }

    /// One read of whatever size, as in [`read_missed`](Self::read_missed). Blocks on the store.
    #[cfg(test)]
    pub(crate) fn catch_up_now(&self, stream: StreamKey) -> Result<(), Failure> {
        match self.catch_up(stream)? {
            CaughtUp::Done => Ok(()),
            CaughtUp::TooLarge => self.catch_up_large(stream, None).map(drop),
        }
    }

    /// One piece for the watchers of a stream that are behind. Blocks on the store.
    fn catch_up(&self, stream: StreamKey) -> Result<CaughtUp, Failure> {
        let (most, held) = self.room.reserve_piece();
        match self.plan_catch_up(stream, most) {
            Some(plan) => self.carry_out(Plan { _held: held, ..plan }),
            None => Ok(CaughtUp::Done),
        }
    }

    /// The same for a single revision of any size.
    fn catch_up_large(&self, stream: StreamKey, turn: Option<Arc<LargeTurn>>) -> Result<CaughtUp, Failure> {
        match self.plan_catch_up(stream, Most { revisions: 1, ..Most::default() }) {
            Some(plan) => self.carry_out(Plan { turn, ..plan }),
            None => Ok(CaughtUp::Done),
        }
    }

    fn carry_out(&self, plan: Plan) -> Result<CaughtUp, Failure> {
        let missed = plan.read(&*self.source)?;
        self.finish_catch_up(plan, missed)
    }

    pub(super) fn plan_catch_up(&self, stream: StreamKey, most: Most) -> Option<Plan> {
        let state = self.state.lock();
        let open = state.streams.get(&stream)?;
        let (mut watchers, mut ranges, mut prev_kv) = (Vec::new(), Vec::new(), false);
        for (next, watcher) in open.behind.iter().take(WATCHERS_PER_READ) {
            let Some(found) = state.watchers.get(watcher) else { continue };
            watchers.push((*watcher, *next, found.interest.clone()));
            prev_kv |= found.prev_kv;
            if !ranges.contains(&found.interest.range) {
                ranges.push(found.interest.range.clone());
            }
        }
        let (from, buffer) = (watchers.first()?.1, open.buffer.clone());
        Some(Plan { stream, buffer, watchers, ranges, from, prev_kv, most, _held: None, turn: None })
    }

    pub(super) fn finish_catch_up(&self, plan: Plan, missed: Missed) -> Result<CaughtUp, Failure> {
        let buffer = plan.buffer.clone();
        let caught_up = self.hand_over(plan, missed)?;
        buffer.refuse(caught_up == CaughtUp::TooLarge);
        Ok(caught_up)
    }

    fn hand_over(&self, plan: Plan, missed: Missed) -> Result<CaughtUp, Failure> {
        let (revisions, through) = match missed {
            Missed::Compacted { revision } => {
                self.state.lock().cancel_compacted(plan.stream, revision);
                return Ok(CaughtUp::Done);
            }
            Missed::Changes { through, too_large: true, .. } if through < plan.from => return Ok(CaughtUp::TooLarge),
            Missed::Changes { revisions, through, .. } => (revisions, through),
        };
        if through < plan.from {
            return Err(Failure::Storage(format!("revision {} was published and is not in the store", plan.from)));
        }
        // Nobody else appends for these watchers while they are behind, so the hub's lock is not needed.
        for (watcher, share) in plan.distribute(&self.room, revisions) {
            let last = share.len().saturating_sub(1);
            for (place, (shared, selection)) in share.into_iter().enumerate() {
                let complete = if place == last { through } else { shared.revision().revision };
                plan.buffer.push(Item::events(watcher, &shared, selection, complete));
            }
        }
        let mut state = self.state.lock();
        for (watcher, next, interest) in plan.watchers {
            state.advance(plan.stream, watcher, next, next.max(through + 1), interest);
        }
        Ok(CaughtUp::Done)
    }
}

/// Runs a read beside the threads that serve.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let broken = |error| Failure::Storage(format!("a read of missed events ended early: {error}"));
    tokio::task::spawn_blocking(read).await.map_err(broken)?
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
