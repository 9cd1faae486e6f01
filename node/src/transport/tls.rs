//! TLS of one port, both ways: what is shown to those that connect, and what is shown and demanded when connecting.
//!
//! The files are looked at when a connection is made, so that a new certificate, key or authority counts from the next
//! connection on, whatever swapped it in. A change that cannot be used leaves the present ones in use, and says so. It
//! knows files and certificates, and no address and no port.

mod load;
mod names;
mod self_signed;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};

pub use self::names::Subject;
pub use self::self_signed::self_signed;
use crate::metrics::{TLS_RELOAD_FAILURES, TLS_RELOADS};

/// A file that changed this recently may change again within the resolution of its time of change.
const UNSETTLED: Duration = Duration::from_secs(2);

/// Why there is no TLS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    fn of(path: &Path, what: impl std::fmt::Display) -> Self {
        Self(format!("{}: {what}", path.display()))
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self(format!("tls: {error}"))
    }
}

impl From<rustls::client::VerifierBuilderError> for TlsError {
    fn from(error: rustls::client::VerifierBuilderError) -> Self {
        Self(format!("tls: {error}"))
    }
}

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// File of the certificate, with those between it and its authority.
    pub cert: PathBuf,
    /// File of the key.
    pub key: PathBuf,
}

/// What TLS of one port is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// What is shown; without it there is no serving.
    pub identity: Option<Identity>,
    /// What is shown when connecting, if not the same.
    pub client_identity: Option<Identity>,
    /// Who must have signed the other side's certificate; the system's authorities when there is none.
    pub trusted_ca: Option<PathBuf>,
    /// Certificates that are no longer good.
    pub crl: Option<PathBuf>,
    /// Whether those that connect must show a certificate. A trusted authority demands it too.
    pub client_cert_auth: bool,
    /// Common names of which the other side must bear one; any when empty.
    pub allowed_names: Vec<String>,
    /// Hosts of which the other side's certificate must be valid for one; any when empty.
    pub allowed_hosts: Vec<String>,
    /// The identity is of [`self_signed`]: then every server is believed.
    pub self_signed: bool,
    /// Whether those that connect must come from a host of their certificate.
    pub checks_origin: bool,
    /// Whether what is shown when connecting must name nobody: who connects does so for others, and a common name would be
    /// the user that all of them are.
    pub nameless: bool,
    /// Whether connections are made too. Without it the files of `client_identity` are only looked at.
    pub dials: bool,
    /// Suites of TLS 1.2 by Go's names; all when there is no list.
    pub cipher_suites: Option<Vec<String>>,
    /// Lowest version.
    pub min_version: Version,
    /// Highest version.
    pub max_version: Version,
}

impl TlsOptions {
    /// Whether those that connect must show a certificate.
    pub fn demands_certificate(&self) -> bool {
        self.trusted_ca.is_some() || self.client_cert_auth
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identities = [&self.identity, &self.client_identity].into_iter().flatten();
        identities.flat_map(|identity| [&identity.cert, &identity.key]).chain(&self.trusted_ca).chain(&self.crl)
    }
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            identity: None,
            client_identity: None,
            trusted_ca: None,
            crl: None,
            client_cert_auth: false,
            allowed_names: Vec::new(),
            allowed_hosts: Vec::new(),
            self_signed: false,
            checks_origin: false,
            nameless: false,
            dials: false,
            cipher_suites: None,
            min_version: Version::Tls12,
            max_version: Version::Tls13,
        }
    }
}

/// What the files of one moment make.
struct Material {
    server: Option<Arc<ServerConfig>>,
    client: Option<Arc<ClientConfig>>,
}

/// How a file looked: its time of change, length and number, behind all links. `None` when it is not there.
type Stamp = Option<(SystemTime, u64, u64)>;

/// What is in use, and what the files looked like when it was read.
struct InUse {
    material: Material,
    stamps: Vec<Stamp>,
    /// The last complaint about files that cannot be used, which is not repeated for each connection.
    complaint: Option<TlsError>,
}

/// TLS of one port.
pub struct Tls {
    port: &'static str,
    options: TlsOptions,
    in_use: Mutex<InUse>,
}

impl Tls {
    /// Reads the files. `port` is the name of it for people: `client` or `peer`.
    ///
    /// # Errors
    /// A file that is missing or is not what it should be.
    pub fn new(port: &'static str, options: TlsOptions) -> Result<Self, TlsError> {
        let stamps = stamps(&options);
        let material = load::load(&options)?;
        Ok(Self { port, options, in_use: Mutex::new(InUse { material, stamps, complaint: None }) })
    }

    /// The name of the port.
    pub fn port(&self) -> &'static str {
        self.port
    }

    /// What it is made of.
    pub fn options(&self) -> &TlsOptions {
        &self.options
    }

    /// For one connection that is accepted; `None` without an identity.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.current(|material| material.server.clone())
    }

    /// For one connection that is made; `None` unless the options say that any is.
    pub fn client(&self) -> Option<Arc<ClientConfig>> {
        self.current(|material| material.client.clone())
    }

    /// A look at a handful of files; they are read only when one looks different.
    fn current<T>(&self, pick: impl FnOnce(&Material) -> T) -> T {
        let mut in_use = self.in_use.lock();
        let stamps = stamps(&self.options);
        if stamps != in_use.stamps || in_use.complaint.is_some() || !settled(&stamps) {
            self.reload(&mut in_use, stamps);
        }
        pick(&in_use.material)
    }

    fn reload(&self, in_use: &mut InUse, stamps: Vec<Stamp>) {
        match load::load(&self.options) {
            Ok(material) => {
                if stamps != in_use.stamps {
                    TLS_RELOADS.with_label_values(&[self.port]).inc();
                    tracing::info!(port = self.port, "took over changed TLS files");
                }
                *in_use = InUse { material, stamps, complaint: None };
            }
            Err(error) => {
                if in_use.complaint.as_ref() != Some(&error) {
                    TLS_RELOAD_FAILURES.with_label_values(&[self.port]).inc();
                    tracing::warn!(port = self.port, %error, "changed TLS files cannot be used, the old ones stay");
                }
                in_use.complaint = Some(error);
            }
        }
    }
}

fn stamps(options: &TlsOptions) -> Vec<Stamp> {
    options.files().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Whether every file changed long enough ago that a further change would show.
fn settled(stamps: &[Stamp]) -> bool {
    let now = SystemTime::now();
    stamps.iter().flatten().all(|(changed, _, _)| now.duration_since(*changed).is_ok_and(|age| age > UNSETTLED))
}

#[cfg(test)]
#[path = "tls/tests.rs"]
mod tests;
