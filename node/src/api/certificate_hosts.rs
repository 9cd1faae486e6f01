//! Whether a peer's certificate is of the host that its connection comes from: by its addresses, or by its names, looked
//! up both ways as etcd does. A certificate without either says nothing about hosts and is taken.

use std::net::IpAddr;

use crate::transport::tls::Subject;

/// Checks `subject` against the other end's address.
///
/// # Errors
/// The certificate is of other hosts; the text is Go's.
pub(super) async fn check(subject: &Subject, remote: IpAddr) -> Result<(), String> {
    let remote = remote.to_canonical();
    if subject.addresses.is_empty() && subject.dns_names.is_empty() || subject.addresses.contains(&remote) {
        return Ok(());
    }
    if subject.dns_names.is_empty() {
        let listed: Vec<String> = subject.addresses.iter().map(IpAddr::to_string).collect();
        return Err(format!("x509: certificate is valid for {}, not {remote}", listed.join(", ")));
    }
    if is_of_names(&subject.dns_names, remote).await {
        return Ok(());
    }
    Err(format!("tls: \"{remote}\" does not match any of DNSNames {:?}", subject.dns_names))
}

async fn is_of_names(names: &[String], remote: IpAddr) -> bool {
    let (wildcards, plain): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.starts_with("*."));
    for name in plain {
        // No address at all is a name of somebody else, or of nobody.
        if let Ok(mut addresses) = tokio::net::lookup_host((name.as_str(), 0)).await
            && addresses.any(|address| address.ip().to_canonical() == remote)
        {
            return true;
        }
    }
    if wildcards.is_empty() {
        return false;
    }
    // Only the system can say which name an address has; a wildcard stands for any labels here, as in etcd.
    let found = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&remote)).await;
    let Ok(Ok(name)) = found else { return false };
    let name = name.trim_end_matches('.');
    wildcards.iter().any(|wildcard| name.ends_with(&wildcard[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(names: &[&str], addresses: &[&str]) -> Subject {
        Subject {
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Subject::default()
        }
    }

    #[tokio::test]
    async fn a_certificate_is_of_its_addresses_and_of_what_its_names_resolve_to() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(check(&subject(&[], &[]), here).await, Ok(()));
        assert_eq!(check(&subject(&[], &["127.0.0.1"]), here).await, Ok(()));
        assert_eq!(check(&subject(&["localhost"], &["10.0.0.1"]), here).await, Ok(()));
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(check(&subject(&[], &["127.0.0.1"]), mapped).await, Ok(()));
        let refused = check(&subject(&[], &["10.0.0.1"]), here).await.unwrap_err();
        assert_eq!(refused, "x509: certificate is valid for 10.0.0.1, not 127.0.0.1");
        let refused = check(&subject(&["no-such-host.invalid"], &[]), here).await.unwrap_err();
        assert_eq!(refused, "tls: \"127.0.0.1\" does not match any of DNSNames [\"no-such-host.invalid\"]");
    }
}
