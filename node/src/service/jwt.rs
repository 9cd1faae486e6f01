//! Signed tokens (RFC 7519 in the compact form of RFC 7515), as etcd signs and reads them.
//!
//! Owns the keys of signatures, what a token says, and when it is good. The cryptography is aws-lc's; what is here is
//! three parts of base64 and the rule that the configured method, never the one that a token names, decides how it is
//! verified. It must not know how a token travels.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey};
use aws_lc_rs::signature::{RsaEncoding, RsaKeyPair, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use super::failure::Error;
use crate::config::auth_token::JwtOptions;
use crate::domain::auth::Identity;

/// Why tokens cannot be signed or verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--auth-token: {0}")]
pub struct TokenKeyError(String);

/// How a method signs and verifies.
enum Method {
    Hmac(hmac::Algorithm),
    Rsa(&'static dyn RsaEncoding, &'static dyn VerificationAlgorithm),
    Ecdsa(&'static EcdsaSigningAlgorithm, &'static dyn VerificationAlgorithm),
    Ed25519,
}

/// The methods of etcd but `none`, which proves nothing.
fn method(name: &str) -> Option<Method> {
    use signature::*;
    Some(match name {
        "HS256" => Method::Hmac(hmac::HMAC_SHA256),
        "HS384" => Method::Hmac(hmac::HMAC_SHA384),
        "HS512" => Method::Hmac(hmac::HMAC_SHA512),
        "RS256" => Method::Rsa(&RSA_PKCS1_SHA256, &RSA_PKCS1_2048_8192_SHA256),
        "RS384" => Method::Rsa(&RSA_PKCS1_SHA384, &RSA_PKCS1_2048_8192_SHA384),
        "RS512" => Method::Rsa(&RSA_PKCS1_SHA512, &RSA_PKCS1_2048_8192_SHA512),
        "PS256" => Method::Rsa(&RSA_PSS_SHA256, &RSA_PSS_2048_8192_SHA256),
        "PS384" => Method::Rsa(&RSA_PSS_SHA384, &RSA_PSS_2048_8192_SHA384),
        "PS512" => Method::Rsa(&RSA_PSS_SHA512, &RSA_PSS_2048_8192_SHA512),
        "ES256" => Method::Ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P256_SHA256_FIXED),
        "ES384" => Method::Ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING, &ECDSA_P384_SHA384_FIXED),
        "ES512" => Method::Ecdsa(&ECDSA_P521_SHA512_FIXED_SIGNING, &ECDSA_P521_SHA512_FIXED),
        "EdDSA" => Method::Ed25519,
        _ => return None,
    })
}

enum Signer {
    Hmac(Box<hmac::Key>),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

enum Verifier {
    Hmac(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

/// Keys of one method.
pub struct JwtKeys {
    method: String,
    /// None: tokens are verified only.
    signer: Option<Signer>,
    verifier: Verifier,
    ttl: Duration,
}

impl std::fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtKeys").field("method", &self.method).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// What is looked at of a token's first part.
#[derive(Deserialize)]
struct Head {
    alg: String,
}

/// What a token must say. Go reads every number as a float.
#[derive(Deserialize)]
struct Claims {
    username: String,
    revision: f64,
    exp: Option<f64>,
    nbf: Option<f64>,
}

impl JwtKeys {
    /// Reads the keys.
    ///
    /// # Errors
    /// A method that is not served; a file that cannot be read, or is not a key of the method; keys that do not belong
    /// together.
    pub fn open(options: &JwtOptions) -> Result<Self, TokenKeyError> {
        let name = &options.method;
        let method = method(name).ok_or_else(|| TokenKeyError(format!("sign-method {name:?} is not served")))?;
        let private = options.private_key.as_deref().map(read).transpose()?;
        let public = options.public_key.as_deref().map(read).transpose()?;
        let (signer, verifier) = keys(&method, private, public)?;
        let keys = Self { method: name.clone(), signer, verifier, ttl: options.ttl };
        keys.prove()?;
        Ok(keys)
    }

    /// A key that signs must make what the other key accepts; better said at start than at the first login.
    fn prove(&self) -> Result<(), TokenKeyError> {
        let Some(signer) = &self.signer else { return Ok(()) };
        let wrong = |what: &str| TokenKeyError(what.to_owned());
        let signed = signer.sign(b"x").map_err(|()| wrong("the private key cannot sign by this sign-method"))?;
        if self.verifier.accepts(b"x", &signed) { Ok(()) } else { Err(wrong("public and private keys don't match")) }
    }

    /// A token for a user, established at `revision`.
    ///
    /// # Errors
    /// `VerifyOnly` without a private key.
    pub fn sign(&self, username: &str, revision: u64) -> Result<String, Error> {
        let exp = (now() + self.ttl).as_secs();
        self.sign_claims(&serde_json::json!({ "username": username, "revision": revision, "exp": exp }))
    }

    fn sign_claims(&self, claims: &serde_json::Value) -> Result<String, Error> {
        let signer = self.signer.as_ref().ok_or(Error::VerifyOnly)?;
        let head = serde_json::json!({ "alg": self.method, "typ": "JWT" });
        let encoded = |part: &serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encoded(&head), encoded(claims));
        let signed = signer.sign(message.as_bytes()).map_err(|()| Error::Internal("signing failed".to_owned()))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signed)))
    }

    /// What a token says, if it is signed by our method and key and its time is now. As Go's library is by default, times
    /// are looked at if they are there, and whom the token is for is not.
    pub fn verify(&self, token: &str) -> Option<Identity> {
        let (message, signed) = token.rsplit_once('.')?;
        let (head, claims) = message.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let head: Head = serde_json::from_slice(&decode(head)?).ok()?;
        if head.alg != self.method || !self.verifier.accepts(message.as_bytes(), &decode(signed)?) {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&decode(claims)?).ok()?;
        let now = now().as_secs_f64();
        let early = claims.nbf.is_some_and(|from| now < from);
        let late = claims.exp.is_some_and(|until| now >= until);
        (!early && !late).then_some(Identity { username: claims.username, revision: claims.revision as u64 })
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ()> {
        let random = SystemRandom::new();
        match self {
            Signer::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Signer::Rsa(key, encoding) => {
                let mut signed = vec![0; key.public_modulus_len()];
                key.sign(*encoding, &random, message, &mut signed).map_err(drop)?;
                Ok(signed)
            }
            Signer::Ecdsa(key) => Ok(key.sign(&random, message).map_err(drop)?.as_ref().to_vec()),
            Signer::Ed25519(key) => Ok(key.try_sign(message).map_err(drop)?.as_ref().to_vec()),
        }
    }

    /// The public key, in a form that its method reads; a secret has none.
    fn public_key(&self) -> &[u8] {
        match self {
            Signer::Hmac(_) => &[],
            Signer::Rsa(key, _) => key.public_key().as_ref(),
            Signer::Ecdsa(key) => key.public_key().as_ref(),
            Signer::Ed25519(key) => key.public_key().as_ref(),
        }
    }
}

impl Verifier {
    fn accepts(&self, message: &[u8], signed: &[u8]) -> bool {
        match self {
            Verifier::Hmac(key) => hmac::verify(key, message, signed).is_ok(),
            Verifier::Public(key) => key.verify_sig(message, signed).is_ok(),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenKeyError> {
    std::fs::read(path).map_err(|error| TokenKeyError(format!("{}: {error}", path.display())))
}

/// The keys of a method. A private key alone brings its public one.
fn keys(
    method: &Method,
    private: Option<Vec<u8>>,
    public: Option<Vec<u8>>,
) -> Result<(Option<Signer>, Verifier), TokenKeyError> {
    let missing = || TokenKeyError("missing key data: priv-key, or for verifying only pub-key".to_owned());
    let not_a = |what: &str| TokenKeyError(format!("{what} is not a PEM key of the sign-method"));
    let verification: &'static dyn VerificationAlgorithm = match method {
        Method::Hmac(algorithm) => {
            let secret = private.filter(|secret| !secret.is_empty()).ok_or_else(missing)?;
            let key = Box::new(hmac::Key::new(*algorithm, &secret));
            return Ok((Some(Signer::Hmac(key.clone())), Verifier::Hmac(key)));
        }
        Method::Rsa(_, verification) | Method::Ecdsa(_, verification) => *verification,
        Method::Ed25519 => &signature::ED25519,
    };
    let signer = private.map(|file| signer(method, &file).ok_or_else(|| not_a("priv-key"))).transpose()?;
    let (key, what) = match (&signer, public) {
        (_, Some(file)) => (public_key(&file).ok_or_else(|| not_a("pub-key"))?, "pub-key"),
        (Some(signer), None) => (signer.public_key().to_vec(), "priv-key"),
        (None, None) => return Err(missing()),
    };
    let verifier = ParsedPublicKey::new(verification, key).map_err(|_| not_a(what))?;
    Ok((signer, Verifier::Public(verifier)))
}

/// OpenSSL writes private keys in a form of its own for each kind, or in one for all.
fn signer(method: &Method, file: &[u8]) -> Option<Signer> {
    let key = block(file, "PRIVATE KEY")?;
    match method {
        Method::Hmac(_) => None,
        Method::Rsa(encoding, _) => {
            let pair = RsaKeyPair::from_pkcs8(&key).or_else(|_| RsaKeyPair::from_der(&key)).ok()?;
            Some(Signer::Rsa(pair, *encoding))
        }
        Method::Ecdsa(curve, _) => EcdsaKeyPair::from_private_key_der(curve, &key).ok().map(Signer::Ecdsa),
        Method::Ed25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key).ok().map(Signer::Ed25519),
    }
}

/// The first public key of a PEM file, whether it stands there by itself or in a certificate, whose other words do not count.
fn public_key(file: &[u8]) -> Option<Vec<u8>> {
    let blocks = pem::parse_many(file).ok()?;
    let block = blocks.into_iter().find(|block| block.tag().ends_with("PUBLIC KEY") || block.tag() == "CERTIFICATE")?;
    if block.tag() != "CERTIFICATE" {
        return Some(block.into_contents());
    }
    let certificate = Certificate::from_der(block.contents()).ok()?;
    certificate.tbs_certificate.subject_public_key_info.to_der().ok()
}

/// The first block of a PEM file with such a name; the curve may stand in one before it.
fn block(file: &[u8], name: &str) -> Option<Vec<u8>> {
    let blocks = pem::parse_many(file).ok()?;
    blocks.into_iter().find(|block| block.tag().ends_with(name)).map(pem::Pem::into_contents)
}

#[cfg(test)]
mod tests;
