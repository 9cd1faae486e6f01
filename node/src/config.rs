//! The configuration as the crate `balsa-config` reads and checks it, and what a process does with its part on log lines.

use std::io;

pub use balsa_config::*;

mod journal;
pub mod log_line;
pub mod logging;
mod rotating_file;

/// What the system says, as programs in Go write it.
pub(crate) fn os_words(error: &io::Error) -> String {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or_default();
    words.to_lowercase()
}
