//! A client that means well, beside others: it writes and waits for the event of each write, and knows how long both took. How
//! long that is depends on the machine, so what it had beside somebody is compared with what it had before and after.

use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::cluster::{Member, PATIENCE};
use crate::unread::watch;

/// How many times longer than undisturbed half of the writes may take, and half of the events: far above what other work on
/// the machine does, and far below waiting for somebody.
const FACTOR: u32 = 20;

/// The client.
pub(super) struct Neighbour {
    kv: KvClient<Channel>,
    events: Streaming<pb::WatchResponse>,
    written: usize,
}

/// How long writes took, and each until its event was there.
#[derive(Debug, Default)]
pub(super) struct Times {
    writes: Vec<Duration>,
    events: Vec<Duration>,
}

impl Neighbour {
    /// Of a member to which nobody else writes.
    pub(super) async fn of(member: &Member) -> Self {
        Self { kv: member.kv(), events: watch(member.watch()).await, written: 0 }
    }

    /// Writes so often; the event of each write is the next one that there is.
    pub(super) async fn writes(&mut self, count: usize) -> Times {
        let mut times = Times::default();
        for _ in 0..count {
            let key = format!("k{}", self.written);
            self.written += 1;
            let begun = Instant::now();
            let put = pb::PutRequest { key: key.clone().into(), value: "x".repeat(1000).into(), ..Default::default() };
            timeout(PATIENCE, self.kv.put(put)).await.expect("in time").expect("a write");
            times.writes.push(begun.elapsed());
            let told = timeout(PATIENCE, self.events.message()).await.expect("in time").expect("open");
            times.events.push(begun.elapsed());
            let keys: Vec<_> =
                told.expect("an answer").events.into_iter().map(|event| event.kv.expect("a pair").key).collect();
            assert_eq!(keys, [key]);
        }
        times
    }
}

impl Times {
    /// Adds those of further writes.
    pub(super) fn extend(&mut self, more: Self) {
        self.writes.extend(more.writes);
        self.events.extend(more.events);
    }

    /// Fails if half of the writes, or of the events, took too long for what they take with nobody beside: `alone`, at
    /// different times, of which the slower counts.
    pub(super) fn are_like(&self, alone: &[&Self]) {
        let of_alone = |of: fn(&Self) -> &[Duration]| alone.iter().map(|times| median(of(times))).max().expect("some");
        for (what, alone, beside) in [
            ("write", of_alone(|times| &times.writes), median(&self.writes)),
            ("event", of_alone(|times| &times.events), median(&self.events)),
        ] {
            println!("half of the {what}s: within {alone:?} alone, {beside:?} beside");
            assert!(beside <= alone * FACTOR, "{what}: {alone:?} alone, {beside:?} beside");
        }
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}
