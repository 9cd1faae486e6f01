//! A path with doubled slashes or dots is answered with the clean one, as by Go's router: who joins `http://host:2379/` and
//! `/v3/kv/put` still gets where he wants to.

use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::grpc_only;

/// Passes a request on whose path is clean, and shows any other the way.
pub(super) async fn redirect(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let clean = clean(path);
    // A call of gRPC knows no redirections: its path is that of a service that there is or is not.
    if clean == path || request.method() == Method::CONNECT || grpc_only::is_call(&request) {
        return next.run(request).await;
    }
    to(&request, &location(&clean))
}

/// A clean path as a place to go to, as Go writes it: what is escaped in it is escaped once more, and what has to be escaped is
/// so before. A browser takes `/\host` for another host.
fn location(clean: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f.. => format!("%25{byte:02X}"),
        b'%' => "%25".to_owned(),
        byte => char::from(byte).to_string(),
    };
    clean.bytes().map(escaped).collect()
}

/// The answer that sends a request to another path, with its query.
pub(super) fn to(request: &Request, path: &str) -> Response {
    let location = request.uri().query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let Ok(header) = HeaderValue::from_str(&location) else { return StatusCode::BAD_REQUEST.into_response() };
    let text = match *request.method() {
        Method::GET => format!("<a href=\"{}\">Temporary Redirect</a>.\n\n", escaped(&location)),
        _ => String::new(),
    };
    let mut response = (StatusCode::TEMPORARY_REDIRECT, text).into_response();
    response.headers_mut().insert(LOCATION, header);
    match *request.method() {
        Method::GET | Method::HEAD => {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))
        }
        _ => response.headers_mut().remove(CONTENT_TYPE),
    };
    response
}

/// Go's `cleanPath`: no empty part, no `.` and no `..`; a slash at the end stays.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

/// For HTML, as Go does.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_by_go() {
        for (path, expected) in [
            ("/health", "/health"),
            ("/", "/"),
            ("", "/"),
            ("//health", "/health"),
            ("/health//", "/health/"),
            ("/v3/", "/v3/"),
            ("/v3/./kv//range", "/v3/kv/range"),
            ("/health/../version", "/version"),
            ("/../..", "/"),
            ("/a/.", "/a"),
            ("/a/./", "/a/"),
            ("/...", "/..."),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }

    #[test]
    fn nobody_is_sent_to_another_host() {
        for (path, expected) in [
            ("/./\\evil.example", "/%255Cevil.example"),
            ("//evil.example", "/evil.example"),
            ("/.//a|b", "/a%257Cb"),
            ("/a//b%5c", "/a/b%255c"),
        ] {
            assert_eq!(location(&clean(path)), expected, "{path}");
        }
    }

    #[test]
    fn nothing_of_the_query_becomes_html() {
        assert_eq!(escaped("\"'><b>&c"), "&#34;&#39;&gt;&lt;b&gt;&amp;c");
    }
}
