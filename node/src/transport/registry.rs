//! A registry: a cluster of etcd's API where the members of another one leave word for each other. Here is how it is asked,
//! over one connection that is made anew after a failure; what the keys mean is the caller's.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tower::service_fn;

use super::tls::Tls;
use super::tonic::{secured, words};

/// How long a connection may take to which no bound is set, as in Go.
const LONGEST_DIAL: Duration = Duration::from_secs(20);
/// Where calls carry their token.
const TOKEN: &str = "token";

/// Where a registry is, and how it is asked.
#[derive(Clone)]
pub struct RegistryOptions {
    /// URLs, or addresses, which are spoken to by TLS if there is any.
    pub endpoints: Vec<String>,
    /// TLS of the connection.
    pub tls: Option<Arc<Tls>>,
    /// How long a connection may take.
    pub dial_timeout: Option<Duration>,
    /// How long a call may take.
    pub request_timeout: Duration,
    /// How often a silent connection is pinged while something is asked.
    pub keepalive_time: Option<Duration>,
    /// How long the answer to a ping may take.
    pub keepalive_timeout: Duration,
    /// Name and password of a user.
    pub user: Option<(String, String)>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RegistryError(String);

impl From<Status> for RegistryError {
    fn from(status: Status) -> Self {
        Self(status.message().to_owned())
    }
}

/// What a key holds; nothing when it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The revision of the registry that made it.
    pub created: i64,
}

impl From<KeyValue> for Entry {
    fn from(pair: KeyValue) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { key: text(&pair.key), value: text(&pair.value), created: pair.create_revision }
    }
}

/// The registry.
pub struct Registry {
    options: RegistryOptions,
    session: Mutex<Option<Session>>,
}

/// A connection, and who uses it.
#[derive(Clone)]
struct Session {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Session {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert(TOKEN, token.clone());
        }
        request
    }
}

impl Registry {
    /// Nobody is asked yet.
    pub fn new(options: RegistryOptions) -> Self {
        Self { options, session: Mutex::new(None) }
    }

    /// What a key holds.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, RegistryError> {
        let request = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let found = self.call(move |session| async move {
            KvClient::new(session.channel.clone()).range(session.request(request)).await
        });
        Ok(found.await?.kvs.into_iter().next().map(Entry::from))
    }

    /// What the keys hold that begin so, and the registry's revision.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, i64), RegistryError> {
        let (key, range_end) = (prefix.to_owned().into(), behind(prefix).into());
        let request = pb::RangeRequest { key, range_end, ..Default::default() };
        let found = self.call(move |session| async move {
            KvClient::new(session.channel.clone()).range(session.request(request)).await
        });
        let found = found.await?;
        let revision = found.header.map_or(0, |header| header.revision);
        Ok((found.kvs.into_iter().map(Entry::from).collect(), revision))
    }

    /// Writes a key.
    ///
    /// # Errors
    /// [`RegistryError`]; it may be written all the same.
    pub async fn put(&self, key: &str, value: &str) -> Result<(), RegistryError> {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        let request = pb::PutRequest { key, value, ..Default::default() };
        let written = self.call(move |session| async move {
            KvClient::new(session.channel.clone()).put(session.request(request)).await
        });
        written.await?;
        Ok(())
    }

    /// What changes at keys that begin so, from that revision on.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn watch(&self, prefix: &str, revision: i64) -> Result<Changes, RegistryError> {
        let create = pb::WatchCreateRequest {
            key: prefix.to_owned().into(),
            range_end: behind(prefix).into(),
            start_revision: revision,
            ..Default::default()
        };
        let first = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The watch is there for as long as something may still be asked of it.
        let requests = stream::once(std::future::ready(first)).chain(stream::pending());
        let answers = self.call(move |session| async move {
            WatchClient::new(session.channel.clone()).watch(session.request(requests)).await
        });
        Ok(Changes(answers.await?))
    }

    async fn call<T, F>(&self, ask: impl FnOnce(Session) -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let session = self.session().await?;
        let answered = bounded(self.options.request_timeout, ask(session)).await;
        if answered.is_err() {
            // Whatever it was, the next call begins with a new connection and a new token.
            *self.session.lock() = None;
        }
        Ok(answered?.into_inner())
    }

    async fn session(&self) -> Result<Session, RegistryError> {
        let present = self.session.lock().clone();
        if let Some(session) = present {
            return Ok(session);
        }
        let channel = self.connect().await?;
        let token = self.token(&channel).await?;
        let session = Session { channel, token };
        *self.session.lock() = Some(session.clone());
        Ok(session)
    }

    /// To the first endpoint that can be reached.
    async fn connect(&self) -> Result<Channel, RegistryError> {
        let mut last = RegistryError("there are no endpoints".to_owned());
        for endpoint in &self.options.endpoints {
            match timeout(self.options.dial_timeout.unwrap_or(LONGEST_DIAL), self.dial(endpoint)).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(why)) => last = RegistryError(format!("{endpoint}: {why}")),
                Err(_) => last = RegistryError(format!("{endpoint}: context deadline exceeded")),
            }
        }
        Err(last)
    }

    async fn dial(&self, endpoint: &str) -> Result<Channel, String> {
        let target = Target::of(endpoint, self.options.tls.is_some())?;
        let mut endpoint = Endpoint::from_shared(target.url).map_err(|error| words(&error))?;
        endpoint = endpoint.tcp_nodelay(true).keep_alive_timeout(self.options.keepalive_timeout);
        if let Some(interval) = self.options.keepalive_time {
            endpoint = endpoint.http2_keep_alive_interval(interval);
        }
        let connected = if target.is_secure {
            let tls = self.options.tls.clone();
            endpoint.connect_with_connector(service_fn(move |uri| secured(uri, tls.clone(), None))).await
        } else {
            endpoint.connect().await
        };
        connected.map_err(|error| words(&error))
    }

    /// The token of the user, if there is one and the registry knows users.
    async fn token(&self, channel: &Channel) -> Result<Option<MetadataValue<Ascii>>, RegistryError> {
        let Some((name, password)) = self.options.user.clone() else { return Ok(None) };
        let request = pb::AuthenticateRequest { name, password };
        let mut client = AuthClient::new(channel.clone());
        match bounded(self.options.request_timeout, client.authenticate(request)).await {
            Ok(answer) => {
                let token = answer.into_inner().token.parse::<MetadataValue<Ascii>>();
                token.map(Some).map_err(|_| RegistryError("the token is none".to_owned()))
            }
            Err(RegistryError(why)) if why.contains("authentication is not enabled") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

async fn bounded<T>(
    bound: Duration,
    asked: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, RegistryError> {
    match timeout(bound, asked).await {
        Err(_) => Err(RegistryError("context deadline exceeded".to_owned())),
        Ok(answered) => Ok(answered?),
    }
}

/// What changes at the keys of a watch.
pub struct Changes(Streaming<pb::WatchResponse>);

impl Changes {
    /// The next changes; none of a word that nothing changed.
    ///
    /// # Errors
    /// The watch is over.
    pub async fn next(&mut self) -> Result<Vec<Entry>, RegistryError> {
        let answer = self.0.message().await?.ok_or_else(|| RegistryError("the watch has ended".to_owned()))?;
        if answer.canceled {
            return Err(RegistryError(answer.cancel_reason));
        }
        Ok(answer.events.into_iter().filter_map(|event| event.kv).map(Entry::from).collect())
    }
}

/// How an endpoint is reached.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    url: String,
    is_secure: bool,
}

impl Target {
    /// As etcd's clients read one: its scheme says whether by TLS, and without a scheme it is so if there is TLS.
    fn of(endpoint: &str, has_tls: bool) -> Result<Self, String> {
        let (url, is_secure) = match endpoint.split_once(':') {
            Some(("http" | "unix", _)) => (endpoint.to_owned(), false),
            Some(("https", _)) => (endpoint.to_owned(), true),
            Some(("unixs", _)) => return Err("there is no TLS over a socket here".to_owned()),
            _ if endpoint.contains("://") => return Err("neither http, https nor unix".to_owned()),
            _ if has_tls => (format!("https://{endpoint}"), true),
            _ => (format!("http://{endpoint}"), false),
        };
        Ok(Self { url, is_secure })
    }
}

/// The first key behind all that begin so.
fn behind(prefix: &str) -> Vec<u8> {
    let prefix = prefix.as_bytes();
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX);
    last.map_or(vec![0], |last| [&prefix[..last], &[prefix[last] + 1]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_says_whether_there_is_tls() {
        for (endpoint, has_tls, expected) in [
            ("a:1", false, Some(("http://a:1", false))),
            ("a:1", true, Some(("https://a:1", true))),
            ("http://a:1", true, Some(("http://a:1", false))),
            ("https://a:1", true, Some(("https://a:1", true))),
            ("unix:///run/a", true, Some(("unix:///run/a", false))),
            ("unixs:///run/a", true, None),
            ("ftp://a:1", false, None),
        ] {
            let target = Target::of(endpoint, has_tls).ok();
            let expected = expected.map(|(url, is_secure)| Target { url: url.to_owned(), is_secure });
            assert_eq!(target, expected, "{endpoint}");
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(behind("/members"), b"/membert");
        assert_eq!(behind(""), [0]);
    }
}
