//! The rows of the table `lease`, and what can be read off them.
//!
//! | key | value |
//! | --- | --- |
//! | 0x00, id | `log.Lease` |
//! | 0x01, id, user key | nothing: the key is attached to the lease |
//!
//! An id is 8 bytes big-endian. The rows of one lease's keys lie together in byte order, which is the order in which its
//! revocation deletes them. How many keys a lease has is bounded by the disk, never by memory.

use std::ops::{Bound, ControlFlow};

use balsa_proto::log;
use bytes::{BufMut, Bytes, BytesMut};

use crate::domain::mvcc::encoding::{corrupt, decode};
use crate::storage::{StorageError, Table, View};

/// First byte of a lease's own row.
const LEASE: u8 = 0;
/// First byte of the rows of attached keys.
const KEY: u8 = 1;
/// Bytes before the user key.
const PREFIX: usize = 1 + 8;

/// The key of a lease's own row.
pub(crate) fn lease_row(id: i64) -> [u8; PREFIX] {
    prefix(LEASE, id)
}

/// The key of the row that attaches `key` to the lease.
pub(crate) fn key_row(id: i64, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(PREFIX + key.len());
    row.put_slice(&prefix(KEY, id));
    row.put_slice(key);
    row.freeze()
}

fn prefix(kind: u8, id: i64) -> [u8; PREFIX] {
    let mut row = [kind; PREFIX];
    row[1..].copy_from_slice(&id.to_be_bytes());
    row
}

/// A lease, if there is one of that id.
///
/// # Errors
/// Of the store.
pub fn lease(view: &impl View, id: i64) -> Result<Option<log::Lease>, StorageError> {
    view.get(Table::Lease, &lease_row(id))?.map(|bytes| decode("a lease", bytes)).transpose()
}

/// All leases by id.
///
/// # Errors
/// Of the store.
pub fn leases(view: &impl View) -> Result<Vec<(i64, log::Lease)>, StorageError> {
    let (mut found, mut outcome) = (Vec::new(), Ok(()));
    let bounds = (Bound::Included(&[LEASE][..]), Bound::Excluded(&[KEY][..]));
    view.scan(Table::Lease, bounds, false, &mut |row, value| match read_lease(row, value) {
        Ok(lease) => {
            found.push(lease);
            ControlFlow::Continue(())
        }
        Err(error) => {
            outcome = Err(error);
            ControlFlow::Break(())
        }
    })?;
    outcome.map(|()| found)
}

fn read_lease(row: &[u8], value: &[u8]) -> Result<(i64, log::Lease), StorageError> {
    let id: [u8; 8] = row[1..].try_into().map_err(|_| corrupt("the key of a lease is not 9 bytes"))?;
    Ok((i64::from_be_bytes(id), decode("a lease", Bytes::copy_from_slice(value))?))
}

/// The first `limit` keys of a lease, in byte order.
///
/// # Errors
/// Of the store.
pub fn keys(view: &impl View, id: i64, limit: usize) -> Result<Vec<Bytes>, StorageError> {
    let mut found = Vec::new();
    visit_keys(view, id, &mut |key| {
        found.push(Bytes::copy_from_slice(key));
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

/// How many keys a lease has; counts no further than `limit`.
///
/// # Errors
/// Of the store.
pub fn count_keys(view: &impl View, id: i64, limit: usize) -> Result<usize, StorageError> {
    let mut count = 0;
    visit_keys(view, id, &mut |_| {
        count += 1;
        if count < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(count)
}

fn visit_keys(view: &impl View, id: i64, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), StorageError> {
    let low = prefix(KEY, id);
    let high = after(id);
    let bounds = (Bound::Included(&low[..]), Bound::Excluded(&high[..]));
    view.scan(Table::Lease, bounds, false, &mut |row, _| visit(&row[PREFIX..]))
}

/// The first row behind those of the lease's keys.
fn after(id: i64) -> Vec<u8> {
    match (id as u64).checked_add(1) {
        Some(next) => prefix(KEY, next as i64).to_vec(),
        None => vec![KEY + 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryKeySpace;
    use crate::storage::{KeySpace, WriteBatch};

    #[test]
    fn the_keys_of_one_lease_are_never_mixed_with_those_of_its_neighbours() {
        let space = MemoryKeySpace::default();
        let mut batch = WriteBatch::default();
        let ids = [1, 2, 0xff, 0x100, i64::MAX, i64::MIN, -1];
        for id in ids {
            batch.put(Table::Lease, lease_row(id).to_vec(), Vec::new());
            for key in [&b"\0"[..], b"\xff\xff", format!("{id}").as_bytes()] {
                batch.put(Table::Lease, key_row(id, key), Vec::new());
            }
        }
        space.write(batch).unwrap();
        let view = space.view().unwrap();
        for id in ids {
            let expected: Vec<Bytes> = vec!["\0".into(), id.to_string().into(), Bytes::from_static(b"\xff\xff")];
            assert_eq!(keys(&view, id, usize::MAX).unwrap(), expected, "{id}");
            assert_eq!(keys(&view, id, 2).unwrap(), expected[..2], "{id}");
            assert_eq!((count_keys(&view, id, 9).unwrap(), count_keys(&view, id, 2).unwrap()), (3, 2), "{id}");
        }
        let found: Vec<i64> = leases(&view).unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, [1, 2, 0xff, 0x100, i64::MAX, i64::MIN, -1]);
        assert_eq!(keys(&view, 3, usize::MAX).unwrap(), Vec::<Bytes>::new());
    }
}
