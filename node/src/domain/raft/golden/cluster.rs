//! Replicas on logs in memory, one step at a time, and the messages between them. What a step made known is text.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, MessageType};

use super::super::recovery::repair;
use super::super::{Batch, Replica, ReplicaConfig, show};
use crate::storage::memory::MemoryLog;
use crate::storage::{LogStore, LogWrite, SnapshotPoint};

/// Ticks without a leader before an election.
pub(super) const ELECTION_TICKS: usize = 10;

/// One member: what its driver and its applier would hold.
pub(super) struct Member {
    pub(super) replica: Replica<MemoryLog>,
    pub(super) log: MemoryLog,
    pre_vote: bool,
    /// A batch that was taken and is not written yet.
    open: Option<Batch>,
    /// Committed entries that wait for `apply`; none are kept unless `slow`.
    unapplied: Vec<Entry>,
    pub(super) slow: bool,
    /// Where the state machine stands, and where it stood when it was last durable.
    pub(super) applied: SnapshotPoint,
    pub(super) flushed: SnapshotPoint,
}

impl Member {
    /// Opens a log as the engine does: repaired from the key space, which is at `applied`.
    fn open(id: u64, pre_vote: bool, log: MemoryLog, applied: SnapshotPoint) -> Self {
        let fixes = repair(&log.initial().unwrap(), &applied).unwrap();
        if !fixes.is_empty() {
            log.write(fixes.as_write()).unwrap();
        }
        let config = ReplicaConfig { id, election_ticks: ELECTION_TICKS, heartbeat_ticks: 1, pre_vote, seed: 0 };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let conf_state = applied.conf_state.clone();
        let replica = Replica::open(config, Arc::new(log.clone()), applied.index, conf_state, &logger).unwrap();
        let flushed = applied.clone();
        Self { replica, log, pre_vote, open: None, unapplied: Vec::new(), slow: false, applied, flushed }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Cluster {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) flights: VecDeque<Message>,
    /// Members that nothing reaches and that reach nobody.
    pub(super) cut: BTreeSet<u64>,
}

impl Cluster {
    /// Members that found a cluster together: their logs begin after a snapshot point at 1.
    pub(super) fn found(&mut self, voters: &[u64], pre_vote: bool) {
        *self = Self::default();
        let conf_state = ConfState::from((voters.to_vec(), vec![]));
        let point = SnapshotPoint { index: 1, term: 1, conf_state };
        for id in voters {
            let log = MemoryLog::default();
            let hard_state = HardState { term: 1, commit: 1, ..HardState::default() };
            let write =
                LogWrite { reset_to: Some(&point), hard_state: Some(&hard_state), sync: true, ..LogWrite::default() };
            log.write(write).unwrap();
            self.members.insert(*id, Member::open(*id, pre_vote, log, point.clone()));
        }
    }

    /// Lets `id` stand at once, as one that leadership is handed to does: without asking first, and heard by members that
    /// have a leader.
    pub(super) fn elect(&mut self, id: u64) -> String {
        let other = self.members.keys().copied().find(|other| *other != id);
        let member = self.member(id);
        let term = member.replica.role().term;
        let mut message = Message { from: other.unwrap_or_default(), to: id, term, ..Message::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        match other {
            Some(_) => member.replica.step(message).unwrap(),
            None => member.replica.campaign(),
        }
        self.settle();
        let role = self.member(id).replica.role();
        format!("{id} {} leader={} term={}\n", if role.leads { "leads" } else { "follows" }, role.leader, role.term)
    }

    /// A member with an empty disk.
    pub(super) fn join(&mut self, id: u64) {
        self.members.insert(id, Member::open(id, true, MemoryLog::default(), SnapshotPoint::default()));
    }

    /// Loses power: what is left is the synced log, and the state machine as it was flushed.
    pub(super) fn restart(&mut self, id: u64) {
        let old = self.members.remove(&id).unwrap();
        self.members.insert(id, Member::open(id, old.pre_vote, old.log.crash(), old.flushed));
    }

    pub(super) fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).unwrap_or_else(|| panic!("there is no member {id}"))
    }

    // ---- batches

    /// Takes the next batch; it is not written before [`persist`](Self::persist).
    pub(super) fn take(&mut self, id: u64) -> String {
        let member = self.member(id);
        assert!(member.open.is_none(), "the batch before is not written");
        let Some(mut batch) = member.replica.batch() else { return String::new() };
        let now = std::mem::take(&mut batch.send_now);
        let mut text = sends(&now);
        if let Some(point) = &batch.install {
            let configuration = show::configuration(&point.conf_state);
            let _ = writeln!(text, "  installs {}/{} {configuration}", point.index, point.term);
        }
        for entry in &batch.entries {
            let _ = writeln!(text, "  appends {}", show::entry(entry));
        }
        if let Some(hard_state) = &batch.hard_state {
            let HardState { term, vote, commit, .. } = hard_state;
            let _ = writeln!(text, "  writes term={term} vote={vote} commit={commit}");
        }
        if batch.writes() {
            let _ = writeln!(text, "  {}", if batch.sync { "synced" } else { "not synced" });
        }
        member.open = Some(batch);
        self.flights.extend(now);
        headed(id, "batch", &text)
    }

    /// Writes the batch that was taken, and hands on what becomes due by that.
    pub(super) fn persist(&mut self, id: u64) -> String {
        let member = self.member(id);
        let Some(mut batch) = member.open.take() else { return String::new() };
        if batch.writes() {
            member.log.write(batch.as_write(None)).unwrap();
        }
        if let Some(point) = &batch.install {
            member.applied = point.clone();
            member.flushed = point.clone();
            member.unapplied.clear();
        }
        let mut sent = std::mem::take(&mut batch.send_after);
        let mut committed = std::mem::take(&mut batch.committed);
        let reads = std::mem::take(&mut batch.reads);
        let persisted = member.replica.persisted(batch);
        sent.extend(persisted.send);
        committed.extend(persisted.committed);
        let mut text = sends(&sent);
        for entry in &committed {
            let _ = writeln!(text, "  commits {}", show::entry(entry));
        }
        for read in reads {
            let _ = writeln!(text, "  read {} at {}", String::from_utf8_lossy(&read.request_ctx), read.index);
        }
        member.unapplied.extend(committed);
        if !member.slow {
            apply(member);
        }
        self.flights.extend(sent);
        headed(id, "written", &text)
    }

    /// The state machine takes what is committed.
    pub(super) fn apply(&mut self, id: u64) {
        apply(self.member(id));
    }

    // ---- network

    /// Takes the flight at `at` out of the network and brings it to its end.
    pub(super) fn deliver(&mut self, at: usize) -> String {
        let Some(message) = self.flights.remove(at) else { return String::new() };
        let (from, to) = (message.from, message.to);
        let way = format!("{from}->{to} {}", show::message(&message));
        let lost = self.cut.contains(&from) || self.cut.contains(&to) || !self.members.contains_key(&to);
        let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        if lost {
            if let Some(sender) = self.members.get_mut(&from) {
                match snapshot {
                    true => sender.replica.report_snapshot(to, false),
                    false => sender.replica.report_unreachable(to),
                }
            }
            return format!("{way}: lost\n");
        }
        let receiver = self.member(to);
        let taken = match snapshot {
            true => {
                let metadata = message.get_snapshot().get_metadata();
                let (index, term) = (metadata.index, metadata.term);
                let point = SnapshotPoint { index, term, conf_state: metadata.get_conf_state().clone() };
                receiver.replica.step_snapshot(from, message.term, &point)
            }
            false => receiver.replica.step(message),
        };
        if snapshot {
            self.member(from).replica.report_snapshot(to, true);
        }
        match taken {
            Ok(()) => format!("{way}\n"),
            Err(error) => format!("{way}: refused: {error}\n"),
        }
    }

    /// Batches, writes and deliveries until nothing is due any more.
    pub(super) fn settle(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..1_000 {
            let ids: Vec<u64> = self.members.keys().copied().collect();
            let before = text.len();
            for id in ids {
                text += &self.take(id);
                text += &self.persist(id);
            }
            let delivered = (0..self.flights.len()).map(|_| self.deliver(0)).collect();
            text += &counted(delivered);
            let due = self.members.values_mut().any(|member| member.replica.has_batch());
            if text.len() == before && !due {
                return text;
            }
        }
        panic!("it never settles:\n{text}");
    }
}

fn headed(id: u64, what: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{id} {what}:\n{text}") }
}

fn sends(messages: &[Message]) -> String {
    let line = |message: &Message| format!("  sends {}->{} {}\n", message.from, message.to, show::message(message));
    counted(messages.iter().map(line).collect())
}

/// Lines, each once, with how often it is there.
fn counted(lines: Vec<String>) -> String {
    let mut seen: Vec<(String, usize)> = Vec::new();
    for line in lines {
        match seen.iter_mut().find(|(known, _)| *known == line) {
            Some((_, count)) => *count += 1,
            None => seen.push((line, 1)),
        }
    }
    let times = |(line, count): (String, usize)| match count {
        1 => line,
        _ => format!("{} (x{count})\n", line.trim_end()),
    };
    seen.into_iter().map(times).collect()
}

fn apply(member: &mut Member) {
    let entries = std::mem::take(&mut member.unapplied);
    let Some(last) = entries.last() else { return };
    let is_change = |entry: &&Entry| entry.get_entry_type() == EntryType::EntryConfChange && !entry.data.is_empty();
    let changes: Vec<ConfChange> =
        entries.iter().filter(is_change).map(|entry| ConfChange::parse_from_bytes(&entry.data).unwrap()).collect();
    let mut conf_state = member.applied.conf_state.clone();
    changes.iter().for_each(|change| reconfigure(&mut conf_state, change));
    member.applied = SnapshotPoint { index: last.index, term: last.term, conf_state };
    member.replica.applied(last.index, &changes);
}

/// What the state machine keeps beside its applied index.
fn reconfigure(state: &mut ConfState, change: &ConfChange) {
    let id = change.node_id;
    state.mut_voters().retain(|voter| *voter != id);
    state.mut_learners().retain(|learner| *learner != id);
    match change.get_change_type() {
        ConfChangeType::AddNode => state.mut_voters().push(id),
        ConfChangeType::AddLearnerNode => state.mut_learners().push(id),
        ConfChangeType::RemoveNode => {}
    }
}
