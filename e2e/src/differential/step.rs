//! One request of a sequence, as it is generated, sent to both servers, printed, and left out when a case is shrunk.

use std::fmt;

use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use pb::request_op::Request;

use super::call::Call;
use super::frames::Frames;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// KV.Range
    Range(pb::RangeRequest),
    /// KV.RangeStream, which etcd has from 3.7 on.
    RangeStream(pb::RangeRequest),
    /// KV.Put
    Put(pb::PutRequest),
    /// KV.DeleteRange
    DeleteRange(pb::DeleteRangeRequest),
    /// KV.Txn
    Txn(pb::TxnRequest),
    /// KV.Compact
    Compact(pb::CompactionRequest),
    /// A request on one of the watch streams, which opens with its first one.
    Watch {
        /// Which stream.
        stream: usize,
        /// What is sent on it.
        request: pb::WatchRequest,
    },
    /// Maintenance.Status
    Status,
    /// Maintenance.HashKV
    HashKv(pb::HashKvRequest),
    /// Maintenance.Hash
    Hash,
    /// Cluster.MemberList
    MemberList(pb::MemberListRequest),
    /// Lease.LeaseGrant
    LeaseGrant(pb::LeaseGrantRequest),
    /// Lease.LeaseRevoke
    LeaseRevoke(pb::LeaseRevokeRequest),
    /// Lease.LeaseKeepAlive: a stream of one request.
    LeaseKeepAlive(pb::LeaseKeepAliveRequest),
    /// Lease.LeaseTimeToLive
    LeaseTimeToLive(pb::LeaseTimeToLiveRequest),
    /// Lease.LeaseLeases
    LeaseLeases,
    /// Any call with one message there and one back.
    Call(Call),
    /// Whoever has waited longest for this lock or office goes away.
    GiveUp {
        /// Its name.
        name: Bytes,
    },
    /// Election.Observe: an observer that goes on listening. The same number again ends the one before.
    Observe {
        /// Which observer.
        number: usize,
        /// What it observes; None: it goes away.
        name: Option<Bytes>,
    },
    /// A step with a token.
    As {
        /// Whose.
        bearer: Bearer,
        /// The step.
        step: Box<Step>,
    },
    /// A call by hand, as no client would make it.
    Frames(Frames),
    /// Any bytes to any method.
    Raw {
        /// The method's path.
        path: &'static str,
        /// The message.
        body: Bytes,
    },
}

/// Where a token is from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bearer {
    /// The last that this user was given.
    User(&'static str),
    /// This text.
    Text(&'static str),
}

impl Step {
    /// Whose token goes with it, and the step itself.
    pub fn parts(&self) -> (Option<Bearer>, &Step) {
        match self {
            Step::As { bearer, step } => (Some(*bearer), step),
            step => (None, step),
        }
    }

    /// The watch stream that it goes to.
    pub fn stream(&self) -> Option<usize> {
        match self {
            Step::Watch { stream, .. } => Some(*stream),
            _ => None,
        }
    }

    /// Whether its answer has all that was answered before, whichever member gives it.
    pub fn waits_for_earlier_ones(&self) -> bool {
        match self {
            Step::Range(request) => !request.serializable,
            Step::Put(_) | Step::DeleteRange(_) => true,
            Step::Txn(request) => !reads_locally(request),
            _ => false,
        }
    }
}

/// Whether a transaction holds nothing but serializable ranges, if anything.
fn reads_locally(txn: &pb::TxnRequest) -> bool {
    let mut operations = txn.success.iter().chain(&txn.failure);
    operations.all(|operation| matches!(&operation.request, Some(Request::RequestRange(range)) if range.serializable))
}

impl fmt::Display for Step {
    /// The message as prost prints it, without what is not set.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&brief(&format!("{self:?}")))
    }
}

/// Leaves out fields that have no value, which are most of a message, and shortens runs of one letter, which long values
/// are made of.
pub fn brief(text: &str) -> String {
    let mut text = shorten(text);
    for empty in ["b\"\"", "0", "false", "None", "Key", "[]", "\"\""] {
        text = without(&text, empty);
    }
    text
}

/// The longest run of a letter that is printed.
const RUN: usize = 20;

fn shorten(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut short = String::new();
    for run in letters.chunk_by(|one, other| one == other) {
        if run.len() > RUN && run[0].is_alphabetic() {
            short.push_str(&format!("{}<{} times>", run[0], run.len()));
        } else {
            short.extend(run);
        }
    }
    short
}

/// Without each `name: value` pair of this value. Keys and values hold no such text.
fn without(text: &str, value: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    let pattern = format!(": {value}");
    while let Some(at) = rest.find(&pattern) {
        let (before, after) = (&rest[..at], &rest[at + pattern.len()..]);
        let name = before.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |end| end + 1);
        if !(after.starts_with(',') || after.starts_with(" }")) {
            kept.push_str(&rest[..at + pattern.len()]);
            rest = after;
            continue;
        }
        kept.push_str(&before[..name]);
        rest = after.strip_prefix(", ").unwrap_or(after);
        if rest.starts_with(" }") && kept.ends_with(", ") {
            kept.truncate(kept.len() - 2);
        }
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reads_locally_may_be_late() {
        let range = |serializable| {
            let range = pb::RangeRequest { serializable, ..Default::default() };
            let operation = pb::RequestOp { request: Some(Request::RequestRange(range)) };
            Step::Txn(pb::TxnRequest { success: vec![operation], ..Default::default() })
        };
        let steps = [range(true), Step::Txn(pb::TxnRequest::default()), range(false)];
        assert_eq!(steps.map(|step| step.waits_for_earlier_ones()), [false, false, true]);
    }

    #[test]
    fn only_what_is_set_is_printed() {
        let put = pb::PutRequest { key: "a".into(), lease: 10, ..Default::default() };
        assert_eq!(Step::Put(put).to_string(), "Put(PutRequest { key: b\"a\", lease: 10 })");
        let range = pb::RangeRequest { limit: 3, count_only: true, ..Default::default() };
        assert_eq!(Step::Range(range).to_string(), "Range(RangeRequest { limit: 3, count_only: true })");
    }
}
