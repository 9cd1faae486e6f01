//! Snapshots that this member sends: one checkpoint of the key space serves every peer that needs one, and goes when
//! nobody does.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use balsa_proto::log::SnapshotManifest;
use tracing::{info, warn};

use super::Store;
use super::inbox::{Inbox, Input};
use super::keeper::Keeper;
use crate::domain::apply::{ApplyError, StateMachine};
use crate::metrics;
use crate::storage::{self, KeySpace, SnapshotPoint, StorageError};
use crate::transport::tonic::TonicPeers;

/// A checkpoint that nobody fetches is removed after this long: it keeps files on the disk.
const KEEP_UNUSED: Duration = Duration::from_secs(60);

/// A checkpoint on the disk.
pub(crate) struct Checkpoint {
    pub(crate) point: SnapshotPoint,
    pub(crate) manifest: SnapshotManifest,
    pub(crate) directory: Scratch,
}

/// The directory of a checkpoint, which goes when this does: as long as it is there it holds disk space, for its files are
/// those of the store.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                warn!(directory = %self.0.display(), %error, "a checkpoint could not be removed");
            }
            _ => {}
        }
    }
}

/// Makes a checkpoint below `parent`. Index, term and configuration are read out of the checkpoint itself, because the
/// live store goes on.
pub(crate) fn make(store: &Store, parent: &Path, cluster_id: u64) -> Result<Checkpoint, ApplyError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| StorageError::Failed {
        what: format!("{what} {}", parent.display()),
        cause: error.to_string(),
    };
    std::fs::create_dir_all(parent).map_err(|error| failed("create", &error))?;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let id = format!("{:x}", since_epoch.as_nanos());
    let directory = Scratch(parent.join(&id));
    store.checkpoint(directory.path())?;
    let copy = StateMachine::open(Arc::new(Store::open_read_only(directory.path())?))?;
    let point = super::member::point_of(copy.applied());
    let revision = copy.revision();
    drop(copy);
    let facts = storage::snapshot::Facts {
        snapshot_id: id,
        cluster_id,
        point: point.clone(),
        revision,
        unix_seconds: since_epoch.as_secs() as i64,
    };
    let manifest = storage::snapshot::manifest(directory.path(), &facts)?;
    super::failpoint::hit("checkpoint-made")?;
    Ok(Checkpoint { point, manifest, directory })
}

/// The sender's side; it lives with the driver.
pub(crate) struct Snapshots {
    peers: Arc<TonicPeers>,
    inbox: Arc<Inbox>,
    runtime: tokio::runtime::Handle,
    making: bool,
    ready: Option<Checkpoint>,
    running: HashMap<u64, u64>,
    last_used: Instant,
}

impl Snapshots {
    /// Nothing made, nothing sent.
    pub(crate) fn new(peers: Arc<TonicPeers>, inbox: Arc<Inbox>, runtime: tokio::runtime::Handle) -> Self {
        let running = HashMap::new();
        Self { peers, inbox, runtime, making: false, ready: None, running, last_used: Instant::now() }
    }

    /// Raft wants a snapshot that is not there, or not recent enough.
    pub(crate) fn want(&mut self, keeper: &Keeper) {
        if !self.making && self.running.is_empty() {
            self.making = true;
            keeper.checkpoint();
        }
    }

    /// A checkpoint was made, or could not be. Says what can be offered to Raft.
    pub(crate) fn made(&mut self, checkpoint: Option<Checkpoint>) -> Option<SnapshotPoint> {
        self.making = false;
        self.last_used = Instant::now();
        self.ready = checkpoint;
        self.ready.as_ref().map(|ready| ready.point.clone())
    }

    /// Starts a transfer; its end comes as an input. False when there is nothing to send.
    pub(crate) fn send(&mut self, to: u64, term: u64) -> bool {
        let Some(ready) = &self.ready else { return false };
        self.last_used = Instant::now();
        self.running.insert(to, ready.point.index);
        let (peers, inbox) = (self.peers.clone(), self.inbox.clone());
        let (directory, manifest) = (ready.directory.path().to_owned(), ready.manifest.clone());
        self.runtime.spawn(async move {
            let (started, index) = (Instant::now(), manifest.index);
            let to_hex = format!("{to:x}");
            let running = metrics::SNAPSHOTS_RUNNING.with_label_values(&[&to_hex]);
            running.inc();
            let result = peers.send_snapshot(to, directory, manifest, term).await;
            running.dec();
            let counted = if result.is_ok() { &metrics::SNAPSHOTS_SENT } else { &metrics::SNAPSHOTS_FAILED };
            counted.with_label_values(&[&to_hex]).inc();
            metrics::SNAPSHOT_SECONDS.with_label_values(&[&to_hex]).observe(started.elapsed().as_secs_f64());
            match &result {
                Ok(_) => info!(to = to_hex, index, took = ?started.elapsed(), "sent database snapshot"),
                Err(error) => warn!(to = to_hex, index, %error, "a snapshot did not arrive"),
            }
            inbox.report(Input::SnapshotSent { to, arrived: result.is_ok() });
        });
        true
    }

    /// A transfer ended.
    pub(crate) fn ended(&mut self, to: u64) {
        self.running.remove(&to);
        self.last_used = Instant::now();
    }

    /// The lowest index that a running transfer needs the log to go on from.
    pub(crate) fn lowest_running(&self) -> Option<u64> {
        let ready = self.ready.as_ref().map(|ready| ready.point.index);
        self.running.values().copied().chain(ready).min()
    }

    /// Drops a checkpoint that nobody fetches; says whether it did.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let unused = self.ready.is_some() && self.running.is_empty();
        let expired = unused && now.saturating_duration_since(self.last_used) > KEEP_UNUSED;
        if expired {
            self.ready = None;
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::mvcc::encoding::FORMAT;
    use crate::storage::rocks::KeySpaceOptions;
    use crate::storage::{Table, WriteBatch};

    #[test]
    fn nothing_is_left_of_a_checkpoint_that_failed_or_that_nobody_wants_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("snapshots");
        let entries = || std::fs::read_dir(&parent).unwrap().count();
        let store = Store::open(&directory.path().join("store"), &KeySpaceOptions::default()).unwrap();
        let made = make(&store, &parent, 1).unwrap();
        assert_eq!(entries(), 1);
        drop(made);
        assert_eq!(entries(), 0);
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, FORMAT, u32::MAX.to_be_bytes().to_vec());
        store.write(batch).unwrap();
        assert!(matches!(make(&store, &parent, 1), Err(ApplyError::Format { found: u32::MAX })));
        assert_eq!(entries(), 0);
    }
}
