//! What every engine promises, written once per trait and run against each engine.

mod key_space;
mod log;

use std::fs;
use std::path::Path;

/// Copies a directory of files: what a crash of the process at this moment would leave.
pub(super) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
