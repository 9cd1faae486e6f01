//! What the simulation found, as the shortest story that shows it.

use super::checker::Violation;
use super::network::{Body, Mutation};
use super::world::World;

/// The fifth bug, of seed 842: sequences began at 1 in every process. The leader refuses a command because it hands
/// leadership over; the origin dies and comes back; the hand-over fails, and the origin's next command enters the log in the
/// same term; then the old refusal arrives. It must not name the new command, which would be sent a second time.
#[test]
fn a_refusal_that_outlives_a_restart_names_no_proposal_of_the_new_process() -> Result<(), Violation> {
    let mut world = World::found(1, 3, Mutation::None)?;
    world.ticks(1, 30)?;
    let (leader, origin, other) = (1, 2, 3);
    assert_eq!(world.leader(), Some(leader));

    world.put(origin, None)?;
    world.cut.extend([(leader, other), (other, leader), (origin, other), (other, origin)]);
    world.transfer(leader, other)?;
    world.deliver_where(|body| matches!(body, Body::Forward { .. }))?;
    let refusal = |body: &Body| matches!(body, Body::Refusal { .. });
    assert!(world.flights.iter().any(|flight| refusal(&flight.body)), "refused while leadership moves");
    world.crash(origin, 0)?;
    world.restart(origin)?;
    // The hand-over is given up after an election time-out.
    world.ticks(leader, 12)?;
    let term = world.process(leader).unwrap().replica.role().term;

    world.put(origin, None)?;
    world.deliver_where(|body| matches!(body, Body::Forward { .. }))?;
    world.deliver_where(refusal)?;
    world.deliver_where(|body| !refusal(body))?;
    for _ in 0..4 {
        world.settle(origin)?;
        world.settle(leader)?;
        world.deliver_where(|_| true)?;
        world.ticks(leader, 1)?;
    }
    assert_eq!(world.process(leader).unwrap().replica.role().term, term, "all of it in one term");
    assert_eq!(world.checker.acknowledged.len(), 1, "the command of the new process, once");
    Ok(())
}
