//! Where a node with an empty disk finds somebody to ask: in Kubernetes the pods of a headless service share a domain.

use std::net::SocketAddr;
use std::time::Duration;

/// The peer URLs of all that share the domain of `url`'s host (`http://db-1.db-peers.ns.svc:2380` → whoever
/// `db-peers.ns.svc` resolves to). None when the host is an address or has no domain, or nothing answers in time.
pub async fn siblings(url: &str, timeout: Duration) -> Vec<String> {
    let Some((domain, port)) = domain_and_port(url) else { return Vec::new() };
    let found = tokio::time::timeout(timeout, tokio::net::lookup_host((domain, port))).await;
    let Ok(Ok(addresses)) = found else { return Vec::new() };
    let scheme = url.split_once("://").map_or("http", |(scheme, _)| scheme);
    addresses.map(|address: SocketAddr| format!("{scheme}://{address}")).collect()
}

fn domain_and_port(url: &str) -> Option<(&str, u16)> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    let (_, domain) = host.split_once('.')?;
    Some((domain, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::domain_and_port;

    #[test]
    fn the_domain_of_a_pod_is_its_headless_service() {
        let url = "http://db-1.db-peers.default.svc.cluster.local:2380";
        assert_eq!(domain_and_port(url), Some(("db-peers.default.svc.cluster.local", 2380)));
    }

    #[test]
    fn an_address_or_a_bare_name_has_no_siblings() {
        for url in ["http://127.0.0.1:2380", "http://[::1]:2380", "http://localhost:2380", "http://a.b", ""] {
            assert_eq!(domain_and_port(url), None, "{url}");
        }
    }
}
