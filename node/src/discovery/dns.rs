//! Members by SRV records: `_etcd-server-ssl._tcp` of the domain names those that are reached by https, `_etcd-server._tcp` those
//! that are not. A node knows its own record by the address that its target and one of the node's URLs resolve to.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use tokio::net::lookup_host;

use super::{Found, Seeker, repeats, written};
use crate::config::discovery::Dns;
use crate::config::url::{Place, Url};
use crate::transport::srv::{Resolver, Server};

/// A record, and where its target is.
#[derive(Debug, Clone)]
struct Record {
    server: Server,
    address: Result<SocketAddr, String>,
}

/// A member as a record tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Instance {
    /// This node's, or a running number.
    name: String,
    url: String,
    is_own: bool,
}

impl Instance {
    fn written(&self) -> String {
        format!("{}={}", self.name, self.url)
    }
}

/// Looks for the cluster in the DNS.
pub(super) async fn find(dns: &Dns, seeker: Seeker<'_>) -> Result<Found, String> {
    let resolver = Resolver::of_system();
    let suffix = if dns.service_name.is_empty() { String::new() } else { format!("-{}", dns.service_name) };
    let service = format!("etcd-server-ssl{suffix}");
    let secure = ask(&resolver, &dns.domain, "https", &service, seeker).await;
    say("get cluster for etcd-server-ssl SRV", "https", &service, dns, seeker, &secure);
    let service = format!("etcd-server{suffix}");
    let plain = ask(&resolver, &dns.domain, "http", &service, seeker).await;
    say("get cluster for etcd-server SRV", "http", &service, dns, seeker, &plain);
    let whys: Vec<_> = [&secure, &plain].into_iter().filter_map(|found| found.as_ref().err().cloned()).collect();
    let found = [secure.unwrap_or_default(), plain.unwrap_or_default()].concat();
    if !whys.is_empty() {
        tracing::warn!(error = whys.join("\n"), "failed to resolve during SRV discovery");
    }
    if found.is_empty() {
        return Err(format!("error setting up initial cluster: {}", whys.join("\n")));
    }
    for instance in &found {
        tracing::info!(node = instance.written(), "got bootstrap from DNS for etcd-server");
    }
    cluster(&found, &dns.domain, seeker)
}

fn say(what: &str, scheme: &str, service: &str, dns: &Dns, seeker: Seeker<'_>, found: &Result<Vec<Instance>, String>) {
    let cluster: Vec<_> = found.iter().flatten().map(Instance::written).collect();
    tracing::info!(
        "service-scheme" = scheme,
        "service-name" = service,
        "server-name" = seeker.name,
        "discovery-srv" = dns.domain,
        "advertise-peer-urls" = ?seeker.peer_urls,
        "found-cluster" = ?cluster,
        error = found.as_ref().err(),
        "{what}"
    );
}

/// The members that the records of one service name.
async fn ask(
    resolver: &Resolver,
    domain: &str,
    scheme: &str,
    service: &str,
    seeker: Seeker<'_>,
) -> Result<Vec<Instance>, String> {
    let mut own = BTreeMap::new();
    for url in seeker.peer_urls {
        if let Ok(Url { place: Place::Port { host, port }, .. }) = Url::parse(url) {
            own.insert(address(&host, port).await?, url.as_str());
        }
    }
    let querying = |why: String| format!("error querying DNS SRV records for _{service} {why}");
    let servers = resolver.lookup(service, domain).await.map_err(|error| querying(error.to_string()))?;
    let mut records = Vec::new();
    for server in servers {
        let address = address(&server.host, server.port).await;
        records.push(Record { server, address });
    }
    instances(scheme, service, seeker.name, &own, &records).map_err(querying)
}

/// The first address of a host, of IPv4 if it has one, as Go takes it.
async fn address(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut found = addresses(host, port).await;
    // The file of hosts has no names with a dot at their end.
    if found.is_err()
        && let Some(host) = host.strip_suffix('.')
    {
        found = addresses(host, port).await;
    }
    let all = found.map_err(|error| format!("lookup {host}: {}", words(&error)))?;
    let first = all.iter().find(|address| address.is_ipv4()).or(all.first());
    first.copied().ok_or_else(|| format!("lookup {host}: no such host"))
}

async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(lookup_host((host, port)).await?.collect())
}

/// What the system says of a name that it cannot find, as Go does.
fn words(error: &io::Error) -> String {
    let said = error.to_string();
    match ["Name or service not known", "No address associated with hostname"].iter().any(|none| said.contains(none)) {
        true => "no such host".to_owned(),
        false => said,
    }
}

/// The members by the records of one service. `own` are the addresses of this node and the URLs that name them. A record with
/// an address of this node and the other scheme, or without an address, names nobody; without any other it is why there is nobody.
fn instances(
    scheme: &str,
    service: &str,
    name: &str,
    own: &BTreeMap<SocketAddr, &str>,
    records: &[Record],
) -> Result<Vec<Instance>, String> {
    let (mut found, mut unnamed, mut why) = (Vec::new(), 0, String::new());
    for Record { server, address } in records {
        let address = match address {
            Ok(address) => address,
            Err(error) => {
                why.clone_from(error);
                continue;
            }
        };
        let (url, advertised) = (format!("{scheme}://{}", server.address()), own.get(address));
        let name = match advertised {
            Some(_) if !name.is_empty() => name.to_owned(),
            _ => {
                unnamed += 1;
                (unnamed - 1).to_string()
            }
        };
        match advertised {
            Some(advertised) if !advertised.starts_with(&format!("{scheme}://")) => {
                why = format!(
                    "bootstrap at {url} from DNS for {service} has scheme mismatch with expected peer {advertised}"
                );
            }
            _ => found.push(Instance { name, url, is_own: advertised.is_some() }),
        }
    }
    if found.is_empty() { Err(why) } else { Ok(found) }
}

/// The cluster of these members, of which one must be this node.
fn cluster(found: &[Instance], domain: &str, seeker: Seeker<'_>) -> Result<Found, String> {
    let mut own: Vec<_> = found.iter().filter(|instance| instance.is_own).map(|own| own.url.clone()).collect();
    own.sort();
    if own.is_empty() {
        let name = seeker.name;
        return Err(format!("error setting up initial cluster: cannot find local etcd member {name:?} in SRV records"));
    }
    if seeker.founds {
        check_own(&own, seeker)?;
    }
    let pairs: Vec<_> = found.iter().map(|instance| (instance.name.clone(), instance.url.clone())).collect();
    if repeats(&pairs) {
        return Err(format!("initial cluster {} has duplicate url", written(&pairs)));
    }
    let others = found.iter().filter(|instance| !instance.is_own).map(|other| vec![other.url.clone()]);
    let mut members: Vec<_> = others.chain([own.clone()]).collect();
    members.sort();
    let secure = found.iter().any(|instance| instance.url.starts_with("https://"));
    let expected = (secure && !seeker.knows_authority).then(|| domain.to_owned());
    Ok(Found { members, own, expected })
}

/// A founder advertises as many URLs as there are records of it. That they lead to the same places is how these were told.
fn check_own(own: &[String], seeker: Seeker<'_>) -> Result<(), String> {
    let advertised = seeker.peer_urls;
    if own.len() == advertised.len() {
        return Ok(());
    }
    let named =
        |urls: &[&String]| urls.iter().map(|url| format!("{}={url}", seeker.name)).collect::<Vec<_>>().join(",");
    let missing: Vec<_> = own.iter().filter(|url| !advertised.contains(url)).collect();
    if !missing.is_empty() {
        let quoted = |urls: &[String]| urls.iter().map(|url| format!("{url:?}")).collect::<Vec<_>>().join(" ");
        return Err(format!(
            "--initial-cluster has {} but missing from --initial-advertise-peer-urls={} (len([{}]) != len([{}]))",
            named(&missing),
            advertised.join(","),
            quoted(advertised),
            quoted(own)
        ));
    }
    let missing: Vec<_> = advertised.iter().filter(|url| !own.contains(url)).collect();
    let all: Vec<_> = advertised.iter().collect();
    Err(format!(
        "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
        named(&missing),
        named(&all)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: &str, port: u16, address: &str) -> Record {
        let address = address.parse().map_err(|_| "missing dns record".to_owned());
        Record { server: Server::at(host, port), address }
    }

    /// Those of etcd's own test.
    fn all() -> Vec<Record> {
        vec![
            record("1.example.com.", 2480, "10.0.0.1:2480"),
            record("2.example.com.", 2480, "10.0.0.2:2480"),
            record("3.example.com.", 2480, "10.0.0.3:2480"),
        ]
    }

    fn named(scheme: &str, own: &[&str], records: &[Record]) -> Result<String, String> {
        let own = own.iter().map(|url| (url.split_once("://").unwrap().1.parse().unwrap(), *url)).collect();
        let found = instances(scheme, "etcd-server", "m", &own, records)?;
        Ok(found.iter().map(Instance::written).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn records_are_members_as_in_etcd() {
        for (scheme, own, expected) in [
            (
                "https",
                &[][..],
                "0=https://1.example.com:2480,1=https://2.example.com:2480,2=https://3.example.com:2480",
            ),
            ("http", &[], "0=http://1.example.com:2480,1=http://2.example.com:2480,2=http://3.example.com:2480"),
            (
                "https",
                &["https://10.0.0.1:2480"],
                "m=https://1.example.com:2480,0=https://2.example.com:2480,1=https://3.example.com:2480",
            ),
            // The port is part of the address.
            (
                "http",
                &["http://10.0.0.1:2481"],
                "0=http://1.example.com:2480,1=http://2.example.com:2480,2=http://3.example.com:2480",
            ),
            ("http", &["https://10.0.0.1:2480"], "0=http://2.example.com:2480,1=http://3.example.com:2480"),
        ] {
            assert_eq!(named(scheme, own, &all()).as_deref(), Ok(expected), "{scheme} {own:?}");
        }
    }

    #[test]
    fn records_that_name_nobody_are_left_out_and_the_last_is_why_there_is_nobody() {
        let mut records = all();
        records[0].address = Err("missing dns record".to_owned());
        let rest = "0=http://2.example.com:2480,1=http://3.example.com:2480";
        assert_eq!(named("http", &[], &records).as_deref(), Ok(rest));
        assert_eq!(named("http", &[], &records[..1]), Err("missing dns record".to_owned()));
        assert_eq!(
            named("http", &["https://10.0.0.1:2480"], &all()[..1]),
            Err("bootstrap at http://1.example.com:2480 from DNS for etcd-server has scheme mismatch with expected peer \
                 https://10.0.0.1:2480"
                .to_owned())
        );
        let six = [record("a.", 1, "[::1]:1"), record("::1", 1, "[::1]:1")];
        assert_eq!(named("http", &[], &six).as_deref(), Ok("0=http://a:1,1=http://[::1]:1"));
    }

    fn instance(name: &str, url: &str, is_own: bool) -> Instance {
        Instance { name: name.to_owned(), url: url.to_owned(), is_own }
    }

    fn seeker(peer_urls: &[String]) -> Seeker<'_> {
        Seeker { name: "m", peer_urls, founds: true, knows_authority: false }
    }

    #[test]
    fn every_node_finds_the_same_cluster() {
        let of = |own: usize| {
            let mut number = 0;
            let instances: Vec<_> = ["http://b:1", "http://a:1", "https://c:1"]
                .into_iter()
                .enumerate()
                .map(|(index, url)| {
                    number += u32::from(index != own);
                    instance(&if index == own { "m".to_owned() } else { number.to_string() }, url, index == own)
                })
                .collect();
            cluster(&instances, "example.com", seeker(&["http://10.0.0.1:1".to_owned()])).unwrap()
        };
        let [first, second, third] = [of(0), of(1), of(2)];
        assert_eq!(first.members, [["http://a:1"], ["http://b:1"], ["https://c:1"]]);
        assert!(first.members == second.members && first.members == third.members);
        assert_eq!((first.own, second.own), (vec!["http://b:1".to_owned()], vec!["http://a:1".to_owned()]));
        assert_eq!(first.expected.as_deref(), Some("example.com"), "one of them is behind TLS");
    }

    #[test]
    fn the_domain_is_expected_of_certificates_unless_an_authority_is_named() {
        let urls = ["https://a:1".to_owned()];
        let found = |seeker: Seeker<'_>, url: &str| cluster(&[instance("m", url, true)], "example.com", seeker);
        let expected = |seeker, url| found(seeker, url).unwrap().expected;
        assert_eq!(expected(seeker(&urls), "https://a:1").as_deref(), Some("example.com"));
        assert_eq!(expected(Seeker { knows_authority: true, ..seeker(&urls) }, "https://a:1"), None);
        assert_eq!(expected(seeker(&urls), "http://a:1"), None);
    }

    #[test]
    fn what_is_no_cluster_of_this_node_is_said_in_etcds_words() {
        let (one, two) = (["http://a:1".to_owned()], ["http://a:1".to_owned(), "http://x:1".to_owned()]);
        let (own, other) = (instance("m", "http://a:1", true), instance("0", "http://b:1", false));
        for (instances, urls, words) in [
            (
                vec![other.clone()],
                &one[..],
                "error setting up initial cluster: cannot find local etcd member \"m\" in SRV records",
            ),
            (
                vec![own.clone(), instance("m", "http://c:1", true)],
                &one,
                "--initial-cluster has m=http://c:1 but missing from --initial-advertise-peer-urls=http://a:1 \
                 (len([\"http://a:1\"]) != len([\"http://a:1\" \"http://c:1\"]))",
            ),
            (
                vec![own.clone()],
                &two,
                "--initial-advertise-peer-urls has m=http://x:1 but missing from \
                 --initial-cluster=m=http://a:1,m=http://x:1",
            ),
            (
                vec![own.clone(), other.clone(), instance("1", "http://b:1", false)],
                &one,
                "initial cluster 0=http://b:1,1=http://b:1,m=http://a:1 has duplicate url",
            ),
        ] {
            assert_eq!(cluster(&instances, "example.com", seeker(urls)), Err(words.to_owned()));
        }
        let joins = Seeker { founds: false, ..seeker(&two) };
        assert!(cluster(&[own, other], "example.com", joins).is_ok(), "the cluster knows it by one of them");
    }
}
