//! v3lockpb.Lock over gRPC.

use balsa_proto::v3lockpb as wire;
use tonic::{Request, Response, Status};
use wire::lock_server;

use super::caller::caller;
use super::status::{admit, untyped};
use crate::service::lock::Lock;

/// Presents the use cases of locks.
pub struct LockApi {
    lock: Lock,
}

impl LockApi {
    /// The presenter of one member.
    pub fn new(lock: Lock) -> Self {
        Self { lock }
    }
}

#[tonic::async_trait]
impl lock_server::Lock for LockApi {
    async fn lock(&self, request: Request<wire::LockRequest>) -> Result<Response<wire::LockResponse>, Status> {
        admit(self.lock.queue().member(), request.metadata())?;
        self.lock.of(caller(&request)).lock(request.into_inner()).await.map(Response::new).map_err(untyped)
    }

    async fn unlock(&self, request: Request<wire::UnlockRequest>) -> Result<Response<wire::UnlockResponse>, Status> {
        admit(self.lock.queue().member(), request.metadata())?;
        self.lock.of(caller(&request)).unlock(request.into_inner()).await.map(Response::new).map_err(untyped)
    }
}
