//! The operator's real passes, played on the model of the simulation: observe, apply, execute and status speak to an API
//! server and to nodes that are faces of [`World`](crate::plan::simulation::World). No network, no clock but the model's;
//! only `crowd` and `outages` have real sockets and real time.
//!
//! What the pure simulation cannot see is tried here: that what is written as JSON is what was meant, that every write
//! carries what it was decided on, and that a pass may be cut off at any of its calls.

mod api_server;
mod available;
mod crowd;
mod fences;
mod lasting;
mod lies;
mod nodes;
mod objects;
mod outages;
mod promises;
mod runs;
mod stage;
mod told;
