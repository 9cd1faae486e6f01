//! The port of etcd's library for failpoints: `GET /` lists them, `PUT /name` sets one to the terms that are its body, `DELETE
//! /name` takes it back. It is there only when `GOFAIL_HTTP` names an address.

use std::io;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::engine::gofail;

/// The variable that asks for it.
const VARIABLE: &str = "GOFAIL_HTTP";

/// Serves where the environment says, if it does.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_from_environment() -> io::Result<()> {
    let Some(address) = std::env::var(VARIABLE).ok().filter(|address| !address.is_empty()) else { return Ok(()) };
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{VARIABLE}: listen on {address}: {error}")))?;
    tracing::warn!(address, "failpoints can be set: this process is meant to fail");
    let routes = Router::new().route("/", get(list)).route("/{name}", get(show).put(set).delete(unset));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(())
}

async fn list() -> String {
    let lines: Vec<_> = gofail::list().into_iter().map(|(name, terms)| format!("{name}={terms}")).collect();
    lines.join("\n") + "\n"
}

async fn show(Path(name): Path<String>) -> Response {
    match gofail::status(&name) {
        Ok(terms) => (terms + "\n").into_response(),
        Err(refused) => (StatusCode::NOT_FOUND, format!("failed to GET: {refused}\n")).into_response(),
    }
}

async fn set(Path(name): Path<String>, terms: String) -> Response {
    match gofail::enable(&name, &terms) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => (StatusCode::BAD_REQUEST, format!("fail to set failpoint: {refused}\n")).into_response(),
    }
}

async fn unset(Path(name): Path<String>) -> Response {
    match gofail::disable(&name) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => (StatusCode::BAD_REQUEST, format!("failed to delete failpoint {refused}\n")).into_response(),
    }
}
