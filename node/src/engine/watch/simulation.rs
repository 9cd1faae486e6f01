//! Random interleavings of publishing, reading, catching up, compaction, cancelling and snapshot installs, compared with
//! a model: each watcher gets each of its events exactly once and in order, whatever its client does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use balsa_proto::mvccpb::event::EventType;
use balsa_proto::mvccpb::{Event, KeyValue};
use bytes::Bytes;
use parking_lot::Mutex;

use super::catch_up::{CaughtUp, Plan};
use super::*;
use crate::domain::mvcc::watch::Filters;
use crate::domain::mvcc::{KeyRange, Most, Wanted};
use crate::domain::random::Random;

/// A store that keeps all revisions and answers in small pieces.
#[derive(Default)]
struct History {
    revisions: Vec<RevisionEvents>,
    compacted: i64,
    /// Revisions looked at in one read.
    piece: i64,
    /// Of each read, whether the pairs before were wanted.
    prev_kv_wanted: Vec<bool>,
}

struct Store(Mutex<History>);

impl Store {
    fn new(piece: i64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(History { compacted: -1, piece, ..History::default() })))
    }

    fn revision(&self) -> i64 {
        1 + self.0.lock().revisions.len() as i64
    }

    fn write(&self, events: impl FnOnce(i64) -> Vec<Event>) -> RevisionEvents {
        let revision = self.revision() + 1;
        let written = RevisionEvents { revision, events: events(revision) };
        self.0.lock().revisions.push(written.clone());
        written
    }

    fn put(&self, key: &str) -> RevisionEvents {
        self.write(|revision| vec![event(key, revision, EventType::Put)])
    }
}

impl ChangeSource for Store {
    fn revisions(&self) -> Result<Revisions, Failure> {
        Ok(Revisions { revision: self.revision(), compacted: self.0.lock().compacted })
    }

    fn missed(&self, wanted: &Wanted<'_>) -> Result<Missed, Failure> {
        let current = self.revision();
        let mut history = self.0.lock();
        history.prev_kv_wanted.push(wanted.prev_kv);
        if wanted.from < history.compacted {
            return Ok(Missed::Compacted { revision: history.compacted });
        }
        let (from, mut through) = (wanted.from, current.min(wanted.from + history.piece - 1));
        let (mut revisions, mut bytes, mut too_large): (Vec<_>, _, _) = (Vec::new(), 0, false);
        let within = |found: &&RevisionEvents| (from..=through).contains(&found.revision);
        for found in history.revisions.iter().filter(within).filter_map(|found| of_wanted(found, wanted)) {
            too_large = revision_bytes(&found) > wanted.most.revision_bytes;
            let begun = !revisions.is_empty();
            if too_large || begun && (revisions.len() >= wanted.most.revisions || bytes >= wanted.most.bytes) {
                through = found.revision - 1;
                break;
            }
            bytes += revision_bytes(&found);
            revisions.push(found);
        }
        Ok(Missed::Changes { revisions, through, too_large })
    }
}

fn of_wanted(found: &RevisionEvents, wanted: &Wanted<'_>) -> Option<RevisionEvents> {
    let matches = |event: &&Event| wanted.ranges.iter().any(|range| range.contains(key_of(event)));
    let strip = |event: &Event| Event { prev_kv: event.prev_kv.clone().filter(|_| wanted.prev_kv), ..event.clone() };
    let events: Vec<_> = found.events.iter().filter(matches).map(strip).collect();
    (!events.is_empty()).then_some(RevisionEvents { revision: found.revision, events })
}

fn key_of(event: &Event) -> &[u8] {
    event.kv.as_ref().map_or(&[], |kv| &kv.key)
}

fn event(key: &str, revision: i64, kind: EventType) -> Event {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let kv = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
    let prev_kv = (kind == EventType::Delete).then(|| KeyValue { key, ..Default::default() });
    Event { r#type: kind.into(), kv: Some(kv), prev_kv }
}

fn options(items: usize) -> WatchOptions {
    WatchOptions { stream_items: items, ..WatchOptions::default() }
}

fn everything(start_revision: i64) -> WatchRequest {
    let range = KeyRange::Span { low: Bytes::from_static(b"\0"), high: None };
    WatchRequest { interest: Interest { range, filters: Filters::default() }, start_revision, prev_kv: false }
}

/// What a stream delivers until nothing more comes, as text.
fn drain(hub: &WatchHub, stream: &mut WatchStream) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        match stream.try_next() {
            Some(Delivery::Events { watch_id, revision, events }) => {
                let events: Vec<_> = events
                    .iter()
                    .map(|event| format!("{}@{}", String::from_utf8_lossy(key_of(event)), revision_of(event)))
                    .collect();
                told.push(format!("{watch_id}: {} (through {revision})", events.join(" ")));
            }
            Some(other) => told.push(format!("{other:?}")),
            None if stream.is_behind() => hub.catch_up_now(stream.key()).expect("the store answers"),
            None => return told,
        }
    }
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[test]
fn a_watcher_gets_what_comes_after_it_and_one_from_the_past_catches_up_and_joins() {
    let store = Store::new(100);
    for key in ["a", "b"] {
        store.put(key);
    }
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    assert_eq!(stream.watch(0, everything(0)), 3);
    stream.watch(1, everything(2));
    assert_eq!(drain(&hub, &mut stream), ["1: a@2 b@3 (through 3)"]);
    assert_eq!(hub.counts().behind, 0);
    hub.publish(&[store.put("c")]);
    assert_eq!(drain(&hub, &mut stream), ["0: c@4 (through 4)", "1: c@4 (through 4)"]);
}

#[test]
fn a_revision_published_between_read_and_join_is_neither_lost_nor_told_twice() {
    let store = Store::new(100);
    store.put("a");
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    stream.watch(0, everything(1));
    let plan = hub.plan_catch_up(stream.key(), Most::default()).expect("behind");
    let missed = plan.read(&*store).expect("read");
    hub.publish(&[store.put("b")]);
    hub.finish_catch_up(plan, missed).expect("finish");
    // Visible in the store, and read by the second turn, before it is published.
    let late = store.put("c");
    assert_eq!(drain(&hub, &mut stream), ["0: a@2 (through 2)", "0: b@3 c@4 (through 4)"]);
    hub.publish(&[late]);
    hub.publish(&[store.put("d")]);
    assert_eq!(drain(&hub, &mut stream), ["0: d@5 (through 5)"]);
}

#[test]
fn a_client_that_does_not_read_holds_no_more_than_its_bound_and_gets_all_when_it_does() {
    let store = Store::new(3);
    let hub = WatchHub::new(store.clone(), options(4)).expect("hub");
    let (mut slow, mut quick) = (hub.open(), hub.open());
    slow.watch(0, everything(0));
    quick.watch(0, everything(0));
    let mut heard = 0;
    for number in 0..50 {
        hub.publish(&[store.put(&format!("{number}"))]);
        heard += drain(&hub, &mut quick).len();
    }
    assert_eq!((heard, hub.counts().pending_events, hub.counts().behind), (50, 4, 1));
    let told = drain(&hub, &mut slow).concat();
    let keys: Vec<_> = told.split_whitespace().filter_map(|word| word.split_once('@')).map(|(key, _)| key).collect();
    assert_eq!(keys, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!((hub.counts().pending_events, hub.counts().pending_bytes, hub.counts().behind), (0, 0, 0));
}

#[test]
fn bytes_are_bounded_per_stream_and_over_all() {
    let store = Store::new(100);
    let one = revision_bytes(&store.put("k"));
    let of_stream = WatchOptions { stream_bytes: 2 * (one + size_of::<Item>()), ..options(100) };
    let over_all = WatchOptions { total_bytes: 3 * one, ..options(100) };
    for (bounds, keys, pending, behind) in
        [(of_stream, ["k", "k"], (4, 2 * one), 2), (over_all, ["a", "b"], (3, 3 * one), 2)]
    {
        let hub = WatchHub::new(store.clone(), bounds).expect("hub");
        let mut streams = [hub.open(), hub.open()];
        streams.iter_mut().zip(keys).for_each(|(stream, key)| _ = stream.watch(0, one_key(key, 0)));
        for _ in 0..5 {
            keys.iter().for_each(|key| hub.publish(&[store.put(key)]));
        }
        let counts = hub.counts();
        assert_eq!(((counts.pending_events, counts.pending_bytes), counts.behind), (pending, behind));
        drop(streams);
        assert_eq!((hub.counts().pending_bytes, hub.counts().watchers, hub.counts().streams), (0, 0, 0));
    }
}

fn one_key(key: &str, start_revision: i64) -> WatchRequest {
    let range = KeyRange::One(Bytes::copy_from_slice(key.as_bytes()));
    WatchRequest { interest: Interest { range, filters: Filters::default() }, ..everything(start_revision) }
}

/// Revisions of the events of the next delivery.
async fn heard(stream: &mut WatchStream) -> Vec<i64> {
    match tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("in time").expect("the hub runs") {
        Delivery::Events { events, .. } => events.iter().map(revision_of).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_streams_have_read_and_nobody_takes_is_bounded_over_all_and_each_still_hears_all() {
    const STREAMS: usize = 50;
    let store = Store::new(1000);
    let one = revision_bytes(&store.put("k"));
    (1..1000).for_each(|_| _ = store.put("k"));
    let bounds = WatchOptions { piece_bytes: 64 * one, total_bytes: 200 * one, ..options(1000) };
    let hub = WatchHub::new(store.clone(), bounds).expect("hub");
    let mut streams: Vec<_> = (0..STREAMS).map(|_| hub.open()).collect();
    let mut all = vec![Vec::new(); STREAMS];
    for (stream, all) in streams.iter_mut().zip(&mut all) {
        stream.watch(0, everything(2));
        // Each client takes one response and no further one.
        all.extend(heard(stream).await);
    }
    let most = 200 + 2 * STREAMS;
    assert!(hub.counts().pending_bytes <= most * one, "{} of {}", hub.counts().pending_bytes, most * one);
    for (stream, all) in streams.iter_mut().zip(&mut all).rev() {
        while all.len() < 1000 {
            all.extend(heard(stream).await);
        }
        assert_eq!(*all, (2..1002).collect::<Vec<_>>());
    }
}

fn large(revision: i64) -> Vec<Event> {
    (0..100).map(|number| event(&format!("{number}"), revision, EventType::Delete)).collect()
}

/// A hub that begins at revision 1, to which [`large`] is large.
fn hub_of_turns(store: &Arc<Store>, large_turn: Duration) -> Arc<WatchHub> {
    let bounds = WatchOptions { revision_bytes: 1000, large_turn, ..options(100) };
    WatchHub::new(store.clone(), bounds).expect("hub")
}

#[tokio::test]
async fn a_large_revision_is_whole_and_in_memory_for_one_stream_at_a_time() {
    let store = Store::new(1000);
    let hub = hub_of_turns(&store, Duration::from_secs(2));
    let [mut first, mut second, mut third, mut other] = [hub.open(), hub.open(), hub.open(), hub.open()];
    for stream in [&mut first, &mut second, &mut third] {
        stream.watch(0, everything(0));
    }
    other.watch(0, one_key("other", 0));
    hub.publish(&[store.write(large), store.put("other")]);
    assert_eq!(heard(&mut other).await, [3]);
    assert_eq!(heard(&mut first).await, [2; 100]);
    let waits = tokio::time::timeout(Duration::from_millis(100), second.next()).await;
    assert!(waits.is_err(), "the first client has not taken its response");
    assert_eq!(heard(&mut first).await, [3]);
    assert_eq!(heard(&mut second).await, [2; 100]);
    // The second client reads no more, which stops the third one for no longer than a turn.
    assert_eq!(heard(&mut third).await, [2; 100]);
    assert_eq!([heard(&mut second).await, heard(&mut third).await], [[3], [3]]);
    assert_eq!(hub.counts().behind, 0);
}

/// Waits until it holds; fails when it does not come to hold.
async fn comes(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come that {what}");
}

#[tokio::test]
async fn a_client_that_has_not_taken_what_waits_does_not_stand_in_line_with_a_large_revision() {
    let store = Store::new(1000);
    let hub = hub_of_turns(&store, Duration::from_secs(600));
    let [mut slow, mut quick] = [hub.open(), hub.open()];
    slow.watch(0, everything(0));
    slow.watch(1, one_key("a", 0));
    hub.publish(&[store.put("a")]);
    hub.publish(&[store.write(large)]);
    // Begins to read, and has the other watcher's event still to come.
    assert_eq!(heard(&mut slow).await, [2]);
    comes("it was read", || store.0.lock().prev_kv_wanted.len() == 1).await;
    // A bit of time to do the wrong thing.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((hub.counts().pending_events, hub.counts().behind), (1, 1));
    quick.watch(0, everything(3));
    assert_eq!(heard(&mut quick).await, [3; 100]);
    // Taken, so the turn is free.
    drop(quick);
    // Refused now; it is heard once all the same.
    hub.publish(&[store.put("a")]);
    assert_eq!(heard(&mut slow).await, [2]);
    assert_eq!(heard(&mut slow).await, [3; 100]);
    assert_eq!([heard(&mut slow).await, heard(&mut slow).await], [[4], [4]]);
    comes("all are in step", || hub.counts().behind == 0).await;
}

#[tokio::test]
async fn other_watchers_of_a_stream_go_on_while_it_waits_for_its_turn() {
    let store = Store::new(1000);
    let hub = hub_of_turns(&store, Duration::from_secs(600));
    let [mut first, mut second] = [hub.open(), hub.open()];
    for stream in [&mut first, &mut second] {
        stream.watch(0, everything(0));
    }
    second.watch(1, one_key("other", 0));
    hub.publish(&[store.write(large)]);
    assert_eq!(heard(&mut first).await, [2; 100]);
    let waits = tokio::time::timeout(Duration::from_millis(100), second.next()).await;
    assert!(waits.is_err(), "the first client has not taken its response");
    comes("it stands in line", || hub.room.in_line() == 1).await;
    hub.publish(&[store.put("other")]);
    assert_eq!(heard(&mut second).await, [3]);
    assert_eq!(heard(&mut first).await, [3]);
    assert_eq!([heard(&mut second).await.len(), heard(&mut second).await.len()], [100, 1]);
}

#[tokio::test]
async fn a_large_revision_is_charged_once_its_turn_is_over() {
    let store = Store::new(1000);
    let hub = hub_of_turns(&store, Duration::from_millis(200));
    let mut stream = hub.open();
    // One response is in hand and one waits.
    for id in [0, 1] {
        stream.watch(id, everything(0));
    }
    let written = store.write(large);
    hub.publish(std::slice::from_ref(&written));
    assert_eq!(heard(&mut stream).await, [2; 100]);
    let without_pairs = large(2).into_iter().map(|event| Event { prev_kv: None, ..event }).collect();
    let bytes = revision_bytes(&RevisionEvents { events: without_pairs, ..written });
    comes("both are charged", || hub.counts().pending_bytes == 2 * bytes).await;
    assert_eq!(heard(&mut stream).await, [2; 100]);
    assert_eq!(hub.counts().pending_bytes, bytes);
    drop(stream);
    assert_eq!(hub.counts().pending_bytes, 0);
}

#[tokio::test]
async fn many_who_do_not_take_a_large_revision_stop_the_last_one_for_a_short_time_each() {
    const IDLE: usize = 20;
    let store = Store::new(1000);
    let hub = hub_of_turns(&store, Duration::from_secs(1));
    let waits = |mut stream: WatchStream| async move {
        stream.watch(0, everything(2));
        let response = stream.next().await;
        (response, stream)
    };
    hub.publish(&[store.write(large)]);
    let turn = hub.room.large_turn().await.expect("the first");
    let idle: Vec<_> = (0..IDLE).map(|_| tokio::spawn(waits(hub.open()))).collect();
    comes("all stand in line", || hub.room.in_line() == IDLE).await;
    drop(turn);
    let last = tokio::time::timeout(Duration::from_secs(10), waits(hub.open())).await.expect("in half the time");
    assert!(matches!(last.0, Ok(Delivery::Events { .. })));
    for client in idle {
        assert!(client.await.expect("client").0.is_ok());
    }
}

#[tokio::test]
async fn a_stream_that_ends_while_it_waits_for_its_turn_leaves_nothing_behind() {
    let store = Store::new(1000);
    let hub = hub_of_turns(&store, Duration::from_secs(600));
    let [mut first, mut second] = [hub.open(), hub.open()];
    for stream in [&mut first, &mut second] {
        stream.watch(0, everything(0));
    }
    second.watch(1, one_key("a", 0));
    hub.publish(&[store.write(large)]);
    assert_eq!(heard(&mut first).await, [2; 100]);
    let waits = tokio::time::timeout(Duration::from_millis(100), second.next()).await;
    assert!(waits.is_err(), "the first client has not taken its response");
    comes("it stands in line", || hub.room.in_line() == 1).await;
    hub.publish(&[store.put("a")]);
    assert_eq!(hub.counts().pending_events, 2);
    drop(second);
    comes("its buffer is free", || (hub.counts().pending_events, hub.room.in_line()) == (1, 0)).await;
    assert_eq!(heard(&mut first).await, [3]);
    drop(first);
    assert_eq!((hub.counts().pending_events, hub.counts().pending_bytes), (0, 0));
}

#[test]
fn pairs_before_are_read_only_for_watchers_that_want_them() {
    let store = Store::new(100);
    store.put("a");
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let (mut without, mut with) = (hub.open(), hub.open());
    without.watch(0, everything(2));
    with.watch(0, everything(2));
    with.watch(1, WatchRequest { prev_kv: true, ..everything(2) });
    drain(&hub, &mut without);
    drain(&hub, &mut with);
    assert_eq!(store.0.lock().prev_kv_wanted, [false, true]);
}

#[test]
fn a_watcher_below_a_compaction_is_cancelled_and_a_synced_one_is_not() {
    let store = Store::new(100);
    (0..5).for_each(|_| _ = store.put("k"));
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    [0, 2, 4, 9].into_iter().zip(0..).for_each(|(start, id)| _ = stream.watch(id, everything(start)));
    store.0.lock().compacted = 4;
    hub.compacted(4);
    stream.watch(4, everything(3));
    let told = drain(&hub, &mut stream);
    let compacted = |id| format!("{:?}", Delivery::Compacted { watch_id: id, compact_revision: 4 });
    assert_eq!(told, [compacted(1), compacted(4), "2: k@4 k@5 k@6 (through 6)".to_owned()]);
    assert_eq!((stream.contains(1), stream.contains(0), hub.counts().watchers), (true, true, 3));
    stream.cancel(3);
    stream.request_progress();
    assert!(drain(&hub, &mut stream).is_empty(), "no promise while the client has not canceled what has ended");
    assert!(stream.cancel(1) && stream.cancel(4) && !stream.contains(1));
    stream.request_progress();
    assert_eq!(drain(&hub, &mut stream).len(), 1);
}

#[test]
fn a_compaction_that_only_the_store_knows_of_cancels_as_well() {
    let store = Store::new(100);
    (0..5).for_each(|_| _ = store.put("k"));
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    stream.watch(7, everything(2));
    store.0.lock().compacted = 5;
    let compacted = format!("{:?}", Delivery::Compacted { watch_id: 7, compact_revision: 5 });
    assert_eq!(drain(&hub, &mut stream), [compacted]);
}

#[test]
fn progress_is_promised_only_when_all_are_synced_and_have_reached_their_start() {
    let store = Store::new(100);
    store.put("a");
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    let ask = |stream: &mut WatchStream| {
        stream.request_progress();
        stream.try_next()
    };
    let promise = |revision| Some(Delivery::Progress { watch_id: None, revision });
    assert_eq!(ask(&mut stream), None, "there is no watcher");
    stream.watch(0, everything(0));
    assert_eq!(ask(&mut stream), promise(2));
    stream.watch(1, everything(4));
    assert_eq!(ask(&mut stream), None, "one has not reached its start");
    hub.publish(&[store.put("b"), store.put("c")]);
    drain(&hub, &mut stream);
    assert_eq!(ask(&mut stream), promise(4));
    stream.watch(2, everything(2));
    assert_eq!(ask(&mut stream), None, "one is behind");
    stream.cancel(2);
    assert_eq!(ask(&mut stream), promise(4));
}

#[test]
fn progress_comes_after_the_events_it_speaks_of_and_is_taken_back_for_a_newcomer_from_the_past() {
    let store = Store::new(100);
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    stream.watch(0, everything(0));
    hub.publish(&[store.put("a")]);
    stream.request_progress();
    stream.request_progress_of(0);
    let of_all = format!("{:?}", Delivery::Progress { watch_id: None, revision: 2 });
    let of_one = format!("{:?}", Delivery::Progress { watch_id: Some(0), revision: 2 });
    assert_eq!(drain(&hub, &mut stream), ["0: a@2 (through 2)".to_owned(), of_all, of_one]);
    stream.request_progress();
    stream.watch(1, everything(2));
    assert_eq!(drain(&hub, &mut stream), ["1: a@2 (through 2)"]);
}

#[test]
fn after_a_snapshot_each_watcher_reads_what_was_never_published() {
    let store = Store::new(2);
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    stream.watch(0, everything(0));
    stream.watch(1, everything(4));
    stream.watch(2, everything(9));
    hub.publish(&[store.put("a")]);
    for key in ["b", "c", "d"] {
        store.put(key);
    }
    hub.reset(store.revisions().expect("revisions"));
    stream.request_progress();
    hub.publish(&[store.put("e")]);
    let told = drain(&hub, &mut stream).join(" ");
    let of = |id: &str| {
        let parts = told.split(" (through ").filter_map(|part| part.split_once(id));
        parts.map(|(_, events)| events.to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!((of("0: "), of("1: "), of("2: ")), ("a@2 b@3 c@4 d@5 e@6".into(), "c@4 d@5 e@6".into(), "".into()));
    assert!(!told.contains("Progress"), "{told}");
}

/// A store whose disk has failed since the hub was made.
struct Failed(AtomicBool);

impl ChangeSource for Failed {
    fn revisions(&self) -> Result<Revisions, Failure> {
        match self.0.swap(true, Ordering::SeqCst) {
            false => Ok(Revisions { revision: 1, compacted: -1 }),
            true => Err(Failure::Storage("failed".to_owned())),
        }
    }

    fn missed(&self, _: &Wanted<'_>) -> Result<Missed, Failure> {
        Err(Failure::Storage("failed".to_owned()))
    }
}

#[test]
fn a_snapshot_is_taken_up_though_the_source_cannot_be_read() {
    let hub = WatchHub::new(Arc::new(Failed(AtomicBool::default())), options(100)).expect("hub");
    let mut stream = hub.open();
    stream.watch(0, everything(0));
    hub.reset(Revisions { revision: 9, compacted: -1 });
    assert_eq!((hub.revision(), hub.counts().behind), (9, 1), "the watcher knows that it has missed something");
}

#[test]
fn nothing_of_a_cancelled_watcher_is_sent_and_its_id_can_be_used_again() {
    let store = Store::new(100);
    let hub = WatchHub::new(store.clone(), options(100)).expect("hub");
    let mut stream = hub.open();
    stream.watch(5, everything(0));
    hub.publish(&[store.put("a")]);
    assert!(stream.cancel(5) && !stream.cancel(5));
    stream.watch(5, everything(0));
    hub.publish(&[store.put("b")]);
    assert_eq!(drain(&hub, &mut stream), ["5: b@3 (through 3)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_all_paces_get_everything_while_the_applier_goes_on() {
    const WRITES: usize = 3000;
    let store = Store::new(50);
    let hub = WatchHub::new(store.clone(), options(32)).expect("hub");
    let read = |pause: u64| {
        let mut stream = hub.open();
        stream.watch(0, everything(2));
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            while revisions.len() < WRITES {
                match stream.next().await.expect("the hub runs") {
                    Delivery::Events { events, .. } => revisions.extend(events.iter().map(revision_of)),
                    other => panic!("{other:?}"),
                }
                if pause > 0 {
                    tokio::time::sleep(std::time::Duration::from_micros(pause)).await;
                }
            }
            revisions
        })
    };
    let readers: Vec<_> = [0, 0, 50, 500, 1000].map(read).into();
    for _ in 0..WRITES {
        hub.publish(&[store.put("k")]);
        tokio::task::yield_now().await;
    }
    for reader in readers {
        let read = tokio::time::timeout(std::time::Duration::from_secs(60), reader).await.expect("nothing is lost");
        assert_eq!(read.expect("reader"), (2..2 + WRITES as i64).collect::<Vec<_>>());
    }
}

/// A watcher as the model sees it.
struct Expected {
    request: WatchRequest,
    /// It wants events from here on.
    from: i64,
    heard: Vec<Event>,
    /// Events at or below it are promised to be over.
    floor: i64,
}

impl Expected {
    fn wanted(&self, store: &Store, through: i64) -> Vec<Event> {
        let history = store.0.lock();
        let within = history.revisions.iter().filter(|found| (self.from..=through).contains(&found.revision));
        let Interest { range, filters } = &self.request.interest;
        let wants = |event: &&Event| range.contains(key_of(event)) && filters.admit(event);
        let strip = |event: &Event| {
            let prev_kv = event.prev_kv.clone().filter(|_| self.request.prev_kv);
            Event { prev_kv, ..event.clone() }
        };
        within.flat_map(|found| found.events.iter().filter(wants).map(strip)).collect()
    }
}

struct Simulation {
    seed: u64,
    random: Random,
    store: Arc<Store>,
    hub: Arc<WatchHub>,
    unpublished: Vec<RevisionEvents>,
    clients: Vec<Client>,
}

struct Client {
    stream: WatchStream,
    expected: BTreeMap<i64, Expected>,
    /// Ids of watchers that a compaction ended.
    ended: BTreeSet<i64>,
    reading: Option<(Plan, Option<Missed>)>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let store = Store::new(1 + random.below(4) as i64);
        let few = |random: &mut Random| if random.one_in(2) { usize::MAX } else { random.below(2000) };
        let bounds = WatchOptions {
            piece_bytes: 200,
            total_bytes: few(&mut random),
            revision_bytes: few(&mut random),
            ..options(1 + random.below(8))
        };
        let hub = WatchHub::new(store.clone(), bounds).expect("hub");
        let client =
            |_| Client { stream: hub.open(), expected: BTreeMap::new(), ended: BTreeSet::new(), reading: None };
        let clients = (0..3).map(client).collect();
        Self { seed, random, store, hub, unpublished: Vec::new(), clients }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random.below(below as usize) as u64
    }

    fn step(&mut self) {
        let client = self.draw(3) as usize;
        match self.draw(100) {
            0..25 => self.write(),
            25..45 => self.publish(),
            45..60 => _ = self.clients[client].read(&self.store, self.seed),
            60..80 => self.catch_up(client),
            80..88 => self.create(client),
            88..91 => self.cancel(client),
            91..97 => self.clients[client].stream.request_progress(),
            97..98 => self.clients[client].stream.request_progress_of(self.seed as i64 % 4),
            98..99 => self.compact(),
            _ => self.reset(),
        }
    }

    fn write(&mut self) {
        let (first, number, kinds) = (self.draw(6), self.draw(3) + 1, self.draw(8));
        let written = self.store.write(|revision| {
            let change = |place| {
                let kind = if kinds >> place & 1 == 0 { EventType::Put } else { EventType::Delete };
                event(&format!("k{}", (first + place) % 6), revision, kind)
            };
            (0..number).map(change).collect()
        });
        self.unpublished.push(written);
    }

    fn publish(&mut self) {
        let number = self.draw(self.unpublished.len() as u64 + 1) as usize;
        let batch: Vec<_> = self.unpublished.drain(..number).collect();
        self.hub.publish(&batch);
    }

    fn catch_up(&mut self, client: usize) {
        let client = &mut self.clients[client];
        client.reading = match client.reading.take() {
            None => {
                let (most, _held) = self.hub.room.reserve_piece();
                self.hub.plan_catch_up(client.stream.key(), most).map(|plan| (plan, None))
            }
            Some((plan, None)) => {
                let missed = plan.read(&*self.store).expect("read");
                Some((plan, Some(missed)))
            }
            Some((plan, Some(missed))) => match self.hub.finish_catch_up(plan, missed).expect("finish") {
                CaughtUp::Done => None,
                CaughtUp::TooLarge => {
                    let most = Most { revisions: 1, ..Most::default() };
                    self.hub.plan_catch_up(client.stream.key(), most).map(|plan| (plan, None))
                }
            },
        };
    }

    fn create(&mut self, client: usize) {
        let (low, width, kind, filter) = (self.draw(6), self.draw(4), self.draw(4), self.draw(6));
        let key = |number: u64| Bytes::from(format!("k{number}"));
        let range = match kind {
            0 | 1 => KeyRange::One(key(low)),
            2 => KeyRange::Span { low: key(low), high: Some(key(low + 1 + width)) },
            _ => KeyRange::Span { low: key(low), high: None },
        };
        let filters = Filters { no_put: filter == 0, no_delete: filter == 1 };
        let start_revision = match self.draw(3) {
            0 => 0,
            _ => self.draw(self.hub.revision() as u64 + 4) as i64,
        };
        let (watch_id, prev_kv) = (self.draw(4) as i64, filter % 2 == 0);
        let request = WatchRequest { interest: Interest { range, filters }, start_revision, prev_kv };
        let client = &mut self.clients[client];
        let now = client.stream.watch(watch_id, request.clone());
        let from = if start_revision == 0 { now + 1 } else { start_revision };
        client.ended.remove(&watch_id);
        client.expected.insert(watch_id, Expected { request, from, heard: Vec::new(), floor: 0 });
    }

    fn cancel(&mut self, client: usize) {
        let watch_id = self.draw(4) as i64;
        let client = &mut self.clients[client];
        let known = client.expected.remove(&watch_id).is_some() | client.ended.remove(&watch_id);
        assert_eq!(client.stream.cancel(watch_id), known);
    }

    fn compact(&mut self) {
        let revision = self.draw(self.hub.revision() as u64) as i64 + 1;
        let compacted = &mut self.store.0.lock().compacted;
        *compacted = revision.max(*compacted);
        let told = self.random.one_in(2);
        if told {
            self.hub.compacted(revision);
        }
    }

    /// A snapshot was installed: what is in the store is not published any more.
    fn reset(&mut self) {
        self.unpublished.clear();
        self.hub.reset(self.store.revisions().expect("revisions"));
    }

    fn settle(&mut self) {
        let batch = std::mem::take(&mut self.unpublished);
        self.hub.publish(&batch);
        for client in 0..self.clients.len() {
            while self.clients[client].reading.is_some() || self.clients[client].stream.is_behind() {
                self.catch_up(client);
                self.clients[client].read(&self.store, self.seed);
            }
            while self.clients[client].read(&self.store, self.seed) {}
            for (watch_id, expected) in &self.clients[client].expected {
                let wanted = expected.wanted(&self.store, i64::MAX);
                assert_eq!(expected.heard, wanted, "seed {}, client {client}, watcher {watch_id}", self.seed);
            }
        }
        assert_eq!((self.hub.counts().pending_events, self.hub.counts().pending_bytes), (0, 0));
        assert_eq!(self.hub.counts().behind, 0);
    }
}

impl Client {
    /// Takes one delivery and checks it; whether there was one.
    fn read(&mut self, store: &Store, seed: u64) -> bool {
        let Some(delivery) = self.stream.try_next() else { return false };
        match delivery {
            Delivery::Events { watch_id, revision, events } => {
                let expected = self.expected.get_mut(&watch_id).expect("a watcher of this id");
                let first = events.first().map_or(0, revision_of);
                assert!(first > expected.floor, "seed {seed}: {first} was promised to be over");
                expected.heard.extend(events);
                // Order, completeness and the promise of the header at once.
                assert_eq!(expected.heard, expected.wanted(store, revision), "seed {seed}, through {revision}");
            }
            Delivery::Progress { watch_id, revision } => {
                let concerned = self.expected.iter_mut().filter(|(id, _)| watch_id.is_none_or(|only| only == **id));
                for (id, expected) in concerned {
                    let wanted = expected.wanted(store, revision);
                    assert_eq!(expected.heard, wanted, "seed {seed}: {id} is promised to have all up to {revision}");
                    assert!(expected.request.start_revision <= revision, "seed {seed}: {id} at {revision}");
                    expected.floor = revision;
                }
            }
            Delivery::Compacted { watch_id, compact_revision } => {
                let expected = self.expected.remove(&watch_id).expect("a watcher of this id");
                self.ended.insert(watch_id);
                let wanted = expected.wanted(store, i64::MAX);
                assert!(wanted.starts_with(&expected.heard), "seed {seed}");
                assert!(expected.from < compact_revision, "seed {seed}");
            }
        }
        true
    }
}

#[test]
fn every_watcher_hears_each_of_its_events_once_and_in_order_whatever_happens() {
    for seed in 0..1500 {
        let mut simulation = Simulation::new(seed);
        for _ in 0..400 {
            simulation.step();
        }
        simulation.settle();
    }
}
