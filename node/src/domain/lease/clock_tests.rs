//! The clock against a list of leases, over seeds, and single promises.

use std::collections::BTreeMap;

use super::*;
use crate::domain::random::Random;

const OPTIONS: ClockOptions =
    ClockOptions { grace: Duration::from_secs(1), expiries_per_second: 1000, checkpoint_every: None };

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[derive(Debug, Clone, Copy)]
struct Plain {
    ttl: i64,
    expires: Duration,
    hand_out: Duration,
}

/// The same without any index.
#[derive(Default)]
struct Model(BTreeMap<i64, Plain>);

impl Model {
    fn renew(&mut self, now: Duration, id: i64) -> Renewal {
        let Some(lease) = self.0.get_mut(&id) else { return Renewal::NotFound };
        if lease.expires <= now {
            return Renewal::Expiring;
        }
        lease.expires = now + seconds(lease.ttl);
        lease.hand_out = lease.expires;
        Renewal::Renewed { ttl: lease.ttl }
    }

    fn take_expired(&mut self, now: Duration, limit: usize) -> Vec<i64> {
        let mut due: Vec<_> = self.0.iter().filter(|(_, lease)| lease.hand_out <= now).collect();
        due.sort_by_key(|(id, lease)| (lease.hand_out, **id));
        let ids: Vec<i64> = due.into_iter().take(limit).map(|(id, _)| *id).collect();
        for id in &ids {
            if let Some(lease) = self.0.get_mut(id) {
                lease.hand_out = now + HAND_OUT_AGAIN;
            }
        }
        ids
    }
}

#[test]
fn the_clock_agrees_with_a_list_of_leases() {
    for seed in 0..200 {
        let random = &mut Random::new(seed);
        let (mut clock, mut model) = (LeaseClock::start(1, OPTIONS, Duration::ZERO, []), Model::default());
        let mut now = Duration::ZERO;
        for _ in 0..300 {
            now += millis(random.below(900) as u64);
            let id = random.below(12) as i64;
            match random.below(6) {
                0 | 1 if !model.0.contains_key(&id) => {
                    let ttl = 1 + random.below(8) as i64;
                    let expires = now + seconds(ttl);
                    clock.apply(now, LeaseChange::Granted { id, ttl });
                    model.0.insert(id, Plain { ttl, expires, hand_out: expires });
                }
                2 => {
                    clock.apply(now, LeaseChange::Revoked { id });
                    model.0.remove(&id);
                }
                3 => {
                    let limit = random.below(4);
                    assert_eq!(clock.take_expired(now, limit), model.take_expired(now, limit), "seed {seed}");
                }
                _ => assert_eq!(clock.renew(now, id), model.renew(now, id), "seed {seed}"),
            }
            let next = model.0.values().map(|lease| lease.hand_out).min();
            assert_eq!(clock.next(), next, "seed {seed}");
            let ttl = model.0.get(&id).map(|lease| lease.ttl);
            assert_eq!(clock.time_to_live(now, id).map(|(_, ttl)| ttl), ttl, "seed {seed}");
            let mut ids: Vec<_> = model.0.iter().map(|(id, lease)| (lease.expires, *id)).collect();
            ids.sort_unstable();
            assert_eq!(clock.ids(), ids.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}

/// Leaders follow each other at random times; each renewal that one of them answered must hold under all that follow, and
/// so must those that it goes on to answer for less than the grace since it was last known to lead.
#[test]
fn no_lease_is_over_before_the_last_answer_said_whoever_leads_then() {
    let mut answered_late = 0;
    for seed in 0..200 {
        let random = &mut Random::new(1_000 + seed);
        let mut options = OPTIONS;
        options.checkpoint_every = (seed % 2 == 0).then_some(secs(3));
        // Replicated: (TTL, checkpoint). Promised to the holders: not over before.
        let mut table: BTreeMap<i64, (i64, i64)> = (0..8).map(|id| (id, (4 + id * 3, 0))).collect();
        let mut promised: BTreeMap<i64, Duration> = BTreeMap::new();
        let mut now = Duration::ZERO;
        let mut deposed: Option<(LeaseClock, Duration)> = None;
        for term in 1..20 {
            let leases = table.iter().map(|(id, (ttl, rest))| (*id, *ttl, *rest));
            let mut clock = LeaseClock::start(term, options, now, leases);
            for _ in 0..random.below(30) {
                now += millis(random.below(800) as u64);
                let id = random.below(8) as i64;
                if random.below(3) == 0 {
                    match clock.renew(now, id) {
                        Renewal::Renewed { ttl } => {
                            promised.insert(id, now + seconds(ttl));
                        }
                        Renewal::Checkpointed => {
                            table.entry(id).and_modify(|(_, rest)| *rest = 0);
                            clock.apply(now, LeaseChange::Checkpointed { id, remaining_ttl: 0 });
                            let Renewal::Renewed { ttl } = clock.renew(now, id) else { panic!("seed {seed}") };
                            promised.insert(id, now + seconds(ttl));
                        }
                        Renewal::NotFound => assert!(!table.contains_key(&id), "seed {seed}"),
                        Renewal::Expiring => {}
                    }
                }
                if let Some((deposed, until)) = &mut deposed
                    && now < *until
                    && let Renewal::Renewed { ttl } = deposed.renew(now, id)
                {
                    promised
                        .entry(id)
                        .and_modify(|at| *at = (*at).max(now + seconds(ttl)))
                        .or_insert(now + seconds(ttl));
                    answered_late += 1;
                }
                for (id, left) in clock.take_checkpoints(now, 10) {
                    let ttl = table.get_mut(&id).expect("the clock knows only what is there");
                    assert!(left > 0 && left < ttl.0, "seed {seed}");
                    ttl.1 = left;
                    clock.apply(now, LeaseChange::Checkpointed { id, remaining_ttl: left });
                }
                for id in clock.take_expired(now, 10) {
                    assert!(promised.get(&id).is_none_or(|until| *until <= now), "seed {seed}: {id} is over too early");
                    table.remove(&id);
                    clock.apply(now, LeaseChange::Revoked { id });
                }
            }
            // The next leader needs a while.
            deposed = Some((clock, now + options.grace));
            now += millis(random.below(1_000) as u64);
        }
    }
    assert!(answered_late > 0);
}

#[test]
fn a_new_leader_gives_every_lease_its_ttl_and_a_grace() {
    let mut clock = LeaseClock::start(1, OPTIONS, secs(100), [(7, 10, 0), (8, 10, 3)]);
    assert_eq!(clock.time_to_live(secs(100), 7), Some((11, 10)));
    assert_eq!(clock.time_to_live(secs(100), 8), Some((4, 10)), "what a checkpoint says is left");
    assert_eq!(clock.take_expired(millis(103_999), 9), Vec::<i64>::new());
    assert_eq!(clock.take_expired(secs(104), 9), [8]);
    assert_eq!(clock.take_expired(secs(111), 9), [8, 7], "8 was not revoked in 3 s: once more");
}

#[test]
fn an_expired_lease_is_not_renewed_and_is_handed_out_until_it_is_gone() {
    let mut clock = LeaseClock::start(1, OPTIONS, Duration::ZERO, []);
    clock.apply(secs(1), LeaseChange::Granted { id: 7, ttl: 5 });
    assert_eq!(clock.renew(millis(5_999), 7), Renewal::Renewed { ttl: 5 });
    assert_eq!(clock.renew(millis(10_999), 7), Renewal::Expiring);
    assert_eq!(clock.time_to_live(millis(11_500), 7), Some((0, 5)));
    assert_eq!(clock.time_to_live(millis(12_999), 7), Some((-2, 5)));
    assert_eq!(clock.take_expired(secs(11), 9), [7]);
    assert_eq!(clock.take_expired(secs(13), 9), Vec::<i64>::new());
    assert_eq!(clock.next(), Some(secs(14)));
    assert_eq!(clock.take_expired(secs(14), 9), [7]);
    clock.apply(secs(14), LeaseChange::Revoked { id: 7 });
    assert_eq!((clock.renew(secs(14), 7), clock.next()), (Renewal::NotFound, None));
}

#[test]
fn leases_that_would_be_over_together_are_spread_when_a_leader_starts() {
    let options = ClockOptions { expiries_per_second: 100, ..OPTIONS };
    let leases = (0..1_000).map(|id| (id, 10 + id % 2, 0));
    let mut clock = LeaseClock::start(1, options, Duration::ZERO, leases);
    let mut all = 0;
    for second in 0..40 {
        let over = clock.take_expired(secs(second), usize::MAX);
        over.iter().for_each(|id| clock.apply(secs(second), LeaseChange::Revoked { id: *id }));
        assert!(second >= 11 || over.is_empty());
        assert!(over.len() <= 100, "{} in second {second}", over.len());
        all += over.len();
    }
    assert_eq!(all, 1_000);
}

#[test]
fn long_leases_are_written_down_at_their_interval_and_short_ones_never() {
    let options = ClockOptions { checkpoint_every: Some(secs(300)), ..OPTIONS };
    let mut clock = LeaseClock::start(1, options, Duration::ZERO, [(7, 1_000, 0)]);
    clock.apply(Duration::ZERO, LeaseChange::Granted { id: 8, ttl: 300 });
    clock.apply(Duration::ZERO, LeaseChange::Granted { id: 9, ttl: 301 });
    assert_eq!(clock.take_checkpoints(secs(299), 9), []);
    assert_eq!(clock.take_checkpoints(millis(300_500), 9), [(7, 701), (9, 1)]);
    assert_eq!(clock.renew(secs(301), 7), Renewal::Checkpointed, "on its way into the log already");
    clock.apply(secs(301), LeaseChange::Checkpointed { id: 7, remaining_ttl: 701 });
    assert_eq!(clock.renew(secs(302), 7), Renewal::Checkpointed);
    assert_eq!(clock.take_checkpoints(millis(601_000), 9), [(7, 400)]);
    clock.apply(secs(602), LeaseChange::Checkpointed { id: 7, remaining_ttl: 0 });
    assert_eq!(clock.renew(secs(602), 7), Renewal::Checkpointed, "that was logged before it");
    clock.apply(secs(602), LeaseChange::Checkpointed { id: 7, remaining_ttl: 400 });
    assert_eq!(clock.renew(secs(602), 7), Renewal::Checkpointed);
    clock.apply(secs(602), LeaseChange::Checkpointed { id: 7, remaining_ttl: 0 });
    assert_eq!(clock.renew(secs(602), 7), Renewal::Renewed { ttl: 1_000 });
}

#[test]
fn a_checkpoint_that_is_never_applied_is_taken_back_like_one_that_is() {
    let options = ClockOptions { checkpoint_every: Some(secs(300)), ..OPTIONS };
    let mut clock = LeaseClock::start(1, options, Duration::ZERO, [(7, 1_000, 0)]);
    assert_eq!(clock.take_checkpoints(millis(300_500), 9), [(7, 701)]);
    clock.apply(secs(301), LeaseChange::Checkpointed { id: 7, remaining_ttl: 0 });
    assert_eq!(clock.renew_taken_back(secs(302), 7), Renewal::Renewed { ttl: 1_000 });
    assert_eq!(clock.renew(secs(303), 7), Renewal::Renewed { ttl: 1_000 });
    assert_eq!(clock.renew_taken_back(secs(303), 8), Renewal::NotFound);
}
