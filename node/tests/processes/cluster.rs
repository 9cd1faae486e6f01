//! A cluster of `balsa` processes on loopback, started by etcd's flags. All of them end with the value.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use balsa_node::transport::tls::Tls;
use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::cluster_client::ClusterClient;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use balsa_proto::etcdserverpb::lease_client::LeaseClient;
use balsa_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use balsa_proto::etcdserverpb::watch_client::WatchClient;
use balsa_proto::v3electionpb::election_client::ElectionClient;
use balsa_proto::v3lockpb::lock_client::LockClient;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take before a test says that it does not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) client_port: u16,
    pub(crate) peer_port: u16,
    /// Where others reach the peer port, when that is somewhere else.
    pub(crate) advertised_port: Option<u16>,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    process: Option<Child>,
    /// Further flags of this member alone.
    pub(crate) flags: Vec<String>,
    /// With it, both ports are behind TLS, and this is what a client shows and trusts.
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Member {
    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub(crate) fn peer_url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.advertised_port.unwrap_or(self.peer_port))
    }

    pub(crate) fn client_url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.client_port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the member runs").id()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let process = self.process.as_mut().expect("the member runs");
        loop {
            if let Some(status) = process.try_wait().expect("the process can be asked") {
                self.process = None;
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, tail(&self.log));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the process has ended by itself, or answers linearizable reads.
    pub(crate) async fn ended_or_serves(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let process = self.process.as_mut().expect("the member runs");
            if let Some(status) = process.try_wait().expect("the process can be asked") {
                self.process = None;
                return Some(status);
            }
            if self.get("absent").await.is_ok() {
                return None;
            }
            assert!(Instant::now() < deadline, "{} neither ends nor serves:\n{}", self.name, tail(&self.log));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status();
        assert!(status.expect("kill runs").success());
    }

    /// kill -9, and the corpse is collected.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.client_url()).expect("a URL").connect_timeout(Duration::from_secs(5));
        let Some(tls) = self.tls.clone() else { return endpoint.connect_lazy() };
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let config = tls.client().expect("it dials");
            async move {
                let stream = TcpStream::connect(("127.0.0.1", uri.port_u16().expect("a port"))).await?;
                let name = "127.0.0.1".try_into().expect("an address");
                TlsConnector::from(config).connect(name, stream).await.map(TokioIo::new)
            }
        }))
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel())
    }

    pub(crate) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel())
    }

    pub(crate) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel())
    }

    pub(crate) fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel())
    }

    pub(crate) fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel())
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel())
    }

    pub(crate) async fn status(&self) -> Option<pb::StatusResponse> {
        let asked = async { self.maintenance().status(pb::StatusRequest {}).await };
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?;
        answer.ok().map(tonic::Response::into_inner)
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> Result<i64, tonic::Status> {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        let answer = self.kv().put(pb::PutRequest { key, value, ..Default::default() }).await?;
        Ok(answer.into_inner().header.expect("a header").revision)
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<String>, tonic::Status> {
        let request = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let answer = self.kv().range(request).await?.into_inner();
        Ok(answer.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) flags: &'static [&'static str],
    pub(crate) directory: TempDir,
}

impl Cluster {
    /// Starts `size` members that found a cluster together, and waits until each has joined it.
    pub(crate) async fn start(size: usize) -> Self {
        Self::start_with(size, &[]).await
    }

    /// The same with further flags for each.
    pub(crate) async fn start_with(size: usize, flags: &'static [&'static str]) -> Self {
        let mut cluster = Self::unstarted(size);
        cluster.flags = flags;
        cluster.found().await;
        cluster
    }

    /// Members that were never started.
    pub(crate) fn unstarted(size: usize) -> Self {
        let mut cluster = Self::empty();
        for index in 0..size {
            cluster.add_unstarted(&format!("m{index}"));
        }
        cluster
    }

    /// Starts all members, which found a cluster together, and waits until each has joined it.
    pub(crate) async fn found(&mut self) {
        let all = self.initial_cluster();
        for index in 0..self.members.len() {
            self.run(index, &all, "new");
        }
        self.leader().await;
        let ready = |member: &Member| member.log_text().contains("ready to serve client requests");
        self.eventually("every member has joined", || async { self.members.iter().all(ready) }).await;
    }

    /// No members yet.
    pub(crate) fn empty() -> Self {
        Self { members: Vec::new(), flags: &[], directory: TempDir::new().expect("a directory") }
    }

    /// A further member that is not started yet; its index.
    pub(crate) fn add_unstarted(&mut self, name: &str) -> usize {
        let data = self.directory.path().join(name);
        self.members.push(Member {
            name: name.to_owned(),
            client_port: free_port(),
            peer_port: free_port(),
            advertised_port: None,
            log: data.with_extension("log"),
            data,
            process: None,
            flags: Vec::new(),
            tls: None,
        });
        self.members.len() - 1
    }

    pub(crate) fn initial_cluster(&self) -> String {
        let one = |member: &Member| format!("{}={}", member.name, member.peer_url());
        self.members.iter().map(one).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn run(&mut self, index: usize, initial_cluster: &str, state: &str) {
        self.run_with(index, initial_cluster, state, &[]);
    }

    pub(crate) fn run_with(&mut self, index: usize, initial_cluster: &str, state: &str, more: &[(&str, &str)]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_balsa"));
        command.envs(more.iter().copied());
        self.spawn(index, command, initial_cluster, state);
    }

    /// Starts a member whose files cannot grow over `bytes`, as on a full disk.
    pub(crate) fn restart_limited(&mut self, index: usize, bytes: usize) {
        let all = self.initial_cluster();
        // Without the trap the kernel would end the process instead of failing its write.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes / 512);
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_balsa"));
        self.spawn(index, command, &all, "new");
    }

    /// Starts a member by a command that runs the node's binary somewhere else.
    pub(crate) fn run_inside(&mut self, index: usize, command: Command) {
        let all = self.initial_cluster();
        self.spawn(index, command, &all, "new");
    }

    fn spawn(&mut self, index: usize, mut command: Command, initial_cluster: &str, state: &str) {
        let member = &self.members[index];
        command
            .arg(format!("--name={}", member.name))
            .arg(format!("--data-dir={}", member.data.display()))
            .arg(format!("--listen-client-urls={}", member.client_url()))
            .arg(format!("--advertise-client-urls={}", member.client_url()))
            .arg(format!("--listen-peer-urls={}://127.0.0.1:{}", member.scheme(), member.peer_port))
            .arg(format!("--initial-advertise-peer-urls={}", member.peer_url()))
            .arg(format!("--initial-cluster={initial_cluster}"))
            .arg(format!("--initial-cluster-state={state}"))
            .arg("--initial-cluster-token=processes")
            .arg("--drain-delay=0s")
            .args(self.flags)
            .args(&member.flags);
        self.launch(index, command);
    }

    /// Starts a member by a configuration file alone.
    pub(crate) fn run_by_file(&mut self, index: usize, file: &Path) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_balsa"));
        command.arg(format!("--config-file={}", file.display()));
        self.launch(index, command);
    }

    fn launch(&mut self, index: usize, mut command: Command) {
        let member = &mut self.members[index];
        let log = std::fs::File::options().create(true).append(true).open(&member.log).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        member.process = Some(command.spawn().expect("the node's binary runs"));
    }

    /// Starts a member again on its disk.
    pub(crate) fn restart(&mut self, index: usize) {
        let all = self.initial_cluster();
        self.run(index, &all, "new");
    }

    /// Starts a member again on its disk, with failpoints armed.
    pub(crate) fn restart_to_fail(&mut self, index: usize, failpoints: &str) {
        let all = self.initial_cluster();
        self.run_with(index, &all, "new", &[("BALSA_FAILPOINTS", failpoints)]);
    }

    /// The index of the leader that a majority of the running members names.
    pub(crate) async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.leader_now().await {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader:\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn leader_now(&self) -> Option<usize> {
        let mut named = Vec::new();
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.is_running()) {
            if let Some(status) = member.status().await {
                let own = status.header.as_ref().map_or(0, |header| header.member_id);
                named.push((index, own, status.leader));
            }
        }
        let running = self.members.iter().filter(|member| member.is_running()).count();
        let (index, id, _) = named.iter().find(|(_, own, leader)| own == leader && *own != 0)?;
        let agree = named.iter().filter(|(_, _, leader)| leader == id).count();
        (agree * 2 > running).then_some(*index)
    }

    /// Waits until `check` holds, asking again and again.
    pub(crate) async fn eventually<F: Future<Output = bool>>(&self, what: &str, check: impl Fn() -> F) {
        let deadline = Instant::now() + PATIENCE;
        while !check().await {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has a member lead. Who could not hand over in time, or was not told by whom it is followed yet, is asked once more.
    pub(crate) async fn lead(&self, index: usize) {
        let id = self.members[index].status().await.and_then(|status| status.header).expect("a header").member_id;
        let leads = || async {
            let leader = self.leader().await;
            let moved = pb::MoveLeaderRequest { target_id: id };
            leader == index || self.members[leader].maintenance().move_leader(moved).await.is_ok()
        };
        self.eventually("it leads", leads).await;
    }

    /// Waits until a member answers linearizable reads.
    pub(crate) async fn serves(&self, index: usize) {
        let member = &self.members[index];
        self.eventually("the member serves", || async { member.get("absent").await.is_ok() }).await;
    }

    /// The hash of every running member at one revision must be the same.
    pub(crate) async fn assert_hashes_agree(&self) {
        let leader = &self.members[self.leader().await];
        let revision = leader.put("hash-pin", "x").await.expect("a write");
        let mut hashes = Vec::new();
        for member in self.members.iter().filter(|member| member.is_running()) {
            member.get("hash-pin").await.expect("a linearizable read");
            let hash = member.maintenance().hash_kv(pb::HashKvRequest { revision }).await.expect("a hash").into_inner();
            hashes.push((hash.hash, hash.compact_revision));
        }
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "hashes differ: {hashes:?}");
    }

    /// The ends of all logs, for a failed test.
    pub(crate) fn logs(&self) -> String {
        let one = |member: &Member| format!("--- {}\n{}", member.name, tail(&member.log));
        self.members.iter().map(one).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.members.iter_mut().for_each(Member::kill);
    }
}

/// The end of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// A port below those that the system gives to outgoing connections: one of these could take it before the member listens.
pub(crate) fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(7_919);
    loop {
        let number = begin.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = 12_000 + u16::try_from(number).expect("below 20,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
