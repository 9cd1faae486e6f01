//! A Deployment whose roll is held open. Its pods have a readiness gate, so each is ready only once it is let through here, and
//! none is taken away before the next is ready: a roll comes to its first pod and waits there, on a fast machine and on a
//! slow one. So what befalls the store befalls it in the middle of a roll, and the roll must go on afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::Cluster;

const NAME: &str = "roller";
/// The condition that lets a pod through.
const GATE: &str = "balsa.dev/let-through";
/// Longest wait for one pod.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Roller {
    deployments: Api<Deployment>,
    pods: Api<Pod>,
}

/// How far a roll is, as the API server shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// The controller has seen the present template.
    seen: bool,
    /// Pods of that template, pods that are available, and all pods.
    updated: i32,
    available: i32,
    all: i32,
}

impl Progress {
    fn of(deployment: &Deployment) -> Self {
        let status = deployment.status.clone().unwrap_or_default();
        Self {
            seen: status.observed_generation == deployment.metadata.generation,
            updated: status.updated_replicas.unwrap_or_default(),
            available: status.available_replicas.unwrap_or_default(),
            all: status.replicas.unwrap_or_default(),
        }
    }

    /// Every pod is of the present template and available, and no other is left.
    fn is_finished(self) -> bool {
        self.seen && [self.updated, self.available, self.all] == [Roller::PODS; 3]
    }

    /// The pod of this number, counted from 1, is there and has not been let through; the ones before it have.
    fn is_held_at(self, pod: i32) -> bool {
        self.seen && self.updated == pod && self.available == Roller::PODS && self.all == Roller::PODS + 1
    }
}

impl Roller {
    /// Pods of the Deployment.
    pub(super) const PODS: i32 = 3;

    /// Creates it and lets its first pods through.
    pub(super) async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let deployments = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let roller = Self { deployments, pods: cluster.pods() };
        roller.deployments.create(&PostParams::default(), &serde_json::from_value(deployment())?).await?;
        for _ in 0..Self::PODS {
            roller.let_through().await?;
        }
        roller.is_rolled_out().await?;
        Ok(roller)
    }

    /// Changes the template. The roll comes to its first pod and waits there.
    pub(super) async fn roll(&self) -> anyhow::Result<()> {
        let change = json!({"spec": {"template": {"metadata": {"annotations": {"balsa.dev/round": "2"}}}}});
        self.deployments.patch(NAME, &PatchParams::default(), &Patch::Merge(&change)).await?;
        Ok(())
    }

    /// Waits until the roll waits for this pod, counted from 1.
    pub(super) async fn is_held_at(&self, pod: i32) -> anyhow::Result<()> {
        self.until(&format!("come to pod {pod}"), |progress| progress.is_held_at(pod)).await
    }

    /// Waits until it has rolled out.
    pub(super) async fn is_rolled_out(&self) -> anyhow::Result<()> {
        self.until("roll out", Progress::is_finished).await
    }

    /// Fails unless the roll waits for this pod now, as the store says, which may have to elect a leader first.
    pub(super) async fn must_be_held_at(&self, pod: i32) -> anyhow::Result<()> {
        let progress = self.progress().await?;
        ensure!(progress.is_held_at(pod), "the roll is not held open at pod {pod}: {progress:?}");
        Ok(())
    }

    /// Lets the pod through that the roll waits for.
    pub(super) async fn let_through(&self) -> anyhow::Result<()> {
        let pod = self.waiting().await?;
        let patch = json!({"status": {"conditions": [{"type": GATE, "status": "True"}]}});
        let deadline = Instant::now() + PATIENCE;
        // A reply may be lost while the store elects a leader; it is the same a second time.
        while let Err(error) = self.pods.patch_status(&pod, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            ensure!(Instant::now() < deadline, "{pod} cannot be let through: {error}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// A pod that has not been let through, once there is one.
    async fn waiting(&self) -> anyhow::Result<String> {
        let (deadline, of_it) = (Instant::now() + PATIENCE, ListParams::default().labels(&format!("app={NAME}")));
        loop {
            let pods = self.pods.list(&of_it).await;
            if let Some(pod) = pods.as_ref().ok().and_then(|pods| pods.iter().find(|pod| waits(pod))) {
                return Ok(pod.name_any());
            }
            ensure!(
                Instant::now() < deadline,
                "no pod waits to be let through: {:?}",
                pods.map(|pods| pods.items.len())
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(Progress) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let progress = self.progress().await?;
            if holds(progress) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the Deployment does not {what}: {progress:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The first answer that there is.
    async fn progress(&self) -> anyhow::Result<Progress> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.deployments.get(NAME).await {
                Ok(deployment) => return Ok(Progress::of(&deployment)),
                Err(error) if Instant::now() > deadline => return Err(error).context("the Deployment cannot be read"),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// Whether a pod is to stay and has not been let through.
fn waits(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let let_through = conditions.iter().any(|condition| condition.type_ == GATE && condition.status == "True");
    pod.metadata.deletion_timestamp.is_none() && !let_through
}

fn deployment() -> Value {
    let labels = json!({"app": NAME});
    let container = json!({"name": "pause", "image": "balsa.dev/pause:dev", "imagePullPolicy": "IfNotPresent"});
    let pod = json!({"terminationGracePeriodSeconds": 0, "readinessGates": [{"conditionType": GATE}],
        "containers": [container]});
    // One more pod than wanted, and never one that is available less: at each step exactly one pod is waited for.
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    json!({"metadata": {"name": NAME}, "spec": {
        "replicas": Roller::PODS, "selector": {"matchLabels": labels}, "strategy": strategy,
        "template": {"metadata": {"labels": labels}, "spec": pod}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(generation: i64, status: Value) -> Progress {
        let metadata = json!({"name": NAME, "generation": generation});
        Progress::of(&serde_json::from_value(json!({"metadata": metadata, "status": status})).expect("a Deployment"))
    }

    #[test]
    fn a_roll_is_held_or_finished_only_with_the_template_that_it_is_of() {
        let held = json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 1, "availableReplicas": 3});
        let finished = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3});
        assert!(progress(2, held.clone()).is_held_at(1) && !progress(2, held.clone()).is_finished());
        assert!(!progress(2, held.clone()).is_held_at(2) && !progress(3, held).is_held_at(1));
        assert!(progress(2, finished.clone()).is_finished() && !progress(3, finished).is_finished());
        // The last pod is let through, and the old one is still there.
        let last = json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "availableReplicas": 4});
        assert!(!progress(2, last.clone()).is_finished() && !progress(2, last).is_held_at(3));
    }

    #[test]
    fn a_pod_waits_until_its_gate_is_open() {
        let pod = |status: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "status": status})).expect("a pod")
        };
        let with = |kind: &str, status: &str| json!({"conditions": [{"type": kind, "status": status}]});
        assert!(waits(&pod(json!({}))) && waits(&pod(with("Ready", "True"))) && waits(&pod(with(GATE, "False"))));
        assert!(!waits(&pod(with(GATE, "True"))));
    }

    #[test]
    fn its_description_is_a_deployment() {
        let deployment: Deployment = serde_json::from_value(deployment()).expect("a Deployment");
        let spec = deployment.spec.expect("a spec");
        assert_eq!(spec.replicas, Some(Roller::PODS));
        let gates = spec.template.spec.expect("a pod").readiness_gates.expect("gates");
        assert_eq!(gates[0].condition_type, GATE);
    }
}
