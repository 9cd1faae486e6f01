//! A seeded comparison with a model that keeps every version in a list, and of replicas with each other: in whatever
//! runs entries are applied, whenever old versions are deleted and whenever a process dies, all answer alike and end
//! with the same tables, and watchers hear what the model says ([`watchers`]).
//!
//! `BALSA_SEEDS=n` runs more seeds, `BALSA_SEED=x` one of them again, exactly.

mod large;
mod read_back;
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

use self::watchers::Watching;
use super::overlay::large::PART_BYTES;
use super::{
    Changes, KeyRange, Most, ReadError, RevisionEvents, Revisions, Wanted, changes, compaction, count_versions,
    hash_kv, range,
};
use crate::domain::apply::{Effects, StateMachine};
use crate::domain::command::{Command, Outcome};
use crate::domain::lease::table;
use crate::domain::refusal::Refusal;
use crate::storage::memory::{FailedWrite, MemoryKeySpace};
use crate::storage::{KeySpace, Table, View, WriteBatch};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

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

/// Every version that there ever was.
struct Model {
    revision: i64,
    compacted: i64,
    /// Revision, key, and the pair or None for a delete; in the order of the changes.
    versions: Vec<(i64, Bytes, Option<KeyValue>)>,
    /// Id to TTL.
    leases: BTreeMap<i64, i64>,
    /// Every revision that was compacted.
    compactions: BTreeSet<i64>,
}

impl Default for Model {
    fn default() -> Self {
        Self { revision: 1, compacted: -1, versions: Vec::new(), leases: BTreeMap::new(), compactions: BTreeSet::new() }
    }
}

impl Model {
    fn at(&self, revision: i64) -> BTreeMap<Bytes, KeyValue> {
        let mut state = BTreeMap::new();
        for (_, key, version) in self.versions.iter().filter(|(made, ..)| *made <= revision) {
            match version {
                Some(kv) => state.insert(key.clone(), kv.clone()),
                None => state.remove(key),
            };
        }
        state
    }

    fn in_range(&self, revision: i64, range: &KeyRange) -> Vec<KeyValue> {
        self.at(revision).into_values().filter(|kv| range.contains(&kv.key)).collect()
    }

    fn put(&mut self, pb::PutRequest { key, value, lease, .. }: &pb::PutRequest) {
        let lease = *lease;
        let made = self.revision + 1;
        let (create_revision, version) =
            self.at(made).get(key).map_or((made, 1), |kv| (kv.create_revision, kv.version + 1));
        let kv =
            KeyValue { key: key.clone(), value: value.clone(), create_revision, mod_revision: made, version, lease };
        self.versions.push((made, key.clone(), Some(kv)));
    }

    fn delete(&mut self, range: &KeyRange) -> usize {
        let made = self.revision + 1;
        let doomed = self.in_range(made, range);
        self.versions.extend(doomed.iter().map(|kv| (made, kv.key.clone(), None)));
        doomed.len()
    }

    /// The keys that were last written under a lease.
    fn keys_of(&self, lease: i64) -> Vec<Bytes> {
        let state = self.at(self.revision + 1);
        state.into_values().filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
    }

    fn revoke(&mut self, lease: i64) {
        self.leases.remove(&lease);
        let made = self.revision + 1;
        let doomed = self.keys_of(lease);
        self.versions.extend(doomed.into_iter().map(|key| (made, key, None)));
    }

    /// Executes a command of an entry of `term`.
    fn execute(&mut self, command: &Command, term: u64) {
        match command {
            Command::Put(put) => self.put(put),
            Command::DeleteRange(delete) => {
                self.delete(&KeyRange::of(&delete.key, &delete.range_end));
            }
            Command::Txn(txn) => {
                for op in &txn.success {
                    match op.request.as_ref().unwrap() {
                        Request::RequestPut(put) => self.put(put),
                        Request::RequestDeleteRange(delete) => {
                            self.delete(&KeyRange::of(&delete.key, &delete.range_end));
                        }
                        _ => {}
                    }
                }
            }
            Command::Compact(compact) => {
                self.compacted = compact.revision;
                self.compactions.insert(compact.revision);
            }
            Command::LeaseGrant(grant) => {
                self.leases.insert(grant.id, grant.ttl);
            }
            Command::LeaseRevoke(revoke) => self.revoke(revoke.id),
            Command::LeaseExpire(expire) if expire.term == term => self.revoke(expire.id),
            Command::LeaseExpire(_) => {}
            other => panic!("not generated: {other:?}"),
        }
        if self.versions.last().is_some_and(|(made, ..)| *made > self.revision) {
            self.revision += 1;
        }
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
        Self { key_space, state, cursor: compaction::Cursor::default(), part_bytes }
    }

    fn crash(&mut self) {
        *self = Self::in_parts(self.key_space.crash(), self.part_bytes);
    }

    fn revisions(&self) -> Revisions {
        Revisions { revision: self.state.revision(), compacted: self.state.compacted() }
    }

    /// Applies a run, and lets watchers hear of it.
    fn apply(&mut self, run: &[Entry], watching: &mut Watching, random: &mut Random, model: &Model) -> Effects {
        let effects = self.state.apply(run).unwrap();
        watching.applied(&effects, random, model, self.revisions());
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

fn random_command(random: &mut Random, model: &Model, term: u64, value: usize) -> Command {
    // Half of the puts are under a lease, if there is one.
    let any_lease = |random: &mut Random| model.leases.keys().nth(random.below(8)).copied().unwrap_or(0);
    let put = |random: &mut Random| pb::PutRequest {
        key: random.key(),
        lease: any_lease(random),
        value: format!("v{value}").into(),
        prev_kv: random.one_in(2),
        ..Default::default()
    };
    let delete = |random: &mut Random| {
        let (key, range_end) = random.range();
        pb::DeleteRangeRequest { key, range_end, prev_kv: random.one_in(2) }
    };
    match random.below(14) {
        0 => Command::DeleteRange(delete(random)),
        1 | 2 => {
            let mut ops = Vec::new();
            for _ in 0..random.below(5) {
                let request = match random.below(3) {
                    0 => Request::RequestDeleteRange(delete(random)),
                    _ => Request::RequestPut(put(random)),
                };
                ops.push(pb::RequestOp { request: Some(request) });
            }
            Command::Txn(pb::TxnRequest { compare: Vec::new(), success: ops, failure: Vec::new() })
        }
        3 if model.revision > model.compacted && random.one_in(4) => {
            let behind = (model.revision - model.compacted) as usize;
            let revision = model.compacted + 1 + random.below(behind) as i64;
            Command::Compact(pb::CompactionRequest { revision, physical: false })
        }
        4 => match (1 + random.below(6) as i64, any_lease(random)) {
            (id, _) if !model.leases.contains_key(&id) => {
                Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 60 + id })
            }
            (_, 0) => Command::Put(put(random)),
            (_, id) if random.one_in(2) => Command::LeaseRevoke(pb::LeaseRevokeRequest { id }),
            // Of the clock of the leader of this term, or of one that was deposed meanwhile.
            (_, id) => Command::LeaseExpire(log::ExpireLease { id, term: term - u64::from(random.one_in(3)) }),
        },
        _ => Command::Put(put(random)),
    }
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

fn compare_reads(random: &mut Random, model: &Model, replica: &Replica) {
    let view = replica.view();
    for revision in model.compacted.max(1)..=model.revision {
        let (key, range_end) = random.range();
        let limit = random.below(4) as i64;
        let expected = model.in_range(revision, &KeyRange::of(&key, &range_end));
        let request = pb::RangeRequest { key, range_end, limit, revision, ..Default::default() };
        let response = range(&view, &request).unwrap();
        let cut = if limit == 0 { expected.len() } else { expected.len().min(limit as usize) };
        assert_eq!(response.kvs, expected[..cut], "{request:?}");
        assert_eq!((response.count, response.more), (expected.len() as i64, cut < expected.len()), "{request:?}");
    }
    let below = pb::RangeRequest { key: random.key(), revision: model.compacted - 1, ..Default::default() };
    if below.revision > 0 {
        assert!(matches!(range(&view, &below), Err(ReadError::Refused(Refusal::Compacted))));
    }
    let from = model.compacted.max(1) + random.below(5) as i64;
    let (key, range_end) = random.range();
    let range = KeyRange::of(&key, &range_end);
    assert_eq!(catch_up(&view, &range, from, 1 + random.below(4)), model.events(from, &range, model.compacted));
}

fn compare_leases(model: &Model, replica: &Replica) {
    let view = replica.view();
    let leases: BTreeMap<i64, i64> = table::leases(&view).unwrap().into_iter().map(|(id, l)| (id, l.ttl)).collect();
    assert_eq!(leases, model.leases);
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

fn simulate(seed: u64) -> [usize; 2] {
    let random = &mut Random(seed);
    let mut model = Model::default();
    let parts = |random: &mut Random| Replica::in_parts(MemoryKeySpace::default(), 1 + random.below(400));
    let mut replicas: Vec<_> = (0..2).map(|_| parts(random)).collect();
    let over = |replica: &Replica| Watching::over(replica.key_space.clone(), &mut Random(seed));
    let mut watching: Vec<_> = replicas.iter().map(over).collect();
    let mut entries: Vec<Entry> = Vec::new();
    let (mut value, mut drained) = (0, [0; 2]);
    for _ in 0..40 {
        for _ in 0..random.below(4) + 1 {
            let index = entries.len() as u64 + 1;
            let mut commands = Vec::new();
            for _ in 0..random.below(4) {
                value += 1;
                commands.push(random_command(random, &model, term_of(index), value));
                model.execute(&commands[commands.len() - 1], term_of(index));
            }
            entries.push(entry_of(index, commands));
        }
        for (replica, watching) in replicas.iter_mut().zip(&mut watching) {
            // A replica that died, perhaps between two parts of a delete, applies all since its last flush again, as one
            // run; then what is new, piece by piece.
            if random.one_in(4) {
                let left = if random.one_in(2) { FailedWrite::Lost } else { FailedWrite::Kept };
                replica.key_space.fail_write(1 + random.below(12) as u64, left);
                let _ = replica.state.apply(&entries);
                replica.crash();
                watching.moved(replica.key_space.clone(), random);
                let known = entries.len() - random.below(3).min(entries.len());
                replica.apply(&entries[..known], watching, random, &model);
            }
            for chunk in entries.chunks(1 + random.below(5)) {
                replica.apply(chunk, watching, random, &model);
            }
            if random.one_in(3) {
                replica.key_space.flush().unwrap();
            }
            while !random.one_in(3) && replica.step(1 + random.below(6)) {}
            assert_eq!(replica.revisions(), Revisions { revision: model.revision, compacted: model.compacted });
            if random.one_in(2) {
                drained = add(drained, watching.drain(&model, replica.revisions()));
            }
            compare_reads(random, &model, replica);
            compare_leases(&model, replica);
        }
        let hash = |replica: &Replica, revision| hash_kv(&replica.view(), revision).unwrap();
        let pinned =
            model.compacted.max(1) + random.below((model.revision - model.compacted.max(1)) as usize + 1) as i64;
        assert_eq!(hash(&replicas[0], pinned), hash(&replicas[1], pinned));
    }
    compare_runs(&model, &entries, replicas);
    drained
}

fn add([heard, ended]: [usize; 2], more: [usize; 2]) -> [usize; 2] {
    [heard + more[0], ended + more[1]]
}

/// All entries in one run and each in a run of its own end with the tables of `replicas`, and make the same events.
fn compare_runs(model: &Model, entries: &[Entry], mut replicas: Vec<Replica>) {
    let mut at_once = Replica::over(MemoryKeySpace::default());
    at_once.state.apply(entries).unwrap();
    let mut one_by_one = Replica::over(MemoryKeySpace::default());
    let mut published = Vec::new();
    for entry in entries {
        published.extend(one_by_one.state.apply(std::slice::from_ref(entry)).unwrap().events);
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
    let mut drained = [0; 2];
    for seed in seeds.clone() {
        let run = std::panic::catch_unwind(|| simulate(seed));
        drained = add(drained, run.unwrap_or_else(|_| panic!("seed {seed} failed (BALSA_SEED={seed} repeats it)")));
    }
    let [heard, ended] = drained;
    println!("{seeds:?}: watchers heard {heard} events as the model, {ended} were ended by compactions");
    assert!(heard > 0 && (ended > 0 || seeds.end - seeds.start < 10), "nothing happened");
}

#[test]
fn answers_of_writes_tell_what_the_model_did() {
    let random = &mut Random(4711);
    let mut model = Model::default();
    let mut replica = Replica::over(MemoryKeySpace::default());
    for index in 1..400 {
        let term = term_of(index as u64);
        let command = random_command(random, &model, term, index);
        let before = model.at(model.revision);
        model.execute(&command, term);
        let effects = replica.state.apply(&[entry_of(index as u64, vec![command.clone()])]).unwrap();
        let outcome = match (&effects.outcomes[0].1, &command) {
            (Err(Refusal::OtherTerm { .. }), Command::LeaseExpire(expire)) if expire.term != term => continue,
            (outcome, _) => outcome.as_ref().unwrap(),
        };
        let (header, prev): (_, Vec<KeyValue>) = match (outcome, &command) {
            (Outcome::Put(response), Command::Put(put)) => {
                let prev = before.get(&put.key).filter(|_| put.prev_kv);
                assert_eq!(response.prev_kv.as_ref(), prev);
                (&response.header, Vec::new())
            }
            (Outcome::DeleteRange(response), Command::DeleteRange(delete)) => {
                let range = KeyRange::of(&delete.key, &delete.range_end);
                let doomed: Vec<_> = before.into_values().filter(|kv| range.contains(&kv.key)).collect();
                assert_eq!(response.deleted, doomed.len() as i64);
                assert_eq!(response.prev_kvs, if delete.prev_kv { doomed } else { Vec::new() });
                (&response.header, response.prev_kvs.clone())
            }
            (Outcome::Txn(response), _) => (&response.header, Vec::new()),
            (Outcome::Compact(response), _) => (&response.header, Vec::new()),
            (Outcome::LeaseGrant(response), _) => (&response.header, Vec::new()),
            (Outcome::LeaseRevoke(response), _) => (&response.header, Vec::new()),
            other => panic!("{other:?}"),
        };
        drop(prev);
        assert_eq!(header.as_ref().unwrap().revision, model.revision);
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
