//! What every engine promises, written once per trait and run against each engine.

mod crash_image;
mod key_space;
mod log;

pub(super) use crash_image::copy_directory;
