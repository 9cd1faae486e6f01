//! The operator's process: reads the command line, wires the parts, ends them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use balsa_operator::{controller, health, lease::Seat, metrics::Metrics};
use clap::{Args, Parser, Subcommand};
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Longest time that one call of a pass may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(name = "balsa-operator", version, about = "Runs Balsa clusters on Kubernetes")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile RaftClusters (the default)
    Run(Run),
    /// Print the CustomResourceDefinition
    Crd,
}

#[derive(Args)]
struct Run {
    /// Where /healthz and /metrics are served
    #[arg(long, env = "BALSA_OPERATOR_METRICS_ADDRESS", default_value = "0.0.0.0:8080")]
    metrics_address: SocketAddr,
    /// Only this namespace; all of them when absent
    #[arg(long, env = "BALSA_OPERATOR_WATCH_NAMESPACE")]
    watch_namespace: Option<String>,
    /// Namespace of the Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "balsa-system")]
    namespace: String,
    /// Name in the election
    #[arg(long, env = "POD_NAME", default_value = "balsa-operator")]
    identity: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Crd) => {
            print!("{}", balsa_crds::raft_cluster_yaml()?);
            Ok(())
        }
        Some(Command::Run(run)) => operate(run).await,
        None => operate(arguments.run).await,
    }
}

async fn operate(run: Run) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    // An error would only say that a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config::infer().await.context("no way to the Kubernetes API: set KUBECONFIG or run in a pod")?;
    let mut bounded = config.clone();
    (bounded.read_timeout, bounded.default_retry) = (Some(CALL_TIMEOUT), false);
    let (watches, client) = (Client::try_from(config)?, Client::try_from(bounded)?);
    let metrics = Arc::new(Metrics::new()?);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(health::serve(run.metrics_address, metrics.clone(), stop.clone()));
    let mut seat = Seat::stand(watches.clone(), &run.namespace, &run.identity).await?;
    let reporter = Reporter { controller: "balsa-operator".into(), instance: Some(run.identity.clone()) };
    let events = Recorder::new(client.clone(), reporter);
    let context = Arc::new(controller::Context { client, events, metrics });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let work = async {
        seat.won().await?;
        tracing::info!(identity = run.identity, "leading");
        tokio::select! {
            () = controller::run(context, watches, run.watch_namespace.as_deref(), stop.clone()) => Ok(()),
            () = seat.lost() => Err(anyhow::anyhow!("the lease is lost: another operator leads")),
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop.cancel();
    seat.release().await?;
    serving.await??;
    result
}
