//! The operator's process: wires the parts, and ends them in order.

use std::sync::Arc;

use balsa_operator::arguments::{Arguments, Command, Run};
use balsa_operator::client::Clients;
use balsa_operator::lanes::Lanes;
use balsa_operator::lease::{self, Seat};
use balsa_operator::members::Network;
use balsa_operator::pulse::Pulse;
use balsa_operator::{controller, health, metrics::Metrics, signals};
use clap::Parser;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command() {
        Command::Run(run) => operate(run).await,
        Command::Crd => {
            print!("{}", balsa_crds::raft_cluster_yaml()?);
            Ok(())
        }
    }
}

async fn operate(run: Run) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().json().with_span_list(false).with_env_filter(filter).init();
    // An error would only say that a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Clients { watches, of_passes: client } = Clients::infer().await?;
    let (metrics, stop) = (Arc::new(Metrics::new()?), signals::stop()?);
    let serving = tokio::spawn(health::serve(run.metrics_address, metrics.clone(), stop.clone()));
    let mut seat = Seat::stand(watches.clone(), &run.namespace, &run.identity).await?;
    let reporter = Reporter { controller: "balsa-operator".into(), instance: Some(run.identity.clone()) };
    let events = Recorder::new(client.clone(), reporter);
    let pulse = Arc::new(Pulse::new(lease::SLEEP_MAX));
    let steady = pulse.clone();
    let context = Arc::new(controller::Context {
        client,
        events,
        metrics,
        dial: Box::new(Network),
        lanes: Lanes::default(),
        failures: balsa_operator::failures::Memory::default(),
        clock: controller::system_clock(),
        leads: Box::new(move || steady.is_steady()),
    });
    let result = lead(&mut seat, context, watches, &run, &pulse, &stop).await;
    stop.cancel();
    // Only now may another operator begin: every pass has ended.
    seat.release().await?;
    serving.await??;
    result
}

async fn lead(
    seat: &mut Seat,
    context: Arc<controller::Context>,
    watches: Client,
    run: &Run,
    pulse: &Pulse,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        won = seat.won() => won?,
        () = stop.cancelled() => return Ok(()),
    }
    pulse.begin();
    tracing::info!(identity = run.identity, "leading");
    tokio::select! {
        () = controller::run(context, watches, run.watch_namespace.as_deref(), stop.clone()) => Ok(()),
        () = seat.lost() => anyhow::bail!("the lease is lost: another operator leads"),
        () = pulse.beat() => anyhow::bail!("the process was asleep: another operator may lead"),
    }
}
