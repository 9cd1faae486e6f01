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
}
