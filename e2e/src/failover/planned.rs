//! How long writes pause, and how long it takes, when an operator does what it was asked for: growing, shrinking, rolling.

use std::time::{Duration, Instant};

use anyhow::ensure;
use etcd_client::{Client, DeleteOptions};
use serde_json::json;

use super::{print_head, print_row};
use crate::cluster::Cluster;
use crate::writer::Writer;

/// What is asked of the operator.
#[derive(Clone, Copy)]
enum Wish {
    Grow,
    Shrink,
    Roll,
}

/// Goes 3 → 5 → 3 and rolls all pods, `times` times on one cluster, and prints the longest pause of writes in each step, and how
/// long each step took.
///
/// # Errors
/// The cluster does not settle, a write is lost, or one fails in a way that its client must not retry.
pub async fn measure(times: usize) -> anyhow::Result<()> {
    ensure!(times > 0, "measure at least once");
    let cluster = Cluster::in_fresh_namespace("planned").await?;
    cluster.create(3, &json!({})).await?;
    let wishes = [(Wish::Grow, "3 → 5"), (Wish::Shrink, "5 → 3"), (Wish::Roll, "three pods rolled")];
    let mut pauses: [Vec<Duration>; 3] = Default::default();
    let mut durations: [Vec<Duration>; 3] = Default::default();
    for round in 0..times {
        for (index, (wish, name)) in wishes.into_iter().enumerate() {
            let (pause, took) = once(&cluster, wish, round).await?;
            println!("{name}: {took:.2?}, writes paused for {pause:.2?}");
            pauses[index].push(pause);
            durations[index].push(took);
        }
    }
    cluster.assert_hashes_agree().await?;
    print_head("planned step");
    for (index, (_, name)) in wishes.into_iter().enumerate() {
        print_row(name, std::mem::take(&mut pauses[index]));
    }
    println!();
    for (index, (_, name)) in wishes.into_iter().enumerate() {
        print_row(&format!("{name}: until it is settled"), std::mem::take(&mut durations[index]));
    }
    cluster.remove_namespace().await;
    Ok(())
}

/// The longest pause of writes in one step, and how long the step took.
async fn once(cluster: &Cluster, wish: Wish, round: usize) -> anyhow::Result<(Duration, Duration)> {
    // A writer takes every key for new.
    let mut etcd = Client::connect([cluster.endpoint().await?], None).await?;
    etcd.delete("writer/", Some(DeleteOptions::new().with_prefix())).await?;
    let writer = Writer::start(cluster.endpoint().await?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    match wish {
        Wish::Grow => _ = cluster.scale_to(5).await?,
        Wish::Shrink => _ = cluster.scale_to(3).await?,
        Wish::Roll => {
            cluster.patch_spec(&json!({ "podTemplate": { "annotations": { "round": round.to_string() } } })).await?;
            cluster.settled(3).await?;
        }
    }
    let took = begun.elapsed();
    // What the step left behind shows itself in the writes that come after it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let history = writer.finish().await?;
    ensure!(history.unknown == 0, "a planned step left writes unknown: {:?}", history.errors);
    Ok((history.longest_pause, took))
}
