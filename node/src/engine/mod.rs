//! Runs the model: the only place with threads, clocks and channels. It decides nothing that the model decides and does
//! not know who the client is.

pub mod failure;
pub mod handle;
pub mod status;
pub mod watch;

pub use failure::Failure;
pub use handle::Handle;
pub use status::Status;
pub use watch::{WatchHub, WatchOptions};

/// The key space that a running member uses.
pub type Store = crate::storage::rocks::RocksKeySpace;
