//! Uses a cluster as programs in Rust do, through the crate etcd-client. It takes the endpoints from ENDPOINTS, what it
//! shows and trusts from CA, CERT, KEY, USERNAME and PASSWORD if they are there, and prints a line for each part that works;
//! the first that does not ends it. The parts that need a user or somebody who kills the leader are done when they are named.

mod failover;
mod parts;

use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::Context;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::time::timeout;

/// How long a part may take.
const BOUND: Duration = Duration::from_secs(120);

const PARTS: [&str; 6] = ["kv", "watch", "lease", "lock", "election", "maintenance"];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let named: Vec<String> = env::args().skip(1).collect();
    let names: Vec<&str> = if named.is_empty() { PARTS.to_vec() } else { named.iter().map(String::as_str).collect() };
    let endpoints = env::var("ENDPOINTS")?;
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    let client = Client::connect(&endpoints, Some(options()?)).await?;
    for name in names {
        let started = Instant::now();
        timeout(BOUND, run(name, client.clone(), endpoints.len()))
            .await
            .context(name.to_owned())?
            .context(name.to_owned())?;
        println!("ok {name} ({} ms)", started.elapsed().as_millis());
    }
    Ok(())
}

async fn run(name: &str, client: Client, members: usize) -> anyhow::Result<()> {
    match name {
        "kv" => parts::kv(client).await,
        "watch" => parts::watch(client).await,
        "lease" => parts::lease(client).await,
        "lock" => parts::lock(client).await,
        "election" => parts::election(client).await,
        "maintenance" => parts::maintenance(client, members).await,
        "denied" => parts::denied(client).await,
        "failover" => failover::run(client).await,
        other => anyhow::bail!("no part {other}"),
    }
}

fn options() -> anyhow::Result<ConnectOptions> {
    let mut options = ConnectOptions::new();
    if let (Ok(name), Ok(password)) = (env::var("USERNAME"), env::var("PASSWORD")) {
        options = options.with_user(name, password).with_auto_token_refresh(true);
    }
    if let Ok(ca) = env::var("CA") {
        let file = |variable| anyhow::Ok(fs::read(env::var(variable)?)?);
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(fs::read(ca)?));
        options = options.with_tls(tls.identity(Identity::from_pem(file("CERT")?, file("KEY")?)));
    }
    Ok(options)
}
