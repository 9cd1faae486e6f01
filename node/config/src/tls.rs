//! The TLS flags of both ports, checked together by etcd's rules and in its words. Whether a file holds what it should is
//! seen where it is read.

use std::path::PathBuf;

use super::sources::Raw;
use super::url::Url;
use super::{ConfigError, invalid, split};

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// TLS of the whole process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Of the client port, and of metrics ports with https.
    pub client: TlsSide,
    /// Of the peer port, and of connections to peers.
    pub peer: TlsSide,
    /// By the names that Go gives them; all when there is none. They only bound TLS 1.2.
    pub cipher_suites: Vec<String>,
    /// Lowest version that is spoken.
    pub min_version: TlsVersion,
    /// Highest version that is spoken.
    pub max_version: TlsVersion,
    /// How long a certificate that the process makes for itself is valid, in years.
    pub self_signed_years: u32,
}

/// TLS of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSide {
    /// What this process shows to those that connect.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// What this process shows when it connects, if not the same.
    pub client_cert_file: Option<PathBuf>,
    /// Its key.
    pub client_key_file: Option<PathBuf>,
    /// Who has to have signed the other side's certificate.
    pub trusted_ca_file: Option<PathBuf>,
    /// Certificates that are no longer good.
    pub crl_file: Option<PathBuf>,
    /// Whether those that connect must show a certificate. A trusted CA demands it too, as in etcd.
    pub client_cert_auth: bool,
    /// Common names of which a certificate must bear one; any when empty.
    pub allowed_names: Vec<String>,
    /// Hosts of which a certificate must be valid for one; any when empty.
    pub allowed_hosts: Vec<String>,
    /// Whether a certificate may say other hosts than its connection comes from. Only looked at on the peer port.
    pub skip_client_san_verification: bool,
    /// Whether the process makes its own certificate.
    pub auto: bool,
}

impl TlsSide {
    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_none() && self.key_file.is_none() && !self.auto
    }

    fn read(raw: &Raw, prefix: &str) -> Result<Self, ConfigError> {
        let file =
            |name: &str| Some(raw.text(&format!("{prefix}{name}"))).filter(|path| !path.is_empty()).map(PathBuf::from);
        let list = |name: &str| split(raw.text(name)).map(str::to_owned).collect();
        let (crl, hosts) = match prefix {
            "" => ("client-crl-file", "client-cert-allowed-hostname"),
            _ => ("crl-file", "peer-cert-allowed-hostname"),
        };
        let side = Self {
            cert_file: file("cert-file"),
            key_file: file("key-file"),
            client_cert_file: file("client-cert-file"),
            client_key_file: file("client-key-file"),
            trusted_ca_file: file("trusted-ca-file"),
            crl_file: file(crl),
            client_cert_auth: raw.boolean(&format!("{prefix}client-cert-auth"))?,
            allowed_names: if prefix.is_empty() { Vec::new() } else { list("peer-cert-allowed-cn") },
            allowed_hosts: list(hosts),
            skip_client_san_verification: raw.boolean("peer-skip-client-san-verification")?,
            auto: raw.boolean(&format!("{prefix}auto-tls"))?,
        };
        side.check()?;
        Ok(side)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        if self.cert_file.is_some() != self.key_file.is_some() {
            let (key, cert) = (text(&self.key_file), text(&self.cert_file));
            return Err(invalid(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")));
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            let (key, cert) = (text(&self.client_key_file), text(&self.client_cert_file));
            let what = "ClientKeyFile and ClientCertFile must both be present or both absent";
            return Err(invalid(format!("{what}: key: {key}, cert: {cert}]")));
        }
        if !self.allowed_names.is_empty() && !self.allowed_hosts.is_empty() {
            let (names, hosts) = (&self.allowed_names, &self.allowed_hosts);
            let what = "AllowedCNs and AllowedHostnames are mutually exclusive";
            return Err(invalid(format!("{what} (cns={names:?}, hostnames={hosts:?})")));
        }
        Ok(())
    }

    /// Warnings about what is given and not used.
    fn unused(&self, which: &str, urls: &[Url], warnings: &mut Vec<String>) {
        if self.auto && self.cert_file.is_some() {
            warnings.push(format!("ignoring {which} auto TLS since certs given"));
        }
        for url in urls.iter().filter(|url| !url.is_secure()) {
            if !self.is_empty() {
                let what = "scheme is HTTP while key and cert files are present; ignoring key and cert files";
                warnings.push(format!("{what}: {which} url {url}"));
            }
            if self.client_cert_auth {
                let what = "scheme is HTTP while client cert auth is enabled; ignoring client cert auth for this URL";
                warnings.push(format!("{what}: {which} url {url}"));
            }
        }
    }
}

/// The URLs that are listened on.
pub(super) struct Listened<'a> {
    pub(super) client: &'a [Url],
    pub(super) peer: &'a [Url],
    pub(super) metrics: &'a [Url],
}

impl Tls {
    /// Reads and checks the flags against the URLs.
    pub(super) fn check(raw: &Raw, urls: &Listened<'_>, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        let tls = Self {
            client: TlsSide::read(raw, "")?,
            peer: TlsSide::read(raw, "peer-")?,
            cipher_suites: split(raw.text("cipher-suites")).map(str::to_owned).collect(),
            min_version: version(raw.text("tls-min-version"))?.unwrap_or(TlsVersion::Tls12),
            max_version: version(raw.text("tls-max-version"))?.unwrap_or(TlsVersion::Tls13),
            self_signed_years: raw.number("self-signed-cert-validity")?,
        };
        if tls.min_version > tls.max_version {
            let (min, max) = (raw.text("tls-min-version"), raw.text("tls-max-version"));
            return Err(invalid(format!("min version ({min}) is greater than max version ({max})")));
        }
        if tls.min_version == TlsVersion::Tls13 && !tls.cipher_suites.is_empty() {
            return Err(invalid("cipher suites cannot be configured when only TLS1.3 is enabled"));
        }
        if (tls.client.auto || tls.peer.auto) && tls.self_signed_years == 0 {
            return Err(invalid("selfSignedCertValidity is invalid,it should be greater than 0"));
        }
        tls.check_urls(urls)?;
        tls.client.unused("client", urls.client, warnings);
        tls.peer.unused("peer", urls.peer, warnings);
        Ok(tls)
    }

    fn check_urls(&self, urls: &Listened<'_>) -> Result<(), ConfigError> {
        let secure = |urls: &[Url]| urls.iter().find(|url| url.is_secure()).cloned();
        if let Some(url) = secure(urls.client).filter(|_| self.client.is_empty()) {
            let what = "TLS key/cert (--cert-file, --key-file) must be provided for client url";
            return Err(invalid(format!("{what} {url} with HTTPS scheme")));
        }
        if let Some(url) = secure(urls.peer).filter(|_| self.peer.is_empty()) {
            let place = url.to_string().replacen("https://", "", 1);
            let what = "KeyFile and CertFile are not presented";
            return Err(invalid(format!("cannot listen on TLS for {place}: {what}")));
        }
        if secure(urls.metrics).is_some() && self.client.is_empty() {
            let what = "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
            return Err(invalid(what));
        }
        Ok(())
    }
}

fn version(text: &str) -> Result<Option<TlsVersion>, ConfigError> {
    match text {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(TlsVersion::Tls12)),
        "TLS1.3" => Ok(Some(TlsVersion::Tls13)),
        other => Err(invalid(format!("unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)"))),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Config, ConfigError, Invocation};

    fn load(args: &[&str]) -> Result<Config, ConfigError> {
        let args = ["balsa"].iter().chain(args).map(|arg| (*arg).to_owned());
        match Config::load(args, [])? {
            Invocation::Run(config) => Ok(*config),
            Invocation::Print(text) => panic!("{text}"),
        }
    }

    const SECURE: [&str; 2] = ["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://a:1"];

    #[test]
    fn what_is_wrong_is_said_in_etcds_words() {
        for (args, words) in [
            (
                &SECURE[..],
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
            ),
            (&["--cert-file=a"], "KeyFile and CertFile must both be present[key: , cert: a]"),
            (&["--tls-min-version=1.1"], "unexpected TLS version \"1.1\" (must be one of: TLS1.2, TLS1.3)"),
            (
                &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (
                &["--tls-min-version=TLS1.3", "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
                "cipher suites cannot be configured when only TLS1.3 is enabled",
            ),
            (
                &["--listen-peer-urls=https://127.0.0.1:2380"],
                "cannot listen on TLS for 127.0.0.1:2380: KeyFile and CertFile are not presented",
            ),
            (
                &["--listen-metrics-urls=https://127.0.0.1:1"],
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
            ),
        ] {
            let error = load(args).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.exit_code()), (words, 1), "{args:?}");
        }
    }

    #[test]
    fn files_that_are_not_used_are_warned_of() {
        let config = load(&["--cert-file=a", "--key-file=b", "--client-cert-auth", "--auto-tls"]).unwrap();
        assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
        let config = load(&[&SECURE[..], &["--auto-tls"]].concat()).unwrap();
        assert!(config.warnings.is_empty() && config.tls.client.auto && !config.tls.peer.auto);
        let peer = ["--peer-cert-allowed-cn=a,b", "--peer-crl-file=c", "--client-crl-file=d"];
        let tls = load(&peer).unwrap().tls;
        assert_eq!(tls.peer.allowed_names, ["a", "b"]);
        assert_eq!((tls.peer.crl_file, tls.client.crl_file), (Some("c".into()), Some("d".into())));
    }
}
