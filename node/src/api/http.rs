//! Plain HTTP: `/health`, `/livez`, `/readyz` with a path per check, `/version` and `/metrics`, as etcd answers them. The
//! client port serves it beside gRPC, the metrics port alone.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::config::version::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::service::Member;
use crate::service::health::{self, Check};
use crate::service::metrics::Metrics;

/// What the handlers read.
#[derive(Clone)]
struct Context {
    member: Arc<Member>,
    metrics: Arc<Metrics>,
}

/// The routes of plain HTTP.
pub fn routes(member: Arc<Member>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/health", get(get_health))
        .route("/livez", get(get_live))
        .route("/livez/{check}", get(get_live_check))
        .route("/readyz", get(get_ready))
        .route("/readyz/{check}", get(get_ready_check))
        .route("/version", get(get_version))
        .route("/metrics", get(get_metrics))
        .with_state(Context { member, metrics })
}

async fn get_health(State(context): State<Context>, RawQuery(query): RawQuery) -> Response {
    let serializable = parameters(query.as_deref()).any(|parameter| parameter == ("serializable", "true"));
    let result = health::health(&context.member, serializable).await;
    let code = if result.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "health": if result.is_ok() { "true" } else { "false" },
        "reason": result.err().unwrap_or_default(),
    });
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn get_live(State(context): State<Context>, RawQuery(query): RawQuery) -> Response {
    render(&health::live(&context.member), query.as_deref())
}

async fn get_live_check(State(context): State<Context>, Path(name): Path<String>) -> Response {
    render_one(&health::live(&context.member), &name)
}

async fn get_ready(State(context): State<Context>, RawQuery(query): RawQuery) -> Response {
    render(&health::ready(&context.member), query.as_deref())
}

async fn get_ready_check(State(context): State<Context>, Path(name): Path<String>) -> Response {
    render_one(&health::ready(&context.member), &name)
}

async fn get_version() -> Response {
    let body = format!(
        r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}","storage":"{ETCD_CLUSTER_VERSION}"}}"#
    );
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn get_metrics(State(context): State<Context>) -> Response {
    match context.metrics.render(&context.member) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.row().text.into_owned()).into_response(),
    }
}

/// The parameters of a query in order; a name may repeat. The names and values that are looked for need no decoding.
fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let parts = query.unwrap_or_default().split('&');
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// `ok` when all checks pass; with `verbose`, or when one fails, a line per check. `exclude=name` skips one.
fn render(checks: &[Check], query: Option<&str>) -> Response {
    let excluded = |name: &str| parameters(query).any(|parameter| parameter == ("exclude", name));
    let checks: Vec<_> = checks.iter().filter(|check| !excluded(check.name)).collect();
    let lines: String = checks.iter().map(|check| line(check)).collect();
    if checks.iter().any(|check| check.result.is_err()) {
        return (StatusCode::SERVICE_UNAVAILABLE, lines).into_response();
    }
    let verbose = parameters(query).any(|(name, _)| name == "verbose");
    if verbose { format!("{lines}ok\n").into_response() } else { "ok\n".into_response() }
}

fn render_one(checks: &[Check], name: &str) -> Response {
    match checks.iter().find(|check| check.name == name) {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(check) => render(std::slice::from_ref(check), None),
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

    fn checks(second: Result<(), String>) -> Vec<Check> {
        vec![Check { name: "first", result: Ok(()) }, Check { name: "second", result: second }]
    }

    async fn text(response: Response) -> (StatusCode, String) {
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_failed_check_is_named() {
        let good = checks(Ok(()));
        assert_eq!(text(render(&good, None)).await, (StatusCode::OK, "ok\n".into()));
        let verbose = text(render(&good, Some("verbose"))).await;
        assert_eq!(verbose.1, "[+]first ok\n[+]second ok\nok\n");
        let bad = checks(Err("no leader".into()));
        let failed = text(render(&bad, None)).await;
        assert_eq!(failed, (StatusCode::SERVICE_UNAVAILABLE, "[+]first ok\n[-]second failed: no leader\n".into()));
        assert_eq!(text(render(&bad, Some("a=b&exclude=second"))).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_check_has_a_path_of_its_own() {
        let bad = checks(Err("no leader".into()));
        assert_eq!(text(render_one(&bad, "first")).await.0, StatusCode::OK);
        assert_eq!(text(render_one(&bad, "second")).await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text(render_one(&bad, "third")).await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn every_part_of_the_version_is_a_number() {
        let (_, body) = text(get_version().await).await;
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        for name in ["etcdserver", "etcdcluster", "storage"] {
            let version = json[name].as_str().unwrap();
            assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
        }
    }
}
