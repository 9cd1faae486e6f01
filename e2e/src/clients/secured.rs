//! The clients behind TLS, each with a certificate and as a user who has a prefix of his own; and while all of them work, the
//! leader of the cluster is killed and started again. They work until their standard input is closed, and then say whether
//! what was acknowledged is there, and whether locks, leases and watches went on as their library promises.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::certificates::Certificates;
use super::etcdctl::{self, Environment};
use super::{BOUND, PROGRAMS, Program, endpoints};
use crate::local::Server;

const MEMBERS: usize = 3;
/// Writes of each client, that are its progress.
const PROGRESS: u64 = 20;
/// How long the clients work on after the leader was killed: longer than their leases of 10 s would live without them, also
/// when the next leader gives these their whole time once more.
const AFTERWARDS: Duration = Duration::from_secs(15);
/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(300);

/// A user with a prefix for each client, named as it is; the Node.js client's elections and the Python client's locks have
/// prefixes before that.
const USERS: &str = r#"set -e
unset ETCDCTL_USER
etcdctl user add root:pw
etcdctl user grant-role root root
for name in etcdctl go java node python rust; do
    etcdctl role add $name
    for prefix in $name/ election/$name/ /locks/$name/; do etcdctl role grant-permission --prefix $name readwrite $prefix; done
    etcdctl user add $name:pw
    etcdctl user grant-role $name $name
done
etcdctl auth enable"#;

/// A cluster behind TLS and with users.
struct Cluster<'a> {
    cache: &'a Path,
    certificates: &'a Certificates,
    members: Vec<Server>,
}

/// Runs those of the clients that are named.
///
/// # Errors
/// What does not work.
pub async fn run(cache: &Path, server: &Path, names: &[&str]) -> anyhow::Result<()> {
    let certificates = &Certificates::make()?;
    let mut cluster = Cluster::start(cache, "server", server, certificates).await?;
    if names.contains(&"etcdctl") {
        let etcd = Cluster::start(cache, "etcd", &cache.join("bin/etcd"), certificates).await?;
        let lines = etcdctl::compare_secured(cache, &etcd.of_etcdctl(), &cluster.of_etcdctl()).await?;
        println!("ok etcdctl: {lines} commands");
    }
    let mut working = Vec::new();
    for program in PROGRAMS.iter().filter(|program| names.contains(&program.name)) {
        working.push(Working::start(program, &cluster)?);
    }
    for one in working.extract_if(.., |one| !one.goes_on) {
        one.finish().await?;
    }
    if !working.is_empty() {
        cluster.lose_leader(&mut working).await?;
    }
    for one in working {
        one.finish().await?;
    }
    Ok(())
}

impl<'a> Cluster<'a> {
    async fn start(
        cache: &'a Path,
        name: &str,
        program: &Path,
        certificates: &'a Certificates,
    ) -> anyhow::Result<Self> {
        let flags = certificates.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--bcrypt-cost=4"]).collect();
        let members = Server::cluster(name, program, MEMBERS, &flags).await?;
        let cluster = Self { cache, certificates, members };
        cluster.etcdctl(USERS).await?;
        Ok(cluster)
    }

    /// The environment of a client: where the cluster is, and what gets it in.
    fn of(&self, user: &str) -> Environment {
        vec![
            ("ENDPOINTS", endpoints(&self.members)),
            ("CA", self.certificates.path("ca.pem")),
            ("CERT", self.certificates.path("client.pem")),
            ("KEY", self.certificates.path("client-key.pem")),
            ("USERNAME", user.to_owned()),
            ("PASSWORD", "pw".to_owned()),
        ]
    }

    fn of_etcdctl(&self) -> Environment {
        vec![
            ("ETCDCTL_ENDPOINTS", endpoints(&self.members)),
            ("ETCDCTL_CACERT", self.certificates.path("ca.pem")),
            ("ETCDCTL_CERT", self.certificates.path("client.pem")),
            ("ETCDCTL_KEY", self.certificates.path("client-key.pem")),
            ("ETCDCTL_USER", "root:pw".to_owned()),
        ]
    }

    async fn etcdctl(&self, lines: &str) -> anyhow::Result<String> {
        let output = etcdctl::bash(self.cache, &self.of_etcdctl(), lines).await?;
        ensure!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// kill -9 of the leader while the clients write; it comes back once each of them goes on without it.
    async fn lose_leader(&mut self, working: &mut [Working]) -> anyhow::Result<()> {
        self.progress(working).await.context("before")?;
        let leader = self.leader().await?;
        self.members[leader].kill();
        let killed = Instant::now();
        self.progress(working).await.context("after the leader was killed")?;
        println!("ok every client goes on without the leader ({} ms)", killed.elapsed().as_millis());
        self.members[leader].start()?;
        let url = self.members[leader].url();
        while self.etcdctl(&format!("ETCDCTL_ENDPOINTS={url} etcdctl get health")).await.is_err() {
            ensure!(
                killed.elapsed() < BOUND,
                "the killed leader does not come back:\n{}",
                self.members[leader].log_end()
            );
            sleep(INTERVAL).await;
        }
        self.progress(working).await.context("after the leader came back")?;
        sleep(AFTERWARDS.saturating_sub(killed.elapsed())).await;
        Ok(())
    }

    async fn leader(&self) -> anyhow::Result<usize> {
        let all: Value = serde_json::from_str(&self.etcdctl("etcdctl endpoint status -w json").await?)?;
        let leads = |one: &&Value| one["Status"]["leader"] == one["Status"]["header"]["member_id"];
        let leader = all.as_array().and_then(|all| all.iter().find(leads)).context("no leader")?;
        let is_it = |member: &Server| leader["Endpoint"] == member.url();
        self.members.iter().position(is_it).context("the leader is no member")
    }

    /// Waits until each client has written some more.
    async fn progress(&self, working: &mut [Working]) -> anyhow::Result<()> {
        for one in working {
            let (deadline, mut wanted) = (Instant::now() + BOUND, None);
            loop {
                ensure!(one.process.try_wait()?.is_none(), "{} has ended", one.name);
                // None while there is no leader.
                if let Ok(there) = self.written(one.name).await
                    && there >= *wanted.get_or_insert(there + PROGRESS)
                {
                    break;
                }
                ensure!(Instant::now() < deadline, "{} does not go on", one.name);
                sleep(INTERVAL).await;
            }
        }
        Ok(())
    }

    async fn written(&self, name: &str) -> anyhow::Result<u64> {
        let said = self.etcdctl(&format!("etcdctl get --prefix --count-only -w fields {name}/failover/key/")).await?;
        let count = said.lines().find_map(|line| line.strip_prefix("\"Count\" : ")).context("no count")?;
        Ok(count.parse()?)
    }
}

/// A client at work.
struct Working {
    name: &'static str,
    /// Whether it works until its standard input is closed.
    goes_on: bool,
    process: Child,
    input: Option<ChildStdin>,
    output: JoinHandle<()>,
}

impl Working {
    fn start(program: &Program, cluster: &Cluster<'_>) -> anyhow::Result<Self> {
        let (name, parts) = (program.name, program.secured);
        let mut command = program.command(cluster.cache, &cluster.of(name));
        command.args(parts).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("cannot run {name} (e2e/install clients)"))?;
        let mut lines = BufReader::new(process.stdout.take().context("piped")?).lines();
        let output = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                println!("{name}: {line}");
            }
        });
        let input = process.stdin.take();
        Ok(Self { name, goes_on: parts.contains(&"failover"), process, input, output })
    }

    /// Tells it that it is over, and waits for what it says of it.
    async fn finish(mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        let Ok(ended) = timeout(BOUND, self.process.wait()).await else { bail!("{} does not end", self.name) };
        let ended = ended?;
        self.output.await?;
        ensure!(ended.success(), "{} ended with {ended}", self.name);
        Ok(())
    }
}
