//! The flags of TLS beside a running etcd: both programs have the same flags, and the same clients knock at their ports. What
//! each comes to stands in a table; where Balsa answers otherwise the row says so, and decision 0107 says why.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use balsa_node::transport::tls::Identity;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::certificates::{Authority, answer, curl, curl_as, etcdctl_at, text, tool};
use crate::cluster::{PATIENCE, free_port};
use crate::etcd::{RELEASES, program};

/// What clients come to.
const TAKEN: &str = "taken over TLSv1.3";
const TAKEN_1_2: &str = "taken over TLSv1.2";
const BAD: &str = "alert bad certificate";
const VERSION: &str = "alert protocol version";
const FAILED: &str = "alert handshake failure";
/// The handshake is done by then, so that nobody is told why.
const CLOSED: &str = "closed";

/// Which ports are behind TLS.
#[derive(Debug, Clone, Copy)]
enum Secure {
    Client,
    Peer,
    Both,
    Neither,
}

/// Flags of a port that demands certificates. `{files}` is where the certificates lie.
const CLIENT: [&str; 3] =
    ["--cert-file={files}/server.pem", "--key-file={files}/server-key.pem", "--trusted-ca-file={files}/ca.pem"];
const PEER: [&str; 3] = [
    "--peer-cert-file={files}/server.pem",
    "--peer-key-file={files}/server-key.pem",
    "--peer-trusted-ca-file={files}/ca.pem",
];

impl Secure {
    /// The flags of what it names.
    fn flags(self) -> Vec<&'static str> {
        match self {
            Secure::Client => CLIENT.to_vec(),
            Secure::Peer => PEER.to_vec(),
            Secure::Both => [CLIENT, PEER].concat(),
            Secure::Neither => Vec::new(),
        }
    }

    /// The schemes of the client port and of the peer port.
    fn schemes(self) -> (&'static str, &'static str) {
        match self {
            Secure::Client => ("https", "http"),
            Secure::Peer => ("http", "https"),
            Secure::Both => ("https", "https"),
            Secure::Neither => ("http", "http"),
        }
    }
}

/// Ports of one member.
#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    peer: u16,
    http: u16,
}

/// A member of one of the programs, with its data and its log in `place`. Ends with the value.
struct Server {
    ports: Ports,
    url: String,
    process: Child,
    place: PathBuf,
}

impl Server {
    /// A cluster of its own.
    fn start(program: &Path, place: &Path, files: &Authority, secure: Secure, flags: &[&str]) -> Self {
        let [server] = Self::start_all(program, place, files, secure, [flags]);
        server
    }

    /// Members of one cluster, with flags of each.
    fn start_all<const SIZE: usize>(
        program: &Path,
        place: &Path,
        files: &Authority,
        secure: Secure,
        flags: [&[&str]; SIZE],
    ) -> [Self; SIZE] {
        let ports = [(); SIZE].map(|()| Ports { client: free_port(), peer: free_port(), http: free_port() });
        let (_, scheme) = secure.schemes();
        let peer = |ports: &Ports| format!("{scheme}://127.0.0.1:{}", ports.peer);
        let all = ports.iter().map(|own| format!("m{}={}", own.peer, peer(own))).collect::<Vec<_>>().join(",");
        let mut flags = flags.into_iter();
        ports.map(|own| {
            let own_flags = flags.next().expect("as many");
            Self::spawn(program, place, files, (secure, own, &peer(&own), &all), own_flags)
        })
    }

    fn spawn(
        program: &Path,
        place: &Path,
        files: &Authority,
        (secure, ports, peer, all): (Secure, Ports, &str, &str),
        flags: &[&str],
    ) -> Self {
        let (scheme, _) = secure.schemes();
        let (name, url) = (format!("m{}", ports.peer), format!("{scheme}://127.0.0.1:{}", ports.client));
        let place = place.join(&name);
        std::fs::create_dir_all(&place).expect("a directory");
        let log = std::fs::File::options().create(true).append(true).open(place.join("log")).expect("a log file");
        let filled = flags.iter().map(|flag| {
            let flag = flag.replace("{files}", &files.directory.display().to_string());
            flag.replace("{http}", &ports.http.to_string())
        });
        let process = Command::new(program)
            .current_dir(&place)
            .args([format!("--name={name}"), "--data-dir=data".to_owned(), format!("--initial-cluster={all}")])
            .args(["listen", "advertise"].map(|what| format!("--{what}-client-urls={url}")))
            .args(["listen", "initial-advertise"].map(|what| format!("--{what}-peer-urls={peer}")))
            .args(filled)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the program runs");
        Self { ports, url, process, place }
    }

    /// What it logged; what stands in a line of JSON has its quotes behind strokes.
    fn log(&self) -> String {
        std::fs::read_to_string(self.place.join("log")).unwrap_or_default().replace("\\\"", "\"")
    }

    /// Whether it has a leader, by its own word to whoever shows `identity`. Without one it answers after seconds.
    fn is_healthy(&self, ca: &Path, identity: &Identity) -> bool {
        curl_as(&format!("{}/health", self.url), ca, identity, &["-f", "-k", "-m", "3"]).status.success()
    }

    /// The code that it ends with, if it does before it serves.
    fn ends(&mut self, files: &Authority) -> Option<i32> {
        self.ends_or(files, |_| false)
    }

    /// The same of one that may be taken to serve by what it logs.
    fn ends_or(&mut self, files: &Authority, serves: impl Fn(&str) -> bool) -> Option<i32> {
        let (ca, server) = (files.ca(), files.identity("server"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.process.try_wait().expect("its state") {
                Some(status) => return status.code(),
                None if serves(&self.log()) || self.is_healthy(&ca, &server) => return None,
                None => assert!(Instant::now() < deadline, "it neither serves nor ends: {}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn serves(&mut self, files: &Authority) {
        assert_eq!(self.ends(files), None, "{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs `check` on Balsa, of which it is told, and beside it on each installed etcd; what is wrong is said of all together. Each
/// has a directory of its own, with an authority that has signed for `server`.
fn on_each(check: impl Fn(&Path, bool, &Path, &Authority) -> Vec<String> + Sync) {
    let run = |program: PathBuf, is_ours: bool| {
        let place = TempDir::new().expect("a directory");
        let files = Authority::new(place.path().join("files"));
        files.sign("server", "server");
        let wrong = check(&program, is_ours, place.path(), &files);
        wrong.into_iter().map(|what| format!("{}: {what}", program.display())).collect::<Vec<_>>()
    };
    let run = &run;
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let ours = scope.spawn(move || run(PathBuf::from(env!("CARGO_BIN_EXE_balsa")), true));
        let etcds = RELEASES.into_iter().filter_map(program);
        let theirs: Vec<_> = etcds.map(|program| scope.spawn(move || run(program, false))).collect();
        theirs.into_iter().chain([ours]).flat_map(|thread| thread.join().expect("a thread")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Somebody who comes to the ports that are named, shows the certificate of a name and speaks as OpenSSL's words say.
#[derive(Debug, Clone, Copy)]
struct Knock {
    at: Secure,
    who: &'static str,
    words: &'static str,
    etcds: &'static str,
    ours: &'static str,
}

const fn knock(at: Secure, who: &'static str, words: &'static str, comes_to: &'static str) -> Knock {
    Knock { at, who, words, etcds: comes_to, ours: comes_to }
}

/// Who shows nothing.
const NOBODY: &str = "nobody";

impl Knock {
    /// What comes of it at Balsa, where that is something else.
    const fn but(self, ours: &'static str) -> Self {
        Self { ours, ..self }
    }

    /// What is not as expected.
    fn wrong(self, server: &Server, is_ours: bool, files: &Authority) -> Vec<String> {
        let expected = if is_ours { self.ours } else { self.etcds };
        let identity = Some(files.identity(self.who)).filter(|_| self.who != NOBODY);
        let ports = match self.at {
            Secure::Client => vec![server.ports.client],
            Secure::Peer => vec![server.ports.peer],
            Secure::Both | Secure::Neither => vec![server.ports.client, server.ports.peer],
        };
        let heard = ports.into_iter().map(|port| answer(port, &files.ca(), identity.as_ref(), self.words));
        let wrong = heard.filter(|heard| heard != expected);
        wrong.map(|heard| format!("{} {:?} at {:?}: {heard}, not {expected}", self.who, self.words, self.at)).collect()
    }
}

/// A server's flags beside those of its ports, and who comes to it.
struct Case {
    secure: Secure,
    flags: &'static [&'static str],
    knocks: &'static [Knock],
}

/// Starts a server for each case, and has everybody knock.
fn all_as_in(cases: &[Case], sign: impl Fn(&Authority) + Sync) {
    on_each(|program, is_ours, place, files| {
        sign(files);
        let each = cases.iter().flat_map(|case| {
            let flags = [&case.secure.flags()[..], case.flags].concat();
            let mut server = Server::start(program, place, files, case.secure, &flags);
            server.serves(files);
            let wrong = case.knocks.iter().flat_map(|knock| knock.wrong(&server, is_ours, files));
            wrong.map(|what| format!("{:?}: {what}", case.flags)).collect::<Vec<_>>()
        });
        each.collect()
    });
}

use Secure::{Both, Client, Neither, Peer};

/// `both` is of the loopback by name and by address, `named` by name, `other` is of another address, `wild` of all names below
/// one, and `bare` has a common name only.
const OF_HOSTS: &[Case] = &[
    Case {
        secure: Both,
        flags: &[],
        knocks: &[
            knock(Both, "both", "", TAKEN),
            knock(Both, "named", "", TAKEN),
            knock(Both, "bare", "", TAKEN),
            knock(Client, "other", "", TAKEN),
            knock(Client, "wild", "", TAKEN),
            knock(Peer, "other", "", CLOSED),
            knock(Peer, "other", "-tls1_2", CLOSED),
            knock(Peer, "wild", "", CLOSED),
        ],
    },
    Case {
        secure: Peer,
        flags: &["--peer-skip-client-san-verification"],
        knocks: &[knock(Peer, "other", "", TAKEN), knock(Peer, "wild", "", TAKEN), knock(Peer, NOBODY, "", REQUIRED)],
    },
    Case {
        secure: Both,
        flags: &["--client-cert-allowed-hostname=localhost", "--peer-cert-allowed-hostname=x.invalid,LocalHost"],
        knocks: &[
            knock(Both, "both", "", TAKEN),
            knock(Both, "named", "", TAKEN),
            knock(Both, "bare", "", BAD),
            knock(Both, "other", "", BAD),
            knock(Both, "wild", "-tls1_2", BAD),
        ],
    },
    Case {
        secure: Both,
        flags: &[
            "--client-cert-allowed-hostname=a.example.com",
            "--peer-cert-allowed-hostname=a.example.com",
            "--peer-skip-client-san-verification",
        ],
        knocks: &[knock(Both, "wild", "", TAKEN), knock(Both, "both", "", BAD), knock(Both, "bare", "", BAD)],
    },
    Case {
        secure: Both,
        flags: &[
            "--client-cert-allowed-hostname=a.b.example.com",
            "--peer-cert-allowed-hostname=127.0.0.1",
            // The flag is of the peer port alone.
            "--peer-skip-client-san-verification",
        ],
        knocks: &[
            knock(Client, "wild", "", BAD),
            knock(Peer, "both", "", TAKEN),
            knock(Peer, "named", "", BAD),
            knock(Peer, "other", "", BAD),
        ],
    },
    Case {
        secure: Peer,
        flags: &["--peer-cert-allowed-cn=alice,both"],
        knocks: &[
            knock(Peer, "both", "", TAKEN),
            knock(Peer, "bare", "", BAD),
            knock(Peer, "named", "-tls1_2", BAD),
            // Its name is one of those; its host is not.
            knock(Peer, "alice", "", CLOSED),
        ],
    },
];

const REQUIRED: &str = "alert certificate required";

#[test]
fn names_and_hosts_of_certificates_are_held_to_as_by_etcd() {
    all_as_in(OF_HOSTS, |files| {
        // It asks whether its server is there, so that it has to come in everywhere.
        files.sign_of("server", "server", &["127.0.0.1", "localhost", "a.example.com", "a.b.example.com"]);
        files.sign("both", "both");
        files.sign_of("named", "named", &["localhost"]);
        files.sign_of("bare", "localhost", &[]);
        for name in ["other", "alice"] {
            files.sign_of(name, name, &["10.9.8.7"]);
        }
        files.sign_of("wild", "wild", &["*.example.com"]);
    });
}

const OLD: Knock = knock(Both, "server", "-tls1_2", TAKEN_1_2);
const NEW: Knock = knock(Both, "server", "-tls1_3", TAKEN);
const NO_OLD: Knock = knock(Both, "server", "-tls1_2", VERSION);
const NO_NEW: Knock = knock(Both, "server", "-tls1_3", VERSION);
const ANY_OLD: Knock = knock(Both, "server", "", TAKEN_1_2);

const OF_VERSIONS: &[Case] = &[
    Case { secure: Both, flags: &[], knocks: &[OLD, NEW] },
    Case { secure: Both, flags: &["--tls-min-version=", "--tls-max-version="], knocks: &[OLD, NEW] },
    Case { secure: Both, flags: &["--tls-min-version=TLS1.2", "--tls-max-version=TLS1.3"], knocks: &[OLD, NEW] },
    Case { secure: Both, flags: &["--tls-max-version=TLS1.2"], knocks: &[OLD, NO_NEW, ANY_OLD] },
    Case {
        secure: Both,
        flags: &["--tls-min-version=TLS1.2", "--tls-max-version=TLS1.2"],
        knocks: &[OLD, NO_NEW, ANY_OLD],
    },
    Case { secure: Both, flags: &["--tls-min-version=TLS1.3"], knocks: &[NO_OLD, NEW] },
    Case { secure: Both, flags: &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.3"], knocks: &[NO_OLD, NEW] },
];

#[test]
fn versions_are_bounded_as_by_etcd() {
    all_as_in(OF_VERSIONS, |_| {});
}

/// A list that is in many manifests: all that Go had for HTTP/2 once, and two without forward secrecy.
const USUAL: &str = "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,\
                     TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,\
                     TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,\
                     TLS_RSA_WITH_AES_256_GCM_SHA384,TLS_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256";

const OF_SUITES: &[Case] = &[
    Case {
        secure: Both,
        flags: &["--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
        knocks: &[
            knock(Both, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", TAKEN_1_2),
            knock(Both, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384", FAILED),
            // A list is of TLS 1.2 alone.
            knock(Both, "server", "-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256", TAKEN),
        ],
    },
    Case {
        secure: Both,
        flags: &[USUAL, "--tls-max-version=TLS1.2"],
        knocks: &[
            knock(Both, "server", "-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", TAKEN_1_2),
            knock(Both, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384", TAKEN_1_2),
            knock(Both, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", FAILED),
            NO_NEW,
        ],
    },
    Case {
        secure: Both,
        // The certificate is one of ECDSA.
        flags: &["--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
        knocks: &[knock(Both, "server", "-tls1_2", FAILED), NEW],
    },
    Case {
        secure: Both,
        flags: &[
            "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
            "--tls-max-version=TLS1.2",
        ],
        knocks: &[
            knock(Both, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", TAKEN_1_2),
            // There is no CBC in rustls.
            knock(Both, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256", TAKEN_1_2).but(FAILED),
        ],
    },
    Case {
        secure: Peer,
        flags: &["--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"],
        knocks: &[
            knock(Peer, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384", TAKEN_1_2),
            knock(Peer, "server", "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", FAILED),
        ],
    },
    Case {
        secure: Peer,
        flags: &["--cipher-suites=TLS_RSA_WITH_AES_128_GCM_SHA256"],
        knocks: &[
            knock(Peer, "server", "-tls1_3", TAKEN),
            // Without any suite of it there is no TLS 1.2 in rustls.
            knock(Peer, "server", "-tls1_2", FAILED).but(VERSION),
        ],
    },
];

#[test]
fn suites_are_those_of_the_list_as_by_etcd() {
    all_as_in(OF_SUITES, |_| {});
}

/// etcd reads the list of revoked certificates at each connection, after the handshake, and closes the connection of whoever is
/// on it. What it cannot read it takes for a list of everybody; Balsa goes on with the last list that it could read, and reads PEM too.
/// In both the list counts by itself: here beside a certificate without its key, which makes etcd's ports end every handshake.
#[test]
fn who_is_revoked_is_refused_by_the_list_of_that_moment() {
    on_each(|program, is_ours, place, files| {
        let (kept, lost) = (files.sign("kept", "kept"), files.sign("lost", "lost"));
        let list = files.directory.join("crl");
        let write = |bytes: &[u8]| std::fs::write(&list, bytes).expect("written");
        write(&files.revoke(&[&lost]).0);
        let crl = ["--client-crl-file={files}/crl", "--peer-crl-file={files}/crl"];
        let mut server = Server::start(program, place, files, Both, &[&Both.flags()[..], &crl].concat());
        server.serves(files);
        let mut wrong = Vec::new();
        let mut come_to = |step: &str, of_kept: Knock, of_lost: Knock| {
            let said = [of_kept, of_lost].into_iter().flat_map(|knock| knock.wrong(&server, is_ours, files));
            wrong.extend(said.map(|what| format!("{step}: {what}")));
        };
        let taken = |who| knock(Both, who, "", TAKEN);
        let revoked = |who| knock(Both, who, "", CLOSED).but("alert certificate revoked");
        come_to("the first list", taken("kept"), revoked("lost"));
        come_to(
            "in TLS 1.2",
            Knock { words: "-tls1_2", etcds: TAKEN_1_2, ours: TAKEN_1_2, ..taken("kept") },
            Knock { words: "-tls1_2", ..revoked("lost") },
        );
        write(&files.revoke(&[&kept]).0);
        come_to("another list", revoked("kept"), taken("lost"));
        write(files.revoke(&[&lost]).1.as_bytes());
        let all = |who| knock(Both, who, "", CLOSED);
        come_to("a list in PEM", all("kept").but(TAKEN), revoked("lost"));
        write(b"no list");
        come_to("what is no list", all("kept").but(TAKEN), revoked("lost"));
        std::fs::remove_file(&list).expect("removed");
        come_to("no file", all("kept").but(TAKEN), revoked("lost"));
        write(&files.revoke(&[&kept, &lost]).0);
        come_to("a list of both", revoked("kept"), revoked("lost"));
        std::fs::copy(files.identity("kept").cert, files.identity("server").cert).expect("copied");
        write(&files.revoke(&[&lost]).0);
        let unserved = |who, ours| knock(Both, who, "", "alert internal error").but(ours);
        come_to(
            "a certificate without its key",
            unserved("kept", TAKEN),
            unserved("lost", "alert certificate revoked"),
        );
        wrong
    });
}

/// A session that is resumed shows no certificate again.
#[test]
fn a_session_does_not_outlive_its_certificate() {
    on_each(|program, _, place, files| {
        let mut server = Server::start(program, place, files, Client, &CLIENT);
        server.serves(files);
        let end = OffsetDateTime::now_utc() + Duration::from_secs(15);
        let short = files.sign_until("short", "short", end);
        let sessions = ["-tls1_2", "-tls1_3"].map(|version| {
            let session = place.join(version).display().to_string();
            let said =
                answer(server.ports.client, &files.ca(), Some(&short), &format!("{version} -sess_out {session}"));
            (version, session, said)
        });
        let mut wrong = Vec::new();
        for (version, session, said) in sessions {
            if !said.starts_with("taken") {
                wrong.push(format!("{version}: {said}"));
            }
            while OffsetDateTime::now_utc() < end + Duration::from_secs(1) {
                std::thread::sleep(Duration::from_millis(200));
            }
            // Where there is none to be resumed, none was written.
            let again = if Path::new(&session).exists() { format!("-sess_in {session}") } else { String::new() };
            let said = answer(server.ports.client, &files.ca(), Some(&short), &format!("{version} {again}"));
            if said != "alert certificate expired" {
                wrong.push(format!("{version} {again}: {said}"));
            }
        }
        wrong
    });
}

/// Flags of both members of a cluster, and whether they make one.
const OF_MEMBERS: &[(&[&str], bool)] = &[
    (&["--peer-client-cert-file={files}/dials.pem", "--peer-client-key-file={files}/dials-key.pem"], true),
    // What is for servers is not taken from who connects.
    (&[], false),
    (
        &[
            "--peer-client-cert-file={files}/dials.pem",
            "--peer-client-key-file={files}/dials-key.pem",
            "--peer-cert-allowed-cn=listens,dials",
        ],
        true,
    ),
    (
        &[
            "--peer-client-cert-file={files}/dials.pem",
            "--peer-client-key-file={files}/dials-key.pem",
            "--peer-cert-allowed-cn=listens",
        ],
        false,
    ),
    // Who is connected to is held to the names too.
    (
        &[
            "--peer-client-cert-file={files}/dials.pem",
            "--peer-client-key-file={files}/dials-key.pem",
            "--peer-cert-allowed-cn=dials",
        ],
        false,
    ),
    (
        &[
            "--peer-client-cert-file={files}/dials.pem",
            "--peer-client-key-file={files}/dials-key.pem",
            "--peer-cert-allowed-hostname=127.0.0.1",
            "--tls-min-version=TLS1.3",
        ],
        true,
    ),
];

/// Members that show one certificate and dial with another.
#[test]
fn members_find_each_other_by_the_certificates_that_etcds_do() {
    const LISTENS: [&str; 3] = [
        "--peer-cert-file={files}/listens.pem",
        "--peer-key-file={files}/listens-key.pem",
        "--peer-trusted-ca-file={files}/ca.pem",
    ];
    on_each(|program, _, place, files| {
        files.sign_as("listens", "listens", &[ServerAuth]);
        files.sign_as("dials", "dials", &[ClientAuth]);
        let mut wrong = Vec::new();
        for (flags, find) in OF_MEMBERS {
            let flags = [&LISTENS[..], flags].concat();
            let servers = Server::start_all(program, place, files, Peer, [&flags[..], &flags]);
            if !settles(&servers, files, *find) {
                wrong.push(format!("{flags:?}, not {find}: {}", servers[0].log()));
            }
        }
        // Who makes his certificate himself looks at nobody's, whatever is said of them.
        let flags = ["--peer-auto-tls", "--peer-cert-allowed-cn=x", "--peer-client-cert-auth"];
        if !settles(&Server::start_all(program, place, files, Peer, [&flags[..], &flags]), files, true) {
            wrong.push("members with certificates of their own".to_owned());
        }
        wrong
    });
}

/// Waits until the members have a leader, or until both have refused the other.
fn settles(servers: &[Server; 2], files: &Authority, find: bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let refused = |member: &Server| member.log().contains("rejected connection on peer endpoint");
    while Instant::now() < deadline {
        if !find && servers.iter().all(refused) {
            return are_healthy(servers, files) == [false; 2];
        }
        if find && are_healthy(servers, files) == [true; 2] {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Which of the members have a leader. They are asked at once, because each takes seconds to say that it has none.
fn are_healthy(servers: &[Server; 2], files: &Authority) -> [bool; 2] {
    let (ca, server) = (files.ca(), files.identity("server"));
    let is_healthy = |member: &Server| member.is_healthy(&ca, &server);
    std::thread::scope(|scope| {
        let asked = servers.each_ref().map(|member| scope.spawn(move || is_healthy(member)));
        asked.map(|thread| thread.join().expect("a thread"))
    })
}

/// A start with TLS, by the flags of these ports or by others alone: what it ends with and what is said then.
struct Start {
    secure: Secure,
    flags: &'static [&'static str],
    etcds: Option<i32>,
    ours: Option<i32>,
    word: &'static str,
}

const fn refused(secure: Secure, flags: &'static [&'static str], word: &'static str) -> Start {
    Start { secure, flags, etcds: Some(1), ours: Some(1), word }
}

const fn serves(secure: Secure, flags: &'static [&'static str]) -> Start {
    Start { secure, flags, etcds: None, ours: None, word: "" }
}

impl Start {
    /// How it ends at Balsa, where that is otherwise.
    const fn but(self, ours: Option<i32>) -> Self {
        Self { ours, ..self }
    }
}

const CERT: &str = "--cert-file={files}/server.pem";
const KEY: &str = "--key-file={files}/server-key.pem";
const NO_AES_128: &str = "http2: TLSConfig.CipherSuites is missing an HTTP/2-required AES_128_GCM_SHA256 cipher (need at least one of \
     TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 or TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)";

const STARTS: &[Start] = &[
    refused(Client, &[CERT], "KeyFile and CertFile must both be present[key: , cert: "),
    refused(
        Client,
        &["--key-file=/no/k", "--auto-tls"],
        "KeyFile and CertFile must both be present[key: /no/k, cert: ]",
    ),
    refused(Client, &[CERT, "--key-file=/no/k"], "open /no/k: no such file or directory"),
    refused(Client, &[CERT, "--key-file={files}/ca.pem"], ""),
    refused(Client, &[CERT, "--key-file={files}/other-key.pem"], ""),
    refused(Client, &[CERT, KEY, "--trusted-ca-file=/no/ca"], "open /no/ca: no such file or directory"),
    refused(
        Client,
        &[CERT, KEY, "--client-cert-file=/no/c"],
        "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: /no/c]",
    ),
    refused(
        Client,
        &[CERT, KEY, "--client-cert-file=/no/c", "--client-key-file=/no/k"],
        "open /no/c: no such file or directory",
    ),
    refused(Client, &[CERT, KEY, "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"], NO_AES_128),
    refused(Client, &[CERT, KEY, "--cipher-suites=TLS_AES_128_GCM_SHA256"], NO_AES_128),
    refused(Client, &["--auto-tls", "--self-signed-cert-validity=0"], "selfSignedCertValidity is invalid"),
    refused(
        Peer,
        &[PEER[0], PEER[1], "--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b,c"],
        r#"AllowedCNs and AllowedHostnames are mutually exclusive (cns=["a"], hostnames=["b" "c"])"#,
    ),
    refused(Peer, &[PEER[0], PEER[1], "--peer-client-key-file=/no/k"], "key: /no/k, cert: ]"),
    refused(Peer, &[PEER[0], PEER[1], "--peer-trusted-ca-file=/no/ca"], "open /no/ca: no such file or directory"),
    Start { word: "certs given", ..serves(Client, &[CERT, KEY, "--auto-tls"]) },
    Start { word: "certs given", ..serves(Client, &[CERT, KEY, "--auto-tls", "--self-signed-cert-validity=0"]) },
    // Nobody could come in, and nobody is told.
    serves(Client, &[CERT, KEY, "--trusted-ca-file={files}/none"]).but(Some(1)),
    // Nobody would be held to it.
    serves(Client, &[CERT, KEY, "--trusted-ca-file={files}/ca.pem", "--client-crl-file=/no/crl"]).but(Some(1)),
    // Of ports without TLS: what is written wrong is, and what members dial with is looked at.
    refused(Neither, &["--cipher-suites=x"], r#"unexpected TLS cipher suite "x""#),
    // What is empty is not given.
    refused(Neither, &["--cipher-suites="], "").but(None),
    refused(
        Neither,
        &["--tls-min-version=TLS1.1"],
        r#"unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)"#,
    ),
    refused(Neither, &["--tls-max-version=1.3"], r#"unexpected TLS version "1.3" (must be one of: TLS1.2, TLS1.3)"#),
    refused(
        Neither,
        &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        "min version (TLS1.3) is greater than max version (TLS1.2)",
    ),
    refused(
        Neither,
        &["--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"],
        "cipher suites cannot be configured when only TLS1.3 is enabled",
    ),
    refused(Neither, &["--peer-cert-file=/no/c"], "KeyFile and CertFile must both be present[key: , cert: /no/c]"),
    refused(Neither, &["--peer-cert-file=/no/c", "--peer-key-file=/no/k"], "open /no/c: no such file or directory"),
    refused(Neither, &["--peer-trusted-ca-file=/no/ca"], "open /no/ca: no such file or directory"),
    refused(Neither, &["--auto-tls", "--self-signed-cert-validity=0"], "selfSignedCertValidity is invalid"),
    serves(Neither, &["--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA", "--auto-tls", "--peer-auto-tls"]),
    serves(Neither, &[CERT, "--client-crl-file=/no/crl", "--trusted-ca-file=/no/ca"]),
    serves(Neither, &["--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b", "--peer-client-cert-file=/no/c"]),
];

#[test]
fn what_does_not_make_tls_ends_the_start_in_etcds_words() {
    on_each(|program, is_ours, place, files| {
        files.sign("other", "other");
        std::fs::write(files.directory.join("none"), "no certificate").expect("written");
        let each = STARTS.iter().filter_map(|start| {
            let mut server = Server::start(program, place, files, start.secure, start.flags);
            let expected = if is_ours { start.ours } else { start.etcds };
            // An etcd that nobody comes into serves by its own word.
            let deaf = |log: &str| start.etcds.is_none() && log.contains("serving client traffic securely");
            let (ends, said) = (server.ends_or(files, deaf), server.log());
            let wrong = ends != expected || !said.contains(start.word);
            wrong.then(|| format!("{:?}: {ends:?}, not {expected:?} with {:?}: {said}", start.flags, start.word))
        });
        each.collect()
    });
}

/// Calls and plain HTTP on ports of their own, both behind TLS.
#[test]
fn a_port_of_plain_http_is_behind_the_same_tls() {
    on_each(|program, is_ours, place, files| {
        let (good, lost) = (files.sign("good", "good"), files.sign("lost", "lost"));
        std::fs::write(files.directory.join("crl"), files.revoke(&[&lost]).0).expect("written");
        files.sign_of("other", "other", &["other.example"]);
        let more = [
            "--listen-client-http-urls=https://127.0.0.1:{http}",
            "--client-crl-file={files}/crl",
            "--client-cert-allowed-hostname=localhost,server",
        ];
        let mut server = Server::start(program, place, files, Client, &[&CLIENT[..], &more].concat());
        let (grpc, http) = (server.ports.client, server.ports.http);
        server.url = format!("https://127.0.0.1:{http}");
        server.serves(files);
        let at = |port: u16, path: &str| format!("https://127.0.0.1:{port}{path}");
        let asked = |port: u16, path: &str, words: &[&str]| {
            let words = [&["-o", "/dev/null", "-w", "%{http_version} %{http_code}"], words].concat();
            String::from_utf8_lossy(&curl_as(&at(port, path), &files.ca(), &good, &words).stdout).into_owned()
        };
        let call = |port: u16, who: &Identity| {
            let output = etcdctl_at(&at(port, ""), files, Some(who), &["get", "absent"]);
            if output.status.success() { "answered" } else { "refused" }
        };
        let alerts = |port: u16, who: &str| answer(port, &files.ca(), Some(&files.identity(who)), "-alpn h2");
        let unlike = |etcds: &'static str, ours: &'static str| if is_ours { ours } else { etcds };
        let rows = [
            ("HTTP/1.1 at http", asked(http, "/version", &["--http1.1"]), "1.1 200"),
            ("HTTP/2 at http", asked(http, "/version", &["--http2"]), "2 200"),
            // Where only some may come in, its own gateway may not into etcd.
            ("the gateway", asked(http, "/v3/kv/range", &["-d", r#"{"key":"YQ=="}"#]), unlike("2 503", "2 200")),
            ("a call at http", call(http, &good).to_owned(), "refused"),
            ("a call at grpc", call(grpc, &good).to_owned(), "answered"),
            ("HTTP/1.1 at grpc", asked(grpc, "/version", &["--http1.1"]), unlike("0 000", "1.1 404")),
            ("HTTP/2 at grpc", asked(grpc, "/version", &["--http2"]), unlike("2 415", "2 404")),
            ("another host at http", alerts(http, "other"), BAD),
            ("another host at grpc", alerts(grpc, "other"), BAD),
            ("who is revoked at http", alerts(http, "lost"), unlike(CLOSED, "alert certificate revoked")),
        ];
        let mut wrong: Vec<String> = rows
            .into_iter()
            .filter(|(_, heard, expected)| heard != expected)
            .map(|(what, heard, expected)| format!("{what}: {heard}, not {expected}"))
            .collect();
        // etcd 3.6.8 forgets the list there; later ones do not.
        if is_ours && call(grpc, &lost) != "refused" {
            wrong.push("who is revoked makes calls".to_owned());
        }
        wrong
    });
}

/// What OpenSSL says of a certificate, line by line in an order of its own.
fn described(cert: &Path) -> Vec<String> {
    let what = "subjectAltName,keyUsage,extendedKeyUsage,basicConstraints";
    let mut command = tool("openssl");
    command.args(["x509", "-noout", "-subject", "-issuer", "-ext", what, "-in"]).arg(cert);
    let said = text(&command.output().expect("openssl runs"));
    let mut lines: Vec<String> = said.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

/// Whether a certificate is good that many hours from now.
fn is_good_in(hours: u64, cert: &Path) -> bool {
    let mut command = tool("openssl");
    command.args(["x509", "-noout", "-checkend", &(hours * 3600).to_string(), "-in"]).arg(cert);
    command.output().expect("openssl runs").status.success()
}

#[test]
fn certificates_that_a_member_makes_are_as_etcds() {
    const CERTIFICATE: [&str; 10] = [
        "CA:TRUE",
        "Digital Signature, Key Encipherment, CRL Sign",
        "IP Address:127.0.0.1, IP Address:127.0.0.2",
        "TLS Web Server Authentication",
        "X509v3 Basic Constraints: critical",
        "X509v3 Extended Key Usage:",
        "X509v3 Key Usage: critical",
        "X509v3 Subject Alternative Name:",
        "issuer=O = etcd",
        "subject=O = etcd",
    ];
    on_each(|program, _, place, files| {
        // What is said of others is not looked at.
        let flags = [
            "--auto-tls",
            "--peer-auto-tls",
            "--self-signed-cert-validity=3",
            "--listen-client-http-urls=https://127.0.0.2:{http}",
            "--trusted-ca-file={files}/ca.pem",
            "--client-cert-auth",
            "--client-crl-file=/no/crl",
            "--client-cert-allowed-hostname=x",
            "--peer-trusted-ca-file={files}/ca.pem",
            "--peer-cert-allowed-cn=x",
        ];
        let mut server = Server::start(program, place, files, Both, &flags);
        server.url = format!("https://127.0.0.2:{}", server.ports.http);
        server.serves(files);
        let made = |port: &str| server.place.join("data/fixtures").join(port).join("cert.pem");
        let (client, peer) = (made("client"), made("peer"));
        let mode = |file: &Path| std::fs::metadata(file).expect("a file").permissions().mode() & 0o777;
        let mut rows = vec![
            ("of clients", described(&client).join("|"), CERTIFICATE.join("|")),
            ("of peers", described(&peer).join("|"), CERTIFICATE.join("|").replace(", IP Address:127.0.0.2", "")),
            ("its key", format!("{:o}", mode(&client.with_file_name("key.pem"))), "600".to_owned()),
            ("a stranger with peers", answer(server.ports.peer, &peer, None, ""), TAKEN.to_owned()),
            ("a stranger in plain HTTP", curl(&format!("{}/version", server.url), &["-k", "-f"]).status.to_string(), {
                "exit status: 0".to_owned()
            }),
        ];
        for cert in [&client, &peer] {
            let hours = 3 * 365 * 24;
            let lasts = (is_good_in(hours - 1, cert), is_good_in(hours + 1, cert));
            rows.push(("how long", format!("{lasts:?}"), "(true, false)".to_owned()));
        }
        let wrong = rows.into_iter().filter(|(_, heard, expected)| heard != expected);
        wrong.map(|(what, heard, expected)| format!("{what}: {heard}, not {expected}")).collect()
    });
}
