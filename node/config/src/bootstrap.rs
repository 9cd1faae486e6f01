//! How a node with an empty disk learns what it is, by `--bootstrap`, `--initial-cluster*` and `--discovery-*`; and
//! `--force-new-cluster`, which takes the others away from a disk that has some.

use std::collections::BTreeMap;

use super::discovery::{self, Discovery};
use super::sources::Raw;
use super::{ConfigError, initial_cluster, invalid};

/// How a node with an empty disk learns what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// It waits until the operator calls Bootstrap or Join.
    Operator,
    /// By etcd's `--initial-cluster*` flags.
    Static {
        /// Member name → peer URLs, all founding members or all known ones; or why the flags name none. Only an empty disk
        /// asks: a member that restarts knows its cluster, and may have moved or been renamed since.
        members: Result<BTreeMap<String, Vec<String>>, String>,
        /// Goes into the cluster id, so that two clusters of equal names differ.
        token: String,
        /// The cluster exists: find the own peer URL in a peer's list instead of founding.
        existing: bool,
    },
    /// By etcd's `--discovery-*` flags: who the members are is found out, by an empty disk alone.
    Discovered {
        /// Where.
        by: Discovery,
        /// As above.
        token: String,
        /// As above.
        existing: bool,
    },
}

/// What the flags say to an empty disk of the member of this name, with its own peer URLs.
pub(super) fn read(raw: &Raw, name: &str, own: &[String]) -> Result<Bootstrap, ConfigError> {
    let discovery = discovery::read(raw)?;
    match raw.text("bootstrap") {
        "operator" if discovery.is_some() => {
            return Err(invalid("--bootstrap=operator: the operator says who the members are, so none are discovered"));
        }
        "operator" => return Ok(Bootstrap::Operator),
        "static" => {}
        other => return Err(invalid(format!("--bootstrap={other} must be operator or static"))),
    }
    let existing = match raw.text("initial-cluster-state") {
        "new" => false,
        "existing" => true,
        _ => return Err(raw.wrong("initial-cluster-state", "invalid value")),
    };
    let token = raw.text("initial-cluster-token").to_owned();
    match discovery {
        // A registry is for founders. etcd 3.6 asks nobody then, and finds nobody; 3.7 says so.
        Some(Discovery::Registry(_)) if existing => {
            let members = Err("discovery URL should not be set when joining existing initial cluster".to_owned());
            return Ok(Bootstrap::Static { members, token, existing });
        }
        Some(by) => {
            let token = if let Discovery::Registry(registry) = &by { registry.token.clone() } else { token };
            return Ok(Bootstrap::Discovered { by, token, existing });
        }
        None => {}
    }
    let members = if discovery::leaves_it_to_the_list(raw) {
        initial_cluster::members(raw.text("initial-cluster"), name, own)
    } else {
        Ok(BTreeMap::from([(name.to_owned(), own.to_vec())]))
    };
    Ok(Bootstrap::Static { members, token, existing })
}

/// Under the operator members come and go by its plan alone, which is made by what all of them say.
pub(super) fn force_new_cluster(raw: &Raw, bootstrap: &Bootstrap) -> Result<bool, ConfigError> {
    let forced = raw.boolean("force-new-cluster")?;
    if forced && *bootstrap == Bootstrap::Operator {
        return Err(invalid(
            "--force-new-cluster is not for a member of the operator, which owns the membership: restore a backup into a new \
             RaftCluster, or start a copy of the volume outside of it with --bootstrap=static and copy the keys from there \
             (docs/recovery.md)",
        ));
    }
    Ok(forced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::tests::load;

    #[test]
    fn the_initial_cluster_is_what_the_flag_names_and_no_concern_of_a_member_of_the_operator() {
        let named = |args: &[&str]| match load(args).unwrap().bootstrap {
            Bootstrap::Static { members, .. } => members.map(|members| members.into_keys().collect::<Vec<_>>()),
            Bootstrap::Operator | Bootstrap::Discovered { .. } => Ok(Vec::new()),
        };
        assert_eq!(named(&["--name=b"]), Ok(vec!["b".to_owned()]));
        assert!(named(&["--name=b", "--initial-cluster="]).is_err(), "it names nobody");
        assert!(named(&["--name=b", "--initial-cluster=a=http://localhost:2380"]).is_err());
        assert_eq!(named(&["--bootstrap=operator", "--initial-cluster=nonsense"]), Ok(Vec::new()));
    }

    #[test]
    fn a_member_of_the_operator_is_not_forced_into_a_cluster_of_its_own() {
        assert!(!load(&[]).unwrap().force_new_cluster);
        assert!(load(&["--force-new-cluster"]).unwrap().force_new_cluster);
        assert!(!load(&["--bootstrap=operator", "--force-new-cluster=false"]).unwrap().force_new_cluster);
        let error = load(&["--bootstrap=operator", "--force-new-cluster"]).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("RaftCluster"), "{error}");
        let environment = [("ETCD_FORCE_NEW_CLUSTER", "true"), ("BALSA_BOOTSTRAP", "operator")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(Config::load(["balsa".to_owned()], environment).is_err());
    }
}
