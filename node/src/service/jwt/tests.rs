//! Keys are made for each test and written as PEM, as openssl would.

use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
};
use tempfile::TempDir;

use super::*;

/// A time that has not come yet when this is read.
const LATER: u64 = 1 << 40;

/// A directory with the files of keys.
struct Keys(TempDir);

impl Keys {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, tag: &str, der: &[u8]) -> &Self {
        std::fs::write(self.0.path().join(name), pem::encode(&pem::Pem::new(tag, der))).unwrap();
        self
    }

    fn ec(curve: &'static EcdsaSigningAlgorithm) -> (Self, EcdsaKeyPair) {
        let (keys, pair) = (Self::new(), EcdsaKeyPair::generate(curve).unwrap());
        let private = pair.to_pkcs8v1().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        keys.write("private", "PRIVATE KEY", private.as_ref()).write("public", "PUBLIC KEY", public.as_ref());
        (keys, pair)
    }

    fn rsa() -> Self {
        let (keys, pair) = (Self::new(), aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).unwrap());
        let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        keys.write("private", "PRIVATE KEY", private.as_ref()).write("public", "PUBLIC KEY", public.as_ref());
        keys
    }

    fn ed() -> Self {
        let (keys, pair) = (Self::new(), Ed25519KeyPair::generate().unwrap());
        let private = pair.to_pkcs8v1().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        keys.write("private", "PRIVATE KEY", private.as_ref()).write("public", "PUBLIC KEY", public.as_ref());
        keys
    }

    fn options(&self, method: &str, private: bool, public: bool) -> JwtOptions {
        let file = |wanted: bool, name: &str| wanted.then(|| self.0.path().join(name));
        let (private_key, public_key) = (file(private, "private"), file(public, "public"));
        JwtOptions { method: method.to_owned(), public_key, private_key, ttl: Duration::from_secs(300) }
    }

    fn open(&self, method: &str, private: bool, public: bool) -> Result<JwtKeys, TokenKeyError> {
        JwtKeys::open(&self.options(method, private, public))
    }
}

fn identity() -> Option<Identity> {
    Some(Identity { username: "alice".into(), revision: 7 })
}

#[test]
fn each_method_signs_what_it_verifies() {
    let (p256, _) = Keys::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let (p384, _) = Keys::ec(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let (p521, _) = Keys::ec(&ECDSA_P521_SHA512_FIXED_SIGNING);
    let (rsa, ed) = (Keys::rsa(), Keys::ed());
    let mut methods = vec![("ES256", &p256), ("ES384", &p384), ("ES512", &p521), ("EdDSA", &ed)];
    methods.extend(["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"].map(|method| (method, &rsa)));
    for (method, keys) in methods {
        let both = keys.open(method, true, true).expect(method);
        let alone = keys.open(method, true, false).expect(method);
        let verifier = keys.open(method, false, true).expect(method);
        let token = alone.sign("alice", 7).expect(method);
        for keys in [&both, &alone, &verifier] {
            assert_eq!(keys.verify(&token), identity(), "{method}");
        }
        assert_eq!(verifier.sign("alice", 7), Err(Error::VerifyOnly), "{method}");
        let (head, _) = token.rsplit_once('.').unwrap();
        assert_eq!(both.verify(&format!("{head}.AAAA")), None, "{method}: the signature counts");
    }
}

#[test]
fn a_secret_signs_and_verifies() {
    let keys = Keys::new();
    std::fs::write(keys.0.path().join("private"), "secret").unwrap();
    let secret = keys.open("HS256", true, false).unwrap();
    assert_eq!(secret.verify(&secret.sign("alice", 7).unwrap()), identity());
    assert_eq!(keys.open("HS384", true, false).unwrap().verify(&secret.sign("alice", 7).unwrap()), None);
    std::fs::write(keys.0.path().join("private"), "").unwrap();
    assert!(keys.open("HS256", true, false).unwrap_err().to_string().contains("missing key data"));
}

#[test]
fn openssls_own_form_of_a_private_key_is_read() {
    let (keys, pair) = Keys::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let own: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
    // The object identifier of the curve, as `openssl ecparam -genkey` writes it in front.
    let curve = pem::encode(&pem::Pem::new("EC PARAMETERS", &b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"[..]));
    let key = pem::encode(&pem::Pem::new("EC PRIVATE KEY", own.as_ref()));
    std::fs::write(keys.0.path().join("private"), curve + &key).unwrap();
    let read = keys.open("ES256", true, true).unwrap();
    assert_eq!(read.verify(&read.sign("alice", 7).unwrap()), identity());
}

#[test]
fn a_certificate_stands_for_its_public_key() {
    // A chain as it is configured for TLS: the server's own certificate comes first.
    let (p256, _) = Keys::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let (p384, _) = Keys::ec(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let rsa = Keys::rsa();
    for (method, keys) in [("ES256", &p256), ("ES384", &p384), ("RS256", &rsa), ("PS256", &rsa)] {
        let private = std::fs::read_to_string(keys.0.path().join("private")).unwrap();
        let own = rcgen::KeyPair::from_pem(&private).unwrap();
        let authority = rcgen::KeyPair::generate().unwrap();
        let chain = [&own, &authority].map(|key| {
            let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            parameters.self_signed(key).unwrap().pem()
        });
        std::fs::write(keys.0.path().join("public"), chain.concat()).unwrap();
        let token = keys.open(method, true, true).expect(method).sign("alice", 7).unwrap();
        assert_eq!(keys.open(method, false, true).expect(method).verify(&token), identity(), "{method}");
    }
    let complaint = p256.open("RS256", false, true).unwrap_err().to_string();
    assert_eq!(complaint, "--auth-token: pub-key is not a PEM key of the sign-method");
    std::fs::write(p256.0.path().join("public"), pem::encode(&pem::Pem::new("CERTIFICATE", &b"none"[..]))).unwrap();
    assert!(p256.open("ES256", false, true).unwrap_err().to_string().contains("pub-key is not a PEM key"));
}

#[test]
fn keys_that_cannot_work_are_found_at_start() {
    let (p256, _) = Keys::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let (other, _) = Keys::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    std::fs::copy(other.0.path().join("public"), p256.0.path().join("public")).unwrap();
    let complaint = |method, private, public| p256.open(method, private, public).unwrap_err().to_string();
    assert_eq!(complaint("ES256", true, true), "--auth-token: public and private keys don't match");
    assert!(complaint("ES256", false, false).contains("missing key data"));
    assert!(complaint("RS256", true, false).contains("priv-key is not a PEM key"));
    assert!(complaint("ES384", true, false).contains("priv-key is not a PEM key"));
    assert!(complaint("none", true, false).contains("\"none\" is not served"));
    let mut gone = p256.options("ES256", true, false);
    gone.private_key = Some("/nowhere/key".into());
    assert!(JwtKeys::open(&gone).unwrap_err().to_string().contains("/nowhere/key: "));
}

#[test]
fn a_token_of_another_kind_names_nobody() {
    let (keys, _) = Keys::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let keys = keys.open("ES256", true, false).unwrap();
    let sign = |claims: &serde_json::Value| keys.sign_claims(claims).unwrap();
    let good = serde_json::json!({"username": "alice", "revision": 7, "exp": LATER, "aud": "somebody"});
    assert_eq!(keys.verify(&sign(&good)), identity());
    assert_eq!(keys.verify(&sign(&serde_json::json!({"username": "alice", "revision": 7}))), identity());
    for bad in [
        serde_json::json!({"username": "alice", "revision": 7, "exp": 1}),
        serde_json::json!({"username": "alice", "revision": 7, "exp": LATER, "nbf": LATER}),
        serde_json::json!({"username": "alice", "exp": LATER}),
        serde_json::json!({"revision": 7, "exp": LATER}),
        serde_json::json!({"username": 7, "revision": 7, "exp": LATER}),
    ] {
        assert_eq!(keys.verify(&sign(&bad)), None, "{bad}");
    }
    for token in ["", "a", "a.b.c", "prefix.7"] {
        assert_eq!(keys.verify(token), None, "{token:?}");
    }
}

#[test]
fn cve_2015_9235_a_public_key_is_no_secret() {
    // A token that calls itself HMAC must not be verified with the public key as its secret, nor one that is unsigned.
    let keys = Keys::rsa();
    let public = std::fs::read(keys.0.path().join("public")).unwrap();
    let verifier = keys.open("RS256", false, true).unwrap();
    let secret = JwtKeys {
        method: "HS256".into(),
        signer: Some(Signer::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &public)))),
        verifier: Verifier::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &public))),
        ttl: Duration::from_secs(300),
    };
    let forged = secret.sign("root", 7).unwrap();
    assert!(secret.verify(&forged).is_some());
    assert_eq!(verifier.verify(&forged), None);
    let (_, claims) = forged.split_once('.').unwrap();
    let (claims, signed) = claims.split_once('.').unwrap();
    for alg in ["none", "None", "RS256", "HS256"] {
        let head = URL_SAFE_NO_PAD.encode(serde_json::json!({ "alg": alg, "typ": "JWT" }).to_string());
        assert_eq!(verifier.verify(&format!("{head}.{claims}.")), None, "{alg} without a signature");
        assert_eq!(verifier.verify(&format!("{head}.{claims}.{signed}")), None, "{alg}");
    }
}

#[test]
fn a_token_that_was_signed_elsewhere_is_understood() {
    // Header and claims in the order in which etcd writes them, signed with the secret by another implementation.
    let keys = Keys::new();
    std::fs::write(keys.0.path().join("private"), "secret").unwrap();
    let token = concat!(
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.",
        "eyJleHAiOjEwOTk1MTE2Mjc3NzYsInJldmlzaW9uIjo3LCJ1c2VybmFtZSI6ImFsaWNlIn0.",
        "encN9FaRecKmTu4b-dCZbToX9eRYWpRrS0ODb7Uetj4"
    );
    assert_eq!(keys.open("HS256", true, false).unwrap().verify(token), identity());
}
