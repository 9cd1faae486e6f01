//! Since when nothing has moved to a member, as the leader sees it: what tells a slow learner from a stuck one.
//!
//! Owned by the driver, which gives it the time. It knows nothing from before this member led, so a stand-still is
//! counted from the later of the last progress and the election.

use std::collections::HashMap;
use std::time::Instant;

/// See the module.
#[derive(Default)]
pub(crate) struct Standstill {
    /// The term that the marks are of.
    term: u64,
    /// By member: the last match index, and when something moved last.
    marks: HashMap<u64, (u64, Instant)>,
}

impl Standstill {
    /// Forgets what was seen in another term, and members that are not `listed` any more.
    pub(crate) fn begin(&mut self, term: u64, listed: &[u64]) {
        if self.term != term {
            self.term = term;
            self.marks.clear();
        }
        self.marks.retain(|id, _| listed.contains(id));
    }

    /// When something moved last for this member. A higher match index is a move, and so is every moment of a running
    /// snapshot, since its sender ends one whose bytes stand still; a member that holds the whole log waits for nobody.
    pub(crate) fn moved(
        &mut self,
        id: u64,
        matched: u64,
        whole: bool,
        snapshot_running: bool,
        now: Instant,
    ) -> Instant {
        let mark = self.marks.entry(id).or_insert((matched, now));
        if matched > mark.0 || whole || snapshot_running {
            *mark = (matched.max(mark.0), now);
        }
        mark.1
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_progress_moves_the_mark() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut standstill = Standstill::default();
        standstill.begin(2, &[4]);
        assert_eq!(standstill.moved(4, 10, false, false, at(0)), at(0));
        assert_eq!(standstill.moved(4, 10, false, false, at(9)), at(0), "nothing moved");
        assert_eq!(standstill.moved(4, 11, false, false, at(10)), at(10), "an entry arrived");
        assert_eq!(standstill.moved(4, 11, false, true, at(20)), at(20), "a snapshot is on its way");
        assert_eq!(standstill.moved(4, 11, false, false, at(30)), at(20), "it ended, and did not arrive");
        assert_eq!(standstill.moved(4, 11, true, false, at(40)), at(40), "it holds everything");
    }

    #[test]
    fn another_term_and_another_life_begin_anew() {
        let began = Instant::now();
        let later = began + Duration::from_secs(60);
        let mut standstill = Standstill::default();
        standstill.begin(2, &[4]);
        standstill.moved(4, 10, false, false, began);
        standstill.begin(3, &[4]);
        assert_eq!(standstill.moved(4, 10, false, false, later), later);
        standstill.begin(3, &[]);
        standstill.begin(3, &[4]);
        let latest = later + Duration::from_secs(60);
        assert_eq!(standstill.moved(4, 10, false, false, latest), latest);
    }
}
