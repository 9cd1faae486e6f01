//! The cheap, cloneable way into a running member. Everything a service may ask of the engine is here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use balsa_proto::{log, peer};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use tokio::sync::{oneshot, watch};

use super::changes::Terms;
use super::credentials::Credentials;
use super::failpoint;
use super::fatal::Fatal;
use super::inbox::{Inbox, Input, Reply};
use super::keeper::Keeper;
use super::leases::Leases;
use super::space::Space;
use super::status::{Progress, Status};
use super::waiters::Waiters;
use super::watch::WatchHub;
use super::{Failure, Limit, Store};
use crate::domain::auth::{AuthState, Identity};
use crate::domain::command::{self, Command, Outcome};
use crate::metrics;
use crate::storage::rocks::{Numbers, RocksLog};
use crate::storage::{KeySpace, SnapshotPoint, StorageError};
use crate::transport::Peers;

pub use log::membership_change::Change;

/// Proposals of this member's clients without an outcome; above it the member is out of its depth and refuses.
const MAX_PENDING: u64 = 32_768;

/// The longest that a request may take inside of the member; etcd's `ReqTimeout`.
pub fn request_timeout(election_timeout: Duration) -> Duration {
    Duration::from_secs(5) + 2 * election_timeout
}

/// What all handles of one member share.
pub(crate) struct Shared {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) store: Arc<RwLock<Arc<Store>>>,
    pub(crate) status: Arc<RwLock<Arc<Status>>>,
    pub(crate) leader: watch::Receiver<(u64, u64)>,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) space: Arc<Space>,
    pub(crate) leases: Arc<Leases>,
    /// Not kept open by this: who stops a member opens its files anew.
    pub(crate) log: Weak<RocksLog>,
    pub(crate) threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub(crate) last_read_index: Mutex<Option<Instant>>,
    pub(crate) sequence: AtomicU64,
    pub(crate) pending: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// The cluster has removed this member: nothing that it is asked will ever be in the log.
    pub(crate) removed: Arc<AtomicBool>,
    pub(crate) fatal: Fatal,
    pub(crate) member_id: u64,
    pub(crate) cluster_id: u64,
    pub(crate) incarnation: u64,
    /// etcd's bound on a request inside the server: 5 s and two election time-outs.
    pub(crate) request_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) election_timeout: Duration,
    pub(crate) max_request_bytes: Limit<usize>,
}

/// A handle to one running member of one group.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Shared>);

impl Handle {
    /// This member's raft id.
    pub fn member_id(&self) -> u64 {
        self.0.member_id
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.0.cluster_id
    }

    /// Replicates and applies a command of this member itself, to which neither permissions nor the quota apply. See
    /// [`propose`](Self::propose).
    ///
    /// # Errors
    /// See [`propose`](Self::propose).
    pub async fn propose_internal(&self, command: Command) -> Result<Outcome, Failure> {
        self.propose_proposal(log::Proposal { internal: true, command: Some(command), ..Default::default() }).await
    }

    /// Replicates and applies a command of a client; resolves when this member has applied it. Works on any member. A
    /// change of the leader is survived: the command is sent again once it is certain that no log holds it. While auth
    /// is enabled, `who` decides what is permitted; None is a client without credentials.
    ///
    /// # Errors
    /// `Refused` by the model or by this member's quota; `TooManyRequests`, `TooLarge`: not in the log and never will be;
    /// `TimedOut`, `LeaderLost`, `ConnectionLost`, `NotTaken`, `Stopped`: unknown.
    pub async fn propose(&self, command: Command, who: Option<Identity>) -> Result<Outcome, Failure> {
        self.admit(&command).await?;
        let Identity { username, revision } = who.unwrap_or_default();
        let proposal =
            log::Proposal { username, auth_revision: revision, command: Some(command), ..Default::default() };
        self.propose_proposal(proposal).await
    }

    /// Measured whoever asks: etcd counts what a member asks on its own account too.
    async fn propose_proposal(&self, proposal: log::Proposal) -> Result<Outcome, Failure> {
        let kind = proposal.command.as_ref().map_or("unknown", command::name);
        let started = Instant::now();
        let result = self.take_through_the_log(proposal).await;
        metrics::request_took(kind, passed(&result), started.elapsed());
        result
    }

    async fn take_through_the_log(&self, proposal: log::Proposal) -> Result<Outcome, Failure> {
        let shared = &*self.0;
        let sequence = shared.sequence.fetch_add(1, Ordering::Relaxed);
        let proposal =
            log::Proposal { origin: shared.member_id, incarnation: shared.incarnation, sequence, ..proposal };
        if counted_bytes(&proposal) > shared.max_request_bytes.get() {
            return Err(Failure::TooLarge);
        }
        let data = log::Batch { proposals: vec![proposal] }.encode_to_vec();
        let _counted = Counted::new(&shared.pending)?;
        let data = bytes::Bytes::from(data);
        let answer = shared.waiters.register(sequence, data.clone());
        let _registered = Registered { waiters: &shared.waiters, sequence };
        // Looked at after registering: whoever registers earlier is answered when the removal is applied.
        self.check_not_removed()?;
        shared.inbox.request(Input::Propose { sequence, data })?;
        let proposed = Proposed::new(&shared.failed);
        let (asked, led) = (Instant::now(), self.leader_now().0 != 0);
        let result = self.await_reply(answer).await.map_err(|failure| self.reason(failure, asked, led));
        proposed.end(&result);
        result
    }

    /// Resolves once this member has applied everything that was committed when the call was made: a read of
    /// [`view`](Self::view) after it is linearizable.
    ///
    /// # Errors
    /// `TooManyRequests`, `TimedOut`, `Stopped`.
    pub async fn read_index(&self) -> Result<(), Failure> {
        self.read_index_by(Input::Read).await
    }

    /// The same for whoever can wait for the next tick, so that it wakes nobody.
    ///
    /// # Errors
    /// Those of [`read_index`](Self::read_index).
    pub(crate) async fn read_index_in_background(&self) -> Result<(), Failure> {
        self.read_index_by(Input::BackgroundRead).await
    }

    async fn read_index_by(&self, input: fn(Reply<()>) -> Input) -> Result<(), Failure> {
        let result = self.request(input).await;
        match result {
            Ok(()) => *self.0.last_read_index.lock() = Some(Instant::now()),
            // As etcd tells them apart: one without an answer was slow, one that was refused has failed.
            Err(Failure::TimedOut) => metrics::SLOW_READ_INDEXES.inc(),
            Err(_) => metrics::READ_INDEXES_FAILED.inc(),
        }
        result
    }

    /// As [`read_index`](Self::read_index), for what etcd sends through its log although it is read: without a leader it fails
    /// as a command does.
    ///
    /// # Errors
    /// Those of [`read_index`](Self::read_index); `NotTaken`, `LeaderLost`, `ConnectionLost`.
    pub async fn read_index_as_command(&self) -> Result<(), Failure> {
        let (asked, led) = (Instant::now(), self.leader_now().0 != 0);
        self.read_index().await.map_err(|failure| self.reason(failure, asked, led))
    }

    /// A consistent view of the applied state.
    ///
    /// # Errors
    /// `Storage`.
    pub fn view(&self) -> Result<<Store as KeySpace>::View, Failure> {
        Ok(self.store().view()?)
    }

    /// A read of the store failed. A member whose disk fails or holds other bytes than were written must not go on
    /// answering: the process ends.
    pub fn storage_failed(&self, error: &StorageError) {
        self.0.fatal.storage(error);
    }

    /// Changes the membership, on the leader. `planned_on` 0 means unfenced. For `Add` the id is ignored and taken from
    /// the replicated counter. Resolves when this member has applied the change. Changes that are already done
    /// (promote of a voter, remove of a removed id, add of a listed URL) are refused by the model with a typed
    /// [`Refusal`](crate::domain::refusal::Refusal); the node service turns those into success.
    ///
    /// # Errors
    /// See [`Failure`]; `NotLeader` on any other member.
    pub async fn change_membership(&self, change: Change, planned_on: u64) -> Result<Arc<log::Membership>, Failure> {
        let terms = Terms { planned_on, ..Terms::default() };
        self.request(|reply| Input::Change { change, terms, reply }).await
    }

    /// Removes a member, unfenced, also when the active voters that remain are no quorum: nothing is written then until others
    /// are back. Who turned the strict check off asks for that.
    ///
    /// # Errors
    /// As [`Handle::change_membership`], but for `QuorumAtRisk`.
    pub async fn remove_at_any_price(&self, id: u64) -> Result<Arc<log::Membership>, Failure> {
        let terms = Terms { at_any_price: true, ..Terms::default() };
        let change = Change::Remove(log::RemoveMember { id });
        self.request(|reply| Input::Change { change, terms, reply }).await
    }

    /// Hands leadership to the voter `target` and waits, at most one election timeout, until it leads.
    ///
    /// # Errors
    /// `NotLeader`, `BadTransferee`, `TransferTimedOut`, `ChangeInFlight`, `TimedOut`.
    pub async fn move_leader(&self, target: u64) -> Result<(), Failure> {
        self.request(|reply| Input::MoveLeader { target, reply }).await
    }

    /// Resolves once this member has deleted what the compaction at `revision` made unreadable.
    ///
    /// # Errors
    /// `Stopped`.
    pub async fn compacted_physically(&self, revision: i64) -> Result<(), Failure> {
        self.0.keeper.deleted().wait_for(|done| *done >= revision).await.map(drop).map_err(|_| Failure::Stopped)
    }

    /// The users and roles that count now. Looked at after [`view`](Self::view) they are never older than the view.
    pub fn auth(&self) -> Arc<AuthState> {
        self.0.credentials.state()
    }

    /// The user of a token that this member knows and that has not expired.
    pub fn user_of(&self, token: &str) -> Option<String> {
        self.0.credentials.user_of(token)
    }

    /// The present picture of this member.
    pub fn status(&self) -> Arc<Status> {
        let mut status = self.0.status.read().clone();
        let counted = Arc::make_mut(&mut status);
        counted.pending = self.0.pending.load(Ordering::Relaxed);
        counted.failed = self.0.failed.load(Ordering::Relaxed);
        status
    }

    /// Resolves at the next change of (leader, term) away from `seen`, at once when it is not the present one.
    pub async fn leader_changed(&self, seen: (u64, u64)) -> (u64, u64) {
        let mut leader = self.0.leader.clone();
        match leader.wait_for(|now| *now != seen).await.map(|now| *now) {
            Ok(now) => now,
            Err(_) => std::future::pending().await,
        }
    }

    /// Resolves when the engine has stopped.
    pub(crate) async fn stopped(&self) {
        let mut leader = self.0.leader.clone();
        // The driver holds the other end for as long as it runs.
        let _ = leader.wait_for(|_| false).await;
    }

    /// (leader, term) at present; the leader is 0 while none is known.
    pub(crate) fn leader_now(&self) -> (u64, u64) {
        *self.0.leader.borrow()
    }

    /// This member's own view of the members, whoever leads: itself and those to which a connection is up are active.
    pub fn reached(&self) -> Vec<Progress> {
        let active = |id| id == self.0.member_id || self.0.peers.reached_since(id).is_some();
        let membership = self.status().membership.clone();
        membership.members.iter().map(|m| Progress { id: m.id, active: active(m.id), ..Progress::default() }).collect()
    }

    /// When a background read index last succeeded; readiness is "within the last 2 s".
    pub fn last_read_index(&self) -> Option<Instant> {
        *self.0.last_read_index.lock()
    }

    /// Inputs that wait for the driver, for metrics.
    pub fn queued(&self) -> usize {
        self.0.inbox.len()
    }

    /// The longest that a request may take inside of the member.
    pub fn request_timeout(&self) -> Duration {
        self.0.request_timeout
    }

    /// Raft's tick.
    pub fn heartbeat_interval(&self) -> Duration {
        self.0.heartbeat_interval
    }

    /// One election time-out, a whole number of heartbeats.
    pub fn election_timeout(&self) -> Duration {
        self.0.election_timeout
    }

    /// Whether the cluster has removed the member `id`, as far as this one knows.
    pub fn was_removed(&self, id: u64) -> bool {
        self.0.status.read().membership.removed.contains(&id)
    }

    /// Takes a frame from a peer. Never blocks: a full inbox drops it and answers false; Raft repeats its
    /// messages.
    pub fn receive(&self, frame: peer::Frame) -> bool {
        let bytes = frame.encoded_len();
        self.0.inbox.frame(frame, bytes)
    }

    /// Takes a snapshot that is complete and verified under `name` in the directory of key spaces. The answer is true when
    /// it is in use from now on, and false when this member is already past it; it has no time-out, because whoever waits
    /// for it owns the snapshot until then. None at all means that the engine ended, maybe with the snapshot in use.
    ///
    /// # Errors
    /// `TooManyRequests`, `NotLeader` of a removed member: the snapshot is not taken.
    pub fn install_snapshot(
        &self,
        name: String,
        point: SnapshotPoint,
        from: u64,
        term: u64,
    ) -> Result<oneshot::Receiver<Result<bool, Failure>>, Failure> {
        failpoint::hit("snapshot-received")?;
        self.check_not_removed()?;
        let (reply, answer) = oneshot::channel();
        self.0.inbox.request(Input::Install { name, point, from, term, reply })?;
        Ok(answer)
    }

    /// The hub that watch streams are opened on.
    pub fn watch_hub(&self) -> &Arc<WatchHub> {
        &self.0.hub
    }

    /// The store in use. It is replaced when a snapshot is installed: do not keep it across awaits.
    pub fn store(&self) -> Arc<Store> {
        self.0.store.read().clone()
    }

    /// What RocksDB says of each database, by the name of its directory's role.
    pub fn numbers(&self) -> Vec<(&'static str, Numbers)> {
        let log = self.0.log.upgrade().map(|log| ("log", log.numbers()));
        [("key_space", self.store().numbers())].into_iter().chain(log).collect()
    }

    /// Stops all threads: the driver first, then the applier with all it was given, then a last flush.
    pub async fn stop(&self) {
        let (stopped, wait) = oneshot::channel();
        self.0.inbox.report(Input::Stop(stopped));
        let _ = tokio::time::timeout(Duration::from_secs(10), wait).await;
        self.0.keeper.stop();
        let shared = self.0.clone();
        let joined = tokio::task::spawn_blocking(move || {
            for thread in std::mem::take(&mut *shared.threads.lock()) {
                let _ = thread.join();
            }
        });
        let _ = tokio::time::timeout(Duration::from_secs(20), joined).await;
        self.0.waiters.fail_all(&Failure::Stopped);
    }

    fn check_not_removed(&self) -> Result<(), Failure> {
        if self.0.removed.load(Ordering::SeqCst) { Err(Failure::NotLeader { leader: None }) } else { Ok(()) }
    }

    async fn request<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, Failure> {
        self.check_not_removed()?;
        let (reply, answer) = oneshot::channel();
        self.0.inbox.request(input(reply))?;
        self.await_reply(answer).await
    }

    async fn await_reply<T>(&self, answer: oneshot::Receiver<Result<T, Failure>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.0.request_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Failure::Stopped),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// Why a command that was `asked` for has no outcome, `led` or not at that time.
    fn reason(&self, failure: Failure, asked: Instant, led: bool) -> Failure {
        if failure != Failure::TimedOut {
            return failure;
        }
        let status = self.0.status.read().clone();
        if !led && status.leader == 0 {
            return Failure::NotTaken;
        }
        match late(asked, status.elected, self.0.election_timeout) {
            Failure::TimedOut if !self.connected_since(asked, &status) => Failure::ConnectionLost,
            failure => failure,
        }
    }

    /// Whether the connection to the leader, or the leader's to a quorum, has lasted. Nothing is said without a leader.
    fn connected_since(&self, asked: Instant, status: &Status) -> bool {
        let own = self.0.member_id;
        let lasted = |id: u64| id == own || self.0.peers.reached_since(id).is_some_and(|since| since < asked);
        match status.leader {
            0 => true,
            leader if leader == own => {
                // As in etcd learners count too.
                let members = &status.membership.members;
                members.iter().filter(|member| lasted(member.id)).count() > members.len() / 2
            }
            leader => lasted(leader),
        }
    }
}

/// etcd's guess: what was asked for up to two election time-outs before a leader was elected went to the one before.
fn late(asked: Instant, elected: Option<Instant>, election_timeout: Duration) -> Failure {
    let before = elected.and_then(|elected| elected.checked_duration_since(asked)).filter(|before| !before.is_zero());
    match before {
        Some(before) if before < 2 * election_timeout => Failure::LeaderLost,
        _ => Failure::TimedOut,
    }
}

/// Whether the way through the log was taken to its end, or not begun for what the request is. What the model refuses came
/// through: etcd counts it as no failure of the member, and its alerts on failed proposals rely on that.
fn passed(result: &Result<Outcome, Failure>) -> bool {
    matches!(result, Ok(_) | Err(Failure::Refused(_) | Failure::TooLarge))
}

/// One more pending proposal, for as long as this lives.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(pending: &'a AtomicU64) -> Result<Self, Failure> {
        if pending.fetch_add(1, Ordering::Relaxed) >= MAX_PENDING {
            pending.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::TooManyRequests);
        }
        Ok(Self(pending))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A proposal on its way. One that ends without having come through has failed, also when its client went away meanwhile, as in
/// etcd; not when the member stops.
struct Proposed<'a> {
    failed: &'a AtomicU64,
    under_way: bool,
}

impl<'a> Proposed<'a> {
    fn new(failed: &'a AtomicU64) -> Self {
        Self { failed, under_way: true }
    }

    fn end(mut self, result: &Result<Outcome, Failure>) {
        self.under_way = !passed(result) && !matches!(result, Err(Failure::Stopped));
    }
}

impl Drop for Proposed<'_> {
    fn drop(&mut self) {
        if self.under_way {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Forgets the waiter when the caller goes away, by time-out or by a broken connection.
struct Registered<'a> {
    waiters: &'a Waiters,
    sequence: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.waiters.forget(self.sequence);
    }
}

/// etcd's header in its log: who asks, and an id, which has the length that most of etcd's members give it.
const HEADER_BYTES: usize = 3;
const ID_BYTES: usize = 11;

/// The bytes of a command as etcd counts them: those of its own log, where a header takes the place of our names.
fn counted_bytes(proposal: &log::Proposal) -> usize {
    let &log::Proposal { origin, incarnation, sequence, auth_revision, internal, .. } = proposal;
    let who = log::Proposal { username: proposal.username.clone(), auth_revision, ..Default::default() };
    let without = log::Proposal { origin, incarnation, sequence, internal, ..who.clone() };
    HEADER_BYTES + ID_BYTES + who.encoded_len() + proposal.encoded_len() - without.encoded_len()
}

#[cfg(test)]
mod tests {
    use balsa_proto::etcdserverpb as pb;

    use super::*;
    use crate::domain::refusal::Refusal;

    #[test]
    fn a_command_is_as_long_as_in_etcds_log_whatever_it_is_called_in_ours() {
        let put = |sequence, username: &str| {
            let put = pb::PutRequest { key: "k".into(), value: vec![0; 200].into(), ..Default::default() };
            counted_bytes(&log::Proposal {
                sequence,
                username: username.to_owned(),
                command: Some(Command::Put(put)),
                ..Default::default()
            })
        };
        // The header, the id in it; tag and length of the put, its key and its value.
        assert_eq!(put(1, ""), 3 + 11 + (1 + 2) + 3 + (1 + 2 + 200));
        assert_eq!(put(u64::MAX, ""), put(1, ""));
        assert_eq!(put(1, "alice"), put(1, "") + 7);
    }

    #[test]
    fn a_proposal_has_failed_when_it_ends_without_an_outcome_or_is_given_up() {
        let failed = AtomicU64::new(0);
        let after = |result: Result<Outcome, Failure>| {
            Proposed::new(&failed).end(&result);
            failed.swap(0, Ordering::Relaxed)
        };
        for came_through in [Ok(Outcome::Publish), Err(Failure::Refused(Refusal::LeaseNotFound))] {
            assert!(passed(&came_through));
            assert_eq!(after(came_through), 0);
        }
        assert_eq!(after(Err(Failure::Stopped)), 0);
        for failure in [Failure::TimedOut, Failure::NotTaken, Failure::LeaderLost, Failure::ConnectionLost] {
            assert!(!passed(&Err(failure.clone())));
            assert_eq!(after(Err(failure)), 1);
        }
        drop(Proposed::new(&failed));
        assert_eq!(failed.load(Ordering::Relaxed), 1, "its client went away");
    }

    #[test]
    fn proposals_beyond_the_bound_are_refused_until_one_has_its_outcome() {
        let pending = AtomicU64::new(0);
        let mut counted: Vec<_> = (0..32_768).map(|_| Counted::new(&pending).expect("there is room")).collect();
        assert!(matches!(Counted::new(&pending), Err(Failure::TooManyRequests)));
        counted.pop();
        assert!(Counted::new(&pending).is_ok(), "the refused one was not counted");
    }

    #[test]
    fn a_command_without_an_outcome_blames_the_leader_that_was_lost_just_after_it_was_asked_for() {
        let (asked, second) = (Instant::now(), Duration::from_secs(1));
        let after = |millis| Some(asked + Duration::from_millis(millis));
        assert_eq!(late(asked, None, second), Failure::TimedOut);
        assert_eq!(late(asked, asked.checked_sub(second), second), Failure::TimedOut, "it was asked of this leader");
        assert_eq!(late(asked, after(1_999), second), Failure::LeaderLost);
        assert_eq!(late(asked, after(2_000), second), Failure::TimedOut);
    }
}
