//! A writer that never stops, through a real etcd client. It writes unique keys by create-if-absent transactions and never
//! sends a key twice, so each key's fate is exact: acknowledged → there with version 1; refused → not there; unknown →
//! either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::{Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, GetResponse, Txn, TxnOp};
use tokio::task::JoinHandle;

/// Writers that run side by side, so that one that waits for a time-out does not hide the others' progress.
const WRITERS: usize = 4;
/// How long a writer waits for one answer, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long reading all keys back may take, with every connection and every try. It judges what is there and not how fast,
/// and reads may be sent again: on a busy machine one can time out, or find the store between two leaders.
const READ_BACK: Duration = Duration::from_secs(90);
/// How long one such try may take: as long as a busy store lets a read wait and sends many keys.
const READ_ONCE: Duration = Duration::from_secs(20);
/// A pause between writes of one writer: the load is steady, not a benchmark.
const PAUSE: Duration = Duration::from_millis(4);
/// The same where each write has a connection of its own: a closed one keeps its port for a minute.
const PAUSE_ANEW: Duration = Duration::from_millis(25);
/// Who pings more often than each 5 s while a call waits is cut off, as by etcd, and the fate of the call is unknown.
const KEEP_ALIVE: Duration = Duration::from_secs(6);

/// What became of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The store said OK.
    Acknowledged,
    /// The store said that it changed nothing, or was never asked.
    Refused,
    /// Nobody can say.
    Unknown,
}

#[derive(Debug)]
struct Written {
    key: String,
    fate: Fate,
    at: Instant,
    error: Option<String>,
}

/// Writers under way.
pub struct Writer {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<anyhow::Result<Vec<Written>>>>,
    endpoint: String,
}

/// How a writer's connections are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Connections {
    /// One, and another one after a failure.
    Kept,
    /// One for each write, tried once: whoever refuses it fails the write.
    Anew,
}

/// What a writer saw, checked against the store.
#[derive(Debug)]
pub struct History {
    /// Writes that the store acknowledged.
    pub acknowledged: usize,
    /// Writes whose fate nobody can say, and the first error of them.
    pub unknown: usize,
    /// Distinct errors that clients saw.
    pub errors: Vec<String>,
    /// The longest time in which no write at all was acknowledged.
    pub longest_pause: Duration,
    written: Vec<Written>,
}

impl History {
    /// Reads every key back once more, now through `endpoint`, and checks its fate.
    ///
    /// # Errors
    /// A fate that the store contradicts, or a store that cannot be read.
    pub async fn still_holds(&self, endpoint: &str) -> anyhow::Result<()> {
        check(endpoint, &self.written).await
    }
}

impl Writer {
    /// Starts writing to the Service at `endpoint`.
    pub fn start(endpoint: String) -> Self {
        Self::spread(&[endpoint], PATIENCE)
    }

    /// Starts writers that connect anew for each write, so that each is sent wherever the Service sends newcomers. They may
    /// run beside the others. They begin once the Service leads anywhere at all.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn newcomers(endpoint: String) -> anyhow::Result<Self> {
        read_back(&endpoint, READ_BACK).await?;
        Ok(Self::many(&[endpoint], PATIENCE, Connections::Anew))
    }

    /// Starts writing to these endpoints, each writer to one of them. It gives a write up after `patience`, so the next
    /// one shows that the store is back, whatever became of the one before.
    pub fn spread(endpoints: &[String], patience: Duration) -> Self {
        Self::many(endpoints, patience, Connections::Kept)
    }

    fn many(endpoints: &[String], patience: Duration, connections: Connections) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spawn = |(index, endpoint): (usize, &String)| {
            tokio::spawn(write(index, endpoint.clone(), patience, connections, stop.clone()))
        };
        let tasks = endpoints.iter().cycle().take(WRITERS).enumerate().map(spawn).collect();
        Self { stop, tasks, endpoint: endpoints.first().cloned().unwrap_or_default() }
    }

    /// Stops, reads every key back and checks its fate.
    ///
    /// # Errors
    /// A fate that the store contradicts, or a store that cannot be read.
    pub async fn finish(self) -> anyhow::Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await??);
        }
        all.sort_by_key(|written| written.at);
        check(&self.endpoint, &all).await?;
        let acknowledged: Vec<Instant> =
            all.iter().filter(|written| written.fate == Fate::Acknowledged).map(|written| written.at).collect();
        let mut errors: Vec<String> = all.iter().filter_map(|written| written.error.clone()).collect();
        errors.sort();
        errors.dedup();
        let history = History {
            acknowledged: acknowledged.len(),
            unknown: all.iter().filter(|written| written.fate == Fate::Unknown).count(),
            errors,
            longest_pause: acknowledged.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default(),
            written: all,
        };
        println!(
            "    {} writes acknowledged, {} unknown, longest pause {:.2} s",
            history.acknowledged,
            history.unknown,
            history.longest_pause.as_secs_f32()
        );
        ensure!(history.acknowledged > 0, "no write was acknowledged; errors: {:?}", history.errors);
        Ok(history)
    }
}

async fn connect(endpoint: &str) -> anyhow::Result<Client> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match connect_once(endpoint).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(error).context(format!("connect to {endpoint}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connect_once(endpoint: &str) -> Result<Client, Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(2))
        .with_keep_alive(KEEP_ALIVE, Duration::from_secs(2));
    Client::connect([endpoint], Some(options)).await
}

async fn write(
    index: usize,
    endpoint: String,
    patience: Duration,
    connections: Connections,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Written>> {
    let anew = connections == Connections::Anew;
    let (who, pause) = if anew { ("newcomer-", PAUSE_ANEW) } else { ("", PAUSE) };
    let mut client = connect(&endpoint).await?;
    let mut all = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("writer/{who}{index}/{number:08}");
        let create = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), key.as_str(), None)]);
        let send = async {
            if anew {
                client = connect_once(&endpoint).await?;
            }
            client.txn(create).await
        };
        let (fate, error) = match tokio::time::timeout(patience, send).await {
            Ok(Ok(answer)) if answer.succeeded() => (Fate::Acknowledged, None),
            Ok(Ok(_)) => anyhow::bail!("{key} was there before it was written"),
            Ok(Err(error)) => (fate_of(&error), Some(error.to_string())),
            Err(_) => (Fate::Unknown, Some(format!("no answer in {patience:?}"))),
        };
        let failed = fate != Fate::Acknowledged;
        all.push(Written { key, fate, at: Instant::now(), error });
        if failed && !anew {
            client = connect(&endpoint).await?;
        }
        tokio::time::sleep(pause).await;
    }
    Ok(all)
}

/// What docs/api.md says of the errors: only these say for certain that nothing was written.
fn fate_of(error: &Error) -> Fate {
    let text = format!("{error:?}");
    // A closing member's GOAWAY names the last call that it took up; the client fails those after it, and no other, with it.
    let not_begun = [r#"GoAway(b"", NO_ERROR, Remote)"#, r#"Canceled, "connection closed""#];
    let refused = ["Connection refused", "tcp connect error", "too many requests", "etcdserver: not leader"];
    if refused.iter().chain(&not_begun).any(|known| text.contains(known)) { Fate::Refused } else { Fate::Unknown }
}

/// All keys, read as often as it takes within `bound`. A Service takes a moment to send clients to pods that are ready.
async fn read_back(endpoint: &str, bound: Duration) -> anyhow::Result<GetResponse> {
    let mut failed = anyhow::anyhow!("no answer");
    let reading = async {
        loop {
            match tokio::time::timeout(READ_ONCE, read_once(endpoint)).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => failed = error.into(),
                Err(_) => failed = anyhow::anyhow!("no answer in {READ_ONCE:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    match tokio::time::timeout(bound, reading).await {
        Ok(answer) => Ok(answer),
        Err(_) => Err(failed.context(format!("read all keys back from {endpoint} in {bound:?}"))),
    }
}

async fn read_once(endpoint: &str) -> Result<GetResponse, Error> {
    connect_once(endpoint).await?.get("writer/", Some(GetOptions::new().with_prefix())).await
}

async fn check(endpoint: &str, all: &[Written]) -> anyhow::Result<()> {
    let answer = read_back(endpoint, READ_BACK).await?;
    let found: std::collections::HashMap<&[u8], i64> = answer.kvs().iter().map(|kv| (kv.key(), kv.version())).collect();
    for written in all {
        let version = found.get(written.key.as_bytes());
        match written.fate {
            Fate::Acknowledged => {
                ensure!(version.is_some(), "{} was acknowledged and is not there", written.key);
                ensure!(version == Some(&1), "{} was written more than once", written.key);
            }
            Fate::Refused => ensure!(version.is_none(), "{} was refused and is there", written.key),
            Fate::Unknown => ensure!(version.is_none_or(|version| *version == 1), "{} was written twice", written.key),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever is silent holds nobody longer than the bound, and whoever refuses is asked again.
    #[tokio::test]
    async fn reading_back_ends_at_its_bound() {
        let bound = Duration::from_secs(2);
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let [one, other] = [&silent, &refusing].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        drop(refusing);
        for (endpoint, why) in [(one, "no answer"), (other, "refused")] {
            let began = Instant::now();
            let reading = tokio::time::timeout(bound * 5, read_back(&endpoint, bound)).await;
            let error = format!("{:?}", reading.expect("in time").expect_err("nobody answers"));
            assert!(error.contains("read all keys back") && error.contains(why), "{error}");
            assert!(began.elapsed() >= bound, "it was tried again: {error}");
        }
    }
}
