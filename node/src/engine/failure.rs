//! Why a call into the engine did not succeed. `service/failure.rs` classes each as refused or unknown and gives it
//! etcd's words.

use crate::domain::apply::ApplyError;
use crate::domain::refusal::Refusal;
use crate::storage::StorageError;

/// The outcome of a call that brought none. Unless said otherwise nothing was changed and nothing will be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The model refused, the same on every member.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk is not a member's yet.
    #[error("the node is not initialized")]
    Uninitialized,
    /// No leader is known.
    #[error("no leader")]
    NoLeader,
    /// The call works on the leader only.
    #[error("not leader")]
    NotLeader {
        /// The leader, if known.
        leader: Option<u64>,
    },
    /// A bounded queue is full.
    #[error("too many requests")]
    TooManyRequests,
    /// The request is over the byte bound.
    #[error("request is too large")]
    TooLarge,
    /// No answer in time. The outcome of a write is unknown: it may still be applied.
    #[error("request timed out")]
    TimedOut,
    /// From the beginning to the end of its time there was no leader to take it. It may have been taken all the same, by one
    /// that led for a moment between.
    #[error("no leader took the request in time")]
    NotTaken,
    /// As `TimedOut`; a leader was lost just before it was asked for.
    #[error("request timed out, a leader was lost")]
    LeaderLost,
    /// As `TimedOut`; the connection to the leader broke meanwhile, or the leader's own to a quorum.
    #[error("request timed out, a connection was lost")]
    ConnectionLost,
    /// A read was not confirmed before the leader changed.
    #[error("leader changed")]
    LeaderChanged,
    /// The process is stopping. The outcome of a write already accepted is unknown.
    #[error("server stopped")]
    Stopped,
    /// A membership change or a leader transfer is under way.
    #[error("a change is in flight")]
    ChangeInFlight,
    /// Removal of the leader: move leadership first.
    #[error("member {0:x} is the leader: move leadership first")]
    MoveLeaderFirst(u64),
    /// Fewer than a quorum of the resulting voters is active.
    #[error("the change would leave fewer than a quorum of active voters")]
    QuorumAtRisk,
    /// A learner's match index is too far behind.
    #[error("learner {id:x} is at {matched}, the leader has committed {commit}")]
    NotCaughtUp {
        /// The learner.
        id: u64,
        /// Its match index.
        matched: u64,
        /// The leader's commit index.
        commit: u64,
    },
    /// The transfer target is no voter.
    #[error("bad leader transferee")]
    BadTransferee,
    /// The transfer target did not take over in time.
    #[error("the leader transfer took too long")]
    TransferTimedOut,
    /// The storage failed or is corrupt; the process is about to end.
    #[error("storage: {0}")]
    Storage(String),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Failure::Storage(error.to_string())
    }
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        Failure::Storage(error.to_string())
    }
}
