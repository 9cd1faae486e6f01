//! Leader election among operators, over a Lease named `balsa-operator`.
//!
//! Two operators at once would be safe, since every change is fenced by UIDs, resource versions and the membership
//! index; the lease spares them from refusing each other's writes.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Name of the Lease.
pub const LEASE: &str = "balsa-operator";
/// Seconds after which another operator may take over from one that vanished.
const DURATION: u64 = 15;
/// Seconds before the end at which the holder renews.
const GRACE: u64 = 5;

/// The longest time for which the holder may be asleep and cannot have lost the lease.
pub const SLEEP_MAX: Duration = Duration::from_secs(GRACE);

/// Why leadership ended.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// The Lease cannot be read or written.
    #[error("lease {LEASE}: {0}; the operator needs get, create and patch on leases in its own namespace")]
    Manager(#[from] LeaseManagerError),
    /// The task that keeps the lease ended by itself.
    #[error("the task that keeps lease {LEASE} ended")]
    Ended,
}

/// A seat in the election; held or waited for.
#[derive(Debug)]
pub struct Seat {
    held: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Seat {
    /// Stands for election as `identity` (the pod's name) in `namespace`.
    ///
    /// # Errors
    /// [`LeaseError::Manager`] when the Lease cannot be created or read.
    pub async fn stand(client: Client, namespace: &str, identity: &str) -> Result<Self, LeaseError> {
        let manager = LeaseManagerBuilder::new(client, LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_duration(DURATION)
            .with_grace(GRACE)
            .with_field_manager(identity)
            .build()
            .await?;
        let (held, task) = manager.watch().await;
        Ok(Self { held, task })
    }

    /// Returns once the lease is held.
    ///
    /// # Errors
    /// [`LeaseError::Ended`] when nobody keeps the lease any more.
    pub async fn won(&mut self) -> Result<(), LeaseError> {
        self.held.wait_for(|held| *held).await.map(|_| ()).map_err(|_| LeaseError::Ended)
    }

    /// Returns once the lease is lost, for whatever reason.
    pub async fn lost(&mut self) {
        // An error means that the keeper ended, which is a loss as well.
        let _ = self.held.wait_for(|held| !*held).await;
    }

    /// Gives the lease back, so that another operator takes over at once.
    ///
    /// # Errors
    /// When the release cannot be written; the lease then runs out by itself.
    pub async fn release(self) -> Result<(), LeaseError> {
        drop(self.held);
        self.task.await.map_err(|_| LeaseError::Ended)??;
        Ok(())
    }
}
