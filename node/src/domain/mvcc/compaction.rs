//! Physical deletion of what compaction made unreadable, in bounded steps.
//!
//! It works off the rows of `revision` from the oldest on, so its cost follows what changed and not the size of the
//! store. A change at or below the compacted revision N says that the version before it is garbage; a delete below N
//! says so of its own tombstone. The tombstone of a delete exactly at N stays, and so does the row that holds N: reads
//! and watches from N work. What a step deletes, applying never writes again, so both may run side by side.

use std::ops::{Bound, ControlFlow};

use super::current;
use super::encoding::{COMPACTION, ChangeKind, RowKey, RowReader, corrupt, history_key};
use super::source::keep_error;
use crate::storage::{StorageError, Table, View, WriteBatch};

/// How far the deletion went. The default begins where the store says that it ended before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The compacted revision that is worked towards.
    target: i64,
    /// The last row that was worked off.
    done: Option<RowKey>,
}

impl Cursor {
    /// The compacted revision that is worked towards.
    pub fn target(&self) -> i64 {
        self.target
    }
}

/// Makes the next batch of deletions: rows of `revision` until at least `limit` changes are worked off (a row has at
/// most 1024). None when nothing is left to delete. Write the batch before the next step. A cursor belongs to one key
/// space, and is thrown away when a batch of it was not written.
///
/// # Errors
/// Of the store.
pub fn step(view: &impl View, cursor: &mut Cursor, limit: usize) -> Result<Option<WriteBatch>, StorageError> {
    let compacted = current(view)?.compacted;
    if compacted != cursor.target {
        *cursor = Cursor { target: compacted, done: None };
    }
    let start = match cursor.done {
        Some(done) => Bound::Excluded(done),
        None => Bound::Included(begin(view)?),
    };
    let (low, high) = (start.map(RowKey::encode), RowKey { revision: compacted.saturating_add(1), sub: 0 }.encode());
    if compacted < 0 {
        return Ok(None);
    }
    let mut work = Work { target: compacted, done: None, changes: 0, batch: WriteBatch::default(), gone: None };
    let mut outcome = Ok(());
    let bounds = (low.as_ref().map(|key| &key[..]), Bound::Excluded(&high[..]));
    view.scan(Table::Revision, bounds, false, &mut |key, row| {
        keep_error(&mut outcome, work.row(key, row), |()| match work.changes >= limit {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    outcome?;
    if work.done.is_none() {
        return Ok(None);
    }
    cursor.done = work.done;
    if let Some(gone) = work.gone {
        let below = RowKey { sub: gone.sub.checked_add(1).ok_or_else(|| corrupt("a row key is too high"))?, ..gone };
        work.batch.put(Table::Meta, COMPACTION, below.encode().to_vec());
    }
    Ok(Some(work.batch))
}

/// The row that the store's own record says to begin with; below it lie only deleted rows, which are slow to pass.
fn begin(view: &impl View) -> Result<RowKey, StorageError> {
    match view.get(Table::Meta, COMPACTION)? {
        Some(bytes) => RowKey::decode(&bytes),
        None => Ok(RowKey::default()),
    }
}

/// A step under way.
struct Work {
    target: i64,
    done: Option<RowKey>,
    changes: usize,
    batch: WriteBatch,
    /// The last row that the batch deletes.
    gone: Option<RowKey>,
}

impl Work {
    fn row(&mut self, key: &[u8], row: &[u8]) -> Result<(), StorageError> {
        let at = RowKey::decode(key)?;
        let reader = RowReader::new(at, row)?;
        let spent = reader.last_revision() < self.target;
        for change in reader {
            let change = change?;
            if change.revision > self.target {
                break;
            }
            self.changes += 1;
            if change.previous != 0 {
                self.batch.delete(Table::History, history_key(change.key, change.previous));
            }
            if change.kind == ChangeKind::Delete && change.revision < self.target {
                self.batch.delete(Table::History, history_key(change.key, change.revision));
            }
        }
        if spent {
            self.batch.delete(Table::Revision, key.to_vec());
            self.gone = Some(at);
        }
        self.done = Some(at);
        Ok(())
    }
}
