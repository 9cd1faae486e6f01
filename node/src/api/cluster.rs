//! etcdserverpb.Cluster over gRPC, on the client port, and on the peer port for members that pass calls on.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::caller::caller;
use super::status::{admit, etcd, is_forwarded, meant_for};
use crate::service::cluster::Origin;
use crate::service::forward::Leader;
use crate::service::{Member, cluster};

/// Presents etcd's membership calls.
pub struct ClusterApi {
    member: Arc<Member>,
    cluster: cluster::Cluster,
    on_peer_port: bool,
}

impl ClusterApi {
    /// The presenter of one member for its clients.
    pub fn new(member: Arc<Member>, leader: Arc<dyn Leader>) -> Self {
        Self { cluster: cluster::Cluster::new(member.clone(), leader), member, on_peer_port: false }
    }

    /// The presenter of one member for the others.
    pub fn of_peers(member: Arc<Member>, leader: Arc<dyn Leader>) -> Self {
        Self { on_peer_port: true, ..Self::new(member, leader) }
    }

    /// Where a call that is admitted came in. The port decides, never what the request says of itself; only that a member
    /// passes it on must be said on the peer port, which serves no clients, as etcd's. Members of every release say it.
    fn origin<T>(&self, request: &Request<T>) -> Result<Origin, Status> {
        if self.on_peer_port && !is_forwarded(request.metadata()) {
            return Err(no_service());
        }
        admit(&self.member, request.metadata())?;
        if !self.on_peer_port {
            return Ok(Origin::Client(caller(request)));
        }
        Ok(Origin::Peer { cluster_id: meant_for(request.metadata()).map_err(etcd)? })
    }
}

/// What gRPC-Go says of a service that a port has not.
fn no_service() -> Status {
    Status::unimplemented("unknown service etcdserverpb.Cluster")
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterApi {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let origin = self.origin(&request)?;
        self.cluster.add(&origin, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let origin = self.origin(&request)?;
        self.cluster.remove(&origin, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let origin = self.origin(&request)?;
        self.cluster.update(&origin, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        // No member passes this on: each has the list.
        let Origin::Client(caller) = self.origin(&request)? else { return Err(no_service()) };
        self.cluster.list(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let origin = self.origin(&request)?;
        self.cluster.promote(&origin, request.into_inner()).await.map(Response::new).map_err(etcd)
    }
}
