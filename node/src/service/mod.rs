//! Use cases: check a request, choose its path, await the outcome. One file per service of the wire contract, and one
//! table of failures. Nothing here knows how a request arrived (tonic, HTTP) or how bytes are kept (RocksDB).

pub mod archive;
pub mod checks;
pub mod cluster;
pub mod failure;
pub mod forward;
pub mod health;
pub mod kv;
pub mod maintenance;
pub mod member;
pub mod metrics;
pub mod node;
pub mod reconfigure;
pub mod stop;

pub use failure::Error;
pub use member::{Member, Settings};

/// The etcd release whose API this node serves. Clients gate features on it (kube-apiserver: 3.5.13 or later), and some
/// parse every dot-part as a number.
pub const ETCD_VERSION: &str = "3.6.14";

/// The cluster and storage version that goes with [`ETCD_VERSION`].
pub const ETCD_CLUSTER_VERSION: &str = "3.6.0";

/// This program's own version.
pub const BALSA_VERSION: &str = env!("CARGO_PKG_VERSION");
