//! The StatefulSet: identity, one volume per ordinal, and pods that are restarted only by a step of the plan.
//!
//! `Parallel`, because ordered start deadlocks when readiness needs a quorum. `OnDelete`, because the order of a roll
//! depends on who leads. Volumes are never deleted by Kubernetes: its controller knows nothing of membership.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMap, ConfigMapEnvSource, Container, ContainerPort, EnvFromSource, EnvVar,
    EnvVarSource, HTTPGetAction, ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
    SecurityContext, TopologySpreadConstraint, VolumeMount, VolumeResourceRequirements, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fingerprint::{CONFIG_HASH, FIXED_HASH, SPEC_HASH, TEMPLATE_HASH, fingerprint};
use super::{config_map, metadata, service_account};
use crate::names::{self, CLIENT_PORT, CONTAINER, METRICS_PORT, PEER_PORT, VOLUME};
use crate::observed::Observed;
use crate::plan::initial_replicas;
use crate::valid::{PodAdditions, ValidCluster};

/// Where the volume is mounted; the node's files are in a folder below, so that `lost+found` is none of them.
const MOUNT: &str = "/var/lib/balsa";
/// The node's data directory.
const DATA_DIR: &str = "/var/lib/balsa/data";
/// User and group of the node.
const USER: i64 = 65532;
/// Seconds from SIGTERM to SIGKILL: handing over, the drain delay of at most 30, flushing, and a margin.
const GRACE_SECONDS: i64 = 60;
/// Old revisions kept for reading; none is ever rolled back to.
const REVISIONS: i32 = 5;

pub(super) fn build(cluster: &ValidCluster, observed: &Observed, config: &ConfigMap) -> StatefulSet {
    let template = template(cluster, config);
    let mut metadata = metadata(cluster, names::stateful_set(&cluster.name));
    let service_name = Some(names::peer_service(&cluster.name));
    let pod_management_policy = Some("Parallel".to_owned());
    let (selector, volume_claim_templates) = (selector(cluster), Some(vec![volume(cluster)]));
    metadata.annotations = Some(BTreeMap::from([
        (TEMPLATE_HASH.to_owned(), fingerprint(&template)),
        (SPEC_HASH.to_owned(), fingerprint(&template_inputs(cluster))),
        (
            FIXED_HASH.to_owned(),
            fingerprint(&(&service_name, &pod_management_policy, &selector, &volume_claim_templates)),
        ),
    ]));
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(i32::try_from(initial_replicas(cluster, observed)).unwrap_or(i32::MAX)),
            service_name,
            pod_management_policy,
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            revision_history_limit: Some(REVISIONS),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            selector,
            template,
            volume_claim_templates,
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// The part of the spec that the template is made from. Exhaustive, so that a new field is placed here or left out on
/// purpose: what is left out must never change the template.
fn template_inputs(cluster: &ValidCluster) -> serde_json::Value {
    let ValidCluster {
        namespace,
        name,
        uid: _,
        generation: _,
        want: _,
        image,
        image_pull_policy,
        cluster_domain,
        storage: _,
        drain_delay_seconds,
        paused: _,
        repairs_only: _,
        deleting: _,
        replace_member: _,
        protect_single: _,
        roll_operator_template: _,
        node_config: _,
        // Reaches the members while they run.
        hot: _,
        pod,
    } = cluster;
    let PodAdditions {
        labels,
        annotations,
        resources,
        affinity,
        node_selector,
        tolerations,
        topology_spread,
        priority_class,
        service_account,
        security_context,
        image_pull_secrets,
        env,
    } = pod;
    serde_json::json!([
        [namespace, name, image, image_pull_policy, cluster_domain, drain_delay_seconds, config_map::cold(cluster)],
        [labels, annotations, resources, affinity, node_selector, tolerations, topology_spread],
        [priority_class, service_account, security_context, image_pull_secrets, env],
    ])
}

fn template(cluster: &ValidCluster, config: &ConfigMap) -> PodTemplateSpec {
    let mut labels = cluster.pod.labels.clone();
    labels.extend(names::labels(&cluster.name));
    let mut annotations = cluster.pod.annotations.clone();
    let settings = Some(config_map::variables(&config_map::cold(cluster)));
    annotations.insert(CONFIG_HASH.to_owned(), fingerprint(&settings));
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }),
        spec: Some(pod(cluster, config)),
    }
}

fn pod(cluster: &ValidCluster, config: &ConfigMap) -> PodSpec {
    let additions = &cluster.pod;
    PodSpec {
        containers: vec![container(cluster, config)],
        service_account_name: Some(service_account::name(cluster)),
        automount_service_account_token: Some(false),
        // A variable per Service of the namespace would change the environment from start to start.
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(additions.security_context.clone().unwrap_or_else(pod_security)),
        affinity: Some(additions.affinity.clone().unwrap_or_else(|| prefer_other_hosts(cluster))),
        topology_spread_constraints: Some(if additions.topology_spread.is_empty() {
            vec![spread_over_zones(cluster)]
        } else {
            additions.topology_spread.clone()
        }),
        node_selector: non_empty(additions.node_selector.clone()),
        tolerations: (!additions.tolerations.is_empty()).then(|| additions.tolerations.clone()),
        priority_class_name: additions.priority_class.clone(),
        image_pull_secrets: (!additions.image_pull_secrets.is_empty()).then(|| additions.image_pull_secrets.clone()),
        ..PodSpec::default()
    }
}

fn container(cluster: &ValidCluster, config: &ConfigMap) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: cluster.image_pull_policy.clone(),
        command: Some(vec!["balsa".to_owned()]),
        args: Some(arguments(cluster)),
        env: Some(environment(cluster)),
        env_from: Some(vec![EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource {
                name: config.metadata.name.clone().unwrap_or_default(),
                optional: None,
            }),
            ..EnvFromSource::default()
        }]),
        ports: Some(vec![port("client", CLIENT_PORT), port("peer", PEER_PORT), port("metrics", METRICS_PORT)]),
        resources: cluster.pod.resources.clone(),
        security_context: Some(container_security()),
        startup_probe: Some(startup()),
        liveness_probe: Some(liveness()),
        readiness_probe: Some(readiness(cluster)),
        volume_mounts: Some(vec![VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: MOUNT.to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

/// The command line of every node; the kubelet fills the pod's name in.
pub fn arguments(cluster: &ValidCluster) -> Vec<String> {
    let ValidCluster { name, namespace, cluster_domain, .. } = cluster;
    let host = format!("$(POD_NAME).{}.{namespace}.svc.{cluster_domain}", names::peer_service(name));
    vec![
        "--name=$(POD_NAME)".to_owned(),
        format!("--data-dir={DATA_DIR}"),
        "--bootstrap=operator".to_owned(),
        format!("--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}"),
        format!("--listen-peer-urls=http://0.0.0.0:{PEER_PORT}"),
        format!("--listen-metrics-urls=http://0.0.0.0:{METRICS_PORT}"),
        format!("--advertise-client-urls=http://{host}:{CLIENT_PORT}"),
        format!("--initial-advertise-peer-urls=http://{host}:{PEER_PORT}"),
        format!("--drain-delay={}s", cluster.drain_delay_seconds),
    ]
}

fn environment(cluster: &ValidCluster) -> Vec<EnvVar> {
    let field = ObjectFieldSelector { api_version: None, field_path: "metadata.name".to_owned() };
    let own = EnvVar {
        name: "POD_NAME".to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    };
    std::iter::once(own).chain(cluster.pod.env.iter().cloned()).collect()
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("metrics".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

/// Twenty minutes: opening a large store or installing a snapshot must not be cut off by the liveness probe.
fn startup() -> Probe {
    Probe { period_seconds: Some(1), timeout_seconds: Some(1), failure_threshold: Some(1200), ..probe("/livez") }
}

/// Depends on nothing outside the process, so that a lost quorum never restarts anything.
fn liveness() -> Probe {
    Probe { period_seconds: Some(10), timeout_seconds: Some(3), failure_threshold: Some(3), ..probe("/livez") }
}

/// Tolerates one election: more failures, a second apart, than its time-out has seconds, and at least three.
fn readiness(cluster: &ValidCluster) -> Probe {
    let election_ms = cluster.node_config.get("election-timeout").and_then(|ms| ms.parse::<i32>().ok());
    let failures = election_ms.map_or(0, |ms| ms.div_euclid(1000).saturating_add(1)).max(3);
    Probe { period_seconds: Some(1), timeout_seconds: Some(1), failure_threshold: Some(failures), ..probe("/readyz") }
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // Changing the owner of every file at every start would take longer the more data there is.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// Preferred, never required: a cluster on too few nodes is better than none.
fn prefer_other_hosts(cluster: &ValidCluster) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: PodAffinityTerm {
                    topology_key: "kubernetes.io/hostname".to_owned(),
                    label_selector: Some(selector(cluster)),
                    ..PodAffinityTerm::default()
                },
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn spread_over_zones(cluster: &ValidCluster) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "topology.kubernetes.io/zone".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector(cluster)),
        ..TopologySpreadConstraint::default()
    }
}

fn selector(cluster: &ValidCluster) -> LabelSelector {
    LabelSelector { match_labels: Some(names::labels(&cluster.name)), ..LabelSelector::default() }
}

/// The claim of each ordinal. No owner reference and no label but the selector's: membership labels come later, by
/// merge patch, from what the node reports.
fn volume(cluster: &ValidCluster) -> PersistentVolumeClaim {
    let requests = BTreeMap::from([("storage".to_owned(), cluster.storage.size.clone())]);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME.to_owned()),
            labels: Some(names::labels(&cluster.name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.storage.class.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            resources: Some(VolumeResourceRequirements { requests: Some(requests), limits: None }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn non_empty(map: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then_some(map)
}
