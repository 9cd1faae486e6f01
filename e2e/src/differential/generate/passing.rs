//! A revision that changes a key more than once, compacted at just that revision, and watchers from there on: they must be
//! told of what a compaction leaves and of nothing else.

use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use pb::request_op::Request;
use pb::watch_request::RequestUnion;

use super::Draw;
use super::txn::op;
use crate::differential::revision::{compacted, current};
use crate::differential::step::Step;

impl Draw {
    /// The first of the steps, the others come next.
    pub(super) fn in_passing(&mut self) -> Step {
        let revision = current(if self.chance(80) { 0 } else { -1 });
        let physical = self.chance(40);
        self.ahead.push_back(Step::Compact(pb::CompactionRequest { revision, physical }));
        for _ in 0..self.rng.usize(1..4) {
            let watch = self.watch_from(compacted(0));
            self.ahead.push_back(watch);
        }
        let success = self.changes_in_passing().into_iter().map(op).collect();
        Step::Txn(pb::TxnRequest { success, ..Default::default() })
    }

    /// Only a delete of all that follows, or one within another transaction, may meet a put.
    fn changes_in_passing(&mut self) -> Vec<Request> {
        let key = Bytes::from(vec![self.pick(b"abcdefgh")]);
        let put = Request::RequestPut(pb::PutRequest { key: key.clone(), value: self.value(), ..Default::default() });
        let within = |request| Request::RequestTxn(pb::TxnRequest { success: vec![op(request)], ..Default::default() });
        let delete = |key: Bytes, range_end: &'static [u8]| {
            let range_end = Bytes::from_static(range_end);
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false })
        };
        let all = || delete(key.clone(), b"\0");
        let more = Request::RequestPut(pb::PutRequest { key: b"p/07"[..].into(), ..Default::default() });
        match self.rng.u32(0..100) {
            0..35 => vec![put, all()],
            35..55 => vec![more, put, all()],
            55..75 if self.may_nest() => vec![within(put), within(delete(key.clone(), b""))],
            55..85 => vec![all(), put, all()],
            85..95 => vec![put, all(), more],
            _ => vec![all(), put],
        }
    }

    fn watch_from(&mut self, start_revision: i64) -> Step {
        let mut create = pb::WatchCreateRequest { watch_id: 0, filters: Vec::new(), start_revision, ..self.create() };
        if self.chance(60) {
            (create.key, create.range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        }
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        Step::Watch { stream: self.stream(), request }
    }
}
