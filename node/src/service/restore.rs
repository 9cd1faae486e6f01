//! What can be done with a saved snapshot away from any cluster: look into it, and make a new member's disk of it.

use std::path::{Path, PathBuf};

use super::archive::unpack::{ArchiveError, unpack};
use crate::domain::restore::RevisionChange;
use crate::engine::restore::{Contents, Restored, inspect, restore as restore_disk};
use crate::engine::{NodeConfig, StartError};

/// What a snapshot says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Hash of the key history.
    pub hash: u32,
    /// The current revision.
    pub revision: i64,
    /// Versions of keys.
    pub total_keys: u64,
    /// Bytes of the file.
    pub total_size: u64,
}

impl From<ArchiveError> for StartError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Io { .. } => StartError::Disk(error.to_string()),
            ArchiveError::Corrupt(what) => StartError::Corrupt(what),
            ArchiveError::Storage(error) => error.into(),
        }
    }
}

/// Checks and reads the snapshot at `path`. It is unpacked below `scratch` for that, and the copy removed.
///
/// # Errors
/// `Disk`, `Corrupt`.
pub fn status(path: &Path, scratch: &Path) -> Result<SnapshotStatus, StartError> {
    let scratch = Scratch(scratch.join(format!("balsa-snapshot-{}", std::process::id())));
    unpack(path, &scratch.0, true)?;
    let Contents { hash, versions } = inspect(&scratch.0)?;
    let size = std::fs::metadata(path).map_err(|error| StartError::Disk(format!("{}: {error}", path.display())))?;
    Ok(SnapshotStatus { hash: hash.hash, revision: hash.revision, total_keys: versions, total_size: size.len() })
}

/// Makes the disk that `config` describes out of the snapshot at `path`.
///
/// # Errors
/// See [`StartError`]. A disk that was begun must be removed before the next attempt.
pub fn restore(
    path: &Path,
    config: &NodeConfig,
    change: RevisionChange,
    check_hash: bool,
) -> Result<Restored, StartError> {
    restore_disk(config, change, |directory| unpack(path, directory, check_hash).map(drop))
}

/// Goes with its files.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
