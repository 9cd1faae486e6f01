//! The replicated membership: which changes are legal, and what they make of it. Pure; the same answer on every member.
//!
//! Owns the rules of one change at a time. It must not know who leads, who is caught up or who is alive: those checks
//! come before the proposal, in the engine, and need no agreement.

use balsa_proto::log;
use log::membership_change::Change;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState};

use super::refusal::Refusal;

/// Whether a change may be made to the membership as it is.
///
/// A change that is done already says so (`PeerUrlExists`, `NotLearner`, `MemberRemoved`) even when the membership has
/// moved since it was planned, so a repeated call can be told from one that came too late. A change that sets nothing
/// is `ConfigChanged`: no member of this version plans one.
///
/// # Errors
/// The refusal.
pub fn check(change: &log::MembershipChange, membership: &log::Membership) -> Result<(), Refusal> {
    let moved = Refusal::ConfigChanged { current: membership.index, planned_on: change.planned_on };
    let Some(wanted) = &change.change else { return Err(moved) };
    check_done(wanted, membership)?;
    if change.planned_on != 0 && change.planned_on != membership.index {
        return Err(moved);
    }
    match wanted {
        Change::Add(add) if add.id < membership.next_id => Err(Refusal::MemberIdExists(add.id)),
        Change::Add(add) if add.id > membership.next_id => Err(moved),
        Change::Remove(remove) if is_last_voter(membership, remove.id) => Err(Refusal::LastVoter(remove.id)),
        _ => Ok(()),
    }
}

/// The refusals that no fence hides: the change is done, or its member is not there.
fn check_done(change: &Change, membership: &log::Membership) -> Result<(), Refusal> {
    match change {
        Change::Add(add) => urls_are_free(membership, 0, &add.peer_urls),
        Change::Update(update) => {
            find(membership, update.id)?;
            urls_are_free(membership, update.id, &update.peer_urls)
        }
        Change::Promote(promote) => match find(membership, promote.id)?.is_learner {
            true => Ok(()),
            false => Err(Refusal::NotLearner(promote.id)),
        },
        Change::Remove(remove) => find(membership, remove.id).map(|_| ()),
    }
}

/// The membership after the change.
///
/// # Errors
/// The refusal of [`check`].
pub fn apply(change: &log::MembershipChange, membership: &log::Membership) -> Result<log::Membership, Refusal> {
    check(change, membership)?;
    let mut after = membership.clone();
    after.index += 1;
    let member = |after: &mut log::Membership, id: u64, set: &dyn Fn(&mut log::Member)| {
        after.members.iter_mut().filter(|member| member.id == id).for_each(set);
    };
    match &change.change {
        Some(Change::Add(add)) => {
            after.next_id = after.next_id.saturating_add(1);
            after.members.push(log::Member {
                id: add.id,
                peer_urls: add.peer_urls.clone(),
                is_learner: add.is_learner,
                ..Default::default()
            });
        }
        Some(Change::Promote(promote)) => member(&mut after, promote.id, &|member| member.is_learner = false),
        Some(Change::Update(update)) => {
            member(&mut after, update.id, &|member| member.peer_urls.clone_from(&update.peer_urls));
        }
        Some(Change::Remove(remove)) => {
            after.members.retain(|member| member.id != remove.id);
            after.removed.push(remove.id);
        }
        None => {}
    }
    Ok(after)
}

/// The membership after a member published itself. That is no change of the configuration: the index stays.
///
/// # Errors
/// `MemberRemoved`, `MemberNotFound`.
pub fn publish(publish: &log::PublishMember, membership: &log::Membership) -> Result<log::Membership, Refusal> {
    find(membership, publish.id)?;
    let mut after = membership.clone();
    for member in after.members.iter_mut().filter(|member| member.id == publish.id) {
        member.name.clone_from(&publish.name);
        member.client_urls.clone_from(&publish.client_urls);
        member.started = true;
    }
    Ok(after)
}

/// What Raft is told of an accepted change; None for one that does not concern it (new URLs).
pub fn conf_change(change: &Change) -> Option<ConfChange> {
    let (kind, id) = match change {
        Change::Add(add) if add.is_learner => (ConfChangeType::AddLearnerNode, add.id),
        Change::Add(add) => (ConfChangeType::AddNode, add.id),
        Change::Promote(promote) => (ConfChangeType::AddNode, promote.id),
        Change::Remove(remove) => (ConfChangeType::RemoveNode, remove.id),
        Change::Update(_) => return None,
    };
    let mut conf_change = ConfChange::default();
    conf_change.set_change_type(kind);
    conf_change.set_node_id(id);
    Some(conf_change)
}

/// The configuration that Raft runs with under this membership, ids ascending.
pub fn conf_state(membership: &log::Membership) -> ConfState {
    let ids = |learner: bool| {
        let members = membership.members.iter().filter(|member| member.is_learner == learner);
        let mut ids: Vec<u64> = members.map(|member| member.id).collect();
        ids.sort_unstable();
        ids
    };
    let mut state = ConfState::default();
    state.set_voters(ids(false));
    state.set_learners(ids(true));
    state
}

fn find(membership: &log::Membership, id: u64) -> Result<&log::Member, Refusal> {
    match membership.members.iter().find(|member| member.id == id) {
        Some(member) => Ok(member),
        None if membership.removed.contains(&id) => Err(Refusal::MemberRemoved(id)),
        None => Err(Refusal::MemberNotFound(id)),
    }
}

/// Whether no member but `own` has one of the URLs.
///
/// # Errors
/// `PeerUrlExists`.
pub fn urls_are_free(membership: &log::Membership, own: u64, urls: &[String]) -> Result<(), Refusal> {
    let mut others = membership.members.iter().filter(|member| member.id != own);
    match others.any(|member| member.peer_urls.iter().any(|url| urls.contains(url))) {
        true => Err(Refusal::PeerUrlExists),
        false => Ok(()),
    }
}

fn is_last_voter(membership: &log::Membership, id: u64) -> bool {
    let mut voters = membership.members.iter().filter(|member| !member.is_learner);
    voters.next().is_some_and(|voter| voter.id == id) && voters.next().is_none()
}
