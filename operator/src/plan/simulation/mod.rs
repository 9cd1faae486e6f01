//! A small world to plan in: an API server's objects with their controllers, and a cluster of nodes with the refusals
//! that the real ones make. Deterministic; all chance comes from the caller's seed.
//!
//! Owns the model that golden walks and the simulated reconciler share. It executes steps as the operator's `execute`
//! does: one write, with the preconditions that the step carries. What it models of a node is membership and disks,
//! not data: a disk knows how far its log reaches.

mod execute;
mod faults;
mod reconcile;
mod runs;
mod world;

pub(crate) use self::execute::Refused;
pub(super) use self::reconcile::{Crash, Pass, latch};
pub(crate) use self::runs::{Dice, check};
pub(crate) use self::world::{GRACE_SECONDS, TICK_SECONDS, World};
