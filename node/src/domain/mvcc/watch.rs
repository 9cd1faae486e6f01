//! Which watchers an event is for. Pure: an index of ranges, and the choice of events for each watcher.
//!
//! Owns the matching of keys to watchers, filters, and etcd's rules of what range a watch names. It must not know
//! streams, buffers, or which watcher is slow: the engine's hub keeps those.

mod intervals;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use balsa_proto::mvccpb::Event;
use balsa_proto::mvccpb::event::EventType;
use bytes::Bytes;

use super::{KeyRange, RevisionEvents, Unlisted};
use intervals::Intervals;

/// etcd sends a watcher that catches up at most this many distinct revisions in one response.
pub const MAX_REVISIONS_PER_RESPONSE: usize = 1000;

/// Names a watcher within the process. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatcherKey(pub u64);

/// Kinds of events that a watcher does not want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filters {
    /// Drops puts.
    pub no_put: bool,
    /// Drops deletes.
    pub no_delete: bool,
}

impl Filters {
    /// Whether the event passes.
    pub fn admit(self, event: &Event) -> bool {
        if event.r#type == EventType::Delete as i32 { !self.no_delete } else { !self.no_put }
    }
}

/// What a watcher wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    /// The keys.
    pub range: KeyRange,
    /// What it does not want of them.
    pub filters: Filters,
}

/// The range that a watch request names: an empty key means the lowest one. `None` when no key can be in it.
pub fn watched_range(key: &Bytes, range_end: &Bytes) -> Option<KeyRange> {
    let lowest = Bytes::from_static(&[0]);
    let range = KeyRange::of(if key.is_empty() { &lowest } else { key }, range_end);
    (!range.is_empty()).then_some(range)
}

/// The events of one revision that are for one watcher, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All events of the revision.
    All,
    /// The events at these places; ascending, at least one.
    Some(Box<[u32]>),
}

impl Selection {
    /// The chosen ones of `events`, which must be those that the selection was made of.
    pub fn of<'a>(&'a self, events: &'a [Event]) -> impl Iterator<Item = &'a Event> + 'a {
        let (all, some): (&[Event], &[u32]) = match self {
            Selection::All => (events, &[]),
            Selection::Some(places) => (&[], places),
        };
        all.iter().chain(some.iter().filter_map(|place| events.get(*place as usize)))
    }
}

/// Bytes that an event takes in memory, keys and values included, so that buffers can be bounded.
pub fn event_bytes(event: &Event) -> usize {
    let pair = |kv: &Option<balsa_proto::mvccpb::KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    size_of::<Event>() + pair(&event.kv) + pair(&event.prev_kv)
}

/// Finds the watchers of a key: in one look-up for watchers of single keys, in O(log n) for ranges.
#[derive(Debug)]
pub struct WatchIndex {
    interests: HashMap<WatcherKey, Interest>,
    single: HashMap<Bytes, BTreeSet<WatcherKey>>,
    spans: Intervals,
}

impl WatchIndex {
    /// An empty index. `seed` shapes the tree of ranges: one that clients cannot guess keeps them from making it deep.
    pub fn new(seed: u64) -> Self {
        Self { interests: HashMap::new(), single: HashMap::new(), spans: Intervals::new(seed) }
    }

    /// Number of watchers.
    pub fn len(&self) -> usize {
        self.interests.len()
    }

    /// Whether no watcher is in it.
    pub fn is_empty(&self) -> bool {
        self.interests.is_empty()
    }

    /// Adds a watcher; one that is there is replaced.
    pub fn insert(&mut self, watcher: WatcherKey, interest: Interest) {
        self.remove(watcher);
        match &interest.range {
            KeyRange::One(key) => {
                self.single.entry(key.clone()).or_default().insert(watcher);
            }
            KeyRange::Span { low, high } => self.spans.insert(low, high.as_ref(), watcher),
        }
        self.interests.insert(watcher, interest);
    }

    /// Removes a watcher; absent is fine.
    pub fn remove(&mut self, watcher: WatcherKey) {
        let Some(interest) = self.interests.remove(&watcher) else { return };
        match &interest.range {
            KeyRange::One(key) => {
                let Some(watchers) = self.single.get_mut(key) else { return };
                watchers.remove(&watcher);
                if watchers.is_empty() {
                    self.single.remove(key);
                }
            }
            KeyRange::Span { low, high } => self.spans.remove(low, high.as_ref(), watcher),
        }
    }

    /// Chooses for each watcher the events of a revision that are for it; watchers without one are left out.
    pub fn select(&self, revision: &RevisionEvents) -> Vec<(WatcherKey, Selection)> {
        if let [event] = &revision.events[..] {
            let mut selected = Vec::new();
            self.each_watcher(event, &mut |watcher| selected.push((watcher, Selection::All)));
            return selected;
        }
        let mut places: BTreeMap<WatcherKey, Vec<u32>> = BTreeMap::new();
        for (place, event) in (0u32..).zip(&revision.events) {
            self.each_watcher(event, &mut |watcher| places.entry(watcher).or_default().push(place));
        }
        let all = revision.events.len();
        let choose = |places: Vec<u32>| match places.len() == all {
            true => Selection::All,
            false => Selection::Some(places.into()),
        };
        places.into_iter().map(|(watcher, places)| (watcher, choose(places))).collect()
    }

    /// The watchers that a revision may be for.
    pub fn touched_by(&self, revision: &Unlisted) -> Vec<WatcherKey> {
        let meets = |own: &KeyRange, range: &Option<KeyRange>| range.as_ref().is_some_and(|range| own.meets(range));
        let touched = |Interest { range, filters }: &Interest| {
            !filters.no_delete && meets(range, &revision.deletes) || !filters.no_put && meets(range, &revision.puts)
        };
        let found = self.interests.iter().filter(|(_, interest)| touched(interest));
        found.map(|(watcher, _)| *watcher).collect()
    }

    fn each_watcher(&self, event: &Event, visit: &mut dyn FnMut(WatcherKey)) {
        let Some(key) = event.kv.as_ref().map(|kv| &kv.key) else { return };
        let mut admitted = |watcher: WatcherKey| {
            if self.interests.get(&watcher).is_some_and(|interest| interest.filters.admit(event)) {
                visit(watcher);
            }
        };
        self.single.get(key).into_iter().flatten().for_each(|watcher| admitted(*watcher));
        self.spans.stab(key, &mut admitted);
    }
}

/// The smallest range that holds all of `ranges`; `None` of none. Watchers that catch up together share one scan of it.
pub fn hull<'a>(ranges: impl IntoIterator<Item = &'a KeyRange>) -> Option<KeyRange> {
    ranges.into_iter().cloned().reduce(|a, b| if a == b { a } else { span(&a, &b) })
}

fn span(a: &KeyRange, b: &KeyRange) -> KeyRange {
    let ((low_a, high_a), (low_b, high_b)) = (a.ends(), b.ends());
    // A missing end is above all others.
    let high = high_a.zip(high_b).map(|(a, b)| a.max(b));
    KeyRange::Span { low: low_a.min(low_b), high }
}

#[cfg(test)]
mod tests {
    use balsa_proto::mvccpb::KeyValue;

    use super::*;

    fn event(key: &str, kind: EventType) -> Event {
        let kv = KeyValue { key: Bytes::copy_from_slice(key.as_bytes()), mod_revision: 7, ..Default::default() };
        Event { r#type: kind.into(), kv: Some(kv), prev_kv: None }
    }

    fn revision(keys: &[(&str, EventType)]) -> RevisionEvents {
        RevisionEvents { revision: 7, events: keys.iter().map(|(key, kind)| event(key, *kind)).collect() }
    }

    fn interest(key: &str, end: &str) -> Interest {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Interest { range: watched_range(&bytes(key), &bytes(end)).expect("not empty"), filters: Filters::default() }
    }

    fn chosen(index: &WatchIndex, revision: &RevisionEvents) -> Vec<(u64, String)> {
        let keys = |selection: &Selection| {
            let keys: Vec<_> = selection
                .of(&revision.events)
                .map(|event| String::from_utf8_lossy(&event.kv.as_ref().expect("kv").key).into_owned())
                .collect();
            keys.join(" ")
        };
        let mut chosen: Vec<_> = index.select(revision).iter().map(|(key, events)| (key.0, keys(events))).collect();
        chosen.sort();
        chosen
    }

    #[test]
    fn events_of_a_revision_reach_the_watchers_of_their_keys_together_and_in_order() {
        let mut index = WatchIndex::new(1);
        index.insert(WatcherKey(1), interest("b", ""));
        index.insert(WatcherKey(2), interest("a", "c"));
        index.insert(WatcherKey(3), interest("b", "\0"));
        index.insert(WatcherKey(4), interest("", "\0"));
        index.insert(WatcherKey(5), interest("x", ""));
        let change = revision(&[("c", EventType::Put), ("a", EventType::Put), ("b", EventType::Delete)]);
        let expected = [(1, "b"), (2, "a b"), (3, "c b"), (4, "c a b")];
        assert_eq!(chosen(&index, &change), expected.map(|(key, keys)| (key, keys.to_owned())));
    }

    #[test]
    fn filtered_events_are_not_chosen_and_a_watcher_without_one_is_left_out() {
        let mut index = WatchIndex::new(1);
        let with = |no_put, no_delete| Interest { filters: Filters { no_put, no_delete }, ..interest("", "\0") };
        index.insert(WatcherKey(1), with(true, false));
        index.insert(WatcherKey(2), with(false, true));
        index.insert(WatcherKey(3), with(true, true));
        let mixed = revision(&[("a", EventType::Put), ("b", EventType::Delete)]);
        assert_eq!(chosen(&index, &mixed), [(1, "b".to_owned()), (2, "a".to_owned())]);
        let put = revision(&[("a", EventType::Put)]);
        assert_eq!(chosen(&index, &put), [(2, "a".to_owned())]);
    }

    #[test]
    fn a_removed_watcher_is_found_no_more_and_leaves_nothing_behind() {
        let mut index = WatchIndex::new(1);
        index.insert(WatcherKey(1), interest("a", ""));
        index.insert(WatcherKey(2), interest("a", "b"));
        index.insert(WatcherKey(3), interest("a", "b"));
        index.remove(WatcherKey(1));
        index.remove(WatcherKey(2));
        index.remove(WatcherKey(9));
        assert_eq!(chosen(&index, &revision(&[("a", EventType::Put)])), [(3, "a".to_owned())]);
        index.remove(WatcherKey(3));
        assert!(index.is_empty() && index.single.is_empty() && index.spans.is_empty());
    }

    #[test]
    fn ranges_follow_etcds_forms() {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let range = |key: &str, end: &str| watched_range(&bytes(key), &bytes(end));
        assert_eq!(range("", ""), Some(KeyRange::One(bytes("\0"))));
        assert_eq!(range("", "\0"), Some(KeyRange::Span { low: bytes("\0"), high: None }));
        assert_eq!(range("a", "b"), Some(KeyRange::Span { low: bytes("a"), high: Some(bytes("b")) }));
        assert_eq!((range("b", "b"), range("b", "a"), range("", "\0\0").is_some()), (None, None, true));
    }

    #[test]
    fn a_hull_holds_every_range_and_stays_exact_for_equal_ones() {
        let one = interest("k", "").range;
        assert_eq!(hull([&one, &one]), Some(one.clone()));
        let span = hull([&one, &interest("a", "c").range]).expect("some");
        assert!(span.contains(b"a") && span.contains(b"k") && !span.contains(b"k\0"));
        let open = hull([&one, &interest("z", "\0").range]).expect("some");
        assert!(open.contains(b"k") && open.contains(b"zz") && !open.contains(b"j"));
        assert_eq!(hull([]), None);
    }
}
