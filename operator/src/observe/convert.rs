//! Kubernetes objects → what planning needs of them. Pure.

use balsa_crds::RaftCluster;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    ContainerStateTerminated, ContainerStatus, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};
use serde::Deserialize;

use crate::build::TEMPLATE_HASH;
use crate::names::{
    self, CONTAINER, FINALIZER, LABEL_CLUSTER_ID, LABEL_DETACHED, LABEL_INCARNATION, LABEL_RAFT_ID, VOLUME,
};
use crate::observed::{
    ContainerState, ExitKind, Host, HostState, Marker, NodeExit, ObservedBudget, ObservedPod, ObservedResource,
    ObservedSet, ObservedVolume, PlanLatch, PodPhase, UnixSeconds,
};
use crate::status::was_available;

/// Taint by which a person says that a node is down for good.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(super) fn resource(resource: &RaftCluster) -> ObservedResource {
    let status = resource.status.as_ref();
    let latched = |status: &balsa_crds::RaftClusterStatus| {
        status.bootstrapped || status.conditions.iter().any(|c| c.type_ == "Bootstrapped" && c.status == "True")
    };
    ObservedResource {
        resource_version: resource.resource_version().unwrap_or_default(),
        finalizer: resource.finalizers().iter().any(|finalizer| finalizer == FINALIZER),
        cluster_id: status.and_then(|status| names::parse_id(status.cluster_id.as_deref()?)),
        bootstrapped: status.is_some_and(latched),
        was_available: status.is_some_and(|status| was_available(&status.conditions)),
        plan: status.and_then(|status| status.plan.as_ref()).map(|plan| PlanLatch {
            step: plan.step.clone(),
            reason: plan.blocked_by.as_ref().map(|blocked| blocked.reason.clone()),
            ordinal: plan.target.as_ref().and_then(|target| u32::try_from(target.ordinal?).ok()),
            member: plan.target.as_ref().and_then(|target| names::parse_id(target.member_id.as_deref()?)),
            since: seconds(&plan.since),
        }),
    }
}

pub(crate) fn stateful_set(set: &StatefulSet) -> ObservedSet {
    let (spec, status) = (set.spec.as_ref(), set.status.as_ref());
    ObservedSet {
        uid: uid(set),
        resource_version: set.resource_version().unwrap_or_default(),
        // The API server's default for an absent count is one.
        replicas: u32::try_from(spec.and_then(|spec| spec.replicas).unwrap_or(1)).unwrap_or_default(),
        generation: set.metadata.generation.unwrap_or_default(),
        observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
        update_revision: status.and_then(|status| status.update_revision.clone()),
        image: image(spec.and_then(|spec| spec.template.spec.as_ref())),
        template_hash: set.annotations().get(TEMPLATE_HASH).cloned(),
        // Known only once the new template is built.
        template_held: false,
        fixed: Vec::new(),
        other_claims: has_other_claims(spec),
        terminating: set.metadata.deletion_timestamp.is_some(),
    }
}

/// Whether the volumes of its pods have other names than [`names::volume`] gives, or are no claims at all.
fn has_other_claims(spec: Option<&StatefulSetSpec>) -> bool {
    let claims = spec.into_iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    let names: Vec<Option<&str>> = claims.map(|claim| claim.metadata.name.as_deref()).collect();
    names != [Some(VOLUME)]
}

pub(super) fn budget(budget: &PodDisruptionBudget) -> ObservedBudget {
    let minimum = budget.spec.as_ref().and_then(|spec| spec.min_available.as_ref());
    ObservedBudget {
        uid: uid(budget),
        resource_version: budget.resource_version().unwrap_or_default(),
        min_available: match minimum {
            Some(IntOrString::Int(minimum)) => u32::try_from(*minimum).ok(),
            Some(IntOrString::String(_)) | None => None,
        },
    }
}

/// What the newest of these events says of a pod that could not be made.
pub(super) fn failure(events: &[Event], pod: &str) -> Option<String> {
    let names = |event: &&Event| event.message.iter().flat_map(|text| text.split_whitespace()).any(|word| word == pod);
    let at = |event: &&Event| event.last_timestamp.as_ref().map(seconds);
    events.iter().filter(names).max_by_key(at)?.message.clone()
}

pub(super) fn pod(pod: &Pod) -> ObservedPod {
    let status = pod.status.as_ref();
    let container = status
        .and_then(|status| status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER));
    let condition = |kind: &str| status?.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    let unplaced = condition("PodScheduled")
        .filter(|condition| condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable"));
    let host = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    ObservedPod {
        uid: uid(pod),
        resource_version: pod.resource_version().unwrap_or_default(),
        created: pod.creation_timestamp().as_ref().map(seconds).unwrap_or_default(),
        phase: phase(status.and_then(|status| status.phase.as_deref())),
        container: container.map(container_state).unwrap_or_default(),
        ready: condition("Ready").is_some_and(|condition| condition.status == "True"),
        ready_since: condition("Ready").and_then(|c| c.last_transition_time.as_ref()).map(seconds).unwrap_or_default(),
        exit: container.and_then(exit),
        terminating: pod.metadata.deletion_timestamp.as_ref().map(seconds),
        forced: pod.metadata.deletion_grace_period_seconds == Some(0),
        held: !pod.finalizers().is_empty(),
        orphan: !pod.owner_references().iter().any(|owner| owner.controller == Some(true)),
        host: host.map(|name| Host { name, state: HostState::Unknown }),
        revision: pod.labels().get("controller-revision-hash").cloned(),
        image: image(pod.spec.as_ref()),
        // Without a time nothing says that it has lasted (P7).
        unschedulable: unplaced.map(|c| c.last_transition_time.as_ref().map_or(UnixSeconds::MAX, seconds)),
    }
}

/// Whether kube-proxy finds a ready member in it.
pub(super) fn is_serving(slice: &EndpointSlice) -> bool {
    let ready = |endpoint: &Endpoint| endpoint.conditions.as_ref().is_some_and(|now| now.ready == Some(true));
    slice.endpoints.iter().any(ready)
}

/// The node's image.
fn image(pod: Option<&PodSpec>) -> Option<String> {
    pod?.containers.iter().find(|container| container.name == CONTAINER)?.image.clone()
}

fn phase(phase: Option<&str>) -> PodPhase {
    match phase {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        Some("Unknown") => PodPhase::Unknown,
        _ => PodPhase::Pending,
    }
}

fn container_state(container: &ContainerStatus) -> ContainerState {
    let Some(state) = &container.state else { return ContainerState::Absent };
    if state.running.is_some() {
        ContainerState::Running
    } else if let Some(ended) = &state.terminated {
        ContainerState::Terminated(ended.exit_code)
    } else {
        ContainerState::Waiting(state.waiting.as_ref().and_then(|waiting| waiting.reason.clone()).unwrap_or_default())
    }
}

/// How the node ended last: now, if it has ended, else before its last restart.
fn exit(container: &ContainerStatus) -> Option<NodeExit> {
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| state.as_ref()?.terminated.clone();
    let ended: ContainerStateTerminated = ended(&container.state).or_else(|| ended(&container.last_state))?;
    let kind = ExitKind::of_code(ended.exit_code)?;
    Some(NodeExit { kind, marker: ended.message.as_deref().and_then(marker_of_message) })
}

/// The marker in a node's last words. A disk that could not be read has none.
fn marker_of_message(message: &str) -> Option<Marker> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LastWords {
        cluster_id: String,
        raft_id: String,
        incarnation: String,
    }
    let words: LastWords = serde_json::from_str(message.trim()).ok()?;
    marker(&words.cluster_id, &words.raft_id, &words.incarnation)
}

fn marker(cluster_id: &str, raft_id: &str, incarnation: &str) -> Option<Marker> {
    Some(Marker {
        cluster_id: names::parse_id(cluster_id)?,
        raft_id: names::parse_id(raft_id)?,
        incarnation: names::parse_id(incarnation)?,
    })
}

pub(super) fn volume(claim: &PersistentVolumeClaim) -> ObservedVolume {
    let label = |key: &str| claim.labels().get(key).map(String::as_str);
    let labelled = || marker(label(LABEL_CLUSTER_ID)?, label(LABEL_RAFT_ID)?, label(LABEL_INCARNATION)?);
    let some = [LABEL_CLUSTER_ID, LABEL_RAFT_ID, LABEL_INCARNATION].into_iter().any(|key| label(key).is_some());
    ObservedVolume {
        uid: uid(claim),
        resource_version: claim.resource_version().unwrap_or_default(),
        marker: labelled(),
        unclear: some && labelled().is_none(),
        detached: label(LABEL_DETACHED).is_some(),
        terminating: claim.metadata.deletion_timestamp.is_some(),
        pinned: None,
    }
}

/// The one host that a volume can be used on, if its affinity names exactly one.
pub(super) fn pinned(volume: &PersistentVolume) -> Option<String> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else { return None };
    let [expression] = term.match_expressions.as_deref()? else { return None };
    match (expression.key.as_str(), expression.operator.as_str(), expression.values.as_deref()) {
        ("kubernetes.io/hostname", "In", Some([host])) => Some(host.clone()),
        _ => None,
    }
}

pub(super) fn host_state(node: &Node) -> HostState {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    if taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) { HostState::OutOfService } else { HostState::Present }
}

fn uid<O: Resource<DynamicType = ()>>(object: &O) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

fn seconds(time: &Time) -> UnixSeconds {
    time.0.as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_from(status: &str) -> ObservedPod {
        let status: serde_json::Value = serde_yaml::from_str(status).expect("YAML");
        let object = serde_json::json!({"metadata": {"name": "db-0", "uid": "u"}, "status": status});
        pod(&serde_json::from_value::<Pod>(object).expect("a pod"))
    }

    #[test]
    fn a_set_without_just_our_claim_has_other_ones() {
        let with = |claims: &[&str]| {
            let claims: Vec<_> = claims.iter().map(|name| serde_json::json!({"metadata": {"name": name}})).collect();
            let spec = serde_json::json!({"spec": {"serviceName": "s", "selector": {}, "template": {},
                "volumeClaimTemplates": claims}});
            stateful_set(&serde_json::from_value(spec).expect("a StatefulSet")).other_claims
        };
        assert!(!with(&["data"]));
        for claims in [&["storage"][..], &["data", "more"], &[]] {
            assert!(with(claims), "{claims:?}");
        }
    }

    #[test]
    fn m4_a_lost_disk_is_read_from_the_exit_code_even_while_it_crash_loops() {
        let lost = pod_from(
            "containerStatuses: [{name: balsa, image: i, imageID: i, ready: false, restartCount: 3, \
             state: {waiting: {reason: CrashLoopBackOff}}, \
             lastState: {terminated: {exitCode: 70, message: '{\"reason\":\"DiskLost\",\"exitCode\":70}'}}}]",
        );
        assert_eq!(lost.container, ContainerState::Waiting("CrashLoopBackOff".into()));
        assert_eq!(lost.exit, Some(NodeExit { kind: ExitKind::DiskLost, marker: None }));
    }

    #[test]
    fn a_typed_exit_carries_the_marker_of_its_disk() {
        let removed = pod_from(
            "containerStatuses: [{name: balsa, image: i, imageID: i, ready: false, restartCount: 0, \
             state: {terminated: {exitCode: 71, message: '{\"reason\":\"MemberRemoved\",\"exitCode\":71,\
             \"clusterId\":\"ffffffffffffffff\",\"raftId\":\"2\",\"incarnation\":\"a\"}'}}}]",
        );
        let marker = Marker { cluster_id: u64::MAX, raft_id: 2, incarnation: 10 };
        assert_eq!(removed.exit, Some(NodeExit { kind: ExitKind::MemberRemoved, marker: Some(marker) }));
    }

    #[test]
    fn an_ordinary_failure_is_no_typed_exit() {
        for code in [0, 1, 2, 69, 76, 101, 137] {
            let failed = pod_from(&format!(
                "containerStatuses: [{{name: balsa, image: i, imageID: i, ready: false, restartCount: 0, \
                 state: {{terminated: {{exitCode: {code}}}}}}}]"
            ));
            assert_eq!(failed.exit, None, "{code}");
        }
    }

    #[test]
    fn a_pod_that_finds_no_place_has_waited_only_since_a_time_that_is_told() {
        let told = |time: &str| {
            pod_from(&format!("conditions: [{{type: PodScheduled, status: 'False', reason: Unschedulable{time}}}]"))
        };
        assert_eq!(told("").unschedulable, Some(UnixSeconds::MAX));
        assert_eq!(told(", lastTransitionTime: '1970-01-01T00:01:00Z'").unschedulable, Some(60));
    }

    #[test]
    fn finalizers_alone_keep_a_pod_only_once_its_grace_is_over() {
        for (grace, count, kept) in [(Some(0), 1, true), (Some(60), 1, false), (None, 1, false), (Some(0), 0, false)] {
            let finalizers = vec!["example.org/keep"; count];
            let object = serde_json::json!({"metadata": {"name": "db-0", "finalizers": finalizers,
                "deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": grace}});
            let seen = pod(&serde_json::from_value::<Pod>(object).expect("a pod"));
            assert_eq!((seen.terminating, seen.is_kept_by_finalizers()), (Some(60), kept), "{grace:?}, {count}");
        }
    }

    #[test]
    fn a_volume_is_pinned_only_by_exactly_one_host() {
        let volume = |terms: &str| {
            let terms: serde_json::Value = serde_yaml::from_str(terms).expect("YAML");
            let affinity = serde_json::json!({"required": {"nodeSelectorTerms": terms}});
            let object = serde_json::json!({"metadata": {}, "spec": {"nodeAffinity": affinity}});
            pinned(&serde_json::from_value(object).expect("a volume"))
        };
        let one = "[{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]}]";
        assert_eq!(volume(one), Some("n1".to_owned()));
        let two = "[{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1, n2]}]}]";
        assert_eq!(volume(two), None);
        let zone = "[{matchExpressions: [{key: topology.kubernetes.io/zone, operator: In, values: [z]}]}]";
        assert_eq!(volume(zone), None);
    }

    #[test]
    fn unreachable_is_no_proof_and_out_of_service_is() {
        let node = |taint: &str| {
            let object =
                serde_json::json!({"metadata": {}, "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]}});
            host_state(&serde_json::from_value(object).expect("a node"))
        };
        assert_eq!(node("node.kubernetes.io/unreachable"), HostState::Present);
        assert_eq!(node(OUT_OF_SERVICE), HostState::OutOfService);
    }

    #[test]
    fn half_a_label_is_no_marker_and_no_clean_volume() {
        let seen = |labels: serde_json::Value| {
            let object = serde_json::json!({"metadata": {"labels": labels}});
            let seen = volume(&serde_json::from_value(object).expect("a claim"));
            (seen.marker.is_some(), seen.unclear)
        };
        assert_eq!(seen(serde_json::json!({LABEL_CLUSTER_ID: "1", LABEL_RAFT_ID: "2"})), (false, true));
        let strange = serde_json::json!({LABEL_CLUSTER_ID: "ours", LABEL_RAFT_ID: "2", LABEL_INCARNATION: "3"});
        assert_eq!(seen(strange), (false, true));
        let whole = serde_json::json!({LABEL_CLUSTER_ID: "1", LABEL_RAFT_ID: "2", LABEL_INCARNATION: "3"});
        assert_eq!(seen(whole), (true, false));
        assert_eq!(seen(serde_json::json!({"app.kubernetes.io/name": "balsa"})), (false, false));
    }
}
