use balsa_proto::peer::SnapshotData;
use bytes::Bytes;

use super::*;

const FILES: [(&str, &[u8]); 4] =
    [("000012.sst", b"sorted"), ("CURRENT", b"MANIFEST-000011\n"), ("EMPTY", b""), ("MANIFEST-000011", b"versions")];

fn facts() -> Facts {
    let point = SnapshotPoint { index: 9, term: 2, conf_state: (vec![1, 2], vec![3]).into() };
    Facts { snapshot_id: "id".to_owned(), cluster_id: 7, point, revision: 5, unix_seconds: 1_700_000_000 }
}

fn checkpoint() -> (tempfile::TempDir, SnapshotManifest) {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in FILES {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    let manifest = manifest(directory.path(), &facts()).unwrap();
    (directory, manifest)
}

fn is_corrupt<T: std::fmt::Debug>(result: Result<T>, word: &str) {
    match result {
        Err(StorageError::Corrupt { what }) if what.contains(word) => {}
        other => panic!("{word} is missing in {other:?}"),
    }
}

fn chunk(file: u32, offset: u64, data: &[u8]) -> SnapshotData {
    SnapshotData { file, offset, data: Bytes::copy_from_slice(data), crc32c: crc32c::crc32c(data) }
}

fn chunks() -> Vec<SnapshotData> {
    let whole = |(position, (_, bytes)): (usize, &(&str, &[u8]))| chunk(position as u32, 0, bytes);
    let mut chunks: Vec<_> = FILES.iter().enumerate().map(whole).filter(|chunk| !chunk.data.is_empty()).collect();
    // The second file in two.
    let (head, tail) = FILES[1].1.split_at(4);
    chunks.splice(1..2, [chunk(1, 0, head), chunk(1, 4, tail)]);
    chunks
}

#[test]
fn a_manifest_says_what_the_checkpoint_holds() {
    let (directory, manifest) = checkpoint();
    let names: Vec<_> = manifest.files.iter().map(|file| (file.name.as_str(), file.size as usize)).collect();
    assert_eq!(names, FILES.map(|(name, bytes)| (name, bytes.len())));
    assert_eq!(manifest.files[0].sha256, Bytes::from(Sha256::digest(b"sorted").to_vec()));
    assert_eq!((manifest.index, manifest.term, manifest.revision, manifest.cluster_id), (9, 2, 5, 7));
    assert_eq!(point(&manifest), facts().point);
    verify(directory.path(), &manifest).unwrap();
}

#[test]
fn what_opening_leaves_behind_is_no_part_of_it() {
    let (directory, manifest) = checkpoint();
    for name in ["LOG", "LOG.old.1700000000", "LOCK"] {
        fs::write(directory.path().join(name), b"noise").unwrap();
    }
    assert_eq!(super::manifest(directory.path(), &facts()).unwrap(), manifest);
    verify(directory.path(), &manifest).unwrap();
}

#[test]
fn any_difference_from_the_manifest_is_found() {
    let (directory, manifest) = checkpoint();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("000012.sst"), b"sortee").unwrap();
    is_corrupt(verify(directory.path(), &manifest), "other bytes");
    fs::write(path("000012.sst"), b"sort").unwrap();
    is_corrupt(verify(directory.path(), &manifest), "has 4 bytes");
    fs::remove_file(path("000012.sst")).unwrap();
    is_corrupt(verify(directory.path(), &manifest), "missing");
    fs::write(path("000012.sst"), b"sorted").unwrap();
    fs::write(path("000013.sst"), b"").unwrap();
    is_corrupt(verify(directory.path(), &manifest), "not in the manifest");
    fs::remove_file(path("000013.sst")).unwrap();
    fs::create_dir(path("below")).unwrap();
    is_corrupt(verify(directory.path(), &manifest), "plain file");
}

#[test]
fn a_manifest_that_must_not_be_followed_is_refused() {
    let (_directory, good) = checkpoint();
    check(&good).unwrap();
    let refused = |change: &dyn Fn(&mut SnapshotManifest), word| {
        let mut bad = good.clone();
        change(&mut bad);
        is_corrupt(check(&bad), word);
    };
    refused(&|manifest| manifest.format_version = 2, "format 2");
    refused(&|manifest| manifest.index = 0, "no point");
    refused(&|manifest| manifest.term = 0, "no point");
    refused(&|manifest| manifest.conf_state = None, "voters");
    refused(&|manifest| manifest.files.clear(), "0 files");
    refused(&|manifest| manifest.files[1].sha256 = Bytes::from_static(b"short"), "hash");
    refused(&|manifest| manifest.files[1].size = u64::MAX, "sizes");
    refused(&|manifest| manifest.files[1].name = "EMPTY".to_owned(), "EMPTY");
    for name in ["", ".", "..", "../MARKER", "a/b", "/etc/passwd", "a\\b", "a\0b", ".hidden", "x.partial"] {
        refused(&|manifest| manifest.files[1].name = name.to_owned(), "name");
    }
}

#[test]
fn a_received_snapshot_is_what_was_sent_and_stands_under_its_name() {
    let (_directory, manifest) = checkpoint();
    let parent = tempfile::tempdir().unwrap();
    let mut staging = Staging::begin(&parent.path().join("kv"), "9-2-x", &manifest).unwrap();
    for chunk in chunks() {
        staging.write(&chunk).unwrap();
        assert!(parent.path().join("kv/9-2-x.partial").is_dir());
    }
    is_corrupt(staging.write(&chunk(4, 0, b"more")), "last file");
    let path = staging.finish().unwrap();
    assert_eq!(path, parent.path().join("kv/9-2-x"));
    verify(&path, &manifest).unwrap();
    assert_eq!(fs::read_dir(parent.path().join("kv")).unwrap().count(), 1);
}

/// Gives the chunks to a staging until one is refused, and shows that nothing is left on the disk.
fn refused(manifest: &SnapshotManifest, chunks: Vec<SnapshotData>, word: &str) {
    let parent = tempfile::tempdir().unwrap();
    let outcome = Staging::begin(parent.path(), "name", manifest).and_then(|mut staging| {
        chunks.iter().try_for_each(|chunk| staging.write(chunk))?;
        staging.finish()
    });
    is_corrupt(outcome, word);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "left behind after: {word}");
}

#[test]
fn bytes_that_changed_on_the_way_are_refused() {
    let (_directory, manifest) = checkpoint();
    let mut flipped = chunks();
    flipped[0].data = Bytes::from_static(b"sortee");
    refused(&manifest, flipped.clone(), "chunk of \"000012.sst\"");
    // A wrong chunk with the right checksum is found at the end of its file.
    flipped[0].crc32c = crc32c::crc32c(&flipped[0].data);
    refused(&manifest, flipped, "other bytes");
    let mut wrong_hash = manifest.clone();
    wrong_hash.files[2].sha256 = Bytes::from(vec![0; 32]);
    refused(&wrong_hash, chunks(), "\"EMPTY\" has other bytes");
}

#[test]
fn bytes_out_of_place_are_refused() {
    let (_directory, manifest) = checkpoint();
    let mut short = chunks();
    short.pop();
    refused(&manifest, short, "ends at 0 of 8 bytes");
    let mut twice = chunks();
    twice.insert(1, twice[0].clone());
    refused(&manifest, twice, "out of order");
    let mut swapped = chunks();
    swapped.swap(1, 2);
    refused(&manifest, swapped, "out of order");
    refused(&manifest, vec![chunk(0, 0, b"sorted and more")], "a chunk of 15 bytes");
    refused(&manifest, vec![chunk(0, 0, b"")], "a chunk of 0 bytes");
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_before_it_is_written() {
    let (_directory, mut manifest) = checkpoint();
    manifest.files[0].size = 1 << 60;
    let parent = tempfile::tempdir().unwrap();
    let outcome = Staging::begin(parent.path(), "name", &manifest);
    assert!(matches!(outcome, Err(StorageError::Failed { cause, .. }) if cause.contains("are needed")));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn names_of_directories_stay_where_they_belong() {
    let (_directory, manifest) = checkpoint();
    let parent = tempfile::tempdir().unwrap();
    for name in ["..", "../up", "a/b", ""] {
        is_corrupt(Staging::begin(parent.path(), name, &manifest).map(|_| ()), "directory name");
    }
}

#[test]
fn only_the_key_space_in_use_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    remove_others(&parent.path().join("absent"), "x").unwrap();
    for name in ["in-use", "replaced", "received.partial"] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::write(parent.path().join(name).join("000012.sst"), b"x").unwrap();
    }
    fs::write(parent.path().join("stray"), b"x").unwrap();
    remove_others(parent.path(), "in-use").unwrap();
    let left: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["in-use"]);
    assert!(parent.path().join("in-use/000012.sst").is_file());
}
