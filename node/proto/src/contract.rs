//! Holds the generated code to the contract: services, methods, streaming kinds, names and numbers.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

use crate::{FILE_DESCRIPTOR_SET, etcdserverpb as pb, mvccpb, node};

/// One line per service: its methods in alphabetical order; `>` marks a client stream, `<` a server stream.
const SERVICES: &[&str] = &[
    "balsa.node.v1.Node: Add Bootstrap GetConfig Join List MoveLeader PrepareStop Promote Remove SetConfig State",
    "balsa.peer.v1.Leases: Renew TimeToLive",
    "balsa.peer.v1.Peer: Frames> Hash Members Snapshot>",
    "etcdserverpb.Auth: AuthDisable AuthEnable AuthStatus Authenticate RoleAdd RoleDelete RoleGet RoleGrantPermission \
     RoleList RoleRevokePermission UserAdd UserChangePassword UserDelete UserGet UserGrantRole UserList UserRevokeRole",
    "etcdserverpb.Cluster: MemberAdd MemberList MemberPromote MemberRemove MemberUpdate",
    "etcdserverpb.KV: Compact DeleteRange Put Range RangeStream< Txn",
    "etcdserverpb.Lease: LeaseGrant LeaseKeepAlive>< LeaseLeases LeaseRevoke LeaseTimeToLive",
    "etcdserverpb.Maintenance: Alarm Defragment Downgrade Hash HashKV MoveLeader Snapshot< Status",
    "etcdserverpb.Watch: Watch><",
    "v3electionpb.Election: Campaign Leader Observe< Proclaim Resign",
    "v3lockpb.Lock: Lock Unlock",
];

/// `package.Message.field=number`, for the fields that are easiest to get wrong.
const FIELDS: &[&str] = &[
    "etcdserverpb.Compare.lease=8",
    "etcdserverpb.Compare.range_end=64",
    "etcdserverpb.HashKVResponse.hash_revision=4",
    "etcdserverpb.LeaseGrantRequest.TTL=1",
    "etcdserverpb.LeaseGrantResponse.ID=2",
    "etcdserverpb.LeaseTimeToLiveResponse.grantedTTL=4",
    "etcdserverpb.MemberAddRequest.isLearner=2",
    "etcdserverpb.RequestOp.request_txn=4",
    "etcdserverpb.StatusResponse.downgradeInfo=13",
    "etcdserverpb.WatchResponse.events=11",
    "authpb.Permission.permType=1",
    "v3electionpb.CampaignRequest.lease=2",
    "mvccpb.KeyValue.lease=6",
];

fn set() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the descriptor set is embedded by the build")
}

/// Every message of the contract by full name, nested ones included.
pub(crate) fn messages() -> BTreeMap<String, DescriptorProto> {
    fn visit(scope: &str, message: DescriptorProto, into: &mut BTreeMap<String, DescriptorProto>) {
        let name = format!("{scope}.{}", message.name());
        for nested in message.nested_type.clone() {
            visit(&name, nested, into);
        }
        into.insert(name, message);
    }
    let mut all = BTreeMap::new();
    for file in set().file {
        let package = file.package().to_owned();
        for message in file.message_type {
            visit(&package, message, &mut all);
        }
    }
    all
}

/// Method name to full names of request and answer.
pub(crate) fn methods(service: &str) -> BTreeMap<String, (String, String)> {
    let files = set().file;
    let services =
        files.iter().flat_map(|f| f.service.iter().map(move |s| (format!("{}.{}", f.package(), s.name()), s)));
    let methods = services.filter(|(name, _)| name == service).flat_map(|(_, s)| &s.method);
    let plain = |name: &str| name.trim_start_matches('.').to_owned();
    methods.map(|m| (m.name().to_owned(), (plain(m.input_type()), plain(m.output_type())))).collect()
}

#[test]
fn every_service_has_exactly_its_methods_with_their_streaming_kind() {
    let mut found = BTreeSet::new();
    for file in set().file {
        for service in &file.service {
            let mut methods: Vec<_> = service
                .method
                .iter()
                .map(|m| {
                    let up = if m.client_streaming() { ">" } else { "" };
                    let down = if m.server_streaming() { "<" } else { "" };
                    format!("{}{up}{down}", m.name())
                })
                .collect();
            methods.sort();
            found.insert(format!("{}.{}: {}", file.package(), service.name(), methods.join(" ")));
        }
    }
    let expected: BTreeSet<_> = SERVICES.iter().map(|&s| s.to_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_method_takes_the_request_and_gives_the_answer_of_its_name_unless_listed() {
    let odd = [
        ("Observe", "v3electionpb.LeaderRequest", "v3electionpb.LeaderResponse"),
        ("Compact", "etcdserverpb.CompactionRequest", "etcdserverpb.CompactionResponse"),
        ("RangeStream", "etcdserverpb.RangeRequest", "etcdserverpb.RangeStreamResponse"),
    ];
    for line in SERVICES.iter().filter(|s| !s.starts_with("balsa.")) {
        let service = line.split(':').next().expect("a service line has a colon");
        let package = service.split('.').next().expect("a service has a package");
        for (method, (input, output)) in methods(service) {
            let prefix = if service == "etcdserverpb.Auth" && !method.starts_with("Auth") { "Auth" } else { "" };
            let usual = (format!("{package}.{prefix}{method}Request"), format!("{package}.{prefix}{method}Response"));
            let expected = odd
                .iter()
                .find(|(name, ..)| *name == method)
                .map_or(usual, |(_, i, o)| ((*i).to_owned(), (*o).to_owned()));
            assert_eq!((input, output), expected, "{service}.{method}");
        }
    }
}

#[test]
fn tricky_fields_have_etcds_numbers() {
    let messages = messages();
    for expected in FIELDS {
        let (path, _) = expected.split_once('=').expect("name=number");
        let (message, field) = path.rsplit_once('.').expect("message.field");
        let number =
            messages[message].field.iter().find(|f| f.name() == field).map(prost_types::FieldDescriptorProto::number);
        assert_eq!(number.map(|n| format!("{path}={n}")).as_deref(), Some(*expected));
    }
}

#[test]
fn every_answer_of_etcd_carries_its_header_in_field_one() {
    let without = ["etcdserverpb.EmptyResponse", "etcdserverpb.RangeStreamResponse"];
    for (name, message) in messages() {
        if name.starts_with("balsa.") || !name.ends_with("Response") || without.contains(&name.as_str()) {
            continue;
        }
        let first = message.field.iter().find(|f| f.number() == 1).unwrap_or_else(|| panic!("{name} has no field 1"));
        assert_eq!((first.name(), first.type_name()), ("header", ".etcdserverpb.ResponseHeader"), "{name}");
    }
}

#[test]
fn enums_have_etcds_place_and_values() {
    let messages = messages();
    let nested = |path: &str| -> EnumDescriptorProto {
        let (message, name) = path.rsplit_once('.').expect("message.enum");
        messages[message].enum_type.iter().find(|e| e.name() == name).expect("the enum is nested there").clone()
    };
    let values = |e: EnumDescriptorProto| -> String {
        e.value.iter().map(|v| format!("{}={}", v.name(), v.number())).collect::<Vec<_>>().join(" ")
    };
    for (path, expected) in [
        ("mvccpb.Event.EventType", "PUT=0 DELETE=1"),
        ("authpb.Permission.Type", "READ=0 WRITE=1 READWRITE=2"),
        ("etcdserverpb.RangeRequest.SortOrder", "NONE=0 ASCEND=1 DESCEND=2"),
        ("etcdserverpb.RangeRequest.SortTarget", "KEY=0 VERSION=1 CREATE=2 MOD=3 VALUE=4"),
        ("etcdserverpb.Compare.CompareResult", "EQUAL=0 GREATER=1 LESS=2 NOT_EQUAL=3"),
        ("etcdserverpb.Compare.CompareTarget", "VERSION=0 CREATE=1 MOD=2 VALUE=3 LEASE=4"),
        ("etcdserverpb.WatchCreateRequest.FilterType", "NOPUT=0 NODELETE=1"),
        ("etcdserverpb.AlarmRequest.AlarmAction", "GET=0 ACTIVATE=1 DEACTIVATE=2"),
        ("etcdserverpb.DowngradeRequest.DowngradeAction", "VALIDATE=0 ENABLE=1 CANCEL=2"),
    ] {
        assert_eq!(values(nested(path)), expected, "{path}");
    }
    assert_eq!(pb::AlarmType::Corrupt as i32, 2);
}

#[test]
fn reasons_keep_the_names_and_numbers_of_the_contract() {
    let names: Vec<_> = (1..).map_while(|n| node::Reason::try_from(n).ok()).map(|r| r.as_str_name()).collect();
    assert_eq!(
        names.join(" "),
        "Uninitialized WrongDisk ConfigChanged ChangeInFlight MoveLeaderFirst QuorumAtRisk LastVoter NotCaughtUp \
         MemberNotFound MemberRemoved NoLeader BadTransferee InvalidRequest ClusterIdMismatch TimedOut TooManyRequests \
         StaleConfig"
    );
}

#[test]
fn generated_messages_write_etcds_bytes() {
    let compare = pb::Compare { range_end: "z".into(), ..Default::default() };
    assert_eq!(compare.encode_to_vec(), [0x82, 0x04, 0x01, b'z']);
    let event = mvccpb::Event { r#type: mvccpb::event::EventType::Delete as i32, ..Default::default() };
    let watch = pb::WatchResponse { events: vec![event], ..Default::default() };
    assert_eq!(watch.encode_to_vec(), [0x5a, 0x02, 0x08, 0x01]);
    let add = pb::MemberAddRequest { peer_ur_ls: vec!["u".to_owned()], is_learner: true };
    assert_eq!(add.encode_to_vec(), [0x0a, 0x01, b'u', 0x10, 0x01]);
}
