//! Membership changes, transfers of leadership and snapshot installs under way: what was asked, who waits. The checks that
//! need the leader's view of its peers are made here; the model checks the rest again when the entry is applied.

use std::sync::Arc;
use std::time::Instant;

use balsa_proto::log;
use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType};
use tokio::sync::oneshot;

use super::Failure;
use super::handle::Change;
use super::inbox::Reply;
use super::status::Status;
use super::waiters::Waiters;
use crate::domain::command::Outcome;
use crate::domain::membership;
use crate::domain::raft::replica::CAUGHT_UP_ENTRIES;
use crate::domain::raft::{NotProposed, Replica, Role};
use crate::storage::LogStore;

/// See the module.
#[derive(Default)]
pub(crate) struct Changes {
    transfer: Option<Transfer>,
    install: Option<Reply<bool>>,
    sequence: u64,
    /// The member whose removal is in the log and not applied yet.
    removing: Option<u64>,
}

/// A transfer of leadership that runs.
struct Transfer {
    target: u64,
    deadline: Instant,
    /// Whoever asked for this target.
    waiting: Vec<Reply<()>>,
}

/// Callers that wait for one transfer. It is over within an election time-out, so more are no use of it; they are refused.
const MOST_WAITING: usize = 64;

/// What a membership change is held to before it is proposed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// The index of the membership that it was planned on; 0 for any.
    pub(crate) planned_on: u64,
    /// A removal may leave fewer active voters than a quorum has.
    pub(crate) at_any_price: bool,
}

/// Sequences of membership changes lie in the upper half, apart from those of commands.
const CHANGE_SEQUENCES: u64 = 1 << 63;

/// Whether a sequence is that of a membership change.
pub(crate) fn is_change(sequence: u64) -> bool {
    sequence & CHANGE_SEQUENCES != 0
}

impl Changes {
    /// Proposes a change, or answers why not.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn propose<L: LogStore>(
        &mut self,
        replica: &mut Replica<L>,
        status: &Status,
        waiters: &Arc<Waiters>,
        (origin, incarnation): (u64, u64),
        change: Change,
        terms: Terms,
        reply: Reply<Arc<log::Membership>>,
    ) {
        let change = with_next_id(change, &status.membership);
        if let Err(failure) = check(replica, status, &change, terms) {
            let _ = reply.send(Err(failure));
            return;
        }
        self.sequence += 1;
        let sequence = CHANGE_SEQUENCES | self.sequence;
        let conf_change = conf_change(&change);
        let planned_on = terms.planned_on;
        let context = log::MembershipChange { origin, incarnation, sequence, planned_on, change: Some(change) };
        let removes = match &context.change {
            Some(Change::Remove(remove)) => Some(remove.id),
            _ => None,
        };
        let answer = waiters.register(sequence, Bytes::new());
        waiters.sent(sequence, replica.role().term);
        match replica.propose_change(conf_change, context.encode_to_vec()) {
            Ok(()) => self.removing = removes,
            Err(reason) => waiters.complete(sequence, Err(not_proposed(reason, replica.role()))),
        }
        relay(answer, reply);
    }

    /// Starts a transfer, joins the one to the same target that runs, or answers why not. One to another target ends it, as in
    /// etcd, and so does one to the leader itself.
    pub(crate) fn transfer<L: LogStore>(
        &mut self,
        replica: &mut Replica<L>,
        target: u64,
        deadline: Instant,
        reply: Reply<()>,
    ) {
        let role = replica.role();
        if role.leader == target && target != 0 {
            if role.leads {
                self.end_transfer(&Err(Failure::TransferTimedOut));
                replica.transfer(target);
            }
            let _ = reply.send(Ok(()));
            return;
        }
        if !role.leads {
            let _ = reply.send(Err(Failure::NotLeader { leader: Some(role.leader).filter(|id| *id != 0) }));
            return;
        }
        if !replica.is_voter(target) {
            let _ = reply.send(Err(Failure::BadTransferee));
            return;
        }
        // Raft may have given it up already, which is told at the deadline.
        let runs = replica.transferee() == Some(target);
        if let Some(running) = self.transfer.as_mut().filter(|running| runs && running.target == target) {
            match running.waiting.len() < MOST_WAITING {
                true => running.waiting.push(reply),
                false => drop(reply.send(Err(Failure::ChangeInFlight))),
            }
            return;
        }
        self.end_transfer(&Err(Failure::TransferTimedOut));
        replica.transfer(target);
        self.transfer = Some(Transfer { target, deadline, waiting: vec![reply] });
    }

    fn end_transfer(&mut self, outcome: &Result<(), Failure>) {
        for reply in self.transfer.take().into_iter().flat_map(|transfer| transfer.waiting) {
            let _ = reply.send(outcome.clone());
        }
    }

    /// The member whose removal is under way. Its proposals are refused from the moment its removal is in the log: those
    /// before it are answered when it applies the removal, so that each has a certain fate.
    pub(crate) fn removing(&self) -> Option<u64> {
        self.removing
    }

    /// No membership change is in flight any more.
    pub(crate) fn no_change_in_flight(&mut self) {
        self.removing = None;
    }

    /// Answers a transfer that ended.
    pub(crate) fn settle(&mut self, role: Role, now: Instant) {
        let Some(Transfer { target, deadline, .. }) = &self.transfer else { return };
        if role.leader == *target {
            self.end_transfer(&Ok(()));
        } else if now >= *deadline {
            self.end_transfer(&Err(Failure::TransferTimedOut));
        }
    }

    /// Somebody waits for the snapshot that is about to be stepped.
    pub(crate) fn await_install(&mut self, reply: Reply<bool>) {
        self.install = Some(reply);
    }

    /// Answers whoever waits, once.
    pub(crate) fn installed(&mut self, taken: bool) {
        if let Some(reply) = self.install.take() {
            let _ = reply.send(Ok(taken));
        }
    }
}

/// The id of a new member comes from the replicated counter, whatever the caller wrote.
fn with_next_id(change: Change, membership: &log::Membership) -> Change {
    match change {
        Change::Add(add) => Change::Add(log::AddMember { id: membership.next_id, ..add }),
        other => other,
    }
}

fn check<L: LogStore>(replica: &Replica<L>, status: &Status, change: &Change, terms: Terms) -> Result<(), Failure> {
    let role = replica.role();
    if !role.leads {
        return Err(Failure::NotLeader { leader: Some(role.leader).filter(|id| *id != 0) });
    }
    if replica.change_in_flight() || replica.transferring() {
        return Err(Failure::ChangeInFlight);
    }
    let planned =
        log::MembershipChange { planned_on: terms.planned_on, change: Some(change.clone()), ..Default::default() };
    membership::check(&planned, &status.membership)?;
    match change {
        Change::Remove(remove) => may_remove(status, remove.id, terms.at_any_price),
        Change::Promote(promote) => may_promote(replica, promote.id),
        Change::Add(_) | Change::Update(_) => Ok(()),
    }
}

/// A quorum of the voters that remain must be active, as in etcd's strict reconfiguration check, unless that is of no account.
fn may_remove(status: &Status, id: u64, at_any_price: bool) -> Result<(), Failure> {
    if id == status.raft_id {
        return Err(Failure::MoveLeaderFirst(id));
    }
    let voters = |member: &&log::Member| !member.is_learner && member.id != id;
    let remaining: Vec<u64> = status.membership.members.iter().filter(voters).map(|member| member.id).collect();
    let is_active = |voter: &&u64| status.progress.iter().any(|peer| peer.id == **voter && peer.active);
    let active = remaining.iter().filter(is_active).count();
    if active < remaining.len() / 2 + 1 && !at_any_price { Err(Failure::QuorumAtRisk) } else { Ok(()) }
}

fn may_promote<L: LogStore>(replica: &Replica<L>, id: u64) -> Result<(), Failure> {
    let progress = replica.progress();
    let matched = |id| progress.iter().find(|(member, ..)| *member == id).map_or(0, |(_, matched, ..)| *matched);
    let (commit, learner, leader) = (replica.commit(), matched(id), matched(replica.role().leader));
    if is_in_sync(learner, leader, commit) {
        return Ok(());
    }
    Err(Failure::NotCaughtUp { id, matched: learner, commit })
}

/// Whether a member is caught up, and as a learner may become a voter: it holds nine tenths of the leader's log, as in etcd, and lacks no more than the
/// bound of what is committed. A learner that will never get the rest would make a quorum of three one of four.
pub fn is_in_sync(learner: u64, leader: u64, commit: u64) -> bool {
    let share = learner.saturating_mul(10) >= leader.saturating_mul(9);
    learner > 0 && share && learner.saturating_add(CAUGHT_UP_ENTRIES) >= commit
}

/// What Raft is asked to log. Raft never applies the change of an `Update`, which has none: its entry only has to be one
/// of its kind.
fn conf_change(change: &Change) -> ConfChange {
    membership::conf_change(change).unwrap_or_else(|| {
        let mut unapplied = ConfChange::default();
        unapplied.set_change_type(ConfChangeType::AddLearnerNode);
        unapplied
    })
}

fn not_proposed(reason: NotProposed, role: Role) -> Failure {
    match reason {
        NotProposed::NotLeader => Failure::NotLeader { leader: Some(role.leader).filter(|id| *id != 0) },
        NotProposed::Transferring | NotProposed::ChangeInFlight => Failure::ChangeInFlight,
        NotProposed::Full => Failure::TooManyRequests,
    }
}

/// Hands a proposal's outcome to the caller of the change. Only applying the entry answers.
fn relay(answer: oneshot::Receiver<Result<Outcome, Failure>>, reply: Reply<Arc<log::Membership>>) {
    tokio::spawn(async move {
        let outcome = match answer.await {
            Ok(Ok(Outcome::Membership(membership))) => Ok(Arc::new(membership)),
            Ok(Ok(other)) => Err(Failure::Storage(format!("a membership change answered {other:?}"))),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Stopped),
        };
        let _ = reply.send(outcome);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_is_in_sync_by_etcds_share_and_by_the_bound() {
        for (learner, leader, commit, expected) in [
            (0, 1, 1, false),
            (1, 1, 1, true),
            (89, 100, 100, false),
            (90, 100, 100, true),
            (90, 101, 90, false),
            (9_000, 10_000, 10_000, true),
            (95_000, 100_000, 96_000, true),
            (95_000, 100_000, 96_001, false),
        ] {
            assert_eq!(is_in_sync(learner, leader, commit), expected, "{learner} of {leader}, {commit} committed");
        }
    }
}
