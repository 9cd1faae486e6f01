//! The control plane: reconciles `RaftCluster` resources into running Balsa clusters.
//!
//! Each module is a step of the reconcile: observe → validate → build → apply → plan → execute → status.
//! `observed`, `valid`, `names`, `plan` and `step` are pure and know no Kubernetes client.

pub mod names;
pub mod observed;
pub mod step;
pub mod valid;
