//! etcd's discovery: how a node with an empty disk finds the members of its cluster where no flag lists them. Here is what the
//! flags ask for and which do not go together; who finds them is the node.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use super::sources::Raw;
use super::{ConfigError, invalid};

/// Where the members are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// In the DNS.
    Dns(Dns),
    /// At a cluster that the members of others leave word at.
    Registry(Box<Registry>),
}

/// The SRV records `_etcd-server-ssl._tcp` and `_etcd-server._tcp` of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The domain.
    pub domain: String,
    /// What is added to the names of the services, behind a dash; nothing when it is empty.
    pub service_name: String,
}

/// etcd's v3 discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// What the members of one cluster share.
    pub token: String,
    /// URLs, or addresses.
    pub endpoints: Vec<String>,
    /// How long a connection may take; zero for as long as it takes.
    pub dial_timeout: Duration,
    /// How long a call may take.
    pub request_timeout: Duration,
    /// How often a silent connection is pinged; zero for never.
    pub keepalive_time: Duration,
    /// How long the answer may take.
    pub keepalive_timeout: Duration,
    /// Whether an address without a scheme is spoken to without TLS.
    pub insecure_transport: bool,
    /// Whether every certificate is believed.
    pub insecure_skip_tls_verify: bool,
    /// What is shown there.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Who must have signed the other side's.
    pub cacert: Option<PathBuf>,
    /// A user there; nobody without a password.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

impl Registry {
    fn read(raw: &Raw, endpoints: Vec<String>) -> Result<Self, ConfigError> {
        let text = |name: &str| raw.text(&format!("discovery-{name}")).to_owned();
        let file = |name: &str| Some(text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self {
            token: text("token"),
            endpoints,
            dial_timeout: raw.duration("discovery-dial-timeout")?,
            request_timeout: raw.duration("discovery-request-timeout")?,
            keepalive_time: raw.duration("discovery-keepalive-time")?,
            keepalive_timeout: raw.duration("discovery-keepalive-timeout")?,
            insecure_transport: raw.boolean("discovery-insecure-transport")?,
            insecure_skip_tls_verify: raw.boolean("discovery-insecure-skip-tls-verify")?,
            cert: file("cert"),
            key: file("key"),
            cacert: file("cacert"),
            user: text("user"),
            password: raw.text("discovery-password").into(),
        })
    }
}

/// In the words of etcd 3.7, which, as this program, has no `--discovery` to choose.
const CONFLICT: &str = "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
                        \"discovery-endpoints\" or \"discovery-srv\"";

/// What the flags ask for, if they ask for discovery.
pub(super) fn read(raw: &Raw) -> Result<Option<Discovery>, ConfigError> {
    if raw.text("discovery-fallback") == "proxy" {
        return Err(invalid("v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\""));
    }
    let (listed, domain) = (!raw.text("initial-cluster").is_empty(), raw.text("discovery-srv"));
    let endpoints = endpoints(raw);
    if [listed, !domain.is_empty(), !endpoints.is_empty()].into_iter().filter(|is_set| *is_set).count() > 1 {
        return Err(invalid(CONFLICT));
    }
    if raw.text("discovery-token").is_empty() != endpoints.is_empty() {
        return Err(invalid("both --discovery-token and --discovery-endpoints must be set"));
    }
    if endpoints.iter().any(|endpoint| endpoint.trim().is_empty()) {
        return Err(invalid("--discovery-endpoints must not contain empty endpoints"));
    }
    if !endpoints.is_empty() {
        return Ok(Some(Discovery::Registry(Box::new(Registry::read(raw, endpoints)?))));
    }
    let (domain, service_name) = (domain.to_owned(), raw.text("discovery-srv-name").to_owned());
    Ok((!domain.is_empty()).then_some(Discovery::Dns(Dns { domain, service_name })))
}

/// Each once. An empty list is one of an empty endpoint, as in etcd.
fn endpoints(raw: &Raw) -> Vec<String> {
    let named = raw.is_set("discovery-endpoints").then(|| raw.text("discovery-endpoints"));
    let each: BTreeSet<_> = named.into_iter().flat_map(|list| list.split(',')).collect();
    each.into_iter().map(str::to_owned).collect()
}

/// Whether the members are named by `--initial-cluster`, though it may be missing: as in etcd the name of a service alone takes
/// its default away. A file does not.
pub(super) fn leaves_it_to_the_list(raw: &Raw) -> bool {
    raw.is_set("initial-cluster") || raw.file.is_none() && !raw.text("discovery-srv-name").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bootstrap;

    fn load(line: &str) -> Result<Bootstrap, ConfigError> {
        let args: Vec<&str> = line.split_whitespace().collect();
        crate::tests::load(&args).map(|config| config.bootstrap)
    }

    #[test]
    fn a_domain_takes_the_place_of_the_list() {
        let (domain, token) = ("example.com".to_owned(), "etcd-cluster".to_owned());
        for (line, service_name, existing) in [
            ("--discovery-srv=example.com", "", false),
            ("--discovery-srv=example.com --discovery-srv-name=a --initial-cluster-state=existing", "a", true),
            ("--discovery-srv=example.com --initial-cluster=", "", false),
        ] {
            let by = Discovery::Dns(Dns { domain: domain.clone(), service_name: service_name.to_owned() });
            assert_eq!(load(line), Ok(Bootstrap::Discovered { by, token: token.clone(), existing }), "{line}");
        }
        assert!(matches!(load("--discovery-srv="), Ok(Bootstrap::Static { members: Ok(_), .. })));
    }

    #[test]
    fn a_registry_takes_it_too_and_its_token_is_the_clusters() {
        let line =
            "--discovery-token=t --discovery-endpoints=b:1,https://a:1,b:1 --discovery-user=u --discovery-cacert=ca";
        let expected = Registry {
            token: "t".to_owned(),
            endpoints: vec!["b:1".to_owned(), "https://a:1".to_owned()],
            dial_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            keepalive_time: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(6),
            insecure_transport: true,
            insecure_skip_tls_verify: false,
            cert: None,
            key: None,
            cacert: Some("ca".into()),
            user: "u".to_owned(),
            password: "".into(),
        };
        let (by, token) = (Discovery::Registry(Box::new(expected)), "t".to_owned());
        assert_eq!(load(line), Ok(Bootstrap::Discovered { by, token, existing: false }));
        let Ok(Bootstrap::Static { members, existing: true, .. }) =
            load(&format!("{line} --initial-cluster-state=existing"))
        else {
            panic!("whoever joins asks no registry")
        };
        assert_eq!(members, Err("discovery URL should not be set when joining existing initial cluster".to_owned()));
    }

    #[test]
    fn what_does_not_go_together_is_said_in_etcds_words() {
        for (line, words) in [
            ("--discovery-srv=example.com --initial-cluster=default=http://localhost:2380", CONFLICT),
            ("--discovery-srv=example.com --discovery-endpoints=a:1 --discovery-token=t", CONFLICT),
            ("--initial-cluster=a=http://a:1 --discovery-endpoints=a:1", CONFLICT),
            ("--discovery-endpoints=a:1", "both --discovery-token and --discovery-endpoints must be set"),
            ("--discovery-token=t", "both --discovery-token and --discovery-endpoints must be set"),
            ("--discovery-endpoints=", "both --discovery-token and --discovery-endpoints must be set"),
            ("--discovery-token=t --discovery-endpoints=", "--discovery-endpoints must not contain empty endpoints"),
            (
                "--discovery-token=t --discovery-endpoints=a:1,",
                "--discovery-endpoints must not contain empty endpoints",
            ),
            (
                "--discovery-fallback=proxy",
                "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
            ),
        ] {
            assert_eq!(load(line), Err(ConfigError::Invalid(words.to_owned())), "{line}");
        }
        let Ok(Bootstrap::Static { members, .. }) = load("--discovery-srv-name=a") else { panic!("not by a list") };
        assert_eq!(
            members,
            Err("couldn't find local name \"default\" in the initial cluster configuration".to_owned())
        );
        assert!(load("--discovery-srv-name=a --initial-cluster=default=http://localhost:2380").is_ok());
        assert!(load("--bootstrap=operator --discovery-srv=example.com").is_err());
    }
}
