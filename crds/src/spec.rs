//! What a user asks for: `RaftCluster.spec`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, PodSecurityContext, ResourceRequirements, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::RaftClusterStatus;

/// A Balsa cluster of one to seven voters. The operator brings it up, grows and shrinks it, replaces lost members and
/// rolls out changes, one step at a time; `status.plan` says what it does next and what it waits for.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "balsa.dev",
    version = "v1alpha1",
    kind = "RaftCluster",
    plural = "raftclusters",
    singular = "raftcluster",
    shortname = "raft",
    category = "all",
    namespaced,
    status = "RaftClusterStatus",
    derive = "PartialEq",
    doc = "A Balsa cluster: an etcd-v3-compatible key-value store replicated by Raft",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.plan.step"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.plan.blockedBy.reason"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Degraded",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Degraded\")].status",
        priority = 1
    ),
    printcolumn(name = "Storage", type_ = "string", json_path = ".spec.storage.size", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 52").message(
        "metadata.name is too long: use at most 52 characters, because names of pods, Services and revisions are made from it"
    ),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message(
        "metadata.name must start with a letter and hold only a-z, 0-9 and '-', because Services are named after it"
    )
)]
#[x_kube(validation = Rule::new("self.clusterDomain == oldSelf.clusterDomain").message(
    "spec.clusterDomain cannot change: the members know each other by URLs that hold it; create a new cluster instead"
))]
#[serde(rename_all = "camelCase")]
pub struct RaftClusterSpec {
    /// Number of voters, 1 to 7. Odd numbers are better: an even one tolerates no more failures than the next lower odd
    /// one.
    #[serde(default = "default_replicas")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 7").message(
        "spec.replicas must be 1 to 7; to stop a cluster without losing data delete it under storage.retention.whenDeleted=Retain"
    ))]
    pub replicas: i32,
    /// Image of the node, as `[registry[:port]/]name[:tag][@digest]`.
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.size() > 0").message(
        "spec.image is empty: name an image of the Balsa node, like registry:port/balsa:tag or balsa@sha256:..."
    ))]
    #[x_kube(validation = Rule::new("self.size() == 0 || self.matches('^[a-zA-Z0-9][^\\\\s]*$')").message(
        "spec.image is not an image reference: write [registry[:port]/]name[:tag][@digest] without spaces"
    ))]
    pub image: String,
    /// When the kubelet pulls the image: Always, IfNotPresent or Never. Kubernetes' default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self in ['Always', 'IfNotPresent', 'Never']").message(
        "spec.imagePullPolicy must be Always, IfNotPresent or Never"
    ))]
    pub image_pull_policy: Option<String>,
    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The disk of each member.
    pub storage: Storage,
    /// CPU and memory of each member, as in a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Where the pods may run.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Additions to every pod.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// Seconds a stopping member goes on serving after it has become unready and handed over leadership, so that
    /// clients find the others first. 0 to 30.
    #[serde(default = "default_drain_delay")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 30").message(
        "spec.drainDelaySeconds must be 0 to 30: the pod is given 60 seconds to stop in all"
    ))]
    pub drain_delay_seconds: i32,
    /// Gives a cluster of one voter a disruption budget as well, which then holds back every drain of its node.
    #[serde(default)]
    pub protect_single: bool,
    /// Stops the operator's hand: it goes on observing and reporting, and changes nothing.
    #[serde(default)]
    pub paused: bool,
    /// DNS domain of the Kubernetes cluster.
    #[serde(default = "default_cluster_domain")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(
        "spec.clusterDomain must be a DNS domain without a dot at the end, like cluster.local"
    ))]
    pub cluster_domain: String,
    /// Settings of the node. A change of maxRequestBytes, quotaBackendBytes, logLevel, and in `extra` of
    /// auto-compaction-mode, auto-compaction-retention, max-learners and max-txn-ops reaches every running member at once;
    /// any other by a rolling restart. Settings with which no node would start are refused in the status.
    #[serde(default)]
    pub config: NodeConfig,
}

fn default_replicas() -> i32 {
    3
}

fn default_drain_delay() -> i32 {
    10
}

fn default_cluster_domain() -> String {
    "cluster.local".to_owned()
}

/// The disk of each member: one PersistentVolumeClaim per ordinal, `data-<cluster>-<ordinal>`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("self.size == oldSelf.size").message(
    "spec.storage.size cannot change yet: volumes do not grow in place; create a new cluster of the wanted size and copy the data"
))]
#[x_kube(validation = Rule::new(
    "has(self.class) == has(oldSelf.class) && (!has(self.class) || self.class == oldSelf.class)"
).message("spec.storage.class cannot change: existing volumes keep their class; create a new cluster instead"))]
#[x_kube(validation = Rule::new(
    "type(self.size) == int ? self.size > 0 : \
     isQuantity(string(self.size)) && quantity(string(self.size)).isGreaterThan(quantity('0'))"
).message("spec.storage.size must be a quantity above zero, like 10Gi"))]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size of each volume, like `10Gi`.
    pub size: Quantity,
    /// StorageClass of the volumes; the cluster's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.size() > 0").message(
        "spec.storage.class is empty: leave the field out to use the default StorageClass"
    ))]
    pub class: Option<String>,
    /// What becomes of volumes that no member uses any more.
    #[serde(default)]
    pub retention: Retention,
}

/// When volumes are deleted. `Retain` everywhere unless asked otherwise, because a deleted volume does not come back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// What becomes of the cluster's volumes when the RaftCluster is deleted. `Retain` (the default) keeps them: a
    /// RaftCluster that is created again under the same name goes on with the same cluster and its data. `Delete` deletes them
    /// and all data. What counts is the last spec that was valid, as `status.whenDeleted` tells it.
    #[serde(default)]
    pub when_deleted: RetentionPolicy,
    /// What becomes of the volume of a member that was scaled away. `Retain` (the default) keeps it until the cluster grows
    /// over its ordinal again, and deletes it then, because the next member starts on an empty disk. `Delete` deletes it as
    /// soon as its member is proven to be removed and its pod is gone.
    #[serde(default)]
    pub when_scaled: RetentionPolicy,
}

/// `Retain` keeps volumes, `Delete` deletes them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetentionPolicy {
    /// The volume stays.
    #[default]
    Retain,
    /// The volume goes; in a cluster that goes on, once its member is proven to be removed.
    Delete,
}

/// Where the pods may run. By default members prefer different nodes and zones, and are never held back by it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Replaces the default, which prefers a node without another member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Replaces the default, which spreads over zones where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["topologyKey".into(), "whenUnsatisfiable".into()]))]
    pub topology_spread: Option<Vec<TopologySpreadConstraint>>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
}

/// Additions to every pod. Labels and annotations of the operator itself cannot be replaced.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels in addition to the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations in addition to the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// ServiceAccount of the pods; one without any rights when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Replaces the default, which runs as user and group 65532.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<PodSecurityContext>,
    /// Environment of the node's container in addition to the operator's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
}

/// Settings of the node. Absent fields leave the node's own default, which is etcd's.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = Rule::new(
    "(has(self.electionMs) ? self.electionMs : 1000) >= 5 * (has(self.heartbeatMs) ? self.heartbeatMs : 100)"
).message(
    "spec.config.electionMs (1000 when absent) must be at least 5 times heartbeatMs (100 when absent), or a late heartbeat costs the leader its place"
))]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Milliseconds between the leader's heartbeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 10 && self <= 10000").message(
        "spec.config.heartbeatMs must be 10 to 10000"
    ))]
    pub heartbeat_ms: Option<i32>,
    /// Milliseconds without a leader before a member stands for election.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 50 && self <= 50000").message(
        "spec.config.electionMs must be 50 to 50000"
    ))]
    pub election_ms: Option<i32>,
    /// Largest request a client may send, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1024 && self <= 50331648").message(
        "spec.config.maxRequestBytes must be 1024 (1 KiB) to 50331648 (48 MiB)"
    ))]
    pub max_request_bytes: Option<i64>,
    /// Size of the key space at which writes are refused, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1048576").message(
        "spec.config.quotaBackendBytes must be at least 1048576 (1 MiB)"
    ))]
    pub quota_backend_bytes: Option<i64>,
    /// How much the node logs: debug, info, warn or error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self in ['debug', 'info', 'warn', 'error']").message(
        "spec.config.logLevel must be debug, info, warn or error"
    ))]
    pub log_level: Option<String>,
    /// Further flags of the node by etcd's name without the dashes in front, like `auto-compaction-retention: 1h`.
    /// Flags that the operator sets itself, and such that do not exist, are refused in the status.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(key, key.matches('^[a-z][-a-z0-9]*$'))").message(
        "spec.config.extra takes flag names like auto-compaction-retention: lower case, without leading dashes"
    ))]
    pub extra: BTreeMap<String, String>,
}
