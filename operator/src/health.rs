//! The operator's own HTTP port: `/healthz` for its probes, `/metrics` for Prometheus.
//!
//! `/healthz` always says `ok`, because the answer itself is what is asked for: the process has started and its runtime goes on.
//! It asks neither the API server nor the members. While those are away the kubelet would kill every operator for it, and a
//! new process would find them no better; `/metrics` and the clusters' status tell of that. An operator that must not go on,
//! because its lease is lost or it was asleep, ends by itself (`main.rs`).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Serves until `stop` is cancelled.
///
/// # Errors
/// When the address cannot be bound or the listener fails.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, stop: CancellationToken) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router(metrics)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(metrics: Arc<Metrics>) -> Router {
    // A standby answers too: it is healthy while it waits for the lease.
    Router::new().route("/healthz", get(async || "ok\n")).route("/metrics", get(show)).with_state(metrics)
}

async fn show(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    const DEPLOYMENT: &str = include_str!("../../manifests/parts/deployment.yaml");

    async fn ask(metrics: &Arc<Metrics>, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let (head, body) = router(metrics.clone()).oneshot(request).await.expect("an answer").into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a body");
        (head.status, String::from_utf8(body.to_vec()).expect("text"))
    }

    /// The kubelet's and Prometheus' paths, asked of an operator that leads nothing.
    #[tokio::test]
    async fn every_path_that_the_deployment_names_is_answered() {
        let deployment: serde_yaml::Value = serde_yaml::from_str(DEPLOYMENT).expect("YAML");
        let pod = &deployment["spec"]["template"];
        let probe = |name: &str| pod["spec"]["containers"][0][name]["httpGet"]["path"].as_str();
        let scraped = pod["metadata"]["annotations"]["prometheus.io/path"].as_str();
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        metrics.pass("ok", Duration::from_millis(1));
        for (path, words) in [
            (probe("livenessProbe"), "ok\n"),
            (probe("readinessProbe"), "ok\n"),
            (scraped, "balsa_operator_reconcile_seconds_count{result=\"ok\"} 1\n"),
        ] {
            let path = path.expect("a path");
            let (status, body) = ask(&metrics, path).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            assert!(body.contains(words), "{path}: {body}");
        }
        assert_eq!(ask(&metrics, "/other").await.0, StatusCode::NOT_FOUND);
    }
}
