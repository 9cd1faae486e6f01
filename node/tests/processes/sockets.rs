//! `unix://` and `unixs://`: the same on Balsa and on each installed etcd.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cluster::{PATIENCE, free_port};
use crate::etcd::{RELEASES, program};

/// A member whose files, its sockets among them, lie in one folder. Ends with the value.
pub(crate) struct Member {
    process: Child,
    folder: PathBuf,
}

impl Member {
    pub(crate) fn start(program: &Path, folder: &Path, name: &str, flags: &[String]) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(folder.join(format!("{name}.log")));
        let log = log.expect("a log file");
        let process = Command::new(program)
            .current_dir(folder)
            .args([format!("--name={name}"), format!("--data-dir={name}")])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the program runs");
        Self { process, folder: folder.to_owned() }
    }

    /// With sockets of these URLs for clients, and a port for peers.
    pub(crate) fn single(program: &Path, folder: &Path, listen: &str, advertise: &str, more: &[&str]) -> Self {
        let peer = format!("http://127.0.0.1:{}", free_port());
        let flags = [
            format!("--listen-client-urls={listen}"),
            format!("--advertise-client-urls={advertise}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=m={peer}"),
        ];
        let more = more.iter().map(|flag| (*flag).to_owned());
        Self::start(program, folder, "m", &flags.into_iter().chain(more).collect::<Vec<_>>())
    }

    fn end(&mut self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.process.id().to_string()).status();
        assert!(status.expect("kill runs").success());
        self.process.wait().expect("it ends");
    }

    /// Asks until it is healthy.
    fn healthy(&self, socket: &Path) {
        let deadline = Instant::now() + PATIENCE;
        while !ask(socket, "GET", "/health", "").contains(r#""health":"true""#) {
            let logs = std::fs::read_to_string(self.folder.join("m.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{} is not healthy: {logs}", socket.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The status and the body of an answer; nothing when nobody listens.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> String {
    let Ok(mut stream) = UnixStream::connect(socket) else { return String::new() };
    stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let mut answer = String::new();
    if stream.write_all((head + body).as_bytes()).and_then(|()| stream.read_to_string(&mut answer)).is_err() {
        return String::new();
    }
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    format!("{status} {}", answer.split_once("\r\n\r\n").map_or("", |(_, body)| body))
}

/// The same without what differs from cluster to cluster.
fn asked(socket: &Path, method: &str, path: &str, body: &str) -> String {
    let answer = ask(socket, method, path, body);
    let (before, rest) = answer.split_once(r#""cluster_id""#).unwrap_or((&answer, ""));
    let after = rest.split_once(r#""revision""#).map_or("", |(_, after)| after);
    format!("{before}{}", after.trim_end())
}

fn etcdctl(arguments: &[&str]) -> String {
    let output =
        Command::new("etcdctl").args(arguments).stdin(Stdio::null()).output().expect("etcdctl (e2e/install etcd)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!("{}{}", text(&output.stdout), if output.status.success() { "" } else { "failed" })
}

/// The same on Balsa and on each installed etcd, each in a folder of its own.
pub(crate) fn on_each(script: impl Fn(&Path, &Path) -> Vec<String>) {
    let on = |program: &Path| script(program, TempDir::new().expect("a directory").path());
    let ours = on(Path::new(env!("CARGO_BIN_EXE_balsa")));
    assert!(!ours.is_empty());
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        assert_eq!(ours, on(&program), "the second is {release}'s");
    }
}

#[test]
fn a_socket_is_served_like_a_port_and_goes_with_its_member() {
    on_each(|program, folder| {
        // What looks like a host and a port is the name of a file in the working directory.
        let (url, socket) = ("unix://localhost:47", folder.join("localhost:47"));
        let mut member = Member::single(program, folder, url, url, &[]);
        member.healthy(&socket);
        let endpoint = format!("--endpoints=unix://{}", socket.display());
        let mode = std::fs::metadata(&socket).expect("the socket").permissions().mode();
        let listed = || etcdctl(&[&endpoint, "member", "list"]).rsplit(", ").take(2).collect::<Vec<_>>().join(" ");
        // Ours serves before it has told the cluster where.
        let begun = Instant::now();
        while !listed().contains("unix://") && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut said = vec![
            format!("{mode:o}"),
            asked(&socket, "GET", "/health", ""),
            asked(&socket, "GET", "/livez", ""),
            asked(&socket, "POST", "/v3/kv/put", r#"{"key":"YQ==","value":"Yg=="}"#),
            asked(&socket, "POST", "/v3/kv/range", r#"{"key":"YQ=="}"#),
            asked(&socket, "POST", "/v3/nothing", "{}"),
            etcdctl(&[&endpoint, "get", "a"]),
            etcdctl(&[&endpoint, "put", "a", "c"]),
            listed(),
        ];
        member.end("TERM");
        said.push(format!("after SIGTERM: {}", socket.exists()));
        let mut member = Member::single(program, folder, url, url, &[]);
        member.healthy(&socket);
        member.end("KILL");
        said.push(format!("after SIGKILL: {}", socket.exists()));
        let member = Member::single(program, folder, url, url, &[]);
        member.healthy(&socket);
        said.push(etcdctl(&[&endpoint, "get", "a"]));
        said
    });
}

#[test]
fn a_secure_socket_is_behind_tls() {
    on_each(|program, folder| {
        let (socket, plain) = (folder.join("secure"), folder.join("plain"));
        let listen = format!("unixs://{},unix://{}", socket.display(), plain.display());
        let member = Member::single(program, folder, &listen, "http://127.0.0.1:1", &["--auto-tls"]);
        member.healthy(&plain);
        let secure = format!("--endpoints=unixs://{}", socket.display());
        vec![
            etcdctl(&[&secure, "--insecure-transport=false", "--insecure-skip-tls-verify", "put", "a", "b"]),
            etcdctl(&[&format!("--endpoints=unix://{}", plain.display()), "get", "a"]),
        ]
    });
}

#[test]
fn members_reach_each_other_by_sockets() {
    on_each(|program, folder| {
        let peer = |index: usize| format!("unix://localhost:1{index}");
        let cluster: Vec<_> = (0..3).map(|index| format!("m{index}={}", peer(index))).collect();
        let members: Vec<_> = (0..3)
            .map(|index| {
                let client = format!("unix://localhost:2{index}");
                let flags = [
                    format!("--listen-client-urls={client}"),
                    format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={}", peer(index)),
                    format!("--initial-advertise-peer-urls={}", peer(index)),
                    format!("--initial-cluster={}", cluster.join(",")),
                ];
                Member::start(program, folder, &format!("m{index}"), &flags)
            })
            .collect();
        let endpoint = |index: usize| format!("--endpoints=unix://{}/localhost:2{index}", folder.display());
        for (index, member) in members.iter().enumerate() {
            member.healthy(&folder.join(format!("localhost:2{index}")));
        }
        let mut said = vec![etcdctl(&[&endpoint(0), "put", "a", "b"])];
        said.extend((0..3).map(|index| etcdctl(&[&endpoint(index), "get", "a"])));
        said
    });
}
