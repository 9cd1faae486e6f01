//! What may differ between etcd and Balsa, each with its reason. `docs/differential.md` shows the table to readers; the
//! test below keeps the two equal. Everything else is compared field by field.

use std::cmp::Ordering;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::KeyValue;
use pb::range_request::SortTarget;
use pb::response_op::Response;

use super::call::Call;
use super::frames::Heard;
use super::reply::Reply;
use super::step::Step;

/// A row: what, how it is compared instead, why.
type Row = (&'static str, &'static str, &'static str);

/// The whole table.
pub const TABLE: &[Row] = &[
    (
        "cluster and member ids",
        "never absent where etcd has one, never another one later",
        "each cluster draws its own",
    ),
    ("`raft_term`", "never absent where etcd has one, never lower later", "elections take their own course"),
    (
        "Status: `version`, `storageVersion`, `dbSize`, `dbSizeInUse`, `dbSizeQuota`, `raftIndex`, `raftAppliedIndex`, `header.revision`",
        "sizes and indexes are set on both or on neither; the others not at all",
        "another program with another store; many commands share an entry of Balsa's log, and its quota is off by default",
    ),
    (
        "HashKV: `hash`",
        "the same again for the same revision and compacted revision",
        "Balsa keeps versions in another order than etcd and hashes them in its own; members of a cluster agree",
    ),
    (
        "HashKV of a revision that was compacted at some time",
        "nothing",
        "etcd answers from hashes that its corruption check took during compactions, with the revisions of that time",
    ),
    (
        "Hash: `hash`",
        "of Balsa's members the same again, until something is written or compacted, and then another",
        "etcd hashes its database, which no other store has",
    ),
    (
        "a put with `ignore_value` or `ignore_lease` in a transaction that deletes",
        "not sent",
        "when the key is one that the transaction has deleted, etcd's process ends; Balsa puts it without value and lease",
    ),
    (
        "a put in a transaction that keeps the value of a missing key and names a missing lease",
        "not sent",
        "etcd 3.6 says that the key is missing, later ones and Balsa that the lease is",
    ),
    (
        "transactions within transactions where alarms are raised, with etcd 3.6",
        "not sent",
        "etcd 3.6.8 does not see the puts in them, and so takes them under NOSPACE; later ones and Balsa refuse them",
    ),
    (
        "a token with an index that the log has not reached",
        "not sent",
        "etcd waits for the index as long as the client waits, Balsa refuses the token",
    ),
    (
        "a range that holds no key, where permissions count",
        "not sent",
        "etcd's answer follows from the shape of its tree of permissions, Balsa's from the permission for the first key",
    ),
    ("leases: ids that the server draws", "that there is one", "they are random"),
    ("LeaseTimeToLive: `TTL`", "whether there is one", "time passes"),
    (
        "LeaseTimeToLive: order of `keys`; LeaseLeases: order",
        "in order of keys, of ids",
        "etcd's orders are that of a map and that of expiry",
    ),
    (
        "messages that do not decode",
        "the code",
        "each decoder has texts of its own, and those of 3.6 and 3.7 are not the same",
    ),
    (
        "a call whose time is over when it comes",
        "only ranges are sent so, and the text without what was under way",
        "etcd proposes a write or not, as it happens, and may notice in the middle of a range",
    ),
    (
        "a call that ends with its headers, without a message",
        "not sent",
        "etcd does not answer it as long as the connection lasts; Balsa says `EOF`, as both do when the end comes in a frame of its own",
    ),
    (
        "times with a sign or with letters among the digits; several messages, or none, to a method that answers with a stream",
        "not sent",
        "3.7 refuses signs, and has a text for each of the others; 3.6 and Balsa take a sign, read one message, and say `EOF` of none",
    ),
    ("MemberList: ports in URLs", "the rest of the URL", "two processes on one machine"),
    (
        "order of pairs with equal sort values, when more than 12 are sorted",
        "any order within a tie; a tie cut by the limit: any of its pairs",
        "etcd's sort is stable only up to 12 elements",
    ),
    (
        "how watch events are spread over responses, and `header.revision` of those responses",
        "a revision is never split unless `fragment` says so, order never changes, the header is never lower than the last event",
        "depends on timing in etcd too",
    ),
    (
        "lease of pairs in answers with `keys_only`, unless sorted by value",
        "nothing",
        "etcd 3.6 and Balsa send it, etcd 3.7 leaves it out",
    ),
    (
        "lists of members and of alarms: order",
        "in order of names and URLs, of types and members",
        "etcd's orders are that of random ids and that of a map",
    ),
    ("a lock or a campaign that names no lease", "not sent", "the server draws a lease, which is part of the key"),
    (
        "a lock or a campaign that waits from its first moment and changes nothing",
        "not sent",
        "when it begins to wait cannot be seen; who waits otherwise is seen to take its place",
    ),
    (
        "a compaction beyond the revision from which a waiting call or an observer may watch",
        "these go away first",
        "when a server begins to watch cannot be seen, and a compaction before that ends the call",
    ),
    (
        "the place of a waiting caller that goes away",
        "it may stay once in a sequence",
        "a caller that goes away before its place is waited for leaves it to its lease, in both programs",
    ),
    (
        "a request that a server gives up with `request timed out`",
        "nothing from there on: the sequence is printed as inconclusive and runs again; two and one in ten may be, and none twice at a request that etcd answers",
        "it may have been carried out or not, and a busy machine makes either server late",
    ),
    (
        "a compaction of just a revision in which a transaction deleted a key and then put it",
        "not sent",
        "etcd's compaction takes the pair, its index still names it: the next read of the key ends the process with `range failed to find revision pair`; Balsa keeps the pair",
    ),
    (
        "what the compacted revision changed in passing (a pair that the same transaction deleted), for watchers from there",
        "etcd may send it, Balsa must not",
        "etcd's compaction takes it some time after it was answered, and 3.6.8 sends again what it has sent to another watcher",
    ),
    (
        "the previous pair of an event up to the compacted revision, for watchers",
        "etcd may leave it out, Balsa must not",
        "etcd reads it when it sends the event, which may be after a compaction that follows at once",
    ),
    (
        "an alarm of a number that has no name, raised",
        "not sent",
        "etcd raises any number; Balsa raises what it knows the meaning of",
    ),
    ("MemberUpdate of a learner, with etcd 3.6", "not sent", "etcd 3.6.8 lists it as a voter from then on"),
    (
        "MemberAdd with a peer URL that is taken: the text",
        "nothing",
        "etcd draws ids from URLs and the second, so within one second it says that the id exists, later that the URL does",
    ),
    (
        "MemberUpdate with URLs that are none, or without any",
        "not sent",
        "etcd takes what it is given; Balsa refuses it as MemberAdd does",
    ),
    ("RangeStream: number of chunks", "their concatenation", "etcd's chunks depend on sizes and on timing"),
    (
        "RangeStream with a sort target and no order, of 10 keys or more or cut by its limit",
        "nothing",
        "etcd sorts each chunk alone and goes on behind its last key, so keys are missing or come twice; Balsa sorts as Range does",
    ),
    (
        "Status: spaces in `errors`",
        "one between words",
        "etcd 3.6 and Balsa end each field with one, etcd 3.7 does not",
    ),
];

/// What of two replies to a step differs after all allowances, as text for both sides.
pub fn differ(step: &Step, etcd: &Reply, balsa: &Reply) -> Option<(String, String)> {
    if etcd == balsa {
        return None;
    }
    if let (Step::RangeStream(request), Reply::RangeStream(one), Reply::RangeStream(other)) = (step, etcd, balsa)
        && is_sorted_by_chunks(request, [one, other])
    {
        return None;
    }
    let (mut etcd, mut balsa) = (etcd.clone(), balsa.clone());
    level(step, &mut etcd);
    level(step, &mut balsa);
    (etcd != balsa).then(|| (etcd.to_string(), balsa.to_string()))
}

/// Keys of the first chunk of a streamed range.
const CHUNK: i64 = 10;

/// Whether etcd may have sorted a streamed range in pieces.
fn is_sorted_by_chunks(request: &pb::RangeRequest, replies: [&pb::RangeResponse; 2]) -> bool {
    request.sort_target != SortTarget::Key as i32 && replies.iter().any(|reply| reply.more || reply.count >= CHUNK)
}

/// What etcd says of a peer URL that was added within this second,
const ID_EXISTS: &str = "etcdserver: member ID already exist";
/// and what of any other that is taken.
const URL_EXISTS: &str = "etcdserver: Peer URLs already exists";

/// What etcd says when the time of a call is over in the middle of a range,
const LATE_IN_A_RANGE: &str = "rangeKeys: context cancelled: context deadline exceeded";
/// and before it.
const LATE: &str = "context deadline exceeded";

/// Up to this many elements etcd's sort leaves equal ones where they were.
const STABLE: usize = 12;

/// Takes out of ranges what may differ.
fn level(step: &Step, reply: &mut Reply) {
    match (step, reply) {
        (Step::Range(request), Reply::Range(reply)) => level_range(request, reply),
        (Step::RangeStream(request), Reply::RangeStream(reply)) => level_range(request, reply),
        (Step::Txn(request), Reply::Txn(reply)) => level_txn(request, reply),
        (Step::Call(Call::MemberAdd(_)), Reply::Failed { message, .. }) if message == ID_EXISTS => {
            *message = URL_EXISTS.to_owned();
        }
        (Step::Frames(_), Reply::Heard(Heard { ended: Some((_, text)), .. })) if text == LATE_IN_A_RANGE => {
            *text = LATE.to_owned();
        }
        _ => {}
    }
}

fn level_txn(request: &pb::TxnRequest, reply: &mut pb::TxnResponse) {
    use pb::request_op::Request;
    let branch = if reply.succeeded { &request.success } else { &request.failure };
    for (operation, response) in branch.iter().zip(&mut reply.responses) {
        match (&operation.request, &mut response.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(reply))) => level_range(request, reply),
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(reply))) => level_txn(request, reply),
            _ => {}
        }
    }
}

fn level_range(request: &pb::RangeRequest, reply: &mut pb::RangeResponse) {
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    if request.keys_only && target != SortTarget::Value {
        reply.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
    order_ties(target, reply);
}

fn order_ties(target: SortTarget, reply: &mut pb::RangeResponse) {
    if reply.count <= STABLE as i64 || target == SortTarget::Key {
        return;
    }
    // Values that are not sent are all empty here, and so one tie.
    let mut sorted: Vec<KeyValue> = Vec::with_capacity(reply.kvs.len());
    for tie in reply.kvs.chunk_by(|one, other| by_target(target, one, other) == Ordering::Equal) {
        let mut tie = tie.to_vec();
        tie.sort_by(|one, other| one.key.cmp(&other.key));
        sorted.extend(tie);
    }
    if reply.more {
        blank_last_tie(target, &mut sorted);
    }
    reply.kvs = sorted;
}

/// Of the tie that the limit may have cut only the size is left.
fn blank_last_tie(target: SortTarget, kvs: &mut [KeyValue]) {
    let Some(last) = kvs.last().cloned() else { return };
    for kv in kvs.iter_mut().rev().take_while(|kv| by_target(target, kv, &last) == Ordering::Equal) {
        *kv = KeyValue::default();
    }
}

fn by_target(target: SortTarget, one: &KeyValue, other: &KeyValue) -> Ordering {
    match target {
        SortTarget::Key => one.key.cmp(&other.key),
        SortTarget::Version => one.version.cmp(&other.version),
        SortTarget::Create => one.create_revision.cmp(&other.create_revision),
        SortTarget::Mod => one.mod_revision.cmp(&other.mod_revision),
        SortTarget::Value => one.value.cmp(&other.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/differential.md");

    #[test]
    fn the_page_shows_the_table() {
        let mut expected = String::from("| what | compared instead | why |\n| --- | --- | --- |\n");
        for (what, instead, why) in TABLE {
            expected.push_str(&format!("| {what} | {instead} | {why} |\n"));
        }
        assert!(PAGE.contains(&expected), "docs/differential.md must hold:\n{expected}");
    }

    fn reply(keys: &[&'static str], more: bool) -> Reply {
        let kv = |key: &&'static str| KeyValue { key: (*key).into(), version: 1, ..Default::default() };
        Reply::Range(pb::RangeResponse { kvs: keys.iter().map(kv).collect(), count: 20, more, ..Default::default() })
    }

    #[test]
    fn only_answers_of_keys_may_lack_leases() {
        let range = |keys_only| Step::Range(pb::RangeRequest { keys_only, ..Default::default() });
        let pairs = |lease| {
            let kv = KeyValue { key: "a".into(), lease, ..Default::default() };
            Reply::Range(pb::RangeResponse { kvs: vec![kv], count: 1, ..Default::default() })
        };
        assert_eq!(differ(&range(true), &pairs(0), &pairs(2)), None);
        assert!(differ(&range(false), &pairs(0), &pairs(2)).is_some());
    }

    #[test]
    fn a_streamed_range_is_sorted_when_it_is_one_chunk() {
        let stream = Step::RangeStream(pb::RangeRequest { sort_target: 1, ..Default::default() });
        let pairs = |keys: [&'static str; 2], count| {
            let kv = |key: &'static str| KeyValue { key: key.into(), ..Default::default() };
            Reply::RangeStream(pb::RangeResponse { kvs: keys.map(kv).into(), count, ..Default::default() })
        };
        assert!(differ(&stream, &pairs(["a", "b"], 2), &pairs(["b", "a"], 2)).is_some());
        assert_eq!(differ(&stream, &pairs(["a", "b"], 9), &pairs(["b", "a"], 11)), None);
    }

    #[test]
    fn only_ties_may_be_in_another_order() {
        let range = |sort_target| Step::Range(pb::RangeRequest { sort_target, sort_order: 1, ..Default::default() });
        assert_eq!(differ(&range(1), &reply(&["a", "b"], false), &reply(&["b", "a"], false)), None);
        assert!(differ(&range(0), &reply(&["a", "b"], false), &reply(&["b", "a"], false)).is_some());
        assert!(differ(&range(1), &reply(&["a", "b"], false), &reply(&["a", "c"], false)).is_some());
        assert_eq!(differ(&range(1), &reply(&["a", "b"], true), &reply(&["a", "c"], true)), None, "cut within the tie");
        assert!(differ(&range(1), &reply(&["a", "b"], true), &reply(&["a"], true)).is_some());
    }
}
