//! A seeded comparison with a model that keeps every version in a list, and of replicas with each other: in whatever
//! runs entries are applied, whenever old versions are deleted and whenever a process dies, all answer alike and end
//! with the same tables, and watchers hear what the model says ([`watchers`]). [`requests`] draws what is asked, [`answers`]
//! says what must be answered, and [`reached`] that all of it was asked.
//!
//! `BALSA_SEEDS=n` runs more seeds, `BALSA_SEED=x` one of them again, exactly.

mod answers;
mod large;
mod reached;
mod read_back;
mod requests;
mod watchers;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use balsa_proto::mvccpb::{Event, KeyValue};
use balsa_proto::{etcdserverpb as pb, log};
use bytes::Bytes;
use pb::request_op::Request;
use prost::Message;
use raft::eraftpb::Entry;

use self::reached::Reached;
use self::requests::Drawn;
use self::watchers::Watching;
use super::overlay::large::PART_BYTES;
use super::{
    Changes, KeyRange, Most, ReadError, RevisionEvents, Revisions, Wanted, changes, compaction, count_versions,
    hash_kv, range, range_counted, read_txn,
};
use crate::domain::apply::{Effects, StateMachine};
use crate::domain::command::{Command, Outcome};
use crate::domain::lease::table;
use crate::domain::random::Random;
use crate::domain::refusal::Refusal;
use crate::storage::memory::{FailedWrite, MemoryKeySpace};
use crate::storage::{KeySpace, Table, View, WriteBatch};

impl Random {
    fn key(&mut self) -> Bytes {
        const KEYS: [&[u8]; 10] =
            [b"a", b"a\0", b"a\0\0", b"a\x01", b"ab", b"b", b"b\xff", b"\xff", b"\0", b"\xff\xff"];
        Bytes::from_static(KEYS[self.below(KEYS.len())])
    }

    fn range(&mut self) -> (Bytes, Bytes) {
        let end = match self.below(4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            _ => self.key(),
        };
        (self.key(), end)
    }
}

/// A key space at one revision.
type State = BTreeMap<Bytes, KeyValue>;

/// Every version that there ever was.
struct Model {
    revision: i64,
    compacted: i64,
    /// Revision, key, and the pair or None for a delete; in the order of the changes.
    versions: Vec<(i64, Bytes, Option<KeyValue>)>,
    /// Id to TTL, and what a clock wrote down as left of it.
    leases: BTreeMap<i64, [i64; 2]>,
    /// Every revision that was compacted.
    compactions: BTreeSet<i64>,
}

impl Default for Model {
    fn default() -> Self {
        Self { revision: 1, compacted: -1, versions: Vec::new(), leases: BTreeMap::new(), compactions: BTreeSet::new() }
    }
}

impl Model {
    fn at(&self, revision: i64) -> State {
        let mut state = BTreeMap::new();
        for (_, key, version) in self.versions.iter().filter(|(made, ..)| *made <= revision) {
            match version {
                Some(kv) => state.insert(key.clone(), kv.clone()),
                None => state.remove(key),
            };
        }
        state
    }

    /// The keys that were last written under a lease.
    fn keys_of(&self, lease: i64) -> Vec<Bytes> {
        let state = self.at(self.revision + 1);
        state.into_values().filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
    }

    /// Whether a compaction at its revision leaves a change: of each key the first delete, and the pair at its end.
    fn outlives_its_compaction(&self, at: usize) -> bool {
        let (revision, key, version) = &self.versions[at];
        let alike = |(other, name, kind): &(i64, Bytes, Option<KeyValue>)| {
            (other, name, kind.is_some()) == (revision, key, version.is_some())
        };
        match version {
            None => !self.versions[..at].iter().any(alike),
            Some(_) => !self.versions[at + 1..].iter().any(|(other, name, _)| (other, name) == (revision, key)),
        }
    }

    /// `compacted`: pairs before the changes up to it cannot be read, and of its own changes not all are left.
    fn events(&self, from: i64, range: &KeyRange, compacted: i64) -> Vec<RevisionEvents> {
        let mut revisions: Vec<RevisionEvents> = Vec::new();
        for (at, (made, key, version)) in self.versions.iter().enumerate() {
            let is_left = *made != compacted || self.outlives_its_compaction(at);
            if *made < from || !range.contains(key) || !is_left {
                continue;
            }
            let before = || if *made > compacted { self.at(made - 1).remove(key) } else { None };
            let deleted = KeyValue { key: key.clone(), mod_revision: *made, ..Default::default() };
            let event = match version {
                None => Event { r#type: 1, kv: Some(deleted), prev_kv: before() },
                Some(kv) if kv.create_revision == *made => Event { r#type: 0, kv: Some(kv.clone()), prev_kv: None },
                Some(kv) => Event { r#type: 0, kv: Some(kv.clone()), prev_kv: before() },
            };
            match revisions.last_mut() {
                Some(last) if last.revision == *made => last.events.push(event),
                _ => revisions.push(RevisionEvents { revision: *made, events: vec![event] }),
            }
        }
        revisions
    }
}

/// A state machine that dies and forgets, with its background deletion.
struct Replica {
    key_space: Arc<MemoryKeySpace>,
    state: StateMachine<MemoryKeySpace>,
    cursor: compaction::Cursor,
    part_bytes: usize,
    /// It counts its keys by blocks.
    counts: bool,
}

impl Replica {
    fn over(key_space: MemoryKeySpace) -> Self {
        Self::in_parts(key_space, PART_BYTES)
    }

    /// Deletes of more than `part_bytes` are written in parts, and each part is durable before the next.
    fn in_parts(key_space: MemoryKeySpace, part_bytes: usize) -> Self {
        let key_space = Arc::new(key_space);
        let mut state = StateMachine::recover(Arc::clone(&key_space)).unwrap();
        state.set_part_bytes(part_bytes);
        let flushed = Arc::clone(&key_space);
        state.between_parts(move || flushed.flush());
        Self { key_space, state, cursor: compaction::Cursor::default(), part_bytes, counts: false }
    }

    fn crash(&mut self) {
        let counts = self.counts;
        *self = Self::in_parts(self.key_space.crash(), self.part_bytes);
        if counts {
            self.count_keys();
        }
    }

    fn count_keys(&mut self) {
        self.counts = true;
        self.state.count_keys().unwrap();
    }

    fn revisions(&self) -> Revisions {
        Revisions { revision: self.state.revision(), compacted: self.state.compacted() }
    }

    /// Applies a run, whose answers must be the model's, and lets watchers hear of it.
    fn apply(&mut self, run: &[Asked], watching: &mut Watching, random: &mut Random, model: &Model) -> Effects {
        let effects = self.answers(run);
        watching.applied(&effects, random, model, self.revisions());
        effects
    }

    /// Applies a run, whose answers must be the model's.
    fn answers(&mut self, run: &[Asked]) -> Effects {
        let before = self.state.applied().index;
        let effects = self.state.apply(&entries(run)).unwrap();
        let applied = run.iter().filter(|asked| (before + 1..=effects.index).contains(&asked.entry.index));
        let (commands, wanted): (Vec<_>, Vec<_>) = applied.flat_map(|asked| &asked.commands).cloned().unzip();
        assert_eq!(effects.outcomes.len(), wanted.len());
        for ((command, wanted), (_, outcome)) in commands.iter().zip(&wanted).zip(&effects.outcomes) {
            assert_eq!(outcome, wanted, "{command:?}");
        }
        effects
    }

    fn view(&self) -> <MemoryKeySpace as KeySpace>::View {
        self.key_space.view().unwrap()
    }

    /// Deletes a piece; false when there is nothing left.
    fn step(&mut self, limit: usize) -> bool {
        let batch: Option<WriteBatch> = compaction::step(&self.view(), &mut self.cursor, limit).unwrap();
        batch.map(|batch| self.key_space.write(batch).unwrap()).is_some()
    }

    fn tables(&self) -> Vec<(Table, Bytes, Bytes)> {
        let (view, mut rows) = (self.view(), Vec::new());
        for table in Table::ALL {
            view.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
                rows.push((table, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                ControlFlow::Continue(())
            })
            .unwrap();
        }
        rows
    }
}

/// An entry, its commands, and what the model answered to each.
struct Asked {
    entry: Entry,
    commands: Vec<(Command, Result<Outcome, Refusal>)>,
}

impl Asked {
    fn draw(index: u64, random: &mut Random, model: &mut Model, reached: &mut Reached) -> Self {
        let mut commands = Vec::new();
        for _ in 0..random.below(4) {
            let (command, before) = (random.command(model, term_of(index)), model.now());
            let answer = model.execute(&command, term_of(index));
            reached.command(&command, &before, &answer);
            commands.push((command, answer));
        }
        let entry = entry_of(index, commands.iter().map(|(command, _)| command.clone()).collect());
        Self { entry, commands }
    }
}

fn entries(asked: &[Asked]) -> Vec<Entry> {
    asked.iter().map(|asked| asked.entry.clone()).collect()
}

/// The term of an entry; leaders change now and then.
fn term_of(index: u64) -> u64 {
    1 + index / 40
}

fn entry_of(index: u64, commands: Vec<Command>) -> Entry {
    let proposal = |command| log::Proposal { command: Some(command), ..Default::default() };
    let batch = log::Batch { proposals: commands.into_iter().map(proposal).collect() };
    Entry { index, term: term_of(index), data: batch.encode_to_vec().into(), ..Default::default() }
}

/// Reads of each replica at a time.
const READS: usize = 12;

/// Plain reads, at revisions that can be read and at the ones beside these, and a transaction of reads.
fn compare_reads(random: &mut Random, model: &mut Model, replica: &Replica, reached: &mut Reached) {
    let view = replica.view();
    let (lowest, readable) = (model.compacted.max(1) - 1, model.revision - model.compacted.max(1) + 1);
    for _ in 0..READS {
        let revision = lowest + random.below(readable as usize + 2) as i64;
        let request = pb::RangeRequest { revision, ..random.range_request(model) };
        let expected = model.read(&request);
        assert_eq!(agreed(range_counted(&view, replica.state.counts(), &request)), expected, "{request:?}");
        reached.read(&request, &expected);
    }
    let (txn, before) = (random.txn(model, &Drawn::Reads), model.now());
    let expected = model.transact(&txn);
    assert_eq!(agreed(read_txn(&view, &txn).map(|(response, _)| response)), expected, "{txn:?}");
    reached.read_txn(&txn, &before, &expected);
    let from = model.compacted.max(1) + random.below(5) as i64;
    let (key, range_end) = random.range();
    let range = KeyRange::of(&key, &range_end);
    assert_eq!(catch_up(&view, &range, from, 1 + random.below(4)), model.events(from, &range, model.compacted));
}

fn agreed<T>(read: Result<T, ReadError>) -> Result<T, Refusal> {
    read.map_err(|error| match error {
        ReadError::Refused(refusal) => refusal,
        ReadError::Storage(error) => panic!("{error}"),
    })
}

fn compare_leases(model: &Model, replica: &Replica) {
    let view = replica.view();
    let leases = table::leases(&view).unwrap().into_iter().map(|(id, lease)| (id, [lease.ttl, lease.remaining_ttl]));
    assert_eq!(leases.collect::<BTreeMap<_, _>>(), model.leases);
    for id in 0..8 {
        let expected = if id == 0 { Vec::new() } else { model.keys_of(id) };
        assert_eq!(table::keys(&view, id, usize::MAX).unwrap(), expected, "lease {id}");
    }
}

/// Reads all changes in pieces.
fn catch_up(view: &impl View, range: &KeyRange, mut from: i64, limit: usize) -> Vec<RevisionEvents> {
    let to = super::current(view).unwrap().revision;
    let mut all = Vec::new();
    while from <= to {
        let most = Most { revisions: limit, ..Most::default() };
        let wanted = Wanted { ranges: std::slice::from_ref(range), from, to, prev_kv: true, most };
        let Changes { revisions, next_revision, too_large } = changes(view, &wanted).unwrap();
        assert!(next_revision > from && revisions.len() <= limit && !too_large);
        all.extend(revisions);
        from = next_revision;
    }
    all
}

/// What a simulation came to.
#[derive(Default)]
struct Tally {
    /// Events that watchers heard, and watchers that a compaction ended.
    drained: [usize; 2],
    reached: Reached,
}

impl Tally {
    fn add(&mut self, more: Self) {
        self.drain(more.drained);
        self.reached.add(more.reached);
    }

    fn drain(&mut self, [heard, ended]: [usize; 2]) {
        self.drained = [self.drained[0] + heard, self.drained[1] + ended];
    }
}

fn simulate(seed: u64) -> Tally {
    let random = &mut Random::new(seed);
    let mut model = Model::default();
    let parts = |random: &mut Random| Replica::in_parts(MemoryKeySpace::default(), 1 + random.below(400));
    let mut replicas: Vec<_> = (0..2).map(|_| parts(random)).collect();
    replicas[0].count_keys();
    let over = |replica: &Replica| Watching::over(replica.key_space.clone(), &mut Random::new(seed));
    let mut watching: Vec<_> = replicas.iter().map(over).collect();
    let (mut asked, mut tally): (Vec<Asked>, _) = (Vec::new(), Tally::default());
    for _ in 0..40 {
        for _ in 0..random.below(4) + 1 {
            let index = asked.len() as u64 + 1;
            asked.push(Asked::draw(index, random, &mut model, &mut tally.reached));
        }
        for (replica, watching) in replicas.iter_mut().zip(&mut watching) {
            catch_up_on(&asked, replica, watching, random, &model);
            assert_eq!(replica.revisions(), Revisions { revision: model.revision, compacted: model.compacted });
            if random.one_in(2) {
                tally.drain(watching.drain(&model, replica.revisions()));
            }
            compare_reads(random, &mut model, replica, &mut tally.reached);
            compare_leases(&model, replica);
        }
        let hash = |replica: &Replica, revision| hash_kv(&replica.view(), revision).unwrap();
        let pinned =
            model.compacted.max(1) + random.below((model.revision - model.compacted.max(1)) as usize + 1) as i64;
        assert_eq!(hash(&replicas[0], pinned), hash(&replicas[1], pinned));
    }
    compare_runs(&model, &asked, replicas);
    tally
}

/// Applies what is new, piece by piece. A replica that died, perhaps between two parts of a delete, applies all since its
/// last flush again before that, as one run.
fn catch_up_on(asked: &[Asked], replica: &mut Replica, watching: &mut Watching, random: &mut Random, model: &Model) {
    if random.one_in(4) {
        let left = if random.one_in(2) { FailedWrite::Lost } else { FailedWrite::Kept };
        replica.key_space.fail_write(1 + random.below(12) as u64, left);
        let _ = replica.state.apply(&entries(asked));
        replica.crash();
        watching.moved(replica.key_space.clone(), random);
        let known = asked.len() - random.below(3).min(asked.len());
        replica.apply(&asked[..known], watching, random, model);
    }
    for chunk in asked.chunks(1 + random.below(5)) {
        replica.apply(chunk, watching, random, model);
    }
    if random.one_in(3) {
        replica.key_space.flush().unwrap();
    }
    while !random.one_in(3) && replica.step(1 + random.below(6)) {}
}

/// All entries in one run and each in a run of its own end with the tables of `replicas`, and make the same events.
fn compare_runs(model: &Model, asked: &[Asked], mut replicas: Vec<Replica>) {
    let mut at_once = Replica::over(MemoryKeySpace::default());
    at_once.answers(asked);
    let mut one_by_one = Replica::over(MemoryKeySpace::default());
    let mut published = Vec::new();
    for asked in asked {
        published.extend(one_by_one.answers(std::slice::from_ref(asked)).events);
    }
    assert_eq!(at_once.tables(), one_by_one.tables());
    assert_eq!(published, model.events(1, &KeyRange::of(&"".into(), &"\0".into()), -1));
    replicas.extend([at_once, one_by_one]);
    replicas.iter_mut().for_each(|replica| while replica.step(7) {});
    for pair in replicas.windows(2) {
        assert_eq!(pair[0].tables(), pair[1].tables());
    }
}

#[test]
fn every_read_agrees_with_a_list_of_all_versions_and_every_replica_with_the_others() {
    let number = |variable| std::env::var(variable).ok().and_then(|value| value.parse().ok());
    let seeds = match number("BALSA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BALSA_SEEDS").unwrap_or(60),
    };
    let mut tally = Tally::default();
    for seed in seeds.clone() {
        let run = std::panic::catch_unwind(|| simulate(seed));
        tally.add(run.unwrap_or_else(|_| panic!("seed {seed} failed (BALSA_SEED={seed} repeats it)")));
    }
    let ([heard, ended], reached) = (tally.drained, &tally.reached);
    println!(
        "{seeds:?}: watchers heard {heard} events as the model, {ended} were ended by compactions; {:#?}",
        reached.0
    );
    if seeds.end - seeds.start >= 10 {
        assert!(heard > 0 && ended > 0, "nothing happened");
        assert_eq!(reached.missing(), [""; 0], "never reached");
    }
}

#[test]
fn a_long_range_is_read_in_pieces_and_a_hot_key_is_passed_by() {
    let mut replica = Replica::over(MemoryKeySpace::default());
    let put = |key: String, value: usize| {
        Command::Put(pb::PutRequest { key: key.into(), value: value.to_string().into(), ..Default::default() })
    };
    let mut commands: Vec<_> = (0..2000).map(|n| put(format!("k{n:05}"), n)).collect();
    commands.extend((0..300).map(|n| put("k00700".to_owned(), n)));
    commands.extend((0..2000).step_by(3).map(|n| put(format!("k{n:05}"), 0)));
    let delete = pb::DeleteRangeRequest { key: "k01".into(), range_end: "k019".into(), prev_kv: false };
    commands.push(Command::DeleteRange(delete));
    replica.state.apply(&[entry_of(1, commands)]).unwrap();
    let view = replica.view();
    let count = |revision, limit| {
        let request =
            pb::RangeRequest { key: "k".into(), range_end: "l".into(), revision, limit, ..Default::default() };
        let response = range(&view, &request).unwrap();
        assert!(response.kvs.is_sorted_by(|a, b| a.key < b.key));
        (response.count, response.kvs.len(), response.kvs.last().unwrap().value.clone())
    };
    assert_eq!(count(2001, 0), (2000, 2000, "1999".into()));
    assert_eq!(count(2101, 0), (2000, 2000, "1999".into()));
    assert_eq!(count(2101, 701), (2000, 701, "99".into()));
    assert_eq!(count(1001, 0), (1000, 1000, "999".into()));
    assert_eq!(count(0, 0), (1100, 1100, "1999".into()));
    let everything = KeyRange::of(&"\0".into(), &"\0".into());
    assert_eq!(catch_up(&view, &everything, 1, 1000).len(), 2000 + 300 + 667 + 1);
    let compact = |revision| Command::Compact(pb::CompactionRequest { revision, physical: false });
    let history_rows = |replica: &Replica| replica.tables().iter().filter(|row| row.0 == Table::History).count();
    replica.state.apply(&[entry_of(2, vec![compact(2969)])]).unwrap();
    let before = hash_kv(&replica.view(), 0).unwrap();
    while replica.step(1000) {}
    assert_eq!(hash_kv(&replica.view(), 0).unwrap(), before);
    assert_eq!(history_rows(&replica), 900, "the tombstones exactly at the compacted revision");
    replica.state.apply(&[entry_of(3, vec![put("x".to_owned(), 1), compact(2970)])]).unwrap();
    while replica.step(1000) {}
    assert_eq!(history_rows(&replica), 0);
}

#[test]
fn what_is_read_back_is_bounded_in_bytes_and_a_revision_is_whole_or_told_to_be_too_large() {
    let mut replica = Replica::over(MemoryKeySpace::default());
    let put = |key: String, bytes: usize| {
        Command::Put(pb::PutRequest { key: key.into(), value: vec![7; bytes].into(), ..Default::default() })
    };
    let mut commands: Vec<_> = (0..3000).map(|n| put(format!("k{n:04}"), 1000)).collect();
    commands.push(Command::DeleteRange(pb::DeleteRangeRequest {
        range_end: "l".into(),
        key: "k".into(),
        prev_kv: false,
    }));
    commands.push(put("k".to_owned(), 1));
    replica.state.apply(&[entry_of(1, commands)]).unwrap();
    let (view, ranges) = (replica.view(), [KeyRange::of(&"k0".into(), &"k1".into()), KeyRange::One("k2999".into())]);
    let read = |from, prev_kv, bytes, revision_bytes| {
        let most = Most { revisions: usize::MAX, bytes, revision_bytes };
        let Changes { revisions, next_revision, too_large } =
            changes(&view, &Wanted { ranges: &ranges, from, to: i64::MAX, prev_kv, most }).unwrap();
        (revisions, next_revision, too_large)
    };
    // Puts: pieces end with the revision that fills them, and together they are what one read brings.
    let (whole, mut pieces, mut from) = (read(2, false, usize::MAX, usize::MAX).0, Vec::new(), 2);
    while from <= 3003 {
        let (revisions, next, too_large) = read(from, false, 50_000, 1 << 20);
        assert!(revisions.len() <= 50_000 / 1000 || revisions.len() == 1, "{}", revisions.len());
        assert!(next > from && !too_large);
        pieces.extend(revisions);
        from = next;
    }
    assert_eq!(pieces, whole);
    assert_eq!(
        whole.iter().map(|revision| revision.events.len()).collect::<Vec<_>>(),
        [vec![1; 1001], vec![1001]].concat()
    );
    // The delete is larger with the pairs before, which are there only if they are wanted.
    let (alone, next, too_large) = read(3002, false, 0, 1 << 19);
    assert!(alone[0].events.iter().all(|event| event.prev_kv.is_none()) && next == 3004 && !too_large);
    assert_eq!(read(3002, true, 0, 1 << 19), (Vec::new(), 3002, true));
    let (before, next, too_large) = read(3001, true, usize::MAX, 1 << 19);
    assert_eq!((before.len(), next, too_large), (1, 3002, true));
    let with = &read(3002, true, 0, usize::MAX).0[0];
    assert!(with.events.iter().all(|event| event.prev_kv.as_ref().is_some_and(|kv| kv.value.len() == 1000)));
}
