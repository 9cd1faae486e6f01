//! A file system that is really full, under the only copy of the data.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::Cluster;
use crate::namespace::Namespace;

const DISK_FAILED: i32 = 74;
/// What a fresh member needs, and some hundred values.
const SMALL: usize = 48 << 20;
const LARGE: usize = 256 << 20;
/// Far more values than the small disk holds.
const VALUES_MAX: usize = 4000;

/// A tmpfs in a mount namespace of its own. Both end with the value.
struct TinyDisk {
    namespace: Namespace,
    directory: PathBuf,
}

impl TinyDisk {
    /// Mounts it over `directory`. A machine where nobody can is told how to go without.
    fn mount(directory: &Path, bytes: usize) -> Self {
        std::fs::create_dir_all(directory).expect("a directory");
        let mount = format!("mount -t tmpfs -o size={bytes} tmpfs \"$0\"");
        match Namespace::after(&mount, &[directory]) {
            Ok(namespace) => Self { namespace, directory: directory.to_owned() },
            Err(why) => panic!(
                "no file system can be mounted here, so it was NOT tested what a full one does: allow user namespaces, or be \
                 root, or leave this out with `-- --skip full_file_system`. {why}"
            ),
        }
    }

    /// What runs `program` where this disk is mounted.
    fn inside(&self, program: &str) -> Command {
        self.namespace.inside(program)
    }

    fn resize(&self, bytes: usize) {
        let size = format!("remount,size={bytes}");
        let status = self.inside("mount").args(["-o", &size]).arg(&self.directory).status();
        assert!(status.expect("mount runs").success());
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

/// Where its lines go there is no room.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_lines_cannot_be_written_goes_on_and_ends_with_its_code() {
    let mut cluster = Cluster::start(1).await;
    let run = |cluster: &mut Cluster| {
        cluster.members[0].kill();
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" >/dev/full 2>&1"]).arg(env!("CARGO_BIN_EXE_balsa"));
        cluster.run_inside(0, command);
    };
    run(&mut cluster);
    cluster.serves(0).await;
    cluster.members[0].put("a", "b").await.expect("a write");
    cluster.members[0].flags = vec!["--max-txn-ops=0".to_owned()];
    run(&mut cluster);
    assert_eq!(cluster.members[0].wait_for_exit().code(), Some(1));
}
