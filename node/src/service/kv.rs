//! Reads and writes of keys. A read is local when it asks for that, else confirmed by a read index first; a write is a
//! command through the log. A transaction that only reads is a read.

use std::sync::Arc;
use std::time::Instant;

use balsa_proto::etcdserverpb as pb;
use futures::Stream;
use pb::request_op::Request;

use super::caller::{Caller, refused};
use super::checks;
use super::failure::Error;
use super::member::{Member, complete};
use super::{pieces, slow_read};
use crate::domain::auth::{AuthState, Identity, NoLeases};
use crate::domain::command::{Command, Outcome};
use crate::domain::mvcc::{self, RangeStream, ReadError};
use crate::engine::{Failure, Handle, Status, Store};
use crate::metrics;
use crate::storage::KeySpace;

/// Pieces that are read before the client takes them: the next one while this one is sent.
const STREAM_AHEAD: usize = 1;

/// The view that reads are answered from.
type View = <Store as KeySpace>::View;

/// etcd's KV service as use cases.
#[derive(Clone)]
pub struct Kv {
    member: Arc<Member>,
}

impl Kv {
    /// Use cases of one member.
    pub fn new(member: Arc<Member>) -> Self {
        Self { member }
    }

    /// Reads a range. The header carries the current revision, whatever revision was asked for.
    ///
    /// # Errors
    /// Of the checks; `Compacted`, `FutureRevision`; without `serializable` those of a read index.
    pub async fn range(&self, caller: &Caller, request: pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        checks::range(&request)?;
        let started = Instant::now();
        let told = slow_read::Range::of(&request);
        let result = self.read_range(caller, request).await;
        told.warn_if_slow(started.elapsed(), self.member.settings().slow_read, &result);
        metrics::request_took("Range", result.is_ok(), started.elapsed());
        result
    }

    async fn read_range(&self, caller: &Caller, request: pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        let (handle, who) = self.reader(caller, request.serializable).await?;
        let single = request.range_end.is_empty();
        // Before the view, which is then of the same revision or a later one.
        let counts = handle.status().counts.clone();
        let permit = |auth: &AuthState| auth.check_range(&who, &request).map_err(refused);
        let view = view(&handle, permit)?;
        let answer = move |view: &View| mvcc::range_counted(view, counts.as_ref(), &request);
        let started = Instant::now();
        let result = read(&handle, view, single, answer).await;
        metrics::range_took(result.is_ok(), started.elapsed());
        let mut response = result?;
        response.header = complete(response.header, &handle.status());
        Ok(response)
    }

    /// Reads a range as a stream of pieces, all of one revision. Header, `more` and `count` come with the last piece.
    ///
    /// # Errors
    /// Those of [`range`](Self::range); what the checks of a stream refuse.
    pub async fn range_stream(
        &self,
        caller: &Caller,
        request: pb::RangeRequest,
    ) -> Result<impl Stream<Item = Result<pb::RangeStreamResponse, Error>> + Send + use<>, Error> {
        checks::range_stream(&request)?;
        // Of streams learners serve none but a snapshot.
        self.member.voter()?;
        let (handle, who) = self.reader(caller, request.serializable).await?;
        let counts = handle.status().counts.clone();
        let view = view(&handle, |auth| auth.check_range(&who, &request).map_err(refused))?;
        // As etcd 3.7: pieces are to be as large as a request may be.
        let mut stream = RangeStream::new(request, self.member.hot().values.max_request_bytes);
        metrics::RANGES.inc();
        let next = move || match stream.next_piece(&view, counts.as_ref()) {
            Ok(piece) => piece.map(|mut piece| {
                if piece.header.is_some() {
                    piece.header = complete(piece.header, &handle.status());
                }
                Ok(pb::RangeStreamResponse { range_response: Some(piece) })
            }),
            Err(error) => Some(Err(read_error(&handle, error))),
        };
        Ok(pieces::stream(std::iter::from_fn(next), STREAM_AHEAD))
    }

    /// Sets a key.
    ///
    /// # Errors
    /// Of the checks; those of a write.
    pub async fn put(&self, caller: &Caller, request: pb::PutRequest) -> Result<pb::PutResponse, Error> {
        checks::put(&request)?;
        match self.write(caller, Command::Put(request)).await? {
            (Outcome::Put(mut response), status) => {
                response.header = complete(response.header, &status);
                Ok(response)
            }
            (other, _) => Err(wrong_outcome(&other)),
        }
    }

    /// Deletes a range.
    ///
    /// # Errors
    /// Of the checks; those of a write.
    pub async fn delete_range(
        &self,
        caller: &Caller,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Error> {
        checks::delete_range(&request)?;
        match self.write(caller, Command::DeleteRange(request)).await? {
            (Outcome::DeleteRange(mut response), status) => {
                response.header = complete(response.header, &status);
                Ok(response)
            }
            (other, _) => Err(wrong_outcome(&other)),
        }
    }

    /// Runs a transaction: through the log, or as a read when no branch can write.
    ///
    /// # Errors
    /// Of the checks; those of a write or of a read.
    pub async fn txn(&self, caller: &Caller, request: pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        checks::txn(&request, self.member.hot().values.max_txn_ops)?;
        if !mvcc::is_write(&request) {
            let started = Instant::now();
            let told = slow_read::Txn::of(&request);
            let result = self.read_txn(caller, request).await;
            told.warn_if_slow(started.elapsed(), self.member.settings().slow_read, &result);
            metrics::request_took("ReadonlyTxn", result.is_ok(), started.elapsed());
            return result;
        }
        match self.write(caller, Command::Txn(request)).await? {
            (Outcome::Txn(mut response), status) => {
                response.header = complete(response.header, &status);
                Ok(response)
            }
            (other, _) => Err(wrong_outcome(&other)),
        }
    }

    /// Compacts the history below a revision. With `physical` it answers only when this member has deleted it.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`; those of a write.
    pub async fn compact(
        &self,
        caller: &Caller,
        request: pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse, Error> {
        self.member.require_root(&self.member.voter()?, caller).await?;
        match self.write(caller, Command::Compact(request)).await? {
            (Outcome::Compact(mut response), status) => {
                if request.physical {
                    self.member.handle()?.compacted_physically(request.revision).await?;
                }
                response.header = complete(response.header, &status);
                Ok(response)
            }
            (other, _) => Err(wrong_outcome(&other)),
        }
    }

    async fn read_txn(&self, caller: &Caller, request: pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        let (handle, who) = self.reader(caller, is_serializable(&request)).await?;
        let points = all_points(&request);
        let permit =
            |auth: &AuthState| auth.check_txn(&who, &request, &NoLeases).map_err(|error| read_error(&handle, error));
        let view = view(&handle, permit)?;
        let answer = move |view: &View| mvcc::read_txn(view, &request);
        let (mut response, tally) = read(&handle, view, points, answer).await?;
        metrics::RANGES.inc_by(tally.ranges);
        metrics::TXNS.inc_by(tally.txns);
        response.header = complete(response.header, &handle.status());
        Ok(response)
    }

    /// A handle whose view is fit for a read of that kind, and who reads. Learners serve only serializable ones.
    async fn reader(&self, caller: &Caller, serializable: bool) -> Result<(Handle, Identity), Error> {
        let handle = if serializable { self.member.handle()? } else { self.member.voter()? };
        if !serializable {
            handle.read_index().await?;
        }
        let who = self.member.identify(&handle, caller).await?;
        Ok((handle, who.unwrap_or_default()))
    }

    async fn write(&self, caller: &Caller, command: Command) -> Result<(Outcome, Arc<Status>), Error> {
        let handle = self.member.voter()?;
        let who = self.member.identify(&handle, caller).await?;
        let outcome = handle.propose(command, who).await?;
        Ok((outcome, handle.status()))
    }
}

/// The present view, if a read of it is permitted. It is taken first: permissions that were announced before it are then
/// never older than what it shows, so nothing written after a permission was taken away is read by that permission.
fn view(handle: &Handle, permit: impl FnOnce(&AuthState) -> Result<(), Error>) -> Result<View, Error> {
    let view = handle.view()?;
    permit(&handle.auth())?;
    Ok(view)
}

/// Answers a read from a view: at once when it touches single keys, else on a thread where it may block.
pub(super) async fn read<T, F>(handle: &Handle, view: View, inline: bool, answer: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce(&View) -> Result<T, ReadError> + Send + 'static,
{
    let result = if inline {
        answer(&view)
    } else {
        tokio::task::spawn_blocking(move || answer(&view)).await.map_err(|error| Error::Internal(error.to_string()))?
    };
    result.map_err(|error| read_error(handle, error))
}

/// A read's failure in the words of the table. One of the store ends the process.
pub(super) fn read_error(handle: &Handle, error: ReadError) -> Error {
    match error {
        ReadError::Refused(refusal) => refusal.into(),
        ReadError::Storage(error) => {
            handle.storage_failed(&error);
            Error::Failed(Failure::from(error))
        }
    }
}

/// The engine answered a command with the outcome of another kind: a fault of ours, never of the client's.
pub(crate) fn wrong_outcome(outcome: &Outcome) -> Error {
    Error::Internal(format!("the outcome is not of the command's kind: {outcome:?}"))
}

/// A transaction of reads needs no read index when every range in it says so, and none either when it has no operation.
fn is_serializable(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|operation| match &operation.request {
        Some(Request::RequestRange(range)) => range.serializable,
        _ => true,
    })
}

/// Whether every compare and range of the transaction names a single key.
fn all_points(request: &pb::TxnRequest) -> bool {
    let ranges = request.success.iter().chain(&request.failure).all(|operation| match &operation.request {
        Some(Request::RequestRange(range)) => range.range_end.is_empty(),
        _ => true,
    });
    ranges && request.compare.iter().all(|compare| compare.range_end.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(serializable: bool, range_end: &'static str) -> pb::RequestOp {
        let range =
            pb::RangeRequest { key: "a".into(), range_end: range_end.into(), serializable, ..Default::default() };
        pb::RequestOp { request: Some(Request::RequestRange(range)) }
    }

    #[test]
    fn one_linearizable_range_makes_a_read_transaction_linearizable() {
        let txn = |success, failure| pb::TxnRequest { success, failure, ..Default::default() };
        assert!(is_serializable(&txn(vec![], vec![])));
        assert!(is_serializable(&txn(vec![range(true, "")], vec![range(true, "")])));
        assert!(!is_serializable(&txn(vec![range(true, "")], vec![range(false, "")])));
    }

    #[test]
    fn a_range_or_a_ranged_compare_takes_a_thread_of_its_own() {
        let points = pb::TxnRequest { success: vec![range(true, "")], ..Default::default() };
        assert!(all_points(&points));
        assert!(!all_points(&pb::TxnRequest { failure: vec![range(true, "b")], ..points.clone() }));
        let compare = vec![pb::Compare { range_end: "b".into(), ..Default::default() }];
        assert!(!all_points(&pb::TxnRequest { compare, ..points }));
    }
}
