//! The leader is killed and started again while a program works, until whoever started the program closes its standard
//! input. A call that fails is made again. A stream ends with the member that it was open to, and etcd-client opens no
//! other by itself: that is the program's to do as well.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use etcd_client::{Client, Error, GetOptions, LockOptions, WatchOptions};
use tokio::time::sleep;

/// Seconds; less than the work takes, so that a lease that is not renewed any more is over before the end.
const TTL: i64 = 10;
const PAUSE: Duration = Duration::from_millis(10);
const KEYS: &str = "rust/failover/key/";
/// The last key that is written.
const END: &str = "rust/failover/key/end";

/// Keys and the revisions at which they were written.
type Writes = Vec<(String, i64)>;

pub(crate) async fn run(mut client: Client) -> anyhow::Result<()> {
    let lease = client.lease_grant(TTL, None).await?.id();
    let lock = client.lock("rust/failover/lock", Some(LockOptions::new().with_lease(lease))).await?.key().to_vec();
    let elected = client.campaign("rust/failover/leader", "me", lease).await?;
    let first = elected.header().context("a header")?.revision();
    let keeper = tokio::spawn(keep_alive(client.clone(), lease));
    let watcher = tokio::spawn(watch(client.clone(), first + 1));
    let (written, failed) = write(&mut client).await?;
    let (seen, opened) = watcher.await??;

    ensure!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1), "events out of order: {seen:?}");
    let seen: HashMap<i64, String> = seen.into_iter().map(|(key, revision)| (revision, key)).collect();
    let there = client.get(KEYS, Some(GetOptions::new().with_prefix())).await?;
    let there: HashMap<&[u8], i64> = there.kvs().iter().map(|kv| (kv.key(), kv.mod_revision())).collect();
    for (key, revision) in &written {
        ensure!(seen.get(revision) == Some(key), "{key} was written at {revision}, and no watch told of it");
        // One that failed may have been done, later than the one that was made again.
        ensure!(there.get(key.as_bytes()).is_some_and(|is| is >= revision), "{key} was written and is lost");
    }
    ensure!(!keeper.is_finished(), "the lease: {:?}", keeper.await);
    let lock = client.get(lock, None).await?;
    ensure!(lock.kvs().first().is_some_and(|kv| kv.lease() == lease), "the lock is lost: {lock:?}");
    let leader = client.leader("rust/failover/leader").await?;
    ensure!(leader.kv().is_some_and(|kv| kv.value() == b"me" && kv.lease() == lease), "another leads: {leader:?}");
    keeper.abort();
    println!("   {} writes, {failed} calls failed, {opened} watches", written.len());
    Ok(())
}

/// Writes until standard input ends; what was written, and how many calls failed.
async fn write(client: &mut Client) -> anyhow::Result<(Writes, usize)> {
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        told.store(true, Ordering::Relaxed);
    });
    let (mut written, mut failed) = (Vec::new(), 0);
    loop {
        let last = over.load(Ordering::Relaxed);
        let key = if last { END.to_owned() } else { format!("{KEYS}{:06}", written.len()) };
        match client.put(key.as_str(), "x", None).await {
            Ok(answer) => written.push((key, answer.header().context("a header")?.revision())),
            Err(error) if is_refusal(&error) => bail!("{key}: {error}"),
            Err(_) => failed += 1,
        }
        if last && written.last().is_some_and(|(key, _)| key == END) {
            return Ok((written, failed));
        }
        sleep(PAUSE).await;
    }
}

/// Whether the store understood and said no, which a lost member is no reason for.
fn is_refusal(error: &Error) -> bool {
    error.to_string().contains("etcdserver: permission denied")
}

/// Every event up to the last key's, and how many streams that took.
async fn watch(mut client: Client, mut from: i64) -> anyhow::Result<(Writes, usize)> {
    let (mut seen, mut opened) = (Vec::new(), 0);
    loop {
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        if let Ok(mut stream) = client.watch(KEYS, Some(options)).await {
            opened += 1;
            while let Ok(Some(answer)) = stream.message().await {
                ensure!(answer.compact_revision() == 0, "compacted");
                for kv in answer.events().iter().filter_map(|event| event.kv()) {
                    from = kv.mod_revision() + 1;
                    seen.push((kv.key_str()?.to_owned(), kv.mod_revision()));
                    if kv.key() == END.as_bytes() {
                        return Ok((seen, opened));
                    }
                }
                if answer.canceled() {
                    break;
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// Renews the lease three times in its life, on as many streams as that takes.
async fn keep_alive(mut client: Client, lease: i64) -> anyhow::Result<()> {
    loop {
        if let Ok((mut keeper, mut answers)) = client.lease_keep_alive(lease).await {
            while keeper.keep_alive().await.is_ok() {
                let Ok(Some(answer)) = answers.message().await else { break };
                ensure!(answer.ttl() > 0, "the lease is over");
                sleep(Duration::from_secs(TTL as u64) / 3).await;
            }
        }
        sleep(PAUSE).await;
    }
}
