//! Deletes that are written in parts: nobody sees half of one, and a process that died between two parts begins anew.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const KEYS: usize = 3000;
const LEASE: i64 = 7;

fn key(number: usize) -> Bytes {
    format!("k{number:04}").into()
}

fn put(number: usize, value: &str) -> Command {
    let lease = if number.is_multiple_of(3) { LEASE } else { 0 };
    Command::Put(pb::PutRequest { key: key(number), value: value.to_owned().into(), lease, ..Default::default() })
}

/// Keys with and without a lease, of one version and of two, some of those compacted; and keys beside them.
fn base() -> Vec<Entry> {
    let grant = Command::LeaseGrant(pb::LeaseGrantRequest { id: LEASE, ttl: 60 });
    let first = [grant].into_iter().chain((0..KEYS).map(|number| put(number, "first"))).collect();
    let mut second: Vec<_> = (0..KEYS).step_by(2).map(|number| put(number, "second")).collect();
    second.extend(["a", "z"].map(|key| {
        Command::Put(pb::PutRequest { key: key.into(), value: "beside".into(), lease: LEASE, ..Default::default() })
    }));
    second.push(Command::Compact(pb::CompactionRequest { revision: KEYS as i64 + 500, physical: false }));
    vec![entry_of(1, first), entry_of(2, second)]
}

fn delete(prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: "k0".into(), range_end: "k29".into(), prev_kv }
}

/// The delete stands between other changes of the same keys, in its own entry and in the next.
fn entries_of(large: &Command) -> Vec<Entry> {
    let around = |large: Command| vec![put(5, "before"), put(6, "before"), large, put(6, "after"), put(7, "after")];
    let count = pb::RequestOp {
        request: Some(Request::RequestRange(pb::RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            ..Default::default()
        })),
    };
    let after = pb::TxnRequest { success: vec![count.clone(), count], ..Default::default() };
    let again = Command::DeleteRange(pb::DeleteRangeRequest { range_end: "k5".into(), ..delete(false) });
    vec![entry_of(3, around(large.clone())), entry_of(4, vec![Command::Txn(after), again, put(8, "last")])]
}

/// All that a reader can ask of the states up to the current one.
fn answers(key_space: &MemoryKeySpace) -> impl PartialEq + std::fmt::Debug + use<> {
    let view = key_space.view().unwrap();
    let now = super::super::current(&view).unwrap();
    let at = |revision, limit| {
        let request =
            pb::RangeRequest { key: "k".into(), range_end: "z".into(), revision, limit, ..Default::default() };
        let response = range(&view, &request).unwrap();
        (response.count, response.kvs.len(), response.kvs.last().cloned())
    };
    let everything = KeyRange::of(&"\0".into(), &"\0".into());
    let missed = catch_up(&view, &everything, now.compacted, 1000).len();
    let hashes = [0, now.compacted + 100].map(|revision| hash_kv(&view, revision).unwrap());
    let versions = count_versions(&view).unwrap();
    (now, [at(0, 0), at(0, 10), at(now.compacted, 0), at(now.revision - 1, 7)], missed, hashes, versions)
}

fn check(large: &Command) {
    let mut whole = Replica::over(MemoryKeySpace::default());
    whole.state.apply(&base()).unwrap();
    let (before, shown) = (whole.tables(), answers(&whole.key_space));
    let expected = whole.state.apply(&entries_of(large)).unwrap();
    assert_eq!(expected.unlisted, []);

    let mut replica = Replica::in_parts(MemoryKeySpace::default(), 20_000);
    replica.state.count_keys().unwrap();
    replica.state.apply(&base()).unwrap();
    replica.key_space.flush().unwrap();
    let mut crashes = 0;
    let effects = loop {
        let left = if crashes % 2 == 0 { FailedWrite::Kept } else { FailedWrite::Lost };
        replica.key_space.fail_write(crashes + 1, left);
        let applied = replica.state.apply(&entries_of(large));
        let died = applied.is_err();
        match applied {
            Ok(effects) if replica.key_space.flush().is_ok() => break effects,
            _ => replica.crash(),
        }
        assert!(replica.tables() == before || !died, "after {crashes} writes");
        if replica.state.applied().index != 2 {
            replica = Replica::in_parts(MemoryKeySpace::default(), 20_000);
            replica.state.apply(&base()).unwrap();
            replica.key_space.flush().unwrap();
        }
        replica.state.count_keys().unwrap();
        crashes += 1;
        let (hidden, parts) = (Arc::clone(&replica.key_space), AtomicUsize::new(0));
        let shown = format!("{shown:?}");
        replica.state.between_parts(move || {
            if parts.fetch_add(1, Ordering::Relaxed) % 4 == 1 {
                assert_eq!(format!("{:?}", answers(&hidden)), shown);
            }
            hidden.flush()
        });
    };
    assert!(crashes > 10, "{crashes}");
    assert_eq!(replica.tables(), whole.tables());
    assert_eq!(effects.outcomes, expected.outcomes);
    assert_eq!(
        replica.state.counts().unwrap().total(),
        replica.tables().iter().filter(|row| row.0 == Table::Live).count() as u64
    );
    let passed: Vec<_> = effects.unlisted.iter().map(|passed| (passed.revision, passed.deleted + passed.put)).collect();
    let listed: Vec<_> = effects.events.iter().map(|listed| listed.revision).collect();
    for listed in &expected.events {
        assert!(effects.events.contains(listed) || passed.contains(&(listed.revision, listed.events.len() as u64)));
    }
    assert!(!passed.is_empty() && listed.len() + passed.len() == expected.events.len(), "{passed:?}");
}

#[test]
fn a_delete_of_a_range_is_whole_or_not_there() {
    check(&Command::DeleteRange(delete(false)));
}

#[test]
fn a_delete_that_tells_what_it_deleted_is_whole_or_not_there() {
    check(&Command::DeleteRange(delete(true)));
}

#[test]
fn a_delete_in_a_transaction_is_whole_or_not_there() {
    let op = |request| pb::RequestOp { request: Some(request) };
    let range = pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let ops = vec![
        op(Request::RequestRange(range.clone())),
        op(Request::RequestDeleteRange(delete(false))),
        op(Request::RequestRange(range.clone())),
        op(Request::RequestRange(pb::RangeRequest { revision: KEYS as i64 + 1000, ..range })),
    ];
    check(&Command::Txn(pb::TxnRequest { success: ops, ..Default::default() }));
}

fn txn(ops: impl IntoIterator<Item = Request>) -> pb::TxnRequest {
    let success = ops.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect();
    pb::TxnRequest { success, ..Default::default() }
}

fn put_op(key: &str) -> Request {
    Request::RequestPut(pb::PutRequest { key: key.to_owned().into(), value: "beside".into(), ..Default::default() })
}

fn delete_op(key: &'static str, range_end: &'static str) -> Request {
    Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: true })
}

#[test]
fn large_deletes_beside_other_changes_of_a_transaction_are_whole_or_not_there() {
    let count = || {
        let range =
            pb::RangeRequest { key: "a".into(), range_end: "zz".into(), count_only: true, ..Default::default() };
        Request::RequestRange(range)
    };
    let nested = Request::RequestTxn(txn([put_op("k2901"), delete_op("k15", "k29"), put_op("new")]));
    // Small, large, small, small, large, small; the last key of the first large one begins the small one after it.
    let ops = [put_op("a"), count(), delete_op("k0", "k14"), delete_op("k14", "k15"), count(), nested, count()];
    check(&Command::Txn(txn(ops)));
}

/// Deletes of one key each, as ranges and as keys, after one that leaves no room beside it.
fn small_deletes() -> Command {
    let whole = pb::DeleteRangeRequest { key: key(0), range_end: key(262), prev_kv: false };
    let one = |number: usize| match number % 5 {
        0 => pb::DeleteRangeRequest { key: key(number), ..Default::default() },
        _ => pb::DeleteRangeRequest { key: key(number), range_end: key(number + 1), prev_kv: true },
    };
    let deletes = [whole].into_iter().chain((262..2900).map(one)).map(Request::RequestDeleteRange);
    let past = pb::RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        revision: KEYS as i64 + 1000,
        count_only: true,
        ..Default::default()
    };
    let now = pb::RangeRequest { revision: 0, ..past.clone() };
    Command::Txn(txn([put_op("a")].into_iter().chain(deletes).chain([past, now].map(Request::RequestRange))))
}

#[test]
fn small_deletes_of_a_transaction_are_whole_or_not_there() {
    check(&small_deletes());
}

#[test]
fn small_deletes_of_a_transaction_are_written_together() {
    let mut replica = Replica::in_parts(MemoryKeySpace::default(), 20_000);
    replica.state.apply(&base()).unwrap();
    let parts = Arc::new(AtomicUsize::new(0));
    let written = Arc::clone(&parts);
    replica.state.between_parts(move || {
        written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let effects = replica.state.apply(&[entry_of(3, vec![small_deletes()])]).unwrap();
    assert_eq!(effects.unlisted.iter().map(|passed| (passed.deleted, passed.put)).collect::<Vec<_>>(), [(2900, 1)]);
    // 2900 keys of 75 bytes.
    let parts = parts.load(Ordering::Relaxed);
    assert!((9..=12).contains(&parts), "{parts}");
}

#[test]
fn a_delete_whose_keys_the_transaction_changes_again_is_not_written_in_parts() {
    let again = || Request::RequestTxn(txn([put_op("k0007")]));
    for ops in [
        vec![delete_op("k0", "k29"), again()],
        vec![again(), delete_op("k0", "k29")],
        vec![delete_op("k0", "k29"), delete_op("k28", "l")],
    ] {
        let command = Command::Txn(txn(ops));
        let mut whole = Replica::over(MemoryKeySpace::default());
        let mut replica = Replica::in_parts(MemoryKeySpace::default(), 20_000);
        for replica in [&mut whole, &mut replica] {
            replica.state.apply(&base()).unwrap();
            let effects = replica.state.apply(&[entry_of(3, vec![command.clone()])]).unwrap();
            assert_eq!((effects.unlisted.len(), effects.events.len()), (0, 1));
        }
        assert_eq!(replica.tables(), whole.tables());
    }
}

#[test]
fn the_end_of_a_lease_is_whole_or_not_there() {
    check(&Command::LeaseRevoke(pb::LeaseRevokeRequest { id: LEASE }));
}
