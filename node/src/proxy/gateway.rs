//! `balsa gateway start`: passes connections on to the members of a cluster, as etcd's gateway does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::timeout;

use super::arguments::{Asked, Command, Flag, Given, Kind};
use super::remotes::Remotes;
use super::tcp::TcpProxy;
use super::{Invocation, Proxy, Refused};
use crate::transport::srv::{Resolver, Server};

/// The first argument that asks for it.
pub(super) const NAME: &str = "gateway";

/// How long a discovered server is waited for.
const VALIDATION: Duration = Duration::from_secs(5);

const COMMAND: Command = Command {
    name: NAME,
    about: "gateway related command",
    about_start: "start the gateway",
    flags: &[
        Flag { name: "discovery-srv", kind: Kind::Text(""), help: "DNS domain used to bootstrap initial cluster" },
        Flag {
            name: "discovery-srv-name",
            kind: Kind::Text(""),
            help: "service name to query when using DNS discovery",
        },
        Flag { name: "endpoints", kind: Kind::List("127.0.0.1:2379"), help: "comma separated etcd cluster endpoints" },
        Flag { name: "insecure-discovery", kind: Kind::Switch, help: "accept insecure SRV records" },
        Flag { name: "listen-addr", kind: Kind::Text("127.0.0.1:23790"), help: "listen address" },
        Flag {
            name: "retry-delay",
            kind: Kind::Time(Duration::from_secs(60)),
            help: "duration of delay before retrying failed endpoints",
        },
        Flag {
            name: "trusted-ca-file",
            kind: Kind::Text(""),
            help: "path to the client server TLS CA file for verifying the discovered endpoints when discovery-srv is provided.",
        },
    ],
};

/// A gateway as its command line describes it.
#[derive(Debug)]
pub struct Gateway(Given);

/// Reads the arguments behind the command's name.
///
/// # Errors
/// [`Refused::Said`].
pub(super) fn read(arguments: &[String]) -> Result<Invocation, Refused> {
    match COMMAND.read(arguments).map_err(Refused::Said)? {
        Asked::Print(text) => Ok(Invocation::Print(text)),
        Asked::Start(given) => Ok(Invocation::Start(Proxy::Gateway(Gateway(given)))),
    }
}

impl Gateway {
    /// Finds out who there is, listens, and calls `ready` before it passes connections on, which it does without end.
    ///
    /// # Errors
    /// What it was given cannot be used.
    pub(super) async fn run(self, ready: impl FnOnce()) -> Result<(), Refused> {
        let servers = self.servers().await?;
        let listen = self.0.text("listen-addr");
        check_loop(listen, &servers).await?;
        if servers.is_empty() {
            return Err(Refused::Printed("no endpoints found\n".to_owned()));
        }
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Refused::Said(format!("listen tcp {listen}: bind: {}\n", crate::config::os_words(&error)))
        })?;
        ready();
        // etcd's own rule for none.
        let delay =
            Some(self.0.time("retry-delay")).filter(|delay| !delay.is_zero()).unwrap_or(Duration::from_secs(300));
        TcpProxy::new(Remotes::new(servers), delay).run(listener).await;
        Ok(())
    }

    async fn servers(&self) -> Result<Vec<Server>, Refused> {
        let Discovered { secure, insecure } = discovered(&self.0, self.0.text("trusted-ca-file")).await?;
        let discovered = [secure, insecure].concat();
        if !discovered.is_empty() {
            return Ok(discovered);
        }
        self.0.list("endpoints").iter().map(|endpoint| server(endpoint)).collect()
    }
}

/// The servers that a domain names.
#[derive(Debug, Default)]
pub(super) struct Discovered {
    /// Behind TLS.
    secure: Vec<Server>,
    insecure: Vec<Server>,
}

impl Discovered {
    /// As URLs, which say how each is spoken to.
    pub(super) fn urls(&self) -> Vec<String> {
        let urls = |scheme, servers: &[Server]| -> Vec<String> {
            servers.iter().map(|server| format!("{scheme}://{}", server.address())).collect()
        };
        [urls("https", &self.secure), urls("http", &self.insecure)].concat()
    }
}

/// The servers that a domain names, if the command line names a domain; `authorities` is a file.
pub(super) async fn discovered(given: &Given, authorities: &str) -> Result<Discovered, Refused> {
    let domain = given.text("discovery-srv");
    if domain.is_empty() {
        return Ok(Discovered::default());
    }
    let resolver = Resolver::of_system();
    let name = given.text("discovery-srv-name");
    let service = |of: &str| if name.is_empty() { of.to_owned() } else { format!("{of}-{name}") };
    let secure = resolver.lookup(&service("etcd-client-ssl"), domain).await;
    let insecure = resolver.lookup(&service("etcd-client"), domain).await;
    if let (Err(secure), Err(insecure)) = (&secure, &insecure) {
        return Err(Refused::Said(format!("dns lookup errors: {secure} and {insecure}\n")));
    }
    let (secure, insecure) = (secure.unwrap_or_default(), insecure.unwrap_or_default());
    tracing::info!("srv-server" = domain, endpoints = ?addresses(&[&secure[..], &insecure].concat()), "discovered cluster from SRV");
    if given.is_on("insecure-discovery") {
        return Ok(Discovered { secure, insecure });
    }
    Ok(Discovered { secure: validated(authorities, domain, secure, &insecure).await, insecure: Vec::new() })
}

/// Those of the name for TLS that can be reached. As in etcd, whether they show a good certificate is for the client to
/// see, through the gateway.
async fn validated(authorities: &str, domain: &str, secure: Vec<Server>, insecure: &[Server]) -> Vec<Server> {
    if !authorities.is_empty()
        && let Err(error) = std::fs::read(authorities)
    {
        tracing::warn!("srv-server" = domain, %error, "failed to validate discovered endpoints");
        return Vec::new();
    }
    let mut wrong: Vec<_> =
        insecure.iter().map(|server| format!("\"http://{}\" is insecure", server.address())).collect();
    let mut good = Vec::new();
    for server in secure {
        match timeout(VALIDATION, TcpStream::connect(server.address())).await {
            Ok(Ok(_)) => good.push(server),
            Ok(Err(error)) => wrong.push(format!("\"https://{}\" failed to dial ({error})", server.address())),
            Err(_) => wrong.push(format!("\"https://{}\" failed to dial (i/o timeout)", server.address())),
        }
    }
    let endpoints = addresses(&good);
    if wrong.is_empty() {
        tracing::info!("srv-server" = domain, ?endpoints, "using validated discovered SRV endpoints");
    } else {
        let error = wrong.join(",");
        tracing::warn!("srv-server" = domain, ?endpoints, error, "failed to validate discovered endpoints");
    }
    good
}

fn addresses(servers: &[Server]) -> Vec<String> {
    servers.iter().map(Server::address).collect()
}

/// A server by a URL or an address.
fn server(endpoint: &str) -> Result<Server, Refused> {
    let address = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest.split('/').next().unwrap_or_default());
    match split(address) {
        // What is no number is 0 to etcd, which nobody can be reached at.
        Some((host, port)) => Ok(Server::at(host, port.parse().unwrap_or_default())),
        None => Err(Refused::Printed(format!("error parsing endpoint {address:?}"))),
    }
}

/// A host without brackets, and a port.
fn split(address: &str) -> Option<(&str, &str)> {
    let (host, port) = address.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => Some((inner.strip_suffix(']')?, port)),
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

/// Refuses to pass on to itself.
async fn check_loop(listen: &str, servers: &[Server]) -> Result<(), Refused> {
    let printed = |text: String| Err(Refused::Printed(text));
    let Some((host, port)) = split(listen) else {
        return printed(format!("failed to validate listen address: {listen}\n"));
    };
    let Some(own) = resolved(host).await else {
        return printed(format!("failed to resolve listen host: {host}\n"));
    };
    for server in servers {
        let Some(theirs) = resolved(&server.host).await else {
            return printed(format!("failed to resolve endpoint host: {}\n", server.host));
        };
        if server.port.to_string() != port {
            continue;
        }
        if let Some(same) = theirs.intersection(&own).next() {
            let (host, port) = (&server.host, server.port);
            return printed(format!(
                "SRV or endpoint ({host}:{port}->{same}:{port}) should not resolve to the gateway listen addr ({listen})\n"
            ));
        }
    }
    Ok(())
}

async fn resolved(host: &str) -> Option<BTreeSet<IpAddr>> {
    let addresses = lookup_host((host, 0)).await.ok()?;
    Some(addresses.map(|address| address.ip()).collect())
}
