//! `balsa-e2e list` names the scenarios; `balsa-e2e run [NAME...]` runs them, without a name all but the long ones.

use std::process::ExitCode;

use balsa_e2e::report::Report;
use balsa_e2e::{failover, scenarios};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "End-to-end scenarios of Balsa on the Kubernetes that KUBECONFIG names")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the names and what each promises.
    List,
    /// Measure how long writes pause when the leader is lost.
    Failover {
        /// Losses of each kind.
        #[arg(long, default_value_t = 20)]
        times: usize,
        /// On local processes instead of Kubernetes: the servers to compare, each as NAME=PROGRAM.
        #[arg(long, value_name = "NAME=PROGRAM")]
        local: Vec<failover::local::Side>,
    },
    /// Measure how long writes pause when a cluster is grown, shrunk and rolled.
    Planned {
        /// Rounds of 3 → 5 → 3 and a roll.
        #[arg(long, default_value_t = 20)]
        times: usize,
    },
    /// Run the named scenarios, or all but the long ones.
    Run {
        /// Names as `list` prints them; without one all but the long ones.
        names: Vec<String>,
        /// Leave the namespaces of failed scenarios for a look.
        #[arg(long)]
        keep_failed: bool,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    // Two providers are compiled in nowhere, but rustls wants to be told.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Args::parse().command {
        Command::List => {
            for scenario in scenarios::ALL.iter().chain(scenarios::LONG) {
                println!("{:20} {}", scenario.name, scenario.promise);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Failover { times, local } => {
            if local.is_empty() {
                failover::measure(times).await?;
            } else {
                failover::local::measure(times, local).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Planned { times } => {
            failover::planned::measure(times).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run { names, keep_failed } => {
            let mut report = Report::default();
            for scenario in scenarios::named(&names)? {
                report.run(scenario, keep_failed).await;
            }
            Ok(report.close())
        }
    }
}
