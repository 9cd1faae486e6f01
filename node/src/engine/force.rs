//! `--force-new-cluster`: makes a member the only one of its cluster, on its disk and before anything runs on it.
//!
//! One synced write of the log does it ([`Forced`]). Whatever ends the process before it leaves the old member, and whatever
//! ends it afterwards a member of a cluster of one that has not applied all of its log yet, as any start may find it. The rest,
//! applying and flushing, is done here so that Raft never runs with the old members again.

use raft::eraftpb::Entry;
use tracing::{info, warn};

use super::failpoint;
use super::start_error::StartError;
use crate::domain::apply::StateMachine;
use crate::domain::force::{CannotForce, Forced, Forcing};
use crate::storage::{KeySpace, LogStore, StorageError};

/// Bytes of the log that are read at once.
const READ_BYTES: u64 = 4 << 20;

impl From<CannotForce> for StartError {
    fn from(error: CannotForce) -> Self {
        match error {
            CannotForce::NoData => StartError::Config(format!("--force-new-cluster: {error}")),
            CannotForce::Removed(_) => StartError::MemberRemoved(format!("--force-new-cluster: {error}")),
            CannotForce::Entry(error) => error.into(),
        }
    }
}

/// Removes all members but `own`, which is of the cluster `cluster_id`, from a log and the state machine that belongs to it.
///
/// # Errors
/// Of the disk; `Config` when there are no data, `MemberRemoved` when this member was removed itself, with nothing changed.
pub(super) fn force<L: LogStore, K: KeySpace>(
    log: &L,
    key_space: &K,
    machine: &mut StateMachine<K>,
    (cluster_id, own): (u64, u64),
) -> Result<(), StartError> {
    let known = log.initial()?.hard_state.commit;
    let forced = plan(log, machine, own)?;
    let commit = forced.hard_state.commit;
    failpoint::hit("force-before-write")?;
    log.write(forced.as_write())?;
    failpoint::hit("force-after-write")?;
    apply_up_to(commit, log, machine)?;
    key_space.flush()?;
    failpoint::hit("force-after-flush")?;
    // etcd's words.
    info!(
        "cluster-id" = format!("{cluster_id:x}"),
        "local-member-id" = format!("{own:x}"),
        "wal-commit-index" = known,
        "commit-index" = commit,
        "forcing restart member"
    );
    warn!(
        changes = forced.entries.len(),
        "this member is a cluster of its own now; each start with --force-new-cluster removes all other members again: take the \
         flag away before members are added"
    );
    Ok(())
}

/// What the log is to end with.
fn plan<L: LogStore, K: KeySpace>(log: &L, machine: &StateMachine<K>, own: u64) -> Result<Forced, StartError> {
    let initial = log.initial()?;
    let (applied, commit) = (machine.applied().index, initial.hard_state.commit);
    let mut forcing = Forcing::new(own, machine.membership(), applied, commit)?;
    let mut next = applied + 1;
    while next <= initial.last_index {
        let entries = read(log, next, initial.last_index)?;
        next += entries.len() as u64;
        if !forcing.read(&entries)? {
            let (first, number) = (forcing.last() + 1, initial.last_index - forcing.last());
            // etcd's words, of what it throws away.
            warn!(
                "entry-index" = first,
                "commit-index-from-wal" = commit,
                "number-of-discarded-entries" = number,
                "discarding uncommitted WAL entries"
            );
            break;
        }
    }
    Ok(forcing.finish(&initial.hard_state))
}

fn apply_up_to<L: LogStore, K: KeySpace>(index: u64, log: &L, machine: &mut StateMachine<K>) -> Result<(), StartError> {
    while machine.applied().index < index {
        let entries = read(log, machine.applied().index + 1, index)?;
        // Nobody waits for an outcome, and nobody watches yet.
        machine.apply(&entries)?;
    }
    Ok(())
}

/// Entries from `first` on, at least one and none behind `last`.
fn read<L: LogStore>(log: &L, first: u64, last: u64) -> Result<Vec<Entry>, StartError> {
    let entries = log.entries(first, last + 1, READ_BYTES)?;
    if entries.is_empty() {
        return Err(StorageError::Corrupt { what: format!("the log lacks entry {first}, which is not applied") }.into());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use balsa_proto::log as stored;
    use raft::eraftpb::HardState;

    use super::*;
    use crate::domain::membership;
    use crate::storage::memory::{FailedWrite, MemoryKeySpace, MemoryLog};
    use crate::storage::{LogWrite, SnapshotPoint};

    const OWN: u64 = 3;

    /// The disk of member 3 of three, which has applied one entry and holds three more, of which it knows one to be committed.
    struct Disk {
        log: MemoryLog,
        key_space: MemoryKeySpace,
    }

    impl Disk {
        fn new() -> Self {
            let disk = Self { log: MemoryLog::default(), key_space: MemoryKeySpace::default() };
            let member = |id| stored::Member { id, ..Default::default() };
            let members = (1..=3).map(member).collect();
            let membership = stored::Membership { cluster_id: 9, index: 1, next_id: 4, members, ..Default::default() };
            let point = SnapshotPoint { index: 1, term: 1, conf_state: membership::conf_state(&membership) };
            StateMachine::found(&disk.key_space, &membership, &point).unwrap();
            let entries: Vec<Entry> = (2..=4).map(|index| Entry { index, term: 2, ..Entry::default() }).collect();
            let hard_state = HardState { term: 2, vote: 1, commit: 2, ..HardState::default() };
            let write = LogWrite {
                reset_to: Some(&point),
                entries: &entries,
                hard_state: Some(&hard_state),
                sync: true,
                ..LogWrite::default()
            };
            disk.log.write(write).unwrap();
            disk
        }

        fn force(&self) -> Result<StateMachine<MemoryKeySpace>, StartError> {
            let mut machine = StateMachine::recover(Arc::new(self.key_space.clone()))?;
            force(&self.log, &self.key_space, &mut machine, (9, OWN))?;
            Ok(machine)
        }

        /// What a power loss leaves.
        fn crash(&self) -> Self {
            Self { log: self.log.crash(), key_space: self.key_space.crash() }
        }

        /// Where the log ends and what is committed of it.
        fn end(&self) -> (u64, u64) {
            let initial = self.log.initial().unwrap();
            (initial.last_index, initial.hard_state.commit)
        }

        fn members(&self) -> Vec<u64> {
            let machine = StateMachine::open(Arc::new(self.key_space.clone())).unwrap();
            machine.membership().members.iter().map(|member| member.id).collect()
        }
    }

    #[test]
    fn it_is_done_when_it_is_answered_and_again_it_changes_nothing() {
        let disk = Disk::new();
        let machine = disk.force().unwrap();
        assert_eq!((machine.applied().index, disk.end()), (6, (6, 6)));
        let disk = disk.crash();
        assert_eq!((disk.members(), disk.end()), (vec![OWN], (6, 6)));
        assert_eq!(disk.force().unwrap().applied().index, 6);
        assert_eq!((disk.members(), disk.end()), (vec![OWN], (6, 6)));
    }

    #[test]
    fn whatever_write_fails_the_disk_is_the_old_one_or_the_new_one() {
        for left in [FailedWrite::Lost, FailedWrite::Kept] {
            let disk = Disk::new();
            disk.log.fail_write(1, left);
            assert!(matches!(disk.force(), Err(StartError::Disk(_))));
            let disk = disk.crash();
            let expected = if disk.end().0 == 6 { (6, 6) } else { (4, 2) };
            assert_eq!((disk.members(), disk.end()), (vec![1, 2, 3], expected), "{left:?}");
            // Applying, and the flush.
            for nth in 1..=2 {
                let disk = Disk::new();
                disk.key_space.fail_write(nth, left);
                assert!(matches!(disk.force(), Err(StartError::Disk(_))), "{nth}");
                let disk = disk.crash();
                assert_eq!(disk.end(), (6, 6), "the log has it, and the rest follows");
                assert_eq!(disk.force().unwrap().applied().index, 6);
                assert_eq!(disk.members(), [OWN]);
            }
        }
    }

    #[test]
    fn a_log_with_a_hole_is_corrupt_and_stays_as_it_is() {
        let disk = Disk::new();
        let point = SnapshotPoint { index: 3, term: 2, ..SnapshotPoint::default() };
        disk.log.trim(&point).unwrap();
        assert!(matches!(disk.force(), Err(StartError::Corrupt(_))));
        assert_eq!(disk.end(), (4, 2));
    }
}
