//! The configuration as the crate `balsa-config` reads and checks it, and what a process does with its part on log lines.

pub use balsa_config::*;

pub mod log_line;
pub mod logging;
