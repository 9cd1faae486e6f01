//! A consistent view of the key space that keeps its database open.
//!
//! RocksDB's snapshot borrows its database, and an iterator made by `Snapshot::iterator` borrows the database but not
//! the snapshot, so it may read on after the snapshot was released. Hence one type owns both, makes every read itself
//! and hands out neither snapshot, iterator nor read options. RocksDB needs no other unsafe code of ours
//! (`node/tests/layers.rs` lists all there is).

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, ReadOptions, Snapshot};

use super::key_space::Tables;
use crate::metrics::OPEN_VIEWS;
use crate::storage::key_space::Visit;
use crate::storage::{Result, Table, View};

/// A view of a [`RocksKeySpace`](super::RocksKeySpace) at one moment. While it lives, no version it shows is dropped
/// and the database stays open: keep it for one request, not longer.
pub struct RocksView {
    /// Declared before `tables`: fields are dropped in this order, and the snapshot is released through the database.
    snapshot: Snapshot<'static>,
    tables: Arc<Tables>,
}

impl RocksView {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        let borrowed: *const DB = tables.database();
        // SAFETY: the database lies inside the allocation of `tables`, which neither moves nor is dropped nor is lent
        // mutably while an `Arc` to it exists, and this value holds one until after the snapshot is dropped. The
        // pretended lifetime never leaves this value: `snapshot` is private and only lent to `ReadOptions` that live
        // within one call.
        #[allow(unsafe_code, reason = "a snapshot cannot otherwise be owned together with its database")]
        let database: &'static DB = unsafe { &*borrowed };
        OPEN_VIEWS.inc();
        Self { snapshot: database.snapshot(), tables }
    }

    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options
    }
}

impl Drop for RocksView {
    fn drop(&mut self) {
        OPEN_VIEWS.dec();
    }
}

impl View for RocksView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.tables.get(table, key, &self.options())
    }

    fn multi_get(&self, table: Table, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>> {
        let family = self.tables.family(table)?;
        let options = self.options();
        self.tables
            .database()
            .batched_multi_get_cf_opt(family, keys.iter().copied(), keys.is_sorted(), &options)
            .into_iter()
            .map(|read| match read {
                Ok(value) => Ok(value.map(|slice| Bytes::copy_from_slice(&slice))),
                Err(error) => Err(self.tables.error("read of table", table, &error)),
            })
            .collect()
    }

    fn scan(&self, table: Table, bounds: (Bound<&[u8]>, Bound<&[u8]>), reverse: bool, visit: Visit<'_>) -> Result<()> {
        let mut options = self.options();
        // Bounds rather than checks of ours: RocksDB then never walks over deleted keys beyond the range.
        let low = inclusive_low(bounds.0);
        let high = exclusive_high(bounds.1);
        if let (Some(low), Some(high)) = (&low, &high)
            && low >= high
        {
            return Ok(());
        }
        if let Some(low) = low {
            options.set_iterate_lower_bound(low);
        }
        if let Some(high) = high {
            options.set_iterate_upper_bound(high);
        }
        let mut rows = self.tables.database().raw_iterator_cf_opt(self.tables.family(table)?, options);
        if reverse {
            rows.seek_to_last();
        } else {
            rows.seek_to_first();
        }
        while let Some((key, value)) = rows.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            if reverse {
                rows.prev();
            } else {
                rows.next();
            }
        }
        rows.status().map_err(|error| self.tables.error("scan of table", table, &error))
    }
}

/// The lowest key that a lower bound admits.
fn inclusive_low(bound: Bound<&[u8]>) -> Option<Vec<u8>> {
    match bound {
        Bound::Included(key) => Some(key.to_vec()),
        Bound::Excluded(key) => Some(successor(key)),
        Bound::Unbounded => None,
    }
}

/// The lowest key that an upper bound does not admit.
fn exclusive_high(bound: Bound<&[u8]>) -> Option<Vec<u8>> {
    match bound {
        Bound::Included(key) => Some(successor(key)),
        Bound::Excluded(key) => Some(key.to_vec()),
        Bound::Unbounded => None,
    }
}

/// The next key in byte order: nothing lies between a key and the key with a zero byte behind it.
fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}
