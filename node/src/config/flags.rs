//! The flags: etcd's names and defaults, and the few of our own. One table makes the command line, the environment
//! variables (`ETCD_` or `BALSA_` and the name in capitals), the file's keys and the help.

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text; the default.
    Text(&'static str),
    /// A whole number; the default.
    Number(&'static str),
    /// `5s`, `10m`; in a file also nanoseconds. The default.
    Duration(&'static str),
    /// `--flag` or `--flag=false`; the default.
    Bool(&'static str),
    /// etcd has it, it means nothing here: accepted with a warning.
    Ignored,
    /// etcd has it, and to leave it out would weaken what the caller relies on: refused.
    Refused,
}

/// One flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is for.
    pub help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, help }
}

use Kind::{Bool, Duration, Number, Text};

/// The flags that have an effect.
const SERVED: [Flag; 31] = [
    flag("name", Text("default"), "Name of this member"),
    flag("data-dir", Text(""), "Where the disk is [default: <name>.etcd]"),
    flag("listen-client-urls", Text("http://localhost:2379"), "Client port: gRPC and HTTP"),
    flag("advertise-client-urls", Text("http://localhost:2379"), "Where clients reach this member"),
    flag("listen-peer-urls", Text("http://localhost:2380"), "Peer port: members and operator"),
    flag("initial-advertise-peer-urls", Text("http://localhost:2380"), "Where members reach this member"),
    flag("listen-metrics-urls", Text(""), "Further ports for probes and metrics only"),
    flag("bootstrap", Text("static"), "How an empty disk becomes a member's: operator (wait to be told) or static"),
    flag("initial-cluster", Text(""), "Static start: name=peer-url,… [default: this member alone]"),
    flag("initial-cluster-state", Text("new"), "Static start: new or existing"),
    flag("initial-cluster-token", Text("etcd-cluster"), "Static start: tells clusters of equal names apart"),
    flag("heartbeat-interval", Number("100"), "Raft tick in ms"),
    flag("election-timeout", Number("1000"), "Silence in ms after which a follower campaigns"),
    flag("pre-vote", Bool("true"), "Ask before campaigning"),
    flag("max-request-bytes", Number("1572864"), "Largest command in bytes"),
    flag("max-txn-ops", Number("128"), "Most operations of a transaction"),
    flag("max-learners", Number("1"), "Most learners that etcd's API may add"),
    flag("strict-reconfig-check", Bool("true"), "Refuse membership changes that endanger the quorum"),
    flag("watch-progress-notify-interval", Duration("10m"), "How often an idle watch hears the revision"),
    flag("auto-compaction-mode", Text("periodic"), "periodic or revision"),
    flag("auto-compaction-retention", Text("0"), "Time, hours or revisions to keep; 0 is off"),
    flag("drain-delay", Duration("10s"), "How long to go on serving after SIGTERM"),
    flag("log-level", Text("info"), "debug, info, warn, error"),
    flag("log-format", Text("json"), "json or console"),
    flag(
        "config-version",
        Number("0"),
        "Version of what can change at run time; higher than the active one to take effect",
    ),
    flag("config-file", Text(""), "Read everything from this YAML file instead"),
    flag("quota-backend-bytes", Number("0"), "Bytes of the key space above which puts are refused; 0 is off"),
    flag("snapshot-count", Number("10000"), "Accepted; the log is trimmed by size and time"),
    flag("snapshot-catchup-entries", Number("5000"), "Accepted; see snapshot-count"),
    flag("log-outputs", Text("default"), "Accepted; lines go to stderr"),
    flag("logger", Text("zap"), "Accepted"),
];

/// Accepted, because manifests pass them, and without meaning here.
const IGNORED: [&str; 61] = [
    "wal-dir",
    "max-wals",
    "max-snapshots",
    "initial-election-tick-advance",
    "raft-read-timeout",
    "raft-write-timeout",
    "max-concurrent-streams",
    "grpc-keepalive-min-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "socket-reuse-port",
    "socket-reuse-address",
    "backend-bbolt-freelist-type",
    "backend-batch-interval",
    "backend-batch-limit",
    "memory-mlock",
    "bootstrap-defrag-threshold-megabytes",
    "downgrade-check-time",
    "self-signed-cert-validity",
    "cors",
    "host-whitelist",
    "enable-grpc-gateway",
    "enable-pprof",
    "metrics",
    "enable-log-rotation",
    "log-rotation-config-json",
    "enable-distributed-tracing",
    "distributed-tracing-address",
    "distributed-tracing-service-name",
    "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
    "auth-token",
    "auth-token-ttl",
    "bcrypt-cost",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "compact-hash-check-time",
    "compact-hash-check-enabled",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "feature-gates",
    "peer-skip-client-san-verification",
    "enable-v2",
    "v2-deprecation",
    "proxy",
    "enable-lease-checkpoint",
    "enable-lease-checkpoint-persist",
    "initial-corrupt-check",
    "stop-grpc-service-on-defrag",
    "txn-mode-write-with-shared-buffer",
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "discovery-fallback",
    "discovery-proxy",
];

/// Refused: a node that took them and did nothing would be open, or alone, or less durable than its owner believes.
const REFUSED: [&str; 34] = [
    "cert-file",
    "key-file",
    "client-cert-file",
    "client-key-file",
    "client-cert-auth",
    "client-crl-file",
    "client-cert-allowed-hostname",
    "trusted-ca-file",
    "auto-tls",
    "peer-cert-file",
    "peer-key-file",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-client-cert-auth",
    "peer-trusted-ca-file",
    "peer-auto-tls",
    "peer-crl-file",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "cipher-suites",
    "tls-min-version",
    "tls-max-version",
    "listen-client-http-urls",
    "force-new-cluster",
    "unsafe-no-fsync",
    "discovery",
    "discovery-token",
    "discovery-endpoints",
    "discovery-srv",
    "discovery-srv-name",
    "discovery-cert",
    "discovery-key",
    "discovery-cacert",
    "discovery-user",
];

/// etcd 3.6 and before spelled some flags `experimental-X`; X means the same.
pub const EXPERIMENTAL: &str = "experimental-";

/// Every flag.
pub fn all() -> impl Iterator<Item = Flag> {
    let ignored = IGNORED.iter().map(|name| flag(name, Kind::Ignored, "Accepted without effect"));
    let refused = REFUSED.iter().map(|name| flag(name, Kind::Refused, "Not supported"));
    SERVED.into_iter().chain(ignored).chain(refused)
}

/// The flag of this name, also under its experimental spelling.
pub fn find(name: &str) -> Option<Flag> {
    let name = name.strip_prefix(EXPERIMENTAL).unwrap_or(name);
    all().find(|flag| flag.name == name)
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

/// Flags that say who and where a member is, and so differ between members that are configured alike.
pub fn is_identity(name: &str) -> bool {
    const IDENTITY: [&str; 9] = [
        "name",
        "data-dir",
        "listen-client-urls",
        "advertise-client-urls",
        "listen-peer-urls",
        "initial-advertise-peer-urls",
        "listen-metrics-urls",
        "config-file",
        // A number for the same content.
        "config-version",
    ];
    IDENTITY.contains(&name) || name.starts_with("initial-cluster")
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
    fn old_spellings_mean_the_same() {
        assert_eq!(find("experimental-watch-progress-notify-interval").unwrap().name, "watch-progress-notify-interval");
        assert!(find("no-such-flag").is_none());
    }
}
