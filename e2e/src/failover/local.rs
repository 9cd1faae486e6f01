//! The same measurement on local processes, etcd and Balsa by one code: clusters of three side by side, whose leaders are
//! killed in turn, so that what else the machine does meets both.
//!
//! Writers go to the members that stay. A write that was under way when the leader died may be lost with it, and each
//! store has its own time-out for that; so a writer gives one up after [`PATIENCE`] and sends the next. What is measured
//! is how long the store takes no write, not how long a client would wait for one that was lost.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::{Client, DeleteOptions, StatusResponse};

use super::{print_head, print_row};
use crate::local::Server;
use crate::writer::Writer;

/// A write that has taken longer is given up, while the store is without a leader. Four writers begin one after the
/// other, so the end of a pause is known to a fraction of it.
const PATIENCE: Duration = Duration::from_millis(100);
/// Writes before the leader is killed.
const BEFORE: Duration = Duration::from_millis(500);
/// Writes after it: several election timeouts.
const AFTER: Duration = Duration::from_secs(5);
/// How long a member that was killed may take to catch up.
const RETURN_BOUND: Duration = Duration::from_secs(60);

/// A server to measure.
#[derive(Clone, Debug)]
pub struct Side {
    name: String,
    program: PathBuf,
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, program) = text.split_once('=').ok_or("write it as NAME=PROGRAM")?;
        Ok(Self { name: name.to_owned(), program: program.into() })
    }
}

/// Kills the leader of each side `times` times, in turn, and prints the pauses.
///
/// # Errors
/// A cluster does not start or does not recover, or a write is lost.
pub async fn measure(times: usize, sides: Vec<Side>) -> anyhow::Result<()> {
    ensure!(times > 0, "measure at least once");
    let mut running = Vec::new();
    for side in sides {
        let members = Server::cluster(&side.name, &side.program, 3, &[]).await?;
        running.push((side, members, Vec::new()));
    }
    for _ in 0..times {
        for (side, members, pauses) in &mut running {
            let pause = once(members).await.with_context(|| side.name.clone())?;
            println!("    {}: {pause:.2?}", side.name);
            pauses.push(pause);
        }
    }
    print_head("leader killed by kill -9");
    for (side, _, pauses) in running {
        print_row(&side.name, pauses);
    }
    Ok(())
}

async fn once(members: &mut [Server]) -> anyhow::Result<Duration> {
    let leader = settled(members).await?;
    let stay: Vec<String> = members
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != leader)
        .map(|(_, member)| format!("http://{}", member.address))
        .collect();
    // A writer takes every key for new.
    let mut client = Client::connect(&stay[..1], None).await?;
    client.delete("writer/", Some(DeleteOptions::new().with_prefix())).await?;
    let writer = Writer::spread(&stay, PATIENCE);
    tokio::time::sleep(BEFORE).await;
    members[leader].kill();
    tokio::time::sleep(AFTER).await;
    let pause = writer.finish().await?.longest_pause;
    members[leader].start()?;
    Ok(pause)
}

/// Waits until all members serve, know one leader and have what it has; the leader's place among them.
async fn settled(members: &[Server]) -> anyhow::Result<usize> {
    let deadline = Instant::now() + RETURN_BOUND;
    loop {
        let states = futures::future::join_all(members.iter().map(status)).await;
        let states: Option<Vec<StatusResponse>> = states.into_iter().collect();
        if let Some(leader) = states.as_deref().and_then(leader) {
            return Ok(leader);
        }
        ensure!(Instant::now() < deadline, "the members are not one cluster again within {RETURN_BOUND:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn leader(states: &[StatusResponse]) -> Option<usize> {
    let id = |state: &StatusResponse| state.header().map(etcd_client::ResponseHeader::member_id);
    let at = states.iter().position(|state| id(state) == Some(state.leader()))?;
    let like = |state: &StatusResponse| {
        state.leader() == states[at].leader() && state.raft_applied_index() >= states[at].raft_index()
    };
    states.iter().all(like).then_some(at)
}

async fn status(member: &Server) -> Option<StatusResponse> {
    let asked = async {
        let mut client = Client::connect([format!("http://{}", member.address)], None).await.ok()?;
        client.status().await.ok()
    };
    tokio::time::timeout(Duration::from_secs(2), asked).await.ok().flatten()
}
