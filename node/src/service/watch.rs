//! The use case "watch": one session per client stream. Requests in, answers out, in etcd's order and with its texts.
//!
//! Owns what etcd checks of a watch request, the ids of a stream, when progress is reported, and when a stream without a
//! leader is cut. It must not know how events find their watchers (the hub does) nor how an answer is put on the wire.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::{Future, pending};
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::failure::Error;
use crate::domain::mvcc::watch::{Filters, Interest, watched_range};
use crate::engine::watch::{Delivery, WatchHub, WatchRequest, WatchStream};
use crate::engine::{Failure, Handle, Status};
use crate::metrics;

/// The shortest interval of progress reports.
pub const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A stream that asked for a leader is cut after this many election timeouts without one.
const ELECTION_TIMEOUTS_WITHOUT_LEADER: u32 = 3;

/// The id in answers that are for no watcher, or for all.
const NO_WATCHER: i64 = -1;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// What a watch session needs of its member.
pub trait Watched: Clone + Send + Sync + 'static {
    /// See [`Handle::status`].
    fn status(&self) -> Arc<Status>;

    /// See [`Handle::watch_hub`].
    fn watch_hub(&self) -> &Arc<WatchHub>;

    /// See [`Handle::leader_changed`].
    fn leader_changed(&self, seen: (u64, u64)) -> impl Future<Output = (u64, u64)> + Send;
}

impl Watched for Handle {
    fn status(&self) -> Arc<Status> {
        Handle::status(self)
    }

    fn watch_hub(&self) -> &Arc<WatchHub> {
        Handle::watch_hub(self)
    }

    fn leader_changed(&self, seen: (u64, u64)) -> impl Future<Output = (u64, u64)> + Send {
        Handle::leader_changed(self, seen)
    }
}

/// Decides for each watch of a session whether its client may open it.
pub trait Admission: Send + Sync {
    /// Refuses a watch of keys that the client may not read.
    fn admit<'a>(&'a self, request: &'a pb::WatchCreateRequest) -> BoxFuture<'a, Result<(), Error>>;
}

/// What is configured for all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchSettings {
    /// How often watchers that ask for it are told the revision while nothing happens; at least
    /// [`MIN_PROGRESS_INTERVAL`]. Up to a tenth is added at random per stream.
    pub progress_interval: Duration,
    /// The election timeout of the member.
    pub election_timeout: Duration,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self { progress_interval: Duration::from_secs(600), election_timeout: Duration::from_secs(1) }
    }
}

/// One answer of a session. The header carries only `revision`.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The answer.
    pub response: pb::WatchResponse,
    /// Whether the client takes a large one in parts.
    pub splittable: bool,
}

/// Why a session ended before its client ended it.
#[derive(Debug, Clone, PartialEq)]
pub enum End<E> {
    /// This side ended it.
    Failed(Error),
    /// The client's requests broke off with this error.
    Client(E),
}

/// What a session knows of a watcher beside its id.
#[derive(Debug, Clone, Copy)]
struct Watching {
    /// For a watcher that wants progress reports: whether one is due at the next tick.
    progress_due: Option<bool>,
    fragment: bool,
}

/// One client's stream. Dropping it cancels its watchers.
pub struct Session<S> {
    requests: S,
    admission: Box<dyn Admission>,
    stream: WatchStream,
    watching: HashMap<i64, Watching>,
    /// The next id to try for a watcher without one.
    next_id: i64,
    ticks: Interval,
    /// Resolves when this side must end the stream.
    cut: Pin<Box<dyn Future<Output = Failure> + Send>>,
    /// The client sends no further requests.
    asked_all: bool,
    over: bool,
}

impl<S, E> Session<S>
where
    S: Stream<Item = Result<pb::WatchRequest, E>> + Unpin,
{
    /// Opens a session, whose watches `admission` decides on. `require_leader` is what the client said in its metadata; `stopping` is cancelled when streams
    /// must end because the process does.
    ///
    /// # Errors
    /// `NoLeader` when a leader is required and none is known; `Learner`.
    pub fn open<M: Watched>(
        member: &M,
        requests: S,
        admission: Box<dyn Admission>,
        settings: WatchSettings,
        require_leader: bool,
        stopping: CancellationToken,
    ) -> Result<Self, Error> {
        let status = member.status();
        if status.is_learner() {
            return Err(Error::Learner);
        }
        if require_leader && status.leader == 0 {
            return Err(Failure::NoLeader.into());
        }
        let patience = patience(settings.election_timeout);
        let cut = cut(require_leader.then(|| member.clone()), patience, stopping);
        let stream = member.watch_hub().open();
        let ticks = ticks(settings.progress_interval);
        Ok(Self {
            requests,
            admission,
            stream,
            watching: HashMap::new(),
            next_id: 0,
            ticks,
            cut: Box::pin(cut),
            asked_all: false,
            over: false,
        })
    }

    /// The next answer. After an error there is nothing more. A client that sends no further requests goes on hearing of
    /// its watchers, as etcd's do: the gateway's clients are such; it ends the stream by dropping it.
    pub async fn next(&mut self) -> Option<Result<Answer, End<E>>> {
        while !self.over {
            tokio::select! {
                failure = &mut self.cut => return Some(Err(self.end(failure.into()))),
                request = self.requests.next(), if !self.asked_all => match request {
                    None => self.asked_all = true,
                    Some(Err(error)) => {
                        self.over = true;
                        return Some(Err(End::Client(error)));
                    }
                    Some(Ok(request)) => {
                        if let Some(response) = self.answer(request).await {
                            return Some(Ok(Answer { response, splittable: false }));
                        }
                    }
                },
                delivery = self.stream.next() => return Some(match delivery {
                    Ok(delivery) => Ok(self.deliver(delivery)),
                    Err(failure) => Err(self.end(failure.into())),
                }),
                _ = self.ticks.tick() => self.report_progress(),
            }
        }
        None
    }

    fn end(&mut self, error: Error) -> End<E> {
        self.over = true;
        End::Failed(error)
    }

    /// Takes a request; not every one is answered, and an empty one is none.
    async fn answer(&mut self, request: pb::WatchRequest) -> Option<pb::WatchResponse> {
        match request.request_union? {
            RequestUnion::CreateRequest(create) => Some(self.create(&create).await),
            RequestUnion::CancelRequest(cancel) => self.cancel(cancel.watch_id),
            RequestUnion::ProgressRequest(pb::WatchProgressRequest {}) => {
                self.stream.request_progress();
                None
            }
        }
    }

    async fn create(&mut self, request: &pb::WatchCreateRequest) -> pb::WatchResponse {
        let (watch_id, interest) = match self.check(request).await {
            Ok(checked) => checked,
            Err(reason) => return self.refused(&reason),
        };
        let progress_due = request.progress_notify.then_some(true);
        self.watching.insert(watch_id, Watching { progress_due, fragment: request.fragment });
        let wanted = WatchRequest { interest, start_revision: request.start_revision, prev_kv: request.prev_kv };
        let revision = self.stream.watch(watch_id, wanted);
        pb::WatchResponse { header: header(revision), watch_id, created: true, ..Default::default() }
    }

    /// The checks in etcd's order. A refused request takes no id.
    async fn check(&mut self, request: &pb::WatchCreateRequest) -> Result<(i64, Interest), Cow<'static, str>> {
        if request.start_revision < 0 {
            return Err(COMPACTED.into());
        }
        self.admission.admit(request).await.map_err(|error| not_admitted(&error))?;
        let range = watched_range(&request.key, &request.range_end).ok_or(EMPTY_RANGE)?;
        let watch_id = self.take_id(request.watch_id).ok_or(DUPLICATE_ID)?;
        Ok((watch_id, Interest { range, filters: filters(request) }))
    }

    /// The id that was asked for unless it is in use; for 0 the next one that is free.
    fn take_id(&mut self, requested: i64) -> Option<i64> {
        if requested != 0 {
            return (!self.stream.contains(requested)).then_some(requested);
        }
        while self.stream.contains(self.next_id) {
            self.next_id += 1;
        }
        let id = self.next_id;
        self.next_id += 1;
        Some(id)
    }

    fn refused(&self, reason: &str) -> pb::WatchResponse {
        pb::WatchResponse {
            header: header(self.stream.revision()),
            watch_id: NO_WATCHER,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..Default::default()
        }
    }

    fn cancel(&mut self, watch_id: i64) -> Option<pb::WatchResponse> {
        self.watching.remove(&watch_id);
        let known = self.stream.cancel(watch_id);
        let header = header(self.stream.revision());
        known.then(|| pb::WatchResponse { header, watch_id, canceled: true, ..Default::default() })
    }

    fn deliver(&mut self, delivery: Delivery) -> Answer {
        match delivery {
            Delivery::Events { watch_id, revision, events } => {
                let watching = self.watching.get_mut(&watch_id);
                let splittable = watching.as_ref().is_some_and(|watching| watching.fragment);
                // The events tell the revision, so the next report is left out.
                if let Some(due) = watching.and_then(|watching| watching.progress_due.as_mut()) {
                    *due = false;
                }
                let response = pb::WatchResponse { header: header(revision), watch_id, events, ..Default::default() };
                Answer { response, splittable }
            }
            Delivery::Progress { watch_id, revision } => {
                let watch_id = watch_id.unwrap_or(NO_WATCHER);
                let response = pb::WatchResponse { header: header(revision), watch_id, ..Default::default() };
                Answer { response, splittable: false }
            }
            Delivery::Compacted { watch_id, compact_revision } => {
                self.watching.remove(&watch_id);
                let response = pb::WatchResponse {
                    header: header(0),
                    watch_id,
                    canceled: true,
                    compact_revision,
                    ..Default::default()
                };
                Answer { response, splittable: false }
            }
        }
    }

    fn report_progress(&mut self) {
        let started = Instant::now();
        for (watch_id, watching) in &mut self.watching {
            let Some(due) = &mut watching.progress_due else { continue };
            if std::mem::replace(due, true) {
                self.stream.request_progress_of(*watch_id);
            }
        }
        metrics::WATCH_PROGRESS_SECONDS.observe(started.elapsed().as_secs_f64());
    }
}

fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..Default::default() })
}

/// The reason in the form that a Go client gives to a failed call: clients match on it.
fn not_admitted(error: &Error) -> Cow<'static, str> {
    let row = error.row();
    format!("rpc error: code = {:?} desc = {}", row.code, row.text).into()
}

/// Filters that do not exist are left out of account, as etcd does.
fn filters(request: &pb::WatchCreateRequest) -> Filters {
    let has = |filter: FilterType| request.filters.contains(&filter.into());
    Filters { no_put: has(FilterType::Noput), no_delete: has(FilterType::Nodelete) }
}

/// Ticks of progress reports. The jitter keeps streams that began together from reporting together.
fn ticks(interval: Duration) -> Interval {
    let interval = interval.max(MIN_PROGRESS_INTERVAL);
    let tenth = interval / 10;
    let jitter = Duration::from_nanos(RandomState::new().hash_one(0) % (tenth.as_nanos() as u64).max(1));
    let period = interval + jitter;
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// How long a stream that asked for a leader goes on without one.
pub(super) fn patience(election_timeout: Duration) -> Duration {
    election_timeout * ELECTION_TIMEOUTS_WITHOUT_LEADER
}

/// Resolves when a stream must end: the process stops, or `led`, given if the client requires a leader, lost its own.
pub(super) async fn cut<M: Watched>(led: Option<M>, patience: Duration, stopping: CancellationToken) -> Failure {
    let leader_lost = async {
        match led {
            Some(member) => leader_lost(member, patience).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = stopping.cancelled() => Failure::Stopped,
        () = leader_lost => Failure::NoLeader,
    }
}

/// Resolves once the member has known no leader for `patience` without a break.
pub(super) async fn leader_lost<M: Watched>(member: M, patience: Duration) {
    let status = member.status();
    let mut seen = (status.leader, status.term);
    loop {
        while seen.0 != 0 {
            seen = member.leader_changed(seen).await;
        }
        let patience_ends = sleep(patience);
        tokio::pin!(patience_ends);
        while seen.0 == 0 {
            tokio::select! {
                () = &mut patience_ends => return,
                now = member.leader_changed(seen) => seen = now,
            }
        }
    }
}

#[cfg(test)]
mod tests;
