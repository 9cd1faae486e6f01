//! Peers over gRPC: per peer one task, one bounded queue and one stream of frames, which only this side sends on.
//!
//! It knows addresses, streams and bytes. It never waits for a caller, and never keeps what was meant for a stream that
//! broke: Raft repeats its messages, and nothing else may be repeated.

mod counters;
mod dial;
mod link;
mod probe;
mod queue;
mod snapshot;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use balsa_proto::peer::frame::Body;
use balsa_proto::peer::{Frame, RaftMessage, RaftMessages};
use parking_lot::RwLock;
use prost::Message as _;
use tokio::sync::watch;

pub use counters::PeerMetrics;
pub use dial::{AskError, CONNECTION_WINDOW, Dialer, Pings, STREAM_WINDOW};
pub(super) use dial::{secured, words};
pub use snapshot::SnapshotError;

use self::queue::Queue;
use super::Peers;

/// Bytes of the longest frame that either side takes: one Raft message (1 MiB of entries, or one entry that is larger)
/// with room to spare.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// Raft messages are divided into frames of about this size, so that no frame nears the limit.
const FRAME_BYTES: usize = 4 << 20;

/// Told the id of a peer that cannot be reached, or whose stream broke.
pub type OnUnreachable = Arc<dyn Fn(u64) + Send + Sync>;

/// Who is sending.
#[derive(Debug, Clone)]
pub struct TonicPeersConfig {
    /// The cluster's id; receivers drop the frames of another.
    pub cluster_id: u64,
    /// This member's id.
    pub member_id: u64,
    /// This process's incarnation.
    pub incarnation: u64,
    /// How peers are connected to.
    pub dialer: Dialer,
    /// What is counted.
    pub metrics: PeerMetrics,
}

/// What all links share.
struct Shared {
    config: TonicPeersConfig,
    on_unreachable: OnUnreachable,
}

/// One peer, as callers reach it.
struct Link {
    queue: Arc<Queue>,
    urls: watch::Sender<Vec<String>>,
}

impl Drop for Link {
    /// The task sends what is queued, briefly, and ends.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The peers of one member. Dropped, it ends all its tasks.
pub struct TonicPeers {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
    links: RwLock<HashMap<u64, Link>>,
}

impl TonicPeers {
    /// No peers yet. Tasks run on `runtime`; `on_unreachable` is called on it and must not block.
    pub fn new(config: TonicPeersConfig, runtime: tokio::runtime::Handle, on_unreachable: OnUnreachable) -> Arc<Self> {
        Arc::new(Self { shared: Arc::new(Shared { config, on_unreachable }), runtime, links: RwLock::default() })
    }

    fn frame(&self, to: u64, body: Body) -> Frame {
        let TonicPeersConfig { cluster_id, member_id, incarnation, .. } = self.shared.config;
        Frame { cluster_id, from: member_id, to, incarnation, body: Some(body) }
    }

    fn urls_of(&self, id: u64) -> Option<Vec<String>> {
        self.links.read().get(&id).map(|link| link.urls.borrow().clone())
    }
}

impl Peers for TonicPeers {
    fn send(&self, to: u64, body: Body) -> bool {
        let links = self.links.read();
        let queue = links.get(&to).map(|link| &link.queue);
        let taken = match (queue, body) {
            (None, _) => false,
            (Some(queue), Body::Raft(raft)) => divide(raft.messages)
                .into_iter()
                .all(|messages| queue.push(self.frame(to, Body::Raft(RaftMessages { messages })))),
            (Some(queue), body) => queue.up_since().is_some() && queue.push(self.frame(to, body)),
        };
        if !taken {
            self.shared.config.metrics.failed(to);
        }
        taken
    }

    fn reached_since(&self, to: u64) -> Option<Instant> {
        self.links.read().get(&to).and_then(|link| link.queue.up_since())
    }

    fn update(&self, peers: &[(u64, Vec<String>)]) {
        let mut links = self.links.write();
        let listed: HashSet<u64> = peers.iter().map(|(id, _)| *id).collect();
        links.retain(|id, _| listed.contains(id));
        for (id, urls) in peers.iter().filter(|(id, _)| *id != self.shared.config.member_id) {
            let Some(link) = links.get(id) else {
                links.insert(*id, self.start(*id, urls.clone()));
                continue;
            };
            link.urls.send_if_modified(|present| {
                let changed = present != urls;
                present.clone_from(urls);
                changed
            });
        }
    }
}

impl TonicPeers {
    fn start(&self, id: u64, urls: Vec<String>) -> Link {
        let queue = Arc::new(Queue::default());
        let (sender, receiver) = watch::channel(urls);
        self.runtime.spawn(link::run(id, self.shared.clone(), queue.clone(), receiver));
        Link { queue, urls: sender }
    }
}

/// Messages in order, in groups of about [`FRAME_BYTES`].
fn divide(messages: Vec<RaftMessage>) -> Vec<Vec<RaftMessage>> {
    let mut groups: Vec<Vec<RaftMessage>> = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let size = message.encoded_len();
        match groups.last_mut() {
            Some(last) if bytes + size <= FRAME_BYTES => last.push(message),
            _ => {
                groups.push(vec![message]);
                bytes = 0;
            }
        }
        bytes += size;
    }
    groups
}

#[cfg(test)]
#[path = "tonic/tests.rs"]
mod tests;
