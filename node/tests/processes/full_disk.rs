//! A file system that is really full, under the only copy of the data.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cluster::Cluster;

const DISK_FAILED: i32 = 74;
/// What a fresh member needs, and some hundred values.
const SMALL: usize = 48 << 20;
const LARGE: usize = 256 << 20;
/// Far more values than the small disk holds.
const VALUES_MAX: usize = 4000;

/// A tmpfs in a mount namespace of its own. Both go with the process that keeps them, which ends with the test.
struct TinyDisk {
    keeper: Child,
    directory: PathBuf,
    /// Which namespaces of the keeper the disk is in.
    namespaces: &'static [&'static str],
}

/// In these a file system can be mounted: root in a user namespace of its own is enough, and where there may be none, root.
const NAMESPACES: [&[&str]; 2] = [&["--user", "--mount"], &["--mount"]];

impl TinyDisk {
    /// Mounts it over `directory`. A machine where nobody can is told how to go without.
    fn mount(directory: &Path, bytes: usize) -> Self {
        std::fs::create_dir_all(directory).expect("a directory");
        let mut whys = Vec::new();
        for namespaces in NAMESPACES {
            match Self::mount_in(namespaces, directory, bytes) {
                Ok(disk) => return disk,
                Err(why) => whys.push(format!("{}: {why}", namespaces.join(" "))),
            }
        }
        panic!(
            "no file system can be mounted here, so it was NOT tested what a full one does: allow user namespaces, or be root, or \
             leave this out with `-- --skip full_file_system`. {}",
            whys.join("; ")
        );
    }

    fn mount_in(namespaces: &'static [&'static str], directory: &Path, bytes: usize) -> Result<Self, String> {
        let mount = format!("mount -t tmpfs -o size={bytes} tmpfs \"$0\" && echo mounted && exec cat");
        let mut unshare = Command::new("unshare");
        let as_root = namespaces.contains(&"--user").then_some("--map-root-user");
        unshare.args(namespaces).args(as_root).args(["sh", "-c", &mount]).arg(directory);
        unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut keeper = unshare.spawn().map_err(|error| format!("unshare: {error}"))?;
        let mut said = String::new();
        let _ = BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut said);
        if said.trim() == "mounted" {
            return Ok(Self { keeper, directory: directory.to_owned(), namespaces });
        }
        let mut why = String::new();
        let _ = keeper.stderr.take().expect("piped").read_to_string(&mut why);
        let _ = keeper.wait();
        Err(why.trim().to_owned())
    }

    /// What runs `program` where this disk is mounted.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.namespaces).args(["--preserve-credentials", "--target", &self.keeper.id().to_string()]);
        command.args(["--", program]);
        command
    }

    fn resize(&self, bytes: usize) {
        let size = format!("remount,size={bytes}");
        let status = self.inside("mount").args(["-o", &size]).arg(&self.directory).status();
        assert!(status.expect("mount runs").success());
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_loses_nothing_and_serves_again_with_room() {
    let mut cluster = Cluster::unstarted(1);
    let disk = TinyDisk::mount(&cluster.members[0].data, SMALL);
    cluster.run_inside(0, disk.inside(env!("CARGO_BIN_EXE_balsa")));
    cluster.serves(0).await;
    let value = "x".repeat(100_000);
    let mut acknowledged = 0;
    while cluster.members[0].put(&format!("key/{acknowledged}"), &value).await.is_ok() {
        acknowledged += 1;
        assert!(acknowledged < VALUES_MAX, "the disk does not fill");
    }
    println!("{acknowledged} values acknowledged before the disk was full");
    assert!(acknowledged > 0);
    assert_eq!(cluster.members[0].wait_for_exit().code(), Some(DISK_FAILED), "{}", cluster.logs());
    assert!(cluster.members[0].log_text().contains("No space left on device"), "{}", cluster.logs());

    // Started while it is still full, it may fail again, and says the same.
    cluster.run_inside(0, disk.inside(env!("CARGO_BIN_EXE_balsa")));
    let _ = cluster.members[0].put("more", &value).await;
    if let Some(status) = cluster.members[0].ended_or_serves().await {
        assert_eq!(status.code(), Some(DISK_FAILED), "{}", cluster.logs());
    }
    cluster.members[0].kill();

    disk.resize(LARGE);
    cluster.run_inside(0, disk.inside(env!("CARGO_BIN_EXE_balsa")));
    cluster.serves(0).await;
    for number in 0..acknowledged {
        let found = cluster.members[0].get(&format!("key/{number}")).await.expect("a read");
        assert_eq!(found.map(|value| value.len()), Some(value.len()), "key/{number} of {acknowledged}");
    }
    cluster.members[0].put("after", "room").await.expect("a write");
    cluster.members[0].kill();
}
