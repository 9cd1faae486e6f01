//! One client's stream of renewals. What has arrived is renewed together, because clients renew all their leases over
//! one stream, and each renewal by itself would wait for a round trip to a quorum.
//!
//! Answers come in the order of the requests, up to the first lease that the caller may not renew, except for leases that are over: their answer, TTL 0, waits until they are
//! revoked, and the others do not wait for them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use futures::{FutureExt, Stream, StreamExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use super::failure::Error;
use super::lease::{Leases, Renewals};
use super::member::header;
use super::watch::{End, cut, patience};
use crate::domain::lease::Renewal;
use crate::engine::{Failure, Handle};

/// Requests renewed together. The rest waits in the connection, which is bounded by flow control.
const MAX_BATCH: usize = 1024;
/// Most renewals that are asked for at once. So many answers may wait for a revocation, because they are asked for again
/// together: no further request of this stream is read while a batch could bring more.
pub const MAX_IDS: usize = 4096;
/// How often leases that are over are asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// One client's stream.
pub struct Session<S, E> {
    requests: S,
    leases: Leases,
    caller: Caller,
    handle: Handle,
    ready: VecDeque<pb::LeaseKeepAliveResponse>,
    /// Answers for leases that are over and not revoked yet, and when to ask for them again.
    expiring: Vec<pb::LeaseKeepAliveResponse>,
    ask_again: Instant,
    /// Resolves when this side must end the stream.
    cut: Pin<Box<dyn Future<Output = Failure> + Send>>,
    /// The client has ended its side, perhaps by breaking off.
    closed: bool,
    broken: Option<E>,
    /// A lease that the caller may not renew: the stream ends with this once what came before it is answered.
    refused: Option<Error>,
    over: bool,
}

impl<S, E> Session<S, E>
where
    S: Stream<Item = Result<pb::LeaseKeepAliveRequest, E>> + Unpin,
{
    /// Opens a session of a caller. `require_leader` is what the client said in its metadata; `stopping` is cancelled when streams
    /// must end because the process does.
    ///
    /// # Errors
    /// `NoLeader` when a leader is required and none is known; `Learner`.
    pub fn open(
        leases: Leases,
        caller: Caller,
        requests: S,
        require_leader: bool,
        stopping: CancellationToken,
    ) -> Result<Self, Error> {
        let handle = leases.member().voter()?;
        if require_leader {
            leases.member().require_leader()?;
        }
        let cut = cut(require_leader.then(|| handle.clone()), patience(handle.election_timeout()), stopping);
        Ok(Self {
            requests,
            leases,
            caller,
            handle,
            ready: VecDeque::new(),
            expiring: Vec::new(),
            ask_again: Instant::now(),
            cut: Box::pin(cut),
            closed: false,
            broken: None,
            refused: None,
            over: false,
        })
    }

    /// The next answer; None when the client has ended the stream. After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<pb::LeaseKeepAliveResponse, End<E>>> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            if let Some(error) = self.broken.take() {
                self.over = true;
                return Some(Err(End::Client(error)));
            }
            if self.expiring.is_empty()
                && let Some(error) = self.refused.take()
            {
                self.over = true;
                return Some(Err(End::Failed(error)));
            }
            if self.over || (self.closed && self.expiring.is_empty()) {
                return None;
            }
            if let Err(error) = self.step().await {
                self.over = true;
                return Some(Err(End::Failed(error)));
            }
        }
    }

    /// Takes requests, or the leases that are over once more, and renews them.
    async fn step(&mut self) -> Result<(), Error> {
        let room = self.expiring.len() + MAX_BATCH <= MAX_IDS;
        let readable = !self.closed && self.refused.is_none() && room;
        let asked = tokio::select! {
            failure = &mut self.cut => return Err(failure.into()),
            first = self.requests.next(), if readable => self.batch(first),
            () = sleep_until(self.ask_again), if !self.expiring.is_empty() => std::mem::take(&mut self.expiring),
        };
        if asked.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = asked.iter().map(|response| response.id).collect();
        let Renewals { renewals, refused } = tokio::select! {
            failure = &mut self.cut => return Err(failure.into()),
            renewals = self.leases.renew(&self.caller, &ids) => renewals?,
        };
        self.refused = self.refused.take().or(refused);
        for (mut response, renewal) in asked.into_iter().zip(renewals) {
            match renewal {
                Renewal::Renewed { ttl } => response.ttl = ttl,
                Renewal::NotFound => {}
                Renewal::Expiring | Renewal::Checkpointed => {
                    if self.expiring.is_empty() {
                        self.ask_again = Instant::now() + ASK_AGAIN;
                    }
                    self.expiring.push(response);
                    continue;
                }
            }
            self.ready.push_back(response);
        }
        Ok(())
    }

    /// The first request and what else has arrived, as answers without a TTL.
    fn batch(&mut self, first: Option<Result<pb::LeaseKeepAliveRequest, E>>) -> Vec<pb::LeaseKeepAliveResponse> {
        // Of before the renewal: a revision above it may already be that of a later revocation.
        let status = self.handle.status();
        let header = Some(header(&status, status.revision));
        let mut asked = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Some(Ok(request)) => asked.push(pb::LeaseKeepAliveResponse { header, id: request.id, ttl: 0 }),
                Some(Err(error)) => {
                    (self.closed, self.broken) = (true, Some(error));
                    break;
                }
                None => {
                    self.closed = true;
                    break;
                }
            }
            next = if asked.len() < MAX_BATCH { self.requests.next().now_or_never() } else { None };
        }
        asked
    }
}
