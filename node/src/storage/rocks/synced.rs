//! Whether a log still has what it once had on the disk: the file SYNCED beside it.
//!
//! RocksDB takes a WAL that ends early for one whose last write was cut off by a crash. It cannot know whether that write
//! had been synced and acknowledged. A member that goes on with such a log has forgotten entries, or a vote, that others
//! count on. So the sequence number of the last synced write is kept in a file of its own. It is written after the sync and
//! not synced itself, which costs a microsecond instead of a second sync: a process that dies leaves it exact; a power
//! loss may leave an older number, never a newer one. So it never accuses a sound log.
//!
//! Format: sequence number (8, little endian), crc32c of it (4, little endian).

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::storage::{Result, StorageError, durable};

/// Name of the file in the directory of the log. RocksDB leaves alone what it does not know.
const FILE_NAME: &str = "SYNCED";

/// The open file.
pub(super) struct Synced {
    file: File,
    path: PathBuf,
}

impl Synced {
    /// Holds the log in `directory`, which has come up with `sequence`, to what the file says. A log of a version before
    /// there was such a file gets one.
    ///
    /// # Errors
    /// `Corrupt` when the log is older than it was, or the file is damaged; `Failed` when the disk refuses.
    pub(super) fn open(directory: &Path, sequence: u64) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        match fs::read(&path) {
            Ok(bytes) => check(&bytes, sequence)
                .map_err(|what| StorageError::Corrupt { what: format!("log {}: {what}", directory.display()) })?,
            // Durable from the start, so that later numbers only ever replace bytes in place.
            Err(error) if error.kind() == ErrorKind::NotFound => durable::replace_file(&path, &encode(sequence))?,
            Err(error) => return Err(StorageError::from_io("read of", &path, &error)),
        }
        let file = File::options().write(true).open(&path);
        let file = file.map_err(|error| StorageError::from_io("open of", &path, &error))?;
        Ok(Self { file, path })
    }

    /// Everything up to `sequence` is on the disk.
    pub(super) fn note(&self, sequence: u64) -> Result<()> {
        let written = self.file.write_all_at(&encode(sequence), 0);
        written.map_err(|error| StorageError::from_io("write of", &self.path, &error))
    }
}

fn encode(sequence: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..].copy_from_slice(&crc32c::crc32c(&sequence.to_le_bytes()).to_le_bytes());
    bytes
}

fn check(bytes: &[u8], found: u64) -> Result<(), String> {
    let (number, _) = bytes.split_first_chunk::<8>().ok_or_else(|| format!("{FILE_NAME} is cut off"))?;
    let synced = u64::from_le_bytes(*number);
    if bytes != encode(synced) {
        return Err(format!("the checksum of {FILE_NAME} differs"));
    }
    if found < synced {
        return Err(format!(
            "it ends at write {found}, and was synced up to write {synced}: what this member acknowledged is lost, and it \
             must not vote again"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_older_than_it_was_is_corrupt() {
        let place = tempfile::tempdir().unwrap();
        let synced = Synced::open(place.path(), 7).unwrap();
        synced.note(9).unwrap();
        assert!(Synced::open(place.path(), 9).is_ok());
        assert!(Synced::open(place.path(), 11).is_ok(), "writes that were not synced may be there");
        let Err(StorageError::Corrupt { what }) = Synced::open(place.path(), 8) else { panic!("opened") };
        assert!(what.contains("ends at write 8, and was synced up to write 9"), "{what}");
    }

    #[test]
    fn a_damaged_file_is_corrupt() {
        let place = tempfile::tempdir().unwrap();
        Synced::open(place.path(), 7).unwrap();
        let path = place.path().join(FILE_NAME);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(Synced::open(place.path(), 7), Err(StorageError::Corrupt { .. })), "cut to {length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            assert!(matches!(Synced::open(place.path(), 7), Err(StorageError::Corrupt { .. })), "bit {bit}");
        }
    }
}
