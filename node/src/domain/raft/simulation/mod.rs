//! Whole clusters in one process, without threads, clock or network: seeded
//! simulations with drops, delays, reordering, partitions, crashes around every durable write and restarts, which check
//! that no acknowledged write is lost, that logs and states agree, and that a term has one leader.
//!
//! `BALSA_SEEDS=n` runs more seeds, `BALSA_SEED=x` one of them again, exactly. Members run the real replica and the real
//! state machine on the stores in memory; the glue around them is [`member`]'s copy of what `engine/` does.

mod checker;
mod crashes;
mod member;
mod network;
mod regressions;
mod schedule;
mod world;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::checker::Violation;
use self::member::CRASH_POINTS;
use self::network::Mutation;
use self::schedule::run;

/// Seeds of a plain `cargo test`, a few seconds.
const SEEDS: u64 = 400;
/// Seeds within which a fault that was built in must be found.
const SEEDS_TO_FIND: u64 = 2_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

/// Runs seeds on all cores; panics with the first that fails. Returns the crash points at which processes ended.
fn run_seeds(first: u64, count: u64) -> BTreeSet<&'static str> {
    let next = AtomicU64::new(first);
    let failed: Mutex<Option<String>> = Mutex::new(None);
    let (acknowledged, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let ended_at = Mutex::new(BTreeSet::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || failed.lock().is_ok_and(|failed| failed.is_some()) {
                return;
            }
            let Ok(run) = std::panic::catch_unwind(|| run(seed, Mutation::None)) else {
                *failed.lock().unwrap() = Some(format!("seed {seed} panicked (BALSA_SEED={seed} repeats it)"));
                return;
            };
            acknowledged.fetch_add(run.acknowledged as u64, Ordering::Relaxed);
            reads.fetch_add(run.reads as u64, Ordering::Relaxed);
            ended_at.lock().unwrap().extend(run.ended_at);
            if let Some((violation, recent)) = run.violation {
                let text = format!("seed {seed} (BALSA_SEED={seed} repeats it): {violation:?}\n{recent}");
                *failed.lock().unwrap() = Some(text);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    if let Some(text) = failed.into_inner().unwrap() {
        panic!("{text}");
    }
    let (acknowledged, reads) = (acknowledged.into_inner(), reads.into_inner());
    println!("{count} seeds from {first}: {acknowledged} writes acknowledged, {reads} reads answered");
    assert!(acknowledged > 0 && reads > 0, "nothing happened");
    ended_at.into_inner().unwrap()
}

#[test]
fn simulation_of_a_hostile_world_keeps_every_acknowledged_write() {
    if let Some(seed) = number("BALSA_SEED") {
        run_seeds(seed, 1);
        return;
    }
    let count = number("BALSA_SEEDS").unwrap_or(SEEDS);
    let by_seeds = run_seeds(1, count);
    println!("processes ended at {by_seeds:?}");
    // A checkpoint and a switch to one are too rare to be met by every set of seeds.
    let rare = BTreeSet::from(["checkpoint-made", "switch-before", "switch-after"]);
    let missed = missed_by(&by_seeds | &rare);
    assert!(count < SEEDS || missed.is_empty(), "no process of a seed ended at {missed:?}");
    let missed = missed_by(&by_seeds | &crashes::around_every_write());
    assert!(missed.is_empty(), "no process of a seed or a story ended at {missed:?}");
}

/// The crash points that are not among these.
fn missed_by(ended_at: BTreeSet<&'static str>) -> Vec<&'static str> {
    CRASH_POINTS.into_iter().filter(|point| !ended_at.contains(point)).collect()
}

#[test]
fn simulation_of_a_crash_around_each_durable_write() {
    let missed = missed_by(crashes::around_every_write());
    assert!(missed.is_empty(), "no process ended at {missed:?}");
}

#[test]
fn simulation_of_one_seed_is_the_same_every_time() {
    for seed in 1..=20 {
        assert_eq!(run(seed, Mutation::None).trace, run(seed, Mutation::None).trace, "seed {seed}");
    }
}

/// Runs seeds with a fault built in until a violation of the wanted kind is found. A panic of Raft or another violation
/// notices the fault as well, but is not what the test is about.
fn finds(mutation: Mutation, wanted: fn(&Violation) -> bool) {
    let found = (1..=SEEDS_TO_FIND).find(|seed| {
        let run = std::panic::catch_unwind(|| run(*seed, mutation));
        run.is_ok_and(|run| run.violation.is_some_and(|(violation, _)| wanted(&violation)))
    });
    println!("{mutation:?} is found by seed {found:?}");
    assert!(found.is_some(), "{mutation:?} was not found in {SEEDS_TO_FIND} seeds");
}

#[test]
fn simulation_finds_a_log_that_is_not_synced() {
    finds(Mutation::NoSync, |violation| matches!(violation, Violation::LostWrite(_) | Violation::LogsDiffer(_)));
}

#[test]
fn simulation_finds_messages_that_leave_before_the_write() {
    let kind = |violation: &Violation| {
        matches!(violation, Violation::LostWrite(_) | Violation::LogsDiffer(_) | Violation::TwoVotes(_))
    };
    finds(Mutation::SendBeforeWrite, kind);
}

#[test]
fn simulation_finds_a_write_that_was_acknowledged_before_it_was_committed() {
    finds(Mutation::AcknowledgeProposal, |violation| matches!(violation, Violation::LostWrite(_)));
}

#[test]
fn simulation_finds_reads_that_nobody_confirmed() {
    finds(Mutation::LocalReads, |violation| matches!(violation, Violation::StaleRead(_)));
}

#[test]
fn simulation_finds_commands_sent_again_on_a_stale_refusal() {
    finds(Mutation::AnyRefusal, |violation| matches!(violation, Violation::AppliedTwice(_)));
}

#[test]
fn simulation_finds_commands_sent_again_that_a_snapshot_holds() {
    finds(Mutation::ForgetSnapshots, |violation| matches!(violation, Violation::AppliedTwice(_)));
}

#[test]
fn simulation_finds_a_member_that_passes_over_entries() {
    finds(Mutation::SkipEntries, |violation| matches!(violation, Violation::StatesDiffer(_)));
}

#[test]
fn simulation_finds_two_leaders_in_a_term() {
    finds(Mutation::CountRefusedVotes, |violation| matches!(violation, Violation::TwoLeaders(_)));
}

#[test]
fn simulation_finds_a_cluster_that_does_not_go_on() {
    finds(Mutation::NeverReport, |violation| matches!(violation, Violation::Stuck(_)));
}
