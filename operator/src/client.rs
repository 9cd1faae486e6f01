//! The clients of the API server: that of a pass is bounded in time, and calls never twice by itself.

use std::time::Duration;

use kube::config::InferConfigError;
use kube::{Client, Config};
use thiserror::Error;

/// Longest time that one call of a pass may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing says where the API server is.
    #[error("no way to the Kubernetes API: set KUBECONFIG or run in a pod: {0}")]
    NoWay(#[from] InferConfigError),
    /// What says so cannot be used.
    #[error("the Kubernetes API cannot be called as it is configured: {0}")]
    Unusable(#[from] kube::Error),
}

/// Both lead to the API server that the environment names.
pub struct Clients {
    /// Watches, and keeps the lease.
    pub watches: Client,
    /// Makes the calls of passes: see [`bounded`].
    pub of_passes: Client,
}

impl Clients {
    /// As `KUBECONFIG` says, or the pod that this runs in.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn infer() -> Result<Self, ClientError> {
        let config = Config::infer().await?;
        let of_passes = Client::try_from(bounded(config.clone(), CALL_TIMEOUT))?;
        Ok(Self { watches: Client::try_from(config)?, of_passes })
    }
}

/// The configuration of a client whose calls take no longer than `timeout` and are made once (4.1): what is refused, or is not
/// known to have happened, is for the next pass to observe. An eviction that is asked for again and again by the client would
/// also hold up every other pass of its lane.
pub fn bounded(mut config: Config, timeout: Duration) -> Config {
    (config.read_timeout, config.default_retry) = (Some(timeout), false);
    // Else the time counts from when the connection was used last, and a call after a rest has hardly any left.
    config.reset_reader_on_write = true;
    config
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::*;
    use crate::execute::Hands;
    use crate::fixtures::{minimal, observed_three, valid};
    use crate::members::Network;
    use crate::step::{PodRef, RestartMode, Step};

    /// An API server that answers every call with `code`, after so long, and counts them; and the client of a pass to it.
    async fn server(code: StatusCode, delay: Duration, timeout: Duration) -> (Client, Arc<AtomicUsize>) {
        // An error would only say that a provider is installed already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let router = Router::new().fallback(move || async move {
            // The first one is answered at once.
            if counted.fetch_add(1, Ordering::Relaxed) > 0 {
                tokio::time::sleep(delay).await;
            }
            (code, json!({"kind": "Status", "code": code.as_u16(), "message": "later"}).to_string())
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = bounded(Config::new(url.parse().expect("a URL")), timeout);
        (Client::try_from(config).expect("a client"), calls)
    }

    #[tokio::test]
    async fn an_eviction_that_is_refused_is_asked_for_once() {
        let (resource, cluster, observed) = (minimal(), valid("{image: balsa}"), observed_three());
        let pod = PodRef { ordinal: 2, uid: "pod-2".into(), resource_version: "80".into() };
        let step = Step::RestartPod { pod, mode: RestartMode::Evict, writes_pause: false };
        for code in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT] {
            let (client, calls) = server(code, Duration::ZERO, CALL_TIMEOUT).await;
            let (client, dial, addresses) = (&client, &Network, &BTreeMap::new());
            let hands = Hands { client, dial, resource: &resource, cluster: &cluster, observed: &observed, addresses };
            hands.execute(&step).await.expect_err("refused");
            assert_eq!(calls.load(Ordering::Relaxed), 1, "{code}");
        }
    }

    #[tokio::test]
    async fn a_call_has_all_its_time_however_long_the_connection_was_at_rest() {
        let (client, calls) = server(StatusCode::OK, Duration::from_millis(1500), Duration::from_secs(3)).await;
        let call = || async {
            client.request::<Value>(axum::http::Request::get("/").body(Vec::new()).expect("a request")).await
        };
        call().await.expect("an answer");
        tokio::time::sleep(Duration::from_millis(2500)).await;
        call().await.expect("an answer after a rest");
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_call_that_is_not_answered_ends() {
        // The first call, with its connection, needs some of it where the machine is busy.
        let (client, _) = server(StatusCode::OK, Duration::from_secs(600), Duration::from_secs(2)).await;
        let call = || async {
            client.request::<Value>(axum::http::Request::get("/").body(Vec::new()).expect("a request")).await
        };
        call().await.expect("an answer");
        let ended = tokio::time::timeout(Duration::from_secs(60), call()).await;
        ended.expect("it ends").expect_err("without an answer");
    }
}
