//! Listen, peer and client URLs as etcd takes them: a scheme, and a host and a port, or the path of a socket; nothing else.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// A parsed URL. Its text form is canonical.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// `http`, `https`, `unix` or `unixs`.
    pub scheme: String,
    /// Where the scheme is spoken.
    pub place: Place,
}

/// Where something is listened on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A port of a host.
    Port {
        /// A name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// 0 asks the system for one where it is listened on.
        port: u16,
    },
    /// A socket in the file system, by its path.
    Socket(String),
}

/// What to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
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
    /// Another scheme than etcd's four, no host, no port, anything behind the port; no path of a socket.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let (scheme, rest) = scheme(text)?;
        let place = match scheme.as_str() {
            "http" | "https" => port(text, rest)?,
            "unix" | "unixs" => socket(text, rest)?,
            _ => return Err(misread("URL scheme must be http, https, unix, or unixs", text)),
        };
        Ok(Self { scheme, place })
    }

    /// Whether the connection is behind TLS.
    pub fn is_secure(&self) -> bool {
        matches!(self.scheme.as_str(), "https" | "unixs")
    }

    /// Whether it is a socket in the file system.
    pub fn is_socket(&self) -> bool {
        matches!(self.place, Place::Socket(_))
    }

    /// The host, if there is one.
    pub fn host(&self) -> Option<&str> {
        match &self.place {
            Place::Port { host, .. } => Some(host),
            Place::Socket(_) => None,
        }
    }

    /// What to listen on: a socket, or a port of an IP address or of `localhost`, as etcd demands.
    ///
    /// # Errors
    /// Any other name.
    pub fn listen(&self) -> Result<Listen, UrlError> {
        let (host, port) = match &self.place {
            Place::Socket(path) => return Ok(Listen::Unix(PathBuf::from(path))),
            Place::Port { host, port } => (host, *port),
        };
        let ip = if host == "localhost" { Ok(IpAddr::from([127, 0, 0, 1])) } else { host.parse() };
        let none = || UrlError::Unusable(format!("expected IP in URL for binding ({self})"));
        ip.map(|ip| Listen::Tcp(SocketAddr::new(ip, port))).map_err(|_| none())
    }
}

const NO_PORT: &str = "URL address does not have the form \"host:port\"";

fn misread(what: &str, text: &str) -> UrlError {
    UrlError::Misread(format!("{what}: {text}"))
}

/// What stands behind the scheme of a port's URL.
fn port(text: &str, rest: &str) -> Result<Place, UrlError> {
    let rest = rest.strip_prefix("//").ok_or_else(|| misread(NO_PORT, text))?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    if behind.starts_with('/') {
        return Err(misread("URL must not contain a path", text));
    }
    if !behind.is_empty() || authority.contains('@') {
        return Err(misread("URL must not contain more than a host and a port", text));
    }
    let (host, port) = host_and_port(text, authority)?;
    if host.is_empty() {
        return Err(UrlError::Unusable(format!("unexpected empty host ({text})")));
    }
    let port = port.parse().map_err(|_| UrlError::Unusable(format!("address {port}: invalid port")))?;
    Ok(Place::Port { host: host.to_owned(), port })
}

/// What stands behind the scheme of a socket's URL: the whole of it is the path, also what looks like a host and a port. One
/// slash or none is as good as three, as clients have it. Without a path etcd listens on a socket whose name nobody is told.
fn socket(text: &str, rest: &str) -> Result<Place, UrlError> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.contains(['?', '#', '%', '\0']) {
        return Err(misread("URL of a socket must not contain more than a path", text));
    }
    if path.is_empty() {
        return Err(misread("URL of a socket must contain a path", text));
    }
    Ok(Place::Socket(path.to_owned()))
}

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
        match &self.place {
            Place::Port { host, port } if host.contains(':') => write!(f, "{}://[{host}]:{port}", self.scheme),
            Place::Port { host, port } => write!(f, "{}://{host}:{port}", self.scheme),
            Place::Socket(path) => write!(f, "{}://{path}", self.scheme),
        }
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
        for text in
            ["http://u:p@a:1", "http://a:1?x=1", "http://a:1#x", "http://a:", "unix:", "unixs://", "unix:///a?b"]
        {
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
            ("unix:///run/a.sock", "unix:///run/a.sock"),
            ("unix:/run/a.sock", "unix:///run/a.sock"),
            ("unixs://localhost:m1", "unixs://localhost:m1"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), canonical);
        }
        let urls = ["http://b:1", "HTTP://a:1", "http://b:1"];
        assert_eq!(list(&urls).unwrap(), ["http://a:1", "http://b:1"]);
        assert!(list::<&str>(&[]).is_err());
    }

    #[test]
    fn addresses_localhost_and_sockets_can_be_listened_on() {
        let listen = |text| Url::parse(text).unwrap().listen();
        assert_eq!(listen("http://localhost:2379"), Ok(Listen::Tcp("127.0.0.1:2379".parse().unwrap())));
        assert_eq!(listen("http://[::]:2379"), Ok(Listen::Tcp("[::]:2379".parse().unwrap())));
        assert!(listen("http://example.com:2379").is_err());
        assert_eq!(listen("unix:///run/a.sock"), Ok(Listen::Unix("/run/a.sock".into())));
        assert_eq!(listen("unixs://localhost:1"), Ok(Listen::Unix("localhost:1".into())), "a relative path");
    }
}
