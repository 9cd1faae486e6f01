//! Trying again what failed and nothing else waits for: the rows of the memory in `failures.rs`.

use super::{Decision, NEXT, RETRY_SECONDS, Row, View};
use crate::observed::{Failure, UnixSeconds};

/// What failed before, and how it is tried again.
pub(super) struct Failed<'a> {
    pub(super) failure: &'a Failure,
    pub(super) decision: Decision,
}

/// One of them at a time, the one that has waited longest, and never without a pause since the last: each call may last
/// until its deadline, and many together would leave the rows after this no pass. The pauses of each double.
pub(super) fn try_again(view: &View<'_>, failed: Vec<Failed<'_>>) -> Row {
    let newest = failed.iter().map(|failed| failed.failure.last).max().unwrap_or_default();
    let oldest = failed.into_iter().min_by_key(|failed| (failed.failure.last, failed.decision.target.ordinal));
    let Some(Failed { failure, decision }) = oldest else { return NEXT };
    if is_over(view, newest, pause(failure)) { decision.now() } else { NEXT }
}

/// Whether it is time to try this one again.
pub(super) fn is_due(view: &View<'_>, failure: &Failure) -> bool {
    is_over(view, failure.last, pause(failure))
}

/// A clock that was set back ends every pause.
fn is_over(view: &View<'_>, begun: UnixSeconds, seconds: i64) -> bool {
    !(0..seconds).contains(&view.observed.now.saturating_sub(begun))
}

fn pause(failure: &Failure) -> i64 {
    failure.last.saturating_sub(failure.since).clamp(1, RETRY_SECONDS)
}
