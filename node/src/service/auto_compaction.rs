//! Compacts history on a schedule, on the leader. The schedule is the model's; this brings it the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;

use super::member::Member;
use crate::domain::auto_compaction::{Retention, Schedule};
use crate::domain::command::Command;
use crate::domain::refusal::Refusal;
use crate::engine::Failure;

/// How often the configuration is looked at: a retention that changes begins to count at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs until the process ends. `retention` tells the present configuration.
pub async fn run(member: Arc<Member>, retention: impl Fn() -> Retention + Send) {
    let started = Instant::now();
    let mut schedule = Schedule::new(retention(), Duration::ZERO);
    loop {
        if let Ok(handle) = member.handle() {
            schedule.sample(handle.status().revision);
        }
        if !wait(&schedule, &retention).await {
            schedule = Schedule::new(retention(), started.elapsed());
            continue;
        }
        let Ok(handle) = member.handle() else { continue };
        let status = handle.status();
        let Some(revision) = schedule.due(started.elapsed(), status.is_leader(), status.revision) else { continue };
        tracing::info!(revision, retention = ?schedule.retention(), "starting auto compaction");
        let request = pb::CompactionRequest { revision, physical: false };
        match handle.propose_internal(Command::Compact(request)).await {
            Ok(_) | Err(Failure::Refused(Refusal::Compacted)) => schedule.done(started.elapsed(), revision),
            Err(error) => tracing::warn!(revision, %error, "auto compaction failed and is tried again"),
        }
    }
}

/// Waits for the schedule's next step; false when the configuration has changed meanwhile.
async fn wait(schedule: &Schedule, retention: &(impl Fn() -> Retention + Send)) -> bool {
    let mut left = schedule.interval().unwrap_or(Duration::MAX);
    while !left.is_zero() {
        let step = left.min(LOOK_EVERY);
        tokio::time::sleep(step).await;
        if retention() != schedule.retention() {
            return false;
        }
        left -= step;
    }
    true
}
