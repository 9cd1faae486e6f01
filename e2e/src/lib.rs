//! End-to-end tests on a real Kubernetes. Each scenario has a namespace of its own, a writer that never stops, and a check
//! at the end: every acknowledged write is there exactly once, and the members' hashes agree.
//!
//! Owns scenarios, the writer and the way to the API server. It must not know the inside of the node or of the operator:
//! it sees what a user sees.

pub mod clients;
pub mod cluster;
pub mod differential;
pub mod failover;
pub mod local;
pub mod report;
pub mod scenarios;
pub mod writer;
