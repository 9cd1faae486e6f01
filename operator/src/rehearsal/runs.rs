//! Whole lives of a cluster under the real passes: cut off at every write, with two operators at once, and the
//! requirements that only real writes can show.
//!
//! `BALSA_SEED=<n>` runs one seed alone, `BALSA_SEEDS=<n>` that many.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use balsa_crds::RaftCluster;
use kube::runtime::controller::Action;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, yield_now};

use super::api_server::client;
use super::nodes::Nodes;
use super::stage::{Cut, NAME, NAMESPACE, Shared, Stage, lock};
use crate::controller::{Context, ReconcileError, after_error, pass, reconcile};
use crate::lanes::Lanes;
use crate::metrics::Metrics;
use crate::names::{LABEL_CLUSTER_ID, REPLACE_MEMBER};
use crate::observed::{HostState, Marker};
use crate::plan::simulation::{Dice, check};
use crate::step::StepName;

/// Passes within which a cluster without faults settles.
const PASSES_MAX: usize = 300;
/// Seeds of one run.
const SEEDS: u64 = 25;
/// Events of one seed.
const EVENTS: usize = 150;

/// An operator at work on the stage. A new one is a new process.
pub(super) struct Operator {
    stage: Shared,
    context: Arc<Context>,
    resource: Arc<RaftCluster>,
}

impl Operator {
    pub(super) fn new(stage: &Shared) -> Self {
        let client = client(stage);
        let reporter = Reporter { controller: "balsa-operator".into(), instance: None };
        let (clock, asleep) = (Arc::clone(stage), Arc::clone(stage));
        let context = Context {
            events: Recorder::new(client.clone(), reporter),
            client,
            metrics: Arc::new(Metrics::new().expect("registers")),
            dial: Box::new(Nodes(Arc::clone(stage))),
            lanes: Lanes::default(),
            failures: crate::failures::Memory::default(),
            clock: Box::new(move || lock(&clock).world.now),
            leads: Box::new(move || !lock(&asleep).asleep),
        };
        // As from a cache: only its name is looked at.
        let spec = json!({"image": "stale", "storage": {"size": "1Gi"}});
        let named = json!({"metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": spec});
        let resource = serde_json::from_value(named).expect("a RaftCluster");
        Self { stage: Arc::clone(stage), context: Arc::new(context), resource: Arc::new(resource) }
    }

    pub(super) async fn pass(&self) -> Result<Action, ReconcileError> {
        pass(&self.resource, &self.context).await
    }

    /// A pass in the loop that runs them, and when the next one comes.
    pub(super) async fn turn(&self) -> Action {
        let (resource, context) = (Arc::clone(&self.resource), Arc::clone(&self.context));
        match reconcile(Arc::clone(&resource), Arc::clone(&context)).await {
            Ok(action) => action,
            Err(error) => after_error(resource, &error, context),
        }
    }

    /// What it counts.
    pub(super) fn metrics(&self) -> String {
        String::from_utf8(self.context.metrics.text().expect("encodes")).expect("text")
    }

    /// A pass that goes on while other things happen.
    fn spawn(&self) -> JoinHandle<()> {
        let (resource, context) = (Arc::clone(&self.resource), Arc::clone(&self.context));
        tokio::spawn(async move {
            // Refusals are what this is about; the state is judged, not the reply.
            let _ = pass(&resource, &context).await;
        })
    }

    /// Passes and ticks until nothing is left to do.
    pub(super) async fn settle(&self) -> Result<(), String> {
        for _ in 0..PASSES_MAX {
            let result = self.pass().await;
            let mut stage = lock(&self.stage);
            if stage.dead {
                return Ok(());
            }
            stage.judge()?;
            if let Some(refused) = stage.refused.first() {
                return Err(format!("refused without cause: {refused}"));
            }
            result.map_err(|error| error.to_string())?;
            if stage.is_settled() {
                return Ok(());
            }
            stage.world.tick();
            stage.judge()?;
        }
        Err(format!("not settled: {}", lock(&self.stage).planned()))
    }
}

impl Stage {
    /// Nothing is left to do for what is asked for now.
    pub(super) fn is_settled(&self) -> bool {
        let seen = self.resource["status"]["observedGeneration"] == self.resource["metadata"]["generation"];
        self.resource.is_null() || (seen && self.resource["status"]["plan"]["step"] == "Settled")
    }

    /// What must hold at every moment. With the cluster its data may go.
    pub(super) fn judge(&self) -> Result<(), String> {
        match self.world.violations.first() {
            Some(violation) => Err(violation.clone()),
            None if self.world.cluster.deleting => Ok(()),
            None => check(&self.world),
        }
    }

    /// M12: members, pods and replicas are as asked, and no labelled volume is left beyond policy.
    fn check_counts(&self) -> Result<(), String> {
        if self.resource.is_null() {
            return Ok(());
        }
        let (want, world) = (self.want() as usize, &self.world);
        let set = world.set.as_ref().map(|set| set.replicas as usize);
        let counts = (world.raft.members.len(), world.pods.len(), set);
        if counts != (want, want, Some(want)) {
            return Err(format!("m12: members, pods, replicas are {counts:?}, wanted {want}"));
        }
        if let Some((k, pod)) = world.pods.iter().find(|(_, pod)| pod.settings.values != world.config) {
            return Err(format!("pod {k} has {:?}, the ConfigMap {:?}", pod.settings, world.config));
        }
        let dropped = self.resource["spec"]["storage"]["retention"]["whenScaled"] == "Delete";
        let mut beyond = world.volumes.range(self.want()..).map(|(k, volume)| (k, &volume.object));
        match beyond.find(|(_, v)| v.marker.is_some() && !v.terminating && (dropped || !v.detached)) {
            Some((k, _)) => Err(format!("m12: volume {k} is left beyond policy")),
            None => Ok(()),
        }
    }
}

pub(super) fn shared(stage: Stage) -> Shared {
    Arc::new(Mutex::new(stage))
}

/// One thread, so that a seed decides everything.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(future)
}

/// A settled cluster of `want`.
pub(super) async fn settled(want: u32, spec: &Value) -> Stage {
    let stage = shared(Stage::new(want, spec));
    Operator::new(&stage).settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    let mut stage = lock(&stage).clone();
    stage.writes.clear();
    stage.events.clear();
    stage
}

pub(super) fn changed(mut stage: Stage, change: impl FnOnce(&mut Stage)) -> Stage {
    change(&mut stage);
    stage
}

/// Runs to the end, in a new process after each cut. The writes that took effect, statuses and applied objects apart.
pub(super) async fn run(stage: Stage, cut: Option<(usize, Cut)>) -> Result<(Stage, Vec<String>), String> {
    let stage = shared(stage);
    lock(&stage).fuse = cut;
    Operator::new(&stage).settle().await?;
    if std::mem::take(&mut lock(&stage).dead) {
        lock(&stage).fuse = None;
        Operator::new(&stage).settle().await?;
    }
    // Settled writes nothing.
    let before = lock(&stage).writes.len();
    Operator::new(&stage).pass().await.map_err(|error| error.to_string())?;
    let stage = lock(&stage).clone();
    stage.check_counts()?;
    if stage.writes.len() != before {
        return Err(format!("a settled cluster was written to: {:?}", &stage.writes[before..]));
    }
    let destructive =
        |write: &&String| write.starts_with("remove") || write.starts_with("DELETE persistentvolumeclaims");
    let done = stage.writes.iter().filter(destructive).cloned().collect();
    Ok((stage, done))
}

/// The ways of a life, each from its own beginning.
async fn ways() -> Vec<(&'static str, Stage)> {
    let three = settled(3, &json!({})).await;
    let dropping = json!({"storage": {"retention": {"whenScaled": "Delete", "whenDeleted": "Delete"}}});
    let dropped = settled(3, &dropping).await;
    vec![
        ("bootstrap to 3", Stage::new(3, &json!({}))),
        ("scale in, dropping volumes", changed(dropped.clone(), |stage| stage.edit(&json!({"replicas": 1})))),
        ("replace a lost disk", changed(three.clone(), |stage| stage.world.wipe_disk(1))),
        ("replace the leader", changed(three.clone(), |stage| stage.annotate(REPLACE_MEMBER, "1"))),
        (
            "change settings and scale",
            changed(three.clone(), |stage| stage.edit(&json!({"replicas": 4, "config": {"logLevel": "debug"}}))),
        ),
        ("make the set anew", changed(three.clone(), Stage::give_other_policy)),
        ("roll", changed(three, |stage| stage.edit(&json!({"image": "balsa.dev/balsa:b"})))),
        ("delete", changed(dropped, Stage::delete)),
    ]
}

/// A process that ends before a write leaves what one leaves that ends after the write before it; so these are all.
#[test]
fn real_passes_cut_off_at_any_write_are_picked_up() {
    block_on(async {
        for (name, stage) in ways().await {
            let (end, plain) = run(stage.clone(), None).await.unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
            assert!(!end.writes.is_empty(), "{name} writes nothing");
            for at in 0..end.writes.len() {
                let told = &end.writes[at];
                let (_, mut done) = run(stage.clone(), Some((at, Cut::After)))
                    .await
                    .unwrap_or_else(|wrong| panic!("{name}, cut off after write {at} ({told}): {wrong}"));
                done.sort();
                let mut plain = plain.clone();
                plain.sort();
                assert_eq!(done, plain, "{name}, cut off after write {at} ({told})");
            }
        }
    });
}

/// Claims are the cluster's by their names, whatever became of their labels: so is every life that begins on them, ends over
/// them, or goes on.
#[test]
fn claims_without_the_labels_of_their_set_are_found_by_name_even_by_a_role_that_only_lists() {
    block_on(async {
        let adopted = changed(settled(3, &json!({})).await, |stage| {
            stage.resource["status"] = Value::Null;
            stage.resource_changed();
        });
        let lost_set = changed(settled(3, &json!({})).await, |stage| {
            (stage.world.set, stage.world.pods) = (None, Default::default())
        });
        let ways = ways().await.into_iter().chain([("adopt", adopted), ("make a lost set", lost_set)]);
        for (name, mut stage) in ways {
            let (labelled, _) = run(stage.clone(), None).await.unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
            stage.bare_claims = true;
            for unnamed in [false, true] {
                stage.unnamed_claims = unnamed;
                let ran = run(stage.clone(), None).await;
                let (bare, _) = ran.unwrap_or_else(|wrong| panic!("{name}, bare, unnamed {unnamed}: {wrong}"));
                assert_eq!(bare.writes, labelled.writes, "{name}, unnamed {unnamed}");
            }
        }
    });
}

#[test]
fn a_process_that_ends_before_its_first_write_has_done_nothing() {
    block_on(async {
        let stage = settled(3, &json!({})).await;
        let stage = shared(changed(stage, |stage| stage.edit(&json!({"replicas": 5}))));
        lock(&stage).fuse = Some((0, Cut::Before));
        let before = format!("{:?}", lock(&stage).world);
        assert!(Operator::new(&stage).pass().await.is_err(), "the connection broke");
        assert_eq!(format!("{:?}", lock(&stage).world), before);
    });
}

/// One that woke up after its lease has run out reads, and writes nothing: neither objects nor steps nor status.
#[test]
fn a_process_that_may_have_lost_its_lease_writes_nothing() {
    block_on(async {
        let stage = settled(3, &json!({})).await;
        let stage = shared(changed(stage, |stage| {
            stage.edit(&json!({"replicas": 5, "image": "balsa.dev/balsa:b"}));
            stage.asleep = true;
        }));
        let operator = Operator::new(&stage);
        let error = operator.pass().await.expect_err("not leading");
        assert_eq!(error.reason(), "NotLeading");
        assert_eq!(lock(&stage).writes, Vec::<String>::new());
        lock(&stage).asleep = false;
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    });
}

/// M6: pods of two clusters. Nothing is executed, the condition says so, and the foreign node is told whose it should be.
#[test]
fn m6_pods_of_two_clusters_stop_everything() {
    block_on(async {
        let mut stage = settled(3, &json!({})).await;
        let ours = stage.world.raft.cluster_id;
        let foreign = Marker { cluster_id: ours ^ 1, raft_id: 9, incarnation: 1 };
        stage.world.volumes.get_mut(&2).expect("volume 2").disk = Some(foreign);
        stage.world.kill_pod(2);
        // Even though something else is asked for.
        stage.edit(&json!({"replicas": 5}));
        let stage = shared(stage);
        let operator = Operator::new(&stage);
        let mut written = 0;
        for _ in 0..10 {
            lock(&stage).world.tick();
            let foreign_runs = lock(&stage).world.runs(2);
            if foreign_runs {
                written = lock(&stage).writes.len();
            }
            operator.pass().await.expect("a pass");
            let stage = lock(&stage);
            let steps: Vec<&String> = stage.writes[written..].iter().filter(|w| !w.ends_with(" status")).collect();
            assert!(!foreign_runs || steps.is_empty(), "{steps:?}");
        }
        let stage = lock(&stage);
        assert_eq!(stage.condition("Consistent"), ("False".to_owned(), "ClusterIdMismatch".to_owned()));
        assert!(stage.planned().starts_with("Wait") && stage.planned().contains("ClusterIdMismatch"));
        assert_eq!(stage.told.get(&2), Some(&ours), "what makes the foreign node unready");
        assert!(!stage.world.pods[&2].object.ready);
        assert_eq!(stage.world.raft.members.len(), 3);
    });
}

/// M12: whatever was lost, members, pods and replicas are one number in the end, and no volume is left beyond policy.
#[test]
fn m12_nothing_is_left_over_after_a_loss() {
    type Loss = fn(&mut Stage);
    let losses: [(&str, Loss); 5] = [
        ("a pod", |stage| stage.world.kill_pod(1)),
        ("a disk", |stage| stage.world.wipe_disk(2)),
        ("a damaged disk", |stage| stage.world.corrupt_disk(0)),
        ("a volume", |stage| stage.world.delete_volume(0)),
        ("a host with its volume", |stage| {
            stage.world.pin_volume(1);
            stage.world.break_host(1, HostState::Gone);
        }),
    ];
    block_on(async {
        for policy in ["Retain", "Delete"] {
            let three = settled(3, &json!({"storage": {"retention": {"whenScaled": policy}}})).await;
            for (name, loss) in losses {
                let lost = changed(three.clone(), loss);
                let (end, _) = run(lost, None).await.unwrap_or_else(|wrong| panic!("{name}, {policy}: {wrong}"));
                // And once more after shrinking over the repaired ordinal.
                let shrunk = changed(end, |stage| stage.edit(&json!({"replicas": 1})));
                run(shrunk, None).await.unwrap_or_else(|wrong| panic!("{name}, {policy}, shrunk: {wrong}"));
            }
        }
    });
}

/// M28: the operator writes neither spec nor foreign metadata, and copies no tracking labels.
#[test]
fn m28_spec_and_foreign_metadata_are_the_users() {
    block_on(async {
        let mut stage = Stage::new(3, &json!({}));
        let edits = [
            json!({}),
            json!({"replicas": 4}),
            json!({"image": "balsa.dev/balsa:b"}),
            json!({"paused": true}),
            json!({"paused": false, "replicas": 2}),
        ];
        for edit in edits {
            stage.edit(&edit);
            let asked = stage.resource.clone();
            let paused = asked["spec"]["paused"] == true;
            let shared = shared(stage);
            if paused {
                Operator::new(&shared).pass().await.expect("a pass");
            } else {
                Operator::new(&shared).settle().await.unwrap_or_else(|wrong| panic!("{edit}: {wrong}"));
            }
            stage = lock(&shared).clone();
            let is = &stage.resource;
            assert_eq!(is["spec"], asked["spec"], "{edit}");
            for key in ["generation", "labels", "annotations", "uid"] {
                assert_eq!(is["metadata"][key], asked["metadata"][key], "{edit}: {key}");
            }
        }
        assert_eq!(stage.world.violations, Vec::<String>::new());
        for (key, object) in &stage.objects {
            let metadata = object["metadata"].to_string();
            assert!(
                !metadata.contains("argocd") && !metadata.contains("last-applied-configuration"),
                "{key:?}: {metadata}"
            );
        }
        for volume in stage.volumes(false) {
            let labels = volume["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            assert!(labels.contains_key(LABEL_CLUSTER_ID), "{volume}");
            assert!(labels.keys().all(|key| key.starts_with("balsa.dev/")), "{volume}");
        }
    });
}

/// M29: what only another object or the API server can refuse is in a condition too, and no pod was made.
#[test]
fn m29_what_the_spec_leads_to_is_refused_in_a_condition_before_any_pod() {
    block_on(async {
        let mut stage = Stage::new(3, &json!({}));
        let theirs = json!({"metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "7"}});
        stage.objects.insert(("services".to_owned(), NAME.to_owned()), theirs);
        let stage = shared(stage);
        let operator = Operator::new(&stage);
        for _ in 0..20 {
            operator.pass().await.expect("a pass that tells is no failure");
            lock(&stage).world.tick();
        }
        let stage = lock(&stage);
        assert!(stage.world.pods.is_empty() && stage.world.set.is_none());
        assert!(
            stage.planned().contains("Service db is not the operator's: rename or delete it"),
            "{}",
            stage.planned()
        );
        assert_eq!(stage.condition("Progressing"), ("False".to_owned(), "InvalidSpec".to_owned()));
        assert!(stage.events.iter().any(|event| event[1] == "InvalidSpec"), "{:?}", stage.events);
    });
}

/// M29 with the events as the API server gets them: on every way one for every call that changes a member, a pod or a volume,
/// and of every step there is.
#[test]
fn m29_every_step_is_an_event() {
    block_on(async {
        let mut told = BTreeSet::new();
        for (name, stage) in ways().await {
            let (end, _) = run(stage, None).await.unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
            // What is applied is no step, nor is the budget that is pruned; of the writes of the resource itself these are.
            let of_the_resource = match name {
                "bootstrap to 3" => 2,
                "delete" => 1,
                _ => 0,
            };
            let applied = |write: &&String| {
                let pruned = write.starts_with("DELETE poddisruptionbudgets") && name != "delete";
                write.starts_with("APPLY") || write.starts_with("PATCH raftclusters") || pruned
            };
            let steps = end.writes.iter().filter(|write| !applied(write)).count() + of_the_resource;
            let normal: Vec<&[String; 4]> = end.events.iter().filter(|event| event[0] == "Normal").collect();
            assert_eq!(normal.len(), steps, "{name}: {:#?}\n{:#?}", end.writes, end.events);
            told.extend(normal.into_iter().map(|event| event[1].clone()));
        }
        let writing = StepName::ALL.iter().filter(|name| !matches!(name, StepName::Wait | StepName::Settled));
        assert_eq!(told, writing.map(ToString::to_string).collect());
    });
}

/// From one to seven members: the most, and down from there with the volumes going along.
#[test]
fn seven_members_are_founded_and_scaled_away() {
    let dropping = json!({"storage": {"retention": {"whenScaled": "Delete"}}});
    block_on(async {
        let (seven, _) = run(Stage::new(7, &dropping), None).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(seven.world.voters().len(), 7);
        let two = changed(seven, |stage| stage.edit(&json!({"replicas": 2})));
        let (two, done) = run(two, None).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(two.world.volumes.keys().copied().collect::<Vec<u32>>(), [0, 1]);
        let removed = done.iter().filter(|write| write.starts_with("remove")).count();
        assert_eq!((removed, done.len()), (5, 10), "each with its volume: {done:?}");
    });
}

#[test]
fn two_operators_at_once_keep_every_invariant() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("BALSA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BALSA_SEEDS").map_or(SEEDS, |seeds| seeds.min(SEEDS * 40)),
    };
    for seed in seeds {
        block_on(run_seed(seed)).unwrap_or_else(|wrong| panic!("BALSA_SEED={seed}: {wrong}"));
    }
}

async fn run_seed(seed: u64) -> Result<(), String> {
    let mut dice = Dice(seed);
    let policy = if dice.roll(2) == 0 { "Delete" } else { "Retain" };
    let want = u32::try_from(dice.roll(5)).unwrap_or(0) + 1;
    let stage = shared(Stage::new(want, &json!({"storage": {"retention": {"whenScaled": policy}}})));
    lock(&stage).busy = true;
    let operators = [Operator::new(&stage), Operator::new(&stage)];
    let mut passes: [Option<JoinHandle<()>>; 2] = [None, None];
    let mut trace = Vec::new();
    for _ in 0..EVENTS {
        let which = usize::from(dice.roll(2) == 0);
        if passes[which].as_ref().is_none_or(JoinHandle::is_finished) {
            passes[which] = Some(operators[which].spawn());
        }
        for _ in 0..dice.roll(60) {
            yield_now().await;
        }
        let mut stage = lock(&stage);
        trace.push(happen(&mut stage, &mut dice));
        stage.judge().map_err(|wrong| format!("{wrong}\n{}\n{}", trace.join("\n"), stage.writes.join("\n")))?;
    }
    for pass in passes.into_iter().flatten() {
        pass.await.map_err(|error| error.to_string())?;
    }
    {
        let mut stage = lock(&stage);
        (stage.busy, stage.refused) = (false, Vec::new());
        if stage.resource["spec"]["image"].as_str().is_some_and(|image| image.ends_with("broken")) {
            stage.edit(&json!({"image": "balsa.dev/balsa:good"}));
        }
    }
    operators[0].settle().await.map_err(|wrong| format!("{wrong}\n{}", trace.join("\n")))?;
    lock(&stage).check_counts()
}

/// One thing that happens while passes are under way.
fn happen(stage: &mut Stage, dice: &mut Dice) -> String {
    let k = u32::try_from(dice.roll(5)).unwrap_or(0);
    let kind = dice.roll(16);
    // A disk may be lost only while every voter has one, and another majority remains.
    let voters = stage.world.voters();
    let spare =
        voters.len() >= 3 && voters.iter().all(|id| stage.world.has_whole_disk(*id)) && !stage.world.loses_disk();
    match kind {
        0 => stage.edit(&json!({"replicas": k + 1})),
        1 => stage.world.kill_pod(k),
        2 if spare => stage.world.wipe_disk(k),
        3 if spare => stage.world.delete_volume(k),
        4 => stage.edit(&json!({"image": format!("balsa.dev/balsa:{k}")})),
        5 => stage.edit(&json!({"image": "balsa.dev/balsa:broken"})),
        6 => stage.world.move_lead(usize::try_from(k).unwrap_or(0)),
        7 => stage.edit(&json!({"config": {"quotaBackendBytes": (k + 1) << 20}})),
        8..=10 => return "nothing".into(),
        _ => {
            stage.world.tick();
            return "tick".into();
        }
    }
    format!("{kind} on {k}")
}
