//! Placeholder until its slice lands in this branch.

pub mod checks;
pub mod failure;
pub mod watch;
