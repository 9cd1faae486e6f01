//! What the tests of pure steps start from: minimal YAML through the real `validate`.

use balsa_crds::RaftCluster;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::names;
use crate::observed::{
    ContainerState, Marker, Member, MemberList, NodeReport, NodeState, Observed, ObservedBudget, ObservedPod,
    ObservedSet, ObservedVolume, PodPhase, Progress, Settings,
};
use crate::valid::ValidCluster;
use crate::validate::validate;

/// `db` in namespace `ns` with the given spec; storage is added.
pub(crate) fn cluster_from(spec: &str) -> RaftCluster {
    let mut spec: serde_json::Value = serde_yaml::from_str(spec).expect("YAML");
    if spec.get("storage").is_none() {
        spec["storage"] = serde_json::json!({"size": "1Gi"});
    }
    serde_json::from_value(serde_json::json!({
        "apiVersion": "balsa.dev/v1alpha1",
        "kind": "RaftCluster",
        "metadata": {
            "name": "db",
            "namespace": "ns",
            "uid": "0b5d0000-0000-0000-0000-000000000001",
            "generation": 1,
            "resourceVersion": "7",
        },
        "spec": spec,
    }))
    .expect("a RaftCluster")
}

/// The smallest resource a user can write.
pub(crate) fn minimal() -> RaftCluster {
    cluster_from("{image: 'balsa.dev/balsa:dev'}")
}

/// [`cluster_from`], validated.
pub(crate) fn valid(spec: &str) -> ValidCluster {
    validate(&cluster_from(spec)).expect("valid")
}

/// A point in time.
pub(crate) fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).expect("a time"))
}

/// Three voters, all healthy, `db-0` leads, nothing to do for `replicas: 3`.
pub(crate) fn observed_three() -> Observed {
    let cluster = valid("{image: 'balsa.dev/balsa:dev'}");
    let mut observed = Observed { now: 1000, fresh_id: 7, ..Observed::default() };
    observed.resource.resource_version = "7".into();
    observed.resource.finalizer = true;
    observed.resource.cluster_id = Some(0xc1);
    observed.resource.bootstrapped = true;
    observed.set = Some(ObservedSet {
        uid: "set".into(),
        resource_version: "70".into(),
        replicas: 3,
        generation: 4,
        observed_generation: 4,
        update_revision: Some("db-1".into()),
        ..ObservedSet::default()
    });
    observed.budget =
        Some(ObservedBudget { uid: "budget".into(), resource_version: "71".into(), min_available: Some(2) });
    let mut list = MemberList { cluster_id: 0xc1, membership_index: 5, leader: 1, term: 3, ..MemberList::default() };
    for k in 0..3 {
        let id = u64::from(k) + 1;
        let marker = Marker { cluster_id: 0xc1, raft_id: id, incarnation: 100 + id };
        observed.pods.insert(k, running_pod(k));
        observed.volumes.insert(
            k,
            ObservedVolume { uid: format!("volume-{k}"), marker: Some(marker), ..ObservedVolume::default() },
        );
        observed.nodes.insert(k, NodeReport::Answered(voter(k, marker)));
        let progress = Progress { match_index: 10, active: true, caught_up: true, ..Progress::default() };
        list.members.insert(
            id,
            Member {
                name: names::pod("db", k),
                peer_urls: vec![names::peer_url(&cluster, k)],
                learner: false,
                started: true,
                progress: (id != 1).then_some(progress),
            },
        );
    }
    observed.members = Some(list);
    observed
}

fn running_pod(k: u32) -> ObservedPod {
    ObservedPod {
        uid: format!("pod-{k}"),
        resource_version: "80".into(),
        phase: PodPhase::Running,
        container: ContainerState::Running,
        ready: true,
        revision: Some("db-1".into()),
        ..ObservedPod::default()
    }
}

fn voter(k: u32, marker: Marker) -> NodeState {
    NodeState {
        marker: Some(marker),
        name: names::pod("db", k),
        version: "0.1.0".into(),
        voter: true,
        leader: 1,
        term: 3,
        commit_index: 10,
        applied_index: 10,
        membership_index: 5,
        ready: true,
        settings: Some(Settings::default()),
        ..NodeState::default()
    }
}
