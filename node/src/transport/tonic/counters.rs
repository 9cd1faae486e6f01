//! What the transport counts, under etcd's names: its dashboards and alerts read them.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};

use crate::metrics;

/// Counters per peer, labelled with the id in hex.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    /// Bytes of the frames and snapshots handed to a stream.
    pub sent_bytes: IntCounterVec,
    /// Bytes of the frames and snapshots that arrived.
    pub received_bytes: IntCounterVec,
    /// Frames that arrived and had no room, or could not be used.
    pub received_failures: IntCounterVec,
    /// What could not be sent: queue full, peer unknown, stream broken, no connection.
    pub sent_failures: IntCounterVec,
    /// Seconds from a question to a peer until its answer.
    pub round_trips: HistogramVec,
}

impl Default for PeerMetrics {
    /// The process's own, which `/metrics` shows.
    fn default() -> Self {
        Self {
            sent_bytes: metrics::PEER_SENT_BYTES.clone(),
            received_bytes: metrics::PEER_RECEIVED_BYTES.clone(),
            received_failures: metrics::PEER_RECEIVE_FAILURES.clone(),
            sent_failures: metrics::PEER_SEND_FAILURES.clone(),
            round_trips: metrics::PEER_ROUND_TRIP.clone(),
        }
    }
}

impl PeerMetrics {
    pub(crate) fn sent(&self, to: u64, bytes: usize) {
        self.sent_bytes.with_label_values(&[&hex(to)]).inc_by(bytes as u64);
    }

    pub(crate) fn received(&self, from: u64, bytes: usize) {
        self.received_bytes.with_label_values(&[&hex(from)]).inc_by(bytes as u64);
    }

    pub(crate) fn not_received(&self, from: u64) {
        self.received_failures.with_label_values(&[&hex(from)]).inc();
    }

    pub(crate) fn answered(&self, from: u64, after: Duration) {
        self.round_trips.with_label_values(&[&hex(from)]).observe(after.as_secs_f64());
    }

    pub(crate) fn failed(&self, to: u64) {
        self.sent_failures.with_label_values(&[&hex(to)]).inc();
    }
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}
