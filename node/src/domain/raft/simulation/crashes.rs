//! A process ends around each durable write of the ways of a put and of a snapshot, one after the other. The seeds draw
//! where processes end, and a snapshot is rare among what they do: here every point is met, whatever they draw.

use std::collections::BTreeSet;

use raft::eraftpb::MessageType;

use super::checker::Violation;
use super::network::{Body, Mutation, Outgoing};
use super::schedule::heal;
use super::world::World;
use crate::storage::LogStore;

const LEADER: u64 = 1;
const FOLLOWER: u64 = 2;
/// The member that lacks what the others have trimmed.
const BEHIND: u64 = 3;
/// Rounds within which what must happen has happened.
const ROUNDS: usize = 20;

/// One step of one process, which is cut off after so many crash points.
type Step = fn(&mut World, u32) -> Result<(), Violation>;

const STEPS: [(&str, Step); 6] = [
    ("a put at the leader", |world, fuse| world.put(LEADER, Some(fuse))),
    ("its entry at a follower", append),
    ("applying it", apply),
    ("a flush", flush),
    ("a checkpoint", |world, fuse| world.make_checkpoint(LEADER, Some(fuse))),
    ("a snapshot at its receiver", install),
];

/// Has each step cut off at each of its crash points, in a world of its own that must go on afterwards. Returns the points.
pub(super) fn around_every_write() -> BTreeSet<&'static str> {
    let of_step = |(name, step)| {
        let points: Vec<&'static str> = (0..).map_while(|fuse| cut_off(name, step, fuse)).collect();
        assert!(!points.is_empty(), "{name} has no crash point");
        points
    };
    STEPS.into_iter().flat_map(of_step).collect()
}

/// Where a fuse has ended the step; `None` when it was longer than the step.
fn cut_off(name: &str, step: Step, fuse: u32) -> Option<&'static str> {
    let mut world = World::found(1, 3, Mutation::None).unwrap();
    let story = fall_behind(&mut world).and_then(|()| step(&mut world, fuse)).and_then(|()| heal(&mut world));
    story.unwrap_or_else(|violation| panic!("{name}, cut off after {fuse}: {violation:?}\n{}", world.recent()));
    assert!(log_begins_after(&world, BEHIND) > 1, "{name}, cut off after {fuse}: nothing but a snapshot could help");
    assert!(world.ended_at.len() <= 1, "{name}, cut off after {fuse}: processes ended at {:?}", world.ended_at);
    world.ended_at.first().copied()
}

/// Two members go on without the third, trim all that it lacks, and the leader learns that only a checkpoint helps.
fn fall_behind(world: &mut World) -> Result<(), Violation> {
    world.ticks(LEADER, 30)?;
    assert_eq!(world.leader(), Some(LEADER));
    world.cut.extend([(LEADER, BEHIND), (BEHIND, LEADER), (FOLLOWER, BEHIND), (BEHIND, FOLLOWER)]);
    for _ in 0..5 {
        put(world)?;
    }
    for id in [LEADER, FOLLOWER] {
        world.flush(id, 0, None)?;
        assert_eq!(log_begins_after(world, id), applied(world, id), "all is trimmed at {id}");
    }
    // A trim is durable with the next write that is synced.
    put(world)?;
    world.cut.clear();
    until(world, "a checkpoint is wanted", |world| {
        world.process(LEADER).is_some_and(|process| process.may_checkpoint())
    })
}

/// A put that is acknowledged, and applied at the follower too.
fn put(world: &mut World) -> Result<(), Violation> {
    let before = world.checker.acknowledged.len();
    world.put(LEADER, None)?;
    until(world, "a put is acknowledged", |world| world.checker.acknowledged.len() > before)?;
    until(world, "the follower has applied it", |world| applied(world, FOLLOWER) == applied(world, LEADER))
}

fn append(world: &mut World, fuse: u32) -> Result<(), Violation> {
    world.deliver_where(|body| matches!(body, Body::Raft(_)))?;
    world.put(LEADER, None)?;
    let is_append = |flight: &Outgoing| {
        let kind =
            |body: &Body| matches!(body, Body::Raft(message) if message.get_msg_type() == MessageType::MsgAppend);
        flight.to == FOLLOWER && kind(&flight.body)
    };
    let at = world.flights.iter().position(is_append).expect("the entry is sent");
    world.deliver(at, Some(fuse))
}

fn apply(world: &mut World, fuse: u32) -> Result<(), Violation> {
    world.put(LEADER, None)?;
    world.ticks(LEADER, 1)?;
    assert!(world.process(LEADER).unwrap().has_work(), "the put is committed");
    world.apply(LEADER, true, Some(fuse))
}

fn flush(world: &mut World, fuse: u32) -> Result<(), Violation> {
    put(world)?;
    world.flush(LEADER, 0, Some(fuse))
}

/// The receiver comes back as it was, or at the snapshot's point, and nowhere between: the switch is one durable write.
fn install(world: &mut World, fuse: u32) -> Result<(), Violation> {
    let snapshot = |flight: &Outgoing| matches!(flight.body, Body::Snapshot { .. });
    world.make_checkpoint(LEADER, None)?;
    until(world, "a snapshot is sent", |world| world.flights.iter().any(snapshot))?;
    let at = world.flights.iter().position(snapshot).unwrap();
    let Body::Snapshot { point, .. } = world.flights[at].body.clone() else { unreachable!() };
    world.deliver(at, Some(fuse))?;
    let Some(ended_at) = world.ended_at.first().copied() else { return Ok(()) };
    world.restart(BEHIND)?;
    let found = [log_begins_after(world, BEHIND), applied(world, BEHIND)];
    match ended_at {
        "snapshot-received" | "switch-before" => assert_eq!(found, [1, 1], "{ended_at}: as it was"),
        _ => assert_eq!(found, [point.index; 2], "{ended_at}: the snapshot's"),
    }
    Ok(())
}

/// Goes on, with snapshots left on their way, until something is so.
fn until(world: &mut World, what: &str, is_so: impl Fn(&World) -> bool) -> Result<(), Violation> {
    for _ in 0..ROUNDS {
        if is_so(world) {
            return Ok(());
        }
        world.ticks(LEADER, 1)?;
        world.up().into_iter().try_for_each(|id| world.settle(id))?;
    }
    Err(Violation::Stuck(what.to_owned()))
}

fn applied(world: &World, id: u64) -> u64 {
    world.process(id).unwrap().machine.applied().index
}

fn log_begins_after(world: &World, id: u64) -> u64 {
    world.process(id).unwrap().disk.log.initial().unwrap().snapshot.index
}
