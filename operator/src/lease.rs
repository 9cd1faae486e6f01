//! Leader election among operators, over a Lease named `balsa-operator`.
//!
//! Two operators at once would be safe, since every change is fenced by UIDs, resource versions and the membership
//! index; the lease spares them from refusing each other's writes.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
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

/// How often one that stands by looks whether the lease was given back. Its keeper looks only when the lease runs out.
const LOOK: Duration = Duration::from_secs(1);

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
    candidate: Candidate,
    keeper: Keeper,
}

/// Who stands.
#[derive(Clone)]
struct Candidate {
    client: Client,
    namespace: String,
    identity: String,
}

/// The task that takes the lease when it can and keeps it.
#[derive(Debug)]
struct Keeper {
    held: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.identity, self.namespace)
    }
}

impl Candidate {
    async fn keep(&self) -> Result<Keeper, LeaseError> {
        let manager = LeaseManagerBuilder::new(self.client.clone(), LEASE)
            .with_namespace(&self.namespace)
            .with_identity(&self.identity)
            .with_duration(DURATION)
            .with_grace(GRACE)
            .with_field_manager(&self.identity)
            .build()
            .await?;
        let (held, task) = manager.watch().await;
        Ok(Keeper { held, task })
    }

    /// Returns once the lease is seen to be nobody's.
    async fn vacancy(&self) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        loop {
            tokio::time::sleep(LOOK).await;
            // A look that fails is no vacancy; the keeper finds out by itself in the end.
            let holder = leases.get(LEASE).await.map(|lease| lease.spec.and_then(|spec| spec.holder_identity));
            if matches!(holder, Ok(None)) {
                return;
            }
        }
    }
}

impl Seat {
    /// Stands for election as `identity` (the pod's name) in `namespace`.
    ///
    /// # Errors
    /// [`LeaseError::Manager`] when the Lease cannot be created or read.
    pub async fn stand(client: Client, namespace: &str, identity: &str) -> Result<Self, LeaseError> {
        let candidate = Candidate { client, namespace: namespace.to_owned(), identity: identity.to_owned() };
        let keeper = candidate.keep().await?;
        Ok(Self { candidate, keeper })
    }

    /// Returns once the lease is held.
    ///
    /// # Errors
    /// [`LeaseError::Ended`] when nobody keeps the lease any more.
    pub async fn won(&mut self) -> Result<(), LeaseError> {
        loop {
            tokio::select! {
                won = self.keeper.held.wait_for(|held| *held) => return won.map(|_| ()).map_err(|_| LeaseError::Ended),
                () = self.candidate.vacancy() => {}
            }
            // A new keeper looks at once. The old one ends first, or it would give back what the new one takes.
            self.keeper.task.abort();
            let _ = (&mut self.keeper.task).await;
            self.keeper = self.candidate.keep().await?;
        }
    }

    /// Returns once the lease is lost, for whatever reason.
    pub async fn lost(&mut self) {
        // An error means that the keeper ended, which is a loss as well.
        let _ = self.keeper.held.wait_for(|held| !*held).await;
    }

    /// Gives the lease back, so that another operator takes over at once.
    ///
    /// # Errors
    /// When the release cannot be written; the lease then runs out by itself.
    pub async fn release(self) -> Result<(), LeaseError> {
        drop(self.keeper.held);
        self.keeper.task.await.map_err(|_| LeaseError::Ended)??;
        Ok(())
    }
}
