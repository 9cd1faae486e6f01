//! The apply thread: committed entries in, one write batch per run, then events, then answers. An event or an answer never
//! leaves before the batch is visible.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use balsa_proto::log::Membership;
use balsa_proto::mvccpb::event::EventType;
use parking_lot::RwLock;
use prometheus::Histogram;
use prost::Message;
use raft::eraftpb::{ConfChange, Entry};
use tracing::{info, warn};

use super::changes::is_change;
use super::credentials::Credentials;
use super::failpoint;
use super::fatal::{ExitCode, Fatal};
use super::inbox::{Inbox, Input};
use super::keeper::Keeper;
use super::leases::Leases;
use super::space::Space;
use super::status::Status;
use super::waiters::Waiters;
use super::watch::WatchHub;
use super::{Failure, Store};
use crate::domain::apply::{ApplyError, Effects, StateMachine};
use crate::domain::command::{MEMBERSHIP_CHANGE, Outcome, ProposalId};
use crate::domain::mvcc::{Revisions, Tally};
use crate::domain::refusal::Refusal;
use crate::metrics;
use crate::storage::{SnapshotPoint, rocks::KeySpaceOptions};

/// Bytes of entries applied as one write batch; more makes the first of them wait too long.
const RUN_BYTES: usize = 1 << 20;

/// How long a removed member goes on telling its clients so, unless it is stopped before.
const REMOVED_GRACE: Duration = Duration::from_secs(5);

/// What the driver hands over, in order.
pub(crate) enum Work {
    /// Committed entries.
    Apply(Vec<Entry>),
    /// The log has switched to the key space `name`, a snapshot at `point`.
    Install { name: String, point: SnapshotPoint },
}

/// A proposal's sequence and what became of it.
pub(crate) type Answer = (u64, Result<Outcome, Failure>);

/// A proposal and what it came to.
type Applied = (ProposalId, Result<Outcome, Refusal>);

/// What the applier tells the driver.
pub(crate) struct Report {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) conf_changes: Vec<ConfChange>,
    /// What became of the membership changes that were proposed here.
    pub(crate) changes: Vec<Answer>,
    pub(crate) membership: Option<Arc<Membership>>,
    pub(crate) bytes: usize,
    /// It was a snapshot and not entries: what it holds was answered to nobody.
    pub(crate) installed: bool,
}

/// The applier's state; it lives on its thread.
pub(crate) struct Applier {
    pub(crate) machine: StateMachine<Store>,
    pub(crate) store: Arc<RwLock<Arc<Store>>>,
    pub(crate) directory: PathBuf,
    pub(crate) options: KeySpaceOptions,
    pub(crate) work: Receiver<Work>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) status: Arc<RwLock<Arc<Status>>>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) space: Arc<Space>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) fatal: Fatal,
    /// Applying that takes longer is logged and counted.
    pub(crate) slow: Duration,
    pub(crate) member_id: u64,
    pub(crate) incarnation: u64,
    pub(crate) removed: Arc<AtomicBool>,
}

impl Applier {
    /// Runs until the driver is gone or the disk fails.
    pub(crate) fn run(mut self) {
        self.publish_status();
        while let Ok(mut work) = self.work.recv() {
            loop {
                let (done, next) = match work {
                    Work::Apply(entries) => self.apply_some(entries),
                    Work::Install { name, point } => (self.install(&name, &point), None),
                };
                if let Err(error) = done {
                    self.fatal.apply(&error);
                    return;
                }
                match next {
                    Some(next) => work = next,
                    None => break,
                }
            }
        }
    }

    /// Applies `entries` together with what else waits, up to the bound. Hands back work of another kind.
    fn apply_some(&mut self, mut entries: Vec<Entry>) -> (Result<(), ApplyError>, Option<Work>) {
        let mut bytes = size(&entries);
        let mut next = None;
        while bytes < RUN_BYTES {
            match self.work.try_recv() {
                Ok(Work::Apply(more)) => {
                    bytes += size(&more);
                    entries.extend(more);
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        (self.apply(&entries), next)
    }

    /// In one run, or in several if they supersede much.
    fn apply(&mut self, mut entries: &[Entry]) -> Result<(), ApplyError> {
        while !entries.is_empty() {
            entries = self.apply_run(entries)?;
        }
        Ok(())
    }

    /// Hands back the entries that are left.
    fn apply_run<'e>(&mut self, entries: &'e [Entry]) -> Result<&'e [Entry], ApplyError> {
        let started = Instant::now();
        failpoint::hit("apply-before-write")?;
        let effects = self.machine.apply_announced(entries, |effects| self.credentials.announce(effects))?;
        failpoint::hit("apply-after-write")?;
        let (done, left) = entries.split_at(entries.partition_point(|entry| entry.index <= effects.index));
        let bytes = size(done);
        metrics::APPLY_COMMIT.observe(started.elapsed().as_secs_f64());
        if started.elapsed() > self.slow {
            warn_of_slow(done, &effects, started.elapsed(), self.slow);
        }
        self.keeper.applied(bytes, done.len());
        if count(&effects) > 0 {
            self.space.grew();
        }
        self.hub.publish_all(&effects.events, &effects.unlisted);
        self.leases.applied(&effects.leases);
        if let Some(compacted) = effects.compacted {
            self.hub.compacted(compacted);
            self.keeper.compact(compacted);
        }
        self.publish_status();
        observe(&effects, started.elapsed());
        let Effects { index, term, outcomes, conf_changes, membership, .. } = effects;
        let changes = self.answer(outcomes);
        self.check_removed(&changes);
        if !conf_changes.is_empty() {
            failpoint::hit("change-before-raft")?;
        }
        let report = Report { index, term, conf_changes, changes, membership, bytes, installed: false };
        self.inbox.report(Input::Applied(report));
        Ok(left)
    }

    /// Answers what was proposed here, but for membership changes: those the driver answers, once Raft knows them too.
    /// Whoever has the answer may ask for the next change at once, and Raft takes one at a time.
    fn answer(&self, outcomes: Vec<Applied>) -> Vec<Answer> {
        let mut changes = Vec::new();
        for (id, outcome) in outcomes {
            if id.origin != self.member_id || id.incarnation != self.incarnation {
                continue;
            }
            let outcome = outcome.map_err(Failure::from);
            match is_change(id.sequence) {
                true => changes.push((id.sequence, outcome)),
                false => self.waiters.complete(id.sequence, outcome),
            }
        }
        changes
    }

    /// Switches to an installed snapshot. The log names it already, so a crash before the end only repeats this. None says that
    /// this member was removed: Raft refuses one whose configuration lacks it, and an id is never given again. Who missed its own
    /// removal hears of it from its peers (`notice_removal`).
    fn install(&mut self, name: &str, point: &SnapshotPoint) -> Result<(), ApplyError> {
        metrics::SNAPSHOT_INSTALLING.set(1);
        let store = Arc::new(Store::open(&self.directory.join(name), &self.options)?);
        self.machine = StateMachine::recover(store.clone())?;
        self.machine.count_keys()?;
        self.machine.between_parts(|| failpoint::hit("apply-part"));
        self.credentials.replace(self.machine.auth().clone());
        let old = std::mem::replace(&mut *self.store.write(), store);
        failpoint::hit("snapshot-opened")?;
        self.keeper.installed();
        self.hub.reset(Revisions { revision: self.machine.revision(), compacted: self.machine.compacted() });
        self.publish_status();
        metrics::SNAPSHOT_INSTALLING.set(0);
        info!(index = point.index, name, "applied snapshot");
        // Readers and the keeper may hold it still. What a crash leaves goes at the next start.
        old.retire();
        drop(old);
        self.inbox.report(Input::Applied(Report {
            index: point.index,
            term: point.term,
            conf_changes: Vec::new(),
            changes: Vec::new(),
            membership: Some(self.machine.membership().clone()),
            bytes: 0,
            installed: true,
        }));
        Ok(())
    }

    /// A member that was removed takes no part any more. The leader has refused its proposals since it logged the
    /// removal, so what has no answer by now is in no log: its clients are told that, and have time to go elsewhere.
    fn check_removed(&self, changes: &[Answer]) {
        if !self.machine.membership().removed.contains(&self.member_id) || self.removed.swap(true, Ordering::SeqCst) {
            return;
        }
        for (sequence, outcome) in changes {
            self.waiters.complete(*sequence, outcome.clone());
        }
        self.waiters.fail_all(&Failure::NotLeader { leader: None });
        let message = format!("member {:x} was removed from the cluster", self.member_id);
        warn!(message, "ending soon");
        let fatal = self.fatal.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REMOVED_GRACE).await;
            fatal.end(ExitCode::ExitMemberRemoved, message);
        });
    }

    fn publish_status(&self) {
        let applied = self.machine.applied();
        let mut slot = self.status.write();
        let status = Arc::make_mut(&mut slot);
        status.applied = applied.index;
        status.revision = self.machine.revision();
        status.compacted = self.machine.compacted();
        status.membership = self.machine.membership().clone();
        status.maintenance = self.machine.maintenance().clone();
        status.counts = self.machine.counts().cloned();
    }
}

/// As etcd warns, of a whole run: commands are applied together, and no single one of them took long or not.
fn warn_of_slow(entries: &[Entry], effects: &Effects, took: Duration, expected: Duration) {
    metrics::SLOW_APPLIES.inc();
    let (first, last) = (entries.first(), entries.last());
    let index = |entry: Option<&Entry>| entry.map_or(0, |entry| entry.index);
    let answered: usize = effects.outcomes.iter().map(answer_size).sum();
    let (request, response) = (commands(&effects.kinds), format!("size:{answered}"));
    let (first, last, bytes) = (index(first), index(last), size(entries));
    let prefix = "";
    warn!(?took, "expected-duration" = ?expected, prefix, request, response, first, last, bytes, "apply request took too long");
}

/// How many of each kind, such as `Put:3 Txn:1`, in the order of the alphabet.
fn commands(names: &[&str]) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    names.iter().for_each(|name| *kinds.entry(name).or_default() += 1);
    kinds.iter().map(|(kind, count)| format!("{kind}:{count}")).collect::<Vec<_>>().join(" ")
}

fn answer_size((_, outcome): &Applied) -> usize {
    match outcome {
        Ok(Outcome::Put(answer)) => answer.encoded_len(),
        Ok(Outcome::DeleteRange(answer)) => answer.encoded_len(),
        Ok(Outcome::Txn(answer)) => answer.encoded_len(),
        Ok(Outcome::Compact(answer)) => answer.encoded_len(),
        Ok(Outcome::LeaseGrant(answer)) => answer.encoded_len(),
        Ok(Outcome::LeaseRevoke(answer)) => answer.encoded_len(),
        Ok(Outcome::Alarm(answer)) => answer.encoded_len(),
        Ok(_) | Err(_) => 0,
    }
}

/// Counts what was applied. The answer is how many keys were set.
fn count(effects: &Effects) -> u64 {
    let events = effects.events.iter().flat_map(|revision| &revision.events);
    let put = events.filter(|event| event.r#type() == EventType::Put).filter_map(|event| event.kv.as_ref());
    let listed: usize = put.map(|kv| kv.key.len() + kv.value.len()).sum();
    let unlisted: u64 = effects.unlisted.iter().map(|revision| revision.put_bytes).sum();
    metrics::PUT_BYTES.add(i64::try_from(listed as u64 + unlisted).unwrap_or(i64::MAX));
    let Tally { ranges, puts, deletes, txns } = effects.tally;
    metrics::RANGES.inc_by(ranges);
    metrics::PUTS.inc_by(puts);
    metrics::DELETES.inc_by(deletes);
    metrics::TXNS.inc_by(txns);
    puts
}

/// Every command took as long as the write batch that it was applied in with others.
fn observe(effects: &Effects, took: Duration) {
    // In the order of first use: a run has few kinds.
    let mut kinds: Vec<(&'static str, bool, Histogram)> = Vec::new();
    for (op, (_, outcome)) in effects.kinds.iter().zip(&effects.outcomes) {
        let success = has_success(outcome);
        let known = kinds.iter().find(|(kind, good, _)| (kind, *good) == (op, success));
        let histogram = match known {
            _ if *op == MEMBERSHIP_CHANGE => continue,
            Some((_, _, histogram)) => histogram,
            None => {
                let labels = ["v3", op, if success { "true" } else { "false" }];
                kinds.push((op, success, metrics::APPLY_SECONDS.with_label_values(&labels)));
                &kinds[kinds.len() - 1].2
            }
        };
        histogram.observe(took.as_secs_f64());
    }
}

/// As etcd sees it: what was compacted already is done.
fn has_success(outcome: &Result<Outcome, Refusal>) -> bool {
    matches!(outcome, Ok(_) | Err(Refusal::Compacted))
}

fn size(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.data.len()).sum()
}

#[cfg(test)]
mod tests {
    use balsa_proto::etcdserverpb as pb;

    use super::*;

    #[test]
    fn a_run_is_told_by_the_kinds_of_its_commands() {
        let id = ProposalId { origin: 1, incarnation: 1, sequence: 1 };
        let put =
            || (id, Ok(Outcome::Put(pb::PutResponse { header: Some(pb::ResponseHeader::default()), prev_kv: None })));
        let outcomes =
            [put(), (id, Ok(Outcome::Txn(pb::TxnResponse::default()))), put(), (id, Err(Refusal::Compacted))];
        assert_eq!(outcomes.iter().map(answer_size).collect::<Vec<_>>(), [2, 0, 2, 0]);
        assert_eq!(commands(&["Put", "Txn", "Put", "Compaction"]), "Compaction:1 Put:2 Txn:1");
        assert_eq!(commands(&[]), "");
        assert_eq!(outcomes.map(|(_, outcome)| has_success(&outcome)), [true; 4]);
        assert!(!has_success(&Err(Refusal::LeaseNotFound)));
    }
}
