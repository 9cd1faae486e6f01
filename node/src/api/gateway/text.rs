//! JSON strings, read and written as Go's `protojson` does.

use std::fmt::Write;

/// Why a string cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It ends too early.
    CutOff,
    /// What is wrong.
    Wrong(String),
}

/// The string that `text` begins with, and how many bytes it takes with its quotes.
///
/// # Errors
/// Bytes that are no UTF-8, half a surrogate pair.
pub(super) fn unquoted(text: &[u8]) -> Result<(String, usize), Fault> {
    let (mut out, mut at) = (String::new(), 1);
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).ok_or(Fault::CutOff)?;
        let utf8 = std::str::from_utf8(&rest[..plain]);
        out.push_str(utf8.map_err(|_| Fault::Wrong("invalid UTF-8 in string".to_owned()))?);
        at += plain;
        if text[at] == b'"' {
            return Ok((out, at + 1));
        }
        let (c, length) = escaped(&text[at..])?;
        out.push(c);
        at += length;
    }
}

/// The character of an escape sequence and its length.
fn escaped(text: &[u8]) -> Result<(char, usize), Fault> {
    let c = match text.get(1).ok_or(Fault::CutOff)? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode(text),
        other => char::from(*other),
    };
    Ok((c, 2))
}

/// `\u` and four digits, twice when the first is half of a pair.
fn unicode(text: &[u8]) -> Result<(char, usize), Fault> {
    let first = hex(text.get(..6).ok_or(Fault::CutOff)?).ok_or_else(|| invalid(&text[..6]))?;
    if let Some(c) = char::from_u32(u32::from(first)) {
        return Ok((c, 6));
    }
    let next = text.get(6..12).ok_or(Fault::CutOff)?;
    let second = if next.starts_with(b"\\u") { hex(next) } else { None };
    let pair = second.and_then(|second| char::decode_utf16([first, second]).next()?.ok());
    pair.map(|c| (c, 12)).ok_or_else(|| invalid(next))
}

fn hex(escape: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(escape.get(2..6)?).ok()?;
    if digits.starts_with('+') { None } else { u16::from_str_radix(digits, 16).ok() }
}

fn invalid(escape: &[u8]) -> Fault {
    Fault::Wrong(format!("invalid escape code {} in string", go_quoted(escape)))
}

/// As Go's `%q` writes bytes, which need not be text: not as JSON does.
pub(in crate::api) fn go_quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    // Writing to a string cannot fail.
    for piece in bytes.utf8_chunks() {
        for c in piece.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\u{7}' => out.push_str("\\a"),
                '\u{8}' => out.push_str("\\b"),
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\u{b}' => out.push_str("\\v"),
                '\u{c}' => out.push_str("\\f"),
                '\r' => out.push_str("\\r"),
                c if c < ' ' || c == '\u{7f}' => _ = write!(out, "\\x{:02x}", u32::from(c)),
                '\u{80}'..='\u{a0}' | '\u{ad}' => _ = write!(out, "\\u{:04x}", u32::from(c)),
                c => out.push(c),
            }
        }
        for byte in piece.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out + "\""
}

/// Appends `text` in quotes.
pub(super) fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a string cannot fail.
            c if c < ' ' => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read() {
        let text = br#""a\n\u00e9\ud83d\ude00\/\"" rest"#;
        assert_eq!(unquoted(text), Ok(("a\né😀/\"".to_owned(), 27)));
        assert_eq!(unquoted(b"\"\xff\""), Err(Fault::Wrong("invalid UTF-8 in string".to_owned())));
        assert_eq!(unquoted(br#""\ud800""#), Err(Fault::CutOff));
        let half = r#"invalid escape code "\",\"key" in string"#.to_owned();
        assert_eq!(unquoted(br#""\ud800","key":1"#), Err(Fault::Wrong(half)));
    }

    #[test]
    fn what_is_no_escape_is_told_as_go_quotes_it() {
        for (text, told) in [
            (&b"\"\\ud800near\xf2z\""[..], r#""near\xf2z""#),
            (b"\"\\ud800\x01\x07\x0b\x7f\t\\\"", r#""\x01\a\v\x7f\t\\""#),
            (b"\"\\ud800abcd\xc3\xa9\"", r#""abcd\u{e9}""#),
            (b"\"\\ud800abcde\xc3\xa9\"", r#""abcde\xc3""#),
            (b"\"\\ud800abcd\xc2\xa0\"", r#""abcd\u00a0""#),
            (b"\"\\uzz\nzz\"", r#""\\uzz\nz""#),
        ] {
            let told = told.replace("\\u{e9}", "é");
            assert_eq!(unquoted(text), Err(Fault::Wrong(format!("invalid escape code {told} in string"))));
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let text = "a\"\\\n\u{1}é";
        let mut out = String::new();
        push_quoted(&mut out, text);
        assert_eq!(out, "\"a\\\"\\\\\\n\\u0001é\"");
        assert_eq!(unquoted(out.as_bytes()).map(|(text, _)| text), Ok(text.to_owned()));
    }
}
