//! An authority, and what it signs: a certificate for servers on loopback and one for clients. They go with the value.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

/// See the module.
pub struct Certificates(TempDir);

impl Certificates {
    /// Makes new ones.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn make() -> anyhow::Result<Self> {
        let made = Self(tempfile::Builder::new().prefix("certificates").tempdir()?);
        let (key, mut parameters) = (KeyPair::generate()?, CertificateParams::default());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        fs::write(made.path("ca.pem"), parameters.self_signed(&key)?.pem())?;
        let authority = Issuer::new(parameters, key);
        for name in ["server", "client"] {
            let key = KeyPair::generate()?;
            let mut parameters = CertificateParams::new(["127.0.0.1".to_owned()])?;
            // A client's that names a user is refused at the JSON gateway.
            parameters.distinguished_name = DistinguishedName::new();
            fs::write(made.path(&format!("{name}.pem")), parameters.signed_by(&key, &authority)?.pem())?;
            fs::write(made.path(&format!("{name}-key.pem")), key.serialize_pem())?;
        }
        Ok(made)
    }

    /// A file: `ca.pem`, or `server` or `client` with `.pem` or `-key.pem`.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// What puts a server's client port behind them, and demands the clients'.
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("--cert-file={}", self.path("server.pem")),
            format!("--key-file={}", self.path("server-key.pem")),
            format!("--trusted-ca-file={}", self.path("ca.pem")),
            "--client-cert-auth".to_owned(),
        ]
    }
}
