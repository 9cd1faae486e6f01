//! M30: the real loop of passes over many clusters, most of them stuck. Their nodes are real sockets that take a
//! connection and never answer; time is real too.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, Response};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::api_server::answer;
use super::nodes::Nodes;
use super::runs::{settled, shared};
use super::stage::{NAME, Shared, lock};
use crate::controller::{Context, run};
use crate::lanes::{Lanes, WIDTH};
use crate::members::{Dial, Network, Transport};
use crate::metrics::Metrics;

/// Clusters whose node never answers.
const STUCK: usize = 100;
/// Clusters in order, which wait for something that passes by itself: they are to be looked at four times a second. There
/// are some, so that one that is kept out is seen.
const WELL: usize = 8;
/// Calls of one pass to one node at once: State, List and GetConfig, each on a connection of its own.
const CALLS: usize = 3;
/// Passes that each cluster in order must get, and the fewest of a stuck one.
const PASSES: [usize; 2] = [20, 3];
/// What a test waits for comes before so many passes of all clusters, however busy the machine is: a cluster that is kept out
/// waits for ever. That stuck ones have a lane of their own is told by the test of the lanes.
const PASSES_MAX: usize = 2_000;
/// So long nothing at all happens only in an operator that stands still.
const STILL: Duration = Duration::from_secs(60);
/// Passes of stuck clusters that begin between two of a cluster in order, once it is known who is stuck. On a machine that is so
/// busy that a pass is no quick one it may wait for all of them in turn, but for none twice.
const GAP: usize = 2 * STUCK;

/// All clusters, each in a namespace of its own, `c0` and so on; those in order come first.
struct Crowd {
    stages: Vec<Shared>,
    /// Whose passes they were, in the order in which they began.
    passes: Mutex<Vec<usize>>,
    /// What the watch of the resources tells, a line each.
    told: broadcast::Sender<String>,
}

impl Crowd {
    async fn new(stuck: usize) -> Self {
        let one = settled(1, &json!({})).await;
        let stages = (0..WELL + stuck).map(|index| {
            let mut stage = one.clone();
            stage.resource["metadata"]["namespace"] = json!(format!("c{index}"));
            if index < WELL {
                // The model's time stands still: what is begun now stays begun.
                stage.edit(&json!({"replicas": 3}));
            }
            shared(stage)
        });
        Self { stages: stages.collect(), passes: Mutex::default(), told: broadcast::Sender::new(8) }
    }

    /// A cluster is taken away, whatever it was in the middle of.
    fn take_away(&self, index: usize) {
        let gone = std::mem::take(&mut lock(&self.stages[index]).resource);
        let told = json!({"type": "DELETED", "object": gone});
        self.told.send(format!("{told}\n")).expect("the operator watches");
    }

    /// What happens to the resources from now on; nothing ever happens to anything else.
    fn watch(&self, plural: &str) -> Body {
        if plural != "raftclusters" {
            return Body::from_stream(futures::stream::pending::<Result<Vec<u8>, Infallible>>());
        }
        Body::from_stream(futures::stream::unfold(self.told.subscribe(), |mut told| async {
            let line = told.recv().await.ok()?;
            Some((Ok::<_, Infallible>(line), told))
        }))
    }

    /// Everything of all namespaces, for the watches.
    fn list(&self, plural: &str) -> Value {
        let resources = || self.stages.iter().map(|stage| lock(stage).resource.clone()).collect();
        let items: Vec<Value> = if plural == "raftclusters" { resources() } else { Vec::new() };
        json!({"metadata": {"resourceVersion": "1"}, "items": items})
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let uri = request.uri().clone();
        if uri.query().is_some_and(|query| query.contains("watch=true")) {
            return Response::new(self.watch(uri.path().rsplit('/').next().unwrap_or_default()));
        }
        let words: Vec<&str> = uri.path().split('/').collect();
        let Some(at) = words.iter().position(|word| *word == "namespaces") else {
            return Response::new(Body::from(self.list(words.last().unwrap_or(&"")).to_string()));
        };
        let index: usize = words[at + 1].trim_start_matches('c').parse().expect("a namespace of ours");
        if request.method() == "GET" && words[at + 2] == "raftclusters" {
            self.passes.lock().expect("no pass panics").push(index);
        }
        let reply = answer(&self.stages[index], request).await.expect("the process lives");
        let (head, body) = reply.into_parts();
        Response::from_parts(head, Body::from(told_apart(index, &body)))
    }

    /// How many passes have begun.
    fn begun(&self) -> usize {
        self.passes.lock().expect("no pass panics").len()
    }

    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.stages.len()];
        self.passes.lock().expect("no pass panics").iter().for_each(|index| counts[*index] += 1);
        counts
    }

    /// Every cluster has had its passes.
    fn is_served(&self) -> bool {
        self.counts().iter().enumerate().all(|(index, count)| *count >= PASSES[usize::from(index >= WELL)])
    }

    /// The most passes of stuck clusters between two of one in order, of those since `from`.
    fn widest_gap(&self, from: usize) -> usize {
        let passes = self.passes.lock().expect("no pass panics");
        let gaps = (0..WELL).flat_map(|well| passes[from..].split(move |index| *index == well));
        gaps.map(|others| others.iter().filter(|index| **index >= WELL).count()).max().unwrap_or_default()
    }
}

/// The model gives the pods of every cluster the same addresses, 10.0.x.y; here they are told apart.
fn told_apart(index: usize, body: &str) -> String {
    body.replace(r#""podIP":"10.0."#, &format!(r#""podIP":"11.{index}."#))
}

/// Reaches the model's nodes of clusters in order; all other addresses lead to one listener that never answers.
struct Streets {
    crowd: Arc<Crowd>,
    silent: SocketAddr,
    calls: Arc<Calls>,
}

/// Calls to nodes that never answer, as the operator has them; the other end hears of their end later.
#[derive(Default)]
struct Calls {
    open: AtomicUsize,
    most: AtomicUsize,
}

impl Calls {
    /// The most so far; what comes is counted anew.
    fn take_most(&self) -> usize {
        self.most.swap(self.open.load(Ordering::Relaxed), Ordering::Relaxed)
    }
}

/// One of them, for as long as somebody waits for it.
struct Call(Arc<Calls>);

impl Call {
    fn begins(calls: &Arc<Calls>) -> Self {
        let open = calls.open.fetch_add(1, Ordering::Relaxed) + 1;
        calls.most.fetch_max(open, Ordering::Relaxed);
        Self(Arc::clone(calls))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Dial for Streets {
    fn dial(&self, address: SocketAddr, timeout: Duration) -> Transport {
        let IpAddr::V4(ip) = address.ip() else { panic!("the model has no {address}") };
        let [_, index, high, low] = ip.octets();
        let index = usize::from(index);
        if index >= WELL {
            let (node, calls) = (Network.dial(self.silent, timeout), Arc::clone(&self.calls));
            return Transport::new(tower::service_fn(move |request| {
                let (node, call) = (node.clone(), Call::begins(&calls));
                async move {
                    let answer = node.oneshot(request).await;
                    drop(call);
                    answer
                }
            }));
        }
        let within = SocketAddr::new(Ipv4Addr::new(10, 0, high, low).into(), address.port());
        Nodes(Arc::clone(&self.crowd.stages[index])).dial(within, timeout)
    }
}

/// Takes connections and holds them until the other end gives up.
#[derive(Default)]
struct Silence {
    open: AtomicUsize,
}

impl Silence {
    async fn listen(self: Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let silence = Arc::clone(&self);
                silence.open.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut swallowed = [0; 1024];
                    while connection.read(&mut swallowed).await.is_ok_and(|read| read > 0) {}
                    silence.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        address
    }
}

/// The operator at work, and the way to end it.
fn operate(
    crowd: &Arc<Crowd>,
    silent: SocketAddr,
    calls: &Arc<Calls>,
) -> (JoinHandle<()>, CancellationToken, Arc<Context>) {
    let shared = Arc::clone(crowd);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let crowd = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(crowd.answer(request).await) }
    });
    let client = Client::new(service, "default");
    let stop = CancellationToken::new();
    let now = lock(&crowd.stages[0]).world.now;
    let context = Arc::new(Context {
        events: Recorder::new(client.clone(), Reporter { controller: "balsa-operator".into(), instance: None }),
        client: client.clone(),
        metrics: Arc::new(Metrics::new().expect("registers")),
        dial: Box::new(Streets { crowd: Arc::clone(crowd), silent, calls: Arc::clone(calls) }),
        lanes: Lanes::default(),
        failures: crate::failures::Memory::default(),
        clock: Box::new(move || now),
        leads: Box::new(|| true),
    });
    let (working, stopping) = (Arc::clone(&context), stop.clone());
    let running = tokio::spawn(async move { run(working, client, None, stopping).await });
    (running, stop, context)
}

async fn until(crowd: &Crowd, what: &str, holds: impl Fn() -> bool) -> Result<(), String> {
    let most = crowd.begun() + PASSES_MAX;
    let mut last = (crowd.begun(), Instant::now());
    while !holds() {
        let begun = crowd.begun();
        if begun != last.0 {
            last = (begun, Instant::now());
        }
        if begun > most || last.1.elapsed() > STILL {
            return Err(format!("not after {begun} passes, the last one {:?} ago: {what}", last.1.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.text().expect("encodes")).expect("text")
}

/// How many passes took longer than `seconds`, one of the histogram's bounds.
fn longer_than(metrics: &Metrics, seconds: &str) -> u64 {
    let text = text(metrics);
    let sum = |what: &str| -> u64 {
        let lines = text.lines().filter(|line| line.starts_with(&format!("balsa_operator_reconcile_seconds_{what}")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let within: u64 = text
        .lines()
        .filter(|line| line.contains("reconcile_seconds_bucket") && line.contains(&format!("le=\"{seconds}\"")))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    sum("count") - within
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m30_a_hundred_stuck_clusters_delay_no_other_and_cost_a_bounded_number_of_calls() {
    let crowd = Arc::new(Crowd::new(STUCK).await);
    let silence = Arc::new(Silence::default());
    let silent = Arc::clone(&silence).listen().await;
    let calls = Arc::new(Calls::default());
    let (running, stop, context) = operate(&crowd, silent, &calls);
    // Nobody knows at first who is stuck: both lanes are full of such clusters, and all of them at once would be more.
    let stuck = |index| context.lanes.is_stuck(&format!("c{index}"), NAME);
    let known = until(&crowd, "it is known who is stuck", || (WELL..WELL + STUCK).all(stuck)).await;
    known.unwrap_or_else(|late| panic!("{late}"));
    let from = crowd.begun();
    const { assert!(STUCK > 2 * WIDTH) };
    let at_first = calls.take_most();
    assert!((1..=2 * WIDTH * CALLS).contains(&at_first), "{at_first} calls at once");
    let served = until(&crowd, "every cluster has its passes", || crowd.is_served()).await;
    served.unwrap_or_else(|late| panic!("{late}: {:?}", crowd.counts()));
    let gap = crowd.widest_gap(from);
    assert!(gap < GAP, "a cluster in order waited for {gap} passes of stuck ones: {:?}", crowd.counts());
    assert_eq!(longer_than(&context.metrics, "5"), 0, "a pass waited longer than its time-outs");
    // Then they have the slow lane only.
    let most = calls.take_most();
    assert!((1..=WIDTH * CALLS).contains(&most), "{most} calls at once");
    // A pass that has begun is finished; none begins any more, though many wait.
    stop.cancel();
    tokio::time::timeout(STILL, running).await.expect("it ends").expect("no pass panics");
    until(&crowd, "every call is given up", || silence.open.load(Ordering::Relaxed) == 0).await.expect("none is left");
    eprintln!("widest gap {gap} passes, most calls at once {at_first} and {most}, passes {:?}", crowd.counts());
}

/// One that is taken away while it is slow leaves nothing behind: neither its place on the slow lane nor its series.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_cluster_that_is_gone_is_forgotten() {
    let crowd = Arc::new(Crowd::new(1).await);
    let silent = Arc::new(Silence::default()).listen().await;
    let (running, stop, context) = operate(&crowd, silent, &Arc::default());
    let (namespace, series) = (format!("c{WELL}"), format!("namespace=\"c{WELL}\""));
    let stuck = || context.lanes.is_stuck(&namespace, NAME);
    let told = || text(&context.metrics).contains(&series);
    until(&crowd, "it is known to be stuck", || stuck() && told()).await.unwrap_or_else(|late| panic!("{late}"));
    crowd.take_away(WELL);
    until(&crowd, "it is forgotten", || !stuck() && !told()).await.unwrap_or_else(|late| panic!("{late}"));
    let before = crowd.counts();
    until(&crowd, "the others go on", || crowd.counts()[0] > before[0] + 2)
        .await
        .unwrap_or_else(|late| panic!("{late}"));
    assert!(!stuck() && !told(), "it came back");
    assert_eq!(crowd.counts()[WELL], before[WELL], "a pass over nothing");
    stop.cancel();
    tokio::time::timeout(STILL, running).await.expect("it ends").expect("no pass panics");
}
