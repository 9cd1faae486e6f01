//! Whether this process has been awake without a break since it began to lead.
//!
//! A process that was stopped or starved may wake up after its lease has run out, and still believe that it leads: it
//! asks here before it writes. What it had sent before it fell asleep, UIDs, resource versions and the membership index
//! fence off.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often it beats.
const BEAT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub struct Pulse {
    /// The longest break that cannot have cost the lease.
    break_max: Duration,
    /// The last beat; `None` before the first and after a break.
    last: Mutex<Option<Instant>>,
}

impl Pulse {
    /// Not begun yet, so not steady.
    pub fn new(break_max: Duration) -> Self {
        Self { break_max, last: Mutex::new(None) }
    }

    /// Begins now, with the leadership.
    pub fn begin(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// Beats until there has been a break.
    pub async fn beat(&self) {
        while self.note(Instant::now()) {
            tokio::time::sleep(BEAT).await;
        }
    }

    /// No break so far.
    pub fn is_steady(&self) -> bool {
        self.note(Instant::now())
    }

    /// A break is remembered: whoever comes first after it finds it.
    fn note(&self, now: Instant) -> bool {
        let mut last = self.lock();
        *last = last.filter(|last| now.saturating_duration_since(*last) <= self.break_max).map(|_| now);
        last.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_is_found_by_whoever_comes_first_and_never_forgotten() {
        let pulse = Pulse::new(Duration::from_secs(5));
        assert!(!pulse.is_steady(), "it does not lead yet");
        pulse.begin();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(pulse.note(at(4)));
        assert!(pulse.note(at(8)), "each beat counts from the one before");
        assert!(!pulse.note(at(14)), "six seconds without one");
        assert!(!pulse.note(at(15)), "it may not lead any more");
    }

    #[tokio::test]
    async fn beating_ends_with_the_first_break() {
        let pulse = Pulse::new(Duration::ZERO);
        pulse.begin();
        tokio::time::timeout(Duration::from_secs(30), pulse.beat()).await.expect("any time at all is a break");
        assert!(!pulse.is_steady());
    }
}
