//! One server process, etcd or Balsa, a cluster of one on loopback with an empty disk. It ends with the value.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// How long a server may take to be ready.
const START_BOUND: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// How it is called in reports.
    pub name: String,
    /// Its client port.
    pub channel: Channel,
    process: Child,
    directory: TempDir,
}

impl Server {
    /// Starts `program` and waits until it serves.
    ///
    /// # Errors
    /// The program cannot be run, or does not get ready; the end of its log is in the text.
    pub async fn start(name: &str, program: &Path) -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        let (client, peer) = (free_port()?, free_port()?);
        let process = command(program, directory.path(), client, peer)?
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{client}"))?.connect_lazy();
        let mut server = Self { name: name.to_owned(), channel, process, directory };
        server.wait_until_ready().await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_BOUND;
        // The text that etcd prints once the member has joined; drivers wait for it, so Balsa prints it too.
        while !self.log().contains("ready to serve client requests") {
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.log_end());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready:\n{}", self.name, self.log_end());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(log_path(self.directory.path())).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// The same flags for both. A short election timeout spares the second that a cluster of one would wait for nobody.
fn command(program: &Path, directory: &Path, client: u16, peer: u16) -> anyhow::Result<Command> {
    let log = std::fs::File::create(log_path(directory))?;
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new(program);
    command
        .arg("--name=one")
        .arg(format!("--data-dir={}", directory.join("data").display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=one={peer}"))
        .arg("--heartbeat-interval=20")
        .arg("--election-timeout=200")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
