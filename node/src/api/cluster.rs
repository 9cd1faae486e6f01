//! etcdserverpb.Cluster over gRPC, on the client port, and on the peer port for members that pass calls on.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::status::{admit, etcd, is_forwarded};
use crate::service::forward::Leader;
use crate::service::{Member, cluster};

/// Presents etcd's membership calls.
pub struct ClusterApi {
    member: Arc<Member>,
    cluster: cluster::Cluster,
}

impl ClusterApi {
    /// The presenter of one member.
    pub fn new(member: Arc<Member>, leader: Arc<dyn Leader>) -> Self {
        Self { cluster: cluster::Cluster::new(member.clone(), leader), member }
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterApi {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let forwarded = is_forwarded(request.metadata());
        self.cluster.add(request.into_inner(), forwarded).await.map(Response::new).map_err(etcd)
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let forwarded = is_forwarded(request.metadata());
        self.cluster.remove(request.into_inner(), forwarded).await.map(Response::new).map_err(etcd)
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let forwarded = is_forwarded(request.metadata());
        self.cluster.update(request.into_inner(), forwarded).await.map(Response::new).map_err(etcd)
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.cluster.list(request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let forwarded = is_forwarded(request.metadata());
        self.cluster.promote(request.into_inner(), forwarded).await.map(Response::new).map_err(etcd)
    }
}
