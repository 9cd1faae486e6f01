//! Rows S: the settings that change while members run reach every member that runs, before anything is scaled (M18). One
//! that does not run reads them when it starts, because the ConfigMap has them.

use std::collections::BTreeMap;

use super::{Decision, NEXT, Notes, Row, View};
use crate::observed::{ObservedPod, Settings};
use crate::step::{Step, WaitReason};
use crate::valid::ValidCluster;

/// S1: a running member has other settings than are wanted. P2.
///
/// S2: it has refused exactly these. They are not pushed again, and what comes after may go on: a member with its former
/// settings serves as before. Other settings, or a new process, are another matter.
pub(super) fn rows(view: &View<'_>, notes: &mut Notes) -> Row {
    for (k, id, is) in members(view) {
        let wanted = wanted_settings(view.cluster, is);
        if is.are(&wanted) {
            continue;
        }
        if let Some(why) = is.refusal_of(&wanted) {
            let message = format!("member {id:x} on pod {k} refuses the settings and keeps its own: {why}");
            notes.wait(Decision::wait("S2", WaitReason::ConfigRefused, message).on(k, Some(id)));
        } else if let Some(pod) = view.pod_ref(k) {
            let step = Step::SetConfig { pod, raft_id: id, version: version(view, is), settings: wanted };
            return Decision::act("S1", step).now();
        }
    }
    NEXT
}

/// What a member shall have: all that it can change, and whatever else the user asks for. A member of an older release is
/// not told defaults of settings that it does not know.
pub fn wanted_settings(cluster: &ValidCluster, is: &Settings) -> BTreeMap<String, String> {
    let applies = |name: &String| is.values.contains_key(name) || cluster.node_config.contains_key(name);
    cluster.hot.iter().filter(|(name, _)| applies(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The members that run and have told their settings: ordinal, id, settings.
fn members<'a>(view: &'a View<'_>) -> impl Iterator<Item = (u32, u64, &'a Settings)> {
    let running = view.observed.pods.iter().filter(|(_, pod)| ObservedPod::is_running(pod));
    running.filter_map(|(k, _)| {
        let node = view.node(*k)?;
        Some((*k, node.marker?.raft_id, node.settings.as_ref()?))
    })
}

/// Above its own, and the highest that any member has, so that members with the same settings come to the same version.
fn version(view: &View<'_>, own: &Settings) -> u64 {
    let highest = members(view).map(|(_, _, settings)| settings.version).max().unwrap_or_default();
    highest.max(own.version.saturating_add(1))
}
