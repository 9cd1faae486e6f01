//! grpc.health.v1: whether this member serves, said for the whole process (service name ""), to whoever checks or watches.
//! Other names are answered as by gRPC-Go: a check is told that there is none, a watch that there is none yet. Before any
//! answer etcd asks what it asks before every call, so a learner refuses these too.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http;
use balsa_proto::raw::BytesCodec;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _, future, stream};
use prost::Message;
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::Service;

use super::status::{admit, wants_leader};
use crate::service::{Member, health};

/// How often it is looked at for those who watch. A check looks itself, so that it agrees with `/health` at any moment.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The path of a method that etcd has from 3.7 on, and that the files of tonic-health do not describe.
pub(super) const LIST: &str = "/grpc.health.v1.Health/List";

/// The service. What it says stays true for as long as the process runs.
pub fn service(member: Arc<Member>) -> Listing<HealthServer<HealthApi>> {
    let told = Arc::new(Told { status: watch::Sender::new(of(&member)), wanted: Notify::new() });
    tokio::spawn(Arc::clone(&told).keep_true(Arc::clone(&member)));
    let list = List { member: Arc::clone(&member) };
    Listing { service: HealthServer::new(HealthApi { member, told }), list }
}

/// What those who watch are told.
struct Told {
    status: watch::Sender<ServingStatus>,
    /// Somebody watches: without anybody it is not looked at.
    wanted: Notify,
}

impl Told {
    async fn keep_true(self: Arc<Self>, member: Arc<Member>) {
        loop {
            if self.status.receiver_count() == 0 {
                self.wanted.notified().await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            self.look(&member);
        }
    }

    fn look(&self, member: &Member) {
        let now = of(member);
        self.status.send_if_modified(|said| std::mem::replace(said, now) != now);
    }

    /// What is so now, and every change of it.
    fn watch(&self, member: &Member) -> WatchStream<ServingStatus> {
        let receiver = self.status.subscribe();
        self.wanted.notify_one();
        self.look(member);
        WatchStream::new(receiver)
    }
}

fn of(member: &Member) -> ServingStatus {
    if health::serves(member) { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// Answers for one member.
pub struct HealthApi {
    member: Arc<Member>,
    told: Arc<Told>,
}

impl HealthApi {
    /// Whether there is the service that is asked for.
    fn is_known(request: &Request<HealthCheckRequest>) -> bool {
        request.get_ref().service.is_empty()
    }
}

#[tonic::async_trait]
impl Health for HealthApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        admit(&self.member, request.metadata())?;
        if !Self::is_known(&request) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(HealthCheckResponse { status: of(&self.member).into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        admit(&self.member, request.metadata())?;
        let answer = |status: ServingStatus| Ok(HealthCheckResponse { status: status.into() });
        let told = if Self::is_known(&request) {
            self.told.watch(&self.member).map(answer).boxed()
        } else {
            // It may be registered some day, so the stream stays open.
            stream::iter([answer(ServingStatus::ServiceUnknown)]).chain(stream::pending()).boxed()
        };
        if !wants_leader(request.metadata()) {
            return Ok(Response::new(told));
        }
        let member = Arc::clone(&self.member);
        let lost = async move { health::leader_lost(&member).await };
        // As gRPC-Go ends a stream that etcd takes away from it.
        let ended = stream::iter([Err(Status::cancelled("Stream has ended."))]);
        Ok(Response::new(told.take_until(Box::pin(lost)).chain(ended).boxed()))
    }
}

/// Answers List itself, and passes every other call on.
#[derive(Clone)]
pub struct Listing<S> {
    service: S,
    list: List,
}

impl<S: NamedService> NamedService for Listing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Listing<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != LIST {
            return self.service.call(request).boxed();
        }
        let list = self.list.clone();
        async move { Ok(Grpc::new(BytesCodec).unary(list, request).await) }.boxed()
    }
}

/// The answer to List.
#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(map = "string, message", tag = "1")]
    statuses: HashMap<String, HealthCheckResponse>,
}

/// The method List: all names that a check knows, which is one.
#[derive(Clone)]
struct List {
    member: Arc<Member>,
}

impl UnaryService<Bytes> for List {
    type Response = Bytes;
    type Future = future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let listed = || {
            let status = HealthCheckResponse { status: of(&self.member).into() };
            Listed { statuses: HashMap::from([(String::new(), status)]) }
        };
        let admitted = admit(&self.member, request.metadata());
        future::ready(admitted.map(|()| Response::new(listed().encode_to_vec().into())))
    }
}
