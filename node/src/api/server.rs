//! The listeners: client port (gRPC and HTTP on one), peer port (peer and node services), metrics port (HTTP).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use balsa_proto::etcdserverpb as pb;
use balsa_proto::v3electionpb::election_server::ElectionServer;
use balsa_proto::v3lockpb::lock_server::LockServer;
use balsa_proto::{node as wire, peer};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use pb::auth_server::AuthServer;
use pb::cluster_server::ClusterServer;
use pb::kv_server::KvServer;
use pb::lease_server::LeaseServer;
use pb::maintenance_server::MaintenanceServer;
use pb::watch_server::WatchServer;
use peer::leases_server::LeasesServer;
use prost_reflect::DescriptorError;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;
use wire::node_server::NodeServer;

use super::access::{self, Access};
use super::auth::AuthApi;
use super::clean_path;
use super::cluster::ClusterApi;
use super::deadline;
use super::decode_limit::DecodeLimit;
use super::election::ElectionApi;
use super::forward::GrpcLeader;
use super::framing::{self, Framing};
use super::gateway::{self, Gateway};
use super::gather::Gathered;
use super::grpc_metrics::{self, Counting};
use super::grpc_only;
use super::http;
use super::kv::KvApi;
use super::lease::LeaseApi;
use super::lease_clock::{GrpcClock, LeaseClockApi};
use super::leftover;
use super::listener::{self, OfClients};
use super::lock::LockApi;
use super::maintenance::MaintenanceApi;
use super::methods::{self, Methods};
use super::node::NodeApi;
use super::parting::Partings;
use super::peer::PeerApi;
use super::peer_http;
use super::ping_guard::Guarded;
use super::reflection;
use super::serve;
use super::socket::Listener;
use super::spans::Tracing;
use super::unread::{self, Bounded};
use super::watch::WatchApi;
use crate::config::url::Url;
use crate::config::{Config, Http2};
use crate::engine::Limit;
use crate::service::Member;
use crate::service::election::Election;
use crate::service::kv::Kv;
use crate::service::lease::Leases;
use crate::service::lock::Lock;
use crate::service::metrics::Metrics;
use crate::service::peer::PeerService;
use crate::service::queue::Queue;
use crate::service::watch::WatchSettings;
use crate::transport::tls::Tls;
use crate::transport::tonic::{self as tonic_peers, Dialer};

/// Flow-control windows of clients: large enough that a list of several MiB is not held up by round trips.
const STREAM_WINDOW: u32 = 1 << 20;
/// See [`STREAM_WINDOW`].
const CONNECTION_WINDOW: u32 = 16 << 20;
/// What the metadata of a client's call may have, decoded; that of gRPC-Go. hyper would end the connection above 16 KiB.
const METADATA: u32 = 16 << 20;

/// Connections of members and probes. Streams are not bounded: hyper's default of 200 stalls a client that runs 1,000
/// requests over one connection. An idle one is pinged after 2 h; one that dies silently under load is found by TCP.
const PEERS: Http2 = Http2 {
    max_concurrent_streams: u32::MAX,
    // Members ping each other every second.
    ping_min_time: Duration::ZERO,
    keepalive_interval: Some(Duration::from_secs(2 * 3600)),
    keepalive_timeout: Duration::from_secs(20),
};

/// Longest wait for open connections once the listeners are told to close.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

/// The contract's descriptors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// By the reflection service.
    #[error(transparent)]
    Reflection(#[from] tonic_reflection::server::Error),
    /// By the gateway, or whoever looks for methods.
    #[error(transparent)]
    Contract(#[from] DescriptorError),
}

/// A service that takes messages up to a limit, compressed or not, and how it answers who compresses. What sets that has the
/// same names in all services that tonic generates, and no trait.
macro_rules! sized {
    ($service:expr, $limit:expr) => {
        sized!($service, $limit, |service| service.accept_compressed(Gzip).send_compressed(Gzip))
    };
    ($service:expr, $limit:expr, $compressing:expr) => {
        DecodeLimit::new($service, $limit, |service, bound| service.max_decoding_message_size(bound), $compressing)
    };
}

/// What the routes are made of.
#[derive(Clone)]
pub struct Services {
    member: Arc<Member>,
    metrics: Arc<Metrics>,
    max_request_bytes: Limit<usize>,
    watch: WatchSettings,
    data_dir: PathBuf,
    access: Arc<Access>,
    gateway: bool,
    split_http: bool,
    slow_call: Duration,
    unread: Duration,
    dialer: Dialer,
    tracing: Option<Arc<Tracing>>,
}

impl Services {
    /// Serves `member`, with the limits of `config`. What only the leader may do is passed on by `dialer`.
    pub fn new(member: Arc<Member>, metrics: Arc<Metrics>, config: &Config, dialer: Dialer) -> Self {
        let watch = WatchSettings {
            progress_interval: config.watch_progress_notify_interval,
            election_timeout: config.election_timeout,
        };
        let data_dir = config.data_dir.clone();
        let hot = member.settings().hot.clone();
        let max_request_bytes = Limit::new(move || hot.load().values.max_request_bytes);
        let (origins, hosts) = (config.cors.clone(), config.host_whitelist.clone());
        let (gateway, split_http) = (config.enable_grpc_gateway, !config.listen_client_http_urls.is_empty());
        let (slow_call, unread) = (config.warning_unary_request_duration, config.unread_stream_timeout);
        let certificates = config.enable_grpc_gateway && member.settings().auth.client_cert_auth;
        let auth = member.clone();
        let enabled = move || auth.handle().is_ok_and(|handle| handle.auth().is_enabled());
        let names_are_users = Limit::new(move || certificates && enabled());
        let access = Arc::new(Access { origins, hosts, names_are_users });
        Self {
            member,
            metrics,
            max_request_bytes,
            watch,
            data_dir,
            dialer,
            access,
            gateway,
            split_http,
            slow_call,
            unread,
            tracing: None,
        }
    }

    /// Makes spans of the calls of clients too.
    #[must_use]
    pub fn traced(self, tracing: Option<Arc<Tracing>>) -> Self {
        Self { tracing, ..self }
    }

    /// What the client port serves, and what the port of plain HTTP does if there is one: then the former is gRPC alone.
    ///
    /// # Errors
    /// Reflection or the gateway cannot be built from the contract's descriptors.
    pub fn client_routes(&self) -> Result<(Router, Router), BuildError> {
        let grpc = self.grpc()?;
        let http = self.plain_http(grpc.clone())?;
        let plain = match self.split_http {
            true => Router::new().fallback(|request| not_grpc(None, request)),
            false => http.clone(),
        };
        let client = grpc.fallback(no_service).layer(from_fn_with_state(plain, grpc_only::check));
        Ok((client, http))
    }

    /// The services of the client port.
    fn grpc(&self) -> Result<Router, BuildError> {
        let limit = || self.max_request_bytes.clone();
        let leader = Arc::new(GrpcLeader::new(self.dialer.clone(), self.watch.election_timeout));
        let kv = KvServer::new(KvApi::new(self.member.clone(), self.slow_call));
        let clock = GrpcClock::new(self.dialer.clone(), self.watch.election_timeout);
        let leases = Leases::new(self.member.clone(), Arc::new(clock));
        let queue = Queue::new(Kv::new(self.member.clone()), leases.clone());
        let lock = LockServer::new(LockApi::new(Lock::new(queue.clone())));
        let election = ElectionServer::new(ElectionApi::new(Election::new(queue)));
        let lease = LeaseServer::new(LeaseApi::new(leases));
        let cluster = ClusterServer::new(ClusterApi::new(self.member.clone(), leader));
        let auth = AuthServer::new(AuthApi::new(self.member.clone()));
        let maintenance = MaintenanceServer::new(MaintenanceApi::new(self.member.clone()));
        let (member, stopping) = (self.member.clone(), self.member.stopping().clone());
        let gate = self.member.clone();
        let admission = move |caller| gate.clone().watch_admission(caller);
        let watch = WatchApi::new(move || member.handle(), admission, stopping, self.watch, limit());
        let watch = WatchServer::new(watch);
        let routes = Routes::default()
            .add_service(sized!(kv.max_encoding_message_size(usize::MAX), limit()))
            .add_service(sized!(
                watch.max_encoding_message_size(usize::MAX),
                limit(),
                // Its large messages go around tonic: see `large_message`.
                |service| service.accept_compressed(Gzip)
            ))
            .add_service(sized!(lease.max_encoding_message_size(usize::MAX), limit()))
            .add_service(sized!(lock, limit()))
            .add_service(sized!(election.max_encoding_message_size(usize::MAX), limit()))
            .add_service(sized!(cluster, limit()))
            .add_service(sized!(auth, limit()))
            .add_service(sized!(maintenance, limit()))
            .add_service(super::health::service(self.member.clone()))
            .add_service(reflection::builder().build_v1()?)
            .add_service(reflection::builder().build_v1alpha()?);
        let methods = self.metrics.grpc();
        let unread = Bounded { methods: methods.clone(), bound: self.unread };
        let counting = Counting { methods, slow: self.slow_call, tracing: self.tracing.clone() };
        let framing = Framing { methods: Arc::new(Methods::of_clients()?), max_request_bytes: limit() };
        let routes = routes.into_axum_router().layer(from_fn_with_state(framing, framing::check));
        let routes = routes.layer(from_fn_with_state(unread, unread::end_unread));
        Ok(routes.layer(from_fn_with_state(counting, grpc_metrics::count)))
    }

    /// What is no gRPC on the client port: the gateway and the paths of `http.rs`, behind the access checks.
    fn plain_http(&self, grpc: Router) -> Result<Router, BuildError> {
        let gateway = if self.gateway { Some(Gateway::new(grpc, self.max_request_bytes.clone())?) } else { None };
        let fallback = move |request: Request| not_grpc(gateway.clone(), request);
        let routes = http::routes(self.member.clone(), self.metrics.clone());
        let routes = routes.fallback(fallback).layer(from_fn(clean_path::redirect));
        let routes = routes.layer(from_fn_with_state(self.access.clone(), access::check));
        Ok(routes.layer(from_fn(leftover::read)))
    }

    /// The peer port: the peer and node services, etcd's membership calls for members that pass them on, and a little HTTP.
    pub fn peer_routes(&self) -> Router {
        let leader = Arc::new(GrpcLeader::new(self.dialer.clone(), self.watch.election_timeout));
        let member = self.member.clone();
        let peers = PeerService::new(&self.data_dir, Arc::new(move || member.handle()));
        let routes = Routes::new(PeerApi::new(Arc::new(peers)).into_server())
            .add_service(LeasesServer::new(LeaseClockApi::new(self.member.clone())))
            .add_service(NodeServer::new(NodeApi::new(self.member.clone(), leader.clone())))
            .add_service(ClusterServer::new(ClusterApi::of_peers(self.member.clone(), leader)));
        let plain = peer_http::routes(self.member.clone()).fallback(|request| not_grpc(None, request));
        let plain = plain.layer(from_fn(clean_path::redirect));
        let routes = routes.into_axum_router().layer(from_fn(deadline::keep_all));
        routes.layer(from_fn_with_state(plain, grpc_only::check))
    }

    /// HTTP of the metrics port.
    pub fn metrics_routes(&self) -> Router {
        http::probes(self.member.clone(), self.metrics.clone()).layer(from_fn(clean_path::redirect))
    }
}

/// What becomes of a listener's connections when the process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Clients are told to go away, and what is in flight is finished.
    Gracefully,
    /// Open until the process is gone: peers keep one stream each, which never ends by itself.
    AtExit,
}

/// Servers that run until they are told to close.
pub struct Listeners {
    servers: JoinSet<()>,
    until_exit: JoinSet<()>,
    closing: CancellationToken,
    of_clients: OfClients,
    clients: Http2,
    reuse_port: bool,
}

impl Listeners {
    /// None yet. Those that close gracefully are for clients, whose connections obey `clients`; there are `most` of them at
    /// most.
    pub fn new(clients: Http2, reuse_port: bool, most: usize) -> Self {
        let closing = CancellationToken::new();
        let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let of_clients = OfClients { partings: Partings::new(closing.clone()), places };
        Self { servers: JoinSet::new(), until_exit: JoinSet::new(), closing, of_clients, clients, reuse_port }
    }

    /// Binds each address and serves `routes` there, behind `tls` where the URL says so. Bound when it returns, which has the
    /// ports' addresses.
    ///
    /// # Errors
    /// An address that cannot be bound, with the address in the text.
    pub fn serve(
        &mut self,
        urls: &[Url],
        tls: Option<&Arc<Tls>>,
        routes: &Router,
        closing: Closing,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut bound = Vec::with_capacity(urls.len());
        for url in urls {
            let listen = url.listen().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let in_context = |error: io::Error| io::Error::new(error.kind(), format!("listen on {url}: {error}"));
            let listener = Listener::bind(&listen, self.reuse_port).map_err(in_context)?;
            bound.extend(listener.local_addr()?);
            let limits = if closing == Closing::Gracefully { self.clients } else { PEERS };
            // etcd's own rule: a connection that is pinged when it is idle also has to take what it is sent.
            let unread = limits.keepalive_interval.map(|_| limits.keepalive_timeout);
            let unread = unread.filter(|_| closing == Closing::Gracefully);
            let clients = (closing == Closing::Gracefully).then(|| self.of_clients.clone());
            let incoming = listener::incoming(listener, tls.filter(|_| url.is_secure()).cloned(), unread, clients);
            let served = move |stream| Gathered::new(Guarded::new(stream, limits.ping_min_time));
            let incoming = incoming.map(move |accepted| accepted.map(served));
            let (routes, builder) = (routes.clone(), builder(closing, limits));
            match closing {
                Closing::AtExit => {
                    self.until_exit.spawn(serve::serve(incoming, builder, routes, CancellationToken::new()))
                }
                Closing::Gracefully => {
                    self.servers.spawn(serve::serve(incoming, builder, routes, self.closing.clone()))
                }
            };
        }
        Ok(bound)
    }

    /// Resolves when a server has ended by itself, which none should.
    pub async fn failed(&mut self) -> String {
        let ended = tokio::select! {
            Some(ended) = self.servers.join_next() => ended,
            Some(ended) = self.until_exit.join_next() => ended,
            else => return std::future::pending().await,
        };
        match ended {
            Ok(()) => "a listener ended".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Accepts no more clients, tells those that are there to go away, waits for what is in flight and until they have closed
    /// too, at most [`CLOSE_BOUND`], and leaves the rest to the end of the process.
    pub async fn close(mut self) {
        self.closing.cancel();
        let all = async {
            while self.servers.join_next().await.is_some() {}
            self.of_clients.partings.all().await;
        };
        if timeout(CLOSE_BOUND, all).await.is_err() {
            tracing::warn!("some connections were still open and end with the process");
        }
    }
}

/// What a call is answered of a service that there is not, also where plain HTTP has something under this path.
async fn no_service(request: Request) -> Response {
    methods::of_no_service(request.uri()).into_http()
}

/// What no path of `http.rs` serves: the gateway's paths, `Unimplemented` for gRPC, 404 for anything else.
async fn not_grpc(gateway: Option<Gateway>, request: Request) -> Response {
    if grpc_only::is_call(&request) {
        return no_service(request).await;
    }
    match (gateway, request.uri().path()) {
        (Some(_), "/v3") => clean_path::to(&request, "/v3/"),
        (Some(gateway), gateway::OPENAPI_PATH) => gateway.openapi(),
        (Some(gateway), path) if path.starts_with("/v3/") => gateway.answer(request).await,
        _ => http::not_found().await,
    }
}

fn builder(closing: Closing, limits: Http2) -> Builder<TokioExecutor> {
    let (stream_window, connection_window) = match closing {
        Closing::AtExit => (tonic_peers::STREAM_WINDOW, tonic_peers::CONNECTION_WINDOW),
        Closing::Gracefully => (STREAM_WINDOW, CONNECTION_WINDOW),
    };
    let metadata = (closing == Closing::Gracefully).then_some(METADATA);
    serve::builder(limits, serve::Bounds { stream_window, connection_window, metadata })
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::http::header::CONTENT_TYPE;

    use super::*;

    #[tokio::test]
    async fn what_is_not_served_is_said_in_the_callers_protocol() {
        let gateway = Some(Gateway::new(Router::new(), Limit::new(|| 1)).unwrap());
        let request = |path: &str, kind: &str| {
            let request = Request::post(path).header(CONTENT_TYPE, kind).version(axum::http::Version::HTTP_2);
            request.body(axum::body::Body::empty()).unwrap()
        };
        let answer = not_grpc(gateway.clone(), request("/nope", "text/plain")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        let answer = not_grpc(gateway.clone(), request("/v3/nope", "application/json")).await;
        assert_eq!(
            (answer.status(), &answer.headers()[CONTENT_TYPE]),
            (StatusCode::NOT_FOUND, &"application/json".parse().unwrap())
        );
        let answer = not_grpc(gateway, request("/a.B/C", "application/grpc+proto")).await;
        assert_eq!((answer.status(), &answer.headers()["grpc-status"]), (StatusCode::OK, &"12".parse().unwrap()));
    }
}
