//! One span per gRPC call, as etcd's (otelgrpc's): whether it is kept is the caller's to say, who may have begun a trace, or a
//! matter of chance. Without a collector there is nothing of this on the way of a call.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::HeaderMap;
use balsa_proto::otlp::{Span, Status};

use super::connection::Connection;
use super::socket::Remote;
use crate::transport::otlp::{Exporter, number, text};

/// Chances are so many in a million.
const MILLION: u64 = 1_000_000;
/// OTLP's number for the span of a server.
const SERVER: i32 = 2;
/// OTLP's number for an error.
const ERROR: i32 = 2;
/// OTLP's flags of a span: it is known where its parent was, which is elsewhere.
const FLAGS: u32 = 0x300;
/// gRPC's codes that are the server's fault: Unknown, DeadlineExceeded, Unimplemented, Internal, Unavailable, DataLoss.
const FAULTS: [usize; 6] = [2, 4, 12, 13, 14, 15];

/// Makes spans of calls.
#[derive(Debug)]
pub struct Tracing {
    exporter: Exporter,
    /// Of those without a parent, so many in a million are kept.
    rate: u64,
    random: RandomState,
    drawn: AtomicU64,
}

impl Tracing {
    /// Spans go to `exporter`; of those without a parent `rate` in a million.
    pub fn new(exporter: Exporter, rate: u32) -> Self {
        Self { exporter, rate: rate.into(), random: RandomState::new(), drawn: AtomicU64::new(0) }
    }

    /// Sends what is left.
    pub async fn flush(&self) {
        self.exporter.flush().await;
    }

    /// The span of a call that begins now, if it is kept.
    pub fn begin(self: &Arc<Self>, request: &Request) -> Option<Open> {
        let parent = Parent::of(request.headers());
        let (trace_id, parent_id) = match parent {
            Some(parent) if parent.sampled => (parent.trace_id, Some(parent.span_id)),
            Some(_) => return None,
            None => (self.kept_by_chance()?, None),
        };
        let (service, method) = request.uri().path().trim_start_matches('/').split_once('/')?;
        let mut attributes = vec![text("rpc.service", service), text("rpc.method", method), text("rpc.system", "grpc")];
        attributes.extend(request.extensions().get::<Connection>().into_iter().flat_map(|other| of_peer(other.remote)));
        let span = Span {
            trace_id: trace_id.to_be_bytes().to_vec().into(),
            span_id: self.draw().to_be_bytes().to_vec().into(),
            parent_span_id: parent_id.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default().into(),
            name: format!("{service}/{method}"),
            kind: SERVER,
            start_time_unix_nano: now(),
            attributes,
            flags: FLAGS,
            ..Span::default()
        };
        Some(Open { tracing: self.clone(), span })
    }

    /// The id of a new trace, if it is one of those that are kept.
    fn kept_by_chance(&self) -> Option<u128> {
        if self.rate == 0 {
            return None;
        }
        let (high, low) = (self.draw(), self.draw());
        is_kept(low, self.rate).then(|| (u128::from(high) << 64) | u128::from(low))
    }

    /// A number that nobody guesses, never 0.
    fn draw(&self) -> u64 {
        self.random.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

/// Whether a trace is kept, by the lower half of its id: as in OpenTelemetry, so that all that ask decide alike.
fn is_kept(low: u64, rate: u64) -> bool {
    rate >= MILLION || u128::from(low >> 1) < (u128::from(rate) << 63) / u128::from(MILLION)
}

/// A span of a call that goes on.
#[derive(Debug)]
pub struct Open {
    tracing: Arc<Tracing>,
    span: Span,
}

impl Open {
    /// The call has ended with this code and text.
    pub fn end(mut self, code: usize, message: &str) {
        self.span.end_time_unix_nano = now();
        self.span.attributes.push(number("rpc.grpc.status_code", i64::try_from(code).unwrap_or_default()));
        let is_fault = FAULTS.contains(&code);
        let status = if is_fault { Status { message: message.to_owned(), code: ERROR } } else { Status::default() };
        self.span.status = Some(status);
        self.tracing.exporter.offer(self.span);
    }
}

/// A process of this host has no address.
fn of_peer(remote: Remote) -> Vec<balsa_proto::otlp::KeyValue> {
    let Remote::Tcp(remote) = remote else { return Vec::new() };
    let address = text("net.sock.peer.addr", &remote.ip().to_canonical().to_string());
    vec![address, number("net.sock.peer.port", remote.port().into())]
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What a caller says of the span that its call is a part of, in the header `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parent {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
}

impl Parent {
    fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get("traceparent")?.to_str().ok()?)
    }

    /// `00-<32 digits>-<16 digits>-<2 digits>`, in small letters; versions to come may say more behind that.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_hex.then(|| u128::from_str_radix(part, 16).ok())?
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, u64::try_from(hex(16)?).ok()?, hex(2)?);
        let is_known = version != 0xff && (version != 0 || parts.next().is_none() && flags <= 2);
        (is_known && trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_what_w3c_says() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let parent = Parent::parse(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!(parent.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((parent.span_id, parent.sampled), (0xb7ad_6b71_6920_3331, true));
        assert!(!Parent::parse(&format!("00-{trace}-{span}-00")).unwrap().sampled);
        assert!(Parent::parse(&format!("01-{trace}-{span}-01-more")).is_some(), "a version to come");
        for none in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("00-{trace}-{span}-09"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", &trace[1..]),
        ] {
            assert_eq!(Parent::parse(&none), None, "{none}");
        }
    }

    #[test]
    fn so_many_in_a_million_are_kept() {
        let random = RandomState::new();
        for (rate, low, high) in [(0, 0, 0), (1_000, 20, 200), (500_000, 49_000, 51_000), (1_000_000, 100_000, 100_000)]
        {
            let kept = (0..100_000u64).filter(|number| is_kept(random.hash_one(number), rate)).count();
            assert!((low..=high).contains(&kept), "{kept} of 100,000 at {rate}");
        }
        assert!(is_kept(0, 1) && !is_kept(u64::MAX, 999_999) && is_kept(u64::MAX, MILLION));
    }
}
