//! How members reach each other: plain types and one trait for the engine, and below them the tonic client that carries
//! frames. Nothing here knows what a frame is for, who leads or what a member's disk holds.

pub mod messages;
pub mod open_files;
pub mod otlp;
pub mod registry;
pub mod siblings;
pub mod srv;
pub mod tcp;
pub mod tls;
pub mod tonic;

use std::time::Instant;

use balsa_proto::peer;

/// The other members, as the engine sees them.
pub trait Peers: Send + Sync + 'static {
    /// Queues a body for `to`. Never blocks; callable from any thread. True promises an attempt, and bodies to one peer
    /// keep their order. False when the peer is unknown or the queue is full, and for what is not Raft's also when the
    /// peer cannot be reached now: of a forward or a refusal then nothing was sent and nothing will be; of Raft messages
    /// the first ones may be.
    fn send(&self, to: u64, body: peer::frame::Body) -> bool;

    /// Since when a connection to `to` is up, if it is.
    fn reached_since(&self, to: u64) -> Option<Instant>;

    /// Replaces the list of peers by (id, peer URLs). The own id may be in it and is ignored. A peer that is no longer
    /// listed still gets what is queued for it, within a second, so that it may learn of its removal.
    fn update(&self, peers: &[(u64, Vec<String>)]);
}
