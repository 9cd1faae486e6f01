//! The head of a call as gRPC-Go checks it, in its order and with its texts.

use std::borrow::Cow;

use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tonic::Status;

use super::deadline;
use super::gateway::go_quoted;

/// How the content types of gRPC begin.
pub(super) const GRPC: &[u8] = b"application/grpc";

/// What a call is answered whose head is not right.
pub(super) fn refusal(request: &Request) -> Option<(Status, StatusCode)> {
    let headers = request.headers();
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 {
        let text = format!(
            "num values of :authority: {}, num values of host: {hosts}, both must only have 1 value as per HTTP/2 spec",
            usize::from(request.uri().authority().is_some()),
        );
        return Some((Status::internal(text), StatusCode::BAD_REQUEST));
    }
    let kind = content_type(headers);
    // gRPC-Web, for one, which etcd does not speak either.
    if !matches!(kind.get(GRPC.len()), None | Some(b'+' | b';')) {
        let text = format!("invalid gRPC request content-type {}", go_quoted(kind));
        return Some((Status::invalid_argument(text), StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    if let Some(text) = malformed(headers) {
        return Some((Status::internal(text), StatusCode::BAD_REQUEST));
    }
    if request.method() != Method::POST {
        let method = go_quoted(request.method().as_str().as_bytes());
        let text = format!("Received a HEADERS frame with :method {method} which should be POST");
        return Some((Status::internal(text), StatusCode::METHOD_NOT_ALLOWED));
    }
    None
}

/// The content type of the answer to a call: gRPC-Go gives the part back that says how messages are encoded, whatever it
/// says.
pub(super) fn answered_type(headers: &HeaderMap) -> Option<HeaderValue> {
    let (_, rest) = content_type(headers).split_at_checked(GRPC.len())?;
    let ([b'+', subtype @ ..] | [b';', subtype @ ..]) = rest else { return None };
    if subtype.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&[GRPC, b"+", subtype].concat()).ok()
}

fn content_type(headers: &HeaderMap) -> &[u8] {
    headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default()
}

/// What is wrong with the last header that is. Words are made for that one alone: to send thousands costs a client a byte for
/// each (HPACK).
fn malformed(headers: &HeaderMap) -> Option<String> {
    let (name, value, flaw) =
        headers.iter().filter_map(|(name, value)| Some((name, value, flaw(name, value)?))).last()?;
    Some(match flaw {
        Flaw::Timeout(flaw) => format!("malformed grpc-timeout: {}", flaw.of(&text(value))),
        Flaw::Binary(at) => {
            let (value, name) = (go_quoted(value.as_bytes()), go_quoted(name.as_str().as_bytes()));
            format!("malformed binary metadata {value} in header {name}: illegal base64 data at input byte {at}")
        }
    })
}

/// What a header can be wrong in.
enum Flaw {
    Timeout(deadline::Flaw),
    /// From this byte on.
    Binary(usize),
}

fn flaw(name: &HeaderName, value: &HeaderValue) -> Option<Flaw> {
    if name == deadline::TIMEOUT {
        return deadline::read(&text(value)).err().map(Flaw::Timeout);
    }
    name.as_str().ends_with("-bin").then(|| corrupt_at(value.as_bytes())).flatten().map(Flaw::Binary)
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// Where Go's decoder stops in what should be base64, with or without padding. Unlike others it takes what stands in the
/// last bits, which mean nothing.
pub(super) fn corrupt_at(text: &[u8]) -> Option<usize> {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let padded = text.len().is_multiple_of(4);
    let digits = text.iter().take_while(|byte| is_digit(byte)).count();
    let (within, rest) = (digits % 4, &text[digits..]);
    match (padded, within, rest) {
        (_, 0, []) | (false, 2 | 3, []) | (true, 2, [b'=', b'=']) | (true, 3, [b'=']) => None,
        // One digit alone is less than a byte, and is where the decoder began with it.
        (false, 1, []) => Some(digits - 1),
        // What follows the padding is too much.
        (true, 2, [b'=', b'=', ..]) => Some(digits + 2),
        (true, 3, [b'=', ..]) => Some(digits + 1),
        _ => Some(digits),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn text(headers: &[(&'static str, &'static [u8])]) -> Option<(u16, String)> {
        let mut request = Request::post("http://h/a.B/C").body(Body::empty()).unwrap();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        refusal(&request).map(|(status, code)| (code.as_u16(), status.message().to_owned()))
    }

    #[test]
    fn headers_are_refused_in_the_words_of_grpc_go() {
        let binary = |value: &str, at| {
            let text = format!(
                "malformed binary metadata {value} in header \"x-bin\": illegal base64 data at input byte {at}"
            );
            Some((400, text))
        };
        for good in [&b"AQID"[..], b"AQ", b"AQ==", b"AQI", b"AQI=", b"AR", b""] {
            assert_eq!(text(&[("x-bin", good)]), None, "{good:?}");
        }
        assert_eq!(text(&[("x-bin", b"!!!")]), binary("\"!!!\"", 0));
        assert_eq!(text(&[("x-bin", b"AQIDA")]), binary("\"AQIDA\"", 4));
        assert_eq!(text(&[("x-bin", b"AQID,AQID")]), binary("\"AQID,AQID\"", 4));
        assert_eq!(text(&[("x-bin", b"\"\xff\\")]), binary(r#""\"\xff\\""#, 0));
        let short = (400, "malformed grpc-timeout: transport: timeout string is too short: \"x\"".to_owned());
        assert_eq!(text(&[("grpc-timeout", b"x"), ("grpc-timeout", b"1S")]), Some(short));
        let hosts =
            "num values of :authority: 1, num values of host: 2, both must only have 1 value as per HTTP/2 spec";
        assert_eq!(text(&[("host", b"a"), ("host", b"b")]), Some((400, hosts.to_owned())));
        assert_eq!(text(&[("host", b"a"), ("x", b"\xff")]), None);
    }

    #[test]
    fn what_is_no_base64_is_found_where_go_finds_it() {
        for (text, at) in [
            ("=", 0),
            ("A=", 1),
            ("A===", 1),
            ("AB=", 2),
            ("AB=A", 2),
            ("AB===", 2),
            ("AB=====", 2),
            ("ABC=A", 3),
            ("ABC=AAAA", 4),
            ("ABC==", 3),
            ("ABC====", 3),
            ("ABCD=", 4),
            ("AB==ABCD", 4),
            ("A", 0),
            ("ABCDE", 4),
            ("ABC!", 3),
            ("A!CD", 1),
            ("AA==AA==", 4),
            ("ABCDA===", 5),
            ("AAAAAA=A", 6),
            ("-_-_", 0),
        ] {
            assert_eq!(corrupt_at(text.as_bytes()), Some(at), "{text}");
        }
    }

    #[test]
    fn the_encoding_of_messages_is_given_back() {
        let answered = |kind: &'static str| {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            answered_type(&headers).map(|kind| kind.to_str().unwrap().to_owned())
        };
        assert_eq!(answered("application/grpc"), None);
        assert_eq!(answered("application/grpc+"), None);
        assert_eq!(answered("application/grpc-web"), None);
        assert_eq!(answered("application/grpc;x"), Some("application/grpc+x".to_owned()));
        assert_eq!(answered("application/grpc+Foo"), Some("application/grpc+Foo".to_owned()));
    }
}
