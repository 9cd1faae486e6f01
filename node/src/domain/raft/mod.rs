//! Consensus: the sans-IO replica and the membership it obeys.

pub mod validate;
