//! Watchers of a replica, beside the model that says what each must hear. They hang on the real hub, which reads the
//! replica's own tables when a client is slow or begins in the past.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_proto::mvccpb::{Event, KeyValue};
use bytes::Bytes;

use super::{Model, Random, answers};
use crate::domain::apply::Effects;
use crate::domain::mvcc::watch::{Filters, Interest, watched_range};
use crate::domain::mvcc::{Changes, Most, ReadError, Revisions, Wanted, changes, current};
use crate::domain::refusal::Refusal;
use crate::engine::Failure;
use crate::engine::watch::{ChangeSource, Delivery, Missed, WatchHub, WatchOptions, WatchRequest, WatchStream};
use crate::storage::KeySpace;
use crate::storage::memory::MemoryKeySpace;

/// What a client asks for, in the words of the request.
#[derive(Debug, Clone)]
struct Wish {
    key: Bytes,
    range_end: Bytes,
    start: i64,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
}

impl Wish {
    fn draw(random: &mut Random, revision: i64) -> Self {
        let (key, range_end) = match random.below(8) {
            // An empty key is the lowest one, with an open end it is everything.
            0 => (Bytes::new(), Bytes::from_static(b"\0")),
            1 => (Bytes::new(), random.key()),
            2 | 3 => (random.key(), Bytes::new()),
            _ => random.range(),
        };
        // From now on, from the past however long compacted, or from what is not written yet.
        let start = if random.one_in(3) { 0 } else { random.below(revision as usize + 5) as i64 };
        let filter = random.below(8);
        let (no_put, no_delete) = (matches!(filter, 0 | 2), matches!(filter, 1 | 2));
        Self { key, range_end, start, no_put, no_delete, prev_kv: random.one_in(2) }
    }

    fn request(&self) -> Option<WatchRequest> {
        let range = watched_range(&self.key, &self.range_end)?;
        let filters = Filters { no_put: self.no_put, no_delete: self.no_delete };
        Some(WatchRequest { interest: Interest { range, filters }, start_revision: self.start, prev_kv: self.prev_kv })
    }

    fn names(&self, key: &[u8]) -> bool {
        let low: &[u8] = if self.key.is_empty() { b"\0" } else { &self.key };
        answers::names(low, &self.range_end, key)
    }
}

impl Model {
    /// What a watcher must hear of the revisions `from..=through`, and whether a compaction may have taken it before.
    fn heard_by(&self, wish: &Wish, from: i64, through: i64) -> Vec<(Event, bool)> {
        let (mut events, mut revision) = (Vec::new(), 0);
        // The state so far, and what the revision at hand found of the keys that it changed.
        let (mut state, mut found) = (BTreeMap::new(), BTreeMap::new());
        for (at, (made, key, version)) in
            self.versions.iter().enumerate().take_while(|(_, (made, ..))| *made <= through)
        {
            if *made > revision {
                revision = *made;
                found.clear();
            }
            let before: &Option<KeyValue> = found.entry(key).or_insert_with(|| state.get(key).cloned());
            let created = version.as_ref().is_some_and(|kv| kv.create_revision == *made);
            let prev_kv = before.clone().filter(|_| wish.prev_kv && !created);
            let filtered = if version.is_some() { wish.no_put } else { wish.no_delete };
            if *made >= from && !filtered && wish.names(key) {
                let gone = || KeyValue { key: key.clone(), mod_revision: *made, ..Default::default() };
                let kv = version.clone().unwrap_or_else(gone);
                let taken = self.compactions.contains(made) && !self.outlives_its_compaction(at);
                events.push((Event { r#type: i32::from(version.is_none()), kv: Some(kv), prev_kv }, taken));
            }
            match version {
                Some(kv) => state.insert(key, kv.clone()),
                None => state.remove(key),
            };
        }
        events
    }
}

/// One watcher of a client, and what it has heard so far.
struct Watcher {
    wish: Wish,
    /// It wants events from here on.
    from: i64,
    /// It began below this compacted revision and must be told so.
    lost: Option<i64>,
    heard: Vec<Event>,
    /// It has all up to here for certain.
    through: i64,
}

impl Watcher {
    /// Order, completeness, and that nothing came twice. Behind a compaction the pair before may be unreadable.
    fn check(&self, model: &Model, through: i64, compacted: i64) {
        let wanted = model.heard_by(&self.wish, self.from, through);
        let same = |heard: &Event, wanted: &Event| {
            let revision = wanted.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            let unreadable = heard.prev_kv.is_none() && revision <= compacted;
            heard == wanted || unreadable && *heard == Event { prev_kv: None, ..wanted.clone() }
        };
        let mut heard = self.heard.iter().peekable();
        let all = wanted.iter().all(|(event, taken)| heard.next_if(|heard| same(heard, event)).is_some() || *taken);
        assert!(
            all && heard.peek().is_none(),
            "{:?} from {} through {through}, compacted {compacted}\nheard {:#?}\nwanted {wanted:#?}",
            self.wish,
            self.from,
            self.heard
        );
    }
}

struct Client {
    stream: WatchStream,
    watchers: BTreeMap<i64, Watcher>,
    /// Watchers that a compaction ended, since the last count.
    ended: usize,
}

impl Client {
    fn watch(&mut self, id: i64, wish: Wish, compacted: i64) {
        let Some(request) = wish.request() else {
            let (low, high) = (&wish.key.max(b"\0"[..].into()), &wish.range_end);
            assert!(!high.is_empty() && high <= low, "only an empty range is refused");
            return;
        };
        let now = self.stream.watch(id, request);
        let (from, lost) = match wish.start {
            0 => (now + 1, None),
            start => (start, (start < compacted).then_some(compacted)),
        };
        self.watchers.insert(id, Watcher { wish, from, lost, heard: Vec::new(), through: from - 1 });
    }

    /// Takes one delivery; whether there was one.
    fn read(&mut self, model: &Model, compacted: i64) -> bool {
        let Some(delivery) = self.stream.try_next() else { return false };
        match delivery {
            Delivery::Events { watch_id, revision, events } => {
                let watcher = self.watchers.get_mut(&watch_id).unwrap();
                assert!(watcher.lost.is_none() && !events.is_empty());
                watcher.heard.extend(events);
                watcher.check(model, revision, compacted);
                watcher.through = watcher.through.max(revision);
            }
            Delivery::Progress { watch_id, revision } => {
                let concerned = self.watchers.iter_mut().filter(|(id, _)| watch_id.is_none_or(|only| only == **id));
                for (_, watcher) in concerned {
                    assert!(
                        watcher.wish.start <= revision && watcher.lost.is_none(),
                        "{:?} is promised {revision}",
                        watcher.wish
                    );
                    watcher.check(model, revision, compacted);
                    watcher.through = watcher.through.max(revision);
                }
            }
            Delivery::Compacted { watch_id, compact_revision } => {
                let watcher = self.watchers.remove(&watch_id).unwrap();
                assert!(watcher.through + 1 < compact_revision, "{:?} had all that it needs", watcher.wish);
                assert!(compact_revision <= compacted && watcher.lost.is_none_or(|lost| lost == compact_revision));
                assert!(self.stream.cancel(watch_id));
                self.ended += 1;
            }
        }
        true
    }
}

/// The key space, read in pieces of a few revisions, so that a watcher that catches up is overtaken by all else.
struct Pieces(Arc<MemoryKeySpace>, usize);

impl ChangeSource for Pieces {
    fn revisions(&self) -> Result<Revisions, Failure> {
        Ok(current(&self.0.view()?)?)
    }

    fn missed(&self, wanted: &Wanted<'_>) -> Result<Missed, Failure> {
        let view = self.0.view()?;
        let now = current(&view)?;
        let most = Most { revisions: self.1.min(wanted.most.revisions), ..wanted.most };
        match changes(&view, &Wanted { most, ..*wanted }) {
            Ok(Changes { revisions, next_revision, too_large }) => {
                Ok(Missed::Changes { revisions, through: next_revision - 1, too_large })
            }
            Err(ReadError::Refused(Refusal::Compacted)) => Ok(Missed::Compacted { revision: now.compacted }),
            Err(other) => panic!("{other}"),
        }
    }
}

/// The hub of a replica with its clients.
pub(super) struct Watching {
    hub: Arc<WatchHub>,
    clients: Vec<Client>,
}

impl Watching {
    const CLIENTS: usize = 3;

    pub(super) fn over(key_space: Arc<MemoryKeySpace>, random: &mut Random) -> Self {
        let few = |random: &mut Random| if random.one_in(2) { usize::MAX } else { random.below(2000) };
        let options = WatchOptions {
            stream_items: 1 + random.below(6),
            piece_bytes: 200,
            total_bytes: few(random),
            revision_bytes: few(random),
            ..WatchOptions::default()
        };
        let hub = WatchHub::new(Arc::new(Pieces(key_space, 1 + random.below(4))), options).unwrap();
        let client = |_| Client { stream: hub.open(), watchers: BTreeMap::new(), ended: 0 };
        let clients = (0..Self::CLIENTS).map(client).collect();
        Self { hub, clients }
    }

    /// The process died: clients come again to its successor and go on behind what they have heard for certain, which
    /// may be more than the successor knows of at first.
    pub(super) fn moved(&mut self, key_space: Arc<MemoryKeySpace>, random: &mut Random) {
        let compacted = current(&key_space.view().unwrap()).unwrap().compacted;
        let before = std::mem::replace(self, Self::over(key_space, random));
        for (old, client) in before.clients.into_iter().zip(&mut self.clients) {
            for (id, watcher) in old.watchers {
                client.watch(id, Wish { start: watcher.through + 1, ..watcher.wish }, compacted);
            }
        }
    }

    /// What the applier does after a run; then clients do something, or nothing.
    pub(super) fn applied(&mut self, effects: &Effects, random: &mut Random, model: &Model, now: Revisions) {
        self.hub.publish_all(&effects.events, &effects.unlisted);
        if let Some(compacted) = effects.compacted {
            self.hub.compacted(compacted);
        }
        for _ in 0..random.below(6) {
            let client = &mut self.clients[random.below(Self::CLIENTS)];
            let id = random.below(4) as i64;
            match random.below(8) {
                0 if !client.watchers.contains_key(&id) => {
                    client.watch(id, Wish::draw(random, now.revision), now.compacted);
                }
                1 if random.one_in(8) => {
                    let known = client.watchers.remove(&id).is_some();
                    assert_eq!(client.stream.cancel(id), known);
                }
                2 => client.stream.request_progress(),
                3 => client.stream.request_progress_of(id),
                4 | 5 => self.hub.catch_up_now(client.stream.key()).unwrap(),
                _ => _ = client.read(model, now.compacted),
            }
        }
    }

    /// All clients read on until nothing more comes. Then each has heard all that there was, or was told that it lost
    /// some. Answers how many events were compared, and how many watchers a compaction ended.
    pub(super) fn drain(&mut self, model: &Model, now: Revisions) -> [usize; 2] {
        let [mut heard, mut ended] = [0; 2];
        for client in &mut self.clients {
            while client.read(model, now.compacted) || client.stream.is_behind() {
                self.hub.catch_up_now(client.stream.key()).unwrap();
            }
            for watcher in client.watchers.values_mut() {
                assert!(watcher.lost.is_none(), "{:?} was not told that {} is compacted", watcher.wish, watcher.from);
                watcher.check(model, now.revision, now.compacted);
                watcher.through = watcher.through.max(now.revision);
                heard += watcher.heard.len();
            }
            ended += std::mem::take(&mut client.ended);
        }
        [heard, ended]
    }
}
