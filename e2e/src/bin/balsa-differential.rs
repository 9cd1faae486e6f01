//! `balsa-differential`: sends drawn requests to etcd and to Balsa and says where they differ.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use balsa_e2e::differential::generate::sequence;
use balsa_e2e::differential::lockstep::{Difference, Programs, run};
use balsa_e2e::differential::reply::Reply;
use balsa_e2e::differential::shrink::shrink;
use balsa_e2e::differential::side::Side;
use balsa_e2e::differential::step::Step;
use clap::Parser;
use tonic::Code;

/// Requests of one sequence, which has processes of its own. Longer ones find little more and shrink slowly.
const SEQUENCE: usize = 1000;

#[derive(Parser)]
#[command(about = "Sends the same requests to an etcd and to a Balsa and compares all that comes back")]
struct Args {
    /// The etcd to compare with.
    #[arg(long)]
    etcd: PathBuf,
    /// The Balsa; the one beside this program by default.
    #[arg(long)]
    balsa: Option<PathBuf>,
    /// How many requests.
    #[arg(long, env = "BALSA_REQUESTS", default_value_t = 10_000)]
    requests: usize,
    /// Where the drawing begins; a new one each time by default.
    #[arg(long, env = "BALSA_SEED")]
    seed: Option<u64>,
    /// How long a failing sequence is made smaller, in seconds.
    #[arg(long, default_value_t = 300)]
    shrink: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let beside = std::env::current_exe()?.with_file_name("balsa");
    let programs = Programs { etcd: args.etcd.clone(), balsa: args.balsa.clone().unwrap_or(beside) };
    let first = args.seed.unwrap_or_else(new_seed);
    let started = Instant::now();
    let leases = serves_leases(&programs.balsa).await?;
    if !leases {
        println!("differential: this Balsa serves no leases, so none are drawn");
    }
    println!("differential: {} requests from seed {first}, against {}", args.requests, args.etcd.display());
    for (index, from) in (0..args.requests).step_by(SEQUENCE).enumerate() {
        let seed = first.wrapping_add(index as u64);
        let steps = sequence(seed, SEQUENCE.min(args.requests - from), leases);
        if let Some(difference) = run(&programs, &steps).await.with_context(|| format!("seed {seed}"))? {
            println!("differential: seed {seed} differs (again with BALSA_SEED={seed})\n{difference}");
            report(&programs, steps, &difference, Duration::from_secs(args.shrink)).await?;
            return Ok(ExitCode::FAILURE);
        }
    }
    println!("differential: no difference in {} requests, {} s", args.requests, started.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

async fn serves_leases(balsa: &Path) -> anyhow::Result<bool> {
    let reply = Side::start("balsa", balsa).await?.send(&Step::LeaseLeases).await;
    Ok(!matches!(reply, Reply::Failed { code: Code::Unimplemented, .. }))
}

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Milliseconds are short enough to be typed again.
    now.as_millis() as u64
}

/// Shrinks and prints.
async fn report(
    programs: &Programs,
    mut steps: Vec<Step>,
    difference: &Difference,
    patience: Duration,
) -> anyhow::Result<()> {
    steps.truncate(difference.at + 1);
    let small = shrink(steps, patience, |steps| async move { Ok(run(programs, &steps).await?.is_some()) }).await?;
    println!(
        "\nthe small case, {} steps (revisions around 2^48 stand for the current one, around 2^52 for the compacted one):",
        small.len()
    );
    for step in &small {
        println!("  {step}");
    }
    match run(programs, &small).await? {
        Some(difference) => println!("{difference}"),
        None => println!("it does not differ every time: run the whole sequence again"),
    }
    Ok(())
}
