//! What a request must satisfy before the engine hears of it. Pure; etcd's checks, in etcd's order, with etcd's errors.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use balsa_proto::etcdserverpb as pb;
use pb::request_op::Request;

use super::failure::Error;
use crate::domain::mvcc::{MAX_TXN_DEPTH, txn_depth};

/// Checks a range.
///
/// # Errors
/// `EmptyKey`, `InvalidSortOption`.
pub fn range(request: &pb::RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let order = pb::range_request::SortOrder::try_from(request.sort_order);
    let target = pb::range_request::SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// Checks a range that is answered as a stream.
///
/// # Errors
/// Those of [`range`]; `StreamSorted`, `StreamFiltered`.
pub fn range_stream(request: &pb::RangeRequest) -> Result<(), Error> {
    use pb::range_request::{SortOrder, SortTarget};

    range(request)?;
    let in_key_order = (request.sort_target(), request.sort_order()) == (SortTarget::Key, SortOrder::Ascend);
    if request.sort_order() != SortOrder::None && !in_key_order {
        return Err(Error::StreamSorted);
    }
    let r = request;
    if [r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision] != [0; 4] {
        return Err(Error::StreamFiltered);
    }
    Ok(())
}

/// Checks a put.
///
/// # Errors
/// `EmptyKey`, `ValueProvided`, `LeaseProvided`.
pub fn put(request: &pb::PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete.
///
/// # Errors
/// `EmptyKey`.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction with all that is nested in it.
///
/// # Errors
/// `TooManyOperations`, also for nesting that the log could not carry; `EmptyOperation`, `DuplicateKey`, and those of the
/// operations.
pub fn txn(request: &pb::TxnRequest, max_operations: usize) -> Result<(), Error> {
    if txn_depth(request) > MAX_TXN_DEPTH {
        return Err(Error::TooManyOperations);
    }
    operations(request, max_operations)?;
    writes(&request.success)?;
    writes(&request.failure)?;
    Ok(())
}

/// The bound holds for the largest of the three lists; a nested transaction has what its parent leaves. The recursion is
/// bounded by it too, because each level needs at least one operation.
fn operations(request: &pb::TxnRequest, left: usize) -> Result<(), Error> {
    let used = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = left.checked_sub(used).ok_or(Error::TooManyOperations)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(inner)) => range(inner)?,
            Some(Request::RequestPut(inner)) => put(inner)?,
            Some(Request::RequestDeleteRange(inner)) => delete_range(inner)?,
            Some(Request::RequestTxn(inner)) => operations(inner, left)?,
            None => return Err(Error::EmptyOperation),
        }
    }
    Ok(())
}

/// What a branch deletes. A request has room for a hundred thousand operations, so no delete is compared with each put.
#[derive(Default)]
struct Deletes<K> {
    keys: HashSet<K>,
    /// From the low end to the high end; apart from each other.
    ranges: BTreeMap<K, K>,
}

impl<'a> Deletes<&'a [u8]> {
    /// `range_end` is read literally, as etcd does: an end of "\0" covers nothing here.
    fn add(&mut self, key: &'a [u8], range_end: &'a [u8]) {
        if range_end.is_empty() {
            self.keys.insert(key);
        } else if key < range_end {
            self.add_range(key, range_end);
        }
    }
}

impl<K: Copy + Ord + Hash> Deletes<K> {
    fn add_range(&mut self, mut low: K, mut high: K) {
        while let Some((&start, &end)) = self.ranges.range(..=high).next_back().filter(|(_, end)| **end >= low) {
            self.ranges.remove(&start);
            (low, high) = (low.min(start), high.max(end));
        }
        self.ranges.insert(low, high);
    }

    fn unite(&mut self, other: Self) {
        self.keys.extend(other.keys);
        other.ranges.into_iter().for_each(|(low, high)| self.add_range(low, high));
    }

    fn contains(&self, key: K) -> bool {
        self.keys.contains(&key) || self.ranges.range(..=key).next_back().is_some_and(|(_, end)| key < *end)
    }
}

/// The keys that a branch puts and those that it deletes.
#[derive(Default)]
struct Writes<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Deletes<&'a [u8]>,
}

impl<'a> Writes<'a> {
    fn put(&mut self, key: &'a [u8]) -> Result<(), Error> {
        if self.deletes.contains(key) || !self.puts.insert(key) { Err(Error::DuplicateKey) } else { Ok(()) }
    }
}

/// No key twice in one branch, and none inside a deleted range. The branches of a nested transaction exclude each other,
/// so the same key may stand in both. Deletes of this level count before the nested ones are looked at.
fn writes(branch: &[pb::RequestOp]) -> Result<Writes<'_>, Error> {
    let mut all = Writes::default();
    for operation in branch {
        if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
            all.deletes.add(&delete.key, &delete.range_end);
        }
    }
    for operation in branch {
        let Some(Request::RequestTxn(nested)) = &operation.request else { continue };
        let (success, failure) = (writes(&nested.success)?, writes(&nested.failure)?);
        for key in &success.puts {
            all.put(key)?;
        }
        for key in failure.puts.iter().filter(|key| !success.puts.contains(*key)) {
            all.put(key)?;
        }
        all.deletes.unite(success.deletes);
        all.deletes.unite(failure.deletes);
    }
    for operation in branch {
        if let Some(Request::RequestPut(put)) = &operation.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;
    use std::hash::Hasher;

    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_op(key: &str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest { key: key.to_owned().into(), ..Default::default() }))
    }

    fn delete_op(key: &str, end: &str) -> pb::RequestOp {
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
            ..Default::default()
        }))
    }

    fn nest(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(pb::TxnRequest { success, failure, ..Default::default() }))
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), Error> {
        txn(&pb::TxnRequest { success, ..Default::default() }, 128)
    }

    #[test]
    fn a_key_is_needed_everywhere() {
        assert_eq!(range(&pb::RangeRequest::default()), Err(Error::EmptyKey));
        assert_eq!(put(&pb::PutRequest::default()), Err(Error::EmptyKey));
        assert_eq!(delete_range(&pb::DeleteRangeRequest::default()), Err(Error::EmptyKey));
        assert_eq!(check(vec![put_op("")]), Err(Error::EmptyKey));
        let compare = vec![pb::Compare::default()];
        assert_eq!(txn(&pb::TxnRequest { compare, ..Default::default() }, 128), Err(Error::EmptyKey));
        assert_eq!(check(vec![pb::RequestOp::default()]), Err(Error::EmptyOperation));
    }

    #[test]
    fn unknown_sort_values_are_refused() {
        let good = pb::RangeRequest { key: "a".into(), sort_order: 2, sort_target: 4, ..Default::default() };
        assert_eq!(range(&good), Ok(()));
        assert_eq!(range(&pb::RangeRequest { sort_order: 3, ..good.clone() }), Err(Error::InvalidSortOption));
        assert_eq!(range(&pb::RangeRequest { sort_target: 5, ..good }), Err(Error::InvalidSortOption));
    }

    #[test]
    fn ignored_fields_must_be_empty() {
        let request = pb::PutRequest { key: "a".into(), value: "v".into(), ignore_value: true, ..Default::default() };
        assert_eq!(put(&request), Err(Error::ValueProvided));
        let request = pb::PutRequest { key: "a".into(), lease: 1, ignore_lease: true, ..Default::default() };
        assert_eq!(put(&request), Err(Error::LeaseProvided));
    }

    #[test]
    fn nested_transactions_share_the_bound() {
        let of = |n: usize| (0..n).map(|i| put_op(&i.to_string())).collect::<Vec<_>>();
        assert_eq!(check(of(128)), Ok(()));
        assert_eq!(check(of(129)), Err(Error::TooManyOperations));
        assert_eq!(check(vec![nest(of(127), vec![])]), Ok(()));
        assert_eq!(check(vec![nest(of(128), vec![])]), Err(Error::TooManyOperations));
    }

    #[test]
    fn what_is_deleted_is_the_union_of_all_ranges() {
        let keys: Vec<&[u8]> = vec![b"a", b"b", b"c", b"d"];
        let ends: Vec<&[u8]> = vec![b"", b"a", b"b", b"c", b"d"];
        let every: Vec<_> = keys.iter().flat_map(|key| ends.iter().map(|end| (*key, *end))).collect();
        for (first, second, third) in (0..8_000).map(|n| (every[n % 20], every[n / 20 % 20], every[n / 400])) {
            let (mut deletes, mut other) = (Deletes::default(), Deletes::default());
            deletes.add(first.0, first.1);
            deletes.add(second.0, second.1);
            other.add(third.0, third.1);
            deletes.unite(other);
            for key in &keys {
                let covers = |(low, end): &(&[u8], &[u8])| key == low && end.is_empty() || low <= key && key < end;
                let all = [first, second, third];
                assert_eq!(deletes.contains(key), all.iter().any(covers), "{key:?} of {all:?}");
            }
        }
    }

    thread_local! {
        static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    /// A key that counts how often it is looked at.
    #[derive(Debug, Clone, Copy, Eq)]
    struct Counted(u32);

    impl Counted {
        fn look(self) -> u32 {
            LOOKS.set(LOOKS.get() + 1);
            self.0
        }
    }

    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            self.look() == other.0
        }
    }

    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Counted {
        fn cmp(&self, other: &Self) -> Ordering {
            self.look().cmp(&other.0)
        }
    }

    impl Hash for Counted {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.look().hash(state);
        }
    }

    #[test]
    fn a_put_is_not_compared_with_each_delete() {
        const MANY: u32 = 20_000;
        let keys: HashSet<Counted> = (0..MANY).map(Counted).collect();
        let mut deletes = Deletes { keys, ranges: BTreeMap::new() };
        let mut nested = Deletes { keys: HashSet::new(), ranges: BTreeMap::new() };
        for low in (MANY..2 * MANY).step_by(2) {
            nested.add_range(Counted(low), Counted(low + 1));
        }
        deletes.unite(nested);
        assert!((2 * MANY..3 * MANY).all(|key| !deletes.contains(Counted(key))));
        let looks = LOOKS.get() / MANY as usize;
        // A tree of ten thousand is looked up with a few dozen.
        assert!((1..200).contains(&looks), "{looks} for each");
    }

    #[test]
    fn a_request_full_of_deletes_and_puts_of_other_keys_is_let_through() {
        let key = |number: usize| format!("{number:05}");
        let chunk = |first: usize, op: &dyn Fn(&str) -> pb::RequestOp| {
            nest((first..first + 40).map(|number| op(&key(number))).collect(), vec![])
        };
        let nested = |from: usize, op: &dyn Fn(&str) -> pb::RequestOp| {
            let middle = |first: usize| nest((0..20).map(|at| chunk(first + at * 40, op)).collect(), vec![]);
            (0..25).map(|at| middle(from + at * 800)).collect::<Vec<_>>()
        };
        let deletes = nested(0, &|key| delete_op(key, ""));
        let puts = nested(20_000, &|key| put_op(key));
        assert_eq!(check([deletes, puts].concat()), Ok(()));
    }

    #[test]
    fn a_key_is_written_once_per_branch() {
        assert_eq!(check(vec![put_op("a"), put_op("a")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put_op("b"), delete_op("a", "c")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(check(vec![delete_op("a", "c"), delete_op("b", "")]), Ok(()), "overlapping deletes are fine");
        assert_eq!(check(vec![put_op("b"), delete_op("a", "\0")]), Ok(()), "the end is read literally");
        assert_eq!(check(vec![put_op("a"), nest(vec![put_op("a")], vec![])]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![nest(vec![put_op("a")], vec![put_op("a")])]), Ok(()), "branches exclude each other");
        assert_eq!(
            check(vec![nest(vec![put_op("a")], vec![]), nest(vec![], vec![put_op("a")])]),
            Err(Error::DuplicateKey)
        );
        assert_eq!(check(vec![nest(vec![put_op("a")], vec![]), delete_op("a", "")]), Err(Error::DuplicateKey));
    }
}
