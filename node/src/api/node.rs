//! balsa.node.v1.Node over gRPC, on the peer port.

use std::sync::Arc;

use balsa_proto::node as wire;
use tonic::{Request, Response, Status};

use super::status::{is_forwarded, node as status};
use crate::service::Member;
use crate::service::forward::Leader;
use crate::service::node::NodeService;

/// Presents the node service.
pub struct NodeApi {
    node: NodeService,
}

impl NodeApi {
    /// The presenter of one node.
    pub fn new(member: Arc<Member>, leader: Arc<dyn Leader>) -> Self {
        Self { node: NodeService::new(member, leader) }
    }
}

#[tonic::async_trait]
impl wire::node_server::Node for NodeApi {
    async fn state(&self, request: Request<wire::StateRequest>) -> Result<Response<wire::StateResponse>, Status> {
        Ok(Response::new(self.node.state(request.into_inner())))
    }

    async fn bootstrap(
        &self,
        request: Request<wire::BootstrapRequest>,
    ) -> Result<Response<wire::BootstrapResponse>, Status> {
        self.node.bootstrap(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        self.node.join(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        let forwarded = is_forwarded(request.metadata());
        self.node.list(request.into_inner(), forwarded).await.map(Response::new).map_err(status)
    }

    async fn add(&self, request: Request<wire::AddRequest>) -> Result<Response<wire::ChangeResponse>, Status> {
        let forwarded = is_forwarded(request.metadata());
        self.node.add(request.into_inner(), forwarded).await.map(Response::new).map_err(status)
    }

    async fn promote(&self, request: Request<wire::PromoteRequest>) -> Result<Response<wire::ChangeResponse>, Status> {
        let forwarded = is_forwarded(request.metadata());
        self.node.promote(request.into_inner(), forwarded).await.map(Response::new).map_err(status)
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Result<Response<wire::ChangeResponse>, Status> {
        let forwarded = is_forwarded(request.metadata());
        self.node.remove(request.into_inner(), forwarded).await.map(Response::new).map_err(status)
    }

    async fn move_leader(
        &self,
        request: Request<wire::MoveLeaderRequest>,
    ) -> Result<Response<wire::MoveLeaderResponse>, Status> {
        let forwarded = is_forwarded(request.metadata());
        self.node.move_leader(request.into_inner(), forwarded).await.map(Response::new).map_err(status)
    }

    async fn prepare_stop(
        &self,
        request: Request<wire::PrepareStopRequest>,
    ) -> Result<Response<wire::PrepareStopResponse>, Status> {
        self.node.prepare_stop(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn set_config(
        &self,
        request: Request<wire::SetConfigRequest>,
    ) -> Result<Response<wire::SetConfigResponse>, Status> {
        self.node.set_config(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn get_config(
        &self,
        _request: Request<wire::GetConfigRequest>,
    ) -> Result<Response<wire::GetConfigResponse>, Status> {
        Ok(Response::new(self.node.get_config()))
    }
}
