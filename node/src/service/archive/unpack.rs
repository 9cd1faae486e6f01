//! The way back: an archive that `etcdctl snapshot save` stored becomes a directory of key-space files again.
//!
//! Nothing of the archive is believed before it is checked: names stay in the directory, sizes are those of the file,
//! and hashes are compared unless the caller gives them up.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use balsa_proto::log::SnapshotManifest;
use prost::Message;
use sha2::{Digest, Sha256};

use super::{ALIGNMENT, CHUNK, MAGIC};
use crate::storage::{self, durable};

/// Longest manifest that is read; 100,000 files have one of about 10 MiB.
const MAX_MANIFEST: u32 = 64 << 20;

/// Bytes of the checksum behind the content.
const CHECKSUM: u64 = 32;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The disk, or an archive that is shorter than it says.
    #[error("{what}: {cause}")]
    Io {
        /// What was done, and where.
        what: String,
        /// The system's own words.
        cause: io::Error,
    },
    /// It is not an archive of ours, or not a whole one.
    #[error("{0}")]
    Corrupt(String),
    /// The store refuses what the archive says.
    #[error(transparent)]
    Storage(#[from] storage::StorageError),
}

/// Writes the files of the archive at `path` into `directory`, which is created, and makes them durable. With `check` the
/// checksum of the whole and those of the files must be right; without, a file may also lack the checksum at its end.
///
/// # Errors
/// See [`ArchiveError`]. What was written until then is left behind.
pub fn unpack(path: &Path, directory: &Path, check: bool) -> Result<SnapshotManifest, ArchiveError> {
    let failed = |what: &str, cause| ArchiveError::Io { what: format!("{what} {}", path.display()), cause };
    let file = File::open(path).map_err(|error| failed("open", error))?;
    let size = file.metadata().map_err(|error| failed("read", error))?.len();
    let mut source = Hashed { inner: BufReader::with_capacity(CHUNK, file), hasher: Sha256::new(), read: 0 };
    let manifest = read_manifest(&mut source).map_err(|error| failed("read", error))?;
    let manifest = manifest.ok_or_else(|| {
        ArchiveError::Corrupt(format!("{} is not a snapshot that was saved from Balsa", path.display()))
    })?;
    storage::snapshot::check(&manifest)?;
    check_size(size, source.read, &manifest, check)?;
    durable::create_directory(directory)?;
    for file in &manifest.files {
        let hash = write_file(&mut source, &directory.join(&file.name), file.size)?;
        if check && hash != file.sha256[..] {
            return Err(ArchiveError::Corrupt(format!("{} has other bytes than were saved", file.name)));
        }
    }
    durable::sync_directory(directory)?;
    if check {
        check_sum(source).map_err(|error| failed("read", error))??;
    }
    Ok(manifest)
}

/// What was read so far, hashed.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
    read: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.read += read as u64;
        Ok(read)
    }
}

/// None for what is no archive.
fn read_manifest(source: &mut impl Read) -> io::Result<Option<SnapshotManifest>> {
    let (mut magic, mut length) = ([0; MAGIC.len()], [0; 4]);
    let whole = source.read_exact(&mut magic).and_then(|()| source.read_exact(&mut length));
    match whole {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        whole => whole?,
    }
    let length = u32::from_le_bytes(length);
    if magic != *MAGIC || length > MAX_MANIFEST {
        return Ok(None);
    }
    let mut encoded = Vec::new();
    source.by_ref().take(length.into()).read_to_end(&mut encoded)?;
    Ok(SnapshotManifest::decode(&encoded[..]).ok().filter(|_| encoded.len() == length as usize))
}

fn check_size(size: u64, head: u64, manifest: &SnapshotManifest, check: bool) -> Result<(), ArchiveError> {
    let content = storage::snapshot::total_bytes(manifest).and_then(|files| files.checked_add(head));
    let content = content.and_then(|content| content.checked_next_multiple_of(ALIGNMENT)).unwrap_or(u64::MAX);
    match size.checked_sub(content) {
        Some(CHECKSUM) => Ok(()),
        Some(0) if !check => Ok(()),
        Some(0) => Err(ArchiveError::Corrupt("the snapshot has no checksum at its end".to_owned())),
        _ => Err(ArchiveError::Corrupt(format!("the snapshot has {size} bytes and should have {content}"))),
    }
}

/// Copies `size` bytes into a new file and gives their hash.
fn write_file(source: &mut impl Read, path: &Path, size: u64) -> Result<[u8; 32], ArchiveError> {
    let failed = |cause| ArchiveError::Io { what: format!("write {}", path.display()), cause };
    let mut file = File::create_new(path).map_err(failed)?;
    let (mut hasher, mut buffer, mut left) = (Sha256::new(), vec![0; CHUNK], size);
    while left > 0 {
        let wanted = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        source.read_exact(&mut buffer[..wanted]).map_err(failed)?;
        hasher.update(&buffer[..wanted]);
        file.write_all(&buffer[..wanted]).map_err(failed)?;
        left -= wanted as u64;
    }
    file.sync_all().map_err(failed)?;
    Ok(hasher.finalize().into())
}

/// Reads the padding, and compares what was hashed with what stands behind it.
fn check_sum(mut source: Hashed<impl Read>) -> io::Result<Result<(), ArchiveError>> {
    let padding = source.read.next_multiple_of(ALIGNMENT) - source.read;
    io::copy(&mut source.by_ref().take(padding), &mut io::sink())?;
    let hash = source.hasher.clone().finalize();
    let mut expected = [0; CHECKSUM as usize];
    source.inner.read_exact(&mut expected)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(match hash[..] == expected {
        true => Ok(()),
        false => Err(ArchiveError::Corrupt(format!("expected sha256 {}, got {}", hex(&expected), hex(&hash)))),
    })
}

#[cfg(test)]
mod tests {
    use balsa_proto::log::{ConfState, SnapshotFile};

    use super::*;
    use crate::service::archive::Archive;

    /// A saved archive of files of these sizes.
    fn saved(at: &Path, sizes: &[usize]) -> SnapshotManifest {
        let files = sizes.iter().enumerate().map(|(number, size)| {
            let (name, bytes) = (format!("{number}.sst"), vec![number as u8 + 1; *size]);
            std::fs::write(at.join(&name), &bytes).unwrap();
            SnapshotFile { name, size: *size as u64, sha256: Sha256::digest(&bytes).to_vec().into() }
        });
        let manifest = SnapshotManifest {
            format_version: storage::snapshot::FORMAT_VERSION,
            index: 3,
            term: 2,
            conf_state: Some(ConfState { voters: vec![1], learners: Vec::new() }),
            files: files.collect(),
            ..SnapshotManifest::default()
        };
        let mut archive = Archive::new(at, &manifest);
        let blobs = std::iter::from_fn(|| archive.next_message()).flat_map(|message| message.unwrap().blob);
        std::fs::write(at.join("saved"), blobs.collect::<Vec<u8>>()).unwrap();
        manifest
    }

    fn complaint(at: &Path, check: bool) -> Option<String> {
        let out = at.join("out");
        let _ = std::fs::remove_dir_all(&out);
        unpack(&at.join("saved"), &out, check).err().map(|error| error.to_string())
    }

    #[test]
    fn what_was_saved_comes_out_again() {
        let at = tempfile::tempdir().unwrap();
        for sizes in [&[1, 512][..], &[0, CHUNK * 2 + 7, 3]] {
            let manifest = saved(at.path(), sizes);
            let out = at.path().join(format!("out-{}", sizes.len()));
            assert_eq!(unpack(&at.path().join("saved"), &out, true).unwrap(), manifest);
            storage::snapshot::verify(&out, &manifest).unwrap();
        }
    }

    #[test]
    fn a_changed_byte_is_found_unless_nobody_wants_to_know() {
        let at = tempfile::tempdir().unwrap();
        let manifest = saved(at.path(), &[5, 300]);
        let path = at.path().join("saved");
        let good = std::fs::read(&path).unwrap();
        let head = 12 + manifest.encoded_len();
        for wrong in [head + 2, good.len() - 40, good.len() - 1] {
            let mut bad = good.clone();
            bad[wrong] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(complaint(at.path(), true).is_some(), "byte {wrong}");
            assert_eq!(complaint(at.path(), false), None, "byte {wrong}");
        }
    }

    #[test]
    fn a_piece_of_an_archive_is_refused_at_any_length() {
        let at = tempfile::tempdir().unwrap();
        saved(at.path(), &[5, 300]);
        let path = at.path().join("saved");
        let good = std::fs::read(&path).unwrap();
        for length in 0..good.len() {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(complaint(at.path(), true).is_some(), "{length} bytes");
            let without_checksum = length == good.len() - 32;
            assert_eq!(complaint(at.path(), false).is_none(), without_checksum, "{length} bytes");
        }
    }

    #[test]
    fn a_snapshot_of_etcd_is_named_as_foreign() {
        let at = tempfile::tempdir().unwrap();
        std::fs::write(at.path().join("saved"), vec![7; 4096]).unwrap();
        assert!(complaint(at.path(), true).unwrap().contains("not a snapshot that was saved from Balsa"));
    }
}
