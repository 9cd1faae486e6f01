//! The key space in memory: ordered maps that are shared with views and with the flushed state until they change.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::faults::{FailedWrite, Faults, outcome};
use crate::storage::key_space::{Visit, Write};
use crate::storage::{KeySpace, Result, StorageError, Table, View, WriteBatch, durable};

/// The file of a checkpoint's directory.
const CHECKPOINT_FILE: &str = "TABLES";

/// A key space in memory. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct MemoryKeySpace {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    written: Tables,
    flushed: Tables,
    faults: Faults,
}

/// The tables in the order of [`Table::ALL`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tables([Arc<BTreeMap<Bytes, Bytes>>; Table::ALL.len()]);

impl MemoryKeySpace {
    /// What a restart finds: the state of the last flush. Every clone of this key space fails from now on.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut shared = self.shared.lock();
        shared.faults.crash();
        Self::holding(shared.flushed.clone())
    }

    /// A [`checkpoint`](KeySpace::checkpoint) that needs no directory: a durable copy that goes its own way.
    ///
    /// # Errors
    /// `Failed` after a crash or as planned.
    pub fn fork(&self) -> Result<Self> {
        self.flush()?;
        let shared = self.shared.lock();
        Ok(Self::holding(shared.flushed.clone()))
    }

    /// Lets the `nth` write from now on fail, 1 being the next; batches, flushes and checkpoints count. All after it
    /// fail too, until a crash.
    pub fn fail_write(&self, nth: u64, left: FailedWrite) {
        self.shared.lock().faults.plan(nth, left);
    }

    /// Opens what [`checkpoint`](KeySpace::checkpoint) wrote into `directory`.
    ///
    /// # Errors
    /// `Failed` when it cannot be read, `Corrupt` when it is not what was written.
    pub fn from_checkpoint(directory: &Path) -> Result<Self> {
        let path = directory.join(CHECKPOINT_FILE);
        let bytes = fs::read(&path).map_err(|error| StorageError::from_io("read of", &path, &error))?;
        let tables = Tables::decode(&Bytes::from(bytes))
            .ok_or_else(|| StorageError::Corrupt { what: path.display().to_string() })?;
        Ok(Self::holding(tables))
    }

    fn holding(tables: Tables) -> Self {
        let shared = Shared { written: tables.clone(), flushed: tables, faults: Faults::default() };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }
}

impl KeySpace for MemoryKeySpace {
    type View = MemoryView;

    fn view(&self) -> Result<MemoryView> {
        let shared = self.shared.lock();
        shared.faults.check("view")?;
        Ok(MemoryView { tables: shared.written.clone() })
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut shared = self.shared.lock();
        let fate = shared.faults.write("write")?;
        if fate != Some(FailedWrite::Lost) {
            shared.written.apply(batch);
        }
        outcome("write", fate)
    }

    fn flush(&self) -> Result<()> {
        let mut shared = self.shared.lock();
        let fate = shared.faults.write("flush")?;
        if fate != Some(FailedWrite::Lost) {
            shared.flushed = shared.written.clone();
        }
        outcome("flush", fate)
    }

    fn get_flushed(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        let shared = self.shared.lock();
        shared.faults.check("read")?;
        Ok(shared.flushed.table(table).get(key).cloned())
    }

    fn checkpoint(&self, directory: &Path) -> Result<()> {
        let mut shared = self.shared.lock();
        let fate = shared.faults.write("checkpoint")?;
        if fate != Some(FailedWrite::Lost) {
            shared.flushed = shared.written.clone();
            fs::create_dir(directory).map_err(|error| StorageError::from_io("creation of", directory, &error))?;
            durable::replace_file(&directory.join(CHECKPOINT_FILE), &shared.flushed.encode())?;
        }
        outcome("checkpoint", fate)
    }

    /// There are no files.
    fn compact_files(&self) -> Result<()> {
        Ok(())
    }

    fn size_bytes(&self) -> (u64, u64) {
        let bytes = self.shared.lock().written.size_bytes();
        (bytes, bytes)
    }
}

impl Tables {
    fn table(&self, table: Table) -> &BTreeMap<Bytes, Bytes> {
        &self.0[table as usize]
    }

    fn apply(&mut self, batch: WriteBatch) {
        for write in batch.writes {
            match write {
                Write::Put(table, key, value) => {
                    self.table_mut(table).insert(key, value);
                }
                Write::Delete(table, key) => {
                    self.table_mut(table).remove(&key);
                }
                Write::DeleteRange(table, low, high) => {
                    self.table_mut(table).retain(|key, _| *key < low || *key >= high);
                }
            }
        }
    }

    /// The table alone; a view that still shows it keeps the old one.
    fn table_mut(&mut self, table: Table) -> &mut BTreeMap<Bytes, Bytes> {
        Arc::make_mut(&mut self.0[table as usize])
    }

    fn size_bytes(&self) -> u64 {
        let of_table = |rows: &Arc<BTreeMap<Bytes, Bytes>>| -> usize {
            rows.iter().map(|(key, value)| key.len() + value.len()).sum()
        };
        self.0.iter().map(of_table).sum::<usize>() as u64
    }

    /// Per table the number of rows and the rows, each string behind its length (8, little endian), and the crc32c of
    /// it all at the end.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for rows in &self.0 {
            bytes.extend_from_slice(&(rows.len() as u64).to_le_bytes());
            for part in rows.iter().flat_map(|(key, value)| [key, value]) {
                bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
                bytes.extend_from_slice(part);
            }
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let mut rest = bytes.slice(..body.len());
        let mut tables = Self::default();
        for rows in &mut tables.0 {
            for _ in 0..take_number(&mut rest)? {
                let key = take_string(&mut rest)?;
                Arc::make_mut(rows).insert(key, take_string(&mut rest)?);
            }
        }
        rest.is_empty().then_some(tables)
    }
}

fn take_number(rest: &mut Bytes) -> Option<u64> {
    let number = u64::from_le_bytes(*rest.first_chunk::<8>()?);
    *rest = rest.slice(8..);
    Some(number)
}

fn take_string(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(take_number(rest)?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

/// A view of a [`MemoryKeySpace`] at one moment.
#[derive(Debug, Clone)]
pub struct MemoryView {
    tables: Tables,
}

impl View for MemoryView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.tables.table(table).get(key).cloned())
    }

    fn multi_get(&self, table: Table, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>> {
        Ok(keys.iter().map(|key| self.tables.table(table).get(*key).cloned()).collect())
    }

    fn scan(&self, table: Table, bounds: (Bound<&[u8]>, Bound<&[u8]>), reverse: bool, visit: Visit<'_>) -> Result<()> {
        if is_empty(bounds) {
            return Ok(());
        }
        let mut rows = self.tables.table(table).range::<[u8], _>(bounds);
        while let Some((key, value)) = if reverse { rows.next_back() } else { rows.next() } {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Bounds that admit nothing, some of which `BTreeMap::range` would panic on.
fn is_empty(bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match bounds {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}
