//! Files that change under a port, and connections in between.

use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// An authority, and a directory with what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (key, mut parameters) = (KeyPair::generate().unwrap(), CertificateParams::default());
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key).unwrap();
        fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(parameters, key), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Signs a certificate for `localhost` into `<name>.pem` and `<name>-key.pem`.
    fn sign(&self, name: &str, common_name: &str) -> Identity {
        let (key, mut parameters) =
            (KeyPair::generate().unwrap(), CertificateParams::new(["localhost".to_owned()]).unwrap());
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        parameters.serial_number = Some(rcgen::SerialNumber::from(common_name.as_bytes().to_vec()));
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let identity = Identity { cert: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}-key.pem")) };
        fs::write(&identity.cert, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }

    /// Both ways with this authority and this identity.
    fn options(&self, identity: Identity) -> TlsOptions {
        TlsOptions {
            identity: Some(identity),
            trusted_ca: Some(self.path("ca.pem")),
            dials: true,
            ..TlsOptions::default()
        }
    }

    fn revoke(&self, common_name: &str) -> Vec<u8> {
        let now = time::OffsetDateTime::now_utc();
        let revoked = rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from(common_name.as_bytes().to_vec()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::days(1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

/// A connection from `client` to `server`: the common names that the server and the client saw, or who said no.
async fn connect(client: &Tls, server: &Tls) -> Result<(String, String), String> {
    let (near, far) = duplex(64 << 10);
    let accept = async {
        let mut stream =
            TlsAcceptor::from(server.server().unwrap()).accept(far).await.map_err(|e| format!("server: {e}"))?;
        stream.write_all(b"x").await.map_err(|e| e.to_string())?;
        Ok::<_, String>(name(stream.get_ref().1.peer_certificates()))
    };
    let dial = async {
        let host = "localhost".try_into().unwrap();
        let connector = TlsConnector::from(client.client().unwrap());
        let mut stream = connector.connect(host, near).await.map_err(|e| format!("client: {e}"))?;
        stream.read_exact(&mut [0]).await.map_err(|e| format!("client: {e}"))?;
        Ok::<_, String>(name(stream.get_ref().1.peer_certificates()))
    };
    let (accepted, dialed) = tokio::join!(accept, dial);
    Ok((accepted?, dialed?))
}

fn name(chain: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> String {
    chain.map(|chain| Subject::of(&chain[0]).unwrap().common_name).unwrap_or_default()
}

#[tokio::test]
async fn both_sides_show_who_they_are() {
    let authority = Authority::new();
    let (server, client) = (authority.sign("server", "the server"), authority.sign("client", "the client"));
    let server = Tls::new("client", authority.options(server)).unwrap();
    let client = Tls::new("client", authority.options(client)).unwrap();
    assert_eq!(connect(&client, &server).await, Ok(("the client".to_owned(), "the server".to_owned())));

    let nobody = Tls::new("client", TlsOptions { identity: None, ..client.options().clone() }).unwrap();
    assert!(connect(&nobody, &server).await.unwrap_err().contains("server: "), "a certificate is demanded");
    let stranger = Authority::new();
    let stranger = stranger.options(stranger.sign("client", "stranger"));
    let stranger =
        Tls::new("client", TlsOptions { trusted_ca: client.options().trusted_ca.clone(), ..stranger }).unwrap();
    assert!(connect(&stranger, &server).await.is_err(), "signed by somebody else");
}

#[tokio::test]
async fn a_new_certificate_counts_from_the_next_connection_on() {
    let authority = Authority::new();
    let tls = Tls::new("peer", authority.options(authority.sign("m", "first"))).unwrap();
    assert_eq!(connect(&tls, &tls).await, Ok(("first".to_owned(), "first".to_owned())));
    authority.sign("m", "second");
    assert_eq!(connect(&tls, &tls).await, Ok(("second".to_owned(), "second".to_owned())));
}

#[tokio::test]
async fn a_broken_file_leaves_the_old_certificate_until_it_is_whole() {
    let authority = Authority::new();
    let identity = authority.sign("m", "first");
    let tls = Tls::new("broken", authority.options(identity.clone())).unwrap();
    let failures = TLS_RELOAD_FAILURES.with_label_values(&["broken"]);
    for _ in 0..3 {
        fs::write(&identity.cert, "half a certifi").unwrap();
        assert_eq!(connect(&tls, &tls).await.unwrap().0, "first");
    }
    assert_eq!(failures.get(), 1, "said once");
    // The key of another certificate.
    authority.sign("other", "other");
    fs::copy(authority.path("other.pem"), &identity.cert).unwrap();
    assert_eq!(connect(&tls, &tls).await.unwrap().0, "first");
    fs::remove_file(&identity.key).unwrap();
    assert_eq!(connect(&tls, &tls).await.unwrap().0, "first");
    authority.sign("m", "second");
    assert_eq!(connect(&tls, &tls).await.unwrap().0, "second");
}

#[tokio::test]
async fn a_swapped_link_is_noticed() {
    let authority = Authority::new();
    for (version, name) in [("v1", "first"), ("v2", "second")] {
        fs::create_dir(authority.path(version)).unwrap();
        authority.sign(&format!("{version}/tls"), name);
    }
    let link = |version: &str| {
        std::os::unix::fs::symlink(version, authority.path("new")).unwrap();
        fs::rename(authority.path("new"), authority.path("data")).unwrap();
    };
    link("v1");
    let identity = Identity { cert: authority.path("data/tls.pem"), key: authority.path("data/tls-key.pem") };
    let tls = Tls::new("peer", authority.options(identity)).unwrap();
    assert_eq!(connect(&tls, &tls).await.unwrap().0, "first");
    link("v2");
    assert_eq!(connect(&tls, &tls).await.unwrap().0, "second");
}

#[tokio::test]
async fn names_hosts_and_revoked_numbers_are_looked_at_both_ways() {
    let authority = Authority::new();
    let base = authority.options(authority.sign("m", "member"));
    let plain = Tls::new("peer", base.clone()).unwrap();
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    for (options, good) in [
        (TlsOptions { allowed_names: list(&["x", "member"]), ..base.clone() }, true),
        (TlsOptions { allowed_names: list(&["x"]), ..base.clone() }, false),
        (TlsOptions { allowed_hosts: list(&["localhost"]), ..base.clone() }, true),
        (TlsOptions { allowed_hosts: list(&["elsewhere"]), ..base.clone() }, false),
    ] {
        let strict = Tls::new("peer", options.clone()).unwrap();
        assert_eq!(connect(&plain, &strict).await.is_ok(), good, "{options:?}");
        assert_eq!(connect(&strict, &plain).await.is_ok(), good, "{options:?}");
    }
    let crl = authority.path("crl");
    fs::write(&crl, authority.revoke("somebody")).unwrap();
    let strict = Tls::new("peer", TlsOptions { crl: Some(crl.clone()), ..base }).unwrap();
    assert!(connect(&plain, &strict).await.is_ok());
    fs::write(&crl, authority.revoke("member")).unwrap();
    assert!(connect(&plain, &strict).await.is_err(), "the list is read again");
    assert!(connect(&strict, &plain).await.is_err());
}

#[tokio::test]
async fn a_list_and_a_certificate_count_whatever_the_other_is_like() {
    let authority = Authority::new();
    let (identity, crl) = (authority.sign("m", "first"), authority.path("crl"));
    let write = |revoked: &str| fs::write(&crl, authority.revoke(revoked)).unwrap();
    write("somebody");
    let options = TlsOptions { crl: Some(crl.clone()), ..authority.options(identity.clone()) };
    let server = Tls::new("list", options).unwrap();
    let client = Tls::new("client", authority.options(authority.sign("client", "client"))).unwrap();
    let shown = async || connect(&client, &server).await.map(|(_, shown)| shown);
    assert_eq!(shown().await, Ok("first".to_owned()));

    // A certificate whose key is not there yet.
    let next = authority.sign("next", "second");
    fs::copy(&next.cert, &identity.cert).unwrap();
    assert_eq!(shown().await, Ok("first".to_owned()));
    write("client");
    assert!(shown().await.unwrap_err().contains("server: "), "the list counts");
    write("somebody");
    assert_eq!(shown().await, Ok("first".to_owned()));

    // The other way round: the key comes, and the list is broken.
    fs::write(&crl, "half a li").unwrap();
    fs::copy(&next.key, &identity.key).unwrap();
    assert_eq!(shown().await, Ok("second".to_owned()));
    write("client");
    assert!(shown().await.is_err());
}

/// A session that is resumed shows no certificate.
#[tokio::test]
async fn who_was_revoked_resumes_no_session() {
    let authority = Authority::new();
    let (identity, crl) = (authority.sign("server", "the server"), authority.path("crl"));
    // It demands no certificate, and so it lets sessions be resumed.
    let server = Tls::new("client", TlsOptions { identity: Some(identity), ..TlsOptions::default() }).unwrap();
    fs::write(&crl, authority.revoke("somebody")).unwrap();
    let options = TlsOptions { crl: Some(crl.clone()), ..authority.options(authority.sign("client", "client")) };
    let client = Tls::new("peer", options).unwrap();
    for _ in 0..2 {
        assert_eq!(connect(&client, &server).await.unwrap().1, "the server");
    }
    fs::write(&crl, authority.revoke("the server")).unwrap();
    assert!(connect(&client, &server).await.is_err());
}

/// As in etcd, where nobody is asked for a certificate.
#[test]
fn a_list_that_nobody_is_held_to_need_not_be_there() {
    let authority = Authority::new();
    let options = TlsOptions { crl: Some("/no/list".into()), ..authority.options(authority.sign("m", "member")) };
    assert!(Tls::new("client", options.clone()).is_err());
    assert!(Tls::new("client", TlsOptions { trusted_ca: None, dials: false, ..options }).is_ok());
}

#[tokio::test]
async fn versions_and_suites_are_kept_to() {
    let authority = Authority::new();
    let base = authority.options(authority.sign("m", "member"));
    let bounded = |min, max, suites: &[&str]| {
        let cipher_suites = (!suites.is_empty()).then(|| suites.iter().map(|suite| (*suite).to_owned()).collect());
        Tls::new("peer", TlsOptions { min_version: min, max_version: max, cipher_suites, ..base.clone() })
    };
    let old = bounded(Version::Tls12, Version::Tls12, &["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]).unwrap();
    let new = bounded(Version::Tls13, Version::Tls13, &[]).unwrap();
    let other = bounded(Version::Tls12, Version::Tls12, &["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"]).unwrap();
    assert!(connect(&old, &old).await.is_ok());
    assert!(connect(&old, &new).await.is_err());
    assert!(connect(&old, &other).await.is_err());
    let unknown = bounded(Version::Tls12, Version::Tls13, &["TLS_NONE"]).err().unwrap();
    assert_eq!(unknown.to_string(), "unexpected TLS cipher suite \"TLS_NONE\"");
}

#[tokio::test]
async fn members_with_certificates_of_their_own_find_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let member = |name: &str| {
        let identity = self_signed(&directory.path().join(name), &["127.0.0.1".to_owned()], 1).unwrap();
        let options = TlsOptions { identity: Some(identity), self_signed: true, dials: true, ..TlsOptions::default() };
        Tls::new("peer", options).unwrap()
    };
    let (a, b) = (member("a"), member("b"));
    assert!(connect(&a, &b).await.is_ok() && connect(&b, &a).await.is_ok());
}

/// A server that demands no certificate offers to resume, and would not have to show its own again, which may be over by then.
#[tokio::test]
async fn a_server_shows_its_certificate_at_each_connection() {
    let authority = Authority::new();
    let server = authority.sign("server", "the server");
    let client = TlsOptions { identity: None, ..authority.options(server.clone()) };
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    // Files that have just changed are read for each connection, and what was remembered goes with that.
    for file in [&server.cert, &server.key, &authority.path("ca.pem")] {
        fs::File::options().write(true).open(file).unwrap().set_modified(long_ago).unwrap();
    }
    for version in [Version::Tls12, Version::Tls13] {
        let bounds = |options: TlsOptions| TlsOptions { min_version: version, max_version: version, ..options };
        let server = TlsOptions { identity: Some(server.clone()), ..TlsOptions::default() };
        let (client, server) = (Tls::new("peer", bounds(client.clone())), Tls::new("client", bounds(server)));
        let (client, server) = (client.unwrap(), server.unwrap());
        assert!(!server.options().demands_certificate());
        for _ in 0..2 {
            let (near, far) = duplex(64 << 10);
            let accept = async {
                let mut stream = TlsAcceptor::from(server.server().unwrap()).accept(far).await.unwrap();
                stream.write_all(b"x").await.unwrap();
                stream.get_ref().1.handshake_kind()
            };
            let dial = async {
                let host = "localhost".try_into().unwrap();
                let mut stream = TlsConnector::from(client.client().unwrap()).connect(host, near).await.unwrap();
                // With the byte comes what a session could be resumed by.
                stream.read_exact(&mut [0]).await.unwrap();
            };
            let (kind, ()) = tokio::join!(accept, dial);
            assert!(!matches!(kind, None | Some(rustls::HandshakeKind::Resumed)), "{version:?}: {kind:?}");
        }
    }
}

#[test]
fn a_missing_file_is_named_in_gos_words() {
    let identity = Identity { cert: "/no/cert".into(), key: "/no/key".into() };
    let error = Tls::new("client", TlsOptions { identity: Some(identity), ..TlsOptions::default() }).err().unwrap();
    assert_eq!(error.to_string(), "open /no/cert: no such file or directory");
}

/// A name would be the user that every client of a proxy is; also when it comes with a new file.
#[tokio::test]
async fn who_connects_for_others_shows_no_name() {
    let authority = Authority::new();
    let server = Tls::new("client", authority.options(authority.sign("server", "the server"))).unwrap();
    let options = |identity| TlsOptions { nameless: true, ..authority.options(identity) };
    let named = authority.sign("proxy", "root");
    let words = format!("cert has non empty Common Name (root): {}", named.cert.display());
    assert_eq!(Tls::new("member", options(named.clone())).err().unwrap().to_string(), words);
    let nameless = authority.sign("proxy", "");
    let proxy = Tls::new("member", options(nameless)).unwrap();
    assert_eq!(connect(&proxy, &server).await, Ok((String::new(), "the server".to_owned())));
    authority.sign("proxy", "root");
    assert_eq!(connect(&proxy, &server).await, Ok((String::new(), "the server".to_owned())), "the old one stays");
}
