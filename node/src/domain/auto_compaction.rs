//! When history is compacted without being asked, on etcd's schedule. Pure: whoever drives it brings time and revisions.

use std::collections::VecDeque;
use std::time::Duration;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// Everything.
    #[default]
    Everything,
    /// What is not older than this.
    Period(Duration),
    /// The last so many revisions.
    Revisions(i64),
}

/// A period is sampled this often within it.
const SAMPLES: u32 = 10;
/// Longer periods are compacted as often as one of this length.
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// How often the number of revisions is looked at.
const REVISIONS_EVERY: Duration = Duration::from_secs(300);

/// The schedule of one member. Every member keeps it, so that a new leader knows what the revision was one period ago;
/// only the leader compacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    retention: Retention,
    /// Revisions of the last period, the oldest first.
    samples: VecDeque<i64>,
    /// How long nothing is compacted after the last time: at first a whole period, then the interval.
    pause: Duration,
    last: i64,
    last_at: Duration,
}

impl Schedule {
    /// Begins at `now`, a time since some fixed moment.
    pub fn new(retention: Retention, now: Duration) -> Self {
        let pause = match retention {
            Retention::Period(period) => period,
            _ => Duration::ZERO,
        };
        Self { retention, samples: VecDeque::new(), pause, last: 0, last_at: now }
    }

    /// What it keeps.
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// How long to wait between a [`sample`](Self::sample) and the question what is [`due`](Self::due). None: for ever.
    pub fn interval(&self) -> Option<Duration> {
        match self.retention {
            Retention::Everything => None,
            Retention::Period(period) => Some(period.min(LONGEST_INTERVAL) / SAMPLES),
            Retention::Revisions(_) => Some(REVISIONS_EVERY),
        }
    }

    /// Notes the current revision.
    pub fn sample(&mut self, revision: i64) {
        let Retention::Period(period) = self.retention else { return };
        let interval = period.min(LONGEST_INTERVAL) / SAMPLES;
        let kept = period.as_nanos().checked_div(interval.as_nanos()).unwrap_or_default() + 1;
        self.samples.push_back(revision);
        if self.samples.len() as u128 > kept {
            self.samples.pop_front();
        }
    }

    /// The revision to compact at now, if this member leads and it is time.
    pub fn due(&mut self, now: Duration, leads: bool, revision: i64) -> Option<i64> {
        if !leads {
            return None;
        }
        match self.retention {
            Retention::Everything => None,
            Retention::Period(period) => {
                let oldest = self.samples.front().copied()?;
                if now.saturating_sub(self.last_at) < self.pause || oldest == self.last {
                    return None;
                }
                self.pause = period.min(LONGEST_INTERVAL);
                Some(oldest)
            }
            Retention::Revisions(kept) => Some(revision - kept).filter(|at| *at > 0 && *at != self.last),
        }
    }

    /// It was compacted at `revision`, by this call or by somebody before. Without this the next interval tries again.
    pub fn done(&mut self, now: Duration, revision: i64) {
        self.last = revision;
        self.last_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// (minute, revision) of each compaction, where the revision begins at 1 and grows by 10 a minute.
    fn run(retention: Retention, minutes: u32, leads: impl Fn(u32) -> bool) -> Vec<(u32, i64)> {
        let mut schedule = Schedule::new(retention, Duration::ZERO);
        let (mut now, mut compactions) = (Duration::ZERO, Vec::new());
        let revision = |now: Duration| 1 + (now.as_secs() / 6) as i64;
        while now < MINUTE * minutes {
            schedule.sample(revision(now));
            now += schedule.interval().unwrap();
            let minute = (now.as_secs() / 60) as u32;
            if let Some(at) = schedule.due(now, leads(minute), revision(now)) {
                schedule.done(now, at);
                compactions.push((minute, at));
            }
        }
        compactions
    }

    #[test]
    fn a_period_of_an_hour_compacts_each_hour_at_what_was_current_an_hour_ago() {
        let hour = Retention::Period(Duration::from_secs(3600));
        // The sample of the hour itself is taken after it was looked at, as etcd does it.
        assert_eq!(run(hour, 180, |_| true), [(60, 1), (120, 541), (180, 1141)]);
    }

    #[test]
    fn a_period_of_a_day_waits_a_day_and_then_compacts_each_hour() {
        let day = Retention::Period(Duration::from_secs(24 * 3600));
        let compactions = run(day, 27 * 60, |_| true);
        assert_eq!(compactions.first(), Some(&(1440, 1)));
        assert!(compactions.len() >= 3);
        for pair in compactions[1..].windows(2) {
            assert_eq!(pair[1].0 - pair[0].0, 60);
        }
    }

    #[test]
    fn only_a_leader_compacts_and_a_new_one_knows_the_past() {
        let minutes = Retention::Period(MINUTE * 10);
        let compactions = run(minutes, 30, |minute| minute >= 25);
        assert_eq!(compactions, [(25, 141)]);
    }

    #[test]
    fn a_number_of_revisions_is_looked_at_every_five_minutes() {
        assert_eq!(run(Retention::Revisions(100), 20, |_| true), [(10, 1), (15, 51), (20, 101)]);
        assert_eq!(run(Retention::Revisions(102), 10, |_| true), []);
    }

    #[test]
    fn a_failed_compaction_is_tried_again_after_a_tenth_of_the_period() {
        let mut schedule = Schedule::new(Retention::Period(MINUTE * 10), Duration::ZERO);
        schedule.sample(5);
        assert_eq!(schedule.due(MINUTE * 10, true, 9), Some(5));
        assert_eq!(schedule.due(MINUTE * 11, true, 9), Some(5));
        schedule.done(MINUTE * 11, 5);
        assert_eq!(schedule.due(MINUTE * 30, true, 9), None, "the same revision is not compacted twice");
        assert_eq!(Schedule::new(Retention::Everything, Duration::ZERO).interval(), None);
    }
}
