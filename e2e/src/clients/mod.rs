//! Real clients against a local cluster of three: programs from `e2e/clients/`, each in the language of its client and built
//! by `e2e/install clients`, and a script of etcdctl whose output must be etcd's, in [`etcdctl`]. All of them run a second time
//! with users and TLS, while the leader is killed, in [`secured`].

pub mod certificates;
pub mod etcdctl;
pub mod patroni;
pub mod secured;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::time::timeout;

use self::etcdctl::Environment;
use crate::local::Server;

/// How long a client may take for all it does.
const BOUND: Duration = Duration::from_secs(300);

/// A client that is a program of its own.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// What runs it, with `{cache}` for where `e2e/install` puts things.
    command: &'static [&'static str],
    /// Its parts that are run with users and TLS. With `failover` it works until its standard input is closed.
    secured: &'static [&'static str],
}

/// All of them.
pub const PROGRAMS: [Program; 5] = [
    Program {
        name: "rust",
        command: &["{cache}/clients/rust/target/debug/balsa-client-rust"],
        secured: &["kv", "watch", "lock", "election", "denied", "failover"],
    },
    Program {
        name: "go",
        command: &["{cache}/bin/balsa-client-go"],
        secured: &["kv", "txn", "watch", "wrappers", "mutex", "election", "stm", "denied", "failover"],
    },
    Program {
        name: "node",
        command: &["node", "{cache}/clients/node/main.js"],
        secured: &["kv", "txn", "stm", "watch", "lease", "lock", "election", "denied", "failover"],
    },
    Program {
        name: "java",
        command: &[
            "java",
            "-cp",
            "{cache}/clients/java/target/client.jar:{cache}/clients/java/target/dependency/*",
            "dev.balsa.Client",
        ],
        secured: &["kv", "txn", "watch", "lease", "lock", "election", "denied", "failover"],
    },
    // Without users and TLS it is a test of the node's processes that runs the package's own tests.
    Program {
        name: "python",
        command: &["{cache}/python/bin/python", "-c", include_str!("../../clients/python/main.py")],
        secured: &[],
    },
];

impl Program {
    /// Runs it against a cluster; it prints what it does.
    ///
    /// # Errors
    /// It cannot be run, or says that something does not work.
    pub async fn run(&self, cache: &Path, endpoints: &str) -> anyhow::Result<()> {
        let mut command = self.command(cache, &vec![("ENDPOINTS", endpoints.to_owned())]);
        let mut process = command.spawn().with_context(|| format!("cannot run {} (e2e/install clients)", self.name))?;
        let Ok(ended) = timeout(BOUND, process.wait()).await else { bail!("not done in {} s", BOUND.as_secs()) };
        let ended = ended?;
        if ended.success() { Ok(()) } else { bail!("ended with {ended}") }
    }

    fn command(&self, cache: &Path, environment: &Environment) -> Command {
        let words: Vec<String> =
            self.command.iter().map(|word| word.replace("{cache}", &cache.display().to_string())).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(environment.iter().cloned()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

/// The client URLs of all members, as clients take them.
pub fn endpoints(members: &[Server]) -> String {
    members.iter().map(Server::url).collect::<Vec<_>>().join(",")
}
