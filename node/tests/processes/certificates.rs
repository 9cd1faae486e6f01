//! Authorities of the tests, what they sign and revoke, and clients that show it at a port.

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use balsa_node::transport::tls::{Identity, Subject, Tls, TlsOptions};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};

use crate::etcd::cached;

/// An authority and a directory with what it signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) directory: PathBuf,
}

impl Authority {
    pub(crate) fn new(directory: PathBuf) -> Self {
        std::fs::create_dir_all(&directory).expect("a directory");
        let (key, mut parameters) = (KeyPair::generate().expect("a key"), CertificateParams::default());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key).expect("signed");
        std::fs::write(directory.join("ca.pem"), certificate.pem()).expect("written");
        Self { issuer: Issuer::new(parameters, key), directory }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The files of a name, whether they are there or not.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        let path = |what: &str| self.directory.join(format!("{name}{what}.pem"));
        Identity { cert: path(""), key: path("-key") }
    }

    /// Signs a certificate for the loopback, in place of one of that name.
    pub(crate) fn sign(&self, name: &str, common_name: &str) -> Identity {
        self.sign_with(name, common_name, |_| {})
    }

    /// Signs one that is good for these uses alone; for any when none is named.
    pub(crate) fn sign_as(&self, name: &str, common_name: &str, uses: &[ExtendedKeyUsagePurpose]) -> Identity {
        self.sign_with(name, common_name, |parameters| parameters.extended_key_usages = uses.to_vec())
    }

    /// Signs one of these hosts and addresses.
    pub(crate) fn sign_of(&self, name: &str, common_name: &str, hosts: &[&str]) -> Identity {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        let names = CertificateParams::new(hosts).expect("hosts").subject_alt_names;
        self.sign_with(name, common_name, |parameters| parameters.subject_alt_names = names)
    }

    /// Signs one that is good in these years.
    pub(crate) fn sign_for(&self, name: &str, common_name: &str, years: Range<i32>) -> Identity {
        self.sign_with(name, common_name, |parameters| {
            (parameters.not_before, parameters.not_after) =
                (date_time_ymd(years.start, 1, 1), date_time_ymd(years.end, 1, 1));
        })
    }

    /// Signs one that is good until then.
    pub(crate) fn sign_until(&self, name: &str, common_name: &str, end: OffsetDateTime) -> Identity {
        self.sign_with(name, common_name, |parameters| parameters.not_after = end)
    }

    fn sign_with(&self, name: &str, common_name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let (key, mut parameters) =
            (KeyPair::generate().expect("a key"), CertificateParams::new(hosts).expect("hosts"));
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        change(&mut parameters);
        let certificate = parameters.signed_by(&key, &self.issuer).expect("signed");
        let identity = self.identity(name);
        std::fs::write(&identity.cert, certificate.pem()).expect("written");
        std::fs::write(&identity.key, key.serialize_pem()).expect("written");
        identity
    }

    /// One who connects, shows this and trusts the authority.
    pub(crate) fn client(&self, identity: Option<Identity>) -> Arc<Tls> {
        let options = TlsOptions { identity, trusted_ca: Some(self.ca()), dials: true, ..TlsOptions::default() };
        Arc::new(Tls::new("test", options).expect("good files"))
    }

    /// A list of these as revoked, in DER and in PEM.
    pub(crate) fn revoke(&self, revoked: &[&Identity]) -> (Vec<u8>, String) {
        let now = OffsetDateTime::now_utc();
        let revoked_certs = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: SerialNumber::from(serial(identity)),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("signed");
        (list.der().to_vec(), list.pem().expect("a text"))
    }
}

fn serial(identity: &Identity) -> Vec<u8> {
    let certificate = CertificateDer::from_pem_slice(&std::fs::read(&identity.cert).expect("a file"));
    Subject::of(&certificate.expect("a certificate")).expect("a subject").serial
}

/// A flag that names a file.
pub(crate) fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// A tool of the tests' cache, or of the system.
pub(crate) fn tool(name: &str) -> Command {
    Command::new(cached(name).filter(|program| program.exists()).unwrap_or_else(|| PathBuf::from(name)))
}

pub(crate) fn etcdctl_at(url: &str, authority: &Authority, identity: Option<&Identity>, words: &[&str]) -> Output {
    let mut command = tool("etcdctl");
    command.arg(format!("--endpoints={url}")).arg(flag("cacert", &authority.ca()));
    if let Some(identity) = identity {
        command.arg(flag("cert", &identity.cert)).arg(flag("key", &identity.key));
    }
    command.args(["--dial-timeout=5s", "--command-timeout=10s"]).args(words).output().expect("etcdctl runs")
}

pub(crate) fn curl(url: &str, words: &[&str]) -> Output {
    tool("curl").args(["-sS", "-m", "20"]).args(words).arg(url).output().expect("curl runs")
}

/// curl with a certificate: what it got, or why it got nothing.
pub(crate) fn curl_as(url: &str, ca: &Path, identity: &Identity, words: &[&str]) -> Output {
    let files = [ca, &identity.cert, &identity.key].map(|file| file.display().to_string());
    let mut all = vec!["--cacert", &files[0], "--cert", &files[1], "--key", &files[2]];
    all.extend(words);
    curl(url, &all)
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What OpenSSL's client says of a port: one that sends `request` and waits for the other side to end.
fn s_client(port: u16, ca: &Path, identity: Option<&Identity>, words: &str, request: &str) -> String {
    let mut command = tool("timeout");
    command.args(["20", "openssl", "s_client", "-ign_eof", "-connect", &format!("127.0.0.1:{port}"), "-CAfile"]);
    command.arg(ca).args(words.split(' ').filter(|word| !word.is_empty()));
    if let Some(Identity { cert, key }) = identity {
        command.arg("-cert").arg(cert).arg("-key").arg(key);
    }
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = piped.spawn().expect("openssl runs");
    // One that is refused may be gone by now.
    let _ = process.stdin.take().expect("its input").write_all(request.as_bytes());
    text(&process.wait_with_output().expect("openssl ends"))
}

/// The alert that a client hears at a port, or all that it says when there is none.
pub(crate) fn alert(port: u16, ca: &Path, identity: Option<&Identity>, words: &str) -> Result<String, String> {
    // It says nothing itself, so that no reset overtakes the alert.
    let said = s_client(port, ca, identity, words, "");
    let alert = said.lines().find_map(|line| line.split(" alert ").nth(1)?.split(':').next());
    alert.map(str::to_owned).ok_or(said)
}

/// What a client comes to at a port: `taken over TLSv1.3`, `alert bad certificate`, or `closed` without a word.
pub(crate) fn answer(port: u16, ca: &Path, identity: Option<&Identity>, words: &str) -> String {
    let said = s_client(port, ca, identity, words, "GET /version HTTP/1.0\r\n\r\n");
    if said.contains("HTTP/1.") {
        let version = |line: &str| {
            let (begun, rest) = line.split_once(", ")?;
            matches!(begun, "New" | "Reused").then(|| rest.split(',').next().unwrap_or_default().to_owned())
        };
        return format!("taken over {}", said.lines().find_map(version).unwrap_or_else(|| said.clone()));
    }
    match alert(port, ca, identity, words) {
        Ok(alert) => format!("alert {alert}"),
        Err(said) if said.contains("CONNECTED") => "closed".to_owned(),
        Err(said) => said,
    }
}
