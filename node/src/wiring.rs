//! What `main` puts together, out of the configuration: the parts of a node and what each needs to know. Stands above all
//! layers, so that none knows another's settings.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::server::{Closing, Listeners, Services};
use crate::api::spans::Tracing;
use crate::config::discovery::Discovery;
use crate::config::gates;
use crate::config::hot::{AutoCompaction, HotConfig};
use crate::config::tls::{TlsSide, TlsVersion};
use crate::config::url::Url;
use crate::config::{self, Config};
use crate::discovery::{self, Found, Seeker};
use crate::domain::auto_compaction::Retention;
use crate::engine::fatal::Fatal;
use crate::engine::leases::LeaseOptions;
use crate::engine::watch::WatchOptions;
use crate::engine::{self, Housekeeping, Limit, Node, NodeConfig, StartError};
use crate::process::{Termination, failed};
use crate::service::caller::AuthSettings;
use crate::service::jwt::TokenKeyError;
use crate::service::metrics::Metrics;
use crate::service::tokens::Tokens;
use crate::service::{Member, Settings, auto_compaction, corruption};
use crate::storage::rocks::KeySpaceOptions;
use crate::transport::open_files;
use crate::transport::otlp::{Collector, Exporter};
use crate::transport::tls::{Identity, Tls, TlsError, TlsOptions, Version, self_signed};
use crate::transport::tonic::{Dialer, PeerMetrics};

impl From<&Config> for NodeConfig {
    /// With the limits as they are at the start.
    fn from(config: &Config) -> Self {
        let bootstrap = match &config.bootstrap {
            config::Bootstrap::Operator => engine::Bootstrap::Operator,
            config::Bootstrap::Static { members, token, existing } => engine::Bootstrap::Static {
                members: members.clone().map(|members| members.into_iter().collect()),
                token: token.clone(),
                existing: *existing,
            },
            // Only an empty disk asks, and what it finds is put here.
            config::Bootstrap::Discovered { token, existing, .. } => engine::Bootstrap::Static {
                members: Err("the members are not discovered yet".to_owned()),
                token: token.clone(),
                existing: *existing,
            },
        };
        let (bytes, quota) = (config.hot.max_request_bytes, config.hot.quota_bytes);
        Self {
            data_dir: config.data_dir.clone(),
            name: config.name.clone(),
            peer_urls: config.initial_advertise_peer_urls.clone(),
            client_urls: config.advertise_client_urls.clone(),
            bootstrap,
            force_new_cluster: config.force_new_cluster,
            tick: config.heartbeat_interval,
            election_ticks: config.election_ticks(),
            pre_vote: config.pre_vote,
            max_request_bytes: Limit::new(move || bytes),
            quota_bytes: Limit::new(move || quota),
            slow_apply: config.warning_apply_duration,
            housekeeping: Housekeeping {
                flush_entries: config.housekeeping.snapshot_count,
                catch_up_entries: config.housekeeping.snapshot_catchup_entries,
                compaction_batch: config.housekeeping.compaction_batch_limit,
                compaction_pause: config.housekeeping.compaction_sleep_interval,
            },
            watch: WatchOptions::default(),
            leases: LeaseOptions { checkpoint_every: config.lease_checkpoint_interval },
            token_ttl: config.auth_token_ttl,
            key_space: KeySpaceOptions::default(),
            dialer: Dialer::default(),
            peer_metrics: PeerMetrics::default(),
        }
    }
}

impl Metrics {
    /// The metrics of a node that is configured so.
    ///
    /// # Errors
    /// See [`Metrics::new`].
    pub fn of(config: &Config) -> prometheus::Result<Self> {
        let metrics = Self::new()?;
        if config.extensive_metrics {
            metrics.time_calls()?;
        }
        metrics.show_gates(gates::published(&config.gates))?;
        Ok(metrics)
    }
}

/// What the engine needs to know. Limits that can change are read from `hot` at each use.
pub fn engine(config: &Config, hot: &Arc<HotConfig>, dialer: Dialer) -> NodeConfig {
    let (bytes, quota) = (hot.clone(), hot.clone());
    NodeConfig {
        max_request_bytes: Limit::new(move || bytes.load().values.max_request_bytes),
        quota_bytes: Limit::new(move || quota.load().values.quota_bytes),
        dialer,
        ..NodeConfig::from(config)
    }
}

/// What the use cases need to know.
///
/// # Errors
/// The keys of tokens cannot be read.
pub fn service(config: &Config, hot: &Arc<HotConfig>) -> Result<Settings, TokenKeyError> {
    Ok(Settings {
        name: config.name.clone(),
        hot: hot.clone(),
        slow_read: config.warning_apply_duration,
        strict_reconfig_check: config.strict_reconfig_check,
        data_dir: config.data_dir.clone(),
        scratch_dir: config.data_dir.join("snapshot"),
        auth: AuthSettings {
            tokens: Tokens::open(&config.auth_token)?,
            client_cert_auth: config.tls.client.client_cert_auth,
            bcrypt_cost: config.bcrypt_cost,
            password_threads: std::thread::available_parallelism().map_or(1, usize::from),
        },
    })
}

/// How much history is kept, read from `hot` at each use.
pub fn retention(hot: &Arc<HotConfig>) -> impl Fn() -> Retention + Send + use<> {
    let hot = hot.clone();
    move || match hot.load().values.auto_compaction {
        AutoCompaction::Off => Retention::Everything,
        AutoCompaction::Periodic(period) => Retention::Period(period),
        AutoCompaction::Revision(revisions) => Retention::Revisions(revisions),
    }
}

/// Opens the disk, and starts what runs beside calls.
///
/// # Errors
/// What the disk is, or what it holds, forbids it; the keys of tokens cannot be read.
pub async fn member(
    config: &Config,
    hot: &Arc<HotConfig>,
    dialer: &Dialer,
    fatal: &Fatal,
) -> Result<Arc<Member>, Termination> {
    let node = discovered(config, engine(config, hot, dialer.clone())).await?;
    let node = Node::open(node, fatal.clone()).await?;
    let member = Arc::new(Member::new(node, service(config, hot).map_err(failed)?));
    tokio::spawn(auto_compaction::run(member.clone(), retention(hot)));
    let comparisons = corruption::Comparisons {
        at_start: config.gates["InitialCorruptCheck"],
        every: config.corrupt_check_time,
        after_compactions: config.gates["CompactHashCheck"].then_some(config.compact_hash_check_time),
    };
    corruption::start(&member, comparisons).await?;
    Ok(member)
}

/// The same with the members of its cluster, if these are to be discovered and the disk is empty.
async fn discovered(config: &Config, mut node: NodeConfig) -> Result<NodeConfig, StartError> {
    let config::Bootstrap::Discovered { by, existing, .. } = &config.bootstrap else { return Ok(node) };
    if !engine::is_vacant(&node.data_dir)? {
        if let Discovery::Registry(_) = by {
            tracing::warn!("discovery token is ignored since cluster already initialized; valid logs are found");
        }
        return Ok(node);
    }
    let seeker = Seeker {
        name: &config.name,
        peer_urls: &config.initial_advertise_peer_urls,
        founds: !existing,
        knows_authority: config.tls.peer.trusted_ca_file.is_some(),
    };
    let Found { members: found, own, expected } = discovery::find(by, seeker).await.map_err(StartError::Config)?;
    if let Some(expected) = expected {
        node.dialer.expect(&expected);
    }
    if let engine::Bootstrap::Static { members, .. } = &mut node.bootstrap {
        *members = Ok(found.into_iter().map(|urls| (String::new(), urls)).collect());
    }
    let further: Vec<_> = own.into_iter().filter(|url| !node.peer_urls.contains(url)).collect();
    node.peer_urls.extend(further);
    Ok(node)
}

/// Begins to send spans of calls, if that is asked for.
///
/// # Errors
/// The address of the collector is none.
pub fn tracing(config: &Config) -> io::Result<Option<Arc<Tracing>>> {
    let Some(of) = &config.tracing else { return Ok(None) };
    let collector = Collector {
        address: of.address.clone(),
        service_name: of.service_name.clone(),
        instance_id: of.instance_id.clone(),
    };
    let exporter = Exporter::start(&collector).map_err(io::Error::other)?;
    Ok(Some(Arc::new(Tracing::new(exporter, of.rate))))
}

/// Opens the ports.
///
/// # Errors
/// An address that cannot be bound; metrics or routes that cannot be made.
pub fn listen(
    config: &Config,
    member: &Arc<Member>,
    dialer: &Dialer,
    tls: &PortTls,
    tracing: Option<&Arc<Tracing>>,
) -> io::Result<Listeners> {
    let metrics = Arc::new(Metrics::of(config).map_err(io::Error::other)?);
    let services = Services::new(member.clone(), metrics, config, dialer.clone()).traced(tracing.cloned());
    let mut listeners = Listeners::new(config.http2, config.reuse_port, open_files::for_clients());
    let (client, client_http) = services.client_routes().map_err(io::Error::other)?;
    let (metrics, peer) = (services.metrics_routes(), services.peer_routes());
    let (of_client, of_peer) = (tls.client.as_ref(), tls.peer.as_ref());
    listeners.serve(&config.listen_metrics_urls, of_client, &metrics, Closing::AtExit)?;
    listeners.serve(&config.listen_peer_urls, of_peer, &peer, Closing::AtExit)?;
    listeners.serve(&config.listen_client_http_urls, of_client, &client_http, Closing::Gracefully)?;
    listeners.serve(&config.listen_client_urls, of_client, &client, Closing::Gracefully)?;
    Ok(listeners)
}

/// TLS of the ports, where there is any.
pub struct PortTls {
    /// Of the client port and its like.
    pub client: Option<Arc<Tls>>,
    /// Of the peer port, and of connections to peers.
    pub peer: Option<Arc<Tls>>,
}

impl PortTls {
    /// As the configuration names it.
    ///
    /// # Errors
    /// A file that is missing or is not what it should be.
    pub fn of(config: &Config) -> Result<Self, TlsError> {
        Ok(Self { client: client_tls(config)?, peer: peer_tls(config)? })
    }
}

/// TLS of the client port, if there is any.
///
/// # Errors
/// A file that is missing or is not what it should be.
pub fn client_tls(config: &Config) -> Result<Option<Arc<Tls>>, TlsError> {
    // Files that no port shows are not looked at, as in etcd; the configuration has warned of them.
    let ports = [&config.listen_client_urls, &config.listen_client_http_urls, &config.listen_metrics_urls];
    if !ports.into_iter().flatten().any(Url::is_secure) {
        return Ok(None);
    }
    let urls = [&config.listen_client_urls[..], &config.listen_client_http_urls].concat();
    tls("client", config, &config.tls.client, &urls)
}

/// TLS of the peer port and of connections to peers, if there is any.
///
/// # Errors
/// A file that is missing or is not what it should be.
pub fn peer_tls(config: &Config) -> Result<Option<Arc<Tls>>, TlsError> {
    tls("peer", config, &config.tls.peer, &config.listen_peer_urls)
}

fn tls(port: &'static str, config: &Config, side: &TlsSide, urls: &[Url]) -> Result<Option<Arc<Tls>>, TlsError> {
    let (is_peer, given) = (port == "peer", pair(&side.cert_file, &side.key_file));
    if side.is_empty() && !(is_peer && side.trusted_ca_file.is_some()) {
        return Ok(None);
    }
    let made = side.makes_its_own();
    let identity = if made {
        let hosts: Vec<String> = urls.iter().filter_map(Url::host).map(str::to_owned).collect();
        let directory = config.data_dir.join("fixtures").join(port);
        Some(self_signed(&directory, &hosts, config.tls.self_signed_years)?)
    } else {
        given
    };
    let version = |version| match version {
        TlsVersion::Tls12 => Version::Tls12,
        TlsVersion::Tls13 => Version::Tls13,
    };
    let options = TlsOptions {
        identity,
        client_identity: pair(&side.client_cert_file, &side.client_key_file).filter(|_| !made),
        // A certificate that nobody has signed is for those that trust anybody.
        trusted_ca: side.trusted_ca_file.clone().filter(|_| !made),
        crl: side.crl_file.clone(),
        client_cert_auth: side.client_cert_auth && !made,
        allowed_names: side.allowed_names.clone(),
        allowed_hosts: side.allowed_hosts.clone(),
        self_signed: made,
        checks_origin: is_peer && !side.skip_client_san_verification,
        dials: is_peer,
        nameless: false,
        cipher_suites: config.tls.cipher_suites.clone(),
        min_version: version(config.tls.min_version),
        max_version: version(config.tls.max_version),
    };
    Ok(Some(Arc::new(Tls::new(port, options)?)))
}

fn pair(cert: &Option<PathBuf>, key: &Option<PathBuf>) -> Option<Identity> {
    Some(Identity { cert: cert.clone()?, key: key.clone()? })
}
