//! What a data directory may hold that names no member: nothing, or a founding that was cut. A node would found or join
//! over anything else, so it is refused and left as it is.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use balsa_proto::log::Marker;

use super::member::Layout;
use super::start_error::StartError;
use crate::storage::marker::{self, FILE_NAME, Owner};

/// Whether a member may begin in a data directory. Nothing is changed.
///
/// # Errors
/// What lies there forbids it.
pub fn is_vacant(data_dir: &Path) -> Result<bool, StartError> {
    Ok(check_vacant(data_dir, marker::read(data_dir)?)?.is_none())
}

/// The marker of the member that `owner` names; `None` when the directory is free for one to begin there.
///
/// # Errors
/// `Corrupt` when a member's data lie there without its marker, `Config` when they are etcd's.
pub(super) fn check_vacant(data_dir: &Path, owner: Owner) -> Result<Option<Marker>, StartError> {
    let founding = match owner {
        Owner::Member(marker) => return Ok(Some(marker)),
        Owner::Founder => true,
        Owner::Nobody => false,
    };
    if let Some(path) = held(&etcds(data_dir))? {
        return Err(StartError::Config(format!(
            "data-dir {} is one of etcd ({} is there): Balsa does not read etcd's files and has changed nothing. Choose an \
             empty data-dir; `etcdctl make-mirror` copies the keys from a running etcd",
            data_dir.display(),
            path.display()
        )));
    }
    let layout = Layout(data_dir.to_owned());
    // Both, and not the log alone: either may be the one that was lost together with the marker.
    match held(&[layout.log(), layout.key_spaces()])?.filter(|_| !founding) {
        None => Ok(None),
        Some(path) => Err(StartError::Corrupt(format!(
            "{} is missing beside {}: it says which member of which cluster these data are, and without it nothing is \
             changed here. Put the file back; if there is no copy, remove the member from its cluster and add it again with \
             an empty data-dir",
            data_dir.join(FILE_NAME).display(),
            path.display()
        ))),
    }
}

/// Where etcd keeps its log and its key space; one of them may be on another disk (`--wal-dir`).
fn etcds(data_dir: &Path) -> [PathBuf; 2] {
    ["snap", "wal"].map(|part| data_dir.join("member").join(part))
}

/// The first of `directories` that holds anything.
fn held(directories: &[PathBuf]) -> Result<Option<PathBuf>, StartError> {
    for directory in directories {
        if !is_empty(directory)? {
            return Ok(Some(directory.clone()));
        }
    }
    Ok(None)
}

/// Whether nothing is in a directory, or it is not there.
pub(super) fn is_empty(directory: &Path) -> Result<bool, StartError> {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(StartError::Disk(format!("read {}: {error}", directory.display()))),
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::node::ExitCode;

    use super::*;

    /// A data directory with these files.
    fn with(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
        directory
    }

    #[test]
    fn an_empty_directory_and_a_cut_founding_are_free() {
        for files in [&[][..], &["lost+found/x"], &["member/other"], &["MARKER.partial"]] {
            let directory = with(files);
            assert_eq!(check_vacant(directory.path(), Owner::Nobody).unwrap(), None, "{files:?}");
        }
        for files in [&[][..], &["kv/first/CURRENT"], &["kv/first/CURRENT", "log/CURRENT"]] {
            let directory = with(files);
            assert_eq!(check_vacant(directory.path(), Owner::Founder).unwrap(), None, "{files:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("kv")).unwrap();
        std::fs::create_dir(directory.path().join("log")).unwrap();
        assert_eq!(check_vacant(directory.path(), Owner::Nobody).unwrap(), None, "they are empty");
    }

    #[test]
    fn data_of_a_member_without_its_marker_are_corrupt() {
        for files in [&["kv/first/CURRENT", "log/CURRENT"][..], &["kv/7-9/CURRENT"], &["log/SYNCED"]] {
            let directory = with(files);
            let error = check_vacant(directory.path(), Owner::Nobody).expect_err("refused");
            assert_eq!(error.exit_code(), ExitCode::ExitCorrupt as i32, "{files:?}");
            assert!(error.to_string().contains(&directory.path().join("MARKER").display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_data_directory_of_etcd_is_refused_unless_a_member_began_beside_it() {
        for files in [&["member/snap/db", "member/wal/0.wal"][..], &["member/snap/db"], &["member/wal/0.wal"]] {
            let directory = with(files);
            for owner in [Owner::Nobody, Owner::Founder] {
                let error = check_vacant(directory.path(), owner).expect_err("refused");
                assert_eq!(error.reason(), "InvalidConfig", "{files:?}");
                assert!(error.to_string().contains(&directory.path().join("member").display().to_string()), "{error}");
            }
            let marker = Marker { member_id: 3, ..Marker::default() };
            let owner = Owner::Member(marker.clone());
            assert_eq!(check_vacant(directory.path(), owner).unwrap(), Some(marker), "{files:?}");
        }
    }
}
