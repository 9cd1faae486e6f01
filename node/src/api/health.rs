//! grpc.health.v1: whether this member serves, said for the whole process (service name ""), to whoever checks or watches.

use std::sync::Arc;
use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::service::{Member, health};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Keeps the reporter true for as long as the process runs.
pub async fn follow(member: Arc<Member>, reporter: HealthReporter) {
    let mut said = None;
    loop {
        let status = if health::serves(&member) { ServingStatus::Serving } else { ServingStatus::NotServing };
        if said != Some(status) {
            reporter.set_service_status("", status).await;
            said = Some(status);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
