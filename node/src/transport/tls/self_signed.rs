//! The certificate that a process makes for itself, once, and keeps in its data directory: auto-TLS.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::{Identity, TlsError};

/// The certificate of `directory`, made first if there is none, for `hosts`, and valid for so many years.
///
/// # Errors
/// The directory cannot be written.
pub fn self_signed(directory: &Path, hosts: &[String], years: u32) -> Result<Identity, TlsError> {
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if !(cert.exists() && key.exists()) {
        make(&cert, &key, hosts, years).map_err(|error| TlsError::of(directory, error))?;
        tracing::warn!(path = %cert.display(), years, "made a certificate, which nobody else has signed");
    }
    Ok(Identity { cert, key })
}

fn make(cert: &Path, key: &Path, hosts: &[String], years: u32) -> Result<(), Box<dyn std::error::Error>> {
    let pair = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(hosts)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, "etcd");
    parameters.not_before = OffsetDateTime::now_utc();
    let lifetime = Duration::days(365 * i64::from(years));
    let over = parameters.not_before.checked_add(lifetime);
    // A certificate has no room for a fifth digit.
    parameters.not_after = over.ok_or_else(|| format!("a certificate cannot be valid for {years} years"))?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages =
        vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    // Whoever makes one demands none, so that it is never shown to somebody who looks at it.
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters.self_signed(&pair)?;
    if let Some(directory) = cert.parent() {
        fs::create_dir_all(directory)?;
    }
    write(key, &pair.serialize_pem(), 0o600)?;
    write(cert, &certificate.pem(), 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let first = self_signed(&directory.path().join("fixtures/peer"), &hosts, 1).unwrap();
        let text = fs::read(&first.cert).unwrap();
        assert_eq!(self_signed(&directory.path().join("fixtures/peer"), &hosts, 1).unwrap(), first);
        assert_eq!(fs::read(&first.cert).unwrap(), text);
    }

    #[test]
    fn it_cannot_be_valid_longer_than_it_can_say() {
        let directory = tempfile::tempdir().unwrap();
        assert!(self_signed(directory.path(), &["localhost".to_owned()], 7_000).is_ok());
        let error = self_signed(&directory.path().join("new"), &["localhost".to_owned()], u32::MAX).unwrap_err();
        assert!(error.to_string().ends_with("a certificate cannot be valid for 4294967295 years"), "{error}");
    }
}
