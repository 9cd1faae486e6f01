//! One simulated member: its disk, and the process that runs on it. The process does what the driver, the applier and
//! the keeper of `engine/` do, in their order, but one step at a time, and it may be cut off before or after every
//! durable write.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use balsa_proto::etcdserverpb::PutRequest;
use balsa_proto::log::{self, membership_change::Change};
use prost::Message as _;
use raft::eraftpb::{ConfChange, Entry, EntryType, Message, MessageType};

use super::super::recovery::repair;
use super::super::validate::Invalid;
use super::super::{Batch, NotProposed, Replica, ReplicaConfig};
use super::network::{Body, Mutation, Outgoing, Stop};
use crate::domain::apply::{ApplyError, StateMachine};
use crate::domain::command::{Command, Outcome, ProposalId, first_sequence};
use crate::domain::membership;
use crate::storage::memory::{MemoryKeySpace, MemoryLog};
use crate::storage::{KeySpace, LogStore, LogWrite, SnapshotPoint};

/// Ticks without a leader before an election.
pub(super) const ELECTION_TICKS: usize = 10;
/// Ticks after which a read is asked again.
const REPEAT_READ_TICKS: u64 = 4;
/// Where a process may be cut off: around every durable write, and before what it did is known outside.
pub(super) const CRASH_POINTS: [&str; 9] = [
    // A batch: before and after its write of the log, and after its messages.
    "log-before",
    "log-after",
    "batch-sent",
    // The same write where it switches to a received snapshot.
    "switch-before",
    "switch-after",
    // Entries are applied, nobody answered.
    "applied",
    // The key space is durable, the log not trimmed.
    "flushed",
    // A checkpoint is made, not offered.
    "checkpoint-made",
    // A snapshot's files are there, Raft not told.
    "snapshot-received",
];

/// Name of the first key space of a disk.
const FIRST: &str = "first";

/// What survives a crash.
pub(super) struct Disk {
    pub(super) log: MemoryLog,
    key_spaces: BTreeMap<String, MemoryKeySpace>,
    names: u64,
}

impl Disk {
    /// A joiner's: nothing.
    pub(super) fn empty() -> Self {
        let key_spaces = BTreeMap::from([(FIRST.to_owned(), MemoryKeySpace::default())]);
        Self { log: MemoryLog::default(), key_spaces, names: 0 }
    }

    /// A founder's, as `engine::member::found` leaves it.
    pub(super) fn founded(membership: &log::Membership) -> Result<Self, Stop> {
        let disk = Self::empty();
        let point = SnapshotPoint { index: 1, term: 1, conf_state: membership::conf_state(membership) };
        StateMachine::found(&disk.key_spaces[FIRST], membership, &point)?;
        let hard_state = raft::eraftpb::HardState { term: 1, commit: 1, ..Default::default() };
        let write = LogWrite {
            reset_to: Some(&point),
            hard_state: Some(&hard_state),
            key_space: Some(FIRST),
            sync: true,
            ..LogWrite::default()
        };
        disk.log.write(write)?;
        Ok(disk)
    }

    /// What a crash leaves, with the first `unsynced` of the log's writes that were not synced.
    pub(super) fn crashed(&self, unsynced: usize) -> Self {
        let key_spaces = self.key_spaces.iter().map(|(name, store)| (name.clone(), store.crash())).collect();
        Self { log: self.log.crash_keeping(unsynced), key_spaces, names: self.names }
    }
}

/// What the applier is given.
enum Work {
    Apply(Vec<Entry>),
    Install(String),
}

/// What the applier answers.
struct Report {
    index: u64,
    term: u64,
    conf_changes: Vec<ConfChange>,
    installed: bool,
}

struct Waiter {
    data: Vec<u8>,
    sent_in: u64,
}

struct Queued {
    /// The member that sent it on and the term it did so in; None for one of our own.
    origin: Option<(u64, u64)>,
    sequence: u64,
    data: Vec<u8>,
}

/// A read: the revision that its answer must reach, and the context of the attempt under way.
struct Read {
    id: u64,
    floor: i64,
    attempt: Option<(Vec<u8>, u64)>,
    confirmed: Option<u64>,
}

/// A snapshot that can be sent.
struct Checkpoint {
    point: SnapshotPoint,
    store: MemoryKeySpace,
}

/// What a step of a process made known to the outside.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Messages and frames that left.
    pub(super) sent: Vec<Outgoing>,
    /// Entries that were applied, in order.
    pub(super) applied: Vec<Entry>,
    /// Commands that were acknowledged to clients: key and revision.
    pub(super) acknowledged: Vec<(String, i64)>,
    /// Membership changes that were answered.
    pub(super) changes: Vec<(u64, Result<(), String>)>,
    /// Reads that were answered: id, the revision they had to reach, the one they saw.
    pub(super) reads: Vec<(u64, i64, i64)>,
}

/// A running process.
pub(super) struct Process {
    pub(super) id: u64,
    incarnation: u64,
    mutation: Mutation,
    pub(super) replica: Replica<MemoryLog>,
    pub(super) machine: StateMachine<MemoryKeySpace>,
    store: MemoryKeySpace,
    log: MemoryLog,
    pub(super) disk: Disk,
    work: VecDeque<Work>,
    reports: VecDeque<Report>,
    applied: u64,
    applied_term: u64,
    queue: VecDeque<Queued>,
    waiters: BTreeMap<u64, Waiter>,
    sequence: u64,
    reads: Vec<Read>,
    contexts: u64,
    ticks: u64,
    role: (u64, u64),
    checkpoint: Option<Checkpoint>,
    pub(super) wants_checkpoint: bool,
    sending: BTreeMap<u64, u64>,
    install_name: Option<String>,
    /// Crash points left before the process is cut off; None for never.
    pub(super) fuse: Option<u32>,
    pub(super) seen: Seen,
}

impl Process {
    /// Opens a disk as `engine::member::open` does.
    pub(super) fn open(id: u64, incarnation: u64, seed: u64, mut disk: Disk, mutation: Mutation) -> Result<Self, Stop> {
        let initial = disk.log.initial()?;
        let name = match initial.key_space.clone() {
            Some(name) => name,
            None => {
                disk.log.write(LogWrite { key_space: Some(FIRST), sync: true, ..LogWrite::default() })?;
                FIRST.to_owned()
            }
        };
        disk.key_spaces.retain(|key, _| *key == name);
        let store = disk.key_spaces.entry(name).or_default().clone();
        let machine = StateMachine::open(Arc::new(store.clone()))?;
        let applied = point_of(&machine);
        let fixes = repair(&initial, &applied).map_err(|lost| Stop::Broken(lost.to_string()))?;
        if !fixes.is_empty() {
            disk.log.write(fixes.as_write())?;
        }
        let (election_ticks, seed) = (ELECTION_TICKS, seed ^ incarnation);
        let config = ReplicaConfig { id, election_ticks, heartbeat_ticks: 2, pre_vote: true, seed };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let log = disk.log.clone();
        let mut replica =
            Replica::open(config, Arc::new(log.clone()), applied.index, applied.conf_state.clone(), &logger)
                .map_err(|error| Stop::Broken(format!("open: {error}")))?;
        if machine.membership().members.len() == 1 {
            replica.campaign();
        }
        Ok(Self {
            id,
            incarnation,
            mutation,
            replica,
            machine,
            store,
            log,
            disk,
            work: VecDeque::new(),
            reports: VecDeque::new(),
            applied: applied.index,
            applied_term: 0,
            queue: VecDeque::new(),
            waiters: BTreeMap::new(),
            sequence: first_sequence(incarnation),
            reads: Vec::new(),
            contexts: 0,
            ticks: 0,
            role: (0, 0),
            checkpoint: None,
            wants_checkpoint: false,
            sending: BTreeMap::new(),
            install_name: None,
            fuse: None,
            seen: Seen::default(),
        })
    }

    // ---- inputs

    pub(super) fn tick(&mut self) -> Result<(), Stop> {
        self.ticks += 1;
        self.replica.tick();
        self.turn()
    }

    /// A client creates a key.
    pub(super) fn put(&mut self, key: &str) -> Result<(), Stop> {
        self.sequence += 1;
        let sequence = self.sequence;
        let put = PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
        let (origin, incarnation) = (self.id, self.incarnation);
        let proposal =
            log::Proposal { origin, incarnation, sequence, command: Some(Command::Put(put)), ..Default::default() };
        let data = log::Batch { proposals: vec![proposal] }.encode_to_vec();
        self.waiters.insert(sequence, Waiter { data: data.clone(), sent_in: 0 });
        self.queue.push_back(Queued { origin: None, sequence, data });
        self.turn()
    }

    /// A client reads; the answer must reach revision `floor`.
    pub(super) fn read(&mut self, id: u64, floor: i64) -> Result<(), Stop> {
        self.reads.push(Read { id, floor, attempt: None, confirmed: None });
        self.turn()
    }

    /// Proposes a membership change after the checks of `engine/changes.rs`; says why not.
    pub(super) fn change(&mut self, change: Change) -> Result<Result<(), String>, Stop> {
        if let Err(why) = self.may_change(&change) {
            return Ok(Err(why));
        }
        self.sequence += 1;
        let sequence = 1 << 63 | self.sequence;
        let (origin, incarnation) = (self.id, self.incarnation);
        let planned_on = self.machine.membership().index;
        let Some(conf_change) = membership::conf_change(&change) else { return Ok(Err("no change".to_owned())) };
        let context = log::MembershipChange { origin, incarnation, sequence, planned_on, change: Some(change) };
        let proposed = self.replica.propose_change(conf_change, context.encode_to_vec());
        self.turn()?;
        Ok(proposed.map_err(|error| format!("{error:?}")))
    }

    fn may_change(&self, change: &Change) -> Result<(), String> {
        if !self.replica.role().leads {
            return Err(format!("{:?}", NotProposed::NotLeader));
        }
        if self.replica.change_in_flight() || self.replica.transferring() {
            return Err(format!("{:?}", NotProposed::ChangeInFlight));
        }
        let planned = log::MembershipChange { change: Some(change.clone()), ..Default::default() };
        membership::check(&planned, self.machine.membership()).map_err(|refusal| refusal.to_string())?;
        let progress = self.replica.progress();
        match change {
            Change::Remove(remove) if remove.id == self.id => Err("move the leader first".to_owned()),
            Change::Remove(remove) => {
                let members = &self.machine.membership().members;
                let rest: Vec<u64> =
                    members.iter().filter(|m| !m.is_learner && m.id != remove.id).map(|m| m.id).collect();
                let active = progress.iter().filter(|(id, _, active, _)| *active && rest.contains(id)).count();
                if active > rest.len() / 2 { Ok(()) } else { Err("quorum at risk".to_owned()) }
            }
            Change::Promote(promote) => {
                let matched = progress.iter().find(|(id, ..)| *id == promote.id).map_or(0, |(_, matched, ..)| *matched);
                if matched > 0 { Ok(()) } else { Err("not caught up".to_owned()) }
            }
            _ => Ok(()),
        }
    }

    /// Begins a transfer of leadership.
    pub(super) fn transfer(&mut self, target: u64) -> Result<bool, Stop> {
        if !self.replica.role().leads || self.replica.transferring() || !self.replica.is_voter(target) {
            return Ok(false);
        }
        self.replica.transfer(target);
        self.turn()?;
        Ok(true)
    }

    /// Takes what the network brings.
    pub(super) fn take(&mut self, from: u64, body: Body) -> Result<(), Stop> {
        match body {
            // A correct peer's message may be refused only where `validate` says so; Raft repeats what matters.
            Body::Raft(message) => match self.replica.step(self.mutated(*message)) {
                // The driver ends the process for this one: no sound disk may ever meet it.
                Err(error @ Invalid::CommitBeyondLog { .. }) if self.mutation == Mutation::None => {
                    return Err(Stop::Broken(error.to_string()));
                }
                _ => {}
            },
            Body::Forward { term, proposals } => self.forwarded(from, term, proposals),
            Body::Refusal { term, sequences } => self.refused(term, sequences),
            Body::Snapshot { term, point, store } => return self.install(from, term, &point, store),
        }
        self.turn()
    }

    fn mutated(&self, mut message: Message) -> Message {
        let of_vote = [MessageType::MsgRequestVoteResponse, MessageType::MsgRequestPreVoteResponse];
        if self.mutation == Mutation::CountRefusedVotes && of_vote.contains(&message.get_msg_type()) {
            message.reject = false;
        }
        message
    }

    /// A transfer of a snapshot ended.
    pub(super) fn snapshot_sent(&mut self, to: u64, arrived: bool) -> Result<(), Stop> {
        self.sending.remove(&to);
        self.replica.report_snapshot(to, arrived);
        self.turn()
    }

    /// The transport lost a peer.
    pub(super) fn unreachable(&mut self, id: u64) -> Result<(), Stop> {
        self.replica.report_unreachable(id);
        self.turn()
    }

    // ---- proposals

    fn propose_queued(&mut self) {
        let role = self.replica.role();
        if role.leads && !self.replica.transferring() {
            let of_now = |queued: &Queued| queued.origin.is_none_or(|(_, term)| term == role.term);
            let (queue, stale): (Vec<Queued>, Vec<Queued>) = self.queue.drain(..).partition(of_now);
            self.queue.extend(stale);
            self.refuse_strangers();
            let data: Vec<u8> = queue.iter().flat_map(|queued| queued.data.clone()).collect();
            if data.is_empty() {
                return;
            }
            if self.replica.propose(vec![data.into()]).is_err() {
                self.queue.extend(queue);
                return;
            }
            for queued in queue.iter().filter(|queued| queued.origin.is_none()) {
                if let Some(waiter) = self.waiters.get_mut(&queued.sequence) {
                    waiter.sent_in = role.term;
                }
                if self.mutation == Mutation::AcknowledgeProposal {
                    self.acknowledge(queued.sequence, 0);
                }
            }
        } else if role.leader != 0 && !role.leads {
            self.forward(role.leader, role.term);
        }
        self.refuse_strangers();
    }

    fn forward(&mut self, leader: u64, term: u64) {
        let own = self.queue.iter().filter(|queued| queued.origin.is_none());
        let proposals: Vec<(u64, Vec<u8>)> = own.map(|queued| (queued.sequence, queued.data.clone())).collect();
        self.queue.retain(|queued| queued.origin.is_some());
        for (sequence, _) in &proposals {
            if let Some(waiter) = self.waiters.get_mut(sequence) {
                waiter.sent_in = term;
            }
        }
        if !proposals.is_empty() {
            self.out(leader, Body::Forward { term, proposals });
        }
    }

    fn refuse_strangers(&mut self) {
        let strangers: Vec<(u64, u64, u64)> = self
            .queue
            .iter()
            .filter_map(|queued| queued.origin.map(|(from, term)| (from, term, queued.sequence)))
            .collect();
        self.queue.retain(|queued| queued.origin.is_none());
        for (to, term, sequence) in strangers {
            self.out(to, Body::Refusal { term, sequences: vec![sequence] });
        }
    }

    fn forwarded(&mut self, from: u64, term: u64, proposals: Vec<(u64, Vec<u8>)>) {
        let role = self.replica.role();
        if !role.leads || role.term != term || self.replica.transferring() {
            let sequences = proposals.into_iter().map(|(sequence, _)| sequence).collect();
            return self.out(from, Body::Refusal { term, sequences });
        }
        let queued = |(sequence, data)| Queued { origin: Some((from, term)), sequence, data };
        self.queue.extend(proposals.into_iter().map(queued));
    }

    fn refused(&mut self, term: u64, sequences: Vec<u64>) {
        for sequence in sequences {
            let any_term = self.mutation == Mutation::AnyRefusal;
            let Some(waiter) = self.waiters.get_mut(&sequence) else { continue };
            if waiter.sent_in == term || (any_term && waiter.sent_in != 0) {
                waiter.sent_in = 0;
                let data = waiter.data.clone();
                self.queue.push_back(Queued { origin: None, sequence, data });
            }
        }
    }

    fn send_again(&mut self, term: u64) {
        for (sequence, waiter) in &mut self.waiters {
            if waiter.sent_in != 0 && waiter.sent_in < term {
                waiter.sent_in = 0;
                self.queue.push_back(Queued { origin: None, sequence: *sequence, data: waiter.data.clone() });
            }
        }
    }

    fn acknowledge(&mut self, sequence: u64, revision: i64) {
        if let Some(waiter) = self.waiters.remove(&sequence) {
            let batch = log::Batch::decode(&waiter.data[..]).unwrap_or_default();
            self.seen.acknowledged.extend(batch.proposals.iter().filter_map(key_of).map(|key| (key, revision)));
        }
    }

    // ---- batches

    /// One turn of the driver's loop after an input.
    fn turn(&mut self) -> Result<(), Stop> {
        self.propose_queued();
        self.issue_reads();
        self.carry_out_batches()?;
        self.wants_checkpoint |= self.replica.tail().take_wanted();
        let role = self.replica.role();
        if self.role != (role.leader, role.term) {
            self.role = (role.leader, role.term);
            self.reads.iter_mut().for_each(|read| read.attempt = None);
        }
        Ok(())
    }

    fn carry_out_batches(&mut self) -> Result<(), Stop> {
        while let Some(batch) = self.replica.batch() {
            self.carry_out(batch)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, mut batch: Batch) -> Result<(), Stop> {
        self.send(std::mem::take(&mut batch.send_now));
        if self.mutation == Mutation::SendBeforeWrite {
            self.send(std::mem::take(&mut batch.send_after));
        }
        let switches = batch.install.is_some();
        self.crash_point(if switches { "switch-before" } else { "log-before" })?;
        let installing = switches.then(|| self.install_name.take()).flatten();
        if switches && installing.is_none() {
            return Err(Stop::Broken("a snapshot was taken that no transfer brought".to_owned()));
        }
        if batch.writes() {
            let mut write = batch.as_write(installing.as_deref());
            write.sync &= self.mutation != Mutation::NoSync;
            self.log.write(write)?;
            self.crash_point(if switches { "switch-after" } else { "log-after" })?;
        }
        if let Some(name) = installing {
            self.work.push_back(Work::Install(name));
        }
        self.send(std::mem::take(&mut batch.send_after));
        self.crash_point("batch-sent")?;
        self.queue_work(std::mem::take(&mut batch.committed))?;
        for state in std::mem::take(&mut batch.reads) {
            let of = |read: &&mut Read| read.attempt.as_ref().is_some_and(|(context, _)| *context == state.request_ctx);
            self.reads.iter_mut().filter(of).for_each(|read| read.confirmed = Some(state.index));
        }
        self.answer_reads();
        let persisted = self.replica.persisted(batch);
        self.send(persisted.send);
        self.queue_work(persisted.committed)
    }

    fn queue_work(&mut self, committed: Vec<Entry>) -> Result<(), Stop> {
        let Some(last) = committed.last() else { return Ok(()) };
        if last.index > self.replica.commit() || last.index > self.log.initial()?.last_index {
            return Err(Stop::Broken(format!("entry {} is handed out and not committed and written here", last.index)));
        }
        self.work.push_back(Work::Apply(committed));
        Ok(())
    }

    fn crash_point(&mut self, name: &'static str) -> Result<(), Stop> {
        debug_assert!(CRASH_POINTS.contains(&name));
        match &mut self.fuse {
            Some(0) => Err(Stop::Crashed(name)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn send(&mut self, outgoing: Vec<Message>) {
        for message in outgoing {
            let to = message.to;
            if message.get_msg_type() != MessageType::MsgSnapshot {
                self.out(to, Body::Raft(Box::new(message)));
                continue;
            }
            match &self.checkpoint {
                Some(Checkpoint { point, store }) => {
                    self.sending.insert(to, point.index);
                    let (term, point, store) = (message.term, point.clone(), store.clone());
                    self.out(to, Body::Snapshot { term, point, store });
                }
                None => self.replica.report_snapshot(to, false),
            }
        }
    }

    fn out(&mut self, to: u64, body: Body) {
        self.seen.sent.push(Outgoing { from: self.id, to, body });
    }

    // ---- reads

    fn issue_reads(&mut self) {
        let role = self.replica.role();
        if self.mutation == Mutation::LocalReads && role.leads {
            self.reads.iter_mut().for_each(|read| read.confirmed = Some(0));
            self.answer_reads();
        }
        if role.leader == 0 || (role.leads && !self.replica.committed_in_term()) {
            return;
        }
        for read in self.reads.iter_mut().filter(|read| read.confirmed.is_none()) {
            let fresh = |(_, since): &(Vec<u8>, u64)| self.ticks - since < REPEAT_READ_TICKS;
            if read.attempt.as_ref().is_some_and(fresh) {
                continue;
            }
            self.contexts += 1;
            let parts = [self.id, self.incarnation, self.contexts];
            let context: Vec<u8> = parts.iter().flat_map(|part| part.to_be_bytes()).collect();
            read.attempt = Some((context.clone(), self.ticks));
            self.replica.read_index(context);
        }
    }

    fn answer_reads(&mut self) {
        let (applied, revision) = (self.applied, self.machine.revision());
        let seen = &mut self.seen.reads;
        self.reads.retain(|read| {
            let due = read.confirmed.is_some_and(|index| index <= applied);
            if due {
                seen.push((read.id, read.floor, revision));
            }
            !due
        });
    }

    // ---- applying

    /// Whether the applier has work.
    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Whether the applier has reported something that the driver did not take yet.
    pub(super) fn has_reports(&self) -> bool {
        !self.reports.is_empty()
    }

    /// The applier takes the next run, several pieces of work as one if `together`.
    pub(super) fn apply(&mut self, together: bool) -> Result<(), Stop> {
        let mut entries = match self.work.pop_front() {
            Some(Work::Apply(entries)) => entries,
            Some(Work::Install(name)) => return self.switch(name),
            None => return Ok(()),
        };
        while together && matches!(self.work.front(), Some(Work::Apply(_))) {
            if let Some(Work::Apply(more)) = self.work.pop_front() {
                entries.extend(more);
            }
        }
        let before = self.machine.applied().index;
        let effects = self.machine.apply(&self.passed_over(&entries))?;
        self.seen.applied.extend(entries.into_iter().filter(|entry| entry.index > before));
        self.crash_point("applied")?;
        for (id, outcome) in effects.outcomes {
            self.answer(id, outcome);
        }
        let (index, term, conf_changes) = (effects.index, effects.term, effects.conf_changes);
        self.reports.push_back(Report { index, term, conf_changes, installed: false });
        Ok(())
    }

    /// What the state machine is given of `entries`: all of it, if it is built as it is.
    fn passed_over<'a>(&self, entries: &'a [Entry]) -> Cow<'a, [Entry]> {
        if self.mutation != Mutation::SkipEntries || self.id != 1 {
            return Cow::Borrowed(entries);
        }
        let skipped =
            |entry: &Entry| entry.get_entry_type() == EntryType::EntryNormal && entry.index.is_multiple_of(10);
        let mut entries = entries.to_vec();
        entries.iter_mut().filter(|entry| skipped(entry)).for_each(|entry| entry.data.clear());
        Cow::Owned(entries)
    }

    fn answer(&mut self, id: ProposalId, outcome: Result<Outcome, crate::domain::refusal::Refusal>) {
        if (id.origin, id.incarnation) != (self.id, self.incarnation) {
            return;
        }
        match outcome {
            Ok(Outcome::Put(response)) => {
                let revision = response.header.as_ref().map_or(0, |header| header.revision);
                self.acknowledge(id.sequence, revision);
            }
            Ok(_) => self.seen.changes.push((id.sequence, Ok(()))),
            Err(refusal) => self.seen.changes.push((id.sequence, Err(refusal.to_string()))),
        }
    }

    fn switch(&mut self, name: String) -> Result<(), Stop> {
        let Some(store) = self.disk.key_spaces.get(&name).cloned() else {
            return Err(Stop::Broken(format!("no key space {name}")));
        };
        self.machine = StateMachine::open(Arc::new(store.clone()))?;
        self.store = store;
        self.disk.key_spaces.retain(|key, _| *key == name);
        let applied = self.machine.applied();
        let (index, term) = (applied.index, applied.term);
        self.reports.push_back(Report { index, term, conf_changes: Vec::new(), installed: true });
        Ok(())
    }

    /// The driver takes the next report.
    pub(super) fn report(&mut self) -> Result<(), Stop> {
        let Some(report) = self.reports.pop_front().filter(|_| self.mutation != Mutation::NeverReport) else {
            return Ok(());
        };
        self.applied = report.index;
        self.replica.applied(report.index, &report.conf_changes);
        self.answer_reads();
        if report.installed && self.mutation != Mutation::ForgetSnapshots {
            // What was sent may be in the snapshot, answered by nobody: its outcome stays unknown.
            self.waiters.retain(|_, waiter| waiter.sent_in == 0 || waiter.sent_in > report.term);
        }
        if report.term > self.applied_term {
            self.applied_term = report.term;
            self.send_again(report.term);
        }
        self.turn()
    }

    /// Whether this process has learned that its member was removed.
    pub(super) fn is_removed(&self) -> bool {
        self.machine.membership().removed.contains(&self.id)
    }

    // ---- housekeeping

    /// Makes the key space durable and trims the log, keeping `keep` entries.
    pub(super) fn flush(&mut self, keep: u64) -> Result<(), Stop> {
        self.store.flush()?;
        self.crash_point("flushed")?;
        let flushed = self.machine.flushed_index()?;
        self.trim(flushed, keep)
    }

    fn trim(&mut self, flushed: u64, keep: u64) -> Result<(), Stop> {
        let mut index = flushed.min(self.applied).min(self.replica.last_index().saturating_sub(keep));
        let offered = self.checkpoint.as_ref().map(|checkpoint| checkpoint.point.index);
        if let Some(lowest) = self.sending.values().copied().chain(offered).min() {
            index = index.min(lowest);
        }
        if index <= self.replica.tail().point().index {
            return Ok(());
        }
        let Ok(term) = raft::Storage::term(self.replica.tail(), index) else { return Ok(()) };
        let conf_state = self.replica.tail().point().conf_state.clone();
        let point = SnapshotPoint { index, term, conf_state };
        self.log.trim(&point)?;
        self.replica.tail().trim(point);
        Ok(())
    }

    /// Makes a checkpoint and offers it to Raft.
    pub(super) fn make_checkpoint(&mut self) -> Result<(), Stop> {
        self.wants_checkpoint = false;
        let store = self.store.fork()?;
        self.crash_point("checkpoint-made")?;
        let point = point_of(&StateMachine::open(Arc::new(store.clone()))?);
        self.replica.tail().offer(Some(point.clone()));
        self.checkpoint = Some(Checkpoint { point, store });
        self.turn()
    }

    /// Whether a checkpoint could be made now.
    pub(super) fn may_checkpoint(&self) -> bool {
        self.wants_checkpoint && self.sending.is_empty()
    }

    /// Nobody fetches the checkpoint any more.
    pub(super) fn drop_checkpoint(&mut self) {
        if self.sending.is_empty() && self.checkpoint.take().is_some() {
            self.replica.tail().offer(None);
        }
    }

    fn install(&mut self, from: u64, term: u64, point: &SnapshotPoint, store: MemoryKeySpace) -> Result<(), Stop> {
        self.disk.names += 1;
        let name = format!("{}-{}", self.incarnation, self.disk.names);
        self.disk.key_spaces.insert(name.clone(), store.fork()?);
        self.crash_point("snapshot-received")?;
        self.install_name = Some(name);
        // Refused or not, the next batch says whether it was taken.
        let _ = self.replica.step_snapshot(from, term, point);
        self.carry_out_batches()?;
        self.install_name = None;
        self.turn()
    }

    /// Cuts the process off.
    pub(super) fn crash(self, unsynced: usize) -> Disk {
        self.disk.crashed(unsynced)
    }

    /// Puts that were accepted and have no answer yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Reads that have no answer yet.
    pub(super) fn reading(&self) -> usize {
        self.reads.len()
    }

    /// The key space in use.
    pub(super) fn store(&self) -> &MemoryKeySpace {
        &self.store
    }
}

/// Where a state machine stands, as the log and snapshots name it.
fn point_of(machine: &StateMachine<MemoryKeySpace>) -> SnapshotPoint {
    let applied = machine.applied();
    SnapshotPoint { index: applied.index, term: applied.term, conf_state: applied.conf_state.clone() }
}

/// The key that a proposal creates.
pub(super) fn key_of(proposal: &log::Proposal) -> Option<String> {
    match &proposal.command {
        Some(Command::Put(put)) => Some(String::from_utf8_lossy(&put.key).into_owned()),
        _ => None,
    }
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        Stop::Broken(error.to_string())
    }
}
