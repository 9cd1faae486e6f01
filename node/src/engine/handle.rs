//! The cheap, cloneable way into a running member. Everything a service may ask of the engine is here.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use balsa_proto::{log, peer};

use super::{Failure, Status, Store};
use crate::domain::command::{Command, Outcome};
use crate::storage::KeySpace;

/// A handle to one running member of one group.
#[derive(Clone)]
pub struct Handle {}

/// A membership change as callers ask for it. The id of an added member is taken by the engine.
pub use log::membership_change::Change;

impl Handle {
    /// This member's raft id.
    pub fn member_id(&self) -> u64 {
        todo!()
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        todo!()
    }

    /// Replicates and applies a command; resolves when this member has applied it. Works on any member.
    ///
    /// # Errors
    /// `Refused` by the model; `TooManyRequests`, `TooLarge`, `NoLeader`: not in the log and never will be;
    /// `TimedOut`, `Stopped`: unknown.
    pub async fn propose(&self, _command: Command) -> Result<Outcome, Failure> {
        todo!()
    }

    /// Resolves once this member has applied everything that was committed when the call was made: a read of
    /// [`view`](Self::view) after it is linearizable.
    ///
    /// # Errors
    /// `NoLeader`, `LeaderChanged`, `TimedOut`, `Stopped`.
    pub async fn read_index(&self) -> Result<(), Failure> {
        todo!()
    }

    /// A consistent view of the applied state.
    ///
    /// # Errors
    /// `Storage`.
    pub fn view(&self) -> Result<<Store as KeySpace>::View, Failure> {
        todo!()
    }

    /// Changes the membership, on the leader. `planned_on` 0 means unfenced. For `Add` the id is ignored and taken from
    /// the replicated counter. Resolves when this member has applied the change. Changes that are already done
    /// (promote of a voter, remove of a removed id, add of a listed URL) are refused by the model with a typed
    /// [`Refusal`](crate::domain::refusal::Refusal); the node service turns those into success.
    ///
    /// # Errors
    /// See [`Failure`]; `NotLeader` on any other member.
    pub async fn change_membership(&self, _change: Change, _planned_on: u64) -> Result<Arc<log::Membership>, Failure> {
        todo!()
    }

    /// Hands leadership to the voter `target` and waits, at most one election timeout, until it leads.
    ///
    /// # Errors
    /// `NotLeader`, `BadTransferee`, `ChangeInFlight`, `TimedOut`.
    pub async fn move_leader(&self, _target: u64) -> Result<(), Failure> {
        todo!()
    }

    /// The present picture of this member.
    pub fn status(&self) -> Arc<Status> {
        todo!()
    }

    /// Resolves at the next change of leader or term after the call, or at once when `seen` is not the present one.
    pub async fn leader_changed(&self, _seen: (u64, u64)) -> (u64, u64) {
        todo!()
    }

    /// When a background read index last succeeded; readiness is "within the last 2 s".
    pub fn last_read_index(&self) -> Option<Instant> {
        todo!()
    }

    /// Takes a frame from a peer. Never blocks: a full inbox drops Raft messages and refuses forwarded proposals.
    pub fn receive(&self, _frame: peer::Frame) {
        todo!()
    }

    /// The hub that watch streams are opened on.
    pub fn watch_hub(&self) -> &Arc<super::watch::WatchHub> {
        todo!()
    }

    /// The store in use. It is replaced when a snapshot is installed: do not keep it across awaits.
    pub fn store(&self) -> Arc<Store> {
        todo!()
    }

    /// Hands leadership away if this member leads, waits for what is in flight, flushes and stops all threads.
    pub fn stop(&self) -> impl Future<Output = ()> + Send {
        async { todo!() }
    }
}
