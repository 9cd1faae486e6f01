//! The disk under a directory.

use std::path::Path;

use super::{Result, StorageError};

/// Bytes that this process may still write on the disk of `directory`.
///
/// # Errors
/// `Failed` when there is no such directory, or the file system does not tell.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    let facts = rustix::fs::statvfs(directory)
        .map_err(|error| StorageError::from_io("measure the free space of", directory, &error.into()))?;
    // Not `f_bfree`: a file system may keep some for root.
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What `df` calls available, in bytes.
    fn available(directory: &str) -> u64 {
        let said = Command::new("df").args(["-B1", "--output=avail", directory]).output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        text.lines().nth(1).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn free_is_what_df_calls_available() {
        // Others write meanwhile; a file system that keeps blocks back, or counts in other blocks, is further off than that.
        const BESIDE: u64 = 256 << 20;
        for directory in [env!("CARGO_MANIFEST_DIR"), "/dev/shm"] {
            let (before, free, after) =
                (available(directory), free_bytes(Path::new(directory)).unwrap(), available(directory));
            let (least, most) = (before.min(after).saturating_sub(BESIDE), before.max(after) + BESIDE);
            assert!((least..=most).contains(&free), "{directory}: {free} is not between {least} and {most}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = free_bytes(Path::new("/not/there")).unwrap_err().to_string();
        assert!(error.contains("/not/there") && error.contains("free space"), "{error}");
    }
}
