//! Two Services: one by which peers find each other, one for clients.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::names::{self, CLIENT_PORT, METRICS_PORT, PEER_PORT};
use crate::valid::ValidCluster;

/// Headless, and unready pods too: members must find each other before any of them can be ready.
pub(super) fn peers(cluster: &ValidCluster) -> Service {
    Service {
        metadata: metadata(cluster, names::peer_service(&cluster.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::labels(&cluster.name)),
            ports: Some(vec![
                port("client", CLIENT_PORT, GRPC),
                port("peer", PEER_PORT, GRPC),
                port("metrics", METRICS_PORT, HTTP),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Ready members only, and nobody before the cluster is founded, so that no write is acknowledged before. It is there from
/// the start: a kube-proxy that has just learned of a Service tells of its pods a second later, by its own bound on how often.
pub(super) fn clients(cluster: &ValidCluster, founded: bool) -> Service {
    Service {
        metadata: metadata(cluster, names::client_service(&cluster.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: founded.then(|| names::labels(&cluster.name)),
            ports: Some(vec![port("client", CLIENT_PORT, GRPC)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Clear-text HTTP/2, which gRPC is.
const GRPC: &str = "kubernetes.io/h2c";
const HTTP: &str = "http";

fn port(name: &str, number: u16, app_protocol: &str) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        app_protocol: Some(app_protocol.to_owned()),
        ..ServicePort::default()
    }
}
