//! The requests of a simulation, drawn near what there is: half of the compares hold, most revisions can be read, and now and
//! then one asks for what must be refused.

use pb::compare::{CompareTarget, TargetUnion};

use super::*;

/// What the operations of a transaction may be.
pub(super) enum Drawn {
    /// Ranges only.
    Reads,
    /// Everything, with so many transactions within each other at most.
    All(usize),
}

impl Random {
    pub(super) fn command(&mut self, model: &Model, term: u64) -> Command {
        match self.below(16) {
            0 => Command::DeleteRange(self.delete()),
            1..=4 => Command::Txn(self.txn(model, &Drawn::All(3))),
            5 if self.one_in(3) => {
                let behind = (model.revision - model.compacted) as usize;
                let revision = model.compacted + self.below(behind + 3) as i64;
                Command::Compact(pb::CompactionRequest { revision, physical: false })
            }
            6 => {
                let ttl = if self.one_in(16) { 9_000_000_001 } else { 60 + self.below(9) as i64 };
                Command::LeaseGrant(pb::LeaseGrantRequest { id: self.below(7) as i64, ttl })
            }
            7 => self.end_of_lease(term),
            8 => {
                let left = |random: &mut Self| log::LeaseCheckpoint {
                    id: random.below(8) as i64,
                    remaining_ttl: random.below(60) as i64,
                };
                let checkpoints = (0..self.below(3)).map(|_| left(self)).collect();
                Command::LeaseCheckpoint(log::CheckpointLeases { term: self.clock(term), checkpoints })
            }
            _ => Command::Put(self.put(model)),
        }
    }

    /// Of the clock of the leader of this term, or of one that was deposed meanwhile.
    fn clock(&mut self, term: u64) -> u64 {
        term - u64::from(self.one_in(3))
    }

    fn end_of_lease(&mut self, term: u64) -> Command {
        let id = self.below(7) as i64;
        match self.below(2) {
            0 => Command::LeaseRevoke(pb::LeaseRevokeRequest { id }),
            _ => Command::LeaseExpire(log::ExpireLease { id, term: self.clock(term) }),
        }
    }

    fn put(&mut self, model: &Model) -> pb::PutRequest {
        // Half of the puts are under a lease, if there is one.
        let lease = match self.below(20) {
            0 => 99,
            _ => model.leases.keys().nth(self.below(8)).copied().unwrap_or(0),
        };
        pb::PutRequest {
            key: self.key(),
            value: self.value(),
            lease,
            prev_kv: self.one_in(2),
            ignore_value: self.one_in(8),
            ignore_lease: self.one_in(8),
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end) = self.range();
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.one_in(2) }
    }

    /// Few, so that some are equal.
    fn value(&mut self) -> Bytes {
        let length = self.below(4);
        (0..length).map(|_| b"v\0\xff"[self.below(3)]).collect::<Vec<_>>().into()
    }

    /// A range at any revision.
    pub(super) fn range_request(&mut self, model: &Model) -> pb::RangeRequest {
        let (key, range_end) = self.range();
        let bounded = self.one_in(3);
        let bound = |random: &mut Self| match bounded && random.one_in(2) {
            true => random.below(model.revision as usize + 3) as i64 - 1,
            false => 0,
        };
        let [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision] =
            std::array::from_fn(|_| bound(self));
        pb::RangeRequest {
            key,
            range_end,
            limit: self.below(5) as i64 - 1,
            sort_order: self.below(3) as i32,
            sort_target: self.below(5) as i32,
            serializable: false,
            keys_only: self.one_in(4),
            count_only: self.one_in(6),
            revision: self.revision(model),
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        }
    }

    /// The current one mostly, or one that can be read, or one beside these.
    fn revision(&mut self, model: &Model) -> i64 {
        match self.below(24) {
            0 => model.revision + 1,
            1 => model.compacted - 1,
            2..=10 => model.revision - self.below((model.revision - model.compacted.max(1)) as usize + 1) as i64,
            _ => 0,
        }
    }

    pub(super) fn txn(&mut self, model: &Model, drawn: &Drawn) -> pb::TxnRequest {
        let state = model.now();
        let compare = (0..self.below(3)).map(|_| self.compare(&state)).collect();
        let [success, failure] = std::array::from_fn(|_| (0..self.below(4)).map(|_| self.op(model, drawn)).collect());
        pb::TxnRequest { compare, success, failure }
    }

    fn op(&mut self, model: &Model, drawn: &Drawn) -> pb::RequestOp {
        let request = match (drawn, self.below(40)) {
            (Drawn::Reads, _) | (_, 30..) => Some(Request::RequestRange(self.range_request(model))),
            (_, 0) => None,
            (Drawn::All(depth @ 2..), 1..=9) => Some(Request::RequestTxn(self.txn(model, &Drawn::All(depth - 1)))),
            (_, 1..=15) => Some(Request::RequestDeleteRange(self.delete())),
            _ => Some(Request::RequestPut(self.put(model))),
        };
        pb::RequestOp { request }
    }

    /// Near what is true of one of its keys.
    fn compare(&mut self, state: &State) -> pb::Compare {
        let key = self.key();
        let range_end = if self.one_in(3) { self.range().1 } else { Bytes::new() };
        let kv = state.get(&key).cloned().unwrap_or_default();
        let near = |random: &mut Self, own: i64| own + random.below(3) as i64 - 1;
        let target = self.below(5) as i32;
        // Now and then a number or a value of another target.
        let union = if self.one_in(12) { self.below(5) as i32 } else { target };
        let target_union = match CompareTarget::try_from(union).unwrap() {
            CompareTarget::Version => TargetUnion::Version(near(self, kv.version)),
            CompareTarget::Create => TargetUnion::CreateRevision(near(self, kv.create_revision)),
            CompareTarget::Mod => TargetUnion::ModRevision(near(self, kv.mod_revision)),
            CompareTarget::Value => TargetUnion::Value(if self.one_in(2) { kv.value } else { self.value() }),
            CompareTarget::Lease => TargetUnion::Lease(near(self, kv.lease)),
        };
        let result = self.below(4) as i32;
        pb::Compare { key, range_end, result, target, target_union: Some(target_union).filter(|_| !self.one_in(16)) }
    }
}
