//! Every refusal is justified by what raft does with the message, and ordinary traffic passes.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

use super::*;

type Node = RawNode<MemStorage>;

fn node(id: u64, storage: MemStorage) -> Node {
    let config =
        Config { id, election_tick: 10, heartbeat_tick: 1, pre_vote: true, check_quorum: true, ..Config::default() };
    RawNode::new(&config, storage, &slog::Logger::root(slog::Discard, slog::o!())).expect("a sound configuration")
}

fn facts(node: &Node) -> Facts {
    let log = &node.raft.raft_log;
    Facts {
        id: node.raft.id,
        term: node.raft.term,
        committed: log.committed,
        last_index: log.last_index(),
        persisted: log.persisted,
        leads: node.raft.state == StateRole::Leader,
    }
}

/// The log of a founder: it begins after a snapshot point, as all of ours do.
fn founded(voters: &[u64]) -> MemStorage {
    let storage = MemStorage::new();
    let snapshot = snapshot_of(1, 1, voters, &[]).take_snapshot();
    storage.wl().apply_snapshot(snapshot).expect("an empty log");
    storage
}

/// Carries out what a node wants and returns what it sends.
fn carry_out(node: &mut Node) -> Vec<Message> {
    let mut sent = Vec::new();
    while node.has_ready() {
        let mut ready = node.ready();
        sent.extend(ready.take_messages());
        let store = node.raft.raft_log.store.clone();
        if !ready.snapshot().is_empty() {
            store.wl().apply_snapshot(ready.snapshot().clone()).expect("a newer snapshot");
        }
        store.wl().append(ready.entries()).expect("contiguous entries");
        if let Some(hard_state) = ready.hs() {
            store.wl().set_hardstate(hard_state.clone());
        }
        let mut committed = ready.take_committed_entries();
        sent.extend(ready.take_persisted_messages());
        let mut light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            store.wl().mut_hard_state().set_commit(commit);
        }
        sent.extend(light.take_messages());
        committed.extend(light.take_committed_entries());
        for entry in committed.iter().filter(|entry| entry.get_entry_type() == EntryType::EntryConfChange) {
            let change = ConfChange::parse_from_bytes(&entry.data).expect("a change that was proposed here");
            let conf_state = node.apply_conf_change(&change).expect("a change that fits");
            store.wl().set_conf_state(conf_state);
        }
        node.advance_apply();
    }
    sent
}

/// A group whose messages are validated; a refused one fails the test.
struct Group {
    nodes: BTreeMap<u64, Node>,
    wire: VecDeque<Message>,
    /// Whose messages are lost.
    cut: Option<u64>,
}

impl Group {
    fn new(ids: &[u64]) -> Self {
        let of = |id: &u64| (*id, node(*id, founded(ids)));
        Self { nodes: ids.iter().map(of).collect(), wire: VecDeque::new(), cut: None }
    }

    fn at(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the group")
    }

    fn settle(&mut self) {
        loop {
            for node in self.nodes.values_mut() {
                self.wire.extend(carry_out(node));
            }
            let Some(message) = self.wire.pop_front() else { return };
            if self.cut.is_some_and(|id| message.to == id || message.from == id) {
                continue;
            }
            let node = self.nodes.get_mut(&message.to).expect("a node of the group");
            if let Err(invalid) = validate(&message, &facts(node)) {
                panic!("refused {invalid}: {message:?}");
            }
            let _ = node.step(message);
        }
    }

    fn tick(&mut self, times: usize) {
        for _ in 0..times {
            for node in self.nodes.values_mut() {
                node.tick();
            }
            self.settle();
        }
    }

    fn elect(&mut self, id: u64) {
        self.at(id).campaign().expect("promotable");
        self.settle();
        assert_eq!(self.at(id).raft.state, StateRole::Leader);
    }

    fn propose(&mut self, id: u64, data: &[u8]) {
        self.at(id).propose(vec![], data.to_vec()).expect("a leader");
        self.settle();
    }
}

#[test]
fn traffic_of_a_group_passes() {
    let mut group = Group::new(&[1, 2, 3]);
    group.elect(1);
    for round in 0..20u8 {
        group.propose(1, &[round]);
        group.at(2).read_index(vec![round]);
        group.tick(3);
    }
    assert_eq!(group.at(2).raft.raft_log.committed, 22);

    // A member is away while others write, leads a part alone, and comes back with a diverging log.
    group.cut = Some(1);
    group.propose(1, b"lost");
    group.tick(40);
    let leader = [2, 3].into_iter().find(|id| group.at(*id).raft.state == StateRole::Leader).expect("a new leader");
    group.propose(leader, b"kept");
    group.cut = None;
    group.tick(20);
    let committed = group.at(leader).raft.raft_log.committed;
    assert_eq!(group.at(1).raft.raft_log.committed, committed);

    group.at(leader).transfer_leader(1);
    group.settle();
    assert_eq!(group.at(1).raft.state, StateRole::Leader);
}

#[test]
fn a_learner_that_starts_from_a_snapshot_passes() {
    let mut group = Group::new(&[1, 2, 3]);
    group.elect(1);
    let change = ConfChange { change_type: ConfChangeType::AddLearnerNode, node_id: 4, ..ConfChange::default() };
    group.at(1).propose_conf_change(b"context".to_vec(), change).expect("a leader");
    group.nodes.insert(4, node(4, MemStorage::new()));
    for round in 0..5u8 {
        group.propose(1, &[round]);
    }
    let applied = group.at(1).raft.raft_log.applied;
    group.at(1).raft.raft_log.store.wl().compact(applied).expect("applied");
    group.tick(10);
    group.propose(1, b"after the snapshot");
    let committed = group.at(1).raft.raft_log.committed;
    assert_eq!(group.at(4).raft.raft_log.committed, committed);
    assert!(group.at(4).raft.raft_log.first_index() > 1);
}

/// Node 1 of {1, 2, 3}, following 2 in term 2, entries 2 and 3 of term 2, committed up to 2.
fn follower() -> Node {
    let mut node = node(1, founded(&[1, 2, 3]));
    let message = Message { commit: 2, ..append_after((1, 1), vec![entry(2, 2), entry(3, 2)]) };
    node.step(message).expect("an append");
    carry_out(&mut node);
    assert_eq!(facts(&node), Facts { id: 1, term: 2, committed: 2, last_index: 3, persisted: 3, leads: false });
    node
}

/// The same node, leading in term 3 with an entry of its term committed.
fn leader() -> Node {
    let mut node = follower();
    node.campaign().expect("promotable");
    for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse] {
        carry_out(&mut node);
        node.step(Message { term: 3, ..from_2(kind) }).expect("a granted vote");
    }
    carry_out(&mut node);
    node.step(Message { term: 3, index: 4, ..from_2(MessageType::MsgAppendResponse) }).expect("an acknowledgement");
    carry_out(&mut node);
    assert_eq!((node.raft.state, node.raft.raft_log.committed), (StateRole::Leader, 4));
    node
}

fn from_2(kind: MessageType) -> Message {
    Message { msg_type: kind, from: 2, to: 1, term: 2, ..Message::default() }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: "x".into(), ..Entry::default() }
}

fn append_after(anchor: (u64, u64), entries: Vec<Entry>) -> Message {
    let (index, log_term) = anchor;
    Message { index, log_term, entries: entries.into(), commit: 9, ..from_2(MessageType::MsgAppend) }
}

fn snapshot_of(index: u64, term: u64, voters: &[u64], learners: &[u64]) -> Message {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (index, term);
    metadata.set_conf_state(ConfState::from((voters.to_vec(), learners.to_vec())));
    let mut message = from_2(MessageType::MsgSnapshot);
    message.set_snapshot(snapshot);
    message
}

fn read_of(kind: MessageType, term: u64, contexts: usize) -> Message {
    let entries: Vec<_> = (0..contexts).map(|_| Entry { data: "read".into(), ..Entry::default() }).collect();
    Message { term, entries: entries.into(), ..from_2(kind) }
}

/// The message ends the process if it is stepped, and is refused.
fn fatal(mut node: Node, message: Message, why: Invalid) {
    assert_eq!(validate(&message, &facts(&node)), Err(why), "{message:?}");
    let shown = format!("{message:?}");
    let outcome = catch_unwind(AssertUnwindSafe(move || {
        let _ = node.step(message);
        carry_out(&mut node);
    }));
    assert!(outcome.is_err(), "raft copes with {shown}, which is refused as: {why}");
}

fn refused(node: &Node, message: &Message, why: Invalid) {
    assert_eq!(validate(message, &facts(node)), Err(why), "{message:?}");
}

#[test]
fn fatal_terms_are_refused() {
    let vote = Message { term: 0, index: 10, log_term: 9, ..from_2(MessageType::MsgRequestVote) };
    let mut voter = follower();
    voter.raft.become_follower(3, 0);
    fatal(voter, vote, Invalid::Term(MessageType::MsgRequestVote, 0));

    let answer = Message { index: 9, ..read_of(MessageType::MsgReadIndexResp, 0, 1) };
    fatal(follower(), answer, Invalid::Term(MessageType::MsgReadIndexResp, 0));

    let read = read_of(MessageType::MsgReadIndex, 2, 1);
    fatal(follower(), read, Invalid::Term(MessageType::MsgReadIndex, 2));

    let transfer = from_2(MessageType::MsgTransferLeader);
    fatal(follower(), transfer, Invalid::NotFromPeers(MessageType::MsgTransferLeader));

    let unanswerable = Message { priority: -1, ..from_2(MessageType::MsgRequestPreVote) };
    let fresh = node(1, MemStorage::new_with_conf_state((vec![1, 2, 3], vec![])));
    fatal(fresh, unanswerable, Invalid::Unanswerable);
}

#[test]
fn a_term_that_cannot_be_counted_on_is_refused() {
    let message = Message { term: u64::MAX, ..from_2(MessageType::MsgHeartbeat) };
    let mut node = follower();
    refused(&node, &message, Invalid::OutOfRange(u64::MAX));
    node.step(message).expect("believed");
    assert!(catch_unwind(AssertUnwindSafe(move || node.campaign())).is_err());
}

#[test]
fn fatal_heartbeats_are_refused() {
    let message = Message { commit: 4, ..from_2(MessageType::MsgHeartbeat) };
    fatal(follower(), message.clone(), Invalid::CommitBeyondLog { commit: 4, last_index: 3 });
    // Of an older term Raft only answers.
    let mut later = follower();
    later.raft.become_follower(3, 0);
    assert_eq!(validate(&message, &facts(&later)), Ok(()));
    later.step(message).expect("an answer");
    // All of the log is fine.
    let message = Message { commit: 3, ..from_2(MessageType::MsgHeartbeat) };
    assert_eq!(validate(&message, &facts(&follower())), Ok(()));
}

#[test]
fn fatal_appends_are_refused() {
    let anchor_beyond = append_after((7, 0), vec![]);
    fatal(follower(), anchor_beyond, Invalid::LogTerm { log_term: 0, term: 2 });
    let hole_behind_nothing = append_after((7, 0), vec![entry(8, 2)]);
    fatal(follower(), hole_behind_nothing, Invalid::LogTerm { log_term: 0, term: 2 });
    let hole = append_after((3, 2), vec![entry(7, 2)]);
    fatal(follower(), hole, Invalid::Gap { expected: 4, found: 7 });
    let committed = append_after((3, 2), vec![entry(1, 1)]);
    fatal(follower(), committed, Invalid::Gap { expected: 4, found: 1 });
    // A log that is fed from its very start would apply membership changes to no membership.
    let from_the_start = append_after((0, 0), vec![]);
    refused(&follower(), &from_the_start, Invalid::LogTerm { log_term: 0, term: 2 });
    let no_term = append_after((3, 2), vec![entry(4, 0)]);
    fatal(follower(), no_term, Invalid::EntryTerm { index: 4, term: 0 });
}

#[test]
fn appends_that_break_the_log_are_refused() {
    let node = follower();
    let falling = append_after((3, 2), vec![entry(4, 2), entry(5, 1)]);
    refused(&node, &falling, Invalid::EntryTerm { index: 5, term: 1 });
    let from_the_future = append_after((3, 2), vec![entry(4, 3)]);
    refused(&node, &from_the_future, Invalid::EntryTerm { index: 4, term: 3 });
    let anchor_from_the_future = append_after((3, 3), vec![]);
    refused(&node, &anchor_from_the_future, Invalid::LogTerm { log_term: 3, term: 2 });
    let last = append_after((u64::MAX, 2), vec![entry(0, 2)]);
    refused(&node, &last, Invalid::OutOfRange(u64::MAX));

    let with = |entry_type, data: &'static [u8]| {
        append_after((3, 2), vec![Entry { entry_type, data: data.into(), ..entry(4, 2) }])
    };
    refused(&node, &with(EntryType::EntryConfChangeV2, b""), Invalid::Change(4));
    // A group, an open group, a field cut short: none is what a leader appends.
    for data in [b"\x2b\x2c" as &[u8], b"\x2b\x2b\x2b", b"\x22\x05ab"] {
        refused(&node, &with(EntryType::EntryConfChange, data), Invalid::Change(4));
    }
    let change = ConfChange { node_id: 4, context: "context".into(), id: 1 << 40, ..ConfChange::default() };
    let data = change.write_to_bytes().expect("encodable").leak();
    assert_eq!(validate(&with(EntryType::EntryConfChange, data), &facts(&node)), Ok(()));
    // Bytes of normal entries are the state machine's.
    assert_eq!(validate(&with(EntryType::EntryNormal, b"\x2b\x2b"), &facts(&node)), Ok(()));
}

#[test]
fn fatal_proposals_and_reads_are_refused() {
    let proposal = Message { term: 0, ..from_2(MessageType::MsgPropose) };
    refused(&leader(), &proposal, Invalid::Term(MessageType::MsgPropose, 0));
    fatal_in_own_term(MessageType::MsgPropose);
    for contexts in [0, 2] {
        let read = read_of(MessageType::MsgReadIndex, 0, contexts);
        refused(&leader(), &read, Invalid::ReadContext(contexts));
    }
    fatal(leader(), read_of(MessageType::MsgReadIndex, 0, 0), Invalid::ReadContext(0));
    let empty = Message { entries: vec![Entry::default()].into(), ..read_of(MessageType::MsgReadIndex, 0, 0) };
    refused(&leader(), &empty, Invalid::ReadContext(1));
    refused(&follower(), &read_of(MessageType::MsgReadIndexResp, 2, 2), Invalid::ReadContext(2));
}

fn fatal_in_own_term(kind: MessageType) {
    let message = Message { term: 3, ..from_2(kind) };
    fatal(leader(), message, Invalid::NotFromPeers(kind));
}

#[test]
fn what_a_replica_tells_itself_is_refused() {
    use MessageType::*;
    for kind in [MsgHup, MsgBeat, MsgUnreachable, MsgSnapStatus, MsgCheckQuorum, MsgPropose, MsgTransferLeader] {
        refused(&follower(), &from_2(kind), Invalid::NotFromPeers(kind));
    }
}

#[test]
fn answers_about_what_the_leader_never_had_are_refused() {
    let mut node = leader();
    let answer = |index, reject_hint| Message {
        term: 3,
        index,
        reject_hint,
        reject: reject_hint > 0,
        ..from_2(MessageType::MsgAppendResponse)
    };
    refused(&node, &answer(5, 0), Invalid::AnswerBeyondLog { index: 5, last_index: 4 });
    refused(&node, &answer(4, 9), Invalid::AnswerBeyondLog { index: 9, last_index: 4 });
    refused(&node, &answer(u64::MAX, 0), Invalid::OutOfRange(u64::MAX));
    assert_eq!(validate(&answer(4, 3), &facts(&node)), Ok(()));

    // What it does: the entry appended next is committed, though no other member has it.
    node.step(answer(5, 0)).expect("believed");
    node.propose(vec![], b"alone".to_vec()).expect("a leader");
    carry_out(&mut node);
    assert_eq!(node.raft.raft_log.committed, 5);
}

#[test]
fn requested_snapshots_are_refused() {
    let mut node = leader();
    let message = Message {
        term: 3,
        index: 4,
        reject: true,
        reject_hint: 4,
        request_snapshot: 4,
        ..from_2(MessageType::MsgAppendResponse)
    };
    refused(&node, &message, Invalid::SnapshotRequested);
    node.step(message).expect("believed");
    assert_ne!(node.raft.prs().get(2).expect("a voter").pending_request_snapshot, 0);
}

#[test]
fn votes_that_nobody_asked_for_are_refused() {
    let mut node = follower();
    let message = Message { index: 3, log_term: 2, ..append_after((3, 2), vec![entry(4, 2)]) };
    node.step(message).expect("an append");
    node.raft.become_candidate();
    assert_eq!((node.raft.raft_log.last_index(), node.raft.raft_log.persisted), (4, 3));
    let vote = Message { term: 3, ..from_2(MessageType::MsgRequestVoteResponse) };
    refused(
        &node,
        &Message { term: 3, ..from_2(MessageType::MsgTimeoutNow) },
        Invalid::Unasked(MessageType::MsgTimeoutNow),
    );
    let declined = Message { reject: true, ..vote.clone() };
    assert_eq!(validate(&declined, &facts(&node)), Ok(()));
    // Its own vote counts with the peer's.
    node.raft.mut_prs().record_vote(1, true);
    fatal(node, vote, Invalid::Unasked(MessageType::MsgRequestVoteResponse));
}

#[test]
fn fatal_snapshots_are_refused() {
    fatal(follower(), snapshot_of(9, 0, &[1, 2], &[]), Invalid::SnapshotPoint { index: 9, term: 0 });
    let fatal_ones: [(&[u64], &[u64]); 3] = [(&[], &[1]), (&[0, 1, 2], &[]), (&[1, 2], &[2])];
    for (voters, learners) in fatal_ones {
        fatal(follower(), snapshot_of(9, 2, voters, learners), Invalid::SnapshotConfiguration);
    }
    // Raft copes with these, but they are no configuration that a member has.
    let others: [(&[u64], &[u64]); 2] = [(&[1, 1, 2], &[]), (&[1, 2], &[3, 3])];
    for (voters, learners) in others {
        refused(&follower(), &snapshot_of(9, 2, voters, learners), Invalid::SnapshotConfiguration);
    }
}

#[test]
fn snapshots_of_nothing_are_refused() {
    let node = follower();
    refused(&node, &from_2(MessageType::MsgSnapshot), Invalid::SnapshotPoint { index: 0, term: 0 });
    refused(&node, &snapshot_of(0, 1, &[1, 2], &[]), Invalid::SnapshotPoint { index: 0, term: 1 });
    refused(&node, &snapshot_of(9, 3, &[1, 2], &[]), Invalid::SnapshotPoint { index: 9, term: 3 });
    let mut joint = snapshot_of(9, 2, &[1, 2], &[]);
    joint.mut_snapshot().mut_metadata().mut_conf_state().voters_outgoing = vec![3];
    refused(&node, &joint, Invalid::SnapshotConfiguration);
    assert_eq!(validate(&snapshot_of(9, 2, &[2, 3], &[1]), &facts(&node)), Ok(()));
}

#[test]
fn only_what_is_addressed_to_us_by_another_is_taken() {
    let node = follower();
    refused(&node, &Message { to: 3, ..from_2(MessageType::MsgHeartbeat) }, Invalid::NotOurs(3));
    refused(&node, &Message { from: 0, ..from_2(MessageType::MsgHeartbeat) }, Invalid::Sender(0));
    refused(&node, &Message { from: 1, ..from_2(MessageType::MsgHeartbeat) }, Invalid::Sender(1));
    assert_eq!(validate(&from_2(MessageType::MsgHeartbeat), &facts(&node)), Ok(()));
}
