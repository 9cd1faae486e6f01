//! Where a node listens and what it says of that: lists of URLs, each looked at alone and all of them together.

use std::collections::BTreeSet;

use super::sources::Raw;
use super::url::{self, Url, UrlError};
use super::{ConfigError, invalid};

/// The URLs that are listened on.
pub(super) struct Listened<'a> {
    pub(super) client: &'a [Url],
    pub(super) peer: &'a [Url],
    pub(super) metrics: &'a [Url],
    /// Those of `client` that serve HTTP, and not gRPC alone.
    pub(super) http: &'a [Url],
}

/// Those that a flag says to listen on.
pub(super) fn urls(raw: &Raw, flag: &'static str) -> Result<Vec<Url>, ConfigError> {
    let urls = url_list(raw.text(flag)).map(|text| {
        let url = Url::parse(text)?;
        url.listen()?;
        Ok::<_, UrlError>(url)
    });
    let mut urls = urls.collect::<Result<Vec<_>, _>>().map_err(|error| wrong_url(raw, flag, error))?;
    // Once each: the second would find the first one's address in use.
    urls.sort();
    urls.dedup();
    Ok(urls)
}

/// Whether one can listen so: on `urls`, of those of clients on these two.
pub(super) fn check(raw: &Raw, urls: &Listened<'_>, client: &[Url], http: &[Url]) -> Result<(), ConfigError> {
    refuse_secure_sockets("listen-peer-urls", urls.peer)?;
    check_apart(client, http)?;
    if raw.is_set("listen-client-urls") && !raw.is_set("advertise-client-urls") {
        return Err(invalid("--advertise-client-urls is required when --listen-client-urls is set"));
    }
    refuse_shared_sockets(urls)
}

/// TLS between members is checked against the hosts that they come from, and a socket has none; etcd listens there without it.
fn refuse_secure_sockets(flag: &str, urls: &[Url]) -> Result<(), ConfigError> {
    match urls.iter().find(|url| url.is_socket() && url.is_secure()) {
        Some(url) => {
            Err(invalid(format!("--{flag}: {url}: there is no TLS between members over a socket; use unix://")))
        }
        None => Ok(()),
    }
}

/// gRPC and plain HTTP have ports of their own, if the latter has any.
fn check_apart(client: &[Url], http: &[Url]) -> Result<(), ConfigError> {
    let what = "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url";
    match client.iter().find(|url| http.contains(url)) {
        Some(url) => Err(invalid(format!("{what} {url}"))),
        None => Ok(()),
    }
}

/// The second to listen would take the file of the first away.
fn refuse_shared_sockets(listened: &Listened<'_>) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    let urls = listened.client.iter().chain(listened.peer).chain(listened.metrics).filter(|url| url.is_socket());
    for url in urls {
        if !seen.insert(&url.place) {
            return Err(invalid(format!("{url} is listened on twice")));
        }
    }
    Ok(())
}

/// Those that a flag says to tell others.
pub(super) fn advertised(raw: &Raw, flag: &'static str) -> Result<Vec<String>, ConfigError> {
    let urls: Vec<_> = url_list(raw.text(flag)).collect();
    url::list(&urls).map_err(|error| wrong_url(raw, flag, error))
}

/// As in etcd a value that is no URL is one of the wrong kind, and one that cannot be used a wrong setting.
fn wrong_url(raw: &Raw, flag: &'static str, error: UrlError) -> ConfigError {
    match error {
        UrlError::Misread(why) => raw.wrong(flag, why),
        UrlError::Unusable(why) => invalid(format!("--{flag}: {why}")),
    }
}

/// What stands between commas; between two of them and behind the last one, too.
fn url_list(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(move |_| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::load;

    #[test]
    fn an_address_is_listened_on_once() {
        let twice = load(&["--listen-peer-urls=http://127.0.0.1:2,HTTP://127.0.0.1:2,http://127.0.0.1:1"]).unwrap();
        let ports: Vec<_> = twice.listen_peer_urls.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["http://127.0.0.1:1", "http://127.0.0.1:2"]);
        let default = load(&["--listen-peer-urls=http://127.0.0.1:1", "--listen-peer-urls="]).unwrap();
        assert_eq!(default.listen_peer_urls[0].to_string(), "http://127.0.0.1:1", "an empty list says nothing");
        assert_eq!(load(&["--advertise-client-urls="]).unwrap().advertise_client_urls, ["http://localhost:2379"]);
        for (arg, code) in [
            ("--listen-peer-urls=http://127.0.0.1:1,", 2),
            ("--listen-peer-urls=http://127.0.0.1:99999", 1),
            ("--advertise-client-urls=http://:1", 1),
        ] {
            assert_eq!(load(&[arg]).unwrap_err().exit_code(), code, "{arg}");
        }
    }

    #[test]
    fn listening_needs_advertising_and_addresses() {
        assert!(matches!(load(&["--listen-client-urls=http://0.0.0.0:2379"]), Err(ConfigError::Invalid(_))));
        let args = ["--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://a:2379"];
        assert_eq!(load(&args).unwrap().advertise_client_urls, ["http://a:2379"]);
        let error = load(&["--listen-peer-urls=http://host:2380"]).unwrap_err();
        assert!(error.to_string().contains("--listen-peer-urls"), "{error}");
    }

    #[test]
    fn sockets_are_listened_on_once_and_advertised() {
        let listen = |urls: &str| load(&[&format!("--listen-client-urls={urls}"), "--advertise-client-urls=unix://a"]);
        let config = listen("unix:///a,unix://b").unwrap();
        assert_eq!(config.advertise_client_urls, ["unix://a"]);
        assert!(config.listen_client_urls.iter().all(Url::is_socket));
        let error = listen("unix:///a,unixs:/a").unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
        let error = load(&["--listen-peer-urls=unixs:///a", "--peer-auto-tls"]).unwrap_err();
        assert!(error.to_string().contains("no TLS between members"), "{error}");
    }
}
