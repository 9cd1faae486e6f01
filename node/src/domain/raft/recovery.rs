//! What a restart makes of two stores that crashed at different points. The key space is the truth for the applied
//! index; the log must reach at least that far, because only what it has synced is ever applied.

use raft::eraftpb::HardState;

use crate::storage::{InitialState, LogStore, LogWrite, SnapshotPoint};

/// A log that ends before what is known to have been in it. It held entries, and maybe a vote, that others count on: the
/// member must not take part again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log ends at {last}, but {needed} was {how} here: what this member acknowledged is lost, and it must not vote again"
)]
pub struct LostTail {
    /// Where the log ends.
    pub last: u64,
    /// Where it ended at least.
    pub needed: u64,
    /// How that is known.
    pub how: &'static str,
}

/// What must be written to the log before Raft may start on it.
#[derive(Debug, Default, PartialEq)]
pub struct Repair {
    /// The hard state with a commit that covers what is applied.
    pub hard_state: Option<HardState>,
}

impl Repair {
    /// As one synced write.
    pub fn as_write(&self) -> LogWrite<'_> {
        LogWrite { hard_state: self.hard_state.as_ref(), sync: true, ..LogWrite::default() }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares the log with the applied point. A hard state with nothing but a new commit is not synced, so the durable
/// commit may lag behind what was applied and flushed.
///
/// # Errors
/// The log lost its tail.
pub fn repair(log: &InitialState, applied: &SnapshotPoint) -> Result<Repair, LostTail> {
    let mut repair = Repair::default();
    let last = log.last_index.max(log.snapshot.index);
    for (needed, how) in [(applied.index, "applied"), (log.hard_state.commit, "committed")] {
        if needed > last {
            return Err(LostTail { last, needed, how });
        }
    }
    let floor = applied.index.max(log.snapshot.index);
    if log.hard_state.commit < floor || log.hard_state.term < applied.term {
        let mut hard_state = log.hard_state.clone();
        hard_state.commit = hard_state.commit.max(floor);
        if hard_state.term < applied.term {
            hard_state.term = applied.term;
            hard_state.vote = 0;
        }
        repair.hard_state = Some(hard_state);
    }
    Ok(repair)
}

/// The index and the term of the last entry of a log that was opened as `initial`. Of two logs the one of the higher term is newer,
/// and of one term the longer one: by that rule members vote, and a human chooses the member that goes on alone.
///
/// # Errors
/// Of the store.
pub fn end_of(log: &impl LogStore, initial: &InitialState) -> crate::storage::Result<(u64, u64)> {
    let point = &initial.snapshot;
    if initial.last_index <= point.index {
        return Ok((point.index, point.term));
    }
    let last = log.entries(initial.last_index, initial.last_index + 1, u64::MAX)?;
    Ok((initial.last_index, last.first().map_or(point.term, |entry| entry.term)))
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;
    use crate::storage::memory::MemoryLog;

    fn point(index: u64, term: u64) -> SnapshotPoint {
        SnapshotPoint { index, term, ..SnapshotPoint::default() }
    }

    fn log(first: u64, last: u64, term: u64, commit: u64) -> InitialState {
        let hard_state = HardState { term, commit, vote: 3, ..HardState::default() };
        let snapshot = point(first - 1, 1);
        InitialState { hard_state, snapshot, first_index: first, last_index: last, key_space: None }
    }

    #[test]
    fn a_log_that_reaches_the_applied_index_is_left_alone() {
        assert!(repair(&log(2, 10, 4, 9), &point(9, 4)).unwrap().is_empty());
    }

    #[test]
    fn a_commit_behind_the_applied_index_is_raised_and_the_vote_kept() {
        let hard_state = repair(&log(2, 10, 4, 5), &point(9, 4)).unwrap().hard_state.expect("a new hard state");
        assert_eq!((hard_state.commit, hard_state.term, hard_state.vote), (9, 4, 3));
    }

    #[test]
    fn a_term_behind_that_of_an_applied_entry_is_raised_and_has_no_vote() {
        let hard_state = repair(&log(2, 10, 4, 9), &point(9, 5)).unwrap().hard_state.expect("a new hard state");
        assert_eq!((hard_state.commit, hard_state.term, hard_state.vote), (9, 5, 0));
    }

    #[test]
    fn a_log_that_ends_before_what_was_applied_or_committed_lost_its_tail() {
        let lost = repair(&log(2, 10, 4, 10), &point(12, 5));
        assert_eq!(lost, Err(LostTail { last: 10, needed: 12, how: "applied" }));
        let lost = repair(&log(2, 10, 4, 11), &point(9, 4));
        assert_eq!(lost, Err(LostTail { last: 10, needed: 11, how: "committed" }));
    }

    /// Not the term of the hard state, which a member has heard of without getting any entry of it.
    #[test]
    fn a_log_ends_with_its_last_entry_or_where_it_begins() {
        let (log, begin) = (MemoryLog::default(), point(5, 2));
        let hard_state = HardState { term: 9, commit: 5, ..HardState::default() };
        let write =
            LogWrite { reset_to: Some(&begin), hard_state: Some(&hard_state), sync: true, ..LogWrite::default() };
        log.write(write).unwrap();
        assert_eq!(end_of(&log, &log.initial().unwrap()).unwrap(), (5, 2));
        let entries: Vec<Entry> =
            [(6, 2), (7, 4)].map(|(index, term)| Entry { index, term, ..Entry::default() }).into();
        log.write(LogWrite { entries: &entries, sync: true, ..LogWrite::default() }).unwrap();
        assert_eq!(end_of(&log, &log.initial().unwrap()).unwrap(), (7, 4));
    }
}
