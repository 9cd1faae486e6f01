//! Requests on keys as text, in the form in which etcd logs them: what is zero is left out, and of a value only its size is said.

use balsa_proto::etcdserverpb as pb;
use pb::compare::TargetUnion;
use pb::request_op::Request;

/// Fields of one message, in their order.
#[derive(Default)]
struct Fields(Vec<String>);

impl Fields {
    fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        if !value.is_empty() {
            self.0.push(format!("{name}:\"{}\"", escaped(value)));
        }
        self
    }

    fn number(mut self, name: &str, value: i64) -> Self {
        if value != 0 {
            self.0.push(format!("{name}:{value}"));
        }
        self
    }

    fn flag(mut self, name: &str, value: bool) -> Self {
        if value {
            self.0.push(format!("{name}:true"));
        }
        self
    }

    /// A value of an enum, by its name; by its number when it has none.
    fn named(mut self, name: &str, value: i32, known: Option<&str>) -> Self {
        if value != 0 {
            self.0.push(format!("{name}:{}", known.map_or_else(|| value.to_string(), str::to_owned)));
        }
        self
    }

    /// One of several, which is there even when it is zero.
    fn one_of(mut self, name: &str, value: i64) -> Self {
        self.0.push(format!("{name}:{value}"));
        self
    }

    fn text(self) -> String {
        self.0.join(" ")
    }
}

/// A range.
pub(super) fn range(request: &pb::RangeRequest) -> String {
    let order = pb::range_request::SortOrder::try_from(request.sort_order).ok().map(|order| order.as_str_name());
    let target = pb::range_request::SortTarget::try_from(request.sort_target).ok().map(|target| target.as_str_name());
    Fields::default()
        .bytes("key", &request.key)
        .bytes("range_end", &request.range_end)
        .number("limit", request.limit)
        .number("revision", request.revision)
        .named("sort_order", request.sort_order, order)
        .named("sort_target", request.sort_target, target)
        .flag("serializable", request.serializable)
        .flag("keys_only", request.keys_only)
        .flag("count_only", request.count_only)
        .number("min_mod_revision", request.min_mod_revision)
        .number("max_mod_revision", request.max_mod_revision)
        .number("min_create_revision", request.min_create_revision)
        .number("max_create_revision", request.max_create_revision)
        .text()
}

/// A put. etcd writes it by another library, which ends each field with a space.
pub(super) fn put(request: &pb::PutRequest) -> String {
    let fields = Fields::default()
        .bytes("key", &request.key)
        .number("value_size", i64::try_from(request.value.len()).unwrap_or(i64::MAX))
        .number("lease", request.lease)
        .flag("prev_kv", request.prev_kv)
        .flag("ignore_value", request.ignore_value)
        .flag("ignore_lease", request.ignore_lease);
    fields.text() + " "
}

/// A delete.
pub(super) fn delete(request: &pb::DeleteRangeRequest) -> String {
    Fields::default()
        .bytes("key", &request.key)
        .bytes("range_end", &request.range_end)
        .flag("prev_kv", request.prev_kv)
        .text()
}

/// A transaction, with both branches. Requests are nested no deeper than they may be.
pub(super) fn txn(request: &pb::TxnRequest) -> String {
    let compares: Vec<String> = request.compare.iter().map(compare).collect();
    let [success, failure] =
        [&request.success, &request.failure].map(|ops| ops.iter().map(op).collect::<Vec<String>>().join(" "));
    format!("compare:<{}> success:<{success}> failure:<{failure}>", compares.join(" "))
}

fn op(op: &pb::RequestOp) -> String {
    match &op.request {
        Some(Request::RequestPut(request)) => format!("request_put:<{}>", put(request)),
        Some(Request::RequestTxn(request)) => format!("request_txn:<{}>", txn(request)),
        Some(Request::RequestRange(request)) => format!("request_range:{{{}}}", range(request)),
        Some(Request::RequestDeleteRange(request)) => format!("request_delete_range:{{{}}}", delete(request)),
        None => String::new(),
    }
}

fn compare(compare: &pb::Compare) -> String {
    let result = pb::compare::CompareResult::try_from(compare.result).ok().map(|result| result.as_str_name());
    let target = pb::compare::CompareTarget::try_from(compare.target).ok().map(|target| target.as_str_name());
    let fields = Fields::default()
        .named("result", compare.result, result)
        .named("target", compare.target, target)
        .bytes("key", &compare.key);
    let fields = match &compare.target_union {
        Some(TargetUnion::Version(version)) => fields.one_of("version", *version),
        Some(TargetUnion::CreateRevision(revision)) => fields.one_of("create_revision", *revision),
        Some(TargetUnion::ModRevision(revision)) => fields.one_of("mod_revision", *revision),
        Some(TargetUnion::Lease(lease)) => fields.one_of("lease", *lease),
        Some(TargetUnion::Value(value)) => {
            let size = i64::try_from(value.len()).unwrap_or(i64::MAX);
            return fields.number("value_size", size).bytes("range_end", &compare.range_end).text() + " ";
        }
        None => fields,
    };
    fields.bytes("range_end", &compare.range_end).text()
}

/// As protobuf writes bytes in text.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\n' => text += "\\n",
            b'\r' => text += "\\r",
            b'\t' => text += "\\t",
            b'"' => text += "\\\"",
            b'\\' => text += "\\\\",
            0x20..=0x7e => text.push(char::from(*byte)),
            other => text += &format!("\\{other:03o}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_in_etcds_log() {
        // Taken from the log of an etcd 3.7.
        let put_of = |key: &'static str, size: usize| pb::PutRequest {
            key: key.into(),
            value: vec![b'v'; size].into(),
            ..Default::default()
        };
        assert_eq!(put(&pb::PutRequest { lease: 119, ..put_of("x", 1) }), "key:\"x\" value_size:1 lease:119 ");
        assert_eq!(put(&put_of("\x01\"ä", 1)), "key:\"\\001\\\"\\303\\244\" value_size:1 ");
        let request = pb::RangeRequest {
            key: "a".into(),
            range_end: "z".into(),
            limit: 5,
            revision: 1,
            sort_order: pb::range_request::SortOrder::Descend.into(),
            sort_target: pb::range_request::SortTarget::Mod.into(),
            serializable: true,
            keys_only: true,
            ..Default::default()
        };
        let text = concat!(
            r#"key:"a" range_end:"z" limit:5 revision:1 sort_order:DESCEND sort_target:MOD "#,
            "serializable:true keys_only:true"
        );
        assert_eq!(range(&request), text);
        let delete_a = pb::DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
        assert_eq!(delete(&delete_a), r#"key:"a" prev_kv:true"#);
        let op = |request| pb::RequestOp { request: Some(request) };
        let get = pb::RangeRequest { key: "c".into(), ..Default::default() };
        let version =
            pb::Compare { key: "a".into(), target_union: Some(TargetUnion::Version(0)), ..Default::default() };
        let request = pb::TxnRequest {
            compare: vec![version],
            success: vec![op(Request::RequestPut(put_of("c", 3))), op(Request::RequestRange(get))],
            failure: vec![op(Request::RequestPut(put_of("e", 1)))],
        };
        let text = concat!(
            r#"compare:<key:"a" version:0> success:<request_put:<key:"c" value_size:3 > request_range:{key:"c"}> "#,
            r#"failure:<request_put:<key:"e" value_size:1 >>"#
        );
        assert_eq!(txn(&request), text);
    }
}
