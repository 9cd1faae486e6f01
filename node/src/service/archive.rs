//! The snapshot stream of etcd's API: a checkpoint of the key space as one file that `etcdctl snapshot save` accepts.
//!
//! The archive is [`MAGIC`], the length of the manifest (four bytes, little-endian), the manifest
//! (`balsa.log.v1.SnapshotManifest`), its files back to back in manifest order, zeros up to a multiple of 512, and the
//! SHA-256 of all that. etcd's client takes the odd 32 bytes at the end for the sign that a checksum is there.

pub mod unpack;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::log::SnapshotManifest;
use bytes::Bytes;
use futures::Stream;
use prost::Message;
use sha2::{Digest, Sha256};

use super::caller::Caller;
use super::failure::Error;
use super::maintenance::blocking;
use super::member::Member;
use super::pieces;
use crate::config::version::ETCD_CLUSTER_VERSION;
use crate::engine::{Failure, make_checkpoint};
use crate::metrics;

/// How an archive begins; the last byte is its version.
pub const MAGIC: &[u8; 8] = b"BALSASN\x01";

/// The archive without its checksum is a multiple of this.
const ALIGNMENT: u64 = 512;

/// Bytes of one message.
const CHUNK: usize = 256 << 10;

/// Messages that are read before the client takes them.
const AHEAD: usize = 4;

/// One message of the stream, or why it ends early.
type Item = Result<pb::SnapshotResponse, Error>;

/// Makes a checkpoint and streams it. The checkpoint is removed when the stream ends, however it ends.
///
/// # Errors
/// `Uninitialized`; `Storage` when no checkpoint can be made.
pub async fn stream(member: &Arc<Member>, caller: &Caller) -> Result<impl Stream<Item = Item> + Send + use<>, Error> {
    let handle = member.handle()?;
    member.require_root(&handle, caller).await?;
    let (store, cluster_id, parent) = (handle.store(), handle.cluster_id(), member.settings().scratch_dir.clone());
    let timer = metrics::SNAPSHOT_STREAM.start_timer();
    let checkpoint = blocking(move || {
        make_checkpoint(&store, &parent, cluster_id).map_err(|error| Failure::Storage(error.to_string()).into())
    })
    .await?;
    let mut archive = Archive::new(checkpoint.directory.path(), &checkpoint.manifest);
    let next = move || {
        // Both end with the stream.
        let _held = (&checkpoint.directory, &timer);
        archive.next_message()
    };
    Ok(pieces::stream(std::iter::from_fn(next), AHEAD))
}

/// An archive on its way out.
struct Archive {
    content: Box<dyn Read + Send>,
    hasher: Sha256,
    /// Bytes of content that are not read yet.
    left: u64,
    done: bool,
}

impl Archive {
    fn new(directory: &Path, manifest: &SnapshotManifest) -> Self {
        let encoded = manifest.encode_to_vec();
        let length = u32::try_from(encoded.len()).unwrap_or(u32::MAX);
        let head = [&MAGIC[..], &length.to_le_bytes(), &encoded].concat();
        let files = manifest.files.iter().map(|file| (directory.join(&file.name), file.size)).collect();
        let size = head.len() as u64 + manifest.files.iter().map(|file| file.size).sum::<u64>();
        let padding = size.next_multiple_of(ALIGNMENT) - size;
        let content = io::Cursor::new(head).chain(Files { files, open: None }).chain(io::repeat(0).take(padding));
        Self { content: Box::new(content), hasher: Sha256::new(), left: size + padding, done: false }
    }

    /// The next message; after the content comes one with its checksum.
    fn next_message(&mut self) -> Option<Item> {
        if self.done {
            return None;
        }
        if self.left == 0 {
            self.done = true;
            return Some(Ok(self.message(self.hasher.clone().finalize().to_vec())));
        }
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        if let Err(error) = self.content.read_exact(&mut chunk) {
            self.done = true;
            return Some(Err(Error::Internal(format!("a checkpoint could not be read: {error}"))));
        }
        self.left -= chunk.len() as u64;
        self.hasher.update(&chunk);
        Some(Ok(self.message(chunk)))
    }

    fn message(&self, blob: Vec<u8>) -> pb::SnapshotResponse {
        pb::SnapshotResponse {
            header: None,
            remaining_bytes: self.left,
            blob: Bytes::from(blob),
            version: ETCD_CLUSTER_VERSION.to_owned(),
        }
    }
}

/// Files back to back, one open at a time. A file that is shorter than the manifest says is an error.
struct Files {
    files: VecDeque<(PathBuf, u64)>,
    open: Option<(File, u64)>,
}

impl Read for Files {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.open {
                Some((file, left)) if *left > 0 => {
                    let read = file.by_ref().take(*left).read(buffer)?;
                    if read == 0 && !buffer.is_empty() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    *left -= read as u64;
                    return Ok(read);
                }
                _ => match self.files.pop_front() {
                    None => return Ok(0),
                    Some((path, size)) => self.open = Some((File::open(path)?, size)),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::log::SnapshotFile;

    use super::*;

    /// A directory with files of these sizes, and its manifest.
    fn checkpoint(sizes: &[usize]) -> (tempfile::TempDir, SnapshotManifest) {
        let directory = tempfile::tempdir().unwrap();
        let files = sizes.iter().enumerate().map(|(number, size)| {
            let name = format!("{number}.sst");
            std::fs::write(directory.path().join(&name), vec![number as u8 + 1; *size]).unwrap();
            SnapshotFile { name, size: *size as u64, ..SnapshotFile::default() }
        });
        let manifest = SnapshotManifest { files: files.collect(), ..SnapshotManifest::default() };
        (directory, manifest)
    }

    fn messages(directory: &Path, manifest: &SnapshotManifest) -> Vec<Item> {
        let mut archive = Archive::new(directory, manifest);
        std::iter::from_fn(|| archive.next_message()).collect()
    }

    #[test]
    fn the_archive_ends_with_its_checksum_where_etcd_looks_for_it() {
        for sizes in [&[][..], &[0, 1, 512], &[CHUNK * 2 + 7, 3]] {
            let (directory, manifest) = checkpoint(sizes);
            let messages: Vec<_> = messages(directory.path(), &manifest).into_iter().map(Result::unwrap).collect();
            let all: Vec<u8> = messages.iter().flat_map(|message| message.blob.to_vec()).collect();
            assert_eq!(all.len() % 512, 32, "etcdctl refuses any other length");
            let (content, checksum) = all.split_at(all.len() - 32);
            assert_eq!(Sha256::digest(content).as_slice(), checksum);
            assert_eq!(messages.last().unwrap().remaining_bytes, 0);
            assert!(messages.windows(2).all(|pair| pair[0].remaining_bytes >= pair[1].remaining_bytes));
            let plain = |message: &pb::SnapshotResponse| message.header.is_none() && message.version == "3.6.0";
            assert!(messages.iter().all(plain), "no header, and in each message the version");
            assert_eq!(messages[0].remaining_bytes, (content.len() - messages[0].blob.len()) as u64);
        }
    }

    #[test]
    fn the_archive_holds_the_manifest_and_the_files_in_its_order() {
        let (directory, manifest) = checkpoint(&[3, 2]);
        let first = messages(directory.path(), &manifest).remove(0).unwrap().blob;
        assert!(first.starts_with(MAGIC));
        let length = u32::from_le_bytes(first[8..12].try_into().unwrap()) as usize;
        assert_eq!(SnapshotManifest::decode(&first[12..12 + length]).unwrap(), manifest);
        assert_eq!(first[12 + length..12 + length + 5], [1, 1, 1, 2, 2]);
    }

    #[test]
    fn a_file_that_is_too_short_ends_the_stream_with_an_error() {
        let (directory, mut manifest) = checkpoint(&[3, 2]);
        manifest.files[1].size = 4;
        let messages = messages(directory.path(), &manifest);
        assert!(messages.last().unwrap().is_err(), "a truncated archive must never look whole");
    }
}
