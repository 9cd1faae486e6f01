//! Settings of the node, as environment variables under their flags' names.

use std::collections::BTreeMap;

use balsa_config::flags::HOT;
use k8s_openapi::api::core::v1::ConfigMap;

use super::metadata;
use crate::valid::ValidCluster;
use crate::validate::variable;

pub(super) fn build(cluster: &ValidCluster) -> ConfigMap {
    ConfigMap {
        metadata: metadata(cluster, format!("{}-config", cluster.name)),
        data: Some(variables(&cluster.node_config)),
        ..ConfigMap::default()
    }
}

/// Flags as the variables that a node reads.
pub fn variables(flags: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    flags.iter().map(|(flag, value)| (format!("BALSA_{}", variable(flag)), value.clone())).collect()
}

/// The settings that a member takes over only when it starts. All others reach it while it runs, so a change of them
/// must not be seen in the template.
pub(super) fn cold(cluster: &ValidCluster) -> BTreeMap<String, String> {
    let cold = cluster.node_config.iter().filter(|(flag, _)| !HOT.contains(&flag.as_str()));
    cold.map(|(flag, value)| (flag.clone(), value.clone())).collect()
}
