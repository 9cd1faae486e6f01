//! What a disk says of itself: the file MARKER of the data directory.
//!
//! The file is written and synced before anything else of the disk, and says which member of which cluster it is, or that
//! a founding has begun. Its one promise: a marker that was ever written is never taken for "no marker", because an empty
//! disk may join a cluster and a member's disk must not. So only an absent file is `Nobody`; whatever else cannot be read is
//! an error.
//!
//! Format: magic (8 bytes), length of the body (4, little endian), crc32c of the body (4, little endian), body (an
//! encoded [`log::Marker`]).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use balsa_proto::log::Marker;
use prost::Message;

use super::{Result, StorageError, durable};

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "MARKER";

/// Tells the file from any other. Never changed.
const MAGIC: &[u8; 8] = b"BALSAMRK";

/// What the file holds while a restore makes the disk: it is nobody's yet, and not empty either.
const RESTORING: &[u8] = b"BALSARST";

/// What the file holds while a node writes the first state of its disk: what lies beside it is nobody's, and the founding
/// may be repeated. Without it such a disk would look like a member's whose marker was lost.
const FOUNDING: &[u8] = b"BALSAFND";

/// Bytes before the body.
const HEADER_BYTES: usize = MAGIC.len() + 4 + 4;

/// Whose a data directory is.
#[derive(Debug, Clone, PartialEq)]
pub enum Owner {
    /// There is no such file (or directory).
    Nobody,
    /// A founding began and has not come to its end.
    Founder,
    /// A member's.
    Member(Marker),
}

impl Owner {
    /// The marker of the member, if it is one's.
    pub fn marker(self) -> Option<Marker> {
        match self {
            Owner::Nobody | Owner::Founder => None,
            Owner::Member(marker) => Some(marker),
        }
    }
}

/// Reads the marker of the data directory `directory`.
///
/// # Errors
/// `Failed` when the file cannot be read, `Corrupt` when it is not what [`write`] left.
pub fn read(directory: &Path) -> Result<Owner> {
    let path = directory.join(FILE_NAME);
    match fs::read(&path) {
        Ok(bytes) if bytes == FOUNDING => Ok(Owner::Founder),
        Ok(bytes) => decode(&bytes)
            .map(Owner::Member)
            .map_err(|what| StorageError::Corrupt { what: format!("{}: {what}", path.display()) }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Owner::Nobody),
        Err(error) => Err(StorageError::from_io("read of", &path, &error)),
    }
}

/// Writes the marker of the data directory `directory`, creating the directory; durable when it returns, and in one
/// step when one was there before.
///
/// # Errors
/// `Failed` when the disk refuses.
pub fn write(directory: &Path, marker: &Marker) -> Result<()> {
    durable::create_directory(directory)?;
    durable::replace_file(&directory.join(FILE_NAME), &encode(marker))
}

/// Says that a node begins to write the first state of the disk in `directory`, which [`write`] ends.
///
/// # Errors
/// `Failed` when the disk refuses.
pub fn announce_founding(directory: &Path) -> Result<()> {
    durable::create_directory(directory)?;
    durable::replace_file(&directory.join(FILE_NAME), FOUNDING)
}

/// Says that a restore begins to make a disk of `directory`. Until [`write`] says whose it is, no member starts on it: it
/// would find no marker, and found an empty cluster where data was to be.
///
/// # Errors
/// `Failed` when the disk refuses.
pub fn announce_restore(directory: &Path) -> Result<()> {
    durable::create_directory(directory)?;
    durable::replace_file(&directory.join(FILE_NAME), RESTORING)
}

fn encode(marker: &Marker) -> Vec<u8> {
    let body = marker.encode_to_vec();
    let length = u32::try_from(body.len()).expect("a marker has a handful of addresses");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Marker, String> {
    if bytes == RESTORING {
        return Err("a restore did not finish; remove the directory and restore again".to_owned());
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or("not a marker")?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or("cut off in its header")?;
    let (checksum, body) = rest.split_first_chunk::<4>().ok_or("cut off in its header")?;
    if u32::from_le_bytes(*length) as usize != body.len() {
        return Err(format!("body of {} bytes instead of {}", body.len(), u32::from_le_bytes(*length)));
    }
    if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
        return Err("checksum differs".to_owned());
    }
    Marker::decode(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use balsa_proto::log::Seed;

    use super::*;

    fn marker() -> Marker {
        Marker {
            format_version: 1,
            cluster_id: 7,
            member_id: 3,
            incarnation: 0xfeed,
            seeds: vec![Seed { id: 1, peer_urls: vec!["http://one:2380".to_owned()] }],
        }
    }

    #[test]
    fn no_file_and_no_directory_are_an_empty_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), Owner::Nobody);
        assert_eq!(read(&directory.path().join("absent")).unwrap(), Owner::Nobody);
    }

    #[test]
    fn what_was_written_is_read_and_a_second_write_replaces_it() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("data");
        write(&below, &marker()).unwrap();
        assert_eq!(read(&below).unwrap(), Owner::Member(marker()));
        let other = Marker { member_id: 4, ..marker() };
        write(&below, &other).unwrap();
        assert_eq!(read(&below).unwrap(), Owner::Member(other));
    }

    #[test]
    fn a_founding_is_nobodys_until_its_marker_is_written_and_a_cut_announcement_is_no_empty_disk() {
        let directory = tempfile::tempdir().unwrap();
        announce_founding(directory.path()).unwrap();
        assert_eq!(read(directory.path()).unwrap(), Owner::Founder);
        assert_eq!(Owner::Founder.marker(), None);
        for length in 0..FOUNDING.len() {
            fs::write(directory.path().join(FILE_NAME), &FOUNDING[..length]).unwrap();
            assert!(matches!(read(directory.path()), Err(StorageError::Corrupt { .. })), "cut to {length} bytes");
        }
        write(directory.path(), &marker()).unwrap();
        assert_eq!(read(directory.path()).unwrap().marker(), Some(marker()));
    }

    #[test]
    fn no_cut_and_no_flipped_bit_is_taken_for_an_empty_disk() {
        let directory = tempfile::tempdir().unwrap();
        let whole = encode(&marker());
        let path = directory.path().join(FILE_NAME);
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read(directory.path()), Err(StorageError::Corrupt { .. })), "cut to {length} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            assert!(matches!(read(directory.path()), Err(StorageError::Corrupt { .. })), "bit {bit} flipped");
        }
    }

    #[test]
    fn a_marker_that_cannot_be_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(FILE_NAME)).unwrap();
        assert!(matches!(read(directory.path()), Err(StorageError::Failed { .. })));
    }
}
