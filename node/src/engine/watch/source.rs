//! Where the hub reads what a watcher has missed.

use crate::domain::mvcc::watch::MAX_REVISIONS_PER_RESPONSE;
use crate::domain::mvcc::{self, Changes, KeyRange, ReadError, RevisionEvents, Revisions};
use crate::domain::refusal::Refusal;
use crate::engine::Failure;
use crate::storage::{StorageError, View};

/// What changed in a range from some revision on.
#[derive(Debug, Clone, PartialEq)]
pub enum Missed {
    /// The revision asked for was compacted.
    Compacted {
        /// The compacted revision.
        revision: i64,
    },
    /// All changes of the range up to and including `through`, which is at least the revision asked for.
    Changes {
        /// In order; revisions that did not touch the range are left out.
        revisions: Vec<RevisionEvents>,
        /// How far the source was read.
        through: i64,
    },
}

/// The store, as watchers that are behind need it.
pub trait ChangeSource: Send + Sync + 'static {
    /// The present revisions.
    ///
    /// # Errors
    /// Of the store.
    fn revisions(&self) -> Result<Revisions, Failure>;

    /// Reads what changed in `range` at `from` and after it, in a bounded piece. `from` is not above the current
    /// revision.
    ///
    /// # Errors
    /// Of the store.
    fn missed(&self, range: &KeyRange, from: i64) -> Result<Missed, Failure>;
}

/// The source that a member uses: a view of its store, taken anew for each read because an installed snapshot replaces
/// the store. A failure of the store is announced to the second, because the member must not go on after it.
pub struct ViewSource<F, G>(pub F, pub G);

impl<V, F, G> ChangeSource for ViewSource<F, G>
where
    V: View,
    F: Fn() -> Result<V, Failure> + Send + Sync + 'static,
    G: Fn(&StorageError) + Send + Sync + 'static,
{
    fn revisions(&self) -> Result<Revisions, Failure> {
        Ok(mvcc::current(&(self.0)()?)?)
    }

    fn missed(&self, range: &KeyRange, from: i64) -> Result<Missed, Failure> {
        let view = (self.0)()?;
        let now = mvcc::current(&view)?;
        match mvcc::changes(&view, range, from, now.revision, MAX_REVISIONS_PER_RESPONSE) {
            Ok(Changes { revisions, next_revision }) => {
                Ok(Missed::Changes { revisions, through: next_revision.saturating_sub(1) })
            }
            Err(ReadError::Refused(Refusal::Compacted)) => Ok(Missed::Compacted { revision: now.compacted }),
            Err(ReadError::Refused(other)) => Err(other.into()),
            Err(ReadError::Storage(error)) => {
                (self.1)(&error);
                Err(error.into())
            }
        }
    }
}
