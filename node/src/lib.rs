//! The data plane: one process that is one member of a Balsa cluster.
//!
//! Folder = layer, and every arrow points down: `api` → `service` → `engine` → `domain` → the traits of `storage` and
//! `transport`. `tests/layers.rs` reads the `use` lines and fails on an upward one. `main.rs` only wires.

pub mod api;
pub mod config;
pub mod discovery;
pub mod domain;
pub mod engine;
pub mod metrics;
pub mod process;
pub mod proxy;
pub mod service;
pub mod storage;
pub mod transport;
pub mod wiring;
