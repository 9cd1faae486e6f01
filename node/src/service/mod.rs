//! Use cases: check a request, choose its path, await the outcome. One file per service of the wire contract, and one
//! table of failures. Nothing here knows how a request arrived (tonic, HTTP) or how bytes are kept (RocksDB).

pub mod archive;
pub mod auth;
pub mod auto_compaction;
pub mod caller;
pub mod checks;
pub mod cluster;
pub mod code;
pub mod corruption;
pub mod election;
pub mod failure;
pub mod forward;
mod free_space;
pub mod health;
pub mod jwt;
pub mod keep_alive;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod member;
pub mod metrics;
pub mod node;
pub mod password;
pub mod peer;
mod pieces;
pub mod queue;
pub mod reconfigure;
pub mod restore;
pub mod settings;
mod slow_read;
pub mod stop;
pub mod tokens;
pub mod watch;

pub use failure::Error;
pub use member::{Member, Settings};
