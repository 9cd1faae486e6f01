//! etcdserverpb.Maintenance over gRPC.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::caller::caller;
use super::status::{admit, admit_to_learners, etcd};
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
        self.maintenance.alarm(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        admit_to_learners(&self.member, request.metadata())?;
        self.maintenance.status(&caller(&request)).await.map(Response::new).map_err(etcd)
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.maintenance.defragment(&caller(&request)).await.map(Response::new).map_err(etcd)
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.maintenance.hash(&caller(&request)).await.map(Response::new).map_err(etcd)
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.maintenance.hash_kv(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        admit_to_learners(&self.member, request.metadata())?;
        let messages = archive::stream(&self.member, &caller(&request)).await.map_err(etcd)?;
        Ok(Response::new(messages.map(|message| message.map_err(etcd)).boxed()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.maintenance.move_leader(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.maintenance.downgrade(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }
}
