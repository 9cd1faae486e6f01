//! A member of a lost cluster becomes a cluster of its own (`--force-new-cluster`): which entries its log must end with, so
//! that it is the only member. Pure.
//!
//! All that the log holds counts as committed, as it would for a leader that was elected with it. Behind it come entries that
//! make this member a voter and remove every other one. They are entries like any others: whoever reads the log later, after a
//! crash for instance, arrives at the same membership.

use balsa_proto::log;
use log::membership_change::Change;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, HardState};

use super::apply::{ApplyError, change_of};
use super::membership;
use crate::storage::LogWrite;

/// Why a member cannot become a cluster of its own.
#[derive(Debug, thiserror::Error)]
pub enum CannotForce {
    /// The disk is that of a joiner which never got any data.
    #[error("there is no data on this disk: it was to join a cluster and never heard from it")]
    NoData,
    /// The member knows that it was removed.
    #[error("the cluster has removed member {0:x}, whose disk this is; take the disk of a later member, or a backup")]
    Removed(u64),
    /// An entry of the log cannot be read.
    #[error(transparent)]
    Entry(#[from] ApplyError),
}

/// What the log is to end with.
#[derive(Debug, Clone, PartialEq)]
pub struct Forced {
    /// Behind what is kept. What stands there goes.
    pub entries: Vec<Entry>,
    /// With everything committed.
    pub hard_state: HardState,
}

impl Forced {
    /// As one synced write.
    pub fn as_write(&self) -> LogWrite<'_> {
        LogWrite { entries: &self.entries, hard_state: Some(&self.hard_state), sync: true, ..LogWrite::default() }
    }
}

/// Follows the membership from where it is applied to the end of the log.
#[derive(Debug)]
pub struct Forcing {
    own: u64,
    /// After what was read.
    membership: log::Membership,
    /// The last entry that is kept.
    last: u64,
    committed: u64,
}

impl Forcing {
    /// Of the member `own`, whose disk has applied this membership at index `applied`, and knows that all up to `committed`
    /// is committed.
    ///
    /// # Errors
    /// `NoData`, `Removed`.
    pub fn new(own: u64, membership: &log::Membership, applied: u64, committed: u64) -> Result<Self, CannotForce> {
        if membership.members.is_empty() {
            return Err(CannotForce::NoData);
        }
        if !lists(membership, own) {
            return Err(CannotForce::Removed(own));
        }
        Ok(Self { own, membership: membership.clone(), last: applied, committed })
    }

    /// Reads the next entries. False says that the rest of the log is not kept: it begins with the removal of this member, which
    /// nobody knows to be committed.
    ///
    /// # Errors
    /// `Removed` by a committed entry; `Entry`.
    pub fn read(&mut self, entries: &[Entry]) -> Result<bool, CannotForce> {
        for entry in entries {
            // One that is refused changes nothing, as when it is applied.
            if let Some(change) = change_of(entry)?
                && let Ok(after) = membership::apply(&change, &self.membership)
            {
                match (lists(&after, self.own), entry.index > self.committed) {
                    (true, _) => self.membership = after,
                    (false, true) => return Ok(false),
                    (false, false) => return Err(CannotForce::Removed(self.own)),
                }
            }
            self.last = entry.index;
        }
        Ok(true)
    }

    /// The last entry that is kept of those read.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What the log of this hard state is to end with.
    pub fn finish(self, hard_state: &HardState) -> Forced {
        let mut hard_state = hard_state.clone();
        let mut entries = Vec::new();
        for change in alone(&self.membership, self.own) {
            entries.extend(entry(self.last + 1 + entries.len() as u64, hard_state.term, self.own, change));
        }
        hard_state.commit = self.last + entries.len() as u64;
        Forced { entries, hard_state }
    }
}

fn lists(membership: &log::Membership, id: u64) -> bool {
    membership.members.iter().any(|member| member.id == id)
}

/// The changes that leave `own` alone. A learner becomes a voter first: Raft never runs without one.
fn alone(membership: &log::Membership, own: u64) -> Vec<Change> {
    let learns = membership.members.iter().any(|member| member.id == own && member.is_learner);
    let promotion = learns.then_some(Change::Promote(log::PromoteMember { id: own }));
    let others = membership.members.iter().map(|member| member.id).filter(|id| *id != own);
    promotion.into_iter().chain(others.map(|id| Change::Remove(log::RemoveMember { id }))).collect()
}

/// The change as the replica would have logged it. It was planned on nothing, and nobody waits for it.
fn entry(index: u64, term: u64, own: u64, change: Change) -> Option<Entry> {
    let mut conf_change = membership::conf_change(&change)?;
    let change = log::MembershipChange { origin: own, change: Some(change), ..Default::default() };
    conf_change.set_context(change.encode_to_vec().into());
    let data = conf_change.write_to_bytes().expect("a change is a handful of fields").into();
    let mut entry = Entry { index, term, data, ..Entry::default() };
    entry.set_entry_type(EntryType::EntryConfChange);
    Some(entry)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use balsa_proto::etcdserverpb as pb;
    use raft::eraftpb::ConfState;

    use super::*;
    use crate::domain::apply::StateMachine;
    use crate::domain::command::Command;
    use crate::storage::SnapshotPoint;
    use crate::storage::memory::MemoryKeySpace;

    const OWN: u64 = 3;

    /// Members 1 to 3, of which those in `learners` do not vote.
    fn three(learners: &[u64]) -> log::Membership {
        let member = |id| log::Member { id, is_learner: learners.contains(&id), ..Default::default() };
        log::Membership { cluster_id: 9, index: 1, next_id: 4, members: (1..=3).map(member).collect(), removed: vec![] }
    }

    fn put(index: u64) -> Entry {
        let put = pb::PutRequest { key: index.to_string().into(), ..Default::default() };
        let proposal = log::Proposal { command: Some(Command::Put(put)), ..Default::default() };
        let data = log::Batch { proposals: vec![proposal] }.encode_to_vec().into();
        Entry { index, term: 2, data, ..Default::default() }
    }

    fn change(index: u64, change: Change) -> Entry {
        entry(index, 2, 1, change).expect("it concerns Raft")
    }

    fn remove(index: u64, id: u64) -> Entry {
        change(index, Change::Remove(log::RemoveMember { id }))
    }

    fn add(index: u64, id: u64) -> Entry {
        change(index, Change::Add(log::AddMember { id, peer_urls: vec![format!("http://{id}")], is_learner: true }))
    }

    /// What becomes of a disk that applied `membership` at index 5, and whose log holds `entries` behind it.
    fn forced(membership: &log::Membership, entries: &[Entry], committed: u64) -> Result<Forced, CannotForce> {
        let mut forcing = Forcing::new(OWN, membership, 5, committed)?;
        for entry in entries {
            if !forcing.read(std::slice::from_ref(entry))? {
                break;
            }
        }
        let hard_state = HardState { term: 4, vote: 1, commit: committed, ..HardState::default() };
        Ok(forcing.finish(&hard_state))
    }

    /// The state after all entries of the log: the kept ones and those that follow.
    fn applied(membership: &log::Membership, kept: &[Entry], forced: &Forced) -> StateMachine<MemoryKeySpace> {
        let key_space = Arc::new(MemoryKeySpace::default());
        let point = SnapshotPoint { index: 5, term: 1, conf_state: membership::conf_state(membership) };
        StateMachine::found(&*key_space, membership, &point).unwrap();
        let mut machine = StateMachine::open(key_space).unwrap();
        machine.apply(&[kept, &forced.entries].concat()).unwrap();
        machine
    }

    fn assert_alone(machine: &StateMachine<MemoryKeySpace>, forced: &Forced, removed: &[u64]) {
        let membership = machine.membership();
        assert_eq!(membership.members.iter().map(|member| member.id).collect::<Vec<_>>(), [OWN]);
        assert!(!membership.members[0].is_learner);
        assert_eq!((membership.cluster_id, &membership.removed[..]), (9, removed));
        assert_eq!(machine.applied().conf_state, ConfState::from((vec![OWN], vec![])));
        assert_eq!(machine.applied().index, forced.hard_state.commit);
    }

    #[test]
    fn all_others_are_removed_behind_the_last_entry_and_what_the_log_held_is_committed() {
        let kept = [put(6), put(7)];
        for committed in [5, 6, 7] {
            let forced = forced(&three(&[]), &kept, committed).unwrap();
            let places: Vec<_> = forced.entries.iter().map(|entry| (entry.index, entry.term)).collect();
            assert_eq!(places, [(8, 4), (9, 4)]);
            let HardState { term, vote, commit, .. } = forced.hard_state;
            assert_eq!((term, vote, commit), (4, 1, 9), "a vote that was given stays given");
            let machine = applied(&three(&[]), &kept, &forced);
            assert_alone(&machine, &forced, &[1, 2]);
            assert_eq!((machine.revision(), machine.membership().next_id), (3, 4), "both puts, and no id comes again");
        }
    }

    #[test]
    fn a_learner_becomes_the_voter_and_learners_are_removed_too() {
        for learners in [&[OWN][..], &[1], &[1, OWN]] {
            let forced = forced(&three(learners), &[put(6)], 6).unwrap();
            assert_alone(&applied(&three(learners), &[put(6)], &forced), &forced, &[1, 2]);
        }
    }

    #[test]
    fn changes_that_are_not_applied_yet_count_whether_they_are_committed_or_not() {
        let kept = [add(6, 4), remove(7, 1), remove(8, 77)];
        for committed in [5, 8] {
            let forced = forced(&three(&[]), &kept, committed).unwrap();
            assert_alone(&applied(&three(&[]), &kept, &forced), &forced, &[1, 2, 4]);
        }
    }

    #[test]
    fn a_member_that_is_alone_keeps_everything_and_removes_nobody() {
        let kept = [remove(6, 1), remove(7, 2), put(8)];
        let forced = forced(&three(&[]), &kept, 6).unwrap();
        assert_eq!((forced.entries.len(), forced.hard_state.commit), (0, 8));
    }

    #[test]
    fn its_own_removal_is_believed_if_it_is_committed_and_is_thrown_away_if_not() {
        let log = [put(6), remove(7, OWN), put(8)];
        let cut = forced(&three(&[]), &log, 6).unwrap();
        assert_eq!(cut.entries[0].index, 7, "in place of the removal");
        assert_alone(&applied(&three(&[]), &log[..1], &cut), &cut, &[1, 2]);
        for committed in [7, 8] {
            assert!(matches!(forced(&three(&[]), &log, committed), Err(CannotForce::Removed(OWN))));
        }
        let mut gone = three(&[]);
        gone.members.pop();
        assert!(matches!(forced(&gone, &[], 5), Err(CannotForce::Removed(OWN))));
    }

    #[test]
    fn a_joiner_without_data_has_nothing_to_go_on_with() {
        assert!(matches!(forced(&log::Membership::default(), &[], 0), Err(CannotForce::NoData)));
    }

    #[test]
    fn an_entry_that_cannot_be_read_ends_it() {
        let mut unknown = Entry { index: 6, data: b"\xff".as_slice().into(), ..Entry::default() };
        unknown.set_entry_type(EntryType::EntryConfChange);
        assert!(matches!(forced(&three(&[]), &[unknown], 6), Err(CannotForce::Entry(_))));
    }
}
