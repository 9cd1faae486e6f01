//! The members that a proxy asks: one connection to each, used in turn. One that breaks is left out until it is made anew.

use parking_lot::Mutex;
use tonic::Status;
use tonic::transport::Channel;

use crate::transport::tonic::Dialer;

/// Them.
pub(super) struct Upstream {
    dialer: Dialer,
    endpoints: Vec<String>,
    connections: Mutex<Connections>,
}

struct Connections {
    channels: Vec<Option<Channel>>,
    turn: usize,
}

impl Upstream {
    /// Of URLs, or addresses that are spoken to without TLS.
    pub(super) fn new(dialer: Dialer, endpoints: Vec<String>, secure: bool) -> Self {
        let scheme = if secure { "https" } else { "http" };
        let url = |endpoint: String| if endpoint.contains("://") { endpoint } else { format!("{scheme}://{endpoint}") };
        let endpoints: Vec<_> = endpoints.into_iter().map(url).collect();
        let connections = Mutex::new(Connections { channels: vec![None; endpoints.len()], turn: 0 });
        Self { dialer, endpoints, connections }
    }

    pub(super) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// A connection to the next one that can be reached, and which that is.
    pub(super) async fn channel(&self) -> Result<(usize, Channel), Status> {
        let mut last = Status::unavailable("there are no endpoints");
        for _ in 0..self.endpoints.len() {
            let (index, channel) = self.next();
            if let Some(channel) = channel {
                return Ok((index, channel));
            }
            match self.dialer.connect(&self.endpoints[index]).await {
                Ok(channel) => {
                    self.connections.lock().channels[index] = Some(channel.clone());
                    return Ok((index, channel));
                }
                Err(error) => last = Status::unavailable(error.to_string()),
            }
        }
        Err(last)
    }

    fn next(&self) -> (usize, Option<Channel>) {
        let mut connections = self.connections.lock();
        let index = connections.turn % self.endpoints.len();
        connections.turn = connections.turn.wrapping_add(1);
        (index, connections.channels[index].clone())
    }

    /// A call on this connection came to nothing.
    pub(super) fn lost(&self, index: usize) {
        self.connections.lock().channels[index] = None;
    }
}
