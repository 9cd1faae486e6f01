//! A snapshot while it is being received.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use balsa_proto::log::{SnapshotFile, SnapshotManifest};
use balsa_proto::peer::SnapshotData;
use sha2::{Digest, Sha256};

use super::super::disk::free_bytes;
use super::super::durable::{create_directory, sync_directory};
use super::{PARTIAL, Result, StorageError, check, corrupt, is_plain, total_bytes};
use crate::metrics::SNAPSHOT_SYNC;

/// Longest data of one chunk.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;
/// What must be left on the disk for the member to go on, once the snapshot is there.
const RESERVED_BYTES: u64 = 64 << 20;

/// The directory of a snapshot that is not complete. Dropped before [`finish`](Self::finish), it removes what it wrote.
/// All calls block on the disk.
pub struct Staging {
    parent: PathBuf,
    name: String,
    files: std::vec::IntoIter<SnapshotFile>,
    /// Position in the manifest of the file being written.
    position: u32,
    current: Option<Receiving>,
    /// The final directory is there: nothing is left to remove.
    finished: bool,
}

/// One file that is being written.
struct Receiving {
    expected: SnapshotFile,
    path: PathBuf,
    file: File,
    written: u64,
    hash: Sha256,
}

impl Staging {
    /// Starts a snapshot that will be `parent/name`. `parent` is created when absent.
    ///
    /// # Errors
    /// `Corrupt` for a manifest or a name that must not be followed; `Failed` when the disk refuses or has too little
    /// space.
    pub fn begin(parent: &Path, name: &str, manifest: &SnapshotManifest) -> Result<Self> {
        check(manifest)?;
        if !is_plain(name) {
            return Err(corrupt(format!("the directory name {name:?}")));
        }
        create_directory(parent)?;
        let needed = total_bytes(manifest).unwrap_or(u64::MAX).saturating_add(RESERVED_BYTES);
        let free = free_bytes(parent)?;
        if free < needed {
            let what = format!("receive a snapshot into {}", parent.display());
            return Err(StorageError::Failed { what, cause: format!("{free} bytes are free, {needed} are needed") });
        }
        let mut staging = Self {
            parent: parent.to_owned(),
            name: name.to_owned(),
            files: manifest.files.clone().into_iter(),
            position: 0,
            current: None,
            finished: false,
        };
        let partial = staging.partial();
        fs::create_dir(&partial).map_err(|error| StorageError::from_io("create", &partial, &error))?;
        staging.open_next()?;
        Ok(staging)
    }

    /// Takes the next bytes: files in the order of the manifest, each from its start to its end.
    ///
    /// # Errors
    /// `Corrupt` for bytes out of order, too many, or other than they were; `Failed` when the disk refuses.
    pub fn write(&mut self, chunk: &SnapshotData) -> Result<()> {
        let Some(current) = &mut self.current else { return Err(corrupt("bytes behind the last file".to_owned())) };
        let length = chunk.data.len();
        if chunk.file != self.position || chunk.offset != current.written {
            return Err(corrupt(format!("bytes of file {} at {}, out of order", chunk.file, chunk.offset)));
        }
        if length == 0 || length > MAX_CHUNK_BYTES || length as u64 > current.expected.size - current.written {
            return Err(corrupt(format!("a chunk of {length} bytes")));
        }
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(corrupt(format!("the chunk of {:?} at {}", current.expected.name, chunk.offset)));
        }
        current.hash.update(&chunk.data);
        current.file.write_all(&chunk.data).map_err(|error| StorageError::from_io("write", &current.path, &error))?;
        current.written += length as u64;
        if current.written == current.expected.size {
            self.close_current()?;
            self.open_next()?;
        }
        Ok(())
    }

    /// Everything is there: makes it durable under its own name and returns that path.
    ///
    /// # Errors
    /// `Corrupt` when bytes are missing, `Failed` when the disk refuses.
    pub fn finish(mut self) -> Result<PathBuf> {
        if let Some(current) = &self.current {
            let (name, written) = (&current.expected.name, current.written);
            return Err(corrupt(format!("{name:?} ends at {written} of {} bytes", current.expected.size)));
        }
        let (partial, path) = (self.partial(), self.parent.join(&self.name));
        sync_directory(&partial)?;
        if path.exists() {
            return Err(corrupt(format!("{} is there already", path.display())));
        }
        fs::rename(&partial, &path).map_err(|error| StorageError::from_io("rename", &partial, &error))?;
        self.finished = true;
        sync_directory(&self.parent)?;
        Ok(path)
    }

    fn partial(&self) -> PathBuf {
        self.parent.join(format!("{}{PARTIAL}", self.name))
    }

    /// Opens the next file that has bytes to come; empty ones are complete at once.
    fn open_next(&mut self) -> Result<()> {
        while self.current.is_none() {
            let Some(expected) = self.files.next() else { return Ok(()) };
            let path = self.partial().join(&expected.name);
            let file = File::create_new(&path).map_err(|error| StorageError::from_io("create", &path, &error))?;
            let empty = expected.size == 0;
            self.current = Some(Receiving { expected, path, file, written: 0, hash: Sha256::new() });
            if empty {
                self.close_current()?;
            }
        }
        Ok(())
    }

    fn close_current(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else { return Ok(()) };
        self.position += 1;
        if current.hash.finalize().as_slice() != current.expected.sha256 {
            return Err(corrupt(format!("{:?} has other bytes", current.expected.name)));
        }
        let _timer = SNAPSHOT_SYNC.start_timer();
        current.file.sync_all().map_err(|error| StorageError::from_io("sync", &current.path, &error))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(self.partial());
        }
    }
}
