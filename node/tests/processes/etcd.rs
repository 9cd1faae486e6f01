//! The real etcd, when there is one, to be asked the same. `make test` installs it and sets `BALSA_REQUIRE_ETCD`: then a
//! test that cannot compare fails, instead of passing with nothing compared.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cluster::{free_port, tail};
use crate::gateway::http::healthy;

/// The programs that `e2e/install etcd` makes: of 3.6 and of 3.7.
pub(crate) const RELEASES: [&str; 2] = ["etcd", "etcd-3.7"];

/// A cluster of etcd. Ends with the value.
pub(crate) struct Etcd {
    /// Client port of the first member.
    pub(crate) port: u16,
    /// Client ports of all.
    pub(crate) ports: Vec<u16>,
    /// Peer URLs of those that found it.
    peers: Vec<String>,
    processes: Vec<Child>,
    directory: TempDir,
}

impl Etcd {
    /// A single member of etcd 3.6; `None`, with a note, when there is no etcd.
    pub(crate) async fn start() -> Option<Self> {
        let etcd = Self::run(&program(RELEASES[0])?, 1, &[]);
        healthy(etcd.port).await;
        Some(etcd)
    }

    /// Members that found a cluster together, with further flags for each. With a certificate among these, the client
    /// ports are behind TLS. Nobody waits for them here. The program may be Balsa.
    pub(crate) fn run(program: &Path, size: usize, flags: &[String]) -> Self {
        Self::run_at("127.0.0.1", program, size, flags)
    }

    /// The same on another name of the loopback.
    pub(crate) fn run_at(host: &str, program: &Path, size: usize, flags: &[String]) -> Self {
        let scheme = if flags.iter().any(|flag| flag.starts_with("--cert-file=")) { "https" } else { "http" };
        let directory = TempDir::new().expect("a directory");
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let peers: Vec<String> = (0..size).map(|_| format!("http://{host}:{}", free_port())).collect();
        let all: Vec<String> = peers.iter().enumerate().map(|(index, peer)| format!("m{index}={peer}")).collect();
        let start = |(index, (port, peer)): (usize, (&u16, &String))| {
            let (name, client) = (format!("m{index}"), format!("{scheme}://{host}:{port}"));
            let mut command = command(program, directory.path(), &name, &client, peer);
            command.arg(format!("--initial-cluster={}", all.join(","))).args(flags).spawn().expect("etcd runs")
        };
        let processes = ports.iter().zip(&peers).enumerate().map(start).collect();
        Self { port: ports[0], ports, peers, processes, directory }
    }

    /// Starts a further member, which the cluster has been told of; its client port.
    pub(crate) fn join(&mut self, program: &Path, name: &str, peer: &str, initial_cluster: &str) -> u16 {
        let port = free_port();
        let client = format!("http://127.0.0.1:{port}");
        let mut command = command(program, self.directory.path(), name, &client, peer);
        command.arg(format!("--initial-cluster={initial_cluster}")).arg("--initial-cluster-state=existing");
        self.processes.push(command.spawn().expect("etcd runs"));
        port
    }

    /// Starts a founding member again that was killed, with further flags.
    pub(crate) fn restart(&mut self, program: &Path, index: usize, flags: &[&str]) {
        let (name, client) = (format!("m{index}"), format!("http://127.0.0.1:{}", self.ports[index]));
        let mut command = command(program, self.directory.path(), &name, &client, &self.peers[index]);
        self.processes[index] = command.args(flags).spawn().expect("etcd runs");
    }

    /// kill -9 of one member.
    pub(crate) fn kill(&mut self, index: usize) {
        let _ = self.processes[index].kill();
        let _ = self.processes[index].wait();
    }

    /// The data directory of one member.
    pub(crate) fn data(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("m{index}"))
    }

    /// What the first member has logged.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("m0.log")).unwrap_or_default()
    }
}

/// One member, but for the cluster that it is of. It logs to a file of its name.
pub(crate) fn command(program: &Path, directory: &Path, name: &str, client: &str, peer: &str) -> Command {
    let log = std::fs::File::create(directory.join(format!("{name}.log"))).expect("a log file");
    let mut command = Command::new(program);
    command
        .arg(format!("--name={name}"))
        .arg(format!("--data-dir={}", directory.join(name).display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log);
    command
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // All of it would take the place of what the test says is wrong, where only the end of long texts is kept.
            eprintln!("--- etcd\n{}", tail(&self.directory.path().join("m0.log")));
        }
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The place of a program in the cache of tools, whether it is there or not.
pub(crate) fn cached(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("BALSA_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/balsa"));
    cache.or_else(home).map(|cache| cache.join("bin").join(name))
}

/// A program of [`RELEASES`], from the cache of tools; for 3.6 the one that `BALSA_ETCD` names, if it names one.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("BALSA_ETCD").filter(|_| name == RELEASES[0]).map(PathBuf::from);
    let found = named.or_else(|| cached(name)).filter(|program| program.exists());
    let required = std::env::var_os("BALSA_REQUIRE_ETCD").is_some();
    assert!(found.is_some() || !required, "BALSA_REQUIRE_ETCD is set, and there is no {name}: e2e/install etcd");
    if found.is_none() {
        eprintln!("no {name} in the cache: nothing is compared with it");
    }
    found
}
