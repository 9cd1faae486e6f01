//! The one table of failures: what a call that did not succeed is called on the wire, and what a client may conclude.
//!
//! Owns etcd's texts (clients match on them), the gRPC code of each, the class, and the node service's reason. It knows
//! nothing of tonic: the presenters carry a row onto the wire. `docs/api.md` shows the table to readers; the test below
//! keeps the two equal, and those in `etcds.rs` hold the texts against etcd's.

use std::borrow::Cow;

use balsa_proto::node::Reason;

use super::code::Code;
use crate::domain::auth::AuthRefusal;
use crate::domain::refusal::Refusal;
use crate::engine::Failure;

/// What a client may conclude of a write that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing was changed and nothing will be by this attempt.
    Refused,
    /// The write may have been applied, or may still be. It must not be repeated blindly.
    Unknown,
}

/// Why a use case brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The engine or the model said no, or could not say.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A request without a key.
    #[error("key is not provided")]
    EmptyKey,
    /// An operation of a transaction with nothing in it.
    #[error("a request operation is empty")]
    EmptyOperation,
    /// `ignore_value` together with a value.
    #[error("value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("lease is provided")]
    LeaseProvided,
    /// More operations in a transaction than allowed.
    #[error("too many operations in txn request")]
    TooManyOperations,
    /// A transaction that writes a key twice.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
    /// An enum value of a sort that does not exist.
    #[error("invalid sort option")]
    InvalidSortOption,
    /// A stream of a range in another order than that of keys.
    #[error("RangeStream does not support custom sort orders")]
    StreamSorted,
    /// A stream of a range with bounds on revisions.
    #[error("RangeStream does not support revision filters")]
    StreamFiltered,
    /// Peer URLs that are none.
    #[error("given member URLs are invalid")]
    InvalidUrls,
    /// A client names its version of the API in bytes that are no text.
    #[error("invalid client api version")]
    InvalidClientVersion,
    /// The call is not for learners.
    #[error("rpc not supported for learner")]
    Learner,
    /// Strict check: too few voters have started.
    #[error("too few members have started for this change")]
    NotEnoughStarted,
    /// Strict check: too few voters are reachable.
    #[error("too few members are active for this change")]
    Unhealthy,
    /// More learners than allowed.
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// The lease of a waiting lock ended.
    #[error("mutex: session is expired")]
    SessionExpired,
    /// The candidacy is over.
    #[error("election: not leader")]
    NotElected,
    /// There is no candidate.
    #[error("election: no leader")]
    NoneElected,
    /// A call of a leader without its key.
    #[error("\"leader\" field must be provided")]
    LeaderKeyMissing,
    /// A token that nobody was given, or that has expired.
    #[error("invalid auth token")]
    InvalidAuthToken,
    /// A token is asked for of a member that can only verify signed ones.
    #[error("token signing attempted with verify-only key")]
    VerifyOnly,
    /// A password of more bytes than its hash would depend on.
    #[error("password length exceeds 72 bytes")]
    PasswordTooLong,
    /// Marker and request disagree.
    #[error("{0}")]
    WrongDisk(String),
    /// The caller means another cluster.
    #[error("{0}")]
    OtherCluster(String),
    /// Another member leads than the one that is to hand over.
    #[error("{0}")]
    OtherLeader(String),
    /// A push of settings whose version is not above the active one.
    #[error("{0}")]
    StaleConfig(String),
    /// A field of a node service call is missing or malformed.
    #[error("{0}")]
    InvalidRequest(String),
    /// A downgrade to what is no version.
    #[error("wrong downgrade target version format")]
    WrongDowngradeFormat,
    /// A downgrade to another version than the minor one before.
    #[error("invalid downgrade target version")]
    InvalidDowngradeTarget,
    /// A downgrade while one is announced.
    #[error("cluster has a downgrade job in progress")]
    DowngradeInProgress,
    /// An action that etcd does not know.
    #[error("unknown method")]
    UnknownMethod,
    /// A fault of this process that has no name of its own.
    #[error("{0}")]
    Internal(String),
    /// The client does not read what a stream tells it.
    #[error("the client does not read")]
    Unread,
    /// What the leader answered to a forwarded call.
    #[error("{message}")]
    Remote {
        /// Its code.
        code: Code,
        /// Its text, etcd's or "<Reason>: …".
        message: String,
        /// Its reason.
        reason: Reason,
    },
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The code on the wire.
    pub code: Code,
    /// etcd's exact text, prefix included.
    pub text: Cow<'static, str>,
    /// What a client may conclude.
    pub class: Class,
    /// The node service's reason; `Unspecified` where the node service cannot meet it.
    pub reason: Reason,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::Failed(Failure::Refused(refusal))
    }
}

impl Error {
    /// The row of this failure.
    pub fn row(&self) -> Row {
        use Class::{Refused, Unknown};
        match self {
            Error::Failed(failure) => failure_row(failure),
            Error::Remote { code, message, reason } => {
                let class = if *code == Code::Unavailable && *reason != Reason::NoLeader { Unknown } else { Refused };
                Row { code: *code, text: message.clone().into(), class, reason: *reason }
            }
            Error::WrongDisk(_) => {
                row(Code::FailedPrecondition, "etcdserver: cluster ID mismatch", Refused, Reason::WrongDisk)
            }
            Error::OtherCluster(_) => {
                row(Code::FailedPrecondition, "etcdserver: cluster ID mismatch", Refused, Reason::ClusterIdMismatch)
            }
            Error::OtherLeader(_) => {
                row(Code::FailedPrecondition, "etcdserver: not leader", Refused, Reason::ConfigChanged)
            }
            Error::StaleConfig(what) => Row {
                code: Code::FailedPrecondition,
                text: what.clone().into(),
                class: Refused,
                reason: Reason::StaleConfig,
            },
            Error::InvalidRequest(what) => Row {
                code: Code::InvalidArgument,
                text: what.clone().into(),
                class: Refused,
                reason: Reason::InvalidRequest,
            },
            Error::Internal(what) => {
                Row { code: Code::Internal, text: what.clone().into(), class: Unknown, reason: Reason::Unspecified }
            }
            other => {
                let (code, text) = check_row(other);
                row(code, text, Refused, Reason::InvalidRequest)
            }
        }
    }

    /// "<Reason>: <what and what to do>", the message of the node service.
    pub fn node_message(&self) -> String {
        match self {
            Error::Remote { message, .. } => message.clone(),
            other => format!("{}: {other}", self.row().reason.as_str_name()),
        }
    }
}

const fn row(code: Code, text: &'static str, class: Class, reason: Reason) -> Row {
    Row { code, text: Cow::Borrowed(text), class, reason }
}

/// Rows of the engine's failures.
fn failure_row(failure: &Failure) -> Row {
    use Class::{Refused, Unknown};
    match failure {
        Failure::Refused(refusal) => refusal_row(refusal),
        Failure::Uninitialized => row(Code::Unavailable, "etcdserver: no leader", Refused, Reason::Uninitialized),
        Failure::NoLeader => row(Code::Unavailable, "etcdserver: no leader", Refused, Reason::NoLeader),
        Failure::NotLeader { .. } => row(Code::FailedPrecondition, "etcdserver: not leader", Refused, Reason::NoLeader),
        // etcd sends this one as Unknown; its client restores ResourceExhausted from the text.
        Failure::TooManyRequests => {
            row(Code::Unknown, "etcdserver: too many requests", Refused, Reason::TooManyRequests)
        }
        Failure::TooLarge => {
            row(Code::InvalidArgument, "etcdserver: request is too large", Refused, Reason::InvalidRequest)
        }
        Failure::TimedOut => row(Code::Unavailable, "etcdserver: request timed out", Unknown, Reason::TimedOut),
        Failure::NotTaken => row(Code::DeadlineExceeded, "context deadline exceeded", Unknown, Reason::TimedOut),
        Failure::LeaderLost => row(
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to previous leader failure",
            Unknown,
            Reason::TimedOut,
        ),
        Failure::ConnectionLost => row(
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to connection lost",
            Unknown,
            Reason::TimedOut,
        ),
        Failure::LeaderChanged => row(Code::Unavailable, "etcdserver: leader changed", Refused, Reason::NoLeader),
        Failure::Stopped => row(Code::Unavailable, "etcdserver: server stopped", Unknown, Reason::TimedOut),
        Failure::ChangeInFlight => {
            row(Code::Unavailable, "etcdserver: unhealthy cluster", Refused, Reason::ChangeInFlight)
        }
        Failure::MoveLeaderFirst(_) => {
            row(Code::Unavailable, "etcdserver: unhealthy cluster", Refused, Reason::MoveLeaderFirst)
        }
        Failure::QuorumAtRisk => row(Code::Unavailable, "etcdserver: unhealthy cluster", Refused, Reason::QuorumAtRisk),
        Failure::NotCaughtUp { .. } => row(
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
            Refused,
            Reason::NotCaughtUp,
        ),
        Failure::BadTransferee => {
            row(Code::FailedPrecondition, "etcdserver: bad leader transferee", Refused, Reason::BadTransferee)
        }
        // etcd has no code for this one.
        Failure::TransferTimedOut => row(
            Code::Unknown,
            "etcdserver: request timed out, leader transfer took too long",
            Refused,
            Reason::BadTransferee,
        ),
        Failure::Storage(_) => row(Code::Unavailable, "etcdserver: server stopped", Unknown, Reason::TimedOut),
    }
}

/// Rows of the model's refusals. All of class `Refused`: they are the same on every member.
fn refusal_row(refusal: &Refusal) -> Row {
    let (code, text, reason) = match refusal {
        Refusal::Compacted => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Reason::Unspecified)
        }
        Refusal::FutureRevision => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", Reason::Unspecified)
        }
        Refusal::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found", Reason::Unspecified),
        Refusal::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found", Reason::Unspecified),
        Refusal::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists", Reason::Unspecified),
        Refusal::LeaseTtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL", Reason::Unspecified),
        // Met only by the clock that asked for it; its leases are counted by another one now.
        Refusal::OtherTerm { .. } => (Code::Unavailable, "etcdserver: leader changed", Reason::NoLeader),
        Refusal::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Reason::Unspecified),
        Refusal::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster", Reason::Unspecified),
        Refusal::Auth(refusal) => {
            let (code, text) = auth_row(*refusal);
            (code, text, Reason::Unspecified)
        }
        // etcd's own API has no fence, so only the node service meets this one.
        Refusal::ConfigChanged { .. } => {
            (Code::FailedPrecondition, "etcdserver: unhealthy cluster", Reason::ConfigChanged)
        }
        Refusal::MemberNotFound(_) => (Code::NotFound, "etcdserver: member not found", Reason::MemberNotFound),
        Refusal::MemberRemoved(_) => (Code::NotFound, "etcdserver: member not found", Reason::MemberRemoved),
        Refusal::PeerUrlExists => {
            (Code::FailedPrecondition, "etcdserver: Peer URLs already exists", Reason::InvalidRequest)
        }
        // The replicated counter moved past the id that the change was given: observe again.
        Refusal::MemberIdExists(_) => {
            (Code::FailedPrecondition, "etcdserver: member ID already exist", Reason::ConfigChanged)
        }
        Refusal::NotLearner(_) => {
            (Code::FailedPrecondition, "etcdserver: can only promote a learner member", Reason::InvalidRequest)
        }
        Refusal::LastVoter(_) => (Code::Unknown, NOT_ENOUGH_STARTED, Reason::LastVoter),
    };
    row(code, text, Class::Refused, reason)
}

/// Rows of what is refused for the sake of auth.
fn auth_row(refusal: AuthRefusal) -> (Code, &'static str) {
    use Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unknown};
    match refusal {
        AuthRefusal::RootUserNotExist => (FailedPrecondition, "etcdserver: root user does not exist"),
        AuthRefusal::RootRoleNotExist => (FailedPrecondition, "etcdserver: root user does not have root role"),
        AuthRefusal::UserAlreadyExists => (FailedPrecondition, "etcdserver: user name already exists"),
        AuthRefusal::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
        AuthRefusal::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
        AuthRefusal::RoleAlreadyExists => (FailedPrecondition, "etcdserver: role name already exists"),
        AuthRefusal::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
        AuthRefusal::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
        AuthRefusal::AuthFailed => (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
        // etcd has no name for this one on the wire.
        AuthRefusal::NoPasswordUser => {
            (Unknown, "auth: authentication failed, password was given for no password user")
        }
        AuthRefusal::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
        AuthRefusal::PermissionDenied => (PermissionDenied, "etcdserver: permission denied"),
        AuthRefusal::RoleNotGranted => (FailedPrecondition, "etcdserver: role is not granted to the user"),
        AuthRefusal::PermissionNotGranted => (FailedPrecondition, "etcdserver: permission is not granted to the role"),
        AuthRefusal::AuthNotEnabled => (FailedPrecondition, "etcdserver: authentication is not enabled"),
        AuthRefusal::AuthOldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
        AuthRefusal::InvalidAuthMgmt => (InvalidArgument, "etcdserver: invalid auth management"),
    }
}

/// etcd sends this one as Unknown; its client restores FailedPrecondition from the text.
const NOT_ENOUGH_STARTED: &str = "etcdserver: re-configuration failed due to not enough started members";

/// Rows of the checks that a service makes before the engine hears of a request.
fn check_row(error: &Error) -> (Code, &'static str) {
    match error {
        Error::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
        Error::EmptyOperation => (Code::InvalidArgument, "etcdserver: key not found"),
        Error::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
        Error::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
        Error::TooManyOperations => (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
        Error::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        Error::InvalidSortOption => (Code::InvalidArgument, "etcdserver: invalid sort option"),
        Error::StreamSorted => (Code::Unimplemented, "RangeStream does not support custom sort orders"),
        Error::StreamFiltered => (Code::Unimplemented, "RangeStream does not support revision filters"),
        Error::InvalidUrls => (Code::InvalidArgument, "etcdserver: given member URLs are invalid"),
        Error::InvalidClientVersion => (Code::InvalidArgument, "etcdserver: invalid client api version"),
        Error::Learner => (Code::FailedPrecondition, "etcdserver: rpc not supported for learner"),
        Error::NotEnoughStarted => (Code::Unknown, NOT_ENOUGH_STARTED),
        Error::Unhealthy => (Code::Unavailable, "etcdserver: unhealthy cluster"),
        Error::TooManyLearners => (Code::FailedPrecondition, "etcdserver: too many learner members in cluster"),
        Error::WrongDowngradeFormat => (Code::InvalidArgument, "etcdserver: wrong downgrade target version format"),
        Error::InvalidDowngradeTarget => (Code::InvalidArgument, "etcdserver: invalid downgrade target version"),
        Error::DowngradeInProgress => (Code::FailedPrecondition, "etcdserver: cluster has a downgrade job in progress"),
        Error::UnknownMethod => (Code::Unknown, "etcdserver: unknown method"),
        Error::SessionExpired => (Code::Unknown, "mutex: session is expired"),
        Error::NotElected => (Code::Unknown, "election: not leader"),
        Error::NoneElected => (Code::Unknown, "election: no leader"),
        Error::LeaderKeyMissing => (Code::Unknown, "\"leader\" field must be provided"),
        Error::InvalidAuthToken => (Code::Unauthenticated, "etcdserver: invalid auth token"),
        // etcd has no such end of a stream.
        Error::Unread => (Code::ResourceExhausted, "etcdserver: the stream was not read"),
        Error::VerifyOnly => (Code::Unknown, "auth: token signing attempted with verify-only key"),
        Error::PasswordTooLong => (Code::Unknown, "bcrypt: password length exceeds 72 bytes"),
        // The caller has handled these; a text is still better than a panic.
        Error::Failed(_)
        | Error::Remote { .. }
        | Error::WrongDisk(_)
        | Error::OtherCluster(_)
        | Error::OtherLeader(_)
        | Error::StaleConfig(_)
        | Error::InvalidRequest(_)
        | Error::Internal(_) => (Code::Internal, "etcdserver: internal error"),
    }
}

/// Every failure once, for the tests of the table and of its page.
#[cfg(test)]
pub(crate) fn all() -> Vec<Error> {
    let refusals = [
        Refusal::Compacted,
        Refusal::FutureRevision,
        Refusal::KeyNotFound,
        Refusal::LeaseNotFound,
        Refusal::LeaseExists,
        Refusal::LeaseTtlTooLarge,
        Refusal::OtherTerm { term: 2, entry_term: 3 },
        Refusal::NoSpace,
        Refusal::Corrupt,
        Refusal::Auth(AuthRefusal::RootUserNotExist),
        Refusal::Auth(AuthRefusal::RootRoleNotExist),
        Refusal::Auth(AuthRefusal::UserAlreadyExists),
        Refusal::Auth(AuthRefusal::UserEmpty),
        Refusal::Auth(AuthRefusal::UserNotFound),
        Refusal::Auth(AuthRefusal::RoleAlreadyExists),
        Refusal::Auth(AuthRefusal::RoleNotFound),
        Refusal::Auth(AuthRefusal::RoleEmpty),
        Refusal::Auth(AuthRefusal::AuthFailed),
        Refusal::Auth(AuthRefusal::NoPasswordUser),
        Refusal::Auth(AuthRefusal::PermissionNotGiven),
        Refusal::Auth(AuthRefusal::PermissionDenied),
        Refusal::Auth(AuthRefusal::RoleNotGranted),
        Refusal::Auth(AuthRefusal::PermissionNotGranted),
        Refusal::Auth(AuthRefusal::AuthNotEnabled),
        Refusal::Auth(AuthRefusal::AuthOldRevision),
        Refusal::Auth(AuthRefusal::InvalidAuthMgmt),
        Refusal::ConfigChanged { current: 2, planned_on: 1 },
        Refusal::MemberNotFound(7),
        Refusal::MemberRemoved(7),
        Refusal::PeerUrlExists,
        Refusal::MemberIdExists(7),
        Refusal::NotLearner(7),
        Refusal::LastVoter(7),
    ];
    let failures = [
        Failure::Uninitialized,
        Failure::NoLeader,
        Failure::NotLeader { leader: None },
        Failure::TooManyRequests,
        Failure::TooLarge,
        Failure::TimedOut,
        Failure::NotTaken,
        Failure::LeaderLost,
        Failure::ConnectionLost,
        Failure::LeaderChanged,
        Failure::Stopped,
        Failure::ChangeInFlight,
        Failure::MoveLeaderFirst(7),
        Failure::QuorumAtRisk,
        Failure::NotCaughtUp { id: 7, matched: 1, commit: 9 },
        Failure::BadTransferee,
        Failure::TransferTimedOut,
        Failure::Storage("disk".into()),
    ];
    refusals.into_iter().map(Error::from).chain(failures.into_iter().map(Error::from)).chain(checks()).collect()
}

#[cfg(test)]
fn checks() -> impl IntoIterator<Item = Error> {
    [
        Error::EmptyKey,
        Error::EmptyOperation,
        Error::ValueProvided,
        Error::LeaseProvided,
        Error::TooManyOperations,
        Error::DuplicateKey,
        Error::InvalidSortOption,
        Error::StreamSorted,
        Error::StreamFiltered,
        Error::InvalidUrls,
        Error::InvalidClientVersion,
        Error::Learner,
        Error::NotEnoughStarted,
        Error::Unhealthy,
        Error::TooManyLearners,
        Error::WrongDowngradeFormat,
        Error::InvalidDowngradeTarget,
        Error::DowngradeInProgress,
        Error::UnknownMethod,
        Error::SessionExpired,
        Error::NotElected,
        Error::NoneElected,
        Error::LeaderKeyMissing,
        Error::InvalidAuthToken,
        Error::VerifyOnly,
        Error::Unread,
        Error::PasswordTooLong,
        Error::WrongDisk("the disk is of another cluster".into()),
        Error::OtherCluster("the call is for another cluster".into()),
        Error::OtherLeader("another member leads".into()),
    ]
}

#[cfg(test)]
mod etcds;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_that_may_be_in_the_log_is_unknown() {
        let unknown: Vec<_> = all().into_iter().filter(|e| e.row().class == Class::Unknown).collect();
        let expected = [
            Failure::TimedOut,
            Failure::NotTaken,
            Failure::LeaderLost,
            Failure::ConnectionLost,
            Failure::Stopped,
            Failure::Storage("disk".into()),
        ];
        assert_eq!(unknown, expected.map(Error::from));
    }

    #[test]
    fn every_text_has_the_prefix_that_clients_match_on() {
        // Those of etcd's concurrency package, which runs above its server.
        let above = [Error::SessionExpired, Error::NotElected, Error::NoneElected, Error::LeaderKeyMissing];
        for error in all() {
            let row = error.row();
            // These etcd itself sends bare.
            let bare = matches!(error, Error::StreamSorted | Error::StreamFiltered | Error::Failed(Failure::NotTaken))
                || above.contains(&error)
                || ["auth: ", "bcrypt: "].iter().any(|prefix| row.text.starts_with(prefix));
            assert!(bare != row.text.starts_with("etcdserver: "), "{error:?}: {}", row.text);
            assert_ne!(row.text, "etcdserver: internal error", "{error:?} has no row of its own");
        }
    }

    #[test]
    fn a_node_message_opens_with_its_reason() {
        let error = Error::from(Refusal::ConfigChanged { current: 4, planned_on: 3 });
        assert_eq!(
            error.node_message(),
            "ConfigChanged: the membership has changed: it is at index 4, the change was planned on 3"
        );
        let remote = Error::Remote {
            code: Code::FailedPrecondition,
            message: error.node_message(),
            reason: Reason::ConfigChanged,
        };
        assert_eq!(remote.node_message(), error.node_message(), "a forwarded refusal is passed on as it is");
    }

    #[test]
    fn codes_survive_the_wire() {
        for error in all() {
            let code = error.row().code;
            assert_eq!(Code::from_wire(code as i32), code);
        }
    }

    /// The page that readers and the e2e suite use has one line per failure, in the order of [`all`].
    #[test]
    fn generated_golden_page_of_failures_is_this_table() {
        let mut table = String::from("| failure | code | text | class | reason |\n| --- | --- | --- | --- | --- |\n");
        for error in all() {
            let Row { code, text, class, reason } = error.row();
            let name = format!("{error:?}");
            let name = name.trim_start_matches("Failed(").trim_start_matches("Refused(").trim_start_matches("Auth(");
            let name: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
            let reason = if reason == Reason::Unspecified { "–" } else { reason.as_str_name() };
            table += &format!("| {name} | {code:?} | `{text}` | {class:?} | {reason} |\n");
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
        let page = std::fs::read_to_string(path).expect("docs/api.md");
        let (begin, end) = ("<!-- failures: begin -->\n", "<!-- failures: end -->");
        let (head, rest) = page.split_once(begin).expect("begin mark");
        let (shown, tail) = rest.split_once(end).expect("end mark");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, format!("{head}{begin}{table}{end}{tail}")).expect("docs/api.md is writable");
        } else {
            assert_eq!(shown, table, "run `make generate`");
        }
    }
}
