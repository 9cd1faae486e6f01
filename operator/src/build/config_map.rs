//! Settings of the node, as environment variables under their flags' names.

use k8s_openapi::api::core::v1::ConfigMap;

use super::metadata;
use crate::valid::ValidCluster;
use crate::validate::variable;

pub(super) fn build(cluster: &ValidCluster) -> ConfigMap {
    let variables = cluster.node_config.iter();
    ConfigMap {
        metadata: metadata(cluster, format!("{}-config", cluster.name)),
        data: Some(variables.map(|(flag, value)| (format!("BALSA_{}", variable(flag)), value.clone())).collect()),
        ..ConfigMap::default()
    }
}
