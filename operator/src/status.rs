//! What is answered: (resource, observed, plan) → status, then one patch, skipped when nothing changed.
//!
//! Nothing that changes with every write of a client or with every pass may stand in it. Each text and each list is bounded
//! here, whoever supplied it. Everything but the patch is pure.

mod conditions;
mod patch;

use std::collections::BTreeSet;

use balsa_crds::{
    BlockedBy, MemberRole, MemberStatus, Phase, PlanStatus, PlanTarget, RaftCluster, RaftClusterStatus, RetentionPolicy,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use thiserror::Error;

pub(crate) use self::conditions::was_available;

use crate::apply::{FIELD_MANAGER, is_busy, is_conflict};
use crate::brief::brief;
use crate::names;
use crate::observed::{Alarm, ContainerState, ExitKind, Member, MemberList, Observed, UnixSeconds};
use crate::plan::wanted_settings;
use crate::step::{Plan, Step, StepName, WaitReason};
use crate::valid::ValidCluster;

/// Most members that are told. A cluster of ours has a handful; a node that lies may list any number.
const MEMBERS_MAX: usize = 32;
/// Most ways out that are told. Each alarm has one, of which a node that lies may list any number too.
const WAYS_MAX: usize = 16;

/// Why the status could not be written.
#[derive(Debug, Error)]
pub enum StatusError {
    /// The API server refused or did not answer.
    #[error("writing the status failed: {0}")]
    Write(#[from] Box<kube::Error>),
    /// The status has no JSON form.
    #[error("the status has no JSON form: {0}")]
    Encode(#[from] serde_json::Error),
}

impl StatusError {
    /// The word for it in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Write(error) if is_busy(error) => "TooManyRequests",
            Self::Write(_) | Self::Encode(_) => "StatusFailed",
        }
    }

    /// The resource has changed since it was read: observe again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Write(error) if is_conflict(error))
    }
}

/// What the status is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The resource as read.
    pub resource: &'a RaftCluster,
    /// As validated, if it was valid.
    pub cluster: Option<&'a ValidCluster>,
    /// As observed.
    pub observed: &'a Observed,
    /// As planned.
    pub plan: &'a Plan,
    /// Why the spec cannot be carried out, where the plan keeps the cluster alive all the same.
    pub invalid: Option<&'a str>,
}

/// Writes the status, if it changed. Returns whether it did.
///
/// # Errors
/// [`StatusError`]; a conflict is one too.
pub async fn write(client: &Client, seen: Seen<'_>) -> Result<bool, StatusError> {
    let old = seen.resource.status.clone().unwrap_or_default();
    let Some(changes) = patch::changes(&old, &compute(seen))? else { return Ok(false) };
    let body = serde_json::json!({
        "metadata": {"uid": seen.resource.uid(), "resourceVersion": seen.resource.resource_version()},
        "status": changes,
    });
    let api: Api<RaftCluster> = Api::namespaced(client.clone(), &seen.resource.namespace().unwrap_or_default());
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch_status(&seen.resource.name_any(), &parameters, &Patch::Merge(&body)).await.map_err(Box::new)?;
    Ok(true)
}

/// The whole status.
pub fn compute(seen: Seen<'_>) -> RaftClusterStatus {
    let Seen { resource, cluster, observed, plan, .. } = seen;
    let old = resource.status.clone().unwrap_or_default();
    let facts = Facts::new(seen);
    RaftClusterStatus {
        phase: Some(phase(seen, &facts)),
        observed_generation: resource.metadata.generation,
        cluster_id: observed.resource.cluster_id.map(names::id_text),
        bootstrapped: observed.resource.bootstrapped,
        ready: Some(format!("{}/{}", facts.ready_voters, resource.spec.replicas)),
        ready_replicas: facts.ready_voters,
        // An autoscaler counts by it: pods whose set is made anew are still there.
        replicas: observed.set.as_ref().map_or(length(observed.pods.len()), |set| count(set.replicas)),
        selector: Some(names::selector(&resource.name_any())),
        leader: leader(cluster, observed),
        version: facts.version(),
        members: cluster.map(|cluster| members(cluster, observed)).unwrap_or(old.members.clone()),
        when_deleted: when_deleted(seen),
        plan: Some(plan_status(resource, plan)),
        conditions: conditions::all(seen, &facts, &old.conditions),
    }
}

/// What several fields are made from.
#[derive(Debug)]
struct Facts {
    /// A linearizable list of the latched cluster was given in this pass.
    available: bool,
    /// Listed voters whose pod serves.
    ready_voters: i32,
    /// Listed voters.
    voters: i32,
    /// Listed voters that do not answer or are not ready, by pod name.
    unhealthy: Vec<String>,
    /// Of these, how their nodes ended, where no process runs.
    ended: Vec<(String, ExitKind)>,
    /// The versions that answering nodes run.
    versions: BTreeSet<String>,
    /// Pods that do not have the StatefulSet's newest template, where it is known.
    outdated: Vec<String>,
    /// Why nobody knows which template is the newest, although there are pods: reason and message.
    anew: Option<(&'static str, &'static str)>,
    /// Pods whose members are not known to have the settings that are wanted, of those that change while they run.
    to_be_told: Vec<String>,
    /// Of these, who refuses them, and why.
    refusals: Vec<(String, String)>,
}

impl Facts {
    fn new(seen: Seen<'_>) -> Self {
        let Seen { resource, cluster, observed, .. } = seen;
        let name = resource.name_any();
        let list = ours(observed);
        let voters: Vec<u32> = match (list, cluster) {
            (Some(list), Some(cluster)) => {
                let voters = list.members.values().filter(|member| !member.learner);
                voters.filter_map(|member| ordinal(cluster, member)).collect()
            }
            // Without a list, what the nodes say of themselves is the best guess.
            _ => observed.pods.keys().copied().filter(|k| observed.node(*k).is_some_and(|node| node.voter)).collect(),
        };
        let ready = |k: &u32| observed.pods.get(k).is_some_and(|pod| pod.ready && pod.terminating.is_none());
        let revision = observed.set.as_ref().and_then(|set| set.update_revision.as_ref());
        let outdated = observed.pods.iter().filter(|(_, pod)| revision.is_some() && pod.revision.as_ref() != revision);
        let unhealthy = voters.iter().filter(|k| !observed.node(**k).is_some_and(|node| node.ready));
        let ended = unhealthy.clone().filter_map(|k| {
            let pod = observed.pods.get(k).filter(|pod| pod.container != ContainerState::Running)?;
            Some((names::pod(&name, *k), pod.exit?.kind))
        });
        let ended = ended.collect();
        let (to_be_told, refusals) = cluster.map(|cluster| untold(cluster, observed)).unwrap_or_default();
        Self {
            available: list.is_some(),
            ready_voters: length(voters.iter().filter(|k| ready(k)).count()),
            voters: length(voters.len()),
            unhealthy: unhealthy.map(|k| names::pod(&name, *k)).collect(),
            ended,
            versions: versions(observed),
            outdated: outdated.map(|(k, _)| names::pod(&name, *k)).collect(),
            anew: anew(observed).filter(|_| resource.metadata.deletion_timestamp.is_none()),
            to_be_told,
            refusals,
        }
    }
}

/// R1, B2: the set is not there, or its controller has not looked at it yet. No pod counts as outdated meanwhile.
fn anew(observed: &Observed) -> Option<(&'static str, &'static str)> {
    let lagging = WaitReason::KubernetesLagging.as_str();
    match &observed.set {
        _ if observed.pods.is_empty() => None,
        None => Some((StepName::RecreateSet.as_str(), "the StatefulSet is made anew around its pods")),
        Some(set) if set.update_revision.is_none() => {
            Some((lagging, "the StatefulSet controller has not said yet which template is the newest"))
        }
        Some(_) => None,
    }
}

/// The pods whose members answer and are not known to have the settings that are wanted, and of these, who refuses them and
/// why. A member of a release that keeps what it started with counts as having them: the ConfigMap had them, and nothing
/// that is done here could make it tell.
fn untold(cluster: &ValidCluster, observed: &Observed) -> (Vec<String>, Vec<(String, String)>) {
    let (mut untold, mut refusals) = (Vec::new(), Vec::new());
    for k in observed.pods.keys() {
        let member = observed.node(*k).filter(|node| node.marker.is_some() && !node.keeps_settings);
        let (Some(node), name) = (member, names::pod(&cluster.name, *k)) else { continue };
        if let Some(settings) = &node.settings {
            let wanted = wanted_settings(cluster, settings);
            if settings.are(&wanted) {
                continue;
            }
            refusals.extend(settings.refusal_of(&wanted).map(|why| (name.clone(), why.to_owned())));
        }
        untold.push(name);
    }
    (untold, refusals)
}

impl Facts {
    /// The one version that all of them run.
    fn version(&self) -> Option<String> {
        let only = self.versions.first().filter(|version| !version.is_empty() && self.versions.len() == 1);
        only.map(|version| brief(version))
    }
}

/// The list, if it is the latched cluster's.
fn ours(observed: &Observed) -> Option<&MemberList> {
    observed.members.as_ref().filter(|list| observed.resource.cluster_id == Some(list.cluster_id))
}

fn ordinal(cluster: &ValidCluster, member: &Member) -> Option<u32> {
    member.peer_urls.iter().find_map(|url| names::peer_url_ordinal(cluster, url))
}

fn versions(observed: &Observed) -> BTreeSet<String> {
    observed.pods.keys().filter_map(|k| observed.node(*k)).map(|node| node.version.clone()).collect()
}

fn leader(cluster: Option<&ValidCluster>, observed: &Observed) -> Option<String> {
    let (cluster, list) = (cluster?, ours(observed)?);
    let ordinal = ordinal(cluster, list.members.get(&list.leader)?)?;
    Some(names::pod(&cluster.name, ordinal))
}

/// The members as listed; empty while nobody gives the list.
fn members(cluster: &ValidCluster, observed: &Observed) -> Vec<MemberStatus> {
    let Some(list) = ours(observed) else { return Vec::new() };
    let mut members: Vec<MemberStatus> = list
        .members
        .iter()
        .filter_map(|(id, member)| {
            let ordinal = ordinal(cluster, member)?;
            let node = observed.node(ordinal).filter(|node| node.marker.is_some_and(|marker| marker.raft_id == *id));
            let leads = *id == list.leader;
            Some(MemberStatus {
                name: names::pod(&cluster.name, ordinal),
                ordinal: count(ordinal),
                raft_id: names::id_text(*id),
                role: match (leads, member.learner) {
                    (true, _) => MemberRole::Leader,
                    (false, true) => MemberRole::Learner,
                    (false, false) => MemberRole::Voter,
                },
                caught_up: leads || member.progress.is_some_and(|progress| progress.caught_up),
                // A learner is never ready; that it runs as this member is all that can be asked of it.
                healthy: node.is_some_and(|node| node.ready || member.learner),
            })
        })
        .collect();
    members.sort_by_key(|member| (member.ordinal, member.raft_id.clone()));
    members.truncate(MEMBERS_MAX);
    members
}

/// That of the last good spec. It is what a deletion goes by, so it does not change any more once that has begun.
fn when_deleted(seen: Seen<'_>) -> Option<RetentionPolicy> {
    let Seen { resource, cluster, invalid, .. } = seen;
    let good = cluster.is_some() && invalid.is_none() && resource.metadata.deletion_timestamp.is_none();
    match good {
        true => Some(resource.spec.storage.retention.when_deleted),
        false => resource.status.as_ref().and_then(|status| status.when_deleted),
    }
}

fn plan_status(resource: &RaftCluster, plan: &Plan) -> PlanStatus {
    let target =
        PlanTarget { ordinal: plan.target.ordinal.map(count), member_id: plan.target.member.map(names::id_text) };
    PlanStatus {
        step: plan.step.name().as_str().to_owned(),
        target: (target != PlanTarget::default()).then_some(target),
        since: time(plan.since),
        blocked_by: plan
            .blocked_by
            .as_ref()
            .map(|blocked| BlockedBy { reason: blocked.reason.as_str().to_owned(), message: brief(&blocked.message) }),
        then: plan.then.clone(),
        human_may: plan.human_may.iter().take(WAYS_MAX).map(|text| brief(text)).collect(),
        observed_generation: resource.metadata.generation,
    }
}

fn phase(seen: Seen<'_>, facts: &Facts) -> Phase {
    let Seen { resource, observed, plan, .. } = seen;
    let blocked = plan.blocked_by.as_ref().map(|blocked| blocked.reason);
    let want = u32::try_from(resource.spec.replicas).unwrap_or_default();
    let resizing = observed.set.as_ref().is_some_and(|set| set.replicas != want) || count(want) < facts.voters;
    if resource.metadata.deletion_timestamp.is_some() {
        return Phase::Deleting;
    }
    match (plan.step.name(), blocked) {
        (StepName::Wait, Some(WaitReason::InvalidSpec)) => Phase::Invalid,
        (StepName::Wait, Some(WaitReason::Paused)) => Phase::Paused,
        (StepName::Settled, _) => Phase::Running,
        _ if !observed.resource.bootstrapped => Phase::Bootstrapping,
        _ if !facts.available => Phase::Unavailable,
        _ if seen.invalid.is_some() => Phase::Repairing,
        _ if resizing => Phase::Scaling,
        _ if !facts.to_be_told.is_empty() => Phase::Updating,
        _ if facts.voters >= count(want) && (facts.anew.is_some() || !facts.outdated.is_empty()) => Phase::Updating,
        (StepName::Wait, Some(WaitReason::LeftoverVolume)) if plan.row == "R1" => Phase::Updating,
        (StepName::RecreateSet, _) => Phase::Updating,
        _ => Phase::Repairing,
    }
}

/// What has newly become of the cluster that neither a step nor a wait need tell: how a node ended or which alarm it raised, where
/// it told that by name, and that a volume claim was deleted under its pod.
pub fn new_troubles<'a>(
    resource: &'a RaftCluster,
    status: &'a RaftClusterStatus,
) -> impl Iterator<Item = &'a Condition> {
    let by_name = |reason: &str| {
        ExitKind::ALL.iter().any(|kind| kind.as_str() == reason)
            || [Alarm::NoSpace, Alarm::Corrupt].iter().any(|alarm| alarm.as_str() == reason)
    };
    let is_trouble = move |now: &&Condition| match (now.type_.as_str(), now.status.as_str()) {
        ("Degraded", "True") => by_name(&now.reason),
        ("VolumesReady", "False") => now.reason == WaitReason::WrongVolume.as_str(),
        _ => false,
    };
    let is_new = move |now: &&Condition| {
        let mut before = resource.status.iter().flat_map(|status| &status.conditions);
        !before.any(|old| old.type_ == now.type_ && old.status == now.status && old.reason == now.reason)
    };
    status.conditions.iter().filter(is_trouble).filter(is_new)
}

/// Whether the cluster has yet to be Available for the first time.
pub fn is_coming_up(status: &RaftClusterStatus) -> bool {
    !was_available(&status.conditions)
}

/// Whether a settled cluster looks as if it will stay so: used to choose how soon to look again.
pub fn is_settled(plan: &Plan) -> bool {
    plan.step == Step::Settled
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn length(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn time(seconds: UnixSeconds) -> Time {
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vocabulary;
