//! Writers that never stop, and the check at the end: every acknowledged write is there exactly once, every refused one is
//! not, every unknown one may be either. A key is never written twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, PATIENCE};

/// What became of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

/// How long a writer's connections last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connections {
    Kept,
    New,
}

pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Vec<Written>>>,
}

struct Written {
    key: String,
    fate: Fate,
    at: Instant,
    error: Option<String>,
}

/// What the writers saw.
pub(crate) struct History {
    pub(crate) fates: Vec<(String, Fate)>,
    /// What was said of the writes whose fate is unknown.
    pub(crate) unknown_errors: Vec<String>,
    /// The longest time in which nobody's write was acknowledged.
    pub(crate) longest_pause: Duration,
}

impl Writers {
    /// `count` writers, each starting at another member and moving on when one does not answer.
    pub(crate) fn start(cluster: &Cluster, count: usize) -> Self {
        Self::start_as(cluster, count, Connections::Kept)
    }

    /// The same, and each write has a connection of its own.
    pub(crate) fn start_connecting(cluster: &Cluster, count: usize) -> Self {
        Self::start_as(cluster, count, Connections::New)
    }

    fn start_as(cluster: &Cluster, count: usize, connections: Connections) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let urls: Vec<String> = cluster.members.iter().map(crate::cluster::Member::client_url).collect();
        let begin = |writer| {
            let (urls, stop, acknowledged) = (urls.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move { write(writer, urls, connections, &stop, &acknowledged).await })
        };
        let tasks = (0..count).map(begin).collect();
        Self { stop, acknowledged, tasks }
    }

    /// Waits until so many writes were acknowledged.
    pub(crate) async fn have_written(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.acknowledged.load(Ordering::Relaxed) < count {
            assert!(Instant::now() < deadline, "{} of {count} writes", self.acknowledged.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn finish(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.expect("a writer ends"));
        }
        all.sort_by_key(|written| written.at);
        let of = |fate| all.iter().filter(move |written| written.fate == fate);
        let acknowledged: Vec<Instant> = of(Fate::Acknowledged).map(|written| written.at).collect();
        let longest_pause = acknowledged.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        let unknown_errors = of(Fate::Unknown).filter_map(|written| written.error.clone()).collect();
        let fates = all.into_iter().map(|written| (written.key, written.fate)).collect();
        History { fates, unknown_errors, longest_pause }
    }
}

impl History {
    pub(crate) fn count(&self, fate: Fate) -> usize {
        self.fates.iter().filter(|(_, other)| *other == fate).count()
    }

    /// Compares with the store.
    pub(crate) async fn check(&self, cluster: &Cluster) {
        let member = &cluster.members[cluster.leader().await];
        for (key, fate) in &self.fates {
            let request = pb::RangeRequest { key: key.clone().into(), ..Default::default() };
            let kvs = member.kv().range(request).await.expect("a linearizable read").into_inner().kvs;
            match fate {
                Fate::Acknowledged => {
                    assert_eq!(kvs.len(), 1, "{key} was acknowledged and is not there\n{}", cluster.logs());
                    assert_eq!(kvs[0].version, 1, "{key} was written more than once");
                }
                Fate::Refused => assert!(kvs.is_empty(), "{key} was refused and is there"),
                Fate::Unknown => assert!(kvs.first().is_none_or(|kv| kv.version == 1), "{key} was written twice"),
            }
        }
    }
}

async fn write(
    writer: usize,
    urls: Vec<String>,
    connections: Connections,
    stop: &AtomicBool,
    acknowledged: &AtomicUsize,
) -> Vec<Written> {
    let connect = |url: &String| {
        let endpoint = Endpoint::from_shared(url.clone()).expect("a URL").connect_timeout(Duration::from_millis(500));
        KvClient::new(endpoint.connect_lazy())
    };
    let mut clients: Vec<KvClient<Channel>> = urls.iter().map(connect).collect();
    let mut all = Vec::new();
    let mut turn = writer;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("w/{writer}/{number:08}");
        let at = turn % clients.len();
        if connections == Connections::New {
            clients[at] = connect(&urls[at]);
        }
        let sent = tokio::time::timeout(Duration::from_secs(10), clients[at].txn(create(&key)));
        let (fate, error) = match sent.await {
            Ok(Ok(answer)) if answer.get_ref().succeeded => (Fate::Acknowledged, None),
            Ok(Ok(_)) => panic!("{key} exists before it was written"),
            Ok(Err(status)) => (fate_of(&status), Some(format!("{status:?}"))),
            Err(_) => (Fate::Unknown, Some("no answer".to_owned())),
        };
        all.push(Written { key, fate, at: Instant::now(), error });
        if fate == Fate::Acknowledged {
            acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            turn += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    all
}

/// A write was never sent whose connection was not made or closed before its turn, and never begun if it came after the last
/// one that a closing member took up, which its GOAWAY names (RFC 9113, 6.8). Everything else that etcd's clients must not
/// retry is unknown.
pub(crate) fn fate_of(status: &tonic::Status) -> Fate {
    let cause = format!("{:?}", std::error::Error::source(status));
    let unsent = [
        "Connection refused",
        r#""tcp connect error""#,
        r#"Canceled, "connection closed""#,
        // hyper's for a request that found its connection over in the moment in which it was given to it.
        r#"Canceled, "connection was not ready""#,
        r#"GoAway(b"", NO_ERROR, Remote)"#,
    ];
    let refused = ["etcdserver: too many requests", "etcdserver: not leader"];
    let is_refused = unsent.iter().any(|known| cause.contains(known)) || refused.contains(&status.message());
    if is_refused { Fate::Refused } else { Fate::Unknown }
}

fn create(key: &str) -> pb::TxnRequest {
    let absent = pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Create as i32,
        key: key.to_owned().into(),
        target_union: Some(pb::compare::TargetUnion::CreateRevision(0)),
        ..Default::default()
    };
    let put = pb::PutRequest { key: key.to_owned().into(), value: key.to_owned().into(), ..Default::default() };
    let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
    pb::TxnRequest { compare: vec![absent], success: vec![op], failure: Vec::new() }
}
