//! A driver without its thread, on a real log and a real key space: each input is given to it by hand.

use balsa_proto::log::Member;
use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType};
use tokio::sync::oneshot;

use super::*;
use crate::domain::apply::StateMachine;
use crate::domain::raft::ReplicaConfig;
use crate::engine::Store;
use crate::storage::{LogWrite, SnapshotPoint};
use crate::transport::tonic::{PeerMetrics, TonicPeers, TonicPeersConfig};

/// Where a client's outcome arrives.
type Answer = oneshot::Receiver<Result<crate::domain::command::Outcome, crate::engine::Failure>>;

/// Notes what goes to the others.
#[derive(Default)]
struct Sent(Mutex<Vec<(u64, Body)>>);

impl Peers for Sent {
    fn send(&self, to: u64, body: Body) -> bool {
        self.0.lock().push((to, body));
        true
    }

    fn reached_since(&self, _to: u64) -> Option<Instant> {
        Some(Instant::now())
    }

    fn update(&self, _peers: &[(u64, Vec<String>)]) {}
}

/// Member 2 of three, alone with a log that `entries` follow.
struct Alone {
    driver: Driver,
    sent: Arc<Sent>,
    applier: std::sync::mpsc::Receiver<Work>,
    _directory: tempfile::TempDir,
}

impl Alone {
    fn new(entries: &[Entry]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let member = |id| Member { id, ..Member::default() };
        let membership = Membership { members: vec![member(1), member(2), member(3)], ..Membership::default() };
        let conf_state = ConfState::from((vec![1, 2, 3], vec![]));
        let point = SnapshotPoint { index: 1, term: 1, conf_state: conf_state.clone() };
        let log = Arc::new(RocksLog::open(&directory.path().join("log")).unwrap());
        let hard_state = raft::eraftpb::HardState { term: 1, commit: 1, ..Default::default() };
        let hard_state = Some(&hard_state);
        log.write(LogWrite { reset_to: Some(&point), hard_state, entries, ..LogWrite::default() }).unwrap();
        let store = Arc::new(Store::open(&directory.path().join("kv"), &Default::default()).unwrap());
        StateMachine::found(&*store, &membership, &point).unwrap();
        let config = ReplicaConfig { id: 2, election_ticks: 10, heartbeat_ticks: 1, pre_vote: false, seed: 1 };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let replica = Replica::open(config, log.clone(), 1, conf_state, &logger).unwrap();
        let sent = Arc::new(Sent::default());
        let (to_applier, applier) = std::sync::mpsc::channel();
        let ports = ports(directory.path(), log, store, membership, sent.clone(), to_applier);
        Self { driver: Driver::new(replica, ports, 1), sent, applier, _directory: directory }
    }

    /// As a turn of the thread, without waiting.
    fn turn(&mut self, inputs: Vec<Input>) {
        self.driver.turn(&mut { inputs });
        assert!(!self.driver.broken);
    }

    /// A message of member 1.
    fn hear(&mut self, kind: MessageType, index: u64) {
        self.hear_of(1, kind, index);
    }

    fn hear_of(&mut self, from: u64, kind: MessageType, index: u64) {
        let term = self.driver.replica.role().term;
        let message = Message { msg_type: kind, from, to: 2, term, index, ..Message::default() };
        self.frame(from, Body::Raft(peer::RaftMessages { messages: vec![messages::to_wire(message)] }));
    }

    /// The members that are there, as its status tells.
    fn there(&self) -> Vec<u64> {
        let status = self.driver.ports.status.read();
        status.progress.iter().filter(|peer| peer.active).map(|peer| peer.id).collect()
    }

    fn frame(&mut self, from: u64, body: Body) {
        let (to, body) = (2, Some(body));
        self.turn(vec![Input::Frame(peer::Frame { cluster_id: 1, from, to, body, ..peer::Frame::default() })]);
    }

    /// Member 1 votes for it.
    fn elected(&mut self) -> u64 {
        self.driver.replica.campaign();
        self.turn(Vec::new());
        self.hear(MessageType::MsgRequestVoteResponse, 0);
        assert!(self.driver.replica.role().leads);
        self.driver.replica.role().term
    }

    /// The data of what is in the log above `index`.
    fn log_after(&mut self, index: u64) -> Vec<Bytes> {
        let last = self.driver.replica.last_index();
        let (tail, context) = (self.driver.replica.tail(), raft::GetEntriesContext::empty(false));
        let entries = raft::Storage::entries(tail, index + 1, last + 1, None, context).unwrap();
        entries.into_iter().map(|entry| entry.data).collect()
    }

    /// The change at 2 and the empty entry of the leader's term at 3 are committed, and its state machine has them.
    fn change_applied(&mut self, change: ConfChange) {
        self.hear(MessageType::MsgAppendResponse, 3);
        let Ok(Work::Apply(entries)) = self.applier.try_recv() else { panic!("nothing is committed") };
        assert_eq!(entries.last().unwrap().index, 3);
        let mut membership = (*self.driver.ports.status.read().membership).clone();
        membership.members.retain(|member| member.id != change.node_id);
        if change.change_type == ConfChangeType::AddNode {
            membership.members.push(Member { id: change.node_id, ..Member::default() });
        }
        let membership = Arc::new(membership);
        Arc::make_mut(&mut self.driver.ports.status.write()).membership = membership.clone();
        self.applied(3, vec![change], Some(membership), 0);
    }

    /// The state machine has everything up to `index`, and of what was committed `bytes` more.
    fn applied(
        &mut self,
        index: u64,
        conf_changes: Vec<ConfChange>,
        membership: Option<Arc<Membership>>,
        bytes: usize,
    ) {
        let (term, changes) = (self.driver.replica.role().term, Vec::new());
        self.turn(vec![Input::Applied(Report {
            index,
            term,
            conf_changes,
            changes,
            membership,
            bytes,
            installed: false,
        })]);
    }

    /// Leads, and has applied the empty entry of its term at 2.
    fn leads(&mut self) -> u64 {
        let term = self.elected();
        self.hear(MessageType::MsgAppendResponse, 2);
        self.applied(2, Vec::new(), None, 0);
        term
    }

    /// A client of its own asks for something; the answer must be kept for as long as the client waits.
    fn ask(&mut self, sequence: u64, data: &Bytes) -> Answer {
        let answer = self.driver.ports.waiters.register(sequence, data.clone());
        self.turn(vec![Input::Propose { sequence, data: data.clone() }]);
        answer
    }

    /// What was refused, to whom and why.
    fn refusals(&self) -> Vec<(u64, Vec<u64>, peer::RefusalReason)> {
        let sent = self.sent.0.lock();
        let refusals = sent.iter().filter_map(|(to, body)| match body {
            Body::Refusal(refusal) => Some((*to, refusal.sequences.clone(), refusal.reason())),
            _ => None,
        });
        refusals.collect()
    }

    /// The next tick is due.
    fn tick(&mut self) {
        self.driver.next_tick = Instant::now();
        self.turn(Vec::new());
    }
}

fn ports(
    directory: &std::path::Path,
    log: Arc<RocksLog>,
    store: Arc<Store>,
    membership: Membership,
    peers: Arc<Sent>,
    applier: std::sync::mpsc::Sender<Work>,
) -> Ports {
    let (inbox, fatal) = (Arc::new(Inbox::default()), Fatal::default());
    let status = Arc::new(RwLock::new(Arc::new(Status { membership: Arc::new(membership), ..Status::default() })));
    let store = Arc::new(RwLock::new(store));
    let snapshots = directory.join("snapshot");
    let keeper =
        Arc::new(Keeper::new(store, inbox.clone(), fatal.clone(), (snapshots, 1), status.clone(), Default::default()));
    let runtime = tokio::runtime::Handle::current();
    let (dialer, metrics) = (Default::default(), PeerMetrics::default());
    let config = TonicPeersConfig { cluster_id: 1, member_id: 2, incarnation: 1, dialer, metrics };
    let tonic = TonicPeers::new(config, runtime.clone(), Arc::new(|_| {}));
    Ports {
        snapshots: Snapshots::new(tonic, inbox.clone(), runtime),
        inbox,
        log,
        peers,
        applier,
        keeper,
        waiters: Arc::new(Waiters::default()),
        status,
        leader: watch::channel((0, 0)).0,
        fatal,
        member_id: 2,
        incarnation: 1,
        tick: Duration::from_secs(60),
        election_ticks: 10,
        catch_up_entries: 10,
    }
}

fn change(change_type: ConfChangeType, node_id: u64) -> ConfChange {
    ConfChange { node_id, change_type, ..ConfChange::default() }
}

fn removal(leaving: u64) -> ConfChange {
    change(ConfChangeType::RemoveNode, leaving)
}

/// An entry at 2 that a leader of an earlier term left.
fn left(change: &ConfChange) -> Entry {
    let (data, entry_type) = (change.write_to_bytes().unwrap().into(), EntryType::EntryConfChange);
    Entry { index: 2, term: 1, data, entry_type, ..Entry::default() }
}

fn forward(term: u64, sequence: u64, batch: &'static [u8]) -> Body {
    let batch = Bytes::from_static(batch);
    Body::Forward(peer::Forward { term, proposals: vec![peer::ForwardedProposal { sequence, batch }] })
}

/// A leader died with a removal in its log. The member that leaves hands what its clients asked for meanwhile to the next
/// leader, and when it applies its removal it tells them that this is in no log.
#[tokio::test]
async fn a_new_leader_takes_nothing_of_a_member_whose_removal_it_found_in_its_log() {
    let mut alone = Alone::new(&[left(&removal(3))]);
    let term = alone.elected();
    alone.frame(3, forward(term, 7, b"of 3"));
    alone.frame(1, forward(term, 8, b"of 1"));
    let _answer = alone.driver.ports.waiters.register(9, Bytes::from_static(b"of 2"));
    alone.turn(vec![Input::Propose { sequence: 9, data: Bytes::from_static(b"of 2") }]);
    alone.change_applied(removal(3));
    assert_eq!(alone.log_after(3), [Bytes::from_static(b"of 1of 2")], "what others ask waits, and is not lost");
    let sent = alone.sent.0.lock();
    let refused = sent.iter().filter_map(|(to, body)| match body {
        Body::Refusal(refusal) => Some((*to, refusal.sequences.clone(), refusal.term)),
        _ => None,
    });
    assert_eq!(refused.collect::<Vec<_>>(), [(3, vec![7], term)]);
}

#[tokio::test]
async fn a_leader_that_finds_its_own_removal_in_its_log_takes_nothing_of_its_clients() {
    let mut alone = Alone::new(&[left(&removal(2))]);
    alone.elected();
    let waiters = alone.driver.ports.waiters.clone();
    let _answer = waiters.register(9, Bytes::from_static(b"of 2"));
    alone.turn(vec![Input::Propose { sequence: 9, data: Bytes::from_static(b"of 2") }]);
    assert_eq!(alone.log_after(3), Vec::<Bytes>::new());
    waiters.fail_all(&crate::engine::Failure::NotLeader { leader: None });
    alone.change_applied(removal(2));
    assert_eq!(alone.log_after(3), Vec::<Bytes>::new());
}

/// Raft marks a new member as active before anybody has heard of it. Whoever took it for one that is there could add another
/// one that is not, or remove one that the quorum needs.
#[tokio::test]
async fn a_new_member_is_there_when_it_has_answered() {
    let added = change(ConfChangeType::AddNode, 4);
    let mut alone = Alone::new(&[left(&added)]);
    alone.elected();
    assert_eq!(alone.there(), [2]);
    alone.change_applied(added);
    assert!(alone.driver.replica.progress().iter().any(|(id, _, marked, _)| (*id, *marked) == (4, true)));
    assert_eq!(alone.there(), [1, 2]);
    alone.hear_of(4, MessageType::MsgHeartbeatResponse, 0);
    assert_eq!(alone.there(), [1, 2, 4]);
}

/// Clients that come, wait and give up while there is no leader must leave nothing behind.
#[tokio::test]
async fn what_callers_gave_up_is_not_kept_while_there_is_no_leader() {
    let mut alone = Alone::new(&[]);
    let waiters = alone.driver.ports.waiters.clone();
    let propose = |sequence| Input::Propose { sequence, data: Bytes::from_static(b"a") };
    let answers = [1, 2, 3].map(|sequence| waiters.register(sequence, Bytes::from_static(b"a")));
    let reads: Vec<_> = (0..3).map(|_| oneshot::channel()).collect();
    let (replies, mut read_answers): (Vec<_>, Vec<_>) = reads.into_iter().unzip();
    alone.turn([1, 2, 3].map(propose).into_iter().chain(replies.into_iter().map(Input::Read)).collect());
    assert_eq!((alone.driver.queue.len(), alone.driver.reads.kept()), (3, 3));
    waiters.forget(1);
    waiters.forget(3);
    read_answers.truncate(1);
    alone.tick();
    let queued: Vec<u64> = alone.driver.queue.iter().map(|queued| queued.sequence).collect();
    assert_eq!((queued, alone.driver.reads.kept()), (vec![2], 1), "of those that still wait, all is kept");
    assert_eq!(waiters.take_back(2, 0), None, "it was sent to nobody");
    drop(answers);
}

/// What Raft sent of a kind.
fn raft_sent(sent: &Sent, kind: MessageType) -> Vec<peer::RaftMessage> {
    let sent = sent.0.lock();
    let messages = sent.iter().filter_map(|(_, body)| match body {
        Body::Raft(raft) => Some(raft.messages.clone()),
        _ => None,
    });
    messages.flatten().filter(|message| message.msg_type == kind as u32).collect()
}

/// A message of member 1, which leads.
fn of_the_leader(message: Message) -> Body {
    let message = messages::to_wire(Message { from: 1, to: 2, ..message });
    Body::Raft(peer::RaftMessages { messages: vec![message] })
}

/// etcd tells such a reader that the leader changed. A late answer to what the first one was asked must confirm nothing.
#[tokio::test]
async fn a_read_that_waits_while_the_leader_changes_is_asked_of_the_next_one() {
    let mut alone = Alone::new(&[]);
    let term = alone.leads() + 1;
    let (reply, mut answer) = oneshot::channel();
    alone.turn(vec![Input::Read(reply)]);
    let heartbeats = raft_sent(&alone.sent, MessageType::MsgHeartbeat);
    let asked_before: Vec<_> = heartbeats.into_iter().map(|heartbeat| heartbeat.context).collect();
    assert!(asked_before.iter().any(|context| !context.is_empty()), "the others are asked whether it still leads");
    let heartbeat = Message { msg_type: MessageType::MsgHeartbeat, term, commit: 2, ..Message::default() };
    alone.frame(1, of_the_leader(heartbeat));
    alone.turn(Vec::new());
    assert_eq!(alone.driver.replica.role().leader, 1);
    assert!(answer.try_recv().is_err(), "it goes on waiting");
    let [asked] = &raft_sent(&alone.sent, MessageType::MsgReadIndex)[..] else { panic!("the next one is asked once") };
    let context = asked.entries[0].data.clone();
    assert!(!asked_before.contains(&context));
    let entries = vec![Entry { data: context, ..Entry::default() }].into();
    let confirmed = Message { msg_type: MessageType::MsgReadIndexResp, term, index: 2, entries, ..Message::default() };
    alone.frame(1, of_the_leader(confirmed));
    assert_eq!(answer.try_recv(), Ok(Ok(())));
}

/// A state machine that is slower than the log must make clients wait, and not fill the memory with what is committed.
#[tokio::test]
async fn proposals_wait_while_too_much_is_committed_and_not_applied() {
    let mut alone = Alone::new(&[]);
    alone.leads();
    let large = Bytes::from(vec![7; 200_000]);
    let _answers = [1, 2].map(|sequence| alone.ask(sequence, &large));
    assert_eq!(alone.log_after(2).len(), 2);
    assert_eq!(alone.driver.unapplied_bytes, 0, "nothing of it is committed");
    alone.hear(MessageType::MsgAppendResponse, 4);
    assert_eq!(alone.driver.unapplied_bytes, 400_000);
    // The rest of the bound is more than a test should write.
    alone.driver.unapplied_bytes += MAX_UNAPPLIED_BYTES - 400_000;
    let _third = alone.ask(3, &large);
    assert_eq!(alone.log_after(4).len(), 1, "up to the bound they go on");
    alone.driver.unapplied_bytes += 1;
    let _more = [4, 5].map(|sequence| alone.ask(sequence, &Bytes::from(vec![sequence as u8])));
    alone.tick();
    assert_eq!((alone.log_after(5).len(), alone.driver.queue.len()), (0, 2), "above it they wait");
    alone.applied(3, Vec::new(), None, 200_000);
    assert_eq!(alone.log_after(5), [Bytes::from_static(&[4, 5])], "and then go into the log in their order");
    assert_eq!(alone.driver.unapplied_bytes, MAX_UNAPPLIED_BYTES + 1 - 200_000);
}

/// Nor may it on a follower, which proposes nothing.
#[tokio::test]
async fn a_follower_drops_what_its_leader_appends_while_too_much_is_committed_and_not_applied() {
    let mut alone = Alone::new(&[]);
    let appended = |index: u64| Message {
        msg_type: MessageType::MsgAppend,
        term: 2,
        log_term: if index == 2 { 1 } else { 2 },
        index: index - 1,
        entries: vec![Entry { index, term: 2, data: vec![index as u8].into(), ..Entry::default() }].into(),
        ..Message::default()
    };
    alone.frame(1, of_the_leader(appended(2)));
    assert_eq!(alone.log_after(1).len(), 1);
    alone.driver.unapplied_bytes = MAX_UNAPPLIED_BYTES + 1;
    alone.frame(1, of_the_leader(appended(3)));
    assert_eq!(alone.log_after(1).len(), 1, "dropped");
    let heartbeat = Message { msg_type: MessageType::MsgHeartbeat, term: 2, commit: 2, ..Message::default() };
    alone.frame(1, of_the_leader(heartbeat));
    assert_eq!(raft_sent(&alone.sent, MessageType::MsgHeartbeatResponse).len(), 1, "it follows all the same");
    alone.driver.unapplied_bytes = MAX_UNAPPLIED_BYTES;
    alone.frame(1, of_the_leader(appended(3)));
    assert_eq!(alone.log_after(1).len(), 2, "and takes what is sent again");
}

/// Applying runs beside the log: what is committed is handed over, and nobody waits until it is applied.
#[tokio::test]
async fn the_log_goes_on_while_the_state_machine_is_busy() {
    let mut alone = Alone::new(&[]);
    alone.leads();
    while alone.applier.try_recv().is_ok() {}
    let mut answers = Vec::new();
    for sequence in 1..=3u8 {
        let data = Bytes::from(vec![sequence]);
        answers.push(alone.ask(u64::from(sequence), &data));
        alone.hear(MessageType::MsgAppendResponse, 2 + u64::from(sequence));
        let Ok(Work::Apply(entries)) = alone.applier.try_recv() else { panic!("{sequence} is not handed over") };
        assert_eq!(entries.into_iter().map(|entry| entry.data).collect::<Vec<_>>(), [data], "in order, each once");
    }
    assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()), "nothing is answered before it is applied");
}

/// What others forward is bounded too while the leader takes nothing: they are told, and may send it again.
#[tokio::test]
async fn what_a_peer_forwards_beyond_the_bound_is_refused_as_full() {
    let mut alone = Alone::new(&[]);
    let term = alone.leads();
    alone.driver.unapplied_bytes = MAX_UNAPPLIED_BYTES + 1;
    let batch = Bytes::from(vec![7; 1 << 20]);
    let forwarded = |sequences: std::ops::RangeInclusive<u64>| {
        let proposals = sequences.map(|sequence| peer::ForwardedProposal { sequence, batch: batch.clone() });
        Body::Forward(peer::Forward { term, proposals: proposals.collect() })
    };
    alone.frame(1, forwarded(1..=60));
    alone.frame(3, forwarded(1..=4));
    assert_eq!((alone.refusals(), alone.driver.queue.len()), (Vec::new(), 64));
    alone.frame(3, forwarded(5..=6));
    assert_eq!(alone.refusals(), [(3, vec![5, 6], peer::RefusalReason::RefusalFull)]);
    assert_eq!(alone.driver.queue.len(), 64, "what was taken stays");
}

fn queued(data: &[u8]) -> Queued {
    Queued { origin: Origin::Local, term: 0, sequence: 0, data: Bytes::copy_from_slice(data) }
}

/// The second bug that the simulation found: the key space was flushed up to 9, of which Raft knew 7 to be applied; it
/// was trimmed up to 9, and Raft panicked in its next election.
#[test]
fn the_log_is_never_trimmed_above_what_raft_knows_to_be_applied() {
    assert_eq!(trim_to(9, 7, 100, None), 7);
    assert_eq!(trim_to(7, 9, 100, None), 7, "what is not durable is still needed after a crash");
    assert_eq!(trim_to(9, 9, 4, None), 4);
    assert_eq!(trim_to(9, 9, 100, Some(3)), 3, "a snapshot on its way is followed by the entries after it");
}

#[test]
fn commands_share_an_entry_up_to_the_bound_and_keep_their_order() {
    let large = vec![7; ENTRY_BYTES - 1];
    let packed = pack(&[queued(b"a"), queued(b"b"), queued(&large), queued(b"c")]);
    assert_eq!(packed.len(), 2);
    assert_eq!(&packed[0][..], b"ab");
    assert_eq!(packed[1].len(), ENTRY_BYTES);
    assert_eq!(packed[1][ENTRY_BYTES - 1], b'c');
}

/// Whoever hears that a snapshot was not taken removes it, and a log that names it could not be opened any more.
#[tokio::test]
async fn after_a_failed_write_nobody_says_that_a_snapshot_was_not_taken() {
    let mut alone = Alone::new(&[]);
    alone.driver.broken = true;
    let (reply, mut answer) = oneshot::channel();
    let point = SnapshotPoint { index: 9, term: 1, conf_state: ConfState::from((vec![1, 2, 3], vec![])) };
    alone.driver.take(Input::Install { name: "9".to_owned(), point, from: 1, term: 1, reply });
    assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
}

/// What a leader hears of its own question can wait as the question did.
#[tokio::test]
async fn what_a_member_asks_for_itself_goes_with_the_heartbeats_of_the_next_tick() {
    let mut alone = Alone::new(&[]);
    alone.leads();
    let (role, tick) = (alone.driver.replica.role(), Duration::from_millis(100));
    let mut calm = || alone.driver.quiet.calm(role, 2, 2, Duration::ZERO, Instant::now());
    alone.driver.calm = calm().or_else(calm).map(|calm| calm.with_reads(true));
    let frames = |alone: &Alone| alone.sent.0.lock().iter().filter(|(to, _)| *to == 1).count();
    let (before, (reply, mut answer)) = (frames(&alone), oneshot::channel());
    alone.turn(vec![Input::BackgroundRead(reply)]);
    assert_eq!(frames(&alone), before, "it waits");
    alone.tick();
    assert_eq!(frames(&alone), before + 1, "and goes with what is sent anyway");
    assert!(
        alone.driver.reads.can_wait(tick) && !alone.driver.reads.can_wait(tick * 2),
        "or it would be asked again before"
    );

    let heartbeats = raft_sent(&alone.sent, MessageType::MsgHeartbeat);
    let context = heartbeats.into_iter().map(|heartbeat| heartbeat.context).find(|context| !context.is_empty());
    let (kind, term) = (MessageType::MsgHeartbeatResponse, role.term);
    let confirmed = Message { msg_type: kind, term, context: context.expect("asked"), ..Message::default() };
    alone.frame(1, of_the_leader(confirmed));
    assert_eq!(answer.try_recv().expect("answered"), Ok(()));

    let (reply, _waits) = oneshot::channel();
    alone.turn(vec![Input::Read(reply)]);
    assert!(!alone.driver.reads.can_wait(tick), "somebody waits");
}

/// A disk that needs longer for each write than a read is waited for must not keep reads from their answers.
#[tokio::test]
async fn a_read_is_served_by_an_answer_that_came_while_the_disk_was_slow_and_asked_anew_without_one() {
    let mut alone = Alone::new(&[]);
    let (term, (reply, mut answer)) = (alone.leads(), oneshot::channel());
    let asked = |alone: &Alone| {
        let heartbeats = raft_sent(&alone.sent, MessageType::MsgHeartbeat);
        let mut contexts: Vec<_> = heartbeats.into_iter().map(|heartbeat| heartbeat.context).collect();
        contexts.retain(|context| !context.is_empty());
        contexts.dedup();
        contexts
    };
    let long = || std::thread::sleep(Duration::from_millis(210));
    alone.turn(vec![Input::Read(reply)]);
    long();
    alone.turn(Vec::new());
    alone.turn(Vec::new());
    let [_, anew] = &asked(&alone)[..] else { panic!("nobody has answered") };
    let confirmed =
        Message { msg_type: MessageType::MsgHeartbeatResponse, term, context: anew.clone(), ..Message::default() };
    long();
    alone.frame(1, of_the_leader(confirmed));
    assert_eq!(answer.try_recv().expect("answered"), Ok(()));
}
