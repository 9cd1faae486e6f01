//! etcd's discovery: how a node with an empty disk finds the members of its cluster where no flag lists them. Here is what the
//! flags ask for and which do not go together; who finds them is the node.

use super::sources::Raw;
use super::{ConfigError, invalid};

/// Where the members are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// In the DNS.
    Dns(Dns),
}

/// The SRV records `_etcd-server-ssl._tcp` and `_etcd-server._tcp` of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The domain.
    pub domain: String,
    /// What is added to the names of the services, behind a dash; nothing when it is empty.
    pub service_name: String,
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
    if [listed, !domain.is_empty()].into_iter().filter(|is_set| *is_set).count() > 1 {
        return Err(invalid(CONFLICT));
    }
    if domain.is_empty() {
        return Ok(None);
    }
    let (domain, service_name) = (domain.to_owned(), raw.text("discovery-srv-name").to_owned());
    Ok(Some(Discovery::Dns(Dns { domain, service_name })))
}

/// Whether the members are named by `--initial-cluster`, though it may be missing: as in etcd the name of a service alone takes
/// its default away. A file does not.
pub(super) fn leaves_it_to_the_list(raw: &Raw) -> bool {
    raw.is_set("initial-cluster") || raw.file.is_none() && !raw.text("discovery-srv-name").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bootstrap, Config, Invocation};

    fn load(line: &str) -> Result<Bootstrap, ConfigError> {
        let args = std::iter::once("balsa").chain(line.split_whitespace()).map(str::to_owned);
        match Config::load(args, [])? {
            Invocation::Run(config) => Ok(config.bootstrap),
            Invocation::Print(text) => panic!("{text}"),
        }
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
    fn what_does_not_go_together_is_said_in_etcds_words() {
        for (line, words) in [
            ("--discovery-srv=example.com --initial-cluster=default=http://localhost:2380", CONFLICT),
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
