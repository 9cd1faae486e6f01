//! How long our threads ask to run at a time.
//!
//! A put passes from thread to thread about ten times on its way through three members, and each of them must be woken and find
//! a processor. Where others use the processors, a thread that wakes waits until all that are before it have had their slice: some
//! ms each time. Linux (from 6.12 on) takes from a thread how short its slice may be. One with a shorter slice comes
//! first when it wakes, and is put aside the sooner when it goes on for long; in sum it gets no more than its share.
//! So nobody is harmed, and no privilege is needed.

use std::time::Duration;
use std::{fs, io};

use thread_priority::{
    DeadlineFlags, RealtimeThreadSchedulePolicy, ThreadId, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy,
};

/// The least that Linux takes; longer ones helped less (docs/benchmarks.md).
const SLICE: Duration = Duration::from_micros(100);
/// The calling thread, to the system call behind deadlines.
const THIS_THREAD: ThreadId = 0;
/// `SCHED_FLAG_KEEP_POLICY`, which Linux has had since 5.3: an older one refuses the call. The library names the flags of
/// deadlines only.
const KEEP_POLICY: DeadlineFlags = DeadlineFlags::from_bits_retain(0x08);

/// Asks for short slices, for this thread and all that it will make. A thread whose policy or niceness is not the usual one is left
/// as it is: that was somebody's choice. On a kernel that knows no slices of threads nothing changes.
///
/// # Errors
/// The system call is not allowed, or unknown; there is no `/proc`.
pub(super) fn shorten() -> io::Result<()> {
    if standing()? != USUAL {
        return Ok(());
    }
    // The library makes this system call for deadlines only. As the policy is kept, the thread gets none: the kernel takes the
    // run time for its slice, and the niceness that comes with it is the usual one.
    let slice = ThreadPriority::Deadline {
        runtime: SLICE,
        deadline: Duration::ZERO,
        period: Duration::ZERO,
        flags: KEEP_POLICY,
    };
    let deadline = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Deadline);
    set_thread_priority_and_policy(THIS_THREAD, slice, deadline).map_err(|_| io::Error::last_os_error())
}

/// How the scheduler ranks a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    policy: u32,
    niceness: i32,
}

/// That of everybody to whom nobody gave another: `SCHED_OTHER`, as nice as any.
const USUAL: Standing = Standing { policy: 0, niceness: 0 };

/// That of the calling thread.
fn standing() -> io::Result<Standing> {
    let stat = fs::read_to_string("/proc/thread-self/stat")?;
    standing_in(&stat).ok_or_else(|| io::Error::other("/proc/thread-self/stat has other fields"))
}

/// Fields are counted from the parenthesis behind the name, in which there may be anything: the state is the third of all.
fn standing_in(stat: &str) -> Option<Standing> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |nth: usize| fields.get(nth - 3);
    Some(Standing { policy: field(41)?.parse().ok()?, niceness: field(19)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use thread_priority::{NormalThreadSchedulePolicy, ThreadPriorityValue, thread_native_id};

    use super::*;
    use crate::process::block_on;

    /// In ns. A kernel that knows no slices of threads shows none.
    fn slice() -> Option<u64> {
        let shown = fs::read_to_string("/proc/thread-self/sched").ok()?;
        let line = shown.lines().find(|line| line.starts_with("se.slice"))?;
        line.rsplit_once(':')?.1.trim().parse().ok()
    }

    /// Niceness 0 as the library counts.
    fn usual_niceness() -> ThreadPriority {
        ThreadPriority::Crossplatform(ThreadPriorityValue::try_from(48).unwrap())
    }

    /// Ranks the calling thread anew, and all that it makes.
    fn rank(policy: NormalThreadSchedulePolicy, niceness: ThreadPriority) -> Result<(), thread_priority::Error> {
        set_thread_priority_and_policy(thread_native_id(), niceness, ThreadSchedulePolicy::Normal(policy))
    }

    #[test]
    fn all_threads_of_a_node_have_short_slices_and_the_priority_that_they_had() {
        // Who runs the tests may have made them wait for others; not everybody may take that back.
        let _ = rank(NormalThreadSchedulePolicy::Other, usual_niceness());
        let (before, had) = (standing().unwrap(), slice());
        let wanted = if before == USUAL { had.map(|_| SLICE.as_nanos() as u64) } else { had };
        let node = async {
            assert_eq!(tokio::spawn(async { slice() }).await.unwrap(), wanted, "of a worker");
            assert_eq!(tokio::task::spawn_blocking(slice).await.unwrap(), wanted, "of a thread that may block");
            let own = tokio::spawn(async { std::thread::spawn(slice).join().unwrap() });
            assert_eq!(own.await.unwrap(), wanted, "of a thread that a worker made, as the driver's");
            Ok(0)
        };
        assert!(block_on(node).is_ok());
        assert_eq!(standing().unwrap(), before);
    }

    #[test]
    fn another_policy_and_another_niceness_are_left_alone() {
        for (policy, niceness) in [
            (NormalThreadSchedulePolicy::Batch, usual_niceness()),
            (NormalThreadSchedulePolicy::Other, ThreadPriority::Min),
        ] {
            let ranked = std::thread::spawn(move || {
                rank(policy, niceness).unwrap();
                let before = (standing().unwrap(), slice());
                assert_ne!(before.0, USUAL);
                shorten().unwrap();
                assert_eq!((standing().unwrap(), slice()), before, "{policy:?}");
            });
            ranked.join().unwrap();
        }
    }

    #[test]
    fn the_standing_is_found_behind_any_name() {
        let rest = (3..=52).map(|nth| match nth {
            19 => "-5".to_owned(),
            41 => "3".to_owned(),
            nth => nth.to_string(),
        });
        let rest = rest.collect::<Vec<_>>().join(" ");
        let standing = standing_in(&format!("7 (a ) 0 name) {rest}\n"));
        assert_eq!(standing, Some(Standing { policy: 3, niceness: -5 }));
        assert_eq!(standing_in("7 (short) S 1 2"), None);
    }
}
