//! Placeholder until its slice lands in this branch.

pub mod watch;
