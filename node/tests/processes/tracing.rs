//! Spans of calls, sent to a collector: those of etcd 3.6 for the same calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use balsa_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use balsa_proto::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Span, value};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::cluster::PATIENCE;
use crate::etcd::{Etcd, RELEASES, program};
use crate::flags::Single;
use crate::gateway::http::{self, healthy};

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<parking_lot::Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse {}))
    }
}

impl Collector {
    async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let collector = Self::default();
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, address)
    }

    /// All spans, in the order in which their calls began; waits until there are so many.
    async fn spans(&self, count: usize) -> Vec<Span> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let parts = self.0.lock().clone().into_iter().flat_map(|request| request.resource_spans);
            let scopes = parts.flat_map(|part| part.scope_spans);
            let mut spans: Vec<Span> = scopes.flat_map(|scope| scope.spans).collect();
            if spans.len() >= count || Instant::now() > deadline {
                spans.sort_by_key(|span| span.start_time_unix_nano);
                return spans;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn resource(&self) -> BTreeMap<String, String> {
        let first = self.0.lock()[0].resource_spans[0].resource.clone().expect("a resource");
        first.attributes.iter().map(shown).collect()
    }
}

fn shown(attribute: &KeyValue) -> (String, String) {
    let value = match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(value::Value::StringValue(text)) => text.clone(),
        Some(value::Value::IntValue(number)) => number.to_string(),
        None => String::new(),
    };
    (attribute.key.clone(), value)
}

/// What is the same of two programs' spans. etcd names the caller only of calls that are answered, and of one over the gateway
/// that is itself.
fn told(span: &Span) -> String {
    let status = span.status.clone().unwrap_or_default();
    let mut attributes: BTreeMap<_, _> = span.attributes.iter().map(shown).collect();
    attributes.retain(|key, _| !key.starts_with("net.sock.peer."));
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
    let (kind, flags) = (span.kind, span.flags);
    format!("{} {kind} {flags:x} {attributes:?} {} {:?}", span.name, status.code, status.message)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn flags(address: &str, rate: u32) -> Vec<String> {
    vec![
        "--enable-distributed-tracing".to_owned(),
        format!("--distributed-tracing-address={address}"),
        "--distributed-tracing-service-name=store".to_owned(),
        "--distributed-tracing-instance-id=one".to_owned(),
        format!("--distributed-tracing-sampling-rate={rate}"),
    ]
}

/// Calls that begin a trace, that are part of one, that are part of one that nobody keeps, and that fail.
async fn calls(port: u16) {
    let mut kv = KvClient::connect(format!("http://127.0.0.1:{port}")).await.expect("connects");
    kv.put(pb::PutRequest { key: "a".into(), ..Default::default() }).await.expect("a write");
    let part_of = |flags: &str| {
        let mut request = Request::new(pb::RangeRequest { key: "a".into(), ..Default::default() });
        let parent = format!("00-{TRACE}-{CALLER}-{flags}");
        request.metadata_mut().insert("traceparent", parent.parse().expect("a value"));
        request
    };
    kv.range(part_of("01")).await.expect("a read");
    kv.range(part_of("00")).await.expect("a read");
    let future = pb::RangeRequest { key: "a".into(), revision: 1_000, ..Default::default() };
    kv.range(future).await.expect_err("not written yet");
    assert_eq!(http::Request::post("/v3/kv/put", r#"{"key":"YQ=="}"#).send(port).await.status, 200);
}

/// Of the calls all but the one that nobody keeps.
const KEPT: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_told_to_a_collector_as_etcd_tells_them() {
    let (collector, address) = Collector::start().await;
    let single = Single::start(|_| flags(&address, 1_000_000));
    healthy(single.client).await;
    calls(single.client).await;
    let ours = collector.spans(KEPT).await;
    assert_eq!(ours.len(), KEPT, "{ours:?}");
    for span in &ours {
        let is_part = span.name.ends_with("/Range") && !span.parent_span_id.is_empty();
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(is_part, hex(&span.trace_id) == TRACE);
        assert_eq!(hex(&span.parent_span_id), if is_part { CALLER } else { "" });
    }
    let caller: BTreeMap<_, _> = ours[0].attributes.iter().map(shown).collect();
    assert_eq!(caller["net.sock.peer.addr"], "127.0.0.1");
    assert!(caller["net.sock.peer.port"].parse::<u16>().is_ok_and(|port| port > 0), "{caller:?}");
    let expected = BTreeMap::from([("service.instance.id", "one"), ("service.name", "store")]);
    let resource = collector.resource();
    assert!(resource.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected), "{resource:?}");
    let ours: Vec<_> = ours.iter().map(told).collect();

    let Some(program) = program(RELEASES[0]) else { return };
    let (collector, address) = Collector::start().await;
    let etcd = Etcd::run(&program, 1, &flags(&address, 1_000_000));
    healthy(etcd.port).await;
    calls(etcd.port).await;
    let theirs: Vec<_> = collector.spans(KEPT).await.iter().map(told).collect();
    assert_eq!(ours, theirs);
    assert_eq!(collector.resource(), resource);
}

/// What a caller keeps is kept, and nothing else, at the rate that is the default; a member that stops sends what it has.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_rate_of_none_only_traces_of_others_are_kept_and_a_stop_loses_none() {
    let (collector, address) = Collector::start().await;
    let single = Single::start(|_| flags(&address, 0));
    healthy(single.client).await;
    calls(single.client).await;
    // Whatever it has not sent by its end nobody sends.
    single.stop().await;
    let spans = collector.spans(1).await;
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!(spans[0].name, "etcdserverpb.KV/Range");
    assert!(!spans[0].parent_span_id.is_empty());
}
