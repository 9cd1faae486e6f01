//! By SRV records: of whom a cluster becomes, behind TLS or not, and what is said where there is none.

use std::process::Command;

use super::name_server::NameServer;
use super::{Listed, Seekers, name_of, programs, refused};
use crate::certificates::Authority;
use crate::cluster::free_port;

const DOMAIN: &str = "balsa.test";

/// Three members to be: targets of records, and the ports of their peers.
fn targets() -> Vec<(String, u16)> {
    (0..3).map(|index| (format!("m{index}.{DOMAIN}"), free_port())).collect()
}

/// Starts them inside, each at its target.
fn start(
    seekers: &mut Seekers,
    commands: impl Fn() -> Command,
    scheme: &str,
    targets: &[(String, u16)],
    flags: &[String],
) {
    for (host, port) in targets {
        seekers.start(commands(), &format!("{scheme}://127.0.0.1:{port}"), &format!("{scheme}://{host}:{port}"), flags);
    }
}

/// What each must list.
fn all(scheme: &str, targets: &[(String, u16)]) -> Vec<Listed> {
    let one = |(index, (host, port)): (usize, &(String, u16))| {
        (format!("m{index}"), vec![format!("{scheme}://{host}:{port}")])
    };
    targets.iter().enumerate().map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn srv_records_make_a_cluster_and_a_restart_asks_for_none() {
    let server = NameServer::start();
    let flags = [format!("--discovery-srv={DOMAIN}"), "--discovery-srv-name=blue".to_owned()];
    for program in programs() {
        let targets = targets();
        server.set(&[(&format!("_etcd-server-blue._tcp.{DOMAIN}"), &targets)]);
        let mut seekers = Seekers::none();
        let command = || server.namespace().inside(&program);
        start(&mut seekers, command, "http", &targets, &flags);
        for index in 0..3 {
            assert_eq!(seekers.listed_by(index).await, all("http", &targets), "{}", name_of(&program));
        }
        server.set(&[]);
        let (host, port) = &targets[2];
        let (listen, advertised) = (format!("http://127.0.0.1:{port}"), format!("http://{host}:{port}"));
        seekers.restart(2, command(), &listen, &advertised, &flags);
        assert_eq!(seekers.listed_by(2).await, all("http", &targets), "{}", name_of(&program));
    }
}

/// Without an authority of their own, members believe the system's, and expect the domain of each other: nobody's host is
/// in these certificates.
#[tokio::test(flavor = "multi_thread")]
async fn srv_records_of_tls_want_certificates_for_the_domain() {
    let server = NameServer::start();
    for program in programs() {
        let targets = targets();
        server.set(&[(&format!("_etcd-server-ssl._tcp.{DOMAIN}"), &targets)]);
        let mut seekers = Seekers::none();
        let authority = Authority::new(seekers.directory.path().join("tls"));
        let identity = authority.sign_of("peer", "peer", &[DOMAIN]);
        let flags = [
            format!("--discovery-srv={DOMAIN}"),
            format!("--peer-cert-file={}", identity.cert.display()),
            format!("--peer-key-file={}", identity.key.display()),
        ];
        let command = || {
            let mut command = server.namespace().inside(&program);
            command.env("SSL_CERT_FILE", authority.ca());
            command
        };
        start(&mut seekers, command, "https", &targets, &flags);
        for index in 0..3 {
            assert_eq!(seekers.listed_by(index).await, all("https", &targets), "{}", name_of(&program));
        }
    }
}

#[test]
fn srv_records_that_are_not_there_end_the_start_in_etcds_words() {
    let server = NameServer::start();
    let port = free_port();
    let record = |host: &str| vec![(host.to_owned(), port)];
    let (of_others, of_it) = (record("m2.others.test"), record("m1.secure.test"));
    server.set(&[("_etcd-server._tcp.others.test", &of_others), ("_etcd-server-ssl._tcp.secure.test", &of_it)]);
    let lookup = |service: &str, domain: &str| {
        let name = format!("_{service}._tcp.{domain}");
        format!("error querying DNS SRV records for _{service} lookup {name} on {}:53: no such host", server.address)
    };
    for program in programs() {
        let said = |advertised: &str, flags: &[&str]| {
            let inside = server.namespace().inside(&program);
            refused(inside, &format!("http://{advertised}:{port}"), flags)
        };
        for (advertised, flags, words) in [
            ("m0.none.test", &["--discovery-srv=none.test"][..], lookup("etcd-server-ssl", "none.test")),
            ("m0.none.test", &["--discovery-srv=none.test"], lookup("etcd-server", "none.test")),
            (
                "m0.none.test",
                &["--discovery-srv=none.test", "--discovery-srv-name=a"],
                lookup("etcd-server-a", "none.test"),
            ),
            ("127.0.0.9", &["--discovery-srv=others.test"], "cannot find local etcd member".to_owned()),
            (
                "m1.secure.test",
                &["--discovery-srv=secure.test"],
                format!(
                    "bootstrap at https://m1.secure.test:{port} from DNS for etcd-server-ssl has scheme mismatch with expected \
                     peer http://m1.secure.test:{port}"
                ),
            ),
            (
                "m2.others.test",
                &["--discovery-srv=others.test", "--initial-cluster-state=existing"],
                "could not retrieve cluster information from the given URLs".to_owned(),
            ),
        ] {
            let said = said(advertised, flags);
            assert!(said.contains(&words), "{} {flags:?}, not {words:?}: {said}", name_of(&program));
        }
    }
}
