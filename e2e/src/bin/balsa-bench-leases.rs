//! Measures puts while many leases are kept alive, and while all of them end at once. Speaks etcd's API, so it measures
//! etcd as well. Prints one row of the table in `docs/benchmarks.md`; `e2e/bench/leases` starts the servers.
//!
//! Beside the puts that were slow it says how many syncs of the members' logs were: a put waits for the disk, so on a
//! machine whose disk pauses the two belong together.

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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
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
    #[arg(long, default_value_t = 60)]
    ttl: i64,
    /// Streams that renew the leases, spread over the members.
    #[arg(long, default_value_t = 10)]
    streams: usize,
    /// Puts per second, at the leader.
    #[arg(long, default_value_t = 300)]
    rate: u64,
    /// Seconds for which puts are measured alone.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Seconds for which the leases are kept alive.
    #[arg(long, default_value_t = 120)]
    alive: u64,
    /// Processes of the members, in the order of the endpoints.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
}

/// CPU time of the leader and of all members, in microseconds.
#[derive(Clone, Copy)]
struct Cpu {
    leader: f64,
    all: f64,
}

impl Cpu {
    fn read(pids: &[u32], leader: usize) -> anyhow::Result<Self> {
        let times = pids.iter().map(|pid| cpu_of(*pid)).collect::<anyhow::Result<Vec<f64>>>()?;
        Ok(Self { leader: times.get(leader).copied().unwrap_or_default(), all: times.iter().sum() })
    }

    /// What was used since `before`, less what `seconds` take at the rate of `base`, which used it in `base_seconds`.
    fn beyond(self, before: Self, seconds: f64, base: Self, base_seconds: f64) -> Self {
        let rest = |now: f64, before: f64, base: f64| now - before - base * seconds / base_seconds;
        Self { leader: rest(self.leader, before.leader, base.leader), all: rest(self.all, before.all, base.all) }
    }
}

/// Microseconds of a process, user and system, from the 10 ms ticks that Linux counts.
fn cpu_of(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat line has a name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? * 1e4)
}

/// Syncs of all members' logs so far that took more than 32 ms, by the histogram that etcd has too.
async fn slow_syncs(endpoints: &[String]) -> anyhow::Result<u64> {
    let mut slow = 0;
    for endpoint in endpoints {
        let address = endpoint.rsplit('/').next().unwrap_or_default();
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        connection.read_to_string(&mut text).await?;
        let of = |name: &str| {
            let name = format!("etcd_disk_wal_fsync_duration_seconds_{name} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok());
            value.with_context(|| format!("{endpoint} has no {name}"))
        };
        slow += of("count")? - of("bucket{le=\"0.032\"}")?;
    }
    Ok(slow)
}

/// One phase: how long puts took, in milliseconds, and how many syncs of logs were slow.
struct Phase {
    puts: Latencies,
    slow_syncs: u64,
}

/// Latencies in milliseconds.
#[derive(Default)]
struct Latencies(Vec<f64>);

impl Phase {
    /// What the puts took, and the slow syncs.
    fn row(self) -> String {
        format!("{} / {}", self.puts.row(), self.slow_syncs)
    }
}

impl Latencies {
    /// 99th percentile, longest, and how many took more than 50 ms.
    fn row(mut self) -> String {
        self.0.sort_by(f64::total_cmp);
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize];
        if self.0.is_empty() {
            return "– / – / –".to_owned();
        }
        let long = self.0.iter().filter(|milliseconds| **milliseconds > 50.0).count();
        format!("{:.1} / {:.1} / {long} of {}", at(0.99), at(1.0), self.0.len())
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

/// Waits, but no longer once it is time to stop.
async fn pause(stop: &watch::Receiver<bool>, time: Duration) {
    let _ = timeout(time, stop.clone().wait_for(|stop| *stop)).await;
}

/// Renews the leases of one stream in turn, all of them once in a third of the TTL, until it is told to stop; then at once
/// all of them once more, as all other streams do, so that they end together.
async fn keep_alive(
    channel: Channel,
    ids: Vec<i64>,
    ttl: i64,
    stop: watch::Receiver<bool>,
    renewed: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let (requests, stream) = mpsc::channel(ids.len());
    // etcd sends no headers before the first answer, so the first request must not wait for them.
    requests.try_send(pb::LeaseKeepAliveRequest { id: ids[0] })?;
    let mut answers = LeaseClient::new(channel).lease_keep_alive(ReceiverStream::new(stream)).await?.into_inner();
    answers.message().await?.context("the stream answers")?;
    let round = Duration::from_secs(ttl as u64) / 3;
    let mut last = false;
    while !last {
        last = *stop.borrow();
        let started = Instant::now();
        let burst = ids.len().div_ceil(20);
        let sending = async {
            for chunk in ids.chunks(burst) {
                for id in chunk {
                    requests.send(pb::LeaseKeepAliveRequest { id: *id }).await.context("the stream takes requests")?;
                }
                pause(&stop, round * burst as u32 / ids.len() as u32).await;
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
        pause(&stop, round.saturating_sub(started.elapsed())).await;
    }
    Ok(())
}

/// Which of the members leads.
async fn leader(channels: &[Channel]) -> anyhow::Result<usize> {
    for (number, channel) in channels.iter().enumerate() {
        let status = MaintenanceClient::new(channel.clone()).status(pb::StatusRequest {}).await?.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(number);
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

/// All leases, granted with a key each, and the streams that keep them alive.
struct Kept {
    streams: tokio::task::JoinSet<anyhow::Result<()>>,
    stop: watch::Sender<bool>,
    renewed: Arc<AtomicU64>,
}

impl Kept {
    async fn start(args: &Args, channels: &[Channel]) -> anyhow::Result<Self> {
        let ids: Vec<i64> = (1..=args.leases).collect();
        let (stop, renewed) = (watch::Sender::new(false), Arc::new(AtomicU64::new(0)));
        let mut streams = tokio::task::JoinSet::new();
        // Each stream begins as soon as its leases are there: all the grants may take longer than a TTL.
        for (number, ids) in ids.chunks(ids.len().div_ceil(args.streams)).enumerate() {
            let channel = channels[number % channels.len()].clone();
            let grants = ids.iter().map(|id| grant(channel.clone(), *id, args.ttl));
            stream::iter(grants).buffer_unordered(200).try_collect::<()>().await?;
            streams.spawn(keep_alive(channel, ids.to_vec(), args.ttl, stop.subscribe(), renewed.clone()));
        }
        Ok(Self { streams, stop, renewed })
    }

    /// Waits, and fails if a stream ends meanwhile.
    async fn hold(&mut self, time: Duration) -> anyhow::Result<()> {
        tokio::select! {
            () = sleep(time) => Ok(()),
            Some(done) = self.streams.join_next() => {
                done??;
                anyhow::bail!("a stream of renewals ended by itself");
            }
        }
    }

    /// Renews each lease once more, and no more.
    async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        while let Some(done) = self.streams.join_next().await {
            done??;
        }
        Ok(())
    }
}

/// From the first lease that is gone to the last, in seconds.
async fn all_end(leader: &Channel, puts: &Puts, leases: i64) -> anyhow::Result<f64> {
    while left(leader).await? == leases {
        sleep(Duration::from_millis(20)).await;
        drop(puts.take().await);
    }
    let first = Instant::now();
    while left(leader).await? > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    Ok(first.elapsed().as_secs_f64())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let connect = |url: &String| Ok(Endpoint::from_shared(url.clone())?.tcp_nodelay(true).connect_lazy());
    let channels: Vec<Channel> = args.endpoints.iter().map(connect).collect::<anyhow::Result<_>>()?;
    let leads = leader(&channels).await?;
    let leader = &channels[leads];
    let cpu = || Cpu::read(&args.pids, leads);
    let zero = Cpu { leader: 0.0, all: 0.0 };

    let puts = Puts::start(leader, args.rate);
    sleep(Duration::from_secs(2)).await;
    drop(puts.take().await);
    let slow = slow_syncs(&args.endpoints).await?;
    let before = cpu()?;
    sleep(Duration::from_secs(args.seconds)).await;
    let idle = cpu()?.beyond(before, 0.0, zero, 1.0);
    let alone = Phase { puts: puts.take().await, slow_syncs: slow_syncs(&args.endpoints).await? - slow };

    let mut kept = Kept::start(&args, &channels).await?;
    drop(puts.take().await);
    let slow = slow_syncs(&args.endpoints).await?;
    let (before, renewed) = (cpu()?, kept.renewed.load(Ordering::Relaxed));
    kept.hold(Duration::from_secs(args.alive)).await?;
    let renewals = kept.renewed.load(Ordering::Relaxed) - renewed;
    let used = cpu()?.beyond(before, args.alive as f64, idle, args.seconds as f64);
    let alive = Phase { puts: puts.take().await, slow_syncs: slow_syncs(&args.endpoints).await? - slow };
    let there = left(leader).await?;
    ensure!(there == args.leases, "{} leases were lost while they were kept alive", args.leases - there);

    kept.stop().await?;
    let slow = slow_syncs(&args.endpoints).await?;
    let took = all_end(leader, &puts, args.leases).await?;
    let ending = Phase { puts: puts.take().await, slow_syncs: slow_syncs(&args.endpoints).await? - slow };
    puts.finish().await?;
    println!(
        "| {} | {} | {} | {:.0} | {:.0} / {:.0} | {} | {took:.1} |",
        args.label,
        alone.row(),
        alive.row(),
        renewals as f64 / args.alive as f64,
        used.leader / renewals as f64,
        used.all / renewals as f64,
        ending.row(),
    );
    Ok(())
}
