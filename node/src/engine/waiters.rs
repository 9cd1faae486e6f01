//! Who waits for which proposal. A proposal's fate is exact: it is in the log of the term it was sent in, or, once an
//! entry of a later term is applied here, it never will be; only then is it sent again.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Failure;
use crate::domain::command::Outcome;

/// Shards of the map, so that request tasks and the applier seldom meet.
const SHARDS: usize = 16;

type Answer = oneshot::Sender<Result<Outcome, Failure>>;

struct Waiter {
    answer: Answer,
    /// The encoded command; empty for what must not be sent again (a membership change).
    data: Bytes,
    /// The term in which it was handed to a leader; 0 while it was not.
    sent_in: u64,
}

/// The waiters of one process.
#[derive(Default)]
pub(crate) struct Waiters {
    shards: [Mutex<HashMap<u64, Waiter>>; SHARDS],
}

impl Waiters {
    /// Registers a proposal before it is queued.
    pub(crate) fn register(&self, sequence: u64, data: Bytes) -> oneshot::Receiver<Result<Outcome, Failure>> {
        let (answer, receiver) = oneshot::channel();
        self.shard(sequence).lock().insert(sequence, Waiter { answer, data, sent_in: 0 });
        receiver
    }

    /// Notes the term in which a proposal went to a leader. False when nobody waits any more: then it need not be sent.
    pub(crate) fn sent(&self, sequence: u64, term: u64) -> bool {
        match self.shard(sequence).lock().get_mut(&sequence) {
            Some(waiter) => {
                waiter.sent_in = term;
                true
            }
            None => false,
        }
    }

    /// Whether somebody still waits.
    pub(crate) fn awaited(&self, sequence: u64) -> bool {
        self.shard(sequence).lock().contains_key(&sequence)
    }

    /// Takes a proposal back that the leader of `term` refused: its command, if somebody still waits. A refusal that comes
    /// late, after the proposal went to a later leader, means nothing: that one may have taken it.
    pub(crate) fn take_back(&self, sequence: u64, term: u64) -> Option<Bytes> {
        let mut shard = self.shard(sequence).lock();
        let waiter = shard.get_mut(&sequence).filter(|waiter| waiter.sent_in != 0 && waiter.sent_in == term)?;
        waiter.sent_in = 0;
        Some(waiter.data.clone())
    }

    /// Answers, if somebody still waits.
    pub(crate) fn complete(&self, sequence: u64, result: Result<Outcome, Failure>) {
        let waiter = self.shard(sequence).lock().remove(&sequence);
        if let Some(waiter) = waiter {
            // The receiver may have given up in this moment; its loss.
            let _ = waiter.answer.send(result);
        }
    }

    /// The caller gave up.
    pub(crate) fn forget(&self, sequence: u64) {
        self.shard(sequence).lock().remove(&sequence);
    }

    /// The proposals sent before `term` that were never applied: they are in no log and may be sent again, in order.
    /// Membership changes among them are answered instead, because whoever asked must look again.
    pub(crate) fn lost_before(&self, term: u64, leader: Option<u64>) -> Vec<(u64, Bytes)> {
        let mut lost = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let of_old_terms = |waiter: &Waiter| waiter.sent_in != 0 && waiter.sent_in < term;
            let (changes, commands): (Vec<u64>, Vec<u64>) = shard
                .iter()
                .filter(|(_, waiter)| of_old_terms(waiter))
                .map(|(sequence, _)| *sequence)
                .partition(|sequence| shard[sequence].data.is_empty());
            for sequence in changes {
                if let Some(waiter) = shard.remove(&sequence) {
                    let _ = waiter.answer.send(Err(Failure::NotLeader { leader }));
                }
            }
            for sequence in commands {
                if let Some(waiter) = shard.get_mut(&sequence) {
                    waiter.sent_in = 0;
                    lost.push((sequence, waiter.data.clone()));
                }
            }
        }
        lost.sort_unstable_by_key(|(sequence, _)| *sequence);
        lost
    }

    /// A snapshot of `term` was installed. What was sent up to then may be part of it, and nobody will say so: the outcome
    /// is unknown, and sending it again could apply it twice.
    pub(crate) fn unknown_up_to(&self, term: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let sent = |waiter: &Waiter| waiter.sent_in != 0 && waiter.sent_in <= term;
            let unknown: Vec<u64> =
                shard.iter().filter(|(_, waiter)| sent(waiter)).map(|(sequence, _)| *sequence).collect();
            for sequence in unknown {
                if let Some(waiter) = shard.remove(&sequence) {
                    let _ = waiter.answer.send(Err(Failure::TimedOut));
                }
            }
        }
    }

    /// Answers everybody; for the end of the process.
    pub(crate) fn fail_all(&self, failure: &Failure) {
        for shard in &self.shards {
            for (_, waiter) in shard.lock().drain() {
                let _ = waiter.answer.send(Err(failure.clone()));
            }
        }
    }

    fn shard(&self, sequence: u64) -> &Mutex<HashMap<u64, Waiter>> {
        &self.shards[sequence as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_sent_again_only_after_a_later_term_was_applied() {
        let waiters = Waiters::default();
        let _first = waiters.register(1, Bytes::from_static(b"a"));
        let _second = waiters.register(2, Bytes::from_static(b"b"));
        assert!(waiters.sent(1, 3));
        assert!(waiters.sent(2, 4));
        assert!(waiters.lost_before(3, None).is_empty());
        assert_eq!(waiters.lost_before(4, None), vec![(1, Bytes::from_static(b"a"))]);
        assert!(waiters.lost_before(4, None).is_empty(), "once handed back it is no longer sent");
    }

    #[test]
    fn a_refusal_counts_only_for_the_term_the_proposal_was_last_sent_in() {
        let waiters = Waiters::default();
        let _answer = waiters.register(1, Bytes::from_static(b"a"));
        assert!(waiters.sent(1, 3));
        assert!(waiters.sent(1, 4));
        assert_eq!(waiters.take_back(1, 3), None, "the leader of term 4 may have it");
        assert_eq!(waiters.take_back(1, 4), Some(Bytes::from_static(b"a")));
        assert_eq!(waiters.take_back(1, 0), None, "it is not sent any more");
    }

    #[test]
    fn what_an_installed_snapshot_may_hold_is_unknown_and_never_sent_again() {
        let waiters = Waiters::default();
        let mut before = waiters.register(1, Bytes::from_static(b"a"));
        let _unsent = waiters.register(2, Bytes::from_static(b"b"));
        assert!(waiters.sent(1, 3));
        waiters.unknown_up_to(4);
        assert_eq!(before.try_recv().expect("answered"), Err(Failure::TimedOut));
        assert!(waiters.lost_before(4, None).is_empty());
        assert!(waiters.sent(2, 4), "what was never sent is not touched");
    }

    #[test]
    fn a_lost_membership_change_is_answered_and_never_sent_again() {
        let waiters = Waiters::default();
        let mut change = waiters.register(1, Bytes::new());
        assert!(waiters.sent(1, 3));
        assert!(waiters.lost_before(5, Some(2)).is_empty());
        assert_eq!(change.try_recv().expect("answered"), Err(Failure::NotLeader { leader: Some(2) }));
    }

    #[test]
    fn a_caller_that_gave_up_is_not_waited_for() {
        let waiters = Waiters::default();
        let _receiver = waiters.register(1, Bytes::from_static(b"a"));
        waiters.forget(1);
        assert!(!waiters.sent(1, 3));
    }
}
