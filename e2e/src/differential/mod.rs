//! The differential test: the same requests to an etcd and to a Balsa, every field of every answer and every watch event
//! compared. What may differ is a table with reasons, in [`allowed`] and in `docs/differential.md`.
//!
//! A sequence is drawn from a seed and runs on two new processes, one request after the other. When the servers differ,
//! the sequence is shrunk by replays and the small case printed.

pub mod allowed;
pub mod call;
pub mod frames;
pub mod generate;
pub mod history;
pub mod lockstep;
pub mod observing;
pub mod raw;
pub mod reply;
pub mod revision;
pub mod shrink;
pub mod side;
pub mod step;
pub mod streams;
pub mod token;
pub mod turns;
pub mod watching;
