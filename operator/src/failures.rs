//! Which calls of earlier passes failed: all that this process remembers of a cluster, so that one call that fails for
//! ever does not keep the plan from everything after it.
//!
//! It says only when a call may be tried again, never what is true: whoever has forgotten it, as an operator that has just
//! started, tries once more. Pure but for the lock around it. One entry per ordinal and kind, for the pod or the volume
//! claim that it was about, and none for a cluster that is gone.
//!
//! Only the three kinds of calls are remembered that something else would wait for in vain: what is told to a member that
//! serves as before, the restart of a pod, and the labels of a volume claim, which then tell of nothing
//! ([`Observed::remember`]). Any other call that fails is one without which what comes after it would be wrong: it is tried
//! in every pass, and told once it has failed for long ([`Memory::lasting`]).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use crate::brief::brief;
use crate::names::{self, LABEL_DETACHED};
use crate::observed::{Failure, Failures, Observed, UnixSeconds};
use crate::step::{Step, VolumeLabel, WaitReason};

/// A call that has not been tried for so long begins anew. Seven members in turn, 30 s apart, are within it.
const FORGOTTEN_SECONDS: i64 = 300;
/// Most characters of an error that are kept.
const MESSAGE_MAX: usize = 200;
/// Failures so far apart are not one that lasts: passes in between ended before they came to it.
const APART_SECONDS: i64 = 60;
/// For so long what fails is told with the same words.
const WORDS_SECONDS: i64 = 60;
/// Of a member that answers that it has taken its settings over. It is read only where it then tells others.
const TAKEN: &str = "it answered that it has taken them over, and has others";

/// Namespace and name.
type Cluster = (String, String);
/// The words by topic, and since when they are said.
type Said = BTreeMap<Topic, (String, UnixSeconds)>;

/// The failures of all clusters, and what was said of them.
#[derive(Debug, Default)]
pub struct Memory {
    failures: Mutex<BTreeMap<Cluster, Failures>>,
    said: Mutex<BTreeMap<Cluster, Said>>,
}

/// What is said again only when it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The API server refuses what the spec leads to.
    Refused,
    /// A step that was not executed.
    NotExecuted,
    /// A pass that failed.
    PassFailed,
    /// A pass that met a conflict.
    Conflicts,
    /// An object was another one than the step was decided on, whenever it was tried.
    Changed,
    /// A warning of this wait was published.
    Warned(WaitReason),
    /// A warning of this step was published.
    WarnedStep,
    /// Which one of these fails, since when.
    Fails(Failing),
    /// With which words that is told.
    Words(Failing),
    /// When it failed last.
    Last(Failing),
}

/// What may fail for ever, and is told by nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failing {
    /// A step that everything after it waits for.
    Step,
    /// What the spec leads to.
    Apply,
}

impl Memory {
    /// Those of one cluster.
    pub fn of(&self, namespace: &str, name: &str) -> Failures {
        self.clusters().get(&(namespace.to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    /// Whether this is news: another text than was last said of the topic, or `seconds` ago.
    pub fn is_news(&self, cluster: (&str, &str), topic: Topic, text: &str, now: UnixSeconds, seconds: i64) -> bool {
        let (text, mut said) = (brief(text), self.said());
        let topics = said.entry((cluster.0.to_owned(), cluster.1.to_owned())).or_default();
        let old = topics.get(&topic).is_some_and(|(old, at)| *old == text && (0..seconds).contains(&(now - at)));
        if !old {
            topics.insert(topic, (text, now));
        }
        !old
    }

    /// For how long the same has been said of the topic.
    pub fn said_for(&self, cluster: (&str, &str), topic: Topic, now: UnixSeconds) -> i64 {
        let cluster = (cluster.0.to_owned(), cluster.1.to_owned());
        let said = self.said();
        let since = said.get(&cluster).and_then(|topics| topics.get(&topic)).map_or(now, |(_, at)| *at);
        now.saturating_sub(since)
    }

    /// Whether something was said of the topic, and that is not over.
    pub fn was_said(&self, cluster: (&str, &str), topic: Topic) -> bool {
        let cluster = (cluster.0.to_owned(), cluster.1.to_owned());
        self.said().get(&cluster).is_some_and(|topics| topics.contains_key(&topic))
    }

    /// The words to tell of what has failed once more, when `which` of it has failed for `seconds`.
    ///
    /// They stay for a while. Some have a port or a time in them that is another one with every failure, and a status that
    /// changes brings the next pass at once, whenever that was to come.
    pub fn lasting(
        &self,
        cluster: (&str, &str),
        failing: Failing,
        which: &str,
        words: &str,
        now: UnixSeconds,
        seconds: i64,
    ) -> Option<String> {
        if self.said_for(cluster, Topic::Last(failing), now) > APART_SECONDS {
            self.works(cluster, failing);
        }
        self.said_now(cluster, Topic::Last(failing), now);
        if self.is_news(cluster, Topic::Fails(failing), which, now, i64::MAX) {
            self.is_over(cluster, Topic::Words(failing));
        }
        if self.said_for(cluster, Topic::Fails(failing), now) < seconds {
            return None;
        }
        let (words, mut said) = (brief(words), self.said());
        let topics = said.entry((cluster.0.to_owned(), cluster.1.to_owned())).or_default();
        let told = topics.entry(Topic::Words(failing)).or_insert_with(|| (words.clone(), now));
        if !(0..WORDS_SECONDS).contains(&now.saturating_sub(told.1)) {
            *told = (words, now);
        }
        Some(told.0.clone())
    }

    /// Something is said of the topic now, whatever it is.
    fn said_now(&self, cluster: (&str, &str), topic: Topic, now: UnixSeconds) {
        let mut said = self.said();
        let topics = said.entry((cluster.0.to_owned(), cluster.1.to_owned())).or_default();
        topics.insert(topic, (String::new(), now));
    }

    /// It does not fail, or is not tried any more.
    pub fn works(&self, cluster: (&str, &str), failing: Failing) {
        self.is_over(cluster, Topic::Fails(failing));
        self.is_over(cluster, Topic::Words(failing));
        self.is_over(cluster, Topic::Last(failing));
    }

    /// It is over: the same text is news again.
    pub fn is_over(&self, cluster: (&str, &str), topic: Topic) {
        let mut said = self.said();
        if let Some(topics) = said.get_mut(&(cluster.0.to_owned(), cluster.1.to_owned())) {
            topics.remove(&topic);
        }
    }

    /// As [`Memory::is_over`], if this is what was said.
    pub fn is_over_of(&self, cluster: (&str, &str), topic: Topic, text: &str) {
        let mut said = self.said();
        if let Some(topics) = said.get_mut(&(cluster.0.to_owned(), cluster.1.to_owned()))
            && topics.get(&topic).is_some_and(|(old, _)| old == text)
        {
            topics.remove(&topic);
        }
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
        let cluster = (namespace.to_owned(), name.to_owned());
        self.clusters().remove(&cluster);
        self.said().remove(&cluster);
    }

    fn said(&self) -> MutexGuard<'_, BTreeMap<Cluster, Said>> {
        self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn clusters(&self) -> MutexGuard<'_, BTreeMap<Cluster, Failures>> {
        self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What became of a step, for the kinds of steps that others must not wait for.
pub fn note(failures: &mut Failures, observed: &Observed, step: &Step, failed: Option<&str>, now: UnixSeconds) {
    // An entry for another pod or volume than the present one is about nobody any more.
    let pod = |k: &u32| observed.pods.get(k).map(|pod| &pod.uid);
    let volume = |k: &u32| observed.volumes.get(k).map(|volume| &volume.uid);
    failures.settings.retain(|k, failure| pod(k) == Some(&failure.uid));
    failures.restarts.retain(|k, failure| pod(k) == Some(&failure.uid));
    failures.labels.retain(|k, failure| volume(k) == Some(&failure.uid));
    let (entries, k, told, failed) = match step {
        Step::SetConfig { pod, settings, .. } => {
            (&mut failures.settings, pod.ordinal, settings.clone(), failed.or(Some(TAKEN)))
        }
        Step::RestartPod { pod, .. } => (&mut failures.restarts, pod.ordinal, BTreeMap::new(), failed),
        // The leader hands over because its pod is to be restarted.
        Step::MoveLeader { ordinal, .. } => (&mut failures.restarts, *ordinal, BTreeMap::new(), failed),
        Step::LabelVolume { volume, label } => (&mut failures.labels, volume.ordinal, labels(*label), failed),
        _ => return,
    };
    let before = entries.remove(&k);
    let uid = if matches!(step, Step::LabelVolume { .. }) { volume(&k) } else { pod(&k) };
    let (Some(message), Some(uid)) = (failed, uid) else { return };
    let of_the_series = |is: &Failure| is.told == told && now.saturating_sub(is.last) <= FORGOTTEN_SECONDS;
    let since = before.filter(of_the_series).map_or(now, |failure| failure.since);
    let message = message.chars().take(MESSAGE_MAX).collect();
    entries.insert(k, Failure { uid: uid.clone(), told, since, last: now, message });
}

/// What a volume claim was to be labelled with.
pub fn labels(label: VolumeLabel) -> BTreeMap<String, String> {
    match label {
        VolumeLabel::Member(marker) => names::marker_labels(marker),
        VolumeLabel::Detached => [(LABEL_DETACHED.to_owned(), "true".to_owned())].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brief::TEXT_BYTES;
    use crate::fixtures::observed_three;
    use crate::observed::Marker;
    use crate::step::{PodRef, RestartMode, VolumeRef};

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
    fn the_same_words_are_news_when_they_are_old_or_were_over() {
        let memory = Memory::default();
        let is_news = |text, now| memory.is_news(("ns", "db"), Topic::Refused, text, now, 600);
        assert!(is_news("no", 0) && !is_news("no", 599) && is_news("no", 600));
        assert!(is_news("never", 601) && !is_news("never", 602), "another text");
        assert!(is_news("never", 500), "the clock was set back");
        assert!(memory.is_news(("ns", "other"), Topic::Refused, "never", 500, 600), "another cluster");
        memory.is_over(("ns", "db"), Topic::Refused);
        assert!(!memory.was_said(("ns", "db"), Topic::Refused) && is_news("never", 501));
        assert!(memory.was_said(("ns", "db"), Topic::Refused) && !memory.was_said(("ns", "db"), Topic::PassFailed));
        assert_eq!(memory.said_for(("ns", "db"), Topic::Refused, 511), 10);
        assert_eq!(memory.said_for(("ns", "db"), Topic::PassFailed, 511), 0);
        memory.forget("ns", "db");
        memory.forget("ns", "other");
        assert!(memory.said().is_empty());
    }

    #[test]
    fn what_fails_for_long_is_told_with_words_that_stay_for_a_while() {
        let (memory, cluster) = (Memory::default(), ("ns", "db"));
        let fails = |which: &str, words: &str, now| memory.lasting(cluster, Failing::Step, which, words, now, 10);
        assert_eq!([fails("a", "port 1", 0), fails("a", "port 2", 9)], [None, None]);
        assert_eq!(fails("a", "port 3", 10).as_deref(), Some("port 3"));
        assert_eq!(fails("a", "port 4", 9 + WORDS_SECONDS).as_deref(), Some("port 3"), "no change with every failure");
        assert_eq!(fails("a", "port 5", 10 + WORDS_SECONDS).as_deref(), Some("port 5"), "what it says now");
        assert_eq!(memory.lasting(cluster, Failing::Apply, "", "no", 100, 10), None, "something else");
        assert_eq!([fails("b", "no", 100), fails("b", "no", 109)], [None, None], "another step");
        assert_eq!(fails("b", "no", 110).as_deref(), Some("no"), "in its own words");
        memory.works(cluster, Failing::Step);
        assert_eq!(fails("b", "never", 111), None, "it has worked meanwhile");
        assert_eq!([fails("c", "no", 112), fails("c", "no", 113 + APART_SECONDS)], [None, None], "nothing in between");
        memory.works(cluster, Failing::Step);
        assert_eq!(fails("b", "no", 111), None);
        assert_eq!(fails("b", &"ü".repeat(2_000), 121).map(|words| words.len() <= TEXT_BYTES), Some(true));
        memory.forget("ns", "db");
        assert!(memory.said().is_empty());
    }

    #[test]
    fn labels_that_were_refused_are_of_one_volume_and_make_it_unclear() {
        let (memory, mut observed) = (Memory::default(), observed_three());
        let reference = |observed: &Observed| VolumeRef {
            ordinal: 1,
            uid: observed.volumes[&1].uid.clone(),
            resource_version: String::new(),
        };
        let marker = observed.volumes[&1].marker.expect("labels");
        let label = |observed: &Observed, label| Step::LabelVolume { volume: reference(observed), label };
        let read = |observed: &Observed| {
            let mut observed = observed.clone();
            observed.remember(memory.of("ns", "db"));
            (observed.volumes[&1].marker, observed.volumes[&1].unclear)
        };
        memory.note(("ns", "db"), &observed, &label(&observed, VolumeLabel::Detached), Some("no"), 1);
        assert_eq!(read(&observed), (Some(marker), false), "its labels tell all the same");
        memory.note(("ns", "db"), &observed, &label(&observed, VolumeLabel::Member(marker)), Some("no"), 2);
        assert_eq!(read(&observed), (Some(marker), false), "somebody has written them");
        for untrue in [None, Some(Marker { raft_id: 9, ..marker })] {
            observed.volumes.get_mut(&1).expect("volume 1").marker = untrue;
            assert_eq!(read(&observed), (None, true), "{untrue:?}");
        }
        observed.volumes.get_mut(&1).expect("volume 1").uid = "another".into();
        assert_eq!(read(&observed), (Some(Marker { raft_id: 9, ..marker }), false));
        memory.note(("ns", "db"), &observed, &Step::Settled, None, 3);
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
