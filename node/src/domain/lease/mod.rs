//! Leases: a promise to delete keys unless somebody goes on renewing it.
//!
//! Owns the table `lease`: which leases there are and which keys are attached to each. What a lease deletes and when a
//! key changes its lease is decided where keys are written ([`super::mvcc`]), in the same write batch. How long a lease
//! has left is only known to the leader's [`clock`], which is driven by values; the log holds no times.

pub(crate) mod changes;
pub mod clock;
pub mod table;
pub(crate) mod write;

pub use changes::LeaseChange;
pub use clock::{ClockOptions, LeaseClock, Renewal};

/// The longest TTL that can be granted, in seconds; etcd's own.
pub const MAX_TTL: i64 = 9_000_000_000;
