//! The TLS flags of both ports, checked together by etcd's rules and in its words. Whether a file holds what it should is
//! seen where it is read.

use std::path::PathBuf;

use super::cipher_suites::Suites;
use super::listen::Listened;
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
    /// By the names that Go gives them; all when there is no list. They only bound TLS 1.2.
    pub cipher_suites: Option<Vec<String>>,
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
        !self.has_files() && !self.auto
    }

    /// Whether the process makes what it shows. Files that are given come first.
    pub fn makes_its_own(&self) -> bool {
        self.auto && !self.has_files()
    }

    fn has_files(&self) -> bool {
        self.cert_file.is_some() || self.key_file.is_some()
    }

    fn read(raw: &Raw, prefix: &str) -> Result<Self, ConfigError> {
        let file =
            |name: &str| Some(raw.text(&format!("{prefix}{name}"))).filter(|path| !path.is_empty()).map(PathBuf::from);
        let list = |name: &str| split(raw.text(name)).map(str::to_owned).collect();
        let (crl, hosts) = match prefix {
            "" => ("client-crl-file", "client-cert-allowed-hostname"),
            _ => ("crl-file", "peer-cert-allowed-hostname"),
        };
        Ok(Self {
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
        })
    }

    /// Whether what is said of the files fits together. Where there are none nothing is made of it.
    fn check(&self) -> Result<(), ConfigError> {
        if !self.has_files() {
            return Ok(());
        }
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
            let (names, hosts) = (quoted(&self.allowed_names), quoted(&self.allowed_hosts));
            let what = "AllowedCNs and AllowedHostnames are mutually exclusive";
            return Err(invalid(format!("{what} (cns={names}, hostnames={hosts})")));
        }
        Ok(())
    }

    /// Whether anything is said of the certificates of the other side.
    fn looks_at_others(&self) -> bool {
        let named = !self.allowed_names.is_empty() || !self.allowed_hosts.is_empty();
        self.client_cert_auth || self.trusted_ca_file.is_some() || self.crl_file.is_some() || named
    }

    /// Warnings about what is given and not used.
    fn unused(&self, which: &str, urls: &[Url], warnings: &mut Vec<String>) {
        if self.auto && self.has_files() {
            warnings.push(format!("ignoring {which} auto TLS since certs given"));
        }
        // As in etcd: nobody could have signed for those whose certificates are made as they start.
        if self.makes_its_own() && self.looks_at_others() {
            let what = "with auto TLS no certificate of the other side is looked at; ignoring what is said of it";
            warnings.push(format!("{what}: {which}"));
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

impl Tls {
    /// Reads and checks the flags against the URLs. Of several faults the first that etcd comes to is said.
    pub(super) fn check(raw: &Raw, urls: &Listened<'_>, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        let (min_version, max_version) = versions(raw)?;
        let named: Vec<String> = split(raw.text("cipher-suites")).map(str::to_owned).collect();
        if min_version == TlsVersion::Tls13 && !named.is_empty() {
            return Err(invalid("cipher suites cannot be configured when only TLS1.3 is enabled"));
        }
        let suites = Suites::of(&named).map_err(invalid)?;
        warnings.extend(suites.warning("cipher-suites"));
        let tls = Self {
            client: TlsSide::read(raw, "")?,
            peer: TlsSide::read(raw, "peer-")?,
            cipher_suites: suites.spoken.clone(),
            min_version,
            max_version,
            self_signed_years: self_signed_years(raw)?,
        };
        if (tls.client.makes_its_own() || tls.peer.makes_its_own()) && tls.self_signed_years == 0 {
            return Err(invalid("selfSignedCertValidity is invalid,it should be greater than 0"));
        }
        tls.check_sides(urls)?;
        if let Some(refusal) = suites.refusal_of_http2().filter(|_| secure(urls.http).is_some()) {
            return Err(invalid(refusal));
        }
        tls.client.unused("client", urls.client, warnings);
        tls.peer.unused("peer", urls.peer, warnings);
        Ok(tls)
    }

    fn check_sides(&self, urls: &Listened<'_>) -> Result<(), ConfigError> {
        if let Some(url) = secure(urls.peer).filter(|_| self.peer.is_empty()) {
            let place = url.to_string().replacen("https://", "", 1);
            let what = "KeyFile and CertFile are not presented";
            return Err(invalid(format!("cannot listen on TLS for {place}: {what}")));
        }
        // Peers are dialled with the same files, also from a port without TLS.
        self.peer.check()?;
        if let Some(url) = secure(urls.client).filter(|_| self.client.is_empty()) {
            let what = "TLS key/cert (--cert-file, --key-file) must be provided for client url";
            return Err(invalid(format!("{what} {url} with HTTPS scheme")));
        }
        if secure(urls.metrics).is_some() && self.client.is_empty() {
            let what = "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
            return Err(invalid(what));
        }
        match secure(urls.client).or(secure(urls.metrics)) {
            Some(_) => self.client.check(),
            None => Ok(()),
        }
    }
}

fn secure(urls: &[Url]) -> Option<&Url> {
    urls.iter().find(|url| url.is_secure())
}

/// As Go prints a list of texts.
fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" "))
}

/// A file's 0 means the default, as in etcd.
fn self_signed_years(raw: &Raw) -> Result<u32, ConfigError> {
    match raw.number("self-signed-cert-validity")? {
        0 if raw.file.is_some() => Ok(1),
        years => Ok(years),
    }
}

/// The lowest version and the highest.
fn versions(raw: &Raw) -> Result<(TlsVersion, TlsVersion), ConfigError> {
    let (min, max) = (raw.text("tls-min-version"), raw.text("tls-max-version"));
    let lowest = version(min)?.unwrap_or(TlsVersion::Tls12);
    let highest = version(max)?.unwrap_or(TlsVersion::Tls13);
    if lowest > highest {
        return Err(invalid(format!("min version ({min}) is greater than max version ({max})")));
    }
    Ok((lowest, highest))
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
    use crate::tests::load;

    const SECURE: [&str; 2] = ["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://a:1"];

    #[test]
    fn what_is_wrong_is_said_in_etcds_words() {
        for (args, words) in [
            (
                &SECURE[..],
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
            ),
            (&["--peer-cert-file=a"], "KeyFile and CertFile must both be present[key: , cert: a]"),
            (
                &[SECURE[0], SECURE[1], "--key-file=a", "--auto-tls"],
                "KeyFile and CertFile must both be present[key: a, cert: ]",
            ),
            (
                &["--peer-cert-file=a", "--peer-key-file=b", "--peer-client-cert-file=c"],
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: c]",
            ),
            (
                &[
                    "--peer-cert-file=a",
                    "--peer-key-file=b",
                    "--peer-cert-allowed-cn=c",
                    "--peer-cert-allowed-hostname=d,e",
                ],
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"c\"], hostnames=[\"d\" \"e\"])",
            ),
            (&["--cipher-suites=none"], "unexpected TLS cipher suite \"none\""),
            (
                &[SECURE[0], SECURE[1], "--auto-tls", "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"],
                "http2: TLSConfig.CipherSuites is missing an HTTP/2-required AES_128_GCM_SHA256 cipher (need at least one of \
                 TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 or TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)",
            ),
            (
                &["--auto-tls", "--self-signed-cert-validity=0"],
                "selfSignedCertValidity is invalid,it should be greater than 0",
            ),
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
        let config = load(&[&SECURE[..], &["--auto-tls", "--client-crl-file=c"]].concat()).unwrap();
        assert!(config.warnings[0].contains("ignoring what is said of it"), "{:?}", config.warnings);
        // What nothing is made of need not fit together.
        for args in [
            &["--cert-file=a"][..],
            &["--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b"],
            &["--peer-auto-tls", "--peer-client-cert-file=a"],
            &["--auto-tls", "--cert-file=a", "--key-file=b", "--self-signed-cert-validity=0"],
            &["--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"],
        ] {
            load(args).unwrap();
        }
        let peer = ["--peer-cert-allowed-cn=a,b", "--peer-crl-file=c", "--client-crl-file=d"];
        let tls = load(&peer).unwrap().tls;
        assert_eq!(tls.peer.allowed_names, ["a", "b"]);
        assert_eq!((tls.peer.crl_file, tls.client.crl_file), (Some("c".into()), Some("d".into())));
    }
}
