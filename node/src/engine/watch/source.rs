//! Where the hub reads what a watcher has missed.

use crate::domain::mvcc::{self, Changes, ReadError, RevisionEvents, Revisions, Wanted};
use crate::domain::refusal::Refusal;
use crate::engine::Failure;
use crate::storage::{StorageError, View};

/// What changed in some ranges from some revision on.
#[derive(Debug, Clone, PartialEq)]
pub enum Missed {
    /// The revision asked for was compacted.
    Compacted {
        /// The compacted revision.
        revision: i64,
    },
    /// All changes of the ranges up to and including `through`, which is at least the revision asked for, unless that one
    /// is too large.
    Changes {
        /// In order; revisions that did not touch the ranges are left out.
        revisions: Vec<RevisionEvents>,
        /// How far the source was read.
        through: i64,
        /// The revision after `through` has more than was allowed to one.
        too_large: bool,
    },
}

/// The store, as watchers that are behind need it.
pub trait ChangeSource: Send + Sync + 'static {
    /// The present revisions.
    ///
    /// # Errors
    /// Of the store.
    fn revisions(&self) -> Result<Revisions, Failure>;

    /// Reads what is wanted, in a bounded piece. `wanted.from` is not above the current revision.
    ///
    /// # Errors
    /// Of the store.
    fn missed(&self, wanted: &Wanted<'_>) -> Result<Missed, Failure>;
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

    fn missed(&self, wanted: &Wanted<'_>) -> Result<Missed, Failure> {
        let view = (self.0)()?;
        let now = mvcc::current(&view)?;
        match mvcc::changes(&view, wanted) {
            Ok(Changes { revisions, next_revision, too_large }) => {
                Ok(Missed::Changes { revisions, through: next_revision.saturating_sub(1), too_large })
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
