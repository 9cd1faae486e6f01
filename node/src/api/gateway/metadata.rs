//! From HTTP headers to gRPC metadata and back, as grpc-gateway maps them.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use tonic::Code;

use super::call::Failed;
use crate::api::deadline;
use crate::api::head::corrupt_at;

/// Headers with this prefix are metadata without it.
const PREFIX: &str = "grpc-metadata-";

/// The metadata of a request: `Authorization`, and every `Grpc-Metadata-*`.
///
/// # Errors
/// A value of binary metadata that is no base64.
pub(super) fn incoming(headers: &HeaderMap) -> Result<HeaderMap, Failed> {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        if name == header::AUTHORIZATION {
            metadata.append(name, value.clone());
        }
        let Some(key) = name.as_str().strip_prefix(PREFIX) else { continue };
        let text = value.as_bytes();
        if key.ends_with("-bin") {
            check_binary(name, text)?;
        } else if !text.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            continue;
        }
        // What the call itself says of its form is not the client's to say.
        let reserved = matches!(key, "content-type" | "te") || key.starts_with("grpc-");
        if let (false, Ok(key)) = (reserved, key.parse::<HeaderName>()) {
            metadata.append(key, value.clone());
        }
    }
    Ok(metadata)
}

fn check_binary(name: &HeaderName, text: &[u8]) -> Result<(), Failed> {
    let Some(at) = corrupt_at(text) else { return Ok(()) };
    let name = canonical(name);
    let text = format!("invalid binary header {name}: illegal base64 data at input byte {at}");
    Err(Failed::new(Code::InvalidArgument, text))
}

/// The time that `Grpc-Timeout` gives the call.
///
/// # Errors
/// A value that is none.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failed> {
    let Some(value) = headers.get(deadline::TIMEOUT) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let parsed = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let nanoseconds = deadline::nanoseconds(unit)?;
        let number: i64 = number.parse().ok()?;
        // A time that has passed is a call that is over.
        Some(Duration::from_nanos(u64::try_from(number).unwrap_or_default().saturating_mul(nanoseconds)))
    };
    match parsed() {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Failed::new(Code::InvalidArgument, format!("invalid grpc-timeout: {text}"))),
    }
}

/// Whether a POST of a form says that it stands for another method; the gateway has no path for one.
pub(super) fn is_overridden(headers: &HeaderMap) -> bool {
    let form = |kind: &HeaderValue| kind.as_bytes() == b"application/x-www-form-urlencoded";
    let other = |method: &HeaderValue| !method.is_empty() && !method.as_bytes().eq_ignore_ascii_case(b"POST");
    headers.get(header::CONTENT_TYPE).is_some_and(form) && headers.get("x-http-method-override").is_some_and(other)
}

/// Adds what the call's headers say to the headers of the answer.
pub(super) fn outgoing(metadata: &HeaderMap, headers: &mut HeaderMap) {
    for (name, value) in metadata {
        let own = matches!(name.as_str(), "date" | "grpc-encoding" | "grpc-accept-encoding" | "content-length");
        if let (false, Ok(name)) = (own, format!("{PREFIX}{name}").parse::<HeaderName>()) {
            headers.append(name, value.clone());
        }
    }
}

/// Tells a client whose token is refused how it went, as grpc-gateway does.
pub(super) fn challenge(failed: &Failed, headers: &mut HeaderMap) {
    if let (Code::Unauthenticated, Ok(value)) = (failed.code, HeaderValue::from_str(&failed.message)) {
        headers.insert(header::WWW_AUTHENTICATE, value);
    }
}

/// A header's name as Go writes it.
fn canonical(name: &HeaderName) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    let words = name.as_str().split('-').map(|word| if word.is_empty() { String::new() } else { capital(word) });
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_what_is_meant_for_the_call_becomes_metadata() {
        let metadata = incoming(&headers(&[
            ("authorization", "token"),
            ("cookie", "a=b"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-content-type", "text/plain"),
            ("grpc-metadata-grpc-encoding", "gzip"),
            ("grpc-metadata-x-bin", "AAE"),
        ]));
        let expected = headers(&[("authorization", "token"), ("hasleader", "true"), ("x-bin", "AAE")]);
        assert_eq!(metadata, Ok(expected));
        let error = incoming(&headers(&[("grpc-metadata-x-bin", "!!")])).unwrap_err();
        let text = "invalid binary header Grpc-Metadata-X-Bin: illegal base64 data at input byte 0";
        assert_eq!((error.code, error.message.as_str()), (Code::InvalidArgument, text));
    }

    #[test]
    fn a_timeout_has_a_number_and_a_unit() {
        let of = |text| timeout(&headers(&[("grpc-timeout", text)]));
        assert_eq!(of("5S"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(of("20m"), Ok(Some(Duration::from_millis(20))));
        assert_eq!(of("-1S"), Ok(Some(Duration::ZERO)));
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        for text in ["5x", "S", "", "5", "5.5S"] {
            assert_eq!(of(text).unwrap_err().message, format!("invalid grpc-timeout: {text}"));
        }
    }
}
