//! One pass over one `RaftCluster`, and the loop that runs passes.
//!
//! | step     | needs a client | |
//! |----------|----------------|--|
//! | observe  | yes | everything is read live |
//! | validate | no  | an invalid spec changes nothing; what runs is kept alive |
//! | build    | no  | what should exist |
//! | apply    | yes | makes it exist |
//! | plan     | no  | the one next step |
//! | execute  | yes | that step |
//! | status   | yes | what all this was |
//!
//! A pass remembers nothing. It may be cut off between any two calls: the next one sees what became of it.

use std::sync::Arc;
use std::time::Duration;

use balsa_crds::{RaftCluster, RaftClusterStatus};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{self, Action, Config};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::apply::{ApplyError, FIELD_MANAGER, Written, apply, apply_budget, is_conflict, is_ours, to_recreate};
use crate::brief::brief;
use crate::build::{budget, build, is_template_held};
use crate::execute::{ExecuteError, Hands, describe};
use crate::failures::{Failing, Memory, Topic};
use crate::lanes::Lanes;
use crate::members::Dial;
use crate::metrics::Metrics;
use crate::names::{self, FINALIZER};
use crate::observe::{Live, ObserveError, observe, stateful_set};
use crate::observed::{Observed, UnixSeconds};
use crate::plan;
use crate::status::{self, Seen, StatusError};
use crate::step::{Plan, Step, WaitReason};
use crate::valid::ValidCluster;
use crate::validate::{for_deletion, for_repairs, validate};

/// As many passes as there are clusters: [`Lanes`] bounds them. The library's own bound picks among those that wait by
/// their hash, not by their turn, so stuck clusters that come again and again could keep another one out for good.
const CONCURRENCY: u16 = 0;
/// After a step, and while a learner is listed that makes progress, or has not been waited for long: what was begun is soon done.
const SOON: Duration = Duration::from_millis(100);
/// While something passes by itself that no watch shows.
const POLL: Duration = Duration::from_millis(250);
/// When a wait has lasted for [`LONG`], and after errors.
const SLOW: Duration = Duration::from_secs(2);
/// What has failed for so long is not soon done, and is told; a conflict that comes again for so long is none.
const FAILING_SECONDS: i64 = 10;
/// Settled, paused or waiting for a person: a watch tells what matters, but not the loss of a node's quorum.
const REST: Duration = Duration::from_secs(5);
/// A wait of so many seconds is no longer polled fast, so that stuck clusters do not crowd out the others.
const LONG: i64 = plan::LASTING_WAIT_SECONDS;

/// What is said in the log, or by an event of a wait that comes and goes, is said again after so long.
const SAID_AGAIN_SECONDS: i64 = 3600;

/// Why a pass ended early.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// Reading failed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// An object could not be brought about.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// This process may have lost its lease: it writes nothing any more.
    #[error("the process was asleep for too long to be sure that it still leads")]
    NotLeading,
    /// The finalizer could not be added.
    #[error("adding the finalizer failed: {0}")]
    Finalizer(#[source] Box<kube::Error>),
}

impl ReconcileError {
    /// The word for it in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Observe(error) => error.reason(),
            Self::Apply(error) => error.reason(),
            Self::Status(error) => error.reason(),
            Self::NotLeading => "NotLeading",
            Self::Finalizer(_) => "FinalizerFailed",
        }
    }

    /// The world has moved under the pass: nothing is wrong, observe again.
    fn is_conflict(&self) -> bool {
        match self {
            Self::Observe(_) | Self::NotLeading => false,
            Self::Apply(error) => error.is_conflict(),
            Self::Status(error) => error.is_conflict(),
            Self::Finalizer(error) => is_conflict(error),
        }
    }
}

/// Seconds since the Unix epoch.
pub type Clock = Box<dyn Fn() -> UnixSeconds + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> Clock {
    Box::new(|| Timestamp::now().as_second())
}

/// What every pass is given.
pub struct Context {
    /// Bounded in time and without retries of its own: a pass that cannot go on ends, and the next begins anew.
    pub client: Client,
    /// Publishes one event per step.
    pub events: Recorder,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How nodes are reached.
    pub dial: Box<dyn Dial>,
    /// Whose turn it is.
    pub lanes: Lanes,
    /// Which calls failed, so that the rest of a plan does not wait for them.
    pub failures: Memory,
    /// What time it is; the only clock of a pass.
    pub clock: Clock,
    /// Whether this process may still write: asked before objects are applied, and before a step.
    pub leads: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Context {
    /// Nothing is remembered of a cluster that is gone.
    fn forget(&self, namespace: &str, name: &str) {
        self.metrics.forget(namespace, name);
        self.lanes.forget(namespace, name);
        self.failures.forget(namespace, name);
    }

    /// Remembers what became of a step. Where the object is not the one any more that the step was decided on nothing was
    /// refused, and the next pass observes it; unless that is said of the same object for so long that somebody answers so.
    fn note(&self, resource: &RaftCluster, observed: &Observed, step: &Step, failed: Option<&ExecuteError>) {
        let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
        let cluster = (namespace.as_str(), name.as_str());
        let stale = failed.is_some_and(ExecuteError::is_stale);
        match written(step) {
            Some(object) if stale => {
                self.is_news(cluster, Topic::Changed, object);
                if self.failures.said_for(cluster, Topic::Changed, (self.clock)()) < FAILING_SECONDS {
                    return;
                }
            }
            Some(object) => self.failures.is_over_of(cluster, Topic::Changed, object),
            None if stale => return,
            None => {}
        }
        let failed = failed.map(ToString::to_string);
        self.failures.note(cluster, observed, step, failed.as_deref(), (self.clock)());
    }

    /// Whether it is to be said: the metrics count what is not.
    fn is_news(&self, cluster: (&str, &str), topic: Topic, text: &str) -> bool {
        self.failures.is_news(cluster, topic, text, (self.clock)(), SAID_AGAIN_SECONDS)
    }

    fn still_leads(&self) -> Result<(), ReconcileError> {
        if (self.leads)() { Ok(()) } else { Err(ReconcileError::NotLeading) }
    }
}

/// UID of what the step writes, of those steps that others need not wait for.
fn written(step: &Step) -> Option<&str> {
    match step {
        Step::RestartPod { pod, .. } => Some(&pod.uid),
        Step::LabelVolume { volume, .. } => Some(&volume.uid),
        _ => None,
    }
}

/// Runs passes for all clusters of `namespace` (of all namespaces if `None`) until `stop` is cancelled; a pass that
/// has begun is finished. `watches` is a client whose calls may last, for watching. It ends by itself when a watch cannot be
/// begun anew: a process that has just started begins with a list.
pub async fn run(context: Arc<Context>, watches: Client, namespace: Option<&str>, stop: CancellationToken) {
    fn api<K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(
        client: &Client,
        namespace: Option<&str>,
    ) -> Api<K> {
        namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
    }
    let (closing, forgetting) = (Arc::clone(&context), Arc::clone(&context));
    let over = stop.child_token();
    let ending = over.clone();
    let ended = async move {
        ending.cancelled().await;
        closing.lanes.close();
    };
    let ours = watcher::Config::default().labels("app.kubernetes.io/managed-by=balsa-operator");
    Controller::new(api::<RaftCluster>(&watches, namespace), watcher::Config::default())
        .owns(api::<StatefulSet>(&watches, namespace), ours.clone())
        .watches(api::<Pod>(&watches, namespace), ours, |pod| cluster_of(&pod))
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(ended)
        .run(reconcile, after_error, context)
        .for_each(|result| {
            match result {
                Ok(_) => {}
                // Its turn came, and a watch has told that it is gone: no pass would ever find that out.
                Err(controller::Error::ObjectNotFound(gone)) => {
                    forgetting.forget(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
                }
                Err(controller::Error::QueueError(error)) if is_forgotten(&error) => {
                    warn!(%error, "a watch cannot be begun anew");
                    over.cancel();
                }
                Err(error) => debug!(%error, "pass ended with an error"),
            }
            std::future::ready(())
        })
        .await;
}

/// 410 as the answer to a watch, which the library asks again for ever with the same version. The API server itself says it
/// within the watch, and then a list comes first.
fn is_forgotten(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// A pod belongs to its StatefulSet, not to the resource: its labels tell which one.
fn cluster_of(pod: &Pod) -> Option<ObjectRef<RaftCluster>> {
    let name = pod.labels().get("app.kubernetes.io/instance")?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

pub(crate) fn after_error(resource: Arc<RaftCluster>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    if error.is_conflict() {
        // The next pass sees what has changed. What conflicts for ever is refused by somebody who answers so.
        context.is_news((&namespace, &name), Topic::Conflicts, "");
        if context.failures.said_for((&namespace, &name), Topic::Conflicts, (context.clock)()) < FAILING_SECONDS {
            return Action::requeue(SOON);
        }
    }
    if context.is_news((&namespace, &name), Topic::PassFailed, &error.to_string()) {
        warn!(namespace, name, reason = error.reason(), %error, "pass failed");
    }
    Action::requeue(SLOW)
}

pub(crate) async fn reconcile(cached: Arc<RaftCluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
    let Some(place) = context.lanes.enter(&namespace, &name).await else { return Ok(Action::await_change()) };
    // On the heap, so that the many that wait their turn are small.
    let result = Box::pin(pass(&cached, &context)).await;
    let word = match &result {
        Ok(_) => "ok",
        Err(error) if error.is_conflict() => "Conflict",
        Err(error) => error.reason(),
    };
    context.metrics.pass(word, place.held());
    drop(place);
    if result.is_ok() {
        context.failures.is_over((&namespace, &name), Topic::PassFailed);
        context.failures.is_over((&namespace, &name), Topic::Conflicts);
    }
    if matches!(&result, Ok(action) if *action == Action::await_change()) {
        context.forget(&namespace, &name);
    }
    result
}

/// One pass over one resource.
pub(crate) async fn pass(cached: &RaftCluster, context: &Context) -> Result<Action, ReconcileError> {
    let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
    let clusters: Api<RaftCluster> = Api::namespaced(context.client.clone(), &namespace);
    let read = clusters.get_opt(&name).await;
    let read = read.map_err(|source| ObserveError::Read { kind: "the RaftCluster", source: Box::new(source) })?;
    // What waits for nothing but a change is gone, or is left to others to be taken away.
    let Some(resource) = read else { return Ok(Action::await_change()) };
    let (mut observed, live) = observe(&context.client, &*context.dial, &resource, (context.clock)()).await?;
    observed.remember(context.failures.of(&namespace, &name));
    let deleting = resource.metadata.deletion_timestamp.is_some();
    let (mut cluster, mut invalid) = match if deleting { for_deletion(&resource) } else { validate(&resource) } {
        Ok(cluster) => (cluster, None),
        Err(invalid) => {
            let message = brief(&invalid.to_string());
            let Some(cluster) = to_keep_alive(&resource, &observed, &live) else {
                return refuse(context, &resource, &observed, message).await;
            };
            (cluster, Some(message))
        }
    };
    context.still_leads()?;
    if deleting && !observed.resource.finalizer {
        return Ok(Action::await_change());
    }
    if !deleting && !cluster.paused {
        if !observed.resource.finalizer {
            add_finalizer(&clusters, &resource).await?;
            return Ok(Action::requeue(SOON));
        }
        let brought = match invalid {
            Some(_) => keep_budget(context, &cluster, &observed, &live).await,
            None => bring_about(context, &cluster, &mut observed, &live).await,
        };
        if let Some(advice) = refusal(context, &cluster, brought)? {
            // As if the spec said it: what runs is kept alive.
            let Some(kept) = to_keep_alive(&resource, &observed, &live) else {
                return refuse(context, &resource, &observed, advice).await;
            };
            cluster = kept;
            invalid = Some(invalid.map_or_else(|| advice.clone(), |message| brief(&format!("{message}; {advice}"))));
        }
    }
    let told = Told { resource: &resource, cluster: &cluster, observed: &observed, invalid: invalid.as_deref() };
    act(context, &live, told).await
}

/// What can be planned for a cluster that runs although its spec cannot be carried out, or the API server refuses it.
/// Nothing is, from a StatefulSet of somebody else's under its name.
fn to_keep_alive(resource: &RaftCluster, observed: &Observed, live: &Live) -> Option<ValidCluster> {
    let ours = live.stateful_set.as_ref().is_some_and(|set| is_ours(&resource.name_any(), set));
    let mut cluster = for_repairs(resource).ok().filter(|_| ours && plan::is_founded(observed))?;
    cluster.want = plan::kept_size(&cluster, observed);
    Some(cluster)
}

/// What a person has to change, where the API server refuses what was to be brought about, or another object is in its way; and
/// what is told where it has failed for long, as with a webhook that does not answer. Every other failure ends the pass.
fn refusal(
    context: &Context,
    cluster: &ValidCluster,
    brought: Result<(), ReconcileError>,
) -> Result<Option<String>, ReconcileError> {
    let key = (cluster.namespace.as_str(), cluster.name.as_str());
    let Err(error) = brought else {
        context.failures.is_over(key, Topic::Refused);
        context.failures.works(key, Failing::Apply);
        return Ok(None);
    };
    let advice = match &error {
        ReconcileError::Apply(error) => error.for_a_human().or_else(|| not_taken(context, key, error)),
        _ => None,
    };
    let Some(advice) = advice else { return Err(error) };
    context.metrics.refused(error.reason());
    let advice = brief(&advice);
    if context.is_news(key, Topic::Refused, &advice) {
        warn!(namespace = cluster.namespace, name = cluster.name, reason = error.reason(), %error, "refused");
    }
    Ok(Some(advice))
}

/// What is told of objects that nobody refuses, and that have not been taken for long. A conflict says only that the next pass
/// sees something else.
fn not_taken(context: &Context, key: (&str, &str), error: &ApplyError) -> Option<String> {
    if error.is_conflict() {
        return None;
    }
    // Whichever object it is: all that comes after it waits, and so does every repair.
    context.failures.lasting(key, Failing::Apply, "", &error.lasting(), (context.clock)(), FAILING_SECONDS)
}

/// What stays of build and apply while the spec cannot be carried out.
async fn keep_budget(
    context: &Context,
    cluster: &ValidCluster,
    observed: &Observed,
    live: &Live,
) -> Result<(), ReconcileError> {
    let budget = budget::build(cluster, observed);
    let written = apply_budget(&context.client, budget.as_ref(), live).await?;
    count_applied(context, cluster, &written);
    Ok(())
}

/// Build and apply.
async fn bring_about(
    context: &Context,
    cluster: &ValidCluster,
    observed: &mut Observed,
    live: &Live,
) -> Result<(), ReconcileError> {
    let mut desired = build(cluster, observed);
    if context.failures.was_said((&cluster.namespace, &cluster.name), Topic::Refused) {
        // What the spec leads to was refused, so its size is not come to either: nothing is bounded for it.
        let kept = ValidCluster { want: plan::kept_size(cluster, observed), ..cluster.clone() };
        desired.budget = budget::build(&kept, observed);
    }
    let applied = live.stateful_set.as_ref().map(ResourceExt::annotations);
    let held = is_template_held(cluster, &desired.stateful_set, applied);
    let fixed = live.stateful_set.as_ref().map(|live| to_recreate(&desired.stateful_set, live));
    let written = apply(&context.client, desired, live, held).await?;
    if let Some(set) = observed.set.as_mut() {
        // A set that was just changed is planned on as it is now: its controller has not seen that yet (G3), and a step
        // that carried the version before would be refused.
        if let Some(now) = &written.stateful_set {
            *set = stateful_set(now);
        }
        set.template_held = held;
        // Known only now that all else was taken: a set that could not be made again is not deleted.
        set.fixed = fixed.unwrap_or_default();
    }
    count_applied(context, cluster, &written);
    Ok(())
}

fn count_applied(context: &Context, cluster: &ValidCluster, written: &Written) {
    for kind in &written.kinds {
        context.metrics.applied(kind);
        info!(namespace = cluster.namespace, name = cluster.name, kind, "applied");
    }
}

/// What a pass knows when it acts.
#[derive(Clone, Copy)]
struct Told<'a> {
    resource: &'a RaftCluster,
    cluster: &'a ValidCluster,
    observed: &'a Observed,
    invalid: Option<&'a str>,
}

impl Told<'_> {
    /// Plan, on this observation.
    fn plan(&self, observed: &Observed) -> Plan {
        match self.invalid {
            Some(message) => plan::repairs(self.cluster, observed, message.to_owned()),
            None => plan::plan(self.cluster, observed),
        }
    }
}

/// Plan, execute and status.
async fn act(context: &Context, live: &Live, told: Told<'_>) -> Result<Action, ReconcileError> {
    let Told { resource, cluster, observed, invalid } = told;
    let mut plan = told.plan(observed);
    let (client, dial, addresses) = (&context.client, &*context.dial, &live.addresses);
    let hands = Hands { client, dial, resource, cluster, observed, addresses };
    context.still_leads()?;
    let result = hands.execute(&plan.step).await;
    let executed = matches!(result, Ok(true));
    context.note(resource, observed, &plan.step, result.as_ref().err());
    match &result {
        Ok(true) => done(context, resource, &plan).await,
        Ok(false) => {}
        Err(error) => {
            let failed = plan.step.clone();
            plan = not_done(context, told, plan, error);
            // What is told in its place has words of its own.
            if plan.step == failed {
                tell_failing(context, told, &mut plan, &error.to_string()).await;
            }
        }
    }
    if result.is_ok() {
        let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
        context.failures.works((&namespace, &name), Failing::Step);
    }
    // These steps have changed the resource itself: its status is told by the next pass, which begins at once.
    if executed && matches!(plan.step, Step::Bootstrap(_) | Step::DropFinalizer { .. }) {
        return Ok(Action::requeue(SOON));
    }
    let status = report(context, Seen { resource, cluster: Some(cluster), observed, plan: &plan, invalid }).await?;
    // A budget that refuses does not change its mind at once, and what is tried again after a pause waits for it.
    let refused = result.is_err() && plan.step == Step::Wait;
    if result.is_err() && has_failed_for(context, resource) >= FAILING_SECONDS {
        return Ok(Action::requeue(SLOW));
    }
    let acted = executed || (result.is_err() && !refused);
    Ok(Action::requeue(next_pass(observed, &plan, acted, status::is_coming_up(&status))))
}

/// For how long a step has failed: one that is tried in every pass, whatever is said of it, or any with the same words.
fn has_failed_for(context: &Context, resource: &RaftCluster) -> i64 {
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    let topics = [Topic::NotExecuted, Topic::Fails(Failing::Step)];
    let seconds = topics.map(|topic| context.failures.said_for((&namespace, &name), topic, (context.clock)()));
    seconds.into_iter().max().unwrap_or_default()
}

/// The spec cannot be carried out: nothing is touched, and the first error is in the conditions (M29).
async fn refuse(
    context: &Context,
    resource: &RaftCluster,
    observed: &Observed,
    message: String,
) -> Result<Action, ReconcileError> {
    let plan = plan::invalid_spec(observed, message);
    report(context, Seen { resource, cluster: None, observed, plan: &plan, invalid: None }).await?;
    Ok(Action::requeue(REST))
}

/// Status, metrics, and one warning when a plan begins to wait for something that does not pass by itself.
async fn report(context: &Context, seen: Seen<'_>) -> Result<RaftClusterStatus, ReconcileError> {
    let (resource, plan) = (seen.resource, seen.plan);
    let status = status::compute(seen);
    let reason = plan.blocked_by.as_ref().map(|blocked| blocked.reason.as_str()).unwrap_or_default();
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    context.metrics.planned(&namespace, &name, plan.step.name().as_str(), reason, status.ready_replicas);
    status::write(&context.client, seen).await?;
    for trouble in status::new_troubles(resource, &status).filter(|trouble| trouble.reason != reason) {
        publish(context, resource, EventType::Warning, &trouble.reason, &trouble.type_, &trouble.message).await;
    }
    let before = seen.observed.resource.plan.as_ref().and_then(|plan| plan.reason.as_deref());
    if let Some(blocked) = &plan.blocked_by
        && before != Some(reason)
        && is_to_be_warned(context, (&namespace, &name), blocked.reason)
    {
        publish(context, resource, EventType::Warning, reason, "Wait", &blocked.message).await;
    }
    Ok(status)
}

/// Of a wait that does not pass by itself, when it begins. One whose call is tried again and again comes and goes, as the
/// status tells of that call or of something else meanwhile: once in a while.
fn is_to_be_warned(context: &Context, cluster: (&str, &str), reason: WaitReason) -> bool {
    let lasts = reason.is_degraded() || reason.needs_human();
    lasts || (reason.is_tried_again() && context.is_news(cluster, Topic::Warned(reason), ""))
}

async fn done(context: &Context, resource: &RaftCluster, plan: &Plan) {
    let step = plan.step.name().as_str();
    context.metrics.step(step, "ok");
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    context.failures.is_over((&namespace, &name), Topic::NotExecuted);
    context.failures.is_over_of((&namespace, &name), Topic::WarnedStep, &which(plan));
    let Some(note) = describe(&name, &plan.step) else { return };
    info!(namespace, name, step, row = plan.row, note, "executed");
    publish(context, resource, EventType::Normal, step, &action(plan), &note).await;
}

/// Row and target. Events of one action are folded into a series that keeps the first note, so two members or two
/// volumes must not share one.
fn action(plan: &Plan) -> String {
    let mut action = plan.row.to_owned();
    if let Some(ordinal) = plan.target.ordinal {
        action += &format!(" ordinal {ordinal}");
    }
    if let Some(member) = plan.target.member {
        action += &format!(" member {}", names::id_text(member));
    }
    action
}

/// The step and whom it is about, whatever its row and its words.
fn which(plan: &Plan) -> String {
    format!("{} {:?}", plan.step.name(), plan.target)
}

/// A step that has failed for long is told with its words, because everything after it waits; once by an event.
async fn tell_failing(context: &Context, told: Told<'_>, plan: &mut Plan, words: &str) {
    let Told { resource, cluster, observed, .. } = told;
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    let (key, which, now) = ((namespace.as_str(), name.as_str()), which(plan), (context.clock)());
    let words = context.failures.lasting(key, Failing::Step, &which, words, now, FAILING_SECONDS);
    let Some(words) = words else { return };
    let reason = plan::step_fails(plan, cluster, observed, &words);
    // Of these `report` warns, where the plan waits for them.
    let is_reported = reason.is_tried_again() && plan.blocked_by.as_ref().is_some_and(|told| told.reason == reason);
    if !is_reported && context.failures.is_news(key, Topic::WarnedStep, &which, now, i64::MAX) {
        let note = format!("{} fails: {words}", plan.step.name());
        publish(context, resource, EventType::Warning, reason.as_str(), &action(plan), &note).await;
    }
}

/// What is told of a plan whose step failed.
fn not_done(context: &Context, told: Told<'_>, mut plan: Plan, error: &ExecuteError) -> Plan {
    let Told { resource, cluster, observed, .. } = told;
    let step = plan.step.name().as_str();
    context.metrics.step(step, error.reason());
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    if context.is_news((&namespace, &name), Topic::NotExecuted, &format!("{step} {:?} {error}", plan.target)) {
        info!(namespace, name, step, row = plan.row, reason = error.reason(), %error, "not executed");
    }
    let failed = plan.step.clone();
    if let ExecuteError::Budget(_) = error {
        plan::refused_by_budget(&mut plan, cluster, observed, error.to_string());
    }
    if let ExecuteError::NotTaken(_) = error {
        plan::set_not_taken(&mut plan, error.to_string());
    }
    let mut observed = observed.clone();
    observed.remember(context.failures.of(&namespace, &name));
    plan::after_failure(&failed, plan, told.plan(&observed))
}

/// An event that cannot be published is no reason to stop: what happened stands in the log and in the status.
async fn publish(context: &Context, resource: &RaftCluster, kind: EventType, reason: &str, action: &str, note: &str) {
    let event = Event {
        type_: kind,
        reason: reason.to_owned(),
        note: Some(brief(note)),
        action: action.to_owned(),
        secondary: None,
    };
    let reference: ObjectReference = resource.object_ref(&());
    match context.events.publish(&event, &reference).await {
        Ok(()) => {}
        // A namespace that is being deleted takes no new objects.
        Err(error) if resource.metadata.deletion_timestamp.is_some() => debug!(reason, %error, "no event"),
        Err(error) => warn!(reason, %error, "an event could not be published"),
    }
}

async fn add_finalizer(clusters: &Api<RaftCluster>, resource: &RaftCluster) -> Result<(), ReconcileError> {
    let mut finalizers = resource.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    let body = serde_json::json!({"metadata": {
        "uid": resource.uid(),
        "resourceVersion": resource.resource_version(),
        "finalizers": finalizers,
    }});
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = clusters.patch(&resource.name_any(), &parameters, &Patch::Merge(&body)).await;
    patched.map(|_| ()).map_err(|error| ReconcileError::Finalizer(Box::new(error)))
}

/// When to look again, if no watch tells earlier. Somebody may wait for a cluster that is `coming_up`, and no watch tells of its
/// Service.
fn next_pass(observed: &Observed, plan: &Plan, acted: bool, coming_up: bool) -> Duration {
    let learner = observed.members.iter().any(|list| list.members.values().any(|member| member.learner));
    let waits = plan.blocked_by.as_ref().map(|blocked| blocked.reason);
    let old = observed.now.saturating_sub(plan.since) > LONG;
    if acted {
        SOON
    } else if learner && waits == Some(WaitReason::LearnerBehind) {
        // It moves, however long it takes: the moment it has caught up it is promoted.
        SOON
    } else if waits == Some(WaitReason::LearnerStuck) {
        // No person need come: when it has caught up it is promoted, and no watch tells of that.
        SLOW
    } else if status::is_settled(plan) && coming_up {
        if old { SLOW } else { POLL }
    } else if status::is_settled(plan) || waits.is_some_and(WaitReason::needs_human) {
        REST
    } else if old {
        // Whatever there is of a learner: a pod that cannot start is no sooner there for being asked after.
        SLOW
    } else if learner {
        SOON
    } else {
        POLL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::observed_three;
    use crate::step::{Blocked, Target};

    fn waiting(reason: WaitReason, since: i64) -> Plan {
        Plan {
            step: Step::Wait,
            row: "X1",
            then: Vec::new(),
            blocked_by: Some(Blocked { reason, message: String::new() }),
            human_may: Vec::new(),
            target: Target::default(),
            since,
        }
    }

    #[test]
    fn a_listed_learner_is_polled_within_200_milliseconds_unless_it_makes_no_progress_for_long() {
        let mut observed = observed_three();
        observed.members.as_mut().expect("a list").members.get_mut(&3).expect("member 3").learner = true;
        let behind = next_pass(&observed, &waiting(WaitReason::LearnerBehind, observed.now - 3600), false, false);
        assert!(behind <= Duration::from_millis(200), "{behind:?}");
        let waits = [WaitReason::PodNotRunning, WaitReason::DisruptionBudget];
        for (reason, coming_up) in waits.into_iter().flat_map(|reason| [(reason, false), (reason, true)]) {
            let delay = |since| next_pass(&observed, &waiting(reason, since), false, coming_up);
            let young = delay(observed.now - LONG);
            assert!(young <= Duration::from_millis(200), "{reason}: {young:?}");
            assert_eq!(delay(observed.now - LONG - 1), SLOW, "{reason}");
        }
        assert!(next_pass(&observed, &waiting(WaitReason::PodNotRunning, observed.now), true, false) <= SOON);
        for since in [observed.now, observed.now - 3600] {
            assert_eq!(next_pass(&observed, &waiting(WaitReason::LearnerStuck, since), false, false), SLOW);
        }
    }

    #[test]
    fn m29_steps_on_different_members_are_different_events() {
        let mut plan = waiting(WaitReason::PodNotRunning, 0);
        let mut actions = std::collections::BTreeSet::new();
        for (ordinal, member) in
            [(None, None), (Some(1), None), (Some(2), None), (Some(2), Some(3)), (Some(2), Some(4))]
        {
            plan.target = Target { ordinal, member };
            assert!(actions.insert(action(&plan)));
        }
    }

    #[test]
    fn stuck_and_settled_clusters_are_not_polled_fast() {
        let observed = observed_three();
        assert_eq!(next_pass(&observed, &waiting(WaitReason::PodNotRunning, observed.now), false, false), POLL);
        assert_eq!(next_pass(&observed, &waiting(WaitReason::PodNotRunning, observed.now - 61), false, false), SLOW);
        assert_eq!(next_pass(&observed, &waiting(WaitReason::LeftoverVolume, observed.now), false, false), REST);
        let settled = |since| Plan { step: Step::Settled, blocked_by: None, ..waiting(WaitReason::Paused, since) };
        assert_eq!(next_pass(&observed, &settled(observed.now), false, false), REST);
        assert_eq!(next_pass(&observed, &settled(observed.now), false, true), POLL, "its Service leads nowhere yet");
        assert_eq!(next_pass(&observed, &settled(observed.now - 61), false, true), SLOW);
    }

    #[test]
    fn a_pod_wakes_the_cluster_that_its_labels_name() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {
            "name": "db-0", "namespace": "ns", "labels": {"app.kubernetes.io/instance": "db"},
        }}))
        .expect("a pod");
        let found = cluster_of(&pod).expect("a cluster");
        assert_eq!((found.name.as_str(), found.namespace.as_deref()), ("db", Some("ns")));
        assert!(cluster_of(&Pod::default()).is_none());
    }
}
