//! The engines in memory, with crashes and faults, for tests and the simulation.
