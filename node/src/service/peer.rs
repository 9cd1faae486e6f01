//! What a member does with what other members send: frames go to the engine, a snapshot to the disk and then to the
//! engine, and anybody may ask for this member's own view of the membership.
//!
//! It decides whether something is meant for this member and may be followed; it knows neither gRPC nor Raft.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use balsa_proto::log::SnapshotManifest;
use balsa_proto::peer::{
    Forward, Frame, HashRequest, HashResponse, MembersResponse, SnapshotChunk, SnapshotData, frame,
    snapshot_chunk::Body,
};
use prometheus::IntCounter;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use super::corruption;
use crate::domain::apply::check_batch;
use crate::engine::{Failure, Handle, Layout};
use crate::metrics::{
    SNAPSHOT_RECEIVE_SECONDS, SNAPSHOT_SAVE, SNAPSHOTS_COMING, SNAPSHOTS_NOT_RECEIVED, SNAPSHOTS_RECEIVED,
};
use crate::storage::snapshot::{self, Staging};
use crate::storage::{StorageError, durable};
use crate::transport::tonic::PeerMetrics;

static FOREIGN_FRAMES: LazyLock<IntCounter> = LazyLock::new(|| {
    let name = "balsa_peer_foreign_frames_total";
    let help = "Frames dropped because they were meant for another member or cluster, or sent by a removed member.";
    prometheus::register_int_counter!(name, help).expect("a valid name, used once")
});

/// The way to the engine, once the disk is a member's.
pub type Way = Arc<dyn Fn() -> Result<Handle, Failure> + Send + Sync>;

/// Why something from a peer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The engine could not take it, or there is none yet.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It was sent to another member or another cluster.
    #[error("meant for member {to:x} of cluster {cluster_id:x}")]
    Foreign {
        /// The cluster it was sent to.
        cluster_id: u64,
        /// The member it was sent to.
        to: u64,
    },
    /// The sender was removed from the cluster.
    #[error("sent by member {0:x}, which was removed from the cluster")]
    Removed(u64),
    /// The revision cannot be hashed, or not any more.
    #[error("no hash: {0}")]
    Hash(String),
    /// Chunks in an order that none of ours sends.
    #[error("{0}")]
    OutOfOrder(&'static str),
    /// A snapshot is being received already.
    #[error("a snapshot is being received already")]
    Busy,
    /// The snapshot is damaged, or the disk refuses it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The peer service of one process.
pub struct PeerService {
    /// A received snapshot becomes one of those in there.
    key_spaces: PathBuf,
    way: Way,
    metrics: PeerMetrics,
    /// One snapshot at a time: two would share the disk and only one can win.
    receiving: Arc<Semaphore>,
}

impl PeerService {
    /// The service of the member whose disk is `data_dir`, or will be.
    pub fn new(data_dir: &Path, way: Way) -> Self {
        LazyLock::force(&FOREIGN_FRAMES);
        Self {
            key_spaces: Layout(data_dir.to_owned()).key_spaces(),
            way,
            metrics: PeerMetrics::default(),
            receiving: Arc::new(Semaphore::new(1)),
        }
    }

    /// Where the frames of one stream go.
    ///
    /// # Errors
    /// `Uninitialized`.
    pub fn frames(&self) -> Result<FrameSink, PeerError> {
        let handle = (self.way)()?;
        let (cluster_id, member_id) = (handle.cluster_id(), handle.member_id());
        let of_members = handle.clone();
        let removed = Box::new(move |id| of_members.was_removed(id));
        let forward = Box::new(move |frame| handle.receive(frame));
        Ok(FrameSink { cluster_id, member_id, metrics: self.metrics.clone(), removed, forward })
    }

    /// Begins to receive a snapshot by its first chunk.
    ///
    /// # Errors
    /// `Uninitialized`; `Busy`; `Foreign`; `Removed`; `OutOfOrder` when the first chunk is no manifest; `Storage` when it must not
    /// be followed or does not fit. Nothing is left on the disk.
    pub async fn receive(&self, first: SnapshotChunk) -> Result<Incoming, PeerError> {
        let handle = (self.way)()?;
        let permit = self.receiving.clone().try_acquire_owned().map_err(|_| PeerError::Busy)?;
        let head = Head::of(&first);
        if (head.cluster_id, head.to) != (handle.cluster_id(), handle.member_id()) || head.from == head.to {
            return Err(PeerError::Foreign { cluster_id: head.cluster_id, to: head.to });
        }
        if handle.was_removed(head.from) {
            return Err(PeerError::Removed(head.from));
        }
        self.metrics.received(head.from, first.encoded_len());
        let Some(Body::Manifest(manifest)) = first.body else {
            return Err(PeerError::OutOfOrder("a snapshot without a manifest"));
        };
        if manifest.cluster_id != head.cluster_id {
            return Err(PeerError::Foreign { cluster_id: manifest.cluster_id, to: head.to });
        }
        let receipt = Receipt::begin(head.from);
        let name = directory_name(&manifest);
        let (parent, staged) = (self.key_spaces.clone(), name.clone());
        let (manifest, place) = on_disk(move || {
            let staging = Staging::begin(&parent, &staged, &manifest)?;
            Ok((manifest, Place { staging, permit }))
        })
        .await?;
        info!(from = format!("{:x}", head.from), index = manifest.index, name, "receiving a snapshot");
        Ok(Incoming { head, name, manifest, place, handle, metrics: self.metrics.clone(), receipt })
    }

    /// Whether another snapshot would be refused.
    #[cfg(test)]
    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving.available_permits() == 0
    }

    /// The hash of this member's key history.
    ///
    /// # Errors
    /// `Foreign`, `Hash`; `Failed` while there is no member.
    pub async fn hash(&self, request: HashRequest) -> Result<HashResponse, PeerError> {
        let handle = (self.way)()?;
        if (request.cluster_id, request.to) != (handle.cluster_id(), handle.member_id()) {
            return Err(PeerError::Foreign { cluster_id: request.cluster_id, to: request.to });
        }
        let hash = corruption::own_hash(&handle, request.revision).await;
        let hash = hash.map_err(|error| PeerError::Hash(error.to_string()))?;
        Ok(HashResponse { hash: hash.hash, compact_revision: hash.compact_revision, revision: hash.revision })
    }

    /// This member's own view of the membership.
    pub fn members(&self) -> MembersResponse {
        let Ok(handle) = (self.way)() else { return MembersResponse::default() };
        let status = handle.status();
        MembersResponse {
            initialized: true,
            membership: Some((*status.membership).clone()),
            leader: status.leader,
            term: status.term,
        }
    }
}

/// Takes the frames of one stream.
pub struct FrameSink {
    cluster_id: u64,
    member_id: u64,
    metrics: PeerMetrics,
    /// Says whether a member was removed.
    removed: Box<dyn Fn(u64) -> bool + Send + Sync>,
    /// Says whether there was room.
    forward: Box<dyn Fn(Frame) -> bool + Send + Sync>,
}

impl FrameSink {
    /// Hands a frame to the engine, without ever waiting. One that is not meant for this member is dropped and counted: a
    /// replaced member keeps its address, so that its successor gets what was sent to it. So is one of a removed member, as by
    /// etcd: it is of no use and may harm, for after `--force-new-cluster` the old members may still run, with another log in
    /// the same terms. Nor does a batch pass that no member could apply: the engine proposes what is forwarded as it is.
    pub fn take(&self, frame: Frame) {
        let ours = (frame.cluster_id, frame.to) == (self.cluster_id, self.member_id);
        if !ours || frame.from == 0 || frame.from == self.member_id || (self.removed)(frame.from) {
            FOREIGN_FRAMES.inc();
            return;
        }
        let from = frame.from;
        self.metrics.received(from, frame.encoded_len());
        let fit = match &frame.body {
            Some(frame::Body::Forward(forward)) => check(forward),
            _ => Ok(()),
        };
        if let Err(error) = &fit {
            warn!(from = format!("{from:x}"), error, "a forwarded proposal that nobody could apply");
        }
        if fit.is_err() || !(self.forward)(frame) {
            self.metrics.not_received(from);
        }
    }
}

fn check(forward: &Forward) -> Result<(), String> {
    forward.proposals.iter().try_for_each(|proposal| check_batch(&proposal.batch))
}

/// What all chunks of one snapshot say alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    cluster_id: u64,
    from: u64,
    to: u64,
    term: u64,
}

impl Head {
    fn of(chunk: &SnapshotChunk) -> Self {
        Self { cluster_id: chunk.cluster_id, from: chunk.from, to: chunk.to, term: chunk.term }
    }
}

/// A snapshot that is being received. Dropped, it leaves nothing on the disk.
pub struct Incoming {
    head: Head,
    name: String,
    manifest: SnapshotManifest,
    place: Place,
    handle: Handle,
    metrics: PeerMetrics,
    receipt: Receipt,
}

/// The disk space of a snapshot that is being received, and the right to it, in one: a thread that still writes when the
/// sender has gone has both. Dropped, it removes what is on the disk, and makes room for the next snapshot only then.
struct Place {
    staging: Staging,
    permit: OwnedSemaphorePermit,
}

impl Incoming {
    /// Writes the next chunk to the disk.
    ///
    /// # Errors
    /// `OutOfOrder`, `Storage`; the snapshot is lost.
    pub async fn take(mut self, chunk: SnapshotChunk) -> Result<Self, PeerError> {
        if Head::of(&chunk) != self.head {
            return Err(PeerError::OutOfOrder("chunks of different snapshots"));
        }
        self.metrics.received(self.head.from, chunk.encoded_len());
        let Some(Body::Data(data)) = chunk.body else { return Err(PeerError::OutOfOrder("a second manifest")) };
        self.place = write(self.place, data).await?;
        Ok(self)
    }

    /// Everything has arrived: checks that, and offers it to Raft. True when it is in use from now on, false when this
    /// member is past it. It comes to its end also when nobody waits for that any more.
    ///
    /// # Errors
    /// `Storage` when something is missing; `Failed` when the engine did not take it, or ended.
    pub async fn finish(self) -> Result<bool, PeerError> {
        // A task of its own: the sender may go away before an engine that stands still says whether it takes the snapshot.
        tokio::spawn(self.offer()).await.unwrap_or(Err(Failure::Stopped.into()))
    }

    async fn offer(self) -> Result<bool, PeerError> {
        let Self { head, name, manifest, place: Place { staging, permit }, handle, receipt, .. } = self;
        let path = on_disk(move || staging.finish()).await?;
        receipt.done();
        let answer = handle.install_snapshot(name, snapshot::point(&manifest), head.from, head.term);
        // What waits for the engine must not keep it.
        drop(handle);
        let installed = match answer {
            Ok(answer) => answer.await.unwrap_or(Err(Failure::Stopped)),
            Err(failure) => Err(failure),
        };
        // An engine that ended without an answer may have taken it; if it did not, the next start removes it.
        if !matches!(installed, Ok(true) | Err(Failure::Stopped)) {
            warn!(index = manifest.index, ?installed, "a received snapshot is not needed");
            on_disk(move || remove(&path)).await?;
        }
        drop(permit);
        Ok(installed?)
    }
}

/// A snapshot on its way here, in the metrics. Dropped before it is done, it has failed.
struct Receipt {
    from: String,
    started: Instant,
    done: bool,
}

impl Receipt {
    fn begin(from: u64) -> Self {
        let from = format!("{from:x}");
        SNAPSHOTS_COMING.with_label_values(&[&from]).inc();
        Self { from, started: Instant::now(), done: false }
    }

    fn done(mut self) {
        self.done = true;
        let seconds = self.started.elapsed().as_secs_f64();
        SNAPSHOT_SAVE.observe(seconds);
        SNAPSHOT_RECEIVE_SECONDS.with_label_values(&[&self.from]).observe(seconds);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        SNAPSHOTS_COMING.with_label_values(&[&self.from]).dec();
        let counted = if self.done { &SNAPSHOTS_RECEIVED } else { &SNAPSHOTS_NOT_RECEIVED };
        counted.with_label_values(&[&self.from]).inc();
    }
}

async fn write(mut place: Place, data: SnapshotData) -> Result<Place, PeerError> {
    on_disk(move || {
        place.staging.write(&data)?;
        Ok(place)
    })
    .await
}

fn remove(path: &Path) -> Result<(), StorageError> {
    std::fs::remove_dir_all(path).map_err(|error| StorageError::from_io("remove", path, &error))?;
    path.parent().map_or(Ok(()), durable::sync_directory)
}

/// Runs what blocks on the disk where it delays nobody.
async fn on_disk<T, F>(work: F) -> Result<T, PeerError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StorageError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => {
            Err(StorageError::Failed { what: "receive a snapshot".to_owned(), cause: error.to_string() }.into())
        }
    }
}

/// A name that no other receipt has.
fn directory_name(manifest: &SnapshotManifest) -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let process = std::process::id();
    format!("{}-{}-{:x}-{process:x}", manifest.index, manifest.term, since_epoch.as_nanos())
}

#[cfg(test)]
mod tests {
    use balsa_proto::etcdserverpb::PutRequest;
    use balsa_proto::log::{Batch, Proposal, proposal::Command};
    use balsa_proto::peer::ForwardedProposal;
    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn only_frames_that_are_meant_for_this_member_reach_the_engine_and_those_without_room_are_counted() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let taking = taken.clone();
        let forward = Box::new(move |frame: Frame| {
            taking.lock().push(frame.incarnation);
            frame.from != 3
        });
        let (metrics, removed) = (PeerMetrics::default(), Box::new(|id: u64| id == 4));
        let sink = FrameSink { cluster_id: 7, member_id: 2, metrics, removed, forward };
        let frame = |cluster_id, from, to, incarnation| Frame { cluster_id, from, to, incarnation, body: None };
        let before = FOREIGN_FRAMES.get();
        let dropped = |from: &str| sink.metrics.received_failures.with_label_values(&[from]).get();
        let dropped_before = [dropped("1"), dropped("3")];
        for frame in [
            frame(7, 1, 2, 100),
            frame(8, 1, 2, 101),
            frame(7, 1, 3, 102),
            frame(7, 0, 2, 103),
            frame(7, 2, 2, 104),
            frame(7, 3, 2, 105),
            frame(7, 4, 2, 106),
        ] {
            sink.take(frame);
        }
        assert_eq!(*taken.lock(), [100, 105]);
        assert_eq!(FOREIGN_FRAMES.get() - before, 5);
        let now = [dropped("1"), dropped("3")];
        assert_eq!(now, [dropped_before[0], dropped_before[1] + 1], "the engine had no room for what 3 sent");
    }

    /// It would be committed, and end every member that applies it, at each start.
    #[test]
    fn a_forwarded_batch_that_cannot_be_applied_does_not_reach_the_engine_and_is_counted() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let taking = taken.clone();
        let forward = Box::new(move |frame: Frame| {
            taking.lock().push(frame.incarnation);
            true
        });
        let (metrics, removed) = (PeerMetrics::default(), Box::new(|_| false));
        let sink = FrameSink { cluster_id: 7, member_id: 2, metrics, removed, forward };
        let command = Some(Command::Put(PutRequest { key: "a".into(), ..PutRequest::default() }));
        let sound = Batch { proposals: vec![Proposal { sequence: 1, command, ..Proposal::default() }] }.encode_to_vec();
        let of_a_newer_version = Batch { proposals: vec![Proposal::default()] }.encode_to_vec();
        let cut_off = sound[..sound.len() - 1].to_vec();
        let frame = |incarnation, batches: &[&Vec<u8>]| {
            let proposal = |batch: &&Vec<u8>| ForwardedProposal { sequence: 1, batch: batch.to_vec().into() };
            let forward = Forward { term: 3, proposals: batches.iter().map(proposal).collect() };
            Frame { cluster_id: 7, from: 5, to: 2, incarnation, body: Some(frame::Body::Forward(forward)) }
        };
        let failures = sink.metrics.received_failures.with_label_values(&["5"]);
        let before = failures.get();
        sink.take(frame(100, &[&sound, &sound]));
        for (n, junk) in [b"\xff\xff junk".to_vec(), cut_off, of_a_newer_version].into_iter().enumerate() {
            sink.take(frame(101 + n as u64, &[&sound, &junk]));
        }
        sink.take(frame(110, &[]));
        assert_eq!(*taken.lock(), [100, 110]);
        assert_eq!(failures.get() - before, 3);
    }
}
