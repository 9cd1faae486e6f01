//! The leader's clock of leases: when each is over, unless it is renewed.
//!
//! Pure: time is a [`Duration`] since some fixed moment, given with every call. The clock lives for one term of one
//! leader; a new leader starts another, and every lease begins anew there. So a lease can end too late, never too early:
//! its holder may count on what the last answer promised.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::LeaseChange;

/// An expired lease that is still there is handed out again after this long: its revocation may have been lost.
const HAND_OUT_AGAIN: Duration = Duration::from_secs(3);

/// What a clock is configured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOptions {
    /// Added to what every lease has left when the clock starts: for so long there may have been no leader that could
    /// renew it. One election time-out.
    pub grace: Duration,
    /// The most leases that may be over within one second when the clock starts. Later ones are put off.
    pub expiries_per_second: usize,
    /// What long leases have left is written down this often; None: never.
    pub checkpoint_every: Option<Duration>,
}

/// The answer to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It has its whole TTL again.
    Renewed {
        /// Seconds.
        ttl: i64,
    },
    /// There is no such lease.
    NotFound,
    /// It is over and its revocation is under way. Whoever asks waits for the end of that.
    Expiring,
    /// A checkpoint says that less than the TTL is left. It must be taken back through the log before the renewal, or
    /// the next leader would end the lease too early.
    Checkpointed,
}

#[derive(Debug, Clone, Copy)]
struct Timed {
    ttl: i64,
    /// As checkpointed; 0 = the whole TTL.
    remaining_ttl: i64,
    /// When it is over.
    expires: Duration,
    /// When it is to be handed out: then, and again later while it is still there.
    hand_out: Duration,
    checkpoint: Option<Duration>,
    /// `remaining_ttl` is decided and not applied yet: until then the log says what was decided before it.
    unapplied: bool,
}

/// See the module.
#[derive(Debug)]
pub struct LeaseClock {
    term: u64,
    options: ClockOptions,
    leases: HashMap<i64, Timed>,
    /// (when to hand out, id)
    order: BTreeSet<(Duration, i64)>,
    /// (when to write down, id)
    checkpoints: BTreeSet<(Duration, i64)>,
}

impl LeaseClock {
    /// The clock of the leader of `term` at its start. `leases` are (id, TTL, checkpointed rest or 0), in seconds.
    pub fn start(
        term: u64,
        options: ClockOptions,
        now: Duration,
        leases: impl IntoIterator<Item = (i64, i64, i64)>,
    ) -> Self {
        let mut clock =
            Self { term, options, leases: HashMap::new(), order: BTreeSet::new(), checkpoints: BTreeSet::new() };
        let expiry = |(id, ttl, rest): (i64, i64, i64)| {
            let left = if rest > 0 { rest } else { ttl };
            (now + options.grace + seconds(left), id, ttl, rest)
        };
        let mut starting: Vec<_> = leases.into_iter().map(expiry).collect();
        starting.sort_unstable_by_key(|(expires, id, ..)| (*expires, *id));
        let mut spread: Vec<Duration> = Vec::with_capacity(starting.len());
        for (position, (expires, id, ttl, rest)) in starting.into_iter().enumerate() {
            let earlier = position.checked_sub(options.expiries_per_second.max(1)).map(|earlier| spread[earlier]);
            let expires = earlier.map_or(expires, |earlier| expires.max(earlier + Duration::from_secs(1)));
            spread.push(expires);
            clock.set(now, id, ttl, rest, expires);
        }
        clock
    }

    /// The term that it counts for.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Takes in what was applied. The same change twice does no harm.
    pub fn apply(&mut self, now: Duration, change: LeaseChange) {
        match change {
            LeaseChange::Granted { id, ttl } => self.set(now, id, ttl, 0, now + seconds(ttl)),
            LeaseChange::Revoked { id } => {
                self.take(id);
            }
            LeaseChange::Checkpointed { id, remaining_ttl } => {
                // A renewal that was given up may have left something in the log that was decided before this checkpoint.
                let earlier = |timed: &Timed| timed.unapplied && remaining_ttl != timed.remaining_ttl;
                if let Some(timed) = self.leases.get(&id).copied().filter(|timed| !earlier(timed)) {
                    self.set(now, id, timed.ttl, remaining_ttl, timed.expires);
                }
            }
        }
    }

    /// Renews a lease whose checkpoint was taken back by the last word of the log.
    pub fn renew_taken_back(&mut self, now: Duration, id: i64) -> Renewal {
        if let Some(timed) = self.leases.get_mut(&id) {
            (timed.remaining_ttl, timed.unapplied) = (0, false);
        }
        self.renew(now, id)
    }

    /// Renews a lease.
    pub fn renew(&mut self, now: Duration, id: i64) -> Renewal {
        match self.leases.get(&id).copied() {
            None => Renewal::NotFound,
            Some(timed) if timed.expires <= now => Renewal::Expiring,
            Some(timed) if timed.remaining_ttl > 0 => Renewal::Checkpointed,
            Some(timed) => {
                self.set(now, id, timed.ttl, 0, now + seconds(timed.ttl));
                Renewal::Renewed { ttl: timed.ttl }
            }
        }
    }

    /// (seconds left, TTL) of a lease. Seconds are cut towards zero; one that has been over for long has less than 0.
    pub fn time_to_live(&self, now: Duration, id: i64) -> Option<(i64, i64)> {
        let timed = self.leases.get(&id)?;
        let left = match timed.expires.checked_sub(now) {
            Some(left) => whole_seconds(left),
            None => -whole_seconds(now - timed.expires),
        };
        Some((left, timed.ttl))
    }

    /// Up to `limit` leases that are over, the longest first. They count as being revoked from now on.
    pub fn take_expired(&mut self, now: Duration, limit: usize) -> Vec<i64> {
        let over = self.order.range(..=(now, i64::MAX)).take(limit);
        let ids: Vec<i64> = over.map(|(_, id)| *id).collect();
        for id in &ids {
            let Some(timed) = self.leases.get_mut(id) else { continue };
            self.order.remove(&(timed.hand_out, *id));
            timed.hand_out = now + HAND_OUT_AGAIN;
            self.order.insert((timed.hand_out, *id));
        }
        ids
    }

    /// When the next lease is to be handed out or written down.
    pub fn next(&self) -> Option<Duration> {
        let first = |set: &BTreeSet<(Duration, i64)>| set.first().map(|(at, _)| *at);
        [first(&self.order), first(&self.checkpoints)].into_iter().flatten().min()
    }

    /// Up to `limit` leases whose rest is to be written down: (id, seconds left, rounded up). From now on they count as
    /// checkpointed: a renewal that did not take that back would be forgotten by the next leader.
    pub fn take_checkpoints(&mut self, now: Duration, limit: usize) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        while due.len() < limit {
            let Some((_, id)) = self.checkpoints.first().copied().filter(|(at, _)| *at <= now) else { break };
            self.checkpoints.pop_first();
            let Some(timed) = self.leases.get_mut(&id) else { continue };
            timed.checkpoint = None;
            let Some(left) = timed.expires.checked_sub(now).filter(|left| !left.is_zero()) else { continue };
            let left = whole_seconds(left + Duration::from_nanos(999_999_999));
            if left < timed.ttl {
                (timed.remaining_ttl, timed.unapplied) = (left, true);
                due.push((id, left));
            }
        }
        due
    }

    /// All ids, the one that is over first at the head.
    pub fn ids(&self) -> Vec<i64> {
        let mut all: Vec<_> = self.leases.iter().map(|(id, timed)| (timed.expires, *id)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    fn take(&mut self, id: i64) -> Option<Timed> {
        let timed = self.leases.remove(&id)?;
        self.order.remove(&(timed.hand_out, id));
        if let Some(at) = timed.checkpoint {
            self.checkpoints.remove(&(at, id));
        }
        Some(timed)
    }

    fn set(&mut self, now: Duration, id: i64, ttl: i64, remaining_ttl: i64, expires: Duration) {
        let before = self.take(id);
        let left = if remaining_ttl > 0 { remaining_ttl } else { ttl };
        let every = self.options.checkpoint_every.filter(|every| seconds(left) > *every);
        // A renewal does not put a checkpoint off for ever: it is due at its time or it says nothing new.
        let scheduled = before.and_then(|before| before.checkpoint);
        let checkpoint = every.map(|every| scheduled.unwrap_or(now + every));
        // One that is being revoked stays so.
        let kept = before.filter(|before| before.expires == expires).map(|before| before.hand_out);
        let hand_out = kept.unwrap_or(expires);
        let timed = Timed { ttl, remaining_ttl, expires, hand_out, checkpoint, unapplied: false };
        self.order.insert((timed.hand_out, id));
        if let Some(at) = checkpoint {
            self.checkpoints.insert((at, id));
        }
        self.leases.insert(id, timed);
    }
}

/// A TTL is never negative here; a checkpoint neither.
fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

fn whole_seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
