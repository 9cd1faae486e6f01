//! Addresses and connections. Each connection resolves its name anew: a pod that comes back has another address.

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use balsa_proto::peer::peer_client::PeerClient;
use balsa_proto::peer::{HashRequest, HashResponse, MembersRequest, MembersResponse};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint, Error as TransportError};
use tower::service_fn;

use super::MAX_FRAME_BYTES;
use crate::transport::tcp;
use crate::transport::tls::Tls;

/// Longest wait for one connection, name resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A host that vanished is noticed after both together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(1_000);
/// See [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1_500);
/// A host that vanished is noticed so long after something was sent to it, where it may not be pinged; gRPC's number.
const UNHEARD: Duration = Duration::from_secs(20);
/// Flow-control windows between members, of both sides: far above what a local network holds in flight. It is the
/// receiver's that bounds a snapshot.
pub const STREAM_WINDOW: u32 = 16 << 20;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 32 << 20;

/// Why a peer did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection.
    #[error("cannot connect to {url}: {cause}")]
    Unreachable {
        /// Where.
        url: String,
        /// The transport's words.
        cause: String,
    },
    /// Connected, but no answer in time.
    #[error("{0} does not answer")]
    TimedOut(String),
    /// It answered with an error.
    #[error("{url} refuses: {cause}")]
    Refused {
        /// Who.
        url: String,
        /// Its words.
        cause: String,
    },
}

/// How a connection to a port of clients is asked whether the other end is there. Such a port ends a connection that is pinged
/// more often than it allows, and everybody's calls with it; members ping each other every second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pings {
    /// How long nothing is heard before it is asked; None is never.
    pub every: Option<Duration>,
    /// How long the answer may take.
    pub within: Duration,
    /// Whether it is asked while no call is open too.
    pub while_idle: bool,
}

/// How members are connected to.
#[derive(Clone, Default)]
pub struct Dialer {
    tls: Option<Arc<Tls>>,
    /// The name that certificates must be good for, if it is not the host that is connected to.
    expected: Arc<OnceLock<String>>,
    /// To their ports of clients, as a client does it; None is to their ports of peers.
    as_client: Option<Pings>,
}

impl Dialer {
    /// Connects to https URLs by `tls`.
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..Self::default() }
    }

    /// Connects as a client does.
    #[must_use]
    pub fn as_client(self, pings: Pings) -> Self {
        Self { as_client: Some(pings), ..self }
    }

    /// Whoever shows a certificate must show one for `name` from now on, whatever host it is reached at; for all copies of this
    /// dialer. The first name stays.
    pub fn expect(&self, name: &str) {
        // A certificate has no name with a dot at its end.
        self.expected.get_or_init(|| name.trim_end_matches('.').to_owned());
    }

    /// A new connection to `url`.
    ///
    /// # Errors
    /// `Unreachable`.
    pub async fn connect(&self, url: &str) -> Result<Channel, AskError> {
        let unreachable = |cause: String| AskError::Unreachable { url: url.to_owned(), cause };
        let endpoint = self.endpoint(url).map_err(|error| unreachable(words(&error)))?;
        let connected = async {
            let (tls, expected) = (self.tls.clone(), self.expected.get().cloned());
            let secured = service_fn(move |uri| secured(uri, tls.clone(), expected.clone()));
            match (is_https(&endpoint), self.as_client) {
                (true, _) => endpoint.connect_with_connector(secured).await,
                // A socket of the file system has nothing to watch over.
                (false, Some(_)) if !url.starts_with("unix:") => {
                    endpoint.connect_with_connector(service_fn(plain)).await
                }
                (false, _) => endpoint.connect().await,
            }
        };
        match timeout(CONNECT_TIMEOUT, connected).await {
            Err(_) => Err(unreachable(format!("no connection within {CONNECT_TIMEOUT:?}"))),
            Ok(connected) => connected.map_err(|error| unreachable(words(&error))),
        }
    }

    /// A new connection to the first of the URLs that accepts one.
    ///
    /// # Errors
    /// `Unreachable`, of the last one.
    pub async fn connect_any(&self, urls: &[String]) -> Result<Channel, AskError> {
        let mut last = AskError::Unreachable { url: "a peer".to_owned(), cause: "it has no URL".to_owned() };
        for url in urls {
            match self.connect(url).await {
                Ok(channel) => return Ok(channel),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// What the peer at `url` says of the membership, without consensus: enough to refuse, never enough to join on.
    ///
    /// # Errors
    /// No answer within `bound`.
    pub async fn members(&self, url: &str, bound: Duration) -> Result<MembersResponse, AskError> {
        let ask = async {
            let answer = peer_client(self.connect(url).await?).members(MembersRequest {}).await;
            answer.map_err(|status| AskError::Refused { url: url.to_owned(), cause: status.message().to_owned() })
        };
        match timeout(bound, ask).await {
            Err(_) => Err(AskError::TimedOut(url.to_owned())),
            Ok(answer) => Ok(answer?.into_inner()),
        }
    }

    /// The hash of the key history of the peer at `url`.
    ///
    /// # Errors
    /// No answer within `bound`; the peer's refusal.
    pub async fn hash(&self, url: &str, request: HashRequest, bound: Duration) -> Result<HashResponse, AskError> {
        let ask = async {
            let answer = peer_client(self.connect(url).await?).hash(request).await;
            answer.map_err(|status| AskError::Refused { url: url.to_owned(), cause: status.message().to_owned() })
        };
        match timeout(bound, ask).await {
            Err(_) => Err(AskError::TimedOut(url.to_owned())),
            Ok(answer) => Ok(answer?.into_inner()),
        }
    }
}

impl Dialer {
    /// How a URL is connected to.
    fn endpoint(&self, url: &str) -> Result<Endpoint, TransportError> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let of_peers = Pings { every: Some(KEEPALIVE_INTERVAL), within: KEEPALIVE_TIMEOUT, while_idle: true };
        let Pings { every, within, while_idle } = self.as_client.unwrap_or(of_peers);
        let Some(every) = every else { return Ok(endpoint) };
        Ok(endpoint.http2_keep_alive_interval(every).keep_alive_timeout(within).keep_alive_while_idle(while_idle))
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls.is_some() { "with TLS" } else { "without TLS" })
    }
}

/// The peer service behind a connection.
pub(super) fn peer_client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_encoding_message_size(MAX_FRAME_BYTES).max_decoding_message_size(MAX_FRAME_BYTES)
}

fn is_https(endpoint: &Endpoint) -> bool {
    endpoint.uri().scheme_str() == Some("https")
}

/// A TLS connection to whom has a certificate for the host, or for the name that is expected. The certificates are those of this
/// moment, so that a new one counts from the next connection on.
pub(in crate::transport) async fn secured(
    uri: Uri,
    tls: Option<Arc<Tls>>,
    expected: Option<String>,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let config = tls.and_then(|tls| tls.client());
    let config =
        config.ok_or_else(|| io::Error::other("the URL is https, and this member has no TLS for its peers"))?;
    let stream = connected(&uri, 443).await?;
    let name = ServerName::try_from(expected.unwrap_or_else(|| host(&uri).to_owned())).map_err(io::Error::other)?;
    Ok(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
}

/// A connection without TLS, to a port of clients.
async fn plain(uri: Uri) -> io::Result<TokioIo<TcpStream>> {
    connected(&uri, 80).await.map(TokioIo::new)
}

async fn connected(uri: &Uri, default_port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host(uri), uri.port_u16().unwrap_or(default_port))).await?;
    stream.set_nodelay(true)?;
    tcp::watch_over(&stream, Some(UNHEARD));
    Ok(stream)
}

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// An error with its causes: tonic says only "transport error" by itself.
pub(in crate::transport) fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_is_not_there_is_told_from_one_that_is_silent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let silent = Dialer::default().members(&url, Duration::from_millis(300)).await;
        assert!(matches!(silent, Err(AskError::TimedOut(_))), "{silent:?}");
        drop(listener);
        let absent = Dialer::default().members(&url, Duration::from_secs(3)).await;
        assert!(matches!(absent, Err(AskError::Unreachable { .. })), "{absent:?}");
    }
    #[tokio::test]
    async fn a_client_reaches_ports_and_sockets() {
        let pings = Pings { every: None, within: Duration::from_secs(1), while_idle: false };
        let dialer = Dialer::default().as_client(pings);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for url in [format!("http://{}", port.local_addr().unwrap()), format!("unix://{}", path.display())] {
            assert!(dialer.connect(&url).await.is_ok(), "{url}");
        }
    }
}
