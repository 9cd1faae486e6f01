//! What a client shows of itself with a request: a token in the metadata, a certificate on the connection.

use tonic::Request;
use tonic::metadata::MetadataMap;

use super::connection::ClientCertificate;
use crate::service::caller::Caller;

/// Where tokens are looked for, in this order: gRPC clients use the first, what comes through a gateway the second.
const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];

/// Metadata that only requests of etcd's gateway carry. Their certificate is the gateway's own.
const GATEWAY: &str = "grpcgateway-accept";

/// The caller of a request.
pub fn caller<T>(request: &Request<T>) -> Caller {
    let metadata = request.metadata();
    let direct = || !metadata.contains_key(GATEWAY);
    let certificate = ClientCertificate::of(request.extensions()).filter(|_| direct());
    // An empty one is a name too, of a user that cannot be: as on etcd it is refused for what it may not do.
    let common_name = certificate.map(|certificate| certificate.common_name.clone());
    Caller { token: token(metadata), common_name }
}

/// The first value of the first key that is there; one that is no text is a token that nobody was given.
fn token(metadata: &MetadataMap) -> Option<String> {
    let value = TOKEN_KEYS.iter().find_map(|key| metadata.get(*key))?;
    let text = value.to_str().unwrap_or_default();
    Some(text.strip_prefix("Bearer ").unwrap_or(text).to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::connection::Connection;
    use super::super::socket::Remote;
    use super::*;

    fn request(metadata: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::new(());
        for (key, value) in metadata {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn a_token_is_found_where_clients_put_it() {
        let token = |metadata: &[(&'static str, &'static str)]| caller(&request(metadata)).token;
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("token", "a.1")]).as_deref(), Some("a.1"));
        assert_eq!(token(&[("authorization", "a.1")]).as_deref(), Some("a.1"));
        assert_eq!(token(&[("authorization", "Bearer a.1")]).as_deref(), Some("a.1"));
        assert_eq!(token(&[("authorization", "b.2"), ("token", "a.1")]).as_deref(), Some("a.1"));
        assert_eq!(token(&[("token", "")]).as_deref(), Some(""), "an empty one is bad, not absent");
    }

    #[test]
    fn cve_2018_16886_a_gateways_certificate_names_no_user() {
        let certificate = Some(Arc::new(ClientCertificate { common_name: "root".into() }));
        let connection = Connection::new(Remote::Unix, true, certificate);
        let mut direct = request(&[]);
        direct.extensions_mut().insert(connection.clone());
        assert_eq!(caller(&direct).common_name.as_deref(), Some("root"));
        let mut through = request(&[("grpcgateway-accept", "application/json")]);
        through.extensions_mut().insert(connection);
        assert_eq!(caller(&through).common_name, None);
    }
}
