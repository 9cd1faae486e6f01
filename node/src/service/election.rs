//! Elections: whoever holds the first place of a queue is the leader, and the value of its key is what it proclaims.

use std::collections::VecDeque;
use std::pin::Pin;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use balsa_proto::v3electionpb as wire;
use bytes::Bytes;
use pb::request_op::Request;

use super::caller::Caller;
use super::failure::Error;
use super::member::header;
use super::queue::{
    Queue, Undo, created_at, first_read, get, is_delete, key, oldest_under, one, prefix, prefix_end, put,
};
use super::watch::{cut, patience};
use crate::engine::Failure;
use crate::engine::watch::{Delivery, WatchStream};

/// etcd's Election service as use cases.
#[derive(Clone)]
pub struct Election {
    queue: Queue,
}

impl Election {
    /// Elections of one member.
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

    /// Waits to be elected. The same lease that campaigns again keeps its place and proclaims the new value. When the
    /// caller goes away while it waits, its candidacy ends.
    ///
    /// # Errors
    /// Those of a write.
    pub async fn campaign(&self, request: wire::CampaignRequest) -> Result<wire::CampaignResponse, Error> {
        let lease = self.queue.session(request.lease).await?;
        let prefix = prefix(&request.name);
        let key = key(&prefix, lease);
        let txn = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, request.value.clone(), lease)],
            failure: vec![get(one(&key))],
        };
        let response = self.queue.txn(txn).await?;
        let found = first_read(&response, 0).filter(|_| !response.succeeded);
        let rev = found.map_or(response.header.map_or(0, |header| header.revision), |kv| kv.create_revision);
        if found.is_some_and(|kv| kv.value != request.value)
            && let Err(error) = self.proclaim_as(&key, rev, request.value, lease).await
        {
            let _ = self.resign_as(&key, rev).await;
            return Err(error);
        }
        let (election, own) = (self.clone(), key.clone());
        let undo = Undo::new(move || async move {
            if let Err(error) = election.resign_as(&own, rev).await {
                tracing::debug!(%error, "a candidacy that was given up ends with its lease");
            }
        });
        let elected = self.queue.turn(&prefix, rev - 1).await;
        undo.keep();
        elected?;
        let leader = Some(wire::LeaderKey { name: request.name, key, rev, lease });
        Ok(wire::CampaignResponse { header: response.header, leader })
    }

    /// Replaces the leader's value.
    ///
    /// # Errors
    /// `LeaderKeyMissing`; `NotElected` when the key is not the one of that candidacy any more; those of a write.
    pub async fn proclaim(&self, request: wire::ProclaimRequest) -> Result<wire::ProclaimResponse, Error> {
        let leader = request.leader.ok_or(Error::LeaderKeyMissing)?;
        let lease = self.queue.session(leader.lease).await?;
        let header = self.proclaim_as(&leader.key, leader.rev, request.value, lease).await?;
        Ok(wire::ProclaimResponse { header })
    }

    /// Ends a candidacy, elected or not. One that is over already is no error.
    ///
    /// # Errors
    /// `LeaderKeyMissing`; those of a write.
    pub async fn resign(&self, request: wire::ResignRequest) -> Result<wire::ResignResponse, Error> {
        let leader = request.leader.ok_or(Error::LeaderKeyMissing)?;
        self.queue.session(leader.lease).await?;
        let header = self.resign_as(&leader.key, leader.rev).await?;
        Ok(wire::ResignResponse { header })
    }

    /// Who is elected now.
    ///
    /// # Errors
    /// `NoneElected`; those of a read.
    pub async fn leader(&self, request: wire::LeaderRequest) -> Result<wire::LeaderResponse, Error> {
        let response = self.queue.range(oldest_under(&prefix(&request.name))).await?;
        let kv = response.kvs.into_iter().next().ok_or(Error::NoneElected)?;
        Ok(wire::LeaderResponse { header: response.header, kv: Some(kv) })
    }

    /// Follows who is elected and what it proclaims. `require_leader` is what the client said in its metadata.
    ///
    /// # Errors
    /// `Uninitialized`; `Learner`.
    pub fn observe(&self, request: &wire::LeaderRequest, require_leader: bool) -> Result<Observation, Error> {
        let handle = self.queue.member().voter()?;
        let stopping = self.queue.member().stopping().clone();
        let cut = cut(require_leader.then(|| handle.clone()), patience(handle.election_timeout()), stopping);
        let (queue, prefix) = (self.queue.clone(), prefix(&request.name));
        Ok(Observation {
            queue,
            prefix,
            ready: VecDeque::new(),
            state: State::Looking,
            cut: Box::pin(cut),
            over: false,
        })
    }

    async fn proclaim_as(
        &self,
        key: &Bytes,
        rev: i64,
        value: Bytes,
        lease: i64,
    ) -> Result<Option<pb::ResponseHeader>, Error> {
        let success = vec![put(key, value, lease)];
        let txn = pb::TxnRequest { compare: vec![created_at(key, rev)], success, failure: Vec::new() };
        let response = self.queue.txn(txn).await?;
        if response.succeeded { Ok(response.header) } else { Err(Error::NotElected) }
    }

    async fn resign_as(&self, key: &Bytes, rev: i64) -> Result<Option<pb::ResponseHeader>, Error> {
        let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
        let success = vec![pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) }];
        let txn = pb::TxnRequest { compare: vec![created_at(key, rev)], success, failure: Vec::new() };
        Ok(self.queue.txn(txn).await?.header)
    }
}

/// Where an observation stands.
enum State {
    /// It asks who is elected.
    Looking,
    /// Nobody is: it waits for the first candidate.
    Waiting(WatchStream),
    /// It follows the leader's key until that is deleted.
    Following(WatchStream),
}

/// What an observer sees: every leader that it finds, with each value that the leader proclaims, in order. Leaders that
/// came and went between two looks are left out.
pub struct Observation {
    queue: Queue,
    prefix: Bytes,
    ready: VecDeque<wire::LeaderResponse>,
    state: State,
    /// Resolves when this side must end the stream.
    cut: Pin<Box<dyn Future<Output = Failure> + Send>>,
    over: bool,
}

impl Observation {
    /// What comes next. After an error, which is only that there is no leader for who required one, there is nothing
    /// more; when it cannot go on for another reason it is None, as etcd ends the stream without an error then.
    pub async fn next(&mut self) -> Option<Result<wire::LeaderResponse, Error>> {
        while !self.over {
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            let Err(error) = self.step().await else { continue };
            tracing::debug!(%error, "an observation of an election ends");
            self.over = true;
            if error == Failure::NoLeader.into() {
                return Some(Err(error));
            }
        }
        None
    }

    async fn step(&mut self) -> Result<(), Error> {
        let (stream, waiting) = match &mut self.state {
            State::Looking => return self.look().await,
            State::Waiting(stream) => (stream, true),
            State::Following(stream) => (stream, false),
        };
        let delivery = tokio::select! {
            failure = &mut self.cut => return Err(failure.into()),
            delivery = stream.next() => delivery?,
        };
        match delivery {
            Delivery::Events { events, .. } if waiting => {
                let first = events.into_iter().find(|event| !is_delete(event)).and_then(|event| event.kv);
                first.map_or(Ok(()), |kv| self.follow(kv.mod_revision, kv))
            }
            Delivery::Events { events, revision, .. } => {
                for event in events {
                    if is_delete(&event) {
                        self.state = State::Looking;
                        break;
                    }
                    self.show(revision, event.kv)?;
                }
                Ok(())
            }
            Delivery::Progress { .. } => Ok(()),
            Delivery::Compacted { .. } => Err(crate::domain::refusal::Refusal::Compacted.into()),
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let response = self.queue.range(oldest_under(&self.prefix)).await?;
        let revision = response.header.map_or(0, |header| header.revision);
        match response.kvs.into_iter().next() {
            Some(kv) => self.follow(revision, kv),
            None => {
                let stream = self.queue.watch(&self.prefix, &prefix_end(&self.prefix), revision)?;
                self.state = State::Waiting(stream);
                Ok(())
            }
        }
    }

    /// Shows the leader as of a revision and follows its key from there on.
    fn follow(&mut self, revision: i64, kv: KeyValue) -> Result<(), Error> {
        self.state = State::Following(self.queue.watch(&kv.key, &Bytes::new(), revision + 1)?);
        self.show(revision, Some(kv))
    }

    fn show(&mut self, revision: i64, kv: Option<KeyValue>) -> Result<(), Error> {
        let header = Some(header(&self.queue.member().handle()?.status(), revision));
        self.ready.push_back(wire::LeaderResponse { header, kv });
        Ok(())
    }
}
