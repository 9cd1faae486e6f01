//! The peer service on the wire: streams of frames, a snapshot at a time, and the question who is a member.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::node::Reason;
use balsa_proto::peer::peer_server::{Peer, PeerServer};
use balsa_proto::peer::{
    Frame, FramesEnd, HashRequest, HashResponse, MembersRequest, MembersResponse, SnapshotChunk, SnapshotReceipt,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::engine::Failure;
use crate::service::peer::{PeerError, PeerService};
use crate::storage::StorageError;
use crate::transport::tonic::MAX_FRAME_BYTES;

/// A sender that is silent for this long is gone; its snapshot makes room for the next.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Presents the peer service.
pub struct PeerApi {
    service: Arc<PeerService>,
}

impl PeerApi {
    /// Over one service.
    pub fn new(service: Arc<PeerService>) -> Self {
        Self { service }
    }

    /// As a gRPC service, with the limits of the peer port.
    pub fn into_server(self) -> PeerServer<Self> {
        PeerServer::new(self).max_decoding_message_size(MAX_FRAME_BYTES).max_encoding_message_size(MAX_FRAME_BYTES)
    }
}

#[tonic::async_trait]
impl Peer for PeerApi {
    async fn frames(&self, request: Request<Streaming<Frame>>) -> Result<Response<FramesEnd>, Status> {
        let sink = self.service.frames().map_err(status)?;
        let mut stream = request.into_inner();
        while let Some(frame) = stream.message().await? {
            sink.take(frame);
        }
        Ok(Response::new(FramesEnd {}))
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Result<Response<SnapshotReceipt>, Status> {
        let mut stream = request.into_inner();
        let first =
            next(&mut stream).await?.ok_or_else(|| Status::invalid_argument("a snapshot without a manifest"))?;
        let mut incoming = self.service.receive(first).await.map_err(status)?;
        while let Some(chunk) = next(&mut stream).await? {
            incoming = incoming.take(chunk).await.map_err(status)?;
        }
        let installed = incoming.finish().await.map_err(status)?;
        Ok(Response::new(SnapshotReceipt { installed }))
    }

    async fn members(&self, _request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        Ok(Response::new(self.service.members()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.service.hash(request.into_inner()).await.map(Response::new).map_err(status)
    }
}

async fn next(stream: &mut Streaming<SnapshotChunk>) -> Result<Option<SnapshotChunk>, Status> {
    match timeout(MAX_SILENCE, stream.message()).await {
        Ok(chunk) => chunk,
        Err(_) => Err(Status::deadline_exceeded("the sender of the snapshot is silent")),
    }
}

fn status(error: PeerError) -> Status {
    warn!(%error, "refused what a peer sent");
    match &error {
        PeerError::Failed(Failure::Uninitialized) => Status::failed_precondition(Reason::Uninitialized.as_str_name()),
        PeerError::Failed(_) => Status::unavailable(error.to_string()),
        PeerError::Foreign { .. } | PeerError::Removed(_) => Status::failed_precondition(error.to_string()),
        PeerError::Hash(_) => Status::out_of_range(error.to_string()),
        PeerError::OutOfOrder(_) => Status::invalid_argument(error.to_string()),
        PeerError::Busy => Status::resource_exhausted(error.to_string()),
        PeerError::Storage(StorageError::Corrupt { .. }) => Status::data_loss(error.to_string()),
        PeerError::Storage(StorageError::Failed { .. }) => Status::internal(error.to_string()),
    }
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
