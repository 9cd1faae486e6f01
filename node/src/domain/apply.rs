//! The state machine: committed entries in, one atomic write batch, outcomes and events out.
//!
//! Owns the order of a run and the rows that say how far it went. It must not know who waits for an outcome. An entry
//! that a member cannot read stops it: going on without the entry would make it differ from the others.

use std::sync::Arc;

use balsa_proto::log;
use bytes::Bytes;
use prost::Message;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfState, Entry, EntryType};

use super::auth::{self, AuthChanges, AuthState, Identity, TokenChange};
use super::command::{self, Command, Outcome, ProposalId};
use super::lease::{self, LeaseChange};
use super::mvcc::encoding::{self, APPLIED, CONF_STATE, FORMAT, FORMAT_VERSION, MAINTENANCE, MEMBERSHIP, corrupt};
use super::mvcc::overlay::large::{self, PART_BYTES};
use super::mvcc::overlay::{Finished, Overlay};
use super::mvcc::{Counts, ReadError, Revisions, Tally, current, write};
use super::refusal::Refusal;
use super::{maintenance, membership};
use crate::storage::{KeySpace, SnapshotPoint, StorageError, Table, View, WriteBatch};

pub use super::mvcc::{RevisionEvents, Unlisted};

/// Bytes of superseded values and of pairs in answers from which a run takes no further entry: a small put may supersede a
/// large value, a small transaction may read many, and all are in memory until the run is written.
const HELD_BYTES: usize = 16 << 20;
/// Said of a proposal of a newer version.
const UNKNOWN_COMMAND: &str = "a proposal holds no command that this version knows";

/// Why applying cannot go on. The process stops.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store failed, or holds what was never written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// An entry that this version cannot read, or that does not follow the one before.
    #[error("entry {index} of the log cannot be applied: {what}")]
    Entry {
        /// Its Raft index.
        index: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The key space was written in another format.
    #[error("the key space has format {found}, this version reads {FORMAT_VERSION}")]
    Format {
        /// The format it has.
        found: u32,
    },
}

/// How far the state machine got.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AppliedPoint {
    /// Raft index of the last applied entry; 0 in an empty key space.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The configuration after it.
    pub conf_state: ConfState,
}

/// What a run of entries did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// The applied index after the run.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The answers, in log order. Entries that were applied before the run have none.
    pub outcomes: Vec<(ProposalId, Result<Outcome, Refusal>)>,
    /// What each of them is the answer to, by etcd's name.
    pub kinds: Vec<&'static str>,
    /// What was asked of the keys.
    pub tally: Tally,
    /// The revisions made, in order, without those of `unlisted`.
    pub events: Vec<RevisionEvents>,
    /// The revisions made whose events are only in the store, in order.
    pub unlisted: Vec<Unlisted>,
    /// Accepted changes of the configuration, in order, for `RawNode::apply_conf_change`. One that was refused, or
    /// that only changes URLs, is not among them.
    pub conf_changes: Vec<ConfChange>,
    /// The membership, if the run changed it.
    pub membership: Option<Arc<log::Membership>>,
    /// The compacted revision, if the run moved it.
    pub compacted: Option<i64>,
    /// What happened to leases, in order.
    pub leases: Vec<LeaseChange>,
    /// Alarms and downgrade, if the run changed them.
    pub maintenance: Option<Arc<log::Maintenance>>,
    /// Users and roles, if the run changed them.
    pub auth: Option<Arc<AuthState>>,
    /// What became of tokens, in order.
    pub tokens: Vec<TokenChange>,
}

/// The replicated state of one group, over its key space. One thread applies; views are for everyone.
pub struct StateMachine<K: KeySpace> {
    key_space: Arc<K>,
    applied: AppliedPoint,
    membership: Arc<log::Membership>,
    maintenance: Arc<log::Maintenance>,
    auth: Arc<AuthState>,
    revisions: Revisions,
    /// None: keys are not counted.
    counts: Option<Counts>,
    /// The format row stands in the key space.
    formatted: bool,
    /// Deletes of more are written in parts.
    part_bytes: usize,
    between_parts: BetweenParts,
}

/// Called before each part of a large delete.
type BetweenParts = Arc<dyn Fn() -> Result<(), StorageError> + Send + Sync>;

impl<K: KeySpace> StateMachine<K> {
    /// Writes the first state of a cluster into an empty key space, durably.
    ///
    /// # Errors
    /// Of the store.
    pub fn found(key_space: &K, membership: &log::Membership, point: &SnapshotPoint) -> Result<(), ApplyError> {
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, FORMAT, FORMAT_VERSION.to_be_bytes().to_vec());
        batch.put(Table::Meta, APPLIED, encoding::encode_applied(point.index, point.term));
        put_membership(&mut batch, membership, &point.conf_state);
        key_space.write(batch)?;
        Ok(key_space.flush()?)
    }

    /// As [`open`](Self::open), of a key space that nobody else writes: what a process wrote ahead before it died is
    /// taken back first.
    ///
    /// # Errors
    /// `Format`, or the store's.
    pub fn recover(key_space: Arc<K>) -> Result<Self, ApplyError> {
        large::undo(&*key_space)?;
        Self::open(key_space)
    }

    /// Reads how far the key space is. An empty one is a joiner's, which starts from a snapshot: applied 0.
    ///
    /// # Errors
    /// `Format`, or the store's.
    pub fn open(key_space: Arc<K>) -> Result<Self, ApplyError> {
        let view = key_space.view()?;
        let format = view.get(Table::Meta, FORMAT)?;
        if let Some(bytes) = &format {
            let found = u32::from_be_bytes(bytes[..].try_into().map_err(|_| corrupt("meta format is not 4 bytes"))?);
            if found != FORMAT_VERSION {
                return Err(ApplyError::Format { found });
            }
        }
        let applied = view.get(Table::Meta, APPLIED)?.map(|bytes| encoding::decode_applied(&bytes)).transpose()?;
        let (index, term) = applied.unwrap_or_default();
        let conf_state: log::ConfState = read(&view, Table::Meta, CONF_STATE)?;
        let membership = Arc::new(read(&view, Table::Members, MEMBERSHIP)?);
        let maintenance = Arc::new(read(&view, Table::Meta, MAINTENANCE)?);
        let auth = Arc::new(auth::load(&view)?);
        let revisions = current(&view)?;
        let applied = AppliedPoint { index, term, conf_state: to_raft(conf_state) };
        let (counts, formatted) = (None, format.is_some());
        let (part_bytes, between_parts) = (PART_BYTES, Arc::new(|| Ok(())) as BetweenParts);
        Ok(Self {
            key_space,
            applied,
            membership,
            maintenance,
            auth,
            revisions,
            counts,
            formatted,
            part_bytes,
            between_parts,
        })
    }

    /// Lets `hook` be called before each part of a large delete; its failure counts as the store's.
    pub fn between_parts(&mut self, hook: impl Fn() -> Result<(), StorageError> + Send + Sync + 'static) {
        self.between_parts = Arc::new(hook);
    }

    /// Lets deletes be written in parts of this size.
    #[cfg(test)]
    pub(crate) fn set_part_bytes(&mut self, bytes: usize) {
        self.part_bytes = bytes;
    }

    /// How far it got.
    pub fn applied(&self) -> &AppliedPoint {
        &self.applied
    }

    /// The applied index that a crash now would leave.
    ///
    /// # Errors
    /// Of the store.
    pub fn flushed_index(&self) -> Result<u64, ApplyError> {
        let applied = self.key_space.get_flushed(Table::Meta, APPLIED)?;
        let applied = applied.map(|bytes| encoding::decode_applied(&bytes)).transpose()?;
        Ok(applied.unwrap_or_default().0)
    }

    /// The applied membership.
    pub fn membership(&self) -> &Arc<log::Membership> {
        &self.membership
    }

    /// The applied alarms and downgrade.
    pub fn maintenance(&self) -> &Arc<log::Maintenance> {
        &self.maintenance
    }

    /// Begins to keep count of the keys, so that large ranges are counted by blocks.
    ///
    /// # Errors
    /// Of the store.
    pub fn count_keys(&mut self) -> Result<(), ApplyError> {
        self.counts = Some(Counts::load(&self.key_space.view()?)?);
        Ok(())
    }

    /// The number of keys in each part of the key space, if it is kept.
    pub fn counts(&self) -> Option<&Counts> {
        self.counts.as_ref()
    }

    /// The applied users and roles.
    pub fn auth(&self) -> &Arc<AuthState> {
        &self.auth
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.revisions.revision
    }

    /// The compacted revision; -1 before the first compaction.
    pub fn compacted(&self) -> i64 {
        self.revisions.compacted
    }

    /// Applies committed entries, in order, as one atomic write. Entries at or below the applied index are passed over:
    /// they come again after a crash. If they supersede or answer much, only the first ones are applied, at least one: the effects
    /// say how far it went. The tables are the same in whatever runs the entries are given.
    ///
    /// # Errors
    /// See [`ApplyError`]. After an error the state machine is not used any more.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<Effects, ApplyError> {
        self.apply_announced(entries, |_| {})
    }

    /// As [`apply`](Self::apply). `announce` is told of the effects before a view can show them: who takes a view first
    /// and looks at the announced permissions then, never reads by permissions that are older than the view.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub fn apply_announced(
        &mut self,
        entries: &[Entry],
        announce: impl FnOnce(&Effects),
    ) -> Result<Effects, ApplyError> {
        let fresh: Vec<&Entry> = entries.iter().filter(|entry| entry.index > self.applied.index).collect();
        let Some(mut last) = fresh.last() else {
            return Ok(Effects { index: self.applied.index, term: self.applied.term, ..Effects::default() });
        };
        let decoded = decode_run(self.applied.index, &fresh)?;
        let mut run = Run::new(self.key_space.view()?, self);
        run.overlay.count_by(self.counts.clone());
        run.overlay.write_ahead(self.part_bytes, self.counts.clone(), self.part_writer());
        run.overlay.prefetch(keys_of(&decoded))?;
        for (entry, decoded) in fresh.iter().zip(decoded) {
            run.index = entry.index;
            run.entry(entry.term, decoded)?;
            if run.overlay.superseded_bytes() + run.answered >= HELD_BYTES {
                last = entry;
                break;
            }
        }
        let (index, term) = (last.index, last.term);
        let created_and_deleted = run.overlay.created_and_deleted();
        let (mut batch, mut effects, counts, revisions) = run.finish();
        (effects.index, effects.term) = (index, term);
        batch.put(Table::Meta, APPLIED, encoding::encode_applied(index, term));
        if !self.formatted {
            batch.put(Table::Meta, FORMAT, FORMAT_VERSION.to_be_bytes().to_vec());
        }
        let membership = effects.membership.clone();
        let conf_state = membership.as_deref().map(membership::conf_state);
        if let (Some(membership), Some(conf_state)) = (&membership, &conf_state) {
            put_membership(&mut batch, membership, conf_state);
        }
        if let Some(maintenance) = &effects.maintenance {
            batch.put(Table::Meta, MAINTENANCE, maintenance.encode_to_vec());
            self.maintenance = Arc::clone(maintenance);
        }
        announce(&effects);
        self.key_space.write(batch)?;
        self.formatted = true;
        if let Some(auth) = &effects.auth {
            self.auth = Arc::clone(auth);
        }
        self.revisions = revisions;
        self.counts = counts.or_else(|| self.counts.take());
        self.count(&created_and_deleted)?;
        self.membership = membership.unwrap_or_else(|| Arc::clone(&self.membership));
        let conf_state = conf_state.unwrap_or_else(|| std::mem::take(&mut self.applied.conf_state));
        self.applied = AppliedPoint { index, term, conf_state };
        Ok(effects)
    }
}

impl<K: KeySpace> StateMachine<K> {
    fn part_writer(&self) -> large::WritePart<K::View> {
        let (key_space, between_parts) = (Arc::clone(&self.key_space), Arc::clone(&self.between_parts));
        Box::new(move |part| {
            between_parts()?;
            key_space.write(part)?;
            key_space.view()
        })
    }

    fn count(&mut self, created_and_deleted: &[(Bytes, bool)]) -> Result<(), ApplyError> {
        let Some(counts) = &mut self.counts else { return Ok(()) };
        counts.advance(self.revisions.revision, created_and_deleted);
        if counts.is_oversized(created_and_deleted) {
            counts.split(&self.key_space.view()?, created_and_deleted)?;
        }
        Ok(())
    }
}

fn read<M: Message + Default>(view: &impl View, table: Table, key: &[u8]) -> Result<M, StorageError> {
    let bytes = view.get(table, key)?;
    bytes.map(|bytes| encoding::decode(table.name(), bytes)).transpose().map(Option::unwrap_or_default)
}

fn put_membership(batch: &mut WriteBatch, membership: &log::Membership, conf_state: &ConfState) {
    let (voters, learners) = (conf_state.voters.clone(), conf_state.learners.clone());
    batch.put(Table::Meta, CONF_STATE, log::ConfState { voters, learners }.encode_to_vec());
    batch.put(Table::Members, MEMBERSHIP, membership.encode_to_vec());
}

fn to_raft(stored: log::ConfState) -> ConfState {
    let mut state = ConfState::default();
    state.set_voters(stored.voters);
    state.set_learners(stored.learners);
    state
}

/// Whether a batch that another member made can be applied. One that cannot would end every member that has it in its log,
/// again at each start, so it is looked at before it gets there.
///
/// # Errors
/// What is wrong with it.
pub fn check_batch(data: &Bytes) -> Result<(), String> {
    match decode_batch(data)?.proposals.iter().all(|proposal| proposal.command.is_some()) {
        true => Ok(()),
        false => Err(UNKNOWN_COMMAND.to_owned()),
    }
}

/// An entry that was read.
enum Decoded {
    Batch(log::Batch),
    Change(log::MembershipChange),
}

/// Reads the entries, which must follow the applied index without a gap.
fn decode_run(applied: u64, entries: &[&Entry]) -> Result<Vec<Decoded>, ApplyError> {
    let mut decoded = Vec::with_capacity(entries.len());
    for (expected, entry) in (applied + 1..).zip(entries) {
        let wrong = |what: String| ApplyError::Entry { index: entry.index, what };
        if entry.index != expected {
            return Err(wrong(format!("the next one is {expected}")));
        }
        decoded.push(decode_entry(entry).map_err(wrong)?);
    }
    Ok(decoded)
}

fn decode_batch(data: &Bytes) -> Result<log::Batch, String> {
    log::Batch::decode(data.clone()).map_err(|error| error.to_string())
}

fn decode_entry(entry: &Entry) -> Result<Decoded, String> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => decode_batch(&entry.data).map(Decoded::Batch),
        EntryType::EntryConfChange => {
            let mut change = ConfChange::default();
            change.merge_from_bytes(&entry.data).map_err(|error| error.to_string())?;
            let change = log::MembershipChange::decode(change.context).map_err(|error| error.to_string())?;
            match change.change {
                Some(_) => Ok(Decoded::Change(change)),
                None => Err("a membership change of an unknown kind".to_owned()),
            }
        }
        EntryType::EntryConfChangeV2 => Err("a joint configuration change, which no member proposes".to_owned()),
    }
}

/// The membership change that an entry holds, if it holds one.
///
/// # Errors
/// `Entry`: it holds one that this version cannot read.
pub(super) fn change_of(entry: &Entry) -> Result<Option<log::MembershipChange>, ApplyError> {
    if entry.get_entry_type() == EntryType::EntryNormal {
        return Ok(None);
    }
    match decode_entry(entry) {
        Ok(Decoded::Change(change)) => Ok(Some(change)),
        Ok(Decoded::Batch(_)) => Ok(None),
        Err(what) => Err(ApplyError::Entry { index: entry.index, what }),
    }
}

/// The single keys that the run will read, for one batched read.
fn keys_of(entries: &[Decoded]) -> Vec<Bytes> {
    let mut keys = Vec::new();
    for entry in entries {
        let Decoded::Batch(batch) = entry else { continue };
        for proposal in &batch.proposals {
            match &proposal.command {
                Some(Command::Put(put)) => keys.push(put.key.clone()),
                Some(Command::DeleteRange(delete)) if delete.range_end.is_empty() => keys.push(delete.key.clone()),
                Some(Command::Txn(txn)) => write::keys_of_txn(txn, &mut keys),
                _ => {}
            }
        }
    }
    keys
}

/// A run under way.
struct Run<V> {
    overlay: Overlay<V>,
    membership: Arc<log::Membership>,
    maintenance: Arc<log::Maintenance>,
    auth: AuthChanges,
    effects: Effects,
    /// Bytes of the pairs in the answers so far.
    answered: usize,
    /// Raft index of the entry under way.
    index: u64,
}

impl<V: View> Run<V> {
    fn new<K: KeySpace>(view: V, machine: &StateMachine<K>) -> Self {
        Self {
            overlay: Overlay::new(view, machine.revisions),
            membership: Arc::clone(&machine.membership),
            maintenance: Arc::clone(&machine.maintenance),
            auth: AuthChanges::new(Arc::clone(&machine.auth)),
            effects: Effects::default(),
            answered: 0,
            index: 0,
        }
    }

    fn entry(&mut self, term: u64, entry: Decoded) -> Result<(), ApplyError> {
        match entry {
            Decoded::Batch(batch) => {
                self.effects.outcomes.reserve(batch.proposals.len());
                for proposal in batch.proposals {
                    let id = ProposalId::of(&proposal);
                    self.effects.kinds.push(proposal.command.as_ref().map_or("unknown", command::name));
                    let outcome = match self.proposal(term, proposal) {
                        Ok(outcome) => Ok(outcome),
                        Err(ReadError::Refused(refusal)) => Err(refusal),
                        Err(ReadError::Storage(error)) => return Err(error.into()),
                    };
                    self.overlay.finish_command();
                    self.answered += outcome.as_ref().map_or(0, Outcome::pair_bytes);
                    self.effects.outcomes.push((id, outcome));
                }
                self.overlay.finish_entry();
            }
            Decoded::Change(change) => self.change(&change),
        }
        Ok(())
    }

    /// Permissions are those of this moment, whatever they were when the member that took the request looked.
    fn proposal(&mut self, term: u64, proposal: log::Proposal) -> Result<Outcome, ReadError> {
        let log::Proposal { command, username, auth_revision, internal, .. } = proposal;
        if let Some(command) = &command {
            maintenance::check(&self.maintenance, command)?;
        }
        if let Some(command) = &command
            && !internal
        {
            let who = Identity { username, revision: auth_revision };
            self.auth.state().check_command(&who, command, &self.overlay)?;
        }
        self.command(term, command)
    }

    fn command(&mut self, term: u64, command: Option<Command>) -> Result<Outcome, ReadError> {
        match command {
            Some(Command::Put(request)) => write::put(&mut self.overlay, &request).map(Outcome::Put),
            Some(Command::DeleteRange(request)) => {
                Ok(Outcome::DeleteRange(write::delete_range(&mut self.overlay, &request)?))
            }
            Some(Command::Txn(request)) => write::txn(&mut self.overlay, &request).map(Outcome::Txn),
            Some(Command::Compact(request)) => {
                let response = write::compact(&mut self.overlay, &request)?;
                self.effects.compacted = Some(request.revision);
                Ok(Outcome::Compact(response))
            }
            Some(Command::LeaseGrant(request)) => {
                lease::write::grant(&mut self.overlay, &request).map(Outcome::LeaseGrant)
            }
            Some(Command::LeaseRevoke(request)) => {
                lease::write::revoke(&mut self.overlay, request.id).map(Outcome::LeaseRevoke)
            }
            Some(Command::LeaseExpire(command)) => {
                lease::write::expire(&mut self.overlay, &command, term).map(Outcome::LeaseRevoke)
            }
            Some(Command::LeaseCheckpoint(command)) => {
                lease::write::checkpoint(&mut self.overlay, &command, term).map(|()| Outcome::LeaseCheckpoint)
            }
            Some(Command::Publish(request)) => {
                self.set_membership(membership::publish(&request, &self.membership)?);
                Ok(Outcome::Publish)
            }
            Some(Command::Alarm(request)) => {
                Ok(Outcome::Alarm(self.maintain(|state| maintenance::alarm(state, &request))))
            }
            Some(Command::Downgrade(info)) => {
                self.maintain(|state| state.downgrade = Some(info));
                Ok(Outcome::Downgrade)
            }
            Some(
                command @ (Command::AuthEnable(_)
                | Command::AuthDisable(_)
                | Command::Authenticate(_)
                | Command::UserAdd(_)
                | Command::UserDelete(_)
                | Command::UserChangePassword(_)
                | Command::UserGrantRole(_)
                | Command::UserRevokeRole(_)
                | Command::RoleAdd(_)
                | Command::RoleDelete(_)
                | Command::RoleGrantPermission(_)
                | Command::RoleRevokePermission(_)),
            ) => {
                let token = self.auth.execute(&command, self.index)?;
                Ok(Outcome::Auth { revision: self.overlay.revisions().revision, token })
            }
            // Skipping what a newer version may have written would make this member differ from it.
            None => Err(corrupt(UNKNOWN_COMMAND).into()),
        }
    }

    fn change(&mut self, change: &log::MembershipChange) {
        let id = ProposalId { origin: change.origin, incarnation: change.incarnation, sequence: change.sequence };
        let outcome = membership::apply(change, &self.membership).map(|after| {
            self.effects.conf_changes.extend(change.change.as_ref().and_then(membership::conf_change));
            self.set_membership(after.clone());
            Outcome::Membership(after)
        });
        self.effects.kinds.push(command::MEMBERSHIP_CHANGE);
        self.effects.outcomes.push((id, outcome));
    }

    fn maintain<T>(&mut self, change: impl FnOnce(&mut log::Maintenance) -> T) -> T {
        let answer = change(Arc::make_mut(&mut self.maintenance));
        self.effects.maintenance = Some(Arc::clone(&self.maintenance));
        answer
    }

    fn set_membership(&mut self, after: log::Membership) {
        self.membership = Arc::new(after);
        self.effects.membership = Some(Arc::clone(&self.membership));
    }

    fn finish(mut self) -> (WriteBatch, Effects, Option<Counts>, Revisions) {
        let Finished { mut batch, events, unlisted, counts, leases, tally, revisions } = self.overlay.finish();
        self.effects.tally = tally;
        (self.effects.events, self.effects.unlisted, self.effects.leases) = (events, unlisted, leases);
        let (rows, auth, tokens) = self.auth.finish();
        batch.writes.extend(rows.writes);
        (self.effects.auth, self.effects.tokens) = (auth, tokens);
        (batch, self.effects, counts, revisions)
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::etcdserverpb as pb;
    use pb::request_op::Request;

    use super::*;
    use crate::storage::memory::{FailedWrite, MemoryKeySpace};

    fn machine() -> StateMachine<MemoryKeySpace> {
        StateMachine::open(Arc::new(MemoryKeySpace::default())).unwrap()
    }

    fn entry(index: u64, batch: log::Batch) -> Entry {
        Entry { index, term: 1, data: batch.encode_to_vec().into(), ..Default::default() }
    }

    fn put(index: u64) -> Entry {
        let put = pb::PutRequest { key: "a".into(), value: index.to_string().into(), ..Default::default() };
        let proposal = log::Proposal { sequence: index, command: Some(Command::Put(put)), ..Default::default() };
        entry(index, log::Batch { proposals: vec![proposal] })
    }

    fn complaint(entries: &[Entry]) -> String {
        let mut state = machine();
        let error = state.apply(entries).unwrap_err();
        assert!(state.key_space.view().unwrap().get(Table::Meta, APPLIED).unwrap().is_none(), "nothing is written");
        error.to_string()
    }

    #[test]
    fn an_entry_that_cannot_be_read_stops_the_member_and_writes_nothing() {
        let of = |kind, data: &'static [u8]| {
            let mut entry = Entry { index: 2, data: Bytes::from_static(data), ..Default::default() };
            entry.set_entry_type(kind);
            [put(1), entry]
        };
        assert!(complaint(&of(EntryType::EntryNormal, b"\xff")).starts_with("entry 2 of the log"));
        assert!(complaint(&of(EntryType::EntryConfChange, b"\xff")).starts_with("entry 2 of the log"));
        assert!(complaint(&of(EntryType::EntryConfChange, b"")).contains("unknown kind"));
        assert!(complaint(&of(EntryType::EntryConfChangeV2, b"")).contains("joint"));
        let unknown = entry(2, log::Batch { proposals: vec![log::Proposal::default()] });
        for (data, fit) in [(&put(1).data, true), (&Bytes::from_static(b"\xff"), false), (&unknown.data, false)] {
            assert_eq!(check_batch(data).is_ok(), fit, "the same is refused before it is in the log");
        }
        assert!(complaint(&[put(1), unknown]).contains("no command that this version knows"));
        assert_eq!(complaint(&[put(1), put(3)]), "entry 3 of the log cannot be applied: the next one is 2");
        assert_eq!(complaint(&[put(2)]), "entry 2 of the log cannot be applied: the next one is 1");
    }

    #[test]
    fn entries_that_were_applied_are_passed_over() {
        let mut state = machine();
        state.apply(&[put(1), put(2)]).unwrap();
        let again = state.apply(&[put(1), put(2)]).unwrap();
        assert_eq!(again, Effects { index: 2, term: 1, ..Effects::default() });
        let effects = state.apply(&[put(2), put(3)]).unwrap();
        assert_eq!((effects.index, effects.outcomes.len(), state.revision()), (3, 1, 4));
        assert_eq!(effects.outcomes[0].0.sequence, 3);
    }

    #[test]
    fn small_values_over_large_ones_are_several_runs() {
        let put = |index: u64, key: u64, bytes: usize| {
            let (key, value) = (key.to_be_bytes().to_vec().into(), vec![7; bytes].into());
            let put = pb::PutRequest { key, value, ..Default::default() };
            let proposal = log::Proposal { sequence: index, command: Some(Command::Put(put)), ..Default::default() };
            entry(index, log::Batch { proposals: vec![proposal] })
        };
        let mut state = machine();
        let large: Vec<_> = (1..=24).map(|index| put(index, index, 1 << 20)).collect();
        assert_eq!(state.apply(&large).unwrap().index, 24);
        let small: Vec<_> = (25..=48).map(|index| put(index, index - 24, 1)).collect();
        for (from, to) in [(24, 40), (40, 48)] {
            let effects = state.apply(&small).unwrap();
            assert_eq!((effects.index, state.applied().index, state.revision()), (to, to, to as i64 + 1));
            assert_eq!(
                effects.outcomes.iter().map(|(id, _)| id.sequence).collect::<Vec<_>>(),
                Vec::from_iter(from + 1..=to)
            );
            assert_eq!(effects.events.len(), effects.outcomes.len());
        }
    }

    #[test]
    fn large_answers_to_small_writes_are_several_runs() {
        let of = |index: u64, command| {
            let proposal = log::Proposal { sequence: index, command: Some(command), ..Default::default() };
            entry(index, log::Batch { proposals: vec![proposal] })
        };
        let put = |index: u64, key: &str, bytes: usize| {
            let put = pb::PutRequest { key: key.to_owned().into(), value: vec![7; bytes].into(), ..Default::default() };
            of(index, Command::Put(put))
        };
        let mut state = machine();
        state.apply(&[put(1, "l/1", 1 << 20), put(2, "l/2", 1 << 20)]).unwrap();
        let read = pb::RangeRequest { key: "l/".into(), range_end: "l0".into(), ..Default::default() };
        let write = pb::PutRequest { key: "k".into(), ..Default::default() };
        let operations = [Request::RequestRange(read), Request::RequestPut(write)];
        let inner = operations.map(|request| pb::RequestOp { request: Some(request) }).to_vec();
        let nested = pb::TxnRequest { success: inner, ..Default::default() };
        let outer = pb::RequestOp { request: Some(Request::RequestTxn(nested)) };
        let txn = pb::TxnRequest { success: vec![outer], ..Default::default() };
        let entries: Vec<_> = (3..=14).map(|index| of(index, Command::Txn(txn.clone()))).collect();
        // Each answers a little more than 2 MiB.
        for to in [10, 14] {
            let effects = state.apply(&entries).unwrap();
            assert_eq!((effects.index, state.applied().index, state.revision()), (to, to, to as i64 + 1));
        }
    }

    #[test]
    fn a_write_that_fails_is_an_error_and_a_restart_goes_on_from_what_is_flushed() {
        for left in [FailedWrite::Lost, FailedWrite::Kept] {
            let mut state = machine();
            state.apply(&[put(1)]).unwrap();
            state.key_space.flush().unwrap();
            state.apply(&[put(2)]).unwrap();
            assert_eq!((state.flushed_index().unwrap(), state.applied().index), (1, 2));
            state.key_space.fail_write(1, left);
            assert!(matches!(state.apply(&[put(3)]), Err(ApplyError::Storage(_))));
            let mut state = StateMachine::open(Arc::new(state.key_space.crash())).unwrap();
            assert_eq!((state.applied().index, state.revision()), (1, 2));
            state.apply(&[put(1), put(2), put(3)]).unwrap();
            assert_eq!((state.applied().index, state.revision()), (3, 4));
        }
    }

    #[test]
    fn a_key_space_of_another_format_is_refused() {
        let state = machine();
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, FORMAT, 2u32.to_be_bytes().to_vec());
        state.key_space.write(batch).unwrap();
        assert!(matches!(StateMachine::open(state.key_space), Err(ApplyError::Format { found: 2 })));
    }

    #[test]
    fn what_is_founded_is_found_after_a_crash() {
        let key_space = MemoryKeySpace::default();
        let member = log::Member { id: 5, ..Default::default() };
        let membership =
            log::Membership { cluster_id: 9, index: 1, next_id: 6, members: vec![member], removed: vec![] };
        let conf_state = membership::conf_state(&membership);
        let point = SnapshotPoint { index: 1, term: 3, conf_state: conf_state.clone() };
        StateMachine::found(&key_space, &membership, &point).unwrap();
        let state = StateMachine::open(Arc::new(key_space.crash())).unwrap();
        assert_eq!(*state.applied(), AppliedPoint { index: 1, term: 3, conf_state });
        assert_eq!(**state.membership(), membership);
        assert_eq!((state.revision(), state.compacted(), state.flushed_index().unwrap()), (1, -1, 1));
    }
}
