//! Connections that are passed on as they are. A server that cannot be reached is left out until a monitor has reached it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::arguments::as_go;
use super::remotes::Remotes;
use crate::transport::tcp;

/// How long a server is waited for. etcd waits for as long as the system does, which is minutes.
const DIAL: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, mostly for want of file descriptors.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// What is passed on, and to whom.
#[derive(Clone)]
pub(super) struct TcpProxy {
    remotes: Arc<Mutex<Remotes>>,
    monitor_every: Duration,
}

impl TcpProxy {
    pub(super) fn new(remotes: Remotes, monitor_every: Duration) -> Self {
        Self { remotes: Arc::new(Mutex::new(remotes)), monitor_every }
    }

    /// Takes connections and passes them on, without end.
    pub(super) async fn run(self, listener: TcpListener) {
        let endpoints = self.remotes.lock().addresses();
        tracing::info!(?endpoints, "ready to proxy client requests");
        tokio::spawn(self.clone().monitor());
        loop {
            match listener.accept().await {
                Ok((client, _)) => drop(tokio::spawn(self.clone().serve(client))),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    async fn serve(self, mut client: TcpStream) {
        let Some(mut server) = self.connect().await else { return };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            tcp::watch_over(stream, None);
        }
        // Each side hears of the other's end as it would without us; a reset ends both.
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }

    async fn connect(&self) -> Option<TcpStream> {
        loop {
            let (index, address) = {
                let mut remotes = self.remotes.lock();
                let index = remotes.pick(|below| fastrand::u32(..below))?;
                (index, remotes.address(index))
            };
            match dial(&address).await {
                Ok(stream) => return Some(stream),
                Err(error) => {
                    self.remotes.lock().set_active(index, false);
                    let interval = as_go(self.monitor_every);
                    tracing::warn!(address, interval, %error, "deactivated endpoint");
                }
            }
        }
    }

    async fn monitor(self) {
        loop {
            sleep(self.monitor_every).await;
            let inactive = self.remotes.lock().inactive();
            for index in inactive {
                tokio::spawn(self.clone().try_again(index));
            }
        }
    }

    async fn try_again(self, index: usize) {
        let address = self.remotes.lock().address(index);
        match dial(&address).await {
            Ok(_) => {
                self.remotes.lock().set_active(index, true);
                tracing::info!(address, "activated");
            }
            Err(error) => {
                let interval = as_go(self.monitor_every);
                tracing::warn!(address, interval, %error, "failed to activate endpoint (stay inactive for another interval)");
            }
        }
    }
}

async fn dial(address: &str) -> io::Result<TcpStream> {
    timeout(DIAL, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::transport::srv::Server;

    /// The kinds of the timers of connections that are open, for which `concerns` is told both ends' ports; 2 is for asking
    /// whether the other end is there.
    fn timers(concerns: impl Fn(u16, u16) -> bool) -> Vec<u8> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
        let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
        let open = rows.filter(|row| row[3] == "01" && concerns(port(row[1]), port(row[2])));
        open.map(|row| row[5][..2].parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_client_or_a_server_that_vanishes_is_asked_after() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (servers_port, port) = (server.local_addr().unwrap().port(), listener.local_addr().unwrap().port());
        let remotes = Remotes::new(vec![Server::at("127.0.0.1", servers_port)]);
        let proxy = tokio::spawn(TcpProxy::new(remotes, Duration::from_secs(60)).run(listener));
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        assert_eq!(timers(|own, _| own == port), [2], "of the client");
        assert_eq!(timers(|_, other| other == servers_port), [2], "of the server");
        proxy.abort();
    }
}
