//! Taking turns by keys: what locks and elections are made of. Whoever wants a turn puts a key under a common prefix,
//! named after its lease, and waits until no key there was created before its own. The schema and the order of requests
//! are those of etcd's own clients, so clients that take turns by themselves stand in the same queue.

use std::sync::Arc;

use balsa_proto::{etcdserverpb as pb, mvccpb};
use bytes::{BufMut, Bytes, BytesMut};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request;

use super::caller::Caller;
use super::failure::Error;
use super::kv::Kv;
use super::lease::Leases;
use super::member::Member;
use crate::domain::mvcc::watch::{Filters, Interest, watched_range};
use crate::domain::refusal::Refusal;
use crate::engine::Failure;
use crate::engine::watch::{Delivery, WatchRequest, WatchStream};

/// Seconds of the lease that a caller gets who brings none; etcd's own. Nobody renews it.
const SESSION_TTL: i64 = 60;

/// The services below locks and elections, on behalf of one caller: it may do with a queue what it may do with its keys.
#[derive(Clone)]
pub struct Queue {
    kv: Kv,
    leases: Leases,
    caller: Caller,
}

impl Queue {
    /// Over the keys and leases of one member, on behalf of nobody yet.
    pub fn new(kv: Kv, leases: Leases) -> Self {
        Self { kv, leases, caller: Caller::default() }
    }

    /// The same on behalf of a caller.
    pub fn of(&self, caller: Caller) -> Self {
        Self { caller, ..self.clone() }
    }

    /// Reads.
    ///
    /// # Errors
    /// Those of [`Kv::range`].
    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        self.kv.range(&self.caller, request).await
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// Those of [`Kv::txn`].
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        self.kv.txn(&self.caller, request).await
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// Those of [`Kv::delete_range`].
    pub async fn delete(&self, key: Bytes) -> Result<pb::DeleteRangeResponse, Error> {
        self.kv.delete_range(&self.caller, pb::DeleteRangeRequest { key, ..Default::default() }).await
    }

    /// The member below.
    pub fn member(&self) -> &Arc<Member> {
        self.leases.member()
    }

    /// The caller's lease, or a new one for who has none.
    ///
    /// # Errors
    /// Those of a write.
    pub async fn session(&self, lease: i64) -> Result<i64, Error> {
        if lease != 0 {
            return Ok(lease);
        }
        Ok(self.leases.grant(&self.caller, pb::LeaseGrantRequest { id: 0, ttl: SESSION_TTL }).await?.id)
    }

    /// Waits until every key under the prefix that was created up to `last` is gone. Each waiter waits for the one right
    /// before it, so the end of a turn wakes only the next.
    ///
    /// # Errors
    /// `Compacted` when the wait was behind a compaction; those of a read; `Stopped`.
    pub async fn turn(&self, prefix: &Bytes, last: i64) -> Result<(), Error> {
        let request = pb::RangeRequest { max_create_revision: last, ..newest_under(prefix) };
        loop {
            let before = self.range(request.clone()).await?;
            let Some(kv) = before.kvs.into_iter().next() else { return Ok(()) };
            self.gone(&kv.key, before.header.map_or(0, |header| header.revision)).await?;
        }
    }

    /// Waits until a key is deleted at or after a revision.
    async fn gone(&self, key: &Bytes, from: i64) -> Result<(), Error> {
        let mut stream = self.watch(key, &Bytes::new(), from)?;
        loop {
            let delivery = tokio::select! {
                () = self.member().stopping().cancelled() => return Err(Failure::Stopped.into()),
                delivery = stream.next() => delivery?,
            };
            match delivery {
                Delivery::Events { events, .. } if events.iter().any(is_delete) => return Ok(()),
                Delivery::Events { .. } | Delivery::Progress { .. } => {}
                Delivery::Compacted { .. } => return Err(Refusal::Compacted.into()),
            }
        }
    }

    /// A stream with one watcher.
    ///
    /// # Errors
    /// `Uninitialized`.
    pub fn watch(&self, key: &Bytes, range_end: &Bytes, from: i64) -> Result<WatchStream, Error> {
        let mut stream = self.member().handle()?.watch_hub().open();
        if let Some(range) = watched_range(key, range_end) {
            let interest = Interest { range, filters: Filters::default() };
            stream.watch(0, WatchRequest { interest, start_revision: from, prev_kv: false });
        }
        Ok(stream)
    }
}

/// Whether the key was deleted.
pub fn is_delete(event: &mvccpb::Event) -> bool {
    event.r#type() == mvccpb::event::EventType::Delete
}

/// The prefix that a queue's keys have in common.
pub fn prefix(name: &[u8]) -> Bytes {
    let mut prefix = BytesMut::with_capacity(name.len() + 1);
    prefix.put_slice(name);
    prefix.put_u8(b'/');
    prefix.freeze()
}

/// The key of a lease in the queue: the id in lower-case hex, with a sign as Go writes it.
pub fn key(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let id = format!("{sign}{:x}", lease.unsigned_abs());
    [prefix, id.as_bytes()].concat().into()
}

/// The end of the range of all keys with the prefix, which ends in `/`.
pub fn prefix_end(prefix: &Bytes) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// The key under the prefix that was created first: whose turn it is.
pub fn oldest_under(prefix: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest { sort_order: SortOrder::Ascend.into(), ..newest_under(prefix) }
}

fn newest_under(prefix: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Create.into(),
        ..Default::default()
    }
}

/// The condition that the key was created at a revision; 0: that it is not there.
pub fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

/// An operation that puts the key under a lease.
pub fn put(key: &Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}

/// An operation that reads.
pub fn get(range: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestRange(range)) }
}

/// A read of one key.
pub fn one(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key: key.clone(), ..Default::default() }
}

/// The first pair that an operation of a transaction read.
pub fn first_read(response: &pb::TxnResponse, operation: usize) -> Option<&mvccpb::KeyValue> {
    match response.responses.get(operation)?.response.as_ref()? {
        pb::response_op::Response::ResponseRange(range) => range.kvs.first(),
        _ => None,
    }
}

/// Something to be undone when whoever asked goes away in the middle: the place in a queue must not outlive the wait for
/// it. Runs beside, because a caller that is gone cannot wait.
pub struct Undo<F: FnOnce() -> U, U: Future<Output = ()> + Send + 'static>(Option<F>);

impl<F: FnOnce() -> U, U: Future<Output = ()> + Send + 'static> Undo<F, U> {
    /// Undone by `undo` unless it is [kept](Self::keep).
    pub fn new(undo: F) -> Self {
        Self(Some(undo))
    }

    /// Nothing is undone.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce() -> U, U: Future<Output = ()> + Send + 'static> Drop for Undo<F, U> {
    fn drop(&mut self) {
        if let (Some(undo), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(undo());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_gos_client_names_them() {
        assert_eq!(key(&prefix(b"my-lock"), 0x694d_8f1b), "my-lock/694d8f1b");
        assert_eq!(key(&prefix(b""), -255), "/-ff");
        assert_eq!(prefix_end(&prefix(b"a")), "a0");
    }

    #[tokio::test]
    async fn what_is_given_up_is_undone_and_what_is_kept_is_not() {
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let undo = |name: &'static str| {
            let told = told.clone();
            Undo::new(move || async move { told.send(name).expect("the test listens") })
        };
        undo("kept").keep();
        drop(undo("dropped"));
        drop(told);
        assert_eq!(heard.recv().await, Some("dropped"));
        assert_eq!(heard.recv().await, None);
    }
}
