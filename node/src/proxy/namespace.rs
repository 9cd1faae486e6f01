//! Keys under a prefix: what clients of a proxy name is put under it on the way to the cluster, and what they are told is taken
//! from under it on the way back, by the rules of etcd's client library (its package `namespace`).
//!
//! Messages are known by the path of their call. What is not of KV, Watch or the keys of a lease passes as it is: locks and
//! elections too, as with etcd's proxy.

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use bytes::Bytes;
use pb::request_op::Request;
use pb::response_op::Response;
use pb::watch_request::RequestUnion;
use prost::{DecodeError, Message};

/// A prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespace(Vec<u8>);

impl Namespace {
    pub(super) fn new(prefix: &str) -> Self {
        Self(prefix.as_bytes().to_vec())
    }

    /// Whether messages of this call bear keys.
    pub(super) fn concerns(&self, path: &str) -> bool {
        let calls = [
            "/etcdserverpb.KV/Range",
            "/etcdserverpb.KV/RangeStream",
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.KV/DeleteRange",
            "/etcdserverpb.KV/Txn",
            "/etcdserverpb.Watch/Watch",
            "/etcdserverpb.Lease/LeaseTimeToLive",
        ];
        !self.0.is_empty() && calls.contains(&path)
    }

    /// A key under the prefix. An empty one stays so, for the cluster to refuse.
    pub(super) fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.0, key].concat()
    }

    /// A message on the way to the cluster.
    pub(super) fn request(&self, path: &str, message: Bytes) -> Result<Vec<u8>, DecodeError> {
        Ok(match path.rsplit('/').next().unwrap_or_default() {
            "Range" | "RangeStream" => self.range(pb::RangeRequest::decode(message)?).encode_to_vec(),
            "Put" => self.put(pb::PutRequest::decode(message)?).encode_to_vec(),
            "DeleteRange" => self.delete(pb::DeleteRangeRequest::decode(message)?).encode_to_vec(),
            "Txn" => self.txn(pb::TxnRequest::decode(message)?).encode_to_vec(),
            "Watch" => self.watch(pb::WatchRequest::decode(message)?).encode_to_vec(),
            _ => message.into(),
        })
    }

    /// A message on the way back.
    pub(super) fn response(&self, path: &str, message: Bytes) -> Result<Vec<u8>, DecodeError> {
        Ok(match path.rsplit('/').next().unwrap_or_default() {
            "Range" => self.ranged(pb::RangeResponse::decode(message)?).encode_to_vec(),
            "RangeStream" => {
                let mut part = pb::RangeStreamResponse::decode(message)?;
                part.range_response = part.range_response.map(|response| self.ranged(response));
                part.encode_to_vec()
            }
            "Put" => self.written(pb::PutResponse::decode(message)?).encode_to_vec(),
            "DeleteRange" => self.deleted(pb::DeleteRangeResponse::decode(message)?).encode_to_vec(),
            "Txn" => self.done(pb::TxnResponse::decode(message)?).encode_to_vec(),
            "Watch" => self.watched(pb::WatchResponse::decode(message)?).encode_to_vec(),
            "LeaseTimeToLive" => self.lease(pb::LeaseTimeToLiveResponse::decode(message)?).encode_to_vec(),
            _ => message.into(),
        })
    }

    /// Both ends of an interval. What has no upper end has the prefix's.
    fn interval(&self, key: &[u8], end: &[u8]) -> (Bytes, Bytes) {
        let end = match end {
            [] => Vec::new(),
            [0] => behind(&self.0),
            end => self.key(end),
        };
        (self.key(key).into(), end.into())
    }

    fn range(&self, mut request: pb::RangeRequest) -> pb::RangeRequest {
        if !request.key.is_empty() {
            (request.key, request.range_end) = self.interval(&request.key, &request.range_end);
        }
        request
    }

    fn put(&self, mut request: pb::PutRequest) -> pb::PutRequest {
        if !request.key.is_empty() {
            request.key = self.key(&request.key).into();
        }
        request
    }

    fn delete(&self, mut request: pb::DeleteRangeRequest) -> pb::DeleteRangeRequest {
        if !request.key.is_empty() {
            (request.key, request.range_end) = self.interval(&request.key, &request.range_end);
        }
        request
    }

    fn txn(&self, mut request: pb::TxnRequest) -> pb::TxnRequest {
        for compare in &mut request.compare {
            (compare.key, compare.range_end) = self.interval(&compare.key, &compare.range_end);
        }
        for operation in request.success.iter_mut().chain(&mut request.failure) {
            operation.request = operation.request.take().map(|request| match request {
                Request::RequestRange(request) => Request::RequestRange(self.range(request)),
                Request::RequestPut(request) => Request::RequestPut(self.put(request)),
                Request::RequestDeleteRange(request) => Request::RequestDeleteRange(self.delete(request)),
                Request::RequestTxn(request) => Request::RequestTxn(self.txn(request)),
            });
        }
        request
    }

    fn watch(&self, mut request: pb::WatchRequest) -> pb::WatchRequest {
        if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
            (create.key, create.range_end) = self.interval(&create.key, &create.range_end);
        }
        request
    }

    fn bare(&self, pair: &mut KeyValue) {
        if let Some(key) = pair.key.strip_prefix(&self.0[..]) {
            pair.key = Bytes::copy_from_slice(key);
        }
    }

    fn ranged(&self, mut response: pb::RangeResponse) -> pb::RangeResponse {
        response.kvs.iter_mut().for_each(|pair| self.bare(pair));
        response
    }

    fn written(&self, mut response: pb::PutResponse) -> pb::PutResponse {
        response.prev_kv.iter_mut().for_each(|pair| self.bare(pair));
        response
    }

    fn deleted(&self, mut response: pb::DeleteRangeResponse) -> pb::DeleteRangeResponse {
        response.prev_kvs.iter_mut().for_each(|pair| self.bare(pair));
        response
    }

    fn done(&self, mut response: pb::TxnResponse) -> pb::TxnResponse {
        for answer in &mut response.responses {
            answer.response = answer.response.take().map(|response| match response {
                Response::ResponseRange(response) => Response::ResponseRange(self.ranged(response)),
                Response::ResponsePut(response) => Response::ResponsePut(self.written(response)),
                Response::ResponseDeleteRange(response) => Response::ResponseDeleteRange(self.deleted(response)),
                Response::ResponseTxn(response) => Response::ResponseTxn(self.done(response)),
            });
        }
        response
    }

    fn watched(&self, mut response: pb::WatchResponse) -> pb::WatchResponse {
        for event in &mut response.events {
            event.kv.iter_mut().chain(&mut event.prev_kv).for_each(|pair| self.bare(pair));
        }
        response
    }

    /// Keys of the lease that are not under the prefix are nobody's here.
    fn lease(&self, mut response: pb::LeaseTimeToLiveResponse) -> pb::LeaseTimeToLiveResponse {
        let own = response.keys.iter().filter_map(|key| key.strip_prefix(&self.0[..]));
        response.keys = own.map(Bytes::copy_from_slice).collect();
        response
    }
}

/// The first key behind all that begin so; the end of all keys if there is none.
pub(super) fn behind(prefix: &[u8]) -> Vec<u8> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX);
    last.map_or(vec![0], |last| [&prefix[..last], &[prefix[last] + 1]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> Namespace {
        Namespace::new("ns/")
    }

    #[test]
    fn intervals_stay_under_the_prefix() {
        let interval = |key: &str, end: &[u8]| {
            let (key, end) = namespace().interval(key.as_bytes(), end);
            (String::from_utf8(key.into()).unwrap(), String::from_utf8(end.into()).unwrap())
        };
        assert_eq!(interval("a", b""), ("ns/a".into(), String::new()));
        assert_eq!(interval("a", b"c"), ("ns/a".into(), "ns/c".into()));
        assert_eq!(interval("a", &[0]), ("ns/a".into(), "ns0".into()), "to the end of the prefix");
        assert_eq!((behind(b"a\xff"), behind(b"\xff\xff")), (b"b".to_vec(), vec![0]));
    }

    #[test]
    fn a_transaction_is_put_under_it_with_all_that_it_holds() {
        let range = |key: &str| pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let operation = |request| pb::RequestOp { request: Some(request) };
        let nested = |key: &str, inner: &str| pb::TxnRequest {
            compare: vec![pb::Compare { key: key.to_owned().into(), ..Default::default() }],
            success: vec![operation(Request::RequestRange(range(key)))],
            failure: vec![operation(Request::RequestTxn(pb::TxnRequest {
                failure: vec![operation(Request::RequestPut(pb::PutRequest {
                    key: inner.to_owned().into(),
                    ..Default::default()
                }))],
                ..Default::default()
            }))],
        };
        let given = nested("a", "b").encode_to_vec();
        let rewritten = namespace().request("/etcdserverpb.KV/Txn", given.into()).unwrap();
        assert_eq!(pb::TxnRequest::decode(&rewritten[..]).unwrap(), nested("ns/a", "ns/b"));
    }

    #[test]
    fn answers_are_taken_from_under_it() {
        let pair = |key: &str| KeyValue { key: key.to_owned().into(), ..Default::default() };
        let answer = |key: &str| pb::RangeResponse { kvs: vec![pair(key)], count: 1, ..Default::default() };
        let given = answer("ns/a").encode_to_vec();
        let rewritten = namespace().response("/etcdserverpb.KV/Range", given.into()).unwrap();
        assert_eq!(pb::RangeResponse::decode(&rewritten[..]).unwrap(), answer("a"));
        let lease = |keys: &[&str]| pb::LeaseTimeToLiveResponse {
            keys: keys.iter().map(|key| Bytes::from((*key).to_owned())).collect(),
            ..Default::default()
        };
        let given = lease(&["ns/a", "other", "ns/b"]).encode_to_vec();
        let rewritten = namespace().response("/etcdserverpb.Lease/LeaseTimeToLive", given.into()).unwrap();
        assert_eq!(pb::LeaseTimeToLiveResponse::decode(&rewritten[..]).unwrap(), lease(&["a", "b"]));
    }

    #[test]
    fn without_a_prefix_and_in_other_calls_nothing_is_touched() {
        assert!(!Namespace::new("").concerns("/etcdserverpb.KV/Range"));
        assert!(namespace().concerns("/etcdserverpb.Watch/Watch"));
        assert!(!namespace().concerns("/v3lockpb.Lock/Lock"));
    }
}
