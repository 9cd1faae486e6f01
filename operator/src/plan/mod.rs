//! Decides the one next step of a cluster from what one pass has observed.
//!
//! `plan` is pure and remembers nothing: anything it must know of earlier passes is in the cluster, on a volume's
//! labels, or in the status. The rows are those of the reference (`B1` … `D1`); each family of rows is a file, and
//! `search` below is their order. A family either breaks with a decision or notes a wait and goes on; the first wait
//! noted is the answer when no row acts, unless nothing waits for it and there is another. Nothing here may know a client,
//! a clock, or the resource's schema.

mod advice;
mod again;
mod bootstrap;
mod delete;
mod gates;
mod learner;
mod prepare;
mod proofs;
mod quorum;
mod recreate;
mod repairs;
mod replace;
mod roll;
mod scale_in;
mod scale_out;
#[cfg(test)]
mod script;
mod settings;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

pub use self::bootstrap::initial_replicas;
use self::proofs::View;
pub use self::proofs::min_available;
pub use self::repairs::{is_founded, kept_size, repairs};
pub use self::settings::wanted_settings;
use crate::observed::{Observed, PlanLatch, UnixSeconds};
use crate::step::{Blocked, Plan, RestartMode, Step, StepName, Target, WaitReason};
use crate::valid::ValidCluster;

/// After the end of its grace period a terminating pod gets this long before its host is doubted.
pub const TERMINATION_MARGIN_SECONDS: i64 = 30;
/// A volume pinned to a vanished host must have kept its pod from being scheduled this long.
pub const UNSCHEDULABLE_GRACE_SECONDS: i64 = 60;
/// A leader that was asked to move has this long.
pub const MOVE_LEADER_DEADLINE_SECONDS: i64 = 60;
/// A learner to which nothing has moved for so long is stuck: neither an entry nor a byte of a snapshot.
pub const LEARNER_DEADLINE_SECONDS: i64 = 600;
/// A restarted pod has this long to rejoin.
pub const REJOIN_DEADLINE_SECONDS: i64 = 600;
/// A wait that has lasted so long names a way out, although it should pass by itself.
pub const LASTING_WAIT_SECONDS: i64 = 60;
/// Longest pause before a call that others do not wait for is tried again.
pub const RETRY_SECONDS: i64 = 30;
/// A majority must have been proven lost this long.
pub const QUORUM_LOST_GRACE_SECONDS: i64 = 60;

/// Decides the next step.
pub fn plan(cluster: &ValidCluster, observed: &Observed) -> Plan {
    let view = View::new(cluster, observed);
    let mut notes = Notes::default();
    let decision = match search(&view, &mut notes) {
        ControlFlow::Break(decision) => decision,
        ControlFlow::Continue(()) => match notes.first.take().or_else(|| notes.last.take()) {
            Some(wait) => wait,
            None => Decision::act("Settled", Step::Settled),
        },
    };
    finish(&view, decision, notes.first.or(notes.last))
}

/// The plan for a resource that did not pass validation (gate G2): nothing is done, observing goes on. A cluster that runs is
/// kept alive all the same, see [`repairs`].
pub fn invalid_spec(observed: &Observed, message: String) -> Plan {
    let cluster = ValidCluster::default();
    let view = View::new(&cluster, observed);
    finish(&view, Decision::wait("G2", WaitReason::InvalidSpec, message), None)
}

/// What becomes of a plan whose eviction the disruption budget has refused: a wait, after which it is tried again.
///
/// A leader that was to be restarted because it will not move (I4) still does not: its clock runs on, and a person is told.
pub fn refused_by_budget(plan: &mut Plan, cluster: &ValidCluster, observed: &Observed, message: String) {
    let (reason, message) = match plan.row {
        "I4" => (WaitReason::LeaderWillNotMove, format!("the leader does not move, and {message}")),
        _ => (WaitReason::DisruptionBudget, message),
    };
    let (view, lasted) = (View::new(cluster, observed), observed.now.saturating_sub(plan.since));
    let advice = advice::human_may(&view, plan.row, reason, plan.target, lasted);
    plan.human_may.splice(..0, std::iter::once(advice::BUDGET_REFUSES.to_owned()).chain(advice));
    plan.step = Step::Wait;
    plan.blocked_by = Some(Blocked { reason, message });
}

/// What becomes of a plan to make the StatefulSet anew when the API server would not take it: nothing was deleted.
pub fn set_not_taken(plan: &mut Plan, message: String) {
    plan.human_may.insert(0, "change what leads to it in spec, or the policy that forbids it".to_owned());
    plan.step = Step::Wait;
    plan.blocked_by = Some(Blocked { reason: WaitReason::InvalidSpec, message });
}

/// What becomes of a plan whose step has failed for long: it is tried again, and all that comes after it waits. A wait that is
/// told beside the step keeps its name, because conditions go by that. Gives the word for the failure.
pub fn step_fails(plan: &mut Plan, cluster: &ValidCluster, observed: &Observed, words: &str) -> WaitReason {
    let reason = match plan.step {
        Step::RestartPod { .. } => WaitReason::RestartFails,
        Step::LabelVolume { .. } => WaitReason::LabelFails,
        _ => WaitReason::StepFails,
    };
    let advice = advice::of_failing(&View::new(cluster, observed), plan, reason);
    plan.human_may.splice(..0, advice);
    let message = format!("{} fails: {words}", plan.step.name());
    plan.blocked_by = Some(match plan.blocked_by.take() {
        None => Blocked { reason, message },
        // It says so already, from an earlier time.
        Some(told) if told.message.contains(words) => told,
        Some(told) => Blocked { reason: told.reason, message: format!("{message}; {}", told.message) },
    });
    reason
}

/// The plan that is told after its step failed. Where others do not wait for that step its failure takes no clock (P7) from
/// their waits, so what is told is `next`, what comes now that it has failed; that is the next pass's to do. `told` says of the
/// step itself what there is to say, for when it comes again at once.
pub fn after_failure(step: &Step, told: Plan, next: Plan) -> Plan {
    if next.step == *step { told } else { next }
}

/// The order of the rows. What holds back what is in `Notes`.
fn search(view: &View<'_>, notes: &mut Notes) -> Row {
    gates::deleted_or_paused(view, notes)?;
    gates::kubernetes(view)?;
    gates::one_cluster(view)?;
    gates::one_membership(view, notes)?;
    bootstrap::rows(view, notes)?;
    quorum::without_list(view, notes)?;
    gates::membership(view)?;
    roll::broken_pods(view, notes)?;
    learner::label_volumes(view, notes)?;
    half_done(view, notes)?;
    quorum::stuck_terminating(view, notes)?;
    replace::causes(view, notes)?;
    learner::rows(view, notes)?;
    // M18: config → scale → version.
    settings::rows(view, notes)?;
    roll::settings(view, notes)?;
    scale_in::rows(view, notes)?;
    prepare::change_of_mind(view, notes)?;
    scale_out::rows(view, notes)?;
    roll::rows(view, notes)?;
    gates::nothing_missing(view, notes)?;
    recreate::rows(view, notes)?;
    replace::without_claim(view, notes)
}

/// The second halves of pairs of steps; they come before anything new.
fn half_done(view: &View<'_>, notes: &mut Notes) -> Row {
    scale_out::grow_set(view, notes)?;
    scale_in::shrink_set(view)?;
    scale_in::members_without_ordinal(view, notes)?;
    replace::rebuild(view, notes)
}

/// What a family of rows gives: `Break` ends the search.
type Row = ControlFlow<Decision>;

/// Goes on with the next row.
const NEXT: Row = ControlFlow::Continue(());

/// A step or a wait, and the row that says so.
#[derive(Clone, Debug)]
struct Decision {
    row: &'static str,
    step: Step,
    blocked: Option<Blocked>,
    target: Target,
}

impl Decision {
    fn act(row: &'static str, step: Step) -> Self {
        let target = step.target();
        Self { row, step, blocked: None, target }
    }

    fn wait(row: &'static str, reason: WaitReason, message: impl Into<String>) -> Self {
        let blocked = Some(Blocked { reason, message: message.into() });
        Self { row, step: Step::Wait, blocked, target: Target::default() }
    }

    fn on(mut self, ordinal: u32, member: Option<u64>) -> Self {
        self.target = Target { ordinal: Some(ordinal), member };
        self
    }

    /// Ends the search with this.
    fn now(self) -> Row {
        ControlFlow::Break(self)
    }
}

/// What rows that did not act leave for the rows after them.
#[derive(Debug, Default)]
struct Notes {
    /// The first wait found.
    first: Option<Decision>,
    /// The first wait found that nothing waits for: the answer when there is no other.
    last: Option<Decision>,
    /// No new ordinal and no new learner.
    hold_scale_out: bool,
    /// No ordinal less.
    hold_scale_in: bool,
    /// No restart for a new template.
    hold_roll: bool,
}

impl Notes {
    /// Notes a wait; the search goes on.
    fn wait(&mut self, wait: Decision) {
        self.first.get_or_insert(wait);
    }

    /// Notes a wait that no row waits for, and that takes the clock (P7) from no other.
    fn wait_last(&mut self, wait: Decision) {
        self.last.get_or_insert(wait);
    }

    /// Notes a wait during which neither scale-out nor roll may begin anything.
    fn hold(&mut self, wait: Decision) {
        self.wait(wait);
        self.hold_scale_out = true;
        self.hold_roll = true;
    }
}

/// All the words for a member that is not back yet.
const REJOIN_WAITS: [WaitReason; 5] = [
    WaitReason::PodNotRunning,
    WaitReason::PodNotRejoined,
    WaitReason::RolloutStalled,
    WaitReason::DiskFailed,
    WaitReason::Fault,
];

/// Waits and steps that belong to one matter: changing between them does not restart its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matter {
    Learner,
    Rejoin,
    MoveLeader,
    Quorum,
    Membership,
}

impl Matter {
    /// By the step if there was one, whatever stood in the way of others; by the reason of a wait.
    fn of(step: &str, reason: Option<&str>) -> Option<Self> {
        if step != StepName::Wait.as_str() {
            return (step == StepName::MoveLeader.as_str()).then_some(Self::MoveLeader);
        }
        let is = |names: &[WaitReason]| names.iter().any(|name| Some(name.as_str()) == reason);
        if is(&[WaitReason::LearnerBehind, WaitReason::LearnerStuck]) {
            Some(Self::Learner)
        } else if is(&REJOIN_WAITS) {
            Some(Self::Rejoin)
        } else if is(&[WaitReason::LeaderWillNotMove]) {
            Some(Self::MoveLeader)
        } else if is(&[WaitReason::NoQuorum, WaitReason::MembersUnknown, WaitReason::QuorumLost]) {
            Some(Self::Quorum)
        } else if is(&[WaitReason::ChangeInFlight, WaitReason::MembersDisagree]) {
            Some(Self::Membership)
        } else {
            None
        }
    }
}

/// P7: since when this matter has lasted for this target, by the timestamp in the status; `None` if it is new.
fn lasting(view: &View<'_>, matter: Matter, target: Target) -> Option<UnixSeconds> {
    let latch = view.observed.resource.plan.as_ref()?;
    let same = Matter::of(&latch.step, latch.reason.as_deref()) == Some(matter)
        && latch.ordinal == target.ordinal
        && latch.member == target.member;
    same.then_some(latch.since)
}

/// P7: whether it has lasted `seconds`.
fn aged(view: &View<'_>, matter: Matter, target: Target, seconds: i64) -> bool {
    lasting(view, matter, target).is_some_and(|since| view.observed.now.saturating_sub(since) >= seconds)
}

fn finish(view: &View<'_>, decision: Decision, first_wait: Option<Decision>) -> Plan {
    let since = since(view, &decision);
    let Decision { row, step, blocked, target } = decision;
    let blocked_by = blocked.or_else(|| first_wait.and_then(|wait| wait.blocked));
    let then = advice::forecast(view, &step);
    let mut human_may = match (&step, &blocked_by) {
        (Step::Wait, Some(blocked)) => {
            let lasted = view.observed.now.saturating_sub(since);
            advice::human_may(view, row, blocked.reason, target, lasted)
        }
        _ => Vec::new(),
    };
    human_may.extend(advice::about_alarms(view));
    Plan { step, row, then, blocked_by, human_may, target, since }
}

/// Keeps the clock of the same matter running, and starts one for a new one.
fn since(view: &View<'_>, decision: &Decision) -> UnixSeconds {
    let now = view.observed.now;
    let Some(latch) = &view.observed.resource.plan else { return now };
    let PlanLatch { step, reason, ordinal, member, since } = latch;
    let new_reason = decision.blocked.as_ref().map(|blocked| blocked.reason.as_str());
    let new_step = decision.step.name().as_str();
    let same_target = (*ordinal, *member) == (decision.target.ordinal, decision.target.member);
    let old_matter = Matter::of(step, reason.as_deref());
    let same_matter = old_matter.is_some() && old_matter == Matter::of(new_step, new_reason);
    // A restart of a leader that would not move (I4) belongs to the move.
    let restart_of_leader = decision.row == "I4" && old_matter == Some(Matter::MoveLeader);
    // An eviction that was refused is tried again, and so is a set that would not be taken.
    let was_refused =
        step == StepName::Wait.as_str() && reason.as_deref() == Some(WaitReason::DisruptionBudget.as_str());
    let set_refused = step == StepName::Wait.as_str() && reason.as_deref() == Some(WaitReason::InvalidSpec.as_str());
    let again = was_refused && matches!(decision.step, Step::RestartPod { mode: RestartMode::Evict, .. })
        || set_refused && matches!(decision.step, Step::RecreateSet { .. });
    let same_words = step == new_step && (new_step != StepName::Wait.as_str() || reason.as_deref() == new_reason);
    if same_target && (same_words || same_matter || restart_of_leader || again) { *since } else { now }
}
