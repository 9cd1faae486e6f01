//! `RaftCluster` → [`ValidCluster`], or the first thing that is wrong with it.
//!
//! The API server has refused most of it by the rules of the CRD; this is what those rules cannot say, and the proof
//! for objects that were stored under older rules. Pure.

mod settings;

use std::collections::BTreeMap;

use balsa_crds::{NodeConfig, RaftCluster, RetentionPolicy as Policy};
use kube::ResourceExt;
use thiserror::Error;

use crate::names::{self, REPLACE_MEMBER};
use crate::valid::{MEMBERS_MAX, PodAdditions, Retention, RetentionPolicy, Storage, ValidCluster};

/// Annotation that lets a template changed by a new operator release reach the pods.
pub const ROLL_OPERATOR_TEMPLATE: &str = "balsa.dev/roll-operator-template";

/// What the node takes when the resource says nothing, as etcd does.
const HEARTBEAT_MS: i32 = 100;
const ELECTION_MS: i32 = 1000;

/// Flags that the operator sets itself, or that would let a node found a cluster by itself.
pub const RESERVED_FLAGS: [&str; 20] = [
    "name",
    "data-dir",
    "bootstrap",
    "listen-client-urls",
    "listen-peer-urls",
    "listen-metrics-urls",
    "advertise-client-urls",
    "initial-advertise-peer-urls",
    "drain-delay",
    "config-file",
    "config-version",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "force-new-cluster",
    "discovery",
    "discovery-endpoints",
    "discovery-srv",
    "discovery-token",
    "wal-dir",
];

/// What is wrong with a `RaftCluster`; the text says what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Invalid {
    /// The object has no namespace, name or UID: it did not come from an API server.
    #[error("metadata.{0} is missing: the resource was not read from an API server")]
    Metadata(&'static str),
    /// The name cannot be used in a pod or Service name.
    #[error("metadata.name {0:?} cannot name pods and Services: use at most 52 of a-z, 0-9 and '-', a letter first")]
    Name(String),
    /// Replicas out of range.
    #[error("spec.replicas is {0}: set it to 1 to {MEMBERS_MAX}")]
    Replicas(i32),
    /// The image reference does not parse.
    #[error("spec.image {image:?} is not an image reference ({why}): write [registry[:port]/]name[:tag][@digest]")]
    Image {
        /// As written.
        image: String,
        /// What does not parse.
        why: &'static str,
    },
    /// Drain delay out of range.
    #[error("spec.drainDelaySeconds is {0}: set it to 0 to 30")]
    DrainDelay(i32),
    /// The election timeout does not fit the heartbeat.
    #[error("spec.config: electionMs ({election}) must be at least 5 times heartbeatMs ({heartbeat})")]
    Election {
        /// Milliseconds.
        heartbeat: i32,
        /// Milliseconds.
        election: i32,
    },
    /// A flag that the operator sets itself.
    #[error("spec.config.extra.{0} is set by the operator: remove it")]
    ReservedFlag(String),
    /// A flag given twice.
    #[error("spec.config.extra.{0} is also a field of spec.config: keep one of the two")]
    DuplicateFlag(String),
    /// A flag that does not exist.
    #[error("spec.config.extra.{0} is no flag of the node: docs/flags.md lists those that there are")]
    UnknownFlag(String),
    /// Settings with which a node would not start.
    #[error("spec.config: with these settings no node would start: {0}")]
    Settings(String),
    /// A variable that the operator sets itself.
    #[error("spec.podTemplate.env {0} is set by the operator: remove it, settings of the node go to spec.config")]
    ReservedVariable(String),
    /// A label or annotation of the operator.
    #[error(
        "spec.podTemplate.{field} {key} is the operator's own: use a key outside balsa.dev/ and app.kubernetes.io/"
    )]
    ReservedKey {
        /// `labels` or `annotations`.
        field: &'static str,
        /// The key.
        key: String,
    },
    /// The annotation does not hold a raft id.
    #[error("annotation {REPLACE_MEMBER} is {0:?}: set it to a raftId of status.members, or remove it")]
    ReplaceMember(String),
}

/// Checks everything and makes the value that planner and builders work with.
///
/// # Errors
/// The first [`Invalid`] found.
pub fn validate(resource: &RaftCluster) -> Result<ValidCluster, Invalid> {
    let spec = &resource.spec;
    check_name(&resource.name_any())?;
    check_image(&spec.image)?;
    check_additions(resource)?;
    if !(0..=30).contains(&spec.drain_delay_seconds) {
        return Err(Invalid::DrainDelay(spec.drain_delay_seconds));
    }
    let want = want(spec.replicas)?;
    let replace_member = match resource.annotations().get(REPLACE_MEMBER) {
        Some(text) => Some(names::parse_id(text).ok_or_else(|| Invalid::ReplaceMember(text.clone()))?),
        None => None,
    };
    let node_config = node_config(&spec.config)?;
    let mut cluster = ValidCluster { want, replace_member, node_config, ..unchecked(resource)? };
    cluster.hot = settings::hot(&cluster)?;
    Ok(cluster)
}

/// Only what ending a cluster needs: a resource with an invalid spec must still be deletable.
///
/// Of an invalid spec `whenDeleted: Delete` counts only if the last good one said so too: an edit that is refused as a whole
/// ends no volume by the policy that it brings along, and one that brings `Retain` is not held against the volumes.
///
/// # Errors
/// [`Invalid::Metadata`] for an object that no API server has stored.
pub fn for_deletion(resource: &RaftCluster) -> Result<ValidCluster, Invalid> {
    let mut cluster = unchecked(resource)?;
    let good = resource.status.as_ref().and_then(|status| status.when_deleted);
    if validate(resource).is_err() && good != Some(Policy::Delete) {
        cluster.storage.retention.when_deleted = Retention::Retain;
    }
    Ok(cluster)
}

/// Only what keeping a founded cluster alive needs: its name and its size are good, whatever else is wrong. How pods shall
/// be is not in it, and no volume that is kept goes by a policy that came with what is wrong: once the spec is good, `Delete`
/// is caught up with.
///
/// # Errors
/// The first of these that is not good.
pub fn for_repairs(resource: &RaftCluster) -> Result<ValidCluster, Invalid> {
    check_name(&resource.name_any())?;
    let want = want(resource.spec.replicas)?;
    let replace_member = resource.annotations().get(REPLACE_MEMBER).and_then(|text| names::parse_id(text));
    let mut cluster = ValidCluster { want, replace_member, repairs_only: true, ..unchecked(resource)? };
    cluster.storage.retention.when_scaled = Retention::Retain;
    Ok(cluster)
}

fn want(replicas: i32) -> Result<u32, Invalid> {
    let want = u32::try_from(replicas).ok().filter(|want| (1..=MEMBERS_MAX).contains(want));
    want.ok_or(Invalid::Replicas(replicas))
}

/// Carries over every field that needs no check.
fn unchecked(resource: &RaftCluster) -> Result<ValidCluster, Invalid> {
    let spec = &resource.spec;
    let metadata = &resource.metadata;
    Ok(ValidCluster {
        namespace: metadata.namespace.clone().ok_or(Invalid::Metadata("namespace"))?,
        name: metadata.name.clone().ok_or(Invalid::Metadata("name"))?,
        uid: metadata.uid.clone().ok_or(Invalid::Metadata("uid"))?,
        generation: metadata.generation.unwrap_or_default(),
        image: spec.image.clone(),
        image_pull_policy: spec.image_pull_policy.clone(),
        cluster_domain: spec.cluster_domain.clone(),
        storage: Storage {
            size: spec.storage.size.clone(),
            class: spec.storage.class.clone(),
            retention: RetentionPolicy {
                when_deleted: retention(spec.storage.retention.when_deleted),
                when_scaled: retention(spec.storage.retention.when_scaled),
            },
        },
        drain_delay_seconds: u32::try_from(spec.drain_delay_seconds).unwrap_or_default(),
        paused: spec.paused,
        deleting: metadata.deletion_timestamp.is_some(),
        protect_single: spec.protect_single,
        roll_operator_template: resource.annotations().get(ROLL_OPERATOR_TEMPLATE).is_some_and(|v| v == "true"),
        pod: additions(resource),
        ..ValidCluster::default()
    })
}

fn additions(resource: &RaftCluster) -> PodAdditions {
    let spec = &resource.spec;
    PodAdditions {
        labels: spec.pod_template.labels.clone(),
        annotations: spec.pod_template.annotations.clone(),
        resources: spec.resources.clone(),
        affinity: spec.scheduling.affinity.clone(),
        node_selector: spec.scheduling.node_selector.clone(),
        tolerations: spec.scheduling.tolerations.clone(),
        topology_spread: spec.scheduling.topology_spread.clone().unwrap_or_default(),
        priority_class: spec.scheduling.priority_class.clone(),
        service_account: spec.pod_template.service_account.clone(),
        security_context: spec.pod_template.security_context.clone(),
        image_pull_secrets: spec.image_pull_secrets.clone(),
        env: spec.pod_template.env.clone(),
    }
}

fn retention(policy: Policy) -> Retention {
    match policy {
        Policy::Retain => Retention::Retain,
        Policy::Delete => Retention::Delete,
    }
}

fn check_name(name: &str) -> Result<(), Invalid> {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-');
    if letters && ends && name.len() <= balsa_crds::MAX_NAME_LENGTH {
        Ok(())
    } else {
        Err(Invalid::Name(name.to_owned()))
    }
}

fn check_additions(resource: &RaftCluster) -> Result<(), Invalid> {
    let additions = &resource.spec.pod_template;
    for (field, map) in [("labels", &additions.labels), ("annotations", &additions.annotations)] {
        let reserved = |key: &&String| key.starts_with("balsa.dev/") || key.starts_with("app.kubernetes.io/");
        if let Some(key) = map.keys().find(reserved) {
            return Err(Invalid::ReservedKey { field, key: key.clone() });
        }
    }
    let reserved = |name: &str| {
        let setting = name.strip_prefix("BALSA_").or_else(|| name.strip_prefix("ETCD_"));
        name == "POD_NAME"
            || setting.is_some_and(|flag| RESERVED_FLAGS.iter().any(|known| variable(known).as_str() == flag))
    };
    match additions.env.iter().find(|variable| reserved(&variable.name)) {
        Some(variable) => Err(Invalid::ReservedVariable(variable.name.clone())),
        None => Ok(()),
    }
}

/// The environment variable of a flag, without its prefix: `heartbeat-interval` → `HEARTBEAT_INTERVAL`.
pub fn variable(flag: &str) -> String {
    flag.to_ascii_uppercase().replace('-', "_")
}

/// The settings of the node by flag name. Exhaustive, so that a new field of the resource cannot be forgotten.
fn node_config(config: &NodeConfig) -> Result<BTreeMap<String, String>, Invalid> {
    let NodeConfig { heartbeat_ms, election_ms, max_request_bytes, quota_backend_bytes, log_level, extra } = config;
    let (heartbeat, election) = (heartbeat_ms.unwrap_or(HEARTBEAT_MS), election_ms.unwrap_or(ELECTION_MS));
    if election < heartbeat.saturating_mul(5) {
        return Err(Invalid::Election { heartbeat, election });
    }
    let fields = [
        ("heartbeat-interval", heartbeat_ms.map(|v| v.to_string())),
        ("election-timeout", election_ms.map(|v| v.to_string())),
        ("max-request-bytes", max_request_bytes.map(|v| v.to_string())),
        ("quota-backend-bytes", quota_backend_bytes.map(|v| v.to_string())),
        ("log-level", log_level.clone()),
    ];
    let mut flags: BTreeMap<String, String> =
        fields.into_iter().filter_map(|(flag, value)| Some((flag.to_owned(), value?))).collect();
    for (flag, value) in extra {
        if RESERVED_FLAGS.contains(&flag.as_str()) {
            return Err(Invalid::ReservedFlag(flag.clone()));
        }
        if balsa_config::flags::find(flag).is_none() {
            return Err(Invalid::UnknownFlag(flag.clone()));
        }
        if flags.insert(flag.clone(), value.clone()).is_some() {
            return Err(Invalid::DuplicateFlag(flag.clone()));
        }
    }
    Ok(flags)
}

/// Parses `[registry[:port]/]name[:tag][@digest]` as container runtimes do.
fn check_image(image: &str) -> Result<(), Invalid> {
    let refuse = |why| Err(Invalid::Image { image: image.to_owned(), why });
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return refuse("the digest is not like sha256:<64 hex digits>");
    }
    // A colon after the last slash belongs to a tag, any other to a port.
    let (name, tag) = match rest.rfind(':').filter(|colon| !rest[*colon..].contains('/')) {
        Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return refuse("the tag is not 1 to 128 of letters, digits, '_', '.' and '-'");
    }
    let path = match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
            if !is_registry(first) {
                return refuse("the registry is not host or host:port");
            }
            path
        }
        _ => name,
    };
    if path.split('/').all(is_path_component) { Ok(()) } else { refuse("the name is not of a-z, 0-9 and separators") }
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        let known =
            !algorithm.is_empty() && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b));
        let length = if algorithm == "sha256" { hex.len() == 64 } else { hex.len() >= 32 };
        known && length && hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_registry(registry: &str) -> bool {
    if let Some(address) = registry.strip_prefix('[') {
        let Some((address, port)) = address.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    // Between alphanumeric runs stand one dot, one or two underscores, or any number of dashes.
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|s| !s.is_empty());
    let legal = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    !component.is_empty()
        && component.bytes().next().is_some_and(alphanumeric)
        && component.bytes().next_back().is_some_and(alphanumeric)
        && separators.into_iter().all(legal)
}

#[cfg(test)]
mod tests;
