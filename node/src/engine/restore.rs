//! Makes the disk of a new member out of the files of a snapshot, while nothing runs on it.

use std::path::Path;

use balsa_proto::log::Marker;

use super::member::{self, Layout};
use super::node::{random, static_membership};
use super::start_error::StartError;
use super::vacancy::is_empty;
use super::{Bootstrap, NodeConfig, Store};
use crate::domain::apply::ApplyError;
use crate::domain::mvcc::{self, HashKv, ReadError};
use crate::domain::restore::{self, RevisionChange};
use crate::storage::marker;
use crate::storage::snapshot::FORMAT_VERSION;
use crate::storage::{KeySpace, LogStore, LogWrite, StorageError, rocks::RocksLog};

/// What a restored disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The new cluster.
    pub cluster_id: u64,
    /// This member of it.
    pub member_id: u64,
    /// The revision that it starts with.
    pub revision: i64,
}

/// Founds the disk that `config` describes on a snapshot, whose files `unpack` writes into the directory that it is
/// given. Every member of the new cluster is made so, from the same snapshot and the same member list; they agree on
/// ids because those follow from both. A disk that holds anything is refused.
///
/// # Errors
/// See [`StartError`].
pub fn restore<E: Into<StartError>>(
    config: &NodeConfig,
    change: RevisionChange,
    unpack: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<Restored, StartError> {
    let Bootstrap::Static { members, token, .. } = &config.bootstrap else {
        return Err(StartError::Config("a snapshot is restored for the members of --initial-cluster".to_owned()));
    };
    let members = members.as_ref().map_err(|why| StartError::Config(why.clone()))?;
    let founded = static_membership(members, token);
    let layout = Layout(config.data_dir.clone());
    if !is_empty(&layout.0)? {
        return Err(StartError::Config(format!("data-dir {} is not empty", layout.0.display())));
    }
    marker::announce_restore(&layout.0)?;
    member::create(&layout.key_spaces())?;
    let directory = layout.key_spaces().join(member::FIRST);
    unpack(&directory).map_err(Into::into)?;
    let store = std::sync::Arc::new(Store::open(&directory, &config.key_space)?);
    let (membership, point) = restore::restore(store.clone(), founded.cluster_id, founded.members, change)?;
    let revision = mvcc::current(&store.view()?)?.revision;
    drop(store);
    let log = RocksLog::open(&layout.log())?;
    let hard_state = raft::eraftpb::HardState { term: point.term, commit: point.index, ..Default::default() };
    log.write(LogWrite {
        reset_to: Some(&point),
        hard_state: Some(&hard_state),
        key_space: Some(member::FIRST),
        sync: true,
        ..LogWrite::default()
    })?;
    let own = membership.members.iter().find(|member| member.name == config.name);
    let Some(member_id) = own.map(|member| member.id) else {
        return Err(StartError::Config(format!("initial-cluster does not name this member, {:?}", config.name)));
    };
    let cluster_id = membership.cluster_id;
    // Last: until then the disk is nobody's, and a restore that was cut short is begun anew on an empty directory.
    let incarnation = random();
    let format_version = FORMAT_VERSION;
    marker::write(&layout.0, &Marker { format_version, cluster_id, member_id, incarnation, seeds: Vec::new() })?;
    Ok(Restored { cluster_id, member_id, revision })
}

/// What the files of a snapshot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The hash of the key history, as HashKV of a member would give it.
    pub hash: HashKv,
    /// Versions of keys, the current and the superseded ones.
    pub versions: u64,
}

/// Reads the unpacked files of a snapshot.
///
/// # Errors
/// `Corrupt`, `Disk`.
pub fn inspect(directory: &Path) -> Result<Contents, StartError> {
    let store = Store::open_read_only(directory)?;
    let view = store.view()?;
    let hash = mvcc::hash_kv(&view, 0).map_err(|error| match error {
        ReadError::Storage(error) => StartError::from(error),
        ReadError::Refused(refusal) => ApplyError::Storage(StorageError::Corrupt { what: refusal.to_string() }).into(),
    })?;
    Ok(Contents { hash, versions: mvcc::count_versions(&view)? })
}
