//! The task of one peer: dial, stream, and again, for as long as the peer is listed.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::peer::Frame;
use balsa_proto::peer::peer_client::PeerClient;
use futures::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::Shared;
use super::dial::{peer_client, words};
use super::probe;
use super::queue::Queue;
use crate::metrics::{ACTIVE_PEERS, DISCONNECTED_PEERS};

/// First wait after a failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// A pod that comes back is found within this. A stream that lasted longer was a good one.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How long a peer that is no longer listed still gets what is queued for it.
const FLUSH: Duration = Duration::from_secs(1);

/// Causes that are told of while a peer is away.
const MAX_CAUSES: usize = 8;

/// Why a connection is over.
enum End {
    /// It broke, or was never there, or not for long.
    Lost { cause: String, lasted: bool },
    /// The peer is elsewhere.
    Moved,
    /// The queue was closed, and is sent or has had its time.
    Done,
}

/// Runs until the peer is no longer listed.
pub(super) async fn run(id: u64, shared: Arc<Shared>, queue: Arc<Queue>, mut urls: watch::Receiver<Vec<String>>) {
    let (mut backoff, mut told) = (MIN_BACKOFF, Told::default());
    let _shown = Shown::new(shared.config.member_id, id);
    loop {
        let present = urls.borrow_and_update().clone();
        let end = tokio::select! {
            end = connection(id, &shared, &queue, &present) => end,
            end = changed(&mut urls) => end,
        };
        let (cause, lasted) = match end {
            End::Done => return,
            End::Moved => continue,
            End::Lost { cause, lasted } => (cause, lasted),
        };
        lost(id, &shared, &queue);
        if queue.is_closed() {
            return;
        }
        if lasted {
            (backoff, told) = (MIN_BACKOFF, Told::default());
        }
        let peer = format!("{id:x}");
        match told.is_new(&cause) {
            true => warn!(peer, cause, "lost the way to a peer"),
            false => debug!(peer, cause, "a peer is still away"),
        }
        tokio::select! {
            () = sleep(backoff) => backoff = (backoff * 2).min(MAX_BACKOFF),
            _ = urls.changed() => backoff = MIN_BACKOFF,
        }
    }
}

/// The causes that were told of while a peer is away: a peer that was down and comes back with a certificate that nobody
/// can accept is away for another reason than before.
#[derive(Default)]
struct Told(Vec<String>);

impl Told {
    /// Causes that differ in numbers alone, such as times, are the same.
    fn is_new(&mut self, cause: &str) -> bool {
        let cause: String = cause.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        let new = self.0.len() < MAX_CAUSES && !self.0.contains(&cause);
        if new {
            self.0.push(cause);
        }
        new
    }
}

/// A peer in the metrics of connections, as long as it is listed.
struct Shown([String; 2]);

impl Shown {
    fn new(local: u64, remote: u64) -> Self {
        let shown = Self([format!("{local:x}"), format!("{remote:x}")]);
        ACTIVE_PEERS.with_label_values(&shown.0).set(0);
        DISCONNECTED_PEERS.with_label_values(&shown.0);
        shown
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let [local, remote] = &self.0;
        // It fails only for a series that is not there.
        let _ = ACTIVE_PEERS.remove_label_values(&[local.as_str(), remote.as_str()]);
    }
}

/// A connection in the metrics.
struct Active([String; 2]);

impl Active {
    fn new(local: u64, remote: u64) -> Self {
        let active = Self([format!("{local:x}"), format!("{remote:x}")]);
        ACTIVE_PEERS.with_label_values(&active.0).set(1);
        active
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE_PEERS.with_label_values(&self.0).set(0);
        DISCONNECTED_PEERS.with_label_values(&self.0).inc();
    }
}

/// What was meant for a stream that broke is dropped: Raft repeats it, and nobody may repeat the rest.
fn lost(id: u64, shared: &Shared, queue: &Queue) {
    queue.set_up(false);
    for _ in 0..queue.clear() {
        shared.config.metrics.failed(id);
    }
    (shared.on_unreachable)(id);
}

/// Resolves when the peer has other URLs, or, once it is no longer listed, when it has had its time.
async fn changed(urls: &mut watch::Receiver<Vec<String>>) -> End {
    if urls.changed().await.is_ok() {
        return End::Moved;
    }
    sleep(FLUSH).await;
    End::Done
}

/// One connection from its dial to its end.
async fn connection(id: u64, shared: &Arc<Shared>, queue: &Arc<Queue>, urls: &[String]) -> End {
    match shared.config.dialer.connect_any(urls).await {
        Ok(channel) => frames(id, shared, queue, peer_client(channel)).await,
        Err(error) => End::Lost { cause: error.to_string(), lasted: false },
    }
}

/// The listener answers only at the end: with a failure, or when the queue was closed and everything is there.
async fn frames(id: u64, shared: &Arc<Shared>, queue: &Arc<Queue>, mut client: PeerClient<Channel>) -> End {
    debug!(peer = format!("{id:x}"), "connected to a peer");
    queue.set_up(true);
    let _active = Active::new(shared.config.member_id, id);
    let started = Instant::now();
    let over = CancellationToken::new();
    let _ends_with_this_call = over.clone().drop_guard();
    let measured = probe::run(id, &shared.config.metrics, client.clone());
    let answer = tokio::select! {
        answer = client.frames(outgoing(id, shared.clone(), queue.clone(), over)) => answer,
        never = measured => match never {},
    };
    let lasted = started.elapsed() > MAX_BACKOFF;
    match answer {
        Ok(_) if queue.is_closed() => {
            info!(peer = format!("{id:x}"), "a peer that is no longer listed has all that was queued for it");
            End::Done
        }
        Ok(_) => End::Lost { cause: "the peer ended the stream".to_owned(), lasted },
        Err(status) => End::Lost { cause: words(&status), lasted },
    }
}

/// The frames of the queue. A call that is over must not take from the next one's: its stream may outlive it, in the
/// hands of the connection.
fn outgoing(
    id: u64,
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    over: CancellationToken,
) -> impl Stream<Item = Frame> + Send + 'static {
    stream::unfold((shared, queue, over), move |(shared, queue, over)| async move {
        let next = tokio::select! {
            biased;
            () = over.cancelled() => None,
            next = queue.pop() => next,
        };
        let (frame, size) = next?;
        shared.config.metrics.sent(id, size);
        Some((frame, (shared, queue, over)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_until_there_is_another() {
        let mut told = Told::default();
        let told: Vec<bool> = ["refused", "refused", "over since 1 s", "over since 2 s", "refused", "reset"]
            .into_iter()
            .map(|cause| told.is_new(cause))
            .collect();
        assert_eq!(told, [true, false, true, false, false, true]);
    }
}
