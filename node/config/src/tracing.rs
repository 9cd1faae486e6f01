//! Spans of calls: where they go, and of how many calls.

use super::sources::Raw;
use super::{ConfigError, invalid};

/// Where spans of calls go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// The collector, as `host:port`.
    pub address: String,
    /// The attribute `service.name`.
    pub service_name: String,
    /// The attribute `service.instance.id`, unless it is empty.
    pub instance_id: String,
    /// Of a million calls without a trace, so many begin one.
    pub rate: u32,
}

/// The rate is looked at only by whoever asks for spans, as in etcd.
pub(super) fn read(raw: &Raw) -> Result<Option<Tracing>, ConfigError> {
    if !raw.boolean("enable-distributed-tracing")? {
        return Ok(None);
    }
    let wrong = |why: &str| {
        invalid(format!("distributed tracing configurition is not valid: (tracing sampling rate must be {why})"))
    };
    let rate = match raw.number::<i64>("distributed-tracing-sampling-rate")? {
        ..0 => return Err(wrong("positive")),
        1_000_001.. => return Err(wrong("less than 1000000")),
        rate => u32::try_from(rate).unwrap_or_default(),
    };
    let text = |name: &str| raw.text(&format!("distributed-tracing-{name}")).to_owned();
    Ok(Some(Tracing {
        address: text("address"),
        service_name: text("service-name"),
        instance_id: text("instance-id"),
        rate,
    }))
}
