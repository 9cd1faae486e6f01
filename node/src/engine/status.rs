//! What a running member says of itself, for services, metrics and readiness.

use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_proto::log::{Maintenance, Membership};

use crate::domain::mvcc::Counts;

/// A consistent-enough picture, refreshed by the driver after each batch and by the applier after each apply.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Cluster id of the marker.
    pub cluster_id: u64,
    /// This member's raft id.
    pub raft_id: u64,
    /// Incarnation of the disk.
    pub incarnation: u64,
    /// The leader, 0 while none is known.
    pub leader: u64,
    /// When a leader became known last that was not the one before.
    pub elected: Option<Instant>,
    /// Raft term.
    pub term: u64,
    /// Committed index.
    pub commit: u64,
    /// Index of the first entry that the log still has, or of the next one if it has none: whoever lacks an earlier one
    /// needs a snapshot.
    pub first_index: u64,
    /// Index of the last log entry.
    pub last_index: u64,
    /// Applied index.
    pub applied: u64,
    /// Revision of the store; 1 when empty.
    pub revision: i64,
    /// Compacted revision; -1 before the first compaction.
    pub compacted: i64,
    /// The applied membership.
    pub membership: Arc<Membership>,
    /// The applied alarms and downgrade.
    pub maintenance: Arc<Maintenance>,
    /// The number of keys, as of the applied state. Take it before a view.
    pub counts: Option<Counts>,
    /// As the leader sees each member; empty on others.
    pub progress: Arc<Vec<Progress>>,
    /// A leader transfer is running.
    pub transferring: bool,
    /// A membership change is proposed and not yet applied (leader only).
    pub change_in_flight: bool,
    /// How often the leader changed since the process started.
    pub leader_changes: u64,
    /// Proposals of this member's clients that have no outcome yet.
    pub pending: u64,
    /// Proposals that failed since the process started.
    pub failed: u64,
    /// When the driver went round last; it does so at least once a tick.
    pub turned: Option<Instant>,
}

impl Status {
    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.leader == self.raft_id && self.raft_id != 0
    }

    /// Whether this member is a learner, as applied.
    pub fn is_learner(&self) -> bool {
        self.membership.members.iter().any(|m| m.id == self.raft_id && m.is_learner)
    }
}

/// The leader's view of one member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The member.
    pub id: u64,
    /// The last index it is known to hold.
    pub match_index: u64,
    /// Heard from within the last election timeout.
    pub active: bool,
    /// A snapshot is on its way to it.
    pub snapshot_running: bool,
    /// Nine tenths of the leader's match, match >= commit - bound, active and no snapshot running: it may be promoted.
    pub caught_up: bool,
    /// When its match index or a snapshot to it moved last, as this leader has seen it.
    pub moved: Option<Instant>,
}

impl Progress {
    /// How long nothing has moved.
    pub fn still(&self) -> Duration {
        self.moved.map(|moved| moved.elapsed()).unwrap_or_default()
    }
}
