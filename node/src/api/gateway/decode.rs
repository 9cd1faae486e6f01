//! A JSON value becomes a protobuf message on the wire, by the message's descriptor, as Go's `protojson` reads it: names as
//! declared or in lowerCamelCase, 64-bit integers as numbers or strings, enums as names or numbers, bytes as any base64;
//! unknown names and unknown enum names are dropped, a name twice or two of a oneof are errors. The texts of errors are
//! Go's, with line and column.
//!
//! The value has passed `scan.rs`: brackets, commas and literals are right. It must not know what a message means.

use std::fmt::Display;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::number::{self, Integer};
use super::text;

/// Messages in messages. Go takes 10,000, prost reads 100 from the wire: what is deeper could not be read back.
const MAX_DEPTH: usize = 100;

/// Reads a message.
///
/// # Errors
/// The text of the error as a client sees it.
pub(super) fn message(value: &[u8], of: &MessageDescriptor) -> Result<Vec<u8>, String> {
    let (mut reader, mut out) = (Reader { text: value, at: 0 }, Vec::new());
    reader.message(of, &mut out, MAX_DEPTH).map_err(|error| format!("proto: {error}"))?;
    Ok(out)
}

/// One token and where it begins.
struct Token<'a> {
    at: usize,
    /// As it stands there; of an object or an array only the bracket.
    raw: &'a [u8],
    kind: TokenKind,
}

#[derive(PartialEq, Eq)]
enum TokenKind {
    Null,
    Bool(bool),
    Number,
    String(String),
    Bracket,
}

impl Token<'_> {
    fn raw(&self) -> impl Display {
        String::from_utf8_lossy(self.raw).into_owned()
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn message(&mut self, of: &MessageDescriptor, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        if depth == 0 {
            return Err("exceeded max recursion depth".to_owned());
        }
        let open = self.token()?;
        if open.raw != b"{" {
            return Err(self.unexpected(&open));
        }
        let (mut seen, mut seen_oneofs) = (Vec::new(), Vec::new());
        while self.more(b'}') {
            let name = self.token()?;
            self.expect(b':');
            let TokenKind::String(text) = &name.kind else { return Err(self.unexpected(&name)) };
            let Some(field) = of.get_field_by_json_name(text).or_else(|| of.get_field_by_name(text)) else {
                self.skip()?;
                continue;
            };
            if seen.contains(&field.number()) {
                return Err(self.error(name.at, format!("duplicate field {}", name.raw())));
            }
            seen.push(field.number());
            if self.peek() == b'n' {
                self.token()?;
                continue;
            }
            if let Some(oneof) = field.containing_oneof() {
                if seen_oneofs.contains(&oneof.full_name().to_owned()) {
                    let (raw, of) = (name.raw(), oneof.full_name());
                    return Err(self.error(name.at, format!("error parsing {raw}, oneof {of} is already set")));
                }
                seen_oneofs.push(oneof.full_name().to_owned());
            }
            self.field(&field, out, depth)?;
        }
        Ok(())
    }

    fn field(&mut self, field: &FieldDescriptor, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        if !field.is_list() {
            return self.single(field, out, depth);
        }
        let open = self.token()?;
        if open.raw != b"[" {
            return Err(self.unexpected(&open));
        }
        while self.more(b']') {
            self.single(field, out, depth)?;
        }
        Ok(())
    }

    /// One value of a field, with its key before it.
    fn single(&mut self, field: &FieldDescriptor, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        if let Kind::Message(of) = field.kind() {
            let mut inner = Vec::new();
            self.message(&of, &mut inner, depth - 1)?;
            put_bytes(field, &inner, out);
            return Ok(());
        }
        let token = self.token()?;
        if scalar(field, &token, out) {
            return Ok(());
        }
        let (kind, name, raw) = (kind_name(&field.kind()), field.json_name(), token.raw());
        Err(self.error(token.at, format!("invalid value for {kind} field {name}: {raw}")))
    }

    /// Reads over a value, whose strings must be right all the same.
    fn skip(&mut self) -> Result<(), String> {
        let mut open = 0_usize;
        loop {
            let byte = self.peek();
            match byte {
                b'{' | b'[' => open += 1,
                b'}' | b']' => open -= 1,
                _ => {}
            }
            if matches!(byte, b'}' | b']' | b',' | b':') {
                self.at += 1;
            } else {
                self.token()?;
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    /// The next byte that is not white space; 0 at the end, which a scanned value does not reach.
    fn peek(&mut self) -> u8 {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return *byte;
            }
            self.at += 1;
        }
        0
    }

    fn expect(&mut self, byte: u8) {
        if self.peek() == byte {
            self.at += 1;
        }
    }

    /// Whether another element follows; the comma before it or the bracket `end` is consumed.
    fn more(&mut self, end: u8) -> bool {
        self.expect(b',');
        let byte = self.peek();
        if byte == end || byte == 0 {
            self.at += 1;
            return false;
        }
        true
    }

    fn token(&mut self) -> Result<Token<'a>, String> {
        let byte = self.peek();
        let (at, rest) = (self.at, self.text.get(self.at..).unwrap_or_default());
        let (length, kind) = match byte {
            b'"' => {
                let (string, length) = text::unquoted(rest).map_err(|fault| match fault {
                    text::Fault::CutOff => "unexpected EOF".to_owned(),
                    text::Fault::Wrong(what) => self.syntax(at, what),
                })?;
                (length, TokenKind::String(string))
            }
            b'n' => (4, TokenKind::Null),
            b't' => (4, TokenKind::Bool(true)),
            b'f' => (5, TokenKind::Bool(false)),
            b'-' | b'0'..=b'9' => {
                let part = |byte: &&u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
                (rest.iter().take_while(part).count(), TokenKind::Number)
            }
            _ => (1, TokenKind::Bracket),
        };
        let length = length.min(rest.len());
        self.at += length;
        Ok(Token { at, raw: &rest[..length], kind })
    }

    fn unexpected(&self, token: &Token<'_>) -> String {
        self.syntax(token.at, format!("unexpected token {}", token.raw()))
    }

    fn syntax(&self, at: usize, what: impl Display) -> String {
        format!("syntax error {}", self.error(at, what))
    }

    fn error(&self, at: usize, what: impl Display) -> String {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        format!("(line {line}:{column}): {what}")
    }
}

/// Writes a value that is no message; `false` when the token is none of the field's kind.
fn scalar(field: &FieldDescriptor, token: &Token<'_>, out: &mut Vec<u8>) -> bool {
    let varint = |value: Option<u64>, out: &mut Vec<u8>| {
        let Some(value) = value else { return false };
        encode_key(field.number(), WireType::Varint, out);
        encode_varint(value, out);
        true
    };
    match (field.kind(), &token.kind) {
        (Kind::Bool, TokenKind::Bool(value)) => varint(Some(u64::from(*value)), out),
        (Kind::Int32, _) => varint(integer(token, Integer::SIGNED_32), out),
        (Kind::Int64, _) => varint(integer(token, Integer::SIGNED_64), out),
        (Kind::Uint32, _) => varint(integer(token, Integer::UNSIGNED_32), out),
        (Kind::Uint64, _) => varint(integer(token, Integer::UNSIGNED_64), out),
        (Kind::String, TokenKind::String(text)) => put_bytes(field, text.as_bytes(), out),
        (Kind::Bytes, TokenKind::String(text)) => bytes(text).is_some_and(|bytes| put_bytes(field, &bytes, out)),
        (Kind::Enum(values), TokenKind::String(name)) => match values.get_value_by_name(name) {
            Some(value) => varint(Some(i64::from(value.number()).cast_unsigned()), out),
            None => true,
        },
        (Kind::Enum(_), TokenKind::Number) => varint(number::integer(token.raw, Integer::SIGNED_32), out),
        _ => false,
    }
}

/// A number, or a string that holds one.
fn integer(token: &Token<'_>, range: Integer) -> Option<u64> {
    match &token.kind {
        TokenKind::Number => number::integer(token.raw, range),
        TokenKind::String(text) => number::quoted_integer(text, range),
        _ => None,
    }
}

/// Base64, with padding or without, of either alphabet but not of both.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    let padding = match text.len() % 4 {
        0 => DecodePaddingMode::RequireCanonical,
        _ => DecodePaddingMode::RequireNone,
    };
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(padding);
    let plain: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    GeneralPurpose::new(alphabet, config).decode(plain).ok()
}

fn put_bytes(field: &FieldDescriptor, bytes: &[u8], out: &mut Vec<u8>) -> bool {
    encode_key(field.number(), WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
    true
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "bool",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Uint32 => "uint32",
        Kind::Uint64 => "uint64",
        Kind::String => "string",
        Kind::Bytes => "bytes",
        Kind::Enum(_) => "enum",
        _ => "message",
    }
}
