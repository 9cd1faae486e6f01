//! What a restart makes of two stores that crashed at different points. The key space is the truth for the applied
//! index; the log must reach at least that far.

use raft::eraftpb::HardState;

use crate::storage::{InitialState, LogWrite, SnapshotPoint};

/// What must be written to the log before Raft may start on it.
#[derive(Debug, Default, PartialEq)]
pub struct Repair {
    /// Replaces a log that ends before the applied index.
    pub reset_to: Option<SnapshotPoint>,
    /// The hard state with a commit that covers what is applied.
    pub hard_state: Option<HardState>,
}

impl Repair {
    /// As one synced write.
    pub fn as_write(&self) -> LogWrite<'_> {
        LogWrite {
            reset_to: self.reset_to.as_ref(),
            hard_state: self.hard_state.as_ref(),
            sync: true,
            ..LogWrite::default()
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares the log with the applied point. A hard state with nothing but a new commit is not synced, so the durable
/// commit may lag behind what was applied and flushed; and a log that lost its tail restarts at the applied point.
pub fn repair(log: &InitialState, applied: &SnapshotPoint) -> Repair {
    let mut repair = Repair::default();
    let last = log.last_index.max(log.snapshot.index);
    if applied.index > last {
        repair.reset_to = Some(applied.clone());
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
    repair
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(repair(&log(2, 10, 4, 9), &point(9, 4)).is_empty());
    }

    #[test]
    fn a_commit_behind_the_applied_index_is_raised_and_the_vote_kept() {
        let repaired = repair(&log(2, 10, 4, 5), &point(9, 4));
        let hard_state = repaired.hard_state.expect("a new hard state");
        assert_eq!((hard_state.commit, hard_state.term, hard_state.vote), (9, 4, 3));
        assert_eq!(repaired.reset_to, None);
    }

    #[test]
    fn a_log_that_ends_before_the_applied_index_restarts_there() {
        let repaired = repair(&log(2, 10, 4, 10), &point(12, 5));
        assert_eq!(repaired.reset_to, Some(point(12, 5)));
        let hard_state = repaired.hard_state.expect("a new hard state");
        assert_eq!((hard_state.commit, hard_state.term, hard_state.vote), (12, 5, 0));
    }
}
