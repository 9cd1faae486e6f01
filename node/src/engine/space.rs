//! The quota: how much the key space holds against how much it may, measured again and again, and the alarm NOSPACE
//! when it is too much. Each member looks at its own disk; the alarm goes through the log, so all of them refuse alike.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use balsa_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction};

use tokio::sync::Notify;

use super::{Failure, Handle, Limit};
use crate::domain::command::Command;
use crate::domain::maintenance;
use crate::domain::refusal::Refusal;
use crate::storage::KeySpace;

/// How often the key space is measured while there is a quota. etcd's own number follows its commits, each 100 ms.
const MEASURE_EVERY: Duration = Duration::from_millis(100);
/// How often it is looked whether there is one: it may be set at any time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known of the space of one member.
#[derive(Debug)]
pub(crate) struct Space {
    /// Bytes that the key space may hold; 0 and below for no limit.
    quota: Limit<i64>,
    /// Bytes that it held when it was last measured; 0 while it is not.
    held: AtomicU64,
    /// Something that takes space was applied since the alarm was last thought of.
    grown: AtomicBool,
    /// There is a quota.
    set: Notify,
}

impl Space {
    /// Nothing measured yet.
    pub(crate) fn new(quota: Limit<i64>) -> Self {
        Self { quota, held: AtomicU64::new(0), grown: AtomicBool::new(false), set: Notify::new() }
    }

    /// A put was applied.
    pub(crate) fn grew(&self) {
        self.grown.store(true, Ordering::Relaxed);
    }

    fn quota(&self) -> Option<u64> {
        u64::try_from(self.quota.get()).ok().filter(|quota| *quota > 0)
    }

    /// There is a quota, and it was set in this moment.
    fn is_to_be_measured(&self) -> bool {
        self.quota().is_some() && self.held.load(Ordering::Relaxed) == 0
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
        if cost != 0 && self.0.space.is_to_be_measured() {
            self.measure();
            self.0.space.set.notify_one();
        }
        if cost == 0 || self.0.space.fits(cost) {
            return Ok(());
        }
        self.raise_no_space().await?;
        Err(Refusal::NoSpace.into())
    }

    fn measure(&self) {
        self.0.space.held.store(self.store().size_bytes().0, Ordering::Relaxed);
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
        let space = &handle.0.space;
        if space.quota().is_none() {
            space.held.store(0, Ordering::Relaxed);
            let _ = tokio::time::timeout(LOOK_EVERY, space.set.notified()).await;
            continue;
        }
        tokio::time::sleep(MEASURE_EVERY).await;
        handle.measure();
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
    fn a_quota_that_was_just_set_is_measured_at_the_next_write() {
        let quota = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
        let present = quota.clone();
        let space = Space::new(Limit::new(move || present.load(Ordering::Relaxed)));
        assert!(!space.is_to_be_measured());
        quota.store(1_000, Ordering::Relaxed);
        assert!(space.is_to_be_measured());
        space.held.store(700, Ordering::Relaxed);
        assert!(!space.is_to_be_measured());
    }

    #[test]
    fn the_quota_is_used_up_when_it_is_reached() {
        let space = Space::new(Limit::new(|| 1_000));
        space.held.store(700, Ordering::Relaxed);
        assert!(space.fits(299) && !space.fits(300));
    }
}
