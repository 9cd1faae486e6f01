use balsa_proto::etcdserverpb as pb;
use prost::Message;
use prost_reflect::DescriptorPool;

use super::*;

fn descriptor(name: &str) -> MessageDescriptor {
    let pool = DescriptorPool::decode(balsa_proto::FILE_DESCRIPTOR_SET).unwrap();
    pool.get_message_by_name(name).unwrap()
}

fn range(json: &str) -> Result<pb::RangeRequest, String> {
    let wire = decode::message(json.as_bytes(), &descriptor("etcdserverpb.RangeRequest"))?;
    Ok(pb::RangeRequest::decode(wire.as_slice()).unwrap())
}

#[test]
fn a_request_is_read_in_every_spelling() {
    let expected = pb::RangeRequest {
        key: "foo".into(),
        range_end: vec![0xff, 0xff].into(),
        limit: -1,
        sort_order: 1,
        keys_only: true,
        ..Default::default()
    };
    for json in [
        r#"{"key":"Zm9v","range_end":"__8=","limit":"-1","sort_order":"ASCEND","keys_only":true}"#,
        r#"{"key":"Zm9v","rangeEnd":"//8","limit":-1.0,"sortOrder":1,"keysOnly":true}"#,
        r#" { "nope" : [ { "a" : null } , "x" ] , "key":"\u005am9v","rangeEnd":"//8=","limit":-1,
            "sortOrder":1e0,"keysOnly":true,"revision":null,"sort_target":"NOPE"} "#,
    ] {
        assert_eq!(range(json.trim()), Ok(expected.clone()), "{json}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (json, error) in [
        ("[]", "proto: syntax error (line 1:1): unexpected token ["),
        ("null", "proto: syntax error (line 1:1): unexpected token null"),
        (r#"{"key":1}"#, "proto: (line 1:8): invalid value for bytes field key: 1"),
        (r#"{"key":"!!"}"#, r#"proto: (line 1:8): invalid value for bytes field key: "!!""#),
        (r#"{"key":"Zm9vYg="}"#, r#"proto: (line 1:8): invalid value for bytes field key: "Zm9vYg=""#),
        (r#"{"key":["x"]}"#, "proto: (line 1:8): invalid value for bytes field key: ["),
        ("{\n \"sort_order\":true}", "proto: (line 2:15): invalid value for enum field sortOrder: true"),
        (r#"{"key":"YQ==","key":""}"#, r#"proto: (line 1:15): duplicate field "key""#),
        (
            r#"{"nope":"\ud800","key":"Zm9v"}"#,
            r#"proto: syntax error (line 1:9): invalid escape code "\",\"key" in string"#,
        ),
    ] {
        assert_eq!(range(json).unwrap_err(), error, "{json}");
    }
    let txn = |json: &str| decode::message(json.as_bytes(), &descriptor("etcdserverpb.TxnRequest")).unwrap_err();
    assert_eq!(txn(r#"{"success":[null]}"#), "proto: syntax error (line 1:13): unexpected token null");
    assert_eq!(txn(r#"{"success":{}}"#), "proto: syntax error (line 1:12): unexpected token {");
    let two = r#"{"success":[{"request_put":{"key":"YQ=="},"request_range":{"key":"YQ=="}}]}"#;
    let error =
        r#"proto: (line 1:43): error parsing "request_range", oneof etcdserverpb.RequestOp.request is already set"#;
    assert_eq!(txn(two), error);
}

#[test]
fn messages_in_messages_are_bounded() {
    let deep = |depth: usize| {
        let open = r#"{"success":[{"request_txn":"#.repeat(depth);
        let wire =
            decode::message((open + "{}" + &"}]}".repeat(depth)).as_bytes(), &descriptor("etcdserverpb.TxnRequest"));
        wire.map(|wire| pb::TxnRequest::decode(wire.as_slice()).map(drop).map_err(|error| error.to_string()))
    };
    assert_eq!(deep(49), Ok(Ok(())));
    assert_eq!(deep(5000), Err("proto: exceeded max recursion depth".to_owned()));
}

#[test]
fn zero_values_are_left_out_and_the_rest_is_written_as_declared() {
    let header = Some(pb::ResponseHeader { cluster_id: u64::MAX, revision: 5, ..Default::default() });
    let kv = balsa_proto::mvccpb::KeyValue { key: "foo".into(), mod_revision: 5, ..Default::default() };
    let events = vec![
        balsa_proto::mvccpb::Event { kv: Some(kv), ..Default::default() },
        balsa_proto::mvccpb::Event { r#type: 1, kv: Some(Default::default()), ..Default::default() },
    ];
    let response =
        pb::WatchResponse { header, created: true, cancel_reason: "a\"b".into(), events, ..Default::default() };
    let of = descriptor("etcdserverpb.WatchResponse");
    let json = encode::message(&decoded(&of, response.encode_to_vec().into()).unwrap());
    let expected = concat!(
        r#"{"header":{"cluster_id":"18446744073709551615","revision":"5"},"created":true,"cancel_reason":"a\"b","#,
        r#""events":[{"kv":{"key":"Zm9v","mod_revision":"5"}},{"type":"DELETE","kv":{}}]}"#
    );
    assert_eq!(json, expected);
}
