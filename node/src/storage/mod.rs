//! Repository: the traits and plain types that the model is written against, and below them the engines that keep the
//! bytes. Nothing here knows who calls, what a revision is or what Raft wants; it knows ordered tables and a log.
//!
//! Two stores, one truth: the key space (not synced per write; atomic; the truth for applied index, term and ConfState)
//! and the Raft log (synced once per batch). The log is repaired from the key space at open, never the reverse.

use std::path::Path;

pub mod disk;
pub mod durable;
pub mod key_space;
pub mod log;
pub mod marker;
pub mod memory;
pub mod rocks;
pub mod snapshot;

#[cfg(test)]
mod conformance;

pub use key_space::{KeySpace, Table, View, Visit, WriteBatch};
pub use log::{InitialState, LogStore, LogWrite, SnapshotPoint};

/// What a store can fail with. A failed write is never retried: the process ends with a typed exit code, because
/// nothing can be said of what the disk holds after it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The disk is full or the device fails; `what` names the operation and the path.
    #[error("storage failed: {what}: {cause}")]
    Failed {
        /// Operation and place.
        what: String,
        /// The engine's own words.
        cause: String,
    },
    /// Bytes that no crash of ours can have produced.
    #[error("storage is corrupt: {what}")]
    Corrupt {
        /// File or table and key, and what is wrong with it.
        what: String,
    },
}

impl StorageError {
    /// A refusal of the file system: `action` as in "sync of", followed by the path.
    pub(crate) fn from_io(action: &str, path: &Path, error: &std::io::Error) -> Self {
        StorageError::Failed { what: format!("{action} {}", path.display()), cause: error.to_string() }
    }
}

/// Result of a storage call.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;
