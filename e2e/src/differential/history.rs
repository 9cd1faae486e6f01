//! All events of the store, as etcd told them, and what compactions leave of them.
//!
//! etcd's compaction at a revision keeps of that revision's own changes the first delete of each key, or else the last
//! pair. So a watcher from there never hears of a pair that the same transaction deleted. And where a transaction deletes
//! a key and puts it again, the pair is lost, though etcd's index still names it: the next read of it ends the process.

use std::collections::BTreeSet;
use std::ops::Range;

use balsa_proto::mvccpb::Event;
use balsa_proto::mvccpb::event::EventType;
use bytes::Bytes;

use super::streams::mod_revision;

/// The events, in order.
#[derive(Debug, Default)]
pub struct History {
    events: Vec<Event>,
    /// The last compacted revision, and the keys of which it took a pair of its own.
    taken: (i64, BTreeSet<Bytes>),
}

impl History {
    /// All of them; those that a compaction took have no key, so they are nobody's.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Adds the next ones.
    pub fn extend(&mut self, events: &[Event]) {
        self.events.extend_from_slice(events);
    }

    /// Whether a compaction of just this revision would make etcd's index name a pair that its store has not.
    pub fn breaks_etcd(&self, revision: i64) -> bool {
        let events = self.of(revision);
        let is_put_again = |at: usize| {
            let (deleted, later) = (&events[at], &events[at + 1..]);
            later.iter().any(|event| !is_delete(event) && key(event) == key(deleted))
        };
        (0..events.len()).any(|at| is_delete(&events[at]) && is_put_again(at))
    }

    /// Takes what a compaction takes.
    pub fn compact(&mut self, revision: i64) {
        let range = self.range(revision);
        let events = self.events[range.clone()].to_vec();
        self.taken = (revision, BTreeSet::new());
        for (at, event) in self.events[range].iter_mut().enumerate() {
            if let Some(kv) = event.kv.as_mut().filter(|_| !is_left(&events, at)) {
                self.taken.1.insert(std::mem::take(&mut kv.key));
            }
        }
    }

    /// The keys that changed in passing at a revision, if it is the compacted one.
    pub fn taken(&self, revision: i64) -> BTreeSet<Bytes> {
        if self.taken.0 == revision { self.taken.1.clone() } else { BTreeSet::new() }
    }

    fn of(&self, revision: i64) -> &[Event] {
        &self.events[self.range(revision)]
    }

    fn range(&self, revision: i64) -> Range<usize> {
        let below = |bound: i64| self.events.partition_point(|event| mod_revision(event) < bound);
        below(revision)..below(revision.saturating_add(1))
    }
}

/// Whether a compaction leaves one of all events of its revision.
fn is_left(events: &[Event], at: usize) -> bool {
    let (event, same) = (&events[at], |other: &&Event| key(other) == key(&events[at]));
    if is_delete(event) {
        !events[..at].iter().filter(same).any(is_delete)
    } else {
        !events[at + 1..].iter().any(|other| same(&other))
    }
}

fn is_delete(event: &Event) -> bool {
    event.r#type() == EventType::Delete
}

fn key(event: &Event) -> &[u8] {
    event.kv.as_ref().map_or(&[], |kv| &kv.key)
}

#[cfg(test)]
mod tests {
    use balsa_proto::mvccpb::KeyValue;

    use super::*;

    /// Revision, key, and whether it is a delete.
    fn history(events: &[(i64, &'static str, bool)]) -> History {
        let event = |(mod_revision, key, delete): &(i64, &'static str, bool)| Event {
            r#type: i32::from(*delete),
            kv: Some(KeyValue { key: (*key).into(), mod_revision: *mod_revision, ..Default::default() }),
            ..Default::default()
        };
        History { events: events.iter().map(event).collect(), ..Default::default() }
    }

    fn left(mut history: History, revision: i64) -> Vec<String> {
        history.compact(revision);
        history.events().iter().map(|event| String::from_utf8_lossy(key(event)).into_owned()).collect()
    }

    #[test]
    fn a_compaction_takes_what_its_own_revision_changed_in_passing() {
        let events =
            [(2, "a", false), (2, "a", true), (3, "a", false), (3, "b", false), (3, "a", true), (4, "a", false)];
        assert_eq!(left(history(&events), 3), ["a", "a", "", "b", "a", "a"]);
        assert_eq!(left(history(&events), 4), ["a", "a", "a", "b", "a", "a"]);
        assert_eq!(left(history(&[(3, "a", true), (3, "a", false), (3, "a", true)]), 3), ["a", "", ""]);
        let mut compacted = history(&events);
        compacted.compact(3);
        assert_eq!((compacted.taken(3).len(), compacted.taken(4).len()), (1, 0));
    }

    #[test]
    fn only_a_delete_and_then_a_put_of_one_key_breaks_etcd() {
        assert!(history(&[(3, "a", true), (3, "a", false)]).breaks_etcd(3));
        assert!(!history(&[(3, "a", false), (3, "a", true)]).breaks_etcd(3));
        assert!(!history(&[(3, "a", true), (3, "b", false), (4, "a", false)]).breaks_etcd(3));
        assert!(!history(&[(3, "a", true), (3, "a", false)]).breaks_etcd(4));
    }
}
