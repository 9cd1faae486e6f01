//! The conditions. Each is computed anew; only the time of its last change is kept. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Facts, Seen, time};
use crate::brief::brief;
use crate::names;
use crate::observed::{Alarm, ExitKind, ObservedSet, SELECTOR};
use crate::step::{Step, StepName, WaitReason};

/// A condition before it is compared with the old one.
#[derive(Debug)]
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(kind: &'static str, holds: bool, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, holds, reason: reason.into(), message: message.into() }
    }
}

/// All conditions, in a fixed order.
pub(super) fn all(seen: Seen<'_>, facts: &Facts, old: &[Condition]) -> Vec<Condition> {
    let verdicts = [
        available(seen, facts),
        progressing(seen),
        degraded(seen, facts),
        bootstrapped(seen),
        updated(seen, facts),
        consistent(seen),
        volumes_ready(seen),
        quorum_advice(seen),
    ];
    verdicts.into_iter().map(|verdict| dated(verdict, seen, old)).collect()
}

fn dated(verdict: Verdict, seen: Seen<'_>, old: &[Condition]) -> Condition {
    let status = if verdict.holds { "True" } else { "False" };
    let same = old.iter().find(|condition| condition.type_ == verdict.kind && condition.status == status);
    Condition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason,
        message: brief(&verdict.message),
        observed_generation: seen.resource.metadata.generation,
        last_transition_time: same.map_or_else(|| time(seen.observed.now), |same| same.last_transition_time.clone()),
    }
}

fn blocked(seen: Seen<'_>) -> Option<(WaitReason, &str)> {
    seen.plan.blocked_by.as_ref().map(|blocked| (blocked.reason, blocked.message.as_str()))
}

/// Whether the plan stands still for one of these, and how it says so.
fn waits_for<'a>(seen: Seen<'a>, reasons: &[WaitReason]) -> Option<(WaitReason, &'a str)> {
    blocked(seen).filter(|(reason, _)| reasons.contains(reason))
}

/// Why a cluster is not Available for the first time yet. No other reason is given before, so that a look at the condition
/// tells whether it has been.
const COMING_UP: [&str; 3] = ["AwaitingBootstrap", "AwaitingVoters", "AwaitingEndpoints"];
/// kube-proxy passes on what EndpointSlices tell at most once a second (`minSyncPeriod`), and a pod's times are whole seconds:
/// one that is Ready for so long is reached by its Service.
const REACHED_SECONDS: i64 = 3;

/// Whether the condition Available has been True: it is False now for another reason than those of a cluster that comes up.
pub(crate) fn was_available(conditions: &[Condition]) -> bool {
    let available = conditions.iter().find(|condition| condition.type_ == "Available");
    available.is_some_and(|condition| condition.status == "True" || !COMING_UP.contains(&condition.reason.as_str()))
}

fn available(seen: Seen<'_>, facts: &Facts) -> Verdict {
    let kind = "Available";
    if !seen.observed.resource.was_available {
        return first_available(seen, facts);
    }
    if facts.available {
        return Verdict::new(kind, true, "LinearizableRead", "a majority of the voters serves");
    }
    let losses = [WaitReason::NoQuorum, WaitReason::MembersUnknown, WaitReason::DataLost, WaitReason::QuorumLost];
    match waits_for(seen, &losses) {
        Some((reason, message)) => Verdict::new(kind, false, reason.as_str(), message),
        None => Verdict::new(kind, false, WaitReason::NoQuorum.as_str(), "no member gave a linearizable answer"),
    }
}

/// The first time, whoever waits for it begins to use the cluster: it has what the disruption budget will keep of it, the
/// majority of the voters that are wanted, and its Service leads to one. Afterwards neither has to be proven again.
fn first_available(seen: Seen<'_>, facts: &Facts) -> Verdict {
    let (kind, [bootstrap, voters, endpoints]) = ("Available", COMING_UP);
    if let Some((reason, message)) = waits_for(seen, &[WaitReason::DataLost, WaitReason::QuorumLost]) {
        return Verdict::new(kind, false, reason.as_str(), message);
    }
    let silent = waits_for(seen, &[WaitReason::NoQuorum, WaitReason::MembersUnknown]).map(|(_, message)| message);
    if !seen.observed.resource.bootstrapped {
        return Verdict::new(kind, false, bootstrap, silent.unwrap_or("the cluster has not been founded yet"));
    }
    if !facts.available {
        return Verdict::new(kind, false, voters, silent.unwrap_or("no member gave a linearizable answer"));
    }
    let want = seen.cluster.map_or(seen.resource.spec.replicas, |cluster| super::count(cluster.want));
    if facts.ready_voters <= want / 2 {
        let message = format!("{} of {want} members serve; a majority makes the cluster available", facts.ready_voters);
        return Verdict::new(kind, false, voters, message);
    }
    if seen.observed.served == Some(false) || !is_reached(seen) {
        return Verdict::new(kind, false, endpoints, "the Service of the clients has yet to lead to a member");
    }
    Verdict::new(kind, true, "LinearizableRead", "a majority of the voters serves")
}

/// A member has been Ready for long enough. Clocks may differ: a time to come says nothing, and nobody waits for it.
fn is_reached(seen: Seen<'_>) -> bool {
    let reached = |since: i64| !(0..REACHED_SECONDS).contains(&seen.observed.now.saturating_sub(since));
    seen.observed.pods.values().any(|pod| pod.ready && pod.terminating.is_none() && reached(pod.ready_since))
}

fn progressing(seen: Seen<'_>) -> Verdict {
    let kind = "Progressing";
    let at_rest = [WaitReason::Paused, WaitReason::InvalidSpec];
    match (seen.plan.step.name(), blocked(seen)) {
        (StepName::Settled, _) => Verdict::new(kind, false, StepName::Settled.as_str(), "everything is as asked"),
        (StepName::Wait, Some((reason, message))) => {
            Verdict::new(kind, !at_rest.contains(&reason), reason.as_str(), message)
        }
        (_, Some((reason @ WaitReason::StepFails, message))) => Verdict::new(kind, true, reason.as_str(), message),
        (step, _) => Verdict::new(kind, true, step.as_str(), format!("next step: {step}")),
    }
}

fn degraded(seen: Seen<'_>, facts: &Facts) -> Verdict {
    let kind = "Degraded";
    if let Some((reason, message)) = blocked(seen).filter(|(reason, _)| reason.is_degraded()) {
        return Verdict::new(kind, true, reason.as_str(), message);
    }
    if let Some((alarm, members)) = alarm(seen) {
        return Verdict::new(kind, true, alarm.as_str(), members);
    }
    let healthy = facts.voters - i32::try_from(facts.unhealthy.len()).unwrap_or(i32::MAX);
    let missing = seen.resource.spec.replicas - healthy;
    if !facts.unhealthy.is_empty() {
        let names = facts.unhealthy.join(", ");
        match facts.ended.first() {
            // By the name of its end: a crash is not a crash.
            Some((pod, exit)) => {
                let message = format!("not ready: {names}; {pod} ended ({}): {}", exit.code(), exit.meaning());
                Verdict::new(kind, true, exit.as_str(), message)
            }
            None => Verdict::new(kind, true, WaitReason::MemberUnhealthy.as_str(), format!("not ready: {names}")),
        }
    } else if missing > 0 {
        Verdict::new(
            kind,
            true,
            "VotersMissing",
            format!("{missing} of {} voters missing", seen.resource.spec.replicas),
        )
    } else {
        Verdict::new(kind, false, "AllHealthy", "every voter is healthy")
    }
}

/// The gravest alarm that is raised, who raised it and what it means.
fn alarm(seen: Seen<'_>) -> Option<(Alarm, String)> {
    let alarms = &super::ours(seen.observed)?.alarms;
    let (gravest, _) = alarms.first()?;
    let members = alarms.iter().filter(|(alarm, _)| alarm == gravest).map(|(_, id)| names::id_text(*id));
    let members = members.collect::<Vec<_>>().join(", ");
    let message = match gravest {
        Alarm::Corrupt => format!(
            "alarm CORRUPT: the data of member {members} differ; no key can be changed until the \
                                   member is replaced and the alarm disarmed"
        ),
        Alarm::NoSpace => format!(
            "alarm NOSPACE of member {members}: nothing that needs space is written until there is \
                                   room and the alarm is disarmed"
        ),
    };
    Some((*gravest, message))
}

fn bootstrapped(seen: Seen<'_>) -> Verdict {
    let kind = "Bootstrapped";
    let resource = &seen.observed.resource;
    match (resource.bootstrapped, resource.cluster_id) {
        (true, _) => Verdict::new(kind, true, "Bootstrapped", "the cluster is founded; it is never founded again"),
        (false, Some(_)) => {
            Verdict::new(kind, false, "Intended", "the cluster id is chosen; pod 0 has yet to run under it")
        }
        (false, None) => Verdict::new(kind, false, "AwaitingPod", "waiting for pod 0"),
    }
}

fn updated(seen: Seen<'_>, facts: &Facts) -> Verdict {
    let kind = "Updated";
    let holds = [WaitReason::DisruptionBudget, WaitReason::RolloutStalled];
    if let Some(message) = seen.invalid {
        return Verdict::new(kind, false, WaitReason::InvalidSpec.as_str(), message);
    }
    if seen.observed.set.as_ref().is_some_and(|set| set.template_held) {
        let message = "a new release of the operator would restart the pods; \
                       annotate the RaftCluster with balsa.dev/roll-operator-template=true to let it";
        return Verdict::new(kind, false, WaitReason::OperatorTemplateChanged.as_str(), message);
    }
    if let Some(set) = seen.observed.set.as_ref().filter(|set| set.other_claims || !set.fixed.is_empty()) {
        let (reason, message) = to_be_made_anew(seen, set);
        return Verdict::new(kind, false, reason, message);
    }
    if let Some((reason, message)) = facts.anew {
        return Verdict::new(kind, false, reason, message);
    }
    if let Some((pod, why)) = facts.refusals.first() {
        let message = format!("{pod} refuses the settings of spec.config and keeps its own: {why}");
        return Verdict::new(kind, false, WaitReason::ConfigRefused.as_str(), message);
    }
    if !facts.to_be_told.is_empty() {
        let message = format!("not known to have the settings of spec.config: {}", facts.to_be_told.join(", "));
        return Verdict::new(kind, false, "SettingsPending", message);
    }
    if facts.outdated.is_empty() && facts.versions.len() > 1 {
        let versions = facts.versions.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!(
            "every pod has the newest template, and they run versions {versions}: the image's tag has moved; name the \
             image by its digest, and it is rolled out"
        );
        return Verdict::new(kind, false, "VersionsDiffer", message);
    }
    if facts.outdated.is_empty() {
        return Verdict::new(
            kind,
            true,
            "UpToDate",
            "every pod has the newest template and settings, and they run one version",
        );
    }
    match waits_for(seen, &holds) {
        Some((reason, message)) => Verdict::new(kind, false, reason.as_str(), message),
        None => Verdict::new(kind, false, "RollingOut", format!("to be restarted: {}", facts.outdated.join(", "))),
    }
}

/// R1: why a set has fields that are not as wanted, and what becomes of that.
fn to_be_made_anew(seen: Seen<'_>, set: &ObservedSet) -> (&'static str, String) {
    let fields = set.fixed.join(", ");
    if set.other_claims {
        let message = "the volume claims of the StatefulSet are not ours, which Kubernetes lets nobody change: it is not made \
                       anew, because its members would get empty disks, and nothing of it changes; the ways out are in \
                       status.plan.humanMay";
        return (WaitReason::WrongVolume.as_str(), message.to_owned());
    }
    if let Some((reason, message)) = blocked(seen).filter(|_| seen.plan.row == "R1" && seen.plan.step == Step::Wait) {
        return (reason.as_str(), message.to_owned());
    }
    let meanwhile = match set.fixed.contains(&SELECTOR) {
        true => "nothing of it changes before",
        false => "everything else of it is applied already",
    };
    let message = format!(
        "the StatefulSet has another {fields} than wanted, which Kubernetes lets nobody change: it is made anew around its pods \
         once every member serves and nothing else is to be done; {meanwhile}"
    );
    (StepName::RecreateSet.as_str(), message)
}

fn consistent(seen: Seen<'_>) -> Verdict {
    let kind = "Consistent";
    let differs = [WaitReason::ClusterIdMismatch, WaitReason::ForeignMember, WaitReason::MembersDisagree];
    if let Some((reason, message)) = waits_for(seen, &differs) {
        return Verdict::new(kind, false, reason.as_str(), message);
    }
    if let Some((alarm @ Alarm::Corrupt, message)) = alarm(seen) {
        return Verdict::new(kind, false, alarm.as_str(), message);
    }
    let corrupt = seen.observed.pods.iter().find(|(_, p)| p.exit.is_some_and(|exit| exit.kind == ExitKind::Corrupt));
    match corrupt {
        Some((ordinal, _)) => Verdict::new(kind, false, "Corrupt", format!("the disk of ordinal {ordinal} is damaged")),
        None => Verdict::new(kind, true, "OneCluster", "all members are of one cluster"),
    }
}

fn volumes_ready(seen: Seen<'_>) -> Verdict {
    let kind = "VolumesReady";
    if let Some(message) = taken_away(seen) {
        return Verdict::new(kind, false, WaitReason::WrongVolume.as_str(), message);
    }
    match waits_for(seen, &[WaitReason::LeftoverVolume, WaitReason::WrongVolume, WaitReason::LabelFails]) {
        Some((reason, message)) => Verdict::new(kind, false, reason.as_str(), message),
        None => Verdict::new(kind, true, "AsAsked", "no foreign disk"),
    }
}

/// Which member runs although its volume claim is deleted, by whoever it was and whatever the plan does: nothing of ours deletes the
/// claim of a listed voter.
fn taken_away(seen: Seen<'_>) -> Option<String> {
    let (cluster, observed) = (seen.cluster?, seen.observed);
    let ours = observed.set.as_ref().is_some_and(|set| !set.other_claims);
    if !ours || seen.resource.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let voters = super::ours(observed)?.members.iter().filter(|(_, member)| !member.learner);
    let placed = voters.filter_map(|(id, member)| Some((super::ordinal(cluster, member)?, *id)));
    let mut running = placed.filter(|(k, id)| {
        let stays = observed.pods.get(k).is_some_and(|pod| pod.terminating.is_none());
        stays && observed.node(*k).and_then(|node| node.marker).is_some_and(|marker| marker.raft_id == *id)
    });
    running.find_map(|(k, id)| {
        let what = match observed.volumes.get(&k) {
            None => "is missing",
            Some(volume) if volume.terminating => "is being deleted",
            Some(_) => return None,
        };
        let (claim, pod) = (names::volume(&cluster.name, k), names::pod(&cluster.name, k));
        Some(format!("volume claim {claim} of member {id:x} {what}: pod {pod} is the last that has its disk"))
    })
}

fn quorum_advice(seen: Seen<'_>) -> Verdict {
    let (kind, replicas) = ("QuorumAdvice", seen.resource.spec.replicas);
    if replicas == 2 {
        // Both are the quorum, so the budget refuses every eviction, and a restart of ours goes without it (U7).
        let message = "2 voters tolerate no failure: writes pause whenever one of them restarts, for a changed template too, \
                       and every drain of their nodes waits; use an odd number";
        Verdict::new(kind, true, "EvenReplicas", message)
    } else if replicas % 2 == 0 {
        let message = format!("{replicas} voters tolerate no more failures than {}; use an odd number", replicas - 1);
        Verdict::new(kind, true, "EvenReplicas", message)
    } else {
        Verdict::new(kind, false, "OddReplicas", "an odd number of voters")
    }
}
