//! What one watcher must have got: counted from the log of all events, so that a comparison knows when it may look.
//! Which events those are exactly, etcd's answer says.

use std::collections::BTreeSet;
use std::fmt;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::Event;
use balsa_proto::mvccpb::event::EventType;
use bytes::Bytes;
use tonic::Code;

use super::reply::Identity;
use super::revision::Revisions;
use super::step::brief;
use super::streams::{Record, Stream, mod_revision};

/// A watcher, the same on both servers.
#[derive(Debug, Clone)]
pub struct Watching {
    /// Its stream.
    pub stream: usize,
    /// Its place among the watchers that its stream has announced.
    number: usize,
    /// Its id.
    pub id: i64,
    request: pb::WatchCreateRequest,
    /// No event before this revision.
    start: i64,
    /// Keys that its first revision changed in passing, when that is the compacted one. etcd may tell those changes or not.
    pub taken: BTreeSet<Bytes>,
    /// It asked for what is compacted: it is canceled instead of served.
    doomed: bool,
    scanned: usize,
    expected: usize,
    compared: usize,
}

/// What a server has sent to a watcher since the last comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    events: Vec<Event>,
    compacted: Option<pb::WatchResponse>,
    ended: Option<(Code, String)>,
}

impl Outcome {
    /// Ids taken out.
    pub fn normalised(mut self, turn: usize, identity: &mut Identity) -> Self {
        identity.turn(turn);
        if let Some(response) = &mut self.compacted {
            identity.header(&mut response.header);
        }
        self
    }

    /// Without the previous pairs that etcd could not read any more when it sent `etcds`, because they were compacted.
    pub fn without_compacted(mut self, etcds: &Self, compacted: i64) -> Self {
        for (event, etcds) in self.events.iter_mut().zip(&etcds.events) {
            if etcds.prev_kv.is_none() && mod_revision(event) <= compacted {
                event.prev_kv = None;
            }
        }
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} events: {}", self.events.len(), brief(&format!("{self:?}")))
    }
}

impl Watching {
    /// The watcher of a request that was accepted at `revisions`.
    pub fn new(stream: usize, number: usize, id: i64, request: &pb::WatchCreateRequest, revisions: Revisions) -> Self {
        let start = if request.start_revision == 0 { revisions.current + 1 } else { request.start_revision };
        Self {
            stream,
            number,
            id,
            request: request.clone(),
            start,
            taken: BTreeSet::new(),
            doomed: start < revisions.compacted,
            scanned: 0,
            expected: 0,
            compared: 0,
        }
    }

    /// Counts what is due to it by the log of all events.
    pub fn expect(&mut self, log: &[Event]) {
        if !self.doomed {
            self.expected += log[self.scanned..].iter().filter(|event| self.is_due(event)).count();
        }
        self.scanned = log.len();
    }

    fn is_due(&self, event: &Event) -> bool {
        let key = event.kv.as_ref().map_or(Bytes::new(), |kv| kv.key.clone());
        let end = &self.request.range_end;
        let in_range = match &end[..] {
            b"" => key == self.key(),
            b"\0" => key >= self.key(),
            _ => key >= self.key() && key < *end,
        };
        // A filter has the number of the type that it keeps away.
        in_range && mod_revision(event) >= self.start && !self.request.filters.contains(&event.r#type)
    }

    fn key(&self) -> Bytes {
        if self.request.key.is_empty() { Bytes::from_static(b"\0") } else { self.request.key.clone() }
    }

    /// Waits until a server's stream has all that is due, and takes what was not compared yet, without what the first
    /// revision did in passing to the keys of `taken`.
    pub async fn wait(&self, stream: &mut Stream, taken: &BTreeSet<Bytes>) -> Outcome {
        stream.until(|record| self.is_complete(record, taken)).await;
        let record = stream.record();
        let watcher = record.watchers.get(self.number).cloned().unwrap_or_default();
        let events = self.left(&watcher.events, taken).skip(self.compared).cloned().collect();
        Outcome { events, compacted: watcher.compacted, ended: record.ended.clone() }
    }

    fn is_complete(&self, record: &Record, taken: &BTreeSet<Bytes>) -> bool {
        let Some(watcher) = record.watchers.get(self.number) else { return false };
        let heard = self.left(&watcher.events, taken).count();
        heard >= self.expected && (!self.doomed || watcher.compacted.is_some())
    }

    /// Of a key in `taken` the first revision leaves one delete.
    fn left<'a>(&self, events: &'a [Event], taken: &BTreeSet<Bytes>) -> impl Iterator<Item = &'a Event> {
        let mut deleted = BTreeSet::new();
        events.iter().filter(move |event| {
            let key = event.kv.as_ref().map_or(&[][..], |kv| &kv.key);
            let in_passing = mod_revision(event) == self.start && taken.contains(key);
            !in_passing || event.r#type() == EventType::Delete && deleted.insert(key)
        })
    }

    /// What is due was compared.
    pub fn compared(&mut self) {
        self.compared = self.expected;
    }

    /// Whether it gets nothing before a revision that is not yet there.
    pub fn waits_beyond(&self, revision: i64) -> bool {
        self.start > revision + 1
    }

    /// Whether it asked to hear of the revision from time to time.
    pub fn hears_of_progress(&self) -> bool {
        self.request.progress_notify
    }

    /// Waits until it has heard that there is nothing more up to `revision`; the last that it has heard.
    pub async fn wait_for_progress(&self, stream: &mut Stream, revision: i64) -> Option<i64> {
        let told = |record: &Record| record.watchers.get(self.number).and_then(|watcher| watcher.progress);
        stream.until(|record| told(record) >= Some(revision)).await;
        told(&stream.record())
    }

    /// Whether more may come.
    pub fn is_live(&self) -> bool {
        !self.doomed
    }
}

impl fmt::Display for Watching {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "watcher {} of stream {} ({:?})", self.number, self.stream, self.request)
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::mvccpb::KeyValue;

    use super::*;

    fn due(request: pb::WatchCreateRequest, revisions: Revisions) -> usize {
        let event = |(index, key): (usize, &&'static str)| Event {
            r#type: i32::from(index % 2 == 1),
            kv: Some(KeyValue { key: (*key).into(), mod_revision: index as i64 + 2, ..Default::default() }),
            ..Default::default()
        };
        let log: Vec<Event> = ["a", "b", "c", "a"].iter().enumerate().map(event).collect();
        let mut watching = Watching::new(0, 0, 0, &request, revisions);
        watching.expect(&log[..2]);
        watching.expect(&log);
        watching.expected
    }

    #[test]
    fn of_keys_that_changed_in_passing_one_delete_counts() {
        let request = pb::WatchCreateRequest { start_revision: 3, range_end: "\0".into(), ..Default::default() };
        let watching = Watching::new(0, 0, 0, &request, Revisions { current: 4, compacted: 3 });
        let event = |(key, delete, mod_revision): (&'static str, bool, i64)| Event {
            r#type: i32::from(delete),
            kv: Some(KeyValue { key: key.into(), mod_revision, ..Default::default() }),
            ..Default::default()
        };
        let heard = [("a", true, 3), ("a", false, 3), ("a", true, 3), ("b", false, 3), ("a", false, 4)].map(event);
        let left = |taken: &[Bytes]| watching.left(&heard, &taken.iter().cloned().collect()).count();
        assert_eq!((left(&["a".into()]), left(&[])), (3, 5));
    }

    #[test]
    fn etcd_may_leave_out_a_previous_pair_that_is_compacted() {
        let event = |mod_revision, prev_kv| Event {
            kv: Some(KeyValue { mod_revision, ..Default::default() }),
            prev_kv,
            ..Default::default()
        };
        let told = |pairs: [Option<KeyValue>; 2]| {
            let events = pairs.into_iter().zip([6, 7]).map(|(pair, revision)| event(revision, pair)).collect();
            Outcome { events, compacted: None, ended: None }
        };
        let pair = || Some(KeyValue::default());
        let balsas = || told([pair(), pair()]);
        assert_eq!(balsas().without_compacted(&told([None, pair()]), 6), told([None, pair()]));
        assert_eq!(balsas().without_compacted(&balsas(), 6), balsas());
        assert_ne!(balsas().without_compacted(&told([pair(), None]), 6), told([pair(), None]));
    }

    #[test]
    fn what_is_due_follows_from_range_start_and_filters() {
        let all = pb::WatchCreateRequest { range_end: "\0".into(), ..Default::default() };
        let at = Revisions::default();
        assert_eq!(due(all.clone(), at), 4);
        assert_eq!(due(pb::WatchCreateRequest { filters: vec![0], ..all.clone() }, at), 2);
        assert_eq!(due(pb::WatchCreateRequest { start_revision: 4, ..all.clone() }, at), 2);
        assert_eq!(due(all, Revisions { current: 3, compacted: 0 }), 2);
        let a = pb::WatchCreateRequest { key: "a".into(), ..Default::default() };
        assert_eq!(due(a.clone(), at), 2);
        assert_eq!(due(pb::WatchCreateRequest { range_end: "c".into(), ..a.clone() }, at), 3);
        assert_eq!(due(pb::WatchCreateRequest { start_revision: 1, ..a }, Revisions { current: 9, compacted: 4 }), 0);
    }
}
