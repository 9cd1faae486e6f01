//! The members that a proxy asks: one connection to each, used in turn. One that breaks is left out until it is made anew,
//! which is tried by one call every few seconds: the others go to members that are there.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::Status;
use tonic::transport::Channel;

use crate::transport::tonic::Dialer;

/// For so long after a connection to a member was begun and not made, others are asked first.
const AVOIDED: Duration = Duration::from_secs(5);

/// Them.
pub(super) struct Upstream {
    dialer: Dialer,
    endpoints: Vec<String>,
    connections: Mutex<Connections>,
}

struct Connections {
    channels: Vec<Option<Channel>>,
    /// When a connection was begun that is not made yet, or could not be.
    begun: Vec<Option<Instant>>,
    turn: usize,
}

impl Connections {
    fn to(count: usize) -> Self {
        Self { channels: vec![None; count], begun: vec![None; count], turn: 0 }
    }

    /// All members from the one whose turn it is; behind them, in the same order, those that are avoided.
    fn order(&mut self, now: Instant) -> Vec<usize> {
        let count = self.channels.len();
        let first = self.turn;
        self.turn = (self.turn + 1) % count.max(1);
        let mut order: Vec<usize> = (first..first + count).map(|index| index % count).collect();
        order.sort_by_key(|index| self.begun[*index].is_some_and(|begun| now.duration_since(begun) < AVOIDED));
        order
    }
}

impl Upstream {
    /// Of URLs, or addresses that are spoken to without TLS.
    pub(super) fn new(dialer: Dialer, endpoints: Vec<String>, secure: bool) -> Self {
        let scheme = if secure { "https" } else { "http" };
        let url = |endpoint: String| if endpoint.contains("://") { endpoint } else { format!("{scheme}://{endpoint}") };
        let endpoints: Vec<_> = endpoints.into_iter().map(url).collect();
        let connections = Mutex::new(Connections::to(endpoints.len()));
        Self { dialer, endpoints, connections }
    }

    pub(super) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// A connection to the next one that can be reached, and which that is.
    pub(super) async fn channel(&self) -> Result<(usize, Channel), Status> {
        let mut last = Status::unavailable("there are no endpoints");
        let order = self.connections.lock().order(Instant::now());
        for index in order {
            if let Some(channel) = self.connected(index) {
                return Ok((index, channel));
            }
            match self.dialer.connect(&self.endpoints[index]).await {
                Ok(channel) => {
                    let mut connections = self.connections.lock();
                    (connections.channels[index], connections.begun[index]) = (Some(channel.clone()), None);
                    return Ok((index, channel));
                }
                Err(error) => last = Status::unavailable(error.to_string()),
            }
        }
        Err(last)
    }

    /// The connection to a member. Where there is none, the caller begins one.
    fn connected(&self, index: usize) -> Option<Channel> {
        let mut connections = self.connections.lock();
        let channel = connections.channels[index].clone();
        if channel.is_none() {
            connections.begun[index] = Some(Instant::now());
        }
        channel
    }

    /// A call on this connection came to nothing.
    pub(super) fn lost(&self, index: usize) {
        self.connections.lock().channels[index] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_cannot_be_reached_comes_last_for_a_while() {
        let (mut connections, now) = (Connections::to(3), Instant::now());
        assert_eq!([connections.order(now), connections.order(now)], [[0, 1, 2], [1, 2, 0]]);
        connections.begun[2] = Some(now);
        let soon = now + AVOIDED / 2;
        assert_eq!(
            [connections.order(soon), connections.order(soon)],
            [[0, 1, 2], [0, 1, 2]],
            "its turn is passed over"
        );
        assert_eq!(connections.order(soon), [1, 0, 2]);
        assert_eq!(connections.order(now + AVOIDED), [2, 0, 1], "it is tried again");
    }
}
