//! grpc.health.v1: whether this member serves, said for the whole process (service name ""), to whoever checks or watches.
//! Other names are answered as by gRPC-Go: a check is told that there is none, a watch that there is none yet.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::service::{Member, health};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The service. What it says stays true for as long as the process runs.
pub fn service(member: Arc<Member>) -> HealthServer<HealthApi> {
    let (say, said) = watch::channel(of(&member));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = of(&member);
            say.send_if_modified(|said| std::mem::replace(said, now) != now);
        }
    });
    HealthServer::new(HealthApi { said })
}

fn of(member: &Member) -> ServingStatus {
    if health::serves(member) { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// Answers with what was said last.
pub struct HealthApi {
    said: watch::Receiver<ServingStatus>,
}

impl HealthApi {
    /// What is said of the service that is asked for, if there is such a one.
    fn known(&self, request: &Request<HealthCheckRequest>) -> Option<watch::Receiver<ServingStatus>> {
        request.get_ref().service.is_empty().then(|| self.said.clone())
    }
}

#[tonic::async_trait]
impl Health for HealthApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let said = self.known(&request).ok_or_else(|| Status::not_found("unknown service"))?;
        Ok(Response::new(HealthCheckResponse { status: (*said.borrow()).into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let answer = |status: ServingStatus| Ok(HealthCheckResponse { status: status.into() });
        Ok(Response::new(match self.known(&request) {
            Some(said) => WatchStream::new(said).map(answer).boxed(),
            // It may be registered some day, so the stream stays open.
            None => stream::iter([answer(ServingStatus::ServiceUnknown)]).chain(stream::pending()).boxed(),
        }))
    }
}
