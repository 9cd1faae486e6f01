//! What a user may do to a cluster, one file per kind of event. Each scenario can be run alone by its name.

mod helm;
mod invalid;
mod lifecycle;
mod loss;
mod metrics;
mod mixin;
mod recreate;
mod rollout;
mod scale;
mod settings;
mod store;
mod takeover;

use std::pin::Pin;

use anyhow::bail;

use crate::cluster::Cluster;

pub(crate) use self::loss::process_of;

type Outcome = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One scenario.
pub struct Scenario {
    /// What `SCENARIO=` takes; also the end of its namespace.
    pub name: &'static str,
    /// What a user may rely on.
    pub promise: &'static str,
    /// Runs it in a fresh namespace.
    pub run: fn(Cluster) -> Outcome,
}

macro_rules! scenarios {
    ($(#[$doc:meta])* $list:ident: $($name:literal, $function:path, $promise:literal;)*) => {
        $(#[$doc])*
        pub const $list: &[Scenario] = &[
            $(Scenario { name: $name, promise: $promise, run: |cluster| Box::pin($function(cluster)) },)*
        ];
    };
}

scenarios! {
    /// What runs when none is named, in this order.
    ALL:
    "create", lifecycle::create, "three members become Available, and their client Service serves reads and writes";
    "scale", scale::walk, "3 → 5 → 3 → 1 → 3 under load: no write is lost, no client sees an error it must not retry";
    "reverse", scale::reverse, "a scale-out that is taken back half-way ends at the newest wish";
    "delete-leader", loss::delete_leader_pod, "the leader's pod is deleted: it hands over and comes back as the same member";
    "kill-process", loss::kill_process, "kill -9 of the leader's process: writes go on within seconds";
    "lose-volume", loss::lose_volume, "a pod and its volume are lost: the member is replaced under a new id";
    "all-pods", loss::all_pods, "all pods deleted at once: the same members come back with all data";
    "kill-operator", scale::kill_operator, "the operator dies in the middle of a scale: its successor picks it up";
    "takeover", takeover::vanish, "an operator that vanishes with its lease is succeeded within its duration, and may not act when it wakes up";
    "roll", rollout::roll, "a changed template reaches every pod, the leader last";
    "recreate", recreate::anew, "a StatefulSet with fields that nobody can change is made anew around its pods, under load";
    "other-claims", recreate::other_claims, "a StatefulSet with volume claims of other names ends no pod, and the status says the way out";
    "settings", settings::change, "a setting that changes at run time reaches every member without a restart, and those that start later; a wrong one is refused, and lost members are replaced all the same; with a new size in one edit both are reached";
    "bad-image", rollout::bad_image, "a broken image stops at one pod, and a good one heals it without a hand";
    "evict", rollout::evict, "evictions never take the quorum";
    "prometheus", metrics::prometheus, "Prometheus scrapes every member, and the operator";
    "invalid", invalid::refused, "what cannot work is refused with a message that says what to do";
    "delete", lifecycle::delete, "deleting the cluster keeps its volumes, or removes them, as its policy says";
    "helm", helm::charts, "both charts by Helm, the operator confined to one namespace: it scales, and another takes its lease over";
    "store", store::kubernetes, "Kubernetes on Balsa: 10,000 objects, watches, compaction and expiry hold through kill -9 of each member in the middle of a roll";
}

scenarios! {
    /// What runs only by name, as `make test-long` does: too much for a small machine that has other work.
    LONG:
    "seven", scale::seven, "seven members: two processes killed at once cost no write, and it shrinks to one under load";
}

/// The scenarios of these names; without a name those of [`ALL`].
///
/// # Errors
/// A name that does not exist.
pub fn named(names: &[String]) -> anyhow::Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let mut found = Vec::new();
    for name in names {
        let Some(scenario) = ALL.iter().chain(LONG).find(|scenario| scenario.name == name) else {
            let known: Vec<&str> = ALL.iter().chain(LONG).map(|scenario| scenario.name).collect();
            bail!("no scenario {name:?}; there are: {}", known.join(", "));
        };
        found.push(scenario);
    }
    Ok(found)
}
