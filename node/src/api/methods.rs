//! Which methods the client port has, and how many messages a client may send to each.

use std::collections::{HashMap, HashSet};

use axum::http::Uri;
use prost_reflect::{DescriptorError, DescriptorPool};
use tonic::Status;

use super::gateway::go_quoted;
use super::health;
use super::reflection;

/// How a method is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One message there and one back.
    Unary,
    /// One message there.
    Answers,
    /// As many messages there as the client likes.
    Stream,
}

/// The methods, by path.
pub(super) struct Methods {
    kinds: HashMap<String, Kind>,
    services: HashSet<String>,
}

impl Methods {
    /// Those of the client port.
    pub(super) fn of_clients() -> Result<Self, DescriptorError> {
        let mut pool = DescriptorPool::new();
        for file in reflection::FILES {
            pool.decode_file_descriptor_set(file)?;
        }
        let (mut kinds, mut services) = (HashMap::new(), HashSet::new());
        for service in pool.services().filter(|service| reflection::SERVICES.contains(&service.full_name())) {
            for method in service.methods() {
                let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                    (true, _) => Kind::Stream,
                    (false, true) => Kind::Answers,
                    (false, false) => Kind::Unary,
                };
                kinds.insert(format!("/{}/{}", service.full_name(), method.name()), kind);
            }
            services.insert(service.full_name().to_owned());
        }
        kinds.insert(health::LIST.to_owned(), Kind::Unary);
        Ok(Self { kinds, services })
    }

    /// How the method is called, or what gRPC-Go says when there is no such one.
    pub(super) fn find(&self, uri: &Uri) -> Result<Kind, Status> {
        let found = self.kinds.get(path(uri)).copied();
        found.ok_or_else(|| unknown(uri, |service| self.services.contains(service)))
    }
}

/// What gRPC-Go says of a method of no service.
pub(super) fn of_no_service(uri: &Uri) -> Status {
    unknown(uri, |_| false)
}

/// The name of a method, as gRPC-Go takes it: with what follows a question mark.
fn path(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", |path| path.as_str())
}

fn unknown(uri: &Uri, is_service: impl Fn(&str) -> bool) -> Status {
    let path = path(uri);
    let named = path.strip_prefix('/').and_then(|path| path.rsplit_once('/'));
    Status::unimplemented(match named {
        None => format!("malformed method name: {}", go_quoted(path.as_bytes())),
        Some((service, method)) if is_service(service) => format!("unknown method {method} for service {service}"),
        Some((service, _)) => format!("unknown service {service}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_found_or_missed_in_the_words_of_grpc_go() {
        let methods = Methods::of_clients().unwrap();
        let find = |path: &str| methods.find(&path.parse().unwrap()).map_err(|status| status.message().to_owned());
        assert_eq!(find("/etcdserverpb.KV/Range"), Ok(Kind::Unary));
        assert_eq!(find("/etcdserverpb.KV/RangeStream"), Ok(Kind::Answers));
        assert_eq!(find("/etcdserverpb.Watch/Watch"), Ok(Kind::Stream));
        assert_eq!(find("/grpc.health.v1.Health/Watch"), Ok(Kind::Answers));
        for (path, text) in [
            ("/a.B/C", "unknown service a.B"),
            ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
            ("/etcdserverpb.KV/Range?a=b", "unknown method Range?a=b for service etcdserverpb.KV"),
            ("/etcdserverpb.KV/Range/", "unknown service etcdserverpb.KV/Range"),
            ("/balsa.node.v1.Node/State", "unknown service balsa.node.v1.Node"),
            ("/nope", "malformed method name: \"/nope\""),
        ] {
            assert_eq!(find(path), Err(text.to_owned()), "{path}");
        }
    }
}
