//! Real clients against a local cluster of three: programs in other languages from `e2e/clients/`, each built by
//! `e2e/install clients`, the Rust client in [`rust`], and a script of etcdctl whose output must be etcd's, in
//! [`etcdctl`].

pub mod etcdctl;
pub mod patroni;
pub mod rust;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::time::timeout;

use crate::local::Server;

/// How long a client may take for all it does.
const BOUND: Duration = Duration::from_secs(300);

/// A client that is a program of its own.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// What runs it, with `{clients}` for where `e2e/install clients` puts things and `{bin}` for the programs in Go.
    command: &'static [&'static str],
}

/// All of them.
pub const PROGRAMS: [Program; 3] = [
    Program { name: "go", command: &["{bin}/balsa-client-go"] },
    Program { name: "node", command: &["node", "{clients}/node/main.js"] },
    Program {
        name: "java",
        command: &[
            "java",
            "-cp",
            "{clients}/java/target/client.jar:{clients}/java/target/dependency/*",
            "dev.balsa.Client",
        ],
    },
];

impl Program {
    /// Runs it against a cluster; it prints what it does.
    ///
    /// # Errors
    /// It cannot be run, or says that something does not work.
    pub async fn run(&self, cache: &Path, endpoints: &str) -> anyhow::Result<()> {
        let (bin, clients) = (cache.join("bin"), cache.join("clients"));
        let fill = |word: &&str| {
            word.replace("{bin}", &bin.display().to_string()).replace("{clients}", &clients.display().to_string())
        };
        let words: Vec<String> = self.command.iter().map(fill).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("ENDPOINTS", endpoints).stdin(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().with_context(|| format!("cannot run {} (e2e/install clients)", words[0]))?;
        let Ok(ended) = timeout(BOUND, process.wait()).await else { bail!("not done in {} s", BOUND.as_secs()) };
        let ended = ended?;
        if ended.success() { Ok(()) } else { bail!("ended with {ended}") }
    }
}

/// The client URLs of all members, as clients take them.
pub fn endpoints(members: &[Server]) -> String {
    members.iter().map(|member| format!("http://{}", member.address)).collect::<Vec<_>>().join(",")
}
