//! Presenters: decode, call one use case, encode. gRPC and HTTP live here and nowhere above or below; nothing here
//! decides anything.

pub mod access;
pub mod auth;
pub mod caller;
mod certificate_hosts;
mod clean_path;
pub mod cluster;
pub mod connection;
pub mod deadline;
pub mod decode_limit;
pub mod election;
pub mod forward;
pub mod gateway;
pub mod gather;
pub mod grpc_metrics;
pub mod grpc_only;
pub mod health;
pub mod http;
pub mod kv;
mod large_message;
pub mod lease;
pub mod lease_clock;
pub mod leftover;
pub mod listener;
pub mod lock;
pub mod maintenance;
pub mod node;
mod parting;
pub mod peer;
pub mod ping_guard;
mod reflection;
pub mod server;
pub mod snapshot_command;
pub mod status;
pub mod stream;
pub mod unread;
pub mod watch;
