//! Ends watches when the node stops: a stream that never ends by itself would hold the listener open, and its client
//! would learn of the stop only from a broken connection.

use std::pin::Pin;

use balsa_proto::etcdserverpb as pb;
use futures::{Stream, StreamExt, stream};
use pb::watch_server::Watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::status::etcd;
use crate::engine::Failure;

/// A watch service whose streams end with a failure that clients resume after, once the token is cancelled.
pub struct Ending<T> {
    inner: T,
    stopping: CancellationToken,
}

impl<T> Ending<T> {
    /// Wraps `inner`.
    pub fn new(inner: T, stopping: CancellationToken) -> Self {
        Self { inner, stopping }
    }
}

#[tonic::async_trait]
impl<T: Watch> Watch for Ending<T> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let responses = self.inner.watch(request).await?;
        Ok(responses.map(|responses| Box::pin(until(responses, self.stopping.clone())) as Self::WatchStream))
    }
}

/// `responses` until the token is cancelled, then one failure. A stream that has ended by itself stays ended.
fn until<S>(responses: S, stopping: CancellationToken) -> impl Stream<Item = Result<pb::WatchResponse, Status>> + Send
where
    S: Stream<Item = Result<pb::WatchResponse, Status>> + Send + 'static,
{
    let stopped = stopping.clone();
    let last = stream::once(async move { stopped.is_cancelled().then(|| Err(etcd(Failure::Stopped.into()))) });
    responses.take_until(stopping.cancelled_owned()).chain(last.filter_map(std::future::ready))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_ends_with_a_failure_when_the_node_stops() {
        let stopping = CancellationToken::new();
        let forever = stream::iter([Ok(pb::WatchResponse::default())]).chain(stream::pending());
        let mut responses = Box::pin(until(forever, stopping.clone()));
        assert!(responses.next().await.unwrap().is_ok());
        stopping.cancel();
        assert_eq!(responses.next().await.unwrap().unwrap_err().message(), "etcdserver: server stopped");
        assert!(responses.next().await.is_none());
    }

    #[tokio::test]
    async fn a_watch_that_ended_by_itself_ends_without_a_failure() {
        let mut responses = Box::pin(until(stream::empty(), CancellationToken::new()));
        assert!(responses.next().await.is_none());
    }
}
