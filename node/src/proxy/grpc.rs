//! `balsa grpc-proxy start`: stands between gRPC clients and the members of a cluster. Every call is passed on to the next
//! member that can be reached, its messages as they come; with `--namespace` the keys in them are put under a prefix and taken
//! from under it. It answers itself who the members are: the proxies.
//!
//! Unlike etcd's it neither joins watches of the same range nor keeps answers: what a client is told comes from a member.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use prost::Message as _;
use tonic::Status;
use tower::ServiceExt as _;

use super::arguments::{Asked, Command, Flag, Given, Kind};
use super::gateway::discovered;
use super::health;
use super::messages::{Messages, Rewrite, Trouble, Whole};
use super::namespace::Namespace;
use super::registry::Registry;
use super::upstream::Upstream;
use super::{Invocation, Proxy, Refused};
use crate::api::grpc_only;
use crate::api::http::not_found;
use crate::api::server::{Closing, Listeners};
use crate::config::url::Url;
use crate::config::{self, Http2};
use crate::transport::tls::{Identity, Tls, TlsError, TlsOptions, Version, self_signed};
use crate::transport::tonic::{Dialer, Pings};

/// The first argument that asks for it.
pub(super) const NAME: &str = "grpc-proxy";
/// How far apart pings to members are at least; gRPC-Go's number.
const LEAST_PING: Duration = Duration::from_secs(10);
/// How long one may be unanswered when no flag says so; gRPC-Go's number.
const PING_ANSWER: Duration = Duration::from_secs(20);
/// The call that it answers itself.
const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";

const fn flag(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, help }
}

const COMMAND: Command = Command {
    name: NAME,
    about: "grpc-proxy related command",
    about_start: "start the grpc proxy",
    flags: &[
        flag(
            "advertise-client-url",
            Kind::Text("127.0.0.1:23790"),
            "advertise address to register (must be reachable by client)",
        ),
        flag("auto-tls", Kind::Switch, "proxy TLS using generated certificates"),
        flag("cacert", Kind::Text(""), "verify certificates of TLS-enabled secure etcd servers using this CA bundle"),
        flag("cert", Kind::Text(""), "identify secure connections with etcd servers using this TLS certificate file"),
        flag("cert-file", Kind::Text(""), "identify secure connections to the proxy using this TLS certificate file"),
        flag("client-crl-file", Kind::Text(""), "proxy client certificate revocation list file."),
        flag("data-dir", Kind::Text("default.proxy"), "Data directory for persistent data"),
        flag("debug", Kind::Switch, "Enable debug-level logging for grpc-proxy."),
        flag(
            "dial-keepalive-time",
            Kind::Time(Duration::ZERO),
            "keepalive time for client(grpc-proxy) connections (default 0, disable).",
        ),
        flag(
            "dial-keepalive-timeout",
            Kind::Time(Duration::from_secs(20)),
            "keepalive timeout for client(grpc-proxy) connections (default 20s).",
        ),
        flag("discovery-srv", Kind::Text(""), "domain name to query for SRV records describing cluster endpoints"),
        flag("discovery-srv-name", Kind::Text(""), "service name to query when using DNS discovery"),
        flag(
            "enable-pprof",
            Kind::Switch,
            "Enable runtime profiling data via HTTP server. Address is at client URL + \"/debug/pprof/\"",
        ),
        flag("endpoints", Kind::List("127.0.0.1:2379"), "comma separated etcd cluster endpoints"),
        flag(
            "endpoints-auto-sync-interval",
            Kind::Time(Duration::ZERO),
            "etcd endpoints auto sync interval (disabled by default)",
        ),
        flag("experimental-enable-grpc-logging", Kind::Switch, "logging all grpc requests and responses"),
        flag(
            "experimental-leasing-prefix",
            Kind::Text(""),
            "leasing metadata prefix for disconnected linearized reads.",
        ),
        flag(
            "experimental-serializable-ordering",
            Kind::Switch,
            "Ensure serializable reads have monotonically increasing store revisions across endpoints.",
        ),
        flag(
            "grpc-keepalive-interval",
            Kind::Time(Duration::from_secs(2 * 3600)),
            "Frequency duration of server-to-client ping to check if a connection is alive (0 to disable).",
        ),
        flag(
            "grpc-keepalive-min-time",
            Kind::Time(Duration::from_secs(5)),
            "Minimum interval duration that a client should wait before pinging proxy.",
        ),
        flag(
            "grpc-keepalive-timeout",
            Kind::Time(Duration::from_secs(20)),
            "Additional duration of wait before closing a non-responsive connection (0 to disable).",
        ),
        flag("insecure-discovery", Kind::Switch, "accept insecure SRV records"),
        flag(
            "insecure-skip-tls-verify",
            Kind::Switch,
            "skip authentication of etcd server TLS certificates (CAUTION: this option should be enabled only for testing purposes)",
        ),
        flag("key", Kind::Text(""), "identify secure connections with etcd servers using this TLS key file"),
        flag("key-file", Kind::Text(""), "identify secure connections to the proxy using this TLS key file"),
        flag("listen-addr", Kind::Text("127.0.0.1:23790"), "listen address"),
        flag(
            "listen-cipher-suites",
            Kind::List(""),
            "Comma-separated list of supported TLS cipher suites between client/proxy (empty will be auto-populated by Go).",
        ),
        flag(
            "max-concurrent-streams",
            Kind::Number("uint32", "4294967295"),
            "Maximum concurrent streams that each client can open at a time.",
        ),
        flag(
            "max-recv-bytes",
            Kind::Number("int", "2147483647"),
            "message receive limits in bytes (default value is math.MaxInt32)",
        ),
        flag(
            "max-send-bytes",
            Kind::Number("int", "1572864"),
            "message send limits in bytes (default value is 1.5 MiB)",
        ),
        flag("metrics-addr", Kind::Text(""), "listen for endpoint /metrics requests on an additional interface"),
        flag("namespace", Kind::Text(""), "string to prefix to all keys for namespacing requests"),
        flag(
            "permit-without-stream",
            Kind::Switch,
            "Enable client(grpc-proxy) to send keepalive pings even with no active RPCs.",
        ),
        flag(
            "resolver-prefix",
            Kind::Text(""),
            "prefix to use for registering proxy (must be shared with other grpc-proxy members)",
        ),
        flag("resolver-ttl", Kind::Number("int", "0"), "specify TTL, in seconds, when registering proxy endpoints"),
        flag(
            "self-signed-cert-validity",
            Kind::Number("uint", "1"),
            "The validity period of the proxy certificates, unit is year",
        ),
        flag(
            "tls-max-version",
            Kind::Text(""),
            "Maximum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3 (empty defers to Go).",
        ),
        flag(
            "tls-min-version",
            Kind::Text("TLS1.2"),
            "Minimum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3.",
        ),
        flag("trusted-ca-file", Kind::Text(""), "verify certificates of TLS-enabled secure proxy using this CA bundle"),
    ],
};

/// A proxy as its command line describes it.
#[derive(Debug)]
pub struct GrpcProxy(Given);

/// Reads the arguments behind the command's name.
///
/// # Errors
/// [`Refused::Said`].
pub(super) fn read(arguments: &[String]) -> Result<Invocation, Refused> {
    match COMMAND.read(arguments).map_err(Refused::Said)? {
        Asked::Print(text) => Ok(Invocation::Print(text)),
        Asked::Start(given) => {
            check(&given).map_err(|why| Refused::Said(why + "\n"))?;
            Ok(Invocation::Start(Proxy::Grpc(GrpcProxy(given))))
        }
    }
}

/// What etcd refuses, in its words, and what cannot be had here.
fn check(given: &Given) -> Result<(), String> {
    let (prefix, ttl): (_, i64) = (given.text("resolver-prefix"), given.number("resolver-ttl"));
    if !prefix.is_empty() && ttl < 1 {
        return Err(format!("invalid resolver-ttl {ttl}"));
    }
    if prefix.is_empty() && ttl > 0 {
        return Err(format!("invalid resolver-prefix {prefix:?}"));
    }
    if !prefix.is_empty() && given.text("advertise-client-url").is_empty() {
        return Err("invalid advertise-client-url \"\"".to_owned());
    }
    if given.is_on("auto-tls") && given.number::<u32>("self-signed-cert-validity") == 0 {
        return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
    }
    let min = version("tls-min-version", given)?.unwrap_or(Version::Tls12);
    let max = version("tls-max-version", given)?.unwrap_or(Version::Tls13);
    if min > max {
        let (min, max) = (given.text("tls-min-version"), given.text("tls-max-version"));
        return Err(format!("min version ({min}) is greater than max version ({max})"));
    }
    if min == Version::Tls13 && !given.list("listen-cipher-suites").is_empty() {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
    }
    let missing = [
        ("experimental-leasing-prefix", "keys are not cached"),
        ("experimental-serializable-ordering", "revisions of serializable reads are those of the members that answer"),
        ("endpoints-auto-sync-interval", "the members are those of --endpoints"),
    ];
    let asked = |name: &str| !["", "false", "0s", "0"].contains(&given.text(name));
    match missing.iter().find(|(name, _)| asked(name)) {
        Some((name, why)) => Err(format!("--{name} is not supported by this version: {why}")),
        None => Ok(()),
    }
}

fn version(name: &str, given: &Given) -> Result<Option<Version>, String> {
    match given.text(name) {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(Version::Tls12)),
        "TLS1.3" => Ok(Some(Version::Tls13)),
        other => Err(format!("{name} is invalid: unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)")),
    }
}

/// What every call needs.
pub(super) struct Calls {
    pub(super) upstream: Upstream,
    pub(super) namespace: Namespace,
    pub(super) registry: Registry,
    /// Of messages to members.
    most_sent: usize,
    /// Of messages from them.
    most_received: usize,
}

impl GrpcProxy {
    /// Listens, calls `ready`, and passes calls on without end.
    pub(super) async fn run(self, ready: impl FnOnce()) -> Result<(), Refused> {
        let given = &self.0;
        let said = |error: &dyn std::fmt::Display| Refused::Said(format!("{error}\n"));
        let discovered = discovered(given, given.text("cacert")).await?.urls();
        let endpoints = if discovered.is_empty() { given.list("endpoints") } else { discovered };
        if endpoints.is_empty() {
            return Err(Refused::Said("no endpoints found\n".to_owned()));
        }
        let is_demanded = endpoints.iter().any(|endpoint| endpoint.starts_with("https:"));
        let to_members = self.tls_to_members(is_demanded).map_err(|error| said(&error))?;
        let of_port = self.tls_of_port().map_err(|error| said(&error))?;
        let dialer = Dialer::new(to_members.clone()).as_client(self.pings());
        let upstream = Upstream::new(dialer, endpoints, self.asks_for_tls());
        let calls = Arc::new(Calls {
            upstream,
            namespace: Namespace::new(given.text("namespace")),
            registry: Registry::new(
                given.text("resolver-prefix"),
                given.text("advertise-client-url"),
                given.number("resolver-ttl"),
            ),
            most_sent: most(given, "max-send-bytes"),
            most_received: most(given, "max-recv-bytes"),
        });
        let to_itself = of_port.as_ref().map(|_| self.tls_to_itself()).transpose().map_err(|error| said(&error))?;
        let (routes, metrics) = routes(&calls, health::Own { to_itself, to_members });
        let mut listeners = Listeners::new(self.http2(), false, crate::transport::open_files::for_clients());
        let bound = self.listen(&mut listeners, &of_port, &routes, &metrics).map_err(|error| said(&error))?;
        tokio::spawn(Registry::keep(calls));
        tracing::info!(address = ?bound, "started gRPC proxy");
        ready();
        let ended = listeners.failed().await;
        Err(Refused::Said(ended + "\n"))
    }

    fn listen(
        &self,
        listeners: &mut Listeners,
        tls: &Option<Arc<Tls>>,
        routes: &Router,
        metrics: &Router,
    ) -> std::io::Result<Vec<SocketAddr>> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = |address: &str| {
            let url = if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") };
            Url::parse(&url).map_err(std::io::Error::other)
        };
        let listen = self.0.text("listen-addr");
        let bound = listeners.serve(&[url(listen)?], tls.as_ref(), routes, Closing::Gracefully)?;
        tracing::info!(address = listen, "listening for gRPC proxy client requests");
        let further = self.0.text("metrics-addr");
        if !further.is_empty() {
            listeners.serve(&[url(further)?], tls.as_ref(), metrics, Closing::AtExit)?;
        }
        Ok(bound)
    }

    fn http2(&self) -> Http2 {
        let interval = self.0.time("grpc-keepalive-interval");
        Http2 {
            max_concurrent_streams: self.0.number("max-concurrent-streams"),
            ping_min_time: config::ping_min_time(self.0.time("grpc-keepalive-min-time")),
            keepalive_interval: (!interval.is_zero()).then_some(interval),
            keepalive_timeout: self.0.time("grpc-keepalive-timeout"),
        }
    }

    /// How members are pinged: as by gRPC-Go, which asks no more often whatever it is told, and by itself after so long.
    fn pings(&self) -> Pings {
        let (every, within) = (self.0.time("dial-keepalive-time"), self.0.time("dial-keepalive-timeout"));
        Pings {
            every: (!every.is_zero()).then_some(every.max(LEAST_PING)),
            within: if within.is_zero() { PING_ANSWER } else { within },
            while_idle: self.0.is_on("permit-without-stream"),
        }
    }

    /// The files of two flags. Half of a pair is refused: taken for none, it would be a port without TLS.
    fn identity(&self, cert: &str, key: &str) -> Result<Option<Identity>, TlsError> {
        match (self.0.text(cert), self.0.text(key)) {
            ("", "") => Ok(None),
            (cert, key) if cert.is_empty() || key.is_empty() => {
                Err(TlsError::new(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")))
            }
            (cert, key) => Ok(Some(Identity { cert: cert.into(), key: key.into() })),
        }
    }

    /// Whether a flag says how members are spoken to by TLS, as those are then of which no URL says how.
    fn asks_for_tls(&self) -> bool {
        let named = ["cacert", "cert", "key"].into_iter().any(|flag| !self.0.text(flag).is_empty());
        named || self.0.is_on("insecure-skip-tls-verify")
    }

    /// How members are spoken to; None for without TLS. Where a URL demands it and no flag says how, the system's authorities
    /// count, as with etcd's.
    fn tls_to_members(&self, is_demanded: bool) -> Result<Option<Arc<Tls>>, TlsError> {
        let skip = self.0.is_on("insecure-skip-tls-verify");
        let authorities = self.0.text("cacert");
        let identity = self.identity("cert", "key")?;
        if !self.asks_for_tls() && !is_demanded {
            return Ok(None);
        }
        let options = TlsOptions {
            client_identity: identity,
            trusted_ca: (!authorities.is_empty() && !skip).then(|| authorities.into()),
            self_signed: skip,
            dials: true,
            nameless: true,
            ..TlsOptions::default()
        };
        Tls::new("member", options).map(|tls| Some(Arc::new(tls)))
    }

    /// What the proxy's own port shows is taken for its own.
    fn tls_to_itself(&self) -> Result<Arc<Tls>, TlsError> {
        let client_identity = self.identity("cert-file", "key-file")?;
        Tls::new("proxy", TlsOptions { client_identity, self_signed: true, dials: true, ..TlsOptions::default() })
            .map(Arc::new)
    }

    /// How clients speak to the proxy; None for without TLS.
    fn tls_of_port(&self) -> Result<Option<Arc<Tls>>, TlsError> {
        let given = &self.0;
        let authorities = given.text("trusted-ca-file");
        let mut identity = self.identity("cert-file", "key-file")?;
        if identity.is_none() && !authorities.is_empty() {
            let listen = given.text("listen-addr");
            return Err(TlsError::new(format!(
                "cannot listen on TLS for {listen}: KeyFile and CertFile are not presented"
            )));
        }
        if identity.is_none() && given.is_on("auto-tls") {
            let directory = std::path::Path::new(given.text("data-dir")).join("fixtures/proxy");
            let host = given.text("listen-addr").rsplit_once(':').map_or("", |(host, _)| host).to_owned();
            identity = Some(self_signed(&directory, &[host], given.number("self-signed-cert-validity"))?);
        }
        let Some(identity) = identity else { return Ok(None) };
        let version = |name| version(name, given).ok().flatten();
        let suites =
            crate::config::cipher_suites::Suites::of(&given.list("listen-cipher-suites")).map_err(TlsError::new)?;
        if let Some(warning) = suites.warning("listen-cipher-suites") {
            tracing::warn!("{warning}");
        }
        let options = TlsOptions {
            identity: Some(identity),
            trusted_ca: (!authorities.is_empty()).then(|| authorities.into()),
            crl: Some(given.text("client-crl-file")).filter(|path| !path.is_empty()).map(Into::into),
            cipher_suites: suites.spoken,
            min_version: version("tls-min-version").unwrap_or(Version::Tls12),
            max_version: version("tls-max-version").unwrap_or(Version::Tls13),
            ..TlsOptions::default()
        };
        Tls::new("proxy", options).map(|tls| Some(Arc::new(tls)))
    }
}

/// How many bytes a message may have; any number when the flag says none.
fn most(given: &Given, flag: &str) -> usize {
    Some(given.number(flag)).filter(|most| *most > 0).unwrap_or(usize::MAX)
}

/// What the port serves, and what the further one for metrics does.
fn routes(calls: &Arc<Calls>, own: health::Own) -> (Router, Router) {
    let own = Arc::new(own);
    let plain = Router::new()
        .route("/health", get(health::of_cluster))
        .route("/proxy/health", get(health::of_proxy))
        .route("/metrics", get(health::metrics_of_member))
        .route("/proxy/metrics", get(health::metrics))
        .with_state((calls.clone(), own));
    let all = plain.clone().fallback(pass_on_or_404);
    let calls = calls.clone();
    let all = all.layer(axum::Extension(calls));
    (all, plain.fallback(not_found))
}

async fn pass_on_or_404(axum::Extension(calls): axum::Extension<Arc<Calls>>, request: Request) -> Response {
    if grpc_only::is_call(&request) { calls.answer(request).await } else { not_found().await }
}

impl Calls {
    async fn answer(&self, request: Request) -> Response {
        let answered = match request.uri().path() {
            MEMBER_LIST if self.registry.answers() => self.members().await,
            _ => self.pass_on(request).await,
        };
        answered.unwrap_or_else(|status| status.into_http())
    }

    async fn pass_on(&self, request: Request) -> Result<Response, Status> {
        let path = request.uri().path().to_owned();
        let (mut head, body) = request.into_parts();
        let trouble = Trouble::default();
        let rewrites = self.namespace.concerns(&path);
        let rewrite = |back: bool| -> Option<Rewrite> {
            let (namespace, path) = (self.namespace.clone(), path.clone());
            rewrites.then(|| {
                Arc::new(move |message: Bytes| {
                    let rewritten =
                        if back { namespace.response(&path, message) } else { namespace.request(&path, message) };
                    rewritten.map_err(|error| Status::internal(format!("grpc: error unmarshalling: {error}")))
                }) as Rewrite
            })
        };
        head.headers.remove(CONTENT_LENGTH);
        if rewrites {
            // What is compressed cannot be looked into.
            head.headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
        }
        let body = Messages::of(body, self.most_sent, rewrite(false), trouble.clone());
        let request = Request::from_parts(head, tonic::body::Body::new(Body::new(body)));
        let (index, channel) = self.upstream.channel().await?;
        match channel.oneshot(request).await {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                head.headers.remove(CONTENT_LENGTH);
                let body = Messages::of(Body::new(body), self.most_received, rewrite(true), Trouble::default());
                Ok(Response::from_parts(head, Body::new(body)))
            }
            Err(error) => Err(trouble.take().unwrap_or_else(|| {
                self.upstream.lost(index);
                Status::unavailable(error.to_string())
            })),
        }
    }

    /// The proxies that clients may go to, in the place of the members.
    async fn members(&self) -> Result<Response, Status> {
        let members = self.registry.members(self).await?;
        let message = pb::MemberListResponse { header: None, members }.encode_to_vec();
        let body = Body::new(Whole::of(&message));
        Ok(([("content-type", "application/grpc")], body).into_response())
    }
}
