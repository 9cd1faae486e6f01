//! Writes that fail on purpose, and stores whose process has died.

use crate::storage::{Result, StorageError};

/// What is left of a write that failed. Nothing can be said of a disk after a failure, so both must be survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedWrite {
    /// Nothing of it.
    Lost,
    /// All of it, as durable as it would have been.
    Kept,
}

/// The faults of one store.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Writes until the one that fails, that one included; and what is left of it.
    planned: Option<(u64, FailedWrite)>,
    /// Why nothing works any more.
    dead: Option<&'static str>,
}

impl Faults {
    pub(super) fn plan(&mut self, nth: u64, left: FailedWrite) {
        self.planned = Some((nth.max(1), left));
    }

    pub(super) fn crash(&mut self) {
        self.dead = Some("the process has crashed");
    }

    /// Whether the store still works.
    pub(super) fn check(&self, what: &str) -> Result<()> {
        self.dead.map_or(Ok(()), |cause| Err(failed(what, cause)))
    }

    /// Runs a write, or fails it; after one failure everything fails.
    pub(super) fn write(&mut self, what: &str) -> Result<Option<FailedWrite>> {
        self.check(what)?;
        let Some((left_to_go, left)) = &mut self.planned else { return Ok(None) };
        *left_to_go -= 1;
        if *left_to_go > 0 {
            return Ok(None);
        }
        self.dead = Some("an earlier write has failed");
        Ok(Some(*left))
    }
}

pub(super) fn failed(what: &str, cause: &str) -> StorageError {
    StorageError::Failed { what: what.to_owned(), cause: cause.to_owned() }
}

/// Result of a write that happened but was planned to fail.
pub(super) fn outcome(what: &str, fate: Option<FailedWrite>) -> Result<()> {
    fate.map_or(Ok(()), |_| Err(failed(what, "failed as planned")))
}
