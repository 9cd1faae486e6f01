//! Files and directory entries that survive a power loss. A file that was created or renamed is only there for good
//! once its directory is synced too, which neither the standard library nor RocksDB does for a new directory's parent.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use super::{Result, StorageError};

/// Makes the entries of `directory` durable: files created, renamed or removed in it.
///
/// # Errors
/// `Failed` when the directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|error| StorageError::from_io("sync of", directory, &error))
}

/// Creates `directory` and what is missing above it, and makes each new entry durable. Existing is fine.
///
/// # Errors
/// `Failed` when a directory cannot be created or synced.
pub fn create_directory(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let above = parent(directory);
    create_directory(above)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(StorageError::from_io("creation of", directory, &error))
        }
        _ => sync_directory(above),
    }
}

/// Replaces the file at `path` in one step: after a crash it holds the old bytes or the new ones, never a mixture.
/// Durable when it returns. Uses `path` with `.partial` appended; only one writer at a time.
///
/// # Errors
/// `Failed` when the disk refuses; the old file is still in place then.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = File::create(partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(partial, path))
        .map_err(|error| StorageError::from_io("replacement of", path, &error))?;
    sync_directory(parent(path))
}

/// The directory that holds `path`; a bare name lies in the working directory.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_holds_the_new_bytes_and_leaves_no_partial_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace_file(&path, b"old, and longer").unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_are_created_in_depth_and_again_without_error() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b/c");
        create_directory(&deep).unwrap();
        create_directory(&deep).unwrap();
        assert!(deep.is_dir());
    }

    #[test]
    fn a_directory_below_a_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), b"").unwrap();
        assert!(matches!(create_directory(&directory.path().join("file/below")), Err(StorageError::Failed { .. })));
    }
}
