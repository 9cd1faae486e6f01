//! Tells gRPC from plain HTTP as etcd does: by HTTP/2 and the content type. The services themselves answer whatever comes to
//! their paths. A page in a browser can send that over HTTP/1.1, with its own content type and under a name of its own, and
//! would be past `--host-whitelist` and whatever else stands before plain HTTP.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower::ServiceExt;

use super::head::{self, GRPC};

/// Passes calls on, and sends everything else to `plain`.
pub async fn check(State(plain): State<Router>, request: Request, next: Next) -> Response {
    if !is_call(&request) {
        return plain.oneshot(request).await.into_response();
    }
    let kind = head::answered_type(request.headers());
    let mut response = match head::refusal(&request) {
        Some((status, code)) => {
            let mut response = status.into_http();
            *response.status_mut() = code;
            response
        }
        None => next.run(request).await,
    };
    if let Some(kind) = kind
        && response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes) == Some(GRPC)
    {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

/// Whether it means to be gRPC.
pub fn is_call(request: &Request) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    request.version() == Version::HTTP_2 && kind.is_some_and(|kind| kind.as_bytes().starts_with(GRPC))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, StatusCode};
    use axum::middleware::from_fn_with_state;

    use super::*;

    async fn answer(version: Version, method: Method, kind: Option<&str>) -> (StatusCode, Option<String>) {
        let plain = Router::new().fallback(|| async { StatusCode::NOT_FOUND });
        let services = Router::new().fallback(|| async { StatusCode::OK }).layer(from_fn_with_state(plain, check));
        let mut request = Request::builder().version(version).method(method).uri("/a.B/C");
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let response = services.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
        (response.status(), status)
    }

    #[tokio::test]
    async fn only_grpc_reaches_the_services() {
        let post = |version, kind| answer(version, Method::POST, kind);
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x"] {
            assert_eq!(post(Version::HTTP_2, Some(kind)).await, (StatusCode::OK, None), "{kind}");
            assert_eq!(post(Version::HTTP_11, Some(kind)).await, (StatusCode::NOT_FOUND, None), "{kind}");
        }
        for kind in [None, Some("text/plain"), Some("application/json"), Some("Application/GRPC")] {
            assert_eq!(post(Version::HTTP_2, kind).await, (StatusCode::NOT_FOUND, None), "{kind:?}");
            assert_eq!(post(Version::HTTP_11, kind).await, (StatusCode::NOT_FOUND, None), "{kind:?}");
        }
        let web = post(Version::HTTP_2, Some("application/grpc-web")).await;
        assert_eq!(web, (StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("3".into())));
        let get = answer(Version::HTTP_2, Method::GET, Some("application/grpc")).await;
        assert_eq!(get, (StatusCode::METHOD_NOT_ALLOWED, Some("13".into())));
    }
}
