//! The network between members, on loopback: each member is reached through a proxy that can refuse, by who calls.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::cluster::Cluster;

/// Which member may not reach which, by their places.
pub(crate) type Cuts = HashSet<(usize, usize)>;

pub(crate) struct Network {
    cuts: watch::Sender<Cuts>,
    /// Process ids by place, 0 for one that does not run: a caller is known by the process that holds its socket.
    pids: watch::Sender<Vec<u32>>,
}

impl Network {
    /// Puts a proxy before the peer port of every member. None of them may run yet.
    pub(crate) async fn before(cluster: &mut Cluster) -> Self {
        let network =
            Self { cuts: watch::channel(Cuts::new()).0, pids: watch::channel(vec![0; cluster.members.len()]).0 };
        for (place, member) in cluster.members.iter_mut().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
            member.advertised_port = Some(listener.local_addr().expect("an address").port());
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, member.peer_port));
            tokio::spawn(serve(listener, place, target, network.cuts.subscribe(), network.pids.subscribe()));
        }
        network
    }

    /// Says which processes run now.
    pub(crate) fn note_processes(&self, cluster: &Cluster) {
        let pid = |member: &crate::cluster::Member| if member.is_running() { member.pid() } else { 0 };
        self.pids.send_replace(cluster.members.iter().map(pid).collect());
    }

    /// Cuts these ways, and no others. What flows there ends.
    pub(crate) fn cut(&self, cuts: Cuts) {
        self.cuts.send_replace(cuts);
    }

    /// Both ways between one member and all others.
    pub(crate) fn isolation(of: usize, among: usize) -> Cuts {
        (0..among).filter(|other| *other != of).flat_map(|other| [(of, other), (other, of)]).collect()
    }
}

async fn serve(
    listener: TcpListener,
    place: usize,
    target: SocketAddr,
    cuts: watch::Receiver<Cuts>,
    pids: watch::Receiver<Vec<u32>>,
) {
    while let Ok((from, address)) = listener.accept().await {
        let mut gate = Gate { place, port: address.port(), caller: None, cuts: cuts.clone(), pids: pids.clone() };
        tokio::spawn(async move {
            if gate.is_cut().await {
                return;
            }
            tokio::select! {
                () = carry(from, target) => {}
                () = gate.closed() => {}
            }
        });
    }
}

/// How often a caller is looked for.
const LOOKS: usize = 10;

/// What decides over one connection.
struct Gate {
    place: usize,
    port: u16,
    caller: Option<usize>,
    cuts: watch::Receiver<Cuts>,
    pids: watch::Receiver<Vec<u32>>,
}

impl Gate {
    async fn is_cut(&mut self) -> bool {
        if self.cuts.borrow_and_update().is_empty() {
            return false;
        }
        let caller = self.caller().await;
        caller.is_none_or(|caller| self.cuts.borrow().contains(&(caller, self.place)))
    }

    /// Who calls; none when no member does any more. One look is not enough: the kernel's list of sockets leaves some out that
    /// are there while others come and go, and a way that is not known to be cut would stay open.
    async fn caller(&mut self) -> Option<usize> {
        for _ in 0..LOOKS {
            if self.caller.is_some() {
                break;
            }
            let (port, pids) = (self.port, self.pids.borrow().clone());
            self.caller = tokio::task::spawn_blocking(move || caller(port, &pids)).await.unwrap_or_default();
        }
        self.caller
    }

    async fn closed(&mut self) {
        while self.cuts.changed().await.is_ok() {
            if self.is_cut().await {
                return;
            }
        }
        std::future::pending().await
    }
}

async fn carry(mut from: TcpStream, target: SocketAddr) {
    let Ok(mut to) = TcpStream::connect(target).await else { return };
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
}

/// The place of the member whose process holds the socket with this local port.
fn caller(port: u16, pids: &[u32]) -> Option<usize> {
    let sockets = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let inode = sockets.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&local.as_str())).then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })?;
    let name = format!("socket:[{inode}]");
    let holds = |pid: &u32| {
        let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == name.as_str()))
    };
    pids.iter().position(|pid| *pid != 0 && holds(pid))
}
