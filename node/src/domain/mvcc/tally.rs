//! How many operations on the store commands and reads come to, as etcd counts them for its metrics: by what was asked of the
//! store, not by what was found there. A compare and the look at what a put supersedes are ranges.

use balsa_proto::etcdserverpb as pb;
use pb::request_op::Request;

use super::txn::branch;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ranges read.
    pub ranges: u64,
    /// Keys set.
    pub puts: u64,
    /// Ranges deleted.
    pub deletes: u64,
    /// Transactions of the store that had more than one operation; etcd counts no others.
    pub txns: u64,
}

impl Tally {
    /// Takes in what was done in one transaction of the store.
    fn end(&mut self, done: Tally) {
        let Tally { ranges, puts, deletes, .. } = done;
        self.ranges += ranges;
        self.puts += puts;
        self.deletes += deletes;
        self.txns += u64::from(ranges + puts + deletes > 1);
    }

    /// A put was done.
    pub(crate) fn put(&mut self, request: &pb::PutRequest) {
        self.end(Tally { ranges: looks(request), puts: 1, ..Tally::default() });
    }

    /// A delete was done.
    pub(crate) fn delete(&mut self, request: &pb::DeleteRangeRequest) {
        self.end(Tally { ranges: u64::from(request.prev_kv), deletes: 1, ..Tally::default() });
    }

    /// So many single keys were deleted together.
    pub(crate) fn delete_keys(&mut self, keys: usize) {
        self.end(Tally { deletes: keys as u64, ..Tally::default() });
    }

    /// A transaction was done after a look at so many compares. It is two to the store, because all is checked before
    /// anything is changed.
    pub(crate) fn write_txn(&mut self, request: &pb::TxnRequest, path: &[bool], compared: u64) {
        let (mut checked, mut done) = (0, Tally::default());
        operations(request, &mut path.iter().copied(), &mut checked, &mut done);
        self.end(Tally { ranges: compared + checked, ..Tally::default() });
        self.end(done);
    }

    /// What a transaction that only reads came to, after a look at so many compares.
    pub(crate) fn of_read_txn(request: &pb::TxnRequest, succeeded: bool, compared: u64) -> Self {
        let (mut tally, mut done) = (Tally::default(), Tally { ranges: compared, ..Tally::default() });
        operations(request, &mut std::iter::once(succeeded), &mut 0, &mut done);
        tally.end(done);
        tally
    }
}

/// The operations of the chosen branches, and of the looks that come before them.
fn operations(request: &pb::TxnRequest, path: &mut impl Iterator<Item = bool>, checked: &mut u64, done: &mut Tally) {
    for op in branch(request, path).1 {
        match &op.request {
            Some(Request::RequestRange(_)) => done.ranges += 1,
            Some(Request::RequestPut(put)) => {
                *checked += looks(put);
                done.ranges += looks(put);
                done.puts += 1;
            }
            Some(Request::RequestDeleteRange(delete)) => {
                done.ranges += u64::from(delete.prev_kv);
                done.deletes += 1;
            }
            Some(Request::RequestTxn(nested)) => operations(nested, path, checked, done),
            None => {}
        }
    }
}

/// Whether a put looks at what it supersedes.
fn looks(put: &pb::PutRequest) -> u64 {
    u64::from(put.prev_kv || put.ignore_value || put.ignore_lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    #[test]
    fn a_transaction_is_counted_when_it_has_more_than_one_operation() {
        let put = |prev_kv| op(Request::RequestPut(pb::PutRequest { prev_kv, ..Default::default() }));
        let delete = || op(Request::RequestDeleteRange(pb::DeleteRangeRequest::default()));
        let nested = pb::TxnRequest { failure: vec![put(true), delete()], ..Default::default() };
        let all = pb::TxnRequest { success: vec![put(false), op(Request::RequestTxn(nested))], ..Default::default() };
        let mut tally = Tally::default();
        tally.write_txn(&all, &[true, false], 1);
        // One compare and one look to check, then two puts with a look, and a delete.
        assert_eq!(tally, Tally { ranges: 3, puts: 2, deletes: 1, txns: 2 });
        let mut tally = Tally::default();
        tally.write_txn(&all, &[false], 0);
        assert_eq!(tally, Tally::default(), "the other branch is empty");
        tally.put(&pb::PutRequest::default());
        tally.delete(&pb::DeleteRangeRequest { prev_kv: true, ..Default::default() });
        tally.delete_keys(3);
        assert_eq!(tally, Tally { ranges: 1, puts: 1, deletes: 4, txns: 2 });
    }

    #[test]
    fn the_compares_of_a_read_are_ranges_too() {
        let range = || op(Request::RequestRange(pb::RangeRequest::default()));
        let txn = pb::TxnRequest { success: vec![range()], failure: vec![range(), range()], ..Default::default() };
        assert_eq!(Tally::of_read_txn(&txn, true, 0), Tally { ranges: 1, ..Tally::default() });
        assert_eq!(Tally::of_read_txn(&txn, false, 2), Tally { ranges: 4, txns: 1, ..Tally::default() });
    }
}
