//! Runs a sequence on both servers, a step at a time, and finds the first difference.
//!
//! Answers are compared as they come. Events come when they come, so they are compared when both servers must have sent
//! them all: a watcher of the whole store on the reference says which revisions there are, and from that it follows which
//! events each watcher gets. Before a step whose answer depends on what watchers have seen, all are waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::Event;
use pb::watch_request::RequestUnion;
use tonic::Code;

use super::allowed;
use super::reply::Reply;
use super::revision::Revisions;
use super::side::{Side, is_progress_request};
use super::step::Step;
use super::streams::mod_revision;
use super::watching::Watching;

/// The stream that sees everything; sequences use small numbers.
const AUDIT: usize = 1_000_000;

/// Steps after which events are compared even if nothing asks for it.
const SETTLE_EVERY: usize = 40;

/// A server asked for progress answers at once or not at all; etcd looks for watchers to catch up each 100 ms.
const PROGRESS_ATTEMPTS: usize = 6;

/// The two programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// An etcd.
    pub etcd: PathBuf,
    /// A Balsa.
    pub balsa: PathBuf,
}

/// The first step on which the servers disagree.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Its place in the sequence.
    pub at: usize,
    /// The step as it was sent.
    pub step: String,
    /// What etcd said.
    pub etcd: String,
    /// What Balsa said.
    pub balsa: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "step {}: {}", self.at, self.step)?;
        writeln!(formatter, "  etcd:  {}", self.etcd)?;
        write!(formatter, "  balsa: {}", self.balsa)
    }
}

/// Runs a sequence on two new servers.
///
/// # Errors
/// A server does not start.
pub async fn run(programs: &Programs, sequence: &[Step]) -> anyhow::Result<Option<Difference>> {
    let mut lockstep = Lockstep::start(&programs.etcd, &programs.balsa).await?;
    for (at, step) in sequence.iter().chain(&ending()).enumerate() {
        if let Err(mut difference) = lockstep.step(at, step).await {
            if !lockstep.balsa.server.is_running() {
                difference.balsa.push_str(&format!("\n(the process has ended)\n{}", lockstep.balsa.server.log_end()));
            }
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

/// What every sequence ends with: the whole store, and its hash.
fn ending() -> Vec<Step> {
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    vec![Step::Range(all), Step::HashKv(pb::HashKvRequest { revision: 0 })]
}

struct Lockstep {
    etcd: Side,
    balsa: Side,
    revisions: Revisions,
    /// Every revision that was compacted.
    compactions: BTreeSet<i64>,
    /// How many watchers each stream has announced.
    announced: BTreeMap<usize, usize>,
    /// Streams with watchers from the past that may not have looked at it yet.
    behind: BTreeSet<usize>,
    watching: Vec<Watching>,
    /// Every event of the store, as etcd told them.
    log: Vec<Event>,
}

impl Lockstep {
    async fn start(etcd: &Path, balsa: &Path) -> anyhow::Result<Self> {
        let (etcd, balsa) = tokio::join!(Side::start("etcd", etcd), Side::start("balsa", balsa));
        let mut lockstep = Self {
            etcd: etcd?,
            balsa: balsa?,
            revisions: Revisions::default(),
            compactions: BTreeSet::new(),
            announced: BTreeMap::new(),
            behind: BTreeSet::new(),
            watching: Vec::new(),
            log: Vec::new(),
        };
        let audit = Step::Watch { stream: AUDIT, request: audit_request() };
        lockstep.step(0, &audit).await.map_err(|difference| anyhow::anyhow!("{difference}"))?;
        Ok(lockstep)
    }

    async fn step(&mut self, at: usize, step: &Step) -> Result<(), Difference> {
        let step = self.revisions.resolve(step);
        let differ = |etcd: String, balsa: String| Difference { at, step: step.to_string(), etcd, balsa };
        if needs_settled_watchers(&step) || at % SETTLE_EVERY == SETTLE_EVERY - 1 {
            self.settle().await.map_err(|(etcd, balsa)| differ(etcd, balsa))?;
        }
        if matches!(step, Step::Compact(_)) {
            self.catch_up().await;
        }
        let (etcd, balsa) = match &step {
            Step::Watch { stream, .. } if is_progress_request(&step) => self.progress(*stream).await,
            _ => tokio::join!(self.etcd.send(&step), self.balsa.send(&step)),
        };
        if self.is_of_a_compaction(&step) {
            return Ok(());
        }
        if let Some((etcd, balsa)) = allowed::differ(&step, &etcd, &balsa) {
            return Err(differ(etcd, balsa));
        }
        self.learn(&step, &etcd);
        Ok(())
    }

    /// A hash that etcd may have kept from a compaction; see the table.
    fn is_of_a_compaction(&self, step: &Step) -> bool {
        matches!(step, Step::HashKv(request) if self.compactions.contains(&request.revision))
    }

    /// What etcd answers decides whether there is an answer, and both must promise the same.
    async fn progress(&mut self, stream: usize) -> (Reply, Reply) {
        let revision = self.revisions.current;
        let etcd = self.etcd.streams.stream(stream).await.progress(revision, PROGRESS_ATTEMPTS).await;
        let attempts = if etcd.is_some() { 100 * PROGRESS_ATTEMPTS } else { 1 };
        let balsa = self.balsa.streams.stream(stream).await.progress(revision, attempts).await;
        (Reply::Progress(etcd), Reply::Progress(balsa))
    }

    /// Keeps what later steps are resolved and expected by.
    fn learn(&mut self, step: &Step, reply: &Reply) {
        self.revisions.current = self.revisions.current.max(reply.revision());
        match (step, reply) {
            (Step::Compact(request), Reply::Compact(_)) => {
                self.revisions.compacted = request.revision;
                self.compactions.insert(request.revision);
            }
            // What decodes has no revision in it, so this compacted at 0.
            (Step::Raw { path, .. }, Reply::Raw(Code::Ok)) if path.ends_with("/Compact") => {
                self.compactions.insert(0);
            }
            (Step::Watch { stream, request }, Reply::Watch(answers)) => self.learn_watch(*stream, request, answers),
            _ => {}
        }
    }

    fn learn_watch(&mut self, stream: usize, request: &pb::WatchRequest, answers: &[pb::WatchResponse]) {
        for answer in answers {
            match &request.request_union {
                Some(RequestUnion::CreateRequest(create)) if !answer.canceled => {
                    let number = self.announced.entry(stream).or_default();
                    self.watching.push(Watching::new(stream, *number, answer.watch_id, create, self.revisions));
                    *number += 1;
                    if create.start_revision > 0 && create.start_revision <= self.revisions.current {
                        self.behind.insert(stream);
                    }
                }
                Some(RequestUnion::CancelRequest(_)) => {
                    self.watching.retain(|watching| watching.stream != stream || watching.id != answer.watch_id);
                }
                _ => {}
            }
        }
    }

    /// A compaction cancels watchers that it overtakes; none may depend on how fast that was.
    async fn catch_up(&mut self) {
        if self.revisions.current == 1 {
            return;
        }
        for number in std::mem::take(&mut self.behind) {
            let (etcd, balsa) = (self.etcd.streams.stream(number).await, self.balsa.streams.stream(number).await);
            tokio::join!(etcd.catch_up(self.revisions.current), balsa.catch_up(self.revisions.current));
            *self.announced.entry(number).or_default() += 1;
        }
    }

    /// Waits until both servers have sent every event that is due, and compares them.
    async fn settle(&mut self) -> Result<(), (String, String)> {
        self.read_log().await?;
        for index in 0..self.watching.len() {
            self.watching[index].expect(&self.log);
            let watching = &self.watching[index];
            let etcd = watching.wait(self.etcd.streams.stream(watching.stream).await).await;
            let balsa = watching.wait(self.balsa.streams.stream(watching.stream).await).await;
            let (etcd, balsa) = (etcd.normalised(&mut self.etcd.identity), balsa.normalised(&mut self.balsa.identity));
            if etcd != balsa {
                return Err((format!("{watching}: {etcd}"), format!("{watching}: {balsa}")));
            }
            self.watching[index].compared();
        }
        self.watching.retain(Watching::is_live);
        self.broken()
    }

    /// Reads events from etcd until the log has that of the current revision.
    async fn read_log(&mut self) -> Result<(), (String, String)> {
        let (current, known) = (self.revisions.current, self.log.len());
        let stream = self.etcd.streams.stream(AUDIT).await;
        let complete = current == 1
            || stream.until(|record| record.watchers[0].events.last().map_or(0, mod_revision) >= current).await;
        self.log.extend_from_slice(&stream.record().watchers[0].events[known..]);
        if complete { Ok(()) } else { Err((format!("no event of revision {current}"), String::new())) }
    }

    fn broken(&self) -> Result<(), (String, String)> {
        let broken = |side: &Side| {
            let all: Vec<String> = side.streams.records().flat_map(|(_, record)| record.broken).collect();
            all.join("; ")
        };
        let balsa = broken(&self.balsa);
        if balsa.is_empty() { Ok(()) } else { Err((broken(&self.etcd), balsa)) }
    }
}

fn audit_request() -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { range_end: "\0".into(), prev_kv: true, ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// A compaction ends what watchers have not caught up with, and takes previous values; the others ask what was sent.
fn needs_settled_watchers(step: &Step) -> bool {
    match step {
        Step::Compact(_) | Step::HashKv(_) => true,
        Step::Watch { request, .. } => !matches!(request.request_union, Some(RequestUnion::CreateRequest(_))),
        _ => false,
    }
}
