//! What the crate offers, part by part, each below a prefix of its own.

use std::time::Duration;

use anyhow::{Context, ensure};
use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, EventType, GetOptions, LockOptions, ProclaimOptions,
    PutOptions, ResignOptions, SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};

pub(crate) async fn kv(mut client: Client) -> anyhow::Result<()> {
    for number in 0..20 {
        client.put(format!("rust/kv/{number:02}"), number.to_string(), None).await?;
    }
    let options = GetOptions::new().with_prefix().with_limit(5).with_sort(SortTarget::Mod, SortOrder::Descend);
    let page = client.get("rust/kv/", Some(options)).await?;
    ensure!(page.count() == 20 && page.more() && page.kvs()[0].value() == b"19", "{page:?}");
    let put = client.put("rust/kv/00", "new", Some(PutOptions::new().with_prev_key())).await?;
    ensure!(put.prev_key().is_some_and(|kv| kv.value() == b"0"), "{put:?}");
    for first in [true, false] {
        let absent = Compare::create_revision("rust/txn", CompareOp::Equal, 0);
        let txn = Txn::new()
            .when(vec![absent])
            .and_then(vec![TxnOp::put("rust/txn", "made", None)])
            .or_else(vec![TxnOp::get("rust/txn", None)]);
        ensure!(client.txn(txn).await?.succeeded() == first, "created twice, or never");
    }
    let refused = client.put("", "x", None).await.expect_err("no key");
    ensure!(refused.to_string().contains("etcdserver: key is not provided"), "{refused}");
    Ok(())
}

pub(crate) async fn watch(mut client: Client) -> anyhow::Result<()> {
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut events = client.watch("rust/watch/", Some(options)).await?;
    client.put("rust/watch/a", "1", None).await?;
    client.delete("rust/watch/a", None).await?;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let answer = events.message().await?.context("the stream ended")?;
        seen.extend(
            answer.events().iter().map(|event| (event.event_type(), event.prev_kv().map(|kv| kv.value().to_vec()))),
        );
    }
    ensure!(seen == [(EventType::Put, None), (EventType::Delete, Some(b"1".to_vec()))], "{seen:?}");
    Ok(())
}

pub(crate) async fn lease(mut client: Client) -> anyhow::Result<()> {
    let id = client.lease_grant(30, None).await?.id();
    client.put("rust/lease", "1", Some(PutOptions::new().with_lease(id))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(id).await?;
    keeper.keep_alive().await?;
    let answer = answers.message().await?.context("the stream ended")?;
    ensure!(answer.ttl() == 30, "{answer:?}");
    ensure!(client.leases().await?.leases().iter().any(|lease| lease.id() == id), "the lease is not listed");
    client.lease_revoke(id).await?;
    ensure!(client.get("rust/lease", None).await?.kvs().is_empty(), "the key outlives its lease");
    Ok(())
}

pub(crate) async fn lock(mut client: Client) -> anyhow::Result<()> {
    let lease = client.lease_grant(30, None).await?.id();
    let key = client.lock("rust/lock", Some(LockOptions::new().with_lease(lease))).await?.key().to_vec();
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("rust/lock", None).await.map(|answer| answer.key().to_vec()) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    ensure!(!waiting.is_finished(), "two hold the lock");
    client.unlock(key).await?;
    let key = waiting.await??;
    client.unlock(key).await?;
    Ok(())
}

pub(crate) async fn election(mut client: Client) -> anyhow::Result<()> {
    let lease = client.lease_grant(30, None).await?.id();
    let leader = client.campaign("rust/election", "one", lease).await?.leader().context("no leader key")?.clone();
    let mut changes = client.observe("rust/election").await?;
    let first = changes.message().await?.context("the stream ended")?;
    ensure!(first.kv().is_some_and(|kv| kv.value() == b"one"), "{first:?}");
    client.proclaim("two", Some(ProclaimOptions::new().with_leader(leader.clone()))).await?;
    let second = changes.message().await?.context("the stream ended")?;
    ensure!(second.kv().is_some_and(|kv| kv.value() == b"two"), "{second:?}");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    ensure!(client.leader("rust/election").await.is_err(), "there is a leader after all have resigned");
    Ok(())
}

pub(crate) async fn maintenance(mut client: Client, members: usize) -> anyhow::Result<()> {
    ensure!(client.member_list().await?.members().len() == members, "another number of members");
    ensure!(client.status().await?.leader() != 0, "no leader");
    ensure!(client.alarm(AlarmAction::Get, AlarmType::None, None).await?.alarms().is_empty(), "alarms");
    ensure!(client.hash_kv(0).await?.hash() != 0, "no hash");
    client.defragment().await?;
    let mut snapshot = client.snapshot().await?;
    let mut bytes = 0;
    while let Some(part) = snapshot.message().await? {
        bytes += part.blob().len();
    }
    ensure!(bytes > 1000, "a snapshot of {bytes} bytes");
    Ok(())
}

/// Who may not write there is told so, and may go on.
pub(crate) async fn denied(mut client: Client) -> anyhow::Result<()> {
    let refused = client.put("elsewhere", "x", None).await.expect_err("the user may not");
    ensure!(refused.to_string().contains("etcdserver: permission denied"), "{refused}");
    client.put("rust/denied", "not", None).await?;
    Ok(())
}
