//! One member of one Raft group, without IO, clock or thread.
//!
//! The order the caller must keep: take a [`Batch`], send `send_now`, write `persist` (synced when it says so), then call
//! [`Replica::persisted`] and send what it returns; hand `committed` entries to the state machine in order and report
//! them with [`Replica::applied`]. Nothing is sent, acknowledged or applied that could be taken back by a crash.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfState, Entry, HardState, Message, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, ReadState, Ready, SnapshotStatus, StateRole};

use super::tail::{Tail, metadata_only};
use super::validate::{self, Facts, Invalid};
use crate::domain::random::Random;
use crate::storage::{LogStore, LogWrite, SnapshotPoint};

/// Bytes of one append message; with `MAX_INFLIGHT` it bounds the memory that one slow peer can hold.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;
/// Append messages on their way to one peer.
const MAX_INFLIGHT: usize = 256;
/// Bytes of proposals that are not committed yet; above it proposals are refused.
const MAX_UNCOMMITTED_BYTES: u64 = 64 << 20;
/// Bytes of committed entries handed out at once, so that applying starts early.
const MAX_COMMITTED_BYTES: u64 = 4 << 20;
/// A learner this many entries behind the commit index counts as caught up.
pub const CAUGHT_UP_ENTRIES: u64 = 1_000;

/// How a replica runs.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Raft id.
    pub id: u64,
    /// Ticks without a leader before an election.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Whether a candidate asks first who would vote for it, so that a member that was away disturbs nobody.
    pub pre_vote: bool,
    /// Seeds the election timeouts, so that a simulation replays exactly.
    pub seed: u64,
}

/// Raft's roles as others need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// The leader, 0 while none is known.
    pub leader: u64,
    /// The current term.
    pub term: u64,
    /// This replica leads.
    pub leads: bool,
}

/// Why a proposal did not enter the log. It never will by this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotProposed {
    /// This replica does not lead.
    NotLeader,
    /// Leadership is being handed over; it ends within an election timeout.
    Transferring,
    /// A membership change is not applied yet.
    ChangeInFlight,
    /// Too many bytes are not committed yet.
    Full,
}

/// What the caller must carry out, in the order of the fields.
pub struct Batch {
    /// May be sent at once.
    pub send_now: Vec<Message>,
    /// A snapshot that was accepted: it replaces the whole state before anything else is applied.
    pub install: Option<SnapshotPoint>,
    /// To be appended.
    pub entries: Vec<Entry>,
    /// To be written.
    pub hard_state: Option<HardState>,
    /// Whether the write must be on the disk before [`Replica::persisted`].
    pub sync: bool,
    /// To be sent after the write.
    pub send_after: Vec<Message>,
    /// Committed and durable: to be applied in order.
    pub committed: Vec<Entry>,
    /// Reads that are confirmed: context and the index to wait for.
    pub reads: Vec<ReadState>,
    ready: Ready,
}

impl Batch {
    /// The log write of this batch; `key_space` names the directory of an installed snapshot.
    pub fn as_write<'a>(&'a self, key_space: Option<&'a str>) -> LogWrite<'a> {
        LogWrite {
            entries: &self.entries,
            hard_state: self.hard_state.as_ref(),
            reset_to: self.install.as_ref(),
            key_space,
            sync: self.sync,
        }
    }

    /// Whether there is anything to write.
    pub fn writes(&self) -> bool {
        !self.entries.is_empty() || self.hard_state.is_some() || self.install.is_some()
    }
}

/// What becomes due once a batch is durable.
#[derive(Default)]
pub struct Persisted {
    /// To be sent.
    pub send: Vec<Message>,
    /// To be applied after the batch's own.
    pub committed: Vec<Entry>,
}

/// One replica.
pub struct Replica<L: LogStore> {
    raw: RawNode<Tail<L>>,
    config: ReplicaConfig,
    /// Elections that this replica started; part of the seed of the next timeout.
    attempts: u64,
    /// Index of the last membership change that this replica proposed.
    change_at: u64,
    /// Index of the last installed snapshot: its configuration already holds every change up to there.
    installed: u64,
}

impl<L: LogStore> Replica<L> {
    /// Starts on a log that [`recovery`](super::recovery) found in order.
    ///
    /// # Errors
    /// The log cannot be read, or Raft refuses the configuration.
    pub fn open(
        config: ReplicaConfig,
        log: Arc<L>,
        applied: u64,
        conf_state: ConfState,
        logger: &slog::Logger,
    ) -> Result<Self, raft::Error> {
        let tail = Tail::new(log, conf_state)
            .map_err(|error| raft::Error::Store(raft::StorageError::Other(Box::new(error))))?;
        let raw = RawNode::new(&raft_config(&config, applied), tail, logger)?;
        let mut replica = Self { raw, config, attempts: 0, change_at: 0, installed: 0 };
        replica.set_election_timeout();
        Ok(replica)
    }

    /// One tick of the caller's clock.
    pub fn tick(&mut self) {
        if self.raw.tick() && self.raw.raft.state != StateRole::Leader {
            self.attempts += 1;
        }
        self.set_election_timeout();
    }

    /// Starts an election now.
    pub fn campaign(&mut self) {
        if self.raw.raft.promotable() {
            let _ = self.raw.campaign();
            self.set_election_timeout();
        }
    }

    /// Takes a peer's message.
    ///
    /// # Errors
    /// What [`validate`] refuses; the message changed nothing.
    pub fn step(&mut self, message: Message) -> Result<(), Invalid> {
        validate::validate(&message, &self.facts())?;
        // A response of a peer that is no longer a member is of no use and no harm.
        let _ = self.raw.step(message);
        self.set_election_timeout();
        Ok(())
    }

    /// Appends client entries, on the leader.
    ///
    /// # Errors
    /// Nothing was appended.
    pub fn propose(&mut self, data: Vec<Bytes>) -> Result<(), NotProposed> {
        self.may_propose()?;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.id;
        let entries: Vec<Entry> = data.into_iter().map(|data| Entry { data, ..Entry::default() }).collect();
        message.set_entries(entries.into());
        self.raw.raft.step(message).map_err(|_| NotProposed::Full)
    }

    /// Appends a membership change, on the leader, one at a time.
    ///
    /// # Errors
    /// Nothing was appended. raft-rs would replace a second change by an empty entry and report success; here it is
    /// refused instead.
    pub fn propose_change(&mut self, mut change: ConfChange, context: Vec<u8>) -> Result<(), NotProposed> {
        self.may_propose()?;
        if self.change_in_flight() {
            return Err(NotProposed::ChangeInFlight);
        }
        // The state machine decodes the entry's data only: the context travels inside the change, not beside it.
        change.set_context(context.into());
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| NotProposed::Full)?;
        self.change_at = self.raw.raft.raft_log.last_index();
        Ok(())
    }

    /// Asks for a read index under a context that was never used before. Raft may drop it without a word: the caller
    /// repeats with a fresh context.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
    }

    /// Begins to hand leadership to `target`, a voter. Nothing happens on a replica that does not lead: Raft would ask
    /// the leader by a message, which none of ours takes.
    pub fn transfer(&mut self, target: u64) {
        if self.role().leads {
            self.raw.transfer_leader(target);
        }
    }

    /// A peer could not be reached.
    pub fn report_unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
    }

    /// A snapshot transfer ended.
    pub fn report_snapshot(&mut self, id: u64, arrived: bool) {
        self.raw.report_snapshot(id, if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// Takes a snapshot whose files are complete and verified on this member's disk. Raft may still refuse it: only when
    /// the next batch carries `install` is it taken.
    ///
    /// # Errors
    /// What [`validate`] refuses.
    pub fn step_snapshot(&mut self, from: u64, term: u64, point: &SnapshotPoint) -> Result<(), Invalid> {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.from = from;
        message.to = self.config.id;
        message.term = term;
        message.set_snapshot(metadata_only(point));
        self.step(message)
    }

    /// Whether there is something to do.
    pub fn has_batch(&mut self) -> bool {
        self.raw.has_ready()
    }

    /// What there is to do, if anything.
    pub fn batch(&mut self) -> Option<Batch> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let install = (!ready.snapshot().is_empty()).then(|| {
            let metadata = ready.snapshot().get_metadata();
            SnapshotPoint { index: metadata.index, term: metadata.term, conf_state: metadata.get_conf_state().clone() }
        });
        Some(Batch {
            send_now: self.placed(ready.take_messages()),
            install,
            entries: ready.take_entries(),
            hard_state: ready.hs().cloned(),
            sync: ready.must_sync(),
            send_after: ready.take_persisted_messages(),
            committed: ready.take_committed_entries(),
            reads: ready.take_read_states(),
            ready,
        })
    }

    /// The batch is written (and synced if it said so).
    pub fn persisted(&mut self, batch: Batch) -> Persisted {
        let tail = self.raw.mut_store();
        let installed = batch.install.as_ref().map(|point| point.index);
        if let Some(point) = batch.install {
            self.installed = point.index;
            tail.reset(point);
        }
        tail.append(&batch.entries);
        if let Some(hard_state) = batch.hard_state {
            tail.set_hard_state(hard_state);
        }
        let mut light = self.raw.advance_append(batch.ready);
        if let Some(index) = installed {
            // Raft reads all entries above its applied index before an election, and below the snapshot there are none:
            // to Raft the snapshot is applied as soon as the log begins there, whenever the state machine follows.
            self.raw.advance_apply_to(index);
        }
        let (send, committed) = (light.take_messages(), light.take_committed_entries());
        Persisted { send: self.placed(send), committed }
    }

    /// raft-rs adds new entries to an append that waits to be sent. If that one is empty it does not look whether they
    /// follow its position (raft 0.7.0, `util::is_continuous_ents`), and they do not once the peer's progress went back, as
    /// it does when the peer could not be reached. Such an append gets the position of its entries. One that cannot be
    /// mended is lost, which Raft copes with.
    fn placed(&self, mut messages: Vec<Message>) -> Vec<Message> {
        let role = self.role();
        messages.retain_mut(|message| {
            let Some(before) = misplaced(message) else { return true };
            let term = self.raw.raft.raft_log.term(before).unwrap_or_default();
            (message.index, message.log_term) = (before, term);
            role.leads && message.term == role.term && term != 0
        });
        messages
    }

    /// Everything up to `index` is applied; `changes` are the accepted membership changes among it, in order.
    pub fn applied(&mut self, index: u64, changes: &[ConfChange]) {
        for change in changes.iter().filter(|_| index > self.installed) {
            // The state machine checked it against the same membership, so Raft cannot refuse it.
            if let Err(error) = self.raw.apply_conf_change(change) {
                unreachable!("an applied membership change was refused by Raft: {error}");
            }
        }
        if index > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(index);
        }
        self.set_election_timeout();
    }

    /// The log, to note what was trimmed or which snapshot can be sent.
    pub fn tail(&mut self) -> &mut Tail<L> {
        self.raw.mut_store()
    }

    /// Leader and term.
    pub fn role(&self) -> Role {
        let raft = &self.raw.raft;
        Role { leader: raft.leader_id, term: raft.term, leads: raft.state == StateRole::Leader }
    }

    /// The committed index.
    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// The last index.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// A leader transfer is running.
    pub fn transferring(&self) -> bool {
        self.transferee().is_some()
    }

    /// To whom leadership is on its way.
    pub fn transferee(&self) -> Option<u64> {
        self.raw.raft.lead_transferee
    }

    /// A membership change is proposed and not applied, or one of an earlier leader may be.
    pub fn change_in_flight(&self) -> bool {
        self.role().leads && (self.raw.raft.has_pending_conf() || self.change_at > self.raw.raft.raft_log.applied)
    }

    /// Whether `id` votes in the configuration that Raft runs with.
    pub fn is_voter(&self, id: u64) -> bool {
        self.raw.raft.prs().conf().voters().contains(id)
    }

    /// Whether an entry of the present term is committed: before that a leader answers no read.
    pub fn committed_in_term(&self) -> bool {
        self.raw.raft.commit_to_current_term()
    }

    /// The leader's view of each member: (id, match index, marked as active, snapshot running). Empty elsewhere. One that was
    /// just added is marked although nobody has heard of it.
    pub fn progress(&self) -> Vec<(u64, u64, bool, bool)> {
        if !self.role().leads {
            return Vec::new();
        }
        let of = |(id, progress): (&u64, &raft::Progress)| {
            let own = *id == self.config.id;
            let snapshot = progress.state == raft::ProgressState::Snapshot;
            (*id, progress.matched, own || progress.recent_active, snapshot)
        };
        let mut all: Vec<_> = self.raw.raft.prs().iter().map(of).collect();
        all.sort_unstable();
        all
    }

    fn facts(&self) -> Facts {
        let log = &self.raw.raft.raft_log;
        Facts {
            id: self.config.id,
            term: self.raw.raft.term,
            committed: log.committed,
            last_index: log.last_index(),
            persisted: log.persisted,
            leads: self.raw.raft.state == StateRole::Leader,
        }
    }

    fn may_propose(&self) -> Result<(), NotProposed> {
        // One that was removed leads until the others notice, and takes nothing any more.
        if !self.role().leads || self.raw.raft.prs().get(self.config.id).is_none() {
            return Err(NotProposed::NotLeader);
        }
        if self.transferring() {
            return Err(NotProposed::Transferring);
        }
        Ok(())
    }

    /// raft-rs draws its timeouts from the thread's random numbers, which no simulation could replay. Drawn from the
    /// seed, the id, the term and the number of attempts they are as spread, and the same in every run.
    fn set_election_timeout(&mut self) {
        let ticks = self.config.election_ticks;
        let state =
            self.config.seed ^ self.config.id.rotate_left(40) ^ self.raw.raft.term.rotate_left(20) ^ self.attempts;
        let drawn = Random::new(state).below(ticks);
        self.raw.raft.set_randomized_election_timeout(ticks + drawn);
    }
}

/// The index before the entries of an append, if it says another one.
fn misplaced(message: &Message) -> Option<u64> {
    let first = message.entries.first().filter(|_| message.get_msg_type() == MessageType::MsgAppend)?;
    (first.index != message.index + 1).then(|| first.index.saturating_sub(1))
}

fn raft_config(config: &ReplicaConfig, applied: u64) -> Config {
    Config {
        id: config.id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: MAX_MESSAGE_BYTES,
        max_inflight_msgs: MAX_INFLIGHT,
        check_quorum: true,
        pre_vote: config.pre_vote,
        read_only_option: ReadOnlyOption::Safe,
        batch_append: true,
        max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
        max_committed_size_per_ready: MAX_COMMITTED_BYTES,
        ..Config::default()
    }
}
