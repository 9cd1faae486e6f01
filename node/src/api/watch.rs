//! etcdserverpb.Watch on the wire: metadata in, headers and fragments out. What is answered, the watch service decides.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Instant;

use balsa_proto::etcdserverpb as pb;
use futures::{Stream, stream};
use prost::Message;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::caller::caller;
use super::large_message::Beside;
use super::status::{check_client_version, count_broken, etcd, wants_leader};
use crate::engine::{Failure, Limit};
use crate::metrics;
use crate::service::caller::Caller;
use crate::service::watch::{Admission, Answer, End, Session, WatchSettings, Watched};

/// What etcd adds to `max-request-bytes` for messages around a request.
const REQUEST_OVERHEAD_BYTES: usize = 512 << 10;

/// The presenter. `member` answers the running member, or why there is none; `admission` what a caller may watch.
pub struct WatchApi<F, A> {
    member: F,
    admission: A,
    stopping: CancellationToken,
    settings: WatchSettings,
    max_request_bytes: Limit<usize>,
}

impl<F, A> WatchApi<F, A> {
    /// `stopping` is cancelled when streams must end. `max_request_bytes` is the flag of that name: answers of that and
    /// 512 KiB are sent in parts to clients that take them so.
    pub fn new(
        member: F,
        admission: A,
        stopping: CancellationToken,
        settings: WatchSettings,
        max_request_bytes: Limit<usize>,
    ) -> Self {
        Self { member, admission, stopping, settings, max_request_bytes }
    }
}

#[tonic::async_trait]
impl<M, F, A> pb::watch_server::Watch for WatchApi<F, A>
where
    M: Watched,
    F: Fn() -> Result<M, Failure> + Send + Sync + 'static,
    A: Fn(Caller) -> Box<dyn Admission> + Send + Sync + 'static,
{
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let member = (self.member)().map_err(|failure| etcd(failure.into()))?;
        check_client_version(request.metadata()).map_err(etcd)?;
        let require_leader = wants_leader(request.metadata());
        let admission = (self.admission)(caller(&request));
        let (requests, stopping) = (request.into_inner(), self.stopping.clone());
        let session =
            Session::open(&member, requests, admission, self.settings, require_leader, stopping).map_err(etcd)?;
        let max_bytes = self.max_request_bytes.get().saturating_add(REQUEST_OVERHEAD_BYTES);
        let (beside, parts) = (Beside::default(), VecDeque::new());
        let state =
            Presented { member, session, parts, max_bytes, handed: None, beside: beside.clone(), all_sent: None };
        let responses = stream::unfold(state, |mut state| async move {
            let next = state.next().await?;
            Some((next, state))
        });
        let mut response = Response::new(Box::pin(responses) as Self::WatchStream);
        response.extensions_mut().insert(beside);
        Ok(response)
    }
}

/// A session, and the parts of its last answer that are not sent yet.
struct Presented<M> {
    member: M,
    session: Session<Streaming<pb::WatchRequest>>,
    parts: VecDeque<pb::WatchResponse>,
    max_bytes: usize,
    handed: Option<Handed>,
    /// Where large answers go.
    beside: Beside,
    /// Resolves once the last large answer is sent. The session is told of it by being asked for the next one.
    all_sent: Option<oneshot::Receiver<()>>,
}

/// The last answer, on its way: when it was handed to the connection, and how many events it has.
struct Handed {
    at: Instant,
    events: usize,
}

impl Handed {
    /// The connection asks for more, so it has taken over all of this: where etcd's would return from sending it.
    fn taken(self) {
        let seconds = self.at.elapsed().as_secs_f64();
        if self.events == 0 {
            return metrics::WATCH_CONTROL_SECONDS.observe(seconds);
        }
        metrics::WATCH_EVENTS_SECONDS.observe(seconds);
        metrics::WATCH_PER_EVENT_SECONDS.observe(seconds / self.events as f64);
    }
}

impl<M: Watched> Presented<M> {
    async fn next(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        if let Some(all_sent) = self.all_sent.take() {
            let _ = all_sent.await;
        }
        let response = match self.next_response().await? {
            Ok(response) => response,
            Err(status) => return Some(Err(status)),
        };
        let (response, all_sent) = self.beside.pass(response);
        self.all_sent = all_sent;
        Some(Ok(response))
    }

    async fn next_response(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        if let Some(part) = self.parts.pop_front() {
            return Some(Ok(part));
        }
        if let Some(handed) = self.handed.take() {
            handed.taken();
        }
        match self.session.next().await? {
            Ok(Answer { mut response, splittable }) => {
                self.handed = Some(Handed { at: Instant::now(), events: response.events.len() });
                self.fill_header(&mut response);
                if !splittable {
                    return Some(Ok(response));
                }
                self.parts = fragments(response, self.max_bytes).into();
                self.parts.pop_front().map(Ok)
            }
            Err(End::Failed(error)) => Some(Err(etcd(error))),
            Err(End::Client(error)) => {
                count_broken("watch", &error);
                Some(Err(error))
            }
        }
    }

    fn fill_header(&self, response: &mut pb::WatchResponse) {
        let status = self.member.status();
        let header = response.header.get_or_insert_default();
        header.cluster_id = status.cluster_id;
        header.member_id = status.raft_id;
        header.raft_term = status.term;
    }
}

/// Splits a response of `max_bytes` or more; every part but the last says that more follows. An event is never split,
/// so a part of one event can be larger.
fn fragments(mut response: pb::WatchResponse, max_bytes: usize) -> Vec<pb::WatchResponse> {
    if response.events.len() < 2 || response.encoded_len() < max_bytes {
        return vec![response];
    }
    let events = std::mem::take(&mut response.events);
    let empty = pb::WatchResponse { fragment: true, ..response };
    let base = empty.encoded_len();
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (empty.clone(), base);
    for event in events {
        let length = event.encoded_len();
        let event_bytes = 1 + prost::length_delimiter_len(length) + length;
        if !part.events.is_empty() && bytes + event_bytes >= max_bytes {
            parts.push(std::mem::replace(&mut part, empty.clone()));
            bytes = base;
        }
        bytes += event_bytes;
        part.events.push(event);
    }
    parts.push(pb::WatchResponse { fragment: false, ..part });
    parts
}

#[cfg(test)]
mod tests {
    use balsa_proto::mvccpb::{Event, KeyValue};

    use super::*;

    fn event(key: u8, bytes: usize) -> Event {
        let kv = KeyValue { key: vec![key].into(), value: vec![0; bytes].into(), ..Default::default() };
        Event { kv: Some(kv), ..Default::default() }
    }

    fn response(events: Vec<Event>) -> pb::WatchResponse {
        let header = Some(pb::ResponseHeader { revision: 9, ..Default::default() });
        pb::WatchResponse { header, watch_id: 4, events, ..Default::default() }
    }

    fn keys(parts: &[pb::WatchResponse]) -> Vec<Vec<u8>> {
        let key = |event: &Event| event.kv.as_ref().expect("kv").key[0];
        parts.iter().map(|part| part.events.iter().map(key).collect()).collect()
    }

    #[test]
    fn a_small_answer_or_a_single_event_is_sent_whole() {
        assert_eq!(fragments(response(vec![event(1, 10), event(2, 10)]), 1000).len(), 1);
        let single = fragments(response(vec![event(1, 5000)]), 1000);
        assert_eq!((single.len(), single[0].fragment), (1, false));
    }

    #[test]
    fn a_large_answer_is_split_between_events_and_only_the_last_part_ends_it() {
        let events = vec![event(1, 400), event(2, 400), event(3, 400), event(4, 5000), event(5, 10)];
        let parts = fragments(response(events), 1000);
        assert_eq!(keys(&parts), [vec![1, 2], vec![3], vec![4], vec![5]]);
        assert_eq!(parts.iter().map(|part| part.fragment).collect::<Vec<_>>(), [true, true, true, false]);
        assert!(parts.iter().all(|part| part.watch_id == 4 && part.header == parts[0].header));
        assert!(parts.iter().all(|part| part.events.len() == 1 || part.encoded_len() < 1000));
    }

    #[test]
    fn an_answer_of_exactly_the_bound_is_split() {
        let whole = response(vec![event(1, 400), event(2, 400)]);
        let bytes = whole.encoded_len();
        assert_eq!(fragments(whole.clone(), bytes + 1).len(), 1);
        assert_eq!(fragments(whole, bytes).len(), 2);
    }
}
