//! The fields of a StatefulSet that Kubernetes lets nobody change: a set with others must be made anew (row R1). Pure.
//!
//! Until then the set keeps them, and everything else of it is applied, so that a difference here holds up nothing.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use serde_json::Value;

use super::difference::contains;
use crate::build::FIXED_HASH;
use crate::observed::SELECTOR;

/// All the others are replicas, ordinals, template, updateStrategy, revisionHistoryLimit, minReadySeconds and the
/// retention policy.
const FIELDS: [&str; 4] = ["serviceName", "podManagementPolicy", SELECTOR, "volumeClaimTemplates"];

/// The fields for whose sake the set must be made anew: in which it is not as wanted, unless it was made with just these.
/// Something else has changed them on the way then, and would do so again and again.
pub fn to_recreate(desired: &StatefulSet, live: &StatefulSet) -> Vec<&'static str> {
    let made_with = live.annotations().get(FIXED_HASH);
    if made_with.is_some() && made_with == desired.annotations().get(FIXED_HASH) {
        return Vec::new();
    }
    differences(desired, live)
}

/// Gives `desired` the fields of a set that exists, and says whether it can be written then. Its template must fit them: pods
/// must carry the labels that the set selects by, and mount only claims that it has. The API server does not look at the
/// latter, and no pod of such a template could start again.
pub(super) fn keep(desired: &mut StatefulSet, live: Option<&StatefulSet>) -> bool {
    let Some(live) = live else { return true };
    let differences = differences(desired, live);
    if differences.is_empty() {
        return true;
    }
    let made_with = live.annotations().get(FIXED_HASH).cloned();
    let same_claims = claim_names(desired) == claim_names(live);
    let annotations = desired.metadata.annotations.get_or_insert_default();
    annotations.remove(FIXED_HASH);
    annotations.extend(made_with.map(|hash| (FIXED_HASH.to_owned(), hash)));
    if let (Some(desired), Some(live)) = (desired.spec.as_mut(), live.spec.as_ref()) {
        desired.service_name.clone_from(&live.service_name);
        desired.pod_management_policy.clone_from(&live.pod_management_policy);
        desired.volume_claim_templates.clone_from(&live.volume_claim_templates);
    }
    !differences.contains(&SELECTOR) && same_claims
}

fn claim_names(set: &StatefulSet) -> BTreeSet<Option<&str>> {
    let claims = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    claims.map(|claim| claim.metadata.name.as_deref()).collect()
}

fn differences(desired: &StatefulSet, live: &StatefulSet) -> Vec<&'static str> {
    // Kubernetes objects always have a JSON form.
    let [desired, live] = [desired, live].map(|set| serde_json::to_value(&set.spec).unwrap_or_default());
    let same = |name: &str| {
        let (wanted, found) = (field(&desired, name), field(&live, name));
        contains(&found, &wanted, name) && contains(&wanted, &found, name)
    };
    FIELDS.into_iter().filter(|name| !same(name)).collect()
}

/// Without what the API server writes into a claim's template by itself.
fn field(spec: &Value, name: &str) -> Value {
    let mut value = spec[name].clone();
    if name == "volumeClaimTemplates" {
        for claim in value.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            claim.retain(|key, _| !["apiVersion", "kind", "status"].contains(&key.as_str()));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted() -> Value {
        json!({
            "metadata": {"name": "db", "annotations": {FIXED_HASH: "new"}},
            "spec": {
                "serviceName": "db-peers",
                "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}},
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                        "resources": {"requests": {"storage": "1Gi"}}},
                }],
            },
        })
    }

    fn set(value: Value) -> StatefulSet {
        serde_json::from_value(value).expect("a StatefulSet")
    }

    /// As a real API server (1.35) gives it back, from a release that wrote no fingerprint.
    fn live() -> Value {
        let mut live = wanted();
        live["metadata"]["annotations"] = json!({});
        live["spec"]["revisionHistoryLimit"] = json!(10);
        live["spec"]["selector"]["matchExpressions"] = json!([]);
        let claim = &mut live["spec"]["volumeClaimTemplates"][0];
        (claim["apiVersion"], claim["kind"]) = (json!("v1"), json!("PersistentVolumeClaim"));
        claim["metadata"]["creationTimestamp"] = Value::Null;
        claim["status"] = json!({"phase": "Pending"});
        claim["spec"]["resources"]["requests"]["storage"] = json!("1024Mi");
        live
    }

    #[test]
    fn what_the_api_server_adds_and_what_may_be_changed_is_no_difference() {
        let mut live = live();
        live["spec"]["template"]["metadata"]["labels"]["more"] = json!("x");
        live["spec"]["replicas"] = json!(5);
        assert_eq!(to_recreate(&set(wanted()), &set(live)), Vec::<&str>::new());
    }

    #[test]
    fn each_field_is_a_difference_and_is_kept_until_the_set_is_made_anew() {
        for (name, value) in [
            ("serviceName", json!("db")),
            ("podManagementPolicy", json!("OrderedReady")),
            ("volumeClaimTemplates", json!([{"metadata": {"name": "data"}, "spec": {"storageClassName": "fast"}}])),
        ] {
            let mut other = live();
            other["spec"][name] = value.clone();
            let (mut desired, live) = (set(wanted()), set(other));
            assert_eq!(to_recreate(&desired, &live), [name]);
            assert!(keep(&mut desired, Some(&live)));
            assert_eq!(differences(&desired, &live), Vec::<&str>::new(), "{name}");
            assert_eq!(desired.annotations().get(FIXED_HASH), None, "it was not made with what is wanted");
        }
        for selector in [json!({"matchLabels": {"a": "c"}}), json!({"matchLabels": {"a": "b", "c": "d"}})] {
            let mut other = live();
            other["spec"]["selector"] = selector;
            assert_eq!(to_recreate(&set(wanted()), &set(other.clone())), ["selector"]);
            assert!(!keep(&mut set(wanted()), Some(&set(other))), "its template cannot be written");
        }
        let mut other = live();
        other["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] = json!("storage");
        assert!(!keep(&mut set(wanted()), Some(&set(other))), "its pods could not mount their data");
        assert!(keep(&mut set(wanted()), None) && keep(&mut set(wanted()), Some(&set(live()))));
    }

    /// A webhook that writes into every claim's template must not have the set made anew for ever.
    #[test]
    fn a_set_that_was_made_with_what_is_wanted_is_not_made_again() {
        let mut changed = live();
        changed["metadata"]["annotations"][FIXED_HASH] = json!("new");
        changed["spec"]["volumeClaimTemplates"][0]["metadata"]["annotations"] = json!({"by": "a webhook"});
        let live = set(changed.clone());
        assert_eq!(to_recreate(&set(wanted()), &live), Vec::<&str>::new());
        let mut desired = set(wanted());
        assert!(keep(&mut desired, Some(&live)), "and the rest is written");
        assert_eq!(desired.annotations().get(FIXED_HASH).map(String::as_str), Some("new"));
        changed["metadata"]["annotations"][FIXED_HASH] = json!("of the release before");
        assert_eq!(to_recreate(&set(wanted()), &set(changed)), ["volumeClaimTemplates"]);
    }
}
