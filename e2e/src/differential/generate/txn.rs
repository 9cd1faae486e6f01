//! Transactions: compares of every target, operations of every kind, nested.

use balsa_proto::etcdserverpb as pb;
use pb::compare::TargetUnion;
use pb::request_op::Request;

use super::{Draw, Theme};
use crate::differential::revision::current;

/// Deeper nesting is rare in life and dear in time.
const DEPTH: u32 = 3;

impl Draw {
    pub(super) fn txn(&mut self) -> pb::TxnRequest {
        match self.rng.u32(0..1000) {
            0..6 => self.wide_txn(),
            _ => {
                let depth = if self.may_nest() { DEPTH } else { 0 };
                let mut txn = self.txn_of_depth(depth);
                if deletes(&txn) {
                    ignore_nothing(&mut txn);
                }
                txn
            }
        }
    }

    /// etcd 3.6 does not look into nested transactions when an alarm forbids puts.
    pub(super) fn may_nest(&self) -> bool {
        self.theme != Theme::Troubles || self.scope.range_stream
    }

    /// Around the bound of 128 operations.
    fn wide_txn(&mut self) -> pb::TxnRequest {
        let count = self.pick(&[127, 128, 129, 130]);
        let put = |number: u32| pb::PutRequest { key: format!("w/{number:03}").into(), ..Default::default() };
        let mut puts: Vec<_> = (0..count).map(|number| op(Request::RequestPut(put(number)))).collect();
        if self.chance(50) && self.may_nest() {
            let nested = pb::TxnRequest { success: puts.split_off(1), ..Default::default() };
            puts.push(op(Request::RequestTxn(nested)));
        }
        pb::TxnRequest { success: puts, ..Default::default() }
    }

    fn txn_of_depth(&mut self, depth: u32) -> pb::TxnRequest {
        let reads = self.chance(20);
        pb::TxnRequest {
            compare: (0..self.pick(&[0, 1, 1, 1, 2, 3])).map(|_| self.compare()).collect(),
            success: self.branch(depth, reads),
            failure: self.branch(depth, reads),
        }
    }

    fn branch(&mut self, depth: u32, reads: bool) -> Vec<pb::RequestOp> {
        let count = self.pick(&[0, 1, 1, 1, 2, 2, 3, 4]);
        (0..count).map(|_| self.operation(depth, reads)).collect()
    }

    fn operation(&mut self, depth: u32, reads: bool) -> pb::RequestOp {
        let kind = if reads { 0 } else { self.rng.u32(0..100) };
        op(match kind {
            0..35 => Request::RequestRange(self.range()),
            35..70 => Request::RequestPut(self.put_in_txn()),
            70..85 => Request::RequestDeleteRange(self.delete_range()),
            85..99 if depth > 0 => Request::RequestTxn(self.txn_of_depth(depth - 1)),
            85..99 => Request::RequestPut(self.put_in_txn()),
            _ => return pb::RequestOp { request: None },
        })
    }

    /// When both the key and the lease are missing, etcd 3.6 names another of them than 3.7 does.
    fn put_in_txn(&mut self) -> pb::PutRequest {
        let mut put = self.put();
        put.ignore_value &= put.lease == 0;
        put
    }

    fn compare(&mut self) -> pb::Compare {
        let key = self.key();
        let range_end = if self.chance(75) { Default::default() } else { self.range_end(&key) };
        let mut compare = pb::Compare {
            result: self.rng.i32(0..4),
            target: self.rng.i32(0..5),
            key,
            range_end,
            target_union: self.target_value(),
        };
        if self.chance(85) {
            compare.target = self.target_of(compare.target_union.as_ref());
        }
        if self.chance(2) {
            compare.result = self.pick(&[4, -1, i32::MAX]);
        }
        if self.chance(2) {
            compare.target = self.pick(&[5, -1, i32::MAX]);
        }
        compare
    }

    fn target_value(&mut self) -> Option<TargetUnion> {
        let revision = if self.chance(20) { 0 } else { current(-self.rng.i64(0..16)) };
        Some(match self.rng.u32(0..100) {
            0..25 => TargetUnion::Version(self.rng.i64(0..4)),
            25..45 => TargetUnion::CreateRevision(revision),
            45..65 => TargetUnion::ModRevision(revision),
            65..87 => TargetUnion::Value(if self.chance(90) {
                vec![b'v', self.pick(b"012345")].into()
            } else {
                Default::default()
            }),
            87..95 => TargetUnion::Lease(if self.chance(50) { 0 } else { self.lease_id() }),
            _ => return None,
        })
    }

    /// The target that belongs to a value.
    fn target_of(&mut self, value: Option<&TargetUnion>) -> i32 {
        match value {
            Some(TargetUnion::Version(_)) => 0,
            Some(TargetUnion::CreateRevision(_)) => 1,
            Some(TargetUnion::ModRevision(_)) => 2,
            Some(TargetUnion::Value(_)) => 3,
            Some(TargetUnion::Lease(_)) => 4,
            None => self.rng.i32(0..5),
        }
    }
}

fn operations(txn: &pb::TxnRequest) -> impl Iterator<Item = &Request> {
    txn.success.iter().chain(&txn.failure).filter_map(|operation| operation.request.as_ref())
}

fn deletes(txn: &pb::TxnRequest) -> bool {
    operations(txn).any(|request| match request {
        Request::RequestDeleteRange(_) => true,
        Request::RequestTxn(nested) => deletes(nested),
        _ => false,
    })
}

/// A put that keeps the value or the lease of a key which the same transaction has deleted ends the process of etcd.
fn ignore_nothing(txn: &mut pb::TxnRequest) {
    for operation in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut operation.request {
            Some(Request::RequestPut(put)) => (put.ignore_value, put.ignore_lease) = (false, false),
            Some(Request::RequestTxn(nested)) => ignore_nothing(nested),
            _ => {}
        }
    }
}

pub(super) fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}
