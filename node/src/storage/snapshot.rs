//! Snapshot directories: what a checkpoint holds, said once in a manifest and checked wherever it arrives.
//!
//! A received snapshot is staged under `<name>.partial`, checked as it is written (a checksum per chunk, SHA-256 per
//! file), synced and renamed: under its own name it is complete, or not there. The manifest travels beside the files and
//! is never put among them, because the directory is opened as a key space.

mod staging;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use balsa_proto::log::{ConfState, SnapshotFile, SnapshotManifest};
use sha2::{Digest, Sha256};

pub use staging::{MAX_CHUNK_BYTES, Staging};

use super::durable::sync_directory;
use super::{Result, SnapshotPoint, StorageError};

/// The format of manifests and of the files they list.
pub const FORMAT_VERSION: u32 = 1;

/// Ends the name of a directory that is not complete.
const PARTIAL: &str = ".partial";
/// More files than any key space of ours has; a manifest is held in memory.
const MAX_FILES: usize = 100_000;
/// Longest name of a file.
const MAX_NAME_BYTES: usize = 255;
/// Bytes read at a time while hashing.
const READ_BYTES: usize = 256 << 10;

/// What the maker of a checkpoint knows of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Names the snapshot.
    pub snapshot_id: String,
    /// The cluster it is of.
    pub cluster_id: u64,
    /// The applied point, read out of the checkpoint itself.
    pub point: SnapshotPoint,
    /// The revision of the store at that point.
    pub revision: i64,
    /// When it was made, in seconds since 1970.
    pub unix_seconds: i64,
}

/// Lists and hashes the files of a checkpoint.
///
/// # Errors
/// `Failed` when the disk cannot be read; `Corrupt` when the directory holds something other than plain files.
pub fn manifest(directory: &Path, facts: &Facts) -> Result<SnapshotManifest> {
    let mut files = Vec::new();
    for (name, size) in data_files(directory)? {
        let sha256 = hash(&directory.join(&name))?;
        files.push(SnapshotFile { name, size, sha256: sha256.to_vec().into() });
    }
    let conf_state = &facts.point.conf_state;
    Ok(SnapshotManifest {
        format_version: FORMAT_VERSION,
        snapshot_id: facts.snapshot_id.clone(),
        cluster_id: facts.cluster_id,
        index: facts.point.index,
        term: facts.point.term,
        conf_state: Some(ConfState { voters: conf_state.voters.clone(), learners: conf_state.learners.clone() }),
        revision: facts.revision,
        unix_seconds: facts.unix_seconds,
        files,
    })
}

/// Whether a manifest from elsewhere is one that files may be written by.
///
/// # Errors
/// `Corrupt`, with what is wrong: an unknown format, no point, no voters, a name that is not that of a plain file in the
/// directory, a name twice, a hash of the wrong length.
pub fn check(manifest: &SnapshotManifest) -> Result<()> {
    if manifest.format_version != FORMAT_VERSION {
        return Err(corrupt(format!("format {} is not known", manifest.format_version)));
    }
    if manifest.index == 0 || manifest.term == 0 {
        return Err(corrupt(format!("no point: index {}, term {}", manifest.index, manifest.term)));
    }
    if manifest.conf_state.as_ref().is_none_or(|conf_state| conf_state.voters.is_empty()) {
        return Err(corrupt("no voters".to_owned()));
    }
    if manifest.files.is_empty() || manifest.files.len() > MAX_FILES {
        return Err(corrupt(format!("{} files", manifest.files.len())));
    }
    let mut seen = HashSet::new();
    for file in &manifest.files {
        if !is_plain(&file.name) || !seen.insert(&file.name) {
            return Err(corrupt(format!("the name {:?}", file.name)));
        }
        if file.sha256.len() != Sha256::output_size() {
            return Err(corrupt(format!("the hash of {:?}", file.name)));
        }
    }
    if total_bytes(manifest).is_none() {
        return Err(corrupt("sizes".to_owned()));
    }
    Ok(())
}

/// Whether `directory` holds what the manifest lists, all of it and nothing else.
///
/// # Errors
/// `Failed` when the disk cannot be read, `Corrupt` with the first difference.
pub fn verify(directory: &Path, manifest: &SnapshotManifest) -> Result<()> {
    check(manifest)?;
    let mut found = data_files(directory)?;
    for file in &manifest.files {
        match found.remove(&file.name) {
            None => return Err(corrupt(format!("{:?} is missing", file.name))),
            Some(size) if size != file.size => {
                return Err(corrupt(format!("{:?} has {size} bytes, not {}", file.name, file.size)));
            }
            Some(_) if hash(&directory.join(&file.name))? != file.sha256[..] => {
                return Err(corrupt(format!("{:?} has other bytes", file.name)));
            }
            Some(_) => {}
        }
    }
    match found.into_keys().next() {
        Some(extra) => Err(corrupt(format!("{extra:?} is not in the manifest"))),
        None => Ok(()),
    }
}

/// The point of a checked manifest.
pub fn point(manifest: &SnapshotManifest) -> SnapshotPoint {
    let conf_state = manifest.conf_state.clone().unwrap_or_default();
    SnapshotPoint {
        index: manifest.index,
        term: manifest.term,
        conf_state: (conf_state.voters, conf_state.learners).into(),
    }
}

/// Bytes of all files; none when that cannot be counted.
pub fn total_bytes(manifest: &SnapshotManifest) -> Option<u64> {
    manifest.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size))
}

/// Removes everything in `parent` but the entry `keep`: snapshots that were not complete, and key spaces that were
/// replaced. An absent `parent` is fine.
///
/// # Errors
/// `Failed` when something cannot be removed.
pub fn remove_others(parent: &Path, keep: &str) -> Result<()> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| StorageError::from_io("list", parent, &error))?,
    };
    let mut removed = false;
    for entry in entries {
        let entry = entry.map_err(|error| StorageError::from_io("list", parent, &error))?;
        if entry.file_name() == keep {
            continue;
        }
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let outcome = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        outcome.map_err(|error| StorageError::from_io("remove", &path, &error))?;
        removed = true;
    }
    if removed { sync_directory(parent) } else { Ok(()) }
}

/// The files of a checkpoint by name, with their sizes. What opening a key space leaves beside its data is not counted:
/// the lock and the engine's own log.
fn data_files(directory: &Path) -> Result<BTreeMap<String, u64>> {
    let failed = |error| StorageError::from_io("list", directory, &error);
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = entry.metadata().map_err(failed)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if !metadata.is_file() || !is_plain(&name) {
            return Err(corrupt(format!("{} is not a plain file", entry.path().display())));
        }
        if name != "LOCK" && name != "LOG" && !name.starts_with("LOG.old.") {
            files.insert(name, metadata.len());
        }
    }
    Ok(files)
}

/// Whether a name stays in its directory, on every file system.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && !name.ends_with(PARTIAL)
        && name.bytes().all(plain)
}

fn hash(path: &Path) -> Result<[u8; 32]> {
    let failed = |error| StorageError::from_io("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; READ_BYTES]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn corrupt(what: String) -> StorageError {
    StorageError::Corrupt { what: format!("snapshot: {what}") }
}

#[cfg(test)]
#[path = "snapshot/tests.rs"]
mod tests;
