//! How the process learns that it must end: a failed or corrupt disk, or a member that was removed. First word counts.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::error;

use crate::domain::apply::ApplyError;
use crate::storage::StorageError;

pub use balsa_proto::node::ExitCode;

/// Why the process must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The code to end with.
    pub code: ExitCode,
    /// What happened, where, and what to do.
    pub message: String,
}

/// The sender's side, cheap to clone.
#[derive(Clone)]
pub struct Fatal(Arc<watch::Sender<Option<Ending>>>);

impl Default for Fatal {
    fn default() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }
}

impl Fatal {
    /// Ends the process with `code`. Only the first call counts.
    pub fn end(&self, code: ExitCode, message: impl Into<String>) {
        let message = message.into();
        error!(code = code.as_str_name(), message, "the process must end");
        self.0.send_if_modified(|ending| {
            let first = ending.is_none();
            if first {
                *ending = Some(Ending { code, message });
            }
            first
        });
    }

    /// After a failed write nothing can be said of what the disk holds: the process ends and is never allowed to retry.
    pub fn storage(&self, error: &StorageError) {
        let code = match error {
            StorageError::Failed { .. } => ExitCode::ExitDiskFailed,
            StorageError::Corrupt { .. } => ExitCode::ExitCorrupt,
        };
        self.end(code, error.to_string());
    }

    /// An entry that cannot be applied here.
    pub fn apply(&self, error: &ApplyError) {
        match error {
            ApplyError::Storage(error) => self.storage(error),
            other => self.end(ExitCode::ExitCorrupt, other.to_string()),
        }
    }

    /// Resolves when the process must end.
    pub async fn ended(&self) -> Ending {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(Option::is_some).await.map(|ending| ending.clone()) {
            Ok(Some(ending)) => ending,
            _ => std::future::pending().await,
        }
    }
}
