//! Whether members that say they hold the same data do, judged by hashes of their key histories. Pure.

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
}
