//! Warns of reads that take long, in etcd's words. A request is given away before anybody knows that it is slow, so what a
//! warning says of it is kept, which costs no copy of a key.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use pb::response_op::Response;
use prost::Message;

use super::failure::Error;
use crate::metrics;

/// Bytes of a key that a line shows: a client chooses how long a key is, and not how long our lines are.
const SHOWN: usize = 256;

/// A range.
pub(super) struct Range {
    key: Bytes,
    range_end: Bytes,
    limit: i64,
    revision: i64,
    serializable: bool,
    keys_only: bool,
    count_only: bool,
}

impl Range {
    pub(super) fn of(request: &pb::RangeRequest) -> Self {
        let pb::RangeRequest { limit, revision, serializable, keys_only, count_only, .. } = *request;
        let (key, range_end) = (request.key.clone(), request.range_end.clone());
        Self { key, range_end, limit, revision, serializable, keys_only, count_only }
    }

    pub(super) fn warn_if_slow(&self, took: Duration, expected: Duration, result: &Result<pb::RangeResponse, Error>) {
        if took <= expected {
            return;
        }
        let response = |response: &pb::RangeResponse| {
            format!("range_response_count:{} size:{}", response.kvs.len(), response.encoded_len())
        };
        warn("read-only range ", &self.text(), took, expected, result.as_ref().map(response));
    }

    fn text(&self) -> String {
        let mut text = format!("key:\"{}\"", shown(&self.key));
        if !self.range_end.is_empty() {
            text += &format!(" range_end:\"{}\"", shown(&self.range_end));
        }
        for (name, number) in [("limit", self.limit), ("revision", self.revision)] {
            if number != 0 {
                text += &format!(" {name}:{number}");
            }
        }
        let flags =
            [("serializable", self.serializable), ("keys_only", self.keys_only), ("count_only", self.count_only)];
        for (name, _) in flags.iter().filter(|(_, set)| *set) {
            text += &format!(" {name}:true");
        }
        text
    }
}

fn shown(key: &[u8]) -> String {
    let rest = if key.len() > SHOWN { "..." } else { "" };
    format!("{}{rest}", key[..key.len().min(SHOWN)].escape_ascii())
}

/// A transaction that only reads.
pub(super) struct Txn {
    /// Compares, operations if they hold, operations if not.
    counts: [usize; 3],
}

impl Txn {
    pub(super) fn of(request: &pb::TxnRequest) -> Self {
        Self { counts: [request.compare.len(), request.success.len(), request.failure.len()] }
    }

    pub(super) fn warn_if_slow(&self, took: Duration, expected: Duration, result: &Result<pb::TxnResponse, Error>) {
        if took <= expected {
            return;
        }
        let [compare, success, failure] = self.counts;
        let request = format!("compare:{compare} success:{success} failure:{failure}");
        warn("read-only txn ", &request, took, expected, result.as_ref().map(answers));
    }
}

fn answers(response: &pb::TxnResponse) -> String {
    let count = |response: &pb::ResponseOp| match &response.response {
        Some(Response::ResponseRange(range)) => Some(format!("range_response_count:{}", range.kvs.len())),
        _ => None,
    };
    let counts: Vec<String> = response.responses.iter().filter_map(count).collect();
    format!("responses:<{}> size:{}", counts.join(" "), response.encoded_len())
}

fn warn(prefix: &str, request: &str, took: Duration, expected: Duration, response: Result<String, &Error>) {
    metrics::SLOW_APPLIES.inc();
    let error = response.as_ref().err().map(tracing::field::display);
    let response = response.as_deref().unwrap_or_default();
    tracing::warn!(?took, "expected-duration" = ?expected, prefix, request, response, error, "apply request took too long");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_told_as_etcd_tells_it_and_a_long_key_is_cut() {
        let text = |request: pb::RangeRequest| Range::of(&request).text();
        assert_eq!(text(pb::RangeRequest { key: "a\n".into(), ..Default::default() }), r#"key:"a\n""#);
        let request = pb::RangeRequest {
            key: "a".into(),
            range_end: "b".into(),
            limit: 5,
            revision: 7,
            serializable: true,
            keys_only: true,
            count_only: true,
            ..Default::default()
        };
        let told = r#"key:"a" range_end:"b" limit:5 revision:7 serializable:true keys_only:true count_only:true"#;
        assert_eq!(text(request), told);
        let long = text(pb::RangeRequest { key: vec![b'k'; 1 << 20].into(), ..Default::default() });
        assert_eq!(long.len(), SHOWN + r#"key:"...""#.len());
    }

    #[test]
    fn the_answers_of_a_transaction_are_told_by_their_counts() {
        let range = pb::RangeResponse { kvs: vec![Default::default(); 2], ..Default::default() };
        let range = pb::ResponseOp { response: Some(Response::ResponseRange(range)) };
        let response = pb::TxnResponse { responses: vec![range; 2], ..Default::default() };
        assert!(answers(&response).starts_with("responses:<range_response_count:2 range_response_count:2> size:"));
    }
}
