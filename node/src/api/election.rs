//! v3electionpb.Election over gRPC.

use std::pin::Pin;

use balsa_proto::v3electionpb as wire;
use futures::{Stream, stream};
use tonic::{Request, Response, Status};
use wire::election_server;

use super::caller::caller;
use super::status::{admit, etcd, untyped, wants_leader};
use crate::service::election::Election;

/// Presents the use cases of elections.
pub struct ElectionApi {
    election: Election,
}

impl ElectionApi {
    /// The presenter of one member.
    pub fn new(election: Election) -> Self {
        Self { election }
    }
}

#[tonic::async_trait]
impl election_server::Election for ElectionApi {
    async fn campaign(
        &self,
        request: Request<wire::CampaignRequest>,
    ) -> Result<Response<wire::CampaignResponse>, Status> {
        admit(self.election.queue().member(), request.metadata())?;
        self.election.of(caller(&request)).campaign(request.into_inner()).await.map(Response::new).map_err(untyped)
    }

    async fn proclaim(
        &self,
        request: Request<wire::ProclaimRequest>,
    ) -> Result<Response<wire::ProclaimResponse>, Status> {
        admit(self.election.queue().member(), request.metadata())?;
        self.election.of(caller(&request)).proclaim(request.into_inner()).await.map(Response::new).map_err(untyped)
    }

    async fn leader(&self, request: Request<wire::LeaderRequest>) -> Result<Response<wire::LeaderResponse>, Status> {
        admit(self.election.queue().member(), request.metadata())?;
        self.election.of(caller(&request)).leader(request.into_inner()).await.map(Response::new).map_err(untyped)
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<wire::LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<wire::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        admit(self.election.queue().member(), request.metadata())?;
        let election = self.election.of(caller(&request));
        let observation = election.observe(request.get_ref(), wants_leader(request.metadata())).map_err(etcd)?;
        let responses = stream::unfold(observation, |mut observation| async move {
            let next = observation.next().await?;
            Some((next.map_err(etcd), observation))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn resign(&self, request: Request<wire::ResignRequest>) -> Result<Response<wire::ResignResponse>, Status> {
        admit(self.election.queue().member(), request.metadata())?;
        self.election.of(caller(&request)).resign(request.into_inner()).await.map(Response::new).map_err(untyped)
    }
}
