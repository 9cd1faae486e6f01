//! Golden scripts of the state machine: `node/testscripts/{mvcc,lease,membership}/*`.
//!
//! A line that begins with `> ` is a command, one with `#` a comment; all others are what the commands answered.
//! `UPDATE_GOLDEN=1` rewrites them. Every write is one entry of the log, `> entry a ; b` puts several into one, and
//! `> run a ; b` applies several entries as one run.

mod print;
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use balsa_proto::log;
use bytes::Bytes;
use prost::Message;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, Entry, EntryType};

use self::script::{Line, ReadLine};
use crate::domain::apply::{Effects, StateMachine};
use crate::domain::command::Command;
use crate::domain::mvcc::{Most, ReadError, Wanted, changes, compaction, hash_kv, range, read_txn};
use crate::storage::memory::MemoryKeySpace;
use crate::storage::{KeySpace, SnapshotPoint};

#[test]
fn the_data_scripts_answer_as_written() {
    run_folder("mvcc");
}

#[test]
fn the_membership_scripts_answer_as_written() {
    run_folder("membership");
}

#[test]
fn the_lease_scripts_answer_as_written() {
    run_folder("lease");
}

fn run_folder(folder: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let update = std::env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1");
    for file in files {
        let script = fs::read_to_string(&file).unwrap();
        let actual = Machine::found().run(&script);
        if update {
            fs::write(&file, actual).unwrap();
        } else if script != actual {
            let first = script.lines().zip(actual.lines()).position(|(a, b)| a != b);
            panic!("{} differs at line {:?}; it is now:\n{actual}", file.display(), first.map(|line| line + 1));
        }
    }
}

/// A state machine with the log that it was fed from.
struct Machine {
    key_space: Arc<MemoryKeySpace>,
    state: StateMachine<MemoryKeySpace>,
    entries: Vec<Entry>,
    cursor: compaction::Cursor,
    sequence: u64,
}

impl Machine {
    /// A cluster of one voter with id 1, founded at index 1.
    fn found() -> Self {
        let founder = log::Member { id: 1, peer_urls: vec!["http://m1".to_owned()], ..Default::default() };
        let membership =
            log::Membership { cluster_id: 7, index: 1, next_id: 2, members: vec![founder], removed: Vec::new() };
        let conf_state = crate::domain::membership::conf_state(&membership);
        let key_space = Arc::new(MemoryKeySpace::default());
        StateMachine::found(&*key_space, &membership, &SnapshotPoint { index: 1, term: 1, conf_state }).unwrap();
        let state = StateMachine::open(Arc::clone(&key_space)).unwrap();
        Self { key_space, state, entries: Vec::new(), cursor: compaction::Cursor::default(), sequence: 0 }
    }

    fn run(&mut self, script: &str) -> String {
        let mut out = String::new();
        for line in script.lines() {
            if let Some(command) = line.strip_prefix("> ") {
                out += &format!("{line}\n{}", self.command(command));
            } else if line.starts_with('#') || line.is_empty() {
                out += &format!("{line}\n");
            }
        }
        out
    }

    fn command(&mut self, text: &str) -> String {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "entry" => {
                let lines = script::split(rest, ';').into_iter().map(|part| script::line(&part)).collect();
                let entry = self.entry(lines);
                self.apply(&[entry])
            }
            "run" => {
                let parts = script::split(rest, ';');
                let run: Vec<_> = parts.iter().map(|part| self.entry(vec![script::line(part)])).collect();
                self.apply(&run)
            }
            "flush" => self.key_space.flush().map(|()| "flushed\n".to_owned()).unwrap(),
            "crash" => self.crash(),
            "step" => self.step(rest.parse().unwrap()),
            "tables" => print::tables(&self.key_space.view().unwrap()),
            "members" => print::membership(&self.state),
            _ => match script::line(text) {
                Line::Read(read) => self.read(read),
                write => {
                    let entry = self.entry(vec![write]);
                    self.apply(&[entry])
                }
            },
        }
    }

    /// Appends an entry to the log.
    fn entry(&mut self, lines: Vec<Line>) -> Entry {
        let mut entry = Entry { index: self.entries.len() as u64 + 2, term: 1, ..Default::default() };
        let mut batch = log::Batch::default();
        for line in lines {
            self.sequence += 1;
            match line {
                Line::Write(command) => batch.proposals.push(self.proposal(command)),
                Line::Change(mut change) => {
                    (change.origin, change.sequence) = (1, self.sequence);
                    let mut conf_change = ConfChange::default();
                    conf_change.set_context(change.encode_to_vec().into());
                    entry.set_entry_type(EntryType::EntryConfChange);
                    entry.set_data(conf_change.write_to_bytes().unwrap().into());
                }
                Line::Read(_) => panic!("a read is no entry"),
            }
        }
        if entry.get_entry_type() == EntryType::EntryNormal {
            entry.data = Bytes::from(batch.encode_to_vec());
        }
        self.entries.push(entry.clone());
        entry
    }

    fn proposal(&self, command: Command) -> log::Proposal {
        log::Proposal {
            origin: 1,
            incarnation: 1,
            sequence: self.sequence,
            command: Some(command),
            ..Default::default()
        }
    }

    fn apply(&mut self, entries: &[Entry]) -> String {
        let effects: Effects = self.state.apply(entries).unwrap();
        print::effects(&effects)
    }

    /// Loses what is not flushed and applies the log again, entries that are flushed included.
    fn crash(&mut self) -> String {
        self.key_space = Arc::new(self.key_space.crash());
        self.state = StateMachine::open(Arc::clone(&self.key_space)).unwrap();
        self.cursor = compaction::Cursor::default();
        let found = self.state.applied().index;
        let effects = self.state.apply(&self.entries).unwrap();
        format!("found index={found}, replayed {} outcomes to index={}\n", effects.outcomes.len(), effects.index)
    }

    fn step(&mut self, limit: usize) -> String {
        match compaction::step(&self.key_space.view().unwrap(), &mut self.cursor, limit).unwrap() {
            None => "nothing left\n".to_owned(),
            Some(batch) => {
                let count = batch.writes.len();
                self.key_space.write(batch).unwrap();
                format!("{count} writes\n")
            }
        }
    }

    fn read(&self, read: ReadLine) -> String {
        let view = self.key_space.view().unwrap();
        let answer = match read {
            ReadLine::Range(request) => range(&view, &request).map(|response| print::range(&response)),
            ReadLine::Txn(request) => read_txn(&view, &request).map(|(response, _)| print::txn(&response, "")),
            ReadLine::Changes { range, from, to, limit } => {
                let most = Most { revisions: limit, ..Most::default() };
                let wanted = Wanted { ranges: &[range], from, to, prev_kv: true, most };
                changes(&view, &wanted).map(|changes| print::changes(&changes))
            }
            ReadLine::Leases => print::leases(&view).map_err(ReadError::from),
            ReadLine::Hash(revision) => hash_kv(&view, revision).map(|hash| print::hash(&hash)),
        };
        match answer {
            Ok(text) => text,
            Err(ReadError::Refused(refusal)) => format!("refused: {refusal}\n"),
            Err(ReadError::Storage(error)) => panic!("{error}"),
        }
    }
}
