//! Consensus: the sans-IO replica. Values go in (tick, message, proposal, read, persisted, applied), one [`Batch`] comes
//! out; the driver of `engine/` carries it out, a golden script or a seeded simulation can do it just as well.
//!
//! On raft-rs 0.7 (the port of etcd/raft), whose traps are worked around here and nowhere else: CheckQuorum is on
//! (and PreVote, unless the configuration says no), reads are `Safe`, a ReadIndex context is never used twice, a proposal never reaches a replica that does not
//! lead, a replaced membership change is noticed because only applying it answers, and peer messages pass
//! [`validate`] before they are stepped.

pub mod recovery;
pub mod replica;
pub mod tail;
pub mod validate;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod show;
#[cfg(test)]
mod simulation;

pub use replica::{Batch, NotProposed, Persisted, Replica, ReplicaConfig, Role};
pub use tail::Tail;
