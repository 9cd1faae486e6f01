//! What the tests of pure steps start from: minimal YAML through the real `validate`.

use balsa_crds::RaftCluster;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

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
