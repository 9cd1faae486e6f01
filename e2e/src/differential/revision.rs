//! Revisions in steps. A generated step cannot know at which revision the store will be, and a shrunk sequence gets
//! elsewhere than the whole one, so a step says "3 before the current one" and the run fills in the number.

use balsa_proto::etcdserverpb as pb;
use balsa_proto::v3electionpb::LeaderKey;
use pb::compare::TargetUnion;
use pb::request_op::Request;
use pb::watch_request::RequestUnion;

use super::call::Call;
use super::step::Step;

/// Numbers around these stand for the current and the compacted revision; far from both, they are themselves.
const CURRENT: i64 = 1 << 48;
const COMPACTED: i64 = 1 << 52;
const REACH: u64 = 1 << 20;

/// The current revision and `delta`.
pub const fn current(delta: i64) -> i64 {
    CURRENT + delta
}

/// The compacted revision and `delta`.
pub const fn compacted(delta: i64) -> i64 {
    COMPACTED + delta
}

/// Where the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revisions {
    /// The revision of the last change.
    pub current: i64,
    /// The last compacted revision, 0 before the first compaction.
    pub compacted: i64,
}

impl Default for Revisions {
    fn default() -> Self {
        Self { current: 1, compacted: 0 }
    }
}

impl Revisions {
    /// The step with numbers in place of what stands for them.
    pub fn resolve(&self, step: &Step) -> Step {
        let mut step = step.clone();
        match &mut step {
            Step::Range(request) | Step::RangeStream(request) => self.range(request),
            Step::Txn(request) => self.txn(request),
            Step::Compact(request) => self.fill(&mut request.revision),
            Step::HashKv(request) => self.fill(&mut request.revision),
            Step::Watch { request, .. } => {
                if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
                    self.fill(&mut create.start_revision);
                }
            }
            Step::Call(Call::Proclaim(request)) => self.leader(&mut request.leader),
            Step::Call(Call::Resign(request)) => self.leader(&mut request.leader),
            Step::As { step, .. } => **step = self.resolve(step),
            _ => {}
        }
        step
    }

    fn fill(&self, revision: &mut i64) {
        if revision.abs_diff(CURRENT) < REACH {
            *revision = *revision - CURRENT + self.current;
        } else if revision.abs_diff(COMPACTED) < REACH {
            *revision = *revision - COMPACTED + self.compacted;
        }
    }

    fn leader(&self, leader: &mut Option<LeaderKey>) {
        if let Some(leader) = leader {
            self.fill(&mut leader.rev);
        }
    }

    fn range(&self, request: &mut pb::RangeRequest) {
        self.fill(&mut request.revision);
        self.fill(&mut request.min_mod_revision);
        self.fill(&mut request.max_mod_revision);
        self.fill(&mut request.min_create_revision);
        self.fill(&mut request.max_create_revision);
    }

    fn txn(&self, request: &mut pb::TxnRequest) {
        for compare in &mut request.compare {
            if let Some(TargetUnion::CreateRevision(revision) | TargetUnion::ModRevision(revision)) =
                &mut compare.target_union
            {
                self.fill(revision);
            }
        }
        for operation in request.success.iter_mut().chain(&mut request.failure) {
            match &mut operation.request {
                Some(Request::RequestRange(range)) => self.range(range),
                Some(Request::RequestTxn(nested)) => self.txn(nested),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_a_revision_is_filled_in_everywhere() {
        let at = Revisions { current: 50, compacted: 20 };
        let range = pb::RangeRequest { revision: current(-3), min_mod_revision: compacted(1), ..Default::default() };
        let operation = pb::RequestOp { request: Some(Request::RequestRange(range.clone())) };
        let nested = pb::TxnRequest { failure: vec![operation], ..Default::default() };
        let nested = pb::RequestOp { request: Some(Request::RequestTxn(nested)) };
        let Step::Txn(txn) = at.resolve(&Step::Txn(pb::TxnRequest { success: vec![nested], ..Default::default() }))
        else {
            panic!("another step")
        };
        let Some(Request::RequestTxn(nested)) = &txn.success[0].request else { panic!("another operation") };
        let Some(Request::RequestRange(range)) = &nested.failure[0].request else { panic!("another operation") };
        assert_eq!((range.revision, range.min_mod_revision), (47, 21));
    }

    #[test]
    fn a_number_is_itself() {
        let at = Revisions { current: 50, compacted: 20 };
        for revision in [0, -1, 7, i64::MAX, i64::MIN] {
            let step = Step::Compact(pb::CompactionRequest { revision, physical: false });
            assert_eq!(at.resolve(&step), step);
        }
    }
}
