use super::*;
use crate::fixtures::{cluster_from, minimal};

fn invalid(spec: &str) -> Invalid {
    validate(&cluster_from(spec)).expect_err(spec)
}

#[test]
fn the_minimal_resource_is_valid_and_keeps_volumes() {
    let cluster = validate(&minimal()).expect("valid");
    assert_eq!((cluster.want, cluster.drain_delay_seconds), (3, 10));
    assert_eq!(cluster.storage.retention, RetentionPolicy::default());
    assert_eq!(cluster.node_config, BTreeMap::new());
    assert!(!cluster.paused && !cluster.deleting && !cluster.protect_single);
}

#[test]
fn m30_image_references_with_port_and_digest_parse() {
    let digest = "0123456789abcdef".repeat(4);
    for image in [
        "balsa",
        "balsa:dev",
        "library/balsa",
        "balsa.dev/balsa:dev",
        "localhost/balsa",
        "localhost:5000/balsa",
        "registry:5000/balsa",
        "registry:5000/team/balsa:v1.2.3-rc.1",
        &format!("registry:5000/balsa@sha256:{digest}"),
        &format!("registry.example.org:5000/a/b__c/balsa:1@sha256:{digest}"),
        "[fd00::1]:5000/balsa:1",
        "a-b--c/d.e_f:T_1.x",
    ] {
        assert_eq!(check_image(image), Ok(()), "{image}");
    }
    for image in [
        "",
        " balsa",
        "Balsa",
        "balsa:",
        "balsa@",
        "balsa@sha256:12",
        "balsa:tag:tag",
        "registry:0/balsa",
        "registry:99999/balsa",
        "registry.example.org:/balsa",
        "a//b",
        "a/",
        "/a",
        "a..b",
        "-a",
        "http://registry/balsa",
        "[fd00::1/balsa",
    ] {
        assert!(check_image(image).is_err(), "{image:?} parsed");
    }
}

#[test]
fn every_refusal_says_what_to_do() {
    let cases = [
        ("{image: balsa, replicas: 0}", "set it to 1 to 7"),
        ("{image: balsa, replicas: 8}", "set it to 1 to 7"),
        ("{image: 'a b'}", "write [registry"),
        ("{image: balsa, drainDelaySeconds: 31}", "set it to 0 to 30"),
        ("{image: balsa, config: {heartbeatMs: 100, electionMs: 499}}", "at least 5 times"),
        ("{image: balsa, config: {heartbeatMs: 201}}", "electionMs (1000) must be at least 5 times heartbeatMs (201)"),
        ("{image: balsa, config: {electionMs: 499}}", "at least 5 times"),
        ("{image: balsa, config: {extra: {data-dir: /x}}}", "remove it"),
        ("{image: balsa, config: {heartbeatMs: 100, extra: {heartbeat-interval: '1'}}}", "keep one"),
        ("{image: balsa, config: {extra: {config-version: '7'}}}", "remove it"),
        ("{image: balsa, config: {extra: {max-txn-opps: '9'}}}", "no flag of the node"),
        (
            "{image: balsa, config: {extra: {max-txn-ops: many}}}",
            "invalid value \"many\" for BALSA_MAX_TXN_OPS: parse error (it is not a number)",
        ),
        ("{image: balsa, config: {extra: {max-txn-ops: '0'}}}", "no node would start: --max-txn-ops must not be 0"),
        ("{image: balsa, config: {maxRequestBytes: 104857600}}", "must not exceed"),
        ("{image: balsa, config: {extra: {auto-compaction-mode: sometimes}}}", "unknown auto-compaction-mode"),
        ("{image: balsa, config: {extra: {discovery-proxy: a}}}", "is not supported"),
        ("{image: balsa, config: {extra: {feature-gates: Nonsense=true}}}", "unrecognized feature gate"),
        ("{image: balsa, podTemplate: {env: [{name: BALSA_LOG_LEVEL, value: loud}]}}", "--log-level=loud"),
        (
            "{image: balsa, config: {logLevel: info}, podTemplate: {env: [{name: ETCD_LOG_LEVEL, value: info}]}}",
            "conflicting",
        ),
        ("{image: balsa, podTemplate: {labels: {app.kubernetes.io/name: x}}}", "use a key outside"),
        ("{image: balsa, podTemplate: {annotations: {balsa.dev/x: x}}}", "use a key outside"),
        ("{image: balsa, podTemplate: {env: [{name: BALSA_DATA_DIR, value: x}]}}", "spec.config"),
        ("{image: balsa, podTemplate: {env: [{name: POD_NAME, value: x}]}}", "remove it"),
    ];
    for (spec, wanted) in cases {
        let text = invalid(spec).to_string();
        assert!(text.contains(wanted), "{spec}: {text}");
    }
}

#[test]
fn names_that_cannot_name_a_service_are_refused() {
    for name in ["", "1a", "a.b", "A", "a-", &"a".repeat(53)] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
    for name in ["a", "a-1", &"a".repeat(52)] {
        assert_eq!(check_name(name), Ok(()));
    }
}

#[test]
fn replace_member_takes_one_raft_id() {
    let mut resource = minimal();
    resource.annotations_mut().insert(REPLACE_MEMBER.to_owned(), "a1".to_owned());
    assert_eq!(validate(&resource).expect("valid").replace_member, Some(0xa1));
    resource.annotations_mut().insert(REPLACE_MEMBER.to_owned(), "db-1".to_owned());
    assert_eq!(validate(&resource), Err(Invalid::ReplaceMember("db-1".to_owned())));
}

#[test]
fn an_invalid_resource_can_still_be_deleted() {
    let mut resource = cluster_from("{image: '', replicas: 99}");
    resource.metadata.deletion_timestamp = Some(crate::fixtures::time(0));
    assert!(validate(&resource).is_err());
    assert!(for_deletion(&resource).expect("deletable").deleting);
}

#[test]
fn settings_reach_the_node_under_etcds_names() {
    let resource = cluster_from(
        "{image: balsa, config: {heartbeatMs: 50, electionMs: 500, maxRequestBytes: 2048, quotaBackendBytes: 4194304, \
         logLevel: debug, extra: {auto-compaction-retention: 1h}}}",
    );
    let config = validate(&resource).expect("valid").node_config;
    let flags: Vec<_> = config.iter().map(|(flag, value)| format!("{}={value}", variable(flag))).collect();
    assert_eq!(
        flags,
        [
            "AUTO_COMPACTION_RETENTION=1h",
            "ELECTION_TIMEOUT=500",
            "HEARTBEAT_INTERVAL=50",
            "LOG_LEVEL=debug",
            "MAX_REQUEST_BYTES=2048",
            "QUOTA_BACKEND_BYTES=4194304"
        ]
    );
}

/// What every member shall have is what one that starts now has: the defaults, the settings, and over them the variables of
/// the container, as Kubernetes merges them.
#[test]
fn what_changes_at_run_time_is_known_whole() {
    let hot = |spec: &str| validate(&cluster_from(spec)).expect("valid").hot;
    let plain = hot("{image: balsa}");
    assert_eq!(plain.keys().map(String::as_str).collect::<Vec<_>>(), balsa_config::flags::HOT);
    assert_eq!((plain["log-level"].as_str(), plain["max-txn-ops"].as_str()), ("info", "128"));
    let set = hot("{image: balsa, config: {logLevel: debug, extra: {max-txn-ops: '9', bcrypt-cost: '11'}}, \
         podTemplate: {env: [{name: BALSA_MAX_TXN_OPS, value: '7'}, {name: ETCD_MAX_LEARNERS, value: '2'}]}}");
    let texts = ["log-level", "max-txn-ops", "max-learners"].map(|flag| set[flag].as_str());
    assert_eq!((texts, set.len()), (["debug", "7", "2"], plain.len()));
    // A value that stands in a Secret is none of the operator's business, and is not overridden.
    let elsewhere = hot(
        "{image: balsa, podTemplate: {env: [{name: BALSA_LOG_LEVEL, valueFrom: {secretKeyRef: {name: a, key: b}}}, \
         {name: BALSA_MAX_TXN_OPS, value: $(OTHER)}]}}",
    );
    assert_eq!(elsewhere.len(), plain.len() - 2);
    assert!(!elsewhere.contains_key("log-level") && !elsewhere.contains_key("max-txn-ops"));
}

/// The operator asks the node's reader, and its own files are none of a tenant's business.
#[test]
fn no_file_of_the_operator_is_read() {
    let with =
        |name: &str| format!("{{image: balsa, podTemplate: {{env: [{{name: {name}, value: /proc/self/environ}}]}}}}");
    for name in ["BALSA_CONFIG_FILE", "ETCD_CONFIG_FILE"] {
        assert_eq!(validate(&cluster_from(&with(name))), Err(Invalid::ReservedVariable(name.to_owned())));
    }
    // The node does not know them either.
    for name in ["BALSA_config_file", "BALSA_CONFIG-FILE"] {
        let cluster = validate(&cluster_from(&with(name))).expect("a variable of somebody else");
        assert_eq!(cluster.hot, validate(&cluster_from("{image: balsa}")).expect("valid").hot);
    }
}

/// An election timeout that stands in a Secret may go with the interval.
#[test]
fn settings_of_which_some_stand_elsewhere_are_the_nodes_to_judge() {
    let interval = r#"{image: balsa, config: {extra: {heartbeat-interval: "500"}}"#;
    assert!(matches!(validate(&cluster_from(&format!("{interval}}}"))), Err(Invalid::Settings(_))));
    let timeout = "podTemplate: {env: [{name: BALSA_ELECTION_TIMEOUT, valueFrom: {secretKeyRef: {name: a, key: b}}}]}";
    let cluster = validate(&cluster_from(&format!("{interval}, {timeout}}}"))).expect("the node judges");
    assert!(cluster.hot.is_empty(), "and nothing is pushed");
}

/// Whatever is wrong with the spec, no volume goes by a policy that it brings along.
#[test]
fn repairs_keep_volumes() {
    let retention = "storage: {size: 1Gi, retention: {whenScaled: Delete}}";
    let resource = cluster_from(&format!("{{image: a, {retention}, config: {{extra: {{max-txn-opps: '1'}}}}}}"));
    assert_eq!(validate(&resource), Err(Invalid::UnknownFlag("max-txn-opps".into())));
    let kept = for_repairs(&resource).expect("there is enough for repairs");
    assert_eq!(kept.storage.retention.when_scaled, Retention::Retain);
}
