//! Members through a registry, which all of them are told of with the token of their cluster (etcd's v3 discovery): whoever
//! made the token wrote there how many they are to be, each writes its name and its URLs, and waits until all are there.
//!
//! Of more than that the first to come are the cluster. A member that is written already writes again: it begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::time::sleep;

use super::{Found, Seeker, repeats, written};
use crate::config::discovery::Registry as Settings;
use crate::config::initial_cluster;
use crate::transport::registry::{Entry, Registry, RegistryError, RegistryOptions};
use crate::transport::tls::{Identity, Tls, TlsError, TlsOptions};

/// Below it there is a folder for each token.
const PREFIX: &str = "/_etcd/registry";
/// Pauses between attempts double so often.
const LAST_DOUBLING: u32 = 8;

/// Why there is no cluster, in etcd's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum JoinError {
    #[error("discovery: invalid peer URL")]
    InvalidUrl,
    #[error("discovery: size key is bad")]
    BadSizeKey,
    #[error("discovery: size key not found")]
    SizeNotFound,
    #[error("discovery: cluster is full")]
    FullCluster,
    #[error("{0}")]
    Tls(#[from] TlsError),
}

/// Looks for the cluster at a registry.
pub(super) async fn find(settings: &Settings, seeker: Seeker<'_>) -> Result<Found, String> {
    tracing::info!("Bootstrapping cluster using v3 discovery.");
    let (token, endpoints) = (&settings.token, settings.endpoints.join(","));
    match join(settings, seeker).await {
        Ok((roll, size)) => {
            let pairs = roll.pairs(size).map_err(|error| refusal(settings, &error))?;
            let cluster = written(&pairs);
            tracing::info!(
                "discovery-token" = token,
                "discovery-endpoints" = endpoints,
                cluster,
                "discovery joined cluster successfully"
            );
            if repeats(&pairs) {
                return Err(format!("discovery cluster {cluster} has duplicate url"));
            }
            let members = roll.members(size).map_err(|error| refusal(settings, &error))?;
            Ok(Found { members, own: seeker.peer_urls.to_vec(), expected: None })
        }
        Err(error) => {
            tracing::error!(
                "discovery-token" = token,
                "discovery-endpoints" = endpoints,
                %error,
                "discovery failed to join cluster"
            );
            Err(refusal(settings, &error))
        }
    }
}

/// The words of the end, with etcd's advice before them.
fn refusal(settings: &Settings, error: &JoinError) -> String {
    let (token, endpoints) = (&settings.token, &settings.endpoints);
    let text = format!("failed to join discovery cluster ({error})");
    tracing::warn!(
        "discovery-token" = token,
        "discovery-endpoints" = ?endpoints,
        error = text,
        "failed to bootstrap; discovery token was already used"
    );
    tracing::warn!("do not reuse discovery token; generate a new one to bootstrap a cluster");
    text
}

async fn join(settings: &Settings, seeker: Seeker<'_>) -> Result<(Roll, usize), JoinError> {
    let registry = Registry::new(options(settings)?);
    let own =
        path(&[PREFIX, &settings.token, "members", &format!("{:x}", member_id(seeker.peer_urls, &settings.token))]);
    let pairs: Vec<_> = seeker.peer_urls.iter().map(|url| (seeker.name.to_owned(), url.clone())).collect();
    let mut joining = Joining { registry, token: settings.token.clone(), own, retries: 0 };
    joining.check().await?;
    joining.register(&written(&pairs)).await;
    let mut state = joining.check().await?;
    while state.roll.members.len() < state.size {
        if let Err(error) = joining.wait(&mut state).await {
            tracing::warn!(%error, "failed to wait for peers from discovery service");
            joining.back_off("wait for peers").await;
            state = joining.check().await?;
        }
    }
    Ok((state.roll, state.size))
}

fn options(settings: &Settings) -> Result<RegistryOptions, TlsError> {
    let user = Some((settings.user.clone(), settings.password.reveal().to_owned()));
    Ok(RegistryOptions {
        endpoints: settings.endpoints.iter().map(|endpoint| endpoint.trim().to_owned()).collect(),
        tls: tls(settings)?.map(Into::into),
        dial_timeout: Some(settings.dial_timeout).filter(|bound| !bound.is_zero()),
        request_timeout: settings.request_timeout,
        keepalive_time: Some(settings.keepalive_time).filter(|interval| !interval.is_zero()),
        keepalive_timeout: settings.keepalive_timeout,
        user: user.filter(|(name, password)| !name.is_empty() && !password.is_empty()),
    })
}

/// TLS as etcd's client has it: if files are named for it, if it is asked for, or where an endpoint demands it.
fn tls(settings: &Settings) -> Result<Option<Tls>, TlsError> {
    let Settings { cert, key, cacert, .. } = settings;
    let named = [cert, key, cacert].into_iter().any(Option::is_some);
    let demanded = settings.endpoints.iter().any(|endpoint| endpoint.trim().starts_with("https:"));
    if !named && !demanded && settings.insecure_transport && !settings.insecure_skip_tls_verify {
        return Ok(None);
    }
    let client_identity = match (cert, key) {
        (Some(cert), Some(key)) => Some(Identity { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        (cert, key) => {
            let text = |path: &Option<std::path::PathBuf>| {
                path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            };
            let (key, cert) = (text(key), text(cert));
            return Err(TlsError::new(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")));
        }
    };
    let options = TlsOptions {
        client_identity,
        trusted_ca: cacert.clone().filter(|_| !settings.insecure_skip_tls_verify),
        self_signed: settings.insecure_skip_tls_verify,
        dials: true,
        ..TlsOptions::default()
    };
    Tls::new("registry", options).map(Some)
}

/// Parts of a path put together as Go does: without empty parts and dots.
fn path(parts: &[&str]) -> String {
    let mut path: Vec<&str> = Vec::new();
    for part in parts.iter().flat_map(|part| part.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    format!("/{}", path.join("/"))
}

/// The id that etcd gives a member of these URLs in the cluster of a token.
fn member_id(urls: &[String], token: &str) -> u64 {
    let mut urls = urls.to_vec();
    urls.sort();
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, (urls.concat() + token).as_bytes());
    digest.as_ref().iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte))
}

/// A look at the registry.
struct State {
    roll: Roll,
    size: usize,
    revision: i64,
}

/// One node's way into the cluster.
struct Joining {
    registry: Registry,
    token: String,
    /// The key that it is written at.
    own: String,
    /// Attempts since the last one that went well.
    retries: u32,
}

impl Joining {
    fn prefix(&self) -> String {
        path(&[PREFIX, &self.token, "members"])
    }

    /// Asks until there is an answer.
    async fn check(&mut self) -> Result<State, JoinError> {
        loop {
            match self.look().await {
                Ok(Ok(state)) => {
                    self.retries = 0;
                    return if state.roll.is_full_without(&self.own, state.size) {
                        Err(JoinError::FullCluster)
                    } else {
                        Ok(state)
                    };
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => self.back_off("cluster status check").await,
            }
        }
    }

    async fn look(&self) -> Result<Result<State, JoinError>, RegistryError> {
        let key = path(&[PREFIX, &self.token, "_config/size"]);
        let size = self.registry.get(&key).await.inspect_err(|error| {
            tracing::warn!("clusterSizeKey" = key, %error, "failed to get cluster size from discovery service");
        });
        let size = match size?.map(|entry| size_of(&entry.value)) {
            Some(Some(size)) => size,
            Some(None) => return Ok(Err(JoinError::BadSizeKey)),
            None => return Ok(Err(JoinError::SizeNotFound)),
        };
        let prefix = self.prefix();
        let (entries, revision) = self.registry.list(&prefix).await.inspect_err(|error| {
            tracing::warn!("membersKeyPrefix" = prefix, %error, "failed to get cluster members from discovery service");
        })?;
        let mut roll = Roll { prefix, members: Vec::new() };
        entries.into_iter().for_each(|entry| roll.take(entry));
        Ok(Ok(State { roll, size, revision }))
    }

    /// Writes itself down, until it is written.
    async fn register(&mut self, value: &str) {
        while let Err(error) = self.registry.put(&self.own, value).await {
            let what = "failed to register members itself to the discovery service";
            tracing::warn!("memberKey" = self.own, %error, "{what}");
            self.back_off("register member itself").await;
        }
        self.retries = 0;
        tracing::info!("memberKey" = self.own, "memberInfo" = value, "register member itself successfully");
    }

    /// Waits for those that are missing.
    async fn wait(&self, state: &mut State) -> Result<(), RegistryError> {
        let size = state.size;
        let found = state.roll.members.len();
        tracing::info!("clusterSize" = size, "found-peers" = found, "waiting for peers from discovery service");
        let mut changes = self.registry.watch(&state.roll.prefix, state.revision + 1).await?;
        while state.roll.members.len() < size {
            changes.next().await?.into_iter().for_each(|entry| state.roll.take(entry));
        }
        let found = state.roll.members.len();
        tracing::info!("clusterSize" = size, "found-peers" = found, "found all needed peers from discovery service");
        Ok(())
    }

    async fn back_off(&mut self, reason: &str) {
        self.retries = self.retries.saturating_add(1);
        let pause = pause(self.retries);
        tracing::warn!(reason, backoff = ?pause, "retry connecting to discovery service");
        sleep(pause).await;
    }
}

/// Before this attempt.
fn pause(retries: u32) -> Duration {
    Duration::from_secs(1 << retries.min(LAST_DOUBLING))
}

/// How many members there are to be.
fn size_of(text: &str) -> Option<usize> {
    text.parse::<i64>().ok().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0)
}

/// Who has written itself down, in the order of their coming.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Roll {
    prefix: String,
    members: Vec<Entry>,
}

impl Roll {
    /// Takes one, and says so, or why not.
    fn take(&mut self, entry: Entry) {
        let entry =
            Entry { key: entry.key.trim().to_owned(), value: entry.value.trim().to_owned(), created: entry.created };
        let (key, info) = (entry.key.clone(), entry.value.clone());
        match self.add(entry) {
            Ok(()) => tracing::info!("memberKey" = key, "memberInfo" = info, "found peer from discovery service"),
            Err(why) => tracing::warn!("memberKey" = key, "memberInfo" = info, "{why}"),
        }
    }

    fn add(&mut self, entry: Entry) -> Result<(), &'static str> {
        if !entry.key.starts_with(&self.prefix) {
            return Err("invalid peer registry key");
        }
        if !entry.value.contains('=') {
            return Err("invalid peer info returned from discovery service");
        }
        if self.members.iter().any(|member| member.key == entry.key) {
            return Err("found duplicate peer from discovery service");
        }
        self.members.push(entry);
        self.members.sort_by_key(|member| member.created);
        Ok(())
    }

    /// Whether as many as there are to be came before this one.
    fn is_full_without(&self, own: &str, size: usize) -> bool {
        self.members.len() >= size && !self.members.iter().take(size).any(|member| member.key == own)
    }

    /// The members of those that came first, by their names.
    fn named(&self, size: usize) -> Result<Vec<BTreeMap<String, Vec<String>>>, JoinError> {
        let first = self.members.iter().take(size);
        first.map(|member| initial_cluster::named(&member.value).map_err(|_| JoinError::InvalidUrl)).collect()
    }

    fn pairs(&self, size: usize) -> Result<Vec<(String, String)>, JoinError> {
        let named = self.named(size)?.into_iter().flatten();
        Ok(named.flat_map(|(name, urls)| urls.into_iter().map(move |url| (name.clone(), url))).collect())
    }

    /// Their URLs, in one order for all.
    fn members(&self, size: usize) -> Result<Vec<Vec<String>>, JoinError> {
        let mut members: Vec<_> = self.named(size)?.into_iter().flat_map(BTreeMap::into_values).collect();
        members.sort();
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, value: &str, created: i64) -> Entry {
        Entry { key: format!("/_etcd/registry/t/members/{id}"), value: value.to_owned(), created }
    }

    fn roll(entries: &[(&str, &str, i64)]) -> Roll {
        let mut roll = Roll { prefix: path(&[PREFIX, "t", "members"]), members: Vec::new() };
        for (id, value, created) in entries {
            roll.add(entry(id, value, *created)).unwrap();
        }
        roll
    }

    const THREE: [(&str, &str, i64); 3] =
        [("1", "infra1=http://a:2380", 8), ("2", "infra2=http://b:2380", 6), ("3", "infra3=http://c:2380", 7)];

    #[test]
    fn ids_and_keys_are_etcds() {
        let urls = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
        // Those of etcd's own test.
        assert_eq!(member_id(&urls(&["http://10.0.0.8:2379"]), ""), 14_544_069_596_553_697_298);
        for both in [["http://10.0.0.1:2379", "http://10.0.0.2:2379"], ["http://10.0.0.2:2379", "http://10.0.0.1:2379"]]
        {
            assert_eq!(member_id(&urls(&both), ""), 16_552_244_735_972_308_939);
        }
        assert_eq!(path(&[PREFIX, "t", "_config/size"]), "/_etcd/registry/t/_config/size");
        assert_eq!(path(&[PREFIX, "../a//b/./c", "members"]), "/_etcd/a/b/c/members");
    }

    #[test]
    fn a_size_is_a_number_of_members() {
        for (text, size) in
            [("3", Some(3)), ("+3", Some(3)), ("0", None), ("-1", None), ("", None), ("3 ", None), ("x", None)]
        {
            assert_eq!(size_of(text), size, "{text:?}");
        }
    }

    #[test]
    fn pauses_double_until_they_are_long() {
        let seconds: Vec<_> = [1, 2, 3, 8, 9, u32::MAX].into_iter().map(|retries| pause(retries).as_secs()).collect();
        assert_eq!(seconds, [2, 4, 8, 256, 256, 256]);
    }

    #[test]
    fn those_that_came_first_are_the_cluster() {
        let roll = roll(&THREE);
        let pairs = |size| roll.pairs(size).map(|pairs| pairs.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
        assert_eq!(pairs(2).unwrap(), ["infra2", "infra3"]);
        assert_eq!(pairs(9).unwrap(), ["infra2", "infra3", "infra1"]);
        assert_eq!(roll.members(3).unwrap(), [["http://a:2380"], ["http://b:2380"], ["http://c:2380"]]);
    }

    #[test]
    fn a_cluster_is_full_for_whoever_came_too_late() {
        let of = |id: &str| format!("/_etcd/registry/t/members/{id}");
        for (size, own, full) in [(3, "1", false), (2, "1", true), (2, "3", false), (3, "4", true), (4, "4", false)] {
            assert_eq!(roll(&THREE).is_full_without(&of(own), size), full, "{own} of {size}");
        }
        assert!(!roll(&[]).is_full_without(&of("1"), 1));
    }

    #[test]
    fn what_is_no_member_is_left_out_in_etcds_words() {
        let mut roll = roll(&THREE);
        for (entry, words) in [
            (entry("4", "", 9), "invalid peer info returned from discovery service"),
            (entry("1", "other=http://d:1", 9), "found duplicate peer from discovery service"),
            (Entry { key: "/x".to_owned(), ..entry("", "a=b", 9) }, "invalid peer registry key"),
        ] {
            assert_eq!(roll.add(entry), Err(words));
        }
        assert_eq!(roll.members.len(), 3);
    }

    #[test]
    fn members_of_one_name_are_members_each_and_what_is_no_url_is_said() {
        let twice = [("1", "a=http://b:1", 1), ("2", "a=http://a:1,a=http://c:1", 2)];
        assert_eq!(roll(&twice).members(2).unwrap(), [vec!["http://a:1", "http://c:1"], vec!["http://b:1"]]);
        assert_eq!(roll(&[("1", "a=x", 1)]).members(1), Err(JoinError::InvalidUrl));
        assert!(repeats(&roll(&[("1", "a=http://b:1", 1), ("2", "c=http://b:1", 2)]).pairs(2).unwrap()));
    }
}
