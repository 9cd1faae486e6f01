//! How a node with an empty disk finds the members of its cluster where no flag lists them, by etcd's rules and in its words:
//! by the SRV records of a domain (`dns.rs`), or through a registry (`registry.rs`). What is found goes the way of a list in `--initial-cluster`.
//!
//! The nodes of one cluster find the same URLs, but not the same names: so members are known by their URLs until each says
//! its name itself.

mod dns;
mod registry;

use crate::config::discovery::Discovery;

/// The node that looks for its cluster.
#[derive(Debug, Clone, Copy)]
pub struct Seeker<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where others reach it.
    pub peer_urls: &'a [String],
    /// Whether it founds the cluster with the others, and does not join one that is there.
    pub founds: bool,
    /// Whether its flags name the authority of the others' certificates.
    pub knows_authority: bool,
}

/// What it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The URLs of each member, this one's among them; the same for every node that looks.
    pub members: Vec<Vec<String>>,
    /// Those of them that are this one's.
    pub own: Vec<String>,
    /// The name that the others' certificates must be good for, if it is not their hosts'.
    pub expected: Option<String>,
}

/// Looks for the cluster.
///
/// # Errors
/// Why there is none for this node, in etcd's words.
pub async fn find(by: &Discovery, seeker: Seeker<'_>) -> Result<Found, String> {
    match by {
        Discovery::Dns(dns) => dns::find(dns, seeker).await,
        Discovery::Registry(registry) => registry::find(registry, seeker).await,
    }
}

/// `name=url,…` of members, as etcd writes them: in order.
fn written(pairs: &[(String, String)]) -> String {
    let mut pairs: Vec<_> = pairs.iter().map(|(name, url)| format!("{name}={url}")).collect();
    pairs.sort();
    pairs.join(",")
}

/// Whether two of them have the same URL.
fn repeats(pairs: &[(String, String)]) -> bool {
    let urls: std::collections::BTreeSet<_> = pairs.iter().map(|(_, url)| url).collect();
    urls.len() < pairs.len()
}
