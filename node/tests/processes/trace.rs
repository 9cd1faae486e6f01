//! The golden trace of the node service (`node/proto/trace/`), replayed against real nodes: what the operator was built on
//! is what nodes answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use balsa_proto::FILE_DESCRIPTOR_SET;
use balsa_proto::node as wire;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tonic::transport::{Channel, Endpoint};
use wire::node_client::NodeClient;

use crate::cluster::{Cluster, PATIENCE};
use crate::gateway::http::Request;

const GOLDEN: &str = include_str!("../../proto/trace/1-3-1.txt");
const REFUSALS: &str = include_str!("../../proto/trace/refusals.txt");
const NAMES: [&str; 3] = ["db-0", "db-1", "db-2"];

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_trace_replays_against_real_nodes() {
    let (mut cluster, answered) = replayed(GOLDEN).await;
    assert!(answered > 30, "{answered} calls");
    assert_eq!(cluster.members[2].wait_for_exit().code(), Some(71), "MemberRemoved\n{}", cluster.logs());
}

/// The checks of the nodes themselves, M3, M6 and M7 among them: what would harm the cluster is refused, and what is done
/// already is answered.
#[tokio::test(flavor = "multi_thread")]
async fn what_would_harm_the_cluster_is_refused_and_what_is_done_is_answered_again() {
    let (mut cluster, answered) = replayed(REFUSALS).await;
    assert!(answered > 30, "{answered} calls");
    // Back on the disk of a removed member.
    start(&mut cluster, 1);
    assert_eq!(cluster.members[1].wait_for_exit().code(), Some(71), "MemberRemoved\n{}", cluster.logs());
}

/// The startup probe of a pod rests on it: a node may wait for the operator for as long as it takes, and gets no clients.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_to_be_told_what_it_is_is_alive_and_not_ready() {
    let mut cluster = Cluster::unstarted(1);
    start(&mut cluster, 0);
    answers(&cluster, 0).await;
    let port = cluster.members[0].client_port;
    assert_eq!(Request::get("/livez").send(port).await.status, 200);
    let ready = Request::get("/readyz").send(port).await;
    let body = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(ready.status == 503 && body.contains("[-]linearizable_read failed"), "{body}");

    let urls = vec![cluster.members[0].peer_url()];
    let bootstrap = wire::BootstrapRequest { cluster_id: 7, peer_urls: urls, ..Default::default() };
    client(&cluster, 0).bootstrap(bootstrap).await.expect("founded");
    let is_ready = || async { Request::get("/readyz").send(port).await.status == 200 };
    cluster.eventually("a founder is ready", is_ready).await;
}

/// Three nodes after all calls of a trace, and how many there were.
async fn replayed(trace: &str) -> (Cluster, usize) {
    let mut cluster = Cluster::unstarted(0);
    for name in NAMES {
        let index = cluster.add_unstarted(name);
        start(&mut cluster, index);
    }
    for at in 0..NAMES.len() {
        answers(&cluster, at).await;
    }
    let mut script = trace.to_owned();
    for (index, name) in NAMES.into_iter().enumerate() {
        script = script.replace(&format!("http://{name}.db:2380"), &cluster.members[index].peer_url());
    }
    let contract = Contract::load();
    let (mut at, mut call, mut until, mut answered) = (0, None, false, 0);
    for line in script.lines() {
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        match mark {
            "@" => at = place(rest),
            "->" => (call, until) = (rest.split_once(' '), false),
            "..." => until = true,
            "<-" | "<!" => {
                let (method, request) = call.take().expect("an answer follows its call");
                let expected = if mark == "<!" { Expected::Refusal(rest) } else { Expected::Answer(rest) };
                replay(&cluster, &contract, at, method, request, expected, until).await;
                answered += 1;
            }
            "!" => bring_about(&mut cluster, rest).await,
            _ => {}
        }
    }
    (cluster, answered)
}

fn place(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("no node {name}"))
}

fn start(cluster: &mut Cluster, index: usize) {
    cluster.run_with(index, "", "new", &[("BALSA_BOOTSTRAP", "operator")]);
}

async fn answers(cluster: &Cluster, at: usize) {
    let asked = || async { client(cluster, at).state(wire::StateRequest { cluster_id: 0 }).await.is_ok() };
    cluster.eventually("the node answers", asked).await;
}

fn client(cluster: &Cluster, at: usize) -> NodeClient<Channel> {
    let endpoint = Endpoint::from_shared(cluster.members[at].peer_url()).expect("a URL");
    NodeClient::new(endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy())
}

async fn bring_about(cluster: &mut Cluster, event: &str) {
    match event.split_once(' ') {
        Some(("leader", id)) => {
            let target = id.parse().expect("an id");
            // The leader hands over only to a voter that has everything.
            let moves = || async {
                client(cluster, 0)
                    .move_leader(wire::MoveLeaderRequest { target, ..wire::MoveLeaderRequest::default() })
                    .await
                    .is_ok()
            };
            cluster.eventually(event, moves).await;
        }
        Some(("restart", name)) => {
            stop(cluster, place(name));
            resume(cluster, place(name)).await;
        }
        Some(("stop", name)) => stop(cluster, place(name)),
        Some(("start", name)) => resume(cluster, place(name)).await,
        _ => panic!("no such event: {event}"),
    }
}

fn stop(cluster: &mut Cluster, index: usize) {
    cluster.members[index].signal("TERM");
    cluster.members[index].wait_for_exit();
}

async fn resume(cluster: &mut Cluster, index: usize) {
    start(cluster, index);
    answers(cluster, index).await;
}

/// What a trace writes below a call.
#[derive(Clone, Copy, Debug)]
enum Expected<'a> {
    Answer(&'a str),
    /// The name of the reason.
    Refusal(&'a str),
}

async fn replay(
    cluster: &Cluster,
    contract: &Contract,
    at: usize,
    method: &str,
    request: &str,
    expected: Expected<'_>,
    until: bool,
) {
    let request = contract.encode(&format!("balsa.node.v1.{method}Request"), &parse(request));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (message, answer) = call_node(&mut client(cluster, at), method, &request).await;
        let fault = match (answer, expected) {
            (Ok(bytes), Expected::Answer(text)) => contract.difference(message, &bytes, &parse(text)),
            (Ok(_), Expected::Refusal(_)) => Some("it was done".to_owned()),
            (Err(status), Expected::Refusal(reason)) if reason_of(&status) == reason => None,
            (Err(status), _) => Some(status.to_string()),
        };
        let Some(fault) = fault else { return };
        let name = NAMES[at];
        assert!(
            until && Instant::now() < deadline,
            "{name} {method}: {fault}\nexpected {expected:?}\n{}",
            cluster.logs()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn reason_of(status: &tonic::Status) -> &str {
    status.metadata().get("balsa-reason").and_then(|reason| reason.to_str().ok()).unwrap_or_default()
}

/// Calls by name; the full name of the answer's message, and its bytes.
async fn call_node(
    client: &mut NodeClient<Channel>,
    method: &str,
    request: &[u8],
) -> (&'static str, Result<Vec<u8>, tonic::Status>) {
    macro_rules! call {
        ($call:ident, $request:ident, $answer:literal) => {{
            let request = wire::$request::decode(request).expect("the contract's bytes");
            ($answer, client.$call(request).await.map(|answer| answer.into_inner().encode_to_vec()))
        }};
    }
    match method {
        "State" => call!(state, StateRequest, "balsa.node.v1.StateResponse"),
        "Bootstrap" => call!(bootstrap, BootstrapRequest, "balsa.node.v1.BootstrapResponse"),
        "Join" => call!(join, JoinRequest, "balsa.node.v1.JoinResponse"),
        "List" => call!(list, ListRequest, "balsa.node.v1.ListResponse"),
        "Add" => call!(add, AddRequest, "balsa.node.v1.ChangeResponse"),
        "Promote" => call!(promote, PromoteRequest, "balsa.node.v1.ChangeResponse"),
        "Remove" => call!(remove, RemoveRequest, "balsa.node.v1.ChangeResponse"),
        "MoveLeader" => call!(move_leader, MoveLeaderRequest, "balsa.node.v1.MoveLeaderResponse"),
        "PrepareStop" => call!(prepare_stop, PrepareStopRequest, "balsa.node.v1.PrepareStopResponse"),
        "SetConfig" => call!(set_config, SetConfigRequest, "balsa.node.v1.SetConfigResponse"),
        other => panic!("no such method: {other}"),
    }
}

/// What a trace writes: `{name: 1, names: ["a"], inner: {…}}`.
#[derive(Debug)]
enum Value {
    /// A number, `true`, `false` or the name of an enum's value.
    Word(String),
    Text(String),
    List(Vec<Value>),
    Message(Vec<(String, Value)>),
}

fn parse(text: &str) -> Value {
    let (value, rest) = value(text);
    assert_eq!(rest.trim(), "", "behind {text}");
    value
}

fn value(text: &str) -> (Value, &str) {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut fields = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if let Some(rest) = rest.strip_prefix('}') {
                return (Value::Message(fields), rest);
            }
            let (name, after) = rest.split_once(':').expect("field: value");
            let (field, after) = value(after);
            fields.push((name.to_owned(), field));
            rest = after;
        }
    }
    if let Some(mut rest) = text.strip_prefix('[') {
        let mut items = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if let Some(rest) = rest.strip_prefix(']') {
                return (Value::List(items), rest);
            }
            let (item, after) = value(rest);
            items.push(item);
            rest = after;
        }
    }
    if let Some(rest) = text.strip_prefix('"') {
        let (string, rest) = rest.split_once('"').expect("a text ends");
        return (Value::Text(string.to_owned()), rest);
    }
    let end = text.find([',', '}', ']', ' ']).unwrap_or(text.len());
    (Value::Word(text[..end].to_owned()), &text[end..])
}

/// Messages and enums by full name.
struct Contract {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, HashMap<String, u64>>,
}

/// A field's value on the wire.
enum Raw {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Contract {
    fn load() -> Self {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("a descriptor set");
        let (mut messages, mut enums) = (HashMap::new(), HashMap::new());
        for file in set.file {
            let package = file.package().to_owned();
            for message in file.message_type {
                messages.insert(format!("{package}.{}", message.name()), message);
            }
            for of in file.enum_type {
                let number = |value: &prost_types::EnumValueDescriptorProto| value.number().unsigned_abs().into();
                let values = of.value.iter().map(|value| (value.name().to_owned(), number(value))).collect();
                enums.insert(format!("{package}.{}", of.name()), values);
            }
        }
        Self { messages, enums }
    }

    fn field(&self, message: &str, name: &str) -> &FieldDescriptorProto {
        let fields = &self.messages[message].field;
        fields.iter().find(|field| field.name() == name).unwrap_or_else(|| panic!("{message} has no field {name}"))
    }

    fn number(&self, field: &FieldDescriptorProto, word: &str) -> u64 {
        match field.r#type() {
            Type::Enum => self.enums[field.type_name().trim_start_matches('.')][word],
            Type::Bool => u64::from(word == "true"),
            _ => word.parse().unwrap_or_else(|_| panic!("{} is a number, not {word}", field.name())),
        }
    }

    fn encode(&self, message: &str, value: &Value) -> Vec<u8> {
        let Value::Message(fields) = value else { panic!("no message: {value:?}") };
        let mut bytes = Vec::new();
        for (name, value) in fields {
            let field = self.field(message, name);
            match value {
                Value::List(items) => items.iter().for_each(|item| self.encode_field(field, item, &mut bytes)),
                value => self.encode_field(field, value, &mut bytes),
            }
        }
        bytes
    }

    fn encode_field(&self, field: &FieldDescriptorProto, value: &Value, bytes: &mut Vec<u8>) {
        let tag = u64::from(field.number().unsigned_abs()) << 3;
        let content = match value {
            Value::Word(word) => {
                put_varint(bytes, tag);
                return put_varint(bytes, self.number(field, word));
            }
            Value::Text(text) => text.clone().into_bytes(),
            message => self.encode(field.type_name().trim_start_matches('.'), message),
        };
        put_varint(bytes, tag | 2);
        put_varint(bytes, content.len() as u64);
        bytes.extend(content);
    }

    /// The first thing that is other than expected. What is not expected may be anything.
    fn difference(&self, message: &str, bytes: &[u8], expected: &Value) -> Option<String> {
        let Value::Message(fields) = expected else { panic!("no message: {expected:?}") };
        let found = decode(bytes);
        fields.iter().find_map(|(name, expected)| {
            let field = self.field(message, name);
            let raw = found.get(&field.number()).map_or(&[][..], |raw| &raw[..]);
            self.field_difference(field, raw, expected).map(|fault| format!("{name}: {fault}"))
        })
    }

    fn field_difference(&self, field: &FieldDescriptorProto, raw: &[Raw], expected: &Value) -> Option<String> {
        match expected {
            Value::List(items) if field.label() == Label::Repeated && field.r#type() == Type::Uint64 => {
                let found = numbers(raw);
                let wanted: Vec<u64> = items
                    .iter()
                    .map(|item| if let Value::Word(word) = item { self.number(field, word) } else { 0 })
                    .collect();
                (found != wanted).then(|| format!("{found:?}, not {wanted:?}"))
            }
            Value::List(items) if raw.len() != items.len() => Some(format!("{} of {}", raw.len(), items.len())),
            Value::List(items) => raw
                .iter()
                .zip(items)
                .find_map(|(raw, item)| self.field_difference(field, std::slice::from_ref(raw), item)),
            Value::Word(word) => {
                let found = numbers(raw).last().copied().unwrap_or(0);
                (found != self.number(field, word)).then(|| format!("{found}, not {word}"))
            }
            Value::Text(text) => {
                let found = raw.last().map_or(&[][..], bytes_of);
                (found != text.as_bytes()).then(|| format!("{:?}, not {text:?}", String::from_utf8_lossy(found)))
            }
            message => self.difference(
                field.type_name().trim_start_matches('.'),
                raw.last().map_or(&[][..], bytes_of),
                message,
            ),
        }
    }
}

fn bytes_of(raw: &Raw) -> &[u8] {
    match raw {
        Raw::Bytes(bytes) => bytes,
        Raw::Number(_) => &[],
    }
}

/// The numbers of a field, packed or not.
fn numbers(raw: &[Raw]) -> Vec<u64> {
    let mut all = Vec::new();
    for raw in raw {
        match raw {
            Raw::Number(number) => all.push(*number),
            Raw::Bytes(packed) => {
                let mut rest = &packed[..];
                while !rest.is_empty() {
                    all.push(take_varint(&mut rest));
                }
            }
        }
    }
    all
}

fn decode(mut bytes: &[u8]) -> HashMap<i32, Vec<Raw>> {
    let mut fields: HashMap<i32, Vec<Raw>> = HashMap::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes);
        let raw = match tag & 7 {
            0 => Raw::Number(take_varint(&mut bytes)),
            2 => {
                let length = take_varint(&mut bytes) as usize;
                let (content, rest) = bytes.split_at(length);
                bytes = rest;
                Raw::Bytes(content.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        fields.entry((tag >> 3) as i32).or_default().push(raw);
    }
    fields
}

fn put_varint(bytes: &mut Vec<u8>, number: u64) {
    prost::encoding::encode_varint(number, bytes);
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    prost::encoding::decode_varint(bytes).expect("a whole number")
}
