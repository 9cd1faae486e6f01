//! What a node will say to the settings that its pod is about to be given. The node's own reader is asked, with the
//! arguments and the environment of the pod, so that what would end its start is refused before any pod is touched.

use std::collections::{BTreeMap, BTreeSet};

use balsa_config::{Config, Invocation, flags};

use super::{Invalid, variable};
use crate::build;
use crate::names;
use crate::valid::ValidCluster;

/// The settings that change at run time as a member has them that starts now, those included that are left to their
/// defaults. A variable whose value stands elsewhere is not known here: its setting is left out, so nobody overrides it,
/// and settings that do not go together without it may go together with it, so they are the node's to judge.
///
/// # Errors
/// [`Invalid::Settings`] with the node's own words.
pub(super) fn hot(cluster: &ValidCluster) -> Result<BTreeMap<String, String>, Invalid> {
    let (environment, unknown) = environment(cluster);
    let pod = names::pod(&cluster.name, 0);
    let arguments = build::arguments(cluster).into_iter().map(|argument| argument.replace("$(POD_NAME)", &pod));
    let arguments = std::iter::once("balsa".to_owned()).chain(arguments);
    let config = match Config::foretell(arguments, environment) {
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Print(_)) => return Ok(BTreeMap::new()),
        Err(_) if !unknown.is_empty() => return Ok(BTreeMap::new()),
        Err(error) => return Err(Invalid::Settings(error.to_string())),
    };
    let known = flags::HOT.iter().filter(|flag| !unknown.contains(&variable(flag)));
    Ok(known.map(|flag| ((*flag).to_owned(), config.source.text(flag).to_owned())).collect())
}

/// The node's environment as Kubernetes makes it, where a variable of the container replaces the ConfigMap's of the same
/// name; and the variables, without their prefix, whose value only the kubelet will know.
fn environment(cluster: &ValidCluster) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let mut environment = build::variables(&cluster.node_config);
    let mut unknown = BTreeSet::new();
    for own in &cluster.pod.env {
        match &own.value {
            // An absent value is an empty one, unless it stands elsewhere.
            value if own.value_from.is_none() && !value.iter().any(|text| text.contains("$(")) => {
                environment.insert(own.name.clone(), value.clone().unwrap_or_default());
            }
            _ => {
                environment.remove(&own.name);
                let setting = own.name.strip_prefix("BALSA_").or_else(|| own.name.strip_prefix("ETCD_"));
                unknown.extend(setting.map(ToOwned::to_owned));
            }
        }
    }
    (environment, unknown)
}
