//! Servers as plain processes on loopback, etcd or Balsa, with empty disks. They end with the value.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// How long a server may take to be ready.
const START_BOUND: Duration = Duration::from_secs(60);

/// Arguments that make the first election short: they spare a cluster of one the second that it would wait for nobody.
pub const FAST_ELECTION: [&str; 2] = ["--heartbeat-interval=20", "--election-timeout=200"];

/// A disk in memory. Where the machine has one, servers that no test takes the power from may have their data there.
const MEMORY: &str = "/dev/shm";

/// A server.
#[derive(Debug)]
pub struct Server {
    /// How it is called in reports.
    pub name: String,
    /// Where its clients go, `127.0.0.1:port`.
    pub address: String,
    scheme: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
    directory: TempDir,
}

impl Server {
    /// Starts the members of a cluster, with further arguments for each, and waits until all serve. With a certificate among
    /// the arguments, the client ports are behind TLS.
    ///
    /// # Errors
    /// A program cannot be run, or does not get ready; the end of its log is in the text.
    pub async fn cluster(name: &str, program: &Path, size: usize, more: &[&str]) -> anyhow::Result<Vec<Self>> {
        Self::cluster_in(&std::env::temp_dir(), name, program, size, more).await
    }

    /// As [`Server::cluster`], on a disk in memory if there is one.
    ///
    /// # Errors
    /// As [`Server::cluster`].
    pub async fn cluster_in_memory(
        name: &str,
        program: &Path,
        size: usize,
        more: &[&str],
    ) -> anyhow::Result<Vec<Self>> {
        let memory = Some(PathBuf::from(MEMORY)).filter(|path| path.is_dir());
        Self::cluster_in(&memory.unwrap_or_else(std::env::temp_dir), name, program, size, more).await
    }

    async fn cluster_in(
        disk: &Path,
        name: &str,
        program: &Path,
        size: usize,
        more: &[&str],
    ) -> anyhow::Result<Vec<Self>> {
        let names: Vec<String> = (0..size).map(|index| format!("m{index}")).collect();
        let ports: Vec<_> = names.iter().map(|_| (free_port(), free_port())).collect();
        let peer = |(name, (_, port)): (&String, &(u16, u16))| format!("{name}=http://127.0.0.1:{port}");
        let all = names.iter().zip(&ports).map(peer).collect::<Vec<_>>().join(",");
        let scheme = if more.iter().any(|argument| argument.starts_with("--cert-file=")) { "https" } else { "http" };
        let mut members = Vec::new();
        for (own, (client, peer)) in names.into_iter().zip(ports) {
            let directory = TempDir::new_in(disk)?;
            let name = format!("{name} {own}");
            let mut arguments = arguments(&own, directory.path(), &format!("{scheme}://127.0.0.1:{client}"), peer);
            arguments.push(format!("--initial-cluster={all}"));
            arguments.extend(more.iter().map(ToString::to_string));
            let address = format!("127.0.0.1:{client}");
            let program = program.to_owned();
            let mut member = Self { name, address, scheme, program, arguments, process: None, directory };
            member.start()?;
            members.push(member);
        }
        for member in &mut members {
            member.wait_until_ready().await?;
        }
        Ok(members)
    }

    /// Starts it, again on its disk if it ran before.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path())?;
        let process = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        self.process = Some(process);
        Ok(())
    }

    /// kill -9, and the corpse is collected.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Where its clients go.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// A connection that opens with its first use, without TLS.
    ///
    /// # Errors
    /// None that could happen with an address of ours.
    pub fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Endpoint::from_shared(format!("http://{}", self.address))?.connect_lazy())
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_BOUND;
        // The text that etcd prints once the member has joined; drivers wait for it, so Balsa prints it too.
        while !self.log().contains("ready to serve client requests") {
            if !self.is_running() {
                bail!("{} has ended:\n{}", self.name, self.log_end());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready:\n{}", self.name, self.log_end());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn arguments(name: &str, directory: &Path, client: &str, peer: u16) -> Vec<String> {
    let peer = format!("http://127.0.0.1:{peer}");
    vec![
        format!("--name={name}"),
        format!("--data-dir={}", directory.join("data").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
    ]
}

/// A port below those that the system gives to outgoing connections: one of these could take it before the server listens.
pub(crate) fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Processes that start one after the other begin far from each other.
    let begin = (std::process::id() as u16).wrapping_mul(7_919);
    loop {
        let port = 12_000 + begin.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
