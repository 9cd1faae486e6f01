//! Bad input on both ports, and damaged disks: a clear refusal, never a panic, nothing acknowledged lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use balsa_e2e::differential::frames::{Frames, message};
use balsa_node::domain::random::Random;
use balsa_proto::etcdserverpb as pb;
use balsa_proto::peer::{
    Entry, Forward, ForwardedProposal, Frame, RaftMessage, RaftMessages, Refusal, SnapshotPoint, frame::Body,
    peer_client::PeerClient,
};
use futures::stream;
use prost::Message as _;

use crate::cluster::Cluster;
use crate::etcd::Etcd;

/// Frames and calls that each member gets of one run.
const FRAMES: usize = 400;
const CALLS: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_either_port_harms_nobody() {
    let cluster = Cluster::start(3).await;
    for member in &cluster.members {
        for port in [member.client_port, member.peer_port] {
            for garbage in
                [&[0u8; 512][..], b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff"]
            {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
                stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
                let _ = stream.write_all(garbage);
                let _ = stream.read(&mut [0; 64]);
            }
        }
    }
    cluster.members[0].put("still", "here").await.expect("a write");
    assert!(cluster.members.iter().all(|member| !member.log_text().contains("panicked")), "{}", cluster.logs());
}

/// Frames and messages that decode, and bytes that do not. `BALSA_SEED=n` draws others.
#[tokio::test(flavor = "multi_thread")]
async fn drawn_frames_on_the_peer_port_harm_nobody() {
    let seed = std::env::var("BALSA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("BALSA_SEED={seed} repeats it");
    let mut draws = Draws(Random::new(seed));
    let cluster = Cluster::start(3).await;
    for member in &cluster.members {
        let header = member.status().await.expect("a status").header.expect("a header");
        let (cluster_id, to) = (header.cluster_id, header.member_id);
        let frames: Vec<Frame> = (0..FRAMES).map(|_| draws.frame(cluster_id, to)).collect();
        let mut peer = PeerClient::connect(member.peer_url()).await.expect("connects");
        peer.frames(stream::iter(frames)).await.expect("the stream is taken to its end");
        for _ in 0..CALLS {
            let call = draws.0.one_of(&["Frames", "Snapshot", "Members", "Hash"]);
            let bytes = draws.garbage(cluster_id, to);
            let call = Frames::new(format!("/balsa.peer.v1.Peer/{call}"), message(0, &bytes));
            let heard = call.send(&format!("127.0.0.1:{}", member.peer_port)).await;
            assert!(heard.ended.is_some(), "{call:?}: {heard:?}");
        }
    }
    for (index, member) in cluster.members.iter().enumerate() {
        // By its answer the member is through all that came before.
        member.put(&format!("still/{index}"), "here").await.expect("a write");
        let log = member.log_text();
        assert!(!log.contains("panicked"), "{}", cluster.logs());
        for told in
            ["a message that Raft must not see", "a malformed message", "a message in a frame of another member"]
        {
            assert!(log.contains(told), "{told}\n{}", cluster.logs());
        }
    }
    cluster.assert_hashes_agree().await;
}

/// What is drawn for the peer port.
struct Draws(Random);

impl Draws {
    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.0.below(most + 1)).map(|_| self.0.below(256) as u8).collect()
    }

    /// Small as those of a young cluster, or as large as can be.
    fn number(&mut self) -> u64 {
        let (small, any) = (self.0.below(20) as u64, self.0.draw());
        self.0.one_of(&[small, small, small, any, u64::MAX])
    }

    /// Over since the cluster has had a leader, or one that no cluster reaches. In the present term or one to come a member
    /// cannot tell a lie from its leader's word.
    fn term(&mut self) -> u64 {
        let far = self.0.draw() | (1 << 63);
        self.0.one_of(&[0, 1, 1, 1, far])
    }

    fn frame(&mut self, cluster_id: u64, to: u64) -> Frame {
        let from = self.0.one_of(&[1, 2, 3, 0x77, 0, u64::MAX]);
        let body = match self.0.below(8) {
            0 => None,
            1 => Some(Body::Forward(self.forward())),
            2 => Some(Body::Refusal(Refusal {
                sequences: (0..self.0.below(4)).map(|_| self.number()).collect(),
                reason: self.0.below(6) as i32 - 1,
                term: self.term(),
            })),
            _ => {
                let messages = (0..self.0.below(4)).map(|_| self.raft(from, to)).collect();
                Some(Body::Raft(RaftMessages { messages }))
            }
        };
        let cluster_id = if self.0.one_in(8) { self.0.draw() } else { cluster_id };
        let to = if self.0.one_in(8) { self.number() } else { to };
        Frame { cluster_id, from, to, incarnation: self.number(), body }
    }

    fn forward(&mut self) -> Forward {
        let one = |draws: &mut Self| ForwardedProposal { sequence: draws.number(), batch: draws.bytes(40).into() };
        Forward { term: self.term(), proposals: (0..self.0.below(4)).map(|_| one(self)).collect() }
    }

    fn raft(&mut self, from: u64, to: u64) -> RaftMessage {
        let entry = |draws: &mut Self| Entry {
            entry_type: draws.0.below(4) as u32,
            term: draws.term(),
            index: draws.number(),
            data: draws.bytes(40).into(),
            context: draws.bytes(4).into(),
        };
        RaftMessage {
            msg_type: self.0.below(21) as u32,
            to: if self.0.one_in(8) { self.number() } else { to },
            from: if self.0.one_in(8) { self.number() } else { from },
            term: self.term(),
            log_term: self.term(),
            index: self.number(),
            entries: (0..self.0.below(4)).map(|_| entry(self)).collect(),
            commit: self.number(),
            commit_term: self.term(),
            snapshot: self.0.one_in(8).then_some(SnapshotPoint { index: 3, term: 1, conf_state: None }),
            request_snapshot: self.0.below(2) as u64 * self.number(),
            reject: self.0.one_in(2),
            reject_hint: self.number(),
            context: self.bytes(4).into(),
            priority: self.0.draw() as i64,
        }
    }

    /// Any bytes, or a frame of another cluster with some of them changed.
    fn garbage(&mut self, cluster_id: u64, to: u64) -> Vec<u8> {
        if self.0.one_in(2) {
            return self.bytes(100);
        }
        let mut bytes = self.frame(!cluster_id, to).encode_to_vec();
        for _ in 0..=self.0.below(3) {
            let at = self.0.below(bytes.len());
            bytes[at] = self.0.below(256) as u8;
        }
        bytes
    }
}

/// As a client of gRPC with a keepalive that is too short: four pings on one open call. What it still sends before it reads
/// takes the answer away neither by a reset nor otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_pings_too_often_is_sent_away_in_grpcs_words() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let mut stream = TcpStream::connect(("127.0.0.1", member.client_port)).expect("connects");
    stream.set_read_timeout(Some(crate::cluster::PATIENCE)).expect("a time-out");
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let pings = ping.repeat(4);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("written");
    stream.write_all(&[&settings[..], &pings].concat()).expect("written");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(&ping).expect("what comes late is read");
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end, and no reset");
    assert!(answer.ends_with(b"\0\0\0\x0btoo_many_pings"), "{answer:?}");
    member.put("others", "stay").await.expect("a write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_the_bound_is_refused_with_etcds_words() {
    let cluster = Cluster::start(1).await;
    let member = &cluster.members[0];
    let request = pb::PutRequest { key: "big".into(), value: vec![7; 1_600_000].into(), ..Default::default() };
    let error = member.kv().put(request).await.expect_err("too large");
    assert_eq!(error.message(), "etcdserver: request is too large");
    assert_eq!(member.get("big").await.expect("a read"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_marker_is_not_taken_for_an_empty_disk() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].kill();
    let marker = cluster.members[0].data.join("MARKER");
    let mut bytes = std::fs::read(&marker).expect("a marker");
    let last = bytes.len() - 1;
    bytes[last] ^= 0xff;
    std::fs::write(&marker, bytes).expect("damaged");
    cluster.restart(0);
    assert_eq!(cluster.members[0].wait_for_exit().code(), Some(73), "Corrupt\n{}", cluster.logs());
    assert!(cluster.members[0].log_text().contains("MARKER"), "the file is named");
}

/// What is left could be a member's whole data, so no flag and no operator makes a new member of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_its_marker_is_refused_and_left_as_it_is() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].put("kept", "yes").await.expect("a write");
    cluster.members[0].kill();
    let marker = cluster.members[0].data.join("MARKER");
    let aside = cluster.directory.path().join("aside");
    std::fs::rename(&marker, &aside).expect("moved");
    let all = cluster.initial_cluster();
    for (state, bootstrap) in [("new", "static"), ("existing", "static"), ("new", "operator")] {
        cluster.run_with(0, &all, state, &[("BALSA_BOOTSTRAP", bootstrap)]);
        assert_eq!(
            cluster.members[0].wait_for_exit().code(),
            Some(73),
            "Corrupt, {state} {bootstrap}\n{}",
            cluster.logs()
        );
    }
    let log = cluster.members[0].log_text();
    let told = format!("{} is missing beside {}/log", marker.display(), cluster.members[0].data.display());
    assert_eq!(log.lines().filter(|line| line.contains("\"message\"") && line.contains(&told)).count(), 3, "{log}");
    std::fs::rename(&aside, &marker).expect("moved");
    cluster.restart(0);
    cluster.serves(0).await;
    assert_eq!(cluster.members[0].get("kept").await.expect("a read").as_deref(), Some("yes"));
}

/// Whoever changes the program and keeps the flags is told so, instead of getting an empty store.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_etcd_is_refused_and_left_as_it_is() {
    let Some(mut etcd) = Etcd::start().await else { return };
    etcd.kill(0);
    let mut cluster = Cluster::unstarted(1);
    cluster.members[0].data = etcd.data(0);
    let all = cluster.initial_cluster();
    for (state, bootstrap) in [("new", "static"), ("existing", "static"), ("new", "operator")] {
        cluster.run_with(0, &all, state, &[("BALSA_BOOTSTRAP", bootstrap)]);
        assert_eq!(cluster.members[0].wait_for_exit().code(), Some(1), "{state} {bootstrap}\n{}", cluster.logs());
    }
    let log = cluster.members[0].log_text();
    let place = etcd.data(0);
    let told = format!("data-dir {} is one of etcd ({}/member/snap is there)", place.display(), place.display());
    assert_eq!(log.lines().filter(|line| line.contains("\"message\"") && line.contains(&told)).count(), 3, "{log}");
    let left: Vec<_> = std::fs::read_dir(&place).expect("reads").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(left, ["member"], "nothing was made there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_made_is_named() {
    let mut cluster = Cluster::unstarted(1);
    let file = cluster.directory.path().join("file");
    std::fs::write(&file, b"mine").expect("written");
    for data in [file.clone(), file.join("below")] {
        cluster.members[0].data = data.clone();
        cluster.restart(0);
        assert_eq!(cluster.members[0].wait_for_exit().code(), Some(74), "DiskFailed\n{}", cluster.logs());
        let told = format!("create {}: ", data.display());
        assert!(cluster.members[0].log_text().contains(&told), "{told}\n{}", cluster.logs());
    }
    assert_eq!(std::fs::read(&file).expect("still a file"), b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_process_has_is_named() {
    let mut cluster = Cluster::unstarted(1);
    let member = &cluster.members[0];
    for (port, url) in [(member.client_port, member.client_url()), (member.peer_port, member.peer_url())] {
        let taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("free until now");
        cluster.restart(0);
        assert_eq!(cluster.members[0].wait_for_exit().code(), Some(1), "{url}\n{}", cluster.logs());
        let told = format!("listen on {url}");
        assert!(cluster.members[0].log_text().contains(&told), "{told}\n{}", cluster.logs());
        drop(taken);
    }
    cluster.restart(0);
    cluster.serves(0).await;
}

/// The others say whose place it is. (The disk of another member of the same cluster knows it by itself: `damage.rs`.)
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_another_cluster_is_refused_and_left_as_it_is() {
    let (mut ours, mut theirs) = (Cluster::start(3).await, Cluster::start(1).await);
    theirs.members[0].put("whose", "theirs").await.expect("a write");
    ours.members[0].put("whose", "ours").await.expect("a write");
    let (own, lent) = (ours.members[1].data.clone(), theirs.members[0].data.clone());
    let aside = ours.directory.path().join("aside");
    ours.members[1].kill();
    theirs.members[0].kill();
    std::fs::rename(&own, &aside).expect("moved");
    std::fs::rename(&lent, &own).expect("moved");
    let marker = std::fs::read(own.join("MARKER")).expect("a marker");
    ours.restart(1);
    assert_eq!(ours.members[1].wait_for_exit().code(), Some(72), "WrongDisk\n{}", ours.logs());
    let log = ours.members[1].log_text();
    let told = log.lines().find(|line| line.contains(r#""reason":"WrongDisk""#)).expect("why it ends");
    let place = format!("but {} is where cluster ", ours.members[1].peer_url());
    assert!(told.contains(" is the disk of member 1 of cluster ") && told.contains(&place), "{told}");
    assert_eq!(std::fs::read(own.join("MARKER")).expect("a marker"), marker);

    std::fs::rename(&own, &lent).expect("moved");
    std::fs::rename(&aside, &own).expect("moved");
    ours.restart(1);
    theirs.restart(0);
    theirs.serves(0).await;
    assert_eq!(theirs.members[0].get("whose").await.expect("a read").as_deref(), Some("theirs"));
    ours.serves(1).await;
    assert_eq!(ours.members[1].get("whose").await.expect("a read").as_deref(), Some("ours"));
    ours.assert_hashes_agree().await;
}
