//! Clients of a few keys while members are killed, stopped and cut off: what each key showed must be explainable one step
//! at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, Member};
use crate::linearizable::{Kind, Op, is_linearizable};
use crate::proxy::Network;
use crate::writer::{Fate, fate_of};

const KEYS: usize = 4;
const CLIENTS_OF_A_KEY: usize = 3;
/// A call without an answer for this long is given up; what became of it is unknown.
const CALL: Duration = Duration::from_secs(3);

/// Faults of a plain run; `NEMESIS_ROUNDS` makes it longer.
fn rounds() -> usize {
    std::env::var("NEMESIS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

struct Clients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<(usize, Vec<Op>)>>,
}

impl Clients {
    fn start(cluster: &Cluster) -> Self {
        let (stop, values, begin) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)), Instant::now());
        let urls: Vec<String> = cluster.members.iter().map(Member::client_url).collect();
        let client = |number: usize| {
            let (stop, values, urls) = (stop.clone(), values.clone(), urls.clone());
            tokio::spawn(async move { (number % KEYS, run(number, &urls, &stop, &values, begin).await) })
        };
        let tasks = (0..KEYS * CLIENTS_OF_A_KEY).map(client).collect();
        Self { stop, tasks }
    }

    /// The history of each key.
    async fn finish(self) -> Vec<Vec<Op>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut histories = vec![Vec::new(); KEYS];
        for task in self.tasks {
            let (key, ops) = task.await.expect("a client ends");
            histories[key].extend(ops);
        }
        histories
    }
}

async fn run(number: usize, urls: &[String], stop: &AtomicBool, values: &AtomicU64, begin: Instant) -> Vec<Op> {
    let connect = |url: &String| {
        let endpoint = Endpoint::from_shared(url.clone()).expect("a URL").connect_timeout(Duration::from_millis(300));
        KvClient::new(endpoint.connect_lazy())
    };
    let mut clients: Vec<KvClient<Channel>> = urls.iter().map(connect).collect();
    let now = || u64::try_from(begin.elapsed().as_nanos()).expect("a short test");
    let key = format!("register/{}", number % KEYS);
    let mut ops = Vec::new();
    for turn in number.. {
        if stop.load(Ordering::Relaxed) {
            return ops;
        }
        let (called, at) = (now(), (turn * 7 + number) % clients.len());
        let op = match (turn * 5 + number) % 3 {
            0 => write(&mut clients[at], &key, values.fetch_add(1, Ordering::Relaxed)).await,
            _ => read(&mut clients[at], &key).await,
        };
        match op {
            Some((kind, true)) => ops.push(Op { kind, called, answered: Some(now()) }),
            Some((kind, false)) => ops.push(Op { kind, called, answered: None }),
            None => {}
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    ops
}

/// What was written, and whether that is certain; none when it is certain that it was not.
async fn write(client: &mut KvClient<Channel>, key: &str, value: u64) -> Option<(Kind, bool)> {
    let request = pb::PutRequest { key: key.to_owned().into(), value: value.to_string().into(), ..Default::default() };
    match tokio::time::timeout(CALL, client.put(request)).await {
        Ok(Ok(_)) => Some((Kind::Write(value), true)),
        Ok(Err(status)) if fate_of(&status) == Fate::Refused => None,
        Ok(Err(_)) | Err(_) => Some((Kind::Write(value), false)),
    }
}

async fn read(client: &mut KvClient<Channel>, key: &str) -> Option<(Kind, bool)> {
    let request = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let answer = tokio::time::timeout(CALL, client.range(request)).await.ok()?.ok()?.into_inner();
    let value = |kv: &balsa_proto::mvccpb::KeyValue| String::from_utf8_lossy(&kv.value).parse().expect("a number");
    Some((Kind::Read(answer.kvs.first().map_or(0, value)), true))
}

fn assert_linearizable(histories: &[Vec<Op>], cluster: &Cluster) {
    let answered = histories.iter().flatten().filter(|op| op.answered.is_some()).count();
    assert!(answered > 200, "too little happened: {answered} answers\n{}", cluster.logs());
    for (key, history) in histories.iter().enumerate() {
        let order = |op: &Op| (op.called, format!("{op:?}"));
        let mut shown: Vec<_> = history.iter().map(order).collect();
        shown.sort();
        assert!(is_linearizable(history), "register/{key} cannot have been one register: {shown:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registers_stay_registers_while_members_are_killed() {
    let mut cluster = Cluster::start(3).await;
    let clients = Clients::start(&cluster);
    for turn in 0..rounds() {
        tokio::time::sleep(Duration::from_millis(900)).await;
        // The leader twice as often as another.
        let victim = (cluster.leader().await + turn % 3 / 2) % 3;
        cluster.members[victim].kill();
        tokio::time::sleep(Duration::from_millis(400 + 250 * (turn % 6) as u64)).await;
        cluster.restart(victim);
        cluster.serves(victim).await;
    }
    assert_linearizable(&clients.finish().await, &cluster);
    cluster.assert_hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registers_stay_registers_while_members_are_cut_off() {
    let mut cluster = Cluster::unstarted(3);
    let network = Network::before(&mut cluster).await;
    let all = cluster.initial_cluster();
    for index in 0..3 {
        cluster.run(index, &all, "new");
    }
    network.note_processes(&cluster);
    cluster.leader().await;
    let clients = Clients::start(&cluster);
    for turn in 0..rounds() {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let leader = cluster.leader().await;
        let other = (leader + 1) % 3;
        network.cut(match turn % 3 {
            0 => Network::isolation(leader, 3),
            // One way only: what the leader sends arrives, and no answer does.
            1 => [(other, leader), ((leader + 2) % 3, leader)].into(),
            _ => [(leader, other), (other, leader)].into(),
        });
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        network.cut([].into());
    }
    cluster.leader().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_linearizable(&clients.finish().await, &cluster);
    cluster.assert_hashes_agree().await;
}

/// A leader that stands still for longer than an election does not know, when it wakes, that another leads.
#[tokio::test(flavor = "multi_thread")]
async fn registers_stay_registers_while_leaders_stand_still() {
    let cluster = Cluster::start(3).await;
    let clients = Clients::start(&cluster);
    for _ in 0..rounds() {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let leader = cluster.leader().await;
        cluster.members[leader].signal("STOP");
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        cluster.members[leader].signal("CONT");
    }
    cluster.leader().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_linearizable(&clients.finish().await, &cluster);
    cluster.assert_hashes_agree().await;
}
