//! Plain HTTP: `/health`, `/livez`, `/readyz` with a path per check, `/version` and `/metrics`, as etcd answers them. The
//! client port serves it beside gRPC, the metrics port alone.

use std::io::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::config::version::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::metrics::{SCRAPES, SCRAPES_RUNNING, process};
use crate::service::Member;
use crate::service::health::{self, Check};
use crate::service::metrics::Metrics;

/// What the handlers read.
#[derive(Clone)]
struct Context {
    member: Arc<Member>,
    metrics: Arc<Metrics>,
}

/// The routes of plain HTTP on the client port.
pub fn routes(member: Arc<Member>, metrics: Arc<Metrics>) -> Router {
    let context = Context { member: member.clone(), metrics: metrics.clone() };
    let more = Router::new().route("/version", any(get_version)).route("/debug/vars", any(get_variables));
    probes(member, metrics).merge(more.with_state(context))
}

/// Those of the metrics port, which has no more, as etcd's.
pub fn probes(member: Arc<Member>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/health", any(get_health))
        .merge(checks("livez", health::live))
        .merge(checks("readyz", health::ready))
        .route("/metrics", any(get_metrics))
        .fallback(not_found)
        .with_state(Context { member, metrics })
}

/// A request whose method is GET; any other is refused as etcd refuses it, HEAD too.
pub(super) struct Get;

impl<S: Send + Sync> FromRequestParts<S> for Get {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        if parts.method == Method::GET {
            return Ok(Get);
        }
        let mut response = plain_error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        Err(response)
    }
}

/// An error as Go's HTTP library writes it.
pub(super) fn plain_error(status: StatusCode, text: &str) -> Response {
    (status, TEXT, format!("{text}\n")).into_response()
}

/// Headers of plain text that is not to be taken for anything else.
const TEXT: [(header::HeaderName, &str); 2] =
    [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// The answer to a path that is not served.
pub async fn not_found() -> Response {
    plain_error(StatusCode::NOT_FOUND, "404 page not found")
}

async fn get_health(_: Get, State(context): State<Context>, RawQuery(query): RawQuery) -> Response {
    let query = query.as_deref();
    let serializable = parameters(query).find(|(name, _)| *name == "serializable") == Some(("serializable", "true"));
    let excluded: Vec<_> = parameters(query).filter(|(name, _)| *name == "exclude").map(|(_, name)| name).collect();
    let result = health::health(&context.member, serializable, &excluded).await;
    let body = |health: &str, reason: &str| {
        let reason = serde_json::Value::from(reason);
        format!(r#"{{"health":"{health}","reason":{reason}}}"#)
    };
    match result {
        Ok(()) => ([TEXT[0].clone()], body("true", "")).into_response(),
        Err(reason) => {
            let body = body("false", &reason);
            tracing::warn!(output = body, "/health error");
            plain_error(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

/// The paths of one kind of checks: one for all of them together, and one for each.
fn checks(kind: &'static str, checks: fn(&Member) -> Vec<Check>) -> Router<Context> {
    let all = move |_: Get, State(context): State<Context>, RawQuery(query): RawQuery| async move {
        render(kind, &checks(&context.member), query.as_deref())
    };
    let one = move |State(context): State<Context>,
                    Path(name): Path<String>,
                    get: Result<Get, Response>,
                    RawQuery(query): RawQuery| async move {
        render_one(kind, &checks(&context.member), &name, get, query.as_deref())
    };
    Router::new().route(&format!("/{kind}"), any(all)).route(&format!("/{kind}/{{check}}"), any(one))
}

pub(super) async fn get_version(_: Get) -> Response {
    let body = format!(
        r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}","storage":"{ETCD_CLUSTER_VERSION}"}}"#
    );
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// What etcd publishes as variables, but for those of Go's memory.
async fn get_variables(_: Get, State(context): State<Context>) -> Response {
    let command_line = serde_json::Value::from(std::env::args().collect::<Vec<_>>());
    let status = health::raft_status(&context.member);
    process::read();
    let files = process::max_files();
    let body = format!(
        "{{\n\"cmdline\": {command_line},\n\"file_descriptor_limit\": {files},\n\"raft.status\": {status}\n}}\n"
    );
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

/// The text format of Prometheus, as etcd's library names it: no name here needs escaping.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// A reading of the metrics under way; whoever asked may go away before its end.
struct Scrape;

impl Scrape {
    fn begin() -> Self {
        SCRAPES_RUNNING.inc();
        Self
    }
}

impl Drop for Scrape {
    fn drop(&mut self) {
        SCRAPES_RUNNING.dec();
    }
}

/// By any method, as in etcd. What it shows of itself is counted before this reading ends, as there.
async fn get_metrics(State(context): State<Context>, headers: HeaderMap) -> Response {
    let running = Scrape::begin();
    let rendered = context.metrics.render(&context.member).await;
    drop(running);
    let response = match rendered {
        Ok(text) if wants_gzip(&headers) => {
            let kind = [(header::CONTENT_TYPE, METRICS_TYPE), (header::CONTENT_ENCODING, "gzip")];
            (kind, gzip(&text)).into_response()
        }
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.row().text.into_owned()).into_response(),
    };
    SCRAPES.with_label_values(&[response.status().as_str()]).inc();
    response
}

/// As etcd's library chooses between plain text and gzip: what is wanted more, and plain text where both are.
fn wants_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    let wanted: Vec<_> = lines.flat_map(|line| line.split(',')).map(coding).collect();
    let most = |name: &str| {
        let of_it = wanted.iter().filter(|(coding, _)| *coding == name || *coding == "*");
        of_it.map(|(_, quality)| *quality).fold(-1.0, f64::max)
    };
    most("gzip") > most("identity").max(0.0)
}

/// One of the codings of `Accept-Encoding`, and how much it is wanted.
fn coding(text: &str) -> (&str, f64) {
    let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
    let quality = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse);
    (name.trim(), quality.unwrap_or_default())
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    written.unwrap_or_else(|error| unreachable!("memory is written to: {error}"))
}

/// The parameters of a query in order; a name may repeat. The names and values that are looked for need no decoding.
fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let parts = query.unwrap_or_default().split('&');
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// `ok` when all checks pass; with `verbose`, or when one fails, a line per check. `exclude=name` skips one.
fn render(kind: &str, checks: &[Check], query: Option<&str>) -> Response {
    let excluded = |name: &str| parameters(query).any(|parameter| parameter == ("exclude", name));
    let checks: Vec<_> = checks.iter().filter(|check| !excluded(check.name)).collect();
    health::publish(kind, &checks);
    let lines: String = checks.iter().map(|check| line(check)).collect();
    if checks.iter().any(|check| check.result.is_err()) {
        return plain_error(StatusCode::SERVICE_UNAVAILABLE, &lines);
    }
    let verbose = parameters(query).any(|(name, _)| name == "verbose");
    (TEXT, if verbose { format!("{lines}ok\n") } else { "ok\n".to_owned() }).into_response()
}

/// A path of no check is none, whatever the method.
fn render_one(kind: &str, checks: &[Check], name: &str, get: Result<Get, Response>, query: Option<&str>) -> Response {
    // Only a list of checks can leave one out.
    let query = query.filter(|query| parameters(Some(query)).any(|(name, _)| name == "verbose")).map(|_| "verbose");
    match (checks.iter().find(|check| check.name == name), get) {
        (None, _) => plain_error(StatusCode::NOT_FOUND, "404 page not found"),
        (Some(_), Err(refused)) => refused,
        (Some(check), Ok(Get)) => render(kind, std::slice::from_ref(check), query),
    }
}

fn line(check: &Check) -> String {
    match &check.result {
        Ok(()) => format!("[+]{} ok\n", check.name),
        Err(error) => format!("[-]{} failed: {error}\n", check.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_packed_for_whoever_wants_that_more_than_plain_text() {
        let wants = |lines: &[&'static str]| {
            let line = |line: &&'static str| (header::ACCEPT_ENCODING, HeaderValue::from_static(line));
            wants_gzip(&lines.iter().map(line).collect())
        };
        for wanted in [&["gzip"][..], &["zstd, gzip"], &["identity;q=0.5, gzip;q=0.8"], &["deflate", "gzip;q=0.1"]] {
            assert!(wants(wanted), "{wanted:?}");
        }
        for plain in [&[][..], &["*"], &["identity, gzip"], &["gzip;q=0"], &["gzip;q=x"], &["br"]] {
            assert!(!wants(plain), "{plain:?}");
        }
    }

    fn two_checks(second: Result<(), String>) -> Vec<Check> {
        vec![Check { name: "first", result: Ok(()) }, Check { name: "second", result: second }]
    }

    async fn text(response: Response) -> (StatusCode, String) {
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_failed_check_is_named() {
        let good = two_checks(Ok(()));
        assert_eq!(text(render("test", &good, None)).await, (StatusCode::OK, "ok\n".into()));
        let verbose = text(render("test", &good, Some("verbose"))).await;
        assert_eq!(verbose.1, "[+]first ok\n[+]second ok\nok\n");
        let bad = two_checks(Err("no leader".into()));
        let failed = text(render("test", &bad, None)).await;
        assert_eq!(failed, (StatusCode::SERVICE_UNAVAILABLE, "[+]first ok\n[-]second failed: no leader\n\n".into()));
        assert_eq!(text(render("test", &bad, Some("a=b&exclude=second"))).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_check_has_a_path_of_its_own() {
        let bad = two_checks(Err("no leader".into()));
        let verbose = text(render_one("test", &bad, "first", Ok(Get), Some("verbose&exclude=first"))).await;
        assert_eq!(verbose, (StatusCode::OK, "[+]first ok\nok\n".into()));
        assert_eq!(text(render_one("test", &bad, "second", Ok(Get), None)).await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text(render_one("test", &bad, "third", Ok(Get), None)).await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn every_part_of_the_version_is_a_number() {
        let (_, body) = text(get_version(Get).await).await;
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        for name in ["etcdserver", "etcdcluster", "storage"] {
            let version = json[name].as_str().unwrap();
            assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
        }
    }
}
