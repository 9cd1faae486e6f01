//! Ends streams whose client does not read, and in the end its connection.
//!
//! HTTP/2 asks a body for its next frame only when the client's window, or the socket, has room. So a body that gave a frame
//! and is not asked again has bytes that its client does not take. After a bound of that it is ended: what it held (a
//! stream's watchers, their events, a view of the store) is dropped at once, and `ResourceExhausted` is what the client
//! reads if it ever reads on. A client that does not do so within the bound once more loses its connection, because nothing
//! else frees the stream itself. A client that is slow and reads moves its window again and again, and is left alone.
//! The gateway asks its calls for more only when its clients take what there is, so they are under the same rule.
//!
//! It must not know what streams are for: every call that is not unary is under this rule.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Behind, Closer, Connection};
use super::large_message;
use super::status::etcd;
use crate::metrics::{UNREAD_CONNECTIONS, UNREAD_STREAMS};
use crate::service::failure::Error;
use crate::service::metrics::Grpc;

/// What a body gives at once: a frame of HTTP/2. Of a larger piece it would not be seen that it moves.
const PIECE: usize = 16 << 10;

/// Which streams are under the rule, and how long one may be unread.
#[derive(Clone)]
pub struct Bounded {
    /// Those of these that are not unary.
    pub methods: Arc<Grpc>,
    /// Zero for ever.
    pub bound: Duration,
}

/// Passes a call on and watches how its answers are read.
pub async fn end_unread(State(Bounded { methods, bound }): State<Bounded>, request: Request, next: Next) -> Response {
    let streams = methods.method(request.uri().path()).is_some_and(|method| !method.is_unary);
    if !streams {
        return next.run(request).await;
    }
    let client = Client::of(&request);
    let response = large_message::in_place(next.run(request).await);
    // A refusal is a head alone, and has to stay one: of a head that a frame follows, gRPC-Go does not take the status.
    if bound.is_zero() || response.body().is_end_stream() {
        return response;
    }
    response.map(|body| Body::new(Read::new(body, bound, client)))
}

/// Whose stream it is, for the log, and how to be rid of it.
struct Client {
    call: String,
    remote: String,
    /// None for a call that comes by no connection.
    closer: Option<Closer>,
}

impl Client {
    fn of(request: &Request) -> Self {
        let (call, extensions) = (request.uri().path().to_owned(), request.extensions());
        // The gateway reads for its client as far as that reads, and no further.
        let direct = extensions.get().map(Connection::behind);
        match direct.or_else(|| extensions.get::<Behind>().cloned()) {
            Some(Behind { remote, closer }) => Self { call, remote: remote.to_string(), closer: Some(closer) },
            None => Self { call, remote: "within the process".to_owned(), closer: None },
        }
    }
}

/// A body, and how it is read.
struct Reading {
    body: Body,
    /// What is left of the body's last frame.
    rest: Bytes,
    /// Since when a frame is given that nobody came back from.
    given: Option<Instant>,
    ended: Ended,
}

/// How far the end of an unread body has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    No,
    /// The body is gone; the client has not heard of it.
    Untold,
    Told,
}

/// What the watch finds.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It is read, or was until so short a time ago that it is to be looked at again after this long.
    Read(Duration),
    Unread,
}

impl Reading {
    fn new(body: Body) -> Self {
        Self { body, rest: Bytes::new(), given: None, ended: Ended::No }
    }

    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.ended {
            Ended::No => {}
            Ended::Untold => {
                self.ended = Ended::Told;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers()))));
            }
            Ended::Told => return Poll::Ready(None),
        }
        let polled = match self.rest.is_empty() {
            true => Pin::new(&mut self.body).poll_frame(cx).map_ok(|frame| self.first_piece(frame)),
            false => Poll::Ready(Some(Ok(self.next_piece()))),
        };
        self.given = matches!(polled, Poll::Ready(Some(Ok(_)))).then_some(now);
        polled
    }

    fn first_piece(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(data) => {
                self.rest = data;
                self.next_piece()
            }
            Err(frame) => frame,
        }
    }

    fn next_piece(&mut self) -> Frame<Bytes> {
        Frame::data(self.rest.split_to(self.rest.len().min(PIECE)))
    }

    /// Ends it if it has been unread for `bound`; the body is handed back to be dropped.
    fn look(&mut self, bound: Duration, now: Instant) -> (Found, Option<Body>) {
        let Some(given) = self.given else { return (Found::Read(bound), None) };
        match bound.checked_sub(now - given) {
            Some(left) if !left.is_zero() => (Found::Read(left), None),
            _ => {
                self.ended = Ended::Untold;
                self.rest = Bytes::new();
                (Found::Unread, Some(std::mem::take(&mut self.body)))
            }
        }
    }
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // It fails only for a message that cannot be a header, which this one can.
    let _ = etcd(Error::Unread).add_header(&mut trailers);
    trailers
}

/// The body as the connection sees it.
struct Read {
    reading: Arc<Mutex<Reading>>,
    /// Ends with it.
    _watch: AbortOnDropHandle<()>,
}

impl Read {
    fn new(body: Body, bound: Duration, client: Client) -> Self {
        let reading = Arc::new(Mutex::new(Reading::new(body)));
        let watch = tokio::spawn(watch(Arc::downgrade(&reading), bound, client));
        Self { reading, _watch: AbortOnDropHandle::new(watch) }
    }
}

impl HttpBody for Read {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.reading.lock().poll(cx, Instant::now())
    }
}

/// Waits until a body is unread and ends it, then until the connection is unread too and closes it.
async fn watch(reading: Weak<Mutex<Reading>>, bound: Duration, client: Client) {
    let mut wait = bound;
    loop {
        sleep(wait).await;
        let Some(reading) = reading.upgrade() else { return };
        let (found, body) = reading.lock().look(bound, Instant::now());
        // Outside of the lock: a stream of ten thousand watchers takes a while to go.
        drop(body);
        match found {
            Found::Read(left) => wait = left,
            Found::Unread => break,
        }
    }
    UNREAD_STREAMS.inc();
    tracing::warn!(call = client.call, remote = client.remote, "a stream is ended: its client does not read it");
    sleep(bound).await;
    let told = reading.upgrade().is_none_or(|reading| reading.lock().ended == Ended::Told);
    if let (false, Some(closer)) = (told, client.closer)
        && closer.close()
    {
        UNREAD_CONNECTIONS.inc();
        tracing::warn!(remote = client.remote, "a connection is closed: its client does not read");
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use futures::StreamExt as _;
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tokio_stream::wrappers::ReceiverStream;
    use tower::ServiceExt;

    use super::*;
    use crate::service::metrics::Metrics;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_refusal_stays_a_head_alone() {
        let refusing = Router::new().fallback(|| async { tonic::Status::permission_denied("no").into_http::<Body>() });
        let methods = Metrics::new().unwrap().grpc();
        let guarded = refusing.layer(from_fn_with_state(Bounded { methods, bound: PATIENCE }, end_unread));
        let request = Request::post("/etcdserverpb.Maintenance/Snapshot").body(Body::empty()).unwrap();
        let response = guarded.oneshot(request).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "7");
        assert!(response.body().is_end_stream());
    }

    /// A body of what is sent, and a way to see whether it still exists.
    fn body() -> (mpsc::Sender<&'static str>, Body) {
        let (sender, receiver) = mpsc::channel(16);
        (sender, Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, axum::Error>)))
    }

    fn read(body: Body, bound: Duration) -> (Read, Closer) {
        let closer = Closer::default();
        let client = Client { call: "/a.B/C".into(), remote: "r".into(), closer: Some(closer.clone()) };
        (Read::new(body, bound, client), closer)
    }

    async fn next(body: &mut Read) -> Option<Frame<Bytes>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.map(|frame| frame.expect("a frame"))
    }

    #[tokio::test]
    async fn an_unread_body_is_dropped_and_its_end_is_told_to_whoever_reads_on() {
        let (sender, body) = body();
        let (mut body, _) = read(body, Duration::from_millis(50));
        sender.send("x").await.unwrap();
        assert!(next(&mut body).await.unwrap().is_data());
        timeout(PATIENCE, sender.closed()).await.expect("what the stream held is gone");
        let trailers = next(&mut body).await.unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "8");
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn a_large_frame_moves_piece_by_piece() {
        let large: Vec<u8> = (0..=255).cycle().take(PIECE * 3 + 7).collect();
        let (mut body, _) = read(Body::from(large.clone()), PATIENCE);
        let mut pieces = Vec::new();
        while let Some(frame) = next(&mut body).await {
            pieces.push(frame.into_data().expect("data"));
        }
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, PIECE, PIECE, 7]);
        assert_eq!(pieces.concat(), large);
    }

    #[tokio::test]
    async fn a_connection_that_does_not_take_the_end_either_is_closed() {
        let (sender, body) = body();
        let (mut body, closer) = read(body, Duration::from_millis(50));
        sender.send("x").await.unwrap();
        next(&mut body).await;
        let closed = async {
            while !closer.is_closed() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, closed).await.expect("closed");
    }

    #[tokio::test]
    async fn a_body_that_is_read_slowly_or_has_nothing_to_give_is_left_alone() {
        let (sender, body) = body();
        let mut reading = Reading::new(body);
        let bound = Duration::from_secs(10);
        let almost = Duration::from_secs(9);
        let mut now = Instant::now();
        for _ in 0..20 {
            sender.send("x").await.unwrap();
            assert!(poll_fn(|cx| reading.poll(cx, now)).await.unwrap().unwrap().is_data());
            now += almost;
            assert_eq!(reading.look(bound, now).0, Found::Read(bound - almost));
        }
        // Asked for more than there is: it is the server that is silent now.
        assert!(timeout(Duration::from_millis(1), poll_fn(|cx| reading.poll(cx, now))).await.is_err());
        assert_eq!(reading.look(bound, now + bound * 10).0, Found::Read(bound));
        sender.send("y").await.unwrap();
        assert!(poll_fn(|cx| reading.poll(cx, now)).await.unwrap().unwrap().is_data());
        assert_eq!(reading.look(bound, now + bound).0, Found::Unread);
    }
}
