//! Which passes may run now: two lanes, each of bounded width and first come, first served.
//!
//! A pass whose nodes or whose API calls do not answer holds its place for as long as its time-outs allow. Its cluster
//! goes on the slow lane with the next pass, so it takes no place from clusters that answer (M30), however many are
//! stuck. The first quick pass brings it back. Must not know what a pass does.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Passes at once on each lane; more of them wait their turn. Each costs about fifteen reads, and three calls per node.
pub const WIDTH: usize = 32;
/// A pass that took longer has waited for somebody who did not answer.
const QUICK: Duration = Duration::from_millis(500);

/// Namespace and name.
type Cluster = (String, String);

/// See the module.
#[derive(Debug)]
pub struct Lanes {
    quick: Semaphore,
    slow: Semaphore,
    /// Clusters whose last pass was slow.
    stuck: Mutex<HashSet<Cluster>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { quick: Semaphore::new(WIDTH), slow: Semaphore::new(WIDTH), stuck: Mutex::default() }
    }
}

impl Lanes {
    /// A place for one pass over this cluster, when it is its turn. `None` once the lanes are closed.
    pub async fn enter(&self, namespace: &str, name: &str) -> Option<Place<'_>> {
        let lane = if self.is_stuck(namespace, name) { &self.slow } else { &self.quick };
        let permit = lane.acquire().await.ok()?;
        let cluster = (namespace.to_owned(), name.to_owned());
        Some(Place { lanes: self, cluster, began: Instant::now(), _permit: permit })
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.stuck().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Whether its next pass is on the slow lane.
    pub fn is_stuck(&self, namespace: &str, name: &str) -> bool {
        self.stuck().contains(&(namespace.to_owned(), name.to_owned()))
    }

    /// No further pass begins; those that have begun go on.
    pub fn close(&self) {
        self.quick.close();
        self.slow.close();
    }

    fn stuck(&self) -> MutexGuard<'_, HashSet<Cluster>> {
        self.stuck.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The place of one pass, held until the pass has ended.
#[derive(Debug)]
pub struct Place<'a> {
    lanes: &'a Lanes,
    cluster: Cluster,
    began: Instant,
    _permit: SemaphorePermit<'a>,
}

impl Place<'_> {
    /// How long the pass has run so far; waiting for its turn does not count.
    pub fn held(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let cluster = std::mem::take(&mut self.cluster);
        if self.held() > QUICK {
            self.lanes.stuck().insert(cluster);
        } else {
            self.lanes.stuck().remove(&cluster);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// M30: however many stuck clusters wait for their turn, the others have all their places.
    #[test]
    fn m30_stuck_clusters_take_no_place_from_those_that_answer() {
        let lanes = Lanes::default();
        let enter = |name: String| lanes.enter("ns", &name).now_or_never().flatten();
        for k in 0..=WIDTH {
            lanes.stuck().insert(("ns".to_owned(), format!("stuck-{k}")));
        }
        let slow: Vec<Place<'_>> = (0..WIDTH).filter_map(|k| enter(format!("stuck-{k}"))).collect();
        assert_eq!(slow.len(), WIDTH);
        assert!(enter(format!("stuck-{WIDTH}")).is_none(), "the slow lane is full");
        let quick: Vec<Place<'_>> = (0..WIDTH).filter_map(|k| enter(format!("quick-{k}"))).collect();
        assert_eq!(quick.len(), WIDTH);
        assert!(enter(format!("quick-{WIDTH}")).is_none(), "the quick lane is full");
    }
}
