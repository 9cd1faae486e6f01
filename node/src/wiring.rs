//! What `main` hands to the layers, out of the configuration. Stands above all of them, so that none knows another's
//! settings.

use crate::config::{self, Config};
use crate::engine::watch::WatchOptions;
use crate::engine::{self, NodeConfig};
use crate::service::Settings;
use crate::storage::rocks::KeySpaceOptions;
use crate::transport::tonic::PeerMetrics;

impl From<&Config> for NodeConfig {
    fn from(config: &Config) -> Self {
        let bootstrap = match &config.bootstrap {
            config::Bootstrap::Operator => engine::Bootstrap::Operator,
            config::Bootstrap::Static { members, token, existing } => engine::Bootstrap::Static {
                members: members.clone().into_iter().collect(),
                token: token.clone(),
                existing: *existing,
            },
        };
        Self {
            data_dir: config.data_dir.clone(),
            name: config.name.clone(),
            peer_urls: config.initial_advertise_peer_urls.clone(),
            client_urls: config.advertise_client_urls.clone(),
            bootstrap,
            tick: config.heartbeat_interval,
            election_ticks: config.election_ticks(),
            pre_vote: config.pre_vote,
            max_request_bytes: config.max_request_bytes,
            quota_bytes: config.quota_bytes,
            watch: WatchOptions::default(),
            key_space: KeySpaceOptions::default(),
            peer_metrics: PeerMetrics::default(),
        }
    }
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            name: config.name.clone(),
            max_txn_ops: config.max_txn_ops,
            max_learners: config.max_learners,
            strict_reconfig_check: config.strict_reconfig_check,
            config_hash: config.hash.clone(),
            scratch_dir: config.data_dir.join("snapshot"),
        }
    }
}
