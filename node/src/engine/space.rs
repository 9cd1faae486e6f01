//! The quota: how much the key space holds against how much it may, measured again and again, and the alarm NOSPACE
//! when it is too much. Each member looks at its own disk; the alarm goes through the log, so all of them refuse alike.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use balsa_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction};

use super::{Failure, Handle, Limit};
use crate::domain::command::Command;
use crate::domain::maintenance;
use crate::domain::refusal::Refusal;
use crate::storage::KeySpace;

/// How often the key space is measured while there is a quota. etcd's own number follows its commits, each 100 ms.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// What is known of the space of one member.
#[derive(Debug)]
pub(crate) struct Space {
    /// Bytes that the key space may hold; 0 and below for no limit.
    quota: Limit<i64>,
    /// Bytes that it held when it was last measured.
    held: AtomicU64,
    /// Something that takes space was applied since the alarm was last thought of.
    grown: AtomicBool,
}

impl Space {
    /// Nothing measured yet.
    pub(crate) fn new(quota: Limit<i64>) -> Self {
        Self { quota, held: AtomicU64::new(0), grown: AtomicBool::new(false) }
    }

    /// A put was applied.
    pub(crate) fn grew(&self) {
        self.grown.store(true, Ordering::Relaxed);
    }

    fn quota(&self) -> Option<u64> {
        u64::try_from(self.quota.get()).ok().filter(|quota| *quota > 0)
    }

    fn fits(&self, cost: u64) -> bool {
        self.quota().is_none_or(|quota| self.held.load(Ordering::Relaxed).saturating_add(cost) < quota)
    }
}

impl Handle {
    /// The quota in bytes; 0 and below for none.
    pub fn quota(&self) -> i64 {
        self.0.space.quota.get()
    }

    /// Whether there is space for a command on this member. If not, the alarm is raised before the answer.
    ///
    /// # Errors
    /// `NoSpace`; those of proposing the alarm.
    pub(super) async fn admit(&self, command: &Command) -> Result<(), Failure> {
        let cost = maintenance::cost(command);
        if cost == 0 || self.0.space.fits(cost) {
            return Ok(());
        }
        self.raise_no_space().await?;
        Err(Refusal::NoSpace.into())
    }

    async fn raise_no_space(&self) -> Result<(), Failure> {
        let alarm = AlarmMember { member_id: self.member_id(), alarm: AlarmType::Nospace.into() };
        if self.status().maintenance.alarms.contains(&alarm) {
            return Ok(());
        }
        tracing::warn!(quota = self.quota(), held = self.0.space.held.load(Ordering::Relaxed), "the quota is used up");
        let request =
            AlarmRequest { action: AlarmAction::Activate.into(), member_id: alarm.member_id, alarm: alarm.alarm };
        // Not `propose`, which asks for space: the alarm needs none.
        self.propose_internal(Command::Alarm(request)).await.map(drop)
    }
}

/// Measures for as long as the member runs, and raises the alarm of a member whose own clients write nothing: it fills
/// up with what it applies. An alarm that somebody cleared comes back with the next put.
pub(crate) async fn watch(handle: Handle) {
    loop {
        tokio::time::sleep(MEASURE_EVERY).await;
        let space = &handle.0.space;
        if space.quota().is_none() {
            continue;
        }
        space.held.store(handle.store().size_bytes().0, Ordering::Relaxed);
        if space.fits(0) || !space.grown.swap(false, Ordering::Relaxed) {
            continue;
        }
        match handle.raise_no_space().await {
            Err(Failure::Stopped) => return,
            Err(error) => tracing::warn!(%error, "the alarm NOSPACE could not be raised"),
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_quota_everything_fits() {
        for none in [0, -1] {
            let space = Space::new(Limit::new(move || none));
            space.held.store(u64::MAX - 1, Ordering::Relaxed);
            assert!(space.fits(u64::MAX));
        }
    }

    #[test]
    fn the_quota_is_used_up_when_it_is_reached() {
        let space = Space::new(Limit::new(|| 1_000));
        space.held.store(700, Ordering::Relaxed);
        assert!(space.fits(299) && !space.fits(300));
    }
}
