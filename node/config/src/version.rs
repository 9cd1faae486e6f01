//! The versions that this program reports.

/// The etcd release whose API this node serves. Clients gate features on it (kube-apiserver: 3.5.13 or later), and some
/// parse every dot-part as a number.
pub const ETCD_VERSION: &str = "3.6.14";

/// The cluster and storage version that goes with [`ETCD_VERSION`].
pub const ETCD_CLUSTER_VERSION: &str = "3.6.0";

/// This program's own version.
pub const BALSA_VERSION: &str = env!("CARGO_PKG_VERSION");
