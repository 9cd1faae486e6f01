//! etcdserverpb.KV over gRPC.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use futures::StreamExt;
use futures::stream::BoxStream;
use pb::kv_server::Kv;
use tonic::{Request, Response, Status};

use super::caller::caller;
use super::request_stats::Stats;
use super::status::{admit, admit_to_learners, etcd};
use crate::service::{Member, kv};

/// Presents the use cases of keys.
pub struct KvApi {
    member: Arc<Member>,
    kv: kv::Kv,
    /// How long a call may take before it is logged.
    slow: Duration,
}

impl KvApi {
    /// The presenter of one member. Calls that take longer than `slow` are logged.
    pub fn new(member: Arc<Member>, slow: Duration) -> Self {
        Self { kv: kv::Kv::new(member.clone()), member, slow }
    }

    fn stats<T>(&self, path: &'static str, request: &Request<T>) -> Stats {
        Stats::begin(path, request.extensions(), self.slow)
    }
}

#[tonic::async_trait]
impl Kv for KvApi {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let admit = if request.get_ref().serializable { admit_to_learners } else { admit };
        admit(&self.member, request.metadata())?;
        let (stats, asked) = (self.stats("/etcdserverpb.KV/Range", &request), request.get_ref().clone());
        let result = self.kv.range(&caller(&request), request.into_inner()).await;
        stats.range(&asked, result.as_ref().ok());
        result.map(Response::new).map_err(etcd)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let (stats, asked) = (self.stats("/etcdserverpb.KV/Put", &request), request.get_ref().clone());
        let result = self.kv.put(&caller(&request), request.into_inner()).await;
        stats.put(&asked, result.as_ref().ok());
        result.map(Response::new).map_err(etcd)
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let (stats, asked) = (self.stats("/etcdserverpb.KV/DeleteRange", &request), request.get_ref().clone());
        let result = self.kv.delete_range(&caller(&request), request.into_inner()).await;
        stats.delete(&asked, result.as_ref().ok());
        result.map(Response::new).map_err(etcd)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let (stats, asked) = (self.stats("/etcdserverpb.KV/Txn", &request), request.get_ref().clone());
        let result = self.kv.txn(&caller(&request), request.into_inner()).await;
        stats.txn(&asked, result.as_ref().ok());
        result.map(Response::new).map_err(etcd)
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.kv.compact(&caller(&request), request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    type RangeStreamStream = BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        admit(&self.member, request.metadata())?;
        let pieces = self.kv.range_stream(&caller(&request), request.into_inner()).await.map_err(etcd)?;
        Ok(Response::new(pieces.map(|piece| piece.map_err(etcd)).boxed()))
    }
}
