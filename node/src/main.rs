//! Wires one node: configuration, logging, engine, listeners, signals. It decides nothing else.

use std::sync::Arc;
use std::time::Duration;

use balsa_node::api::server::{Closing, Listeners, Services};
use balsa_node::api::snapshot_command;
use balsa_node::config::hot::HotConfig;
use balsa_node::config::{Config, Invocation, logging};
use balsa_node::domain::corruption::AtStart;
use balsa_node::engine::Node;
use balsa_node::engine::failpoint;
use balsa_node::engine::fatal::{ExitCode, Fatal};
use balsa_node::process::{StopSignals, Termination, end_by};
use balsa_node::service::metrics::Metrics;
use balsa_node::service::settings::SettingsFile;
use balsa_node::service::{Member, auto_compaction, corruption, settings, stop};
use balsa_node::storage::marker;
use balsa_node::transport::tonic::Dialer;
use balsa_node::wiring;

/// How long the process, before it ends, waits for calls that are in the store.
const LAST_CALLS: Duration = Duration::from_secs(5);

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(snapshot_command::NAME) {
        return work_on_snapshot();
    }
    let config = match Config::load(std::env::args(), std::env::vars()) {
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Print(text)) => return print!("{text}"),
        Err(error) => Termination::failed(error.exit_code(), error.to_string()).end(),
    };
    let (hot, left_out) = match settings::at_start(&config) {
        Ok(started) => started,
        Err(error) => Termination::failed(error.exit_code(), error.to_string()).end(),
    };
    let level = match logging::start(&config, &hot.load().values.log_level) {
        Ok(level) => level,
        Err(error) => failed(error).end(),
    };
    if let Some(what) = left_out {
        tracing::warn!("{what}");
    }
    if let Some(text) = std::env::var("BALSA_FAILPOINTS").ok().filter(|text| !text.is_empty()) {
        match failpoint::arm(&text) {
            Ok(()) => tracing::warn!(failpoints = text, "failpoints are armed: this process is meant to fail"),
            Err(error) => Termination::failed(2, format!("BALSA_FAILPOINTS: {error}")).end(),
        }
    }
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let ended = runtime.block_on(async {
                tokio::spawn(level.follow(hot.clone()));
                if let Some(file) = config.file.clone() {
                    tokio::spawn(SettingsFile::new(file, hot.clone(), config.data_dir.clone()).follow());
                }
                run(&config, &hot).await
            });
            // What still works for a client may hang on the disk that is the reason for the end.
            runtime.shutdown_timeout(LAST_CALLS);
            ended
        }
        Err(error) => Err(failed(error)),
    };
    match ended {
        Ok(signal) => end_by(signal),
        Err(termination) => termination.of(marker::read(&config.data_dir).ok().flatten().as_ref()).end(),
    }
}

/// Answers on stdout, or says on stderr why not.
fn work_on_snapshot() {
    match snapshot_command::run(std::env::args().skip(2)) {
        Ok(text) => print!("{text}"),
        Err(failed) => {
            eprintln!("Error: {}", failed.message);
            std::process::exit(failed.exit_code);
        }
    }
}

/// Runs until a signal, which is the answer, or until the node cannot go on.
async fn run(config: &Config, hot: &Arc<HotConfig>) -> Result<i32, Termination> {
    let mut signals = StopSignals::listen().map_err(failed)?;
    let (fatal, metrics) = (Fatal::default(), Arc::new(Metrics::of(config).map_err(failed)?));
    let (client_tls, peer_tls) =
        (wiring::client_tls(config).map_err(failed)?, wiring::peer_tls(config).map_err(failed)?);
    let dialer = Dialer::new(peer_tls.clone());
    let node = tokio::select! {
        node = Node::open(wiring::engine(config, hot, dialer.clone()), fatal.clone()) => node.map_err(|error| {
            Termination::typed(error.exit_code(), error.reason(), error.to_string())
        })?,
        signal = signals.next() => return Ok(signal),
    };
    let settings = wiring::service(config, hot).map_err(failed)?;
    let member = Arc::new(Member::new(node.clone(), settings));
    tokio::spawn(auto_compaction::run(member.clone(), wiring::retention(hot)));
    tokio::select! {
        checked = check_data(&member, config) => checked?,
        signal = signals.next() => return Ok(signal),
    }
    let services = Services::new(member.clone(), metrics, config, dialer);

    let mut listeners = Listeners::new(config.http2, config.reuse_port);
    let (client, client_http) = services.client_routes().map_err(failed)?;
    let (client_tls, peer_tls) = (client_tls.as_ref(), peer_tls.as_ref());
    let (metrics, peer) = (services.metrics_routes(), services.peer_routes());
    listeners.serve(&config.listen_metrics_urls, client_tls, &metrics, Closing::AtExit).map_err(failed)?;
    listeners.serve(&config.listen_peer_urls, peer_tls, &peer, Closing::AtExit).map_err(failed)?;
    listeners.serve(&config.listen_client_http_urls, client_tls, &client_http, Closing::Gracefully).map_err(failed)?;
    listeners.serve(&config.listen_client_urls, client_tls, &client, Closing::Gracefully).map_err(failed)?;
    node.listening();

    let signal = tokio::select! {
        signal = signals.next() => signal,
        ending = fatal.ended() => {
            return Err(Termination::typed(ending.code as i32, &Termination::reason_of(ending.code), ending.message));
        }
        what = listeners.failed() => return Err(failed(what)),
    };
    tokio::select! {
        () = stop::drain(&member, config.drain_delay) => {}
        // A second signal cuts the delay short, never the order of the steps.
        _ = signals.next() => member.stopping().cancel(),
    }
    listeners.close().await;
    node.stop().await;
    Ok(signal)
}

/// Starts the comparisons of the members' data; the first one is waited for, because it decides whether to serve at all.
async fn check_data(member: &Arc<Member>, config: &Config) -> Result<(), Termination> {
    if config.gates["InitialCorruptCheck"] {
        let message = "found data inconsistency with peers";
        match corruption::at_first(member).await {
            AtStart::Same => {}
            AtStart::Wrong => {
                let code = ExitCode::ExitCorrupt;
                return Err(Termination::typed(code as i32, &Termination::reason_of(code), message));
            }
            // To call this disk corrupt would be to have it replaced, perhaps by what is.
            AtStart::Differs => return Err(failed(message)),
        }
    }
    tokio::spawn(corruption::run(member.clone(), config.corrupt_check_time));
    if config.gates["CompactHashCheck"] {
        tokio::spawn(corruption::run_after_compactions(member.clone(), config.compact_hash_check_time));
    }
    Ok(())
}

fn failed(error: impl ToString) -> Termination {
    Termination::failed(1, error.to_string())
}
