//! Wires one node: configuration, logging, engine, listeners, signals. It decides nothing else.

use std::sync::Arc;

use balsa_node::api::gofail_http;
use balsa_node::config::hot::HotConfig;
use balsa_node::config::{Config, Invocation, logging};
use balsa_node::engine::{failpoint, fatal::Fatal, gofail};
use balsa_node::process::{self, StopSignals, Termination, end_by, failed};
use balsa_node::service::{settings, stop};
use balsa_node::storage::marker::{self, Owner};
use balsa_node::transport::tonic::Dialer;
use balsa_node::wiring;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if process::ran_no_node(&arguments) {
        return;
    }
    let config = match Config::load(arguments, std::env::vars()) {
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Print(text)) => return print!("{text}"),
        Err(error) => Termination::from(error).end(),
    };
    match start(&config) {
        Ok(signal) => end_by(signal),
        Err(termination) => termination.of(marker::read(&config.data_dir).ok().and_then(Owner::marker).as_ref()).end(),
    }
}

/// What comes before the node, and stays beside it.
fn start(config: &Config) -> Result<i32, Termination> {
    let (hot, left_out) = settings::at_start(config)?;
    let level = logging::start(config, &hot.load().values.log_level).map_err(failed)?;
    if let Some(what) = left_out {
        tracing::warn!("{what}");
    }
    failpoint::arm_from_environment().map_err(|error| Termination::failed(2, error))?;
    gofail::arm_from_environment().map_err(failed)?;
    process::block_on(async {
        gofail_http::serve_from_environment().await.map_err(failed)?;
        tokio::spawn(level.follow(hot.clone()));
        tokio::spawn(settings::follow_file(config.file.clone(), hot.clone(), config.data_dir.clone()));
        run(config, &hot).await
    })
}

/// Runs until a signal, which is the answer, or until the node cannot go on.
async fn run(config: &Config, hot: &Arc<HotConfig>) -> Result<i32, Termination> {
    let (mut signals, fatal) = (StopSignals::listen().map_err(failed)?, Fatal::default());
    let tls = wiring::PortTls::of(config).map_err(failed)?;
    let dialer = Dialer::new(tls.peer.clone());
    let member = tokio::select! {
        member = wiring::member(config, hot, &dialer, &fatal) => member?,
        signal = signals.next() => return Ok(signal),
    };
    let tracing = wiring::tracing(config).map_err(failed)?;
    let mut listeners = wiring::listen(config, &member, &dialer, &tls, tracing.as_ref()).map_err(failed)?;
    member.node().listening();
    let signal = tokio::select! {
        signal = signals.next() => signal,
        ending = fatal.ended() => return Err(ending.into()),
        what = listeners.failed() => return Err(failed(what)),
    };
    let stopped = async {
        stop::drain_until(&member, config.drain_delay, signals.next()).await;
        listeners.close().await;
        if let Some(tracing) = &tracing {
            tracing.flush().await;
        }
        member.node().stop().await;
    };
    tokio::select! {
        () = stopped => Ok(signal),
        ending = fatal.ended() => Err(ending.into()),
    }
}
