//! What stands before plain HTTP on the client port, as etcd's access controller does: which hosts may be asked for, which
//! origins may read the answers, and the old name of the API's prefix. gRPC does not come through here.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, HOST, ORIGIN,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::connection::{ClientCertificate, Connection};
use super::http::plain_error;
use crate::engine::Limit;

/// The prefix of the gateway.
const PREFIX: &str = "/v3/";
/// The prefix of etcd 3.3 and before.
const OLD_PREFIX: &str = "/v3beta/";

/// etcd's words for a client whose certificate would name a user if it came by gRPC.
const NAMED_CLIENT: &str =
    "CommonName of client sending a request against gateway will be ignored and not used as expected";

/// Who may come in.
#[derive(Debug, Clone)]
pub struct Access {
    /// `--cors`: origins, or `*`.
    pub origins: BTreeSet<String>,
    /// `--host-whitelist`: hosts, or `*`; none is any.
    pub hosts: BTreeSet<String>,
    /// Whether the common name of a client's certificate is a user now. The gateway cannot pass it on, and so refuses who
    /// has one.
    pub names_are_users: Limit<bool>,
}

impl Access {
    fn admits_host(&self, host: &str) -> bool {
        self.hosts.is_empty() || self.hosts.contains("*") || self.hosts.contains(host)
    }

    /// The origin that the answer names, if it names one.
    fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.is_empty() || self.origins.contains("*") {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = headers.get(ORIGIN)?;
        origin.to_str().is_ok_and(|origin| self.origins.contains(origin)).then(|| origin.clone())
    }
}

/// Checks a request and passes it on.
pub async fn check(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let host = host(&request);
    rename(&mut request);
    // Behind TLS the certificate says whose the listener is, and every host is right.
    let secure = request.extensions().get::<Connection>().is_some_and(|connection| connection.secure);
    if !secure && !access.admits_host(&host) {
        tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
        return plain_error(StatusCode::MISDIRECTED_REQUEST, &foreign_host(&host));
    }
    let name = ClientCertificate::of(request.extensions()).map(|certificate| certificate.common_name.as_str());
    let named = request.uri().path().starts_with(PREFIX) && name.is_some_and(|name| !name.is_empty());
    if named && access.names_are_users.get() {
        return plain_error(StatusCode::BAD_REQUEST, NAMED_CLIENT);
    }
    let origin = access.allowed_origin(request.headers());
    let mut response =
        if request.method() == Method::OPTIONS { Body::empty().into_response() } else { next.run(request).await };
    // A connection that speaks another protocol from now on gives no answer to read.
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if let (Some(origin), false) = (origin, switched) {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"));
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let allowed = HeaderValue::from_static("accept, content-type, authorization");
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    response
}

/// The host that was asked for, without its port.
fn host(request: &Request) -> String {
    let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(header).unwrap_or_default();
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            name.trim_start_matches('[').trim_end_matches(']').to_owned()
        }
        _ => host.trim_start_matches('[').trim_end_matches(']').to_owned(),
    }
}

fn rename(request: &mut Request) {
    let Some(rest) = request.uri().path_and_query().and_then(|path| path.as_str().strip_prefix(OLD_PREFIX)) else {
        return;
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = format!("{PREFIX}{rest}").parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

fn foreign_host(host: &str) -> String {
    format!(
        "\netcd received your request, but the Host header was unrecognized.\n\n\
         To fix this, choose one of the following options:\n\
         - Enable TLS, then any HTTPS request will be allowed.\n\
         - Add the hostname you want to use to the whitelist in settings.\n  - e.g. etcd --host-whitelist {host:?}\n\n\
         This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n"
    )
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use tower::ServiceExt;

    use super::super::socket::Remote;
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn access(origins: BTreeSet<String>, hosts: BTreeSet<String>) -> Access {
        Access { origins, hosts, names_are_users: Limit::new(|| true) }
    }

    async fn ask(access: Access, request: axum::http::request::Builder) -> (StatusCode, HeaderMap, String) {
        let path = |request: Request| async move { request.uri().to_string() };
        let router = Router::new().fallback(path).layer(from_fn_with_state(Arc::new(access), check));
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn only_hosts_of_the_list_are_served_without_tls() {
        let access = access(set(&["*"]), set(&["a.example"]));
        let request = |host: &str| Request::get("/version").header(HOST, host.to_owned());
        assert_eq!(ask(access.clone(), request("a.example:2379")).await.0, StatusCode::OK);
        let (status, headers, body) = ask(access.clone(), request("b.example")).await;
        assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
        assert!(body.contains("--host-whitelist \"b.example\""), "{body}");
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        let connection = Connection::new(Remote::Unix, true, None);
        assert_eq!(ask(access, request("b.example").extension(connection)).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_origin_of_the_list_may_read_the_answer() {
        let access = access(set(&["http://a"]), set(&["*"]));
        let request = |origin: &str| Request::get("/version").header(ORIGIN, origin.to_owned());
        let (_, headers, _) = ask(access.clone(), request("http://a")).await;
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "http://a");
        let (_, headers, _) = ask(access, request("http://b")).await;
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }

    #[tokio::test]
    async fn the_old_prefix_is_the_new_one_and_options_are_answered_here() {
        let access = access(set(&["*"]), set(&["*"]));
        let (_, _, path) = ask(access.clone(), Request::post("/v3beta/kv/range?a=b")).await;
        assert_eq!(path, "/v3/kv/range?a=b");
        let (status, headers, body) = ask(access, Request::options("/v3/kv/range")).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "POST, GET, OPTIONS, PUT, DELETE");
    }

    #[tokio::test]
    async fn a_name_that_is_a_user_does_not_come_through_the_gateway() {
        let with = |name: &str| {
            let certificate = Arc::new(ClientCertificate { common_name: name.to_owned() });
            Connection::new(Remote::Unix, true, Some(certificate))
        };
        let mut access = access(set(&["*"]), set(&["*"]));
        let request = |path: &str, name: &str| Request::post(path).extension(with(name));
        for path in ["/v3/kv/range", "/v3beta/kv/range"] {
            let (status, headers, body) = ask(access.clone(), request(path, "root")).await;
            assert_eq!((status, body), (StatusCode::BAD_REQUEST, format!("{NAMED_CLIENT}\n")));
            assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        }
        assert_eq!(ask(access.clone(), request("/version", "root")).await.0, StatusCode::OK);
        assert_eq!(ask(access.clone(), request("/v3/kv/range", "")).await.0, StatusCode::OK);
        access.names_are_users = Limit::new(|| false);
        assert_eq!(ask(access, request("/v3/kv/range", "root")).await.0, StatusCode::OK);
    }
}
