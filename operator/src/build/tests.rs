use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde_json::Value;

use super::*;
use crate::fixtures::{observed_three, valid};

/// A spec that uses every field of the resource.
const FULL: &str = "
replicas: 5
image: registry:5000/team/balsa:v1
imagePullPolicy: Always
imagePullSecrets: [{name: pull}]
storage: {size: 10Gi, class: fast, retention: {whenDeleted: Delete, whenScaled: Delete}}
resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {memory: 2Gi}}
scheduling:
  nodeSelector: {disk: ssd}
  tolerations: [{key: dedicated, operator: Exists}]
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
  topologySpread: [{maxSkew: 1, topologyKey: rack, whenUnsatisfiable: DoNotSchedule}]
  priorityClass: high
podTemplate:
  labels: {team: storage}
  annotations: {note: x}
  serviceAccount: custom
  securityContext: {runAsUser: 1000}
  env: [{name: FAILPOINTS, value: off}]
drainDelaySeconds: 5
clusterDomain: example.org
protectSingle: true
paused: true
config:
  heartbeatMs: 50
  electionMs: 500
  maxRequestBytes: 2097152
  quotaBackendBytes: 4294967296
  logLevel: debug
  extra: {auto-compaction-retention: 1h}
";

fn golden(name: &str, desired: &Desired) {
    let Desired { service_account, config_map, peer_service, budget, stateful_set, client_service } = desired;
    let documents = [
        serde_yaml::to_string(service_account),
        serde_yaml::to_string(config_map),
        serde_yaml::to_string(peer_service),
        serde_yaml::to_string(budget),
        serde_yaml::to_string(stateful_set),
        serde_yaml::to_string(client_service),
    ];
    let found: Vec<String> = documents.into_iter().map(|document| document.expect("YAML")).collect();
    let found = found.join("---\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("create the folder");
        std::fs::write(&path, &found).expect("write the golden file");
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} differs:\n{found}", path.display());
}

fn set(spec: &str) -> StatefulSet {
    build(&valid(spec), &observed_three()).stateful_set
}

fn annotation(set: &StatefulSet, key: &str) -> String {
    set.metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned().expect(key)
}

#[test]
fn golden_objects_of_the_smallest_cluster() {
    golden("minimal.yaml", &build(&valid("{image: 'balsa.dev/balsa:dev'}"), &observed_three()));
}

#[test]
fn golden_objects_of_a_cluster_that_uses_every_field() {
    golden("full.yaml", &build(&valid(FULL), &observed_three()));
}

#[test]
fn m1_no_volume_is_owned_or_deleted_by_kubernetes() {
    let set = set(FULL).spec.expect("a spec");
    let policy = set.persistent_volume_claim_retention_policy.expect("a policy");
    assert_eq!(policy.when_deleted.as_deref(), Some("Retain"));
    assert_eq!(policy.when_scaled.as_deref(), Some("Retain"));
    let claims = set.volume_claim_templates.expect("claims");
    assert_eq!(claims.len(), 1);
    assert!(claims[0].metadata.owner_references.is_none());
}

/// Each field of the spec that a running cluster may change, with another value, and whether pods must restart for it.
const CHANGES: [(&str, bool); 26] = [
    ("image: other", true),
    ("imagePullPolicy: Always", true),
    ("imagePullSecrets: [{name: x}]", true),
    ("resources: {limits: {cpu: '2'}}", true),
    ("scheduling: {nodeSelector: {a: b}}", true),
    ("scheduling: {tolerations: [{key: a, operator: Exists}]}", true),
    ("scheduling: {affinity: {}}", true),
    ("scheduling: {topologySpread: [{maxSkew: 2, topologyKey: a, whenUnsatisfiable: ScheduleAnyway}]}", true),
    ("scheduling: {priorityClass: high}", true),
    ("podTemplate: {labels: {a: b}}", true),
    ("podTemplate: {annotations: {a: b}}", true),
    ("podTemplate: {env: [{name: A, value: b}]}", true),
    ("podTemplate: {serviceAccount: other}", true),
    ("podTemplate: {securityContext: {runAsUser: 1}}", true),
    ("drainDelaySeconds: 3", true),
    ("config: {heartbeatMs: 50}", true),
    ("config: {electionMs: 2000}", true),
    ("config: {extra: {bcrypt-cost: '11'}}", true),
    ("config: {maxRequestBytes: 2097152}", false),
    ("config: {quotaBackendBytes: 4294967296}", false),
    ("config: {logLevel: debug}", false),
    ("config: {extra: {auto-compaction-retention: 1h}}", false),
    ("replicas: 5", false),
    ("paused: true", false),
    ("protectSingle: true", false),
    ("storage: {size: 1Gi, retention: {whenDeleted: Delete, whenScaled: Delete}}", false),
];

#[test]
fn m18_every_mutable_field_reaches_the_pods_and_no_other_change_restarts_them() {
    let base = set("{image: balsa}");
    let mut hashes = BTreeSet::from([annotation(&base, TEMPLATE_HASH)]);
    for (change, restarts) in CHANGES {
        let spec =
            if change.starts_with("image:") { format!("{{{change}}}") } else { format!("{{image: balsa, {change}}}") };
        let changed = set(&spec);
        let moved = |key| annotation(&changed, key) != annotation(&base, key);
        assert_eq!((moved(TEMPLATE_HASH), moved(SPEC_HASH)), (restarts, restarts), "{change}");
        assert_eq!(hashes.insert(annotation(&changed, TEMPLATE_HASH)), restarts, "{change}");
    }
}

/// Types of Kubernetes' own: one field of ours, whatever is in it.
const KUBERNETES: [&str; 3] = ["resources", "scheduling.affinity", "podTemplate.securityContext"];
/// Immutable by the rules of the CRD.
const IMMUTABLE: [&str; 3] = ["clusterDomain", "storage.size", "storage.class"];

/// The schema of `spec`, as the API server has it.
fn spec_schema() -> JSONSchemaProps {
    let version = balsa_crds::raft_cluster_definition().spec.versions.remove(0);
    let mut schema = version.schema.and_then(|schema| schema.open_api_v3_schema).expect("a schema");
    schema.properties.as_mut().and_then(|all| all.remove("spec")).expect("a spec")
}

/// The fields of `schema` that have none of ours in them, by their paths; only those that are in `value`, where there is one.
fn fields(schema: &JSONSchemaProps, value: Option<&Value>, path: &str) -> BTreeSet<String> {
    let nested = schema.properties.as_ref().filter(|_| !KUBERNETES.contains(&path));
    let Some(nested) = nested else { return BTreeSet::from([path.to_owned()]) };
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let set = nested.iter().filter(|(name, _)| value.is_none_or(|value| value.get(name.as_str()).is_some()));
    set.flat_map(|(name, schema)| fields(schema, value.map(|value| &value[name.as_str()]), &join(name))).collect()
}

fn fields_of(yaml: &str) -> BTreeSet<String> {
    fields(&spec_schema(), Some(&serde_yaml::from_str(yaml).expect("YAML")), "")
}

#[test]
fn m18_every_field_of_the_schema_can_be_changed_by_the_table_above_or_not_at_all() {
    let all = fields(&spec_schema(), None, "");
    let deep = ["storage.retention.whenScaled", "config.quotaBackendBytes", "scheduling.priorityClass", "resources"];
    assert!(deep.iter().all(|field| all.contains(*field)), "{all:?}");
    let changed = CHANGES.iter().flat_map(|(change, _)| fields_of(&format!("{{{change}}}")));
    let told: BTreeSet<String> = changed.chain(IMMUTABLE.map(str::to_owned)).collect();
    assert_eq!(told, all);
}

#[test]
fn the_golden_objects_come_of_a_spec_that_uses_every_field_of_the_schema() {
    assert_eq!(fields_of(FULL), fields(&spec_schema(), None, ""));
}

/// It says so of itself, and users copy from it.
#[test]
fn the_full_sample_has_every_field_of_the_schema() {
    let sample = include_str!("../../../manifests/samples/raftcluster-full.yaml");
    let sample: Value = serde_yaml::from_str(sample).expect("YAML");
    assert_eq!(fields(&spec_schema(), Some(&sample["spec"]), ""), fields(&spec_schema(), None, ""));
}

/// A release that changes this value restarts every pod of every cluster, or holds: do it knowingly.
#[test]
fn m19_the_template_of_an_unchanged_spec_is_the_same_from_release_to_release() {
    let set = set("{image: 'balsa.dev/balsa:dev'}");
    assert_eq!(annotation(&set, TEMPLATE_HASH), "3e4f04f285088324");
    assert_eq!(annotation(&set, SPEC_HASH), "5abf6f968bea2ee8");
}

#[test]
fn m19_a_template_that_only_a_release_changed_is_held_until_asked_for() {
    let mut cluster = valid("{image: balsa}");
    let desired = build(&cluster, &observed_three()).stateful_set;
    let mut applied = desired.metadata.annotations.clone().expect("annotations");
    assert!(!is_template_held(&cluster, &desired, Some(&applied)));
    applied.insert(TEMPLATE_HASH.to_owned(), "older".to_owned());
    assert!(is_template_held(&cluster, &desired, Some(&applied)));
    cluster.roll_operator_template = true;
    assert!(!is_template_held(&cluster, &desired, Some(&applied)));
    cluster.roll_operator_template = false;
    applied.insert(SPEC_HASH.to_owned(), "other".to_owned());
    assert!(!is_template_held(&cluster, &desired, Some(&applied)), "the spec changed: the user asked for it");
    assert!(!is_template_held(&cluster, &desired, None), "there is nothing to hold");
}

/// 4.2: period times failures is longer than an election's time-out, whatever it is set to.
#[test]
fn an_election_unreadies_nobody() {
    for (config, wanted) in
        [("{}", 3), ("{electionMs: 2999}", 3), ("{electionMs: 3000}", 4), ("{electionMs: 50000}", 51)]
    {
        let set = set(&format!("{{image: balsa, config: {config}}}")).spec.expect("a spec");
        let containers = set.template.spec.expect("a pod").containers;
        let probe = containers[0].readiness_probe.clone().expect("a probe");
        assert_eq!((probe.period_seconds, probe.failure_threshold), (Some(1), Some(wanted)), "{config}");
    }
}

#[test]
fn the_service_of_the_clients_leads_nowhere_before_the_cluster_is_founded() {
    let mut observed = observed_three();
    let selector = |observed: &Observed| {
        let service = build(&valid("{image: balsa}"), observed).client_service;
        service.spec.expect("a spec").selector
    };
    observed.resource.bootstrapped = false;
    assert_eq!(selector(&observed), None);
    observed.resource.bootstrapped = true;
    assert_eq!(selector(&observed), Some(names::labels("db")));
}

#[test]
fn a_user_cannot_replace_the_labels_that_select_pods() {
    let mut cluster = valid("{image: balsa}");
    cluster.pod.labels.insert("app.kubernetes.io/instance".to_owned(), "other".to_owned());
    let template = build(&cluster, &observed_three()).stateful_set.spec.expect("a spec").template;
    let labels = template.metadata.and_then(|metadata| metadata.labels).expect("labels");
    assert_eq!(labels.get("app.kubernetes.io/instance").map(String::as_str), Some("db"));
}

#[test]
fn the_budget_is_a_number_and_lets_unready_pods_go() {
    let budget = build(&valid("{image: balsa}"), &observed_three()).budget.expect("a budget").spec.expect("a spec");
    assert_eq!(budget.min_available, Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(2)));
    assert_eq!(budget.max_unavailable, None);
    assert_eq!(budget.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
}
