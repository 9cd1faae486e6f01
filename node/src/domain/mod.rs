//! The model, pure: no clock, no thread, no async runtime, no RocksDB, no tonic. It is driven by values and answers in
//! values, so golden scripts and seeded simulations can drive it.

pub mod apply;
pub mod auth;
pub mod auto_compaction;
pub mod command;
pub mod corruption;
pub mod force;
pub mod lease;
pub mod maintenance;
pub mod membership;
pub mod mvcc;
pub mod raft;
pub mod random;
pub mod refusal;
pub mod restore;
