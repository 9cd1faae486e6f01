//! Measures puts while many leases are kept alive, and while all of them end at once. Speaks etcd's API, so it measures
//! etcd as well. Prints one row of the table in `docs/benchmarks.md`; `e2e/bench/leases` starts the servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_proto::etcdserverpb as pb;
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

#[derive(Parser)]
#[command(about = "Puts beside many leases, on servers that are running")]
struct Args {
    /// Client URLs of all members, separated by commas.
    #[arg(long, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// The name of the row.
    #[arg(long)]
    label: String,
    #[arg(long, default_value_t = 10_000)]
    leases: i64,
    /// Seconds.
    #[arg(long, default_value_t = 30)]
    ttl: i64,
    /// Streams that renew the leases, spread over the members.
    #[arg(long, default_value_t = 10)]
    streams: usize,
    /// Puts per second, at the leader.
    #[arg(long, default_value_t = 300)]
    rate: u64,
    /// Seconds of each measured phase but the last, which ends with the leases.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

/// Latencies of one phase in milliseconds.
#[derive(Default)]
struct Latencies(Vec<f64>);

impl Latencies {
    fn row(mut self) -> String {
        self.0.sort_by(f64::total_cmp);
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize];
        if self.0.is_empty() {
            return "– | –".to_owned();
        }
        format!("{:.1} | {:.1}", at(0.99), at(1.0))
    }
}

/// Puts at a steady rate until it is stopped. A put counts from the moment it was due, so a stall is not hidden by the
/// puts that it holds up.
struct Puts {
    stop: Arc<AtomicBool>,
    latencies: Arc<Mutex<Latencies>>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Puts {
    fn start(channel: &Channel, rate: u64) -> Self {
        let (stop, latencies) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Latencies::default())));
        let task = tokio::spawn(put_steadily(channel.clone(), rate, stop.clone(), latencies.clone()));
        Self { stop, latencies, task }
    }

    async fn take(&self) -> Latencies {
        std::mem::take(&mut *self.latencies.lock().await)
    }

    async fn finish(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn put_steadily(
    channel: Channel,
    rate: u64,
    stop: Arc<AtomicBool>,
    latencies: Arc<Mutex<Latencies>>,
) -> anyhow::Result<()> {
    let mut due = interval(Duration::from_secs(1) / rate as u32);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut puts = tokio::task::JoinSet::new();
    for number in 0u64.. {
        let at = due.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (mut kv, latencies) = (KvClient::new(channel.clone()), latencies.clone());
        puts.spawn(async move {
            let key = format!("put/{:04}", number % 1000).into();
            kv.put(pb::PutRequest { key, value: vec![b'x'; 256].into(), ..Default::default() }).await?;
            latencies.lock().await.0.push(at.elapsed().as_secs_f64() * 1e3);
            anyhow::Ok(())
        });
        while let Some(done) = puts.try_join_next() {
            done??;
        }
    }
    while let Some(done) = puts.join_next().await {
        done??;
    }
    Ok(())
}

/// Renews the leases of one stream in turn, all of them once in a third of the TTL, until it is told to stop; then all
/// of them once more, so that they end together.
async fn keep_alive(
    channel: Channel,
    ids: Vec<i64>,
    ttl: i64,
    stop: Arc<AtomicBool>,
    renewed: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let (requests, stream) = mpsc::channel(ids.len());
    let mut answers = LeaseClient::new(channel).lease_keep_alive(ReceiverStream::new(stream)).await?.into_inner();
    let round = Duration::from_secs(ttl as u64) / 3;
    let mut last = false;
    while !last {
        last = stop.load(Ordering::Relaxed);
        let started = Instant::now();
        let burst = 100;
        let sending = async {
            for chunk in ids.chunks(burst) {
                for id in chunk {
                    requests.send(pb::LeaseKeepAliveRequest { id: *id }).await.context("the stream takes requests")?;
                }
                if !last && !stop.load(Ordering::Relaxed) {
                    sleep(round * burst as u32 / ids.len() as u32).await;
                }
            }
            anyhow::Ok(())
        };
        let receiving = async {
            for _ in &ids {
                let answer = answers.message().await?.context("the stream answers")?;
                ensure!(answer.ttl == ttl, "lease {:x} was lost while it was kept alive", answer.id);
                renewed.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        tokio::try_join!(sending, receiving)?;
        if !last {
            sleep(round.saturating_sub(started.elapsed())).await;
        }
    }
    Ok(())
}

async fn leader(channels: &[Channel]) -> anyhow::Result<Channel> {
    for channel in channels {
        let status = MaintenanceClient::new(channel.clone()).status(pb::StatusRequest {}).await?.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(channel.clone());
        }
    }
    anyhow::bail!("no member leads")
}

async fn grant(channel: Channel, id: i64, ttl: i64) -> anyhow::Result<()> {
    LeaseClient::new(channel.clone()).lease_grant(pb::LeaseGrantRequest { ttl, id }).await?;
    let put = pb::PutRequest { key: format!("lease/{id:08}").into(), lease: id, ..Default::default() };
    KvClient::new(channel).put(put).await?;
    Ok(())
}

/// How many keys of leases are left.
async fn left(channel: &Channel) -> anyhow::Result<i64> {
    let request = pb::RangeRequest {
        key: "lease/".into(),
        range_end: "lease0".into(),
        count_only: true,
        serializable: true,
        ..Default::default()
    };
    Ok(KvClient::new(channel.clone()).range(request).await?.into_inner().count)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let connect = |url: &String| Ok(Endpoint::from_shared(url.clone())?.tcp_nodelay(true).connect_lazy());
    let channels: Vec<Channel> = args.endpoints.iter().map(connect).collect::<anyhow::Result<_>>()?;
    let leader = leader(&channels).await?;
    let phase = Duration::from_secs(args.seconds);

    let puts = Puts::start(&leader, args.rate);
    sleep(Duration::from_secs(2)).await;
    drop(puts.take().await);
    sleep(phase).await;
    let alone = puts.take().await;

    // With a long TTL first: the grants take a while, and the first ones must not be over before the last.
    let ids: Vec<i64> = (1..=args.leases).collect();
    let (stop, renewed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut streams = tokio::task::JoinSet::new();
    for (number, ids) in ids.chunks(ids.len().div_ceil(args.streams)).enumerate() {
        let channel = channels[number % channels.len()].clone();
        let (ids, ttl, stop, renewed) = (ids.to_vec(), args.ttl, stop.clone(), renewed.clone());
        let grants = ids.iter().map(|id| grant(channel.clone(), *id, ttl));
        stream::iter(grants).buffer_unordered(200).try_collect::<()>().await?;
        streams.spawn(keep_alive(channel, ids, ttl, stop, renewed));
    }
    drop(puts.take().await);
    let before = renewed.load(Ordering::Relaxed);
    tokio::select! {
        () = sleep(phase) => {}
        Some(done) = streams.join_next() => {
            done??;
            anyhow::bail!("a stream of renewals ended by itself");
        }
    }
    let kept = puts.take().await;
    let rate = (renewed.load(Ordering::Relaxed) - before) / args.seconds;
    let alive = left(&leader).await?;
    ensure!(alive == args.leases, "{} leases were lost while they were kept alive", args.leases - alive);

    stop.store(true, Ordering::Relaxed);
    while let Some(done) = streams.join_next().await {
        done??;
    }
    drop(puts.take().await);
    while left(&leader).await? == args.leases {
        sleep(Duration::from_millis(20)).await;
    }
    let first = Instant::now();
    drop(puts.take().await);
    while left(&leader).await? > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    let (took, ending) = (first.elapsed(), puts.take().await);
    puts.finish().await?;
    println!(
        "| {} | {} | {rate} | {} | {:.1} | {} |",
        args.label,
        alone.row(),
        kept.row(),
        took.as_secs_f64(),
        ending.row()
    );
    Ok(())
}
