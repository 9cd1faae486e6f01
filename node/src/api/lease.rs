//! etcdserverpb.Lease over gRPC.

use std::pin::Pin;

use balsa_proto::etcdserverpb as pb;
use futures::{Stream, stream};
use pb::lease_server::Lease;
use tonic::{Request, Response, Status, Streaming};

use super::caller::caller;
use super::status::{admit, count_broken, etcd, wants_leader};
use crate::service::keep_alive::Session;
use crate::service::lease::Leases;
use crate::service::watch::End;

/// Presents the use cases of leases.
pub struct LeaseApi {
    leases: Leases,
}

impl LeaseApi {
    /// The presenter of one member.
    pub fn new(leases: Leases) -> Self {
        Self { leases }
    }
}

#[tonic::async_trait]
impl Lease for LeaseApi {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        admit(self.leases.member(), request.metadata())?;
        self.leases.grant(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        admit(self.leases.member(), request.metadata())?;
        self.leases.revoke(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        admit(self.leases.member(), request.metadata())?;
        let require_leader = wants_leader(request.metadata());
        let stopping = self.leases.member().stopping().clone();
        let (leases, caller) = (self.leases.clone(), caller(&request));
        let session = Session::open(leases, caller, request.into_inner(), require_leader, stopping).map_err(etcd)?;
        let responses = stream::unfold(session, |mut session| async move {
            let next = session.next().await?;
            let next = next.map_err(|end| match end {
                End::Failed(error) => etcd(error),
                End::Client(status) => {
                    count_broken("lease-keepalive", &status);
                    status
                }
            });
            Some((next, session))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        admit(self.leases.member(), request.metadata())?;
        self.leases.time_to_live(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        admit(self.leases.member(), request.metadata())?;
        self.leases.list(&caller(&request)).await.map(Response::new).map_err(etcd)
    }
}
