//! Which calls of earlier passes failed: all that this process remembers of a cluster, so that one call that fails for
//! ever does not keep the plan from everything after it.
//!
//! It says only when a call may be tried again, never what is true: whoever has forgotten it, as an operator that has just
//! started, tries once more. Pure but for the lock around it. One entry per ordinal and kind, for the pod that was asked,
//! and none for a cluster that is gone.
//!
//! Only the two kinds of calls are remembered that something else would wait for in vain: what is told to a member that
//! serves as before, and the restart of a pod for which nobody but M18 asks that it comes before scaling. Any other call
//! that fails is one without which what comes after it would be wrong.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use crate::observed::{Failure, Failures, Observed, UnixSeconds};
use crate::step::Step;

/// A call that has not been tried for so long begins anew.
const FORGOTTEN_SECONDS: i64 = 120;
/// Most characters of an error that are kept.
const MESSAGE_MAX: usize = 200;
/// Of a member that answers that it has taken its settings over. It is read only where it then tells others.
const TAKEN: &str = "it answered that it has taken them over, and has others";

/// Namespace and name.
type Cluster = (String, String);

/// The failures of all clusters.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<Cluster, Failures>>);

impl Memory {
    /// Those of one cluster.
    pub fn of(&self, namespace: &str, name: &str) -> Failures {
        self.clusters().get(&(namespace.to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    /// What became of a step. `failed` is the error, if there was one.
    pub fn note(
        &self,
        cluster: (&str, &str),
        observed: &Observed,
        step: &Step,
        failed: Option<&str>,
        now: UnixSeconds,
    ) {
        let mut clusters = self.clusters();
        let cluster = (cluster.0.to_owned(), cluster.1.to_owned());
        let mut failures = clusters.remove(&cluster).unwrap_or_default();
        note(&mut failures, observed, step, failed, now);
        if failures != Failures::default() {
            clusters.insert(cluster, failures);
        }
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.clusters().remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn clusters(&self) -> MutexGuard<'_, BTreeMap<Cluster, Failures>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What became of a step, for the kinds of steps that others must not wait for.
pub fn note(failures: &mut Failures, observed: &Observed, step: &Step, failed: Option<&str>, now: UnixSeconds) {
    // An entry for another pod than the present one is about nobody any more.
    for entries in [&mut failures.settings, &mut failures.restarts] {
        entries.retain(|k, failure| observed.pods.get(k).is_some_and(|pod| pod.uid == failure.pod));
    }
    let nothing = BTreeMap::new();
    let (entries, k, told, failed) = match step {
        Step::SetConfig { pod, settings, .. } => {
            (&mut failures.settings, pod.ordinal, settings, failed.or(Some(TAKEN)))
        }
        Step::RestartPod { pod, .. } => (&mut failures.restarts, pod.ordinal, &nothing, failed),
        // The leader hands over because its pod is to be restarted.
        Step::MoveLeader { ordinal, .. } => (&mut failures.restarts, *ordinal, &nothing, failed),
        _ => return,
    };
    let before = entries.remove(&k);
    let (Some(message), Some(pod)) = (failed, observed.pods.get(&k)) else { return };
    let of_the_series = |is: &Failure| is.told == *told && now.saturating_sub(is.last) <= FORGOTTEN_SECONDS;
    let since = before.filter(of_the_series).map_or(now, |failure| failure.since);
    let message = message.chars().take(MESSAGE_MAX).collect();
    entries.insert(k, Failure { pod: pod.uid.clone(), told: told.clone(), since, last: now, message });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::observed_three;
    use crate::step::{PodRef, RestartMode};

    fn pod(observed: &Observed, k: u32) -> PodRef {
        PodRef { ordinal: k, uid: observed.pods[&k].uid.clone(), resource_version: String::new() }
    }

    fn tell(observed: &Observed, k: u32, ops: &str) -> Step {
        let settings = [("max-txn-ops".to_owned(), ops.to_owned())].into();
        Step::SetConfig {
            pod: pod(observed, k),
            marker: crate::observed::Marker { cluster_id: 7, raft_id: 1, incarnation: 1 },
            version: 2,
            settings,
        }
    }

    /// Ordinal, since, last.
    fn times(entries: &BTreeMap<u32, Failure>) -> Vec<(u32, i64, i64)> {
        entries.iter().map(|(k, failure)| (*k, failure.since, failure.last)).collect()
    }

    #[test]
    fn a_series_of_failures_is_of_one_pod_and_one_request() {
        let (memory, mut observed) = (Memory::default(), observed_three());
        let note = |observed: &Observed, step: &Step, failed: Option<&str>, now| {
            memory.note(("ns", "db"), observed, step, failed, now);
            times(&memory.of("ns", "db").settings)
        };
        let nine = tell(&observed, 1, "9");
        assert_eq!(note(&observed, &nine, Some("no"), 10), [(1, 10, 10)]);
        assert_eq!(note(&observed, &nine, Some(&"ü".repeat(500)), 20), [(1, 10, 20)]);
        assert_eq!(memory.of("ns", "db").settings[&1].message.chars().count(), MESSAGE_MAX);
        assert_eq!(note(&observed, &Step::Settled, None, 30), [(1, 10, 20)], "another step says nothing");
        assert_eq!(note(&observed, &tell(&observed, 0, "9"), Some("no"), 30), [(0, 30, 30), (1, 10, 20)]);
        assert_eq!(note(&observed, &tell(&observed, 0, "8"), Some("no"), 31), [(0, 31, 31), (1, 10, 20)]);
        let later = 20 + FORGOTTEN_SECONDS;
        assert_eq!(note(&observed, &nine, Some("no"), later), [(0, 31, 31), (1, 10, later)]);
        let late = later + FORGOTTEN_SECONDS + 1;
        assert_eq!(note(&observed, &nine, Some("no"), late), [(0, 31, 31), (1, late, late)], "a new series");
        assert_eq!(note(&observed, &nine, None, late + 1), [(0, 31, 31), (1, late, late + 1)], "it may have others");
        assert_eq!(memory.of("ns", "db").settings[&1].message, TAKEN);
        observed.pods.get_mut(&1).expect("pod 1").uid = "another".into();
        assert_eq!(note(&observed, &Step::Settled, None, late + 2), [(0, 31, 31)]);
        observed.pods.clear();
        assert_eq!(note(&observed, &Step::Settled, None, late + 3), []);
        assert!(memory.clusters().is_empty());
    }

    #[test]
    fn a_restart_that_succeeds_is_forgotten_and_so_is_a_cluster_that_is_gone() {
        let (memory, observed) = (Memory::default(), observed_three());
        let evict = Step::RestartPod { pod: pod(&observed, 2), mode: RestartMode::Evict, writes_pause: false };
        let hand_over = Step::MoveLeader { from: 1, to: 2, ordinal: 0 };
        for (step, now) in [(&evict, 10), (&hand_over, 11), (&evict, 12)] {
            memory.note(("ns", "db"), &observed, step, Some("no"), now);
        }
        assert_eq!(times(&memory.of("ns", "db").restarts), [(0, 11, 11), (2, 10, 12)]);
        assert_eq!(memory.of("ns", "other"), Failures::default());
        memory.note(("ns", "db"), &observed, &evict, None, 13);
        assert_eq!(times(&memory.of("ns", "db").restarts), [(0, 11, 11)]);
        memory.forget("ns", "db");
        assert!(memory.clusters().is_empty());
    }
}
