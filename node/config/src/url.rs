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

/// What is wrong with a URL, in etcd's words where etcd refuses it too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is not written as one.
    #[error("{0}")]
    Misread(String),
    /// It is one that nothing can be done with.
    #[error("{0}")]
    Unusable(String),
}

impl Url {
    /// Parses one URL.
    ///
    /// # Errors
    /// Another scheme than `http` and `https`, no host, no port, or anything behind the port.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let misread = |what: &str| UrlError::Misread(format!("{what}: {text}"));
        let (scheme, rest) = scheme(text)?;
        if !matches!(scheme.as_str(), "http" | "https") {
            return Err(match scheme.as_str() {
                "unix" | "unixs" => misread("sockets of the file system are not supported by this version"),
                _ => misread("URL scheme must be http, https, unix, or unixs"),
            });
        }
        let rest = rest.strip_prefix("//").ok_or_else(|| misread(NO_PORT))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at(end);
        if behind.starts_with('/') {
            return Err(misread("URL must not contain a path"));
        }
        if !behind.is_empty() || authority.contains('@') {
            return Err(misread("URL must not contain more than a host and a port"));
        }
        let (host, port) = host_and_port(text, authority)?;
        if host.is_empty() {
            return Err(UrlError::Unusable(format!("unexpected empty host ({text})")));
        }
        let port = port.parse().map_err(|_| UrlError::Unusable(format!("address {port}: invalid port")))?;
        Ok(Self { scheme, host: host.to_owned(), port })
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
        let none = || UrlError::Unusable(format!("expected IP in URL for binding ({self})"));
        ip.map(|ip| SocketAddr::new(ip, self.port)).map_err(|_| none())
    }
}

const NO_PORT: &str = "URL address does not have the form \"host:port\"";

/// The scheme, in small letters, and what stands behind its colon.
fn scheme(text: &str) -> Result<(String, &str), UrlError> {
    let of_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    match text.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(of_scheme) =>
        {
            Ok((scheme.to_ascii_lowercase(), rest))
        }
        Some((path, _)) if !path.contains('/') => {
            Err(UrlError::Misread(format!("parse {text:?}: first path segment in URL cannot contain colon")))
        }
        _ => Ok((String::new(), text)),
    }
}

/// The two halves of `host:port`; an IPv6 address stands in brackets, which are left out. A host may be empty.
fn host_and_port<'a>(text: &str, authority: &'a str) -> Result<(&'a str, &'a str), UrlError> {
    let misread = |what: String| UrlError::Misread(format!("parse {text:?}: {what}"));
    let no_port = || UrlError::Misread(format!("{NO_PORT}: {text}"));
    let (host, behind) = match authority.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or_else(|| misread("missing ']' in host".to_owned()))?,
        None => authority.rfind(':').map(|at| authority.split_at(at)).ok_or_else(no_port)?,
    };
    if let Some(at) = host.find('%') {
        let escape: String = host[at..].chars().take(3).collect();
        return Err(misread(format!("invalid URL escape {escape:?}")));
    }
    let port = behind.strip_prefix(':').ok_or_else(no_port)?;
    if !port.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(misread(format!("invalid port {behind:?} after host")));
    }
    if port.is_empty() || !authority.starts_with('[') && host.contains(':') {
        return Err(no_port());
    }
    Ok((host, port))
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
        return Err(UrlError::Misread("no valid URLs given".to_owned()));
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
    fn what_is_no_url_is_said_in_etcds_words() {
        for (text, words) in [
            ("", "URL scheme must be http, https, unix, or unixs: "),
            ("x", "URL scheme must be http, https, unix, or unixs: x"),
            ("//a:1", "URL scheme must be http, https, unix, or unixs: //a:1"),
            ("ftp://a:1", "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
            ("localhost:1", "URL scheme must be http, https, unix, or unixs: localhost:1"),
            ("127.0.0.1:1", "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon"),
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http:a:1", "URL address does not have the form \"host:port\": http:a:1"),
            ("http://::1:1", "URL address does not have the form \"host:port\": http://::1:1"),
            ("http://[::1:1", "parse \"http://[::1:1\": missing ']' in host"),
            ("http://a:+1", "parse \"http://a:+1\": invalid port \":+1\" after host"),
            ("http://a:http", "parse \"http://a:http\": invalid port \":http\" after host"),
            ("http://a%20:1", "parse \"http://a%20:1\": invalid URL escape \"%20\""),
            ("http://a:1/", "URL must not contain a path: http://a:1/"),
            ("http://a:1/x?y", "URL must not contain a path: http://a:1/x?y"),
        ] {
            assert_eq!(Url::parse(text), Err(UrlError::Misread(words.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_no_listener_and_no_client_can_use_is_refused() {
        for text in ["http://u:p@a:1", "http://a:1?x=1", "http://a:1#x", "http://a:", "unix://a:1"] {
            assert!(matches!(Url::parse(text), Err(UrlError::Misread(_))), "{text}");
        }
        for text in ["http://:1", "http://a:65536", "http://a:99999"] {
            assert!(matches!(Url::parse(text), Err(UrlError::Unusable(_))), "{text}");
        }
    }

    #[test]
    fn the_text_form_is_canonical() {
        for (text, canonical) in [
            ("http://pod-0.headless.ns.svc:2380", "http://pod-0.headless.ns.svc:2380"),
            (" HTTPS://a:02380 ", "https://a:2380"),
            ("http://[::1]:2380", "http://[::1]:2380"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), canonical);
        }
        let urls = ["http://b:1", "HTTP://a:1", "http://b:1"];
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
