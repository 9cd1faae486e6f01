//! How often each kind of request was drawn and came as far as it must to say something. A kind that is never reached is
//! never tested, and nobody would notice.

use pb::compare::CompareTarget;
use pb::range_request::{SortOrder, SortTarget};
use pb::response_op::Response;

use super::answers::{holds, is_filtered, names};
use super::*;

#[derive(Default)]
pub(super) struct Reached(pub(super) BTreeMap<String, usize>);

/// Each of these must be reached.
const KINDS: [&str; 43] = [
    "put that keeps its value",
    "put that keeps its lease",
    "compare of Version: false",
    "compare of Version: true",
    "compare of Create: false",
    "compare of Create: true",
    "compare of Mod: false",
    "compare of Mod: true",
    "compare of Value: false",
    "compare of Value: true",
    "compare of Lease: false",
    "compare of Lease: true",
    "compare of many keys: false",
    "compare of many keys: true",
    "compare of no key: false",
    "compare of no key: true",
    "txn: success",
    "txn: failure",
    "txn of depth 2",
    "txn of depth 3",
    "txn of reads",
    "range in a txn",
    "range in a txn: of the past",
    "range in a txn: filtered",
    "range in a txn: cut",
    "range in a txn: sorted by Version",
    "range in a txn: sorted by Create",
    "range in a txn: sorted by Mod",
    "range in a txn: sorted by Value",
    "range in a txn: descending",
    "range: of the past",
    "range: filtered",
    "range: cut",
    "range: sorted by Value",
    "range: only counted",
    "lease checkpoint",
    "refused: required revision has been compacted",
    "refused: required revision is a future revision",
    "refused: key not found",
    "refused: requested lease not found",
    "refused: lease already exists",
    "refused: too large lease TTL",
    "refused: decided by another term",
];

impl Reached {
    fn count(&mut self, kind: impl Into<String>) {
        *self.0.entry(kind.into()).or_default() += 1;
    }

    pub(super) fn add(&mut self, more: Self) {
        for (kind, times) in more.0 {
            *self.0.entry(kind).or_default() += times;
        }
    }

    pub(super) fn missing(&self) -> Vec<&'static str> {
        KINDS.into_iter().filter(|kind| !self.0.contains_key(*kind)).collect()
    }

    fn refused(&mut self, refusal: &Refusal) {
        match refusal {
            Refusal::OtherTerm { .. } => self.count("refused: decided by another term"),
            other => self.count(format!("refused: {other}")),
        }
    }

    /// A command, and what the model answered to it on `before`.
    pub(super) fn command(&mut self, command: &Command, before: &State, answer: &Result<Outcome, Refusal>) {
        match (command, answer) {
            (_, Err(refusal)) => self.refused(refusal),
            (Command::Put(put), _) => self.put(put),
            (Command::Txn(txn), Ok(Outcome::Txn(response))) => self.txn(txn, before, response, 1),
            (Command::LeaseCheckpoint(_), _) => self.count("lease checkpoint"),
            _ => {}
        }
    }

    pub(super) fn read(&mut self, request: &pb::RangeRequest, answer: &Result<pb::RangeResponse, Refusal>) {
        match answer {
            Ok(response) => self.range("range", request, response),
            Err(refusal) => self.refused(refusal),
        }
    }

    pub(super) fn read_txn(&mut self, txn: &pb::TxnRequest, before: &State, answer: &Result<pb::TxnResponse, Refusal>) {
        self.count("txn of reads");
        match answer {
            Ok(response) => self.txn(txn, before, response, 1),
            Err(refusal) => self.refused(refusal),
        }
    }

    fn put(&mut self, put: &pb::PutRequest) {
        for (keeps, what) in [(put.ignore_value, "value"), (put.ignore_lease, "lease")] {
            if keeps {
                self.count(format!("put that keeps its {what}"));
            }
        }
    }

    fn txn(&mut self, txn: &pb::TxnRequest, before: &State, response: &pb::TxnResponse, depth: usize) {
        self.count(format!("txn of depth {depth}"));
        txn.compare.iter().for_each(|compare| self.compare(compare, before));
        let (ops, name) = if response.succeeded { (&txn.success, "success") } else { (&txn.failure, "failure") };
        if !ops.is_empty() {
            self.count(format!("txn: {name}"));
        }
        for (op, response) in ops.iter().zip(&response.responses) {
            match (op.request.as_ref().unwrap(), response.response.as_ref().unwrap()) {
                (Request::RequestPut(put), _) => self.put(put),
                (Request::RequestRange(range), Response::ResponseRange(response)) => {
                    self.count("range in a txn");
                    self.range("range in a txn", range, response);
                }
                (Request::RequestTxn(nested), Response::ResponseTxn(response)) => {
                    self.txn(nested, before, response, depth + 1);
                }
                _ => {}
            }
        }
    }

    fn compare(&mut self, compare: &pb::Compare, before: &State) {
        let holds = holds(before, compare);
        let target: CompareTarget = compare.target();
        self.count(format!("compare of {target:?}: {holds}"));
        let named = before.keys().filter(|key| names(&compare.key, &compare.range_end, key)).count();
        match named {
            0 => self.count(format!("compare of no key: {holds}")),
            1 => {}
            _ => self.count(format!("compare of many keys: {holds}")),
        }
    }

    /// Only what says something: a sort of one pair and a filter of none do not count.
    fn range(&mut self, name: &str, request: &pb::RangeRequest, response: &pb::RangeResponse) {
        let (some, target): (_, SortTarget) = (response.kvs.len() > 1, request.sort_target());
        for (is, what) in [
            (request.revision > 0, "of the past".to_owned()),
            (is_filtered(request) && some && (response.kvs.len() as i64) < response.count, "filtered".to_owned()),
            (response.more, "cut".to_owned()),
            (some, format!("sorted by {target:?}")),
            (some && request.sort_order() == SortOrder::Descend, "descending".to_owned()),
            (request.count_only && response.count > 0, "only counted".to_owned()),
        ] {
            if is {
                self.count(format!("{name}: {what}"));
            }
        }
    }
}
