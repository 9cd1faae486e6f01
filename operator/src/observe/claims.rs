//! The volume claims of a cluster: known by their names, because labels may be anything on a volume left over from another life.
//!
//! A namespace may hold thousands of other claims, so those with the labels that a StatefulSet gives are listed, and each name
//! that a member's may have and that is not among them is asked for. All of it is read live: in a cache one that has not come
//! yet is absent, and founding (B3) and the size of a new set (B2) rest on absence.

use std::collections::BTreeSet;

use balsa_crds::MAX_REPLICAS;
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::FORBIDDEN;
use crate::names::{self, MOST_ORDINALS};

/// The claims whose labels hide them, beside the `listed` ones, which may be of others. A role of an older release lets claims be
/// listed only; then they are looked for among all, which costs more and finds the same.
pub(super) async fn unlisted(
    claims: &Api<PersistentVolumeClaim>,
    name: &str,
    listed: &[PersistentVolumeClaim],
    ordinals: &BTreeSet<u32>,
) -> Result<Vec<PersistentVolumeClaim>, kube::Error> {
    let known: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
    let names = ordinals.iter().map(|k| names::volume(name, *k)).filter(|name| !known.contains(name));
    let names: BTreeSet<String> = names.collect();
    match try_join_all(names.iter().map(|name| claims.get_opt(name))).await {
        Ok(found) => Ok(found.into_iter().flatten().collect()),
        Err(kube::Error::Api(status)) if status.code == FORBIDDEN => {
            let all = claims.list(&ListParams::default()).await?.items;
            Ok(all.into_iter().filter(|claim| names.contains(&claim.name_any())).collect())
        }
        Err(error) => Err(error),
    }
}

/// The ordinals that may have a claim: those of the largest cluster, of whatever somebody has made of the set, and of the pods that
/// are there. Whoever may name a pod or scale the set does not choose how much is asked.
pub(super) fn ordinals(set: Option<&StatefulSet>, pods: &[Pod], name: &str) -> BTreeSet<u32> {
    let replicas = set.and_then(|set| set.spec.as_ref()?.replicas).unwrap_or_default().max(MAX_REPLICAS);
    let of_set = 0..u32::try_from(replicas).unwrap_or_default().min(MOST_ORDINALS);
    of_set.chain(pods.iter().filter_map(|pod| names::pod_ordinal(name, &pod.name_any()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn every_ordinal_that_may_have_a_claim_is_asked_for() {
        let set = |replicas: Value| -> StatefulSet {
            let spec = json!({"replicas": replicas, "selector": {}, "template": {}, "serviceName": ""});
            from_value(json!({"metadata": {}, "spec": spec})).expect("a set")
        };
        let pod = |name: &str| -> Pod { from_value(json!({"metadata": {"name": name}})).expect("a pod") };
        let first = |count| BTreeSet::from_iter(0..count);
        assert_eq!(ordinals(None, &[], "db"), first(7));
        assert_eq!(ordinals(Some(&set(json!(3))), &[pod("db-2"), pod("other-99")], "db"), first(7));
        assert_eq!(ordinals(Some(&set(json!(12))), &[], "db"), first(12), "by hand");
        assert_eq!(ordinals(None, &[pod("db-8")], "db"), &first(7) | &BTreeSet::from([8]), "its set is gone");
    }
    /// One tenant's pod or set must not have the operator, which is everybody's, ask for four billion claims.
    #[test]
    fn nobody_chooses_how_many_are_asked_for() {
        let set: StatefulSet = from_value(json!({
            "metadata": {}, "spec": {"replicas": i32::MAX, "selector": {}, "template": {}, "serviceName": ""}
        }))
        .expect("a set");
        let pod: Pod = from_value(json!({"metadata": {"name": format!("db-{}", u32::MAX)}})).expect("a pod");
        let asked = ordinals(Some(&set), &[pod], "db");
        assert_eq!((asked.len(), asked.last()), (MOST_ORDINALS as usize + 1, Some(&u32::MAX)));
    }
}
