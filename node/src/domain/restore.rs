//! A key space from a snapshot becomes the first state of a new cluster: keys, leases and users stay, members are others.

use balsa_proto::log;
use prost::Message;

use super::apply::{ApplyError, StateMachine};
use super::membership;
use super::mvcc::Revisions;
use super::mvcc::encoding::{self, CONF_STATE, MAINTENANCE, MEMBERSHIP, REVISIONS};
use crate::storage::{KeySpace, SnapshotPoint, Table, WriteBatch};

/// What becomes of the revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RevisionChange {
    /// Added to the current revision, so that no revision that a client may have seen after the snapshot comes again.
    pub bump: i64,
    /// Everything below the new current revision counts as compacted, so that watchers from before must list anew.
    pub mark_compacted: bool,
}

/// Gives the state in `key_space` new members, durably. Their ids count on from where the old cluster's ended, in the
/// order given, and the old ones count as removed: no id is used twice. Alarms were raised by members that are gone, so
/// they go too. Returns the new membership and where the log begins.
///
/// # Errors
/// Of the store; `Entry` when the key space is that of no member.
pub fn restore<K: KeySpace>(
    key_space: std::sync::Arc<K>,
    cluster_id: u64,
    members: Vec<log::Member>,
    change: RevisionChange,
) -> Result<(log::Membership, SnapshotPoint), ApplyError> {
    let machine = StateMachine::recover(key_space.clone())?;
    let (index, term) = (machine.applied().index, machine.applied().term);
    if index == 0 {
        return Err(ApplyError::Entry { index, what: "the key space holds no state of a member".to_owned() });
    }
    let membership = renew(machine.membership(), cluster_id, members);
    let conf_state = membership::conf_state(&membership);
    let stored = log::ConfState { voters: conf_state.voters.clone(), learners: conf_state.learners.clone() };
    let revision = machine.revision().saturating_add(change.bump);
    let compacted = if change.mark_compacted { revision } else { machine.compacted() };
    let mut batch = WriteBatch::default();
    batch.put(Table::Members, MEMBERSHIP, membership.encode_to_vec());
    batch.put(Table::Meta, CONF_STATE, stored.encode_to_vec());
    batch.put(Table::Meta, REVISIONS, encoding::encode_revisions(Revisions { revision, compacted }));
    batch.delete(Table::Meta, MAINTENANCE);
    key_space.write(batch)?;
    key_space.flush()?;
    Ok((membership, SnapshotPoint { index, term, conf_state }))
}

fn renew(old: &log::Membership, cluster_id: u64, members: Vec<log::Member>) -> log::Membership {
    let first = old.next_id.max(1);
    let count = members.len() as u64;
    let mut removed = old.removed.clone();
    removed.extend(old.members.iter().map(|member| member.id));
    removed.sort_unstable();
    removed.dedup();
    let members = (first..).zip(members).map(|(id, member)| log::Member { id, ..member }).collect();
    log::Membership { cluster_id, index: old.index + 1, next_id: first + count, members, removed }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::memory::MemoryKeySpace;

    fn member(id: u64, name: &str) -> log::Member {
        log::Member { id, name: name.to_owned(), ..log::Member::default() }
    }

    fn founded() -> Arc<MemoryKeySpace> {
        let key_space = Arc::new(MemoryKeySpace::default());
        let membership = log::Membership {
            cluster_id: 9,
            index: 4,
            next_id: 6,
            members: vec![member(2, "a"), member(5, "b")],
            removed: vec![1, 3, 4],
        };
        let point = SnapshotPoint { index: 70, term: 3, conf_state: membership::conf_state(&membership) };
        StateMachine::found(&*key_space, &membership, &point).unwrap();
        key_space
    }

    #[test]
    fn no_id_of_the_old_cluster_is_used_again() {
        let key_space = founded();
        let members = vec![member(0, "x"), member(0, "y"), member(0, "z")];
        let (membership, point) = restore(key_space.clone(), 11, members, RevisionChange::default()).unwrap();
        assert_eq!(membership.members.iter().map(|member| member.id).collect::<Vec<_>>(), [6, 7, 8]);
        assert_eq!((membership.cluster_id, membership.next_id), (11, 9));
        assert_eq!(membership.removed, [1, 2, 3, 4, 5]);
        assert_eq!((point.index, point.term, point.conf_state.voters.clone()), (70, 3, vec![6, 7, 8]));
        let machine = StateMachine::open(key_space).unwrap();
        assert_eq!(**machine.membership(), membership);
        assert_eq!((machine.applied().conf_state.clone(), machine.revision()), (point.conf_state, 1));
    }

    #[test]
    fn a_bumped_revision_hides_what_watchers_saw() {
        let key_space = founded();
        let change = RevisionChange { bump: 1_000, mark_compacted: true };
        restore(key_space.clone(), 11, vec![member(0, "x")], change).unwrap();
        let machine = StateMachine::open(key_space).unwrap();
        assert_eq!((machine.revision(), machine.compacted()), (1_001, 1_001));
    }

    #[test]
    fn an_empty_key_space_is_no_snapshot() {
        let empty = Arc::new(MemoryKeySpace::default());
        assert!(restore(empty, 11, vec![member(0, "x")], RevisionChange::default()).is_err());
    }
}
