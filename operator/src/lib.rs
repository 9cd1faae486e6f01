//! The control plane: reconciles `RaftCluster` resources into running Balsa clusters.
//!
//! Each module is a step of the reconcile: observe → validate → build → apply → plan → execute → status.
//! `observed`, `valid`, `validate`, `names`, `build`, `plan`, `step`, `brief`, `failures` and `status/conditions` are pure: no
//! client, no clock, no file. `operator/tests/layers.rs` keeps them so.

pub mod apply;
pub mod arguments;
pub mod brief;
pub mod build;
pub mod client;
pub mod controller;
pub mod execute;
pub mod failures;
pub mod health;
pub mod lanes;
pub mod lease;
pub mod members;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod pulse;
pub mod signals;
pub mod status;
pub mod step;
pub mod valid;
pub mod validate;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod rehearsal;
