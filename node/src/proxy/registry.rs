//! Which proxies there are: each writes itself under `--resolver-prefix`, with a lease that it keeps alive, in the form of
//! etcd's client library (its package `naming/endpoints`), so that clients and other proxies find it.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use serde::{Deserialize, Serialize};
use tokio::time::{interval, sleep, timeout};
use tonic::Status;

use super::grpc::Calls;
use super::namespace::behind;

/// Pause after a registration that failed or was lost.
const RETRY: Duration = Duration::from_secs(1);
/// How long one call of a registration may take.
const CALL: Duration = Duration::from_secs(5);

/// Where and as what a proxy registers.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    prefix: String,
    /// Where clients reach this one.
    advertised: String,
    ttl_seconds: i64,
}

/// What is written.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    /// 0: it is there.
    op: u8,
    addr: String,
    /// JSON of its name.
    metadata: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    name: String,
}

impl Registry {
    pub(super) fn new(prefix: &str, advertised: &str, ttl_seconds: i64) -> Self {
        Self { prefix: prefix.to_owned(), advertised: advertised.to_owned(), ttl_seconds }
    }

    /// Whether the proxies, and not the members, are shown to clients.
    pub(super) fn answers(&self) -> bool {
        !self.advertised.is_empty()
    }

    /// Where clients reach this one; nothing if nobody is told.
    pub(super) fn advertised(&self) -> &str {
        &self.advertised
    }

    /// All that have registered; this one alone when none has.
    pub(super) async fn members(&self, calls: &Calls) -> Result<Vec<pb::Member>, Status> {
        let registered = if self.prefix.is_empty() { Vec::new() } else { self.registered(calls).await? };
        if registered.is_empty() {
            return Ok(vec![member(&host_name(), &self.advertised)]);
        }
        Ok(registered)
    }

    async fn registered(&self, calls: &Calls) -> Result<Vec<pb::Member>, Status> {
        let key = calls.namespace.key(format!("{}/", self.prefix).as_bytes());
        let range_end = behind(&key).into();
        let request = pb::RangeRequest { key: key.into(), range_end, ..Default::default() };
        let (_, channel) = calls.upstream.channel().await?;
        let found = KvClient::new(channel).range(request).await?.into_inner();
        Ok(found.kvs.iter().filter_map(member_of).collect())
    }

    /// Registers this one, if it is to be, for as long as the process runs.
    pub(super) async fn keep(calls: Arc<Calls>) {
        if calls.registry.prefix.is_empty() {
            return;
        }
        loop {
            let lost = calls.registry.session(&calls).await;
            if let Err(error) = lost {
                tracing::warn!(error = error.message(), "failed to create a session");
            } else {
                tracing::warn!("session expired; possible network partition or server restart");
            }
            sleep(RETRY).await;
        }
    }

    /// Registers, and returns when the lease is over.
    async fn session(&self, calls: &Calls) -> Result<(), Status> {
        let bounded = |_| Status::deadline_exceeded("context deadline exceeded");
        let (_, channel) = calls.upstream.channel().await?;
        let mut leases = LeaseClient::new(channel.clone());
        let request = pb::LeaseGrantRequest { ttl: self.ttl_seconds, id: 0 };
        let lease = timeout(CALL, leases.lease_grant(request)).await.map_err(bounded)??.into_inner().id;
        let key = calls.namespace.key(format!("{}/{}", self.prefix, self.advertised).as_bytes());
        let put = pb::PutRequest { key: key.into(), value: self.value().into(), lease, ..Default::default() };
        timeout(CALL, KvClient::new(channel).put(put)).await.map_err(bounded)??;
        tracing::info!(addr = self.advertised, "lease-ttl" = self.ttl_seconds, "registered session with lease");
        let third = Duration::from_millis(self.ttl_seconds.unsigned_abs().saturating_mul(1000) / 3);
        let mut ticks = interval(third.max(Duration::from_millis(1)));
        let requests = futures::stream::poll_fn(move |cx| {
            ticks.poll_tick(cx).map(|_| Some(pb::LeaseKeepAliveRequest { id: lease }))
        });
        let mut kept = leases.lease_keep_alive(requests).await?.into_inner();
        while let Ok(Some(answer)) = kept.message().await {
            if answer.ttl <= 0 {
                break;
            }
        }
        Ok(())
    }

    fn value(&self) -> String {
        // Texts and numbers can always be written.
        let metadata = serde_json::to_string(&Metadata { name: host_name() }).unwrap_or_default();
        let endpoint = Endpoint { op: 0, addr: self.advertised.clone(), metadata };
        serde_json::to_string(&endpoint).unwrap_or_default()
    }
}

fn member_of(pair: &KeyValue) -> Option<pb::Member> {
    let endpoint: Endpoint = serde_json::from_slice(&pair.value).ok()?;
    let metadata: Metadata = serde_json::from_str(&endpoint.metadata).ok()?;
    Some(member(&metadata.name, &endpoint.addr))
}

fn member(name: &str, url: &str) -> pb::Member {
    pb::Member { name: name.to_owned(), client_ur_ls: vec![url.to_owned()], ..Default::default() }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_etcds_library_reads() {
        let registry = Registry::new("proxies", "10.0.0.1:23790", 60);
        let value: serde_json::Value = serde_json::from_str(&registry.value()).unwrap();
        assert_eq!((&value["Op"], &value["Addr"]), (&0.into(), &"10.0.0.1:23790".into()));
        let pair = KeyValue { value: registry.value().into(), ..Default::default() };
        assert_eq!(member_of(&pair), Some(member(&host_name(), "10.0.0.1:23790")));
        assert_eq!(member_of(&KeyValue { value: "x".into(), ..Default::default() }), None);
    }
}
