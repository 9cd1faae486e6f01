//! Runs scenarios one after another and says how each went, in a form that people and CI read.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::scenarios::Scenario;

/// No scenario may take longer; one that does has failed.
const LIMIT: Duration = Duration::from_secs(420);

/// What came of the scenarios so far.
#[derive(Default)]
pub struct Report {
    passed: usize,
    failed: Vec<&'static str>,
}

impl Report {
    /// Runs one scenario in a fresh namespace and removes the namespace afterwards.
    pub async fn run(&mut self, scenario: &'static Scenario, keep_failed: bool) {
        println!("--- {}: {}", scenario.name, scenario.promise);
        let started = Instant::now();
        let outcome = attempt(scenario, keep_failed).await;
        let took = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("--- {}: ok, {took:.1} s", scenario.name);
            }
            Err(error) => {
                self.failed.push(scenario.name);
                println!("--- {}: FAILED after {took:.1} s: {error:#}", scenario.name);
            }
        }
    }

    /// Prints the closing line.
    pub fn close(self) -> ExitCode {
        if !self.failed.is_empty() {
            println!("failed: {}", self.failed.join(", "));
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

async fn attempt(scenario: &'static Scenario, keep_failed: bool) -> anyhow::Result<()> {
    let cluster = Cluster::in_fresh_namespace(scenario.name).await?;
    let outcome = match tokio::time::timeout(LIMIT, (scenario.run)(cluster.clone())).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("not done within {LIMIT:?}")),
    };
    if outcome.is_err() {
        cluster.explain().await;
    }
    if outcome.is_ok() || !keep_failed {
        cluster.remove_namespace().await;
    }
    outcome
}
