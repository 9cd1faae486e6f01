//! What the model answers to each request, on a map of the pairs that there are at a revision. It shares nothing with the
//! code under test but the messages and the names of refusals.

use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use pb::response_op::Response;

use super::*;

/// Whether a request with `key` and `range_end` names this key.
pub(super) fn names(key: &[u8], range_end: &[u8], this: &[u8]) -> bool {
    match range_end {
        [] => this == key,
        [0] => this >= key,
        _ => this >= key && this < range_end,
    }
}

impl Model {
    /// Executes a command of an entry of `term`.
    pub(super) fn execute(&mut self, command: &Command, term: u64) -> Result<Outcome, Refusal> {
        let answer = match command {
            Command::Put(put) => self.may_put(&self.now(), put).map(|()| Outcome::Put(self.put(put))),
            Command::DeleteRange(delete) => Ok(Outcome::DeleteRange(self.delete(delete))),
            Command::Txn(txn) => self.transact(txn).map(Outcome::Txn),
            Command::Compact(compact) => self.compact(compact.revision),
            Command::LeaseGrant(grant) => self.grant(grant),
            Command::LeaseRevoke(revoke) => self.revoke(revoke.id),
            Command::LeaseExpire(log::ExpireLease { term: clock, .. })
            | Command::LeaseCheckpoint(log::CheckpointLeases { term: clock, .. })
                if *clock != term =>
            {
                Err(Refusal::OtherTerm { term: *clock, entry_term: term })
            }
            Command::LeaseExpire(expire) => self.revoke(expire.id),
            Command::LeaseCheckpoint(written) => {
                for left in &written.checkpoints {
                    self.leases.entry(left.id).and_modify(|lease| lease[1] = left.remaining_ttl);
                }
                Ok(Outcome::LeaseCheckpoint)
            }
            other => panic!("not generated: {other:?}"),
        };
        self.revision = self.latest();
        answer
    }

    /// The revision that answers tell: the next one, once the command under way has changed something.
    fn latest(&self) -> i64 {
        self.versions.last().map_or(self.revision, |(made, ..)| self.revision.max(*made))
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { revision: self.latest(), ..Default::default() })
    }

    /// What there is now, changes of the command under way included.
    pub(super) fn now(&self) -> State {
        self.at(self.latest())
    }

    fn may_put(&self, state: &State, put: &pb::PutRequest) -> Result<(), Refusal> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Refusal::LeaseNotFound);
        }
        let keeps = put.ignore_value || put.ignore_lease;
        if keeps && !state.contains_key(&put.key) { Err(Refusal::KeyNotFound) } else { Ok(()) }
    }

    fn put(&mut self, put: &pb::PutRequest) -> pb::PutResponse {
        let made = self.revision + 1;
        let old = self.now().remove(&put.key);
        let kept = old.clone().unwrap_or_default();
        let kv = KeyValue {
            key: put.key.clone(),
            value: if put.ignore_value { kept.value } else { put.value.clone() },
            create_revision: if old.is_some() { kept.create_revision } else { made },
            mod_revision: made,
            version: kept.version + 1,
            lease: if put.ignore_lease { kept.lease } else { put.lease },
        };
        self.versions.push((made, put.key.clone(), Some(kv)));
        pb::PutResponse { header: self.header(), prev_kv: old.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, delete: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let state = self.now().into_values();
        let doomed: Vec<_> = state.filter(|kv| names(&delete.key, &delete.range_end, &kv.key)).collect();
        self.versions.extend(doomed.iter().map(|kv| (self.revision + 1, kv.key.clone(), None)));
        let deleted = doomed.len() as i64;
        let prev_kvs = if delete.prev_kv { doomed } else { Vec::new() };
        pb::DeleteRangeResponse { header: self.header(), deleted, prev_kvs }
    }

    fn compact(&mut self, revision: i64) -> Result<Outcome, Refusal> {
        match revision {
            low if low <= self.compacted => return Err(Refusal::Compacted),
            high if high > self.revision => return Err(Refusal::FutureRevision),
            _ => self.compacted = revision,
        }
        self.compactions.insert(revision);
        Ok(Outcome::Compact(pb::CompactionResponse { header: self.header() }))
    }

    fn grant(&mut self, grant: &pb::LeaseGrantRequest) -> Result<Outcome, Refusal> {
        let pb::LeaseGrantRequest { id, ttl } = *grant;
        match () {
            () if id == 0 => return Err(Refusal::LeaseNotFound),
            () if ttl > 9_000_000_000 => return Err(Refusal::LeaseTtlTooLarge),
            () if self.leases.contains_key(&id) => return Err(Refusal::LeaseExists),
            () => self.leases.insert(id, [ttl, 0]),
        };
        let error = String::new();
        Ok(Outcome::LeaseGrant(pb::LeaseGrantResponse { header: self.header(), id, ttl, error }))
    }

    fn revoke(&mut self, lease: i64) -> Result<Outcome, Refusal> {
        self.leases.remove(&lease).ok_or(Refusal::LeaseNotFound)?;
        let doomed = self.keys_of(lease);
        self.versions.extend(doomed.into_iter().map(|key| (self.revision + 1, key, None)));
        Ok(Outcome::LeaseRevoke(pb::LeaseRevokeResponse { header: self.header() }))
    }
}

/// Reads.
impl Model {
    /// A range by itself.
    pub(super) fn read(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Refusal> {
        if request.revision > 0 && request.revision < self.compacted {
            return Err(Refusal::Compacted);
        }
        if request.revision > self.revision { Err(Refusal::FutureRevision) } else { Ok(self.range(request)) }
    }

    /// A range that may be done.
    fn range(&self, request: &pb::RangeRequest) -> pb::RangeResponse {
        let state = if request.revision > 0 { self.at(request.revision) } else { self.now() };
        let named = state.into_values().filter(|kv| names(&request.key, &request.range_end, &kv.key));
        let mut kvs: Vec<_> = named.collect();
        let count = kvs.len() as i64;
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let is_plain = request.sort_order() == SortOrder::None && !is_filtered(request);
        // Etcd reads no more than one pair above the limit, unless it must sort or filter; it sorts these by the target all
        // the same.
        kvs.truncate(if is_plain { limit.saturating_add(1) } else { usize::MAX });
        kvs.retain(|kv| passes(request, kv));
        sort(request, &mut kvs);
        let more = kvs.len() > limit && !request.count_only;
        kvs.truncate(if request.count_only { 0 } else { limit });
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        pb::RangeResponse { header: self.header(), kvs, more, count }
    }
}

pub(super) fn is_filtered(request: &pb::RangeRequest) -> bool {
    let pb::RangeRequest { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } = request;
    [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision].into_iter().any(|bound| *bound != 0)
}

fn passes(request: &pb::RangeRequest, kv: &KeyValue) -> bool {
    let below = |min: i64, revision: i64| min != 0 && revision < min;
    let above = |max: i64, revision: i64| max != 0 && revision > max;
    !(below(request.min_mod_revision, kv.mod_revision)
        || above(request.max_mod_revision, kv.mod_revision)
        || below(request.min_create_revision, kv.create_revision)
        || above(request.max_create_revision, kv.create_revision))
}

/// What is equal stays in the order of the keys.
fn sort(request: &pb::RangeRequest, kvs: &mut [KeyValue]) {
    let by = |kv: &KeyValue| match request.sort_target() {
        SortTarget::Key => (0, kv.key.clone()),
        SortTarget::Version => (kv.version, Bytes::new()),
        SortTarget::Create => (kv.create_revision, Bytes::new()),
        SortTarget::Mod => (kv.mod_revision, Bytes::new()),
        SortTarget::Value => (0, kv.value.clone()),
    };
    match request.sort_order() {
        SortOrder::Descend => kvs.sort_by_key(|kv| std::cmp::Reverse(by(kv))),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by_key(by),
    }
}

/// Transactions.
impl Model {
    /// Compares choose branches, and these are checked, all on what there was before.
    pub(super) fn transact(&mut self, txn: &pb::TxnRequest) -> Result<pb::TxnResponse, Refusal> {
        let before = self.now();
        self.may_run(&before, txn)?;
        let response = self.run(&before, txn);
        Ok(pb::TxnResponse { header: self.header(), ..response })
    }

    fn may_run(&self, before: &State, txn: &pb::TxnRequest) -> Result<(), Refusal> {
        for op in chosen(before, txn).1 {
            match &op.request {
                // Of a negative revision, too, a transaction says that it is compacted.
                Some(Request::RequestRange(range)) => match range.revision {
                    0 => {}
                    low if low < self.compacted => return Err(Refusal::Compacted),
                    high if high > self.revision => return Err(Refusal::FutureRevision),
                    _ => {}
                },
                Some(Request::RequestPut(put)) => self.may_put(before, put)?,
                Some(Request::RequestDeleteRange(_)) => {}
                Some(Request::RequestTxn(nested)) => self.may_run(before, nested)?,
                None => return Err(Refusal::KeyNotFound),
            }
        }
        Ok(())
    }

    fn run(&mut self, before: &State, txn: &pb::TxnRequest) -> pb::TxnResponse {
        let (succeeded, ops) = chosen(before, txn);
        let mut answer = |op: &pb::RequestOp| match op.request.as_ref().unwrap() {
            Request::RequestRange(range) => Response::ResponseRange(self.range(range)),
            Request::RequestPut(put) => Response::ResponsePut(self.put(put)),
            Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete(delete)),
            Request::RequestTxn(nested) => Response::ResponseTxn(self.run(before, nested)),
        };
        let responses = ops.iter().map(|op| pb::ResponseOp { response: Some(answer(op)) }).collect();
        pb::TxnResponse { header: Some(pb::ResponseHeader::default()), succeeded, responses }
    }
}

fn chosen<'t>(before: &State, txn: &'t pb::TxnRequest) -> (bool, &'t [pb::RequestOp]) {
    let succeeded = txn.compare.iter().all(|compare| holds(before, compare));
    (succeeded, if succeeded { &txn.success } else { &txn.failure })
}

/// For all keys that it names; if there is none for a pair of zeros, of whose value nothing can be said.
pub(super) fn holds(before: &State, compare: &pb::Compare) -> bool {
    let named: Vec<_> = before.values().filter(|kv| names(&compare.key, &compare.range_end, &kv.key)).collect();
    match &named[..] {
        [] => compare.target() != CompareTarget::Value && holds_of(&KeyValue::default(), compare),
        _ => named.into_iter().all(|kv| holds_of(kv, compare)),
    }
}

/// A number or value of another target than the compare's counts as none.
fn holds_of(kv: &KeyValue, compare: &pb::Compare) -> bool {
    let (is, given) = match (compare.target(), compare.target_union.clone()) {
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => return ordered(&kv.value, &value, compare.result()),
        (CompareTarget::Value, _) => return ordered(&kv.value, &Bytes::new(), compare.result()),
        (CompareTarget::Version, Some(TargetUnion::Version(given))) => (kv.version, given),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(given))) => (kv.create_revision, given),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(given))) => (kv.mod_revision, given),
        (CompareTarget::Lease, Some(TargetUnion::Lease(given))) => (kv.lease, given),
        (CompareTarget::Version, _) => (kv.version, 0),
        (CompareTarget::Create, _) => (kv.create_revision, 0),
        (CompareTarget::Mod, _) => (kv.mod_revision, 0),
        (CompareTarget::Lease, _) => (kv.lease, 0),
    };
    ordered(&is, &given, compare.result())
}

fn ordered<T: Ord>(is: &T, given: &T, result: CompareResult) -> bool {
    match result {
        CompareResult::Equal => is == given,
        CompareResult::NotEqual => is != given,
        CompareResult::Greater => is > given,
        CompareResult::Less => is < given,
    }
}
