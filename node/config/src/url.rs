//! Listen, peer and client URLs as etcd takes them: a scheme, a host and a port, nothing else.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A parsed URL. Its text form is canonical: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// `http` or `https`.
    pub scheme: String,
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The port; 0 asks the system for one where it is listened on.
    pub port: u16,
}

/// What is wrong with a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a URL that can be used: {why}")]
pub struct UrlError {
    url: String,
    why: &'static str,
}

impl Url {
    /// Parses one URL.
    ///
    /// # Errors
    /// Another scheme than `http` and `https`, no host, no port, or anything behind the port but one slash.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let error = |why| UrlError { url: text.to_owned(), why };
        let (scheme, rest) = text.trim().split_once("://").ok_or(error("there is no scheme"))?;
        match scheme {
            "http" | "https" => {}
            _ => return Err(error("the scheme must be http or https")),
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(error("only a host and a port may follow the scheme"));
        }
        let (host, port) = authority.rsplit_once(':').ok_or(error("there is no port"))?;
        let port = port.parse().map_err(|_| error("the port is not a number up to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or(error("the bracket is not closed"))?,
            None if host.contains(':') => return Err(error("an IPv6 address needs brackets")),
            None => host,
        };
        if host.is_empty() {
            return Err(error("there is no host"));
        }
        Ok(Self { scheme: scheme.to_owned(), host: host.to_owned(), port })
    }

    /// Whether the connection is behind TLS.
    pub fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    /// The address to listen on: an IP address or `localhost`, as etcd demands.
    ///
    /// # Errors
    /// Any other name.
    pub fn listen_address(&self) -> Result<SocketAddr, UrlError> {
        let ip = if self.host == "localhost" { Ok(IpAddr::from([127, 0, 0, 1])) } else { self.host.parse() };
        let why = "an IP address or localhost is needed to listen on";
        ip.map(|ip| SocketAddr::new(ip, self.port)).map_err(|_| UrlError { url: self.to_string(), why })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{}://{open}{}{close}:{}", self.scheme, self.host, self.port)
    }
}

/// Checks a list and brings it into canonical order and form, without duplicates.
///
/// # Errors
/// An empty list, or the first URL that cannot be used.
pub fn list<S: AsRef<str>>(urls: &[S]) -> Result<Vec<String>, UrlError> {
    if urls.is_empty() {
        return Err(UrlError { url: String::new(), why: "at least one is needed" });
    }
    let mut list =
        urls.iter().map(|url| Url::parse(url.as_ref()).map(|url| url.to_string())).collect::<Result<Vec<_>, _>>()?;
    list.sort();
    list.dedup();
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_host_and_port_are_needed() {
        for bad in
            ["", "localhost:1", "ftp://a:1", "unixs://a:1", "http://a", "http://:1", "http://a:65536", "http://a:1/x"]
        {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        assert!(Url::parse("http://::1:2380").is_err(), "IPv6 without brackets is ambiguous");
    }

    #[test]
    fn the_text_form_is_canonical() {
        for (text, canonical) in [
            ("http://pod-0.headless.ns.svc:2380/", "http://pod-0.headless.ns.svc:2380"),
            ("http://[::1]:2380", "http://[::1]:2380"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), canonical);
        }
        let urls = ["http://b:1", "http://a:1/", "http://b:1"];
        assert_eq!(list(&urls).unwrap(), ["http://a:1", "http://b:1"]);
        assert!(list::<&str>(&[]).is_err());
    }

    #[test]
    fn only_addresses_and_localhost_can_be_listened_on() {
        let address = |text| Url::parse(text).unwrap().listen_address();
        assert_eq!(address("http://localhost:2379").unwrap(), "127.0.0.1:2379".parse().unwrap());
        assert_eq!(address("http://[::]:2379").unwrap(), "[::]:2379".parse().unwrap());
        assert!(address("http://example.com:2379").is_err());
    }
}
