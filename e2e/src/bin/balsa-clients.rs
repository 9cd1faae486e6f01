//! `balsa-clients [NAME...]`: real clients against a local cluster of three.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use balsa_e2e::clients::{PROGRAMS, endpoints, etcdctl, patroni, secured};
use balsa_e2e::local::Server;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Members of the cluster.
const MEMBERS: usize = 3;

/// Each alone on a cluster of its own.
const NAMES: [&str; 6] = ["etcdctl", "rust", "go", "node", "java", "patroni"];

/// And all of these at once.
const TOGETHER: &str = "users, TLS and the death of the leader";
const SECURED: [&str; 6] = ["etcdctl", "rust", "go", "node", "java", "python"];

#[derive(Parser)]
#[command(about = "Runs real clients against local clusters of three, all without a name")]
struct Args {
    /// Which: etcdctl, rust, go, node, java, patroni, python.
    names: Vec<String>,
    /// Where `e2e/install` puts programs.
    #[arg(long, env = "BALSA_CACHE")]
    cache: Option<PathBuf>,
    /// The server; the Balsa beside this program by default.
    #[arg(long)]
    server: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let home = || std::env::var("HOME").map(|home| Path::new(&home).join(".cache/balsa"));
    let cache = match args.cache.clone() {
        Some(cache) => cache,
        None => home().context("neither BALSA_CACHE nor HOME is set")?,
    };
    let server = match args.server.clone() {
        Some(server) => server,
        None => std::env::current_exe()?.with_file_name("balsa"),
    };
    let is_wanted = |name: &&str| args.names.is_empty() || args.names.iter().any(|wanted| wanted == name);
    let secured: Vec<&str> = SECURED.into_iter().filter(is_wanted).collect();
    let (mut passed, mut failed) = (0, 0);
    for name in NAMES.into_iter().filter(is_wanted).chain((!secured.is_empty()).then_some(TOGETHER)) {
        let started = Instant::now();
        println!("--- {name}");
        let ended = tokio::select! {
            ended = secured::run(&cache, &server, &secured), if name == TOGETHER => ended,
            ended = run(name, &cache, &server), if name != TOGETHER => ended,
            told = told_to_end() => return told.map(|()| ExitCode::FAILURE),
        };
        match ended {
            Ok(()) => {
                println!("--- {name}: passed, {} s", started.elapsed().as_secs());
                passed += 1;
            }
            Err(error) => {
                println!("--- {name}: FAILED: {error:#}");
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Resolves when the process is told to end. All that a run has started ends as the run is dropped.
async fn told_to_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        told = tokio::signal::ctrl_c() => Ok(told?),
        _ = terminate.recv() => Ok(()),
    }
}

async fn run(name: &str, cache: &Path, server: &Path) -> anyhow::Result<()> {
    // The Go client looks at what becomes of clients that ping, without the minutes that it takes by default.
    let more: &[&str] = if name == "go" { &["--grpc-keepalive-min-time=200ms"] } else { &[] };
    let mut members = Server::cluster("server", server, MEMBERS, more).await?;
    let cluster = endpoints(&members);
    match name {
        "etcdctl" => {
            let etcd = Server::cluster("etcd", &cache.join("bin/etcd"), MEMBERS, &[]).await?;
            let of = |endpoints| vec![("ETCDCTL_ENDPOINTS", endpoints)];
            let lines = etcdctl::compare(cache, &of(endpoints(&etcd)), &of(cluster)).await?;
            println!("{lines} commands");
            Ok(())
        }
        "patroni" => patroni::run(cache, &mut members).await,
        other => {
            let program = PROGRAMS.iter().find(|program| program.name == other).context("no such client")?;
            program.run(cache, &cluster).await
        }
    }
}
