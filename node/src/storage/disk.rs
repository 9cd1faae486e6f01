//! The disk under a directory.

use std::path::Path;

use super::{Result, StorageError};

/// Bytes that this process may still write on the disk of `directory`.
///
/// # Errors
/// `Failed` when there is no such directory, or the file system does not tell.
#[allow(unsafe_code, reason = "the standard library does not tell the free space of a disk")]
pub fn free_bytes(directory: &Path) -> Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let failed = |error| StorageError::from_io("measure the free space of", directory, &error);
    let path = std::ffi::CString::new(directory.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let mut facts = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` ends with a zero byte and lives on; the kernel fills `facts` when it returns 0.
    let facts = unsafe {
        if libc::statvfs(path.as_ptr(), facts.as_mut_ptr()) != 0 {
            return Err(failed(std::io::Error::last_os_error()));
        }
        facts.assume_init()
    };
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}
