//! The real etcd, when there is one, to be asked the same.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::http::healthy;
use crate::cluster::free_port;

/// A single member of etcd. Ends with the value.
pub(crate) struct Etcd {
    pub(crate) port: u16,
    process: Child,
    _directory: TempDir,
}

impl Etcd {
    /// Starts the etcd that `BALSA_ETCD` names or that the cache of tools holds; `None`, with a note, when there is none.
    pub(crate) async fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("no etcd in the cache: only the recording is compared");
            return None;
        };
        let directory = TempDir::new().expect("a directory");
        let (port, peer_port) = (free_port(), free_port());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let process = Command::new(program)
            .arg("--name=m0")
            .arg(format!("--data-dir={}", directory.path().display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=m0={peer}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd runs");
        let etcd = Self { port, process, _directory: directory };
        healthy(port).await;
        Some(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("BALSA_ETCD") {
        return Some(named.into());
    }
    let cache = std::env::var_os("BALSA_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/balsa"));
    let program = cache.or_else(home)?.join("bin/etcd");
    program.exists().then_some(program)
}
