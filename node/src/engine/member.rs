//! Puts a member together from its disk: opens both stores, repairs the log from the key space, starts the threads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use balsa_proto::log::{Marker, Membership};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tracing::info;

use super::applier::{Applier, Work};
use super::credentials::Credentials;
use super::driver::{Driver, Ports};
use super::failpoint;
use super::fatal::{ExitCode, Fatal};
use super::force::force;
use super::handle::{Handle, Shared, request_timeout};
use super::inbox::{Inbox, Input};
use super::keeper::Keeper;
use super::leases::{self, Leases};
use super::node::NodeConfig;
use super::snapshot::Snapshots;
use super::space::{self, Space};
use super::start_error::StartError;
use super::status::Status;
use super::stuck_disk;
use super::waiters::Waiters;
use super::watch::{ViewSource, WatchHub};
use super::{Failure, Store};
use crate::domain::apply::{AppliedPoint, StateMachine};
use crate::domain::command::first_sequence;
use crate::domain::raft::recovery::{end_of, repair};
use crate::domain::raft::{Replica, ReplicaConfig};
use crate::storage::rocks::RocksLog;
use crate::storage::{self, KeySpace, LogStore, LogWrite, SnapshotPoint, StorageError};
use crate::transport::Peers;
use crate::transport::tonic::{TonicPeers, TonicPeersConfig};

/// The name of the first key space of a disk.
pub(crate) const FIRST: &str = "first";
/// How often the member asks itself whether it could serve a linearizable read.
const READ_INDEX_EVERY: Duration = Duration::from_millis(500);

/// The directories of a disk.
pub(crate) struct Layout(pub(crate) PathBuf);

impl Layout {
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    pub(crate) fn key_spaces(&self) -> PathBuf {
        self.0.join("kv")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.0.join("snapshot")
    }
}

/// Where a state machine stands, as the log and snapshots name it.
pub(crate) fn point_of(applied: &AppliedPoint) -> SnapshotPoint {
    SnapshotPoint { index: applied.index, term: applied.term, conf_state: applied.conf_state.clone() }
}

/// Writes the first state of a founder's disk, or of one of the members that found a cluster together: a snapshot point,
/// so that whoever joins later can only start from a snapshot. Repeating it before the marker names a member does no harm.
pub(crate) fn found(config: &NodeConfig, membership: &Membership) -> Result<(), StartError> {
    let layout = Layout(config.data_dir.clone());
    let directory = layout.key_spaces().join(FIRST);
    for stale in [layout.key_spaces(), layout.log()] {
        remove(&stale)?;
    }
    let point = SnapshotPoint { index: 1, term: 1, conf_state: crate::domain::membership::conf_state(membership) };
    create(&directory)?;
    let store = Store::open(&directory, &config.key_space)?;
    StateMachine::found(&store, membership, &point)?;
    let log = RocksLog::open(&layout.log())?;
    let hard_state = raft::eraftpb::HardState { term: 1, commit: 1, ..Default::default() };
    let write = LogWrite {
        reset_to: Some(&point),
        hard_state: Some(&hard_state),
        key_space: Some(FIRST),
        sync: true,
        ..LogWrite::default()
    };
    Ok(log.write(write)?)
}

/// Removes what a founding left that was cut before its marker: the disk was never a member.
pub(crate) fn clear(config: &NodeConfig) -> Result<(), StartError> {
    let layout = Layout(config.data_dir.clone());
    remove(&layout.key_spaces())?;
    remove(&layout.log())
}

/// Opens the disk of `marker`. Nothing runs yet.
pub(crate) fn open<'a>(config: &'a NodeConfig, marker: &'a Marker) -> Result<Disk<'a>, StartError> {
    let started = Instant::now();
    let layout = Layout(config.data_dir.clone());
    create(&layout.key_spaces())?;
    remove(&layout.snapshots())?;
    let log = Arc::new(RocksLog::open(&layout.log())?);
    let initial = log.initial()?;
    let name = match initial.key_space.clone() {
        Some(name) => name,
        None => {
            first_start(&layout)?;
            log.write(LogWrite { key_space: Some(FIRST), sync: true, ..LogWrite::default() })?;
            FIRST.to_owned()
        }
    };
    storage::snapshot::remove_others(&layout.key_spaces(), &name)?;
    let store = Arc::new(Store::open(&layout.key_spaces().join(&name), &config.key_space)?);
    let mut machine = StateMachine::recover(store.clone())?;
    machine.count_keys()?;
    machine.between_parts(|| failpoint::hit("apply-part"));
    let applied = point_of(machine.applied());
    let fixes = repair(&initial, &applied)
        .map_err(|lost| StartError::Corrupt(format!("log {}: {lost}", layout.log().display())))?;
    if !fixes.is_empty() {
        info!(index = applied.index, "repairing the log from the key space");
        log.write(fixes.as_write())?;
    }
    let (last, last_term) = end_of(&*log, &initial)?;
    info!(applied = applied.index, last, last_term, took = ?started.elapsed(), "disk opened");
    Ok(Disk { config, marker, layout, log, store, machine })
}

/// A log that names no key space is that of a joiner which starts for the first time: there is none yet. Beside one the log was
/// lost, and the member would have forgotten its vote and what it acknowledged.
fn first_start(layout: &Layout) -> Result<(), StartError> {
    let directory = layout.key_spaces();
    let mut kept =
        std::fs::read_dir(&directory).map_err(|error| StorageError::from_io("listing of", &directory, &error))?;
    match kept.next() {
        None => Ok(()),
        Some(_) => Err(StartError::Corrupt(format!(
            "log {} is empty, but {} has what was applied of it: the log is lost, and with it what this member has voted and \
             acknowledged. If it was moved, put it back. Else remove the member and add it anew with an empty disk; where it is \
             the only one, restore a snapshot",
            layout.log().display(),
            directory.display()
        ))),
    }
}

/// An opened disk.
pub(crate) struct Disk<'a> {
    config: &'a NodeConfig,
    marker: &'a Marker,
    layout: Layout,
    log: Arc<RocksLog>,
    store: Arc<Store>,
    machine: StateMachine<Store>,
}

/// What the threads and handles of one member share.
struct Parts {
    inbox: Arc<Inbox>,
    waiters: Arc<Waiters>,
    store: Arc<RwLock<Arc<Store>>>,
    status: Arc<RwLock<Arc<Status>>>,
    hub: Arc<WatchHub>,
    credentials: Arc<Credentials>,
    keeper: Arc<Keeper>,
    space: Arc<Space>,
    leases: Arc<Leases>,
    peers: Arc<TonicPeers>,
    removed: Arc<AtomicBool>,
    incarnation: u64,
}

impl Disk<'_> {
    /// (id, peer URLs) of the other members, as far as the disk knows them: a joiner knows only its marker.
    fn known_peers(&self) -> Vec<(u64, Vec<String>)> {
        let members = &self.machine.membership().members;
        let known: Vec<(u64, Vec<String>)> = match members.is_empty() {
            true => self.marker.seeds.iter().map(|seed| (seed.id, seed.peer_urls.clone())).collect(),
            false => members.iter().map(|member| (member.id, member.peer_urls.clone())).collect(),
        };
        known.into_iter().filter(|(id, _)| *id != self.marker.member_id).collect()
    }

    /// The membership that the disk knows; empty on a joiner's.
    pub(crate) fn membership(&self) -> &Membership {
        self.machine.membership()
    }

    /// The peer URLs of the other members.
    pub(crate) fn peer_urls(&self) -> Vec<String> {
        self.known_peers().into_iter().flat_map(|(_, urls)| urls).collect()
    }

    /// Makes the member the only one of its cluster, durably.
    ///
    /// # Errors
    /// See [`force`].
    pub(crate) fn force(&mut self) -> Result<(), StartError> {
        let member = (self.marker.cluster_id, self.marker.member_id);
        force(&*self.log, &*self.store, &mut self.machine, member)
    }

    /// Starts the threads.
    pub(crate) fn start(self, fatal: &Fatal) -> Result<Handle, StartError> {
        let runtime = tokio::runtime::Handle::current();
        let parts = self.parts(fatal, &runtime)?;
        let replica = self.replica(parts.incarnation)?;
        let (to_applier, work) = std::sync::mpsc::channel();
        let (leader, leader_seen) = watch::channel((0, 0));
        let ports = self.ports(&parts, fatal, &runtime, to_applier, leader);
        let driver = Driver::new(replica, ports, self.machine.applied().index);
        let shared = self.shared(&parts, fatal, leader_seen);
        let log = Arc::downgrade(&self.log);
        let applier = self.applier(&parts, fatal, work);
        let keeping = parts.keeper.clone();
        *shared.threads.lock() = vec![
            spawn("applier", &runtime, fatal, move || applier.run()),
            spawn("driver", &runtime, fatal, move || driver.run()),
            spawn("keeper", &runtime, fatal, move || keeping.run()),
        ];
        let handle = Handle(Arc::new(shared));
        runtime.spawn(keep_read_index(handle.clone()));
        runtime.spawn(space::watch(handle.clone()));
        runtime.spawn(stuck_disk::watch(fatal.clone(), refusal_of(log, handle.clone())));
        runtime.spawn(leases::keep(handle.clone()));
        Ok(handle)
    }

    /// What several threads share.
    fn parts(&self, fatal: &Fatal, runtime: &tokio::runtime::Handle) -> Result<Parts, StartError> {
        let incarnation = super::node::random();
        let inbox = Arc::new(Inbox::default());
        let store = Arc::new(RwLock::new(self.store.clone()));
        let viewed = store.clone();
        let view = move || viewed.read().view().map_err(Failure::from);
        let ending = fatal.clone();
        let source = ViewSource(view, move |error: &StorageError| ending.storage(error));
        let hub =
            WatchHub::new(Arc::new(source), self.config.watch).map_err(|error| StartError::Disk(error.to_string()))?;
        let status = Status {
            cluster_id: self.marker.cluster_id,
            raft_id: self.marker.member_id,
            incarnation: self.marker.incarnation,
            membership: self.machine.membership().clone(),
            ..Status::default()
        };
        let snapshots = (self.layout.snapshots(), self.marker.cluster_id);
        let status = Arc::new(RwLock::new(Arc::new(status)));
        let keeper = Keeper::new(
            store.clone(),
            inbox.clone(),
            fatal.clone(),
            snapshots,
            status.clone(),
            self.config.housekeeping,
        );
        Ok(Parts {
            peers: self.peers(&inbox, runtime, incarnation),
            inbox,
            waiters: Arc::new(Waiters::default()),
            store,
            status,
            hub,
            credentials: Arc::new(Credentials::new(self.machine.auth().clone(), self.config.token_ttl)),
            keeper: Arc::new(keeper),
            space: Arc::new(Space::new(self.config.quota_bytes.clone())),
            leases: Arc::new(Leases::new(self.config.leases, self.config.tick * self.config.election_ticks)),
            removed: Arc::new(AtomicBool::new(false)),
            incarnation,
        })
    }

    fn ports(
        &self,
        parts: &Parts,
        fatal: &Fatal,
        runtime: &tokio::runtime::Handle,
        applier: std::sync::mpsc::Sender<Work>,
        leader: watch::Sender<(u64, u64)>,
    ) -> Ports {
        Ports {
            inbox: parts.inbox.clone(),
            log: self.log.clone(),
            peers: parts.peers.clone(),
            applier,
            keeper: parts.keeper.clone(),
            snapshots: Snapshots::new(parts.peers.clone(), parts.inbox.clone(), runtime.clone()),
            waiters: parts.waiters.clone(),
            status: parts.status.clone(),
            leader,
            fatal: fatal.clone(),
            member_id: self.marker.member_id,
            incarnation: parts.incarnation,
            tick: self.config.tick,
            election_ticks: self.config.election_ticks,
            catch_up_entries: self.config.housekeeping.catch_up_entries,
        }
    }

    fn applier(self, parts: &Parts, fatal: &Fatal, work: std::sync::mpsc::Receiver<Work>) -> Applier {
        Applier {
            machine: self.machine,
            store: parts.store.clone(),
            directory: self.layout.key_spaces(),
            options: self.config.key_space.clone(),
            work,
            inbox: parts.inbox.clone(),
            waiters: parts.waiters.clone(),
            hub: parts.hub.clone(),
            credentials: parts.credentials.clone(),
            status: parts.status.clone(),
            keeper: parts.keeper.clone(),
            space: parts.space.clone(),
            leases: parts.leases.clone(),
            fatal: fatal.clone(),
            slow: self.config.slow_apply,
            member_id: self.marker.member_id,
            incarnation: parts.incarnation,
            removed: parts.removed.clone(),
        }
    }

    fn shared(&self, parts: &Parts, fatal: &Fatal, leader: watch::Receiver<(u64, u64)>) -> Shared {
        let election_timeout = self.config.tick * self.config.election_ticks;
        Shared {
            inbox: parts.inbox.clone(),
            peers: parts.peers.clone(),
            waiters: parts.waiters.clone(),
            store: parts.store.clone(),
            status: parts.status.clone(),
            leader,
            hub: parts.hub.clone(),
            credentials: parts.credentials.clone(),
            keeper: parts.keeper.clone(),
            space: parts.space.clone(),
            leases: parts.leases.clone(),
            log: Arc::downgrade(&self.log),
            threads: Mutex::new(Vec::new()),
            last_read_index: Mutex::new(None),
            sequence: AtomicU64::new(first_sequence(parts.incarnation)),
            pending: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            removed: parts.removed.clone(),
            fatal: fatal.clone(),
            member_id: self.marker.member_id,
            cluster_id: self.marker.cluster_id,
            incarnation: parts.incarnation,
            request_timeout: request_timeout(election_timeout),
            heartbeat_interval: self.config.tick,
            election_timeout,
            max_request_bytes: self.config.max_request_bytes.clone(),
        }
    }

    fn peers(&self, inbox: &Arc<Inbox>, runtime: &tokio::runtime::Handle, incarnation: u64) -> Arc<TonicPeers> {
        let lost = inbox.clone();
        let config = TonicPeersConfig {
            cluster_id: self.marker.cluster_id,
            member_id: self.marker.member_id,
            incarnation,
            dialer: self.config.dialer.clone(),
            metrics: self.config.peer_metrics.clone(),
        };
        let on_unreachable = Arc::new(move |id| lost.report(Input::Unreachable(id)));
        let peers = TonicPeers::new(config, runtime.clone(), on_unreachable);
        peers.update(&self.known_peers());
        peers
    }

    fn replica(&self, seed: u64) -> Result<Replica<RocksLog>, StartError> {
        let applied = self.machine.applied();
        let config = ReplicaConfig {
            id: self.marker.member_id,
            election_ticks: self.config.election_ticks as usize,
            heartbeat_ticks: 1,
            pre_vote: self.config.pre_vote,
            seed,
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        Replica::open(config, self.log.clone(), applied.index, applied.conf_state.clone(), &logger)
            .map_err(|error| StartError::Corrupt(format!("the log in {}: {error}", self.layout.log().display())))
    }
}

/// Why one of the two stores takes no writes, if it takes none.
fn refusal_of(log: Weak<RocksLog>, handle: Handle) -> impl Fn() -> Option<StorageError> {
    move || log.upgrade().and_then(|log| log.refuses_writes()).or_else(|| handle.store().refuses_writes())
}

/// Readiness is fed in the background, so that a probe only looks.
async fn keep_read_index(handle: Handle) {
    loop {
        let asked = Instant::now();
        let rest = match tokio::time::timeout(READ_INDEX_EVERY * 4, handle.read_index_in_background()).await {
            Ok(Err(Failure::Stopped)) => return,
            // It waited for ticks.
            Ok(Ok(())) => READ_INDEX_EVERY.saturating_sub(asked.elapsed()).max(READ_INDEX_EVERY / 2),
            Ok(Err(_)) | Err(_) => READ_INDEX_EVERY,
        };
        tokio::time::sleep(rest).await;
    }
}

/// A thread that the member cannot do without: when it panics, the process ends instead of standing half alive.
fn spawn(
    name: &'static str,
    runtime: &tokio::runtime::Handle,
    fatal: &Fatal,
    body: impl FnOnce() + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let (runtime, fatal) = (runtime.clone(), fatal.clone());
    let run = move || {
        let _entered = runtime.enter();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            fatal.end(ExitCode::ExitFault, format!("the {name} of this member panicked; the lines before say where"));
        }
    };
    match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        Ok(thread) => thread,
        Err(error) => panic!("no thread for {name}: {error}"),
    }
}

pub(crate) fn create(directory: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(directory)
        .map_err(|error| StartError::Disk(format!("create {}: {error}", directory.display())))
}

fn remove(directory: &Path) -> Result<(), StartError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StartError::Disk(format!("remove {}: {error}", directory.display())))
        }
        _ => Ok(()),
    }
}
