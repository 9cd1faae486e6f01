//! Which list of members is believed, where members tell different ones. Pure.
//!
//! Each list was linearizable when it was given, so they differ while a change is being made, for a moment. What lasts is a
//! member that tells of another life: one whose volume was put back to an older state, say, may lead a cluster that only it is a
//! member of, in a term of any height. One answer is a proof; of several that differ none is, unless a majority of all the voters
//! that anybody names stands behind it.

use std::collections::{BTreeMap, BTreeSet};

use crate::observed::{Dissent, MemberList, NodeReport, NodeState};

/// What one pass was told: by ordinal what each node is, and the list that it gave.
pub(super) type Told = BTreeMap<u32, (NodeReport, Option<MemberList>)>;

/// The list to plan on, and who tells otherwise. Lists of other clusters than the latched one speak only where there is no other,
/// so that somebody learns of them (G4, B6).
pub(super) fn believed(told: &Told, latched: Option<u64>) -> (Option<MemberList>, Option<Dissent>) {
    let all = || told.iter().filter_map(|(k, (_, list))| Some((*k, list.as_ref()?)));
    let ours: Vec<(u32, &MemberList)> = all().filter(|(_, list)| latched == Some(list.cluster_id)).collect();
    let lists = if ours.is_empty() { all().collect() } else { ours };
    let Some((_, newest)) = lists.iter().max_by_key(|(_, list)| (list.membership_index, list.term)) else {
        return (None, None);
    };
    let dissent = dissent(told, &lists, newest);
    if dissent.is_empty() {
        return (Some(best(&lists, newest)), None);
    }
    let voters = voters(told, &lists);
    let has_majority = |list: &MemberList| {
        let behind = lists.iter().filter(|(_, other)| is_same(other, list)).filter_map(|(k, _)| raft_id(told, *k));
        behind.filter(|id| voters.contains(id)).collect::<BTreeSet<u64>>().len() * 2 > voters.len()
    };
    match lists.iter().map(|(_, list)| *list).find(|list| has_majority(list)) {
        Some(list) => {
            let pods = self::dissent(told, &lists, list);
            (Some(best(&lists, list)), Some(Dissent { pods, outvoted: true }))
        }
        None => {
            let pods = lists.iter().map(|(k, _)| *k).chain(dissent).collect();
            (Some(best(&lists, newest)), Some(Dissent { pods, outvoted: false }))
        }
    }
}

/// The same members, voters and removed ones, at the same index. Names and starts are published without a change.
fn is_same(a: &MemberList, b: &MemberList) -> bool {
    let members = |list: &MemberList| -> BTreeMap<u64, (bool, Vec<String>)> {
        list.members.iter().map(|(id, member)| (*id, (member.learner, member.peer_urls.clone()))).collect()
    };
    (a.cluster_id, a.membership_index) == (b.cluster_id, b.membership_index)
        && a.removed == b.removed
        && members(a) == members(b)
}

/// Of the givers of one and the same membership the one that knows most: of the newest term, with the leader's view.
fn best(lists: &[(u32, &MemberList)], of: &MemberList) -> MemberList {
    let same = lists.iter().map(|(_, list)| *list).filter(|list| is_same(list, of));
    let seen = |list: &MemberList| list.members.values().filter(|member| member.progress.is_some()).count();
    same.max_by_key(|list| (list.term, seen(list))).unwrap_or(of).clone()
}

fn state(told: &Told, k: u32) -> Option<&NodeState> {
    match told.get(&k) {
        Some((NodeReport::Answered(state), _)) => Some(state),
        Some((NodeReport::Unreachable, _)) | None => None,
    }
}

fn raft_id(told: &Told, k: u32) -> Option<u64> {
    state(told, k)?.marker.map(|marker| marker.raft_id)
}

/// Everybody that a list, or a node of itself, calls a voter.
fn voters(told: &Told, lists: &[(u32, &MemberList)]) -> BTreeSet<u64> {
    let listed = lists.iter().flat_map(|(_, list)| list.members.iter().filter(|(_, member)| !member.learner));
    let by_themselves = told.keys().filter(|k| state(told, **k).is_some_and(|node| node.voter));
    listed.map(|(id, _)| *id).chain(by_themselves.filter_map(|k| raft_id(told, *k))).collect()
}

/// The pods whose nodes tell otherwise than this list: by a list of their own, by a newer membership that they have applied, or
/// by being a member that it knows nothing of.
fn dissent(told: &Told, lists: &[(u32, &MemberList)], list: &MemberList) -> BTreeSet<u32> {
    let by_list = lists.iter().filter(|(_, other)| !is_same(other, list)).map(|(k, _)| *k);
    let by_state = told.keys().copied().filter(|k| {
        let member = state(told, *k).and_then(|node| Some((node, node.marker?)));
        member.filter(|(_, marker)| marker.cluster_id == list.cluster_id).is_some_and(|(node, marker)| {
            let known = list.members.contains_key(&marker.raft_id) || list.removed.contains(&marker.raft_id);
            node.membership_index > list.membership_index || !known
        })
    });
    by_list.chain(by_state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{Marker, Member, Progress};

    const OURS: u64 = 0xc1;

    fn list(index: u64, voters: &[u64], removed: &[u64]) -> MemberList {
        let members = voters.iter().map(|id| (*id, Member::default())).collect();
        let removed = removed.iter().copied().collect();
        MemberList { cluster_id: OURS, membership_index: index, term: 5, members, removed, ..MemberList::default() }
    }

    /// Member `k + 1` on ordinal `k`, which has applied the membership of this index.
    fn node(k: u32, index: u64) -> NodeReport {
        let marker = Some(Marker { cluster_id: OURS, raft_id: u64::from(k) + 1, incarnation: 1 });
        NodeReport::Answered(NodeState { marker, voter: true, membership_index: index, ..NodeState::default() })
    }

    /// What the nodes of ordinals 0, 1, … say.
    fn told(answers: Vec<(NodeReport, Option<MemberList>)>) -> Told {
        (0..).zip(answers).collect()
    }

    /// Index and voters that are believed; who tells otherwise, and whether they are outvoted.
    fn verdict(told: &Told) -> (u64, Vec<u64>, Vec<u32>, Option<bool>) {
        let (list, dissent) = believed(told, Some(OURS));
        let list = list.expect("somebody gave a list");
        let pods = dissent.iter().flat_map(|dissent| dissent.pods.iter().copied()).collect();
        (list.membership_index, list.members.keys().copied().collect(), pods, dissent.map(|dissent| dissent.outvoted))
    }

    #[test]
    fn one_linearizable_answer_is_a_proof() {
        let alone = told(vec![
            (node(0, 7), Some(list(7, &[1, 2, 3], &[]))),
            (NodeReport::Unreachable, None),
            (node(2, 7), None),
        ]);
        assert_eq!(verdict(&alone), (7, vec![1, 2, 3], vec![], None));
        // One that lags in applying what the leader has applied tells nothing else.
        let lagging = told(vec![(node(0, 7), Some(list(7, &[1, 2], &[]))), (node(1, 6), None)]);
        assert_eq!(verdict(&lagging), (7, vec![1, 2], vec![], None));
        assert_eq!(believed(&told(vec![(node(0, 7), None)]), Some(OURS)), (None, None));
    }

    /// The one that leads knows how far the others are.
    #[test]
    fn of_the_same_lists_the_leaders_is_taken() {
        let mut leaders = list(7, &[1, 2], &[]);
        leaders.members.get_mut(&1).expect("member 1").progress = Some(Progress::default());
        let mut older = list(7, &[1, 2], &[]);
        (older.term, older.leader) = (4, 1);
        for answers in [vec![leaders.clone(), older.clone()], vec![older, leaders.clone()]] {
            let answers = (0..).zip(answers).map(|(k, list)| (node(k, 7), Some(list))).collect();
            assert_eq!(believed(&told(answers), Some(OURS)), (Some(leaders.clone()), None));
        }
    }

    /// A volume that was put back: its member founds its old cluster anew, alone, in whatever term.
    #[test]
    fn a_member_of_an_older_life_is_outvoted_whatever_its_term() {
        let mut old = list(1, &[1], &[]);
        old.term = 99;
        let now = || Some(list(7, &[1, 2, 3], &[]));
        let three = told(vec![(node(0, 1), Some(old.clone())), (node(1, 7), now()), (node(2, 7), now())]);
        assert_eq!(verdict(&three), (7, vec![1, 2, 3], vec![0], Some(true)));
        // With one that says nothing there is no majority, whoever that is.
        let two = told(vec![(node(0, 1), Some(old.clone())), (node(1, 7), now()), (NodeReport::Unreachable, None)]);
        assert_eq!(verdict(&two), (7, vec![1, 2, 3], vec![0, 1], Some(false)));
        // Those who know a newer one need not lead to be heard.
        let silent = told(vec![(node(0, 1), Some(old)), (node(1, 7), None), (node(2, 7), None)]);
        assert_eq!(verdict(&silent), (1, vec![1], vec![0, 1, 2], Some(false)));
    }

    /// Whatever index it claims: the others are voters by their own word, and do not stand behind it.
    #[test]
    fn a_member_that_tells_of_fewer_voters_is_not_believed() {
        for index in [6, 7, 8] {
            let lie = || Some(list(index, &[1], &[2, 3]));
            let now = || Some(list(7, &[1, 2, 3], &[]));
            let three = told(vec![(node(0, index), lie()), (node(1, 7), now()), (node(2, 7), now())]);
            assert_eq!(verdict(&three), (7, vec![1, 2, 3], vec![0], Some(true)), "{index}");
            let two = told(vec![(node(0, index), lie()), (node(1, 7), now())]);
            assert_eq!(verdict(&two).3, Some(false), "{index}");
        }
    }

    #[test]
    fn lists_around_a_change_differ_and_a_majority_decides() {
        let (before, after) = (|| Some(list(7, &[1, 2, 3], &[])), || Some(list(8, &[1, 2, 3, 4], &[])));
        let late =
            told(vec![(node(0, 8), after()), (node(1, 8), after()), (node(2, 7), before()), (node(3, 8), after())]);
        assert_eq!(verdict(&late), (8, vec![1, 2, 3, 4], vec![2], Some(true)));
        let early =
            told(vec![(node(0, 8), after()), (node(1, 7), before()), (node(2, 7), before()), (node(3, 7), None)]);
        assert_eq!(verdict(&early).3, Some(false), "two of four");
    }

    #[test]
    fn a_list_of_another_cluster_speaks_only_where_there_is_no_other() {
        let foreign = || Some(MemberList { cluster_id: 9, ..list(99, &[1], &[]) });
        let mixed = told(vec![(node(0, 7), foreign()), (node(1, 7), Some(list(7, &[1, 2], &[])))]);
        assert_eq!(verdict(&mixed), (7, vec![1, 2], vec![], None));
        let alone = told(vec![(node(0, 7), foreign())]);
        assert_eq!(believed(&alone, Some(OURS)), (foreign(), None));
    }
}
