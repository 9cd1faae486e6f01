//! Linearizable reads: many callers share one read index, and no context is ever used twice, so that a late answer to an
//! earlier attempt can never confirm a later read.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use raft::ReadState;

use super::inbox::Reply;
use crate::domain::raft::Replica;
use crate::storage::LogStore;

/// Attempts under way at once; callers that come meanwhile share the next one.
const MAX_ATTEMPTS: usize = 4;
/// After this long without an answer an attempt is repeated with a fresh context: Raft drops it without a word when
/// there is no leader, or the leader has not committed in its term.
const REPEAT_AFTER: Duration = Duration::from_millis(200);

struct Attempt {
    since: Instant,
    replies: Vec<Reply<()>>,
    /// Nobody waits for it but the member itself.
    background: bool,
}

/// The reads of one member.
pub(crate) struct Reads {
    member_id: u64,
    incarnation: u64,
    counter: u64,
    waiting: Vec<Reply<()>>,
    /// Those that wait for a tick, so that what they ask goes with its heartbeats.
    background: Vec<Reply<()>>,
    /// They may go.
    ticked: bool,
    attempts: HashMap<Vec<u8>, Attempt>,
    /// Confirmed, and waiting for this index to be applied.
    confirmed: BTreeMap<u64, Vec<Reply<()>>>,
}

impl Reads {
    /// No reads yet; the two numbers make contexts unique across members and restarts.
    pub(crate) fn new(member_id: u64, incarnation: u64) -> Self {
        Self {
            member_id,
            incarnation,
            counter: 0,
            waiting: Vec::new(),
            background: Vec::new(),
            ticked: false,
            attempts: HashMap::new(),
            confirmed: BTreeMap::new(),
        }
    }

    /// A caller waits.
    pub(crate) fn wait(&mut self, reply: Reply<()>) {
        self.waiting.push(reply);
    }

    /// The member itself asks, and can wait for the next tick.
    pub(crate) fn wait_for_tick(&mut self, reply: Reply<()>) {
        self.background.push(reply);
    }

    /// A tick.
    pub(crate) fn tick(&mut self) {
        self.ticked = true;
    }

    /// Whether what is heard of the reads of this member can wait for the next tick too: nobody else waits for one, and none is given
    /// up before.
    pub(crate) fn can_wait(&self, tick: Duration) -> bool {
        let others = self.attempts.values().any(|attempt| !attempt.background);
        self.waiting.is_empty() && !others && tick * 2 <= REPEAT_AFTER
    }

    /// Starts an attempt for those that wait.
    pub(crate) fn issue<L: LogStore>(&mut self, replica: &mut Replica<L>, now: Instant) {
        let background = self.waiting.is_empty();
        if std::mem::take(&mut self.ticked) {
            self.waiting.append(&mut self.background);
        }
        if self.waiting.is_empty() || self.attempts.len() >= MAX_ATTEMPTS || replica.role().leader == 0 {
            return;
        }
        if replica.role().leads && !replica.committed_in_term() {
            return;
        }
        self.waiting.retain(|reply| !reply.is_closed());
        if self.waiting.is_empty() {
            return;
        }
        self.counter += 1;
        let context = self.context();
        self.attempts
            .insert(context.clone(), Attempt { since: now, replies: std::mem::take(&mut self.waiting), background });
        replica.read_index(context);
    }

    /// Has asked anew what had no answer when the turn `began`, of those that were taken in it. A turn may last longer than an answer is
    /// waited for.
    pub(crate) fn repeat_unanswered(&mut self, began: Instant) {
        self.repeat(began, REPEAT_AFTER);
    }

    /// Callers give up while there is no leader, or while nothing is applied, and others come: once a tick those that are
    /// gone are dropped, or they would add up for as long as that lasts.
    pub(crate) fn forget_given_up(&mut self) {
        self.waiting.retain(|reply| !reply.is_closed());
        self.background.retain(|reply| !reply.is_closed());
        self.confirmed.retain(|_, replies| {
            replies.retain(|reply| !reply.is_closed());
            !replies.is_empty()
        });
    }

    /// Raft confirmed attempts; those whose index is applied are answered.
    pub(crate) fn confirmed(&mut self, states: Vec<ReadState>, applied: u64) {
        for state in states {
            // An attempt that was given up has no entry: its callers are in a later one.
            if let Some(attempt) = self.attempts.remove(&state.request_ctx) {
                self.confirmed.entry(state.index).or_default().extend(attempt.replies);
            }
        }
        self.applied(applied);
    }

    /// Answers what waited for `index`.
    pub(crate) fn applied(&mut self, index: u64) {
        while let Some(entry) = self.confirmed.first_entry() {
            if *entry.key() > index {
                return;
            }
            for reply in entry.remove() {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// The leader changed: unanswered attempts will not be answered any more.
    pub(crate) fn again(&mut self) {
        self.repeat(Instant::now(), Duration::ZERO);
    }

    /// Callers that are remembered.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        let attempts = self.attempts.values().map(|attempt| attempt.replies.len());
        self.waiting.len()
            + self.background.len()
            + attempts.chain(self.confirmed.values().map(Vec::len)).sum::<usize>()
    }

    fn repeat(&mut self, now: Instant, after: Duration) {
        let waiting = &mut self.waiting;
        self.attempts.retain(|_, attempt| {
            let give_up = now.saturating_duration_since(attempt.since) >= after;
            if give_up {
                waiting.append(&mut attempt.replies);
            }
            !give_up
        });
    }

    fn context(&self) -> Vec<u8> {
        let mut context = Vec::with_capacity(24);
        for part in [self.member_id, self.incarnation, self.counter] {
            context.extend_from_slice(&part.to_be_bytes());
        }
        context
    }
}
