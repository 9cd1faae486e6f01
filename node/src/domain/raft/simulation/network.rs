//! What passes between simulated members, and the ways in which a member can be built wrong on purpose.

use raft::eraftpb::Message;

use super::super::show;
use crate::storage::memory::MemoryKeySpace;
use crate::storage::{SnapshotPoint, StorageError};

/// A fault of the implementation, to show that the checks would notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    /// Built as it is.
    None,
    /// Log writes are never synced.
    NoSync,
    /// What may only leave after the write leaves before it.
    SendBeforeWrite,
    /// A client is answered when its command is proposed.
    AcknowledgeProposal,
    /// A leader answers reads without asking anybody.
    LocalReads,
    /// A refusal counts whatever term the command was last sent in.
    AnyRefusal,
    /// Commands that may be part of an installed snapshot are sent again.
    ForgetSnapshots,
    /// One member passes over some of what it applies.
    SkipEntries,
    /// A refused vote counts as one.
    CountRefusedVotes,
    /// What was applied is never reported to Raft.
    NeverReport,
}

/// Why a process does not go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// It was cut off, as planned, at this crash point.
    Crashed(&'static str),
    /// Something that never happens in a correct implementation.
    Broken(String),
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Self {
        Stop::Broken(error.to_string())
    }
}

/// What one member sends to another.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// A message of Raft.
    Raft(Box<Message>),
    /// Commands for the leader of `term`.
    Forward { term: u64, proposals: Vec<(u64, Vec<u8>)> },
    /// The leader of `term` did not and will not take these.
    Refusal { term: u64, sequences: Vec<u64> },
    /// A snapshot with its files.
    Snapshot { term: u64, point: SnapshotPoint, store: MemoryKeySpace },
}

/// A body on its way.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) body: Body,
}

impl std::fmt::Display for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}->{} ", self.from, self.to)?;
        match &self.body {
            Body::Raft(message) => f.write_str(&show::message(message)),
            Body::Forward { term, proposals } => write!(f, "Forward term={term} commands={}", proposals.len()),
            Body::Refusal { term, sequences } => write!(f, "Refusal term={term} commands={}", sequences.len()),
            Body::Snapshot { term, point, .. } => write!(f, "Snapshot term={term} at={}/{}", point.index, point.term),
        }
    }
}
