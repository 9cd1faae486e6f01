//! Spans on their way to a collector: OTLP over gRPC, in batches, with the bounds of OpenTelemetry's exporter for Go, which
//! etcd's are sent by. Nobody waits for it: what has no room is dropped.

use std::time::Duration;

use balsa_proto::otlp::trace_service_client::TraceServiceClient;
use balsa_proto::otlp::{ExportTraceServiceRequest, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span};
use balsa_proto::otlp::{Value, value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tracing::warn;

/// Spans that wait to be sent.
const QUEUE_SPANS: usize = 2_048;
/// Spans of one message.
const BATCH_SPANS: usize = 512;
/// A span is sent after so long at the latest.
const BATCH_WITHIN: Duration = Duration::from_secs(5);
/// What a collector may take for one message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// What is left at the end is sent within so long, or not.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);

/// Where spans go, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// `host:port`.
    pub address: String,
    /// The attribute `service.name`.
    pub service_name: String,
    /// The attribute `service.instance.id`, unless it is empty.
    pub instance_id: String,
}

/// Takes spans and sends them.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Queued>,
}

enum Queued {
    Span(Span),
    /// What came before it is to be sent at once; then this hears of it.
    Flush(oneshot::Sender<()>),
}

impl Exporter {
    /// Begins to send to `collector`, which need not be there yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn start(collector: &Collector) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", collector.address))?.timeout(SEND_TIMEOUT);
        let client = TraceServiceClient::new(endpoint.connect_lazy());
        let (queue, queued) = mpsc::channel(QUEUE_SPANS);
        tokio::spawn(send_all(client, resource(collector), queued));
        Ok(Self { queue })
    }

    /// Queues a span, if there is room.
    pub fn offer(&self, span: Span) {
        let _ = self.queue.try_send(Queued::Span(span));
    }

    /// Sends what is left, unless the collector takes too long.
    pub async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        let flushed = async {
            self.queue.send(Queued::Flush(done)).await.ok()?;
            is_done.await.ok()
        };
        if !matches!(timeout(LAST_TIMEOUT, flushed).await, Ok(Some(()))) {
            warn!("the last spans could not be sent to the collector");
        }
    }
}

async fn send_all(mut client: TraceServiceClient<Channel>, resource: Resource, mut queue: mpsc::Receiver<Queued>) {
    let mut fails = false;
    while let Some(first) = queue.recv().await {
        let (batch, flush) = fill(first, &mut queue).await;
        if !batch.is_empty() {
            let sent = client.export(request(&resource, batch)).await;
            // Once for each time that it goes away.
            if let Err(status) = &sent
                && !fails
            {
                warn!(error = status.message(), "spans could not be sent to the collector");
            }
            fails = sent.is_err();
        }
        if let Some(done) = flush {
            let _ = done.send(());
        }
    }
}

/// A batch that begins with `first`, and who waits until it is sent.
async fn fill(first: Queued, queue: &mut mpsc::Receiver<Queued>) -> (Vec<Span>, Option<oneshot::Sender<()>>) {
    let until = Instant::now() + BATCH_WITHIN;
    let (mut batch, mut next) = (Vec::new(), Some(first));
    loop {
        match next {
            Some(Queued::Span(span)) => batch.push(span),
            Some(Queued::Flush(done)) => return (batch, Some(done)),
            None => return (batch, None),
        }
        if batch.len() == BATCH_SPANS {
            return (batch, None);
        }
        next = timeout_at(until, queue.recv()).await.ok().flatten();
    }
}

fn request(resource: &Resource, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope = Scope { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let of_member = ResourceSpans { resource: Some(resource.clone()), scope_spans };
    ExportTraceServiceRequest { resource_spans: vec![of_member] }
}

fn resource(collector: &Collector) -> Resource {
    let named = [("service.instance.id", &collector.instance_id), ("service.name", &collector.service_name)];
    let attributes = named.into_iter().filter(|(name, value)| *name == "service.name" || !value.is_empty());
    Resource { attributes: attributes.map(|(name, value)| text(name, value)).collect() }
}

/// An attribute that is a text.
pub fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(Value { value: Some(value::Value::StringValue(value.to_owned())) }) }
}

/// An attribute that is a number.
pub fn number(key: &str, value: i64) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(Value { value: Some(value::Value::IntValue(value)) }) }
}
