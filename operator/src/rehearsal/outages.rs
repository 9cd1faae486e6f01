//! The real loop of passes over a real HTTP server that fails in the ways of an API server: too busy, broken, silent, with
//! watches that are too old. Time is real, the model's too.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, Response, StatusCode};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api_server::answer;
use super::nodes::Nodes;
use super::runs::{settled, shared};
use super::stage::{Shared, Stage, lock};
use crate::client::bounded;
use crate::controller::{Context, run};
use crate::lanes::Lanes;
use crate::metrics::Metrics;

/// The time-out of calls in these tests.
const CALL_TIMEOUT: Duration = Duration::from_millis(300);
/// One tick of the model's world.
const TICK: Duration = Duration::from_millis(100);
/// Longer than any outage here lasts.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of the first call of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// It is refused with this status, and takes no effect.
    Status(u16),
    /// It takes effect, and nobody answers.
    Silence,
}

/// What becomes of a watch of the resources.
#[derive(Clone, Copy, Debug)]
enum Watch {
    /// HTTP 410: what it is to begin from is forgotten.
    Gone,
    /// It begins, and is told the same in the stream.
    Expired,
    /// It begins and ends.
    Ends,
}

struct ApiServer {
    stage: Shared,
    outage: Option<Outage>,
    /// The kinds of calls that were made.
    called: Mutex<BTreeSet<String>>,
    watches: Mutex<VecDeque<Watch>>,
    /// Whether lists show the resource.
    visible: AtomicBool,
    failed: AtomicUsize,
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": reason})
}

fn reply(code: u16, body: &Value) -> Response<Body> {
    let code = StatusCode::from_u16(code).expect("a status");
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body.to_string().into())
        .expect("valid")
}

impl ApiServer {
    fn new(stage: Stage, outage: Option<Outage>, watches: &[Watch]) -> Arc<Self> {
        Arc::new(Self {
            stage: shared(stage),
            outage,
            called: Mutex::default(),
            watches: Mutex::new(watches.iter().copied().collect()),
            visible: AtomicBool::new(true),
            failed: AtomicUsize::new(0),
        })
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let last = path.rsplit('/').next().unwrap_or_default();
        if request.uri().query().is_some_and(|query| query.contains("watch=")) {
            return self.watch(last);
        }
        if !path.contains("/namespaces/") {
            return reply(200, &self.list(last));
        }
        match self.outage.filter(|_| self.is_first(&request)) {
            None => self.pass_on(request).await,
            Some(Outage::Status(code)) => reply(code, &status(code, "the API server fails")),
            Some(Outage::Silence) => {
                self.pass_on(request).await;
                std::future::pending().await
            }
        }
    }

    /// By method and kind of object; names of objects and what is below them count as one.
    fn is_first(&self, request: &Request<Body>) -> bool {
        let plural =
            request.uri().path().split('/').skip_while(|word| *word != "namespaces").nth(2).unwrap_or_default();
        let first = self.called.lock().expect("no panic").insert(format!("{} {plural}", request.method()));
        self.failed.fetch_add(usize::from(first), Ordering::Relaxed);
        first
    }

    async fn pass_on(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a body").to_vec();
        let told = answer(&self.stage, Request::from_parts(head, body.into())).await.expect("the process lives");
        let (code, body) = (told.status().as_u16(), told.into_body());
        reply(code, &serde_json::from_str(&body).expect("JSON"))
    }

    fn list(&self, plural: &str) -> Value {
        let there = plural == "raftclusters" && self.visible.load(Ordering::Relaxed);
        let resource = there.then(|| lock(&self.stage).resource.clone()).filter(|resource| !resource.is_null());
        json!({"metadata": {"resourceVersion": "1"}, "items": resource.into_iter().collect::<Vec<_>>()})
    }

    fn watch(&self, plural: &str) -> Response<Body> {
        let next = match plural {
            "raftclusters" => self.watches.lock().expect("no panic").pop_front(),
            _ => None,
        };
        let told = match next {
            Some(Watch::Gone) => return reply(410, &status(410, "Expired")),
            Some(Watch::Expired) => format!("{}\n", json!({"type": "ERROR", "object": status(410, "Expired")})),
            Some(Watch::Ends) => String::new(),
            None => return Response::new(Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>())),
        };
        Response::new(told.into())
    }
}

/// The operator at work on the server, and the world that moves beside it.
struct Running {
    server: Arc<ApiServer>,
    stop: CancellationToken,
    operator: JoinHandle<()>,
    others: [JoinHandle<()>; 2],
    metrics: Arc<Metrics>,
}

impl Running {
    async fn start(server: &Arc<ApiServer>) -> Self {
        // An error would only say that a provider is installed already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let serving = Arc::clone(server);
        let router = Router::new().fallback(move |request: Request<Body>| {
            let server = Arc::clone(&serving);
            async move { server.answer(request).await }
        });
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        let config = kube::Config::new(format!("http://{address}").parse().expect("a URI"));
        let watches = Client::try_from(config.clone()).expect("a client");
        let client = Client::try_from(bounded(config, CALL_TIMEOUT)).expect("a client");
        let metrics = Arc::new(Metrics::new().expect("registers"));
        let clock = Arc::clone(&server.stage);
        let context = Arc::new(Context {
            events: Recorder::new(client.clone(), Reporter { controller: "balsa-operator".into(), instance: None }),
            client,
            metrics: Arc::clone(&metrics),
            dial: Box::new(Nodes(Arc::clone(&server.stage))),
            lanes: Lanes::default(),
            failures: crate::failures::Memory::default(),
            clock: Box::new(move || lock(&clock).world.now),
            leads: Box::new(|| true),
        });
        let (stop, world) = (CancellationToken::new(), Arc::clone(&server.stage));
        let stopping = stop.clone();
        let operator = tokio::spawn(async move { run(context, watches, None, stopping).await });
        let world = tokio::spawn(async move {
            loop {
                lock(&world).world.tick();
                tokio::time::sleep(TICK).await;
            }
        });
        Self { server: Arc::clone(server), stop, operator, others: [serving, world], metrics }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Stage) -> bool) {
        let began = Instant::now();
        loop {
            {
                let stage = lock(&self.server.stage);
                stage.judge().unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
                if holds(&stage) {
                    return;
                }
                assert!(began.elapsed() < PATIENCE, "not in time: {what}: {}, {:?}", stage.planned(), stage.writes);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A pass that has begun is finished.
    async fn end(self) -> String {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.operator).await.expect("it ends").expect("no pass panics");
        self.others.iter().for_each(JoinHandle::abort);
        String::from_utf8(self.metrics.text().expect("encodes")).expect("text")
    }
}

fn voters(stage: &Stage) -> usize {
    stage.world.raft.members.values().filter(|member| !member.learner).count()
}

/// One call of each kind fails, whichever way; the passes after it bring about the same, and nothing twice.
async fn survives(outage: Outage, word: &str) {
    let mut stage = settled(1, &json!({})).await;
    stage.edit(&json!({"replicas": 2}));
    stage.busy = true;
    let server = ApiServer::new(stage, Some(outage), &[]);
    let running = Running::start(&server).await;
    running.until(&format!("{outage:?}"), |stage| stage.is_settled() && voters(stage) == 2).await;
    let ids: Vec<u64> = lock(&server.stage).world.raft.members.keys().copied().collect();
    assert_eq!(ids, [1, 2], "{outage:?}: one was added, once");
    let failed = server.failed.load(Ordering::Relaxed);
    assert!(failed >= 10, "{outage:?}: only {failed} kinds of calls failed");
    let told = running.end().await;
    assert!(told.contains(&format!("result=\"{word}\"")), "{outage:?} is not counted as {word}: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_busy_broken_or_silent_delays_and_breaks_nothing() {
    tokio::join!(
        survives(Outage::Status(429), "TooManyRequests"),
        survives(Outage::Status(500), "ObserveFailed"),
        survives(Outage::Status(504), "ObserveFailed"),
        survives(Outage::Silence, "ObserveFailed"),
    );
}

/// What happened while a watch was too old is found by the list after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_too_old_is_begun_anew_from_a_list() {
    let server =
        ApiServer::new(Stage::new(1, &json!({})), None, &[Watch::Expired, Watch::Ends, Watch::Expired, Watch::Ends]);
    server.visible.store(false, Ordering::Relaxed);
    let running = Running::start(&server).await;
    let left = || server.watches.lock().expect("no panic").len();
    running.until("the first watches have failed", |_| left() <= 2).await;
    assert!(lock(&server.stage).writes.is_empty(), "nobody has told of a resource");
    server.visible.store(true, Ordering::Relaxed);
    running.until("the resource is found", |stage| stage.is_settled() && voters(stage) == 1).await;
    assert_eq!(left(), 0, "every watch was tried");
    running.end().await;
}

/// A server in between may say so before the watch begins. Nobody would look for new resources any more, so the process ends, and
/// the one after it begins with a list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_cannot_be_begun_anew_ends_the_operator() {
    let server = ApiServer::new(settled(1, &json!({})).await, None, &[Watch::Ends, Watch::Gone]);
    let running = Running::start(&server).await;
    tokio::time::timeout(PATIENCE, running.operator).await.expect("it ends").expect("no pass panics");
    running.others.iter().for_each(JoinHandle::abort);
    let after = Running::start(&server).await;
    lock(&server.stage).edit(&json!({"replicas": 2}));
    after.until("the next one goes on", |stage| stage.is_settled() && voters(stage) == 2).await;
    after.end().await;
}
