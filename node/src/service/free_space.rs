//! The free space of the disk for whoever asks on a thread that must not wait: a disk that hangs keeps one thread of those that
//! may block, and what was known before is shown.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long the disk may take to tell.
const BOUND: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct FreeSpace {
    known: Arc<Mutex<Option<u64>>>,
    /// One question at a time. Whoever asks keeps it until the disk has answered.
    asking: Arc<Semaphore>,
}

impl FreeSpace {
    /// Nothing known yet.
    pub(super) fn new() -> Self {
        Self { known: Arc::default(), asking: Arc::new(Semaphore::new(1)) }
    }

    /// What `measure` says, if it does in time, else what it said last.
    pub(super) async fn ask(&self, measure: impl FnOnce() -> Option<u64> + Send + 'static) -> Option<u64> {
        let (known, asking) = (self.known.clone(), self.asking.clone());
        let asked = async move {
            // It is never closed.
            let Ok(turn) = asking.acquire_owned().await else { return };
            let _ = spawn_blocking(move || {
                let _turn = turn;
                let free = measure();
                *known.lock() = free;
            })
            .await;
        };
        let _ = timeout(BOUND, asked).await;
        *self.known.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// On a runtime of one thread, which a measure that hangs there would hold up with all that it has to do.
    #[tokio::test]
    async fn a_disk_that_hangs_holds_nobody_up_and_is_asked_once() {
        let space = FreeSpace::new();
        assert_eq!(space.ask(|| Some(7)).await, Some(7));
        let (answer, hangs) = mpsc::channel::<u64>();
        let began = Instant::now();
        assert_eq!(space.ask(move || hangs.recv_timeout(40 * BOUND).ok()).await, Some(7), "the last known one");
        let never = || panic!("a second thread would hang too");
        assert_eq!(space.ask(never).await, Some(7));
        assert!(began.elapsed() < 20 * BOUND, "{:?}", began.elapsed());
        answer.send(8).unwrap();
        assert_eq!(space.ask(|| Some(9)).await, Some(9), "it goes on once the disk answers");
        assert_eq!(space.ask(|| None).await, None, "a disk that refuses to tell");
    }
}
