//! What one observer of an election hears from one server.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::v3electionpb as election;
use bytes::Bytes;
use election::election_client::ElectionClient;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::reply::Identity;
use super::side::Own;
use super::step::brief;
use super::streams::PATIENCE;
use super::token::Wire;

/// How long a server may take to end a stream after its last message, where it is to end.
const SLICE: Duration = Duration::from_secs(1);

/// All that came.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Who was elected, in order.
    pub leaders: Vec<election::LeaderResponse>,
    /// How the stream ended.
    pub ended: Option<(Code, String)>,
}

/// An observer at one server. When it is dropped, it goes away.
pub struct Observed {
    turn: usize,
    heard: watch::Receiver<Heard>,
    _reader: Own<()>,
}

impl Observed {
    /// Begins to observe at the member of this turn.
    pub fn open(turn: usize, client: ElectionClient<Wire>, name: Bytes) -> Self {
        let (sender, heard) = watch::channel(Heard::default());
        let reader = tokio::spawn(read(client, name, Arc::new(sender)));
        Self { turn, heard, _reader: Own(reader) }
    }

    /// Waits for so many leaders, or the end.
    pub async fn wait(&mut self, count: usize) {
        // In slices, so that a machine that was stopped as a whole for longer than all of them costs only one.
        for _ in 0..PATIENCE.as_secs() {
            let enough = |heard: &Heard| heard.leaders.len() >= count || heard.ended.is_some();
            if timeout(SLICE, self.heard.wait_for(enough)).await.is_ok() {
                return;
            }
        }
    }

    /// What came after the first `count` leaders, ids taken out, as text.
    pub fn after(&self, count: usize, identity: &mut Identity) -> String {
        let mut heard = self.heard.borrow().clone();
        heard.leaders.drain(..count.min(heard.leaders.len()));
        identity.turn(self.turn);
        heard.leaders.iter_mut().for_each(|leader| identity.header(&mut leader.header));
        format!("{} leaders: {}", heard.leaders.len(), brief(&format!("{heard:?}")))
    }
}

async fn read(mut client: ElectionClient<Wire>, name: Bytes, heard: Arc<watch::Sender<Heard>>) {
    let status = follow(&mut client, name, &heard).await.err().unwrap_or_else(|| Status::ok("the stream ended"));
    heard.send_modify(|heard| heard.ended = Some((status.code(), status.message().to_owned())));
}

async fn follow(client: &mut ElectionClient<Wire>, name: Bytes, heard: &watch::Sender<Heard>) -> Result<(), Status> {
    let mut leaders = client.observe(election::LeaderRequest { name }).await?.into_inner();
    while let Some(leader) = leaders.message().await? {
        heard.send_modify(|heard| heard.leaders.push(leader));
    }
    Ok(())
}
