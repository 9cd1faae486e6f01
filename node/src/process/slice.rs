//! How long our threads ask to run at a time.
//!
//! A put passes from thread to thread about ten times on its way through three members, and each of them must be woken and find
//! a processor. Where others use the processors, a thread that wakes waits until all that are before it have had their slice: some
//! ms each time. Linux (from 6.12 on) takes from a thread how short its slice may be. One with a shorter slice comes
//! first when it wakes, and is put aside the sooner when it goes on for long; in sum it gets no more than its share.
//! So nobody is harmed, and no privilege is needed.

use std::io;
use std::time::Duration;

use super::sched_attr::{self, SchedAttr};

/// The least that Linux takes; longer ones helped less (docs/benchmarks.md).
const SLICE: Duration = Duration::from_micros(100);

/// Asks for short slices, for this thread and all that it will make. A thread whose policy is not the usual one, or whose slice is
/// shorter already, is left as it is: that was somebody's choice. A kernel that knows no slices of threads is left alone too.
///
/// # Errors
/// The system call is not allowed, or unknown.
pub(super) fn shorten() -> io::Result<()> {
    let present = sched_attr::get()?;
    let slice = SLICE.as_nanos() as u64;
    if present.sched_policy != libc::SCHED_OTHER as u32 || present.sched_runtime <= slice {
        return Ok(());
    }
    sched_attr::set(SchedAttr { sched_runtime: slice, ..present })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::block_on;

    fn slice() -> u64 {
        sched_attr::get().unwrap().sched_runtime
    }

    #[test]
    fn all_threads_of_a_node_have_short_slices_and_the_priority_that_they_had() {
        let before = sched_attr::get().unwrap();
        // An older kernel says 0 and takes nothing; who runs the test idly has chosen so.
        let is_usual = before.sched_policy == libc::SCHED_OTHER as u32;
        let most = if is_usual { SLICE.as_nanos() as u64 } else { u64::MAX };
        let wanted = before.sched_runtime.min(most);
        let node = async {
            assert_eq!(tokio::spawn(async { slice() }).await.unwrap(), wanted, "of a worker");
            assert_eq!(tokio::task::spawn_blocking(slice).await.unwrap(), wanted, "of a thread that may block");
            let own = tokio::spawn(async { std::thread::spawn(slice).join().unwrap() });
            assert_eq!(own.await.unwrap(), wanted, "of a thread that a worker made, as the driver's");
            Ok(0)
        };
        assert!(block_on(node).is_ok());
        let after = sched_attr::get().unwrap();
        assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
    }

    #[test]
    fn another_policy_is_left_alone() {
        let batch = SchedAttr { sched_policy: libc::SCHED_BATCH as u32, ..sched_attr::get().unwrap() };
        sched_attr::set(batch).unwrap();
        let before = slice();
        shorten().unwrap();
        assert_eq!((sched_attr::get().unwrap().sched_policy, slice()), (libc::SCHED_BATCH as u32, before));
    }
}
