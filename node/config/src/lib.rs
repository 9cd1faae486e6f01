//! From the command line, the environment or a file to one checked [`Config`], once, before anything else runs. Nothing
//! of a node reads a flag or a variable elsewhere. It is a crate of its own because the operator asks it too, what a node
//! would say to the settings that it is about to be given.
//!
//! `flags.rs` lists the flags (etcd's names), `command_line.rs` reads those of the command line, `sources.rs` merges where
//! they can come from with etcd's precedence, this file gives the merged text types and checks it as a whole. What is a part
//! of its own has a file, which gives it types and checks it alone: `bootstrap.rs`, `listen.rs`, `tls.rs` and others; `hot.rs`
//! is the part that can change later.

pub mod auth_token;
mod bootstrap;
pub mod cipher_suites;
mod command_line;
pub mod discovery;
pub mod duration;
pub mod flags;
pub mod gates;
pub mod hot;
mod housekeeping;
mod http2;
pub mod initial_cluster;
mod listen;
pub mod log_outputs;
pub mod number;
pub mod secret;
pub mod sources;
pub mod tls;
mod tracing;
pub mod url;
pub mod version;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use self::auth_token::AuthToken;
pub use self::bootstrap::Bootstrap;
use self::gates::Gates;
use self::hot::Hot;
pub use self::housekeeping::Housekeeping;
pub use self::http2::{Http2, ping_min_time};
use self::listen::Listened;
pub use self::log_outputs::{LogOutput, Rotation};
use self::sources::Raw;
use self::tls::Tls;
pub use self::tracing::Tracing;
use self::url::Url;

/// Why the process does not start. The text names the flag and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A flag that does not exist or a value that cannot be parsed: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A combination that is not allowed, a file that cannot be read: exit code 1.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// The process's exit code.
    pub const fn exit_code(&self) -> i32 {
        match self {
            ConfigError::Usage(_) => 2,
            ConfigError::Invalid(_) => 1,
        }
    }
}

/// The text form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// The checked configuration of one node. Plain values only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Member name.
    pub name: String,
    /// Where the disk is.
    pub data_dir: PathBuf,
    /// Client port: gRPC and HTTP.
    pub listen_client_urls: Vec<Url>,
    /// Where clients reach it; published to the membership.
    pub advertise_client_urls: Vec<String>,
    /// Peer port: peers and the operator.
    pub listen_peer_urls: Vec<Url>,
    /// Where peers reach it.
    pub initial_advertise_peer_urls: Vec<String>,
    /// Plain HTTP of the client API; when empty the client port has it.
    pub listen_client_http_urls: Vec<Url>,
    /// Plain HTTP for probes and metrics; may be empty.
    pub listen_metrics_urls: Vec<Url>,
    /// Whether the JSON gateway is served.
    pub enable_grpc_gateway: bool,
    /// What HTTP/2 connections of clients may do.
    pub http2: Http2,
    /// Whether gRPC calls are timed in histograms.
    pub extensive_metrics: bool,
    /// Where spans of calls go, if anywhere.
    pub tracing: Option<Tracing>,
    /// A call that takes longer is logged.
    pub warning_unary_request_duration: Duration,
    /// Entries that take longer to apply are logged, and reads that take longer.
    pub warning_apply_duration: Duration,
    /// How the log is trimmed and history compacted.
    pub housekeeping: Housekeeping,
    /// etcd's feature gates.
    pub gates: Gates,
    /// Origins whose pages may read answers; `*` for all.
    pub cors: BTreeSet<String>,
    /// Hosts that plain HTTP is served under; `*` for all.
    pub host_whitelist: BTreeSet<String>,
    /// TLS of the ports.
    pub tls: Tls,
    /// Whether other processes may listen on the same ports.
    pub reuse_port: bool,
    /// How an empty disk becomes a member's.
    pub bootstrap: Bootstrap,
    /// Whether the disk's member goes on without all the others.
    pub force_new_cluster: bool,
    /// Raft's tick.
    pub heartbeat_interval: Duration,
    /// Silence of a leader after which a follower campaigns.
    pub election_timeout: Duration,
    /// Whether candidates ask before they disturb.
    pub pre_vote: bool,
    /// What can change at run time, as the process starts with it.
    pub hot: Hot,
    /// Whether etcd's API refuses changes that endanger the quorum.
    pub strict_reconfig_check: bool,
    /// How often an idle watch is told the current revision.
    pub watch_progress_notify_interval: Duration,
    /// How long a stream of answers may be unread by its client; 0 for ever.
    pub unread_stream_timeout: Duration,
    /// How often what long leases have left is written down; None without the gate LeaseCheckpoint.
    pub lease_checkpoint_interval: Option<Duration>,
    /// How often the leader compares the members' data; 0 for never.
    pub corrupt_check_time: Duration,
    /// How often it compares them after compactions, if it does; more than 0.
    pub compact_hash_check_time: Duration,
    /// The kind of tokens.
    pub auth_token: AuthToken,
    /// How long a simple token lives without being used.
    pub auth_token_ttl: Duration,
    /// Strength of password hashes.
    pub bcrypt_cost: u32,
    /// How long the node goes on serving after SIGTERM.
    pub drain_delay: Duration,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Where they go, each once.
    pub log_outputs: BTreeSet<LogOutput>,
    /// How the file among them is rotated; None for not at all.
    pub log_rotation: Option<Rotation>,
    /// Fingerprint of all that should be equal on every member of a cluster.
    pub hash: String,
    /// What was accepted and has no effect, for a warning each.
    pub warnings: Vec<String>,
    /// The file that all this came from, if it did.
    pub file: Option<PathBuf>,
    /// The values that all this was made of.
    pub source: Raw,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Print this and exit 0.
    Print(String),
    /// Run a node.
    Run(Box<Config>),
}

impl Config {
    /// Reads the command line, the environment and, if one is named, the file.
    ///
    /// # Errors
    /// [`ConfigError`], with the exit code that etcd uses.
    pub fn load(
        args: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Invocation, ConfigError> {
        match sources::merge(args, environment)? {
            sources::Merged::Print(text) => Ok(Invocation::Print(text)),
            sources::Merged::Values(raw) => Ok(Invocation::Run(Box::new(Self::check(&raw)?))),
        }
    }

    /// What [`load`](Self::load) would say to a process that is started elsewhere, for the operator. No file is read: what a
    /// stranger's settings name is none of this machine's.
    ///
    /// # Errors
    /// [`ConfigError`]; a configuration file is [`ConfigError::Invalid`].
    pub fn foretell(
        args: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Invocation, ConfigError> {
        match sources::merge_given(args, environment)? {
            sources::Merged::Print(text) => Ok(Invocation::Print(text)),
            sources::Merged::Values(raw) if !raw.text("config-file").is_empty() => {
                Err(invalid("--config-file is not read here"))
            }
            sources::Merged::Values(raw) => Ok(Invocation::Run(Box::new(Self::check(&raw)?))),
        }
    }

    /// Reads the file alone, as a process that was started with it would.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::check(&sources::file(&path.to_string_lossy())?)
    }

    /// The election timeout in whole heartbeats, as etcd counts it.
    pub fn election_ticks(&self) -> u32 {
        let ticks = self.election_timeout.as_millis() / self.heartbeat_interval.as_millis().max(1);
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// Gives the merged values types and checks them as a whole.
    fn check(raw: &Raw) -> Result<Self, ConfigError> {
        let name = raw.text("name").to_owned();
        let data_dir = match raw.text("data-dir") {
            "" => PathBuf::from(format!("{name}.etcd")),
            dir => PathBuf::from(dir),
        };
        let (heartbeat_interval, election_timeout) = timing(raw)?;
        let initial_advertise_peer_urls = listen::advertised(raw, "initial-advertise-peer-urls")?;
        let bootstrap = bootstrap::read(raw, &name, &initial_advertise_peer_urls)?;
        let mut warnings = raw.warnings.clone();
        let gates = gates::read(raw, &mut warnings)?;
        let listen_client_urls = listen::urls(raw, "listen-client-urls")?;
        let listen_peer_urls = listen::urls(raw, "listen-peer-urls")?;
        let listen_client_http_urls = listen::urls(raw, "listen-client-http-urls")?;
        let listen_metrics_urls = listen::urls(raw, "listen-metrics-urls")?;
        let listened = Listened {
            client: &[&listen_client_urls[..], &listen_client_http_urls].concat(),
            peer: &listen_peer_urls,
            metrics: &listen_metrics_urls,
            // A port of its own takes it from the others.
            http: if listen_client_http_urls.is_empty() { &listen_client_urls } else { &listen_client_http_urls },
        };
        listen::check(raw, &listened, &listen_client_urls, &listen_client_http_urls)?;
        let tls = Tls::check(raw, &listened, &mut warnings)?;
        let (auth_token, of_tokens) = auth_token::parse(raw.text("auth-token"))?;
        warnings.extend(of_tokens);
        let (log_outputs, log_rotation) = log_outputs::read(raw)?;
        Ok(Self {
            tls,
            reuse_port: raw.boolean("socket-reuse-port")?,
            data_dir,
            listen_client_urls,
            advertise_client_urls: listen::advertised(raw, "advertise-client-urls")?,
            listen_peer_urls,
            initial_advertise_peer_urls,
            listen_client_http_urls,
            listen_metrics_urls,
            enable_grpc_gateway: raw.boolean("enable-grpc-gateway")?,
            http2: http2::read(raw)?,
            extensive_metrics: extensive(raw.text("metrics"))?,
            tracing: tracing::read(raw)?,
            warning_unary_request_duration: warning_unary_request_duration(raw)?,
            warning_apply_duration: raw.duration("warning-apply-duration")?,
            housekeeping: housekeeping::read(raw)?,
            lease_checkpoint_interval: lease_checkpoint_interval(raw, gates["LeaseCheckpoint"])?,
            gates,
            cors: set(raw.text("cors")),
            host_whitelist: set(raw.text("host-whitelist")),
            force_new_cluster: bootstrap::force_new_cluster(raw, &bootstrap)?,
            bootstrap,
            heartbeat_interval,
            election_timeout,
            pre_vote: raw.boolean("pre-vote")?,
            hot: Hot::check(raw)?,
            strict_reconfig_check: raw.boolean("strict-reconfig-check")?,
            watch_progress_notify_interval: watch_progress_notify_interval(raw)?,
            unread_stream_timeout: not_negative(raw, "unread-stream-timeout")?,
            corrupt_check_time: not_negative(raw, "corrupt-check-time")?,
            compact_hash_check_time: compact_hash_check_time(raw)?,
            auth_token,
            auth_token_ttl: auth_token_ttl(raw)?,
            bcrypt_cost: bcrypt_cost(raw, &mut warnings)?,
            drain_delay: not_negative(raw, "drain-delay")?,
            log_format: log_format(raw.text("log-format"))?,
            log_outputs,
            log_rotation,
            hash: fingerprint(raw),
            warnings,
            file: raw.file.clone(),
            source: raw.clone(),
            name,
        })
    }
}

fn invalid(what: impl Into<String>) -> ConfigError {
    ConfigError::Invalid(what.into())
}

/// etcd's rules on the two times: the election needs several heartbeats, and is no longer than 50 s.
fn timing(raw: &Raw) -> Result<(Duration, Duration), ConfigError> {
    let (heartbeat, election): (u64, u64) = (raw.number("heartbeat-interval")?, raw.number("election-timeout")?);
    for (flag, time) in [("heartbeat-interval", heartbeat), ("election-timeout", election)] {
        if time == 0 {
            return Err(invalid(format!("--{flag} must be >0 (set to 0ms)")));
        }
    }
    if election < heartbeat.saturating_mul(5) {
        let what = "should be at least as 5 times as";
        return Err(invalid(format!("--election-timeout[{election}ms] {what} --heartbeat-interval[{heartbeat}ms]")));
    }
    if election > 50_000 {
        let what = "is too long, and should be set less than 50000ms";
        return Err(invalid(format!("--election-timeout[{election}ms] {what}")));
    }
    Ok((Duration::from_millis(heartbeat), Duration::from_millis(election)))
}

/// The gate decides whether. What is left is told in whole seconds, so more often than each second says nothing new.
fn lease_checkpoint_interval(raw: &Raw, gate: bool) -> Result<Option<Duration>, ConfigError> {
    match raw.duration("lease-checkpoint-interval")? {
        interval if interval < Duration::from_secs(1) => {
            Err(invalid(format!("--lease-checkpoint-interval must be at least 1s (set to {interval:?})")))
        }
        interval => Ok(gate.then_some(interval)),
    }
}

/// etcd's rule: the gate decides whether, the time only how often.
fn compact_hash_check_time(raw: &Raw) -> Result<Duration, ConfigError> {
    match raw.duration("compact-hash-check-time")? {
        Duration::ZERO => Err(invalid("--compact-hash-check-time must be >0 (set to 0s)")),
        interval => Ok(interval),
    }
}

/// 0 means the default, as in etcd.
fn watch_progress_notify_interval(raw: &Raw) -> Result<Duration, ConfigError> {
    match raw.duration("watch-progress-notify-interval")? {
        Duration::ZERO => Ok(Duration::from_secs(600)),
        interval => Ok(interval),
    }
}

/// 0 means the default, as in etcd.
fn warning_unary_request_duration(raw: &Raw) -> Result<Duration, ConfigError> {
    const FLAG: &str = "warning-unary-request-duration";
    match raw.text(FLAG).strip_prefix('-') {
        None => Ok(Some(raw.duration(FLAG)?).filter(|time| !time.is_zero()).unwrap_or(Duration::from_millis(300))),
        Some(_) => raw.duration(FLAG),
    }
}

/// A time of which one below zero can only be a slip. etcd takes one for other flags, and means none by it.
fn not_negative(raw: &Raw, flag: &'static str) -> Result<Duration, ConfigError> {
    match duration::nanoseconds(raw.text(flag)) {
        Ok(..0) => Err(invalid(format!("--{flag} must not be negative (set to {})", raw.text(flag)))),
        _ => raw.duration(flag),
    }
}

/// In whole seconds; 0 means the default, as in etcd.
fn auth_token_ttl(raw: &Raw) -> Result<Duration, ConfigError> {
    let seconds: u64 = raw.number("auth-token-ttl")?;
    // What is longer than its clock can count is for ever.
    Ok(Duration::from_secs(if seconds == 0 { 300 } else { seconds.min(u32::MAX.into()) }))
}

/// What bcrypt cannot do becomes its default, with a warning, as in etcd.
fn bcrypt_cost(raw: &Raw, warnings: &mut Vec<String>) -> Result<u32, ConfigError> {
    let cost: u64 = raw.number("bcrypt-cost")?;
    if let Some(cost) = u32::try_from(cost).ok().filter(|cost| (4..=31).contains(cost)) {
        return Ok(cost);
    }
    warnings.push(format!("--bcrypt-cost={cost} is not between 4 and 31: 10 is used"));
    Ok(10)
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn set(list: &str) -> BTreeSet<String> {
    split(list).map(str::to_owned).collect()
}

/// etcd takes any other word for `basic`; it is a slip.
fn extensive(metrics: &str) -> Result<bool, ConfigError> {
    match metrics {
        "extensive" => Ok(true),
        "basic" => Ok(false),
        other => Err(invalid(format!("--metrics={other} must be basic or extensive"))),
    }
}

fn log_format(format: &str) -> Result<LogFormat, ConfigError> {
    match format {
        "json" | "" => Ok(LogFormat::Json),
        "console" => Ok(LogFormat::Text),
        other => Err(invalid(format!("unknown log format: {other}, supported values json, console"))),
    }
}

/// Equal on members that differ only in who and where they are.
fn fingerprint(raw: &Raw) -> String {
    let mut hasher = Sha256::new();
    for (name, value) in raw.iter().filter(|(name, _)| !flags::is_identity(name)) {
        hasher.update(name);
        hasher.update([0]);
        hasher.update(value);
        hasher.update([0]);
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The configuration of a node that is started with these flags alone; for the tests of all files.
    pub(crate) fn load(args: &[&str]) -> Result<Config, ConfigError> {
        let args = ["balsa"].iter().chain(args).map(|arg| (*arg).to_owned());
        match Config::load(args, [])? {
            Invocation::Run(config) => Ok(*config),
            Invocation::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn without_flags_it_is_etcds_single_member() {
        let config = load(&[]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(config.election_timeout, Duration::from_secs(1));
        let url = "http://localhost:2380".to_owned();
        let members = BTreeMap::from([("default".to_owned(), vec![url])]);
        let token = "etcd-cluster".into();
        assert_eq!(config.bootstrap, Bootstrap::Static { members: Ok(members), token, existing: false });
        assert!(config.strict_reconfig_check && config.pre_vote);
    }

    #[test]
    fn a_time_of_nothing_means_what_it_means_to_etcd() {
        let warned = |value: &str| {
            load(&[&format!("--warning-unary-request-duration={value}")]).unwrap().warning_unary_request_duration
        };
        assert_eq!((warned("0"), warned("-1s")), (Duration::from_millis(300), Duration::ZERO));
        assert_eq!(load(&["--grpc-keepalive-interval=-1s"]).unwrap().http2.keepalive_interval, None);
        let min_time =
            |value: &str| load(&[&format!("--grpc-keepalive-min-time={value}")]).unwrap().http2.ping_min_time;
        let grpcs_own = Duration::from_secs(300);
        assert_eq!(["0", "-1s", "1ns"].map(min_time), [grpcs_own, grpcs_own, Duration::from_nanos(1)]);
        for flag in ["drain-delay", "unread-stream-timeout", "corrupt-check-time", "compact-hash-check-time"] {
            assert!(matches!(load(&[&format!("--{flag}=-1s")]), Err(ConfigError::Invalid(_))), "{flag}");
        }
    }

    #[test]
    fn numbers_that_nobody_counts_to_are_taken_as_in_etcd() {
        let config = load(&["--auth-token-ttl=4294967296", "--bcrypt-cost=4294967306"]).unwrap();
        assert_eq!((config.bcrypt_cost, config.warnings.len()), (10, 1));
        assert!(matches!(load(&["--max-concurrent-streams=4294967296"]), Err(ConfigError::Usage(_))));
        assert_eq!(load(&["--quota-backend-bytes=0x10"]).unwrap().hot.quota_bytes, 16);
    }

    #[test]
    fn times_obey_etcds_rules() {
        assert!(load(&["--heartbeat-interval=10", "--election-timeout=50"]).is_ok());
        assert!(matches!(load(&["--election-timeout=499"]), Err(ConfigError::Invalid(_))));
        assert!(matches!(load(&["--election-timeout=50001"]), Err(ConfigError::Invalid(_))));
        assert!(matches!(load(&["--heartbeat-interval=x"]), Err(ConfigError::Usage(_))));
    }

    #[test]
    fn what_etcd_does_not_log_by_is_refused() {
        for args in [&["--log-format=text"][..], &["--log-level=trace"]] {
            assert!(matches!(load(args), Err(ConfigError::Invalid(_))), "{args:?}");
        }
        for level in ["WARN", "warning", "Warn"] {
            assert_eq!(load(&[&format!("--log-level={level}")]).unwrap().hot.log_level, "warn");
        }
        assert_eq!(load(&["--log-level="]).unwrap().hot.log_level, "info");
    }

    #[test]
    fn no_print_shows_a_password() {
        let args =
            ["--discovery-token=t", "--discovery-endpoints=a:1", "--discovery-user=u", "--discovery-password=xyzzy"];
        let config = load(&args).unwrap();
        let Bootstrap::Discovered { by: discovery::Discovery::Registry(registry), .. } = &config.bootstrap else {
            panic!()
        };
        assert_eq!(registry.password.reveal(), "xyzzy");
        let print = format!("{config:?}");
        assert!(print.contains("discovery-password") && !print.contains("xyzzy"), "{print}");
    }

    #[test]
    fn the_fingerprint_is_of_what_members_share() {
        let hash = |args: &[&str]| load(args).unwrap().hash;
        assert_eq!(hash(&["--bootstrap=operator", "--name=a"]), hash(&["--bootstrap=operator", "--name=b"]));
        assert_eq!(hash(&[]), hash(&["--force-new-cluster"]));
        assert_ne!(hash(&[]), hash(&["--max-txn-ops=7"]));
    }
}
