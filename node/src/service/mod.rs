//! Placeholder until its slice lands in this branch.
