//! The members: each one Patroni, which starts a PostgreSQL, with a folder of its own. PostgreSQL runs as an unprivileged
//! user. All processes end with the value.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::local::free_port;

const MEMBERS: usize = 3;
/// How long a lease of the leader lasts; Patroni takes no less.
const TTL: u64 = 20;
/// How long Patroni lets one answer of its own take.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// Whom PostgreSQL runs as when the tests run as root, which it refuses. Debian's package makes this user.
const USER: &str = "postgres";
/// The program that is `patronictl`; the installed script names the folder in which it was installed.
const CONTROL: &str = "from patroni.ctl import ctl; ctl()";

/// A user and its group.
type User = (u32, u32);

/// What Patroni says of a member.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) member: usize,
    pub(super) role: String,
    pub(super) state: String,
    pub(super) timeline: u64,
}

struct Member {
    folder: PathBuf,
    rest_port: u16,
    postgres_port: u16,
    patroni: Option<Child>,
}

/// All of them.
pub(super) struct Group {
    folder: TempDir,
    python: PathBuf,
    programs: PathBuf,
    user: Option<User>,
    members: Vec<Member>,
}

/// Where SQL goes: statements by psql, so through libpq.
pub(super) struct Sql {
    program: PathBuf,
    folder: PathBuf,
    user: Option<User>,
    connection: String,
}

impl Sql {
    /// What a statement answers, a row on a line.
    pub(super) async fn run(&self, statement: &str) -> anyhow::Result<String> {
        let mut command = command(&self.program, &self.folder, self.user);
        command.args(["--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align"]);
        command.args(["--dbname", &self.connection, "--command", statement]);
        output(&mut command).await
    }
}

impl Group {
    /// Prepares the members; none runs yet.
    pub(super) fn new(cache: &Path, store: &[String]) -> anyhow::Result<Self> {
        let programs = postgres_programs()?;
        let folder = tempfile::Builder::new().prefix("patroni").tempdir()?;
        let user = unprivileged()?;
        own(folder.path(), user)?;
        // The cache may lie where only root may look.
        let installed = cache.join("clients/patroni/venv");
        let copied = std::process::Command::new("cp").arg("-a").args([&installed, folder.path()]).status()?;
        ensure!(copied.success(), "cannot copy {} (e2e/install clients)", installed.display());
        let python = folder.path().join("venv/bin/python");
        let mut members = Vec::new();
        for number in 0..MEMBERS {
            let folder = folder.path().join(name(number));
            fs::create_dir(&folder)?;
            let member = Member { folder, rest_port: free_port(), postgres_port: free_port(), patroni: None };
            let settings = settings(number, &member, store, &programs);
            fs::write(member.settings(), serde_json::to_vec_pretty(&settings)?)?;
            own(&member.folder, user)?;
            members.push(member);
        }
        Ok(Self { folder, python, programs, user, members })
    }

    pub(super) fn members(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.members.len()
    }

    /// Starts a member, again on its data if it ran before.
    pub(super) fn start(&mut self, number: usize) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.members[number].log())?;
        let mut command = self.command(&self.python, number);
        command.args(["-m", "patroni"]).arg(self.members[number].settings());
        command.stdout(log.try_clone()?).stderr(log);
        self.members[number].patroni = Some(command.spawn().context("cannot run Patroni")?);
        Ok(())
    }

    /// kill -9 of a member's Patroni and of its PostgreSQL.
    pub(super) async fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let member = &mut self.members[number];
        member.patroni.take().context("it does not run")?.kill().await?;
        let postmaster = fs::read_to_string(member.data().join("postmaster.pid"))?;
        let pid: u32 = postmaster.lines().next().unwrap_or_default().parse()?;
        ensure!(processes_in(&member.folder).contains(&pid), "PostgreSQL is not process {pid}");
        kill_processes(&[pid]);
        Ok(())
    }

    /// Asks for another leader.
    pub(super) async fn switch_over(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let (from, to) = (name(from), name(to));
        let said = self.control(&["switchover", "--leader", &from, "--candidate", &to, "--force"]).await?;
        ensure!(said.contains("Successfully switched over"), "{said}");
        Ok(())
    }

    /// The table that `patronictl` prints.
    pub(super) async fn list(&self) -> anyhow::Result<String> {
        self.control(&["list"]).await
    }

    async fn control(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(&self.python, 0);
        command.args(["-c", CONTROL, "-c"]).arg(self.members[0].settings()).args(arguments);
        output(&mut command).await.with_context(|| format!("patronictl {}", arguments.join(" ")))
    }

    /// All members as one that answers sees them.
    pub(super) async fn view(&self) -> anyhow::Result<Vec<Seen>> {
        let running = self.members.iter().find(|member| member.patroni.is_some()).context("none runs")?;
        let view = running.ask("/cluster").await?;
        let seen = |member: &Value| {
            let text = |field: &str| member[field].as_str().unwrap_or_default().to_owned();
            let number = self.members().find(|number| name(*number) == text("name"));
            let timeline = member["timeline"].as_u64().unwrap_or_default();
            Some(Seen { member: number?, role: text("role"), state: text("state"), timeline })
        };
        Ok(view["members"].as_array().into_iter().flatten().filter_map(seen).collect())
    }

    /// When a member last had an answer of the store, in seconds since 1970.
    pub(super) async fn heard_of_store(&self, number: usize) -> anyhow::Result<u64> {
        let state = self.members[number].ask("/patroni").await?;
        state["dcs_last_seen"].as_u64().with_context(|| format!("no dcs_last_seen in {state}"))
    }

    /// SQL at one member.
    pub(super) fn sql_at(&self, number: usize) -> Sql {
        self.sql(format!("host=127.0.0.1 port={}", self.members[number].postgres_port))
    }

    /// SQL at whichever member takes writes.
    pub(super) fn sql_at_leader(&self) -> Sql {
        let ports: Vec<String> = self.members.iter().map(|member| member.postgres_port.to_string()).collect();
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        self.sql(format!("host={hosts} port={} target_session_attrs=read-write", ports.join(",")))
    }

    fn sql(&self, server: String) -> Sql {
        let connection = format!("{server} user=postgres dbname=postgres connect_timeout=5");
        Sql { program: self.programs.join("psql"), folder: self.folder.path().to_owned(), user: self.user, connection }
    }

    fn command(&self, program: &Path, number: usize) -> Command {
        command(program, &self.members[number].folder, self.user)
    }

    /// The ends of the members' logs.
    pub(super) fn logs(&self) -> String {
        let end = |(number, member): (usize, &Member)| {
            let log = fs::read_to_string(member.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("{}:\n{}", name(number), lines[lines.len().saturating_sub(25)..].join("\n"))
        };
        self.members.iter().enumerate().map(end).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Patroni first: it would start PostgreSQL again.
            if let Some(mut patroni) = member.patroni.take() {
                let _ = patroni.start_kill();
            }
        }
        let deadline = Instant::now() + ANSWER_BOUND;
        loop {
            let left = processes_in(self.folder.path());
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            kill_processes(&left);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Member {
    fn settings(&self) -> PathBuf {
        self.folder.join("patroni.yml")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// GET of Patroni's own HTTP server, which says that it is unwell by the status, with the same body.
    async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let answer = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.rest_port)).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(ANSWER_BOUND, answer).await.context("no answer of Patroni")??;
        let (_, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no body in {answer:?}"))?;
        serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
    }
}

fn name(number: usize) -> String {
    format!("pg{number}")
}

/// Patroni's settings; JSON is YAML too. Small, and with nothing synced to the disk: no machine fails here.
fn settings(number: usize, member: &Member, store: &[String], programs: &Path) -> Value {
    let address = |port: u16| json!(format!("127.0.0.1:{port}"));
    let (rest, postgres) = (address(member.rest_port), address(member.postgres_port));
    let login = |name: &str| json!({"username": name, "password": "unused"});
    // Shared memory as files of the data: a server that is killed leaves none behind on the machine.
    let parameters = json!({
        "unix_socket_directories": member.folder, "shared_buffers": "16MB", "fsync": "off",
        "shared_memory_type": "mmap", "dynamic_shared_memory_type": "mmap",
    });
    json!({
        "scope": "clients",
        "name": name(number),
        "restapi": {"listen": rest, "connect_address": rest},
        "etcd3": {"hosts": store},
        "bootstrap": {
            "dcs": {
                "ttl": TTL, "loop_wait": 2, "retry_timeout": 8, "synchronous_mode": true,
                "postgresql": {"use_pg_rewind": true, "parameters": {"max_connections": 20, "wal_keep_size": "64MB"}},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums", "no-sync"],
        },
        "postgresql": {
            "listen": postgres, "connect_address": postgres,
            "data_dir": member.data(), "bin_dir": programs, "pgpass": member.folder.join("pgpass"),
            "authentication": {"superuser": login("postgres"), "replication": login("replicator"), "rewind": login("rewinder")},
            "parameters": parameters,
            "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            "basebackup": [{"checkpoint": "fast"}, "no-sync"],
        },
    })
}

/// Where Debian puts the newest PostgreSQL, whose programs are not on the PATH.
fn postgres_programs() -> anyhow::Result<PathBuf> {
    let version = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
    let root = Path::new("/usr/lib/postgresql");
    let newest = fs::read_dir(root).ok().and_then(|entries| entries.filter_map(version).max());
    Ok(root.join(newest.context("no PostgreSQL (e2e/install clients)")?.to_string()).join("bin"))
}

/// A program in a folder, by which its children are found, too.
fn command(program: &Path, folder: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env("HOME", folder).stdin(Stdio::null()).kill_on_drop(true);
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    command
}

/// Who runs PostgreSQL, if not the one who runs the tests.
fn unprivileged() -> anyhow::Result<Option<User>> {
    let id = |arguments: &[&str]| -> anyhow::Result<u32> {
        let answer = std::process::Command::new("id").args(arguments).output()?;
        ensure!(answer.status.success(), "no user {USER}: {}", String::from_utf8_lossy(&answer.stderr));
        Ok(String::from_utf8(answer.stdout)?.trim().parse()?)
    };
    if id(&["-u"])? != 0 {
        return Ok(None);
    }
    Ok(Some((id(&["-u", USER])?, id(&["-g", USER])?)))
}

fn own(path: &Path, user: Option<User>) -> anyhow::Result<()> {
    let Some((user, group)) = user else { return Ok(()) };
    chown(path, Some(user), Some(group)).with_context(|| format!("cannot give {} away", path.display()))
}

/// What a program prints, if it ends well, within bounds and without a warning: PostgreSQL's is that a row that was to be
/// written synchronously is not.
async fn output(command: &mut Command) -> anyhow::Result<String> {
    let Ok(ended) = timeout(super::BOUND, command.output()).await else { bail!("no end") };
    let ended = ended?;
    let (out, err) = (String::from_utf8(ended.stdout)?, String::from_utf8_lossy(&ended.stderr).into_owned());
    ensure!(ended.status.success() && !err.contains("WARNING"), "{}: {out}{err}", ended.status);
    Ok(out)
}

/// The processes that work in a folder or below.
fn processes_in(folder: &Path) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let inside = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        fs::read_link(entry.path().join("cwd")).ok()?.starts_with(folder).then_some(pid)
    };
    processes.filter_map(inside).collect()
}

fn kill_processes(pids: &[u32]) {
    let pids = pids.iter().map(ToString::to_string);
    // One that has just ended is no failure.
    let _ = std::process::Command::new("kill").arg("-9").args(pids).stderr(Stdio::null()).status();
}
