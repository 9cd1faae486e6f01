//! The command line.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

/// Runs Balsa clusters on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "balsa-operator", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reconcile RaftClusters (the default)
    Run(Run),
    /// Print the CustomResourceDefinition
    Crd,
}

/// How to run.
#[derive(Args, Debug)]
pub struct Run {
    /// Where /healthz and /metrics are served
    #[arg(long, env = "BALSA_OPERATOR_METRICS_ADDRESS", default_value = "0.0.0.0:8080")]
    pub metrics_address: SocketAddr,
    /// Only this namespace; all of them when absent
    #[arg(long, env = "BALSA_OPERATOR_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Namespace of the Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "balsa-system")]
    pub namespace: String,
    /// Name in the election
    #[arg(long, env = "POD_NAME", default_value = "balsa-operator")]
    pub identity: String,
}

impl Arguments {
    /// The command, `run` when none is given.
    pub fn command(self) -> Command {
        self.command.unwrap_or(Command::Run(self.run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_means_run() {
        let parsed = Arguments::try_parse_from(["balsa-operator", "--watch-namespace", "a"]).expect("parses");
        assert!(matches!(parsed.command(), Command::Run(run) if run.watch_namespace.as_deref() == Some("a")));
        let parsed = Arguments::try_parse_from(["balsa-operator", "crd"]).expect("parses");
        assert!(matches!(parsed.command(), Command::Crd));
    }
}
