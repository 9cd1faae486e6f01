//! The raft thread: drains the inbox, feeds the replica, and carries out its batches through ports. One log write (and at
//! most one fsync) per batch; the leader sends before it writes; applying runs beside the next batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_proto::log::Membership;
use balsa_proto::peer::{self, frame::Body};
use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::watch;
use tracing::{info, warn};

use super::applier::{Report, Work};
use super::calm::{Calm, Quiet};
use super::changes::{Changes, is_in_sync};
use super::failpoint;
use super::fatal::{ExitCode, Fatal};
use super::heard::Heard;
use super::inbox::{Inbox, Input};
use super::keeper::Keeper;
use super::reads::Reads;
use super::snapshot::Snapshots;
use super::standstill::Standstill;
use super::status::{Progress, Status};
use super::waiters::Waiters;
use crate::domain::raft::recovery::LostTail;
use crate::domain::raft::validate::Invalid;
use crate::domain::raft::{Batch, NotProposed, Replica};
use crate::metrics;
use crate::storage::rocks::RocksLog;
use crate::storage::{LogStore, StorageError};
use crate::transport::{Peers, messages};

/// Bytes of client commands packed into one entry.
const ENTRY_BYTES: usize = 256 << 10;
/// Bytes of client commands proposed per batch, so that one batch stays a few fsyncs long; the rest waits in order.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes that are committed and not applied, so that a state machine slower than the log does not fill the memory; above it
/// proposals wait, and what a leader appends is dropped.
const MAX_UNAPPLIED_BYTES: usize = 64 << 20;
/// Bytes of the entries that are kept for members that were away; the nearer of two bounds counts.
const KEEP_BYTES: u64 = 64 << 20;
/// Ticks that are made up for after a pause of the process; more would only start needless elections.
const MAX_LATE_TICKS: u32 = 2;

/// Where a queued proposal came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Local,
    Peer(u64),
}

struct Queued {
    origin: Origin,
    /// The term for which a peer sent it; another one must not take it, because the origin may have sent it again.
    term: u64,
    sequence: u64,
    data: Bytes,
}

/// What the driver works with; all of it is made by [`super::member`].
pub(crate) struct Ports {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) log: Arc<RocksLog>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) applier: std::sync::mpsc::Sender<Work>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) snapshots: Snapshots,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) status: Arc<RwLock<Arc<Status>>>,
    pub(crate) leader: watch::Sender<(u64, u64)>,
    pub(crate) fatal: Fatal,
    /// Own id and process incarnation.
    pub(crate) member_id: u64,
    pub(crate) incarnation: u64,
    pub(crate) tick: Duration,
    pub(crate) election_ticks: u32,
    /// Entries kept for members that were away.
    pub(crate) catch_up_entries: u64,
}

/// The driver's own state; it lives on its thread.
pub(crate) struct Driver {
    replica: Replica<RocksLog>,
    ports: Ports,
    queue: VecDeque<Queued>,
    reads: Reads,
    changes: Changes,
    applied: u64,
    applied_term: u64,
    unapplied_bytes: usize,
    /// Bytes of the log so far, and every so often the index reached: where to trim to.
    log_bytes: u64,
    marks: VecDeque<(u64, u64)>,
    next_tick: Instant,
    install_name: Option<String>,
    leader_changes: u64,
    elected: Option<Instant>,
    heard: Heard,
    standstill: Standstill,
    quiet: Quiet,
    calm: Option<Calm>,
    stopped: Option<tokio::sync::oneshot::Sender<()>>,
    /// The disk failed, or is not what it was: nothing more is written, sent or voted.
    broken: bool,
}

impl Driver {
    /// A driver for an opened replica that has applied `applied`.
    pub(crate) fn new(replica: Replica<RocksLog>, ports: Ports, applied: u64) -> Self {
        let reads = Reads::new(ports.member_id, ports.incarnation);
        Self {
            replica,
            queue: VecDeque::new(),
            reads,
            changes: Changes::default(),
            applied,
            applied_term: 0,
            unapplied_bytes: 0,
            log_bytes: 0,
            marks: VecDeque::new(),
            next_tick: Instant::now() + ports.tick,
            install_name: None,
            leader_changes: 0,
            elected: None,
            heard: Heard::default(),
            standstill: Standstill::default(),
            quiet: Quiet::default(),
            calm: None,
            stopped: None,
            broken: false,
            ports,
        }
    }

    /// Runs until it is stopped or the disk fails.
    ///
    /// # Panics
    /// As Raft does where it cannot go on. Then the disk is to blame if a read of it failed.
    pub(crate) fn run(mut self) {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.turns()));
        self.check_reads();
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    fn turns(&mut self) {
        if self.ports.status.read().membership.members.len() == 1 {
            // Nobody else can lead: no need to wait for a time-out.
            self.replica.campaign();
        }
        let mut inputs = Vec::new();
        while self.stopped.is_none() {
            self.calm = self.present_calm();
            self.ports.inbox.drain(self.next_tick, self.calm, &mut inputs);
            self.turn(&mut inputs);
            if self.broken {
                return;
            }
        }
        if let Some(stopped) = self.stopped.take() {
            let _ = stopped.send(());
        }
    }

    fn turn(&mut self, inputs: &mut Vec<Input>) {
        let began = Instant::now();
        for input in inputs.drain(..) {
            self.take(input);
        }
        self.tick_when_due();
        self.propose_queued();
        self.reads.issue(&mut self.replica, Instant::now());
        self.carry_out_batches();
        self.check_reads();
        if !self.broken {
            self.reads.repeat_unanswered(began);
            self.after_batches();
        }
    }

    /// What others may say without waking this thread. A leader waits for the answer of whoever is behind.
    fn present_calm(&mut self) -> Option<Calm> {
        let (role, commit, last) = (self.replica.role(), self.replica.commit(), self.replica.last_index());
        let bound = self.ports.tick * self.ports.election_ticks;
        let calm = self.quiet.calm(role, commit, last, bound, Instant::now())?;
        let all_have_it = self.replica.progress().iter().all(|(_, matched, ..)| *matched == last);
        let calm = calm.with_reads(self.reads.can_wait(self.ports.tick));
        (all_have_it && !self.replica.transferring()).then_some(calm)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Propose { sequence, data } => {
                self.queue.push_back(Queued { origin: Origin::Local, term: 0, sequence, data });
            }
            Input::BackgroundRead(reply) if self.calm.is_some_and(|calm| calm.reads_wait) => {
                self.reads.wait_for_tick(reply);
            }
            Input::Read(reply) | Input::BackgroundRead(reply) => self.reads.wait(reply),
            Input::Frame(frame) => self.frame(frame),
            Input::Change { change, terms, reply } => {
                let (status, waiters) = (self.ports.status.read().clone(), &self.ports.waiters);
                let name = (self.ports.member_id, self.ports.incarnation);
                self.changes.propose(&mut self.replica, &status, waiters, name, change, terms, reply);
                self.refuse_leaving();
            }
            Input::MoveLeader { target, reply } => {
                let deadline = Instant::now() + self.ports.tick * self.ports.election_ticks;
                self.changes.transfer(&mut self.replica, target, deadline, reply);
            }
            Input::Unreachable(id) => self.replica.report_unreachable(id),
            Input::Applied(report) => self.applied(report),
            Input::Flushed(index) => self.trim(index),
            Input::SnapshotMade(checkpoint) => {
                let point = self.ports.snapshots.made(checkpoint);
                self.replica.tail().offer(point);
            }
            Input::SnapshotSent { to, arrived } => {
                self.ports.snapshots.ended(to);
                self.replica.report_snapshot(to, arrived);
            }
            Input::Install { name, point, from, term, reply } => self.install(name, &point, from, term, reply),
            Input::Stop(reply) => self.stopped = Some(reply),
        }
    }

    fn tick_when_due(&mut self) {
        let now = Instant::now();
        let mut late = 0;
        while self.next_tick <= now && late < MAX_LATE_TICKS {
            self.replica.tick();
            self.next_tick += self.ports.tick;
            late += 1;
        }
        if self.next_tick <= now {
            self.next_tick = now + self.ports.tick;
        }
        if late > 1 && self.replica.role().leads {
            metrics::LATE_HEARTBEATS.inc();
        }
        if late > 0 {
            self.forget_given_up();
            self.reads.tick();
        }
        if late > 0 && self.ports.snapshots.expire(now) {
            self.replica.tail().offer(None);
        }
    }

    // ---- proposals

    /// Callers give up while no leader takes what they ask, and others come: once a tick those that are gone are dropped,
    /// or what they asked would add up for as long as the cluster has no leader.
    fn forget_given_up(&mut self) {
        let waiters = &self.ports.waiters;
        self.queue.retain(|queued| queued.origin != Origin::Local || waiters.awaited(queued.sequence));
        self.reads.forget_given_up();
    }

    /// Gives queued proposals to the log, or to the leader, or keeps them while neither takes any.
    ///
    /// A new leader takes none before it has applied all that it found in its log: that may hold the removal of the member
    /// that a proposal is of, which answers it as in no log once it applies its removal.
    fn propose_queued(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        self.refuse_strangers();
        if self.unapplied_bytes > MAX_UNAPPLIED_BYTES {
            return;
        }
        let role = self.replica.role();
        if role.leads {
            if self.applied_term == role.term {
                self.propose_to_log(role.term);
            }
        } else if role.leader != 0 {
            self.forward(role.leader, role.term);
        }
        self.refuse_strangers();
    }

    fn propose_to_log(&mut self, term: u64) {
        if self.replica.transferring() {
            return;
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let Some(queued) = self.queue.pop_front() else { break };
            if queued.origin == Origin::Local && !self.ports.waiters.sent(queued.sequence, term) {
                continue;
            }
            bytes += queued.data.len();
            taken.push(queued);
        }
        if taken.is_empty() {
            return;
        }
        let entries = pack(&taken);
        metrics::COMMANDS_PER_ENTRY.observe(taken.len() as f64 / entries.len() as f64);
        if let Err(reason) = self.replica.propose(entries) {
            // Nothing of it is in the log. It waits in its order; strangers are told.
            for queued in taken.into_iter().rev() {
                if queued.origin == Origin::Local {
                    self.ports.waiters.sent(queued.sequence, 0);
                }
                self.queue.push_front(queued);
            }
            if reason == NotProposed::Full {
                warn!(queued = self.queue.len(), "too many uncommitted bytes: proposals wait");
            }
        }
    }

    fn forward(&mut self, leader: u64, term: u64) {
        let mut proposals = Vec::new();
        let mut bytes = 0;
        self.queue.retain(|queued| {
            if queued.origin != Origin::Local || bytes >= BATCH_BYTES {
                return true;
            }
            if self.ports.waiters.sent(queued.sequence, term) {
                bytes += queued.data.len();
                proposals.push(peer::ForwardedProposal { sequence: queued.sequence, batch: queued.data.clone() });
            }
            false
        });
        if proposals.is_empty() {
            return;
        }
        let sequences: Vec<u64> = proposals.iter().map(|proposal| proposal.sequence).collect();
        if !self.ports.peers.send(leader, Body::Forward(peer::Forward { term, proposals: proposals.clone() })) {
            // Never left this process: back to the queue, in order.
            for (sequence, proposal) in sequences.into_iter().zip(proposals).rev() {
                self.ports.waiters.sent(sequence, 0);
                self.queue.push_front(Queued { origin: Origin::Local, term: 0, sequence, data: proposal.batch });
            }
        }
    }

    /// Proposals of other members are never held: their origin decides what to do.
    fn refuse_strangers(&mut self) {
        let reason = match (self.replica.role().leads, self.replica.transferring()) {
            (false, _) => peer::RefusalReason::RefusalNotLeader,
            (true, true) => peer::RefusalReason::RefusalTransferring,
            (true, false) => peer::RefusalReason::RefusalFull,
        };
        let role = self.replica.role();
        let membership = self.ports.status.read().membership.clone();
        let leads_and_takes = role.leads && !self.replica.transferring();
        let mut refused: Vec<((u64, u64), Vec<u64>)> = Vec::new();
        let mut kept_bytes = 0;
        self.queue.retain(|queued| {
            let Origin::Peer(from) = queued.origin else { return true };
            kept_bytes += queued.data.len();
            let taken = leads_and_takes && queued.term == role.term && is_listed(&membership, from);
            if taken && kept_bytes <= MAX_UNAPPLIED_BYTES {
                return true;
            }
            let attempt = (from, queued.term);
            match refused.iter_mut().find(|(refused, _)| *refused == attempt) {
                Some((_, sequences)) => sequences.push(queued.sequence),
                None => refused.push((attempt, vec![queued.sequence])),
            }
            false
        });
        for ((to, term), sequences) in refused {
            self.refuse(to, term, sequences, reason);
        }
    }

    /// What a member that is being removed has in the queue would come after its removal in the log, where it never sees
    /// the outcome.
    fn refuse_leaving(&mut self) {
        let Some(leaving) = self.changes.removing() else { return };
        let mut sequences = Vec::new();
        self.queue.retain(|queued| {
            let kept = queued.origin != Origin::Peer(leaving);
            if !kept {
                sequences.push(queued.sequence);
            }
            kept
        });
        if !sequences.is_empty() {
            // All are of the present term: `refuse_strangers` came before.
            self.refuse(leaving, self.replica.role().term, sequences, peer::RefusalReason::RefusalNotLeader);
        }
    }

    fn refuse(&self, to: u64, term: u64, sequences: Vec<u64>, reason: peer::RefusalReason) {
        let refusal = peer::Refusal { sequences, reason: reason as i32, term };
        // A refusal that is lost leaves the origin to its time-out, which is right: it cannot know.
        let _ = self.ports.peers.send(to, Body::Refusal(refusal));
    }

    // ---- frames

    fn frame(&mut self, frame: peer::Frame) {
        let from = frame.from;
        match frame.body {
            Some(Body::Raft(raft)) => {
                for message in raft.messages {
                    self.message(from, message);
                }
            }
            Some(Body::Forward(forward)) => self.forwarded(from, forward),
            Some(Body::Refusal(refusal)) => self.refused(refusal),
            None => {}
        }
    }

    fn message(&mut self, from: u64, message: peer::RaftMessage) {
        let message = match messages::from_wire(message) {
            Ok(message) if message.from == from => message,
            Ok(message) => return warn!(from, claims = message.from, "a message in a frame of another member"),
            Err(error) => return warn!(from, %error, "a malformed message"),
        };
        match message.get_msg_type() {
            MessageType::MsgHeartbeatResponse | MessageType::MsgAppendResponse => {
                self.heard.answered(from, Instant::now());
            }
            MessageType::MsgAppend if !message.entries.is_empty() && self.unapplied_bytes > MAX_UNAPPLIED_BYTES => {
                // The leader sends them again. Heartbeats are taken, so it goes on leading.
                return metrics::QUEUE_FULL.with_label_values(&["apply"]).inc();
            }
            _ => {}
        }
        match self.replica.step(message) {
            Ok(()) => {}
            Err(Invalid::CommitBeyondLog { commit, last_index }) => self.lost_tail(from, commit, last_index),
            Err(error) => warn!(from, %error, "a message that Raft must not see"),
        }
    }

    /// A leader names no commit index that this member did not acknowledge in its term. A log that ends before it lost
    /// what was on the disk; with it the member could vote for a leader that lacks what others count as committed.
    fn lost_tail(&mut self, leader: u64, acknowledged: u64, last_index: u64) {
        let lost = LostTail { last: last_index, needed: acknowledged, how: "acknowledged to the leader" };
        let message = format!("the log of member {:x}: {lost}; leader {leader:x} says so", self.ports.member_id);
        self.broken = true;
        self.ports.fatal.end(ExitCode::ExitCorrupt, message);
    }

    fn forwarded(&mut self, from: u64, forward: peer::Forward) {
        let role = self.replica.role();
        let listed = is_listed(&self.ports.status.read().membership, from);
        let takes = role.leads && role.term == forward.term && listed && self.changes.removing() != Some(from);
        if !takes || self.replica.transferring() {
            let reason = match takes {
                true => peer::RefusalReason::RefusalTransferring,
                false => peer::RefusalReason::RefusalNotLeader,
            };
            return self.refuse(from, forward.term, forward.proposals.iter().map(|p| p.sequence).collect(), reason);
        }
        let origin = Origin::Peer(from);
        for proposal in forward.proposals {
            self.queue.push_back(Queued { origin, term: role.term, sequence: proposal.sequence, data: proposal.batch });
        }
    }

    /// The leader of that term took none of these and never will: they may be sent again, unless they were already.
    fn refused(&mut self, refusal: peer::Refusal) {
        let mut again: Vec<(u64, Bytes)> = refusal
            .sequences
            .into_iter()
            .filter_map(|sequence| self.ports.waiters.take_back(sequence, refusal.term).map(|data| (sequence, data)))
            .collect();
        again.sort_unstable_by_key(|(sequence, _)| *sequence);
        self.requeue(again);
    }

    fn requeue(&mut self, again: Vec<(u64, Bytes)>) {
        for (sequence, data) in again.into_iter().rev() {
            self.queue.push_front(Queued { origin: Origin::Local, term: 0, sequence, data });
        }
    }

    // ---- batches

    fn carry_out_batches(&mut self) {
        while !self.broken
            && let Some(batch) = self.replica.batch()
        {
            if let Err(error) = self.carry_out(batch) {
                self.fail(&error);
            }
        }
    }

    fn check_reads(&mut self) {
        if let Some(error) = self.replica.tail().take_failure() {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &StorageError) {
        self.broken = true;
        self.ports.fatal.storage(error);
    }

    fn carry_out(&mut self, mut batch: Batch) -> crate::storage::Result<()> {
        self.send(std::mem::take(&mut batch.send_now));
        self.note_log_bytes(&batch);
        let install = batch.install.clone().and_then(|point| Some((self.install_name.take()?, point)));
        if batch.writes() {
            let name = install.as_ref().map(|(name, _)| name.as_str());
            let started = Instant::now();
            failpoint::hit(if name.is_some() { "snapshot-before-switch" } else { "raft-before-persist" })?;
            self.ports.log.write(batch.as_write(name))?;
            metrics::LOG_WRITE.observe(started.elapsed().as_secs_f64());
            failpoint::hit(if name.is_some() { "snapshot-after-switch" } else { "raft-after-persist" })?;
            if batch.sync {
                metrics::LOG_SYNC.observe(started.elapsed().as_secs_f64());
            }
        }
        if let Some((name, point)) = install {
            info!(index = point.index, term = point.term, name, "installing a snapshot");
            self.changes.installed(true);
            self.to_applier(Work::Install { name, point });
        }
        self.send(std::mem::take(&mut batch.send_after));
        self.apply(std::mem::take(&mut batch.committed));
        // Before any read is confirmed: whoever acts on one as the leader must not think so for longer than it is true.
        self.note_role();
        self.reads.confirmed(std::mem::take(&mut batch.reads), self.applied);
        let persisted = self.replica.persisted(batch);
        self.send(persisted.send);
        self.apply(persisted.committed);
        failpoint::hit("raft-after-batch")
    }

    fn apply(&mut self, committed: Vec<raft::eraftpb::Entry>) {
        if committed.is_empty() {
            return;
        }
        self.unapplied_bytes += committed.iter().map(|entry| entry.data.len()).sum::<usize>();
        self.to_applier(Work::Apply(committed));
    }

    fn to_applier(&self, work: Work) {
        // The applier ends only after this thread or with the process.
        let _ = self.ports.applier.send(work);
    }

    fn send(&mut self, outgoing: Vec<Message>) {
        let mut frames: Vec<(u64, Vec<peer::RaftMessage>)> = Vec::new();
        for message in outgoing {
            let to = message.to;
            if message.get_msg_type() == MessageType::MsgSnapshot {
                if !self.ports.snapshots.send(to, message.term) {
                    self.replica.report_snapshot(to, false);
                }
                continue;
            }
            let message = messages::to_wire(message);
            match frames.iter_mut().find(|(id, _)| *id == to) {
                Some((_, messages)) => messages.push(message),
                None => frames.push((to, vec![message])),
            }
        }
        for (to, messages) in frames {
            if !self.ports.peers.send(to, Body::Raft(peer::RaftMessages { messages })) {
                self.replica.report_unreachable(to);
            }
        }
    }

    // ---- what comes back

    fn applied(&mut self, report: Report) {
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(report.bytes);
        self.applied = report.index;
        self.replica.applied(report.index, &report.conf_changes);
        if !report.conf_changes.is_empty()
            && let Err(error) = failpoint::hit("change-after-raft")
        {
            self.fail(&error);
        }
        if let Some(membership) = &report.membership {
            let peers: Vec<(u64, Vec<String>)> =
                membership.members.iter().map(|member| (member.id, member.peer_urls.clone())).collect();
            self.ports.peers.update(&peers);
        }
        if !self.replica.change_in_flight() {
            self.changes.no_change_in_flight();
        }
        for (sequence, outcome) in report.changes {
            self.ports.waiters.complete(sequence, outcome);
        }
        self.reads.applied(report.index);
        if report.installed {
            self.ports.waiters.unknown_up_to(report.term);
        }
        if report.term > self.applied_term {
            self.applied_term = report.term;
            let leader = Some(self.replica.role().leader).filter(|id| *id != 0);
            let again = self.ports.waiters.lost_before(report.term, leader);
            if !again.is_empty() {
                info!(proposals = again.len(), term = report.term, "sending proposals of a lost leader again");
            }
            self.requeue(again);
        }
    }

    fn install(
        &mut self,
        name: String,
        point: &crate::storage::SnapshotPoint,
        from: u64,
        term: u64,
        reply: super::inbox::Reply<bool>,
    ) {
        self.install_name = Some(name);
        self.changes.await_install(reply);
        if let Err(error) = self.replica.step_snapshot(from, term, point) {
            warn!(from, %error, "a snapshot that Raft must not see");
        }
        // The next batch takes it or it was refused; nothing may come between.
        self.carry_out_batches();
        self.install_name = None;
        // After a failed write nobody knows whether the log names the snapshot. Without an answer it is kept.
        if !self.broken {
            self.changes.installed(false);
        }
    }

    fn note_log_bytes(&mut self, batch: &Batch) {
        for entry in &batch.entries {
            self.log_bytes += entry.data.len() as u64 + 32;
            metrics::LOG_BYTES.add(i64::try_from(entry.data.len() + 32).unwrap_or(i64::MAX));
            if self.marks.back().is_none_or(|(_, bytes)| self.log_bytes - bytes > KEEP_BYTES / 16) {
                self.marks.push_back((entry.index, self.log_bytes));
            }
        }
    }

    /// Drops what nobody needs: below the flushed applied index, the entries kept for members that were away, and any
    /// transfer that is running.
    fn trim(&mut self, flushed: u64) {
        let last = self.replica.last_index();
        while self.marks.len() > 1 && self.log_bytes - self.marks[1].1 > KEEP_BYTES {
            self.marks.pop_front();
        }
        let by_bytes = match self.marks.front() {
            Some((index, bytes)) if self.log_bytes - bytes > KEEP_BYTES => *index,
            _ => 0,
        };
        let dispensable = last.saturating_sub(self.ports.catch_up_entries).max(by_bytes);
        let index = trim_to(flushed, self.applied, dispensable, self.ports.snapshots.lowest_running());
        if index <= self.replica.tail().point().index {
            return;
        }
        let Ok(term) = raft::Storage::term(self.replica.tail(), index) else { return };
        let conf_state = self.replica.tail().point().conf_state.clone();
        let point = crate::storage::SnapshotPoint { index, term, conf_state };
        match self.ports.log.trim(&point) {
            Ok(()) => self.replica.tail().trim(point),
            Err(error) => self.fail(&error),
        }
    }

    fn after_batches(&mut self) {
        if self.replica.tail().take_wanted() {
            self.ports.snapshots.want(&self.ports.keeper);
        }
        self.note_role();
        self.publish_status();
        // Whoever waited for a transfer looks at the status next.
        self.changes.settle(self.replica.role(), Instant::now());
    }

    fn note_role(&mut self) {
        let role = self.replica.role();
        let before = *self.ports.leader.borrow();
        if before != (role.leader, role.term) {
            if before.0 != role.leader && role.leader != 0 {
                self.leader_changes += 1;
                self.elected = Some(Instant::now());
                info!(leader = format!("{:x}", role.leader), term = role.term, "leader changed");
            }
            self.ports.leader.send_replace((role.leader, role.term));
            self.reads.again();
        }
    }

    /// As the leader sees each member; empty on others.
    fn progress(&mut self, term: u64, commit: u64) -> Vec<Progress> {
        let (seen, last, now) = (self.replica.progress(), self.replica.last_index(), Instant::now());
        let listed: Vec<u64> = seen.iter().map(|(id, ..)| *id).collect();
        self.standstill.begin(term, &listed);
        self.heard.keep(&listed);
        let election = self.ports.tick * self.ports.election_ticks;
        // Only a leader has seen any.
        let own = self.replica.role().leader;
        let leader = seen.iter().find(|(id, ..)| *id == own).map_or(0, |(_, matched, ..)| *matched);
        let known = seen.into_iter().map(|(id, matched, marked, snapshot_running)| {
            let active = id == own || self.heard.is_there(id, marked, election, now);
            Progress {
                id,
                match_index: matched,
                active,
                snapshot_running,
                caught_up: !snapshot_running && active && is_in_sync(matched, leader, commit),
                moved: Some(self.standstill.moved(id, matched, matched >= last, snapshot_running, now)),
            }
        });
        known.collect()
    }

    fn publish_status(&mut self) {
        let role = self.replica.role();
        let commit = self.replica.commit();
        let progress = self.progress(role.term, commit);
        let first_index = self.replica.tail().point().index + 1;
        let mut slot = self.ports.status.write();
        let status = Arc::make_mut(&mut slot);
        status.leader = role.leader;
        status.term = role.term;
        status.commit = commit;
        status.first_index = first_index;
        status.last_index = self.replica.last_index();
        status.progress = Arc::new(progress);
        status.transferring = self.replica.transferring();
        status.change_in_flight = self.replica.change_in_flight();
        status.leader_changes = self.leader_changes;
        status.elected = self.elected;
        status.turned = Some(Instant::now());
    }
}

fn is_listed(membership: &Membership, id: u64) -> bool {
    membership.members.iter().any(|member| member.id == id)
}

/// The last index that nobody needs. Raft reads all entries that it does not know to be applied before it starts an
/// election, and the keeper may be ahead of the applier's report.
fn trim_to(flushed: u64, applied: u64, dispensable: u64, running: Option<u64>) -> u64 {
    flushed.min(applied).min(dispensable).min(running.unwrap_or(u64::MAX))
}

/// Many commands in one entry: encoded one-element batches, laid end to end, are one encoded batch.
fn pack(queued: &[Queued]) -> Vec<Bytes> {
    let mut entries = Vec::new();
    let mut open = BytesMut::new();
    for item in queued {
        if !open.is_empty() && open.len() + item.data.len() > ENTRY_BYTES {
            entries.push(open.split().freeze());
        }
        open.extend_from_slice(&item.data);
    }
    entries.push(open.freeze());
    entries
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
