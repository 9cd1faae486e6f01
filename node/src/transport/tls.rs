//! TLS of one port, both ways: what is shown to those that connect, and what is shown and demanded when connecting.
//!
//! The files are looked at when a connection is made, so that a new certificate, key or authority counts from the next
//! connection on, whatever swapped it in. A change that cannot be used leaves the present ones in use, and says so. The
//! revocation list is a file by itself: it counts, whatever the others are like. It knows files and certificates, and no
//! address and no port.

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
use self::verify::Revoked;
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

    /// Files that count together.
    fn files(&self) -> Vec<PathBuf> {
        let identities = [&self.identity, &self.client_identity].into_iter().flatten();
        let pairs = identities.flat_map(|identity| [&identity.cert, &identity.key]);
        pairs.chain(&self.trusted_ca).cloned().collect()
    }

    /// The list of certificates that are no longer good, if anybody's certificate is looked at.
    fn list(&self) -> Option<&PathBuf> {
        let of_clients = self.identity.is_some() && self.demands_certificate();
        let of_servers = self.dials && !self.self_signed;
        self.crl.as_ref().filter(|_| of_clients || of_servers)
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

/// Files that are read together, and what they looked like when that was last done.
struct Files {
    paths: Vec<PathBuf>,
    stamps: Vec<Stamp>,
    /// The last complaint about files that cannot be used, which is not repeated for each connection.
    complaint: Option<TlsError>,
}

impl Files {
    /// For files that are read right after.
    fn new(paths: Vec<PathBuf>) -> Self {
        Self { stamps: stamps(&paths), paths, complaint: None }
    }

    /// What `read` makes of them, if one looks different and they can be used. `port` is for people.
    fn changed<T>(&mut self, port: &'static str, read: impl FnOnce() -> Result<T, TlsError>) -> Option<T> {
        let stamps = stamps(&self.paths);
        if stamps == self.stamps && self.complaint.is_none() && settled(&stamps) {
            return None;
        }
        match read() {
            Ok(value) => {
                if stamps != self.stamps {
                    TLS_RELOADS.with_label_values(&[port]).inc();
                    tracing::info!(port, "took over changed TLS files");
                }
                (self.stamps, self.complaint) = (stamps, None);
                Some(value)
            }
            Err(error) => {
                if self.complaint.as_ref() != Some(&error) {
                    TLS_RELOAD_FAILURES.with_label_values(&[port]).inc();
                    tracing::warn!(port, %error, "changed TLS files cannot be used, the old ones stay");
                }
                self.complaint = Some(error);
                None
            }
        }
    }
}

/// What is in use, and of which files.
struct InUse {
    material: Material,
    files: Files,
    list: Files,
}

/// TLS of one port.
pub struct Tls {
    port: &'static str,
    options: TlsOptions,
    revoked: Arc<Revoked>,
    in_use: Mutex<InUse>,
}

impl Tls {
    /// Reads the files. `port` is the name of it for people: `client` or `peer`.
    ///
    /// # Errors
    /// A file that is missing or is not what it should be.
    pub fn new(port: &'static str, options: TlsOptions) -> Result<Self, TlsError> {
        let (files, list) = (Files::new(options.files()), Files::new(options.list().cloned().into_iter().collect()));
        let revoked = Arc::new(Revoked::default());
        let material = load::load(&options, &revoked)?;
        revoked.replace(load::revoked(options.list())?);
        Ok(Self { port, options, revoked, in_use: Mutex::new(InUse { material, files, list }) })
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
        let InUse { material, files, list } = &mut *in_use;
        if let Some(serials) = list.changed(self.port, || load::revoked(self.options.list())) {
            self.revoked.replace(serials);
        }
        if let Some(new) = files.changed(self.port, || load::load(&self.options, &self.revoked)) {
            *material = new;
        }
        pick(material)
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    paths.iter().map(|path| stamp(path)).collect()
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
