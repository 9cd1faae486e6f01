//! How long a peer takes to answer: from a leader's heartbeat to its response. One at a time per peer is measured.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::metrics;

/// A heartbeat without an answer for this long is lost, and the next one is measured.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// Heartbeats under way.
#[derive(Debug, Default)]
pub(crate) struct RoundTrips(HashMap<u64, Instant>);

impl RoundTrips {
    /// A heartbeat is about to be sent.
    pub(crate) fn sent(&mut self, to: u64) {
        let now = Instant::now();
        let since = self.0.entry(to).or_insert(now);
        if now.saturating_duration_since(*since) > LOST_AFTER {
            *since = now;
        }
    }

    /// A response came.
    pub(crate) fn answered(&mut self, from: u64) {
        if let Some(since) = self.0.remove(&from) {
            metrics::PEER_ROUND_TRIP.with_label_values(&[&format!("{from:x}")]).observe(since.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_measured_once_from_the_first_heartbeat_without_one() {
        let count = || metrics::PEER_ROUND_TRIP.with_label_values(&["abcdef"]).get_sample_count();
        let mut trips = RoundTrips::default();
        trips.answered(0xab_cdef);
        assert_eq!(count(), 0);
        trips.sent(0xab_cdef);
        trips.sent(0xab_cdef);
        trips.answered(0xab_cdef);
        trips.answered(0xab_cdef);
        assert_eq!(count(), 1);
    }
}
