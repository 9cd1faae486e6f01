//! gRPC reflection, as grpcurl and its like use it: what is listed is served, and what is said of it is the contract.

use balsa_proto::raw::BytesCodec;
use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_reflection::pb::{v1, v1alpha};

use crate::cluster::Cluster;
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::healthy;

const LISTED: [&str; 11] = [
    "etcdserverpb.Auth",
    "etcdserverpb.Cluster",
    "etcdserverpb.KV",
    "etcdserverpb.Lease",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Watch",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "v3electionpb.Election",
    "v3lockpb.Lock",
];

/// A question and its answer in one of the versions, whose messages are alike.
macro_rules! ask {
    ($version:ident, $channel:expr, $question:ident, $of:expr) => {{
        use $version::server_reflection_request::MessageRequest;
        let question = MessageRequest::$question($of.into());
        let request = $version::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut client = $version::server_reflection_client::ServerReflectionClient::new($channel.clone());
        let answers = client.server_reflection_info(tokio_stream::once(request)).await;
        match answers {
            Ok(answers) => answers.into_inner().message().await.map(|answer| answer?.message_response),
            Err(status) => Err(status),
        }
    }};
}

/// The names that a list holds, sorted.
macro_rules! listed {
    ($version:ident, $channel:expr) => {{
        let answer = ask!($version, $channel, ListServices, "").expect("an answer");
        let Some($version::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
            panic!("no list: {answer:?}");
        };
        let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        names.sort();
        names
    }};
}

/// The file that an answer holds.
fn file(answer: Option<v1::server_reflection_response::MessageResponse>) -> FileDescriptorProto {
    let Some(v1::server_reflection_response::MessageResponse::FileDescriptorResponse(files)) = answer else {
        panic!("no file: {answer:?}");
    };
    let [bytes] = &files.file_descriptor_proto[..] else { panic!("one file") };
    FileDescriptorProto::decode(&bytes[..]).expect("a descriptor")
}

/// Calls a method with what is no message at all, which no service can act on, and says how that ended.
async fn call(channel: &Channel, service: &str, method: &str) -> Code {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("connected");
    let path: PathAndQuery = format!("/{service}/{method}").parse().expect("a path");
    let request = Request::new(tokio_stream::once(Bytes::from_static(&[0xff, 0xff])));
    let ended = match grpc.streaming(request, path, BytesCodec).await {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    ended.map_or_else(|status| status.code(), |()| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_is_served_and_described() {
    let cluster = Cluster::start(1).await;
    let channel = cluster.members[0].channel();
    assert_eq!(listed!(v1, channel), LISTED);
    assert_eq!(listed!(v1alpha, channel), LISTED);
    for name in LISTED {
        let file = file(ask!(v1, channel, FileContainingSymbol, name).expect("an answer"));
        let own = |service: &&prost_types::ServiceDescriptorProto| {
            name.strip_prefix(file.package()) == Some(&format!(".{}", service.name()))
        };
        let service = file.service.iter().find(own).expect("the file that has it");
        assert!(!service.method.is_empty());
        for method in &service.method {
            let ended = call(&channel, name, method.name()).await;
            assert_ne!(ended, Code::Unimplemented, "{name}/{}", method.name());
        }
        for dependency in &file.dependency {
            let answer = ask!(v1, channel, FileByFilename, dependency.clone()).expect("an answer");
            assert_eq!(self::file(answer).name(), dependency);
        }
    }
    assert_eq!(call(&channel, "balsa.node.v1.Node", "State").await, Code::Unimplemented);

    let range = file(ask!(v1, channel, FileContainingSymbol, "etcdserverpb.RangeRequest").expect("an answer"));
    let range = range.message_type.iter().find(|message| message.name() == "RangeRequest").expect("it is there");
    let fields: Vec<_> = range.field.iter().map(|field| (field.name(), field.number())).take(3).collect();
    assert_eq!(fields, [("key", 1), ("range_end", 2), ("limit", 3)]);
    let absent = ask!(v1, channel, FileContainingSymbol, "etcdserverpb.Nothing");
    assert!(absent.as_ref().is_err_and(|status| status.code() == Code::NotFound), "{absent:?}");
}

/// etcd serves none, so there is nothing to be the same as.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_serves_no_reflection() {
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 1, &[]);
        healthy(etcd.port).await;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", etcd.port)).expect("a URL");
        let answer = ask!(v1, endpoint.connect_lazy(), ListServices, "");
        assert!(answer.as_ref().is_err_and(|status| status.code() == Code::Unimplemented), "{release}: {answer:?}");
    }
}
