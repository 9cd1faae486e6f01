//! How everything is called: object names, labels, host names, and the way back from a URL to an ordinal.
//!
//! Owns every naming rule of the operator. Ids in resources are hex strings, because 64-bit numbers lose precision
//! in JSON.

use std::collections::BTreeMap;

use crate::observed::Marker;
use crate::valid::ValidCluster;

/// Port of the client API.
pub const CLIENT_PORT: u16 = 2379;
/// Port of peers and of the node service.
pub const PEER_PORT: u16 = 2380;
/// Port of probes and metrics, plain HTTP.
pub const METRICS_PORT: u16 = 2381;
/// Name of the node container.
pub const CONTAINER: &str = "balsa";
/// Name of the volume claim template.
pub const VOLUME: &str = "data";
/// Our finalizer on a `RaftCluster`.
pub const FINALIZER: &str = "balsa.dev/volumes";
/// Annotation with the raft id (hex) of a member to be replaced in place.
pub const REPLACE_MEMBER: &str = "balsa.dev/replace-member";
/// PVC label: the cluster whose disk it is.
pub const LABEL_CLUSTER_ID: &str = "balsa.dev/cluster-id";
/// PVC label: the member whose disk it is.
pub const LABEL_RAFT_ID: &str = "balsa.dev/raft-id";
/// PVC label: which disk of the member it is.
pub const LABEL_INCARNATION: &str = "balsa.dev/incarnation";
/// PVC label: its member is removed and its ordinal out of use.
pub const LABEL_DETACHED: &str = "balsa.dev/detached";

/// The labels of a volume claim that tell whose disk it is.
pub fn marker_labels(marker: Marker) -> BTreeMap<String, String> {
    [(LABEL_CLUSTER_ID, marker.cluster_id), (LABEL_RAFT_ID, marker.raft_id), (LABEL_INCARNATION, marker.incarnation)]
        .into_iter()
        .map(|(key, id)| (key.to_owned(), id_text(id)))
        .collect()
}

/// Labels that select all objects of a cluster; also its pod selector.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "balsa"),
        ("app.kubernetes.io/instance", name),
        ("app.kubernetes.io/managed-by", "balsa-operator"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// The selector of [`labels`] as text, for list calls and `status.selector`.
pub fn selector(name: &str) -> String {
    labels(name).iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The StatefulSet.
pub fn stateful_set(name: &str) -> String {
    name.to_owned()
}

/// The Service that clients use: ready members only.
pub fn client_service(name: &str) -> String {
    name.to_owned()
}

/// The headless Service by which peers find each other before they are ready.
pub fn peer_service(name: &str) -> String {
    format!("{name}-peers")
}

/// The PodDisruptionBudget.
pub fn budget(name: &str) -> String {
    name.to_owned()
}

/// The pod of an ordinal.
pub fn pod(name: &str, ordinal: u32) -> String {
    format!("{name}-{ordinal}")
}

/// The volume claim of an ordinal.
pub fn volume(name: &str, ordinal: u32) -> String {
    format!("{VOLUME}-{name}-{ordinal}")
}

/// The host name of an ordinal, the same whatever pod is behind it.
pub fn host(cluster: &ValidCluster, ordinal: u32) -> String {
    let ValidCluster { name, namespace, cluster_domain, .. } = cluster;
    format!("{name}-{ordinal}.{}.{namespace}.svc.{cluster_domain}", peer_service(name))
}

/// The peer URL of an ordinal.
pub fn peer_url(cluster: &ValidCluster, ordinal: u32) -> String {
    format!("http://{}:{PEER_PORT}", host(cluster, ordinal))
}

/// The client URL of an ordinal.
pub fn client_url(cluster: &ValidCluster, ordinal: u32) -> String {
    format!("http://{}:{CLIENT_PORT}", host(cluster, ordinal))
}

/// The ordinal of one object name `<prefix>-<ordinal>`: canonical decimal digits only.
fn ordinal_after(prefix: &str, name: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?.strip_prefix('-')?;
    let ordinal = digits.parse::<u32>().ok()?;
    (ordinal.to_string() == digits).then_some(ordinal)
}

/// Ordinals of one set that are looked at one by one, and the largest set that is made: many times as many as the largest cluster
/// has. Whoever may scale the set or name a pod could else have a pass look at billions, or make them.
pub const MOST_ORDINALS: u32 = 100;

/// The ordinal of a pod name, or `None` if it is no pod of this cluster.
pub fn pod_ordinal(cluster: &str, pod: &str) -> Option<u32> {
    ordinal_after(cluster, pod)
}

/// The ordinal of a volume claim's name, or `None` if it is none of this cluster.
pub fn volume_ordinal(cluster: &str, volume: &str) -> Option<u32> {
    ordinal_after(&format!("{VOLUME}-{cluster}"), volume)
}

/// The ordinal of a peer URL, or `None` if it is none of ours: it must be exactly what [`peer_url`] makes.
pub fn peer_url_ordinal(cluster: &ValidCluster, url: &str) -> Option<u32> {
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
    let ordinal = pod_ordinal(&cluster.name, host.split('.').next()?)?;
    let (_, ours) = peer_url(cluster, ordinal).split_once("://").map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    (ours == host).then_some(ordinal)
}

/// An id as it stands in resources.
pub fn id_text(id: u64) -> String {
    format!("{id:x}")
}

/// The id in a resource; `None` if it is not hex or is zero, which no id is.
pub fn parse_id(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok().filter(|id| *id != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ValidCluster {
        ValidCluster {
            name: "db".into(),
            namespace: "ns".into(),
            cluster_domain: "cluster.local".into(),
            ..Default::default()
        }
    }

    #[test]
    fn m7_ordinals_are_numbers_not_text() {
        for ordinal in [0, 9, 10, 11, 12] {
            assert_eq!(peer_url_ordinal(&cluster(), &peer_url(&cluster(), ordinal)), Some(ordinal));
            assert_eq!(pod_ordinal("db", &pod("db", ordinal)), Some(ordinal));
            assert_eq!(volume_ordinal("db", &volume("db", ordinal)), Some(ordinal));
        }
        assert_eq!(pod_ordinal("db", "db-01"), None);
        assert_eq!(pod_ordinal("db", "db-x"), None);
        assert_eq!(pod_ordinal("db", "dbx-1"), None);
    }

    #[test]
    fn urls_of_others_have_no_ordinal() {
        for url in [
            "http://db-0.db-peers.other.svc.cluster.local:2380",
            "http://db-0.db-peers.ns.svc.cluster.local:2379",
            "http://dc-0.dc-peers.ns.svc.cluster.local:2380",
            "http://10.0.0.1:2380",
            "db-0",
            "",
        ] {
            assert_eq!(peer_url_ordinal(&cluster(), url), None, "{url}");
        }
    }

    #[test]
    fn ids_survive_their_text() {
        for id in [1, 255, u64::MAX] {
            assert_eq!(parse_id(&id_text(id)), Some(id));
        }
        assert_eq!(parse_id("0"), None);
        assert_eq!(parse_id("member"), None);
    }
}
