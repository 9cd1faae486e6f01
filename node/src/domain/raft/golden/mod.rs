//! Golden scripts of the replica: `node/testscripts/raft/*`.
//!
//! A line that begins with `> ` is a command, one with `#` a comment; all others are what the replicas answered.
//! `UPDATE_GOLDEN=1` rewrites them. `> help` in a script prints the commands.

mod cluster;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType};

use self::cluster::Cluster;
use super::tail::metadata_only;
use super::{NotProposed, show};
use crate::storage::{LogStore, SnapshotPoint};

const HELP: &str = "\
found 1 2 3 [no_pre_vote]   members that found a cluster together
join 4                      a member with an empty disk
tick 1 [for=N]              the clock of a member
campaign 1                  an election now
elect 1                     stands whoever leads, as in a transfer, and settles; without a word
take 1                      the next batch, not written yet
persist 1                   writes it
batch 1                     both
settle                      batches and deliveries until nothing is due
deliver 1->2                the oldest message on that way
drop 1->2 | drop 2          messages on that way, or to a member, never arrive
cut 3 | heal                nothing reaches a member | all reach each other
propose 1 a b               client entries; size=N for one of N bytes
change 1 add_learner 4      also add_voter, remove
read 1 context              a read index
transfer 1 2                leadership from 1 to 2
slow 1 | apply 1            its state machine waits for the second
flush 1                     its state machine is durable
restart 1                   loses power
offer 1 [none]              its state machine as a snapshot
trim 1 5                    drops its log up to an index
forge 1->2 Kind field=N     a message that no replica of ours sends
status [1]                  role, log, configuration, the leader's view
log 1                       its entries
";

#[test]
fn the_raft_scripts_answer_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts/raft");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let update = std::env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1");
    for file in files {
        let script = fs::read_to_string(&file).unwrap();
        let actual = run(&script);
        if update {
            fs::write(&file, actual).unwrap();
        } else if script != actual {
            let first = script.lines().zip(actual.lines()).position(|(a, b)| a != b);
            panic!("{} differs at line {:?}; it is now:\n{actual}", file.display(), first.map(|line| line + 1));
        }
    }
}

/// The first bug that the simulation found. Raft reads all entries above its applied index before an election, and below
/// a snapshot there are none: a member that stood for election before its state machine had switched to the snapshot
/// panicked.
#[test]
fn a_member_may_stand_for_election_before_its_installed_snapshot_is_applied() {
    let mut cluster = Cluster::default();
    cluster.found(&[1, 2, 3], true);
    cluster.elect(1);
    cluster.cut.insert(3);
    cluster.member(1).replica.propose(data(&["a", "b"])).unwrap();
    cluster.settle();
    trim(&mut cluster, 1, 4);
    let point = cluster.member(1).applied.clone();
    cluster.member(1).replica.tail().offer(Some(point));
    cluster.cut.clear();
    tick(&mut cluster, 1, &[]);
    assert!(cluster.settle().contains("installs 4/2"));
    // `persist` reports nothing of the install to the replica, as the applier does later.
    assert_eq!(cluster.elect(3), "3 leads leader=3 term=3\n");
}

/// The applier relies on it: no snapshot that it switches to says that its own member was removed.
#[test]
fn a_snapshot_whose_configuration_lacks_the_member_is_not_installed() {
    for (voters, installs) in [(vec![1, 2], false), (vec![1, 2, 3], true)] {
        let mut cluster = Cluster::default();
        cluster.found(&[1, 2, 3], true);
        cluster.elect(1);
        let point = SnapshotPoint { index: 9, term: 2, conf_state: (voters, vec![]).into() };
        cluster.member(3).replica.step_snapshot(1, 2, &point).unwrap();
        assert_eq!(cluster.take(3).contains("installs 9/2"), installs);
    }
}

fn run(script: &str) -> String {
    let mut cluster = Cluster::default();
    let mut out = String::new();
    for line in script.lines() {
        if let Some(text) = line.strip_prefix("> ") {
            let words: Vec<&str> = text.split_whitespace().collect();
            let _ = write!(out, "{line}\n{}", command(&mut cluster, words[0], &words[1..]));
        } else if line.starts_with('#') || line.is_empty() {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

fn command(cluster: &mut Cluster, verb: &str, words: &[&str]) -> String {
    match verb {
        "help" => HELP.to_owned(),
        "settle" => cluster.settle(),
        "drop" => drop_flights(cluster, words[0]),
        "deliver" => deliver(cluster, words[0]),
        "forge" => forge(cluster, words),
        "status" => {
            let ids: Vec<u64> = words.iter().map(|word| number(word)).collect();
            status(cluster, &ids)
        }
        "take" => cluster.take(number(words[0])),
        "persist" => cluster.persist(number(words[0])),
        "batch" => cluster.take(number(words[0])) + &cluster.persist(number(words[0])),
        "elect" => cluster.elect(number(words[0])),
        "tick" => tick(cluster, number(words[0]), &words[1..]),
        "propose" => answer(cluster.member(number(words[0])).replica.propose(data(&words[1..]))),
        "change" => {
            let change = change(words[1], number(words[2]));
            answer(cluster.member(number(words[0])).replica.propose_change(change, Vec::new()))
        }
        "log" => log(cluster, number(words[0])),
        _ => {
            silent_command(cluster, verb, words);
            String::new()
        }
    }
}

fn silent_command(cluster: &mut Cluster, verb: &str, words: &[&str]) {
    let id = words.first().map_or(0, |word| number(word));
    match verb {
        "found" => {
            let voters: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
            cluster.found(&voters, !words.contains(&"no_pre_vote"));
        }
        "join" => cluster.join(id),
        "restart" => cluster.restart(id),
        "cut" => cluster.cut.extend([id]),
        "heal" => cluster.cut.clear(),
        "campaign" => cluster.member(id).replica.campaign(),
        "read" => cluster.member(id).replica.read_index(words[1].as_bytes().to_vec()),
        "transfer" => cluster.member(id).replica.transfer(number(words[1])),
        "slow" => cluster.member(id).slow = true,
        "apply" => cluster.apply(id),
        "flush" => {
            let member = cluster.member(id);
            member.flushed = member.applied.clone();
        }
        "offer" => {
            let member = cluster.member(id);
            let point = (!words.contains(&"none")).then(|| member.applied.clone());
            member.replica.tail().offer(point);
        }
        "trim" => trim(cluster, id, number(words[1])),
        other => panic!("no such command: {other}"),
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

fn setting(words: &[&str], name: &str) -> Option<u64> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(number)
}

fn way(word: &str) -> (u64, u64) {
    let (from, to) = word.split_once("->").unwrap_or_else(|| panic!("not a way: {word}"));
    (number(from), number(to))
}

fn answer(outcome: Result<(), NotProposed>) -> String {
    outcome.map_or_else(|reason| format!("refused: {reason:?}\n"), |()| "proposed\n".to_owned())
}

fn data(words: &[&str]) -> Vec<Bytes> {
    match setting(words, "size") {
        Some(size) => vec![vec![0; size as usize].into()],
        None => words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect(),
    }
}

fn change(kind: &str, id: u64) -> ConfChange {
    let kind = match kind {
        "add_learner" => ConfChangeType::AddLearnerNode,
        "add_voter" => ConfChangeType::AddNode,
        "remove" => ConfChangeType::RemoveNode,
        other => panic!("no such change: {other}"),
    };
    let mut change = ConfChange { node_id: id, ..ConfChange::default() };
    change.set_change_type(kind);
    change
}

/// Ticks, and says in which of them the replica wanted something done.
fn tick(cluster: &mut Cluster, id: u64, words: &[&str]) -> String {
    let member = cluster.member(id);
    let mut due = Vec::new();
    for count in 1..=setting(words, "for").unwrap_or(1) {
        let before = member.replica.has_batch();
        member.replica.tick();
        if !before && member.replica.has_batch() {
            due.push(count.to_string());
        }
    }
    if due.is_empty() { String::new() } else { format!("due after tick {}\n", due.join(", ")) }
}

fn deliver(cluster: &mut Cluster, word: &str) -> String {
    let (from, to) = way(word);
    let at = cluster.flights.iter().position(|message| (message.from, message.to) == (from, to));
    at.map_or("nothing\n".to_owned(), |at| cluster.deliver(at))
}

fn drop_flights(cluster: &mut Cluster, word: &str) -> String {
    let dropped = |message: &Message| match word.split_once("->") {
        Some(_) => way(word) == (message.from, message.to),
        None => number(word) == message.to,
    };
    let mut text = String::new();
    cluster.flights.retain(|message| {
        let drops = dropped(message);
        if drops {
            let _ = writeln!(text, "{}->{} {}: dropped", message.from, message.to, show::message(message));
        }
        !drops
    });
    text
}

/// A message as a hostile or broken peer would send it, delivered at once.
fn forge(cluster: &mut Cluster, words: &[&str]) -> String {
    let (from, to) = way(words[0]);
    let mut message = Message { from, to, ..Message::default() };
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgPropose,
        MessageType::MsgReadIndex,
        MessageType::MsgTransferLeader,
        MessageType::MsgSnapshot,
    ];
    let named = kinds.into_iter().find(|kind| format!("{kind:?}") == format!("Msg{}", words[1]));
    message.set_msg_type(named.unwrap_or_else(|| panic!("no such kind: {}", words[1])));
    message.term = setting(words, "term").unwrap_or(0);
    message.index = setting(words, "index").unwrap_or(0);
    message.log_term = setting(words, "log_term").unwrap_or(0);
    message.commit = setting(words, "commit").unwrap_or(0);
    if message.get_msg_type() == MessageType::MsgSnapshot {
        let (index, term) = (std::mem::take(&mut message.index), std::mem::take(&mut message.log_term));
        let conf_state = cluster.member(to).applied.conf_state.clone();
        message.set_snapshot(metadata_only(&SnapshotPoint { index, term, conf_state }));
    }
    if let Some(index) = setting(words, "joint") {
        let mut entry = Entry { index, term: message.term, ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        message.mut_entries().push(entry);
    }
    cluster.flights.push_front(message);
    cluster.deliver(0)
}

fn trim(cluster: &mut Cluster, id: u64, index: u64) {
    let member = cluster.member(id);
    let term = raft::Storage::term(member.replica.tail(), index).unwrap();
    let conf_state = member.replica.tail().point().conf_state.clone();
    let point = SnapshotPoint { index, term, conf_state };
    member.log.trim(&point).unwrap();
    member.replica.tail().trim(point);
}

fn status(cluster: &Cluster, ids: &[u64]) -> String {
    let mut text = String::new();
    for (id, member) in cluster.members.iter().filter(|(id, _)| ids.is_empty() || ids.contains(id)) {
        let (role, replica) = (member.replica.role(), &member.replica);
        let leads = if role.leads { "leads" } else { "follows" };
        let (last, commit, applied) = (replica.last_index(), replica.commit(), member.applied.index);
        let _ = write!(text, "{id} {leads} leader={} term={} ", role.leader, role.term);
        let _ = write!(text, "last={last} commit={commit} applied={applied} ");
        let _ = write!(text, "{}", show::configuration(&member.applied.conf_state));
        let _ = write!(text, "{}", if replica.transferring() { " transferring" } else { "" });
        let _ = writeln!(text, "{}", if replica.change_in_flight() { " change_in_flight" } else { "" });
        for (peer, matched, active, snapshot) in replica.progress() {
            let away = if active { "" } else { " away" };
            let snapshot = if snapshot { " snapshot" } else { "" };
            let _ = writeln!(text, "  {peer} match={matched}{away}{snapshot}");
        }
    }
    text
}

fn log(cluster: &mut Cluster, id: u64) -> String {
    let store = &cluster.member(id).log;
    let initial = store.initial().unwrap();
    let entries = store.entries(initial.first_index, initial.last_index + 1, u64::MAX).unwrap();
    let begins = format!("  begins after {}/{}\n", initial.snapshot.index, initial.snapshot.term);
    entries.iter().fold(begins, |text, entry| text + &format!("  {}\n", show::entry(entry)))
}
