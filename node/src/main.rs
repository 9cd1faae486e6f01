//! Wires one node: configuration, logging, engine, listeners, signals. It decides nothing else.

use std::sync::Arc;

use balsa_node::api::server::{Listeners, Services};
use balsa_node::config::{Config, Invocation, logging};
use balsa_node::engine::{Exit, Node, NodeConfig};
use balsa_node::process::{StopSignals, Termination, end_by};
use balsa_node::service::metrics::Metrics;
use balsa_node::service::{Member, Settings, health, stop};
use tonic::service::Routes;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let config = match Config::load(std::env::args(), std::env::vars()) {
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Print(text)) => return print!("{text}"),
        Err(error) => Termination::failed(error.exit_code(), error.to_string()).end(),
    };
    logging::start(&config);
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(&config)),
        Err(error) => Err(failed(error)),
    };
    match ended {
        Ok(signal) => end_by(signal),
        Err(termination) => termination.end(),
    }
}

/// Runs until a signal, which is the answer, or until the node cannot go on.
async fn run(config: &Config) -> Result<i32, Termination> {
    let mut signals = StopSignals::listen().map_err(failed)?;
    let node = Node::open(NodeConfig::from(config)).await.map_err(exited)?;
    let member = Arc::new(Member::new(node.clone(), Settings::from(config)));
    let metrics = Arc::new(Metrics::new().map_err(failed)?);
    let services = Services { member: member.clone(), metrics, max_request_bytes: config.max_request_bytes };

    let mut listeners = Listeners::default();
    listeners.serve(&config.listen_metrics_urls, &services.metrics_routes()).map_err(failed)?;
    listeners.serve(&config.listen_peer_urls, &services.peer_routes(Routes::default())).map_err(failed)?;
    let client = services.client_routes(Routes::default()).map_err(failed)?;
    listeners.serve(&config.listen_client_urls, &client).map_err(failed)?;
    tokio::spawn(health::announce(member.clone()));

    let signal = tokio::select! {
        signal = signals.next() => signal,
        exit = node.failed() => return Err(exited(exit)),
        what = listeners.failed() => return Err(failed(what)),
    };
    tokio::select! {
        () = stop::drain(&member, config.drain_delay) => {}
        // A second signal cuts the delay short, never the order of the steps.
        _ = signals.next() => member.stopping().cancel(),
    }
    listeners.close().await;
    if let Ok(handle) = member.handle() {
        handle.stop().await;
    }
    Ok(signal)
}

fn failed(error: impl ToString) -> Termination {
    Termination::failed(1, error.to_string())
}

fn exited(exit: Exit) -> Termination {
    let Exit { code, cluster_id, raft_id, incarnation, message } = exit;
    let reason = Termination::reason_of(code);
    Termination { code: code as i32, reason, cluster_id, raft_id, incarnation, message }
}
