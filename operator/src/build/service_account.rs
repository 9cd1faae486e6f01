//! The pods' identity. It has no rights and its token is not mounted: nodes never talk to Kubernetes.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata;
use crate::valid::ValidCluster;

pub(super) fn build(cluster: &ValidCluster) -> Option<ServiceAccount> {
    cluster.pod.service_account.is_none().then(|| ServiceAccount {
        metadata: metadata(cluster, name(cluster)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}

/// The account that pods run under.
pub(super) fn name(cluster: &ValidCluster) -> String {
    cluster.pod.service_account.clone().unwrap_or_else(|| cluster.name.clone())
}
