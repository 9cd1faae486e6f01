//! How long writes pause when the leader is lost: many times in a row on one cluster, told as percentiles. Here on
//! Kubernetes; [`local`] does without one, and [`planned`] takes no leader away but asks for changes.

pub mod local;
pub mod planned;

use std::time::Duration;

use anyhow::{Context, ensure};
use etcd_client::{Client, DeleteOptions};
use kube::api::DeleteParams;
use serde_json::json;

use crate::cluster::Cluster;
use crate::scenarios::process_of;
use crate::writer::Writer;

/// How the leader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// `kill -9` of its process.
    Killed,
    /// `kubectl delete pod`: it hands over.
    Deleted,
}

/// Loses the leader `times` times in each way and prints the pauses.
///
/// # Errors
/// The cluster does not recover, or a write is lost.
pub async fn measure(times: usize) -> anyhow::Result<()> {
    ensure!(times > 0, "measure at least once");
    let cluster = Cluster::in_fresh_namespace("failover").await?;
    cluster.create(3, &json!({})).await?;
    print_head("leader lost by");
    for (loss, name) in [(Loss::Killed, "kill -9"), (Loss::Deleted, "kubectl delete pod")] {
        let mut pauses = Vec::new();
        for _ in 0..times {
            pauses.push(once(&cluster, loss).await?);
        }
        print_row(name, pauses);
    }
    cluster.remove_namespace().await;
    Ok(())
}

async fn once(cluster: &Cluster, loss: Loss) -> anyhow::Result<Duration> {
    // A writer takes every key for new.
    let mut etcd = Client::connect([cluster.endpoint().await?], None).await?;
    etcd.delete("writer/", Some(DeleteOptions::new().with_prefix())).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let leader = cluster.leader().await?;
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    match loss {
        Loss::Killed => {
            let pid = process_of(&cluster.namespace, &leader).context("the leader runs on this machine")?;
            let killed = std::process::Command::new("kill").arg("-9").arg(pid.to_string()).status()?;
            ensure!(killed.success(), "kill -9 {pid}");
        }
        Loss::Deleted => _ = cluster.pods().delete(&leader, &DeleteParams::default()).await?,
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let pause = writer.finish().await?.longest_pause;
    if loss == Loss::Killed {
        // A container that is killed again and again comes back later each time; a new pod begins anew.
        cluster.pods().delete(&leader, &now).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    cluster.settled(3).await?;
    Ok(pause)
}

fn print_head(what: &str) {
    println!("| {what} | times | median pause | 95th percentile | longest |\n| --- | --- | --- | --- | --- |");
}

fn print_row(name: &str, mut pauses: Vec<Duration>) {
    pauses.sort();
    let (times, median, late) = (pauses.len(), percentile(&pauses, 50), percentile(&pauses, 95));
    let longest = pauses.last().copied().unwrap_or_default();
    println!("| {name} | {times} | {median:.2?} | {late:.2?} | {longest:.2?} |");
}

/// The smallest value that this share of the sorted values does not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sorted: Vec<Duration> = (1..=20).map(Duration::from_secs).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_secs(10));
        assert_eq!(percentile(&sorted, 95), Duration::from_secs(19));
        assert_eq!(percentile(&sorted[..1], 95), Duration::from_secs(1));
    }
}
