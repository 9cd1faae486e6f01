//! What passes is stepped: messages drawn around what a replica knows, lies among them. Whatever they say, Raft must
//! cope with them, at once and in all that the replica does later.
//!
//! `BALSA_SEEDS=n` runs more seeds, `BALSA_SEED=x` one of them again, exactly. Turns are those of the driver: what
//! arrived, the ticks that are due, something of its own, then all batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use protobuf::{Message as _, ProtobufEnum as _};
use raft::eraftpb::{ConfChange, ConfState, Entry, EntryType, HardState, Message, MessageType};

use super::super::{Replica, ReplicaConfig};
use super::MAX_NUMBER;
use crate::domain::random::Random;
use crate::storage::memory::MemoryLog;
use crate::storage::{LogStore as _, LogWrite, SnapshotPoint};

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 200;
/// Beyond them, what ended a process once.
///
/// 1255: a leader, the only voter, was told to campaign in a later term while its own entries were not on its disk.
const FOUND: [u64; 1] = [1255];
/// Turns of one seed.
const TURNS: usize = 200;

/// What members say to each other.
const SAID: [MessageType; 12] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Voters and learners of snapshots, sound and not.
const CONFIGURATIONS: [(&[u64], &[u64]); 10] = [
    (&[1, 2, 3], &[]),
    (&[1, 2, 3], &[]),
    (&[1, 2], &[3]),
    (&[1], &[]),
    (&[2, 3], &[1]),
    (&[2, 3], &[]),
    (&[], &[1]),
    (&[1, 1, 2], &[]),
    (&[0, 1], &[]),
    (&[1, 2], &[2]),
];

impl Random {
    /// Mostly the number or one close to it. One that is far away is rare: a term that was believed stays.
    fn around(&mut self, number: u64) -> u64 {
        match self.below(800) {
            0 => u64::MAX,
            1 => MAX_NUMBER,
            2 => self.draw(),
            3..200 => number.saturating_sub(1 + self.below(3) as u64),
            200..280 => number.saturating_add(1 + self.below(2) as u64),
            _ => number,
        }
    }
}

/// How often something was met.
type Tally = BTreeMap<String, usize>;

/// A replica, and what its engine would hold.
struct Subject {
    replica: Replica<MemoryLog>,
    log: MemoryLog,
    /// Where the state machine stands, and what Raft knows of that.
    applied: SnapshotPoint,
    reported: SnapshotPoint,
    /// Reads that were begun here.
    reads: u64,
    /// All that was offered to it.
    heard: Vec<Message>,
    tally: Tally,
}

impl Subject {
    /// Member 1: a founder of {1, 2, 3}, whose log begins after a snapshot point, or a joiner with an empty disk.
    fn open(seed: u64, founder: bool, pre_vote: bool) -> Self {
        let (log, mut point) = (MemoryLog::default(), SnapshotPoint::default());
        if founder {
            point = SnapshotPoint { index: 1, term: 1, conf_state: ConfState::from((vec![1, 2, 3], vec![])) };
            let hard_state = HardState { term: 1, commit: 1, ..HardState::default() };
            let write =
                LogWrite { reset_to: Some(&point), hard_state: Some(&hard_state), sync: true, ..LogWrite::default() };
            log.write(write).expect("an empty log");
        }
        let config = ReplicaConfig { id: 1, election_ticks: 10, heartbeat_ticks: 1, pre_vote, seed };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let conf_state = point.conf_state.clone();
        let replica = Replica::open(config, Arc::new(log.clone()), point.index, conf_state, &logger);
        Self {
            replica: replica.expect("a log in order"),
            log,
            applied: point.clone(),
            reported: point,
            reads: 0,
            heard: Vec::new(),
            tally: Tally::new(),
        }
    }

    fn turn(&mut self, random: &mut Random) {
        for _ in 0..random.below(4) {
            let message = self.drawn(random);
            self.hear(message);
        }
        for _ in 0..random.below(3) {
            self.replica.tick();
        }
        self.act(random);
        self.carry_out();
        // The state machine may be behind.
        if random.one_in(2) {
            self.replica.applied(self.applied.index, &[]);
            self.reported = self.applied.clone();
        }
    }

    fn count(&mut self, what: String) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn hear(&mut self, message: Message) {
        let (kind, leads) = (message.msg_type, self.replica.role().leads);
        self.heard.push(message.clone());
        let taken = self.replica.step(message).is_ok();
        self.count(told(kind, leads, taken));
    }

    /// What the engine does by itself.
    fn act(&mut self, random: &mut Random) {
        match random.below(12) {
            0 => self.lead(),
            1 => _ = self.replica.propose(vec![Bytes::from_static(b"x")]),
            2 => {
                self.reads += 1;
                self.replica.read_index(self.reads.to_be_bytes().to_vec());
            }
            3 => self.replica.transfer(random.one_of(&[2, 3])),
            4 => self.replica.report_unreachable(2),
            5 => self.replica.report_snapshot(2, random.one_in(2)),
            6 if self.reported.index > 0 => self.replica.tail().offer(Some(self.reported.clone())),
            7 if self.reported.index > self.replica.tail().point().index => {
                self.log.trim(&self.reported).expect("applied");
                self.replica.tail().trim(self.reported.clone());
            }
            _ => {}
        }
    }

    /// Leadership is handed to it, and 2 votes for it: drawn messages alone seldom elect.
    fn lead(&mut self) {
        for kind in [MessageType::MsgTimeoutNow, MessageType::MsgRequestVoteResponse] {
            let term = self.replica.role().term;
            self.hear(Message { msg_type: kind, from: 2, to: 1, term, ..Message::default() });
            self.carry_out();
        }
    }

    /// Of changes that are committed the state machine accepts none.
    fn carry_out(&mut self) {
        while let Some(mut batch) = self.replica.batch() {
            if batch.writes() {
                self.log.write(batch.as_write(None)).expect("what follows the log");
            }
            if let Some(point) = &batch.install {
                self.applied = point.clone();
                self.count("a snapshot installed".to_owned());
            }
            let mut committed = std::mem::take(&mut batch.committed);
            committed.extend(self.replica.persisted(batch).committed);
            for entry in committed {
                assert_eq!(entry.index, self.applied.index + 1, "the next one is due");
                (self.applied.index, self.applied.term) = (entry.index, entry.term);
                self.count("an entry applied".to_owned());
            }
        }
    }

    fn drawn(&self, random: &mut Random) -> Message {
        let kind = random.one_of(MessageType::values());
        let (term, commit, last) = (self.replica.role().term, self.replica.commit(), self.replica.last_index());
        // Reads alone have none.
        let without = (kind == MessageType::MsgReadIndex) != random.one_in(20);
        let near = random.one_of(&[commit, last]);
        let mut message = Message {
            msg_type: kind,
            to: if random.one_in(40) { 2 } else { 1 },
            from: random.one_of(&[2, 2, 2, 3, 3, 3, 4, 1, 0, u64::MAX]),
            term: if without { 0 } else { random.around(term) },
            log_term: random.around(term),
            index: random.around(near),
            commit: random.around(near),
            commit_term: random.around(term),
            request_snapshot: if random.one_in(10) { random.around(commit) } else { 0 },
            reject: random.one_in(3),
            reject_hint: random.around(near),
            context: self.context(random),
            priority: random.one_of(&[0, 0, 0, 0, 1, -1, i64::MAX, i64::MIN]),
            ..Message::default()
        };
        if random.one_in(2) {
            // An anchor that is there.
            (message.index, message.log_term) = (self.applied.index, self.applied.term);
        }
        message.set_entries(entries(random, &message).into());
        if kind == MessageType::MsgSnapshot {
            let (voters, learners) = random.one_of(&CONFIGURATIONS);
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (random.around(near), random.around(term));
            metadata.set_conf_state(ConfState::from((voters.to_vec(), learners.to_vec())));
        }
        message
    }

    /// That of a read which was begun here, of one that was not, of a transfer, or none.
    fn context(&self, random: &mut Random) -> Bytes {
        let own = Bytes::copy_from_slice(&self.reads.to_be_bytes());
        random.one_of(&[own, Bytes::from_static(b"read"), Bytes::from_static(b"CampaignTransfer"), Bytes::new()])
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = self.heard.len().saturating_sub(5);
            eprintln!("of {} messages the last were {:#?}", self.heard.len(), &self.heard[last..]);
        }
    }
}

/// Mostly such as follow the anchor.
fn entries(random: &mut Random, message: &Message) -> Vec<Entry> {
    let change = ConfChange { node_id: 4, context: "context".into(), ..ConfChange::default() };
    let change = Bytes::from(change.write_to_bytes().expect("encodable"));
    let (normal, count) = (EntryType::EntryNormal, random.below(4));
    let one = |after: usize| Entry {
        entry_type: random.one_of(&[normal, normal, normal, normal, normal, EntryType::EntryConfChange]),
        term: random.one_of(&[message.term, message.term, message.term, message.log_term]),
        index: match random.one_in(20) {
            true => random.around(message.index),
            false => message.index.saturating_add(after as u64),
        },
        data: random.one_of(&[change.clone(), Bytes::from_static(b"read"), Bytes::from_static(b"\x2b"), Bytes::new()]),
        ..Entry::default()
    };
    (1..=count).map(one).collect()
}

fn told(kind: MessageType, leads: bool, taken: bool) -> String {
    let (who, what) = (if leads { "a leader" } else { "another" }, if taken { "taken" } else { "refused" });
    format!("{kind:?} {what} by {who}")
}

fn run(seed: u64) -> Tally {
    let random = &mut Random::new(seed);
    let mut subject = Subject::open(seed, !random.one_in(5), !random.one_in(4));
    for _ in 0..TURNS {
        subject.turn(random);
    }
    std::mem::take(&mut subject.tally)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

#[test]
fn simulation_of_peers_that_say_anything_ends_no_process() {
    let (seeds, found) = match number("BALSA_SEED") {
        Some(seed) => (seed..seed + 1, &[][..]),
        None => (0..number("BALSA_SEEDS").unwrap_or(SEEDS), &FOUND[..]),
    };
    let mut tally = Tally::new();
    for seed in seeds.clone().chain(found.iter().copied()) {
        let run = std::panic::catch_unwind(|| run(seed));
        let run = run.unwrap_or_else(|_| panic!("seed {seed} failed (BALSA_SEED={seed} repeats it)"));
        for (what, count) in run {
            *tally.entry(what).or_default() += count;
        }
    }
    println!("{seeds:?}: {tally:#?}");
    let met = |what: &str| tally.contains_key(what);
    let strange = MessageType::values().iter().filter(|kind| !SAID.contains(kind));
    assert!(strange.flat_map(|kind| [told(*kind, true, true), told(*kind, false, true)]).all(|what| !met(&what)));
    if seeds.end - seeds.start < SEEDS {
        return;
    }
    assert!(met("a snapshot installed") && met("an entry applied"));
    for what in SAID.iter().flat_map(|kind| [told(*kind, true, true), told(*kind, false, true)]) {
        assert!(met(&what), "never {what}");
    }
}
