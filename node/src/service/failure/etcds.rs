//! The table beside etcd's: what its package `rpctypes` declares in 3.6.14, and in 3.7.1 the same, as codes and texts.

use super::*;

/// On the wire each begins with `etcdserver: `.
const DECLARED: &[(Code, &[&str])] = &[
    (Code::InvalidArgument, OF_REQUESTS),
    (Code::InvalidArgument, OF_AUTH),
    (Code::FailedPrecondition, OF_THE_STATE),
    (Code::FailedPrecondition, OF_THE_STATE_OF_AUTH),
    (Code::Unavailable, OF_THE_CLUSTER),
    (
        Code::OutOfRange,
        &[
            "mvcc: required revision has been compacted",
            "mvcc: required revision is a future revision",
            "too large lease TTL",
        ],
    ),
    (Code::NotFound, &["requested lease not found", "member not found"]),
    (Code::ResourceExhausted, &["mvcc: database space exceeded", "too many requests"]),
    (Code::PermissionDenied, &["permission denied"]),
    (Code::Unauthenticated, &["invalid auth token"]),
    (Code::DataLoss, &["corrupt cluster"]),
    (Code::Canceled, &["watch canceled", "request canceled"]),
    (Code::DeadlineExceeded, &["context deadline exceeded"]),
];

const OF_REQUESTS: &[&str] = &[
    "key is not provided",
    "key not found",
    "value is provided",
    "lease is provided",
    "too many operations in txn request",
    "duplicate key given in txn request",
    "invalid client api version",
    "invalid sort option",
    "given member URLs are invalid",
    "request is too large",
    "wrong downgrade target version format",
    "invalid downgrade target version",
];

const OF_AUTH: &[&str] = &[
    "user name is empty",
    "role name is empty",
    "authentication failed, invalid user ID or password",
    "permission not given",
    "invalid auth management",
    "revision of auth store is old",
];

const OF_THE_STATE: &[&str] = &[
    "lease already exists",
    "member ID already exist",
    "Peer URLs already exists",
    "re-configuration failed due to not enough started members",
    "can only promote a learner member",
    "can only promote a learner member which is in sync with leader",
    "too many learner members in cluster",
    "cluster ID mismatch",
    "not leader",
    "not capable",
    "rpc not supported for learner",
    "bad leader transferee",
    "cluster version not found during downgrade",
    "cluster has a downgrade job in progress",
    "no inflight downgrade job",
];

const OF_THE_STATE_OF_AUTH: &[&str] = &[
    "root user does not exist",
    "root user does not have root role",
    "user name already exists",
    "user name not found",
    "role name already exists",
    "role name not found",
    "role is not granted to the user",
    "permission is not granted to the role",
    "authentication is not enabled",
];

const OF_THE_CLUSTER: &[&str] = &[
    "no leader",
    "leader changed",
    "server stopped",
    "unhealthy cluster",
    "request timed out",
    "request timed out, possibly due to previous leader failure",
    "request timed out, possibly due to connection lost",
    "request timed out, waiting for the applied index took too long",
];

/// etcd declares a code for these, and sends Unknown.
const SENT_AS_UNKNOWN: &[&str] = &["too many requests", "re-configuration failed due to not enough started members"];

/// etcd declares this one with the prefix, and sends it without.
const SENT_BARE: &str = "context deadline exceeded";

/// What etcd has no name for and says all the same, as Unknown.
const UNDECLARED: &[&str] = &["unknown method", "request timed out, leader transfer took too long"];

/// Declared, and never said here: `docs/api.md` has a reason for each.
const NEVER: &[&str] = &[
    "not capable",
    "cluster version not found during downgrade",
    "no inflight downgrade job",
    "request timed out, waiting for the applied index took too long",
    "watch canceled",
    "request canceled",
];

/// Said by etcd without a name, and never here.
const NEVER_UNDECLARED: &[&str] = &["not a primary lessor", "raft proposal dropped"];

/// Code and text on the wire of all that is declared.
fn sent() -> Vec<(Code, String)> {
    let each = DECLARED.iter().flat_map(|(code, texts)| texts.iter().map(|text| (*code, *text)));
    let undeclared = UNDECLARED.iter().map(|text| (Code::Unknown, *text));
    let on_the_wire = |(code, text): (Code, &str)| match text {
        SENT_BARE => (code, text.to_owned()),
        _ if SENT_AS_UNKNOWN.contains(&text) => (Code::Unknown, format!("etcdserver: {text}")),
        _ => (code, format!("etcdserver: {text}")),
    };
    each.chain(undeclared).map(on_the_wire).collect()
}

/// Code and text of a row, of those that clients can meet: a fence on the membership has the node service alone.
fn said() -> Vec<(Code, String)> {
    let of_clients = |error: &Error| !matches!(error, Error::Failed(Failure::Refused(Refusal::ConfigChanged { .. })));
    let row = |error: Error| (error.row().code, error.row().text.into_owned());
    all().into_iter().filter(of_clients).map(row).collect()
}

#[test]
fn all_that_etcd_declares_is_said_with_its_code_or_is_on_the_page() {
    let said = said();
    let missing: Vec<_> = sent().into_iter().filter(|row| !said.contains(row)).map(|(_, text)| text).collect();
    assert_eq!(missing, in_order_of_declaration(NEVER), "what is not said, and what the list says is not");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md")).expect("docs/api.md");
    for text in NEVER.iter().chain(NEVER_UNDECLARED) {
        assert!(page.contains(&format!("\n| `{text}` | ")), "docs/api.md has no reason for `{text}`");
        assert!(!said.iter().any(|(_, said)| said.ends_with(text)), "`{text}` is said");
    }
}

fn in_order_of_declaration(texts: &[&str]) -> Vec<String> {
    let each = DECLARED.iter().flat_map(|(_, declared)| *declared).filter(|text| texts.contains(text));
    each.map(|text| format!("etcdserver: {text}")).collect()
}

#[test]
fn what_begins_like_etcds_texts_is_one_of_them() {
    let sent = sent();
    let ours: Vec<_> = said()
        .into_iter()
        .filter(|row| row.1.starts_with("etcdserver: ") && !sent.contains(row))
        .map(|(_, text)| text)
        .collect();
    assert_eq!(ours, ["etcdserver: the stream was not read"], "etcd has no such end of a stream");
}
