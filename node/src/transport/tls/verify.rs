//! What is looked at beyond a certificate's chain: revoked numbers, allowed names, allowed hosts.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::names::Subject;

/// Serial numbers of certificates that are no longer good, as the list of this moment has them.
#[derive(Debug, Default)]
pub(super) struct Revoked(RwLock<Vec<Vec<u8>>>);

impl Revoked {
    /// Takes over another list, for handshakes under way too.
    pub(super) fn replace(&self, mut serials: Vec<Vec<u8>>) {
        serials.sort_unstable();
        *self.0.write() = serials;
    }

    fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    fn contains(&self, serial: &[u8]) -> bool {
        self.0.read().binary_search_by(|revoked| revoked.as_slice().cmp(serial)).is_ok()
    }
}

/// Which certificates of those with a good chain are taken.
#[derive(Debug)]
pub(super) struct Allowed {
    names: Vec<String>,
    hosts: Vec<String>,
    revoked: Arc<Revoked>,
}

impl Allowed {
    /// Empty lists allow everything.
    pub(super) fn new(names: Vec<String>, hosts: Vec<String>, revoked: Arc<Revoked>) -> Self {
        Self { names, hosts, revoked }
    }

    fn check(&self, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        if self.names.is_empty() && self.hosts.is_empty() && self.revoked.is_empty() {
            return Ok(());
        }
        let subject = subject(leaf)?;
        self.check_serial(&subject)?;
        for certificate in chain {
            self.check_serial(&self::subject(certificate)?)?;
        }
        let by_name = self.names.is_empty() || self.names.contains(&subject.common_name);
        let by_host = self.hosts.is_empty() || self.hosts.iter().any(|host| subject.is_valid_for(host));
        // Go has the alert for a bad certificate for it; rustls's failure of an application would be that of denied access.
        if by_name && by_host { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
    }

    fn check_serial(&self, subject: &Subject) -> Result<(), Error> {
        if self.revoked.contains(&subject.serial) { Err(CertificateError::Revoked.into()) } else { Ok(()) }
    }
}

/// An authority that was made anew has the name of the one before it and another key. To Go, and so to etcd's users, who
/// it signed for is of an unknown authority; to rustls its signature is bad. A certificate for another use has an alert of its
/// own in rustls and none in Go: it is said to be bad, which is the alert for an extension that is not met.
fn of_chain(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => {
            tracing::debug!(%error, "a certificate for another use");
            CertificateError::UnhandledCriticalExtension.into()
        }
        other => other,
    }
}

fn subject(certificate: &CertificateDer<'_>) -> Result<Subject, Error> {
    Subject::of(certificate).map_err(|_| CertificateError::BadEncoding.into())
}

/// That the other side has the key of its certificate, as rustls checks it with the algorithms of a provider, which is the
/// field that is named. Those that check servers and those that check clients say so by the same methods, and no trait.
macro_rules! signatures_by {
    ($provider:tt) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signed, &self.$provider.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.$provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.$provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Those that connect to us.
#[derive(Debug)]
pub(super) struct CheckedClient {
    chain: Arc<dyn ClientCertVerifier>,
    allowed: Allowed,
    provider: Arc<CryptoProvider>,
}

impl CheckedClient {
    /// `provider` is the one that `chain` is of.
    pub(super) fn new(chain: Arc<dyn ClientCertVerifier>, allowed: Allowed, provider: Arc<CryptoProvider>) -> Self {
        Self { chain, allowed, provider }
    }
}

impl ClientCertVerifier for CheckedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now).map_err(of_chain)?;
        self.allowed.check(leaf, intermediates)?;
        Ok(verified)
    }

    signatures_by!(provider);
}

/// Those that we connect to. etcd holds them to the same names, and looks for revoked numbers among those that connect alone.
#[derive(Debug)]
pub(super) struct CheckedServer {
    chain: Arc<WebPkiServerVerifier>,
    allowed: Allowed,
    provider: Arc<CryptoProvider>,
}

impl CheckedServer {
    /// `provider` is the one that `chain` is of.
    pub(super) fn new(chain: Arc<WebPkiServerVerifier>, allowed: Allowed, provider: Arc<CryptoProvider>) -> Self {
        Self { chain, allowed, provider }
    }
}

impl ServerCertVerifier for CheckedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.chain.verify_server_cert(leaf, intermediates, name, ocsp, now).map_err(of_chain)?;
        self.allowed.check(leaf, intermediates)?;
        Ok(verified)
    }

    signatures_by!(provider);
}

/// Any server that has the key of the certificate it shows: members that made their certificates themselves know none of
/// each other's. The link is private and whole, the other side unknown, as etcd's auto-TLS has it.
#[derive(Debug)]
pub(super) struct AnyServer(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures_by!(0);
}
