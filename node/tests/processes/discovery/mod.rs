//! Members that find each other, on Balsa and on each installed etcd.

mod name_server;
mod srv;
mod token;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::cluster::{PATIENCE, free_port};
use crate::etcd::{RELEASES, program};

/// Balsa, and each etcd that is there.
fn programs() -> Vec<PathBuf> {
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_balsa"));
    std::iter::once(ours).chain(RELEASES.into_iter().filter_map(program)).collect()
}

/// Members that are told how to find each other, and not who they are. They end with the value.
struct Seekers {
    directory: TempDir,
    members: Vec<Seeker>,
}

struct Seeker {
    name: String,
    client_port: u16,
    process: Child,
}

/// Who a member is to a cluster: its name, and its peer URLs.
type Listed = (String, Vec<String>);

impl Seekers {
    fn none() -> Self {
        Self { directory: TempDir::new().expect("a directory"), members: Vec::new() }
    }

    /// Starts the next member by a command that runs the program; its names are `m0` and so on.
    fn start(&mut self, command: Command, listen: &str, advertised: &str, flags: &[String]) {
        let name = format!("m{}", self.members.len());
        let client_port = free_port();
        let process = self.spawn(command, &name, client_port, &[listen, advertised], flags);
        self.members.push(Seeker { name, client_port, process });
    }

    /// Starts one again that has ended or is ended now.
    fn restart(&mut self, index: usize, command: Command, listen: &str, advertised: &str, flags: &[String]) {
        self.kill(index);
        let (name, port) = (self.members[index].name.clone(), self.members[index].client_port);
        self.members[index].process = self.spawn(command, &name, port, &[listen, advertised], flags);
    }

    fn spawn(&self, mut command: Command, name: &str, port: u16, peer: &[&str; 2], flags: &[String]) -> Child {
        let (client, [listen, advertised]) = (format!("http://127.0.0.1:{port}"), peer);
        let log = std::fs::File::options().create(true).append(true).open(self.log(name)).expect("a log file");
        command
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", self.directory.path().join(name).display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={listen}"))
            .arg(format!("--initial-advertise-peer-urls={advertised}"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        command.spawn().expect("the program runs")
    }

    fn kill(&mut self, index: usize) {
        let _ = self.members[index].process.kill();
        let _ = self.members[index].process.wait();
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(name).with_extension("log")
    }

    fn log_text(&self, index: usize) -> String {
        std::fs::read_to_string(self.log(&self.members[index].name)).unwrap_or_default()
    }

    fn logs(&self) -> String {
        (0..self.members.len()).map(|index| format!("--- m{index}\n{}\n", self.log_text(index))).collect()
    }

    /// The members as that one lists them, once as many as run have told where clients reach them.
    async fn listed_by(&self, index: usize) -> Vec<Listed> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(listed) = self.asked(index).await {
                let told = listed.iter().filter(|member| !member.client_ur_ls.is_empty()).count();
                if told == self.members.len() {
                    let mut listed: Vec<Listed> =
                        listed.into_iter().map(|member| (member.name, member.peer_ur_ls)).collect();
                    listed.sort();
                    return listed;
                }
            }
            assert!(Instant::now() < deadline, "they do not find each other:\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn asked(&self, index: usize) -> Option<Vec<pb::Member>> {
        let url = format!("http://127.0.0.1:{}", self.members[index].client_port);
        let channel = Endpoint::from_shared(url).expect("a URL").connect().await.ok()?;
        let request = pb::MemberListRequest { linearizable: true };
        let answer = tokio::time::timeout(Duration::from_secs(2), async {
            ClusterClient::new(channel).member_list(request).await
        });
        Some(answer.await.ok()?.ok()?.into_inner().members)
    }

    /// Waits until the log of one says so.
    async fn says(&self, index: usize, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log_text(index).contains(words) {
            assert!(Instant::now() < deadline, "{words:?} is not said:\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Seekers {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|index| self.kill(index));
    }
}

/// What a start says that goes wrong, by the command that runs the program.
fn refused(mut command: Command, advertised: &str, flags: &[&str]) -> String {
    let (directory, port) = (TempDir::new().expect("a directory"), free_port());
    let client = format!("http://127.0.0.1:{port}");
    command
        .arg("--name=m")
        .arg(format!("--data-dir={}", directory.path().join("data").display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls=http://127.0.0.1:{}", free_port()))
        .arg(format!("--initial-advertise-peer-urls={advertised}"))
        .args(flags)
        .stdin(Stdio::null());
    let ended = command.output().expect("the program runs");
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{flags:?}: {said}");
    said
}

/// The name of a program, for messages.
fn name_of(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
