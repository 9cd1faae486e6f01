//! Files into what rustls serves and dials with. What belongs together is read at once, so that a certificate and its key are
//! of one moment, or the whole is refused. A revocation list belongs to nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, SupportedCipherSuite, SupportedProtocolVersion, version};

use super::verify::{Allowed, AnyServer, CheckedClient, CheckedServer, Revoked};
use super::{Material, Subject, TlsError, TlsOptions, Version};

/// Names that Go has given up and its users still write.
const OLD_NAMES: [(&str, &str); 2] = [
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Reads all files of `options` but the revocation list. Whoever is checked is looked for in `revoked`.
pub(super) fn load(options: &TlsOptions, revoked: &Arc<Revoked>) -> Result<Material, TlsError> {
    let provider = provider(options.cipher_suites.as_deref())?;
    let versions = versions(options.min_version, options.max_version);
    let server = options.identity.as_ref().map(|_| server(options, revoked, &provider, &versions)).transpose()?;
    let client = client(options, revoked, &provider, &versions)?;
    Ok(Material { server: server.map(Arc::new), client: client.map(Arc::new) })
}

fn server(
    options: &TlsOptions,
    revoked: &Arc<Revoked>,
    provider: &Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ServerConfig, TlsError> {
    let identity = options.identity.as_ref().ok_or_else(|| TlsError::new("no certificate to serve with"))?;
    let (chain, key) = pair(&identity.cert, &identity.key)?;
    let verifier: Arc<dyn ClientCertVerifier> = if options.demands_certificate() {
        let roots = Arc::new(roots(options)?);
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
        Arc::new(CheckedClient::new(chain, allowed(options, revoked), provider.clone()))
    } else {
        Arc::new(NoClientAuth)
    };
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if options.demands_certificate() {
        // Who resumes a session shows no certificate, and rustls does not look again at the one of before: it may be over by
        // now. Go looks.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

fn client(
    options: &TlsOptions,
    revoked: &Arc<Revoked>,
    provider: &Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<Option<ClientConfig>, TlsError> {
    let shown = options.client_identity.as_ref().or(options.identity.as_ref());
    let shown = shown.map(|identity| pair(&identity.cert, &identity.key)).transpose()?;
    if !options.dials {
        return Ok(None);
    }
    if options.nameless
        && let Some((chain, _)) = &shown
    {
        check_nameless(options, chain)?;
    }
    let verifier: Arc<dyn ServerCertVerifier> = if options.self_signed {
        Arc::new(AnyServer(provider.clone()))
    } else {
        let roots = Arc::new(roots(options)?);
        let chain = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build()?;
        Arc::new(CheckedServer::new(chain, allowed(options, revoked), provider.clone()))
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A server that a session is resumed with shows no certificate either. Connections are few, and etcd's clients resume none.
    config.resumption = Resumption::disabled();
    Ok(Some(config))
}

/// Refuses a certificate that names somebody, in etcd's words.
fn check_nameless(options: &TlsOptions, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
    let path = options.client_identity.as_ref().or(options.identity.as_ref()).map(|identity| identity.cert.as_path());
    let (path, leaf) = (path.unwrap_or(Path::new("")), chain.first().map_or(&[][..], |leaf| leaf.as_ref()));
    let subject = Subject::of(leaf).map_err(|error| TlsError::of(path, error))?;
    match subject.common_name.as_str() {
        "" => Ok(()),
        name => Err(TlsError::new(format!("cert has non empty Common Name ({name}): {}", path.display()))),
    }
}

/// The CA of the options, or else the system's, as Go does it.
fn roots(options: &TlsOptions) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match &options.trusted_ca {
        Some(path) => {
            for certificate in certificates(path)? {
                store.add(certificate).map_err(|error| TlsError::of(path, error))?;
            }
        }
        None => {
            let _ = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err(TlsError::new("there is no certificate authority to trust: name one with the trusted CA flag"));
    }
    Ok(store)
}

fn allowed(options: &TlsOptions, revoked: &Arc<Revoked>) -> Allowed {
    Allowed::new(options.allowed_names.clone(), options.allowed_hosts.clone(), revoked.clone())
}

/// The serial numbers of a revocation list, as DER or PEM; none without a list.
pub(super) fn revoked(path: Option<&PathBuf>) -> Result<Vec<Vec<u8>>, TlsError> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let bytes = read(path)?;
    let list = match CertificateRevocationListDer::from_pem_slice(&bytes) {
        Ok(list) => list.to_vec(),
        Err(_) => bytes,
    };
    super::names::revoked(&list).map_err(|error| TlsError::of(path, error))
}

fn pair(cert: &Path, key: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| TlsError::of(key, error))?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match all.map_err(|error| TlsError::of(path, error))? {
        none if none.is_empty() => Err(TlsError::of(path, "there is no certificate in it")),
        some => Ok(some),
    }
}

/// In Go's words, which users of etcd know.
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => TlsError::new(format!("open {}: no such file or directory", path.display())),
        _ => TlsError::new(format!("open {}: {error}", path.display())),
    })
}

/// All suites, or those of TLS 1.2 that are named; those of TLS 1.3 are always on, as in Go.
fn provider(named: Option<&[String]>) -> Result<Arc<CryptoProvider>, TlsError> {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(names) = named {
        let mut suites: Vec<SupportedCipherSuite> = Vec::new();
        for name in names {
            let name = OLD_NAMES.iter().find(|(old, _)| old == name).map_or(name.as_str(), |(_, new)| new);
            let suite = provider.cipher_suites.iter().find(|suite| go_name(suite) == name);
            suites.push(*suite.ok_or_else(|| TlsError::new(format!("unexpected TLS cipher suite {name:?}")))?);
        }
        suites.retain(|suite| suite.tls13().is_none());
        suites.extend(provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some()));
        provider.cipher_suites = suites;
    }
    Ok(Arc::new(provider))
}

/// rustls calls the suites of TLS 1.3 `TLS13_…`.
fn go_name(suite: &SupportedCipherSuite) -> String {
    suite.suite().as_str().map_or_else(String::new, |name| name.replacen("TLS13_", "TLS_", 1))
}

fn versions(min: Version, max: Version) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(Version::Tls12, &version::TLS12), (Version::Tls13, &version::TLS13)];
    all.into_iter().filter(|(version, _)| (min..=max).contains(version)).map(|(_, supported)| supported).collect()
}
