//! What must hold whatever happens, checked after every event against what all members ever did.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use balsa_proto::log;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, MessageType};

use super::member::{Process, Seen, key_of};
use super::network::{Body, Outgoing};
use crate::domain::command::ProposalId;
use crate::domain::mvcc::hash_kv;
use crate::storage::{KeySpace, Table, View};

/// What was found to be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    /// Two leaders in one term.
    TwoLeaders(String),
    /// A member voted twice in one term.
    TwoVotes(String),
    /// Two members applied different entries at one index.
    LogsDiffer(String),
    /// Two members differ at one applied index.
    StatesDiffer(String),
    /// A command was applied twice.
    AppliedTwice(String),
    /// An acknowledged write is not there.
    LostWrite(String),
    /// A read did not see what was acknowledged, or read, before it began.
    StaleRead(String),
    /// A store or Raft complained.
    Broken(String),
    /// No progress although everything works.
    Stuck(String),
}

/// See the module.
#[derive(Default)]
pub(super) struct Checker {
    leaders: BTreeMap<u64, u64>,
    votes: BTreeMap<(u64, u64), u64>,
    log: BTreeMap<u64, (u64, Entry)>,
    applied_at: HashMap<ProposalId, u64>,
    states: BTreeMap<u64, (u64, u64)>,
    /// Keys whose creation was acknowledged.
    pub(super) acknowledged: BTreeSet<String>,
    /// The highest revision that a client knows of.
    pub(super) floor: i64,
    /// Reads that were answered.
    pub(super) reads: usize,
}

impl Checker {
    /// Takes note of what a process did.
    pub(super) fn note(&mut self, id: u64, seen: &Seen) -> Result<(), Violation> {
        for outgoing in &seen.sent {
            self.vote(outgoing)?;
        }
        for entry in &seen.applied {
            self.entry(id, entry)?;
        }
        for (key, revision) in &seen.acknowledged {
            self.acknowledged.insert(key.clone());
            self.floor = self.floor.max(*revision);
        }
        for (read, floor, revision) in &seen.reads {
            self.reads += 1;
            if revision < floor {
                let what = format!("read {read} at {id} began when {floor} was known, and saw {revision}");
                return Err(Violation::StaleRead(what));
            }
            self.floor = self.floor.max(*revision);
        }
        Ok(())
    }

    fn vote(&mut self, outgoing: &Outgoing) -> Result<(), Violation> {
        let Body::Raft(message) = &outgoing.body else { return Ok(()) };
        let vote = match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => outgoing.to,
            MessageType::MsgRequestVote => outgoing.from,
            _ => return Ok(()),
        };
        let (voter, term) = (outgoing.from, message.term);
        let first = *self.votes.entry((voter, term)).or_insert(vote);
        if first == vote {
            return Ok(());
        }
        Err(Violation::TwoVotes(format!("{voter} voted for {first} and for {vote} in term {term}")))
    }

    fn entry(&mut self, id: u64, entry: &Entry) -> Result<(), Violation> {
        let index = entry.index;
        if let Some((first, known)) = self.log.get(&index) {
            if known == entry {
                return Ok(());
            }
            let what = format!("at {index}: {first} applied term {}, {id} term {}", known.term, entry.term);
            return Err(Violation::LogsDiffer(what));
        }
        self.log.insert(index, (id, entry.clone()));
        if entry.get_entry_type() != EntryType::EntryNormal {
            return Ok(());
        }
        for proposal in log::Batch::decode(entry.data.clone()).unwrap_or_default().proposals {
            if let Some(first) = self.applied_at.insert(ProposalId::of(&proposal), index) {
                let key = key_of(&proposal).unwrap_or_default();
                return Err(Violation::AppliedTwice(format!("{key} at {first} and {index}")));
            }
        }
        Ok(())
    }

    /// One leader a term, and states that agree.
    pub(super) fn process(&mut self, process: &Process, compare_states: bool) -> Result<(), Violation> {
        let (id, role) = (process.id, process.replica.role());
        if role.leads {
            let first = *self.leaders.entry(role.term).or_insert(id);
            if first != id {
                return Err(Violation::TwoLeaders(format!("{first} and {id} in term {}", role.term)));
            }
        }
        if compare_states { self.state(process) } else { Ok(()) }
    }

    fn state(&mut self, process: &Process) -> Result<(), Violation> {
        let broken = |what: String| Violation::Broken(what);
        let view = process.store().view().map_err(|error| broken(error.to_string()))?;
        let hash = hash_kv(&view, 0).map_err(|error| broken(format!("{error:?}")))?;
        let membership = process.machine.membership().encode_to_vec();
        let state = u64::from(hash.hash) << 32 | u64::from(crc32c::crc32c(&membership));
        let index = process.machine.applied().index;
        let (first, known) = *self.states.entry(index).or_insert((process.id, state));
        if known == state {
            return Ok(());
        }
        Err(Violation::StatesDiffer(format!("{first} and {} at {index}", process.id)))
    }

    /// Whether a member has every acknowledged key, created once.
    pub(super) fn holds_all(&self, process: &Process) -> Result<(), Violation> {
        let view = process.store().view().map_err(|error| Violation::Broken(error.to_string()))?;
        for key in &self.acknowledged {
            let row = view.get(Table::Live, key.as_bytes()).map_err(|error| Violation::Broken(error.to_string()))?;
            if row.is_none() {
                return Err(Violation::LostWrite(format!("{key} was acknowledged and is not at {}", process.id)));
            }
        }
        Ok(())
    }
}
