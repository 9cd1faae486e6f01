//! Runs a sequence on both servers, a step at a time, and finds the first difference.
//!
//! Answers are compared as they come. Events come when they come, so they are compared when both servers must have sent
//! them all: a watcher of the whole store on the reference says which revisions there are, and from that it follows which
//! events each watcher gets. Before a step whose answer depends on what watchers have seen, all are waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use tonic::Code;

use super::allowed;
use super::call::Call;
use super::history::History;
use super::reply::Reply;
use super::revision::Revisions;
use super::side::{Side, is_progress_request};
use super::step::Step;
use super::streams::{Record, mod_revision};
use super::turns::{Prospect, Turns};
use super::watching::Watching;

/// The stream that sees everything; sequences use small numbers.
const AUDIT: usize = 1_000_000;

/// Steps after which events are compared even if nothing asks for it.
const SETTLE_EVERY: usize = 40;

/// A server asked for progress answers at once or not at all; etcd looks for watchers to catch up each 100 ms.
const PROGRESS_ATTEMPTS: usize = 6;

/// The same of a server that owes an answer, since the other one has given it: it may only be late, as each is on a busy machine.
const PROGRESS_PATIENCE: usize = 100 * PROGRESS_ATTEMPTS;

/// How long a process that broke its connections is waited for, to tell its end from others.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// The two programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// An etcd.
    pub etcd: PathBuf,
    /// A Balsa.
    pub balsa: PathBuf,
    /// How many members Balsa's cluster has; etcd's always has one, so that it is the one history to compare with.
    pub nodes: usize,
}

/// How a sequence went.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The servers agree.
    Same,
    /// They do not.
    Differs(Difference),
    /// A server gave a request up, which leaves open what became of it: there is nothing to compare from there on.
    Inconclusive(GivenUp),
}

/// A request that a server gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    /// Its place in the sequence.
    pub at: usize,
    /// etcd answered it: that the machine is busy is no excuse if it happens again.
    pub by_balsa_alone: bool,
}

/// What a server says then, with or without a guess why,
const GAVE_UP: &str = "etcdserver: request timed out";
/// and what etcd says of a proposal that its Raft takes no more.
const NOT_TAKEN: (Code, &str) = (Code::DeadlineExceeded, "context deadline exceeded");

/// Why a sequence goes no further.
enum Stop {
    Differs(Difference),
    Inconclusive(GivenUp),
}

impl From<Difference> for Stop {
    fn from(difference: Difference) -> Self {
        Stop::Differs(difference)
    }
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
pub async fn run(programs: &Programs, sequence: &[Step]) -> anyhow::Result<Outcome> {
    let mut lockstep = Lockstep::start(programs).await?;
    match lockstep.all(sequence).await {
        Ok(()) => Ok(Outcome::Same),
        Err(Stop::Differs(difference)) => Ok(Outcome::Differs(lockstep.explained(difference).await)),
        Err(Stop::Inconclusive(given_up)) => Ok(Outcome::Inconclusive(given_up)),
    }
}

/// Whether a reply leaves open what became of the request.
fn is_given_up(reply: &Reply) -> bool {
    matches!(reply, Reply::Failed { code, message } if message.starts_with(GAVE_UP) || (*code, message.as_str()) == NOT_TAKEN)
}

fn differing(at: usize, sent: &Step, (etcd, balsa): (String, String)) -> Difference {
    Difference { at, step: sent.to_string(), etcd, balsa }
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
    history: History,
    turns: Turns,
}

impl Lockstep {
    async fn start(programs: &Programs) -> anyhow::Result<Self> {
        // The shortest lease follows from the time of elections, so that is the same on both.
        let fast = programs.nodes == 1;
        let balsa = Side::start("balsa", &programs.balsa, programs.nodes, fast, true);
        // What etcd's Hash is of is its database: with the leases, and with what a compaction has not deleted yet.
        let (etcd, balsa) = tokio::join!(Side::start("etcd", &programs.etcd, 1, fast, false), balsa);
        let mut lockstep = Self {
            etcd: etcd?,
            balsa: balsa?,
            revisions: Revisions::default(),
            compactions: BTreeSet::new(),
            announced: BTreeMap::new(),
            behind: BTreeSet::new(),
            watching: Vec::new(),
            history: History::default(),
            turns: Turns::default(),
        };
        let audit = Step::Watch { stream: AUDIT, request: audit_request() };
        match lockstep.step(0, &audit).await {
            Ok(()) => Ok(lockstep),
            Err(Stop::Differs(difference)) => anyhow::bail!("{difference}"),
            Err(Stop::Inconclusive(_)) => anyhow::bail!("a server does not open the first watch stream in time"),
        }
    }

    async fn all(&mut self, sequence: &[Step]) -> Result<(), Stop> {
        for (at, step) in sequence.iter().chain(&ending()).enumerate() {
            self.step(at, step).await?;
        }
        Ok(self.hear_progress(sequence.len()).await?)
    }

    /// With the end of a process that caused it.
    async fn explained(&mut self, mut difference: Difference) -> Difference {
        let (etcd, balsa) = tokio::join!(self.etcd.ended(LAST_BREATH), self.balsa.ended(LAST_BREATH));
        for (said, ended) in [(&mut difference.etcd, etcd), (&mut difference.balsa, balsa)] {
            if let Some(log) = ended {
                said.push_str(&format!("\n(the process has ended)\n{log}"));
            }
        }
        difference
    }

    async fn step(&mut self, at: usize, step: &Step) -> Result<(), Stop> {
        let sent = self.revisions.resolve(step);
        if self.turns.concern(sent.parts().1) {
            self.read_revision().await;
        }
        let (current, sides) = (self.revisions.current, (&mut self.etcd, &mut self.balsa));
        match &sent {
            Step::GiveUp { name } => {
                let after = self.turns.give_up(name, current, sides).await;
                self.revisions.current = after.map_err(|both| differing(at, &sent, both))?;
            }
            Step::Observe { number, name } => self.turns.observe(*number, name.as_ref(), current, sides),
            _ => self.request(at, &sent).await?,
        }
        self.take_turns(at, &sent).await
    }

    async fn request(&mut self, at: usize, sent: &Step) -> Result<(), Stop> {
        let prospect = match sent.parts().1 {
            Step::Call(call) => self.turns.prospect(call, &mut self.etcd).await,
            _ => Prospect::Served,
        };
        if prospect == Prospect::Unclear || !self.prepare(at, sent).await? {
            return Ok(());
        }
        let replies = match sent.parts().1 {
            Step::Call(call) if prospect == Prospect::Waits => self.begin(at, call).await,
            _ => Some(self.ask(at, sent).await),
        };
        let Some((etcd, balsa)) = replies else { return Ok(()) };
        self.compare(at, sent, &etcd, &balsa)?;
        if matches!(sent.parts().1, Step::Frames(_)) {
            self.read_revision().await;
        }
        Ok(())
    }

    /// Does what must be done before a step; false when the step is not sent.
    async fn prepare(&mut self, at: usize, sent: &Step) -> Result<bool, Stop> {
        let differ = |both| differing(at, sent, both);
        let compaction = match sent.parts().1 {
            Step::Compact(request) => Some(request.revision),
            _ => None,
        };
        if let Some(revision) = compaction {
            let (current, sides) = (self.revisions.current, (&mut self.etcd, &mut self.balsa));
            match self.turns.make_way(revision, current, sides).await.map_err(differ)? {
                Some(current) => self.revisions.current = current,
                None => return Ok(false),
            }
            self.take_turns(at, sent).await?;
        }
        if needs_settled_watchers(sent.parts().1) || at % SETTLE_EVERY == SETTLE_EVERY - 1 {
            self.settle().await.map_err(differ)?;
        }
        if let Some(revision) = compaction {
            if self.history.breaks_etcd(revision) {
                return Ok(false);
            }
            self.catch_up().await;
        }
        Ok(true)
    }

    /// Both answers; None when the call waits.
    async fn begin(&mut self, at: usize, call: &Call) -> Option<(Reply, Reply)> {
        let (current, sides) = (self.revisions.current, (&mut self.etcd, &mut self.balsa));
        let replies = self.turns.begin(at, call, current, sides).await;
        if replies.is_none() {
            self.revisions.current += 1;
        }
        replies
    }

    fn compare(&mut self, at: usize, sent: &Step, etcd: &Reply, balsa: &Reply) -> Result<(), Stop> {
        let (_, step) = sent.parts();
        let given_up = (is_given_up(etcd), is_given_up(balsa));
        if given_up != (false, false) {
            return Err(Stop::Inconclusive(GivenUp { at, by_balsa_alone: !given_up.0 }));
        }
        if self.is_of_a_compaction(step) {
            return Ok(());
        }
        if let Some(both) = allowed::differ(step, etcd, balsa) {
            return Err(differing(at, sent, both).into());
        }
        self.learn(step, etcd);
        Ok(())
    }

    /// An answer need not tell of all that its request changed: that of a campaign is from before it proclaims.
    async fn read_revision(&mut self) {
        self.revisions.current = self.revisions.current.max(self.etcd.revision().await);
    }

    /// What the step before means for those who wait and those who look on.
    async fn take_turns(&mut self, at: usize, sent: &Step) -> Result<(), Stop> {
        if self.turns.is_empty() {
            return Ok(());
        }
        self.read_revision().await;
        let current = self.revisions.current;
        let served = self.turns.served((&mut self.etcd, &mut self.balsa)).await;
        for (call, etcd, balsa) in served {
            self.compare(at, &Step::Call(call), &etcd, &balsa)?;
        }
        let told = self.turns.told(current, (&mut self.etcd, &mut self.balsa)).await;
        told.map_err(|(who, (etcd, balsa))| {
            let step = format!("{sent}, and {who}");
            Stop::Differs(Difference { at, step, etcd, balsa })
        })
    }

    async fn ask(&mut self, at: usize, sent: &Step) -> (Reply, Reply) {
        match sent.parts().1 {
            step @ Step::Watch { stream, .. } if is_progress_request(step) => self.progress(*stream).await,
            _ => tokio::join!(self.etcd.send(at, sent), self.balsa.send(at, sent)),
        }
    }

    /// A hash that etcd may have kept from a compaction; see the table.
    fn is_of_a_compaction(&self, step: &Step) -> bool {
        matches!(step, Step::HashKv(request) if self.compactions.contains(&request.revision))
    }

    /// What one answers, the other one owes too, and both must promise the same.
    async fn progress(&mut self, stream: usize) -> (Reply, Reply) {
        let revision = self.revisions.current;
        // A stream without watchers, or with one that waits for the future, hears nothing: then one attempt is enough.
        let mut watchers = self.watching.iter().filter(|watching| watching.stream == stream).peekable();
        let due = watchers.peek().is_some() && watchers.all(|watching| !watching.waits_beyond(revision));
        let attempts = if due { PROGRESS_ATTEMPTS } else { 1 };
        let mut etcd = self.etcd.stream(stream).await.progress(revision, attempts).await;
        let attempts = if etcd.is_some() { PROGRESS_PATIENCE } else { 1 };
        let balsa = self.balsa.stream(stream).await.progress(revision, attempts).await;
        if etcd.is_none() && balsa.is_some() {
            etcd = self.etcd.stream(stream).await.progress(revision, PROGRESS_PATIENCE).await;
        }
        (Reply::Progress(etcd), Reply::Progress(balsa))
    }

    /// Keeps what later steps are resolved and expected by.
    fn learn(&mut self, step: &Step, reply: &Reply) {
        self.revisions.current = self.revisions.current.max(reply.revision());
        match (step, reply) {
            (Step::Compact(request), Reply::Compact(_)) => {
                self.revisions.compacted = request.revision;
                self.balsa.identity.compacted = request.revision;
                self.compactions.insert(request.revision);
                self.history.compact(request.revision);
            }
            // What decodes has no revision in it, so this compacted at 0.
            (Step::Raw { path, .. }, Reply::Raw(Code::Ok, _)) if path.ends_with("/Compact") => {
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
                    let mut watching = Watching::new(stream, *number, answer.watch_id, create, self.revisions);
                    watching.taken = self.history.taken(create.start_revision);
                    self.watching.push(watching);
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
            let (etcd, balsa) = (self.etcd.stream(number).await, self.balsa.stream(number).await);
            tokio::join!(etcd.catch_up(self.revisions.current), balsa.catch_up(self.revisions.current));
            *self.announced.entry(number).or_default() += 1;
        }
    }

    /// Waits until both servers have sent every event that is due, and compares them.
    async fn settle(&mut self) -> Result<(), (String, String)> {
        self.read_history().await?;
        for index in 0..self.watching.len() {
            self.watching[index].expect(self.history.events());
            let watching = &self.watching[index];
            let etcd = watching.wait(self.etcd.stream(watching.stream).await, &watching.taken).await;
            let balsa = watching.wait(self.balsa.stream(watching.stream).await, &BTreeSet::new()).await;
            let (etcd, balsa) = (
                etcd.normalised(watching.stream, &mut self.etcd.identity),
                balsa.normalised(watching.stream, &mut self.balsa.identity),
            );
            let balsa = balsa.without_compacted(&etcd, self.revisions.compacted);
            if etcd != balsa {
                return Err((format!("{watching}: {etcd}"), format!("{watching}: {balsa}")));
            }
            self.watching[index].compared();
        }
        self.watching.retain(Watching::is_live);
        self.broken()
    }

    /// Watchers that asked for it hear of the last revision without an event, on both servers.
    async fn hear_progress(&mut self, at: usize) -> Result<(), Difference> {
        let revision = self.revisions.current;
        let due = |watching: &&Watching| watching.hears_of_progress() && !watching.waits_beyond(revision);
        for watching in self.watching.iter().filter(due) {
            let etcd = watching.wait_for_progress(self.etcd.stream(watching.stream).await, revision).await;
            let balsa = watching.wait_for_progress(self.balsa.stream(watching.stream).await, revision).await;
            if etcd != balsa {
                let (etcd, balsa) = (format!("progress to {etcd:?}"), format!("progress to {balsa:?}"));
                return Err(Difference { at, step: watching.to_string(), etcd, balsa });
            }
        }
        Ok(())
    }

    /// Reads events from etcd until there are those of the current revision.
    async fn read_history(&mut self) -> Result<(), (String, String)> {
        let (current, known) = (self.revisions.current, self.history.events().len());
        let stream = self.etcd.stream(AUDIT).await;
        let last = |record: &Record| record.watchers[0].events.last().map_or(1, mod_revision);
        stream.until(|record| last(record) >= current).await;
        let record = stream.record();
        self.history.extend(&record.watchers[0].events[known..]);
        if last(&record) >= current {
            return Ok(());
        }
        let (last, ended) = (last(&record), &record.ended);
        let etcd = format!("no event of revision {current}, the last is of {last}, the end of the stream {ended:?}");
        Err((etcd, String::new()))
    }

    fn broken(&self) -> Result<(), (String, String)> {
        let balsa = self.balsa.broken();
        if balsa.is_empty() { Ok(()) } else { Err((self.etcd.broken(), balsa)) }
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
