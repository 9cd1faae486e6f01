//! How members reach each other: plain types and one trait for the engine, and below them the tonic client that carries
//! frames. Nothing here knows what a frame is for, who leads or what a member's disk holds.

pub mod messages;

use balsa_proto::peer;

/// The other members, as the engine sees them.
pub trait Peers: Send + Sync + 'static {
    /// Queues a frame for `to`. Never blocks. False when the queue is full or the peer unknown: nothing of it will be
    /// sent. True promises nothing but an attempt; frames to one peer keep their order.
    fn send(&self, to: u64, body: peer::frame::Body) -> bool;

    /// Replaces the list of peers by (id, peer URLs). The own id may be in it and is ignored.
    fn update(&self, peers: &[(u64, Vec<String>)]);
}
