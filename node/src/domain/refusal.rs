//! Why the model refuses a request. A refusal is a result, the same on every member that applies the same entry; it is
//! never a fault of the process. What is refused has changed nothing.

use super::auth::AuthRefusal;

/// A deterministic refusal. The names are labels of metrics and, where the operator sees them, reasons of conditions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The revision asked for is below the compacted one.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision asked for is above the current one.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// `ignore_value` or `ignore_lease` on a key that does not exist, or an empty request operation.
    #[error("key not found")]
    KeyNotFound,
    /// A lease that does not exist.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The id of a grant is taken.
    #[error("lease already exists")]
    LeaseExists,
    /// A TTL above [`MAX_TTL`](super::lease::MAX_TTL).
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    /// What the leader of one term decided by its clock came into the log in another.
    #[error("decided by the leader of term {term}, logged in term {entry_term}")]
    OtherTerm {
        /// The term of the clock.
        term: u64,
        /// The term of the entry.
        entry_term: u64,
    },
    /// The alarm NOSPACE is raised, or the quota is used up.
    #[error("database space exceeded")]
    NoSpace,
    /// The alarm CORRUPT is raised.
    #[error("corrupt cluster")]
    Corrupt,
    /// Credentials, permissions, users or roles.
    #[error(transparent)]
    Auth(#[from] AuthRefusal),
    /// The membership has moved since the change was planned.
    #[error("the membership has changed: it is at index {current}, the change was planned on {planned_on}")]
    ConfigChanged {
        /// The index now.
        current: u64,
        /// The index that the caller knew.
        planned_on: u64,
    },
    /// No member of that id, now or ever.
    #[error("member {0:x} is not found")]
    MemberNotFound(u64),
    /// The id was removed; ids are never reused.
    #[error("member {0:x} was removed")]
    MemberRemoved(u64),
    /// A member is listed at one of these peer URLs.
    #[error("a peer URL is already listed")]
    PeerUrlExists,
    /// The id that the change would give is taken.
    #[error("member {0:x} already exists")]
    MemberIdExists(u64),
    /// Promotion of a voter.
    #[error("member {0:x} is not a learner")]
    NotLearner(u64),
    /// Removal of the only voter.
    #[error("member {0:x} is the last voter")]
    LastVoter(u64),
}
