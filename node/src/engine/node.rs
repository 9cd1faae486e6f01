//! Stand-in for the coordinator's file of this name, so that the layers above compile: take theirs when merging.

use std::sync::Arc;

use balsa_proto::node::{ExitCode, JoinRequest};

use super::{Failure, Handle};
use crate::config::Config;

/// What the engine needs to know.
pub struct NodeConfig {}

impl From<&Config> for NodeConfig {
    fn from(_: &Config) -> Self {
        Self {}
    }
}

/// One process, member or not yet.
pub struct Node {}

/// Why the process must end.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Exit {
    /// The typed code.
    pub code: ExitCode,
    /// Of the marker, 0 without one.
    pub cluster_id: u64,
    /// Of the marker.
    pub raft_id: u64,
    /// Of the marker.
    pub incarnation: u64,
    /// What happened and what to do.
    pub message: String,
}

impl Node {
    /// Opens the disk.
    ///
    /// # Errors
    /// See [`Exit`].
    pub async fn open(_config: NodeConfig) -> Result<Arc<Self>, Exit> {
        todo!()
    }

    /// The way in.
    ///
    /// # Errors
    /// `Uninitialized`.
    pub fn handle(&self) -> Result<Handle, Failure> {
        todo!()
    }

    /// Founds a cluster.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn bootstrap(&self, _cluster_id: u64, _name: String, _peer_urls: Vec<String>) -> Result<(), Failure> {
        todo!()
    }

    /// Becomes a member.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn join(&self, _request: JoinRequest) -> Result<(), Failure> {
        todo!()
    }

    /// Resolves when the process must end by itself.
    pub async fn failed(&self) -> Exit {
        todo!()
    }
}
