//! What a run of commands changes of the leases, before it is written: the stored table below, the changes above.

use std::collections::BTreeMap;

use balsa_proto::log;
use bytes::Bytes;
use prost::Message;

use super::table;
use crate::storage::{StorageError, Table, View, WriteBatch};

/// What happened to a lease, for the leader's clock and for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// It exists from now on.
    Granted {
        /// Its id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// It is gone, and its keys are.
    Revoked {
        /// Its id.
        id: i64,
    },
    /// A clock wrote down what it has left.
    Checkpointed {
        /// Its id.
        id: i64,
        /// Seconds; 0 = the whole TTL.
        remaining_ttl: i64,
    },
}

/// The changes of a run under way.
#[derive(Debug, Default)]
pub(crate) struct LeaseChanges {
    /// None for one that is gone.
    leases: BTreeMap<i64, Option<log::Lease>>,
    /// Whether the key is attached to the lease.
    keys: BTreeMap<(i64, Bytes), bool>,
    reported: Vec<LeaseChange>,
}

impl LeaseChanges {
    /// A lease as the command under way sees it.
    pub(crate) fn lease(&self, view: &impl View, id: i64) -> Result<Option<log::Lease>, StorageError> {
        match self.leases.get(&id) {
            Some(changed) => Ok(*changed),
            None => table::lease(view, id),
        }
    }

    /// The keys of a lease as the command under way sees them, in byte order.
    pub(crate) fn keys(&self, view: &impl View, id: i64) -> Result<Vec<Bytes>, StorageError> {
        let low = (id, Bytes::new());
        let changed = self.keys.range(low..).take_while(|((own, _), _)| *own == id);
        let mut changed = changed.map(|((_, key), attached)| (key, *attached)).peekable();
        if changed.peek().is_none() {
            return table::keys(view, id, usize::MAX);
        }
        let stored = table::keys(view, id, usize::MAX)?.into_iter().map(|key| (key, true));
        let mut merged: BTreeMap<Bytes, bool> = stored.collect();
        merged.extend(changed.map(|(key, attached)| (key.clone(), attached)));
        Ok(merged.into_iter().filter(|(_, attached)| *attached).map(|(key, _)| key).collect())
    }

    /// A key was written under another lease than before; 0 is none.
    pub(crate) fn moved(&mut self, key: &Bytes, from: i64, to: i64) {
        if from == to {
            return;
        }
        if from != 0 {
            self.keys.insert((from, key.clone()), false);
        }
        if to != 0 {
            self.keys.insert((to, key.clone()), true);
        }
    }

    /// Adds a lease, which is not there.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64) {
        self.leases.insert(id, Some(log::Lease { ttl, remaining_ttl: 0 }));
        self.reported.push(LeaseChange::Granted { id, ttl });
    }

    /// Removes a lease, whose keys are deleted already.
    pub(crate) fn revoke(&mut self, id: i64) {
        self.leases.insert(id, None);
        self.reported.push(LeaseChange::Revoked { id });
    }

    /// Notes what a lease has left.
    pub(crate) fn checkpoint(&mut self, id: i64, lease: log::Lease) {
        self.leases.insert(id, Some(lease));
        self.reported.push(LeaseChange::Checkpointed { id, remaining_ttl: lease.remaining_ttl });
    }

    /// Adds what was changed to the batch, and says it in the order in which it happened.
    pub(crate) fn finish(self, batch: &mut WriteBatch) -> Vec<LeaseChange> {
        for (id, lease) in self.leases {
            match lease {
                Some(lease) => batch.put(Table::Lease, table::lease_row(id).to_vec(), lease.encode_to_vec()),
                None => batch.delete(Table::Lease, table::lease_row(id).to_vec()),
            }
        }
        for ((id, key), attached) in self.keys {
            match attached {
                true => batch.put(Table::Lease, table::key_row(id, &key), Bytes::new()),
                false => batch.delete(Table::Lease, table::key_row(id, &key)),
            }
        }
        self.reported
    }
}
