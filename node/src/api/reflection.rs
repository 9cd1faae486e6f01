//! gRPC reflection on the client port, in both of its versions: which services are there, and what their messages are.

use balsa_proto::FILE_DESCRIPTOR_SET;
use balsa_proto::etcdserverpb as pb;
use balsa_proto::v3electionpb::election_server;
use balsa_proto::v3lockpb::lock_server;
use pb::{auth_server, cluster_server, kv_server, lease_server, maintenance_server, watch_server};
use tonic_health::pb::health_server;
use tonic_reflection::pb::v1::{self, server_reflection_server as of_v1};
use tonic_reflection::pb::v1alpha::{self, server_reflection_server as of_v1alpha};
use tonic_reflection::server::Builder;

/// What is listed: what the client port serves, and not the other services of the contract.
pub(super) const SERVICES: [&str; 11] = [
    auth_server::SERVICE_NAME,
    cluster_server::SERVICE_NAME,
    kv_server::SERVICE_NAME,
    lease_server::SERVICE_NAME,
    maintenance_server::SERVICE_NAME,
    watch_server::SERVICE_NAME,
    health_server::SERVICE_NAME,
    of_v1::SERVICE_NAME,
    of_v1alpha::SERVICE_NAME,
    election_server::SERVICE_NAME,
    lock_server::SERVICE_NAME,
];

/// The files in which they are described.
pub(super) const FILES: [&[u8]; 4] =
    [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET];

/// Both versions know the same.
pub(super) fn builder() -> Builder<'static> {
    let builder = Builder::configure().include_reflection_service(false);
    let builder = FILES.into_iter().fold(builder, Builder::register_encoded_file_descriptor_set);
    SERVICES.into_iter().fold(builder, Builder::with_service_name)
}
