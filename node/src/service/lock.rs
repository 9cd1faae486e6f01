//! Locks that live as long as a lease, by name.

use balsa_proto::etcdserverpb as pb;
use balsa_proto::v3lockpb as wire;

use super::caller::Caller;
use super::failure::Error;
use super::queue::{Queue, Undo, created_at, first_read, get, key, oldest_under, one, prefix, put};

/// etcd's Lock service as use cases.
#[derive(Clone)]
pub struct Lock {
    queue: Queue,
}

impl Lock {
    /// Locks of one member.
    pub fn new(queue: Queue) -> Self {
        Self { queue }
    }

    /// The same on behalf of a caller.
    pub fn of(&self, caller: Caller) -> Self {
        Self { queue: self.queue.of(caller) }
    }

    /// The queue below.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Waits for the lock. The same lease gets the same key again. When the caller goes away while it waits, its place in
    /// the queue goes too.
    ///
    /// # Errors
    /// `SessionExpired` when the lease ended during the wait; those of a write.
    pub async fn lock(&self, request: wire::LockRequest) -> Result<wire::LockResponse, Error> {
        let lease = self.queue.session(request.lease).await?;
        let prefix = prefix(&request.name);
        let key = key(&prefix, lease);
        let txn = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, Default::default(), lease), get(oldest_under(&prefix))],
            failure: vec![get(one(&key)), get(oldest_under(&prefix))],
        };
        let response = self.queue.txn(txn).await?;
        let revision = response.header.map_or(0, |header| header.revision);
        let mine = match response.succeeded {
            true => revision,
            false => first_read(&response, 0).map_or(revision, |kv| kv.create_revision),
        };
        if first_read(&response, 1).is_none_or(|owner| owner.create_revision == mine) {
            return Ok(wire::LockResponse { header: response.header, key });
        }
        let (queue, own) = (self.queue.clone(), key.clone());
        let undo = Undo::new(move || async move {
            if let Err(error) = queue.delete(own).await {
                tracing::debug!(%error, "the place of a lock that was given up goes with its lease");
            }
        });
        self.queue.turn(&prefix, mine - 1).await?;
        let own = self.queue.range(one(&key)).await?;
        undo.keep();
        if own.kvs.is_empty() {
            return Err(Error::SessionExpired);
        }
        Ok(wire::LockResponse { header: own.header, key })
    }

    /// Gives the lock up.
    ///
    /// # Errors
    /// `EmptyKey`; those of a write.
    pub async fn unlock(&self, request: wire::UnlockRequest) -> Result<wire::UnlockResponse, Error> {
        let response = self.queue.delete(request.key).await?;
        Ok(wire::UnlockResponse { header: response.header })
    }
}
