use std::path::Path;

use super::*;

#[test]
fn generated_golden_definition_is_what_the_types_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated/raftclusters.balsa.dev.yaml");
    let wanted = raft_cluster_yaml().expect("the definition is YAML");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("create the folder");
        std::fs::write(&path, &wanted).expect("write the definition");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is stale: run `make generate` and commit it", path.display());
}

/// Plain `kubectl apply` keeps what it applied in an annotation, and those of one object may hold 256 KiB.
#[test]
fn the_definition_fits_into_the_annotation_of_kubectl_apply() {
    let json = serde_json::to_string(&raft_cluster_definition()).expect("JSON");
    let annotation = "kubectl.kubernetes.io/last-applied-configuration".len() + json.len();
    assert!(annotation < 256 * 1024, "{annotation} bytes: it would need `kubectl apply --server-side`");
}

fn schema() -> serde_json::Value {
    let definition = serde_json::to_value(raft_cluster_definition()).expect("JSON");
    definition["spec"]["versions"][0].clone()
}

#[test]
fn every_rule_has_a_message_that_names_its_field() {
    fn walk(value: &serde_json::Value, found: &mut usize) {
        if let Some(rules) = value.get("x-kubernetes-validations").and_then(|v| v.as_array()) {
            for rule in rules {
                let message = rule["message"].as_str().unwrap_or_default();
                assert!(message.contains("spec.") || message.contains("metadata."), "no field named: {rule}");
                *found += 1;
            }
        }
        match value {
            serde_json::Value::Object(map) => map.values().for_each(|v| walk(v, found)),
            serde_json::Value::Array(list) => list.iter().for_each(|v| walk(v, found)),
            _ => {}
        }
    }
    let mut found = 0;
    walk(&schema()["schema"], &mut found);
    assert!(found >= 15, "only {found} rules reached the schema");
}

#[test]
fn the_smallest_resource_gets_every_default() {
    let cluster: RaftCluster = serde_yaml::from_str(
        "apiVersion: balsa.dev/v1alpha1\nkind: RaftCluster\nmetadata: {name: a}\n\
         spec: {image: balsa, storage: {size: 1Gi}}",
    )
    .expect("parses");
    assert_eq!(cluster.spec.replicas, 3);
    assert_eq!(cluster.spec.drain_delay_seconds, 10);
    assert_eq!(cluster.spec.cluster_domain, "cluster.local");
    assert_eq!(cluster.spec.storage.retention, Retention::default());
    assert_eq!(cluster.spec.storage.retention.when_deleted, RetentionPolicy::Retain);
    let spec = &schema()["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    assert_eq!(spec["replicas"]["default"], 3);
    assert_eq!(spec["storage"]["properties"]["retention"]["default"]["whenScaled"], "Retain");
}

#[test]
fn scale_reads_replicas_and_selector_from_status() {
    let scale = &schema()["subresources"]["scale"];
    assert_eq!(scale["specReplicasPath"], ".spec.replicas");
    assert_eq!(scale["statusReplicasPath"], ".status.replicas");
    assert_eq!(scale["labelSelectorPath"], ".status.selector");
}

/// `kubectl explain` shows a field's own description: what it decides, and each of its values.
#[test]
fn what_becomes_of_volumes_is_told_by_kubectl_explain() {
    let root = &schema()["schema"]["openAPIV3Schema"]["properties"];
    let retention = &root["spec"]["properties"]["storage"]["properties"]["retention"]["properties"];
    let fields = [&retention["whenDeleted"], &retention["whenScaled"], &root["status"]["properties"]["whenDeleted"]];
    for (field, when) in fields.into_iter().zip(["RaftCluster is deleted", "scaled away", "RaftCluster is deleted"]) {
        let told = field["description"].as_str().unwrap_or_default();
        assert!(["`Retain`", "`Delete`", when].iter().all(|words| told.contains(words)), "{told}");
    }
}
