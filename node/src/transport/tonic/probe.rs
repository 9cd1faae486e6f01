//! How long a peer takes to answer: a small question over the connection of its frames, again and again, on every link and not
//! only on those of the leader, because etcd's dashboard has a line for each pair of members.

use std::convert::Infallible;
use std::time::Duration;

use balsa_proto::peer::MembersRequest;
use balsa_proto::peer::peer_client::PeerClient;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::PeerMetrics;

/// From an answer to the next question; etcd's own.
const PROBE_EVERY: Duration = Duration::from_secs(4);

/// Measures until it is dropped. The question is one that peers of every version answer; a refusal measures nothing, and a
/// connection that is lost is noticed by its frames.
pub(super) async fn run(id: u64, metrics: &PeerMetrics, mut client: PeerClient<Channel>) -> Infallible {
    loop {
        let asked = Instant::now();
        if client.members(MembersRequest {}).await.is_ok() {
            metrics.answered(id, asked.elapsed());
        }
        sleep(PROBE_EVERY).await;
    }
}
