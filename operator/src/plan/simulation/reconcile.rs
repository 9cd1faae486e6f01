//! One pass of the reconciler over the world: observe → apply → plan → execute → status, with a crash where asked.

use super::world::image_of;
use super::{Refused, World};
use crate::failures::note;
use crate::observed::{Failures, Observed, ObservedBudget, ObservedSet, PlanLatch};
use crate::plan::{after_failure, initial_replicas, min_available, plan, refused_by_budget};
use crate::step::{Plan, Step};

/// What only the one who is asked can know.
const BY_DESIGN: [Refused; 3] = [Refused::Budget, Refused::Settings, Refused::Policy];

/// Where a pass ends early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Nowhere.
    #[default]
    None,
    /// After planning, before the call.
    BeforeCall,
    /// After the call took effect, before its reply was seen or the status written.
    AfterCall,
}

/// What a pass did.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    pub(crate) plan: Plan,
    pub(crate) outcome: Result<(), Refused>,
}

impl World {
    /// A pass on what is true now.
    pub(crate) fn pass(&mut self, crash: Crash) -> Pass {
        self.pass_on(&self.observe(), crash, true)
    }

    /// A pass on an observation that may be old.
    pub(crate) fn pass_on(&mut self, observed: &Observed, crash: Crash, fresh: bool) -> Pass {
        let cluster = self.cluster.clone();
        let mut observed = observed.clone();
        if !cluster.deleting && !cluster.paused {
            self.apply(&mut observed);
        }
        let plan = plan(&cluster, &observed);
        if crash == Crash::BeforeCall {
            self.failures = Failures::default();
            return Pass { plan, outcome: Ok(()) };
        }
        let outcome = self.execute(&plan.step, fresh);
        // On what is true the planner's proofs must be at least as strong as everybody's refusals.
        match outcome {
            Err(refused) if fresh && !BY_DESIGN.contains(&refused) && !self.raft.stubborn => {
                self.violations.push(format!("{} {:?} refused: {refused:?}", plan.row, plan.step));
            }
            _ => {}
        }
        // A crash forgets what failed.
        if crash == Crash::None {
            let failed = outcome.err().map(|refused| format!("{refused:?}"));
            // What is not the one any more that was decided on is observed anew; a node that says so is not.
            if outcome != Err(Refused::Conflict) || matches!(plan.step, Step::SetConfig { .. }) {
                note(&mut self.failures, &observed, &plan.step, failed.as_deref(), self.now);
            }
            self.write_status(&self.told(&observed, plan.clone(), outcome));
        } else {
            self.failures = Failures::default();
        }
        Pass { plan, outcome }
    }

    /// Creates the StatefulSet, keeps its template, keeps the budget. Never touches replicas of one that exists.
    /// A StatefulSet that it changed is observed as changed: its controller has not seen that yet (G3).
    fn apply(&mut self, observed: &mut Observed) {
        self.config = self.cluster.hot.clone();
        if self.set.is_none() && observed.set.is_none() {
            let set = ObservedSet {
                uid: self.next_text(),
                resource_version: self.next_text(),
                replicas: initial_replicas(&self.cluster, observed),
                generation: 1,
                ..Default::default()
            };
            self.set = Some(set);
        }
        let version = (self.serial + 1).to_string();
        if let Some(set) = self.set.as_mut().filter(|set| set.update_revision.as_ref() != Some(&self.template)) {
            set.update_revision = Some(self.template.clone());
            set.image = Some(image_of(&self.template));
            set.generation += 1;
            set.resource_version = version.clone();
            self.serial += 1;
            if observed.set.is_some() {
                observed.set = Some(set.clone());
            }
        }
        let least = min_available(&self.cluster, observed);
        if least != self.budget.as_ref().and_then(|budget| budget.min_available) {
            self.serial += 1;
            self.budget = least.map(|least| ObservedBudget {
                uid: "budget".into(),
                resource_version: version,
                min_available: Some(least),
            });
        }
    }

    /// What the status tells of the plan.
    fn told(&self, observed: &Observed, planned: Plan, outcome: Result<(), Refused>) -> Plan {
        let Err(refused) = outcome else { return planned };
        let (step, mut told) = (planned.step.clone(), planned);
        if refused == Refused::Budget {
            refused_by_budget(&mut told, &self.cluster, observed, "the budget refuses".to_owned());
        }
        let mut observed = observed.clone();
        observed.remember(self.failures.clone());
        after_failure(&step, told, plan(&self.cluster, &observed))
    }

    /// One patch, skipped when equal.
    fn write_status(&mut self, plan: &Plan) {
        let latch = latch(plan);
        if self.resource.plan.as_ref() != Some(&latch) {
            self.resource.plan = Some(latch);
            self.resource.resource_version = self.next_text();
        }
    }

    /// Passes and ticks until the plan is settled, or for `most` passes; the executed steps in order.
    pub(crate) fn settle(&mut self, most: usize) -> Result<Vec<Plan>, String> {
        let mut done = Vec::new();
        for _ in 0..most {
            let Pass { plan, outcome } = self.pass(Crash::None);
            if let Some(violation) = self.violations.first() {
                return Err(violation.clone());
            }
            match plan.step {
                Step::Settled => return Ok(done),
                Step::Wait => {}
                _ if outcome.is_ok() => done.push(plan),
                _ => {}
            }
            self.tick();
        }
        let Pass { plan, outcome } = self.pass(Crash::None);
        Err(format!("not settled after {most} passes: {} {:?} {:?} {outcome:?}", plan.row, plan.step, plan.blocked_by))
    }
}

/// What the next pass reads of a plan in the status.
pub(in crate::plan) fn latch(plan: &Plan) -> PlanLatch {
    let reason = plan.blocked_by.as_ref().filter(|_| plan.step == Step::Wait);
    PlanLatch {
        step: plan.step.name().as_str().to_owned(),
        reason: reason.map(|blocked| blocked.reason.as_str().to_owned()),
        ordinal: plan.target.ordinal,
        member: plan.target.member,
        since: plan.since,
    }
}
