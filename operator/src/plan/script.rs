//! Golden scripts of the planner: `testscripts/plan/*.txt`, one per row, walk or refused proof.
//!
//! A script is a list of commands; the lines that begin with `=>` are what they printed, and are rewritten when
//! `UPDATE_GOLDEN=1`. Commands:
//!
//! - `world N` is a settled cluster of N, made by the planner itself; `world new N` is one just created.
//! - `do …` changes the world, and what is observed with it; `walk` lets operator and world run until nothing happens. What
//!   it did several times in succession it tells once.
//! - `cluster …` changes what the user asks for.
//! - everything else edits what this one pass observes; `plan` plans on it. `plan refused` plans an eviction that the budget
//!   refuses, and writes the status that the next pass reads. `plan invalid` plans for a spec that cannot be carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::plan;
use super::simulation::{Crash, World, latch};
use crate::names;
use crate::observed::{
    Alarm, ContainerState, Dissent, ExitKind, Failures, Host, HostState, Marker, Member, MemberList, NodeExit,
    NodeReport, NodeState, Observed, ObservedPod, ObservedVolume, PlanLatch, PodPhase, Progress, Settings,
};
use crate::step::{BootstrapStep, Plan, Step, VolumeLabel};
use crate::valid::Retention;

/// Most passes of one `walk`.
const WALK_PASSES_MAX: usize = 300;
/// A walk ends when it has waited, or was refused, this often.
const WALK_WAITS_MAX: usize = 30;

/// Fields that a StatefulSet may have otherwise than is wanted.
const FIXED: [&str; 4] = ["serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates"];

struct Script {
    world: World,
    observed: Observed,
}

#[test]
fn golden_scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts/plan");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 40, "only {} scripts in {}", paths.len(), folder.display());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    let mut wrong = String::new();
    for path in paths {
        let is = std::fs::read_to_string(&path).unwrap();
        let should = run(&is).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if is == should {
            continue;
        }
        if update {
            std::fs::write(&path, should).unwrap();
        } else {
            writeln!(wrong, "--- {}\n{}", path.display(), difference(&is, &should)).unwrap();
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 rewrites, after review:\n{wrong}");
}

fn difference(is: &str, should: &str) -> String {
    let line = is.lines().zip(should.lines()).position(|(a, b)| a != b);
    let at = line.unwrap_or(is.lines().count().min(should.lines().count()));
    let nth = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
    format!("line {}:\n  script: {}\n  now:    {}", at + 1, nth(is), nth(should))
}

fn run(text: &str) -> Result<String, String> {
    let world = World::new(1);
    let observed = world.observe();
    let mut script = Script { world, observed };
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("=>")) {
        out.push_str(line);
        out.push('\n');
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        if words.is_empty() {
            continue;
        }
        // The founded cluster's id is drawn anew whenever the model changes; its digits say nothing.
        let ours = names::id_text(script.world.raft.cluster_id);
        for printed in script.command(&words).map_err(|error| format!("{line}: {error}"))? {
            out.push_str("=> ");
            out.push_str(&if ours == "0" { printed } else { printed.replace(&ours, "(ours)") });
            out.push('\n');
        }
    }
    Ok(out)
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

impl Script {
    fn command(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        match words {
            ["plan"] => return Ok(describe(&plan(&self.world.cluster, &self.observed))),
            ["plan", "invalid"] => {
                let mut cluster = self.world.cluster.clone();
                (cluster.want, cluster.repairs_only) = (super::kept_size(&cluster, &self.observed), true);
                return Ok(describe(&super::repairs(&cluster, &self.observed, "a flag does not exist".to_owned())));
            }
            ["plan", "refused"] => {
                let mut plan = plan(&self.world.cluster, &self.observed);
                let message = "the disruption budget refuses".to_owned();
                super::refused_by_budget(&mut plan, &self.world.cluster, &self.observed, message);
                self.observed.resource.plan = Some(latch(&plan));
                return Ok(describe(&plan));
            }
            ["budget"] => return Ok(vec![format!("{:?}", super::min_available(&self.world.cluster, &self.observed))]),
            ["replicas"] => {
                return Ok(vec![super::initial_replicas(&self.world.cluster, &self.observed).to_string()]);
            }
            ["walk"] => return self.walk(),
            ["world", "new", want] => self.world = World::new(number(want)?),
            ["world", want] => {
                self.world = World::new(number(want)?);
                self.world.settle(WALK_PASSES_MAX)?;
            }
            ["cluster", rest @ ..] => return self.cluster(rest).map(|()| Vec::new()),
            ["do", rest @ ..] => self.change_world(rest)?,
            _ => return self.edit(words).map(|()| Vec::new()),
        }
        self.observed = self.world.observe();
        Ok(Vec::new())
    }

    fn walk(&mut self) -> Result<Vec<String>, String> {
        let mut lines: Vec<(String, usize)> = Vec::new();
        let mut waits = 0;
        for _ in 0..WALK_PASSES_MAX {
            let pass = self.world.pass(Crash::None);
            if let Some(violation) = self.world.violations.first() {
                return Err(violation.clone());
            }
            let mut line = headline(&pass.plan);
            match pass.plan.step {
                Step::Settled => {
                    lines.push((line, 1));
                    break;
                }
                Step::Wait => waits += 1,
                _ => {
                    waits = if pass.outcome.is_ok() { 0 } else { waits + 1 };
                    if let Err(refused) = pass.outcome {
                        write!(line, " refused: {refused:?}").map_err(|error| error.to_string())?;
                    }
                    match lines.last_mut().filter(|(last, _)| *last == line) {
                        Some((_, times)) => *times += 1,
                        None => lines.push((line.clone(), 1)),
                    }
                }
            }
            if waits > WALK_WAITS_MAX {
                if pass.plan.step == Step::Wait {
                    lines.push((line, 1));
                }
                break;
            }
            self.world.tick();
        }
        self.observed = self.world.observe();
        let times = |(line, times)| if times == 1 { line } else { format!("{line}, {times} times") };
        Ok(lines.into_iter().map(times).collect())
    }

    fn cluster(&mut self, words: &[&str]) -> Result<(), String> {
        let cluster = &mut self.world.cluster;
        match words {
            ["want", want] => cluster.want = number(want)?,
            ["paused"] => cluster.paused = true,
            ["deleting"] => cluster.deleting = true,
            ["replace", id] => cluster.replace_member = Some(number(id)?),
            ["scaled-volumes", "delete"] => cluster.storage.retention.when_scaled = Retention::Delete,
            ["deleted-volumes", "delete"] => cluster.storage.retention.when_deleted = Retention::Delete,
            ["protect-single"] => cluster.protect_single = true,
            ["setting", name, value] => self.world.set_setting(name, value),
            ["default", name, value] => {
                cluster.hot.insert((*name).to_owned(), (*value).to_owned());
            }
            _ => return Err("no such request".into()),
        }
        Ok(())
    }

    fn change_world(&mut self, words: &[&str]) -> Result<(), String> {
        let world = &mut self.world;
        match words {
            ["tick"] => world.tick(),
            ["clock", seconds] => world.now += number::<i64>(seconds)?,
            ["pass"] => {
                world.pass(Crash::None);
            }
            ["kill", "all"] => world.pods.clear(),
            ["kill", k] => world.kill_pod(number(k)?),
            ["wipe", k] => world.wipe_disk(number(k)?),
            ["hang", k] => world.hang(number(k)?),
            ["wake", "all"] => world.hung.clear(),
            ["corrupt", k] => world.corrupt_disk(number(k)?),
            ["host", k, state] => world.break_host(number(k)?, host_state(state)?),
            ["finalizer", k] => world.hold_pod(number(k)?),
            ["no-finalizer", k] => world.release_pod(number(k)?),
            ["pin", k] => world.pin_volume(number(k)?),
            ["template", revision] => world.template = (*revision).to_owned(),
            ["broken", revision] => {
                world.broken.insert((*revision).to_owned());
            }
            ["wrong-setting", value] => {
                world.wrong_settings.insert((*value).to_owned());
            }
            ["deaf", k] => {
                world.deaf.insert(number(k)?);
            }
            ["hear", "all"] => world.deaf.clear(),
            ["forget"] => world.failures = Failures::default(),
            ["keep", k] => {
                world.kept.insert(number(k)?);
            }
            ["forbid", "labels"] => world.unlabelled = true,
            ["forbid", "end", k] => {
                world.unending.insert(number(k)?);
            }
            ["let-go"] => {
                world.kept.clear();
                world.unending.clear();
                world.unlabelled = false;
            }
            ["stubborn"] => world.raft.stubborn = true,
            ["lead", id] => world.raft.leader = number(id)?,
            ["delete-set"] => world.set = None,
            ["orphan-pods"] => world.orphan_pods(),
            ["fix", field] => world.fix(FIXED.into_iter().find(|name| name == field).ok_or("no such field")?),
            ["delete-volume", k] => world.delete_volume(number(k)?),
            ["blur-labels", k] => world.blur_labels(number(k)?),
            ["shrink-set", replicas] => world.set_replicas(number(replicas)?),
            ["lose-status"] => world.lose_status(),
            _ => return Err("no such change".into()),
        }
        Ok(())
    }

    fn edit(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["set", rest @ ..] => self.edit_set(rest),
            ["pod", k, rest @ ..] => self.edit_pod(number(k)?, rest),
            ["node", k, rest @ ..] => self.edit_node(number(k)?, rest),
            ["volume", k, rest @ ..] => self.edit_volume(number(k)?, rest),
            ["list", rest @ ..] => self.edit_list(rest),
            ["member", k, rest @ ..] => self.edit_member(number(k)?, rest),
            ["status", rest @ ..] => self.edit_status(rest),
            ["budget", "none"] => {
                self.observed.budget = None;
                Ok(())
            }
            ["budget", least] => {
                let budget = self.observed.budget.get_or_insert_default();
                budget.min_available = Some(number(least)?);
                Ok(())
            }
            _ => Err("no such command".into()),
        }
    }

    fn edit_set(&mut self, words: &[&str]) -> Result<(), String> {
        if words == ["none"] {
            self.observed.set = None;
            return Ok(());
        }
        let set = self.observed.set.get_or_insert_default();
        match words {
            ["replicas", replicas] => set.replicas = number(replicas)?,
            ["lagging"] => set.generation = set.observed_generation + 1,
            ["terminating"] => set.terminating = true,
            ["revision", revision] => set.update_revision = Some((*revision).to_owned()),
            ["held"] => set.template_held = true,
            ["other-claims"] => set.other_claims = true,
            ["fixed", field] => set.fixed.push(FIXED.into_iter().find(|name| name == field).ok_or("no such field")?),
            _ => return Err("no such edit of the set".into()),
        }
        Ok(())
    }

    fn edit_pod(&mut self, k: u32, words: &[&str]) -> Result<(), String> {
        let now = self.observed.now;
        if let ["missing", why @ ..] = words {
            self.observed.pods.remove(&k);
            self.observed.nodes.remove(&k);
            if !why.is_empty() {
                self.observed.unmade.insert(k, why.join(" "));
            }
            return Ok(());
        }
        let pod = self.observed.pods.entry(k).or_insert_with(|| new_pod(k));
        match words {
            ["there"] => {}
            ["orphan"] => pod.orphan = true,
            ["held"] => pod.held = true,
            ["forced"] => pod.forced = true,
            ["runs"] => (pod.phase, pod.container) = (PodPhase::Running, ContainerState::Running),
            ["uid", uid] => pod.uid = (*uid).to_owned(),
            ["unready"] => pod.ready = false,
            ["created", ago] => pod.created = now - number::<i64>(ago)?,
            ["outdated"] => (pod.revision, pod.image) = (Some("old".into()), Some("old".into())),
            ["outdated", "settings"] => pod.revision = Some("old".into()),
            ["terminating", ago] => {
                pod.terminating = Some(now - number::<i64>(ago)?);
                pod.ready = false;
            }
            ["unschedulable", ago] => {
                *pod = ObservedPod { unschedulable: Some(now - number::<i64>(ago)?), host: None, ..new_pod(k) };
                self.observed.nodes.remove(&k);
            }
            ["host", state] => pod.host = Some(Host { name: format!("host-{k}"), state: host_state(state)? }),
            ["failed"] => {
                (pod.phase, pod.container, pod.ready) = (PodPhase::Failed, ContainerState::Terminated(1), false);
                self.observed.nodes.remove(&k);
            }
            ["waiting", reason] => {
                (pod.container, pod.ready) = (ContainerState::Waiting((*reason).to_owned()), false);
                self.observed.nodes.remove(&k);
            }
            ["exited", kind] => {
                let marker = self.observed.volumes.get(&k).and_then(|volume| volume.marker);
                let kind = exit_kind(kind)?;
                (pod.container, pod.ready) = (ContainerState::Terminated(kind.code()), false);
                pod.exit = Some(NodeExit { kind, marker: marker.filter(|_| kind != ExitKind::DiskLost) });
                self.observed.nodes.remove(&k);
            }
            _ => return Err("no such edit of a pod".into()),
        }
        Ok(())
    }

    fn edit_node(&mut self, k: u32, words: &[&str]) -> Result<(), String> {
        let cluster_id = self.observed.resource.cluster_id.unwrap_or(0xc1);
        let mut state = self.observed.node(k).cloned().unwrap_or_default();
        let incarnation = state.marker.map_or(7, |marker| marker.incarnation);
        match words {
            ["silent"] => {
                self.observed.nodes.insert(k, NodeReport::Unreachable);
                return Ok(());
            }
            ["uninitialized"] => state = NodeState::default(),
            ["member", id] => state.marker = Some(Marker { cluster_id, raft_id: number(id)?, incarnation }),
            ["foreign", cluster_id] => {
                let cluster_id = names::parse_id(cluster_id).ok_or("no id")?;
                state.marker = Some(Marker { cluster_id, raft_id: 1, incarnation });
            }
            ["stopping"] => state.stopping = true,
            ["settings", "unknown"] => state.settings = None,
            ["settings", version, pairs @ ..] => {
                state.settings = Some(Settings { version: number(version)?, values: settings(pairs)?, refused: None });
            }
            ["refused", pairs @ ..] => {
                let refused = Some((settings(pairs)?, "it is wrong".to_owned()));
                state.settings.get_or_insert_default().refused = refused;
            }
            _ => return Err("no such edit of a node".into()),
        }
        self.observed.nodes.insert(k, NodeReport::Answered(state));
        Ok(())
    }

    fn edit_volume(&mut self, k: u32, words: &[&str]) -> Result<(), String> {
        let cluster_id = self.observed.resource.cluster_id.unwrap_or(0xc1);
        if words == ["missing"] {
            self.observed.volumes.remove(&k);
            return Ok(());
        }
        let volume = self.observed.volumes.entry(k).or_insert_with(|| ObservedVolume {
            uid: format!("volume-{k}"),
            resource_version: "1".into(),
            ..Default::default()
        });
        let label = |cluster_id, raft_id| Some(Marker { cluster_id, raft_id, incarnation: 7 });
        match words {
            ["there"] => {}
            ["terminating"] => volume.terminating = true,
            ["unlabelled"] => (volume.marker, volume.unclear) = (None, false),
            ["unclear"] => (volume.marker, volume.unclear) = (None, true),
            ["label", id] => volume.marker = label(cluster_id, number(id)?),
            ["label", id, "of", foreign] => {
                volume.marker = label(names::parse_id(foreign).ok_or("no id")?, number(id)?);
            }
            ["detached"] => volume.detached = true,
            ["pinned", state] => volume.pinned = Some(Host { name: "lost".into(), state: host_state(state)? }),
            _ => return Err("no such edit of a volume".into()),
        }
        Ok(())
    }

    fn edit_list(&mut self, words: &[&str]) -> Result<(), String> {
        if words == ["none"] {
            self.observed.members = None;
            return Ok(());
        }
        let cluster_id = self.observed.resource.cluster_id.unwrap_or(0xc1);
        let list =
            self.observed.members.get_or_insert_with(|| MemberList { cluster_id, leader: 1, ..Default::default() });
        match words {
            ["there"] => {}
            ["in-flight"] => list.change_in_flight = true,
            ["disputed", k] => self.observed.dissent = dissent(k, false)?,
            ["outvotes", k] => self.observed.dissent = dissent(k, true)?,
            ["alarm", kind, id] => {
                list.alarms.insert((alarm(kind)?, number(id)?));
            }
            ["leader", id] => list.leader = number(id)?,
            ["cluster", id] => list.cluster_id = names::parse_id(id).ok_or("no id")?,
            ["foreign", id] => {
                let foreign = Member { peer_urls: vec!["http://elsewhere:2380".into()], ..Default::default() };
                list.members.insert(number(id)?, foreign);
            }
            ["removed", id] => {
                list.removed.insert(number(id)?);
            }
            ["never-removed", id] => {
                list.removed.remove(&number::<u64>(id)?);
            }
            _ => return Err("no such edit of the list".into()),
        }
        Ok(())
    }

    fn edit_member(&mut self, k: u32, words: &[&str]) -> Result<(), String> {
        let url = names::peer_url(&self.world.cluster, k);
        let list = self.observed.members.as_mut().ok_or("there is no list")?;
        let caught_up = Progress { match_index: 100, active: true, caught_up: true, ..Progress::default() };
        if let ["listed", id] = words {
            let member = Member {
                peer_urls: vec![url],
                learner: true,
                progress: Some(Progress::default()),
                ..Default::default()
            };
            list.members.insert(number(id)?, member);
            return Ok(());
        }
        let found = list.members.iter_mut().find(|(_, member)| member.peer_urls.contains(&url));
        let (id, member) = found.ok_or("no such member")?;
        let id = *id;
        let progress = member.progress.get_or_insert(caught_up);
        match words {
            ["removed"] => {
                list.members.remove(&id);
                list.removed.insert(id);
            }
            ["leads"] => {
                member.progress = None;
                let former = std::mem::replace(&mut list.leader, id);
                if let Some(former) = list.members.get_mut(&former).filter(|_| former != id) {
                    former.progress = Some(caught_up);
                }
            }
            ["learner"] => member.learner = true,
            ["voter"] => member.learner = false,
            ["started"] => member.started = true,
            ["unstarted"] => member.started = false,
            ["inactive"] => progress.active = false,
            ["behind"] => progress.caught_up = false,
            ["snapshot"] => progress.snapshot_running = true,
            ["caught-up"] => *progress = caught_up,
            ["at", index] => progress.match_index = number(index)?,
            ["still", seconds] => progress.still_seconds = number(seconds)?,
            _ => return Err("no such edit of a member".into()),
        }
        Ok(())
    }

    fn edit_status(&mut self, words: &[&str]) -> Result<(), String> {
        let now = self.observed.now;
        let resource = &mut self.observed.resource;
        match words {
            ["no-id"] => resource.cluster_id = None,
            ["id", id] => resource.cluster_id = names::parse_id(id),
            ["not-bootstrapped"] => resource.bootstrapped = false,
            ["bootstrapped"] => resource.bootstrapped = true,
            ["no-finalizer"] => resource.finalizer = false,
            ["plan", step, reason, ordinal, member, ago] => {
                resource.plan = Some(PlanLatch {
                    step: (*step).to_owned(),
                    reason: (*reason != "-").then(|| (*reason).to_owned()),
                    ordinal: ordinal.parse().ok(),
                    member: member.parse().ok(),
                    since: now - number::<i64>(ago)?,
                });
            }
            _ => return Err("no such edit of the status".into()),
        }
        Ok(())
    }
}

fn dissent(k: &str, outvoted: bool) -> Result<Option<Dissent>, String> {
    Ok(Some(Dissent { pods: BTreeSet::from([number::<u32>(k)?]), outvoted }))
}

fn new_pod(k: u32) -> ObservedPod {
    ObservedPod {
        uid: format!("pod-{k}"),
        resource_version: "1".into(),
        phase: PodPhase::Pending,
        revision: Some("a".into()),
        ..Default::default()
    }
}

/// `name=value` each.
fn settings(pairs: &[&str]) -> Result<BTreeMap<String, String>, String> {
    let pair = |pair: &&str| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    pairs.iter().map(pair).collect::<Option<_>>().ok_or_else(|| "no name=value".to_owned())
}

fn host_state(word: &str) -> Result<HostState, String> {
    match word {
        "unknown" => Ok(HostState::Unknown),
        "present" => Ok(HostState::Present),
        "gone" => Ok(HostState::Gone),
        "out-of-service" => Ok(HostState::OutOfService),
        _ => Err(format!("no such host state: {word}")),
    }
}

fn alarm(word: &str) -> Result<Alarm, String> {
    let known = [Alarm::NoSpace, Alarm::Corrupt];
    known.into_iter().find(|alarm| alarm.as_str() == word).ok_or_else(|| format!("no such alarm: {word}"))
}

fn exit_kind(word: &str) -> Result<ExitKind, String> {
    ExitKind::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or_else(|| format!("no such exit: {word}"))
}

fn describe(plan: &Plan) -> Vec<String> {
    let mut lines = vec![headline(plan)];
    if !plan.then.is_empty() {
        lines.push(format!("  then {}", plan.then.join(", ")));
    }
    if let (Some(blocked), true) = (&plan.blocked_by, plan.step != Step::Wait) {
        lines.push(format!("  blocked by {}: {}", blocked.reason, blocked.message));
    }
    lines.extend(plan.human_may.iter().map(|action| format!("  you may {action}")));
    lines
}

/// Row, step and everything that the step was decided on.
fn headline(plan: &Plan) -> String {
    let Plan { row, step, blocked_by, .. } = plan;
    let name = step.name();
    let detail = match step {
        Step::Wait => blocked_by.as_ref().map_or(String::new(), |b| format!("{}: {}", b.reason, b.message)),
        Step::Settled | Step::DropFinalizer { .. } | Step::DeleteBudget { .. } | Step::DeleteSet { .. } => {
            String::new()
        }
        Step::Bootstrap(BootstrapStep::Intend { .. }) => "intend".into(),
        Step::Bootstrap(BootstrapStep::Call { pod, .. }) => format!("call pod {}", pod.ordinal),
        Step::Bootstrap(BootstrapStep::Latch { .. }) => "latch".into(),
        Step::Bootstrap(BootstrapStep::Adopt { cluster_id, .. }) => format!("adopt {cluster_id:x}"),
        Step::AddLearner { ordinal, membership_index, .. } => format!("pod {ordinal} @{membership_index}"),
        Step::Join { pod, marker, membership_index, .. } => {
            format!("pod {} member {} @{membership_index}", pod.ordinal, marker.raft_id)
        }
        Step::LabelVolume { volume, label: VolumeLabel::Member(marker) } => {
            format!("volume {} member {}", volume.ordinal, marker.raft_id)
        }
        Step::LabelVolume { volume, label: VolumeLabel::Detached } => format!("volume {} detached", volume.ordinal),
        Step::ScaleOut { replicas, .. } | Step::ScaleIn { replicas, .. } => format!("to {replicas}"),
        Step::Promote { ordinal, raft_id, membership_index }
        | Step::RemoveMember { ordinal, raft_id, membership_index } => {
            format!("pod {ordinal} member {raft_id} @{membership_index}")
        }
        Step::RecreateSet { fields, .. } => fields.join(", "),
        Step::SetConfig { pod, marker, version, settings } => {
            let pairs: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("pod {} member {} version {version} {}", pod.ordinal, marker.raft_id, pairs.join(" "))
        }
        Step::PrepareStop { pod, marker } => format!("pod {} member {}", pod.ordinal, marker.raft_id),
        Step::MoveLeader { from, to, .. } => format!("from {from} to {to}"),
        Step::DropVolume { volume, raft_id } => match raft_id {
            Some(id) => format!("volume {} of removed member {id}", volume.ordinal),
            None => format!("volume {}", volume.ordinal),
        },
        Step::RestartPod { pod, mode, writes_pause } => {
            let note = if *writes_pause { ", writes pause" } else { "" };
            format!("pod {} by {}{note}", pod.ordinal, mode.as_str())
        }
    };
    if detail.is_empty() { format!("{row} {name}") } else { format!("{row} {name} {detail}") }
}
