//! The flags: etcd's names and defaults, and the few of our own. One table makes the command line, the environment
//! variables (`ETCD_` or `BALSA_` and the name in capitals), the file's keys and the help.

/// What a flag takes, and its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text(&'static str),
    /// A whole number, perhaps below zero.
    Number(&'static str),
    /// A whole number that is not below zero.
    Count(&'static str),
    /// `5s`, `10m`; in a file also nanoseconds.
    Duration(&'static str),
    /// `--flag` or `--flag=false`.
    Bool(&'static str),
}

impl Kind {
    /// The value when none is given.
    pub const fn default(self) -> &'static str {
        match self {
            Kind::Text(default)
            | Kind::Number(default)
            | Kind::Count(default)
            | Kind::Duration(default)
            | Kind::Bool(default) => default,
        }
    }
}

/// What a flag does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// What its help says.
    Served,
    /// Nothing, for this reason: accepted with a warning when it asks for another value than the default.
    None(&'static str),
    /// To take it and do nothing would weaken what the caller relies on: refused, with this advice.
    Refused(&'static str),
}

/// One flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it does.
    pub effect: Effect,
    /// What it is for.
    pub help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, effect: Effect::Served, help }
}

const fn inert(name: &'static str, kind: Kind, reason: &'static str) -> Flag {
    Flag { name, kind, effect: Effect::None(reason), help: "No effect" }
}

const fn refused(name: &'static str, kind: Kind, advice: &'static str) -> Flag {
    Flag { name, kind, effect: Effect::Refused(advice), help: "Not supported" }
}

use Kind::{Bool, Count, Duration, Number, Text};

/// The flags that have an effect.
const SERVED: [Flag; 106] = [
    flag("name", Text("default"), "Name of this member"),
    flag("data-dir", Text(""), "Where the disk is [default: <name>.etcd]"),
    flag("listen-client-urls", Text("http://localhost:2379"), "Client port: gRPC and HTTP"),
    flag("advertise-client-urls", Text("http://localhost:2379"), "Where clients reach this member"),
    flag("listen-peer-urls", Text("http://localhost:2380"), "Peer port: members and operator"),
    flag("initial-advertise-peer-urls", Text("http://localhost:2380"), "Where members reach this member"),
    flag("listen-metrics-urls", Text(""), "Further ports for probes and metrics only"),
    flag("cors", Text("*"), "Origins whose pages may read answers of plain HTTP"),
    flag("host-whitelist", Text("*"), "Hosts under which plain HTTP is served without TLS"),
    flag("bootstrap", Text("static"), "How an empty disk becomes a member's: operator (wait to be told) or static"),
    flag("initial-cluster", Text(""), "Static start: name=peer-url,… [default: this member alone]"),
    flag("initial-cluster-state", Text("new"), "Static start: new or existing"),
    flag("initial-cluster-token", Text("etcd-cluster"), "Static start: tells clusters of equal names apart"),
    flag(
        "discovery-srv",
        Text(""),
        "Static start: domain whose SRV records name the members, in place of initial-cluster",
    ),
    flag("discovery-srv-name", Text(""), "Suffix of the services in these: _etcd-server-NAME, _etcd-server-ssl-NAME"),
    flag(
        "discovery-token",
        Text(""),
        "Static start: token of the cluster at a registry where its members find each other, in place of initial-cluster",
    ),
    flag("discovery-endpoints", Text(""), "The registry: endpoints of a cluster of etcd's API"),
    flag("discovery-dial-timeout", Duration("2s"), "How long a connection to the registry may take"),
    flag("discovery-request-timeout", Duration("5s"), "How long a call to it may take"),
    flag("discovery-keepalive-time", Duration("2s"), "How often a silent connection to it is pinged"),
    flag("discovery-keepalive-timeout", Duration("6s"), "How long the answer may take"),
    flag(
        "discovery-insecure-transport",
        Bool("true"),
        "Speak to the registry without TLS, unless it is https or files are named",
    ),
    flag("discovery-insecure-skip-tls-verify", Bool("false"), "Believe every certificate of the registry"),
    flag("discovery-cert", Text(""), "Certificate to show to the registry"),
    flag("discovery-key", Text(""), "Its key"),
    flag("discovery-cacert", Text(""), "Who must have signed the registry's certificate"),
    flag("discovery-user", Text(""), "User at the registry, with discovery-password"),
    flag("discovery-password", Text(""), "Its password"),
    flag(
        "force-new-cluster",
        Bool("false"),
        "Remove all other members on this member's disk before it starts; for a lost quorum, see docs/recovery.md",
    ),
    flag("heartbeat-interval", Count("100"), "Raft tick in ms"),
    flag("election-timeout", Count("1000"), "Silence in ms after which a follower campaigns"),
    flag("pre-vote", Bool("true"), "Ask before campaigning"),
    flag("max-request-bytes", Count("1572864"), "Largest command in bytes"),
    flag("max-txn-ops", Count("128"), "Most operations of a transaction"),
    flag("max-learners", Number("1"), "Most learners that etcd's API may add"),
    flag("strict-reconfig-check", Bool("true"), "Refuse membership changes that endanger the quorum"),
    flag("watch-progress-notify-interval", Duration("10m"), "How often an idle watch hears the revision"),
    flag("auto-compaction-mode", Text("periodic"), "periodic or revision"),
    flag("auto-compaction-retention", Text("0"), "Time, hours or revisions to keep; 0 is off"),
    flag("auth-token", Text("simple"), "simple, or jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…"),
    flag("auth-token-ttl", Count("300"), "Seconds that a simple token lives without being used"),
    flag("bcrypt-cost", Count("10"), "Strength of password hashes, 4 to 31"),
    flag(
        "drain-delay",
        Duration("0s"),
        "How long to go on serving after SIGTERM, so that load balancers notice; the operator sets it",
    ),
    flag("log-level", Text("info"), "debug, info, warn, error"),
    flag("log-format", Text("json"), "json or console"),
    flag(
        "config-version",
        Count("0"),
        "Version of what can change at run time; higher than the active one to take effect",
    ),
    flag("cert-file", Text(""), "Client port: certificate to show"),
    flag("key-file", Text(""), "Client port: its key"),
    flag("client-cert-file", Text(""), "Accepted and checked; the client port makes no connections"),
    flag("client-key-file", Text(""), "See client-cert-file"),
    flag("client-cert-auth", Bool("false"), "Client port: demand a certificate"),
    flag("trusted-ca-file", Text(""), "Client port: who must have signed the client's certificate; demands one"),
    flag("client-crl-file", Text(""), "Client port: revoked certificates"),
    flag("client-cert-allowed-hostname", Text(""), "Client port: hosts of which a certificate must name one"),
    flag("auto-tls", Bool("false"), "Client port: make a certificate"),
    flag("peer-cert-file", Text(""), "Peer port: certificate to show"),
    flag("peer-key-file", Text(""), "Peer port: its key"),
    flag("peer-client-cert-file", Text(""), "Certificate to show to peers, if not peer-cert-file"),
    flag("peer-client-key-file", Text(""), "Its key"),
    flag("peer-client-cert-auth", Bool("false"), "Peer port: demand a certificate"),
    flag("peer-trusted-ca-file", Text(""), "Who must have signed a peer's certificate; demands one"),
    flag("peer-crl-file", Text(""), "Peer port: revoked certificates"),
    flag("peer-cert-allowed-cn", Text(""), "Common names of which a peer's certificate must bear one"),
    flag("peer-cert-allowed-hostname", Text(""), "Hosts of which a peer's certificate must name one"),
    flag("peer-skip-client-san-verification", Bool("false"), "Let peers connect from other hosts than they name"),
    flag("peer-auto-tls", Bool("false"), "Peer port: make a certificate"),
    flag("self-signed-cert-validity", Count("1"), "Years that a certificate made here is valid"),
    flag("cipher-suites", Text(""), "Suites of TLS 1.2, by Go's names [default: all]"),
    flag("tls-min-version", Text("TLS1.2"), "TLS1.2 or TLS1.3"),
    flag("tls-max-version", Text(""), "TLS1.2 or TLS1.3 [default: the highest]"),
    flag("config-file", Text(""), "Read everything from this YAML file instead"),
    flag("corrupt-check-time", Duration("0s"), "How often the leader compares the members' data; 0 is never"),
    flag("compact-hash-check-time", Duration("1m"), "How often to do so after compactions, with gate CompactHashCheck"),
    flag("quota-backend-bytes", Number("0"), "Bytes of the key space above which puts are refused; 0 is off"),
    flag("listen-client-http-urls", Text(""), "Port of its own for plain HTTP, which the client port then has not"),
    flag("enable-grpc-gateway", Bool("true"), "Serve the JSON gateway"),
    flag("max-concurrent-streams", Count("4294967295"), "Streams that a client may have open on one connection"),
    flag("grpc-keepalive-min-time", Duration("5s"), "How far apart the pings of a client must be; 0 is 5m"),
    flag("grpc-keepalive-interval", Duration("2h"), "How often an idle client is pinged; 0 is never"),
    flag("grpc-keepalive-timeout", Duration("20s"), "How long it may take to answer"),
    flag("unread-stream-timeout", Duration("5m"), "How long a client may leave a stream unread; 0 is for ever"),
    flag(
        "lease-checkpoint-interval",
        Duration("5m"),
        "How often gate LeaseCheckpoint writes down what leases have left",
    ),
    flag("socket-reuse-port", Bool("false"), "Share listening ports with other processes"),
    flag("metrics", Text("basic"), "basic, or extensive with histograms of gRPC calls"),
    flag("warning-unary-request-duration", Duration("300ms"), "Log a call that takes longer"),
    flag(
        "warning-apply-duration",
        Duration("100ms"),
        "Log entries that take longer to apply, and reads that take longer",
    ),
    flag(
        "enable-distributed-tracing",
        Bool("false"),
        "Send a span of each call of a client to a collector of OpenTelemetry's",
    ),
    flag("distributed-tracing-address", Text("localhost:4317"), "The collector: OTLP over gRPC, without TLS"),
    flag("distributed-tracing-service-name", Text("etcd"), "service.name of the spans"),
    flag("distributed-tracing-instance-id", Text(""), "service.instance.id of the spans"),
    flag(
        "distributed-tracing-sampling-rate",
        Number("0"),
        "Of a million calls that are no part of a trace, so many begin one",
    ),
    flag(
        "snapshot-count",
        Count("10000"),
        "Entries after which the key space is flushed and the Raft log trimmed, if not 10000; 64 MiB and 60 s do so always",
    ),
    flag("snapshot-catchup-entries", Count("10000"), "Entries of the Raft log kept for members that are behind"),
    flag("compaction-batch-limit", Number("1000"), "Changes that one step of a compaction works off"),
    flag("compaction-sleep-interval", Duration("2ms"), "Pause between two such steps"),
    flag("feature-gates", Text(""), "Gate=true,…; see docs/flags.md"),
    flag("experimental-compact-hash-check-enabled", Bool("false"), "Gate CompactHashCheck"),
    flag("experimental-enable-lease-checkpoint", Bool("false"), "Gate LeaseCheckpoint"),
    flag("experimental-enable-lease-checkpoint-persist", Bool("false"), "Gate LeaseCheckpointPersist"),
    flag("experimental-initial-corrupt-check", Bool("false"), "Gate InitialCorruptCheck"),
    flag("experimental-stop-grpc-service-on-defrag", Bool("false"), "Gate StopGRPCServiceOnDefrag"),
    flag("experimental-txn-mode-write-with-shared-buffer", Bool("true"), "Gate TxnModeWriteWithSharedBuffer"),
    flag("logger", Text("zap"), "Only zap, which names the fields of lines"),
    flag(
        "log-outputs",
        Text("default"),
        "stderr, stdout, default (stderr), paths of files, with commas, or systemd/journal alone",
    ),
    flag("enable-log-rotation", Bool("false"), "Put the file among the outputs aside when it is full"),
    flag(
        "log-rotation-config-json",
        Text(r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#),
        "When: maxsize in MB; maxage in days and maxbackups say which are removed (0: none); names in localtime; compress",
    ),
];

/// Accepted, because manifests pass them, and without meaning here: the reason of each.
const INERT: [Flag; 25] = [
    inert("wal-dir", Text(""), "the Raft log lies in the data directory"),
    inert("max-wals", Count("5"), "the Raft log is trimmed as a whole, not in files"),
    inert("max-snapshots", Count("5"), "a snapshot lives only while it is being sent"),
    inert("initial-election-tick-advance", Bool("true"), "a starting member waits a whole election timeout"),
    inert("raft-read-timeout", Duration("5s"), "members ping each other over gRPC"),
    inert("raft-write-timeout", Duration("5s"), "members ping each other over gRPC"),
    inert("socket-reuse-address", Bool("false"), "it is always on"),
    inert("backend-bbolt-freelist-type", Text("map"), "there is no bbolt"),
    inert("backend-batch-interval", Duration("0s"), "every run of log entries is one batch"),
    inert("backend-batch-limit", Number("0"), "every run of log entries is one batch"),
    inert("memory-mlock", Bool("false"), "no file is mapped into memory"),
    inert("bootstrap-defrag-threshold-megabytes", Count("0"), "RocksDB gives space back by itself"),
    inert("unsafe-no-fsync", Bool("false"), "every write is synced"),
    inert("downgrade-check-time", Duration("5s"), "there is nothing to check: the storage has one version"),
    inert("enable-pprof", Bool("false"), "the profiles are Go's"),
    inert("v2-deprecation", Text("write-only"), "there is no v2 store"),
    inert("enable-v2", Bool("false"), "there is no v2 store"),
    inert("proxy", Text("off"), "there is no v2 proxy"),
    inert("proxy-failure-wait", Count("5000"), "there is no v2 proxy"),
    inert("proxy-refresh-interval", Count("30000"), "there is no v2 proxy"),
    inert("proxy-dial-timeout", Count("1000"), "there is no v2 proxy"),
    inert("proxy-write-timeout", Count("5000"), "there is no v2 proxy"),
    inert("proxy-read-timeout", Count("0"), "there is no v2 proxy"),
    inert("experimental-enable-v2v3", Text(""), "there is no v2 store"),
    inert("discovery-fallback", Text("exit"), "there is no v2 proxy to fall back to"),
];

/// Refused: a node that took them and did nothing would be open, or alone, or less durable than its owner believes.
const REFUSED: [Flag; 2] = [
    refused("discovery", Text(""), "there is no v2 discovery: use --discovery-token and --discovery-endpoints"),
    refused("discovery-proxy", Text(""), "there is no v2 discovery, and nothing goes through a proxy"),
];

/// etcd ignores them too, whatever their value.
const FORGOTTEN: [&str; 15] = [
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
    "test.coverprofile",
    "test.outputdir",
];

/// etcd 3.6 and before spelled some flags `experimental-X`.
pub const EXPERIMENTAL: &str = "experimental-";

/// Each X of which `experimental-X` means the same.
const RENAMED: [&str; 17] = [
    "bootstrap-defrag-threshold-megabytes",
    "compact-hash-check-time",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "distributed-tracing-address",
    "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
    "distributed-tracing-service-name",
    "downgrade-check-time",
    "enable-distributed-tracing",
    "memory-mlock",
    "peer-skip-client-san-verification",
    "snapshot-catchup-entries",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];

/// Every flag.
pub fn all() -> impl Iterator<Item = Flag> {
    let forgotten = FORGOTTEN.iter().map(|name| inert(name, Text(""), "etcd ignores it too"));
    SERVED.into_iter().chain(INERT).chain(REFUSED).chain(forgotten)
}

/// The present name of a flag, which may be given under its experimental one.
pub fn present_name(name: &str) -> &str {
    name.strip_prefix(EXPERIMENTAL).filter(|name| RENAMED.contains(name)).unwrap_or(name)
}

/// The flag of this name, also under its experimental spelling.
pub fn find(name: &str) -> Option<Flag> {
    let name = present_name(name);
    all().find(|flag| flag.name == name)
}

/// The only words that a flag without effect takes, and a text that lists them: etcd refuses others, so here they are a slip
/// too. `not-yet` is a word of 3.5.
pub fn words(name: &str) -> Option<(&'static [&'static str], &'static str)> {
    match name {
        "v2-deprecation" => Some((
            &["write-only", "write-only-drop-data", "gone", "not-yet"],
            "write-only, write-only-drop-data or gone",
        )),
        "discovery-fallback" => Some((&["exit", "proxy"], "exit or proxy")),
        _ => None,
    }
}

/// Flags that can change while the process runs, by the file or by a push through the node service. All are read at each
/// use. Times of Raft are not among them: members with different ones would depose each other's leader meanwhile.
pub const HOT: [&str; 7] = [
    "auto-compaction-mode",
    "auto-compaction-retention",
    "log-level",
    "max-learners",
    "max-request-bytes",
    "max-txn-ops",
    "quota-backend-bytes",
];

/// A boolean as Go reads one.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => Some(true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether it lists URLs. An empty list of these says nothing, as in etcd: what was there before stays.
pub fn lists_urls(name: &str) -> bool {
    name.starts_with("listen-") || name.ends_with("advertise-peer-urls") || name == "advertise-client-urls"
}

/// Whether it may stand on the command line without a value.
pub fn is_switch(flag: Flag) -> bool {
    matches!(flag.kind, Bool(_)) || FORGOTTEN.contains(&flag.name)
}

/// Whether its value is a secret itself, and not the name of a file that holds one.
pub fn is_secret(name: &str) -> bool {
    name == "discovery-password"
}

/// Flags that say who and where a member is, and so differ between members that are configured alike.
pub fn is_identity(name: &str) -> bool {
    const IDENTITY: [&str; 12] = [
        "name",
        "data-dir",
        "listen-client-urls",
        "advertise-client-urls",
        "listen-peer-urls",
        "initial-advertise-peer-urls",
        "listen-client-http-urls",
        "listen-metrics-urls",
        "log-outputs",
        "distributed-tracing-instance-id",
        // A number for the same content.
        "config-version",
        // Of one start of one member.
        "force-new-cluster",
    ];
    let of_the_start = name.starts_with("initial-cluster") || name.starts_with("discovery-");
    IDENTITY.contains(&name) || of_the_start || name.ends_with("-file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flag_is_listed_twice() {
        let mut names: Vec<_> = all().map(|flag| flag.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_can_change_at_run_time_has_an_effect_at_all() {
        for name in HOT {
            assert!(SERVED.iter().any(|flag| flag.name == name), "{name}");
            assert!(!is_identity(name), "{name}");
        }
    }

    #[test]
    fn a_flag_for_a_password_is_a_secret() {
        let named = |flag: &Flag| ["password", "passwd", "secret"].iter().any(|word| flag.name.contains(word));
        assert!(all().filter(named).all(|flag| is_secret(flag.name)));
        assert!(all().any(|flag| is_secret(flag.name)));
    }

    #[test]
    fn old_spellings_mean_the_same() {
        assert_eq!(find("experimental-watch-progress-notify-interval").unwrap().name, "watch-progress-notify-interval");
        for name in ["no-such-flag", "experimental-name", "initial-corrupt-check"] {
            assert!(find(name).is_none(), "{name}");
        }
        assert!(RENAMED.iter().all(|name| all().any(|flag| flag.name == *name)));
    }

    /// Every flag of the etcd whose version this node reports.
    #[test]
    fn every_flag_of_etcd_is_known() {
        let missing: Vec<_> = include_str!("etcd_flags.txt").lines().filter(|name| find(name).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn generated_golden_page_of_flags_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/flags.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- flags: begin -->\n", "<!-- flags: end -->");
        let (before, rest) = page.split_once(begin).unwrap();
        let (table, after) = rest.split_once(end).unwrap();
        let expected = table_of_flags();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, format!("{before}{begin}{expected}{end}{after}")).unwrap();
        } else {
            assert_eq!(table, expected, "UPDATE_GOLDEN=1 rewrites docs/flags.md");
        }
    }

    fn table_of_flags() -> String {
        let rows = all().map(|flag| {
            let default =
                if flag.kind.default().is_empty() { "–".into() } else { format!("`{}`", flag.kind.default()) };
            let what = match flag.effect {
                Effect::Served => flag.help.to_owned(),
                Effect::None(reason) => format!("no effect: {reason}"),
                Effect::Refused(advice) => format!("refused: {advice}"),
            };
            format!("| `{}` | {default} | {what} |\n", flag.name)
        });
        format!("| flag | default | what it does |\n| --- | --- | --- |\n{}", rows.collect::<String>())
    }
}
