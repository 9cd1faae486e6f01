//! How a member keeps house: what etcd's flags for it set.

use std::time::Duration;

/// Bounds and pauses of the housekeeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Housekeeping {
    /// Applied entries after which the key space is flushed, if bytes or time have not made it so before; none for those
    /// two alone.
    pub flush_entries: Option<u64>,
    /// Entries of the log kept behind the last one, so that a member that was away for a moment needs no snapshot.
    pub catch_up_entries: u64,
    /// Changes that one step of compaction works off.
    pub compaction_batch: usize,
    /// The pause after each step, so that no request waits for it.
    pub compaction_pause: Duration,
}

impl Default for Housekeeping {
    fn default() -> Self {
        Self {
            flush_entries: None,
            catch_up_entries: 10_000,
            compaction_batch: 1_000,
            compaction_pause: Duration::from_millis(2),
        }
    }
}
