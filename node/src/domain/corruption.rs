//! Whether members that say they hold the same data do, judged by hashes of their key histories. Pure.

use std::collections::BTreeMap;

use super::mvcc::HashKv;

/// What a peer answered when it was asked for its hash at the leader's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerHash {
    /// The peer.
    pub id: u64,
    /// Its hash, with its own current and compacted revisions.
    pub hash: HashKv,
}

/// The member whose data cannot be right, if any. `first` is the leader's hash before the peers were asked, at its then
/// current revision; `second` is one of the same kind after a read index that came after their answers. 0 names the
/// leader itself.
///
/// A peer that is behind or has compacted less says nothing. A peer that differs from the leader may be right and the
/// leader wrong: whoever is named, all members stop changing data, and people look.
pub fn suspect(first: &HashKv, second: &HashKv, peers: &[PeerHash]) -> Option<u64> {
    let same_state = first.revision == second.revision && first.compact_revision == second.compact_revision;
    if same_state && first.hash != second.hash {
        return Some(0);
    }
    let wrong = |peer: &&PeerHash| {
        let PeerHash { hash, .. } = peer;
        hash.revision > second.revision
            || hash.compact_revision > second.compact_revision
            || (hash.compact_revision == first.compact_revision && hash.hash != first.hash)
    };
    peers.iter().find(wrong).map(|peer| peer.id)
}

/// What the hashes of one compacted revision say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtCompaction {
    /// All members are the same.
    Same,
    /// Those that could be compared are the same; some could not be.
    Unsure,
    /// These differ from a majority. 0 when there is none, so that any may be wrong.
    Wrong(Vec<u64>),
}

/// Compares the histories that one compaction left: a member that has compacted less or more since says nothing. `own` is
/// this member's, who is `id`; `members` is how many there are.
pub fn at_compaction(id: u64, own: &HashKv, peers: &[PeerHash], members: usize) -> AtCompaction {
    let mut by_hash = BTreeMap::from([(own.hash, vec![id])]);
    for peer in comparable(own, peers) {
        by_hash.entry(peer.hash.hash).or_default().push(peer.id);
    }
    let compared: usize = by_hash.values().map(Vec::len).sum();
    match by_hash.values().position(|same| same.len() > members / 2) {
        _ if by_hash.len() == 1 && compared == members => AtCompaction::Same,
        _ if by_hash.len() == 1 => AtCompaction::Unsure,
        None => AtCompaction::Wrong(vec![0]),
        Some(right) => {
            let wrong = by_hash.values().enumerate().filter(|(place, _)| *place != right);
            AtCompaction::Wrong(wrong.flat_map(|(_, ids)| ids.iter().copied()).collect())
        }
    }
}

/// What a member finds that compares itself before it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// No peer that could be compared differs.
    Same,
    /// A majority of the members holds one other history.
    Wrong,
    /// Peers differ, and nobody can say who is wrong.
    Differs,
}

/// Judges a member that starts with the history of `own` among `members`.
pub fn at_start(own: &HashKv, peers: &[PeerHash], members: usize) -> AtStart {
    let mut others: BTreeMap<u32, usize> = BTreeMap::new();
    for peer in comparable(own, peers).filter(|peer| peer.hash.hash != own.hash) {
        *others.entry(peer.hash.hash).or_default() += 1;
    }
    match others.values().max() {
        None => AtStart::Same,
        Some(most) if *most > members / 2 => AtStart::Wrong,
        Some(_) => AtStart::Differs,
    }
}

fn comparable<'a>(own: &HashKv, peers: &'a [PeerHash]) -> impl Iterator<Item = &'a PeerHash> {
    let compacted = own.compact_revision;
    peers.iter().filter(move |peer| peer.hash.compact_revision == compacted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: HashKv = HashKv { hash: 7, compact_revision: 3, hash_revision: 10, revision: 10 };

    fn peer(hash: u32, compact_revision: i64, revision: i64) -> [PeerHash; 1] {
        [PeerHash { id: 2, hash: HashKv { hash, compact_revision, hash_revision: 10, revision } }]
    }

    #[test]
    fn equal_members_are_not_suspected() {
        assert_eq!(suspect(&OWN, &OWN, &peer(7, 3, 10)), None);
        assert_eq!(suspect(&OWN, &OWN, &[]), None, "nobody who answers says nothing");
        let later = HashKv { hash: 8, hash_revision: 12, revision: 12, ..OWN };
        assert_eq!(suspect(&OWN, &later, &peer(7, 3, 12)), None, "everybody went on meanwhile");
        assert_eq!(suspect(&OWN, &OWN, &peer(9, 1, 10)), None, "a peer that has compacted less hashes more");
    }

    #[test]
    fn another_hash_of_the_same_history_is_suspect() {
        assert_eq!(suspect(&OWN, &OWN, &peer(9, 3, 10)), Some(2));
        assert_eq!(suspect(&OWN, &HashKv { hash: 8, ..OWN }, &peer(7, 3, 10)), Some(0), "the leader's own changed");
    }

    #[test]
    fn nobody_is_ahead_of_the_leader() {
        assert_eq!(suspect(&OWN, &OWN, &peer(7, 3, 11)), Some(2));
        assert_eq!(suspect(&OWN, &OWN, &peer(7, 4, 10)), Some(2));
    }

    fn hashes(peers: &[(u64, u32, i64)]) -> Vec<PeerHash> {
        let peer = |&(id, hash, compact_revision)| PeerHash { id, hash: HashKv { hash, compact_revision, ..OWN } };
        peers.iter().map(peer).collect()
    }

    #[test]
    fn a_compaction_leaves_the_same_everywhere() {
        let verdict = |peers: &[(u64, u32, i64)], members| at_compaction(1, &OWN, &hashes(peers), members);
        assert_eq!(verdict(&[(2, 7, 3), (3, 7, 3)], 3), AtCompaction::Same);
        assert_eq!(verdict(&[], 1), AtCompaction::Same);
        assert_eq!(verdict(&[(2, 7, 3)], 3), AtCompaction::Unsure, "one did not answer");
        assert_eq!(verdict(&[(2, 7, 3), (3, 9, 4)], 3), AtCompaction::Unsure, "one has compacted more since");
        assert_eq!(verdict(&[(2, 7, 3), (3, 9, 3)], 3), AtCompaction::Wrong(vec![3]));
        assert_eq!(verdict(&[(2, 9, 3), (3, 9, 3)], 3), AtCompaction::Wrong(vec![1]), "the leader itself");
        assert_eq!(verdict(&[(2, 9, 3)], 3), AtCompaction::Wrong(vec![0]), "one against one of three");
        assert_eq!(verdict(&[(2, 8, 3), (3, 9, 3)], 3), AtCompaction::Wrong(vec![0]));
    }

    #[test]
    fn a_member_does_not_start_with_another_history() {
        let verdict = |peers: &[(u64, u32, i64)]| at_start(&OWN, &hashes(peers), 3);
        assert_eq!(verdict(&[]), AtStart::Same, "nobody answers: all start at once");
        assert_eq!(verdict(&[(2, 7, 3), (3, 7, 3)]), AtStart::Same);
        assert_eq!(verdict(&[(2, 9, 2), (3, 9, 2)]), AtStart::Same, "they have compacted less");
        assert_eq!(verdict(&[(2, 9, 3), (3, 9, 3)]), AtStart::Wrong);
        assert_eq!(verdict(&[(2, 7, 3), (3, 9, 3)]), AtStart::Differs, "2 may be wrong");
        assert_eq!(verdict(&[(2, 8, 3), (3, 9, 3)]), AtStart::Differs);
    }
}
