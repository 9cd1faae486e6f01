//! The process: signals in, exit codes and the termination message out. Only `main` and `wiring` use it.

mod slice;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use balsa_proto::log::Marker;
use balsa_proto::node::ExitCode;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::snapshot_command;
use crate::config::{ConfigError, logging};
use crate::engine::StartError;
use crate::engine::fatal::Ending;
use crate::engine::supervisor::tell_ready;
use crate::proxy;
use crate::service::corruption::Inconsistent;
use crate::transport::open_files;

/// Where Kubernetes reads the termination message, unless `TERMINATION_LOG` names another file.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The reason of an end by a command line that cannot be read.
const USAGE: &str = "Usage";

/// How long the process, before it ends, waits for calls that are in the store.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// SIGTERM and SIGINT.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Takes the two signals over from now on.
    ///
    /// # Errors
    /// The runtime cannot register them.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next signal's number.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SIGTERM,
            _ = self.interrupt.recv() => SIGINT,
        }
    }
}

/// Why and as what the process ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Termination {
    /// The exit code.
    pub code: i32,
    /// The name of the reason: a name of `ExitCode` without its prefix, `Usage` or `Failed`.
    pub reason: String,
    /// Of the disk; 0 when it has no marker.
    pub cluster_id: u64,
    /// Of the disk.
    pub raft_id: u64,
    /// Of the disk.
    pub incarnation: u64,
    /// What happened and what to do.
    pub message: String,
}

impl Termination {
    /// A failure without a typed code.
    pub fn failed(code: i32, message: impl Into<String>) -> Self {
        Self::typed(code, if code == 2 { USAGE } else { "Failed" }, message)
    }

    /// A failure with a code and a reason of its own.
    pub fn typed(code: i32, reason: &str, message: impl Into<String>) -> Self {
        let reason = reason.to_owned();
        Self { code, reason, cluster_id: 0, raft_id: 0, incarnation: 0, message: message.into() }
    }

    /// The name of a typed exit code as a reason: `EXIT_DISK_LOST` is `DiskLost`.
    pub fn reason_of(code: ExitCode) -> String {
        let words = code.as_str_name().trim_start_matches("EXIT_").split('_');
        words.map(|word| word[..1].to_owned() + &word[1..].to_lowercase()).collect()
    }

    /// One line of JSON. Ids are hex strings, because 64-bit numbers lose precision in JSON.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "reason": self.reason,
            "exitCode": self.code,
            "clusterId": format!("{:x}", self.cluster_id),
            "raftId": format!("{:x}", self.raft_id),
            "incarnation": format!("{:x}", self.incarnation),
            "message": self.message,
        })
        .to_string()
    }

    /// With what the disk says of itself.
    pub fn of(mut self, marker: Option<&Marker>) -> Self {
        if let Some(marker) = marker {
            self.cluster_id = marker.cluster_id;
            self.raft_id = marker.member_id;
            self.incarnation = marker.incarnation;
        }
        self
    }

    /// Says it on stderr and in the termination log, and ends the process.
    pub fn end(self) -> ! {
        // A person or a script has mistyped, and looks for the plain words, as etcd says them.
        let plain = if self.reason == USAGE { format!("{}\n", self.message) } else { String::new() };
        // Where nobody can be told, the code still says it.
        let _ = writeln!(io::stderr(), "{plain}{}", self.to_json());
        let named = env::var_os("TERMINATION_LOG").map(PathBuf::from);
        let log = named.unwrap_or_else(|| PathBuf::from(TERMINATION_LOG));
        // The default file is only there under Kubernetes; it is never created elsewhere.
        if env::var_os("TERMINATION_LOG").is_some() || log.exists() {
            let _ = fs::write(log, self.to_json());
        }
        exit_now(self.code)
    }
}

/// A failure without a type of its own.
pub fn failed(error: impl ToString) -> Termination {
    Termination::failed(1, error.to_string())
}

impl From<ConfigError> for Termination {
    fn from(error: ConfigError) -> Self {
        Self::failed(error.exit_code(), error.to_string())
    }
}

impl From<StartError> for Termination {
    fn from(error: StartError) -> Self {
        Self::typed(error.exit_code(), error.reason(), error.to_string())
    }
}

impl From<Ending> for Termination {
    fn from(ending: Ending) -> Self {
        Self::typed(ending.code as i32, &Self::reason_of(ending.code), ending.message)
    }
}

impl From<Inconsistent> for Termination {
    fn from(found: Inconsistent) -> Self {
        match found {
            Inconsistent::Own => Ending { code: ExitCode::ExitCorrupt, message: found.to_string() }.into(),
            // To call this disk corrupt would be to have it replaced, perhaps by what is.
            Inconsistent::Unclear => failed(found),
        }
    }
}

fn ask_for_files() {
    if let Err(error) = open_files::raise() {
        tracing::info!(%error, "the system lets this process open no more files than at its start");
    }
}

/// Runs the node to its end.
///
/// # Errors
/// Those of `node`; the system gives no threads.
pub fn block_on(node: impl Future<Output = Result<i32, Termination>>) -> Result<i32, Termination> {
    // Before there is any other thread: each inherits it.
    let shortened = slice::shorten().unwrap_or_else(|error| {
        tracing::info!(%error, "the scheduler takes no shorter slices from this process");
        false
    });
    ask_for_files();
    let runtime = Runtime::new().map_err(failed)?;
    if shortened {
        runtime.spawn(slice::follow());
    }
    let ended = runtime.block_on(node);
    // What still works for a client may hang on the disk that is the reason for the end.
    runtime.shutdown_timeout(LAST_CALLS);
    ended
}

/// Runs to its end what starts no node: the command on snapshots, or a proxy. Says whether the arguments ask for one.
pub fn ran_no_node(arguments: &[String]) -> bool {
    if arguments.get(1).is_some_and(|name| name == snapshot_command::NAME) {
        answer(snapshot_command::run(arguments.iter().skip(2).cloned()));
        return true;
    }
    let Some(asked) = proxy::read(arguments) else { return false };
    stand_between(asked, arguments);
    true
}

/// Says what the command on snapshots has to say: on stdout, or on stderr why not.
fn answer(done: Result<String, snapshot_command::Failed>) {
    match done {
        Ok(text) => print!("{text}"),
        Err(failed) => {
            eprintln!("Error: {}", failed.message);
            std::process::exit(failed.exit_code);
        }
    }
}

/// Runs a proxy until a signal, or says why it does not run. It keeps nothing, so there is nothing to be done at its end.
fn stand_between(asked: Result<proxy::Invocation, proxy::Refused>, arguments: &[String]) {
    let proxy = match asked {
        Ok(proxy::Invocation::Print(text)) => return print!("{text}"),
        Ok(proxy::Invocation::Start(proxy)) => proxy,
        Err(refused) => refuse(refused),
    };
    logging::start_on_stderr();
    tracing::info!(args = ?arguments, "Running: ");
    ask_for_files();
    let ended = Runtime::new().and_then(|runtime| {
        runtime.block_on(async {
            let mut signals = StopSignals::listen()?;
            let ready = || {
                tracing::info!("notifying init daemon");
                tell_ready();
            };
            tokio::select! {
                ended = proxy.run(ready) => Ok(ended),
                signal = signals.next() => end_by(signal),
            }
        })
    });
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(refused)) => refuse(refused),
        Err(error) => failed(error).end(),
    }
}

fn refuse(refused: proxy::Refused) -> ! {
    match refused {
        proxy::Refused::Printed(text) => print!("{text}"),
        proxy::Refused::Said(text) => eprint!("{text}"),
    }
    std::process::exit(1)
}

/// Ends the process without what C++ does at an exit: it destroys the locks of RocksDB, and a thread that closes a database
/// at that moment, or waits for a disk in one, would end the process by SIGABRT instead. Nothing of ours is buffered.
fn exit_now(code: i32) -> ! {
    low_level::exit(code)
}

/// Ends the process after a clean stop as etcd does: as PID 1 with 0, else of the signal that stopped it.
pub fn end_by(signal: i32) -> ! {
    // As PID 1 the signal would do nothing: the kernel shields it from those that it does not handle.
    if std::process::id() != 1 {
        // Returns only for a signal that it does not know.
        let _ = low_level::emulate_default_handler(signal);
    }
    exit_now(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_termination_message_is_what_the_operator_reads() {
        let mut termination = Termination::failed(ExitCode::ExitDiskLost as i32, "replace the member");
        termination.reason = Termination::reason_of(ExitCode::ExitDiskLost);
        (termination.cluster_id, termination.raft_id) = (u64::MAX, 0x1f);
        let json: serde_json::Value = serde_json::from_str(&termination.to_json()).unwrap();
        assert_eq!(json["reason"], "DiskLost");
        assert_eq!(json["exitCode"], 70);
        assert_eq!(json["clusterId"], "ffffffffffffffff");
        assert_eq!(json["raftId"], "1f");
    }
}
