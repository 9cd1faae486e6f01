//! The seeded scheduler: decides what happens next, from one number. Hostile for a while, then it heals everything and
//! demands that the cluster goes on.

use std::collections::BTreeSet;

use super::checker::Violation;
use super::member::ELECTION_TICKS;
use super::network::Mutation;
use super::world::World;
use crate::domain::random::Random;

/// Events of the hostile part.
const EVENTS: usize = 1_200;
/// Rounds (a tick of everybody, and all messages) within which a healed cluster must have agreed: several elections.
const ROUNDS: usize = 30 * ELECTION_TICKS;
/// Flights above which nothing is done but to deliver.
const MANY_FLIGHTS: usize = 40;
/// Members that a world has at most.
const MAX_MEMBERS: usize = 6;

impl Random {
    /// True in `of` out of a thousand.
    fn permille(&mut self, of: usize) -> bool {
        self.below(1_000) < of
    }

    fn pick(&mut self, from: &[u64]) -> Option<u64> {
        (!from.is_empty()).then(|| from[self.below(from.len())])
    }
}

/// How hostile a world is.
struct Hostility {
    drop: usize,
    duplicate: usize,
    in_order: usize,
    crash: usize,
    fuse: usize,
    partition: usize,
    change: usize,
    keep: usize,
}

impl Hostility {
    fn drawn(random: &mut Random) -> Self {
        let mut one_of = |choices: [usize; 4]| choices[random.below(4)];
        Self {
            drop: one_of([0, 10, 50, 200]),
            duplicate: one_of([0, 0, 20, 100]),
            in_order: one_of([1_000, 950, 700, 0]),
            crash: one_of([0, 5, 15, 40]),
            fuse: one_of([0, 2, 10, 30]),
            partition: one_of([0, 0, 10, 25]),
            change: one_of([0, 5, 20, 60]),
            keep: one_of([0, 2, 10, 200]),
        }
    }
}

/// What a seed came to.
pub(super) struct Run {
    /// A number of all events.
    pub(super) trace: u64,
    /// Writes that were acknowledged.
    pub(super) acknowledged: usize,
    /// Reads that were answered.
    pub(super) reads: usize,
    /// Crash points at which a process was cut off.
    pub(super) ended_at: BTreeSet<&'static str>,
    /// What was wrong, with the last events.
    pub(super) violation: Option<(Violation, String)>,
}

/// Runs one seed to its end or to the first violation.
pub(super) fn run(seed: u64, mutation: Mutation) -> Run {
    let mut random = Random::new(seed);
    let voters = [1, 3, 3, 3, 4, 5][random.below(6)];
    let mut world = match World::found(seed, voters, mutation) {
        Ok(world) => world,
        Err(violation) => {
            let violation = Some((violation, String::new()));
            return Run { trace: 0, acknowledged: 0, reads: 0, ended_at: BTreeSet::new(), violation };
        }
    };
    let hostility = Hostility::drawn(&mut random);
    let hostile = (0..EVENTS).try_for_each(|_| event(&mut world, &mut random, &hostility));
    let result = hostile.and_then(|()| heal(&mut world));
    Run {
        trace: world.trace(),
        acknowledged: world.checker.acknowledged.len(),
        reads: world.checker.reads,
        ended_at: world.ended_at.clone(),
        violation: result.err().map(|violation| (violation, world.recent())),
    }
}

fn event(world: &mut World, random: &mut Random, hostility: &Hostility) -> Result<(), Violation> {
    let fuse = random.permille(hostility.fuse).then(|| random.below(5) as u32);
    world.compare_states = random.permille(100);
    if world.flights.len() > MANY_FLIGHTS || (!world.flights.is_empty() && random.permille(600)) {
        return flight(world, random, hostility, fuse);
    }
    let up = world.up();
    let Some(id) = random.pick(&up) else { return start_one(world, random) };
    match random.below(1_000) {
        0..=349 => world.tick(id, fuse),
        350..=549 => applier(world, random, id, fuse),
        550..=699 => world.put(id, fuse),
        700..=779 => world.read(id),
        780..=809 => world.flush(id, hostility.keep as u64, fuse),
        810..=829 if world.process(id).is_some_and(|process| process.may_checkpoint()) => {
            world.make_checkpoint(id, fuse)
        }
        830..=834 => world.drop_checkpoint(id),
        835..=844 => transfer(world, random),
        _ => rare(world, random, hostility, id),
    }
}

fn rare(world: &mut World, random: &mut Random, hostility: &Hostility, id: u64) -> Result<(), Violation> {
    match random.below(6) {
        0 if random.permille(hostility.crash * 6) => world.crash(id, random.below(4)),
        1 | 2 => start_one(world, random),
        3 if random.permille(hostility.partition * 6) => {
            partition(world, random);
            Ok(())
        }
        4 if random.permille(300) => {
            world.cut.clear();
            Ok(())
        }
        5 if random.permille(hostility.change * 6) => change(world, random),
        _ => world.start_joiners(),
    }
}

fn flight(world: &mut World, random: &mut Random, hostility: &Hostility, fuse: Option<u32>) -> Result<(), Violation> {
    let at = match random.permille(hostility.in_order) {
        true => 0,
        false => random.below(world.flights.len()),
    };
    if random.permille(hostility.drop) {
        return world.drop_at(at);
    }
    if random.permille(hostility.duplicate) {
        world.duplicate(at);
    }
    world.deliver(at, fuse)
}

fn applier(world: &mut World, random: &mut Random, id: u64, fuse: Option<u32>) -> Result<(), Violation> {
    let Some(process) = world.process(id) else { return Ok(()) };
    match process.has_reports() && (random.permille(500) || !process.has_work()) {
        true => world.report(id, fuse),
        false => world.apply(id, random.permille(500), fuse),
    }
}

fn start_one(world: &mut World, random: &mut Random) -> Result<(), Violation> {
    match random.pick(&world.down()) {
        Some(id) => world.restart(id),
        None => Ok(()),
    }
}

fn transfer(world: &mut World, random: &mut Random) -> Result<(), Violation> {
    match (world.leader(), random.pick(&world.alive())) {
        (Some(leader), Some(target)) => world.transfer(leader, target),
        _ => Ok(()),
    }
}

/// Cuts some members off from the rest, or one way between two.
fn partition(world: &mut World, random: &mut Random) {
    let alive = world.alive();
    world.cut.clear();
    if random.permille(300)
        && let (Some(from), Some(to)) = (random.pick(&alive), random.pick(&alive))
    {
        world.cut.insert((from, to));
        return;
    }
    let (left, right): (Vec<u64>, Vec<u64>) = alive.iter().partition(|_| random.permille(500));
    for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
        world.cut.extend([(a, b), (b, a)]);
    }
}

fn change(world: &mut World, random: &mut Random) -> Result<(), Violation> {
    let Some(leader) = world.leader() else { return Ok(()) };
    let alive = world.alive();
    let Some(target) = random.pick(&alive) else { return Ok(()) };
    // A refused change is as good as any.
    let _ = match random.below(3) {
        0 if alive.len() < MAX_MEMBERS => world.add(leader)?,
        1 => world.promote(leader, target)?,
        2 if alive.len() > 2 => world.remove(leader, target)?,
        _ => Ok(()),
    };
    Ok(())
}

/// Everything works from now on: the members must elect, agree, answer and hold what was acknowledged.
pub(super) fn heal(world: &mut World) -> Result<(), Violation> {
    world.cut.clear();
    for id in world.down() {
        world.restart(id)?;
    }
    let mut asked = false;
    for _ in 0..ROUNDS {
        round(world)?;
        if !asked && let Some(leader) = world.leader() {
            asked = true;
            world.put(leader, None)?;
            world.read(leader)?;
        }
        if asked && agreed(world) {
            return finish(world);
        }
    }
    let state = |id: &u64| {
        world.process(*id).map(|process| {
            let role = process.replica.role();
            let (applied, commit) = (process.machine.applied().index, process.replica.commit());
            format!("{id}: {role:?} applied {applied} commit {commit} waiting {}", process.waiting())
        })
    };
    let states: Vec<String> = world.up().iter().filter_map(state).collect();
    Err(Violation::Stuck(states.join("; ")))
}

fn round(world: &mut World) -> Result<(), Violation> {
    world.start_joiners()?;
    for id in world.up() {
        world.tick(id, None)?;
    }
    for _ in 0..10_000 {
        if world.flights.is_empty() {
            break;
        }
        world.deliver(0, None)?;
    }
    for id in world.up() {
        world.settle(id)?;
        if world.process(id).is_some_and(|process| process.may_checkpoint()) {
            world.make_checkpoint(id, None)?;
        }
    }
    world.stop_removed();
    Ok(())
}

fn agreed(world: &World) -> bool {
    let Some(leader) = world.leader().and_then(|id| world.process(id)) else { return false };
    let (term, last) = (leader.replica.role().term, leader.replica.last_index());
    let same = |id: &u64| {
        world.process(*id).is_some_and(|process| {
            let role = process.replica.role();
            role.term == term
                && role.leader == leader.id
                && process.machine.applied().index == last
                && process.reading() == 0
        })
    };
    leader.waiting() == 0 && world.up().iter().all(same)
}

fn finish(world: &mut World) -> Result<(), Violation> {
    world.compare_states = true;
    for id in world.up() {
        world.tick(id, None)?;
        if let Some(process) = world.process(id) {
            world.checker.holds_all(process)?;
        }
    }
    Ok(())
}
