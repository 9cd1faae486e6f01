//! Sends a checkpoint: on a connection of its own, so that it delays no frame, and never more than a few chunks in memory.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::log::SnapshotManifest;
use balsa_proto::peer::snapshot_chunk::Body;
use balsa_proto::peer::{SnapshotChunk, SnapshotData};
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;

use super::dial::peer_client;
use super::{AskError, TonicPeers};
use crate::storage::snapshot::MAX_CHUNK_BYTES;

/// Chunks between the disk and the stream; the reader waits when it is full.
const CHUNKS_IN_MEMORY: usize = 2;
/// Without a chunk taken or an answer for this long, the transfer has failed.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The peer is not listed.
    #[error("member {0:x} is unknown")]
    UnknownPeer(u64),
    /// No connection.
    #[error(transparent)]
    Unreachable(#[from] AskError),
    /// A file of the checkpoint cannot be read, or is not what the manifest says.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: String,
        /// What happened.
        cause: String,
    },
    /// Nothing moved for 30 s.
    #[error("no progress for {} s", MAX_SILENCE.as_secs())]
    Stalled,
    /// The receiver refused it, or the connection broke.
    #[error("not taken: {0}")]
    Refused(String),
}

impl TonicPeers {
    /// Sends the files of `directory`, which `manifest` lists, to the peer `to`, in the name of Raft's `term`. True when
    /// the peer has installed it, false when it was past it already.
    ///
    /// # Errors
    /// [`SnapshotError`]; the peer keeps nothing of it.
    pub async fn send_snapshot(
        &self,
        to: u64,
        directory: PathBuf,
        manifest: SnapshotManifest,
        term: u64,
    ) -> Result<bool, SnapshotError> {
        let urls = self.urls_of(to).ok_or(SnapshotError::UnknownPeer(to))?;
        let config = &self.shared.config;
        let mut client = peer_client(config.dialer.connect_any(&urls).await?);
        let head = SnapshotChunk { cluster_id: config.cluster_id, from: config.member_id, to, term, body: None };
        let (chunks, outgoing) = mpsc::channel(CHUNKS_IN_MEMORY);
        let reader = tokio::task::spawn_blocking(move || read(&directory, &manifest, &head, &chunks));
        let progress = Arc::new(Mutex::new(Instant::now()));
        let (moved, metrics) = (progress.clone(), config.metrics.clone());
        let outgoing = ReceiverStream::new(outgoing).inspect(move |chunk: &SnapshotChunk| {
            *moved.lock() = Instant::now();
            metrics.sent(to, chunk.encoded_len());
        });
        let answer = tokio::select! {
            answer = client.snapshot(outgoing) => answer,
            () = silence(&progress) => return Err(SnapshotError::Stalled),
        };
        // The receiver's answer to a file that could not be read is not the reason.
        match (reader.await, answer) {
            (Ok(Err(error)), _) => Err(error),
            (_, Ok(receipt)) => Ok(receipt.into_inner().installed),
            (_, Err(status)) => Err(SnapshotError::Refused(super::dial::words(&status))),
        }
    }
}

/// Resolves when nothing has moved for [`MAX_SILENCE`].
async fn silence(progress: &Mutex<Instant>) {
    loop {
        let deadline = *progress.lock() + MAX_SILENCE;
        if deadline <= Instant::now() {
            return;
        }
        sleep_until(deadline).await;
    }
}

/// Reads the checkpoint into the channel, manifest first. Ends early, without an error, when the stream is gone. Blocks.
fn read(
    directory: &Path,
    manifest: &SnapshotManifest,
    head: &SnapshotChunk,
    chunks: &mpsc::Sender<SnapshotChunk>,
) -> Result<(), SnapshotError> {
    let send = |body| chunks.blocking_send(SnapshotChunk { body: Some(body), ..head.clone() }).is_ok();
    if !send(Body::Manifest(manifest.clone())) {
        return Ok(());
    }
    for (position, listed) in manifest.files.iter().enumerate() {
        let path = directory.join(&listed.name);
        let failed = |cause: &dyn std::fmt::Display| SnapshotError::Read {
            path: path.display().to_string(),
            cause: cause.to_string(),
        };
        let mut file = File::open(&path).map_err(|error| failed(&error))?;
        let mut offset = 0;
        while offset < listed.size {
            let length = (listed.size - offset).min(MAX_CHUNK_BYTES as u64) as usize;
            let mut data = vec![0; length];
            file.read_exact(&mut data).map_err(|error| failed(&error))?;
            let crc32c = crc32c::crc32c(&data);
            let data = SnapshotData { file: position as u32, offset, data: Bytes::from(data), crc32c };
            if !send(Body::Data(data)) {
                return Ok(());
            }
            offset += length as u64;
        }
    }
    Ok(())
}
