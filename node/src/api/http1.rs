//! What Go's server looks at in a request over HTTP/1 before anybody else does: that its head is not too large, and that
//! it has a `Host`, as HTTP/1.1 demands, only one, and of letters that names and ports may have.

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Method, Request, StatusCode, Version};
use axum::response::Response;
use hyper::ext::ReasonPhrase;

/// What the head of a request may have, in bytes; Go's number. hyper, which reads more at once, keeps to it roughly.
pub(super) const HEAD: usize = (1 << 20) + 4096;

/// What a request is answered that Go's server would not take.
pub(super) fn refusal<B>(request: &Request<B>) -> Option<Response> {
    if request.version() >= Version::HTTP_2 {
        return None;
    }
    if size(request) > HEAD {
        let text = "431 Request Header Fields Too Large";
        return Some(refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text));
    }
    let bad_request = |text| Some(refused(StatusCode::BAD_REQUEST, text));
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => bad_request("400 Bad Request"),
        (Some(host), None) if !host.as_bytes().iter().all(is_of_hosts) => {
            bad_request("400 Bad Request: malformed Host header")
        }
        (None, None) if request.version() == Version::HTTP_11 && request.method() != Method::CONNECT => {
            bad_request("400 Bad Request: missing required Host header")
        }
        _ => None,
    }
}

/// About what the head had on the wire.
fn size<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    request.method().as_str().len() + path + headers.sum::<usize>()
}

fn is_of_hosts(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte)
}

/// Go says the text in the first line too, and closes the connection.
fn refused(code: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    let (_, reason) = text.split_once(' ').unwrap_or_default();
    response.extensions_mut().insert(ReasonPhrase::from_static(reason.as_bytes()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_a_mebibyte() {
        let refused = |bytes| {
            let request = Request::builder().header(HOST, "a").header("x", "v".repeat(bytes)).body(()).unwrap();
            refusal(&request).map(|response| response.status().as_u16())
        };
        assert_eq!(refused(1 << 20), None);
        assert_eq!(refused((1 << 20) + 4096), Some(431));
    }

    #[test]
    fn a_request_over_http_1_has_one_host() {
        let refused = |version, hosts: &[&'static [u8]]| {
            let mut request = Request::builder().version(version).body(()).unwrap();
            for host in hosts {
                request.headers_mut().append(HOST, HeaderValue::from_bytes(host).unwrap());
            }
            let reason = |response: Response| response.extensions().get::<ReasonPhrase>().unwrap().as_bytes().to_vec();
            refusal(&request).map(|response| String::from_utf8(reason(response)).unwrap())
        };
        let (none, two) = ("Bad Request: missing required Host header", "Bad Request");
        assert_eq!(refused(Version::HTTP_11, &[]).as_deref(), Some(none));
        assert_eq!(refused(Version::HTTP_10, &[]), None);
        assert_eq!(refused(Version::HTTP_2, &[]), None);
        assert_eq!(refused(Version::HTTP_11, &[b"a", b"a"]).as_deref(), Some(two));
        for good in [&b""[..], b"a", b"a:80", b"[::1]:80", b"[::1", b"a,b", b"a%zz"] {
            assert_eq!(refused(Version::HTTP_11, &[good]), None, "{good:?}");
        }
        for bad in [&b"a b"[..], b"a/b", b"\xc3\xbc", b"u@h", b"<a>"] {
            let malformed = "Bad Request: malformed Host header";
            assert_eq!(refused(Version::HTTP_11, &[bad]).as_deref(), Some(malformed), "{bad:?}");
        }
    }
}
