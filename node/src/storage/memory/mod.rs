//! The engines in memory, with crashes and faults, for tests and the simulation.
//!
//! They keep apart what is written and what is durable, so that a crash can be had at any moment: `crash` turns a store
//! into the one that a restart would find, and every clone of the old one fails from then on, as a dead process would.

mod faults;
mod key_space;
mod log;

pub use faults::FailedWrite;
pub use key_space::{MemoryKeySpace, MemoryView};
pub use log::MemoryLog;
