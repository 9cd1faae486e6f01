//! The watch streams of one server, and what came out of each: answers to requests in order, and events per watcher.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::Event;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::reply::Reply;
use super::token::{Token, Wire};

/// How long an answer may take before it is missed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The largest message of a server that this client takes; etcd's own client has no bound worth the name.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// The id of a watcher that only marks a time; sequences do not use it.
const MARKER: i64 = 1 << 40;

/// A watcher, from its announcement on.
#[derive(Debug, Clone, Default)]
pub struct Watcher {
    /// Its id on its stream; used again by a later one when this one is canceled.
    pub id: i64,
    /// The revision in its announcement.
    pub created_at: i64,
    /// All its events.
    pub events: Vec<Event>,
    /// The last revision of which it was told that there are no more events up to it.
    pub progress: Option<i64>,
    /// How it ended, when a compaction ended it.
    pub compacted: Option<pb::WatchResponse>,
    canceled: bool,
    split: bool,
}

/// What came out of a stream.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Answers to requests.
    pub answers: Vec<pb::WatchResponse>,
    /// All watchers in the order of their announcements.
    pub watchers: Vec<Watcher>,
    /// Revisions of progress answers for the whole stream.
    pub progress: Vec<i64>,
    /// What no server may send: rules of etcd's that one stream can be checked for alone.
    pub broken: Vec<String>,
    /// How the stream ended.
    pub ended: Option<(Code, String)>,
}

impl Record {
    /// Takes the next response of the stream.
    fn take(&mut self, response: pb::WatchResponse) {
        if response.created && !response.canceled {
            let created_at = response.header.as_ref().map_or(0, |header| header.revision);
            self.watchers.push(Watcher { id: response.watch_id, created_at, ..Default::default() });
            self.answers.push(response);
        } else if response.created {
            self.answers.push(response);
        } else if response.canceled {
            self.cancel(response);
        } else if response.events.is_empty() {
            self.progress(&response);
        } else {
            self.events(response);
        }
    }

    fn cancel(&mut self, response: pb::WatchResponse) {
        if let Some(watcher) = self.watchers.iter_mut().rev().find(|watcher| watcher.id == response.watch_id) {
            watcher.canceled = true;
            if response.compact_revision != 0 {
                watcher.compacted = Some(response);
                return;
            }
        }
        self.answers.push(response);
    }

    fn progress(&mut self, response: &pb::WatchResponse) {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.watch_id == -1 {
            self.progress.push(revision);
            return;
        }
        let watcher = self.watchers.iter_mut().rev().find(|watcher| watcher.id == response.watch_id);
        // One may be under way when its watcher is canceled.
        if let Some(watcher) = watcher.filter(|watcher| !watcher.canceled) {
            if revision < watcher.events.last().map_or(0, mod_revision) || watcher.progress > Some(revision) {
                self.broken.push(format!("progress that goes back: {response:?}"));
            }
            watcher.progress = Some(revision);
        }
    }

    fn events(&mut self, response: pb::WatchResponse) {
        let (id, revision) = (response.watch_id, response.header.as_ref().map_or(0, |header| header.revision));
        let Some(watcher) = self.watchers.iter_mut().rev().find(|watcher| watcher.id == id && !watcher.canceled) else {
            self.broken.push(format!("events for nobody: {response:?}"));
            return;
        };
        let mut last = watcher.events.last().map_or(0, mod_revision);
        if !watcher.split && response.events.first().map_or(0, mod_revision) == last {
            self.broken.push(format!("watcher {id}: revision {last} comes in two responses"));
        }
        if watcher.progress >= response.events.first().map(mod_revision) {
            self.broken.push(format!("watcher {id}: events up to {:?} were promised to be over", watcher.progress));
        }
        for event in &response.events {
            if mod_revision(event) < last {
                self.broken.push(format!("watcher {id}: revision {} after {last}", mod_revision(event)));
            }
            last = mod_revision(event);
        }
        if revision < last {
            self.broken.push(format!("watcher {id}: header of {revision} with events of {last}"));
        }
        watcher.split = response.fragment;
        watcher.events.extend(response.events);
    }
}

/// The revision of an event.
pub fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// All watch streams of one server.
pub struct Streams {
    channel: Channel,
    token: Token,
    open: BTreeMap<usize, Stream>,
}

impl Streams {
    /// None is open yet.
    pub fn new(channel: Channel, token: Token) -> Self {
        Self { channel, token, open: BTreeMap::new() }
    }

    /// The stream of this number, opened if it is not.
    pub async fn stream(&mut self, number: usize) -> &mut Stream {
        if !self.open.contains_key(&number) {
            let wire = Wire::new(self.channel.clone(), self.token.frozen());
            let stream = Stream::open(WatchClient::new(wire).max_decoding_message_size(MAX_MESSAGE_BYTES));
            self.open.insert(number, stream);
        }
        self.open.get_mut(&number).expect("it was just opened")
    }

    /// The numbers of the open streams with what came out of each.
    pub fn records(&self) -> impl Iterator<Item = (usize, Record)> {
        self.open.iter().map(|(number, stream)| (*number, stream.record.borrow().clone()))
    }
}

/// One stream.
pub struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    record: watch::Receiver<Record>,
}

impl Stream {
    fn open(client: WatchClient<Wire>) -> Self {
        // The sequence waits for each answer, so there is never more than a request and its fence under way.
        let (requests, receiver) = mpsc::channel(16);
        let (sender, record) = watch::channel(Record::default());
        tokio::spawn(read(client, ReceiverStream::new(receiver), Arc::new(sender)));
        Self { requests, record }
    }

    /// Sends a request and waits for all that is answered to it.
    pub async fn ask(&mut self, request: pb::WatchRequest) -> Reply {
        let before = self.record.borrow().answers.len();
        let fence = !matches!(request.request_union, Some(RequestUnion::CreateRequest(_)));
        self.send(request).await;
        if fence {
            self.send(fence_request()).await;
        }
        // A create request has exactly one answer. Others may have none, so a request that is always refused follows:
        // requests are answered in order.
        let is_fence = |answer: &pb::WatchResponse| answer.created;
        let answered = self.until(|record| record.answers[before..].iter().any(is_fence)).await;
        if !answered {
            return self.ended();
        }
        let mut answers = self.record.borrow().answers[before..].to_vec();
        if fence {
            answers.pop();
        }
        Reply::Watch(answers)
    }

    /// Asks for progress until there is an answer of `revision` or later, at most `attempts` times.
    pub async fn progress(&mut self, revision: i64, attempts: usize) -> Option<i64> {
        let request =
            || pb::WatchRequest { request_union: Some(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})) };
        for _ in 0..attempts {
            self.send(request()).await;
            let told = |record: &Record| record.progress.last().is_some_and(|last| *last >= revision);
            if self.until_for(told, Duration::from_millis(60)).await {
                return self.record.borrow().progress.last().copied();
            }
        }
        None
    }

    /// Waits until all watchers of the stream have looked at what is behind them. Those without an event there give no
    /// sign of it, so a watcher of the last event is added, served after them, and removed.
    pub async fn catch_up(&mut self, revision: i64) {
        let create = pb::WatchCreateRequest {
            range_end: "\0".into(),
            start_revision: revision,
            watch_id: MARKER,
            ..Default::default()
        };
        let ask = |union| pb::WatchRequest { request_union: Some(union) };
        self.ask(ask(RequestUnion::CreateRequest(create))).await;
        let served = |record: &Record| record.watchers.last().is_some_and(|last| !last.events.is_empty());
        self.until(served).await;
        self.ask(ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: MARKER }))).await;
    }

    /// What came out so far.
    pub fn record(&self) -> watch::Ref<'_, Record> {
        self.record.borrow()
    }

    /// Waits until the record satisfies `enough`; false when it does not in time or the stream ended.
    pub async fn until(&mut self, mut enough: impl FnMut(&Record) -> bool) -> bool {
        // In slices, so that a machine that was stopped as a whole for longer than all of them costs only one.
        let mut slices = 0..PATIENCE.as_secs();
        loop {
            if self.until_for(&mut enough, Duration::from_secs(1)).await {
                return true;
            }
            if self.record.borrow().ended.is_some() || slices.next().is_none() {
                return false;
            }
        }
    }

    async fn until_for(&mut self, mut enough: impl FnMut(&Record) -> bool, bound: Duration) -> bool {
        let over = |record: &Record| record.ended.is_some();
        let wait = self.record.wait_for(|record| enough(record) || over(record));
        match tokio::time::timeout(bound, wait).await {
            Ok(Ok(record)) => !over(&record),
            _ => false,
        }
    }

    fn ended(&self) -> Reply {
        match &self.record.borrow().ended {
            Some((code, message)) => Reply::Failed { code: *code, message: message.clone() },
            None => Reply::Silent,
        }
    }

    async fn send(&self, request: pb::WatchRequest) {
        // It fails only when the stream has ended, which the record says.
        let _ = self.requests.send(request).await;
    }
}

/// A request that is refused whatever the state: its range is empty. It takes no id.
fn fence_request() -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: "b".into(), range_end: "a".into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

async fn read(
    mut client: WatchClient<Wire>,
    requests: ReceiverStream<pb::WatchRequest>,
    record: Arc<watch::Sender<Record>>,
) {
    let end = match client.watch(requests).await {
        Ok(responses) => drain(responses.into_inner(), &record).await,
        Err(status) => status,
    };
    record.send_modify(|record| record.ended = Some((end.code(), end.message().to_owned())));
}

async fn drain(mut responses: Streaming<pb::WatchResponse>, record: &watch::Sender<Record>) -> Status {
    loop {
        match responses.message().await {
            Ok(Some(response)) => record.send_modify(|record| record.take(response)),
            Ok(None) => return Status::ok("the stream ended"),
            Err(status) => return status,
        }
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::mvccpb::KeyValue;

    use super::*;

    fn response(watch_id: i64, revision: i64, mod_revisions: &[i64]) -> pb::WatchResponse {
        let event = |mod_revision: &i64| Event {
            kv: Some(KeyValue { mod_revision: *mod_revision, ..Default::default() }),
            ..Default::default()
        };
        let header = Some(pb::ResponseHeader { revision, ..Default::default() });
        pb::WatchResponse { header, watch_id, events: mod_revisions.iter().map(event).collect(), ..Default::default() }
    }

    fn record(responses: Vec<pb::WatchResponse>) -> Record {
        let mut record = Record::default();
        record.take(pb::WatchResponse { created: true, ..response(0, 4, &[]) });
        responses.into_iter().for_each(|response| record.take(response));
        record
    }

    #[test]
    fn events_go_to_their_watcher() {
        let record = record(vec![response(0, 6, &[5, 6]), response(-1, 6, &[])]);
        assert_eq!((record.watchers[0].events.len(), record.progress, record.broken), (2, vec![6], vec![]));
    }

    #[test]
    fn what_no_server_may_send_is_noted() {
        assert_eq!(record(vec![response(1, 5, &[5])]).broken.len(), 1, "no such watcher");
        assert_eq!(record(vec![response(0, 6, &[6, 5])]).broken.len(), 1, "out of order");
        assert_eq!(record(vec![response(0, 5, &[5]), response(0, 5, &[5])]).broken.len(), 1, "a revision in two");
        assert_eq!(record(vec![response(0, 4, &[5])]).broken.len(), 1, "a header from before");
        let part = pb::WatchResponse { fragment: true, ..response(0, 5, &[5]) };
        assert_eq!(record(vec![part, response(0, 5, &[5])]).broken.len(), 0, "in parts");
    }
}
