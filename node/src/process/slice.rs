//! How long our threads ask to run at a time.
//!
//! A put passes from thread to thread about ten times on its way through three members, and each of them must be woken and find
//! a processor. Where others use the processors, a thread that wakes waits until all that are before it have had their slice: some
//! ms each time. Linux (from 6.12 on) takes from a thread how short its slice may be. One with a shorter slice comes
//! first when it wakes, and is put aside the sooner when it goes on for long; in sum it gets no more than its share.
//! So nobody is harmed, and no privilege is needed.
//!
//! A process that is busy itself has nothing of that: its threads put each other aside, and what would have become one batch is
//! many. So its slices are the kernel's own as long as it uses much, and short again once it does not (decision 0086).

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::time::{ClockId, clock_gettime};
use thread_priority::{
    DeadlineFlags, RealtimeThreadSchedulePolicy, ThreadId, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy,
};

/// The least that Linux takes; longer ones helped less (docs/benchmarks.md).
const SHORT: Duration = Duration::from_micros(100);
/// How often it is looked at what the process has used. It wakes a worker, so not more often than needed.
const WINDOW: Duration = Duration::from_millis(500);
/// Of all processors: who uses so much waits for himself more than for others. Of few processors it is a quarter of one.
const BUSY: f64 = 0.125;
/// See [`BUSY`].
const LEAST_BUSY: f64 = 0.25;
/// Of that. Below it is no more so: without a distance the slices would change in every window.
const CALM: f64 = 0.8;
/// The calling thread, to the system call behind deadlines.
const THIS_THREAD: ThreadId = 0;
/// `SCHED_FLAG_KEEP_POLICY`, which Linux has had since 5.3: an older one refuses the call. The library names the flags of
/// deadlines only.
const KEEP_POLICY: DeadlineFlags = DeadlineFlags::from_bits_retain(0x08);

/// What a thread asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slice {
    Short,
    /// The kernel's own.
    Usual,
}

impl Slice {
    /// What fits a process that has this one, and may run on so many processors and used so many.
    fn after(self, used: f64, processors: f64) -> Self {
        let busy = (BUSY * processors).max(LEAST_BUSY);
        match self {
            Self::Short if used >= busy => Self::Usual,
            Self::Usual if used < CALM * busy => Self::Short,
            kept => kept,
        }
    }

    /// Asks for it on behalf of a thread of this process, of the usual policy and niceness.
    fn ask(self, thread: ThreadId) -> io::Result<()> {
        // The library makes this system call for deadlines only. As the policy is kept, the thread gets none: the kernel takes the
        // run time for its slice (0 for its own again), and the niceness that comes with it is the usual one.
        let runtime = match self {
            Self::Short => SHORT,
            Self::Usual => Duration::ZERO,
        };
        let (deadline, period) = (Duration::ZERO, Duration::ZERO);
        let asked = ThreadPriority::Deadline { runtime, deadline, period, flags: KEEP_POLICY };
        let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Deadline);
        set_thread_priority_and_policy(thread, asked, policy).map_err(|_| io::Error::last_os_error())
    }

    /// For all threads. One that begins has the slice of its maker, which may not have been asked for yet: so it is looked again
    /// until there is no new one.
    fn ask_for_all(self) -> io::Result<()> {
        let mut asked = HashSet::new();
        loop {
            let before = asked.len();
            for thread in fs::read_dir("/proc/self/task")? {
                let thread = thread?;
                let Some(id) = thread.file_name().to_str().and_then(|id| id.parse().ok()) else { continue };
                if asked.insert(id) && standing(&thread.path()).is_ok_and(|standing| standing == USUAL) {
                    // It was taken from the process before; this thread may be gone.
                    let _ = self.ask(id);
                }
            }
            if asked.len() == before {
                return Ok(());
            }
        }
    }
}

/// Asks for short slices, for this thread and all that it will make. False when its policy or niceness is not the usual one: that was
/// somebody's choice, and nothing is changed. On a kernel that knows no slices of threads nothing changes either.
///
/// # Errors
/// The system call is not allowed, or unknown; there is no `/proc`.
pub(super) fn shorten() -> io::Result<bool> {
    if standing(Path::new("/proc/thread-self"))? != USUAL {
        return Ok(false);
    }
    Slice::Short.ask(THIS_THREAD).map(|()| true)
}

/// Keeps the slices of all threads as they fit what the process uses, from short ones on.
pub(super) async fn follow() {
    let processors = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    let mut slice = Slice::Short;
    let mut before = (Instant::now(), used());
    loop {
        tokio::time::sleep(WINDOW).await;
        let now = (Instant::now(), used());
        let used = now.1.saturating_sub(before.1).as_secs_f64() / (now.0 - before.0).as_secs_f64();
        before = now;
        let next = slice.after(used, processors);
        if next == slice {
            continue;
        }
        tracing::debug!(?next, used, "the slices of all threads change");
        match next.ask_for_all() {
            Ok(()) => slice = next,
            // In the next window again.
            Err(error) => tracing::debug!(%error, "not all threads were found"),
        }
    }
}

/// The time that all threads of the process have run, those that ended too.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// How the scheduler ranks a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    policy: u32,
    niceness: i32,
}

/// That of everybody to whom nobody gave another: `SCHED_OTHER`, as nice as any.
const USUAL: Standing = Standing { policy: 0, niceness: 0 };

/// That of a thread, by its directory in `/proc`.
fn standing(thread: &Path) -> io::Result<Standing> {
    let stat = fs::read_to_string(thread.join("stat"))?;
    standing_in(&stat).ok_or_else(|| io::Error::other("the stat of a thread has other fields"))
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

    fn own_standing() -> Standing {
        standing(Path::new("/proc/thread-self")).unwrap()
    }

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
    fn a_thread_has_the_slice_that_was_asked_for_and_what_it_had_besides() {
        let ranked = std::thread::spawn(|| {
            // Who runs the tests may have made them wait for others; not everybody may take that back.
            let _ = rank(NormalThreadSchedulePolicy::Other, usual_niceness());
            let (before, usual) = (own_standing(), slice());
            if before != USUAL {
                return;
            }
            let own: ThreadId =
                fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
            for (asked, wanted) in [(Slice::Short, usual.map(|_| 100_000)), (Slice::Usual, usual)] {
                asked.ask(own).unwrap();
                assert_eq!((own_standing(), slice()), (before, wanted), "{asked:?}");
                let made = std::thread::spawn(|| (own_standing(), slice()));
                assert_eq!(made.join().unwrap(), (before, wanted), "of a thread that it made");
            }
        });
        ranked.join().unwrap();
    }

    #[test]
    fn slices_are_usual_once_the_process_is_busy_and_short_once_it_is_clearly_less_so() {
        let after = |shares: &[f64]| shares.iter().fold(Slice::Short, |slice, share| slice.after(*share, 2.0));
        assert_eq!(after(&[0.0, 0.24]), Slice::Short);
        assert_eq!(after(&[0.25]), Slice::Usual);
        assert_eq!(after(&[3.0, 0.2]), Slice::Usual, "one change for a load that is about the bound");
        assert_eq!(after(&[3.0, 0.2, 0.19]), Slice::Short);
        assert_eq!(Slice::Short.after(0.9, 8.0), Slice::Short, "others have more than it");
        assert_eq!(Slice::Short.after(0.2, 1.0), Slice::Short);
    }

    #[test]
    fn what_the_process_has_used_grows_by_what_it_runs() {
        let (started, before) = (Instant::now(), used());
        while used() - before < Duration::from_millis(20) {
            assert!(started.elapsed() < Duration::from_secs(60));
        }
    }

    #[test]
    fn another_policy_and_another_niceness_are_left_alone() {
        for (policy, niceness) in [
            (NormalThreadSchedulePolicy::Batch, usual_niceness()),
            (NormalThreadSchedulePolicy::Other, ThreadPriority::Min),
        ] {
            let ranked = std::thread::spawn(move || {
                rank(policy, niceness).unwrap();
                let before = (own_standing(), slice());
                assert_ne!(before.0, USUAL);
                assert!(!shorten().unwrap());
                assert_eq!((own_standing(), slice()), before, "{policy:?}");
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
