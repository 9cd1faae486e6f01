//! Ends a member whose disk neither takes a write nor refuses it, so that nobody waits for it in silence.
//!
//! The thread that writes hangs in the engine then, so it cannot say so itself: this asks beside it. Others lead meanwhile,
//! since no heartbeat leaves a driver that hangs; started again, the member meets the error of the disk itself.

use std::time::Duration;

use super::fatal::Fatal;
use crate::storage::StorageError;

/// How often the stores are asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Refusals in a row that end the member: a single one may be a failure of long ago and a burst of writes now.
const TIMES: u32 = 10;

/// Asks for as long as the member runs. `refused` says why a store takes no writes at this moment, if it takes none.
pub(super) async fn watch(fatal: Fatal, refused: impl Fn() -> Option<StorageError>) {
    let mut row = Row::default();
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        if let Some(error) = row.stuck(refused()) {
            return fatal.storage(&error);
        }
    }
}

/// How many refusals there were in a row.
#[derive(Default)]
struct Row(u32);

impl Row {
    /// The refusal, if it is one too many.
    fn stuck(&mut self, refused: Option<StorageError>) -> Option<StorageError> {
        self.0 = refused.as_ref().map_or(0, |_| self.0 + 1);
        refused.filter(|_| self.0 == TIMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_stays_stuck_ends_the_member() {
        let full = || Some(StorageError::Failed { what: "write".to_owned(), cause: "is the disk full?".to_owned() });
        let mut row = Row::default();
        assert!((1..TIMES).all(|_| row.stuck(full()).is_none()));
        assert!(row.stuck(None).is_none(), "a write got through");
        assert!((1..TIMES).all(|_| row.stuck(full()).is_none()));
        assert!(row.stuck(full()).is_some());
    }
}
