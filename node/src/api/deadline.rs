//! The time that a client gives its call (`grpc-timeout`), kept as gRPC-Go keeps it: a call whose time is over is answered
//! with DeadlineExceeded, and a stream ends with it. tonic's own bound says Cancelled, by which clients take the call for
//! one that was withdrawn, and lets go of a stream once it has begun.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::Status;

use super::gateway::go_quoted;

/// The header that bounds a call.
pub(super) const TIMEOUT: &str = "grpc-timeout";
/// The longest value, with its unit.
const LONGEST: usize = 9;
/// A shorter time is over before anything can be done. gRPC-Go looks at its clock once more before it begins.
const LEAST: Duration = Duration::from_micros(1);

/// Passes a call on for as long as its client gives it. One that may be answered with a stream has that time for all of it.
pub(super) async fn keep(request: Request, next: Next, streams: bool) -> Response {
    let Some(value) = request.headers().get_all(TIMEOUT).iter().next_back() else { return next.run(request).await };
    let text = String::from_utf8_lossy(value.as_bytes());
    let timeout = match read(&text) {
        Ok(timeout) => timeout,
        Err(flaw) => return Status::internal(format!("malformed grpc-timeout: {}", flaw.of(&text))).into_http(),
    };
    let Some(deadline) = Instant::now().checked_add(timeout) else { return next.run(request).await };
    if timeout < LEAST {
        return exceeded().into_http();
    }
    match timeout_at(deadline, next.run(request)).await {
        // A refusal is a head alone, and has to stay one.
        Ok(response) if streams && !response.body().is_end_stream() => {
            response.map(|body| Body::new(Bounded::new(body, deadline)))
        }
        Ok(response) => response,
        Err(_) => exceeded().into_http(),
    }
}

/// The same for a port of which nothing is counted.
pub(super) async fn keep_all(request: Request, next: Next) -> Response {
    keep(request, next, true).await
}

/// How many nanoseconds a unit of the header is.
pub(super) fn nanoseconds(unit: &str) -> Option<u64> {
    Some(match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    })
}

/// Why a time cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    Short,
    Long,
    Unit,
    Number,
}

impl Flaw {
    /// In gRPC-Go's words, of this text.
    pub(super) fn of(self, text: &str) -> String {
        let shown = go_quoted(text.as_bytes());
        match self {
            Self::Short => format!("transport: timeout string is too short: {shown}"),
            Self::Long => format!("transport: timeout string is too long: {shown}"),
            Self::Unit => format!("transport: timeout unit is not recognized: {shown}"),
            Self::Number => {
                let number = text.split_at_checked(text.len().saturating_sub(1)).map_or(text, |(number, _)| number);
                format!("strconv.ParseInt: parsing {}: invalid syntax", go_quoted(number.as_bytes()))
            }
        }
    }
}

/// Reads the header as gRPC-Go does.
pub(super) fn read(text: &str) -> Result<Duration, Flaw> {
    match text.len() {
        0 | 1 => return Err(Flaw::Short),
        LONGEST.. if text.len() > LONGEST => return Err(Flaw::Long),
        _ => {}
    }
    let (number, unit) = text.split_at_checked(text.len() - 1).ok_or(Flaw::Unit)?;
    let unit = nanoseconds(unit).ok_or(Flaw::Unit)?;
    let number: i64 = number.parse().map_err(|_| Flaw::Number)?;
    // A time that has passed is a call that is over.
    Ok(Duration::from_nanos(u64::try_from(number).unwrap_or_default().saturating_mul(unit)))
}

fn exceeded() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// The body of a stream that ends at a moment, if not before.
struct Bounded {
    /// None when it is over.
    body: Option<Body>,
    over: Pin<Box<Sleep>>,
}

impl Bounded {
    fn new(body: Body, deadline: Instant) -> Self {
        Self { body: Some(body), over: Box::pin(sleep_until(deadline)) }
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        // First: a stream that always has something to give would never end.
        if this.over.as_mut().poll(cx).is_pending() {
            return Pin::new(body).poll_frame(cx);
        }
        this.body = None;
        let mut trailers = HeaderMap::new();
        // It fails only for a message that cannot be a header, which this one can.
        let _ = exceeded().add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::middleware::from_fn;
    use tower::ServiceExt;

    use super::*;

    /// What a handler that never answers is answered for, when it is given so long.
    async fn unanswered(time: &str) -> (StatusCode, String, String) {
        let never = Router::new().fallback(std::future::pending::<StatusCode>);
        let kept = never.layer(from_fn(|request, next| keep(request, next, true)));
        let request = Request::builder().header(TIMEOUT, time).body(Body::empty()).unwrap();
        let response = kept.oneshot(request).await.unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        (response.status(), header("grpc-status"), header("grpc-message"))
    }

    #[tokio::test]
    async fn what_is_not_answered_in_time_is_told_so() {
        for time in ["20m", "1n", "0S", "-1H"] {
            let over = (StatusCode::OK, "4".to_owned(), "context%20deadline%20exceeded".to_owned());
            assert_eq!(unanswered(time).await, over, "{time}");
        }
        let (_, status, message) = unanswered("1X").await;
        assert_eq!(status, "13");
        assert!(message.starts_with("malformed%20grpc-timeout"), "{message}");
    }

    #[tokio::test]
    async fn no_time_is_over_early() {
        let begun = Instant::now();
        unanswered("30m").await;
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn a_stream_that_has_always_something_to_give_ends_too() {
        let endless = futures::stream::repeat_with(|| Ok::<_, std::convert::Infallible>(Bytes::from_static(b"x")));
        let mut body = Bounded::new(Body::from_stream(endless), Instant::now() + Duration::from_millis(30));
        let status = loop {
            let frame =
                std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.expect("no end before").unwrap();
            if let Ok(trailers) = frame.into_trailers() {
                break trailers["grpc-status"].clone();
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(status, "4");
        assert!(std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_none());
    }

    #[test]
    fn a_time_is_read_as_by_grpc_go() {
        for (text, expected) in [
            ("1S", Duration::from_secs(1)),
            ("00000001S", Duration::from_secs(1)),
            ("+2m", Duration::from_millis(2)),
            ("3u", Duration::from_micros(3)),
            ("4n", Duration::from_nanos(4)),
            ("5M", Duration::from_secs(300)),
            ("0S", Duration::ZERO),
            ("-1S", Duration::ZERO),
            ("99999999H", Duration::from_nanos(u64::MAX)),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("", "transport: timeout string is too short: \"\""),
            ("1", "transport: timeout string is too short: \"1\""),
            ("123456789S", "transport: timeout string is too long: \"123456789S\""),
            ("1s", "transport: timeout unit is not recognized: \"1s\""),
            ("1é", "transport: timeout unit is not recognized: \"1é\""),
            ("1.5S", "strconv.ParseInt: parsing \"1.5\": invalid syntax"),
        ] {
            assert_eq!(read(text).map_err(|flaw| flaw.of(text)), Err(expected.to_owned()));
        }
    }
}
