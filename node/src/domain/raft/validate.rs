//! What Raft may be given. raft-rs trusts its peers: many a message that no correct member sends ends the process or
//! breaks the log (a vote without a term, a heartbeat commit beyond the log, a read without its context, an append with a
//! hole). Each such place of raft 0.7.0 that a message can reach is closed here, before the message is stepped.
//!
//! Pure: a message and a few facts in, a verdict out. A message that passes may still be stale, late or a lie;
//! Raft copes with that. A refused one changed nothing and is never sent by a correct member, except where said.

use std::collections::HashSet;

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use raft::eraftpb::{ConfState, EntryType, Message, MessageType};

/// Above this no term and no index is believed: Raft adds one to them, and no cluster counts so far.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// What the verdict depends on, of the replica that would step the message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its id.
    pub id: u64,
    /// Its term.
    pub term: u64,
    /// Its committed index.
    pub committed: u64,
    /// The last index of its log.
    pub last_index: u64,
    /// The last index that is on its disk (`raft_log.persisted`).
    pub persisted: u64,
    /// Whether it leads.
    pub leads: bool,
}

/// Why a message must not be stepped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Meant for another member.
    #[error("addressed to member {0:x}")]
    NotOurs(u64),
    /// From nobody, or from ourselves.
    #[error("sent by member {0:x}")]
    Sender(u64),
    /// A type that a replica only gives itself, or that members exchange in frames of their own.
    #[error("{0:?} is not taken from a peer")]
    NotFromPeers(MessageType),
    /// The term is absent where it must be there, or there where it must be absent.
    #[error("{0:?} with term {1}")]
    Term(MessageType, u64),
    /// A term or an index that no cluster reaches.
    #[error("the number {0} is out of range")]
    OutOfRange(u64),
    /// The term of a log position is above the message's, or 0.
    #[error("log term {log_term} in a message of term {term}")]
    LogTerm {
        /// Of the log position.
        log_term: u64,
        /// Of the message.
        term: u64,
    },
    /// A read or its answer carries exactly one entry, whose data is the context.
    #[error("a read with {0} contexts")]
    ReadContext(usize),
    /// Entries do not follow each other.
    #[error("entry {found} where {expected} belongs")]
    Gap {
        /// The index that belongs there.
        expected: u64,
        /// The index that is there.
        found: u64,
    },
    /// The terms of entries never fall and never exceed the message's.
    #[error("entry {index} has term {term}")]
    EntryTerm {
        /// Of the entry.
        index: u64,
        /// Of the entry.
        term: u64,
    },
    /// A membership change that is none of ours.
    #[error("entry {0} is no membership change of ours")]
    Change(u64),
    /// A heartbeat commits what we do not hold. Also what a member sees whose disk lost its log: it must not take part.
    #[error("commit {commit} is beyond the last index {last_index}")]
    CommitBeyondLog {
        /// Of the message.
        commit: u64,
        /// Of our log.
        last_index: u64,
    },
    /// An acknowledgement of, or a hint at, what we never had.
    #[error("answer about index {index}, the last is {last_index}")]
    AnswerBeyondLog {
        /// Of the message.
        index: u64,
        /// Of our log.
        last_index: u64,
    },
    /// Snapshots are never requested by message.
    #[error("a snapshot is requested")]
    SnapshotRequested,
    /// A vote that nobody can have been asked for: votes are asked for only when the whole log is on the disk.
    #[error("{0:?} while the log is not on the disk")]
    Unasked(MessageType),
    /// A replica without a term cannot answer this vote.
    #[error("a vote that cannot be answered")]
    Unanswerable,
    /// A snapshot at index 0 or without a term.
    #[error("a snapshot of index {index} and term {term}")]
    SnapshotPoint {
        /// Of the snapshot.
        index: u64,
        /// Of the snapshot.
        term: u64,
    },
    /// The configuration of a snapshot is empty, joint, or names a member twice or none.
    #[error("a snapshot without a sound configuration")]
    SnapshotConfiguration,
}

/// Whether `message` of a peer may be stepped by the replica that `facts` describe.
///
/// # Errors
/// [`Invalid`]: drop it.
pub fn validate(message: &Message, facts: &Facts) -> Result<(), Invalid> {
    if message.to != facts.id {
        return Err(Invalid::NotOurs(message.to));
    }
    if message.from == 0 || message.from == facts.id {
        return Err(Invalid::Sender(message.from));
    }
    numbers(message)?;
    terms(message)?;
    match message.get_msg_type() {
        MessageType::MsgAppend => append(message),
        MessageType::MsgAppendResponse => append_response(message, facts),
        MessageType::MsgHeartbeat => heartbeat(message, facts),
        MessageType::MsgRequestPreVote => pre_vote(message, facts),
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse if !message.reject => {
            asked_for(message, facts)
        }
        MessageType::MsgTimeoutNow => asked_for(message, facts),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => read(message),
        MessageType::MsgSnapshot => snapshot(message),
        MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse => Ok(()),
        // The first five are a replica's own. Proposals travel as Forward frames, so that a leader can refuse them; and a
        // membership change inside one would be parsed by protobuf 2. Transfers are asked for on the leader only: a
        // follower would send a peer's on, which raft 0.7.0 answers with a panic because the term is already set.
        kind @ (MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgPropose
        | MessageType::MsgTransferLeader) => Err(Invalid::NotFromPeers(kind)),
    }
}

/// Every number that Raft adds one to, or compares with one that it has added one to.
fn numbers(message: &Message) -> Result<(), Invalid> {
    let own = [message.term, message.log_term, message.index, message.commit, message.commit_term, message.reject_hint];
    match own.into_iter().find(|number| *number > MAX_NUMBER) {
        Some(number) => Err(Invalid::OutOfRange(number)),
        None => Ok(()),
    }
}

/// Raft takes a message of term 0 for its own and skips all checks of the term: a vote of term 0 is answered with a
/// panic, a read's answer of term 0 commits beyond the log. Only a read has none, and a follower that sends a read on
/// panics when it has one.
fn terms(message: &Message) -> Result<(), Invalid> {
    let kind = message.get_msg_type();
    if (message.term == 0) != (kind == MessageType::MsgReadIndex) {
        return Err(Invalid::Term(kind, message.term));
    }
    if message.log_term > message.term {
        return Err(Invalid::LogTerm { log_term: message.log_term, term: message.term });
    }
    Ok(())
}

/// Entries follow the anchor without a hole, so one that contradicts a committed entry can only stand at or below the
/// committed index, and Raft answers those without reading them. An anchor beyond the log has "term 0" to Raft: an anchor
/// of term 0 would be found there and the entries appended behind a hole. The empty log's anchor has term 0 too, and is
/// never sent: all logs begin after a snapshot point, because a member that is fed from the start has no membership to
/// apply changes to.
fn append(message: &Message) -> Result<(), Invalid> {
    if message.index == 0 || message.log_term == 0 {
        return Err(Invalid::LogTerm { log_term: message.log_term, term: message.term });
    }
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        index += 1;
        if entry.index != index {
            return Err(Invalid::Gap { expected: index, found: entry.index });
        }
        if entry.term < term || entry.term > message.term {
            return Err(Invalid::EntryTerm { index, term: entry.term });
        }
        term = entry.term;
        let sound = match entry.get_entry_type() {
            EntryType::EntryNormal => true,
            EntryType::EntryConfChange => flat(&entry.data),
            // Changes are one at a time and never joint.
            EntryType::EntryConfChangeV2 => false,
        };
        if !sound {
            return Err(Invalid::Change(index));
        }
    }
    Ok(())
}

/// Whether the bytes are fields without groups. A membership change is parsed by protobuf 2, which follows nested
/// groups on the stack without a bound.
fn flat(data: &Bytes) -> bool {
    let mut rest = data.clone();
    while !rest.is_empty() {
        let Ok((tag, wire_type)) = decode_key(&mut rest) else { return false };
        if matches!(wire_type, WireType::StartGroup | WireType::EndGroup)
            || skip_field(wire_type, tag, &mut rest, DecodeContext::default()).is_err()
        {
            return false;
        }
    }
    true
}

/// A leader believes an acknowledgement, and counts it for entries that it appends later. Of another term the answer is
/// stale or news of an election: Raft looks at the term only.
fn append_response(message: &Message, facts: &Facts) -> Result<(), Invalid> {
    if message.request_snapshot != 0 {
        return Err(Invalid::SnapshotRequested);
    }
    // A rejection names the anchor, which is ours, and a hint at or below it.
    let index = message.index.max(message.reject_hint);
    if message.term == facts.term && index > facts.last_index {
        return Err(Invalid::AnswerBeyondLog { index, last_index: facts.last_index });
    }
    Ok(())
}

/// Of an older term Raft answers with its own and reads no further.
fn heartbeat(message: &Message, facts: &Facts) -> Result<(), Invalid> {
    if message.term >= facts.term && message.commit > facts.last_index {
        return Err(Invalid::CommitBeyondLog { commit: message.commit, last_index: facts.last_index });
    }
    Ok(())
}

/// A refusal is sent in the replica's own term, and panics when there is none. A new replica has an empty log, so that it
/// refuses only for a priority below its own; one with a log and without a term is held off until it hears of a leader.
fn pre_vote(message: &Message, facts: &Facts) -> Result<(), Invalid> {
    if facts.term == 0 && (facts.last_index > 0 || message.priority < 0) {
        return Err(Invalid::Unanswerable);
    }
    Ok(())
}

/// A replica that wins asserts that its whole log is on the disk. It asks for votes only then, and a leader hands over
/// only to a member that acknowledged its last entry. One that leads has won, and late votes are of no harm; but told to
/// campaign in a later term it would lead no more, and ask at once.
fn asked_for(message: &Message, facts: &Facts) -> Result<(), Invalid> {
    let kind = message.get_msg_type();
    let late = facts.leads && kind != MessageType::MsgTimeoutNow;
    if !late && facts.last_index > facts.persisted {
        return Err(Invalid::Unasked(kind));
    }
    Ok(())
}

fn read(message: &Message) -> Result<(), Invalid> {
    match message.entries.first() {
        Some(context) if message.entries.len() == 1 && !context.data.is_empty() => Ok(()),
        _ => Err(Invalid::ReadContext(message.entries.len())),
    }
}

/// Raft rebuilds its configuration from the snapshot's and ends the process when the result differs.
fn snapshot(message: &Message) -> Result<(), Invalid> {
    let metadata = message.get_snapshot().get_metadata();
    let (index, term) = (metadata.index, metadata.term);
    if index == 0 || index > MAX_NUMBER || term == 0 || term > message.term {
        return Err(Invalid::SnapshotPoint { index, term });
    }
    if sound(metadata.get_conf_state()) { Ok(()) } else { Err(Invalid::SnapshotConfiguration) }
}

fn sound(conf_state: &ConfState) -> bool {
    let mut seen = HashSet::from([0]);
    !conf_state.voters.is_empty()
        && conf_state.voters_outgoing.is_empty()
        && conf_state.learners_next.is_empty()
        && !conf_state.auto_leave
        && conf_state.voters.iter().chain(&conf_state.learners).all(|id| seen.insert(*id))
}

#[cfg(test)]
#[path = "validate_drawn_tests.rs"]
mod drawn_tests;
#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
