//! Carries failures onto the wire: a row of the table becomes a gRPC status, and back.

use balsa_proto::node::Reason;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::grpc_metrics::CLIENT_VERSION;
use crate::engine::Failure;
use crate::metrics::STREAM_FAILURES;
use crate::service::Member;
use crate::service::code::Code as ErrorCode;
use crate::service::failure::Error;

/// The metadata key that holds the name of a [`Reason`].
pub const REASON: &str = "balsa-reason";

/// The metadata key that marks a call which a member has passed on to the leader.
pub const FORWARDED: &str = "balsa-forwarded";

/// The metadata key that names the cluster which such a call is meant for. Older members do not send it.
pub const FOR_CLUSTER: &str = "balsa-cluster-id";

/// etcd's metadata key of requests that want to fail at once when there is no leader.
const HAS_LEADER: &str = "hasleader";

/// The status that etcd's clients expect.
pub fn etcd(error: Error) -> Status {
    let row = error.row();
    with_reason(Status::new(Code::from_i32(row.code as i32), row.text), row.reason)
}

/// The status of the node service: its reason as metadata, and a message that says what to do.
pub fn node(error: Error) -> Status {
    let row = error.row();
    with_reason(Status::new(Code::from_i32(row.code as i32), error.node_message()), row.reason)
}

/// The status of locks and elections: etcd serves them by a client of its own and passes on the text of what that one
/// gets, without the code; but gRPC itself gives a deadline its code.
pub fn untyped(error: Error) -> Status {
    match error {
        Error::Failed(Failure::NotTaken) => etcd(error),
        error => Status::unknown(error.row().text),
    }
}

/// What a peer's status means here. One that no peer of ours made comes from the transport: the call may have arrived.
pub fn remote(status: &Status) -> Error {
    let reason = status.metadata().get(REASON).and_then(|value| value.to_str().ok()).and_then(Reason::from_str_name);
    if reason.is_none() && !status.message().starts_with("etcdserver: ") {
        return Failure::TimedOut.into();
    }
    Error::Remote {
        code: ErrorCode::from_wire(status.code() as i32),
        message: status.message().to_owned(),
        reason: reason.unwrap_or(Reason::Unspecified),
    }
}

/// Counts a client's stream that ended with something that cannot be read. One that was left, or whose connection is gone,
/// is no failure.
pub fn count_broken(api: &str, status: &Status) {
    if !matches!(status.code(), Code::Cancelled | Code::Unavailable | Code::Unknown) {
        STREAM_FAILURES.with_label_values(&["receive", api]).inc();
    }
}

fn with_reason(mut status: Status, reason: Reason) -> Status {
    if reason != Reason::Unspecified {
        status.metadata_mut().insert(REASON, MetadataValue::from_static(reason.as_str_name()));
    }
    status
}

/// Whether a member has passed this call on already.
pub fn is_forwarded(metadata: &MetadataMap) -> bool {
    metadata.contains_key(FORWARDED)
}

/// The cluster that a call is meant for; 0 when it does not say.
///
/// # Errors
/// `InvalidRequest`.
pub fn meant_for(metadata: &MetadataMap) -> Result<u64, Error> {
    let Some(value) = metadata.get(FOR_CLUSTER) else { return Ok(0) };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    id.ok_or_else(|| Error::InvalidRequest(format!("{FOR_CLUSTER} is no cluster id")))
}

/// Whether the client wants to hear of it when there is no leader.
pub fn wants_leader(metadata: &MetadataMap) -> bool {
    metadata.get(HAS_LEADER).is_some_and(|value| value.as_encoded_bytes() == b"true")
}

/// What etcd asks before it looks into any request, in its order: that this is no learner, and what the metadata says.
///
/// # Errors
/// `Learner`; those of [`admit_to_learners`].
pub fn admit(member: &Member, metadata: &MetadataMap) -> Result<(), Status> {
    match member.voter() {
        Err(error @ Error::Learner) => Err(etcd(error)),
        // What is no member yet says so when it is asked.
        _ => admit_to_learners(member, metadata),
    }
}

/// As [`admit`], of the few calls that learners serve too. A request may want to hear at once that there is no leader.
///
/// # Errors
/// `InvalidClientVersion`; `NoLeader`.
pub fn admit_to_learners(member: &Member, metadata: &MetadataMap) -> Result<(), Status> {
    check_client_version(metadata).map_err(etcd)?;
    if wants_leader(metadata) { member.require_leader().map_err(etcd) } else { Ok(()) }
}

/// A client may call its version of the API what it likes, in text.
///
/// # Errors
/// `InvalidClientVersion`.
pub fn check_client_version(metadata: &MetadataMap) -> Result<(), Error> {
    let is_text = |version: &MetadataValue<_>| std::str::from_utf8(version.as_encoded_bytes()).is_ok();
    if metadata.get(CLIENT_VERSION).is_none_or(is_text) { Ok(()) } else { Err(Error::InvalidClientVersion) }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::domain::refusal::Refusal;
    use crate::service::failure::Class;

    #[test]
    fn a_reason_survives_the_way_through_a_follower() {
        let error = Error::from(Refusal::MemberRemoved(7));
        let forwarded = remote(&node(error.clone()));
        assert_eq!(forwarded.row().reason, Reason::MemberRemoved);
        assert_eq!(node(forwarded).message(), node(error).message());
    }

    #[test]
    fn a_lost_connection_leaves_the_outcome_unknown() {
        let error = remote(&Status::unavailable("transport error"));
        assert_eq!(error, Failure::TimedOut.into());
        assert_eq!(error.row().class, Class::Unknown);
    }

    #[test]
    fn a_client_names_its_version_in_text_or_not_at_all() {
        let checked = |version: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(CLIENT_VERSION, HeaderValue::from_bytes(version).unwrap());
            check_client_version(&MetadataMap::from_headers(headers))
        };
        assert_eq!(check_client_version(&MetadataMap::new()), Ok(()));
        assert_eq!(checked(b"3.6"), Ok(()));
        assert_eq!(checked("3.6 \u{fc}".as_bytes()), Ok(()));
        assert_eq!(checked(b"3.6\xff"), Err(Error::InvalidClientVersion));
    }

    #[test]
    fn etcds_text_is_the_whole_message() {
        let status = etcd(Failure::TooManyRequests.into());
        assert_eq!((status.code(), status.message()), (Code::Unknown, "etcdserver: too many requests"));
        let status = etcd(Refusal::KeyNotFound.into());
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "etcdserver: key not found"));
        assert!(status.metadata().get(REASON).is_none());
    }
}
