//! The clock of leases at work: started when this member leads, told what is applied, asked by renewals, and looked at
//! for leases that are over, which are then revoked through the log.
//!
//! A renewal makes no entry of the log. It is answered while a read index of the same term is at most a tenth of the grace
//! old, by which the next leader lengthens every lease: so a leader that was deposed without noticing promises nothing that
//! its successor does not keep. What the clock decides is logged with its term and counts in no other, so such a leader
//! ends nothing either.

use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_proto::log;
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::RwLock;
use tracing::{debug, info, warn};

use super::{Failure, Handle};
use crate::domain::command::Command;
use crate::domain::lease::{ClockOptions, LeaseChange, LeaseClock, Renewal, table};
use crate::metrics;
use crate::storage::View;

/// Leases revoked together at most. The next ones wait until these are applied, so a put waits for no more than these.
const ROUND_LEASES: usize = 64;
/// Keys that the leases of a round have together, unless a single one has more: what is applied at once.
const ROUND_KEYS: usize = 512;
/// From the start of a round to the next, at least. With [`ROUND_LEASES`] it bounds the rate to 3,200 leases/s.
const ROUND_EVERY: Duration = Duration::from_millis(20);
/// Longest sleep between two looks at the clock. No lease that is granted meanwhile is over before that.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long at most renewals are answered on one confirmation of the term, and never longer than a tenth of the grace. It
/// makes a round trip to the followers for each renewal one for many.
const CONFIRMED_FOR: Duration = Duration::from_millis(100);
/// Leases in one checkpoint; etcd's own.
const CHECKPOINT_LEASES: usize = 1000;
/// The most leases that may be over within one second when this member begins to lead, three quarters of the rate.
const EXPIRIES_PER_SECOND: usize = 2400;

/// How the clock of a member is configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseOptions {
    /// What long leases have left is written down this often; None: never, and every new leader begins with the TTL.
    pub checkpoint_every: Option<Duration>,
}

/// What is left of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeToLive {
    /// Seconds left, cut towards zero.
    pub ttl: i64,
    /// The whole TTL.
    pub granted_ttl: i64,
    /// Its keys, if they were asked for.
    pub keys: Vec<Bytes>,
}

/// The leases of a running member.
pub(crate) struct Leases {
    /// What the clock's times count from.
    origin: Instant,
    options: ClockOptions,
    /// While this member leads and its clock is started.
    clock: Mutex<Option<LeaseClock>>,
    /// The term in which this member was last known to lead, and when that was asked for.
    confirmed: Mutex<Option<(u64, Instant)>>,
    /// Written from when checkpoints are taken from the clock until they are in the log, read while renewals take some
    /// back: the log must have them in the order of the clock, or it says that a lease was not renewed.
    checkpointing: RwLock<()>,
}

impl Leases {
    /// No clock yet.
    pub(crate) fn new(options: LeaseOptions, election_timeout: Duration) -> Self {
        let options = ClockOptions {
            grace: election_timeout,
            expiries_per_second: EXPIRIES_PER_SECOND,
            checkpoint_every: options.checkpoint_every,
        };
        let (clock, confirmed, checkpointing) = (Mutex::new(None), Mutex::new(None), RwLock::new(()));
        Self { origin: Instant::now(), options, clock, confirmed, checkpointing }
    }

    /// Takes in what was applied; called after it is visible.
    pub(crate) fn applied(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let mut clock = self.clock.lock();
        for change in changes {
            count(change);
            if let Some(clock) = clock.as_mut() {
                clock.apply(self.now(), *change);
            }
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Starts the clock with the leases of `view`. What is applied meanwhile waits for the lock and is taken in after it,
    /// whether the view has it already or not.
    fn start(
        &self,
        term: u64,
        view: impl FnOnce() -> Result<Vec<(i64, log::Lease)>, Failure>,
    ) -> Result<usize, Failure> {
        let mut clock = self.clock.lock();
        let leases = view()?;
        let count = leases.len();
        let leases = leases.into_iter().map(|(id, lease)| (id, lease.ttl, lease.remaining_ttl));
        *clock = Some(LeaseClock::start(term, self.options, self.now(), leases));
        Ok(count)
    }

    fn end(&self) {
        *self.clock.lock() = None;
    }

    /// A quorum said that this member leads in `term`, some time after `asked`.
    fn confirm(&self, term: u64, asked: Instant) {
        *self.confirmed.lock() = Some((term, asked));
    }

    /// Whether that was said of `term` so lately that renewals may be answered.
    fn is_confirmed(&self, term: u64, now: Instant) -> bool {
        let bound = CONFIRMED_FOR.min(self.options.grace / 10);
        self.confirmed.lock().is_some_and(|(confirmed, asked)| confirmed == term && now - asked < bound)
    }

    /// Asks the clock of `term`, if it runs.
    fn ask<T>(&self, term: u64, question: impl FnOnce(&mut LeaseClock, Duration) -> T) -> Option<T> {
        let mut clock = self.clock.lock();
        let clock = clock.as_mut().filter(|clock| clock.term() == term)?;
        Some(question(clock, self.now()))
    }

    /// Writes down with `propose` what long leases have left.
    async fn write_checkpoints<F: Future<Output = Result<(), Failure>>>(
        &self,
        term: u64,
        propose: impl FnOnce(Vec<(i64, i64)>) -> F,
    ) -> Result<(), Failure> {
        let _order = self.checkpointing.write().await;
        let rests = self.ask(term, |clock, now| clock.take_checkpoints(now, CHECKPOINT_LEASES)).unwrap_or_default();
        if rests.is_empty() { Ok(()) } else { propose(rests).await }
    }

    /// Renews those of `ids` that are checkpointed, which is taken back with `propose` before.
    async fn renew_checkpointed<F: Future<Output = Result<(), Failure>>>(
        &self,
        term: u64,
        ids: &[i64],
        renewals: &mut [Renewal],
        propose: impl FnOnce(Vec<(i64, i64)>) -> F,
    ) -> Result<(), Failure> {
        let _order = self.checkpointing.read().await;
        let mut checkpointed: Vec<_> =
            ids.iter().zip(renewals).filter(|(_, renewal)| **renewal == Renewal::Checkpointed).collect();
        propose(checkpointed.iter().map(|(id, _)| (**id, 0)).collect()).await?;
        let again = |clock: &mut LeaseClock, now| {
            checkpointed.iter_mut().for_each(|(id, renewal)| **renewal = clock.renew_taken_back(now, **id));
        };
        self.ask(term, again).ok_or(Failure::NotLeader { leader: None })
    }
}

fn count(change: &LeaseChange) {
    match change {
        LeaseChange::Granted { ttl, .. } => {
            metrics::LEASES_GRANTED.inc();
            metrics::LEASE_TTL.observe(*ttl as f64);
        }
        LeaseChange::Revoked { .. } => metrics::LEASES_REVOKED.inc(),
        LeaseChange::Checkpointed { .. } => {}
    }
}

/// What a service may ask of leases. Grants and revocations are commands, see [`Handle::propose`].
impl Handle {
    /// Renews leases by this member's clock; the answers are in the order of the ids.
    ///
    /// # Errors
    /// `NotLeader` on any other member, and while a new leader has not started its clock; those of a read index.
    pub async fn renew_leases(&self, ids: &[i64]) -> Result<Vec<Renewal>, Failure> {
        let mut term = self.lately_leading_term().await?;
        let renew = |clock: &mut LeaseClock, now| ids.iter().map(|id| clock.renew(now, *id)).collect();
        let mut renewals: Vec<Renewal> = self.ask_clock(term, renew)?;
        if renewals.contains(&Renewal::NotFound) {
            // It may have been granted, and that be not applied here yet.
            term = self.leading_term().await?;
            renewals = self.ask_clock(term, renew)?;
        }
        let renewed = |renewal: &&Renewal| matches!(renewal, Renewal::Renewed { .. });
        if renewals.contains(&Renewal::Checkpointed) {
            let take_back = |rests| self.checkpoint(term, rests);
            self.0.leases.renew_checkpointed(term, ids, &mut renewals, take_back).await?;
        }
        metrics::LEASES_RENEWED.inc_by(renewals.iter().filter(renewed).count() as u64);
        Ok(renewals)
    }

    /// What a lease has left by this member's clock; None when there is no such lease.
    ///
    /// # Errors
    /// Those of [`renew_leases`](Self::renew_leases).
    pub async fn lease_time_to_live(&self, id: i64, with_keys: bool) -> Result<Option<TimeToLive>, Failure> {
        let term = self.leading_term().await?;
        let keys = if with_keys { table::keys(&self.view()?, id, usize::MAX)? } else { Vec::new() };
        let left = self.ask_clock(term, |clock, now| clock.time_to_live(now, id))?;
        Ok(left.map(|(ttl, granted_ttl)| TimeToLive { ttl, granted_ttl, keys }))
    }

    /// The ids of all leases as applied here; on the leader the one that is over first is at the head.
    ///
    /// # Errors
    /// `Storage`.
    pub fn leases(&self) -> Result<Vec<i64>, Failure> {
        let (_, term) = self.leader_now();
        if let Some(ids) = self.0.leases.ask(term, |clock, _| clock.ids()) {
            return Ok(ids);
        }
        Ok(table::leases(&self.view()?)?.into_iter().map(|(id, _)| id).collect())
    }

    /// The term in which this member leads, confirmed by a quorum after the call was made.
    async fn leading_term(&self) -> Result<u64, Failure> {
        let not_leader = |leader| Failure::NotLeader { leader: Some(leader).filter(|id| *id != 0) };
        let (leader, term) = self.leader_now();
        if leader != self.member_id() {
            return Err(not_leader(leader));
        }
        let asked = Instant::now();
        self.read_index().await?;
        match self.leader_now() {
            now if now == (leader, term) => {
                self.0.leases.confirm(term, asked);
                Ok(term)
            }
            (leader, _) => Err(not_leader(leader)),
        }
    }

    /// The term in which this member leads, confirmed by a quorum just before or after the call was made.
    async fn lately_leading_term(&self) -> Result<u64, Failure> {
        match self.leader_now() {
            (leader, term) if leader == self.member_id() && self.0.leases.is_confirmed(term, Instant::now()) => {
                Ok(term)
            }
            _ => self.leading_term().await,
        }
    }

    fn ask_clock<T>(&self, term: u64, question: impl FnOnce(&mut LeaseClock, Duration) -> T) -> Result<T, Failure> {
        self.0.leases.ask(term, question).ok_or(Failure::NotLeader { leader: None })
    }

    async fn checkpoint(&self, term: u64, rests: Vec<(i64, i64)>) -> Result<(), Failure> {
        let checkpoint = |(id, remaining_ttl)| log::LeaseCheckpoint { id, remaining_ttl };
        let checkpoints = rests.into_iter().map(checkpoint).collect();
        self.propose_internal(Command::LeaseCheckpoint(log::CheckpointLeases { term, checkpoints })).await.map(drop)
    }
}

/// Runs the clock whenever this member leads, until the engine stops.
pub(crate) async fn keep(handle: Handle) {
    tokio::select! {
        () = handle.stopped() => {}
        () = keep_while_leading(&handle) => {}
    }
}

async fn keep_while_leading(handle: &Handle) {
    let leases = handle.0.leases.clone();
    let mut role = handle.leader_now();
    loop {
        if role.0 == handle.member_id() {
            tokio::select! {
                () = lead(handle, &leases, role.1) => return,
                now = handle.leader_changed(role) => role = now,
            }
            leases.end();
        } else {
            role = handle.leader_changed(role).await;
        }
    }
}

/// Ends only with the engine; dropped at the end of the term.
async fn lead(handle: &Handle, leases: &Arc<Leases>, term: u64) {
    while let Err(failure) = begin(handle, leases, term).await {
        if failure == Failure::Stopped {
            return;
        }
        debug!(%failure, term, "the clock of leases is not started yet");
        tokio::time::sleep(ROUND_EVERY).await;
    }
    loop {
        let started = Instant::now();
        if let Err(failure) = round(handle, leases, term).await {
            warn!(%failure, "leases that are over are not revoked yet");
            if failure == Failure::Stopped {
                return;
            }
        }
        let now = leases.now();
        let next = leases.ask(term, |clock, _| clock.next()).flatten();
        let sleep = next.map_or(LOOK_EVERY, |at| at.saturating_sub(now).min(LOOK_EVERY));
        tokio::time::sleep(sleep.max(ROUND_EVERY.saturating_sub(started.elapsed()))).await;
    }
}

/// Starts the clock once all that earlier leaders have committed is applied here.
async fn begin(handle: &Handle, leases: &Arc<Leases>, term: u64) -> Result<(), Failure> {
    handle.leading_term().await?;
    let (view, leases) = (handle.clone(), leases.clone());
    // Reading many leases takes a while, and blocks.
    let started = tokio::task::spawn_blocking(move || leases.start(term, || Ok(table::leases(&view.view()?)?)));
    let count = started.await.map_err(|_| Failure::Stopped)??;
    info!(count, term, "leases are counted by this member");
    Ok(())
}

/// Revokes some of the leases that are over, and writes down what others have left.
async fn round(handle: &Handle, leases: &Leases, term: u64) -> Result<(), Failure> {
    let over = leases.ask(term, |clock, now| clock.take_expired(now, ROUND_LEASES)).unwrap_or_default();
    if !over.is_empty() {
        let view = handle.view()?;
        for together in by_keys(&view, over)? {
            let revoked = together.into_iter().map(|id| revoke(handle, id, term));
            join_all(revoked).await.into_iter().collect::<Result<(), _>>()?;
        }
    }
    leases.write_checkpoints(term, |rests| handle.checkpoint(term, rests)).await
}

/// Groups of leases with at most [`ROUND_KEYS`] keys, or of a single lease.
fn by_keys(view: &impl View, ids: Vec<i64>) -> Result<Vec<Vec<i64>>, Failure> {
    let mut groups: Vec<Vec<i64>> = Vec::new();
    let mut keys = 0;
    for id in ids {
        let own = table::count_keys(view, id, ROUND_KEYS + 1)?;
        keys += own;
        match groups.last_mut() {
            Some(group) if keys <= ROUND_KEYS => group.push(id),
            _ => {
                groups.push(vec![id]);
                keys = own;
            }
        }
    }
    Ok(groups)
}

/// Somebody else may have revoked it, or an alarm forbids it; a lease that is still there comes out of the clock again.
async fn revoke(handle: &Handle, id: i64, term: u64) -> Result<(), Failure> {
    match handle.propose_internal(Command::LeaseExpire(log::ExpireLease { id, term })).await {
        Ok(_) => {
            metrics::LEASES_EXPIRED.inc();
            debug!(id = format!("{id:016x}"), "a lease was over");
            Ok(())
        }
        Err(Failure::Refused(refusal)) => {
            debug!(id = format!("{id:016x}"), %refusal, "a lease that was over was not revoked");
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join;
    use tokio::sync::oneshot;

    use super::*;
    use crate::storage::memory::MemoryKeySpace;
    use crate::storage::{KeySpace, Table, WriteBatch};

    #[test]
    fn a_round_is_bounded_by_keys_and_a_large_lease_goes_alone() {
        let space = MemoryKeySpace::default();
        let mut batch = WriteBatch::default();
        for (id, keys) in [(1, 300), (2, 212), (3, 1), (4, 2_000), (5, 0), (6, 512)] {
            for key in 0..keys {
                batch.put(Table::Lease, table::key_row(id, format!("{key}").as_bytes()), Vec::new());
            }
        }
        space.write(batch).unwrap();
        let groups = by_keys(&space.view().unwrap(), (1..=6).collect()).unwrap();
        assert_eq!(groups, [vec![1, 2], vec![3], vec![4], vec![5, 6]]);
    }

    #[test]
    fn renewals_are_answered_on_a_confirmation_of_their_term_for_a_tenth_of_the_grace() {
        let leases = Leases::new(LeaseOptions::default(), Duration::from_millis(500));
        let asked = Instant::now();
        let later = |millis| asked + Duration::from_millis(millis);
        assert!(!leases.is_confirmed(3, asked));
        leases.confirm(3, asked);
        assert_eq!([3, 4].map(|term| leases.is_confirmed(term, later(49))), [true, false]);
        assert!(!leases.is_confirmed(3, later(50)));
    }

    #[test]
    fn what_was_applied_while_the_clock_started_counts_once() {
        let leases = Leases::new(LeaseOptions::default(), Duration::from_secs(1));
        leases.applied(&[LeaseChange::Granted { id: 1, ttl: 10 }]);
        assert_eq!(leases.ask(4, |clock, _| clock.ids()), None, "nobody counts before this member leads");
        let stored = log::Lease { ttl: 10, remaining_ttl: 0 };
        assert_eq!(leases.start(4, || Ok(vec![(1, stored), (2, stored)])), Ok(2));
        leases.applied(&[LeaseChange::Granted { id: 2, ttl: 10 }, LeaseChange::Revoked { id: 1 }]);
        leases.applied(&[LeaseChange::Revoked { id: 1 }]);
        assert_eq!(leases.ask(4, |clock, _| clock.ids()), Some(vec![2]));
        assert_eq!(leases.ask(5, |clock, _| clock.ids()), None, "the clock of another term is none");
        leases.end();
        assert_eq!(leases.ask(4, |clock, _| clock.ids()), None);
    }

    /// A clock with a lease that has a checkpoint and is due for the next one, and a log that is applied as it is written.
    struct Checkpointing {
        leases: Leases,
        log: Mutex<Vec<i64>>,
    }

    impl Checkpointing {
        fn new() -> Self {
            let options = LeaseOptions { checkpoint_every: Some(Duration::ZERO) };
            let leases = Leases::new(options, Duration::from_secs(1));
            leases.start(4, || Ok(vec![(1, log::Lease { ttl: 600, remaining_ttl: 10 })])).expect("started");
            Self { leases, log: Mutex::default() }
        }

        async fn commit(&self, when: oneshot::Receiver<()>, rests: Vec<(i64, i64)>) -> Result<(), Failure> {
            when.await.map_err(|_| Failure::Stopped)?;
            for (id, remaining_ttl) in rests {
                self.log.lock().push(remaining_ttl);
                self.leases.applied(&[LeaseChange::Checkpointed { id, remaining_ttl }]);
            }
            Ok(())
        }

        /// Has the round and the renewal under way at once. The one that begins is in the log last, if it can be.
        async fn race(&self, round_begins: bool) -> [Result<(), Failure>; 2] {
            let ([round_goes, renewal_goes], [round_waits, renewal_waits]) = {
                let (one, other) = (oneshot::channel(), oneshot::channel());
                ([one.0, other.0], [one.1, other.1])
            };
            let mut renewals = [Renewal::Checkpointed];
            let round = self.leases.write_checkpoints(4, |rests| self.commit(round_waits, rests));
            let renew =
                self.leases.renew_checkpointed(4, &[1], &mut renewals, |rests| self.commit(renewal_waits, rests));
            let (mut round, mut renew) = (Box::pin(round), Box::pin(renew));
            let ended = match round_begins {
                true => {
                    assert!(futures::poll!(&mut round).is_pending());
                    renewal_goes.send(()).expect("waits");
                    assert!(futures::poll!(&mut renew).is_pending(), "a checkpoint is decided and not logged");
                    round_goes.send(()).expect("waits");
                    join(round, renew).await
                }
                false => {
                    assert!(futures::poll!(&mut renew).is_pending());
                    round_goes.send(()).expect("waits");
                    assert!(futures::poll!(&mut round).is_pending(), "a checkpoint is not taken back yet");
                    renewal_goes.send(()).expect("waits");
                    join(round, renew).await
                }
            };
            assert_eq!(renewals, [Renewal::Renewed { ttl: 600 }]);
            ended.into()
        }
    }

    /// The renewal is given up with what takes the checkpoint back on its way into the log, before the next checkpoint.
    #[tokio::test]
    async fn a_renewal_that_was_given_up_takes_back_no_later_checkpoint() {
        let checkpointing = Checkpointing::new();
        let leases = &checkpointing.leases;
        let (_never, waits) = oneshot::channel();
        let mut renewals = [Renewal::Checkpointed];
        let mut given_up =
            Box::pin(leases.renew_checkpointed(4, &[1], &mut renewals, |rests| checkpointing.commit(waits, rests)));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        let (goes, waits) = oneshot::channel();
        let mut round = Box::pin(leases.write_checkpoints(4, |rests| checkpointing.commit(waits, rests)));
        assert!(futures::poll!(&mut round).is_pending());
        leases.applied(&[LeaseChange::Checkpointed { id: 1, remaining_ttl: 0 }]);
        let renewed = leases.ask(4, |clock, now| clock.renew(now, 1));
        assert_eq!(renewed, Some(Renewal::Checkpointed), "the log is about to say that it was not renewed");

        goes.send(()).expect("waits");
        round.await.expect("logged");
        let (goes, waits) = oneshot::channel();
        goes.send(()).expect("waits");
        let again = leases.renew_checkpointed(4, &[1], &mut renewals, |rests| checkpointing.commit(waits, rests));
        again.await.expect("renewed");
        assert_eq!((renewals, &checkpointing.log.lock()[..]), ([Renewal::Renewed { ttl: 600 }], &[11, 0][..]));
    }

    /// Nobody knows of a checkpoint that found no outcome in time whether it will be applied.
    #[tokio::test]
    async fn a_renewal_after_a_checkpoint_without_an_outcome_has_the_last_word() {
        let checkpointing = Checkpointing::new();
        let leases = &checkpointing.leases;
        let timed_out = leases.write_checkpoints(4, |_| async { Err(Failure::TimedOut) });
        assert_eq!(timed_out.await, Err(Failure::TimedOut));
        let (goes, waits) = oneshot::channel();
        goes.send(()).expect("waits");
        let mut renewals = [Renewal::Checkpointed];
        let renewal = leases.renew_checkpointed(4, &[1], &mut renewals, |rests| checkpointing.commit(waits, rests));
        assert_eq!((renewal.await, renewals), (Ok(()), [Renewal::Renewed { ttl: 600 }]));
    }

    #[tokio::test]
    async fn a_renewal_and_a_checkpoint_are_logged_in_the_order_of_the_clock() {
        for (round_begins, log) in [(true, &[11, 0][..]), (false, &[0])] {
            let checkpointing = Checkpointing::new();
            assert_eq!(checkpointing.race(round_begins).await, [Ok(()), Ok(())]);
            assert_eq!(*checkpointing.log.lock(), log, "what a new leader would begin with is last");
            assert_eq!(checkpointing.leases.ask(4, |clock, now| clock.time_to_live(now, 1)), Some(Some((599, 600))));
        }
    }
}
