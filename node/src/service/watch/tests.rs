//! What a client sees of a session, by a member whose store and leader are told what to be.

use balsa_proto::mvccpb::{Event, KeyValue};
use bytes::Bytes;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::domain::auth::AuthRefusal;
use crate::domain::mvcc::{RevisionEvents, Revisions, Wanted};
use crate::domain::refusal::Refusal;
use crate::engine::watch::{ChangeSource, Missed, WatchOptions};

/// A store at revision 5, compacted at 3, of which nothing is read back but that revision 4 put "past".
struct Store;

impl ChangeSource for Store {
    fn revisions(&self) -> Result<Revisions, Failure> {
        Ok(Revisions { revision: 5, compacted: 3 })
    }

    fn missed(&self, wanted: &Wanted<'_>) -> Result<Missed, Failure> {
        let past = wanted.ranges.iter().any(|range| range.contains(b"past"));
        let revisions = if past { vec![put("past", 4)] } else { Vec::new() };
        Ok(Missed::Changes { revisions, through: 5, too_large: false })
    }
}

fn put(key: &str, revision: i64) -> RevisionEvents {
    let kv = KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        mod_revision: revision,
        create_revision: 1,
        ..Default::default()
    };
    let event = Event { prev_kv: Some(kv.clone()), kv: Some(kv), ..Default::default() };
    RevisionEvents { revision, events: vec![event] }
}

#[derive(Clone)]
struct FakeMember {
    hub: Arc<WatchHub>,
    status: watch::Receiver<Arc<Status>>,
}

impl Watched for FakeMember {
    fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    fn watch_hub(&self) -> &Arc<WatchHub> {
        &self.hub
    }

    async fn leader_changed(&self, seen: (u64, u64)) -> (u64, u64) {
        let mut status = self.status.clone();
        let differs = |status: &Arc<Status>| (status.leader, status.term) != seen;
        let changed = status.wait_for(differs).await.map(|status| (status.leader, status.term)).ok();
        match changed {
            Some(now) => now,
            None => pending().await,
        }
    }
}

/// Everybody may watch everything but "secret".
struct ButSecrets;

impl Admission for ButSecrets {
    fn admit<'a>(&'a self, request: &'a pb::WatchCreateRequest) -> BoxFuture<'a, Result<(), Error>> {
        let denied = Refusal::Auth(AuthRefusal::PermissionDenied);
        let answer = if request.key == "secret" { Err(denied.into()) } else { Ok(()) };
        Box::pin(async { answer })
    }
}

type Requests = BoxStream<'static, Result<pb::WatchRequest, &'static str>>;

/// Three of these without a leader cut a stream off: long beside what a busy machine holds a test up for.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(400);

/// A client, the session that serves it, and the strings that the test pulls.
struct Scene {
    hub: Arc<WatchHub>,
    leader: watch::Sender<Arc<Status>>,
    requests: Option<UnboundedSender<Result<pb::WatchRequest, &'static str>>>,
    session: Session<Requests>,
    stopping: CancellationToken,
}

fn led_by(leader: u64, term: u64) -> Arc<Status> {
    Arc::new(Status { leader, term, raft_id: 1, ..Status::default() })
}

fn open(status: Arc<Status>, progress_ms: u64, require_leader: bool) -> Result<Scene, Error> {
    let hub = WatchHub::new(Arc::new(Store), WatchOptions::default()).expect("hub");
    let (leader, status) = watch::channel(status);
    let (requests, incoming) = unbounded();
    let settings =
        WatchSettings { progress_interval: Duration::from_millis(progress_ms), election_timeout: ELECTION_TIMEOUT };
    let member = FakeMember { hub: hub.clone(), status };
    let stopping = CancellationToken::new();
    let session =
        Session::open(&member, incoming.boxed(), Box::new(ButSecrets), settings, require_leader, stopping.clone())?;
    Ok(Scene { hub, leader, requests: Some(requests), session, stopping })
}

fn scene() -> Scene {
    open(led_by(1, 1), 600_000, false).expect("a session")
}

impl Scene {
    fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.as_ref().expect("open").unbounded_send(Ok(request)).expect("the session listens");
    }

    fn create(&self, key: &str, change: impl FnOnce(&mut pb::WatchCreateRequest)) {
        let mut request = pb::WatchCreateRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
        change(&mut request);
        self.ask(RequestUnion::CreateRequest(request));
    }

    fn cancel(&self, watch_id: i64) {
        self.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }));
    }

    async fn next(&mut self) -> Option<Result<pb::WatchResponse, End<&'static str>>> {
        let answer = timeout(Duration::from_secs(10), self.session.next()).await.expect("an answer");
        answer.map(|answer| answer.map(|answer| answer.response))
    }

    /// The next answer as text.
    async fn told(&mut self) -> String {
        text(&self.next().await.expect("not over").expect("no failure"))
    }

    async fn silent(&mut self) -> bool {
        self.silent_for(Duration::from_millis(50)).await
    }

    async fn silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.session.next()).await.is_err()
    }
}

fn text(response: &pb::WatchResponse) -> String {
    let revision = response.header.as_ref().map_or(-1, |header| header.revision);
    let mut text = format!("{} at {revision}", response.watch_id);
    let marks = [(response.created, " created"), (response.canceled, " canceled"), (response.fragment, " fragment")];
    text.extend(marks.into_iter().filter(|(set, _)| *set).map(|(_, mark)| mark));
    if response.compact_revision != 0 {
        text += &format!(" compacted {}", response.compact_revision);
    }
    if !response.cancel_reason.is_empty() {
        text += &format!(": {}", response.cancel_reason);
    }
    for event in &response.events {
        let kv = event.kv.as_ref().expect("kv");
        let prev = if event.prev_kv.is_some() { "+prev" } else { "" };
        text += &format!(" {}@{}{prev}", String::from_utf8_lossy(&kv.key), kv.mod_revision);
    }
    text
}

#[tokio::test]
async fn created_comes_before_events_and_ids_count_up_past_those_in_use() {
    let mut scene = scene();
    scene.create("a", |request| request.watch_id = 1);
    assert_eq!(scene.told().await, "1 at 5 created");
    for expected in ["0 at 5 created", "2 at 5 created", "3 at 5 created"] {
        scene.create("past", |request| request.prev_kv = true);
        assert_eq!(scene.told().await, expected);
    }
    scene.create("past", |request| request.start_revision = 4);
    assert_eq!(scene.told().await, "4 at 5 created");
    assert_eq!(scene.told().await, "4 at 5 past@4");
    scene.hub.publish(&[put("a", 6), put("past", 7)]);
    assert_eq!(scene.told().await, "1 at 6 a@6");
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(scene.told().await);
    }
    told.sort();
    let expected = ["0 at 7 past@7+prev", "2 at 7 past@7+prev", "3 at 7 past@7+prev", "4 at 7 past@7"];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn refusals_have_etcds_texts_take_no_id_and_leave_the_stream_alive() {
    let mut scene = scene();
    scene.create("a", |request| request.start_revision = -1);
    let compacted = "-1 at 5 created canceled: etcdserver: mvcc: required revision has been compacted";
    assert_eq!(scene.told().await, compacted);
    scene.create("b", |request| request.range_end = Bytes::from_static(b"a"));
    assert_eq!(scene.told().await, "-1 at 5 created canceled: mvcc: watcher range is empty");
    // Who may not read a key is not told either that the range is empty or the id taken.
    scene.create("secret", |request| request.range_end = Bytes::from_static(b"a"));
    let denied = "-1 at 5 created canceled: rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!(scene.told().await, denied);
    scene.create("a", |request| request.watch_id = 7);
    assert_eq!(scene.told().await, "7 at 5 created");
    scene.create("a", |request| request.watch_id = 7);
    let duplicate = "-1 at 5 created canceled: mvcc: duplicate watch ID provided on the WatchStream";
    assert_eq!(scene.told().await, duplicate);
    scene.create("a", |_| {});
    assert_eq!(scene.told().await, "0 at 5 created");
}

#[tokio::test]
async fn a_compacted_start_is_created_and_then_canceled_and_its_id_is_in_use_until_the_client_cancels_it() {
    let mut scene = scene();
    scene.create("a", |request| request.start_revision = 2);
    assert_eq!(scene.told().await, "0 at 5 created");
    assert_eq!(scene.told().await, "0 at 0 canceled compacted 3");
    scene.create("a", |request| request.start_revision = 3);
    assert_eq!(scene.told().await, "1 at 5 created", "the compacted revision itself can be watched");
    scene.cancel(0);
    assert_eq!(scene.told().await, "0 at 5 canceled");
    scene.cancel(0);
    assert!(scene.silent().await);
}

#[tokio::test]
async fn cancel_is_answered_for_known_ids_only() {
    let mut scene = scene();
    scene.create("a", |_| {});
    assert_eq!(scene.told().await, "0 at 5 created");
    scene.cancel(9);
    scene.cancel(0);
    assert_eq!(scene.told().await, "0 at 5 canceled");
    scene.cancel(0);
    scene.hub.publish(&[put("a", 6)]);
    assert!(scene.silent().await);
}

#[tokio::test]
async fn filters_drop_events_and_unknown_ones_are_left_out_of_account() {
    let mut scene = scene();
    scene.create("a", |request| request.filters = vec![0]);
    scene.create("a", |request| request.filters = vec![1, 99]);
    assert_eq!([scene.told().await, scene.told().await], ["0 at 5 created", "1 at 5 created"]);
    scene.hub.publish(&[put("a", 6)]);
    assert_eq!(scene.told().await, "1 at 6 a@6");
    assert!(scene.silent().await);
}

#[tokio::test]
async fn progress_on_demand_speaks_for_all_watchers_or_not_at_all() {
    let mut scene = scene();
    scene.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    assert!(scene.silent().await, "there is no watcher");
    scene.create("a", |_| {});
    assert_eq!(scene.told().await, "0 at 5 created");
    scene.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    assert_eq!(scene.told().await, "-1 at 5");
    scene.create("a", |request| request.start_revision = 9);
    assert_eq!(scene.told().await, "1 at 5 created");
    scene.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    assert!(scene.silent().await, "one watcher has not reached its start");
}

#[tokio::test]
async fn progress_is_reported_to_those_who_want_it_unless_events_have_told_it() {
    let mut scene = open(led_by(1, 1), 100, false).expect("a session");
    scene.create("a", |request| request.progress_notify = true);
    scene.create("b", |_| {});
    assert_eq!([scene.told().await, scene.told().await], ["0 at 5 created", "1 at 5 created"]);
    assert_eq!(scene.told().await, "0 at 5");
    let since = Instant::now();
    scene.hub.publish(&[put("a", 6)]);
    assert_eq!(scene.told().await, "0 at 6 a@6");
    assert_eq!(scene.told().await, "0 at 6");
    // Between one time and two, for a report may be late.
    assert!(since.elapsed() >= Duration::from_millis(150), "the report after the events is left out");
}

#[tokio::test]
async fn a_stream_that_requires_a_leader_is_refused_or_cut_without_one_and_others_live_on() {
    assert_eq!(open(led_by(0, 1), 600_000, true).err(), Some(Failure::NoLeader.into()));
    let mut relaxed = open(led_by(0, 1), 600_000, false).expect("a session");
    assert!(relaxed.silent().await);

    let mut scene = open(led_by(1, 1), 600_000, true).expect("a session");
    // More than half of the time, so that two such breaks would be too much together.
    let (time, most) = (ELECTION_TIMEOUT * 3, ELECTION_TIMEOUT * 7 / 4);
    scene.leader.send_replace(led_by(0, 2));
    assert!(scene.silent_for(most).await, "the cut takes three election timeouts");
    scene.leader.send_replace(led_by(3, 3));
    assert!(scene.silent().await, "a new leader in time");
    scene.leader.send_replace(led_by(0, 3));
    assert!(scene.silent_for(most).await, "the count starts anew");
    scene.leader.send_replace(led_by(0, 4));
    let since = Instant::now();
    assert_eq!(scene.next().await, Some(Err(End::Failed(Failure::NoLeader.into()))));
    assert!(since.elapsed() < time, "a new term without leader does not start it anew");
    assert_eq!(scene.next().await, None);
}

#[tokio::test]
async fn a_client_that_asks_nothing_more_still_hears() {
    let mut scene = scene();
    scene.create("a", |_| {});
    scene.requests = None;
    assert_eq!(scene.told().await, "0 at 5 created");
    scene.hub.publish(&[put("a", 6)]);
    assert!(scene.told().await.starts_with("0 at 6"), "the event comes");
}

#[tokio::test]
async fn the_session_ends_with_its_client_and_with_the_process() {
    let mut broken = scene();
    broken.requests.as_ref().expect("open").unbounded_send(Err("reset")).expect("the session listens");
    assert_eq!(broken.next().await, Some(Err(End::Client("reset"))));
    assert_eq!(broken.next().await, None);

    let mut stopped = scene();
    stopped.stopping.cancel();
    assert_eq!(stopped.next().await, Some(Err(End::Failed(Failure::Stopped.into()))));

    let dropped = scene();
    dropped.create("a", |_| {});
    let hub = dropped.hub.clone();
    drop(dropped);
    assert_eq!((hub.counts().streams, hub.counts().watchers), (0, 0));
}

#[tokio::test]
async fn learners_serve_no_watch() {
    let mut status = Status { leader: 1, raft_id: 4, ..Status::default() };
    let learner = balsa_proto::log::Member { id: 4, is_learner: true, ..Default::default() };
    status.membership = Arc::new(balsa_proto::log::Membership { members: vec![learner], ..Default::default() });
    assert_eq!(open(Arc::new(status), 600_000, false).err(), Some(Error::Learner));
}
