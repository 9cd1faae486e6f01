//! What a crash would leave, taken from a directory whose database is open and goes on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a database may go on changing its directory of its own accord.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file as a listing shows it: another one of the name, a longer one and one written in place all differ.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// Copies a directory of files: what a crash of the process at one moment of this call would leave.
///
/// A copy takes time, and a database may work meanwhile although nobody writes: RocksDB says that a flush is done as soon
/// as its manifest says so, and only then does the thread that flushed remove the WAL and the manifest that nobody needs
/// any more (`DBImpl::BackgroundCallFlush`). What was listed may be gone when it is copied, and, worse, files of two moments may
/// stand beside each other, which no crash leaves. So a copy counts only if the directory looked the same before it and after
/// it: then it stood still in between, and the copy is of each of those moments.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !is_copied(from, to).unwrap() {
        assert!(Instant::now() < deadline, "{} never stands still", from.display());
        fs::remove_dir_all(to).unwrap();
    }
}

/// Whether the copy is of one moment.
fn is_copied(from: &Path, to: &Path) -> io::Result<bool> {
    fs::create_dir(to)?;
    let Some(before) = listing(from)? else { return Ok(false) };
    for name in before.keys() {
        if unless_gone(fs::copy(from.join(name), to.join(name)))?.is_none() {
            return Ok(false);
        }
    }
    Ok(listing(from)?.as_ref() == Some(&before))
}

/// The files of a directory; `None` when one went meanwhile.
fn listing(directory: &Path) -> io::Result<Option<BTreeMap<std::ffi::OsString, Seen>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Some(of) = unless_gone(fs::metadata(entry.path()))? else { return Ok(None) };
        let seen = Seen { inode: of.ino(), bytes: of.len(), modified: (of.mtime(), of.mtime_nsec()) };
        files.insert(entry.file_name(), seen);
    }
    Ok(Some(files))
}

/// `None` of a file that is no longer there.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The way of RocksDB with its manifest: the new one is there, then the name of it, then the old one goes.
fn move_on(directory: &Path, round: u32) {
    let manifest = |round: u32| directory.join(format!("MANIFEST-{round}"));
    fs::write(manifest(round), "manifest").unwrap();
    fs::write(directory.join("new"), format!("MANIFEST-{round}")).unwrap();
    fs::rename(directory.join("new"), directory.join("CURRENT")).unwrap();
    if round > 0 {
        fs::remove_file(manifest(round - 1)).unwrap();
    }
}

#[test]
fn a_copy_of_a_directory_that_changes_is_of_one_moment() {
    let place = tempfile::tempdir().unwrap();
    let live = place.path().join("live");
    fs::create_dir(&live).unwrap();
    move_on(&live, 0);
    let writer = {
        let live = live.clone();
        std::thread::spawn(move || {
            for round in 1..=200 {
                move_on(&live, round);
                // Mostly it goes on at once; now and then it stands still.
                if round % 8 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        })
    };
    for number in 0.. {
        let copy = place.path().join(number.to_string());
        copy_directory(&live, &copy);
        let current = fs::read_to_string(copy.join("CURRENT")).unwrap();
        assert_eq!(fs::read_to_string(copy.join(&current)).unwrap(), "manifest", "copy {number} names {current}");
        if writer.is_finished() {
            return writer.join().unwrap();
        }
    }
}
