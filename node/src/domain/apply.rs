//! The state machine: committed entries in, one atomic write batch, outcomes and events out.
