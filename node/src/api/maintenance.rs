//! etcdserverpb.Maintenance over gRPC.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::status::{admit, etcd};
use crate::service::{Member, archive, maintenance};

/// Presents the maintenance use cases.
pub struct MaintenanceApi {
    member: Arc<Member>,
    maintenance: maintenance::Maintenance,
}

impl MaintenanceApi {
    /// The presenter of one member.
    pub fn new(member: Arc<Member>) -> Self {
        Self { maintenance: maintenance::Maintenance::new(member.clone()), member }
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for MaintenanceApi {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.maintenance.alarm(request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.maintenance.status().map(Response::new).map_err(etcd)
    }

    async fn defragment(
        &self,
        _request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.maintenance.defragment().await.map(Response::new).map_err(etcd)
    }

    async fn hash(&self, _request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.maintenance.hash().await.map(Response::new).map_err(etcd)
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.maintenance.hash_kv(request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(&self, _request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let messages = archive::stream(&self.member).await.map_err(etcd)?;
        Ok(Response::new(messages.map(|message| message.map_err(etcd)).boxed()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.maintenance.move_leader(request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.maintenance.downgrade(request.into_inner()).await.map(Response::new).map_err(etcd)
    }
}
