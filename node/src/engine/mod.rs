//! Runs the model: the only place with threads, clocks and channels. It decides nothing that the model decides and does
//! not know who the client is.
//!
//! Threads of one member: `driver` (drains the inbox, runs the replica, writes the log), `applier` (applies, publishes
//! events, answers), `keeper` (flushes, compacts, makes checkpoints). Everything else runs on the async runtime.

mod applier;
mod calm;
mod changes;
pub mod credentials;
mod driver;
pub mod failpoint;
pub mod failure;
pub mod fatal;
mod force;
pub mod gofail;
pub mod handle;
mod heard;
mod housekeeping;
mod inbox;
mod keeper;
pub mod leases;
mod limit;
mod listings;
mod member;
pub mod node;
mod reads;
pub mod restore;
mod snapshot;
mod space;
mod standstill;
mod start_error;
pub mod status;
mod stuck_disk;
pub mod supervisor;
mod vacancy;
mod waiters;
pub mod watch;

pub use changes::is_in_sync;
pub use failure::Failure;
pub use handle::{Handle, request_timeout};
pub use housekeeping::Housekeeping;
pub use limit::Limit;
pub(crate) use member::Layout;
pub use node::{Bootstrap, Node, NodeConfig};
pub(crate) use snapshot::make as make_checkpoint;
pub use start_error::StartError;
pub use status::Status;
pub use vacancy::is_vacant;

/// The key space that a running member uses.
pub type Store = crate::storage::rocks::RocksKeySpace;
