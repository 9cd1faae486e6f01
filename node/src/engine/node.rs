//! The life of the process as a node: which member its disk makes it, if any, and how it becomes one. No node decides alone
//! whether it is new: the operator says so (`Bootstrap`, `Join`), or etcd's `--initial-cluster` flags do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::log::{Marker, Member, Membership};
use balsa_proto::peer::MembersResponse;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use super::fatal::{ExitCode, Fatal};
use super::leases::LeaseOptions;
use super::listings::{
    ASK_TIMEOUT, ask, ask_for, check_leaderless, check_never_started, check_not_removed, check_not_started,
    check_place, check_unlisted, find_own, overlap,
};
use super::member;
use super::start_error::StartError;
use super::supervisor;
use super::vacancy::check_vacant;
use super::watch::WatchOptions;
use super::{Failure, Handle, Housekeeping, Limit};
use crate::domain::command::{Command, Outcome};
use crate::storage::marker;
use crate::storage::rocks::KeySpaceOptions;
use crate::transport;
use crate::transport::tonic::{Dialer, PeerMetrics};

/// Version of all formats on the disk.
pub(super) const FORMAT_VERSION: u32 = 1;
/// How often an uninitialized node, or a member without a leader, asks its peers what became of it.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// How long a cluster that a member is to join is asked whether it lists it.
const LIST_WITHIN: Duration = Duration::from_secs(5);
/// How long one member of it may take to answer, as in etcd.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// etcd's words, for those that look for them.
const NOBODY_THERE: &str =
    "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs";

/// How a node with an empty disk becomes a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// It waits to be told by the operator.
    Operator,
    /// etcd's flags: all members found the cluster together, or one joins an existing cluster that already lists it.
    Static {
        /// (name, peer URLs) of all members, this one included; or why the flags name none, which only an empty disk asks. One
        /// without a name is known by its URLs alone until it says its name itself.
        members: Result<Vec<(String, Vec<String>)>, String>,
        /// Part of the cluster id.
        token: String,
        /// `--initial-cluster-state=existing`.
        existing: bool,
    },
}

/// What a node needs to know, validated.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Directory of everything that this node keeps.
    pub data_dir: PathBuf,
    /// Human-readable name, published to the members.
    pub name: String,
    /// The URLs at which peers reach this node.
    pub peer_urls: Vec<String>,
    /// The URLs at which clients reach this node.
    pub client_urls: Vec<String>,
    /// What an empty disk means.
    pub bootstrap: Bootstrap,
    /// Whether the member that the disk makes it goes on without all the others. An empty disk does not ask.
    pub force_new_cluster: bool,
    /// Raft's tick: the heartbeat interval.
    pub tick: Duration,
    /// Ticks of an election time-out.
    pub election_ticks: u32,
    /// Whether a candidate asks first who would vote for it.
    pub pre_vote: bool,
    /// Bound on one encoded command.
    pub max_request_bytes: Limit<usize>,
    /// Bytes that the key space may hold; 0 and below for no limit.
    pub quota_bytes: Limit<i64>,
    /// Applying that takes longer is logged.
    pub slow_apply: Duration,
    /// How the log is trimmed and history compacted.
    pub housekeeping: Housekeeping,
    /// Bounds and intervals of watching.
    pub watch: WatchOptions,
    /// The clock of leases.
    pub leases: LeaseOptions,
    /// How long a simple token lives without being used.
    pub token_ttl: Duration,
    /// Memory of the key space.
    pub key_space: KeySpaceOptions,
    /// How other members are connected to.
    pub dialer: Dialer,
    /// Counters of the peer transport.
    pub peer_metrics: PeerMetrics,
}

struct Running {
    marker: Marker,
    handle: Handle,
}

/// One node: uninitialized, or one member.
pub struct Node {
    config: NodeConfig,
    fatal: Fatal,
    running: RwLock<Option<Running>>,
    /// Held while the node becomes a member, so that two calls cannot both find an empty disk.
    becoming: tokio::sync::Mutex<()>,
    /// Whether the ports accept connections.
    listening: watch::Sender<bool>,
}

impl Node {
    /// Opens the disk and starts the member that it belongs to, if any.
    ///
    /// # Errors
    /// See [`StartError`]; the process must end with its code.
    pub async fn open(config: NodeConfig, fatal: Fatal) -> Result<Arc<Self>, StartError> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|error| StartError::Disk(format!("create {}: {error}", config.data_dir.display())))?;
        let marker = check_vacant(&config.data_dir, marker::read(&config.data_dir)?)?;
        let (bootstrap, force) = (config.bootstrap.clone(), config.force_new_cluster);
        if force && marker.is_none() {
            warn!("--force-new-cluster has no effect on an empty data directory");
        }
        let (running, becoming) = (RwLock::new(None), tokio::sync::Mutex::new(()));
        let node = Arc::new(Self { config, fatal, running, becoming, listening: watch::Sender::new(false) });
        match (marker, bootstrap) {
            (Some(marker), _) => node.start(marker, force).await?,
            (None, Bootstrap::Operator) => node.wait_for_operator().await?,
            (None, Bootstrap::Static { members, token, existing }) => {
                let members = members.map_err(StartError::Config)?;
                match existing {
                    true => node.join_existing().await?,
                    false => node.found_static(&members, &token).await?,
                }
            }
        }
        Ok(node)
    }

    /// The ports accept connections from now on. Not before that the log says that the member is ready: who starts a node
    /// waits for that line, as for etcd's, and connects.
    pub fn listening(&self) {
        self.listening.send_replace(true);
    }

    /// The running member.
    ///
    /// # Errors
    /// `Uninitialized`.
    pub fn handle(&self) -> Result<Handle, Failure> {
        self.running.read().as_ref().map(|running| running.handle.clone()).ok_or(Failure::Uninitialized)
    }

    /// What the disk says of itself.
    pub fn marker(&self) -> Option<Marker> {
        self.running.read().as_ref().map(|running| running.marker.clone())
    }

    /// How the node was configured.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Where the need to end is announced.
    pub fn fatal(&self) -> &Fatal {
        &self.fatal
    }

    /// Founds a cluster: this node becomes its only voter, raft id 1. The same again succeeds without effect.
    ///
    /// # Errors
    /// `WrongDisk` when the disk is a member of another cluster, or another member of it.
    pub async fn bootstrap(&self, cluster_id: u64, peer_urls: Vec<String>) -> Result<Marker, StartError> {
        let _becoming = self.becoming.lock().await;
        if let Some(marker) = self.marker() {
            return same(marker, cluster_id, 1);
        }
        let founder = Member { id: 1, name: self.config.name.clone(), peer_urls, ..Member::default() };
        let membership = Membership { cluster_id, index: 1, next_id: 2, members: vec![founder], removed: Vec::new() };
        self.found(&membership, 1).await
    }

    /// Becomes the member that the cluster already lists. The same again succeeds without effect.
    ///
    /// # Errors
    /// `WrongDisk` when the disk is another member already.
    pub async fn join(&self, marker: Marker) -> Result<Marker, StartError> {
        let _becoming = self.becoming.lock().await;
        if let Some(present) = self.marker() {
            let present = same(present, marker.cluster_id, marker.member_id)?;
            if present.incarnation != marker.incarnation {
                return Err(StartError::WrongDisk(format!(
                    "the disk is incarnation {:x}, the call names {:x}",
                    present.incarnation, marker.incarnation
                )));
            }
            return Ok(present);
        }
        let marker = Marker { format_version: FORMAT_VERSION, ..marker };
        member::clear(&self.config)?;
        marker::write(&self.config.data_dir, &marker)?;
        self.start(marker.clone(), false).await?;
        Ok(marker)
    }

    /// Stops all threads of the member, if one runs, and flushes.
    pub async fn stop(&self) {
        let handle = self.handle();
        if let Ok(handle) = handle {
            handle.stop().await;
        }
    }

    /// The founding data come first and the marker last, so that a founding that was cut is none. What is written until then
    /// is told from a member's data that lost its marker by the announcement before it.
    async fn found(&self, membership: &Membership, member_id: u64) -> Result<Marker, StartError> {
        marker::announce_founding(&self.config.data_dir)?;
        member::found(&self.config, membership)?;
        super::failpoint::hit("found-before-marker")?;
        let marker = Marker {
            format_version: FORMAT_VERSION,
            cluster_id: membership.cluster_id,
            member_id,
            incarnation: random(),
            seeds: Vec::new(),
        };
        marker::write(&self.config.data_dir, &marker)?;
        super::failpoint::hit("found-after-marker")?;
        self.start(marker.clone(), false).await?;
        Ok(marker)
    }

    async fn start(&self, marker: Marker, force: bool) -> Result<(), StartError> {
        if marker.format_version != FORMAT_VERSION {
            let (found, known) = (marker.format_version, FORMAT_VERSION);
            let place = self.config.data_dir.display();
            return Err(StartError::WrongDisk(format!("{place} has format {found}, this version knows {known}")));
        }
        let mut disk = member::open(&self.config, &marker)?;
        let (peers, others) = (disk.peer_urls(), self.listed_others());
        let (known, listed) = tokio::join!(ask(&self.config.dialer, &peers), ask(&self.config.dialer, &others));
        check_not_removed(&marker, &known)?;
        if disk.membership().members.is_empty() {
            check_never_started(&marker, &known)?;
        }
        // Who goes on alone may do so in the place of any other, which is gone.
        let alone = Membership::default();
        check_place(&marker, if force { &alone } else { disk.membership() }, &listed, &self.config)?;
        if force {
            self.check_lost(&marker, &[peers, others].concat(), &[known, listed].concat()).await?;
            disk.force()?;
        }
        let handle = disk.start(&self.fatal)?;
        let (name, client_urls) = (self.config.name.clone(), self.config.client_urls.clone());
        tokio::spawn(publish(handle.clone(), name, client_urls, self.listening.subscribe()));
        let dialer = self.config.dialer.clone();
        tokio::spawn(notice_removal(handle.clone(), marker.clone(), dialer, self.fatal.clone()));
        info!(
            cluster = format!("{:x}", marker.cluster_id),
            member = format!("{:x}", marker.member_id),
            "started as a member"
        );
        *self.running.write() = Some(Running { marker, handle });
        Ok(())
    }

    /// Whether the cluster of `marker` is lost, as far as its other members know, which are to be at `urls` and have `said` that. They
    /// are asked again after a while: between two leaders there is none, and a machine that was just started may not reach anybody
    /// yet. The disk may be older than where they are now, which the flags tell.
    async fn check_lost(&self, marker: &Marker, urls: &[String], said: &[MembersResponse]) -> Result<(), StartError> {
        check_leaderless(marker, said)?;
        if !urls.is_empty() {
            tokio::time::sleep(self.config.tick * self.config.election_ticks * 2).await;
            check_leaderless(marker, &ask(&self.config.dialer, urls).await)?;
        }
        Ok(())
    }

    /// The URLs of the other members that the flags name.
    fn listed_others(&self) -> Vec<String> {
        let Bootstrap::Static { members: Ok(members), .. } = &self.config.bootstrap else { return Vec::new() };
        members.iter().filter(|(name, urls)| !self.is_own(name, urls)).flat_map(|(_, urls)| urls.clone()).collect()
    }

    /// Whether a listed member is this one.
    fn is_own(&self, name: &str, urls: &[String]) -> bool {
        if name.is_empty() { overlap(urls, &self.config.peer_urls) } else { name == self.config.name }
    }

    // ---- told by the operator

    /// A node whose disk was emptied learns it from its peers before it answers anybody.
    async fn wait_for_operator(self: &Arc<Self>) -> Result<(), StartError> {
        self.check_disk_not_lost().await?;
        info!("the disk is empty: waiting to be told which member this is");
        let node = self.clone();
        tokio::spawn(async move {
            while node.marker().is_none() {
                tokio::time::sleep(ASK_EVERY).await;
                if node.marker().is_some() {
                    return;
                }
                if let Err(error) = node.check_disk_not_lost().await {
                    node.fatal.end(ExitCode::ExitDiskLost, error.to_string());
                    return;
                }
            }
        });
        Ok(())
    }

    async fn check_disk_not_lost(&self) -> Result<(), StartError> {
        let mut siblings = Vec::new();
        for url in &self.config.peer_urls {
            siblings.extend(transport::siblings::siblings(url, ASK_TIMEOUT).await);
        }
        check_not_started(&self.config.peer_urls, &ask(&self.config.dialer, &siblings).await)
    }

    // ---- told by flags

    async fn found_static(&self, members: &[(String, Vec<String>)], token: &str) -> Result<(), StartError> {
        let membership = static_membership(members, token);
        let own = membership.members.iter().find(|member| self.is_own(&member.name, &member.peer_urls));
        let Some(id) = own.map(|member| member.id) else {
            return Err(StartError::Config(format!(
                "initial-cluster does not name this member, {:?}",
                self.config.name
            )));
        };
        let others: Vec<String> =
            membership.members.iter().filter(|member| member.id != id).flat_map(|m| m.peer_urls.clone()).collect();
        let answers = ask(&self.config.dialer, &others).await;
        check_not_started(&self.config.peer_urls, &answers)?;
        check_unlisted(membership.cluster_id, &answers, &self.config.peer_urls)?;
        let _becoming = self.becoming.lock().await;
        self.found(&membership, id).await.map(|_| ())
    }

    /// As etcd does, it asks once who is there: whoever starts it starts it again. Only a cluster that is there and does not
    /// list it yet is asked for a while, because its members hear of a new one one after the other.
    async fn join_existing(&self) -> Result<(), StartError> {
        let others = self.listed_others();
        let deadline = tokio::time::Instant::now() + LIST_WITHIN;
        loop {
            let answers = ask_for(&self.config.dialer, &others, JOIN_TIMEOUT).await;
            if answers.is_empty() {
                return Err(StartError::Config(NOBODY_THERE.to_owned()));
            }
            check_not_started(&self.config.peer_urls, &answers)?;
            if let Some(marker) = find_own(&self.config.peer_urls, &answers) {
                return self.join(marker).await.map(|_| ());
            }
            if tokio::time::Instant::now() > deadline {
                let (own, others) = (self.config.peer_urls.join(","), others.join(","));
                return Err(StartError::Config(format!(
                    "error validating peerURLs: no member of the existing cluster at {others} lists {own}: add it first \
                     (etcdctl member add)"
                )));
            }
            warn!("no member of the existing cluster lists this one yet");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// The present marker, if it is that of `member_id` of `cluster_id`.
fn same(present: Marker, cluster_id: u64, member_id: u64) -> Result<Marker, StartError> {
    if (present.cluster_id, present.member_id) == (cluster_id, member_id) {
        return Ok(present);
    }
    Err(StartError::WrongDisk(format!(
        "the disk is member {:x} of cluster {:x}, the call names member {member_id:x} of cluster {cluster_id:x}",
        present.member_id, present.cluster_id
    )))
}

/// Ids by rank of name and URLs, the cluster id from everything that the members must agree on.
pub(super) fn static_membership(members: &[(String, Vec<String>)], token: &str) -> Membership {
    let mut sorted = members.to_vec();
    sorted.sort();
    let mut hash = Sha256::new();
    hash.update(token.as_bytes());
    for (name, urls) in &sorted {
        hash.update([0]);
        hash.update(name.as_bytes());
        hash.update([b'=']);
        hash.update(urls.join(",").as_bytes());
    }
    let digest = hash.finalize();
    let mut head = [0; 8];
    head.copy_from_slice(&digest[..8]);
    let member = |(rank, (name, peer_urls)): (usize, (String, Vec<String>))| Member {
        id: rank as u64 + 1,
        name,
        peer_urls,
        ..Member::default()
    };
    Membership {
        cluster_id: u64::from_be_bytes(head).max(1),
        index: 1,
        next_id: sorted.len() as u64 + 1,
        members: sorted.into_iter().enumerate().map(member).collect(),
        removed: Vec::new(),
    }
}

/// Makes name and client URLs known, and thereby the member `started`, and says so to whoever waits for it. As in etcd that
/// is never without a leader: a member that restarts has nothing to make known, and serves no more than its own disk alone.
async fn publish(handle: Handle, name: String, client_urls: Vec<String>, mut listening: watch::Receiver<bool>) {
    let id = handle.member_id();
    loop {
        let status = handle.status();
        let own = status.membership.members.iter().find(|member| member.id == id).filter(|_| status.leader != 0);
        let Some(own) = own else {
            if timeout(Duration::from_millis(50), handle.stopped()).await.is_ok() {
                return;
            }
            continue;
        };
        if own.started && own.name == name && own.client_urls == client_urls {
            let listens = tokio::select! {
                listens = listening.wait_for(|listens| *listens) => listens.is_ok(),
                () = handle.stopped() => false,
            };
            if listens {
                info!(member = format!("{id:x}"), "ready to serve client requests");
                supervisor::tell_ready();
            }
            return;
        }
        let command = Command::Publish(balsa_proto::log::PublishMember {
            id,
            name: name.clone(),
            client_urls: client_urls.clone(),
        });
        match handle.propose_internal(command).await {
            Ok(Outcome::Publish) => {}
            Ok(other) => warn!(?other, "publishing answered something else"),
            Err(Failure::Stopped) => return,
            Err(error) => {
                warn!(%error, "could not publish this member yet");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// The leader stops talking to a member that it removed, so the member has to ask.
async fn notice_removal(handle: Handle, marker: Marker, dialer: Dialer, fatal: Fatal) {
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let status = handle.status();
        if status.leader != 0 {
            continue;
        }
        let others = status.membership.members.iter().filter(|member| member.id != marker.member_id);
        let urls: Vec<String> = others.flat_map(|member| member.peer_urls.clone()).collect();
        if let Err(error) = check_not_removed(&marker, &ask(&dialer, &urls).await) {
            fatal.end(ExitCode::ExitMemberRemoved, error.to_string());
            return;
        }
    }
}

/// A number that no other process draws, never 0.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds each RandomState from the system's random numbers.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u128(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos()));
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(name: &str) -> Vec<String> {
        vec![format!("http://{name}:2380")]
    }

    #[test]
    fn the_same_flags_in_any_order_give_every_member_the_same_cluster() {
        let one = static_membership(&[("b".into(), url("b")), ("a".into(), url("a"))], "t");
        let two = static_membership(&[("a".into(), url("a")), ("b".into(), url("b"))], "t");
        assert_eq!(one, two);
        assert_eq!(one.members[0].name, "a");
        assert_eq!((one.members[0].id, one.next_id), (1, 3));
        assert_ne!(
            one.cluster_id,
            static_membership(&[("a".into(), url("a")), ("b".into(), url("b"))], "u").cluster_id
        );
    }

    #[test]
    fn a_disk_of_another_member_is_refused() {
        let present = Marker { cluster_id: 7, member_id: 2, ..Marker::default() };
        assert!(same(present.clone(), 7, 2).is_ok());
        assert_eq!(same(present.clone(), 8, 2).expect_err("refused").reason(), "WrongDisk");
        assert_eq!(same(present, 7, 3).expect_err("refused").reason(), "WrongDisk");
    }
}
