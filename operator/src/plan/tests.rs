//! What the planner promises whatever it is shown, and the requirements that are its own, by their names.

use std::cell::Cell;
use std::collections::BTreeSet;

use super::plan;
use super::simulation::{Crash, Dice, Pass, World};
use crate::observed::{
    ContainerState, Dissent, ExitKind, Host, HostState, Marker, MemberList, NodeExit, NodeReport, Observed,
};
use crate::step::{Plan, RestartMode, Step, StepName};

const SETTLE_PASSES_MAX: usize = 400;
/// Strange observations that each promise is held against.
const STRANGE_SEEDS: u64 = 1500;

fn settled(want: u32) -> World {
    let mut world = World::new(want);
    settle(&mut world);
    world
}

/// The steps that took effect until nothing was left to do.
fn settle(world: &mut World) -> Vec<Plan> {
    world.settle(SETTLE_PASSES_MAX).unwrap_or_else(|wrong| panic!("{wrong}"))
}

fn names(plans: &[Plan]) -> Vec<StepName> {
    plans.iter().map(|plan| plan.step.name()).collect()
}

fn ordinals(plans: &[Plan], name: StepName) -> Vec<u32> {
    plans.iter().filter(|plan| plan.step.name() == name).filter_map(|plan| plan.target.ordinal).collect()
}

/// A world somewhere on a way, and what one pass reads of it, with parts made strange.
fn strange(seed: u64) -> (World, Observed) {
    let mut dice = Dice(seed);
    let mut world = World::new(small(&mut dice, 5) + 1);
    for _ in 0..dice.roll(80) {
        if dice.roll(6) == 0 {
            world.cluster.want = small(&mut dice, 7) + 1;
        }
        world.pass(Crash::None);
        world.tick();
    }
    world.cluster.want = small(&mut dice, 7) + 1;
    world.cluster.replace_member = Some(dice.roll(8));
    let mut observed = world.observe();
    for _ in 0..dice.roll(6) {
        let k = small(&mut dice, 7);
        make_strange(&mut observed, &mut dice, k);
    }
    (world, observed)
}

fn small(dice: &mut Dice, sides: u64) -> u32 {
    u32::try_from(dice.roll(sides)).unwrap_or(0)
}

fn make_strange(observed: &mut Observed, dice: &mut Dice, k: u32) {
    let now = observed.now;
    let id = u64::from(k) + 1;
    let (kind, coin) = (dice.roll(19), dice.roll(2) == 0);
    if let Some(list) = &mut observed.members {
        strange_list(list, kind, id);
    }
    if let Some(pod) = observed.pods.get_mut(&k) {
        match kind {
            5 => pod.revision = Some("old".into()),
            6 => pod.terminating = Some(now - 100),
            7 => {
                pod.host =
                    Some(Host { name: "h".into(), state: if coin { HostState::Gone } else { HostState::Present } })
            }
            8 => pod.unschedulable = Some(now - 100),
            9 => {
                pod.container = ContainerState::Terminated(70);
                let kind = if coin { ExitKind::DiskLost } else { ExitKind::Corrupt };
                pod.exit = Some(NodeExit { kind, marker: None });
                observed.nodes.remove(&k);
            }
            10 => pod.ready = false,
            _ => {}
        }
    }
    if let Some(volume) = observed.volumes.get_mut(&k) {
        match kind {
            11 => volume.terminating = true,
            12 => volume.marker = None,
            13 => {
                let cluster_id = observed.resource.cluster_id.unwrap_or(1);
                volume.marker = Some(Marker { cluster_id, raft_id: dice.roll(9) + 1, incarnation: 3 });
            }
            14 => volume.pinned = Some(Host { name: "h".into(), state: HostState::Gone }),
            _ => {}
        }
    }
    match kind {
        15 => observed.nodes.insert(k, NodeReport::Unreachable).map_or((), drop),
        16 => observed.members = None,
        17 => observed.pods.remove(&k).map_or((), drop),
        18 => observed.resource.cluster_id = None,
        _ => {}
    }
}

fn strange_list(list: &mut MemberList, kind: u64, id: u64) {
    match kind {
        0 => list.change_in_flight = true,
        1 => list.cluster_id = 0xbad,
        2 => list.leader = id,
        3 if list.members.remove(&id).is_some() => {
            list.removed.insert(id);
        }
        4 => {
            if let Some(progress) = list.members.get_mut(&id).and_then(|member| member.progress.as_mut()) {
                progress.active = false;
            }
        }
        _ => {}
    }
}

fn each_strange(check: impl Fn(&World, &Observed, &Plan)) {
    for seed in 0..STRANGE_SEEDS {
        let (world, observed) = strange(seed);
        check(&world, &observed, &plan(&world.cluster, &observed));
    }
}

#[test]
fn the_same_input_gives_the_same_plan() {
    each_strange(|world, observed, first| assert_eq!(first, &plan(&world.cluster, observed)));
}

/// M2, G5: without the latched cluster's own list neither membership nor a disk is touched.
#[test]
fn m2_nothing_is_destroyed_without_the_list() {
    each_strange(|_, observed, plan| {
        let list = observed.members.as_ref().filter(|list| Some(list.cluster_id) == observed.resource.cluster_id);
        assert!(list.is_some() || !touches_the_cluster(plan), "{plan:?}");
    });
}

/// M2, G8: nor while members tell of different memberships and no majority stands behind one.
#[test]
fn m2_nothing_is_destroyed_while_members_disagree() {
    for seed in 0..STRANGE_SEEDS {
        let (world, mut observed) = strange(seed);
        observed.dissent = Some(Dissent { pods: BTreeSet::from([0]), outvoted: false });
        let plan = plan(&world.cluster, &observed);
        let waits = plan.step.name() == StepName::Wait;
        assert!(waits, "{seed}: {plan:?}");
    }
}

/// M2: nor with an empty list, which no cluster has.
#[test]
fn m2_nothing_is_destroyed_by_an_empty_list() {
    for seed in 0..STRANGE_SEEDS {
        let (world, mut observed) = strange(seed);
        observed.members.iter_mut().for_each(|list| list.members.clear());
        let plan = plan(&world.cluster, &observed);
        assert!(!touches_the_cluster(&plan), "{seed}: {plan:?}");
    }
}

fn touches_the_cluster(plan: &Plan) -> bool {
    matches!(
        plan.step.name(),
        StepName::RemoveMember
            | StepName::DropVolume
            | StepName::ScaleIn
            | StepName::AddLearner
            | StepName::Promote
            | StepName::MoveLeader
    )
}

/// M2, P5: a volume goes only when this pass's list has its id among the removed.
#[test]
fn m2_a_dropped_volume_belongs_to_a_removed_member() {
    let mut dropped = 0;
    for seed in 0..STRANGE_SEEDS {
        let (world, observed) = strange(seed);
        let Step::DropVolume { volume, raft_id } = plan(&world.cluster, &observed).step else { continue };
        dropped += 1;
        let list = observed.members.as_ref().unwrap();
        let id = raft_id.unwrap();
        assert!(list.removed.contains(&id) && !list.members.contains_key(&id), "{seed}");
        assert_eq!(observed.volumes[&volume.ordinal].uid, volume.uid, "{seed}");
    }
    assert!(dropped > 5, "only {dropped} cases");
}

/// G6: one change at a time, and only on what is settled.
#[test]
fn one_change_in_flight_and_no_unknown_leader() {
    each_strange(|_, observed, plan| {
        let Some(list) = &observed.members else { return };
        let changes = matches!(plan.step.name(), StepName::RemoveMember | StepName::AddLearner | StepName::Promote);
        assert!(!changes || (!list.change_in_flight && list.leader != 0), "{plan:?}");
    });
}

/// M9: the leader of three or more is neither removed nor restarted, except by I4, or when its process is down.
#[test]
fn m9_the_leader_is_left_alone() {
    let (removals, restarts) = (Cell::new(0), Cell::new(0));
    each_strange(|_, observed, plan| {
        let Some(list) = &observed.members else { return };
        match &plan.step {
            Step::RemoveMember { raft_id, .. } => {
                removals.set(removals.get() + 1);
                assert_ne!(*raft_id, list.leader, "{plan:?}");
            }
            Step::RestartPod { pod, mode: RestartMode::Delete | RestartMode::Evict, .. } if plan.row != "I4" => {
                restarts.set(restarts.get() + 1);
                let node = observed.node(pod.ordinal).and_then(|node| node.marker);
                let leads = node.is_some_and(|marker| marker.raft_id == list.leader);
                let voters = list.members.values().filter(|member| !member.learner).count();
                assert!(!leads || voters < 3, "{plan:?}");
            }
            _ => {}
        }
    });
    assert!(removals.get() > 5 && restarts.get() > 5, "{removals:?} removals, {restarts:?} restarts");
}

/// M8: replicas are lowered only past an ordinal that no member has.
#[test]
fn m8_replicas_are_lowered_only_without_a_member() {
    let lowered = Cell::new(0);
    each_strange(|world, observed, plan| {
        let Step::ScaleIn { replicas, .. } = plan.step else { return };
        lowered.set(lowered.get() + 1);
        let url = crate::names::peer_url(&world.cluster, replicas);
        let list = observed.members.as_ref().unwrap();
        assert!(list.members.values().all(|member| !member.peer_urls.contains(&url)), "{plan:?}");
    });
    assert!(lowered.get() > 5, "only {lowered:?} cases");
}

/// M8: a member that is dead is removed before its successor is added, and one that is only unhealthy can be removed.
#[test]
fn m8_the_dead_go_before_their_successors_come() {
    let mut world = settled(3);
    world.wipe_disk(2);
    let done = names(&settle(&mut world));
    let at = |name| done.iter().position(|step| *step == name).unwrap_or_else(|| panic!("no {name:?}: {done:?}"));
    assert!(at(StepName::RemoveMember) < at(StepName::AddLearner), "{done:?}");
    // It is behind for good and serves nobody.
    let mut world = settled(4);
    world.raft.stalled = true;
    world.volumes.get_mut(&3).expect("volume 3").behind = 1000;
    world.cluster.want = 3;
    assert_eq!(ordinals(&settle(&mut world), StepName::RemoveMember), [3]);
}

#[test]
fn m8_a_missing_pod_lowers_nothing() {
    let mut world = settled(3);
    world.break_host(2, HostState::Present);
    for _ in 0..200 {
        let Pass { plan, .. } = world.pass(Crash::None);
        assert_eq!(plan.step, Step::Wait);
        world.tick();
    }
}

#[test]
fn m3_ids_are_never_used_again() {
    let mut world = settled(3);
    let before: BTreeSet<u64> = world.raft.members.keys().copied().collect();
    world.cluster.want = 1;
    settle(&mut world);
    world.cluster.want = 3;
    settle(&mut world);
    let new: Vec<u64> = world.raft.members.keys().copied().filter(|id| *id != 1).collect();
    assert!(new.len() == 2 && new.iter().all(|id| !before.contains(id)), "{new:?}");
}

#[test]
fn m4_a_lost_disk_is_replaced_under_a_new_id() {
    let mut world = settled(3);
    world.wipe_disk(1);
    settle(&mut world);
    assert_eq!(world.raft.members.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
}

/// Every subset of the pods: same ids, same volumes, no step at all.
#[test]
fn m5_killed_pods_come_back_as_they_were() {
    let world = settled(3);
    for subset in 1..8u32 {
        let mut world = world.clone();
        let uids = |world: &World| world.volumes.values().map(|v| v.object.uid.clone()).collect::<Vec<_>>();
        let before = (uids(&world), world.raft.members.clone());
        (0..3).filter(|k| subset & (1 << k) != 0).for_each(|k| world.kill_pod(k));
        assert_eq!(names(&settle(&mut world)), [], "subset {subset:b}");
        assert_eq!((uids(&world), world.raft.members.clone()), before);
    }
}

#[test]
fn m7_the_highest_of_twelve_is_eleven() {
    let mut world = settled(12);
    world.cluster.want = 9;
    assert_eq!(ordinals(&settle(&mut world), StepName::RemoveMember), [11, 10, 9]);
}

/// M7: any call repeated after a lost reply changes nothing.
#[test]
fn m7_replayed_calls_change_nothing() {
    let mut world = World::new(3);
    for want in [3, 1] {
        world.cluster.want = want;
        for _ in 0..60 {
            let Pass { plan, .. } = world.pass(Crash::None);
            let after = (world.raft.members.clone(), world.raft.removed.clone(), world.set.clone());
            let _ = world.execute(&plan.step, false);
            assert_eq!((world.raft.members.clone(), world.raft.removed.clone(), world.set.clone()), after);
            world.tick();
        }
    }
}

/// M11: the pod that never started is not needed for its own removal.
#[test]
fn m11_a_member_that_never_started_is_scaled_away() {
    let mut world = settled(3);
    world.broken.insert("b".into());
    world.template = "b".into();
    world.cluster.want = 4;
    for _ in 0..10 {
        world.pass(Crash::None);
        world.tick();
    }
    assert!(world.listed(3).is_some_and(|(_, member)| !member.started));
    assert!(world.pods.get(&3).is_some_and(|pod| matches!(pod.object.container, ContainerState::Waiting(_))));
    world.cluster.want = 3;
    for _ in 0..10 {
        world.pass(Crash::None);
        world.tick();
    }
    assert!(world.listed(3).is_none() && !world.pods.contains_key(&3));
}

/// M13: with proof that the host is gone, and not without.
#[test]
fn m13_a_gone_host_delays_only_by_the_grace() {
    let mut world = settled(3);
    world.pin_volume(1);
    world.break_host(1, HostState::Present);
    for _ in 0..100 {
        assert_eq!(world.pass(Crash::None).plan.step, Step::Wait);
        world.tick();
    }
    world.hosts.values_mut().for_each(|state| *state = HostState::Gone);
    // The grace period is over, so the first pass that has the proof acts on it; then one for the volume.
    let before = world.now;
    assert_eq!(world.pass(Crash::None).plan.row, "X2");
    world.tick();
    let removal = loop {
        let plan = world.pass(Crash::None).plan;
        world.tick();
        match plan.step.name() {
            StepName::Wait => {}
            _ => break plan,
        }
    };
    assert_eq!((removal.row, removal.step.name()), ("X3", StepName::RemoveMember));
    assert!(world.now - before <= super::UNSCHEDULABLE_GRACE_SECONDS + 20, "{} s", world.now - before);
    settle(&mut world);
    assert_eq!(world.listed(1).map(|(id, _)| id), Some(4));
}

/// M16: followers, the highest first, then the leader; the next only when the last one serves again.
#[test]
fn m16_rolls_the_leader_last() {
    let mut world = settled(5);
    world.move_lead(3);
    let leader = world.ordinal(world.raft.leader).unwrap();
    world.template = "b".into();
    let mut restarts = Vec::new();
    for _ in 0..200 {
        let ready = world.pods.values().filter(|pod| pod.object.ready).count();
        let Pass { plan, outcome } = world.pass(Crash::None);
        if let (Step::RestartPod { pod, .. }, Ok(())) = (&plan.step, outcome) {
            assert_eq!(ready, 5, "two pods away at once");
            restarts.push(pod.ordinal);
        }
        world.tick();
    }
    assert_eq!(restarts, [4, 2, 1, 0, leader]);
}

/// M16, the whole order: what does not run, then learners and voters that do not serve, then followers, then the leader,
/// which hands over first.
#[test]
fn m16_what_serves_nobody_goes_before_what_serves() {
    let mut world = settled(5);
    world.move_lead(3);
    let mut sound = world.observe();
    sound.set.as_mut().expect("a set").update_revision = Some("b".into());
    let id = |k: u32| world.listed(k).expect("a member").0;
    let mut observed = sound.clone();
    // Ordinal 2 does not run, 0 is a learner, 1 does not serve.
    let down = observed.pods.get_mut(&2).expect("pod 2");
    (down.container, down.ready) = (ContainerState::Absent, false);
    observed.nodes.insert(2, NodeReport::Unreachable);
    observed.pods.get_mut(&1).expect("pod 1").ready = false;
    let list = observed.members.as_mut().expect("a list");
    list.members.get_mut(&id(0)).expect("member 0").learner = true;
    for k in [0, 2] {
        let progress = list.members.get_mut(&id(k)).and_then(|member| member.progress.as_mut()).expect("progress");
        (progress.active, progress.caught_up) = (k == 0, false);
    }
    let mut trace = Vec::new();
    for _ in 0..10 {
        match plan(&world.cluster, &observed).step {
            // It comes back sound.
            Step::RestartPod { pod, .. } => {
                trace.push(format!("restart {}", pod.ordinal));
                let mut back = sound.pods[&pod.ordinal].clone();
                back.revision = Some("b".into());
                observed.pods.insert(pod.ordinal, back);
                observed.nodes.insert(pod.ordinal, sound.nodes[&pod.ordinal].clone());
                let member = sound.members.as_ref().expect("a list").members[&id(pod.ordinal)].clone();
                observed.members.as_mut().expect("a list").members.insert(id(pod.ordinal), member);
            }
            Step::MoveLeader { to, .. } => {
                trace.push("move".to_owned());
                observed.members.as_mut().expect("a list").leader = to;
            }
            _ => break,
        }
    }
    assert_eq!(trace, ["restart 2", "restart 0", "restart 1", "restart 4", "move", "restart 3"]);
}

/// M17: the broken image reaches one pod, the good one heals it without a hand.
#[test]
fn m17_a_broken_image_reaches_one_pod() {
    let mut world = settled(3);
    world.broken.insert("bad".into());
    world.template = "bad".into();
    for _ in 0..300 {
        world.pass(Crash::None);
        world.tick();
    }
    let bad = world.pods.values().filter(|pod| pod.object.revision.as_deref() == Some("bad")).count();
    assert_eq!(bad, 1);
    world.template = "good".into();
    settle(&mut world);
    assert!(world.pods.values().all(|pod| pod.object.revision.as_deref() == Some("good")));
}

/// M18: scale before version.
#[test]
fn m18_scales_before_it_rolls() {
    let mut world = settled(3);
    world.template = "b".into();
    world.cluster.want = 5;
    let done = names(&settle(&mut world));
    let last_scale = done.iter().rposition(|name| *name == StepName::Promote).unwrap();
    let first_roll = done.iter().position(|name| *name == StepName::RestartPod).unwrap();
    assert!(last_scale < first_roll, "{done:?}");
}

/// M18: what changes at run time comes before all of it, without a restart.
#[test]
fn m18_settings_come_before_scaling() {
    let mut world = settled(3);
    let before: Vec<String> = world.pods.values().map(|pod| pod.object.uid.clone()).collect();
    world.set_setting("log-level", "debug");
    world.cluster.want = 4;
    let done = settle(&mut world);
    assert_eq!(ordinals(&done[..3], StepName::SetConfig), [0, 1, 2], "{done:?}");
    assert_eq!(ordinals(&done, StepName::SetConfig).len(), 3, "the new one starts with them");
    let after: Vec<String> = world.pods.values().map(|pod| pod.object.uid.clone()).collect();
    assert_eq!(after[..3], before);
    assert!(world.pods.values().all(|pod| pod.settings.are(&world.cluster.hot)));
}

/// M18: what needs a restart beside the image, before anything is scaled either way; the image after it. Both at once are
/// one roll.
#[test]
fn m18_what_needs_a_restart_comes_before_scaling_and_the_version_after() {
    let run = |template: &str, (have, want): (u32, u32)| {
        let mut world = settled(have);
        world.template = template.into();
        world.cluster.want = want;
        let mut done = settle(&mut world);
        // The pod of a removed member has ended, which is no part of the roll.
        done.retain(|plan| plan.target.ordinal.is_none_or(|k| k < want || plan.step.name() != StepName::RestartPod));
        let of = |kinds: &[StepName]| -> Vec<usize> {
            done.iter().enumerate().filter(|(_, plan)| kinds.contains(&plan.step.name())).map(|(at, _)| at).collect()
        };
        (of(&[StepName::RestartPod]), of(&[StepName::AddLearner, StepName::PrepareStop, StepName::RemoveMember]))
    };
    for way in [(1, 3), (3, 2), (3, 5), (4, 3), (5, 2)] {
        let stay = way.0.min(way.1) as usize;
        let (restarts, changes) = run("a/2", way);
        assert_eq!(restarts.len(), stay, "{way:?}: who is to go is not restarted, who comes needs no restart");
        assert!(restarts.last() < changes.first(), "{way:?}: {restarts:?} {changes:?}");
        for both in ["b", "b/2"] {
            let (restarts, changes) = run(both, way);
            assert_eq!(restarts.len(), stay, "{way:?}");
            assert!(changes.last() < restarts.first(), "{way:?}: {restarts:?} {changes:?}");
        }
    }
}

/// A member that refuses is asked once, and keeps nobody from anything.
#[test]
fn refused_settings_hold_nothing_back() {
    let mut world = settled(3);
    world.wrong_settings.insert("0".into());
    world.set_setting("max-txn-ops", "0");
    world.cluster.want = 4;
    let mut asked = 0;
    for _ in 0..60 {
        let Pass { plan, .. } = world.pass(Crash::None);
        asked += u32::from(plan.step.name() == StepName::SetConfig);
        world.tick();
    }
    assert_eq!((asked, world.voters().len()), (3, 4));
    let Pass { plan, .. } = world.pass(Crash::None);
    assert_eq!(plan.blocked_by.map(|blocked| blocked.reason), Some(crate::step::WaitReason::ConfigRefused));
}

/// A wait past its deadline keeps its clock: it does not flap between its two names.
#[test]
fn overdue_waits_stay_overdue() {
    let mut world = settled(3);
    world.broken.insert("bad".into());
    world.template = "bad".into();
    let mut stalled = 0;
    for _ in 0..400 {
        let Pass { plan, .. } = world.pass(Crash::None);
        let overdue = plan.blocked_by.is_some_and(|b| b.reason == crate::step::WaitReason::RolloutStalled);
        assert!(overdue || stalled == 0, "flapped after {stalled} passes");
        stalled += u32::from(overdue);
        world.tick();
    }
    assert!(stalled > 50, "never overdue");
}

#[test]
fn an_incarnation_follows_the_volume() {
    use super::learner::incarnation;
    assert_eq!(incarnation(1, 2, "a"), incarnation(1, 2, "a"));
    assert_ne!(incarnation(1, 2, "a"), incarnation(1, 2, "b"));
    assert_ne!(incarnation(1, 2, "a"), incarnation(1, 3, "a"));
}

/// What stands in the way of others does not hide that a leader is being asked to move.
#[test]
fn a_blocked_plan_does_not_stop_the_clock_of_a_move() {
    use super::Matter;
    assert_eq!(Matter::of("MoveLeader", Some("PodNotRunning")), Some(Matter::MoveLeader));
    assert_eq!(Matter::of("Wait", Some("PodNotRunning")), Some(Matter::Rejoin));
    assert_eq!(Matter::of("Promote", Some("NoQuorum")), None);
}
