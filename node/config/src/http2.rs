//! What HTTP/2 connections of clients may do.

use std::time::Duration;

use super::ConfigError;
use super::sources::Raw;

/// Limits and times of clients' HTTP/2 connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2 {
    /// Streams on one connection.
    pub max_concurrent_streams: u32,
    /// How far apart the pings of a client must be; zero for any.
    pub ping_min_time: Duration,
    /// How often an idle client is pinged.
    pub keepalive_interval: Option<Duration>,
    /// How long it may take to answer.
    pub keepalive_timeout: Duration,
}

pub(super) fn read(raw: &Raw) -> Result<Http2, ConfigError> {
    let (interval, timeout) = (raw.duration("grpc-keepalive-interval")?, raw.duration("grpc-keepalive-timeout")?);
    Ok(Http2 {
        max_concurrent_streams: raw.number("max-concurrent-streams")?,
        ping_min_time: ping_min_time(raw.duration("grpc-keepalive-min-time")?),
        // Without either nobody is pinged, as in etcd.
        keepalive_interval: (!interval.is_zero() && !timeout.is_zero()).then_some(interval),
        keepalive_timeout: timeout,
    })
}

/// Without a bound etcd leaves it to gRPC, which has one of its own.
pub fn ping_min_time(flag: Duration) -> Duration {
    if flag.is_zero() { Duration::from_secs(300) } else { flag }
}
