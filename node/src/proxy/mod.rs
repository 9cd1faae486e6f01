//! What etcd's program does besides being a member: it stands between clients and a cluster. `balsa gateway start` passes
//! connections on and knows nothing of what is said on them (`tcp.rs`); `balsa grpc-proxy start` passes calls on (`grpc.rs`).
//!
//! A proxy keeps no data and has no configuration but its command line (`arguments.rs`), which is spelled, explained and
//! refused as etcd's.

mod arguments;
mod gateway;
mod grpc;
mod health;
mod messages;
mod namespace;
mod registry;
mod remotes;
mod tcp;
mod upstream;

use self::gateway::Gateway;
use self::grpc::GrpcProxy;

/// What the command line comes to.
pub enum Invocation {
    /// Print this and exit 0.
    Print(String),
    /// Run it.
    Start(Proxy),
}

/// Something that stands between.
pub enum Proxy {
    /// Of connections.
    Gateway(Gateway),
    /// Of calls.
    Grpc(GrpcProxy),
}

/// Why it does not start, and where etcd says so; the exit code is 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// On stdout.
    Printed(String),
    /// On stderr.
    Said(String),
}

/// Reads the command line, the program's name first; None if it does not ask for a proxy.
///
/// # Errors
/// [`Refused`], with what it was that cannot be understood.
pub fn read(arguments: &[String]) -> Option<Result<Invocation, Refused>> {
    match arguments.get(1)?.as_str() {
        gateway::NAME => Some(gateway::read(&arguments[2..])),
        grpc::NAME => Some(grpc::read(&arguments[2..])),
        _ => None,
    }
}

impl Proxy {
    /// Runs without end, and calls `ready` once it listens.
    ///
    /// # Errors
    /// What it was given cannot be used.
    pub async fn run(self, ready: impl FnOnce()) -> Result<(), Refused> {
        match self {
            Proxy::Gateway(gateway) => gateway.run(ready).await,
            Proxy::Grpc(proxy) => proxy.run(ready).await,
        }
    }
}
