//! When each member last answered this one as its leader. Raft keeps such a mark itself, but takes it back at each check of
//! its quorum: for a moment once per election time-out nobody would seem to be there. And it marks a member that was just
//! added, so that this check does not count it as lost before it could answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Heard(HashMap<u64, Instant>);

impl Heard {
    /// A member has answered.
    pub(crate) fn answered(&mut self, id: u64, now: Instant) {
        self.0.insert(id, now);
    }

    /// Whether a member is there: it has answered, within this time or by the mark of Raft. One that never has is not there,
    /// whatever the mark says.
    pub(crate) fn is_there(&self, id: u64, marked: bool, bound: Duration, now: Instant) -> bool {
        self.0.get(&id).is_some_and(|last| marked || now.saturating_duration_since(*last) < bound)
    }

    /// Since when it is true that a majority of these members has answered. `own` is this one, which answers at any time.
    pub(crate) fn majority(&self, voters: &[u64], own: u64, now: Instant) -> Option<Instant> {
        let at = |id: &u64| if *id == own { Some(now) } else { self.0.get(id).copied() };
        let mut latest_first: Vec<Option<Instant>> = voters.iter().map(at).collect();
        latest_first.sort_unstable_by(|one, other| other.cmp(one));
        latest_first.get(voters.len() / 2).copied().flatten()
    }

    /// Forgets members that are not `listed` any more.
    pub(crate) fn keep(&mut self, listed: &[u64]) {
        self.0.retain(|id, _| listed.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_its_time_and_for_a_member_that_is_listed() {
        let (began, bound) = (Instant::now(), Duration::from_secs(1));
        let at = |millis| began + Duration::from_millis(millis);
        let mut heard = Heard::default();
        let is_there = |heard: &Heard, marked, now| heard.is_there(4, marked, bound, now);
        assert!(!is_there(&heard, false, began) && !is_there(&heard, true, began), "it was only added");
        heard.answered(4, began);
        assert!(is_there(&heard, false, at(999)) && !is_there(&heard, false, at(1_000)));
        assert!(is_there(&heard, true, at(1_000)));
        heard.answered(4, at(500));
        assert!(is_there(&heard, false, at(1_499)));
        heard.keep(&[5]);
        assert!(!is_there(&heard, false, at(501)) && !is_there(&heard, true, at(501)));
    }

    #[test]
    fn a_majority_has_answered_since_the_last_of_those_that_make_it_one() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut heard = Heard::default();
        assert_eq!(heard.majority(&[1], 1, at(9)), Some(at(9)), "it is one by itself");
        assert_eq!(heard.majority(&[1, 2, 3], 1, at(9)), None);
        heard.answered(2, at(3));
        heard.answered(4, at(8));
        assert_eq!(heard.majority(&[1, 2, 3], 1, at(9)), Some(at(3)), "4 does not vote");
        assert_eq!(heard.majority(&[1, 2, 3, 4], 1, at(9)), Some(at(3)), "two of four are none");
        heard.answered(3, at(5));
        assert_eq!(heard.majority(&[1, 2, 3], 1, at(9)), Some(at(5)));
        assert_eq!(heard.majority(&[2, 3], 1, at(9)), Some(at(3)), "this one does not vote");
        assert_eq!(heard.majority(&[], 1, at(9)), None);
    }
}
