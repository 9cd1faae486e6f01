//! "request stats": what etcd logs of each unary call at the level debug, and else of those that take long, with the same fields.
//! Of reads and writes of keys they say what was asked for, values left out; of other calls no more than which and how long.
//!
//! A request is given away before anybody knows that it is slow, so a copy of it is kept: its keys and values are shared.

use std::time::{Duration, Instant, SystemTime};

use axum::http::Extensions;
use balsa_proto::etcdserverpb as pb;
use prost::Message;

use super::connection::Connection;
use super::request_text as text;
use super::socket::Remote;
use crate::config::log_line::timestamp;

/// Bytes of the content that a line shows: a client chooses how long a request is, and not how long our lines are.
const SHOWN: usize = 4096;

/// A call under way.
pub(super) struct Stats {
    path: &'static str,
    remote: Option<Remote>,
    at: SystemTime,
    started: Instant,
    slow: Duration,
}

/// What a line says of the messages.
struct Messages {
    request: (i64, i64),
    response: (i64, i64),
    content: String,
}

impl Stats {
    /// A call with this path has come; it is slow when it takes longer than `slow`.
    pub(super) fn begin(path: &'static str, extensions: &Extensions, slow: Duration) -> Self {
        let remote = extensions.get::<Connection>().map(|connection| connection.remote);
        Self { path, remote, at: SystemTime::now(), started: Instant::now(), slow }
    }

    /// A range was answered.
    pub(super) fn range(self, request: &pb::RangeRequest, response: Option<&pb::RangeResponse>) {
        self.end(|| Messages {
            request: (0, size(request)),
            response: response.map_or((0, 0), |response| (response.count, size(response))),
            content: text::range(request),
        });
    }

    /// A put was answered.
    pub(super) fn put(self, request: &pb::PutRequest, response: Option<&pb::PutResponse>) {
        self.end(|| Messages {
            request: (1, size(request)),
            response: response.map_or((0, 0), |response| (0, size(response))),
            content: text::put(request),
        });
    }

    /// A delete was answered.
    pub(super) fn delete(self, request: &pb::DeleteRangeRequest, response: Option<&pb::DeleteRangeResponse>) {
        self.end(|| Messages {
            request: (0, size(request)),
            response: response.map_or((0, 0), |response| (response.deleted, size(response))),
            content: text::delete(request),
        });
    }

    /// A transaction was answered. Its size is that of the operations that ran.
    pub(super) fn txn(self, request: &pb::TxnRequest, response: Option<&pb::TxnResponse>) {
        self.end(|| {
            let ran = response.map(|response| if response.succeeded { &request.success } else { &request.failure });
            let ran = ran.map_or(&[][..], Vec::as_slice);
            Messages {
                request: (ran.len() as i64, ran.iter().map(size).sum()),
                response: response.map_or((0, 0), |response| (0, size(response))),
                content: text::txn(request),
            }
        });
    }

    fn end(self, messages: impl FnOnce() -> Messages) {
        let spent = self.started.elapsed();
        if is_told(spent, self.slow) {
            tell(self.path, self.remote, self.at, spent, messages());
        }
    }
}

/// A call of another kind was answered.
pub(super) fn other(path: &str, remote: Option<Remote>, spent: Duration, slow: Duration) {
    if is_told(spent, slow) {
        let messages = Messages { request: (-1, -1), response: (-1, -1), content: String::new() };
        tell(path, remote, SystemTime::now() - spent, spent, messages);
    }
}

/// Whether a call is one whose line says what was asked for.
pub(super) fn has_content(path: &str) -> bool {
    matches!(path.strip_prefix("/etcdserverpb.KV/"), Some("Range" | "Put" | "DeleteRange" | "Txn"))
}

fn is_told(spent: Duration, slow: Duration) -> bool {
    spent > slow || tracing::enabled!(tracing::Level::DEBUG)
}

fn tell(path: &str, remote: Option<Remote>, at: SystemTime, spent: Duration, messages: Messages) {
    let Messages { request, response, mut content } = messages;
    if content.len() > SHOWN {
        content.truncate(content.floor_char_boundary(SHOWN));
        content += "...";
    }
    let remote = remote.map_or_else(|| "No remote client info.".to_owned(), |remote| remote.to_string());
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                "start time" = timestamp(at),
                "time spent" = ?spent,
                remote,
                "response type" = path,
                "request count" = request.0,
                "request size" = request.1,
                "response count" = response.0,
                "response size" = response.1,
                "request content" = content,
                "request stats"
            )
        };
    }
    if tracing::enabled!(tracing::Level::DEBUG) { line!(debug) } else { line!(warn) }
}

fn size(message: &impl Message) -> i64 {
    i64::try_from(message.encoded_len()).unwrap_or(i64::MAX)
}
