//! Log files that are put aside, and the journal: the same on Balsa and on each installed etcd.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;

use crate::cluster::PATIENCE;
use crate::sockets::{Member, on_each};

/// Files that lie there before the start, of which the first is as large as it may become.
const BEFORE: [(&str, usize); 5] = [
    ("a.log", 1 << 20),
    ("a-2020-01-01T00-00-00.000.log", 1),
    ("a-2021-01-01T00-00-00.000.log.gz", 1),
    ("a-2022-01-01T00-00-00.000.log", 1),
    ("a-other.log", 1),
];

/// Names and modes of what is there now; the time of one that was put aside since the start is left out.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry"));
    let logs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with('a'));
    let named = logs.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mode = entry.metadata().ok()?.permissions().mode() & 0o777;
        let is_new = name.starts_with("a-2") && !BEFORE.iter().any(|(before, _)| name.starts_with(before));
        let name = if is_new { format!("a-NOW{}", name.get("a-2006-01-02T15-04-05.000".len()..)?) } else { name };
        Some((name, format!("{mode:o}")))
    });
    named.collect()
}

fn settled(folder: &Path, expected: &[&str]) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let files = files(folder);
        let is_small = std::fs::metadata(folder.join("a.log")).is_ok_and(|file| (1..1 << 20).contains(&file.len()));
        if is_small && files.keys().eq(expected) {
            return format!("{files:?}");
        }
        assert!(Instant::now() < deadline, "{files:?} do not become {expected:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_file_is_put_aside_and_old_ones_are_thinned_out() {
    let rules = [
        (
            r#"{"maxsize": 1}"#,
            &[
                "a-2020-01-01T00-00-00.000.log",
                "a-2021-01-01T00-00-00.000.log.gz",
                "a-2022-01-01T00-00-00.000.log",
                "a-NOW.log",
                "a-other.log",
                "a.log",
            ][..],
        ),
        (
            r#"{"maxsize": 1, "maxbackups": 2, "compress": true}"#,
            &["a-2022-01-01T00-00-00.000.log.gz", "a-NOW.log.gz", "a-other.log", "a.log"],
        ),
        (r#"{"maxsize": 1, "maxage": 1, "localtime": true}"#, &["a-NOW.log", "a-other.log", "a.log"]),
    ];
    on_each(|program, folder| {
        let outcome = rules.iter().enumerate().map(|(index, (json, expected))| {
            let folder = folder.join(index.to_string());
            std::fs::create_dir(&folder).expect("a folder");
            for (name, length) in BEFORE {
                std::fs::write(folder.join(name), vec![b'x'; length]).expect("written");
            }
            let rotation =
                ["--enable-log-rotation", "--log-outputs=a.log", &format!("--log-rotation-config-json={json}")];
            let member = Member::single(program, &folder, "unix://socket:1", "http://127.0.0.1:1", &rotation);
            let settled = settled(&folder, expected);
            drop(member);
            settled
        });
        outcome.collect()
    });
}

/// Go reads no such TZ, so there is nothing to compare.
#[test]
fn local_time_is_that_of_the_process() {
    let directory = TempDir::new().expect("a directory");
    std::fs::write(directory.path().join("a.log"), vec![b'x'; 1 << 20]).expect("written");
    let mut process = Command::new(env!("CARGO_BIN_EXE_balsa"))
        .current_dir(directory.path())
        .env("TZ", "XYZ-12:00")
        .args(["--bootstrap=operator", "--listen-client-urls=unix://c", "--advertise-client-urls=http://127.0.0.1:1"])
        .args(["--listen-peer-urls=unix://p", "--enable-log-rotation", "--log-outputs=a.log"])
        .arg(r#"--log-rotation-config-json={"maxsize": 1, "localtime": true}"#)
        .spawn()
        .expect("the program runs");
    settled(directory.path(), &["a-NOW.log", "a.log"]);
    let _ = process.kill();
    let _ = process.wait();
    let names =
        std::fs::read_dir(directory.path()).expect("the folder").map(|entry| entry.expect("an entry").file_name());
    let name = names.map(|name| name.to_string_lossy().into_owned()).find(|name| name.starts_with("a-2")).expect("it");
    let hour: u64 = name["a-2006-01-02T".len()..][..2].parse().expect("an hour");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() / 3600 + 12;
    assert!([now % 24, (now + 23) % 24].contains(&hour), "{name}: it is the hour {}", now % 24);
}

#[test]
fn without_a_journal_there_is_no_start() {
    if Path::new("/run/systemd/journal/socket").exists() {
        return eprintln!("there is a journal: nothing is compared");
    }
    on_each(|program, folder| {
        let output = Command::new(program).current_dir(folder).arg("--log-outputs=systemd/journal").output();
        let output = output.expect("the program runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let words =
            "can't find journal (dial unixgram /run/systemd/journal/socket: connect: no such file or directory)";
        vec![format!("{:?} {}", output.status.code(), said.contains(words))]
    });
}
