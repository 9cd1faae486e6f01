//! What all use cases of one process share: the way into the engine, the limits, and the two flags that make it unready.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::Guard;
use balsa_proto::etcdserverpb as pb;
use tokio_util::sync::CancellationToken;

use super::caller::AuthSettings;
use super::failure::Error;
use super::password::Passwords;
use crate::config::hot::{Active, HotConfig};
use crate::engine::{Failure, Handle, Node, Status};

/// Limits and facts of the configuration that use cases need.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This member's name.
    pub name: String,
    /// What can change while the process runs.
    pub hot: Arc<HotConfig>,
    /// Reads that take longer are logged.
    pub slow_read: Duration,
    /// Whether etcd's membership calls are refused when they would endanger the quorum.
    pub strict_reconfig_check: bool,
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// Where checkpoints for snapshot streams are made; on the file system of the store, emptied at start.
    pub scratch_dir: PathBuf,
    /// How callers prove who they are.
    pub auth: AuthSettings,
}

/// One process that is, or may become, a member.
pub struct Member {
    node: Arc<Node>,
    settings: Settings,
    draining: AtomicBool,
    /// The cluster id that a caller latched, when it is not ours; else 0.
    foreign: AtomicU64,
    stopping: CancellationToken,
    passwords: Passwords,
}

impl Member {
    /// Wraps a node.
    pub fn new(node: Arc<Node>, settings: Settings) -> Self {
        let passwords = Passwords::new(settings.auth.bcrypt_cost, settings.auth.password_threads);
        Self {
            node,
            settings,
            passwords,
            draining: AtomicBool::new(false),
            foreign: AtomicU64::new(0),
            stopping: CancellationToken::new(),
        }
    }

    /// The configured limits and facts.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The active settings of those that can change: one guard, one version.
    pub fn hot(&self) -> Guard<Arc<Active>> {
        self.settings.hot.load()
    }

    /// Where passwords are hashed and compared.
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// The node below, for its lifecycle.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The way into the engine.
    ///
    /// # Errors
    /// `Uninitialized` until the disk is a member's.
    pub fn handle(&self) -> Result<Handle, Failure> {
        self.node.handle()
    }

    /// The way into the engine for calls that learners do not serve.
    ///
    /// # Errors
    /// `Uninitialized`; `Learner`.
    pub fn voter(&self) -> Result<Handle, Error> {
        let handle = self.handle()?;
        if handle.status().is_learner() { Err(Error::Learner) } else { Ok(handle) }
    }

    /// For requests that say they need a leader (metadata `hasleader`).
    ///
    /// # Errors
    /// `NoLeader` at once when none is known.
    pub fn require_leader(&self) -> Result<(), Error> {
        if self.handle()?.status().leader == 0 { Err(Failure::NoLeader.into()) } else { Ok(()) }
    }

    /// Makes the member unready for good. Whether this call was the first to do so.
    pub fn start_draining(&self) -> bool {
        !self.draining.swap(true, Ordering::SeqCst)
    }

    /// Whether the member is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Remembers which cluster the operator holds this node for. 0 says nothing.
    pub fn note_expected_cluster(&self, expected: u64) {
        if expected == 0 {
            return;
        }
        let foreign = match self.handle() {
            Ok(handle) if handle.cluster_id() != expected => expected,
            _ => 0,
        };
        self.foreign.store(foreign, Ordering::SeqCst);
    }

    /// The other cluster that the operator holds this node for, if it does.
    pub fn foreign_cluster(&self) -> Option<u64> {
        Some(self.foreign.load(Ordering::SeqCst)).filter(|id| *id != 0)
    }

    /// Cancelled when long-lived streams must end, because the listeners are about to close.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }
}

/// A header as of `status`, at `revision`.
pub fn header(status: &Status, revision: i64) -> pb::ResponseHeader {
    pb::ResponseHeader { cluster_id: status.cluster_id, member_id: status.raft_id, revision, raft_term: status.term }
}

/// Adds ids and term to the header of the model, which holds only the revision.
pub fn complete(model: Option<pb::ResponseHeader>, status: &Status) -> Option<pb::ResponseHeader> {
    Some(header(status, model.map_or(0, |header| header.revision)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completed_header_keeps_the_models_revision() {
        let status = Status { cluster_id: 1, raft_id: 2, term: 3, revision: 99, ..Status::default() };
        let model = pb::ResponseHeader { revision: 7, ..Default::default() };
        let expected = pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 7, raft_term: 3 };
        assert_eq!(complete(Some(model), &status), Some(expected));
    }
}
