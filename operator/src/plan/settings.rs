//! Rows S: the settings that change while members run reach every member that runs, before anything is scaled (M18). One
//! that does not run reads them when it starts, because the ConfigMap has them.

use std::collections::BTreeMap;

use super::again::{Failed, try_again};
use super::{Decision, Notes, Row, View};
use crate::observed::{Marker, ObservedPod, Settings};
use crate::step::{Step, WaitReason};
use crate::valid::ValidCluster;

/// No version above it is given to other members than its own.
const VERSION_SHARED_MAX: u64 = u64::MAX / 2;

/// S1: a running member has other settings than are wanted. P2.
///
/// S2: it has refused exactly these. They are not pushed again, and what comes after may go on: a member with its former
/// settings serves as before. Other settings, or a new process, are another matter.
///
/// A member that could not be told is told again after a pause, and neither the others nor any other row waits for it: it
/// may be of a release that refuses and does not say so, which only the roll after this ends.
pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    let mut failed = Vec::new();
    for (k, marker, is) in members(view) {
        let id = marker.raft_id;
        let wanted = wanted_settings(view.cluster, is);
        if is.are(&wanted) {
            continue;
        }
        if let Some(why) = is.refusal_of(&wanted) {
            let message = format!("member {id:x} on pod {k} refuses the settings and keeps its own: {why}");
            notes.wait_last(Decision::wait("S2", WaitReason::ConfigRefused, message).on(k, Some(id)));
            continue;
        }
        let (Some(version), Some(pod)) = (version(view, is), view.pod_ref(k)) else {
            notes.wait_last(not_told(k, id, "its settings have the highest version that there is"));
            continue;
        };
        let failure = view.failure_of_settings(k, &wanted);
        let step = Step::SetConfig { pod, marker, version, settings: wanted };
        let decision = Decision::act("S1", step);
        match failure {
            None => return decision.now(),
            Some(failure) => {
                notes.wait_last(not_told(k, id, &failure.message));
                failed.push(Failed { failure, decision });
            }
        }
    }
    try_again(view, failed)
}

fn not_told(k: u32, id: u64, why: &str) -> Decision {
    let message = format!("member {id:x} on pod {k} could not be told the settings: {why}");
    Decision::wait("S1", WaitReason::ConfigNotTaken, message).on(k, Some(id))
}

/// What a member shall have: all that it can change, and whatever else the user asks for. A member of an older release is
/// not told defaults of settings that it does not know.
pub fn wanted_settings(cluster: &ValidCluster, is: &Settings) -> BTreeMap<String, String> {
    let applies = |name: &String| is.values.contains_key(name) || cluster.node_config.contains_key(name);
    cluster.hot.iter().filter(|(name, _)| applies(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The members that run and have told their settings: ordinal, marker, settings.
fn members<'a>(view: &'a View<'_>) -> impl Iterator<Item = (u32, Marker, &'a Settings)> {
    let running = view.observed.pods.iter().filter(|(_, pod)| ObservedPod::is_running(pod));
    running.filter_map(|(k, _)| {
        let node = view.node(*k)?;
        Some((*k, node.marker?, node.settings.as_ref()?))
    })
}

/// Above its own, and the highest that any member has, so that members with the same settings come to the same version.
/// One that somebody gave by hand and that is near the end of all versions is no example to the others.
fn version(view: &View<'_>, own: &Settings) -> Option<u64> {
    let next = own.version.checked_add(1)?;
    let versions = members(view).map(|(_, _, settings)| settings.version);
    let highest = versions.filter(|version| *version <= VERSION_SHARED_MAX).max().unwrap_or_default();
    Some(highest.max(next))
}
