//! The way out, in steps that each have a bound: unready → leadership handed over → still serving while endpoints lag →
//! streams ended → in flight finished → flushed. The process calls [`drain`] on SIGTERM; the operator may run the first
//! half earlier through PrepareStop.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::failure::Error;
use super::maintenance::blocking;
use super::member::Member;
use super::reconfigure::successor;
use crate::engine::{Failure, Handle};
use crate::storage::KeySpace;

/// Longest wait for a successor to take over. Raft itself gives a transfer one election timeout.
const HANDOVER_BOUND: Duration = Duration::from_secs(5);

/// Longest wait for proposals in flight: the engine's own bound on a request.
const IN_FLIGHT_BOUND: Duration = Duration::from_secs(7);

/// How often the number in flight is looked at.
const IN_FLIGHT_POLL: Duration = Duration::from_millis(10);

/// Unready, leadership handed over, what is in flight finished, flushed. The node goes on serving. Again: no effect but
/// another flush.
///
/// # Errors
/// `Storage` when the flush fails. A hand-over that does not succeed is no error: the others elect a leader by
/// themselves once this one is gone.
pub async fn prepare(member: &Member) -> Result<(), Error> {
    member.start_draining();
    let Ok(handle) = member.handle() else { return Ok(()) };
    hand_over(&handle).await;
    finish_in_flight(&handle).await;
    let store = handle.store();
    blocking(move || store.flush().map_err(|error| Failure::from(error).into())).await
}

/// [`prepare`], then goes on serving for `delay`, because endpoints and DNS still name this node, then tells long-lived
/// streams to end. The caller closes the listeners next, and stops the engine last.
pub async fn drain(member: &Member, delay: Duration) {
    let until = Instant::now() + delay;
    if let Err(error) = prepare(member).await {
        tracing::warn!(%error, "preparing to stop failed; stopping all the same");
    }
    sleep(until.saturating_duration_since(Instant::now())).await;
    member.stopping().cancel();
}

/// [`drain`], unless `cut` ends first: that cuts the delay short, never the order of the steps.
pub async fn drain_until<T>(member: &Member, delay: Duration, cut: impl Future<Output = T>) {
    tokio::select! {
        () = drain(member, delay) => {}
        _ = cut => member.stopping().cancel(),
    }
}

async fn hand_over(handle: &Handle) {
    let status = handle.status();
    if !status.is_leader() {
        return;
    }
    let Some(target) = successor(&status.membership, &status.progress, status.raft_id) else { return };
    let target_hex = format!("{target:x}");
    match timeout(HANDOVER_BOUND, handle.move_leader(target)).await {
        Ok(Ok(())) => tracing::info!(target_hex, "handed leadership over"),
        Ok(Err(error)) => tracing::warn!(target_hex, %error, "could not hand leadership over"),
        Err(_) => tracing::warn!(target_hex, "the successor did not take over in time"),
    }
}

async fn finish_in_flight(handle: &Handle) {
    let finished = async {
        while handle.status().pending > 0 {
            sleep(IN_FLIGHT_POLL).await;
        }
    };
    // New requests keep coming while the node serves, so the number may never be seen at 0: the bound ends the wait.
    let _ = timeout(IN_FLIGHT_BOUND, finished).await;
}
