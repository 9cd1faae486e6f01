//! How long our threads ask to run at a time.
//!
//! A put passes from thread to thread about ten times on its way through three members, and each of them must be woken and find
//! a processor. Where others use the processors, a thread that wakes waits until all that are before it have had their slice: some
//! ms each time. Linux (from 6.12 on) takes from a thread how short its slice may be. One with a shorter slice comes
//! first when it wakes, and is put aside the sooner when it goes on for long; in sum it gets no more than its share.
//! So nobody is harmed, and no privilege is needed.

use std::time::Duration;
use std::{io, mem};

/// The least that Linux takes; longer ones helped less (docs/benchmarks.md).
const SLICE: Duration = Duration::from_micros(100);

/// Asks for short slices, for this thread and all that it will make. A thread whose policy is not the usual one, or whose slice is
/// shorter already, is left as it is: that was somebody's choice. A kernel that knows no slices of threads is left alone too.
///
/// # Errors
/// The system call is not allowed, or unknown.
pub(super) fn shorten() -> io::Result<()> {
    let present = attributes()?;
    let slice = SLICE.as_nanos() as u64;
    if present.sched_policy != libc::SCHED_OTHER as u32 || present.sched_runtime <= slice {
        return Ok(());
    }
    set(&libc::sched_attr { sched_runtime: slice, ..present })
}

/// How this thread is scheduled. Without a slice in it the kernel knows none.
#[allow(unsafe_code, reason = "the standard library knows no scheduling")]
fn attributes() -> io::Result<libc::sched_attr> {
    let size = mem::size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes to the structure, which lives as long as the call; any bytes are valid for it.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if done == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

#[allow(unsafe_code, reason = "the standard library knows no scheduling")]
fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads `attributes.size` bytes, which is at most the length of the structure: it told it itself.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::block_on;

    fn slice() -> u64 {
        attributes().unwrap().sched_runtime
    }

    #[test]
    fn all_threads_of_a_node_have_short_slices_and_the_priority_that_they_had() {
        let before = attributes().unwrap();
        // An older kernel says 0 and takes nothing.
        let wanted = before.sched_runtime.min(SLICE.as_nanos() as u64);
        let node = async {
            assert_eq!(tokio::spawn(async { slice() }).await.unwrap(), wanted, "of a worker");
            assert_eq!(tokio::task::spawn_blocking(slice).await.unwrap(), wanted, "of a thread that may block");
            let own = tokio::spawn(async { std::thread::spawn(slice).join().unwrap() });
            assert_eq!(own.await.unwrap(), wanted, "of a thread that a worker made, as the driver's");
            Ok(0)
        };
        assert!(block_on(node).is_ok());
        let after = attributes().unwrap();
        assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
    }

    #[test]
    fn another_policy_is_left_alone() {
        let batch = libc::sched_attr { sched_policy: libc::SCHED_BATCH as u32, ..attributes().unwrap() };
        set(&batch).unwrap();
        let before = slice();
        shorten().unwrap();
        assert_eq!((attributes().unwrap().sched_policy, slice()), (libc::SCHED_BATCH as u32, before));
    }
}
