//! Speaks to nodes: the client of the node service.
//!
//! Owns addresses, timeouts and the translation of refusals into [`NodeError`]. A node is dialled by its pod's address
//! on the peer port, never through a Service, so that every answer is about the pod that was asked. Must not know what
//! any answer means for the plan. How a node is reached is behind [`Dial`], so that passes can run without a network.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use balsa_proto::node::node_client::NodeClient;
use balsa_proto::node::{
    AddRequest, BootstrapRequest, BootstrapResponse, ChangeResponse, GetConfigRequest, GetConfigResponse, JoinRequest,
    ListRequest, ListResponse, MoveLeaderRequest, MoveLeaderResponse, PrepareStopRequest, PromoteRequest, Reason,
    RemoveRequest, SetConfigRequest, SetConfigResponse, StateRequest, StateResponse,
};
use thiserror::Error;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

/// Port of the peer and node services.
pub const PEER_PORT: u16 = 2380;
/// How long an observation may take. One silent pod must not hold a pass.
pub const OBSERVE_TIMEOUT: Duration = Duration::from_millis(800);
/// How long a change may take: it has to be committed and applied, across one election at worst.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Metadata key under which a node names the reason of a refusal.
const REASON_KEY: &str = "balsa-reason";

/// Why a node did not do what it was asked.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Nothing answered: the outcome of a change is unknown.
    #[error("{address} does not answer: {message}")]
    Silent {
        /// Who was asked.
        address: SocketAddr,
        /// What the transport said.
        message: String,
    },
    /// The node refused and said why.
    #[error("{address} refused: {message}")]
    Refused {
        /// Who was asked.
        address: SocketAddr,
        /// The typed reason.
        reason: Reason,
        /// The node's own text.
        message: String,
    },
    /// The node failed without a typed reason.
    #[error("{address} failed ({code:?}): {message}")]
    Failed {
        /// Who was asked.
        address: SocketAddr,
        /// gRPC code.
        code: Code,
        /// The node's own text.
        message: String,
    },
}

impl NodeError {
    fn new(address: SocketAddr, status: &Status) -> Self {
        let message = status.message().to_owned();
        let named = status.metadata().get(REASON_KEY).and_then(|value| value.to_str().ok());
        if let Some(reason) = named.and_then(Reason::from_str_name) {
            return Self::Refused { address, reason, message };
        }
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Silent { address, message },
            code => Self::Failed { address, code, message },
        }
    }

    /// The word for it in metrics, conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Silent { .. } => "NodeSilent",
            Self::Refused { reason, .. } => reason.as_str_name(),
            Self::Failed { .. } => "NodeFailed",
        }
    }
}

/// A node could not be reached.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct TransportError(#[from] tonic::transport::Error);

/// What carries one node's calls.
pub type Transport = BoxCloneSyncService<axum::http::Request<Body>, axum::http::Response<Body>, TransportError>;

/// How nodes are reached.
pub trait Dial: Send + Sync {
    /// A way to the node at `address`; connecting may wait for the first call. `timeout` bounds connecting and each call.
    fn dial(&self, address: SocketAddr, timeout: Duration) -> Transport;
}

/// By TCP, as in a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

impl Dial for Network {
    fn dial(&self, address: SocketAddr, timeout: Duration) -> Transport {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .expect("a socket address makes a valid URI")
            .connect_timeout(timeout)
            .timeout(timeout);
        Transport::new(endpoint.connect_lazy().map_err(TransportError::from))
    }
}

/// A connection to one node. Every call ends within the timeout it was connected with.
#[derive(Debug)]
pub struct Node {
    address: SocketAddr,
    timeout: Duration,
    client: NodeClient<Transport>,
}

impl Node {
    /// Names the node at `ip`; dials at the first call. `timeout` bounds dialling and each call.
    pub fn at(dial: &dyn Dial, ip: IpAddr, timeout: Duration) -> Self {
        Self::at_address(dial, SocketAddr::new(ip, PEER_PORT), timeout)
    }

    /// As [`Node::at`] with a port of its own.
    pub fn at_address(dial: &dyn Dial, address: SocketAddr, timeout: Duration) -> Self {
        Self { address, timeout, client: NodeClient::new(dial.dial(address, timeout)) }
    }

    /// What this node is. `cluster_id` is the latched one, 0 while there is none.
    ///
    /// # Errors
    /// See [`NodeError`]; so for all calls.
    pub async fn state(&mut self, cluster_id: u64) -> Result<StateResponse, NodeError> {
        let request = self.bounded(StateRequest { cluster_id });
        let answer = self.client.state(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// The linearizable list of members.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn list(&mut self) -> Result<ListResponse, NodeError> {
        let request = self.bounded(ListRequest {});
        let answer = self.client.list(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Its settings that can change at run time.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn get_config(&mut self) -> Result<GetConfigResponse, NodeError> {
        let request = self.bounded(GetConfigRequest {});
        let answer = self.client.get_config(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Changes them, all or none.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn set_config(&mut self, request: SetConfigRequest) -> Result<SetConfigResponse, NodeError> {
        let request = self.bounded(request);
        let answer = self.client.set_config(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Founds the cluster on this node.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn bootstrap(&mut self, request: BootstrapRequest) -> Result<BootstrapResponse, NodeError> {
        let request = self.bounded(request);
        let answer = self.client.bootstrap(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Tells an uninitialized node which member it is.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn join(&mut self, request: JoinRequest) -> Result<(), NodeError> {
        let request = self.bounded(request);
        let answer = self.client.join(request);
        Self::within(self.address, self.timeout, answer).await.map(|_| ())
    }

    /// Adds a learner.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn add(&mut self, request: AddRequest) -> Result<ChangeResponse, NodeError> {
        let request = self.bounded(request);
        let answer = self.client.add(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn promote(&mut self, request: PromoteRequest) -> Result<ChangeResponse, NodeError> {
        let request = self.bounded(request);
        let answer = self.client.promote(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Removes a member for ever.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn remove(&mut self, request: RemoveRequest) -> Result<ChangeResponse, NodeError> {
        let request = self.bounded(request);
        let answer = self.client.remove(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Hands leadership over.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn move_leader(&mut self, request: MoveLeaderRequest) -> Result<MoveLeaderResponse, NodeError> {
        let request = self.bounded(request);
        let answer = self.client.move_leader(request);
        Self::within(self.address, self.timeout, answer).await
    }

    /// Makes the member that the request names unready and no leader, and lets it finish and flush; it goes on serving.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn prepare_stop(&mut self, request: PrepareStopRequest) -> Result<(), NodeError> {
        let request = self.bounded(request);
        let answer = self.client.prepare_stop(request);
        Self::within(self.address, self.timeout, answer).await.map(|_| ())
    }

    /// The node learns the deadline too, so that it gives up when nobody waits any more.
    fn bounded<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    async fn within<T>(
        address: SocketAddr,
        timeout: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, NodeError> {
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(NodeError::new(address, &status)),
            Err(_) => Err(NodeError::Silent { address, message: format!("no answer within {timeout:?}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        "10.0.0.1:2380".parse().expect("an address")
    }

    #[test]
    fn a_refusal_carries_its_typed_reason() {
        let mut status = Status::failed_precondition("MoveLeaderFirst: the member leads; move leadership first");
        status.metadata_mut().insert(REASON_KEY, "MoveLeaderFirst".parse().expect("ascii"));
        let error = NodeError::new(address(), &status);
        assert!(matches!(error, NodeError::Refused { reason: Reason::MoveLeaderFirst, .. }), "{error}");
        assert_eq!(error.reason(), "MoveLeaderFirst");
    }

    #[test]
    fn silence_is_not_a_refusal() {
        for status in [Status::unavailable("refused"), Status::deadline_exceeded("late"), Status::cancelled("gone")] {
            assert!(matches!(NodeError::new(address(), &status), NodeError::Silent { .. }));
        }
        assert!(matches!(NodeError::new(address(), &Status::internal("x")), NodeError::Failed { .. }));
    }

    #[tokio::test]
    async fn a_node_that_nobody_listens_for_is_silent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let error = Node::at_address(&Network, address, Duration::from_secs(5)).state(0).await.expect_err("no answer");
        assert!(matches!(error, NodeError::Silent { .. }), "{error}");
    }

    #[tokio::test]
    async fn m30_a_node_that_accepts_and_says_nothing_costs_no_more_than_the_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let began = std::time::Instant::now();
        let error =
            Node::at_address(&Network, address, Duration::from_millis(200)).state(0).await.expect_err("no answer");
        assert!(matches!(error, NodeError::Silent { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
