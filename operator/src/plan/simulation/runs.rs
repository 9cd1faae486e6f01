//! Runs of the simulated reconciler: every crash point of every path, and seeds that choose everything else.
//!
//! A failing seed is printed; `BALSA_SEED=<n>` runs it alone, `BALSA_SEEDS=<n>` runs that many.

use super::reconcile::{Crash, Pass};
use super::world::World;
use crate::observed::{HostState, Observed};
use crate::plan::proofs::quorum;
use crate::step::Step;

/// Passes within which a world without faults must settle.
const SETTLE_PASSES_MAX: usize = 400;
/// Seeds of one test run.
const SEEDS: u64 = 500;
/// Events of one seed before the faults stop.
const EVENTS: usize = 120;

fn settled(want: u32) -> World {
    let mut world = World::new(want);
    world.settle(SETTLE_PASSES_MAX).unwrap_or_else(|wrong| panic!("{wrong}"));
    world
}

/// What must hold at every moment.
pub(crate) fn check(world: &World) -> Result<(), String> {
    if let Some(violation) = world.violations.first() {
        return Err(violation.clone());
    }
    let disks = world.volumes.values().filter_map(|volume| volume.disk);
    if let Some(marker) = disks.into_iter().find(|marker| marker.cluster_id != world.raft.cluster_id) {
        return Err(format!("(e) a disk of cluster {:x}", marker.cluster_id));
    }
    let whole = world.voters().into_iter().filter(|id| world.has_whole_disk(*id)).count();
    let voters = world.voters().len();
    if voters > 0 && whole < quorum(voters) {
        return Err(format!("(f) only {whole} of {voters} voters have the acknowledged writes"));
    }
    Ok(())
}

/// (h): settled, as asked, and from then on nothing is written.
fn check_settled(world: &mut World) -> Result<(), String> {
    world.settle(SETTLE_PASSES_MAX)?;
    check(world)?;
    let want = world.cluster.want as usize;
    let set = world.set.as_ref().map(|set| set.replicas as usize);
    let counts = (world.voters().len(), world.raft.members.len(), world.pods.len(), set);
    if counts != (want, want, want, Some(want)) {
        return Err(format!("voters, members, pods, replicas are {counts:?}, wanted {want}"));
    }
    let told = |pod: &super::world::Pod| pod.settings.are(&world.cluster.hot);
    if let Some((k, pod)) = world.pods.iter().find(|(_, pod)| !told(pod)) {
        return Err(format!("pod {k} has {:?}, wanted {:?}", pod.settings, world.cluster.hot));
    }
    if world.set.as_ref().is_some_and(|set| !set.fixed.is_empty()) {
        return Err("the set was not made anew".into());
    }
    let before = format!("{world:?}");
    let Pass { plan, .. } = world.pass(Crash::None);
    if plan.step != Step::Settled || format!("{world:?}") != before {
        return Err(format!("a settled world was written to: {:?}", plan.step));
    }
    // M12: no volume is left beyond policy.
    let dropped = world.cluster.storage.retention.when_scaled == crate::valid::Retention::Delete;
    let mut beyond = world.volumes.range(world.cluster.want..).map(|(k, volume)| (k, &volume.object));
    match beyond.find(|(_, v)| v.marker.is_some() && !v.terminating && (dropped || !v.detached)) {
        Some((k, _)) => Err(format!("volume {k} is left beyond policy")),
        None => Ok(()),
    }
}

/// The paths of 3.9, each from its own beginning.
fn paths() -> Vec<(&'static str, World)> {
    let changed = |mut world: World, change: fn(&mut World)| {
        change(&mut world);
        world
    };
    vec![
        ("bootstrap", World::new(1)),
        ("bootstrap to 3", World::new(3)),
        ("scale out", changed(settled(3), |world| world.cluster.want = 5)),
        ("scale in", changed(settled(5), |world| world.cluster.want = 3)),
        ("scale in to 1", changed(settled(3), |world| world.cluster.want = 1)),
        (
            "scale the leader away",
            changed(settled(4), |world| {
                world.raft.leader = 4;
                world.cluster.want = 3;
            }),
        ),
        (
            "scale in, dropping volumes",
            changed(settled(5), |world| {
                world.cluster.storage.retention.when_scaled = crate::valid::Retention::Delete;
                world.cluster.want = 2;
            }),
        ),
        (
            "scale out over leftovers",
            changed(settled(5), |world| {
                world.cluster.want = 2;
                world.settle(SETTLE_PASSES_MAX).unwrap_or_default();
                world.cluster.want = 4;
            }),
        ),
        ("replace a lost disk", changed(settled(3), |world| world.wipe_disk(1))),
        ("replace the leader", changed(settled(3), |world| world.cluster.replace_member = Some(1))),
        ("replace a deleted volume", changed(settled(3), |world| world.delete_volume(2))),
        (
            "replace after a lost host",
            changed(settled(3), |world| {
                world.pin_volume(1);
                world.break_host(1, HostState::Gone);
            }),
        ),
        ("make the set anew", changed(settled(3), |world| world.fix("serviceName"))),
        ("change settings", changed(settled(3), |world| world.set_setting("max-txn-ops", "1"))),
        (
            "change settings and scale",
            changed(settled(3), |world| {
                world.set_setting("max-txn-ops", "1");
                world.cluster.want = 4;
            }),
        ),
        ("roll", changed(settled(3), |world| world.template = "b".into())),
        (
            "roll and scale in",
            changed(settled(3), |world| {
                world.template = "a/2".into();
                world.cluster.want = 2;
            }),
        ),
        ("roll two", changed(settled(2), |world| world.template = "b".into())),
        ("bring back a shrunk set", changed(settled(5), |world| world.set_replicas(1))),
        ("adopt", changed(settled(3), World::lose_status)),
    ]
}

/// Runs to the end with a crash in the acting pass `at`; the steps that took effect.
fn run_with_crash(mut world: World, at: usize, crash: Crash) -> Result<Vec<String>, String> {
    let mut done = Vec::new();
    let mut acting = 0;
    for _ in 0..SETTLE_PASSES_MAX {
        let observed = world.observe();
        let acts = !matches!(world.clone().pass(Crash::None).plan.step, Step::Wait | Step::Settled);
        let now = if acts && acting == at { crash } else { Crash::None };
        acting += usize::from(acts);
        let Pass { plan, outcome } = world.pass_on(&observed, now, true);
        check(&world)?;
        match plan.step {
            Step::Settled => {
                check_settled(&mut world)?;
                return Ok(done);
            }
            Step::Wait => {}
            _ if outcome.is_ok() && now != Crash::BeforeCall => {
                done.push(format!("{} {:?}", plan.step.name(), plan.target));
            }
            _ => {}
        }
        world.tick();
        check(&world)?;
    }
    Err(format!("not settled; did {done:?}"))
}

#[test]
fn every_crash_point_of_every_path_is_picked_up() {
    for (name, world) in paths() {
        let plain = run_with_crash(world.clone(), usize::MAX, Crash::None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!plain.is_empty(), "{name} does nothing");
        let mut sorted = plain.clone();
        sorted.sort();
        for at in 0..plain.len() {
            for crash in [Crash::BeforeCall, Crash::AfterCall] {
                let mut crashed = run_with_crash(world.clone(), at, crash)
                    .unwrap_or_else(|error| panic!("{name}, {crash:?} in step {at} of {plain:?}: {error}"));
                // Steps of independent matters may change places, because time passes in a crash.
                crashed.sort();
                assert_eq!(crashed, sorted, "{name}, {crash:?} in step {at}: other steps than without the crash");
            }
        }
    }
}

/// M10: the newest value wins, from any point of any path, whichever of the sizes that a cluster may have it is.
#[test]
fn m10_want_may_change_at_any_point() {
    for (name, mut moving) in paths() {
        let mut still = 0;
        for at in 0..40 {
            for want in 1..=7 {
                let mut changed = moving.clone();
                changed.cluster.want = want;
                check_settled(&mut changed).unwrap_or_else(|e| panic!("{name}, want {want} after pass {at}: {e}"));
            }
            // Once it stays settled, every point is the same one.
            still = if moving.pass(Crash::None).plan.step == Step::Settled { still + 1 } else { 0 };
            if still > 2 {
                break;
            }
            moving.tick();
        }
    }
}

/// M15: at every stage of 1 → 7 → 1, evicting until the budget refuses leaves a quorum in service.
#[test]
fn m15_evictions_leave_a_quorum() {
    let mut world = World::new(1);
    for want in [1, 2, 3, 4, 5, 6, 7, 5, 4, 3, 2, 1] {
        world.cluster.want = want;
        for _ in 0..60 {
            world.pass(Crash::None);
            check_evictions(world.clone()).unwrap_or_else(|wrong| panic!("want {want}: {wrong}"));
            world.tick();
            check_evictions(world.clone()).unwrap_or_else(|wrong| panic!("want {want}: {wrong}"));
        }
    }
}

/// M15 on every other way too: rolls, replacements, changed settings, a set made anew; and a roll of five and of seven.
#[test]
fn m15_evictions_leave_a_quorum_on_every_way() {
    let rolls = [5, 7].map(|want| {
        let mut world = settled(want);
        world.template = "b".into();
        ("roll five or seven", world)
    });
    for (name, mut world) in paths().into_iter().chain(rolls) {
        let settles = (0..SETTLE_PASSES_MAX).any(|at| {
            let Pass { plan, .. } = world.pass(Crash::None);
            check_evictions(world.clone()).unwrap_or_else(|wrong| panic!("{name}, after pass {at}: {wrong}"));
            world.tick();
            check_evictions(world.clone()).unwrap_or_else(|wrong| panic!("{name}, after tick {at}: {wrong}"));
            plan.step == Step::Settled
        });
        assert!(settles, "{name} does not settle");
    }
}

fn check_evictions(mut world: World) -> Result<(), String> {
    let voters = world.voters().len();
    let ready = |world: &World| world.voters().into_iter().filter(|id| world.is_ready(*id)).count();
    // A single voter does not block a drain, and what is not in service already is not evicted out of it.
    if voters < 2 || ready(&world) < quorum(voters) {
        return Ok(());
    }
    let least = world.budget.as_ref().and_then(|budget| budget.min_available).unwrap_or(0) as usize;
    let mut pods: Vec<u32> = world.pods.iter().filter(|(_, pod)| pod.object.ready).map(|(k, _)| *k).collect();
    // Voters first: the worst order.
    pods.sort_by_key(|k| world.listed(*k).is_none());
    for k in pods {
        if world.pods.values().filter(|pod| pod.object.ready).count() > least {
            world.kill_pod(k);
        }
    }
    let left = ready(&world);
    if left < quorum(voters) {
        return Err(format!("{left} of {voters} voters are left in service, budget {least}"));
    }
    Ok(())
}

/// Small, seedable, and the same everywhere.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

#[test]
fn seeds_keep_every_invariant() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("BALSA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BALSA_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        run_seed(seed).unwrap_or_else(|wrong| panic!("BALSA_SEED={seed}: {wrong}"));
    }
}

fn run_seed(seed: u64) -> Result<(), String> {
    let mut dice = Dice(seed);
    let mut world = World::new(1 + u32::try_from(dice.roll(5)).unwrap_or(0));
    if dice.roll(2) == 0 {
        world.cluster.storage.retention.when_scaled = crate::valid::Retention::Delete;
    }
    let mut old: Vec<Observed> = Vec::new();
    let mut trace = Vec::new();
    for _ in 0..EVENTS {
        let event = one_event(&mut world, &mut dice, &mut old);
        trace.push(event);
        check(&world).map_err(|wrong| format!("{wrong}\n{}", trace.join("\n")))?;
    }
    // The faults stop, and the human does what `humanMay` says: dead hosts are taken away, the image is good, nobody else touches anything.
    world.hung.clear();
    for state in world.hosts.values_mut() {
        *state = HostState::Gone;
    }
    if world.broken.contains(&world.template) {
        world.template = "good".into();
    }
    world.drop_unlabelled_lost_volumes();
    world.cluster.replace_member = None;
    let end = check_settled(&mut world).and_then(|()| check_deleted(&mut world, dice.roll(2) == 0));
    end.map_err(|wrong| format!("{wrong}\n{}", trace.join("\n")))
}

/// D1 ends in a bounded time, and the volumes are as the policy says (M1).
fn check_deleted(world: &mut World, drop_volumes: bool) -> Result<(), String> {
    let before = world.volumes.values().filter(|volume| !volume.object.terminating).count();
    world.cluster.deleting = true;
    if drop_volumes {
        world.cluster.storage.retention.when_deleted = crate::valid::Retention::Delete;
    }
    world.settle(SETTLE_PASSES_MAX)?;
    let labelled = world.volumes.values().filter(|volume| volume.object.marker.is_some()).count();
    if world.set.is_some() || !world.pods.is_empty() || world.budget.is_some() {
        return Err("deleted, and something still runs".into());
    }
    match (drop_volumes, labelled, world.volumes.len()) {
        (true, 1.., _) => Err(format!("{labelled} volumes are left")),
        (false, _, left) if left < before => Err(format!("{left} of {before} volumes are left")),
        _ => Ok(()),
    }
}

fn one_event(world: &mut World, dice: &mut Dice, old: &mut Vec<Observed>) -> String {
    let crash = match dice.roll(6) {
        0 => Crash::BeforeCall,
        1 => Crash::AfterCall,
        _ => Crash::None,
    };
    match dice.roll(13) {
        0..=4 => {
            let pass = world.pass(crash);
            told("pass", crash, &pass)
        }
        5 => {
            // Read now, acted on later: a lagging cache, or a second operator.
            old.push(world.observe());
            "observe".into()
        }
        6 if !old.is_empty() => {
            let which = usize::try_from(dice.roll(old.len() as u64)).unwrap_or(0);
            let observed = old.swap_remove(which);
            let pass = world.pass_on(&observed, crash, false);
            told("stale pass", crash, &pass)
        }
        7 => {
            world.cluster.want = 1 + u32::try_from(dice.roll(5)).unwrap_or(0);
            format!("want {}", world.cluster.want)
        }
        8 => fault(world, dice),
        9 => {
            let value = dice.roll(3);
            world.set_setting("max-txn-ops", &value.to_string());
            format!("setting {value}")
        }
        _ => {
            world.tick();
            "tick".into()
        }
    }
}

fn told(what: &str, crash: Crash, pass: &Pass) -> String {
    format!("{what} {crash:?} {} {:?} {:?}", pass.plan.row, pass.plan.step, pass.outcome)
}

fn fault(world: &mut World, dice: &mut Dice) -> String {
    let k = u32::try_from(dice.roll(6)).unwrap_or(0);
    // A disk may be lost only while every voter has one, and another majority remains.
    let voters = world.voters();
    let spare = voters.len() >= 3 && voters.iter().all(|id| world.has_whole_disk(*id)) && !world.loses_disk();
    let kind = dice.roll(14);
    match kind {
        0 | 1 => world.kill_pod(k),
        2 => world.pods.clear(),
        3 => world.template = if world.template == "a" { ["b", "a/2"][k as usize % 2].into() } else { "a".into() },
        4 if spare => world.wipe_disk(k),
        5 if spare => world.delete_volume(k),
        6 if spare => {
            world.pin_volume(k);
            world.break_host(k, if dice.roll(2) == 0 { HostState::Gone } else { HostState::Present });
        }
        7 => {
            world.template = "bad".into();
            world.broken.insert("bad".into());
        }
        8 => world.move_lead(usize::try_from(dice.roll(5)).unwrap_or(0)),
        9 => world.hang(k),
        10 => world.hung.clear(),
        // The StatefulSet's controller is quicker than the operator: the next process ends as DiskLost.
        11 if spare => {
            world.delete_volume(k);
            world.kill_pod(k);
            world.tick();
        }
        12 => world.fix(["serviceName", "volumeClaimTemplates"][k as usize % 2]),
        _ => return "no fault".into(),
    }
    format!("fault {kind} on {k}")
}
