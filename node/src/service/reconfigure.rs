//! etcd's strict reconfiguration check: a change by etcd's own API is refused when it would endanger the quorum. Pure:
//! the membership and the leader's view of it in, a verdict out. The node service has checks of its own in the engine.

use balsa_proto::log::{Member, Membership};

use super::failure::Error;
use crate::engine::status::Progress;
use crate::engine::{Failure, Status, is_in_sync};

/// Whether a voter may be added: the voters that have started must make a quorum of the configuration with the new one in
/// it, and nobody may be away. A single started voter may always get a second, or it could never grow.
///
/// # Errors
/// `NotEnoughStarted`, `Unhealthy`.
pub fn may_add_voter(membership: &Membership, progress: &[Progress]) -> Result<(), Error> {
    let voters = voters(membership);
    let started = voters.iter().filter(|member| member.started).count();
    let after = voters.len() + 1;
    let second_of_one = started == 1 && after == 2;
    if !second_of_one && started < quorum(after) {
        return Err(Error::NotEnoughStarted);
    }
    nobody_is_away(membership, progress)
}

/// Whether all voters are active, which etcd demands before a member is added, a learner too. With two of three active, a
/// fourth that does not come up would leave nobody to take it out again; and who adds members one after the other waits for
/// each to come up.
///
/// # Errors
/// `Unhealthy`.
pub fn nobody_is_away(membership: &Membership, progress: &[Progress]) -> Result<(), Error> {
    let voters = voters(membership);
    let alone = voters.len() == 1;
    if alone || active(&voters, progress) == voters.len() { Ok(()) } else { Err(Error::Unhealthy) }
}

/// Whether a member may be made a voter, as the leader's `status` has it, in the order in which etcd looks: that it is behind
/// comes first, of a voter too; then, if the check is `strict`, that too few have started, where the member counts as started
/// once more; last that it is no learner, or is not there, which is the engine's to say. So is of a learner alone that
/// it is behind: its numbers are newer.
///
/// # Errors
/// `NotEnoughStarted`, `NotCaughtUp`.
pub fn may_promote(status: &Status, id: u64, strict: bool) -> Result<(), Error> {
    let Some(member) = status.membership.members.iter().find(|member| member.id == id) else { return Ok(()) };
    let voters = voters(&status.membership);
    let started = voters.iter().filter(|member| member.started).count() + 1;
    let enough = !strict || started >= quorum(voters.len() + 1);
    if enough && member.is_learner {
        return Ok(());
    }
    let matched = |id| status.progress.iter().find(|peer| peer.id == id).map_or(0, |peer| peer.match_index);
    let (own, leader, commit) = (matched(id), matched(status.raft_id), status.commit);
    // A voter that answers may have by now what the last status said that it lacks.
    let answers = || status.progress.iter().any(|peer| peer.id == id && peer.active);
    let is_near = is_in_sync(own, leader, commit) || !member.is_learner && answers();
    if !is_near {
        return Err(Failure::NotCaughtUp { id, matched: own, commit }.into());
    }
    if enough { Ok(()) } else { Err(Error::NotEnoughStarted) }
}

/// Whether a member may be removed: the remaining voters that have started must make a quorum. Learners always may.
///
/// # Errors
/// `NotEnoughStarted`, also for the only voter.
pub fn may_remove(membership: &Membership, id: u64) -> Result<(), Error> {
    let voters = voters(membership);
    if !voters.iter().any(|member| member.id == id) {
        return Ok(());
    }
    let remaining = voters.len() - 1;
    let started = voters.iter().filter(|member| member.id != id && member.started).count();
    if remaining == 0 || started < quorum(remaining) { Err(Error::NotEnoughStarted) } else { Ok(()) }
}

/// Whether this member, which knows no leader, waits for one to take a voter out: without one that it `reached` there must
/// still be a quorum of those that it reached; one that is away is no loss.
///
/// # Errors
/// `Unhealthy`; those of [`may_remove`].
pub fn may_wait_to_remove(membership: &Membership, reached: &[Progress], id: u64) -> Result<(), Error> {
    may_remove(membership, id)?;
    let voters = voters(membership);
    let leaves = voters.iter().any(|member| member.id == id) && reached.iter().any(|peer| peer.id == id && peer.active);
    if leaves && active(&voters, reached) <= quorum(voters.len() - 1) { Err(Error::Unhealthy) } else { Ok(()) }
}

/// Whether one more learner is within the bound.
///
/// # Errors
/// `TooManyLearners`.
pub fn may_add_learner(membership: &Membership, max_learners: usize) -> Result<(), Error> {
    let learners = membership.members.iter().filter(|member| member.is_learner).count();
    if learners >= max_learners { Err(Error::TooManyLearners) } else { Ok(()) }
}

/// The voter to hand leadership to when `leaving` goes: active, and with the longest log.
pub fn successor(membership: &Membership, progress: &[Progress], leaving: u64) -> Option<u64> {
    progress
        .iter()
        .filter(|peer| peer.active && peer.id != leaving)
        .filter(|peer| membership.members.iter().any(|member| member.id == peer.id && !member.is_learner))
        .max_by_key(|peer| (peer.match_index, std::cmp::Reverse(peer.id)))
        .map(|peer| peer.id)
}

fn voters(membership: &Membership) -> Vec<&Member> {
    membership.members.iter().filter(|member| !member.is_learner).collect()
}

const fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

fn active(voters: &[&Member], progress: &[Progress]) -> usize {
    voters.iter().filter(|member| progress.iter().any(|peer| peer.id == member.id && peer.active)).count()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// One letter per member: `V` voter, `v` voter not started, `L` learner; ids from 1.
    fn members(spec: &str) -> Membership {
        let members = spec.chars().zip(1..).map(|(kind, id)| Member {
            id,
            is_learner: kind == 'L',
            started: kind != 'v',
            ..Member::default()
        });
        Membership { members: members.collect(), ..Membership::default() }
    }

    fn progress(active: &[u64]) -> Vec<Progress> {
        active.iter().map(|id| Progress { id: *id, match_index: 10, active: true, ..Progress::default() }).collect()
    }

    #[test]
    fn a_voter_is_added_only_to_a_started_quorum_of_which_nobody_is_away() {
        assert_eq!(may_add_voter(&members("V"), &progress(&[1])), Ok(()), "1 to 2 is the only way to grow");
        assert_eq!(may_add_voter(&members("Vv"), &progress(&[1])), Err(Error::NotEnoughStarted));
        assert_eq!(may_add_voter(&members("VVv"), &progress(&[1, 2])), Err(Error::NotEnoughStarted));
        assert_eq!(may_add_voter(&members("VVV"), &progress(&[1, 2, 3])), Ok(()));
        assert_eq!(may_add_voter(&members("VVV"), &progress(&[1, 2])), Err(Error::Unhealthy), "the fourth may be down");
        assert_eq!(may_add_voter(&members("VV"), &progress(&[1, 2])), Ok(()));
        assert_eq!(may_add_voter(&members("VVVVV"), &progress(&[1, 2, 3, 4, 5])), Ok(()));
        assert_eq!(may_add_voter(&members("VVVVV"), &progress(&[1, 2, 3, 4])), Err(Error::Unhealthy), "as in etcd");
        assert_eq!(may_add_voter(&members("VVVv"), &progress(&[1, 2, 3])), Err(Error::Unhealthy), "one at a time");
    }

    #[test]
    fn a_learner_is_added_only_where_a_voter_would_do_no_harm() {
        assert_eq!(nobody_is_away(&members("V"), &progress(&[1])), Ok(()));
        assert_eq!(nobody_is_away(&members("VVV"), &progress(&[1, 2])), Err(Error::Unhealthy));
        assert_eq!(nobody_is_away(&members("VVVL"), &progress(&[1, 2, 3])), Ok(()), "learners do not count");
    }

    #[test]
    fn a_removal_leaves_a_started_quorum() {
        assert_eq!(may_remove(&members("V"), 1), Err(Error::NotEnoughStarted), "the last voter stays");
        assert_eq!(may_remove(&members("Vv"), 2), Ok(()));
        assert_eq!(may_remove(&members("Vv"), 1), Err(Error::NotEnoughStarted));
        assert_eq!(may_remove(&members("VvL"), 3), Ok(()), "learners never count");
    }

    #[test]
    fn without_a_leader_only_a_member_that_is_away_may_be_removed_from_a_lost_quorum() {
        let three = members("VVVL");
        assert_eq!(may_wait_to_remove(&three, &progress(&[1]), 1), Err(Error::Unhealthy));
        assert_eq!(may_wait_to_remove(&three, &progress(&[1]), 2), Ok(()));
        assert_eq!(may_wait_to_remove(&three, &progress(&[1, 2]), 2), Err(Error::Unhealthy), "as etcd counts");
        assert_eq!(may_wait_to_remove(&three, &progress(&[1, 2, 3]), 2), Ok(()), "they are about to elect a leader");
        assert_eq!(may_wait_to_remove(&three, &progress(&[1, 4]), 4), Ok(()), "a learner");
        assert_eq!(may_wait_to_remove(&three, &progress(&[1]), 9), Ok(()), "the leader knows that there is none");
        assert_eq!(may_wait_to_remove(&members("V"), &progress(&[1]), 1), Err(Error::NotEnoughStarted));
    }

    #[test]
    fn a_promotion_counts_the_learner_as_started() {
        let of = |spec: &str, learner: u64| {
            let mut progress = progress(&[1, 4]);
            progress[1].match_index = learner;
            let (membership, progress) = (Arc::new(members(spec)), Arc::new(progress));
            Status { raft_id: 1, commit: 10, membership, progress, ..Status::default() }
        };
        assert_eq!(may_promote(&of("VVvL", 0), 4, true), Ok(()), "the engine looks at its log");
        assert_eq!(may_promote(&of("VvvL", 9), 4, true), Err(Error::NotEnoughStarted));
        assert_eq!(may_promote(&of("VvvL", 9), 4, false), Ok(()));
        let behind =
            |id, matched| -> Result<(), Error> { Err(Failure::NotCaughtUp { id, matched, commit: 10 }.into()) };
        assert_eq!(may_promote(&of("VvvL", 8), 4, true), behind(4, 8), "what etcd looks at first");
        assert_eq!(may_promote(&of("VVVL", 9), 9, true), Ok(()), "the engine knows that there is none");
        assert_eq!(may_promote(&of("VVVL", 9), 1, true), Ok(()), "the engine knows that it is no learner");
        assert_eq!(may_promote(&of("VVVL", 9), 2, true), behind(2, 0), "a voter that is away");
        assert_eq!(may_promote(&of("VVVL", 9), 2, false), behind(2, 0));
        assert_eq!(may_promote(&of("VVVV", 8), 4, true), Ok(()), "a voter that answers");
        assert_eq!(may_promote(&of("vvvv", 9), 4, true), Err(Error::NotEnoughStarted));
        assert_eq!(may_add_learner(&members("VL"), 1), Err(Error::TooManyLearners));
        assert_eq!(may_add_learner(&members("VL"), 2), Ok(()));
    }

    #[test]
    fn leadership_goes_to_an_active_voter_with_the_longest_log() {
        let mut peers = progress(&[1, 2, 3, 4]);
        peers[2].match_index = 11;
        peers[3].match_index = 12;
        assert_eq!(successor(&members("VVVL"), &peers, 1), Some(3), "4 is a learner");
        peers[2].active = false;
        assert_eq!(successor(&members("VVVL"), &peers, 1), Some(2));
        assert_eq!(successor(&members("V"), &progress(&[1]), 1), None);
    }
}
