//! `balsa-differential`: sends drawn requests to etcd and to Balsa and says where they differ.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use balsa_e2e::differential::generate::{Scope, sequence};
use balsa_e2e::differential::lockstep::{Difference, GivenUp, Outcome, Programs, run};
use balsa_e2e::differential::reply::Reply;
use balsa_e2e::differential::shrink::shrink;
use balsa_e2e::differential::side::Side;
use balsa_e2e::differential::step::Step;
use balsa_proto::etcdserverpb as pb;
use clap::Parser;
use futures::future::ready;
use futures::stream::{self, StreamExt, TryStreamExt};
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
    /// How many members Balsa's clusters have, which are asked in turn; by default three in each fourth sequence, else one.
    #[arg(long)]
    nodes: Option<usize>,
    /// How many sequences run at a time: each mostly waits, for the 100 ms after which etcd serves a watcher of the past.
    #[arg(long, env = "BALSA_PARALLEL", default_value_t = 8)]
    parallel: usize,
    /// How long a failing sequence is made smaller, in seconds.
    #[arg(long, default_value_t = 300)]
    shrink: u64,
}

impl Args {
    /// The programs of a sequence.
    fn programs(&self, balsa: &Path, seed: u64) -> Programs {
        let nodes = self.nodes.unwrap_or(if seed.is_multiple_of(4) { 3 } else { 1 });
        Programs { etcd: self.etcd.clone(), balsa: balsa.to_owned(), nodes }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let first = args.seed.unwrap_or_else(new_seed);
    let started = Instant::now();
    println!("differential: {} requests from seed {first}, against {}", args.requests, args.etcd.display());
    let inconclusive = Inconclusive::of(args.requests);
    if let Some(failure) = first_difference(first, &args, &inconclusive).await? {
        let Failure { seed, difference, .. } = &failure;
        println!("differential: seed {seed} differs (again with BALSA_SEED={seed})\n{difference}");
        report(failure, Duration::from_secs(args.shrink)).await?;
        return Ok(ExitCode::FAILURE);
    }
    println!(
        "differential: no difference in {} requests, {} s; {} inconclusive sequences ran again",
        args.requests,
        started.elapsed().as_secs(),
        inconclusive.count.load(Ordering::Relaxed)
    );
    Ok(ExitCode::SUCCESS)
}

/// Sequences that ended with a request which a server gave up. A few are a busy machine; more would hide what they do not
/// get to.
struct Inconclusive {
    count: AtomicUsize,
    allowed: usize,
}

impl Inconclusive {
    fn of(requests: usize) -> Self {
        Self { count: AtomicUsize::new(0), allowed: 2 + requests / SEQUENCE / 10 }
    }

    fn note(&self, seed: u64, given_up: GivenUp) -> anyhow::Result<()> {
        let who = if given_up.by_balsa_alone { "Balsa" } else { "etcd" };
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        println!(
            "differential: inconclusive ({count}): {who} gave up step {} of seed {seed}, which runs again",
            given_up.at
        );
        if count > self.allowed {
            bail!(
                "{count} sequences were inconclusive, {} may be: the machine is too busy, or a server hangs",
                self.allowed
            );
        }
        Ok(())
    }
}

/// A sequence on which the servers differ.
struct Failure {
    seed: u64,
    programs: Programs,
    steps: Vec<Step>,
    difference: Difference,
}

/// Runs sequences until all requests are sent or two servers differ; those that run meanwhile are given up.
async fn first_difference(first: u64, args: &Args, inconclusive: &Inconclusive) -> anyhow::Result<Option<Failure>> {
    let beside = std::env::current_exe()?.with_file_name("balsa");
    let balsa = args.balsa.as_ref().unwrap_or(&beside);
    let range_stream = has_range_stream(&args.etcd).await?;
    let lengths = (0..args.requests).step_by(SEQUENCE).map(|from| SEQUENCE.min(args.requests - from));
    let outcomes = stream::iter((first..).zip(lengths)).map(|(seed, length)| {
        let programs = args.programs(balsa, seed);
        let scope = Scope { range_stream, alone: programs.nodes == 1 };
        one(programs, seed, sequence(seed, length, scope), inconclusive)
    });
    let failures = outcomes.buffer_unordered(args.parallel.max(1)).try_filter_map(|failure| ready(Ok(failure)));
    pin!(failures).try_next().await
}

/// Runs a sequence until it comes to an end. A request that Balsa gives up twice and etcd answers is a failure.
async fn one(
    programs: Programs,
    seed: u64,
    steps: Vec<Step>,
    inconclusive: &Inconclusive,
) -> anyhow::Result<Option<Failure>> {
    let mut before = None;
    loop {
        let given_up = match run(&programs, &steps).await.with_context(|| format!("seed {seed}"))? {
            Outcome::Same => return Ok(None),
            Outcome::Differs(difference) => return Ok(Some(Failure { seed, programs, steps, difference })),
            Outcome::Inconclusive(given_up) => given_up,
        };
        if given_up.by_balsa_alone && before == Some(given_up) {
            let step = steps.get(given_up.at).map(ToString::to_string).unwrap_or_default();
            bail!("seed {seed}: twice Balsa gave up step {}, which etcd answers: {step}", given_up.at);
        }
        inconclusive.note(seed, given_up)?;
        before = Some(given_up);
    }
}

async fn has_range_stream(etcd: &Path) -> anyhow::Result<bool> {
    let step = Step::RangeStream(pb::RangeRequest { key: "a".into(), ..Default::default() });
    let reply = Side::start("etcd", etcd, 1, true, false).await?.send(0, &step).await;
    Ok(!matches!(reply, Reply::Failed { code: Code::Unimplemented, .. }))
}

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Milliseconds are short enough to be typed again.
    now.as_millis() as u64
}

/// Shrinks and prints.
async fn report(failure: Failure, patience: Duration) -> anyhow::Result<()> {
    let Failure { programs, mut steps, difference, .. } = failure;
    steps.truncate(difference.at + 1);
    let programs = &programs;
    let differs = |steps: Vec<Step>| async move { Ok(matches!(run(programs, &steps).await?, Outcome::Differs(_))) };
    let small = shrink(steps, patience, differs).await?;
    println!(
        "\nthe small case, {} steps (revisions around 2^48 stand for the current one, around 2^52 for the compacted one):",
        small.len()
    );
    for step in &small {
        println!("  {step}");
    }
    match run(programs, &small).await? {
        Outcome::Differs(difference) => println!("{difference}"),
        _ => println!("it does not differ every time: run the whole sequence again"),
    }
    Ok(())
}
