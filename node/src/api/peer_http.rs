//! Plain HTTP of the peer port, for people and probes: `/version`, `/members` and `/raft/probing`, as etcd answers them.
//! What else etcd has there is for its own members; ours speak gRPC.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::any};
use balsa_proto::log;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::http::{Get, get_version, plain_error};
use crate::service::Member;

/// The cluster whose members are listed.
const CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");

/// The paths that there are.
pub(super) fn routes(member: Arc<Member>) -> Router {
    Router::new()
        .route("/version", any(get_version))
        .route("/members", any(get_members))
        .route("/raft/probing", any(probe))
        .with_state(member)
}

/// A member as etcd's own code writes it: not as the gateway does, and without what is empty.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

impl<'a> From<&'a log::Member> for Listed<'a> {
    fn from(member: &'a log::Member) -> Self {
        let log::Member { id, peer_urls, is_learner, name, client_urls, .. } = member;
        Self { id: *id, peer_urls, is_learner: *is_learner, name, client_urls }
    }
}

/// The members as this one has applied them. etcd always has some; a node of ours that waits for its operator has none yet.
async fn get_members(_: Get, State(member): State<Arc<Member>>) -> Response {
    let status = match member.handle() {
        Ok(handle) => handle.status(),
        Err(failure) => return plain_error(StatusCode::SERVICE_UNAVAILABLE, &failure.to_string()),
    };
    let mut members: Vec<Listed<'_>> = status.membership.members.iter().map(Listed::from).collect();
    members.sort_by_key(|member| member.id);
    ([(CLUSTER_ID, format!("{:x}", status.cluster_id))], Json(members)).into_response()
}

/// What tells another member how far their clocks are apart. By any method, as in etcd.
async fn probe() -> Response {
    match as_go_writes(OffsetDateTime::now_utc()) {
        Ok(now) => {
            let body = format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n");
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
        }
        Err(error) => plain_error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// A time in JSON: without the zeros at the end of a fraction.
fn as_go_writes(time: OffsetDateTime) -> Result<String, time::error::Format> {
    time.format(&Rfc3339)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_by_go() {
        for (nanos, written) in [
            (1_795_903_626_067_984_741, "2026-11-28T22:07:06.067984741Z"),
            (1_795_903_626_067_984_700, "2026-11-28T22:07:06.0679847Z"),
            (1_795_903_626_500_000_000, "2026-11-28T22:07:06.5Z"),
            (1_795_903_626_000_000_000, "2026-11-28T22:07:06Z"),
            (981_173_106_000_000_001, "2001-02-03T04:05:06.000000001Z"),
        ] {
            let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
            assert_eq!(as_go_writes(time).unwrap(), written);
        }
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let urls = vec!["http://127.0.0.1:2380".to_owned()];
        let joining = log::Member { id: u64::MAX, peer_urls: urls.clone(), is_learner: true, ..Default::default() };
        let text = serde_json::to_string(&Listed::from(&joining)).unwrap();
        assert_eq!(text, r#"{"id":18446744073709551615,"peerURLs":["http://127.0.0.1:2380"],"isLearner":true}"#);
        let there =
            log::Member { id: 7, name: "m".into(), client_urls: urls.clone(), peer_urls: urls, ..Default::default() };
        let text = serde_json::to_string(&Listed::from(&there)).unwrap();
        assert_eq!(
            text,
            r#"{"id":7,"peerURLs":["http://127.0.0.1:2380"],"name":"m","clientURLs":["http://127.0.0.1:2380"]}"#
        );
    }
}
