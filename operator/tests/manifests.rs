//! What is installed, and that none of it is stale.
//!
//! The table below is the operator's every call to the API server. From it come the rules in `manifests/install.yaml`
//! and in the chart. `UPDATE_GOLDEN=1` rewrites the generated files.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use balsa_operator::step::WaitReason;
use serde_json::{Map, Value as Json, json};
use serde_yaml::Value;

/// (API group, resource, verb, where in the operator's source the call is made).
type Call = (&'static str, &'static str, &'static str, &'static str);

/// Calls in the namespaces of clusters.
const CALLS: &[Call] = &[
    ("balsa.dev", "raftclusters", "get", "controller.rs"),
    ("balsa.dev", "raftclusters", "list", "controller.rs"),
    ("balsa.dev", "raftclusters", "watch", "controller.rs"),
    ("balsa.dev", "raftclusters", "patch", "controller.rs"),
    ("balsa.dev", "raftclusters/status", "patch", "status.rs"),
    ("apps", "statefulsets", "get", "observe/mod.rs"),
    ("apps", "statefulsets", "list", "controller.rs"),
    ("apps", "statefulsets", "watch", "controller.rs"),
    ("apps", "statefulsets", "create", "apply.rs"),
    ("apps", "statefulsets", "patch", "execute.rs"),
    ("apps", "statefulsets", "delete", "execute.rs"),
    ("", "pods", "get", "execute.rs"),
    ("", "pods", "list", "observe/mod.rs"),
    ("", "pods", "watch", "controller.rs"),
    ("", "pods", "delete", "execute.rs"),
    ("", "pods/eviction", "create", "execute.rs"),
    ("", "persistentvolumeclaims", "get", "observe/claims.rs"),
    ("", "persistentvolumeclaims", "list", "observe/mod.rs"),
    ("", "persistentvolumeclaims", "patch", "execute.rs"),
    ("", "persistentvolumeclaims", "delete", "execute.rs"),
    ("", "services", "get", "observe/mod.rs"),
    ("", "services", "create", "apply.rs"),
    ("", "services", "patch", "apply.rs"),
    ("", "configmaps", "get", "observe/mod.rs"),
    ("", "configmaps", "create", "apply.rs"),
    ("", "configmaps", "patch", "apply.rs"),
    ("", "serviceaccounts", "get", "observe/mod.rs"),
    ("", "serviceaccounts", "create", "apply.rs"),
    ("", "serviceaccounts", "patch", "apply.rs"),
    ("policy", "poddisruptionbudgets", "get", "observe/mod.rs"),
    ("policy", "poddisruptionbudgets", "create", "apply.rs"),
    ("policy", "poddisruptionbudgets", "patch", "apply.rs"),
    ("policy", "poddisruptionbudgets", "delete", "apply.rs"),
    ("discovery.k8s.io", "endpointslices", "list", "observe/mod.rs"),
    ("", "events", "list", "observe/mod.rs"),
    ("events.k8s.io", "events", "create", "controller.rs"),
    ("events.k8s.io", "events", "patch", "controller.rs"),
];

/// Reads of things without a namespace. Without them the plan waits where it needs proof that a host is gone.
const HOST_CALLS: &[Call] =
    &[("", "nodes", "get", "observe/mod.rs"), ("", "persistentvolumes", "get", "observe/mod.rs")];

/// Calls in the operator's own namespace.
const LEASE_CALLS: &[Call] = &[
    ("coordination.k8s.io", "leases", "get", "lease.rs"),
    ("coordination.k8s.io", "leases", "create", "lease.rs"),
    ("coordination.k8s.io", "leases", "patch", "lease.rs"),
];

/// What the source says where a verb is used, and how a resource is named there.
const WORDS: &[(&str, &[&str])] = &[
    ("get", &[".get_opt(", "Seat"]),
    ("list", &[".list(", "Controller::new"]),
    ("watch", &["Controller::new", "watches("]),
    ("create", &["PatchParams::apply", "eviction", "publish(", "Seat"]),
    ("patch", &[".patch(", ".patch::<", "patch_status(", "publish(", "Seat"]),
    ("delete", &[".delete(", ".delete::<"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Rules in the table's order, verbs of one resource together.
fn rules(calls: &[Call]) -> String {
    let mut text = String::new();
    let mut done = BTreeSet::new();
    for (group, resource, ..) in calls {
        if !done.insert((group, resource)) {
            continue;
        }
        let verbs: Vec<&str> = calls.iter().filter(|c| (&c.0, &c.1) == (group, resource)).map(|c| c.2).collect();
        writeln!(text, "- apiGroups: [{group:?}]\n  resources: [{resource}]\n  verbs: [{}]", verbs.join(", "))
            .expect("text");
    }
    text
}

fn role(kind: &str, name: &str, rules: &str) -> String {
    let namespace = if kind == "Role" { "\n  namespace: balsa-system" } else { "" };
    let metadata =
        format!("metadata:\n  name: {name}{namespace}\n  labels:\n    app.kubernetes.io/name: balsa-operator\n");
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\n{metadata}rules:\n{rules}---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\n{metadata}roleRef:\n  \
         apiGroup: rbac.authorization.k8s.io\n  kind: {kind}\n  name: {name}\nsubjects:\n- kind: ServiceAccount\n  \
         name: balsa-operator\n  namespace: balsa-system\n"
    )
}

fn install() -> String {
    let part = |name: &str| fs::read_to_string(root().join("manifests/parts").join(name)).expect(name);
    let account = "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: balsa-operator\n  namespace: balsa-system\n  \
                   labels:\n    app.kubernetes.io/name: balsa-operator\n";
    [
        "# Generated from crds/src, manifests/parts and operator/tests/manifests.rs; do not edit. `make generate` \
         rewrites it.\n"
            .to_owned()
            + &part("namespace.yaml"),
        balsa_crds::raft_cluster_yaml().expect("YAML"),
        account.to_owned(),
        role("ClusterRole", "balsa-operator", &(rules(CALLS) + &rules(HOST_CALLS))),
        role("Role", "balsa-operator-lease", &rules(LEASE_CALLS)),
        part("deployment.yaml"),
    ]
    .join("---\n")
}

fn generated(path: &str, wanted: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("create the folder");
        fs::write(&path, wanted).expect("write");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is stale: run `make generate` and commit it", path.display());
}

#[test]
fn generated_golden_install_manifest_is_what_its_parts_say() {
    generated("manifests/install.yaml", &install());
}

#[test]
fn generated_golden_chart_files_are_copies() {
    let chart = "charts/balsa-operator";
    generated(&format!("{chart}/crds/raftclusters.balsa.dev.yaml"), &balsa_crds::raft_cluster_yaml().expect("YAML"));
    generated(&format!("{chart}/files/rules.yaml"), &rules(CALLS));
    generated(&format!("{chart}/files/host-rules.yaml"), &rules(HOST_CALLS));
    generated(&format!("{chart}/files/lease-rules.yaml"), &rules(LEASE_CALLS));
}

/// What JSON Schema can say of a part of the CRD. A field that there is not would only be a warning of the API server, which
/// drops it: with Helm it is an error. So each object that has fields has no others.
fn for_helm(schema: &Json) -> Json {
    let mut told = Map::new();
    for key in ["enum", "required", "maxLength", "maxProperties"] {
        told.extend(schema.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    let kind = match schema["x-kubernetes-int-or-string"] == true {
        true => json!(["integer", "string"]),
        false if schema["nullable"] == true => json!([schema["type"], "null"]),
        false => schema["type"].clone(),
    };
    told.insert("type".to_owned(), kind);
    if let Some(fields) = schema["properties"].as_object() {
        let fields = fields.iter().map(|(name, field)| (name.clone(), for_helm(field)));
        told.insert("properties".to_owned(), fields.collect::<Map<_, _>>().into());
        told.insert("additionalProperties".to_owned(), json!(false));
    }
    for key in ["items", "additionalProperties"] {
        told.extend(schema.get(key).map(|schema| (key.to_owned(), for_helm(schema))));
    }
    told.into()
}

/// The fields of the spec; what only the API server's rules say of them, as far as Helm should know it; and the rest as it is.
#[test]
fn generated_golden_chart_of_a_cluster_has_the_fields_of_the_resource() {
    let path = "charts/raft-cluster/values.schema.json";
    let text = fs::read_to_string(root().join(path)).expect(path);
    let mut schema: Json = serde_json::from_str(&text).expect("JSON");
    let definition = serde_json::to_value(balsa_crds::raft_cluster_definition()).expect("JSON");
    let resource = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut spec = for_helm(&resource["spec"]);
    let replicas = &mut spec["properties"]["replicas"];
    (replicas["minimum"], replicas["maximum"]) = (json!(1), json!(balsa_crds::MAX_REPLICAS));
    spec["properties"]["image"]["minLength"] = json!(1);
    schema["properties"]["spec"] = spec;
    generated(path, &(serde_json::to_string_pretty(&schema).expect("JSON") + "\n"));
}

/// No object of the schema lets a field pass that the API server would drop.
#[test]
fn the_chart_of_a_cluster_knows_every_field_at_every_level() {
    fn open(schema: &Json, at: &str, found: &mut Vec<String>) {
        if !schema.is_object() {
            return;
        }
        let fields = schema["properties"].as_object();
        if fields.is_some() && schema["additionalProperties"] != false {
            found.push(at.to_owned());
        }
        if fields.is_none() && schema["type"] == "object" && schema.get("additionalProperties").is_none() {
            found.push(at.to_owned());
        }
        fields.into_iter().flatten().for_each(|(name, field)| open(field, &format!("{at}.{name}"), found));
        ["items", "additionalProperties"].iter().for_each(|key| open(&schema[*key], &format!("{at}[]"), found));
    }
    let text = fs::read_to_string(root().join("charts/raft-cluster/values.schema.json")).expect("a schema");
    let schema: Json = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    open(&schema["properties"]["spec"], "spec", &mut found);
    assert_eq!(found, Vec::<String>::new());
    assert!(schema["properties"]["spec"]["properties"]["storage"]["properties"]["retention"].is_object());
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_yaml::from_str(document).expect(document)).collect()
}

#[test]
fn rbac_every_rule_has_its_call_and_every_call_its_rule() {
    let installed = documents(&install());
    let role = |kind: &str| {
        let found = installed.iter().find(|document| document["kind"] == *kind).expect(kind);
        let mut verbs = BTreeSet::new();
        for rule in found["rules"].as_sequence().expect("rules") {
            for verb in rule["verbs"].as_sequence().expect("verbs") {
                let text = |value: &Value| value.as_str().expect("text").to_owned();
                verbs.insert((text(&rule["apiGroups"][0]), text(&rule["resources"][0]), text(verb)));
            }
        }
        verbs
    };
    let wanted = |calls: &[Call]| -> BTreeSet<_> {
        calls
            .iter()
            .map(|(group, resource, verb, _)| (group.to_string(), resource.to_string(), verb.to_string()))
            .collect()
    };
    assert_eq!(role("ClusterRole"), wanted(&[CALLS, HOST_CALLS].concat()));
    assert_eq!(role("Role"), wanted(LEASE_CALLS));
}

#[test]
fn rbac_every_call_of_the_table_is_made_where_it_says() {
    for (_, resource, verb, file) in [CALLS, HOST_CALLS, LEASE_CALLS].concat() {
        let source = fs::read_to_string(root().join("operator/src").join(file)).expect(file);
        let (_, words) = WORDS.iter().find(|(known, _)| *known == verb).expect(verb);
        assert!(words.iter().any(|word| source.contains(word)), "{file} does not {verb} {resource}");
    }
}

/// The other way round: a file of the operator that calls the API server is in the table.
#[test]
fn rbac_no_file_outside_the_table_calls_the_api_server() {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let source = root().join("operator/src");
    let mut files = Vec::new();
    walk(&source, &mut files);
    let known: BTreeSet<&str> = [CALLS, HOST_CALLS, LEASE_CALLS].concat().iter().map(|call| call.3).collect();
    for file in files {
        let name = file.strip_prefix(&source).expect("below").to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).expect("text");
        let calls = text.contains("Api::namespaced(") || text.contains("Api::all(");
        assert!(!calls || known.contains(name.as_str()), "{name} calls the API server and is not in the table");
    }
}

#[test]
fn samples_are_valid_resources() {
    for sample in ["raftcluster.yaml", "raftcluster-full.yaml"] {
        let text = fs::read_to_string(root().join("manifests/samples").join(sample)).expect(sample);
        let mut cluster: balsa_crds::RaftCluster = serde_yaml::from_str(&text).expect(sample);
        cluster.metadata.namespace = Some("default".to_owned());
        cluster.metadata.uid = Some("u".to_owned());
        balsa_operator::validate::validate(&cluster).expect(sample);
    }
}

/// The chart's default values and the manifest install the same operator.
#[test]
fn the_chart_installs_the_image_and_limits_of_the_manifest() {
    let values: Value =
        serde_yaml::from_str(&fs::read_to_string(root().join("charts/balsa-operator/values.yaml")).expect("values"))
            .expect("YAML");
    let deployment = documents(&install()).pop().expect("a deployment");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let image = format!(
        "{}:{}",
        values["image"]["repository"].as_str().expect("repository"),
        values["image"]["tag"].as_str().expect("tag")
    );
    assert_eq!(container["image"].as_str(), Some(image.as_str()));
    assert_eq!(container["resources"], values["resources"]);
    assert_eq!(deployment["spec"]["replicas"], values["replicas"]);
}

/// What does not pass by itself is told to somebody: all but a pause, which somebody asked for.
#[test]
fn every_wait_for_a_human_raises_the_alert() {
    let text = fs::read_to_string(root().join("manifests/prometheus/rules.yaml")).expect("the shipped rules");
    let rules: Value = serde_yaml::from_str(&text).expect("YAML");
    let expression = rules["groups"][0]["rules"][0]["expr"].as_str().expect("an expression");
    let (_, listed) = expression.split_once("reason=~\"").expect("a list of reasons");
    let (listed, _) = listed.split_once('"').expect("its end");
    let listed: BTreeSet<&str> = listed.split('|').collect();
    let human = WaitReason::ALL.iter().filter(|reason| reason.needs_human() && **reason != WaitReason::Paused);
    assert_eq!(listed, human.map(|reason| reason.as_str()).collect());
}
