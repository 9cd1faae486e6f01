//! One RaftCluster in a namespace of its own, as a user of kubectl handles it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use balsa_crds::{RaftCluster, RaftClusterStatus};
use etcd_client::Client as EtcdClient;
use k8s_openapi::api::core::v1::{Event, Namespace, PersistentVolumeClaim, Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

/// The name of the cluster in every scenario.
pub const NAME: &str = "db";
/// Longest wait for anything the operator does.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Clone)]
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The scenario's namespace.
    pub namespace: String,
}

impl Cluster {
    /// Makes a namespace for a scenario, removing what an earlier run left.
    ///
    /// # Errors
    /// Of the API server.
    pub async fn in_fresh_namespace(scenario: &str) -> anyhow::Result<Self> {
        let client = Client::try_default().await.context("no Kubernetes: set KUBECONFIG or run `make kube-up`")?;
        let cluster = Self { client, namespace: format!("e2e-{scenario}") };
        cluster.remove_namespace().await;
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        let metadata = ObjectMeta { name: Some(cluster.namespace.clone()), ..ObjectMeta::default() };
        namespaces.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
        Ok(cluster)
    }

    /// Removes the namespace and waits until it is gone.
    pub async fn remove_namespace(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        // The cluster first: its finalizer needs the namespace's objects.
        let _ = self.clusters().delete(NAME, &DeleteParams::default()).await;
        let deadline = Instant::now() + PATIENCE;
        while namespaces.delete(&self.namespace, &DeleteParams::default()).await.is_ok() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// The RaftClusters of the namespace.
    pub fn clusters(&self) -> Api<RaftCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The pods of the namespace.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The volume claims of the namespace.
    pub fn volumes(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A resource as a user would write it, with `spec` merged over a small default.
    pub fn resource(replicas: i32, spec: &Value) -> Value {
        let mut resource = json!({
            "apiVersion": "balsa.dev/v1alpha1",
            "kind": "RaftCluster",
            "metadata": { "name": NAME },
            "spec": {
                "replicas": replicas,
                "image": "balsa.dev/balsa:dev",
                "imagePullPolicy": "IfNotPresent",
                "storage": { "size": "1Gi" },
                "drainDelaySeconds": 1,
            }
        });
        merge(&mut resource["spec"], spec);
        resource
    }

    /// `kubectl apply`.
    ///
    /// # Errors
    /// Of the API server, a refusal among them.
    pub async fn apply(&self, resource: &Value) -> anyhow::Result<RaftCluster> {
        let name = resource["metadata"]["name"].as_str().unwrap_or(NAME);
        let applied = self.clusters().patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(resource)).await?;
        Ok(applied)
    }

    /// Creates a cluster and waits until it is settled. Says how long that took.
    ///
    /// # Errors
    /// It does not settle in time.
    pub async fn create(&self, replicas: i32, spec: &Value) -> anyhow::Result<Duration> {
        let started = Instant::now();
        self.apply(&Self::resource(replicas, spec)).await?;
        self.settled(replicas).await?;
        let took = started.elapsed();
        println!("    {replicas} members Available after {:.1} s", took.as_secs_f32());
        Ok(took)
    }

    /// `kubectl scale`, without waiting.
    ///
    /// # Errors
    /// Of the API server.
    pub async fn scale(&self, replicas: i32) -> anyhow::Result<()> {
        let patch = json!({ "spec": { "replicas": replicas } });
        self.clusters().patch_scale(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Scales and waits until the cluster is settled at that size. Says how long that took.
    ///
    /// # Errors
    /// It does not settle in time.
    pub async fn scale_to(&self, replicas: i32) -> anyhow::Result<Duration> {
        let started = Instant::now();
        self.scale(replicas).await?;
        self.settled(replicas).await?;
        let took = started.elapsed();
        println!("    scaled to {replicas} in {:.1} s", took.as_secs_f32());
        Ok(took)
    }

    /// A merge patch of the spec.
    ///
    /// # Errors
    /// Of the API server, a refusal among them.
    pub async fn patch_spec(&self, spec: &Value) -> anyhow::Result<()> {
        let patch = json!({ "spec": spec });
        self.clusters().patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// The status as the operator wrote it last.
    ///
    /// # Errors
    /// Of the API server.
    pub async fn status(&self) -> anyhow::Result<RaftClusterStatus> {
        Ok(self.clusters().get(NAME).await?.status.unwrap_or_default())
    }

    /// Waits until `replicas` voters are ready and the plan of the present generation has nothing left to do.
    ///
    /// # Errors
    /// It does not come to that in time.
    pub async fn settled(&self, replicas: i32) -> anyhow::Result<()> {
        let what = format!("{replicas} members ready and the plan settled");
        self.until(&what, |resource| {
            let status = resource.status.clone().unwrap_or_default();
            let seen = status.observed_generation == resource.metadata.generation;
            let plan = status.plan.as_ref().map(|plan| plan.step.clone()).unwrap_or_default();
            let voters = status.members.len() as i32;
            seen && plan == "Settled" && status.ready_replicas == replicas && voters == replicas
        })
        .await
    }

    /// Waits until `check` holds of the resource.
    ///
    /// # Errors
    /// It does not come to that in time.
    pub async fn until(&self, what: &str, check: impl Fn(&RaftCluster) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(resource) = self.clusters().get(NAME).await
                && check(&resource)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not in time: {what}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The pods of the cluster by name.
    ///
    /// # Errors
    /// Of the API server.
    pub async fn pods_by_name(&self) -> anyhow::Result<BTreeMap<String, Pod>> {
        let selector = ListParams::default().labels(&format!("app.kubernetes.io/instance={NAME}"));
        let pods = self.pods().list(&selector).await?;
        Ok(pods.into_iter().map(|pod| (pod.name_any(), pod)).collect())
    }

    /// The address of the client Service, as reached from this machine.
    ///
    /// # Errors
    /// There is none yet.
    pub async fn endpoint(&self) -> anyhow::Result<String> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let service = services.get(NAME).await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?;
        Ok(format!("http://{address}:2379"))
    }

    /// The pod that leads.
    ///
    /// # Errors
    /// Nobody leads for a long time.
    pub async fn leader(&self) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.leader_now().await {
                return Ok(leader);
            }
            ensure!(Instant::now() < deadline, "no member leads");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks the members themselves: the status may lag.
    async fn leader_now(&self) -> Option<String> {
        for (name, pod) in self.pods_by_name().await.ok()? {
            let Some(address) = pod.status.and_then(|status| status.pod_ip) else { continue };
            let asked = async {
                let mut client = EtcdClient::connect([format!("http://{address}:2379")], None).await?;
                client.status().await
            };
            let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), asked).await else { continue };
            let own = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
            if own != 0 && status.leader() == own {
                return Some(name);
            }
        }
        None
    }

    /// The hash of all members at one pinned revision must be the same.
    ///
    /// # Errors
    /// They differ, or a member does not answer.
    pub async fn assert_hashes_agree(&self) -> anyhow::Result<()> {
        let mut client = EtcdClient::connect([self.endpoint().await?], None).await?;
        let pinned = client.put("hash-pin", "x", None).await?;
        let revision = pinned.header().context("a header")?.revision();
        let mut hashes = Vec::new();
        for (name, pod) in self.pods_by_name().await? {
            let address = pod.status.and_then(|status| status.pod_ip).context("a running pod has an address")?;
            let mut member = EtcdClient::connect([format!("http://{address}:2379")], None).await?;
            // A linearizable read brings the member to the pinned revision.
            member.get("hash-pin", None).await.with_context(|| format!("read through {name}"))?;
            let answer = member.hash_kv(revision).await.with_context(|| format!("hash of {name}"))?;
            hashes.push((answer.hash(), answer.compact_version()));
        }
        ensure!(!hashes.is_empty(), "no member to compare");
        ensure!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "hashes differ: {hashes:?}");
        Ok(())
    }

    /// How many members the store has, learners among them.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn member_count(&self) -> anyhow::Result<usize> {
        let mut client = EtcdClient::connect([self.endpoint().await?], None).await?;
        Ok(client.member_list().await?.members().len())
    }

    /// Raft ids by pod, as the status names them.
    ///
    /// # Errors
    /// Of the API server.
    pub async fn raft_ids(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let members = self.status().await?.members;
        Ok(members.into_iter().map(|member| (member.name, member.raft_id)).collect())
    }

    /// Prints what a person would look at first: the resource, pods, events and the ends of logs.
    pub async fn explain(&self) {
        if let Ok(resource) = self.clusters().get(NAME).await {
            let status = serde_json::to_string_pretty(&resource.status).unwrap_or_default();
            println!("    status: {}", status.replace('\n', "\n    "));
        }
        for (name, pod) in self.pods_by_name().await.unwrap_or_default() {
            let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
            let state = containers.first().map(|container| format!("{:?}", container.state)).unwrap_or_default();
            println!("    pod {name}: {state}");
            let tail = kube::api::LogParams { tail_lines: Some(15), ..Default::default() };
            let log = self.pods().logs(&name, &tail).await.unwrap_or_default();
            log.lines().for_each(|line| println!("      {line}"));
        }
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        for event in events.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            let object = event.involved_object.name.unwrap_or_default();
            let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            println!("    event {object}: {reason}: {message}");
        }
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
